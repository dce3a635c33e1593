//! The table of settings: their names, what they mean, how they are read and shown.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use super::Settings;
use crate::units::{format_duration, format_size, parse_duration, parse_size};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    Stderr,
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

impl Display for LogOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LogOutput::Stderr => f.write_str("stderr"),
            LogOutput::Stdout => f.write_str("stdout"),
            LogOutput::File(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for LogOutput {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stderr" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            path => LogOutput::File(path.into()),
        })
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Where lines go; at least one.
    pub outputs: Vec<LogOutput>,
    /// How lines look.
    pub format: LogFormat,
    /// The least important level that is shown.
    pub level: tracing::Level,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            outputs: vec![LogOutput::Stderr],
            format: LogFormat::Text,
            level: tracing::Level::INFO,
        }
    }
}

/// What a value looks like in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A string; durations and sizes among them.
    Text,
    /// A string with commas, or an array of strings.
    List,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Number,
}

/// One setting.
pub(super) struct Setting {
    /// Name of the flag and of the key in the file.
    pub(super) key: &'static str,
    /// What stands for the value in the help.
    pub(super) hint: &'static str,
    pub(super) kind: Kind,
    /// One line for the help.
    pub(super) help: &'static str,
    /// The value as [`Setting::set`] reads it; empty for none.
    pub(super) show: fn(&Settings) -> String,
    /// Parses and stores a value.
    pub(super) set: fn(&mut Settings, &str) -> Result<(), String>,
}

/// The setting of this name.
pub(super) fn find(key: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.key == key)
}

fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// The parts of a list; none for an empty string.
fn list<T: FromStr<Err: Display>>(text: &str) -> Result<Vec<T>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(parsed)
        .collect()
}

fn joined<T: Display>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not a whole number"))
}

fn small_number(text: &str) -> Result<u32, String> {
    u32::try_from(number(text)?).map_err(|_| format!("`{text}` is too large"))
}

fn size(text: &str) -> Result<usize, String> {
    usize::try_from(parse_size(text)?).map_err(|_| format!("`{text}` is more than this machine can address"))
}

/// A setting whose field, printer and parser are given; the shape of nearly all of them.
macro_rules! setting {
    ($key:literal, $hint:literal, $kind:ident, $help:literal, $($field:ident).+, $show:expr, $parse:expr) => {
        Setting {
            key: $key,
            hint: $hint,
            kind: Kind::$kind,
            help: $help,
            show: |settings| ($show)(&settings.$($field).+),
            set: |settings, text| {
                settings.$($field).+ = ($parse)(text)?;
                Ok(())
            },
        }
    };
}

macro_rules! text {
    ($key:literal, $hint:literal, $help:literal, $($field:ident).+) => {
        setting!($key, $hint, Text, $help, $($field).+, String::to_owned, parsed::<String>)
    };
}
macro_rules! switch {
    ($key:literal, $help:literal, $($field:ident).+) => {
        setting!($key, "BOOL", Bool, $help, $($field).+, bool::to_string, boolean)
    };
}
macro_rules! duration {
    ($key:literal, $help:literal, $($field:ident).+) => {
        setting!($key, "DURATION", Text, $help, $($field).+, |d: &std::time::Duration| format_duration(*d), parse_duration)
    };
}
macro_rules! size {
    ($key:literal, $help:literal, $($field:ident).+) => {
        setting!($key, "SIZE", Text, $help, $($field).+, |bytes: &usize| format_size(*bytes as u64), size)
    };
}
macro_rules! number {
    ($key:literal, $help:literal, $($field:ident).+) => {
        setting!($key, "N", Number, $help, $($field).+, usize::to_string, number)
    };
}
macro_rules! list {
    ($key:literal, $hint:literal, $help:literal, $($field:ident).+) => {
        setting!($key, $hint, List, $help, $($field).+, |all: &Vec<_>| joined(all), list)
    };
}

macro_rules! optional_path {
    ($key:literal, $help:literal, $($field:ident).+) => {
        setting!(
            $key,
            "DIR",
            Text,
            $help,
            $($field).+,
            |path: &Option<PathBuf>| path.as_ref().map_or(String::new(), |path| path.display().to_string()),
            |text: &str| Ok::<_, String>(Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty()))
        )
    };
}

/// All settings, in the order in which they are shown.
pub(super) static TABLE: &[Setting] = &[
    text!(
        "name",
        "NAME",
        "This member's name, unique in its cluster",
        serve.name
    ),
    setting!(
        "data-dir",
        "DIR",
        Text,
        "This member's own directory; made if it is missing",
        serve.data_dir,
        |path: &PathBuf| path.display().to_string(),
        |text: &str| match text {
            "" => Err("the path is empty".to_owned()),
            path => Ok(PathBuf::from(path)),
        }
    ),
    optional_path!(
        "log-dir",
        "The log's directory; `log` in data-dir if not given",
        serve.log_dir
    ),
    optional_path!(
        "store-dir",
        "The store's directory; `store` in data-dir if not given",
        serve.store_dir
    ),
    switch!(
        "in-memory",
        "Keep all data in a temporary directory, which is deleted at the end",
        in_memory
    ),
    list!(
        "initial-cluster",
        "NAME=HOST:PORT,...",
        "The founders' names and peer addresses, this member among them; used on an empty directory",
        serve.initial_cluster
    ),
    text!(
        "cluster-token",
        "TOKEN",
        "Tells clusters with equal names apart",
        serve.cluster_token
    ),
    switch!(
        "bootstrap",
        "Found a cluster on an empty directory",
        serve.bootstrap
    ),
    duration!(
        "listen-before-founding",
        "Listen so long whether a running cluster calls this member, and join that one instead; 0: do not",
        serve.listen_before_founding
    ),
    switch!(
        "join",
        "Join as the successor that `kvorum member replace` announced",
        serve.join
    ),
    list!(
        "join-through",
        "HOST:PORT",
        "On an empty directory: join the cluster through this member's client address, which must be open for it",
        serve.join_through
    ),
    duration!("join-timeout", "How long to try to join", serve.join_timeout),
    switch!(
        "serve-when-voter",
        "Serve clients only once this member votes",
        serve.serve_when_voter
    ),
    list!(
        "listen-client",
        "HOST:PORT",
        "Where clients are served",
        serve.listen_client
    ),
    list!(
        "listen-client-optional",
        "HOST:PORT",
        "Where clients are served, too, if nobody else listens there",
        serve.listen_client_optional
    ),
    setting!(
        "listen-peer",
        "HOST:PORT",
        Text,
        "Where the other members are served; may be one of listen-client",
        serve.listen_peer,
        ToString::to_string,
        parsed
    ),
    text!(
        "peer-domain",
        "DOMAIN",
        "Members whose host has no dot are looked for in this domain, too",
        serve.peer_domain
    ),
    list!(
        "unnamed-founders",
        "HOST:PORT",
        "Founders whose names are not known: they are asked before the cluster is founded",
        serve.unnamed_founders
    ),
    list!(
        "advertise-client",
        "URL",
        "URLs told to clients; made from listen-client if not given",
        serve.advertise_client
    ),
    Setting {
        key: "advertise-peer",
        hint: "HOST:PORT",
        kind: Kind::Text,
        help: "The address told to the other members; as in initial-cluster if not given",
        show: |settings| {
            settings
                .serve
                .advertise_peer
                .as_ref()
                .map_or(String::new(), ToString::to_string)
        },
        set: |settings, text| {
            settings.serve.advertise_peer = if text.is_empty() {
                None
            } else {
                Some(parsed(text)?)
            };
            Ok(())
        },
    },
    switch!(
        "open-join",
        "Let members announce themselves here (/register-follower); trusts the network",
        serve.surfaces.open_join
    ),
    list!(
        "cors",
        "ORIGIN,...",
        "Origins whose pages may call /kv, /raft/info and /status; * for all",
        serve.surfaces.cors
    ),
    number!(
        "service-key-max-len",
        "Longest key in bytes that POST /key takes",
        serve.surfaces.key_bytes_max
    ),
    number!(
        "service-val-max-len",
        "Longest value in bytes that POST /key takes",
        serve.surfaces.value_bytes_max
    ),
    number!(
        "service-max-map-size",
        "POST /key creates no key where so many live in all",
        serve.surfaces.keys_max
    ),
    switch!(
        "errors-as-text",
        "Answer unknown paths and methods in plain text, not in JSON",
        serve.surfaces.errors_as_text
    ),
    switch!(
        "allow-plaintext",
        "Listen without encryption where other machines can connect",
        serve.allow_plaintext
    ),
    duration!(
        "election-timeout",
        "Least time without a leader before an election",
        serve.election_timeout
    ),
    duration!(
        "heartbeat-interval",
        "How often a leader is heard",
        serve.heartbeat_interval
    ),
    duration!(
        "check-quorum",
        "A leader without a majority for a time drawn from [D, 2D) steps down; 0: for two election timeouts",
        serve.check_quorum
    ),
    duration!(
        "vote-timeout",
        "A connection for votes not open by then is tried anew; 0: 2s",
        serve.vote_timeout
    ),
    duration!(
        "append-timeout",
        "A connection on which log entries go unanswered for so long is opened anew; 0: never",
        serve.append_timeout
    ),
    number!(
        "append-entries-max",
        "Most log entries in one message",
        serve.append_entries_max
    ),
    duration!(
        "start-delay",
        "Wait for a time drawn from [D, 2D) before taking part",
        serve.start_delay
    ),
    switch!(
        "lease-reads",
        "Serve linearizable reads from a leader lease; trusts the clocks' rates",
        serve.lease_reads
    ),
    duration!(
        "history",
        "How much history automatic compaction keeps; 0 keeps all",
        serve.history
    ),
    duration!(
        "request-timeout",
        "Longest wait of a request without a deadline of its own; 0: 5s and two election timeouts",
        serve.request_timeout
    ),
    duration!(
        "drain-timeout",
        "Longest time that a graceful stop takes",
        serve.drain_timeout
    ),
    setting!(
        "log-format",
        "text|json",
        Text,
        "How log lines look",
        log.format,
        |format: &LogFormat| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        },
        |text: &str| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("`{text}` is none of text, json")),
        }
    ),
    setting!(
        "log-level",
        "LEVEL",
        Text,
        "Least important level that is logged: error, warn, info, debug, trace",
        log.level,
        |level: &tracing::Level| level.to_string().to_lowercase(),
        |text: &str| text
            .parse()
            .map_err(|_| format!("`{text}` is none of error, warn, info, debug, trace"))
    ),
    setting!(
        "log-outputs",
        "OUTPUT,...",
        List,
        "Where log lines go: stderr, stdout, or a file to append to",
        log.outputs,
        |all: &Vec<_>| joined(all),
        |text: &str| match list(text)? {
            none if none.is_empty() => Err("name stderr, stdout or a file".to_owned()),
            all => Ok(all),
        }
    ),
    setting!(
        "compat-version",
        "X.Y.Z",
        Text,
        "The etcd version that this member says it is",
        serve.etcd.version,
        String::to_owned,
        |text: &str| match kvorum_server::etcd_options::check_version(text) {
            Ok(()) => Ok(text.to_owned()),
            Err(error) => Err(error.to_string()),
        }
    ),
    size!("request-bytes-max", "Largest request", serve.request_bytes_max),
    number!(
        "requests-max",
        "Most requests in work at one time",
        serve.requests_max
    ),
    number!(
        "connections-max",
        "Most client connections at one time",
        serve.connections_max
    ),
    size!(
        "range-bytes-max",
        "Unary range answers in memory at one time",
        serve.range_bytes_max
    ),
    size!(
        "watch-ring-bytes",
        "Recent events kept for watchers",
        serve.watch_ring_bytes
    ),
    size!(
        "watch-stream-bytes-max",
        "Events waiting in one watch stream",
        serve.watch_stream_bytes_max
    ),
    size!(
        "quota-bytes",
        "The store's size from which on writes that need space are refused; 0: none",
        serve.quota.bytes
    ),
    switch!(
        "quota-alarm-stays",
        "Refuse them on all members until `etcdctl alarm disarm`, as etcd does",
        serve.quota.alarm_stays
    ),
    duration!(
        "auth-token-ttl",
        "How long a token of a user is good after its last use",
        serve.auth.token_ttl
    ),
    setting!(
        "bcrypt-cost",
        "N",
        Number,
        "Cost of hashing a user's password, the logarithm of its rounds: 4 to 31",
        serve.auth.bcrypt_cost,
        u32::to_string,
        small_number
    ),
    size!("memtable-bytes", "The store's memtable", serve.memtable_bytes),
    size!("cache-bytes", "The store's block cache", serve.cache_bytes),
    size!(
        "log-bytes-max",
        "Log that a restart replays at most",
        serve.log_bytes_max
    ),
];
