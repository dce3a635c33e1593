//! The environment of "dist-kv-store": `SERVER_*`, `ROUTER_*`, `SERVICE_*`, from `.env` files as a rule.
//!
//! The first member makes a cluster of one; each later one joins through the HTTP address of any other.

use kvorum_server::Address;
use kvorum_server::options::EVERY_INTERFACE;

use super::Words;
use super::variables::{Variable, Variables};
use crate::failure::Failure;

/// What the family is called in messages.
pub const FAMILY: &str = "dist-kv-store";

/// The variables that tell the family.
pub const VARIABLES: [&str; 11] = [
    "SERVICE_RAFT_NODE_ID",
    "SERVICE_RAFT_LEADER",
    "SERVICE_RAFT_STORE_DIR",
    "SERVICE_RAFT_ADDR",
    "SERVICE_RAFT_JOIN_ADDR",
    "SERVICE_RAFT_TIMEOUT",
    "SERVICE_DEBUG",
    "SERVICE_KEY_MAX_LEN",
    "SERVICE_VAL_MAX_LEN",
    "SERVICE_MAX_MAP_SIZE",
    "ROUTER_REQUEST_TIMEOUT",
];
/// Those that others have, too.
const COMMON: [&str; 2] = ["SERVER_ADDRESS", "SERVER_SHUTDOWN_TIMEOUT"];
const PREFIXES: [&str; 3] = ["SERVER_", "ROUTER_", "SERVICE_"];

/// Variables that are a setting each, with that system's defaults.
const PLAIN: [(&str, &str, &str); 6] = [
    ("SERVICE_KEY_MAX_LEN", "service-key-max-len", "100"),
    ("SERVICE_VAL_MAX_LEN", "service-val-max-len", "200"),
    ("SERVICE_MAX_MAP_SIZE", "service-max-map-size", "1000"),
    ("SERVER_SHUTDOWN_TIMEOUT", "drain-timeout", "5s"),
    ("ROUTER_REQUEST_TIMEOUT", "request-timeout", "30s"),
    ("SERVICE_RAFT_TIMEOUT", "join-timeout", "20s"),
];

/// Its environment names nobody whom the first member could ask whether its cluster runs; but members that lost it dial
/// it, at the latest three seconds after the last time.
const LISTEN_BEFORE_FOUNDING: &str = "3s";

/// Whether this variable is read from a `.env` that nobody asked for.
pub fn owns(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The settings that these variables mean.
pub fn translate(variables: &Variables) -> Result<Words, Failure> {
    let known: Vec<&str> = VARIABLES.iter().chain(&COMMON).copied().collect();
    let mut words = Words {
        warnings: variables.unknown(&PREFIXES, &known),
        ..Words::default()
    };
    for (name, key, default) in PLAIN {
        words.default_of(FAMILY, key, default);
        if let Some(variable) = variables.get(name) {
            words.variable(key, variable.text()?.trim(), variable);
        }
    }
    words.default_of(FAMILY, "listen-client", "localhost:8888");
    if let Some(variable) = variables.get("SERVER_ADDRESS") {
        words.variable("listen-client", address(variable)?.to_string(), variable);
    }
    words.default_of(FAMILY, "allow-plaintext", "true");
    words.default_of(FAMILY, "errors-as-text", "true");
    match switch(variables, "SERVICE_DEBUG")? {
        Some((variable, true)) => alone(&mut words, variables, variable),
        _ => in_cluster(&mut words, variables)?,
    }
    Ok(words)
}

/// One member without peers, whose data nobody keeps.
fn alone(words: &mut Words, variables: &Variables, debug: &Variable) {
    words.variable("in-memory", "true", debug);
    words.variable("listen-peer", "127.0.0.1:0", debug);
    words.default_of(FAMILY, "name", "debug");
    if let Some(name) = variables.get("SERVICE_RAFT_NODE_ID") {
        words.variable("name", name.raw().to_string_lossy(), name);
    }
    for name in [
        "SERVICE_RAFT_ADDR",
        "SERVICE_RAFT_STORE_DIR",
        "SERVICE_RAFT_JOIN_ADDR",
    ] {
        if let Some(variable) = variables.get(name) {
            words
                .notes
                .push(format!("{} does nothing beside SERVICE_DEBUG", variable.origin));
        }
    }
}

fn in_cluster(words: &mut Words, variables: &Variables) -> Result<(), Failure> {
    let required = |name: &str, what: &str| {
        variables
            .get(name)
            .ok_or_else(|| Failure::usage(format!("{name} is not set: it is {what}, as {FAMILY} has it")))
    };
    let id = required("SERVICE_RAFT_NODE_ID", "this member's name")?;
    words.variable("name", id.text()?.trim(), id);
    let peer = required(
        "SERVICE_RAFT_ADDR",
        "where the other members reach this one, host:port",
    )?;
    let reached = address(peer)?;
    if reached.is_unspecified() {
        return Err(peer.malformed(format!(
            "the other members cannot reach {reached}; write the address that they use"
        )));
    }
    if let Some(clients) = variables.get("SERVER_ADDRESS")
        && address(clients)?.collides(&reached)
    {
        return Err(peer.malformed(format!(
            "{reached} is SERVER_ADDRESS, too; give each a port of its own"
        )));
    }
    words.variable("listen-peer", reached.to_string(), peer);
    words.variable("advertise-peer", reached.to_string(), peer);
    let directory = required("SERVICE_RAFT_STORE_DIR", "the directory of this member's data")?;
    words.variable("data-dir", directory.text()?, directory);

    let leader = switch(variables, "SERVICE_RAFT_LEADER")?;
    let join = variables.get("SERVICE_RAFT_JOIN_ADDR");
    words.default_of(FAMILY, "bootstrap", "false");
    words.default_of(FAMILY, "open-join", "true");
    words.default_of(FAMILY, "serve-when-voter", "true");
    match (leader, join) {
        (Some((leader, true)), join) => {
            words.variable("bootstrap", "true", leader);
            words.default_of(FAMILY, "listen-before-founding", LISTEN_BEFORE_FOUNDING);
            if let Some(join) = join {
                words.notes.push(format!(
                    "{} does nothing beside SERVICE_RAFT_LEADER=true",
                    join.origin
                ));
            }
        }
        (_, Some(join)) => words.variable("join-through", address(join)?.to_string(), join),
        (_, None) => {}
    }
    Ok(())
}

/// `host:port` as Go has it: with an `http://` before it perhaps, and every interface if the host is left out.
fn address(variable: &Variable) -> Result<Address, Failure> {
    let text = variable.text()?.trim();
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let whole = match bare.starts_with(':') {
        true => format!("{EVERY_INTERFACE}{bare}"),
        false => bare.to_owned(),
    };
    let address: Option<Address> = whole.parse().ok();
    address
        .filter(|address| address.port != 0)
        .ok_or_else(|| variable.malformed(format!("`{text}` is not an address; write host:port")))
}

/// A truth value as Go's `ParseBool` reads it.
fn switch<'a>(variables: &'a Variables, name: &str) -> Result<Option<(&'a Variable, bool)>, Failure> {
    let Some(variable) = variables.get(name) else {
        return Ok(None);
    };
    let text = variable.text()?.trim();
    let value = match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err(variable.malformed(format!("`{text}` is neither true nor false"))),
    };
    Ok(Some((variable, value)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::super::EnvFile;
    use super::*;

    const NODE: [(&str, &str); 3] = [
        ("SERVICE_RAFT_NODE_ID", "node2"),
        ("SERVICE_RAFT_ADDR", "localhost:21002"),
        ("SERVICE_RAFT_STORE_DIR", "./node2"),
    ];

    fn translated(pairs: &[(&str, &str)]) -> Result<Words, String> {
        let all = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        let variables = Variables::read(all, EnvFile::None, Path::new(".")).unwrap();
        translate(&variables).map_err(|failure| failure.to_string())
    }

    #[track_caller]
    fn check(more: &[(&str, &str)], key: &str, expected: Option<&str>) {
        let words = translated(&[&NODE[..], more].concat()).unwrap();
        let mut all = words.defaults.iter().chain(&words.variables);
        let value = all.rfind(|a| a.key == key).map(|a| a.value.as_str());
        assert_eq!(value, expected, "{key} of {more:?}");
    }

    #[test]
    fn every_variable_has_its_effect() {
        check(&[], "listen-client", Some("localhost:8888"));
        check(&[("SERVER_ADDRESS", ":8889")], "listen-client", Some("*:8889"));
        check(&[], "listen-peer", Some("localhost:21002"));
        check(&[], "advertise-peer", Some("localhost:21002"));
        check(&[], "data-dir", Some("./node2"));
        check(&[], "drain-timeout", Some("5s"));
        check(&[("SERVER_SHUTDOWN_TIMEOUT", "7s")], "drain-timeout", Some("7s"));
        check(&[], "request-timeout", Some("30s"));
        check(&[("ROUTER_REQUEST_TIMEOUT", "2s")], "request-timeout", Some("2s"));
        check(&[], "errors-as-text", Some("true"));
        check(&[], "join-timeout", Some("20s"));
        check(&[("SERVICE_KEY_MAX_LEN", "7")], "service-key-max-len", Some("7"));
        check(&[], "service-val-max-len", Some("200"));
        check(&[], "service-max-map-size", Some("1000"));
        check(&[], "bootstrap", Some("false"));
        check(&[("SERVICE_RAFT_LEADER", "true")], "bootstrap", Some("true"));
        check(
            &[("SERVICE_RAFT_LEADER", "true")],
            "listen-before-founding",
            Some("3s"),
        );
        check(&[], "listen-before-founding", None);
        let join = ("SERVICE_RAFT_JOIN_ADDR", "http://localhost:8888/");
        check(&[join], "join-through", Some("localhost:8888"));
        check(&[join, ("SERVICE_RAFT_LEADER", "1")], "join-through", None);
        check(&[("SERVICE_DEBUG", "T")], "in-memory", Some("true"));
    }

    #[test]
    fn one_member_for_trying_out_needs_nothing_more() {
        let words = translated(&[("SERVICE_DEBUG", "true")]).unwrap();
        assert!(words.notes.is_empty() && words.warnings.is_empty());
        let words = translated(&[&NODE[..], &[("SERVICE_DEBUG", "true")]].concat()).unwrap();
        assert!(
            words.notes[0].contains("SERVICE_RAFT_ADDR does nothing"),
            "{:?}",
            words.notes
        );
    }

    #[test]
    fn mistakes_are_named() {
        let fails = |pairs: &[(&str, &str)], part: &str| {
            let error = translated(pairs).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        fails(&NODE[..1], "SERVICE_RAFT_ADDR is not set");
        fails(&NODE[1..], "SERVICE_RAFT_NODE_ID is not set");
        fails(&NODE[..2], "SERVICE_RAFT_STORE_DIR is not set");
        let with = |name, value| [&NODE[..], &[(name, value)]].concat();
        fails(
            &with("SERVICE_RAFT_ADDR", ":21001"),
            "SERVICE_RAFT_ADDR: the other members cannot reach",
        );
        fails(
            &with("SERVER_ADDRESS", "8888"),
            "SERVER_ADDRESS: `8888` is not an address",
        );
        fails(
            &with("SERVER_ADDRESS", ":0"),
            "SERVER_ADDRESS: `:0` is not an address",
        );
        fails(
            &with("SERVICE_RAFT_JOIN_ADDR", "h:0"),
            "SERVICE_RAFT_JOIN_ADDR: `h:0`",
        );
        fails(&with("SERVICE_RAFT_ADDR", "h:0"), "SERVICE_RAFT_ADDR: `h:0`");
        for twice in [":21002", "127.0.0.1:21002"] {
            fails(
                &with("SERVER_ADDRESS", twice),
                "SERVICE_RAFT_ADDR: localhost:21002 is SERVER_ADDRESS, too",
            );
        }
        fails(&with("SERVICE_RAFT_LEADER", "yes"), "SERVICE_RAFT_LEADER: `yes`");
        let words = translated(&with("SERVICE_RAFT_LEADR", "true")).unwrap();
        assert!(
            words.warnings[0].contains("SERVICE_RAFT_LEADR is unknown"),
            "{:?}",
            words.warnings
        );
    }
}
