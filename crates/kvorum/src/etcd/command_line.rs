//! The command line in the syntax of Go's `flag` package, and the environment below it.
//!
//! `-f` is `--f`; a value follows or stands behind `=`; a switch alone is true and takes its value behind `=` only;
//! of a flag that is given twice the last one counts.

use std::ffi::{OsStr, OsString};

use super::flags::{FLAGS, FORGOTTEN, Flag, Kind, find};
use super::values::{Place, Values};

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// A member.
    Member(Values),
    /// The list of flags.
    Help,
}

/// Why the command line is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Mistake {
    /// In the flags themselves: exit code 2, and the usage with it.
    Syntax(String),
    /// In what they say: exit code 1.
    Meaning(String),
}

/// Variables that begin like flags of etcd and are none.
const NO_FLAGS: [&str; 1] = ["ETCD_UNSUPPORTED_ARCH"];

/// Reads the arguments behind the program's name.
///
/// # Errors
/// The first mistake, in the words of Go and etcd.
pub fn read(arguments: &[OsString]) -> Result<Asked, Mistake> {
    let mut values = Values::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument
            .to_str()
            .ok_or_else(|| Mistake::Syntax(format!("{}: not UTF-8", argument.display())))?;
        let bare = match text.strip_prefix("--").or_else(|| text.strip_prefix('-')) {
            Some("") if text == "--" => match rest.next() {
                Some(next) => return Err(no_flag(next)),
                None => break,
            },
            Some(bare) if !bare.is_empty() => bare,
            _ => return Err(no_flag(argument)),
        };
        if bare.starts_with(['-', '=']) {
            return Err(Mistake::Syntax(format!("bad flag syntax: {text}")));
        }
        let (name, value) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (bare, None),
        };
        let Some(flag) = find(name) else {
            match forgotten(name) {
                Some(known) => {
                    values
                        .warnings
                        .push(format!("flag \"-{known}\" is no longer supported - ignoring."));
                    continue;
                }
                None if name == "help" || name == "h" => return Ok(Asked::Help),
                None => {
                    return Err(Mistake::Syntax(format!("flag provided but not defined: -{name}")));
                }
            }
        };
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => match rest.next().map(|value| value.to_str()) {
                Some(Some(value)) => value.to_owned(),
                Some(None) => return Err(Mistake::Syntax(format!("-{name}: the value is not UTF-8"))),
                None => return Err(Mistake::Syntax(format!("flag needs an argument: -{name}"))),
            },
        };
        if let Err(why) = values.set(flag, &value, Place::Flag) {
            let boolean = if flag.kind == Kind::Bool { "boolean " } else { "" };
            return Err(Mistake::Syntax(match flag.kind {
                Kind::Bool => format!("invalid {boolean}value {value:?} for -{name}: {why}"),
                _ => format!("invalid value {value:?} for flag -{name}: {why}"),
            }));
        }
    }
    Ok(Asked::Member(values))
}

fn no_flag(argument: &OsStr) -> Mistake {
    let text = argument.to_string_lossy();
    Mistake::Meaning(match text.as_ref() {
        "gateway" | "grpc-proxy" => {
            format!("`etcd {text}` is not yet supported by kvorum: clients reach the members themselves")
        }
        text => format!("{text:?} is not a valid flag"),
    })
}

/// A flag that etcd takes and ignores.
fn forgotten(name: &str) -> Option<&'static str> {
    FORGOTTEN.into_iter().find(|known| *known == name)
}

/// The variable of a flag.
pub fn variable(name: &str) -> String {
    format!("ETCD_{}", name.replace('-', "_").to_ascii_uppercase())
}

/// Adds what the environment says of flags that are not given.
///
/// # Errors
/// A value that does not read, or a variable beside its flag: etcd takes neither.
pub fn read_environment(
    values: &mut Values,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), Mistake> {
    let all = environment.into_iter().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        name.starts_with("ETCD_").then_some((name, value))
    });
    for (name, value) in all {
        if NO_FLAGS.contains(&name.as_str()) {
            continue;
        }
        let flag: Option<&'static Flag> = FLAGS.iter().find(|flag| variable(flag.name) == name);
        let Some(flag) = flag.filter(|flag| flag.name != "version") else {
            if name == "ETCD_VERSION" {
                values
                    .warnings
                    .push(format!("cannot set special environment variable {name}"));
            } else {
                values
                    .warnings
                    .push(format!("unrecognized environment variable {name}"));
            }
            continue;
        };
        if values.place(flag.name) == Some(Place::Flag) {
            return Err(Mistake::Meaning(format!(
                "conflicting environment variable {name:?} is shadowed by corresponding command-line flag (either \
                 unset environment variable or disable flag)"
            )));
        }
        if value.is_empty() {
            continue;
        }
        let bad = |why: String| Mistake::Meaning(format!("invalid value {value:?} for {name}: {why}"));
        let text = value.to_str().ok_or_else(|| bad("it is not UTF-8".to_owned()))?;
        values
            .set(flag, text, Place::Environment)
            .map_err(|why| bad(why.to_string()))?;
        values.notes.push(format!(
            "recognized and used environment variable {name}={}",
            match flag.name {
                // Who may read the log need not know it.
                "discovery-password" | "discovery-user" => "…",
                _ => text,
            }
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read_words(line: &str) -> Result<Asked, Mistake> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        read(&words)
    }

    fn values(line: &str) -> Values {
        match read_words(line).unwrap() {
            Asked::Member(values) => values,
            Asked::Help => panic!("help for {line}"),
        }
    }

    #[track_caller]
    fn fails(line: &str, expected: Mistake) {
        assert_eq!(read_words(line).err(), Some(expected), "{line}");
    }

    #[test]
    fn one_dash_or_two_and_the_last_one_wins() {
        for line in ["-name a", "--name a", "-name=a", "--name=a", "--name x --name=a"] {
            assert_eq!(values(line).given("name"), Some("a"), "{line}");
        }
        for (line, expected) in [
            ("--pre-vote", true),
            ("-pre-vote=false", false),
            ("--pre-vote=F", false),
            ("--pre-vote=false --pre-vote", true),
        ] {
            assert_eq!(values(line).is_set("pre-vote"), expected, "{line}");
        }
        let both = values("--listen-client-urls http://127.0.0.1:1 --listen-client-urls http://127.0.0.1:2");
        assert_eq!(both.given("listen-client-urls"), Some("http://127.0.0.1:2"));
        assert!(values("--name=a --").given("name").is_some());
        assert_eq!(
            values("--force -snapshot --max-retry-attempts=3 --name a").given("name"),
            Some("a")
        );
        assert_eq!(
            values("--initial-cluster=a=http://h:1,b=http://i:2")
                .given("initial-cluster")
                .unwrap()
                .len(),
            25
        );
    }

    #[test]
    fn mistakes_have_gos_words() {
        let syntax = |text: &str| Mistake::Syntax(text.to_owned());
        let meaning = |text: &str| Mistake::Meaning(text.to_owned());
        fails("--bogus", syntax("flag provided but not defined: -bogus"));
        fails("-name", syntax("flag needs an argument: -name"));
        fails("---name=a", syntax("bad flag syntax: ---name=a"));
        fails("--=a", syntax("bad flag syntax: --=a"));
        fails(
            "--heartbeat-interval ten",
            syntax("invalid value \"ten\" for flag -heartbeat-interval: parse error"),
        );
        fails(
            "--pre-vote=maybe",
            syntax("invalid boolean value \"maybe\" for -pre-vote: parse error"),
        );
        fails("--pre-vote false", meaning("\"false\" is not a valid flag"));
        fails("name", meaning("\"name\" is not a valid flag"));
        fails("-- name", meaning("\"name\" is not a valid flag"));
        fails(
            "--listen-client-urls h:1",
            syntax(
                "invalid value \"h:1\" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: h:1",
            ),
        );
        let Err(Mistake::Meaning(text)) = read_words("grpc-proxy start") else {
            panic!("a proxy")
        };
        assert!(text.contains("not yet supported"), "{text}");
        for line in ["--help", "-h", "-help", "--name a -h"] {
            assert!(matches!(read_words(line), Ok(Asked::Help)), "{line}");
        }
    }

    #[test]
    fn every_flag_has_its_variable() {
        let environment = |pairs: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            pairs
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        };
        let mut given = values("--name a");
        let pairs = [
            ("ETCD_INITIAL_CLUSTER_TOKEN", "t"),
            ("ETCD_PRE_VOTE", "false"),
            ("ETCD_DATA_DIR", ""),
            ("ETCD_BOGUS", "1"),
            ("ETCD_VERSION", "3.4"),
            ("ETCD_UNSUPPORTED_ARCH", "arm"),
            ("ETCDCTL_API", "3"),
            ("PATH", "x"),
        ];
        read_environment(&mut given, environment(&pairs)).unwrap();
        assert_eq!(given.given("initial-cluster-token"), Some("t"));
        assert!(!given.is_set("pre-vote") && given.given("data-dir").is_none());
        assert_eq!(
            given.warnings,
            [
                "unrecognized environment variable ETCD_BOGUS",
                "cannot set special environment variable ETCD_VERSION"
            ]
        );
        assert_eq!(given.notes.len(), 2);
        let shadowed = read_environment(&mut values("--name a"), environment(&[("ETCD_NAME", "b")]));
        assert!(matches!(shadowed, Err(Mistake::Meaning(text)) if text.contains("shadowed")));
        let bad = read_environment(&mut values(""), environment(&[("ETCD_ELECTION_TIMEOUT", "1s")]));
        let expected = "invalid value \"1s\" for ETCD_ELECTION_TIMEOUT: parse error";
        assert_eq!(bad, Err(Mistake::Meaning(expected.to_owned())));
        for flag in FLAGS {
            let name = variable(flag.name);
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
        }
    }
}
