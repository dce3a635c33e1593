//! The flags of "raft-kv-store": `--id --port --http-port --data-dir --peers --metrics-port`.
//!
//! One port serves gRPC for clients and peers, another HTTP; both serve everything. The data of a member lies in
//! `<data-dir>/<id>`: its users give all members of a machine one directory.

use std::path::Path;

use clap::Args;
use kvorum_server::{Address, Founder};

use super::Words;
use super::host::Host;
use crate::config::Flags;
use crate::failure::Failure;

/// What the family is called in messages.
pub const FAMILY: &str = "raft-kv-store";

const ID: &str = "node-1";
const PORT: u16 = 8080;
const HTTP_PORT: u16 = 9090;
const METRICS_PORT: u16 = 9091;
const DATA_DIR: &str = "/tmp/raft-data";

/// The flags that are this family's alone.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Flags of raft-kv-store, the store that kvorum replaces")]
pub struct StoreFlags {
    /// This member's name; its data lies in <data-dir>/<id> [default: node-1]
    #[arg(long)]
    id: Option<String>,
    /// gRPC for clients and peers, on every interface [default: 8080]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// HTTP, on every interface [default: 9090]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    http_port: Option<u16>,
    /// The other members, with commas between: ID=HOST:PORT, HOST:PORT, or an ID that is a host's name, too
    #[arg(long, value_name = "MEMBERS")]
    peers: Option<String>,
    /// Another port for metrics [default: 9091, if it is free]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    metrics_port: Option<u16>,
}

impl StoreFlags {
    /// The first that is given.
    pub fn first(&self) -> Option<&'static str> {
        let given = [
            ("id", self.id.is_some()),
            ("port", self.port.is_some()),
            ("http-port", self.http_port.is_some()),
            ("peers", self.peers.is_some()),
            ("metrics-port", self.metrics_port.is_some()),
        ];
        given.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
    }
}

fn every_interface(port: u16) -> String {
    Address::new(kvorum_server::options::EVERY_INTERFACE, port).to_string()
}

/// The settings that these flags mean.
pub fn translate(flags: &StoreFlags, native: &Flags, host: &Host) -> Result<Words, Failure> {
    let mut words = Words::default();
    let (port, http) = (flags.port.unwrap_or(PORT), flags.http_port.unwrap_or(HTTP_PORT));
    distinct_ports(port, http, flags.metrics_port)?;
    words.default_of(FAMILY, "name", ID);
    words.default_of(FAMILY, "listen-peer", every_interface(PORT));
    let listen = |port, http| format!("{},{}", every_interface(port), every_interface(http));
    words.default_of(FAMILY, "listen-client", listen(PORT, HTTP_PORT));
    words.default_of(FAMILY, "listen-client-optional", every_interface(METRICS_PORT));
    words.default_of(FAMILY, "allow-plaintext", "true");

    let id = flags.id.as_deref().unwrap_or(ID);
    if matches!(id, "." | "..") || id.contains('/') {
        return Err(Failure::usage(format!(
            "flag --id: `{id}` cannot be the name of a member and of its directory below --data-dir"
        )));
    }
    if flags.id.is_some() {
        words.flag("id", "name", id);
    }
    directory(&mut words, flags, native, id);
    if flags.port.is_some() {
        words.flag("port", "listen-peer", every_interface(port));
    }
    let metrics = flags.metrics_port;
    let ports = [
        ("--port", Some(port)),
        ("--http-port", Some(http)),
        ("--metrics-port", metrics),
    ];
    for (flag, port) in ports {
        words
            .called
            .extend(port.map(|port| ("listen-client", every_interface(port), flag)));
    }
    if flags.port.is_some() || flags.http_port.is_some() || metrics.is_some() {
        let flag = if flags.http_port.is_some() {
            "http-port"
        } else {
            "port"
        };
        let all = [Some(listen(port, http)), metrics.map(every_interface)];
        let all: Vec<String> = all.into_iter().flatten().collect();
        words.flag(flag, "listen-client", all.join(","));
    }
    if flags.metrics_port.is_some() {
        words.flag("metrics-port", "listen-client-optional", "");
    }
    cluster(
        &mut words,
        flags.peers.as_deref().unwrap_or_default(),
        id,
        port,
        host,
    )?;
    Ok(words)
}

/// Each port of a member serves everything, so one number for two of them is a mistake.
fn distinct_ports(port: u16, http: u16, metrics: Option<u16>) -> Result<(), Failure> {
    let twice = |one: &str, other: &str, port: u16| {
        Err(Failure::usage(format!(
            "flag {one}: {port} is the port of {other}, too; give each its own (--port is {PORT}, --http-port \
             {HTTP_PORT} where they are not given)"
        )))
    };
    match metrics {
        _ if http == port => twice("--http-port", "--port", port),
        Some(metrics) if metrics == port => twice("--metrics-port", "--port", port),
        Some(metrics) if metrics == http => twice("--metrics-port", "--http-port", http),
        _ => Ok(()),
    }
}

/// The member's own directory below the common one.
fn directory(words: &mut Words, flags: &StoreFlags, native: &Flags, id: &str) {
    let given = native.get("data-dir");
    let path = Path::new(given.unwrap_or(DATA_DIR))
        .join(id)
        .display()
        .to_string();
    if given.is_some() {
        words.flag("data-dir", "data-dir", path);
        words.consumed.push("data-dir");
    } else if flags.id.is_some() {
        words.flag("id", "data-dir", path);
    } else {
        words.default_of(FAMILY, "data-dir", path);
    }
}

fn cluster(words: &mut Words, peers: &str, id: &str, port: u16, host: &Host) -> Result<(), Failure> {
    let Peers { own, others, unnamed } = read_peers(peers, id, port)?;
    let own = own.unwrap_or_else(|| own_address(&others, &unnamed, id, port, host));
    if others.is_empty() && unnamed.is_empty() {
        words.default_of("this machine's name", "advertise-peer", own.to_string());
        return Ok(());
    }
    let mut all = vec![Founder {
        name: id.to_owned(),
        address: own,
    }];
    all.extend(others);
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    words.flag("peers", "initial-cluster", all.join(","));
    if !unnamed.is_empty() {
        let unnamed: Vec<String> = unnamed.iter().map(ToString::to_string).collect();
        words.flag("peers", "unnamed-founders", unnamed.join(","));
    }
    if let Some(domain) = host.domain() {
        words.default_of("this machine's name", "peer-domain", domain);
    }
    Ok(())
}

/// What `--peers` says.
#[derive(Debug, Default)]
struct Peers {
    /// Where this member is in the list.
    own: Option<Address>,
    /// Those whose names are known,
    others: Vec<Founder>,
    /// and those of whom only the address is.
    unnamed: Vec<Address>,
}

fn read_peers(list: &str, id: &str, port: u16) -> Result<Peers, Failure> {
    let mut peers = Peers::default();
    let items = list.split(',').map(str::trim).enumerate();
    for (at, item) in items.filter(|_| !list.trim().is_empty()) {
        let bad = || match item {
            "" => Failure::usage(format!("flag --peers: item {} of `{list}` is empty", at + 1)),
            _ => Failure::usage(format!(
                "flag --peers: `{item}` is not a member; write ID=HOST:PORT, HOST:PORT, or an ID that is a host's name"
            )),
        };
        let malformed = |_| bad();
        let founder: Founder = if item.contains('=') {
            item.parse().map_err(malformed)?
        } else if item.contains(':') {
            let address: Address = item.parse().map_err(malformed)?;
            if address.port == 0 {
                return Err(bad());
            }
            if address.is_loopback() && address.port == port {
                peers.own = Some(address);
            } else {
                peers.unnamed.push(address);
            }
            continue;
        } else {
            format!("{item}={item}:{port}").parse().map_err(malformed)?
        };
        if founder.address.port == 0 {
            return Err(bad());
        }
        if founder.name == id {
            peers.own = Some(founder.address);
        } else {
            peers.others.push(founder);
        }
    }
    Ok(peers)
}

/// Where the others surely or probably reach this member, which nobody told: their own lists stand above it.
fn own_address(others: &[Founder], unnamed: &[Address], id: &str, port: u16, host: &Host) -> Address {
    let mut addresses = others.iter().map(|founder| &founder.address).chain(unnamed);
    if addresses.clone().next().is_some() && addresses.all(Address::is_loopback) {
        return Address::new("127.0.0.1", port);
    }
    let names = [host.full.as_deref(), Some(host.name.as_str())];
    let usable = |name: &str| format!("{name}:{port}").parse::<Address>().ok();
    let own_name = names.into_iter().flatten().find_map(usable);
    // Others that are called by names alone know this one by its own.
    let by_name = others.iter().any(|founder| founder.address.host == founder.name);
    let full = host
        .full
        .as_deref()
        .is_some_and(|full| full.split('.').next() == Some(id));
    match (by_name && !full, usable(id), own_name) {
        (true, Some(address), _) | (_, _, Some(address)) | (_, Some(address), None) => address,
        _ => Address::new("127.0.0.1", port),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pod() -> Host {
        Host {
            name: "kv-0".into(),
            full: Some("kv-0.headless.default.svc".into()),
        }
    }

    fn flags(peers: &str) -> StoreFlags {
        StoreFlags {
            id: Some("kv-0".into()),
            peers: Some(peers.into()),
            ..StoreFlags::default()
        }
    }

    #[track_caller]
    fn check(peers: &str, host: &Host, expected: &[(&str, &str)]) {
        let words = translate(&flags(peers), &Flags::default(), host).unwrap();
        for (key, value) in expected {
            let mut all = words.defaults.iter().chain(&words.flags);
            let found = all.rfind(|a| a.key == *key).map(|a| a.value.as_str());
            assert_eq!(found, Some(*value).filter(|v| !v.is_empty()), "{key} for {peers}");
        }
    }

    /// `--id ..` put a member's files beside the common directory instead of below it.
    #[test]
    fn a_name_that_is_no_directory_below_the_common_one_is_refused() {
        for id in [".", "..", "../kv-0", "a/b"] {
            let named = StoreFlags {
                id: Some(id.into()),
                ..flags("")
            };
            let error = translate(&named, &Flags::default(), &pod()).err().unwrap();
            assert!(error.to_string().contains(&format!("--id: `{id}`")), "{error}");
        }
    }

    #[test]
    fn members_are_found_in_three_forms() {
        check(
            "a=h1:1, kv-0=me:2, b=h2:3",
            &pod(),
            &[
                ("initial-cluster", "kv-0=me:2,a=h1:1,b=h2:3"),
                ("unnamed-founders", ""),
            ],
        );
        check(
            "kv-1,kv-0,kv-2",
            &pod(),
            &[
                ("initial-cluster", "kv-0=kv-0:8080,kv-1=kv-1:8080,kv-2=kv-2:8080"),
                ("peer-domain", "headless.default.svc"),
            ],
        );
        check(
            "kv-1,kv-2",
            &pod(),
            &[(
                "initial-cluster",
                "kv-0=kv-0.headless.default.svc:8080,kv-1=kv-1:8080,kv-2=kv-2:8080",
            )],
        );
        check(
            "localhost:8080,localhost:8082,127.0.0.1:8083",
            &pod(),
            &[
                ("initial-cluster", "kv-0=localhost:8080"),
                ("unnamed-founders", "localhost:8082,127.0.0.1:8083"),
            ],
        );
        check(
            "a=127.0.0.1:1",
            &pod(),
            &[("initial-cluster", "kv-0=127.0.0.1:8080,a=127.0.0.1:1")],
        );
        let container = Host {
            name: "f00d".into(),
            full: None,
        };
        check(
            "kv-1",
            &container,
            &[
                ("initial-cluster", "kv-0=kv-0:8080,kv-1=kv-1:8080"),
                ("peer-domain", ""),
            ],
        );
        check(
            "",
            &container,
            &[("initial-cluster", ""), ("advertise-peer", "f00d:8080")],
        );
        check("", &Host::default(), &[("advertise-peer", "kv-0:8080")]);
    }

    #[test]
    fn a_malformed_item_is_named() {
        for (list, number) in [("a=h:1,", 2), ("a=h:1,,b=h:2", 2)] {
            let error = translate(&flags(list), &Flags::default(), &pod()).unwrap_err();
            let words = format!("--peers: item {number} of `{list}` is empty");
            assert!(error.to_string().contains(&words), "{error}");
        }
        for bad in ["a=b", "a=:1", "h:x", "a b", "=h:1", "a=h:1:2", "a=h:0", "h:0"] {
            let error = translate(&flags(&format!("ok=h:1,{bad}")), &Flags::default(), &pod());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&format!("--peers: `{bad}`")), "{error}");
        }
    }

    #[test]
    fn one_number_is_one_port() {
        let check = |port, http_port, metrics_port, named: &[&str]| {
            let flags = StoreFlags {
                port,
                http_port,
                metrics_port,
                ..StoreFlags::default()
            };
            let error = translate(&flags, &Flags::default(), &pod())
                .unwrap_err()
                .to_string();
            assert!(named.iter().all(|name| error.contains(name)), "{error}");
        };
        check(
            Some(1),
            Some(1),
            None,
            &["--http-port", "--port", "1 is the port"],
        );
        check(Some(9090), None, None, &["--http-port", "--port"]);
        check(Some(1), Some(2), Some(1), &["--metrics-port", "--port"]);
        check(Some(1), Some(2), Some(2), &["--metrics-port", "--http-port"]);
    }

    #[test]
    fn ports_and_directories_have_that_stores_defaults() {
        let words = translate(&StoreFlags::default(), &Flags::default(), &pod()).unwrap();
        let of = |key: &str| {
            words
                .defaults
                .iter()
                .find(|a| a.key == key)
                .unwrap()
                .value
                .clone()
        };
        assert_eq!(of("listen-client"), "*:8080,*:9090");
        assert_eq!(
            (of("listen-peer"), of("name")),
            ("*:8080".into(), "node-1".into())
        );
        assert_eq!(of("data-dir"), "/tmp/raft-data/node-1");
        assert_eq!(of("listen-client-optional"), "*:9091");
        assert!(words.flags.is_empty());
        let given = StoreFlags {
            port: Some(1),
            http_port: Some(2),
            metrics_port: Some(3),
            ..StoreFlags::default()
        };
        let words = translate(&given, &Flags::default(), &pod()).unwrap();
        let of = |key: &str| words.flags.iter().find(|a| a.key == key).unwrap().value.clone();
        assert_eq!(
            (of("listen-client"), of("listen-peer")),
            ("*:1,*:2,*:3".into(), "*:1".into())
        );
        assert_eq!(of("listen-client-optional"), "");
    }
}
