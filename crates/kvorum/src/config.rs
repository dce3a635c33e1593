//! The configuration of `kvorum serve`: defaults, then a TOML file, then the environment, then flags; later
//! wins, and every effective value knows where it came from. The words of a replaced system ([`crate::start`]) come
//! in between: its own defaults below the file, its variables below ours, its flags below ours.
//!
//! One table, [`settings::TABLE`], is the source of flags, of file keys (both in kebab-case) and of variables
//! (`KVORUM_` and upper snake case). An unknown key is an error in files and flags, and a warning in the
//! environment, which belongs to others too.

mod env;
mod file;
mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use kvorum_server::ServeOptions;

use settings::{Kind, TABLE};
pub use settings::{LogFormat, LogOptions, LogOutput};

use crate::failure::Failure;
use crate::start::{self, StoreFlags, Variables};

/// Everything that `serve` is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What the member is told.
    pub serve: ServeOptions,
    /// What is logged, and how.
    pub log: LogOptions,
    /// Whether all data lies in a directory that is deleted at the end.
    pub in_memory: bool,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// The default of a replaced system, or made of what is known of this machine.
    Family(&'static str),
    File {
        path: PathBuf,
        line: usize,
    },
    EnvFile {
        path: PathBuf,
        line: usize,
        name: String,
    },
    Environment(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "file {}, line {line}", path.display()),
            Origin::Family(family) => write!(f, "default of {family}"),
            Origin::EnvFile { path, line, name } => write!(f, "{}, line {line} ({name})", path.display()),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(key) => write!(f, "flag --{key}"),
        }
    }
}

/// One value on its way into the settings.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The setting, one of the table.
    pub key: &'static str,
    /// As its parser reads it.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Where the configuration comes from, beside the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// A TOML file.
    pub file: Option<&'a Path>,
    /// The environment and the file below it.
    pub variables: &'a Variables,
    /// Our flags.
    pub flags: &'a Flags,
    /// The flags of raft-kv-store.
    pub store_flags: &'a StoreFlags,
    /// The replaced program under whose name this one was started.
    pub started_as: Option<&'a str>,
}

/// The merged configuration.
#[derive(Debug)]
pub struct Config {
    /// The effective values, valid together.
    pub settings: Settings,
    /// What was strange but no error, one line each.
    pub warnings: Vec<String>,
    /// What is worth a line in the log.
    pub notes: Vec<String>,
    /// What the user calls our settings.
    pub words: UsersWords,
}

/// What the user calls our settings.
#[derive(Clone, Debug, Default)]
pub struct UsersWords {
    origins: BTreeMap<&'static str, Origin>,
    /// Addresses of a setting that holds several: setting, address, flag or variable.
    called: Vec<(&'static str, String, &'static str)>,
}

impl UsersWords {
    /// A message with the names of our settings, in the words of who reads it: where a setting came from another flag
    /// or variable, that one is named.
    pub fn put_into(&self, text: &str) -> String {
        let mut keys: Vec<&'static str> = TABLE.iter().map(|setting| setting.key).collect();
        // A key that another one begins with comes after it.
        keys.sort_unstable_by_key(|key| std::cmp::Reverse(key.len()));
        let mut text = text.to_owned();
        for key in keys {
            if let Some(word) = self.word(key, &text) {
                text = replaced(&text, key, &word);
            }
        }
        text
    }

    fn word(&self, key: &str, text: &str) -> Option<String> {
        let is_meant = |(of, address, _): &&(&str, String, &str)| {
            *of == key && text.contains(&format!("{key} {address} "))
        };
        if let Some((_, _, word)) = self.called.iter().find(is_meant) {
            return Some((*word).to_owned());
        }
        match self.origins.get(key)? {
            Origin::Environment(name) | Origin::EnvFile { name, .. } if !name.starts_with("KVORUM_") => {
                Some(name.clone())
            }
            // A directory is below the one that the user gave, whose flag has the same name.
            Origin::Flag(flag) if *flag != key && key != "data-dir" => Some(format!("--{flag}")),
            _ => None,
        }
    }
}

/// `word` in the place of `key` and `--key`, where these are words of their own. Keys that are words of every language
/// are replaced only at the beginning, where messages name what they are about.
fn replaced(text: &str, key: &str, word: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '`');
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(key) {
        let (before, after) = (&rest[..at], &rest[at + key.len()..]);
        let bare = before.strip_suffix("--").unwrap_or(before);
        let begins = !bare.ends_with(is_part) && (key.contains('-') || (out.is_empty() && bare.is_empty()));
        if begins && !after.starts_with(|c| is_part(c) && c != '.') {
            out.push_str(bare);
            out.push_str(word);
        } else {
            out.push_str(before);
            out.push_str(key);
        }
        rest = after;
    }
    out + rest
}

impl Config {
    /// Merges all sources and checks the result.
    ///
    /// # Errors
    /// One line that names the value, its origin, and what to do; exit code 2.
    pub fn load(sources: Sources<'_>) -> Result<Config, Failure> {
        let Sources {
            variables,
            flags,
            store_flags,
            ..
        } = sources;
        let mut words = start::translate(variables, store_flags, flags, sources.started_as)?;
        let environment = env::read(variables)?;
        let mut config = Config {
            settings: Settings::default(),
            warnings: variables.warnings.clone(),
            notes: std::mem::take(&mut words.notes),
            words: UsersWords {
                called: std::mem::take(&mut words.called),
                ..UsersWords::default()
            },
        };
        if let Some(file) = &variables.file {
            config
                .notes
                .push(format!("variables are read from {}", file.display()));
        }
        config.warnings.extend(words.warnings);
        config.warnings.extend(environment.warnings);
        config.apply(words.defaults)?;
        if let Some(path) = sources.file {
            config.apply(file::read(path)?)?;
        }
        config.apply(words.variables)?;
        config.apply(environment.assignments)?;
        config.apply(words.flags)?;
        let flags = flags.0.iter().filter(|(key, _)| !words.consumed.contains(key));
        let flags = flags.map(|(key, value)| Assignment {
            key,
            value: value.clone(),
            origin: Origin::Flag(key),
        });
        config.apply(flags.collect())?;
        config
            .settings
            .serve
            .validate()
            .map_err(|e| Failure::usage(config.words.put_into(&e.to_string())))?;
        Ok(config)
    }

    fn apply(&mut self, assignments: Vec<Assignment>) -> Result<(), Failure> {
        for Assignment { key, value, origin } in assignments {
            let setting = settings::find(key).expect("assignments are made from the table");
            (setting.set)(&mut self.settings, value.trim())
                .map_err(|error| Failure::usage(format!("{key} ({origin}): {error}")))?;
            self.words.origins.insert(key, origin);
        }
        Ok(())
    }

    fn rows(&self) -> impl Iterator<Item = (&'static str, String, String)> {
        TABLE.iter().map(|setting| {
            let origin = self.words.origins.get(setting.key).unwrap_or(&Origin::Default);
            (setting.key, (setting.show)(&self.settings), origin.to_string())
        })
    }

    /// Prints the effective values as a TOML file, each with its origin as a comment.
    pub fn print_toml(&self, out: &mut impl Write) -> io::Result<()> {
        let rows: Vec<(String, String)> = TABLE
            .iter()
            .zip(self.rows())
            .map(|(setting, (key, value, origin))| match setting.kind {
                Kind::Text | Kind::List => (format!("{key} = {}", toml_string(&value)), origin),
                Kind::Bool | Kind::Number => (format!("{key} = {value}"), origin),
            })
            .collect();
        let width = rows
            .iter()
            .map(|(text, _)| text.chars().count())
            .filter(|w| *w < 60)
            .max()
            .unwrap_or(0);
        for (text, origin) in rows {
            writeln!(out, "{text:width$}  # {origin}")?;
        }
        Ok(())
    }

    /// Prints an array of `{"key","value","origin"}`.
    pub fn print_json(&self, out: &mut impl Write) -> io::Result<()> {
        let rows: Vec<serde_json::Value> = self
            .rows()
            .map(|(key, value, origin)| serde_json::json!({"key": key, "value": value, "origin": origin}))
            .collect();
        writeln!(out, "{}", serde_json::Value::Array(rows))
    }
}

/// A basic string, in quotes. JSON's escapes are a subset of TOML's.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The settings that were given as flags, in the table's order.
#[derive(Clone, Debug, Default)]
pub struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// What was given for this setting.
    pub fn get(&self, key: &str) -> Option<&str> {
        let given = self.0.iter().find(|(given, _)| *given == key);
        given.map(|(_, value)| value.as_str())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let defaults = Settings::default();
        TABLE.iter().fold(command, |command, setting| {
            let arg = Arg::new(setting.key).long(setting.key).value_name(setting.hint);
            let arg = match setting.kind {
                Kind::Bool => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .hide_possible_values(true),
                Kind::List => arg.action(ArgAction::Append),
                Kind::Text | Kind::Number => arg,
            };
            let default = match (setting.show)(&defaults) {
                text if text.is_empty() => String::new(),
                text => format!(" [default: {text}]"),
            };
            command.arg(arg.help(format!("{}{default}", setting.help)))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = TABLE.iter().filter_map(|setting| {
            let values: Vec<&str> = matches
                .get_many::<String>(setting.key)?
                .map(String::as_str)
                .collect();
            Some((setting.key, values.join(",")))
        });
        Ok(Flags(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::start::EnvFile;
    use clap::Args;
    use std::time::Duration;

    fn flags(args: &[&str]) -> Flags {
        let command = Flags::augment_args(Command::new("serve").no_binary_name(true));
        Flags::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap()
    }

    fn load(file: &str, environment: &[(&str, &str)], args: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvorum.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(k, v)| (k.into(), v.into()));
        let variables = Variables::read(environment, EnvFile::None, dir.path()).unwrap();
        loaded(Some(&path), &variables, &flags(args)).map_err(|failure| {
            failure
                .to_string()
                .replace(&format!("{}/", dir.path().display()), "")
        })
    }

    fn loaded(file: Option<&Path>, variables: &Variables, flags: &Flags) -> Result<Config, Failure> {
        Config::load(Sources {
            file,
            variables,
            flags,
            store_flags: &StoreFlags::default(),
            started_as: None,
        })
    }

    #[track_caller]
    fn fails(file: &str, environment: &[(&str, &str)], args: &[&str], expected: &str) {
        let error = load(file, environment, args).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn later_sources_win_and_origins_are_kept() {
        let config = load(
            "election-timeout = \"1s\"\nname = \"a\"\ncluster-token = \"t\"\n",
            &[("KVORUM_NAME", "b"), ("KVORUM_HEARTBEAT_INTERVAL", "50ms")],
            &["--name", "c", "--lease-reads", "--log-format", "json"],
        )
        .unwrap();
        assert_eq!(config.settings.serve.name, "c");
        assert_eq!(config.settings.serve.election_timeout, Duration::from_secs(1));
        assert_eq!(
            config.settings.serve.heartbeat_interval,
            Duration::from_millis(50)
        );
        assert!(config.settings.serve.lease_reads);
        assert_eq!(config.settings.log.format, LogFormat::Json);
        let origin = |key: &str| {
            config
                .words
                .origins
                .get(key)
                .map_or("default".into(), ToString::to_string)
        };
        assert_eq!(origin("name"), "flag --name");
        assert_eq!(
            origin("heartbeat-interval"),
            "environment KVORUM_HEARTBEAT_INTERVAL"
        );
        assert!(
            origin("cluster-token").ends_with("kvorum.toml, line 3"),
            "{}",
            origin("cluster-token")
        );
        assert_eq!(origin("data-dir"), "default");
    }

    #[test]
    fn lists_come_as_arrays_repeated_flags_or_with_commas() {
        let expected = "node-1=h1:2380,n2=h2:2380";
        let file = "initial-cluster = [\"node-1=h1:2380\", \"n2=h2:2380\"]";
        for config in [
            load(file, &[], &[]),
            load("initial-cluster = \"node-1=h1:2380, n2=h2:2380\"", &[], &[]),
            load("", &[("KVORUM_INITIAL_CLUSTER", expected)], &[]),
            load(
                "",
                &[],
                &[
                    "--initial-cluster",
                    "node-1=h1:2380",
                    "--initial-cluster",
                    "n2=h2:2380",
                ],
            ),
        ] {
            let config = config.unwrap();
            let shown: Vec<String> = config
                .settings
                .serve
                .initial_cluster
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(shown.join(","), expected);
        }
    }

    #[test]
    fn what_is_printed_is_a_file_that_gives_the_same() {
        let config = load(
            "name = \"x\"\ninitial-cluster = \"x=h:1,y=h:2\"\nhistory = \"1h30m\"\nallow-plaintext = true\n",
            &[],
            &["--data-dir", "/a \"quoted\" dir", "--requests-max", "17"],
        )
        .unwrap();
        let mut printed = Vec::new();
        config.print_toml(&mut printed).unwrap();
        let printed = String::from_utf8(printed).unwrap();
        assert!(printed.contains("history = \"1h30m\""), "{printed}");
        assert!(printed.contains("# flag --data-dir"), "{printed}");
        let again = load(&printed, &[], &[]).unwrap();
        assert_eq!(again.settings, config.settings);
        let mut json = Vec::new();
        config.print_json(&mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json.as_array().unwrap().len(), TABLE.len());
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        fails(
            "name = \"a\"\nlisten-clint = \"h:1\"\n",
            &[],
            &[],
            "kvorum.toml, line 2: unknown key `listen-clint`",
        );
        fails("name = \"a\"\n\nname = \"b\"\n", &[], &[], "line 3");
        fails("\nname = \n", &[], &[], "kvorum.toml, line 2");
        fails(
            "[server]\nname = \"a\"\n",
            &[],
            &[],
            "line 1: unknown key `server`",
        );
        fails(
            "election-timeout = 750",
            &[],
            &[],
            "election-timeout (file kvorum.toml, line 1): `750` is not a duration",
        );
        fails("name = 1.5", &[], &[], "line 1");
        fails("name = [\"a\"]", &[], &[], "line 1: name takes one value");
        fails(
            "requests-max = \"many\"",
            &[],
            &[],
            "`many` is not a whole number",
        );
        fails(
            "lease-reads = \"maybe\"",
            &[],
            &[],
            "`maybe` is neither true nor false",
        );
        fails(
            "",
            &[("KVORUM_HISTORY", "1")],
            &[],
            "history (environment KVORUM_HISTORY): `1` is not a duration",
        );
        fails(
            "",
            &[],
            &["--log-format", "xml"],
            "log-format (flag --log-format): `xml` is none of text, json",
        );
        fails("", &[], &["--listen-client", "0.0.0.0:1"], "allow-plaintext");
        let missing = Some(Path::new("/nowhere/k.toml"));
        let missing = loaded(missing, &Variables::default(), &Flags::default()).unwrap_err();
        assert!(
            missing.to_string().contains("cannot read /nowhere/k.toml"),
            "{missing}"
        );
    }
}
