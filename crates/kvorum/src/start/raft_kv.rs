//! The environment of "raft-kv": `RAFT_*`, `BADGER_*`, `LOG_LEVEL`. Times are in milliseconds.

use std::time::Duration;

use kvorum_server::options::{EVERY_INTERFACE, HEARTBEATS_PER_ELECTION_MIN};
use kvorum_server::{Address, Founder};

use super::Words;
use super::variables::{Variable, Variables};
use crate::failure::Failure;
use crate::units::format_duration;

/// What the family is called in messages.
pub const FAMILY: &str = "raft-kv";

/// The variables that tell the family.
pub const VARIABLES: [&str; 13] = [
    "RAFT_ID",
    "RAFT_CLUSTER",
    "RAFT_REQUEST_VOTE_TIMEOUT",
    "RAFT_APPEND_ENTRIES_TIMEOUT",
    "RAFT_COMMIT_PERIOD",
    "RAFT_START_DELAY",
    "RAFT_ELECTION_TIMEOUT",
    "RAFT_STALE_PERIOD",
    "RAFT_HEARTBEAT_PERIOD",
    "RAFT_HEARTBEAT_BATCH_SIZE",
    "BADGER_ENTRY_PATH",
    "BADGER_KV_PATH",
    "BADGER_STATE_PATH",
];

/// Beside the port of `RAFT_CLUSTER`.
const HTTP_PORT: u16 = 7000;
const ADMIN_PORT: u16 = 6000;
const ELECTION_TIMEOUT: Duration = Duration::from_millis(300);
const STALE_PERIOD: Duration = Duration::from_millis(200);
const HEARTBEAT_PERIOD: Duration = Duration::from_millis(50);
/// Of both calls to a peer.
const PEER_TIMEOUT: Duration = Duration::from_millis(150);

/// The settings that these variables mean.
pub fn translate(variables: &Variables) -> Result<Words, Failure> {
    let mut words = Words {
        warnings: variables.unknown(&["RAFT_", "BADGER_"], &VARIABLES),
        ..Words::default()
    };
    cluster(&mut words, variables)?;
    timing(&mut words, variables)?;
    directories(&mut words, variables)?;
    if let Some(level) = variables.get("LOG_LEVEL") {
        words.variable("log-level", log_level(level)?, level);
    }
    Ok(words)
}

fn cluster(words: &mut Words, variables: &Variables) -> Result<(), Failure> {
    let required = |name: &str, what: &str| {
        variables
            .get(name)
            .ok_or_else(|| Failure::usage(format!("{name} is not set: it is {what}, as {FAMILY} has it")))
    };
    let id = required("RAFT_ID", "this member's name in RAFT_CLUSTER")?;
    let list = required("RAFT_CLUSTER", "all members, `1@host:port,2@host:port,...`")?;
    let members = members(list)?;
    let name = id.text()?.trim();
    let Some(own) = members.iter().find(|member| member.name == name) else {
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        return Err(id.malformed(format!("`{name}` is not in RAFT_CLUSTER ({})", names.join(", "))));
    };
    let own = &own.address;
    words.variable("name", name, id);
    let all: Vec<String> = members.iter().map(ToString::to_string).collect();
    words.variable("initial-cluster", all.join(","), list);
    // Who is reached through this machine alone need not be heard by others.
    let host = if own.is_loopback() {
        own.host.as_str()
    } else {
        EVERY_INTERFACE
    };
    let at = |port| Address::new(host, port).to_string();
    words.variable("listen-client", at(own.port), list);
    words.variable("listen-peer", at(own.port), list);
    words.default_of(
        FAMILY,
        "listen-client-optional",
        format!("{},{}", at(HTTP_PORT), at(ADMIN_PORT)),
    );
    words.default_of(FAMILY, "allow-plaintext", "true");
    words.default_of(FAMILY, "cors", "*");
    Ok(())
}

fn members(list: &Variable) -> Result<Vec<Founder>, Failure> {
    let text = list.text()?;
    let items = text.split(',').map(str::trim);
    items
        .enumerate()
        .map(|(at, item)| {
            if item.is_empty() {
                return Err(list.malformed(format!(
                    "item {} of `{text}` is empty; write ID@HOST:PORT",
                    at + 1
                )));
            }
            let (id, address) = item.split_once('@').unwrap_or_default();
            let founder: Result<Founder, _> = format!("{id}={address}").parse();
            founder
                .ok()
                .filter(|founder| founder.address.port != 0)
                .ok_or_else(|| list.malformed(format!("`{item}` is not a member; write ID@HOST:PORT")))
        })
        .collect()
}

fn timing(words: &mut Words, variables: &Variables) -> Result<(), Failure> {
    let election = milliseconds(variables, "RAFT_ELECTION_TIMEOUT")?;
    let heartbeat = milliseconds(variables, "RAFT_HEARTBEAT_PERIOD")?;
    let limit = election.map_or(ELECTION_TIMEOUT, |(_, time)| time) / HEARTBEATS_PER_ELECTION_MIN;
    match election {
        Some((variable, time)) => words.variable("election-timeout", format_duration(time), variable),
        None => words.default_of(FAMILY, "election-timeout", format_duration(ELECTION_TIMEOUT)),
    }
    let capped = |time: Duration| format_duration(time.min(limit));
    match heartbeat {
        Some((variable, time)) => words.variable("heartbeat-interval", capped(time), variable),
        None => words.default_of(FAMILY, "heartbeat-interval", capped(HEARTBEAT_PERIOD)),
    }
    let wanted = heartbeat.map_or(HEARTBEAT_PERIOD, |(_, time)| time);
    if wanted > limit {
        words.notes.push(format!(
            "RAFT_HEARTBEAT_PERIOD is {wanted:?}: it is lowered to {limit:?}, a fifth of RAFT_ELECTION_TIMEOUT"
        ));
    }
    if let Some((variable, time)) = milliseconds(variables, "RAFT_START_DELAY")? {
        words.variable("start-delay", format_duration(time), variable);
    }
    if let Some((variable, _)) = milliseconds(variables, "RAFT_COMMIT_PERIOD")? {
        words.notes.push(format!(
            "{} does nothing: entries are applied as soon as they are committed",
            variable.origin
        ));
    }
    stale_period(words, variables, wanted.min(limit))?;
    peers(words, variables)
}

/// A leader must have time to be answered.
fn stale_period(words: &mut Words, variables: &Variables, heartbeat: Duration) -> Result<(), Failure> {
    let least = 2 * heartbeat;
    let Some((variable, time)) = milliseconds(variables, "RAFT_STALE_PERIOD")? else {
        words.default_of(FAMILY, "check-quorum", format_duration(STALE_PERIOD.max(least)));
        return Ok(());
    };
    if time < least {
        words.notes.push(format!(
            "RAFT_STALE_PERIOD is {time:?}: it is raised to {least:?}, two heartbeats"
        ));
    }
    words.variable("check-quorum", format_duration(time.max(least)), variable);
    Ok(())
}

/// What concerns the messages to the others.
fn peers(words: &mut Words, variables: &Variables) -> Result<(), Failure> {
    let timeouts = [
        ("RAFT_REQUEST_VOTE_TIMEOUT", "vote-timeout"),
        ("RAFT_APPEND_ENTRIES_TIMEOUT", "append-timeout"),
    ];
    for (name, key) in timeouts {
        words.default_of(FAMILY, key, format_duration(PEER_TIMEOUT));
        if let Some((variable, time)) = milliseconds(variables, name)? {
            words.variable(key, format_duration(time), variable);
        }
    }
    words.default_of(FAMILY, "append-entries-max", "10000");
    if let Some(variable) = variables.get("RAFT_HEARTBEAT_BATCH_SIZE") {
        words.variable("append-entries-max", variable.text()?.trim(), variable);
    }
    Ok(())
}

fn milliseconds<'a>(
    variables: &'a Variables,
    name: &str,
) -> Result<Option<(&'a Variable, Duration)>, Failure> {
    let Some(variable) = variables.get(name) else {
        return Ok(None);
    };
    let text = variable.text()?.trim();
    match text.parse::<u32>() {
        Ok(number) => Ok(Some((variable, Duration::from_millis(number.into())))),
        Err(_) => Err(variable.malformed(format!("`{text}` is not a whole number of milliseconds"))),
    }
}

/// The three paths of that system: its state holds the vote, and here what makes the directory a member's.
fn directories(words: &mut Words, variables: &Variables) -> Result<(), Failure> {
    let paths = [
        ("BADGER_STATE_PATH", "data-dir", "/data/state"),
        ("BADGER_ENTRY_PATH", "log-dir", "/data/entry"),
        ("BADGER_KV_PATH", "store-dir", "/data/kv"),
    ];
    for (name, key, default) in paths {
        match variables.get(name) {
            Some(variable) => words.variable(key, variable.text()?, variable),
            None => words.default_of(FAMILY, key, default),
        }
    }
    Ok(())
}

/// The levels of zap; what is above `error` there does not exist here.
fn log_level(variable: &Variable) -> Result<&'static str, Failure> {
    let text = variable.text()?.trim();
    match text.to_ascii_lowercase().as_str() {
        "debug" => Ok("debug"),
        "info" => Ok("info"),
        "warn" | "warning" => Ok("warn"),
        "error" | "dpanic" | "panic" | "fatal" => Ok("error"),
        _ => Err(variable.malformed(format!(
            "`{text}` is none of DEBUG, INFO, WARN, ERROR, DPANIC, PANIC, FATAL"
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::super::EnvFile;
    use super::*;

    fn translated(more: &[(&str, &str)]) -> Result<Words, String> {
        let cluster = [
            ("RAFT_ID", "1"),
            ("RAFT_CLUSTER", "1@raft-kv-1:8000,2@raft-kv-2:8000"),
        ];
        let all = cluster
            .iter()
            .chain(more)
            .map(|(k, v)| ((*k).into(), (*v).into()));
        let variables = Variables::read(all, EnvFile::None, Path::new(".")).unwrap();
        translate(&variables).map_err(|failure| failure.to_string())
    }

    fn value(words: &Words, key: &str) -> Option<String> {
        let mut all = words.defaults.iter().chain(&words.variables);
        all.rfind(|a| a.key == key).map(|a| a.value.clone())
    }

    #[track_caller]
    fn check(more: &[(&str, &str)], key: &str, expected: &str) {
        assert_eq!(
            value(&translated(more).unwrap(), key).as_deref(),
            Some(expected),
            "{key}"
        );
    }

    #[test]
    fn every_variable_has_its_effect() {
        check(&[], "initial-cluster", "1=raft-kv-1:8000,2=raft-kv-2:8000");
        check(&[], "listen-client", "*:8000");
        check(&[], "listen-peer", "*:8000");
        check(&[], "listen-client-optional", "*:7000,*:6000");
        let local = ("RAFT_CLUSTER", "1@127.0.0.2:8001,2@127.0.0.3:8001");
        check(&[local], "listen-client", "127.0.0.2:8001");
        check(
            &[local],
            "listen-client-optional",
            "127.0.0.2:7000,127.0.0.2:6000",
        );
        check(&[], "election-timeout", "300ms");
        check(&[("RAFT_ELECTION_TIMEOUT", "400")], "election-timeout", "400ms");
        check(&[], "heartbeat-interval", "50ms");
        check(&[("RAFT_HEARTBEAT_PERIOD", "20")], "heartbeat-interval", "20ms");
        check(&[("RAFT_START_DELAY", "1500")], "start-delay", "1s500ms");
        assert_eq!(value(&translated(&[]).unwrap(), "start-delay"), None);
        check(&[], "data-dir", "/data/state");
        check(&[], "log-dir", "/data/entry");
        check(&[("BADGER_KV_PATH", "/x")], "store-dir", "/x");
        check(&[], "check-quorum", "200ms");
        check(&[("RAFT_STALE_PERIOD", "500")], "check-quorum", "500ms");
        check(&[], "vote-timeout", "150ms");
        check(&[], "append-timeout", "150ms");
        check(&[("RAFT_REQUEST_VOTE_TIMEOUT", "700")], "vote-timeout", "700ms");
        check(
            &[("RAFT_APPEND_ENTRIES_TIMEOUT", "800")],
            "append-timeout",
            "800ms",
        );
        check(&[], "append-entries-max", "10000");
        check(&[("RAFT_HEARTBEAT_BATCH_SIZE", "7")], "append-entries-max", "7");
        check(&[("LOG_LEVEL", "WARN")], "log-level", "warn");
        check(&[("LOG_LEVEL", "fatal")], "log-level", "error");
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let words = translated(&[("RAFT_HEARTBEAT_PERIOD", "100"), ("RAFT_COMMIT_PERIOD", "50")]).unwrap();
        assert_eq!(value(&words, "heartbeat-interval").unwrap(), "60ms");
        assert!(
            words.notes[0].contains("RAFT_HEARTBEAT_PERIOD is 100ms"),
            "{:?}",
            words.notes
        );
        assert!(
            words.notes[1].contains("RAFT_COMMIT_PERIOD does nothing"),
            "{:?}",
            words.notes
        );
        let words = translated(&[("RAFT_STALE_PERIOD", "60")]).unwrap();
        assert_eq!(value(&words, "check-quorum").unwrap(), "100ms");
        assert!(
            words.notes[0].contains("RAFT_STALE_PERIOD is 60ms"),
            "{:?}",
            words.notes
        );
        let words = translated(&[("RAFT_ELECTION_TIMEOUT", "150")]).unwrap();
        assert_eq!(value(&words, "heartbeat-interval").unwrap(), "30ms");
        let words = translated(&[("RAFT_CLUSTERS", "x")]).unwrap();
        assert!(words.warnings[0].contains("RAFT_CLUSTERS"));
    }

    #[test]
    fn mistakes_are_named() {
        let fails = |more: &[(&str, &str)], words: &str| {
            let error = translated(more).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        for (list, number) in [("1@h:1,", 2), ("1@h:1,,2@h:2", 2), (",1@h:1", 1)] {
            let words = format!("RAFT_CLUSTER: item {number} of `{list}` is empty");
            fails(&[("RAFT_CLUSTER", list)], &words);
        }
        for bad in ["2raft-kv-2:8000", "2@h", "@h:1", "2@:1", "a b@h:1", "2@h:0"] {
            let list = format!("1@h:1,{bad}");
            fails(&[("RAFT_CLUSTER", &list)], &format!("RAFT_CLUSTER: `{bad}`"));
        }
        fails(&[("RAFT_ID", "9")], "RAFT_ID: `9` is not in RAFT_CLUSTER (1, 2)");
        fails(
            &[("RAFT_ELECTION_TIMEOUT", "300ms")],
            "RAFT_ELECTION_TIMEOUT: `300ms`",
        );
        fails(&[("LOG_LEVEL", "loud")], "LOG_LEVEL: `loud`");
        let variables = [("RAFT_CLUSTER", "1@h:1"), ("RAFT_ID", "")].map(|(k, v)| (k.into(), v.into()));
        let variables = Variables::read(variables, EnvFile::None, Path::new(".")).unwrap();
        let error = translate(&variables).unwrap_err().to_string();
        assert!(error.contains("RAFT_ID is not set"), "{error}");
    }
}
