//! This machine's names: how others may reach it where nobody said.

/// A machine's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// As it calls itself; empty if unknown.
    pub name: String,
    /// With its domain, where `/etc/hosts` knows it (as Kubernetes writes it for the pods of a StatefulSet).
    pub full: Option<String>,
}

impl Host {
    /// The names of this machine.
    pub fn of_this_machine() -> Host {
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        Host::from_hosts(&node, &hosts)
    }

    fn from_hosts(node: &str, hosts: &str) -> Host {
        let name = node.split('.').next().unwrap_or_default().to_owned();
        let is_full = |word: &str| {
            word.strip_prefix(name.as_str())
                .is_some_and(|rest| rest.starts_with('.'))
        };
        let lines = hosts
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default());
        let words = lines.flat_map(|line| line.split_whitespace().skip(1));
        let full = [node].into_iter().chain(words).find(|word| is_full(word));
        Host {
            full: full.filter(|_| !name.is_empty()).map(str::to_owned),
            name,
        }
    }

    /// What stands behind the own name in the full one.
    pub fn domain(&self) -> Option<&str> {
        let (_, domain) = self.full.as_ref()?.split_once('.')?;
        Some(domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_name_is_looked_up() {
        let hosts = "127.0.0.1 localhost\n# 10.0.0.1 raft-kv-store-0.commented.out\n\
                     10.1.2.3\traft-kv-store-0.raft-kv-headless.default.svc.cluster.local\traft-kv-store-0\n";
        let host = Host::from_hosts("raft-kv-store-0", hosts);
        assert_eq!(
            host.full.as_deref(),
            Some("raft-kv-store-0.raft-kv-headless.default.svc.cluster.local")
        );
        assert_eq!(host.domain(), Some("raft-kv-headless.default.svc.cluster.local"));
        let bare = Host::from_hosts("laptop", "127.0.1.1 laptop\n");
        assert_eq!((bare.name.as_str(), bare.domain()), ("laptop", None));
        let whole = Host::from_hosts("db1.example.org", "");
        assert_eq!(
            (whole.name.as_str(), whole.domain()),
            ("db1", Some("example.org"))
        );
        assert_eq!(Host::from_hosts("", "1.2.3.4 .x\n").full, None);
    }
}
