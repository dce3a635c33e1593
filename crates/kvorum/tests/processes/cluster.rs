//! A cluster of member processes.
//!
//! Members are started with their standard input on a pipe of the test: however the test ends, they end too.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kvorum_client::proto::mvcc::KeyValue;
use kvorum_client::proto::v1::{Role, StatusResponse};
use kvorum_client::{Client, Options, prefix_range};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use crate::program::{Ran, command, eventually, free_port};

/// How long a cluster may take to get somewhere. Generous: the machine may be busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The tests' turn on this machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// Waits for this test's turn.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// One member: its settings, and its process if it runs.
pub struct Member {
    pub name: String,
    /// `host:port` for clients.
    pub client: String,
    /// `host:port` for peers.
    pub peer: String,
    pub data_dir: PathBuf,
    pub log: PathBuf,
    /// Arguments beside name, directory and ports.
    pub settings: Vec<String>,
    process: Option<Child>,
}

impl Member {
    /// A member called `name` with its data below `dir`, not started.
    pub fn new(name: &str, dir: &Path, settings: &[&str]) -> Member {
        Member {
            name: name.to_owned(),
            client: format!("127.0.0.1:{}", free_port()),
            peer: format!("127.0.0.1:{}", free_port()),
            data_dir: dir.join(name),
            log: dir.join(format!("{name}.log")),
            settings: settings.iter().map(|text| (*text).to_owned()).collect(),
            process: None,
        }
    }

    /// The command that runs it.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = command(["serve", "--name", &self.name]);
        command.arg("--data-dir").arg(&self.data_dir);
        command.args(["--listen-client", &self.client, "--listen-peer", &self.peer]);
        command.args(&self.settings).args(more);
        command
    }

    /// Starts it.
    pub fn start(&mut self) {
        self.start_as(self.command(&[]));
    }

    /// Starts it by a command of its own.
    pub fn start_as(&mut self, mut command: Command) {
        assert!(self.process.is_none(), "{} runs", self.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        command
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            .stderr(log)
            .stdout(Stdio::null());
        self.process = Some(command.spawn().unwrap());
    }

    /// Starts it where it must not start: what it says.
    pub async fn refused(&self, more: &[&str]) -> Ran {
        Ran::of(self.command(more)).await
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().and_then(Child::id).expect("it runs")
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().await.unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal to its process.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub async fn end(&mut self, at_most: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        match timeout(at_most, process.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("{} does not end within {at_most:?}", self.name),
        }
    }

    /// Waits until it ends by itself, which [`Member::end`] does not tell from an end with its standard input.
    pub async fn ended(&mut self, at_most: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        let what = format!("{} ends by itself", self.name);
        eventually(&what, at_most, async || process.try_wait().unwrap()).await
    }

    /// Whether it runs; that it ended by itself is a failure.
    pub fn is_running(&mut self) -> bool {
        let Some(process) = &mut self.process else {
            return false;
        };
        if let Some(status) = process.try_wait().unwrap() {
            panic!("{} ended: {status}, signal {:?}", self.name, status.signal());
        }
        true
    }

    /// A client that asks this member only.
    pub fn client(&self) -> Client {
        client(&[&self.client])
    }

    /// How it is, if it answers.
    pub async fn status(&self) -> Option<StatusResponse> {
        let options = Options {
            endpoints: vec![self.client.clone()],
            timeout: Duration::from_secs(1),
            ..Options::default()
        };
        Client::new(options).unwrap().status().await.ok()
    }

    /// Waits until it answers.
    pub async fn wait_for_status(&mut self) -> StatusResponse {
        let what = format!("{} answers", self.name);
        eventually(&what, PATIENCE, async || {
            self.is_running();
            self.status().await
        })
        .await
    }

    /// All records with this prefix as this member has them, without asking the others.
    pub async fn local_records(&self, prefix: &str) -> Vec<KeyValue> {
        let mut export = self.client().export(prefix_range(prefix.as_bytes()), 0, true);
        let mut records = Vec::new();
        while let Some(chunk) = export.next().await.unwrap() {
            records.extend(chunk);
        }
        records
    }

    /// The end of its log, for failures.
    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// A client with time for an election or two.
pub fn client(endpoints: &[&str]) -> Client {
    Client::new(Options {
        endpoints: endpoints.iter().map(|text| (*text).to_owned()).collect(),
        timeout: Duration::from_secs(30),
        ..Options::default()
    })
    .unwrap()
}

/// Several members and the directory of their data, which is deleted with it.
pub struct Cluster {
    pub members: Vec<Member>,
    pub dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// A running cluster of `count` members, `n1`, `n2`, ..., with a leader that all know.
    pub async fn start(count: usize, settings: &[&str]) -> Cluster {
        let turn = turn().await;
        // Not /tmp, which may be in memory: the target directory is where there is room.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut members: Vec<Member> = (1..=count)
            .map(|n| Member::new(&format!("n{n}"), dir.path(), settings))
            .collect();
        let founders: Vec<String> = members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer))
            .collect();
        for member in &mut members {
            if count > 1 {
                member
                    .settings
                    .extend(["--initial-cluster".to_owned(), founders.join(",")]);
            }
            member.start();
        }
        let mut cluster = Cluster {
            members,
            dir,
            _turn: turn,
        };
        for member in &mut cluster.members {
            member.wait_for_status().await;
        }
        cluster.leader().await;
        cluster
    }

    /// Members that run already, with their directory and this test's turn.
    pub fn of(members: Vec<Member>, dir: TempDir, turn: MutexGuard<'static, ()>) -> Cluster {
        Cluster {
            members,
            dir,
            _turn: turn,
        }
    }

    /// Endpoints of all members, starting with member `first`.
    pub fn endpoints(&self, first: usize) -> Vec<&str> {
        let count = self.members.len();
        (0..count)
            .map(|n| self.members[(first + n) % count].client.as_str())
            .collect()
    }

    /// Position of the leader that a majority follows, once there is one.
    pub async fn leader(&mut self) -> usize {
        let members = &mut self.members;
        eventually("there is a leader", PATIENCE, async || {
            let mut leaders = Vec::new();
            for (at, member) in members.iter_mut().enumerate() {
                if member.is_running()
                    && let Some(status) = member.status().await
                    && status.role() == Role::Leader
                    && status.majority_contact
                {
                    leaders.push((status.term, at));
                }
            }
            leaders.into_iter().max().map(|(_, at)| at)
        })
        .await
    }

    /// Waits until all running members applied the same entries; gives their statuses.
    pub async fn converge(&mut self) -> Vec<StatusResponse> {
        let members = &mut self.members;
        eventually("the members converge", PATIENCE, async || {
            let mut statuses = Vec::new();
            for member in members.iter_mut() {
                if member.is_running() {
                    statuses.push(member.status().await?);
                }
            }
            let first = statuses.first()?;
            let same = |status: &StatusResponse| {
                status.applied_index == first.applied_index && status.commit_index == first.commit_index
            };
            let all_applied = first.applied_index == first.commit_index;
            (all_applied && statuses.iter().all(same)).then_some(statuses)
        })
        .await
    }

    /// Waits until all members hold the same, and checks that they do.
    pub async fn check_agreement(&mut self) -> Vec<StatusResponse> {
        let statuses = self.converge().await;
        for status in &statuses[1..] {
            let (name, first) = (&status.name, &statuses[0]);
            assert_eq!(status.revision, first.revision, "revision of {name}");
            assert_eq!(status.digest, first.digest, "digest of {name}");
            assert_eq!(status.keys, first.keys, "keys of {name}");
        }
        statuses
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in &self.members {
                eprintln!("--- end of the log of {}\n{}", member.name, member.log_tail());
            }
        }
    }
}
