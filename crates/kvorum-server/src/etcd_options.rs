//! What a member is told that stands in an etcd's place: plain data, like [`crate::options`]. The defaults are those
//! of a member that does not.

use std::path::PathBuf;
use std::time::Duration;

use crate::options::{Address, NAME_BYTES_MAX, OptionsError, ServeOptions, check_name, require};

/// Shortest interval of progress notifications (etcd's limit); a shorter one is raised to it.
pub const WATCH_PROGRESS_MIN: Duration = Duration::from_millis(100);

/// Beside what all members are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdOptions {
    /// IDs of members and of the cluster are made by etcd's rule, from these; `None`: by kvorum's.
    pub identity: Option<EtcdIdentity>,
    /// The etcd version that this member says it is: `X.Y.Z`.
    pub version: String,
    /// Where clients are served, too, and what.
    pub listeners: Vec<Listener>,
    /// Where peers are served, too.
    pub listen_peer_also: Vec<Address>,
    /// The names that HTTP requests may call this member by; none or `*` for all.
    pub hosts: Vec<String>,
    /// Whether etcd's gateway (`/v3/...`) is served.
    pub gateway: bool,
    /// How often watchers with `progress_notify` hear how far they are.
    pub watch_progress: Duration,
    /// A candidate asks first whether it could win.
    pub pre_vote: bool,
    /// Most operations in one list of a transaction.
    pub txn_ops_max: usize,
    /// Most requests under way on one HTTP/2 connection.
    pub streams_max: u32,
    /// A silent client connection is pinged so often; zero: never,
    pub ping_interval: Duration,
    /// and closed if the answer takes longer.
    pub ping_timeout: Duration,
    /// A unary request that takes longer is told in the log; zero: none is.
    pub slow_request: Duration,
    /// Show how long RPCs took, by method, among the figures.
    pub rpc_durations: bool,
    /// Most learners that are to stay learners.
    pub learners_max: usize,
    /// Refuse changes of the membership after which a majority would be missing.
    pub strict_reconfiguration: bool,
    /// What history the leader compacts by itself; `None`: what is older than the cluster's own setting.
    pub compaction: Option<Compaction>,
    /// Most records of compacted history that are removed per second.
    pub removals_per_second: u64,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        EtcdOptions {
            identity: None,
            version: crate::runtime::ETCD_VERSION.to_owned(),
            listeners: Vec::new(),
            listen_peer_also: Vec::new(),
            hosts: Vec::new(),
            gateway: true,
            watch_progress: Duration::from_secs(600),
            pre_vote: true,
            txn_ops_max: kvorum_model::limits::TXN_OPS_MAX,
            streams_max: 4096,
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(20),
            slow_request: Duration::ZERO,
            rpc_durations: true,
            learners_max: 1,
            strict_reconfiguration: true,
            compaction: None,
            removals_per_second: kvorum_mvcc::Options::default().removals_per_second,
        }
    }
}

/// What etcd makes IDs of, beside the cluster's token: each founder's peer URLs. Only the names of founders whose
/// URLs are listed mean anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdIdentity {
    /// Names and peer URLs (`http://host:port`), at least one each.
    pub founders: Vec<(String, Vec<String>)>,
    /// This member's own addresses for peers, as it is told; the cluster's record of it stands above them.
    pub advertise_peer: Vec<Address>,
}

impl EtcdIdentity {
    /// The peer URLs of a founder; none of somebody else.
    pub fn urls(&self, name: &str) -> &[String] {
        let found = self.founders.iter().find(|(founder, _)| founder == name);
        found.map_or(&[], |(_, urls)| urls)
    }
}

/// A socket for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub at: Endpoint,
    /// What is served on it.
    pub serves: Serves,
}

/// Where one listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP port.
    Tcp(Address),
    /// A socket in the file system; whatever lies there is replaced, as etcd does.
    Unix(PathBuf),
}

/// What a socket serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Everything.
    All,
    /// gRPC.
    Grpc,
    /// Everything but gRPC.
    Http,
    /// `/metrics` and the probes.
    Metrics,
}

impl Serves {
    /// All of them, in their order.
    pub(crate) const ALL: [Serves; 4] = [Serves::All, Serves::Grpc, Serves::Http, Serves::Metrics];
}

/// What history a leader compacts by itself, as etcd's `--auto-compaction-mode` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compaction {
    /// None.
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// All but so many revisions.
    Revisions(u64),
}

/// `X.Y.Z` in plain numbers: what clients can read.
///
/// # Errors
/// It is none.
pub fn check_version(text: &str) -> Result<(), OptionsError> {
    let parts: Vec<&str> = text.split('.').collect();
    let is_number = |part: &&str| {
        (1..=4).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part.len() == 1 || !part.starts_with('0'))
    };
    match parts.len() == 3 && parts.iter().all(is_number) {
        true => Ok(()),
        false => Err(OptionsError(format!(
            "compat-version: `{text}` is no version of etcd; write X.Y.Z, for example {}",
            crate::runtime::ETCD_VERSION
        ))),
    }
}

impl EtcdOptions {
    /// The ports that are opened, each with the option that names it.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&'static str, &Address)> {
        let clients = self.listeners.iter().filter_map(|listener| match &listener.at {
            Endpoint::Tcp(address) => Some(("listen-client-urls", address)),
            Endpoint::Unix(_) => None,
        });
        let peers = self
            .listen_peer_also
            .iter()
            .map(|address| ("listen-peer-urls", address));
        clients.chain(peers)
    }

    /// Checks what the values mean by themselves.
    ///
    /// # Errors
    /// The first thing that is wrong, in one line.
    pub(crate) fn validate(&self) -> Result<(), OptionsError> {
        check_version(&self.version)?;
        let positive = [
            ("max-txn-ops", self.txn_ops_max > 0),
            ("max-concurrent-streams", self.streams_max > 0),
        ];
        match positive.iter().find(|(_, holds)| !holds) {
            Some((option, _)) => Err(OptionsError(format!("{option} must be greater than 0"))),
            None => Ok(()),
        }
    }
}

impl ServeOptions {
    /// The ports on which the probes are served.
    pub fn probe_addresses(&self) -> impl Iterator<Item = Address> {
        let more = self
            .etcd
            .listeners
            .iter()
            .filter_map(|listener| match &listener.at {
                Endpoint::Tcp(address) if listener.serves != Serves::Grpc => Some(address),
                _ => None,
            });
        let all: Vec<Address> = self.listen_client.iter().chain(more).cloned().collect();
        all.into_iter()
    }

    /// All addresses where peers reach this member.
    pub fn peer_addresses(&self) -> Vec<Address> {
        match &self.etcd.identity {
            Some(identity) if !identity.advertise_peer.is_empty() => identity.advertise_peer.clone(),
            _ => vec![self.peer_address()],
        }
    }

    /// etcd takes any token. It stands in a line of a file.
    pub(crate) fn validate_token(&self) -> Result<(), OptionsError> {
        let token = &self.cluster_token;
        if self.etcd.identity.is_none() {
            return check_name("cluster-token", token);
        }
        let is_legal = token.len() <= NAME_BYTES_MAX && !token.chars().any(char::is_control);
        require(is_legal, || {
            format!("initial-cluster-token must be at most {NAME_BYTES_MAX} bytes without control characters")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_plain_numbers() {
        for good in ["3.6.12", "3.5.0", "0.0.1", "10.20.300"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "3.6",
            "v3.6.1",
            "3.6.1-rc.0",
            "3.6.x",
            "3..1",
            "3.06.1",
            "3.6.1.2",
            "3.6.99999",
        ] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }
}
