//! What `--help`, `--version` and a mistake in the flags print.

use super::flags::{FLAGS, Fate, Flag, GATES, Group};

/// How the program is called, in etcd's words.
pub const USAGE: &str = "Usage:

  etcd [flags]
    Start an etcd server.

  etcd --version
    Show the version of etcd.

  etcd -h | --help
    Show the help information about etcd.

  etcd --config-file
    Path to the server configuration file. Note that if a configuration file is provided, other command line flags and environment variables will be ignored.
";

/// What `--version` prints: etcd's first line, then who it really is.
pub fn version() -> String {
    format!(
        "etcd Version: {}\nkvorum Version: {}\nOS/Arch: {}/{}\n",
        kvorum_server::runtime::ETCD_VERSION,
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

/// The flags in their groups.
pub fn flags() -> String {
    let mut text = String::new();
    for (group, title) in Group::ALL {
        text.push_str(&format!("\n{title}:\n"));
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            if let Some(what) = described(flag) {
                text.push_str(&format!("  --{} '{}'\n    {what}\n", flag.name, flag.default));
            }
        }
    }
    text
}

/// What the help says of a flag; nothing of those that are not for people.
fn described(flag: &Flag) -> Option<String> {
    let help = flag.help;
    Some(match flag.fate {
        Fate::Effect if flag.name == "feature-gates" => {
            let names: Vec<String> = GATES
                .iter()
                .map(|(name, default, _)| format!("{name}={default}"))
                .collect();
            format!("{help} Known ones, with their defaults: {}.", names.join(", "))
        }
        Fate::Effect => help.to_owned(),
        Fate::Ours if help.is_empty() => return None,
        Fate::Ours => help.to_owned(),
        Fate::Ignored(why) => format!("{help} No effect here: {why}."),
        Fate::Refused(instead) => format!("{help} Not yet supported: {instead}."),
        Fate::Renamed(name) => format!("Deprecated. Use '--{name}' instead."),
        Fate::Gate(gate) => format!("Deprecated. Use '--feature-gates={gate}=...' instead."),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_group_and_every_flag() {
        let help = flags();
        for (_, title) in Group::ALL {
            assert!(help.contains(&format!("\n{title}:\n")), "{title}");
        }
        for flag in FLAGS.iter().filter(|flag| flag.name != "until-stdin-closes") {
            assert!(help.contains(&format!("  --{} '", flag.name)), "{}", flag.name);
        }
        assert!(version().starts_with("etcd Version: 3."));
    }
}
