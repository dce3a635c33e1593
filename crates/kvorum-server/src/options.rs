//! What a member is told before it starts: plain data, without argv, environment or files.
//!
//! The binary merges defaults, a file, the environment and flags into one [`ServeOptions`] and names where a
//! value came from when it complains; what only makes sense together is checked here, by
//! [`ServeOptions::validate`], so that an embedder gets the same answers as the command line.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use crate::access::passwords::{BCRYPT_COST, BCRYPT_COST_MAX, BCRYPT_COST_MIN};
use crate::etcd_options::EtcdOptions;
pub use crate::operations::Quota;

/// Longest member name and cluster token, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Most founders of a cluster.
pub const FOUNDERS_MAX: usize = 31;
/// Longest a request waits beside elections (etcd's).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest minimal election timeout: below it, scheduling noise alone elects.
pub const ELECTION_TIMEOUT_MIN: Duration = Duration::from_millis(50);
/// Longest minimal election timeout (etcd's limit).
pub const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(50);
/// A heartbeat interval is at most this part of the minimal election timeout (rule TM1).
pub const HEARTBEATS_PER_ELECTION_MIN: u32 = 5;
/// The host of an [`Address`] that means every interface, IPv6 and IPv4.
pub const EVERY_INTERFACE: &str = "*";

/// A `host:port`; the host is a name, an IPv4 address, an IPv6 address (written in brackets), or, to listen on
/// every interface, `*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The host, without brackets.
    pub host: String,
    /// The port; 0 lets the system choose where one listens.
    pub port: u16,
}

impl Address {
    /// An address from its parts.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Address {
            host: host.into(),
            port,
        }
    }

    /// Whether only this machine can reach it: a loopback address or the name `localhost`.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Whether it means every interface of the machine, and so cannot be told to others.
    pub fn is_unspecified(&self) -> bool {
        self.host == EVERY_INTERFACE || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    /// Whether not both can be listened on by one process, as far as the words tell.
    pub fn collides(&self, other: &Address) -> bool {
        let all = self.is_unspecified() || other.is_unspecified();
        let is_local = |a: &Address| a.host.eq_ignore_ascii_case("localhost") || a.host == "127.0.0.1";
        let same = self.host.eq_ignore_ascii_case(&other.host) || (is_local(self) && is_local(other));
        self.port == other.port && self.port != 0 && (all || same)
    }

    /// Asks the system's resolver; blocks. Every interface is `[::]`, which takes IPv4 along, or else `0.0.0.0`.
    pub fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        if self.host == EVERY_INTERFACE {
            let both = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
            return Ok(both.map(|ip: IpAddr| SocketAddr::new(ip, self.port)).into());
        }
        Ok((self.host.as_str(), self.port).to_socket_addrs()?.collect())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Address {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let malformed = || {
            OptionsError(format!(
                "`{text}` is not an address; write host:port, for example 127.0.0.1:2379"
            ))
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
        let port = port.parse().map_err(|_| malformed())?;
        let bare = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or_else(malformed)?;
                inner.parse::<std::net::Ipv6Addr>().map_err(|_| malformed())?;
                inner
            }
            None => host,
        };
        let bracketed = bare.len() != host.len();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bare.is_empty() || (!bracketed && bare != EVERY_INTERFACE && !bare.chars().all(legal)) {
            return Err(malformed());
        }
        Ok(Address::new(bare, port))
    }
}

/// A founder: its name and where its peers reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// The member's name; its ID is made from it and the cluster token.
    pub name: String,
    /// Its peer address.
    pub address: Address,
}

impl fmt::Display for Founder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.address)
    }
}

impl FromStr for Founder {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let (name, address) = text
            .split_once('=')
            .ok_or_else(|| OptionsError(format!("`{text}` is not a member; write name=host:port")))?;
        check_name("a member name", name.trim())?;
        Ok(Founder {
            name: name.trim().to_owned(),
            address: address.trim().parse()?,
        })
    }
}

/// What the replaced systems' surfaces are told, beside what all surfaces share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurfaceOptions {
    /// Origins whose pages may call the routes of "raft-kv" (`/kv`, `/raft/info`), or `*` for all; empty: none.
    pub cors: Vec<String>,
    /// Members may announce themselves here (`/register-follower`, `kvorum.v1.Kvorum/Join`).
    pub open_join: bool,
    /// `/health` is 503 without a leader or with an alarm, as etcd's; otherwise it is 200 while a local read works.
    pub health_as_etcd: bool,
    /// Unknown paths and methods are answered in plain text, as "dist-kv-store" does; otherwise in JSON.
    pub errors_as_text: bool,
    /// Longest key in bytes that `/key` takes. The three limits count on `/key` only.
    pub key_bytes_max: usize,
    /// Longest value in bytes that `/key` takes.
    pub value_bytes_max: usize,
    /// `/key` creates no key where so many live, whatever surface wrote them.
    pub keys_max: usize,
}

impl Default for SurfaceOptions {
    fn default() -> Self {
        SurfaceOptions {
            cors: Vec::new(),
            open_join: false,
            health_as_etcd: false,
            errors_as_text: false,
            key_bytes_max: 100,
            value_bytes_max: 200,
            keys_max: 1000,
        }
    }
}

/// How users log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthOptions {
    /// How long a token is good after its last use.
    pub token_ttl: Duration,
    /// The cost of hashing a password, as the logarithm of bcrypt's rounds: [`BCRYPT_COST_MIN`] to
    /// [`BCRYPT_COST_MAX`].
    pub bcrypt_cost: u32,
}

impl Default for AuthOptions {
    fn default() -> Self {
        AuthOptions {
            token_ttl: Duration::from_secs(300),
            bcrypt_cost: BCRYPT_COST,
        }
    }
}

/// Everything a member is told. [`ServeOptions::default`] is a one-member cluster on loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// This member's name: for people, and with the token the source of a founder's ID.
    pub name: String,
    /// The member's own directory; made with mode 0700 if it is missing.
    pub data_dir: PathBuf,
    /// Where the log lies; `None`: `log` in `data_dir`. The file `vote` lies in `data_dir` then.
    pub log_dir: Option<PathBuf>,
    /// Where the store lies; `None`: `store` in `data_dir`.
    pub store_dir: Option<PathBuf>,
    /// Tells clusters apart whose members have equal names.
    pub cluster_token: String,
    /// The founders, this member among them; empty means that it founds a cluster alone. Used only on an empty
    /// directory, and as the peers' addresses until the cluster's own records are known.
    pub initial_cluster: Vec<Founder>,
    /// Founders whose names are not known: they are asked for them before the cluster is founded.
    pub unnamed_founders: Vec<Address>,
    /// Whether this member may found a cluster on an empty directory.
    pub bootstrap: bool,
    /// Client addresses of members that this one announces itself to on an empty directory, instead of founding.
    pub join_through: Vec<Address>,
    /// How long it tries to.
    pub join_timeout: Duration,
    /// Clients are served only once this member votes.
    pub serve_when_voter: bool,
    /// The member waits for a time drawn from [D, 2D) before it takes part.
    pub start_delay: Duration,
    /// This member has been announced by `kvorum member replace`: on an empty directory it asks the peers of
    /// `initial_cluster` for its ID instead of founding.
    pub join: bool,
    /// Where clients are served; all services on each.
    pub listen_client: Vec<Address>,
    /// Where clients are served, too, if nobody else listens there: what is taken is left out with a line in the
    /// log.
    pub listen_client_optional: Vec<Address>,
    /// Where peers are served. If it is one of `listen_client`, that port serves both.
    pub listen_peer: Address,
    /// Founders whose host has no dot are looked for in this domain, too; empty: in none.
    pub peer_domain: String,
    /// URLs told to clients; empty: made from `listen_client`, see [`ServeOptions::client_urls`].
    pub advertise_client: Vec<String>,
    /// The address told to peers; `None`: see [`ServeOptions::peer_address`].
    pub advertise_peer: Option<Address>,
    /// Serve without encryption on addresses that other machines can reach.
    pub allow_plaintext: bool,
    /// Minimal election timeout T; timeouts are drawn from [T, 2T).
    pub election_timeout: Duration,
    /// Heartbeat interval of a leader, at most a fifth of the election timeout.
    pub heartbeat_interval: Duration,
    /// A leader that no majority answered for a time drawn once from [D, 2D) steps down; zero: for twice the election
    /// timeout.
    pub check_quorum: Duration,
    /// A connection for votes and heartbeats that is not open after this time is given up and tried anew; zero: two
    /// seconds.
    pub vote_timeout: Duration,
    /// A connection for log entries on which nothing is answered for this time is opened anew; zero: never.
    pub append_timeout: Duration,
    /// Most entries in one message to a peer.
    pub append_entries_max: usize,
    /// Serve linearizable reads from a leader lease, without a round of confirmation (rule RD6).
    pub lease_reads: bool,
    /// How large the store may become.
    pub quota: Quota,
    /// How much history automatic compaction keeps; zero keeps all of it. A new cluster starts with it.
    pub history: Duration,
    /// Longest a request waits, if its caller sets no shorter deadline; zero: as in etcd, see
    /// [`ServeOptions::request_limit`].
    pub request_timeout: Duration,
    /// Before this member founds a cluster on an empty directory it listens so long whether members of a running one
    /// call it, and joins that one then; zero: it founds at once.
    pub listen_before_founding: Duration,
    /// Longest a graceful stop takes: leadership handed over, connections drained.
    pub drain_timeout: Duration,
    /// Largest request, encoded, in bytes.
    pub request_bytes_max: usize,
    /// Most requests in work at one time, all connections together.
    pub requests_max: usize,
    /// Most client connections at one time.
    pub connections_max: usize,
    /// Bytes of unary range answers in memory at one time.
    pub range_bytes_max: usize,
    /// Bytes of recent events kept for watchers.
    pub watch_ring_bytes: usize,
    /// Bytes that may wait in one watch stream before its watchers are read from history.
    pub watch_stream_bytes_max: usize,
    /// Bytes of the store's memtable; it is flushed when full.
    pub memtable_bytes: usize,
    /// Bytes of the store's block cache.
    pub cache_bytes: usize,
    /// Bytes of the log that the store need not hold yet: what a restart replays at most.
    pub log_bytes_max: usize,
    /// What the replaced systems' surfaces are told.
    pub surfaces: SurfaceOptions,
    /// What a member in an etcd's place is told.
    pub etcd: EtcdOptions,
    /// How users log in.
    pub auth: AuthOptions,
}

impl Default for ServeOptions {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        ServeOptions {
            name: "node-1".to_owned(),
            data_dir: PathBuf::from("data"),
            log_dir: None,
            store_dir: None,
            cluster_token: "kvorum".to_owned(),
            initial_cluster: Vec::new(),
            unnamed_founders: Vec::new(),
            bootstrap: true,
            join_through: Vec::new(),
            join_timeout: Duration::from_secs(20),
            serve_when_voter: false,
            start_delay: Duration::ZERO,
            join: false,
            listen_client: vec![Address::new("127.0.0.1", 2379)],
            listen_client_optional: Vec::new(),
            listen_peer: Address::new("127.0.0.1", 2380),
            peer_domain: String::new(),
            advertise_client: Vec::new(),
            advertise_peer: None,
            allow_plaintext: false,
            election_timeout: Duration::from_millis(750),
            heartbeat_interval: Duration::from_millis(100),
            check_quorum: Duration::ZERO,
            vote_timeout: Duration::ZERO,
            append_timeout: Duration::ZERO,
            append_entries_max: 10_000,
            lease_reads: false,
            quota: Quota::default(),
            history: Duration::from_secs(3600),
            request_timeout: Duration::ZERO,
            listen_before_founding: Duration::ZERO,
            drain_timeout: Duration::from_secs(10),
            request_bytes_max: kvorum_model::limits::REQUEST_BYTES_MAX,
            requests_max: 65_536,
            connections_max: 16_384,
            range_bytes_max: 512 * MIB,
            watch_ring_bytes: 64 * MIB,
            watch_stream_bytes_max: MIB,
            memtable_bytes: 64 * MIB,
            cache_bytes: 128 * MIB,
            log_bytes_max: 256 * MIB,
            surfaces: SurfaceOptions::default(),
            etcd: EtcdOptions::default(),
            auth: AuthOptions::default(),
        }
    }
}

impl ServeOptions {
    /// The founders with this member among them: `initial_cluster`, or this member alone.
    pub fn founders(&self) -> Vec<Founder> {
        match self.initial_cluster.is_empty() {
            true => vec![Founder {
                name: self.name.clone(),
                address: self.peer_address(),
            }],
            false => self.initial_cluster.clone(),
        }
    }

    /// Where to look for a founder, in this order.
    pub fn founder_addresses(&self, founder: &Founder) -> Vec<String> {
        let Address { host, port } = &founder.address;
        let mut addresses = vec![founder.address.to_string()];
        if let Some(identity) = &self.etcd.identity {
            let urls = identity.urls(&founder.name).iter();
            let others = urls.filter_map(|url| url.strip_prefix("http://"));
            addresses.extend(
                others
                    .filter(|other| *other != addresses[0])
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            );
        }
        let is_bare = !host.contains(['.', ':']) && !host.eq_ignore_ascii_case("localhost");
        if is_bare && !self.peer_domain.is_empty() {
            addresses.push(Address::new(format!("{host}.{}", self.peer_domain), *port).to_string());
        }
        addresses
    }

    /// Longest a request waits: as told, else five seconds and the two elections that may come in between.
    pub fn request_limit(&self) -> Duration {
        match self.request_timeout {
            Duration::ZERO => REQUEST_TIMEOUT + 2 * self.election_timeout,
            told => told,
        }
    }

    /// Whether peers and clients are served on one port.
    pub fn shares_peer_port(&self) -> bool {
        self.listen_client.contains(&self.listen_peer)
    }

    /// Where peers reach this member: as advertised, else as `initial_cluster` says, else where it listens.
    pub fn peer_address(&self) -> Address {
        let listed = || {
            self.initial_cluster
                .iter()
                .find(|f| f.name == self.name)
                .map(|f| f.address.clone())
        };
        self.advertise_peer
            .clone()
            .or_else(listed)
            .unwrap_or_else(|| self.listen_peer.clone())
    }

    /// URLs for clients: as advertised, else `http://` and where it listens, with the host that peers use in
    /// place of one that means every interface.
    pub fn client_urls(&self) -> Vec<String> {
        if !self.advertise_client.is_empty() {
            return self.advertise_client.clone();
        }
        let reachable = |a: &Address| match a.is_unspecified() {
            true => Address::new(self.peer_address().host, a.port),
            false => a.clone(),
        };
        self.listen_client
            .iter()
            .map(|a| format!("http://{}", reachable(a)))
            .collect()
    }

    /// Checks what the values mean together.
    ///
    /// # Errors
    /// The first thing that is wrong, in one line that names the option and says what to do.
    pub fn validate(&self) -> Result<(), OptionsError> {
        check_name("name", &self.name)?;
        self.validate_token()?;
        self.etcd.validate()?;
        self.validate_cluster()?;
        self.validate_listeners()?;
        self.validate_timing()?;
        require(!self.auth.token_ttl.is_zero(), || {
            "auth-token-ttl is zero; tokens must be good for a while, write for example 5m".to_owned()
        })?;
        let costs = BCRYPT_COST_MIN..=BCRYPT_COST_MAX;
        require(costs.contains(&self.auth.bcrypt_cost), || {
            format!("bcrypt-cost is a number from {BCRYPT_COST_MIN} to {BCRYPT_COST_MAX}")
        })?;
        for origin in &self.surfaces.cors {
            let legal =
                origin == "*" || (origin.contains("://") && origin.bytes().all(|b| b.is_ascii_graphic()));
            require(legal, || {
                format!("cors: `{origin}` is not an origin; write http://host:port, or * for all")
            })?;
        }
        let positive = [
            ("request-bytes-max", self.request_bytes_max),
            ("requests-max", self.requests_max),
            ("append-entries-max", self.append_entries_max),
            ("connections-max", self.connections_max),
            ("range-bytes-max", self.range_bytes_max),
            ("watch-ring-bytes", self.watch_ring_bytes),
            ("watch-stream-bytes-max", self.watch_stream_bytes_max),
        ];
        for (option, value) in positive {
            require(value > 0, || format!("{option} must be greater than 0"))?;
        }
        const MIB: usize = 1024 * 1024;
        require(self.memtable_bytes >= MIB, || {
            "memtable-bytes must be at least 1MiB".into()
        })?;
        require(self.log_bytes_max >= 2 * self.memtable_bytes, || {
            "log-bytes-max must be at least twice memtable-bytes: raise it, or lower memtable-bytes".into()
        })
    }

    fn validate_cluster(&self) -> Result<(), OptionsError> {
        let cluster = &self.initial_cluster;
        require(cluster.len() <= FOUNDERS_MAX, || {
            format!(
                "initial-cluster names {} members; the limit is {FOUNDERS_MAX}",
                cluster.len()
            )
        })?;
        for (i, founder) in cluster.iter().enumerate() {
            for other in &cluster[..i] {
                require(other.name != founder.name, || {
                    format!(
                        "initial-cluster names `{}` twice; give each member its own name",
                        founder.name
                    )
                })?;
                require(other.address != founder.address, || {
                    format!("initial-cluster gives {} to two members", founder.address)
                })?;
            }
            require(
                founder.address.port != 0 && !founder.address.is_unspecified(),
                || {
                    format!(
                        "initial-cluster: peers cannot reach {}; write the address they use",
                        founder.address
                    )
                },
            )?;
        }
        require(
            cluster.is_empty() || cluster.iter().any(|f| f.name == self.name),
            || {
                let names: Vec<&str> = cluster.iter().map(|f| f.name.as_str()).collect();
                format!(
                    "name `{}` is not in initial-cluster ({}); set name to one of these",
                    self.name,
                    names.join(", ")
                )
            },
        )?;
        require(!self.join || cluster.len() > 1, || {
            "join needs initial-cluster with this member and at least one other".into()
        })
    }

    fn validate_listeners(&self) -> Result<(), OptionsError> {
        let is_nowhere = self.listen_client.is_empty() && self.etcd.listeners.is_empty();
        require(!is_nowhere, || "listen-client is empty; write host:port".into())?;
        let listeners = self.listen_client.iter().map(|a| ("listen-client", a));
        let listeners = listeners.chain(self.etcd.addresses());
        let listeners = listeners.chain(
            self.listen_client_optional
                .iter()
                .map(|a| ("listen-client-optional", a)),
        );
        for (option, address) in listeners.chain([("listen-peer", &self.listen_peer)]) {
            require(self.allow_plaintext || address.is_loopback(), || {
                format!(
                    "{option} {address} can be reached from other machines without encryption; \
                     listen on 127.0.0.1, or set allow-plaintext if the network is trusted"
                )
            })?;
        }
        for (i, address) in self.listen_client.iter().enumerate() {
            for earlier in &self.listen_client[..i] {
                require(!address.collides(earlier), || {
                    format!("listen-client names {earlier} and {address}: that is one port; leave one out")
                })?;
            }
            let peer = &self.listen_peer;
            require(address == peer || !address.collides(peer), || {
                format!(
                    "listen-client {address} and listen-peer {peer} are one port; write the same for both, or give \
                     each its own"
                )
            })?;
        }
        require(!(self.serve_when_voter && self.shares_peer_port()), || {
            "serve-when-voter needs a listen-peer of its own: others must reach this member before it votes"
                .into()
        })?;
        let peer = self.peer_address();
        require(
            self.join_through.is_empty() || !(peer.is_unspecified() || peer.port == 0),
            || format!("the cluster cannot reach {peer}; set advertise-peer to the address it shall use"),
        )?;
        require(
            self.initial_cluster.is_empty() || !(peer.is_unspecified() || peer.port == 0),
            || format!("peers cannot reach {peer}; set advertise-peer to the address they use"),
        )?;
        for url in &self.advertise_client {
            let address = url
                .strip_prefix("http://")
                .and_then(|rest| rest.parse::<Address>().ok());
            let is_socket = url.strip_prefix("unix://").is_some_and(|path| !path.is_empty());
            require(is_socket || address.is_some_and(|a| a.port != 0), || {
                format!("advertise-client: `{url}` is not a URL like http://host:2379")
            })?;
        }
        Ok(())
    }

    fn validate_timing(&self) -> Result<(), OptionsError> {
        let election = self.election_timeout;
        require(
            (ELECTION_TIMEOUT_MIN..=ELECTION_TIMEOUT_MAX).contains(&election),
            || {
                format!(
                    "election-timeout must lie between {ELECTION_TIMEOUT_MIN:?} and {ELECTION_TIMEOUT_MAX:?}; \
                 it is {election:?}"
                )
            },
        )?;
        let heartbeat = self.heartbeat_interval;
        require(
            !heartbeat.is_zero() && heartbeat * HEARTBEATS_PER_ELECTION_MIN <= election,
            || {
                format!(
                    "heartbeat-interval must be greater than 0 and at most a fifth of election-timeout \
                 ({:?}); it is {heartbeat:?}",
                    election / HEARTBEATS_PER_ELECTION_MIN
                )
            },
        )?;
        let patience = self.check_quorum;
        require(patience.is_zero() || patience >= 2 * heartbeat, || {
            format!(
                "check-quorum must be at least two heartbeat-intervals ({:?}); it is {patience:?}",
                2 * heartbeat
            )
        })
    }
}

pub(crate) fn check_name(option: &str, name: &str) -> Result<(), OptionsError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    require(
        !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(legal),
        || {
            format!(
                "{option} `{name}` must be 1 to {NAME_BYTES_MAX} characters out of letters, digits, `-`, `_`, `.`"
            )
        },
    )
}

pub(crate) fn require(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), OptionsError> {
    if holds {
        Ok(())
    } else {
        Err(OptionsError(complaint()))
    }
}

/// One line that says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionsError(pub String);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
