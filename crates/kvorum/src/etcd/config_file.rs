//! The file that `--config-file` names: etcd's YAML. It stands for all other flags and the environment.
//!
//! Its keys are the flags' names, but for the two sections of certificates and `discovery-config`. Durations are
//! nanoseconds, as etcd has them, or text with a unit, which etcd does not read.

use std::path::Path;

use yaml_rust2::{Yaml, YamlLoader};

use super::flags::{FLAGS, Flag, Kind};
use super::values::{Malformed, Place, Values};
use crate::failure;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Deepest nesting that is read: etcd's own is two.
const BRACKETS_MAX: usize = 64;
/// The sections of certificates, with what their keys are called as flags.
const SECTIONS: [(&str, &[(&str, &str)]); 2] = [
    (
        "client-transport-security",
        &[
            ("cert-file", "cert-file"),
            ("key-file", "key-file"),
            ("client-cert-file", "client-cert-file"),
            ("client-key-file", "client-key-file"),
            ("client-cert-auth", "client-cert-auth"),
            ("trusted-ca-file", "trusted-ca-file"),
            ("auto-tls", "auto-tls"),
            ("allowed-hostname", "client-cert-allowed-hostname"),
            ("crl-file", "client-crl-file"),
        ],
    ),
    (
        "peer-transport-security",
        &[
            ("cert-file", "peer-cert-file"),
            ("key-file", "peer-key-file"),
            ("client-cert-file", "peer-client-cert-file"),
            ("client-key-file", "peer-client-key-file"),
            ("client-cert-auth", "peer-client-cert-auth"),
            ("trusted-ca-file", "peer-trusted-ca-file"),
            ("auto-tls", "peer-auto-tls"),
            ("allowed-cn", "peer-cert-allowed-cn"),
            ("allowed-hostname", "peer-cert-allowed-hostname"),
            (
                "skip-client-san-verification",
                "peer-skip-client-san-verification",
            ),
            ("crl-file", "peer-crl-file"),
        ],
    ),
];

/// Reads the file.
///
/// # Errors
/// One line: it cannot be read, is no YAML, or a value in it is none.
pub fn read(path: &Path) -> Result<Values, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| format!("open {shown}: {}", failure::os(&error));
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(format!("{shown} is too large for a configuration"));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(&text).map_err(|why| format!("{shown}: {why}"))
}

fn parse(text: &str) -> Result<Values, String> {
    let mut values = Values::default();
    // The parser goes down with every bracket.
    if text.matches(['[', '{']).count() > BRACKETS_MAX {
        return Err(format!("more than {BRACKETS_MAX} brackets are no configuration"));
    }
    let documents =
        YamlLoader::load_from_str(text).map_err(|error| format!("error converting YAML: {error}"))?;
    let top = match documents.first() {
        None | Some(Yaml::Null) => return Ok(values),
        Some(Yaml::Hash(top)) => top,
        Some(_) => return Err("it is no list of `key: value`".to_owned()),
    };
    for (key, value) in top {
        let key = key.as_str().ok_or_else(|| format!("{key:?} is no key"))?;
        if let Some((section, keys)) = SECTIONS.iter().find(|(section, _)| is_key(section, key)) {
            read_section(&mut values, section, keys, value)?;
        } else if is_key("discovery-config", key) {
            refuse_discovery(&mut values, value)?;
        } else if let Some(flag) = flag_of(key) {
            set(&mut values, flag, key, value)?;
        } else {
            values
                .warnings
                .push(format!("unknown key {key} in the configuration file is ignored"));
        }
    }
    Ok(values)
}

/// Go reads JSON's keys whatever their case.
fn is_key(own: &str, key: &str) -> bool {
    own.eq_ignore_ascii_case(key)
}

fn flag_of(key: &str) -> Option<&'static Flag> {
    let is_it = |flag: &&Flag| is_key(flag.name, key) && !matches!(flag.name, "config-file" | "version");
    FLAGS.iter().find(is_it)
}

fn read_section(
    values: &mut Values,
    section: &str,
    keys: &[(&'static str, &'static str)],
    value: &Yaml,
) -> Result<(), String> {
    let fields = match value {
        Yaml::Null => return Ok(()),
        Yaml::Hash(fields) => fields,
        _ => return Err(format!("invalid {section}")),
    };
    for (key, value) in fields {
        let name = key.as_str().unwrap_or_default();
        match keys.iter().find(|(own, _)| is_key(own, name)) {
            Some((_, flag)) => {
                let flag = flag_of(flag).expect("sections name flags");
                set(values, flag, &format!("{section}.{name}"), value)?;
            }
            None => values.warnings.push(format!(
                "unknown key {section}.{name} in the configuration file is ignored"
            )),
        }
    }
    Ok(())
}

/// Discovery does not exist here: what is said of it stands for its endpoints, which are refused by name.
fn refuse_discovery(values: &mut Values, value: &Yaml) -> Result<(), String> {
    let flag = flag_of("discovery-endpoints").expect("a flag of the table");
    match value {
        Yaml::Null => Ok(()),
        Yaml::Hash(fields) if fields.is_empty() => Ok(()),
        _ => values
            .set(flag, "discovery-config", Place::File)
            .map_err(|why| why.to_string()),
    }
}

fn set(values: &mut Values, flag: &'static Flag, key: &str, value: &Yaml) -> Result<(), String> {
    let text = match (value, flag.kind) {
        (Yaml::Null, _) => return Ok(()),
        (Yaml::Integer(nanoseconds), Kind::Duration) => format!("{nanoseconds}ns"),
        (Yaml::Array(items), Kind::Text | Kind::Texts | Kind::Urls) => {
            let items: Option<Vec<String>> = items.iter().map(scalar).collect();
            items
                .ok_or_else(|| format!("{key}: a list of lists is no value"))?
                .join(",")
        }
        (value, _) => scalar(value).ok_or_else(|| format!("{key} takes one value"))?,
    };
    values
        .set(flag, &text, Place::File)
        .map_err(|Malformed(why)| format!("{key}: invalid value {text:?}: {why}"))
}

/// A value as the command line would have it.
fn scalar(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_of_etcd_reads() {
        // As etcd.conf.yml.sample has it, with what it leaves out set.
        let text = "
name: 'default'
data-dir:
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://localhost:2380
listen-client-urls: http://localhost:2379,http://127.0.0.1:4001
max-snapshots: 5
cors:
initial-advertise-peer-urls: http://localhost:2380
advertise-client-urls: http://localhost:2379
discovery:
discovery-fallback: 'exit'
initial-cluster:
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
proxy: 'off'
client-transport-security:
  cert-file:
  key-file:
  client-cert-auth: false
  trusted-ca-file:
  auto-tls: false
peer-transport-security:
  cert-file:
  allowed-cn:
  allowed-hostname:
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr, /tmp/x.log]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: 1
cipher-suites: []
tls-min-version: 'TLS1.2'
watch-progress-notify-interval: 5000000000
grpc-keepalive-interval: 10s
";
        let values = parse(text).unwrap();
        assert_eq!(values.warnings, Vec::<String>::new());
        assert_eq!(values.given("data-dir"), None);
        assert_eq!(values.given("auto-compaction-retention"), Some("1"));
        assert_eq!(values.list("log-outputs"), ["stderr", "/tmp/x.log"]);
        assert_eq!(values.duration("watch-progress-notify-interval").as_secs(), 5);
        assert_eq!(values.duration("grpc-keepalive-interval").as_secs(), 10);
        assert_eq!(values.given("cert-file"), None);
        assert_eq!(values.given("client-cert-auth"), Some("false"));
        assert!(!values.is_set("strict-reconfig-check"));
        assert_eq!(values.place("name"), Some(Place::File));
    }

    #[test]
    fn sections_are_flags_and_strangers_are_named() {
        let text =
            "peer-transport-security: {cert-file: a.pem, allowed-cn: [x, y], bogus: 1}\nBogus: 2\nNAME: n\n";
        let values = parse(text).unwrap();
        assert_eq!(values.given("peer-cert-file"), Some("a.pem"));
        assert_eq!(values.given("peer-cert-allowed-cn"), Some("x,y"));
        assert_eq!(values.given("name"), Some("n"));
        assert_eq!(values.warnings.len(), 2, "{:?}", values.warnings);
        let discovery = parse("discovery-config:\n  discovery-token: t\n").unwrap();
        assert!(discovery.given("discovery-endpoints").is_some());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("name: [[a]]", "list of lists"),
            ("name: {a: b}", "name takes one value"),
            (
                "election-timeout: soon",
                "election-timeout: invalid value \"soon\"",
            ),
            ("- a\n- b\n", "no list of"),
            ("name: 'a", "error converting YAML"),
            (
                "client-transport-security: yes please",
                "invalid client-transport-security",
            ),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
        assert!(parse(&"[".repeat(100)).unwrap_err().contains("brackets"));
        assert!(parse("").unwrap().all().next().is_none());
        assert!(
            read(Path::new("/nowhere/e.yml"))
                .unwrap_err()
                .contains("/nowhere/e.yml")
        );
    }
}
