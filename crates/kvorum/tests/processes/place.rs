//! Members in an etcd's place: the program under the name `etcd`, by etcd's flags, variables or file alone.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::cluster::Member;
use crate::program::{Ran, binary, clean};

/// How a member is told what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// On the command line.
    Flags,
    /// In the environment.
    Variables,
    /// In a YAML file.
    File,
}

/// The program under the name `etcd`, in `dir`.
pub fn program(dir: &Path) -> PathBuf {
    let program = dir.join("etcd");
    if !program.exists() {
        symlink(binary(), &program).unwrap();
    }
    program
}

/// etcd's settings of a member: flag and value.
pub type Settings = Vec<(String, String)>;

/// What a member of this cluster is told; `founders` are names and peer ports.
pub fn settings(member: &Member, founders: &[(String, String)], more: &[(&str, &str)]) -> Settings {
    let (client, peer) = (
        format!("http://{}", member.client),
        format!("http://{}", member.peer),
    );
    let cluster: Vec<String> = founders
        .iter()
        .map(|(name, peer)| format!("{name}=http://{peer}"))
        .collect();
    let (dir, cluster) = (member.data_dir.display().to_string(), cluster.join(","));
    let own = [
        ("name", member.name.as_str()),
        ("data-dir", &dir),
        ("listen-client-urls", &client),
        ("advertise-client-urls", &client),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", &cluster),
    ];
    own.iter()
        .chain(more)
        .map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned()))
        .collect()
}

/// The command that runs a member with these settings, in these words.
pub fn command(dir: &Path, words: Words, settings: &Settings) -> Command {
    let mut command = Command::new(program(dir));
    clean(&mut command);
    command.current_dir(dir).kill_on_drop(true);
    match words {
        Words::Flags => {
            for (number, (flag, value)) in settings.iter().enumerate() {
                // All four forms.
                match number % 4 {
                    0 => command.args([format!("--{flag}"), value.clone()]),
                    1 => command.arg(format!("--{flag}={value}")),
                    2 => command.args([format!("-{flag}"), value.clone()]),
                    _ => command.arg(format!("-{flag}={value}")),
                };
            }
        }
        Words::Variables => {
            let name = |flag: &str| format!("ETCD_{}", flag.replace('-', "_").to_uppercase());
            command.envs(settings.iter().map(|(flag, value)| (name(flag), value)));
        }
        Words::File => {
            let name = &settings
                .iter()
                .find(|(flag, _)| flag == "name")
                .expect("it has one")
                .1;
            let path = dir.join(format!("{name}.yml"));
            let lines = settings.iter().map(|(flag, value)| format!("{flag}: {value}\n"));
            std::fs::write(&path, lines.collect::<String>()).unwrap();
            // What stands beside a file counts for nothing.
            command.arg("--config-file").arg(&path).args(["--name", "nobody"]);
            command.env("ETCD_DATA_DIR", "/nowhere");
        }
    }
    command
}

/// Runs `etcd` with these arguments to its end.
pub async fn ran(dir: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program(dir));
    clean(&mut command);
    command.args(arguments).current_dir(dir).kill_on_drop(true);
    Ran::of(command).await
}
