//! Figures for Prometheus, in its text format, under etcd's names and those of the replaced systems.
//!
//! The registry is kept by hand: counters are plain atomics in one struct, so that counting on the hot path is
//! one relaxed addition without a look-up or a label set. What the replica and the store know is read from their
//! published status when the page is asked for; other parts of the process add a [`Metrics::source`].

mod clients;
mod exposition;
mod peers;
mod process;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvorum_model::Reply;
use kvorum_mvcc::Applied;
use kvorum_raft::Role;
use tonic::{Code, Status};

pub use self::clients::{ClientRequests, Traffic};
pub use self::exposition::{Exposition, Family};
pub use self::peers::{PeerFigures, Peers};
use crate::handle::ReplicaHandle;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations in buckets of 10 µs · 2ⁿ, as etcd's.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; Histogram::BOUNDS + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    const BOUNDS: usize = 20;
    const FIRST_BOUND_MICROS: u64 = 10;

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let micros = duration.as_micros() as u64;
        let bucket = micros.saturating_sub(1) / Self::FIRST_BOUND_MICROS;
        let bucket = ((u64::BITS - bucket.leading_zeros()) as usize).min(Self::BOUNDS);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Whether a duration was counted.
    fn has_any(&self) -> bool {
        self.buckets.iter().any(|count| count.load(Ordering::Relaxed) > 0)
    }
}

/// TTLs of leases in buckets of 2ⁿ seconds, from one second to three months, as etcd's.
#[derive(Debug, Default)]
pub struct LeaseTtls {
    buckets: [Counter; LeaseTtls::BOUNDS + 1],
    sum_s: Counter,
}

impl LeaseTtls {
    const BOUNDS: usize = 24;

    fn observe(&self, ttl_s: i64) {
        let ttl_s = u64::try_from(ttl_s).unwrap_or(0);
        let bucket = (u64::BITS - ttl_s.saturating_sub(1).leading_zeros()) as usize;
        self.buckets[bucket.min(Self::BOUNDS)].add_one();
        self.sum_s.add(ttl_s);
    }

    fn counts(&self) -> [u64; LeaseTtls::BOUNDS + 1] {
        self.buckets.each_ref().map(Counter::get)
    }
}

/// The methods that are counted one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Range,
    RangeStream,
    Put,
    DeleteRange,
    Txn,
    Compact,
    Watch,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    LeaseTimeToLive,
    LeaseLeases,
    Status,
    Alarm,
    Defragment,
    Hash,
    HashKv,
    Snapshot,
    MoveLeader,
    Downgrade,
    MemberList,
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberPromote,
    Lock,
    Unlock,
    Campaign,
    Proclaim,
    Leader,
    Observe,
    Resign,
    AuthEnable,
    AuthDisable,
    AuthStatus,
    Authenticate,
    UserAdd,
    UserGet,
    UserList,
    UserDelete,
    UserChangePassword,
    UserGrantRole,
    UserRevokeRole,
    RoleAdd,
    RoleGet,
    RoleList,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
    KvPut,
    KvGet,
    KvDelete,
    KvStatus,
    RaftKvGet,
    RaftKvSet,
    RaftKvDel,
    RaftKvInfo,
    Kvorum,
}

impl Method {
    const ALL: [(&'static str, &'static str, &'static str); 58] = [
        ("etcdserverpb.KV", "Range", "unary"),
        ("etcdserverpb.KV", "RangeStream", "server_stream"),
        ("etcdserverpb.KV", "Put", "unary"),
        ("etcdserverpb.KV", "DeleteRange", "unary"),
        ("etcdserverpb.KV", "Txn", "unary"),
        ("etcdserverpb.KV", "Compact", "unary"),
        ("etcdserverpb.Watch", "Watch", "bidi_stream"),
        ("etcdserverpb.Lease", "LeaseGrant", "unary"),
        ("etcdserverpb.Lease", "LeaseRevoke", "unary"),
        ("etcdserverpb.Lease", "LeaseKeepAlive", "bidi_stream"),
        ("etcdserverpb.Lease", "LeaseTimeToLive", "unary"),
        ("etcdserverpb.Lease", "LeaseLeases", "unary"),
        ("etcdserverpb.Maintenance", "Status", "unary"),
        ("etcdserverpb.Maintenance", "Alarm", "unary"),
        ("etcdserverpb.Maintenance", "Defragment", "unary"),
        ("etcdserverpb.Maintenance", "Hash", "unary"),
        ("etcdserverpb.Maintenance", "HashKV", "unary"),
        ("etcdserverpb.Maintenance", "Snapshot", "server_stream"),
        ("etcdserverpb.Maintenance", "MoveLeader", "unary"),
        ("etcdserverpb.Maintenance", "Downgrade", "unary"),
        ("etcdserverpb.Cluster", "MemberList", "unary"),
        ("etcdserverpb.Cluster", "MemberAdd", "unary"),
        ("etcdserverpb.Cluster", "MemberRemove", "unary"),
        ("etcdserverpb.Cluster", "MemberUpdate", "unary"),
        ("etcdserverpb.Cluster", "MemberPromote", "unary"),
        ("v3lockpb.Lock", "Lock", "unary"),
        ("v3lockpb.Lock", "Unlock", "unary"),
        ("v3electionpb.Election", "Campaign", "unary"),
        ("v3electionpb.Election", "Proclaim", "unary"),
        ("v3electionpb.Election", "Leader", "unary"),
        ("v3electionpb.Election", "Observe", "server_stream"),
        ("v3electionpb.Election", "Resign", "unary"),
        ("etcdserverpb.Auth", "AuthEnable", "unary"),
        ("etcdserverpb.Auth", "AuthDisable", "unary"),
        ("etcdserverpb.Auth", "AuthStatus", "unary"),
        ("etcdserverpb.Auth", "Authenticate", "unary"),
        ("etcdserverpb.Auth", "UserAdd", "unary"),
        ("etcdserverpb.Auth", "UserGet", "unary"),
        ("etcdserverpb.Auth", "UserList", "unary"),
        ("etcdserverpb.Auth", "UserDelete", "unary"),
        ("etcdserverpb.Auth", "UserChangePassword", "unary"),
        ("etcdserverpb.Auth", "UserGrantRole", "unary"),
        ("etcdserverpb.Auth", "UserRevokeRole", "unary"),
        ("etcdserverpb.Auth", "RoleAdd", "unary"),
        ("etcdserverpb.Auth", "RoleGet", "unary"),
        ("etcdserverpb.Auth", "RoleList", "unary"),
        ("etcdserverpb.Auth", "RoleDelete", "unary"),
        ("etcdserverpb.Auth", "RoleGrantPermission", "unary"),
        ("etcdserverpb.Auth", "RoleRevokePermission", "unary"),
        ("kv.KVStore", "Put", "unary"),
        ("kv.KVStore", "Get", "unary"),
        ("kv.KVStore", "Delete", "unary"),
        ("kv.KVStore", "GetClusterStatus", "unary"),
        ("kv_pb.KVService", "Get", "unary"),
        ("kv_pb.KVService", "Set", "unary"),
        ("kv_pb.KVService", "Del", "unary"),
        ("raft_pb.RaftService", "Info", "unary"),
        ("kvorum.v1.Kvorum", "*", "unary"),
    ];
}

const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The methods of REST requests; the last one stands for all others.
const REST_METHODS: [&str; 4] = ["GET", "POST", "DELETE", "other"];

#[derive(Debug, Default)]
struct MethodFigures {
    started: Counter,
    /// Messages of streams, beyond the one that a call brings and the one that it takes back.
    received: Counter,
    sent: Counter,
    handled: [Counter; CODES.len()],
    /// Of calls that failed, and of those that did not.
    durations: [Histogram; 2],
}

/// In the order of [`Method::ALL`].
#[derive(Debug)]
struct PerMethod([MethodFigures; Method::ALL.len()]);

impl Default for PerMethod {
    fn default() -> Self {
        PerMethod(std::array::from_fn(|_| MethodFigures::default()))
    }
}

/// A slower batch of entries counts as slow (etcd's `--warning-apply-duration`).
pub const SLOW_APPLY: Duration = Duration::from_millis(100);
/// A slower confirmation counts as slow (etcd's `readIndexRetryTime`).
pub const SLOW_READ_INDEX: Duration = Duration::from_millis(500);

/// Something else that has figures to show.
type Source = Box<dyn Fn(&mut Exposition) + Send + Sync>;

/// How much is told.
#[derive(Clone, Copy, Debug)]
pub struct Detail {
    /// Show how long RPCs took, by method (etcd's `--metrics=extensive`).
    pub rpc_durations: bool,
    /// A unary RPC that takes longer is told in the log; zero: none is.
    pub slow_request: Duration,
    /// The store's size at which writes end; 0: none.
    pub quota_bytes: u64,
}

impl Default for Detail {
    fn default() -> Self {
        Detail {
            rpc_durations: true,
            slow_request: Duration::ZERO,
            quota_bytes: 0,
        }
    }
}

/// All figures of one member.
#[derive(Default)]
pub struct Metrics {
    detail: Detail,
    methods: PerMethod,
    /// Puts, ranges, deletions and transactions applied or read on this member.
    pub puts: Counter,
    /// See `puts`.
    pub ranges: Counter,
    /// See `puts`.
    pub deletes: Counter,
    /// See `puts`.
    pub txns: Counter,
    /// Leases granted and revoked, or run out, as applied on this member, by TTL and in all.
    pub leases_granted: LeaseTtls,
    /// See `leases_granted`.
    pub leases_revoked: Counter,
    /// Writes that failed on their way.
    pub proposals_failed: Counter,
    /// Linearizable reads whose confirmation failed.
    pub read_indexes_failed: Counter,
    /// Confirmations of linearizable reads that took longer than [`SLOW_READ_INDEX`].
    pub slow_read_indexes: Counter,
    /// How long the store took for each batch of entries.
    pub applies: Histogram,
    /// Batches that took longer than [`SLOW_APPLY`].
    pub slow_applies: Counter,
    /// Answers of `/health`, good and bad.
    pub health_successes: Counter,
    /// See `health_successes`.
    pub health_failures: Counter,
    /// Heartbeats that could not be handed to a connection.
    pub heartbeat_failures: Counter,
    /// What clients of etcd's services asked for, by their version.
    pub client_requests: ClientRequests,
    /// What was exchanged with each peer.
    pub peers: Peers,
    /// Watchers that are read from history, and events that wait for their streams.
    pub slow_watchers: AtomicU64,
    /// See `slow_watchers`.
    pub pending_events: AtomicU64,
    /// Watch streams and watchers now, and events sent.
    pub watch_streams: AtomicU64,
    /// See `watch_streams`.
    pub watchers: AtomicU64,
    /// See `watch_streams`.
    pub events: Counter,
    /// Append messages and vote messages exchanged with peers.
    pub append_entries: Counter,
    /// See `append_entries`.
    pub request_votes: Counter,
    /// Unix time of the last heartbeat from a leader, in seconds; 0 for none.
    pub last_heartbeat: AtomicU64,
    /// The commit index at the start of this process: what was committed since counts. (A commit index may come
    /// back a little lower from a crash, and a counter that falls a little is taken for one that began anew.)
    pub committed_before: AtomicU64,
    /// Of REST requests, by method.
    rest: [Histogram; REST_METHODS.len()],
    sources: Mutex<Vec<Source>>,
}

impl Metrics {
    /// None yet.
    pub fn new(detail: Detail) -> Self {
        Metrics {
            detail,
            ..Metrics::default()
        }
    }

    /// Counts a call that starts now.
    #[allow(clippy::disallowed_methods)] // figures are for people: nothing replicated depends on them
    pub fn begin(&self, method: Method) -> Instant {
        self.methods.0[method as usize].started.add_one();
        Instant::now()
    }

    /// Counts a call that ended.
    pub fn end<T>(&self, method: Method, started: Instant, result: Result<T, Status>) -> Result<T, Status> {
        let figures = &self.methods.0[method as usize];
        let code = result.as_ref().err().map_or(Code::Ok, Status::code);
        figures.handled[code as usize].add_one();
        let took = started.elapsed();
        figures.durations[usize::from(code == Code::Ok)].observe(took);
        let (service, name, kind) = Method::ALL[method as usize];
        let slow = self.detail.slow_request;
        if !slow.is_zero() && took > slow && kind == "unary" {
            tracing::warn!(
                "time spent" = ?took,
                "response type" = format!("/{service}/{name}"),
                code = CODES[code as usize],
                "a request took longer than {slow:?}"
            );
        }
        result
    }

    /// Carries a REST request out, and counts it.
    #[allow(clippy::disallowed_methods)] // as in `begin`
    pub async fn rest<T>(&self, method: &http::Method, answering: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let answer = answering.await;
        let others = REST_METHODS.len() - 1;
        let index = REST_METHODS[..others].iter().position(|name| method == name);
        self.rest[index.unwrap_or(others)].observe(started.elapsed());
        answer
    }

    /// Counts a message that came in on a stream.
    pub fn message_in(&self, method: Method) {
        self.methods.0[method as usize].received.add_one();
    }

    /// Counts a message that went out on a stream.
    pub fn message_out(&self, method: Method) {
        self.methods.0[method as usize].sent.add_one();
    }

    /// Counts a batch of entries that was applied.
    pub fn note_apply(&self, took: Duration) {
        self.applies.observe(took);
        if took > SLOW_APPLY {
            self.slow_applies.add_one();
        }
    }

    /// Counts what was applied, whoever asked for it.
    pub fn note_applied(&self, applied: &[Applied]) {
        let count = |is: fn(&Reply) -> bool| {
            applied
                .iter()
                .filter(|applied| applied.result.as_ref().is_ok_and(is))
                .count() as u64
        };
        self.puts.add(count(|reply| matches!(reply, Reply::Put(_))));
        self.deletes
            .add(count(|reply| matches!(reply, Reply::DeleteRange(_))));
        self.txns.add(count(|reply| matches!(reply, Reply::Txn(_))));
        self.leases_revoked
            .add(count(|reply| matches!(reply, Reply::LeaseRevoked)));
        for applied in applied {
            if let Ok(Reply::LeaseGranted { ttl_s, .. }) = applied.result {
                self.leases_granted.observe(ttl_s);
            }
        }
    }

    /// Adds figures that another part of the process keeps.
    pub fn source(&self, source: impl Fn(&mut Exposition) + Send + Sync + 'static) {
        self.sources
            .lock()
            .expect("no holder of the lock panics")
            .push(Box::new(source));
    }

    /// The page.
    pub fn render(&self, handle: &ReplicaHandle, version: &str) -> String {
        let mut page = Exposition::with_capacity(16 * 1024);
        self.render_calls(&mut page);
        self.render_replica(&mut page, handle);
        self.render_store(&mut page, handle);
        self.render_leases(&mut page, handle);
        self.render_replaced(&mut page, handle);
        let labels = [("server_version", version)];
        page.gauge("etcd_server_version", "Which version is running; always 1.")
            .sample(&labels, 1);
        let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
        page.gauge("etcd_cluster_version", "Which version the cluster has; always 1.")
            .sample(&[("cluster_version", minor)], 1);
        process::render(&mut page);
        for source in self.sources.lock().expect("no holder of the lock panics").iter() {
            source(&mut page);
        }
        page.into_text()
    }

    fn render_calls(&self, page: &mut Exposition) {
        let rows = || Method::ALL.iter().zip(&self.methods.0);
        let labels = |&(service, method, kind): &(&'static str, &'static str, &'static str)| {
            [
                ("grpc_method", method),
                ("grpc_service", service),
                ("grpc_type", kind),
            ]
        };
        let mut family = page.counter("grpc_server_started_total", "RPCs started on the server.");
        for (name, figures) in rows() {
            family.sample(&labels(name), figures.started.get());
        }
        let mut family = page.counter(
            "grpc_server_handled_total",
            "RPCs completed on the server, by code.",
        );
        for (name, figures) in rows() {
            for (code, count) in CODES
                .iter()
                .zip(&figures.handled)
                .filter(|(_, count)| count.get() > 0)
            {
                let [method, service, kind] = labels(name);
                family.sample(&[("grpc_code", code), method, service, kind], count.get());
            }
        }
        let mut family = page.counter(
            "grpc_server_msg_received_total",
            "RPC messages received on the server.",
        );
        for (name, figures) in rows() {
            // Of a stream of requests each counts when it comes.
            let calls = if name.2 == "bidi_stream" {
                0
            } else {
                figures.started.get()
            };
            family.sample(&labels(name), calls + figures.received.get());
        }
        let mut family = page.counter("grpc_server_msg_sent_total", "RPC messages sent by the server.");
        for (name, figures) in rows() {
            let answers = if name.2 == "unary" {
                figures.handled[0].get()
            } else {
                0
            };
            family.sample(&labels(name), answers + figures.sent.get());
        }
        if self.detail.rpc_durations {
            let mut family = page.histogram(
                "grpc_server_handling_seconds",
                "Time that RPCs took on the server.",
            );
            for (name, figures) in rows().filter(|(_, figures)| figures.started.get() > 0) {
                family.histograms(&labels(name), &figures.durations);
            }
        }
        let mut family = page.histogram("kvorum_rest_handling_seconds", "Time that REST requests took.");
        for (method, figures) in REST_METHODS.iter().zip(&self.rest) {
            family.histogram(&[("method", method)], figures);
        }
    }

    fn render_replica(&self, page: &mut Exposition, handle: &ReplicaHandle) {
        let status = handle.status();
        let is = |yes: bool| u64::from(yes);
        page.gauge("etcd_server_has_leader", "Whether a leader is known.")
            .sample(&[], is(status.leader != 0));
        page.gauge("etcd_server_is_leader", "Whether this member leads.")
            .sample(&[], is(status.role == Role::Leader));
        page.gauge("etcd_server_is_learner", "Whether this member is a learner.")
            .sample(&[], is(status.is_learner()));
        page.counter("etcd_server_leader_changes_seen_total", "Leaders seen to come.")
            .sample(&[], status.leader_changes);
        page.gauge("etcd_server_proposals_committed_total", "The commit index.")
            .sample(&[], status.commit);
        page.gauge("etcd_server_proposals_applied_total", "The applied index.")
            .sample(&[], status.applied);
        page.gauge(
            "etcd_server_proposals_pending",
            "Writes of this member's callers under way.",
        )
        .sample(&[], status.writes_waiting as u64);
        page.counter(
            "etcd_server_proposals_failed_total",
            "Writes that failed on their way.",
        )
        .sample(&[], self.proposals_failed.get());
        page.counter(
            "etcd_server_read_indexes_failed_total",
            "Linearizable reads whose confirmation failed.",
        )
        .sample(&[], self.read_indexes_failed.get());
        self.render_etcd(page, status.id);
        let id = format!("{:x}", status.id);
        page.gauge("etcd_server_id", "This member's ID as a label; always 1.")
            .sample(&[("server_id", &id)], 1);
        page.gauge("kvorum_pending_requests", "Requests that wait for the replica.")
            .sample(&[], handle.pending().len() as u64);
        page.gauge("kvorum_log_last_index", "The last entry of the log.")
            .sample(&[], status.last.index);
        page.gauge("kvorum_log_persisted_index", "The last entry on disk.")
            .sample(&[], status.persisted);
        page.gauge(
            "kvorum_store_flushed_index",
            "The last entry that the store holds durably.",
        )
        .sample(&[], status.flushed);
        page.gauge("kvorum_space_exhausted", "Whether the disk is full.")
            .sample(&[], is(status.space_exhausted));
        if status.role == Role::Leader {
            let mut family = page.gauge(
                "kvorum_peer_match_index",
                "The last entry a peer is known to have.",
            );
            for peer in &status.peers {
                family.sample(&[("To", &format!("{:x}", peer.id))], peer.matched);
            }
            let mut family = page.gauge(
                "kvorum_peer_active",
                "Whether a peer answered within an election timeout.",
            );
            for peer in &status.peers {
                family.sample(&[("To", &format!("{:x}", peer.id))], is(peer.active));
            }
        }
    }

    /// What else etcd's dashboards and alerts look at.
    fn render_etcd(&self, page: &mut Exposition, own: u64) {
        page.counter(
            "etcd_server_slow_read_indexes_total",
            "Confirmations of linearizable reads that took longer than half a second.",
        )
        .sample(&[], self.slow_read_indexes.get());
        page.counter(
            "etcd_server_slow_apply_total",
            "Batches of entries that the store took longer than 100 ms for.",
        )
        .sample(&[], self.slow_applies.get());
        page.histogram(
            "etcd_server_apply_duration_seconds",
            "Applying one batch of entries.",
        )
        .histogram(
            &[("op", "batch"), ("success", "true"), ("version", "v3")],
            &self.applies,
        );
        page.histogram(
            "etcd_disk_backend_commit_duration_seconds",
            "How long the store took for one batch of entries, waits for its disk among it.",
        )
        .histogram(&[], &self.applies);
        page.counter("etcd_server_health_success", "Good answers of /health.")
            .sample(&[], self.health_successes.get());
        page.counter("etcd_server_health_failures", "Bad answers of /health.")
            .sample(&[], self.health_failures.get());
        page.counter(
            "etcd_server_heartbeat_send_failures_total",
            "Heartbeats that could not be handed to a connection.",
        )
        .sample(&[], self.heartbeat_failures.get());
        page.gauge(
            "etcd_server_quota_backend_bytes",
            "The store's size at which writes end; 0: none.",
        )
        .sample(&[], self.detail.quota_bytes);
        self.render_requests(page);
        self.client_requests.render(page);
        self.peers.render(page, own);
    }

    /// The services of etcd by method and outcome, as `etcd_server_request_duration_seconds` has them.
    fn render_requests(&self, page: &mut Exposition) {
        let mut family = page.histogram(
            "etcd_server_request_duration_seconds",
            "How long unary requests of etcd's services took, by method and whether they succeeded.",
        );
        for ((service, method, kind), figures) in Method::ALL.iter().zip(&self.methods.0) {
            if *kind != "unary" || !service.starts_with("etcdserverpb.") {
                continue;
            }
            for (success, duration) in ["false", "true"].into_iter().zip(&figures.durations) {
                if duration.has_any() {
                    family.histogram(&[("success", success), ("type", method)], duration);
                }
            }
        }
    }

    fn render_store(&self, page: &mut Exposition, handle: &ReplicaHandle) {
        let (facts, figures) = (handle.state().facts(), handle.figures());
        page.gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes of the store on disk.")
            .sample(&[], figures.disk_bytes);
        page.gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Bytes of the store in use.",
        )
        .sample(&[], figures.disk_bytes);
        page.gauge("etcd_debugging_mvcc_keys_total", "Live keys.")
            .sample(&[], facts.keys);
        page.gauge("etcd_debugging_mvcc_current_revision", "The store's revision.")
            .sample(&[], facts.revision as u64);
        page.gauge("etcd_debugging_mvcc_compact_revision", "The compacted revision.")
            .sample(&[], facts.compacted as u64);
        page.counter("etcd_mvcc_put_total", "Puts applied.")
            .sample(&[], self.puts.get());
        page.counter("etcd_mvcc_range_total", "Ranges read.")
            .sample(&[], self.ranges.get());
        page.counter("etcd_mvcc_delete_total", "Deletions applied.")
            .sample(&[], self.deletes.get());
        page.counter("etcd_mvcc_txn_total", "Transactions applied or read.")
            .sample(&[], self.txns.get());
        page.gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams.")
            .sample(&[], self.watch_streams.load(Ordering::Relaxed));
        page.gauge("etcd_debugging_mvcc_watcher_total", "Watchers.")
            .sample(&[], self.watchers.load(Ordering::Relaxed));
        page.gauge(
            "etcd_debugging_mvcc_slow_watcher_total",
            "Watchers that are read from history.",
        )
        .sample(&[], self.slow_watchers.load(Ordering::Relaxed));
        page.gauge(
            "etcd_debugging_mvcc_pending_events_total",
            "Events that wait for their streams.",
        )
        .sample(&[], self.pending_events.load(Ordering::Relaxed));
        page.counter("etcd_debugging_mvcc_events_total", "Events sent to watchers.")
            .sample(&[], self.events.get());
        page.gauge("kvorum_sessions", "Open sessions.")
            .sample(&[], figures.sessions);
    }

    fn render_leases(&self, page: &mut Exposition, handle: &ReplicaHandle) {
        let (status, granted) = (handle.status(), self.leases_granted.counts());
        page.counter("etcd_debugging_lease_granted_total", "Leases granted.")
            .sample(&[], granted.iter().sum());
        page.counter(
            "etcd_debugging_lease_revoked_total",
            "Leases revoked, those that ran out among them.",
        )
        .sample(&[], self.leases_revoked.get());
        page.counter(
            "etcd_debugging_lease_renewed_total",
            "Renewals that this member answered as the leader.",
        )
        .sample(&[], status.leases_renewed);
        let bounds: Vec<f64> = (0..LeaseTtls::BOUNDS).map(|n| (1u64 << n) as f64).collect();
        page.histogram(
            "etcd_debugging_lease_ttl_total",
            "TTLs of leases granted, in seconds.",
        )
        .buckets(&[], &bounds, &granted, self.leases_granted.sum_s.get() as f64);
        page.gauge("kvorum_leases", "Leases that there are.")
            .sample(&[], status.leases as u64);
    }

    fn render_replaced(&self, page: &mut Exposition, handle: &ReplicaHandle) {
        let status = handle.status();
        page.counter("raft_leader_elections_total", "Leaders seen to come.")
            .sample(&[], status.leader_changes);
        page.counter("raft_append_entries_total", "Append messages exchanged.")
            .sample(&[], self.append_entries.get());
        page.counter("raft_request_vote_total", "Vote messages exchanged.")
            .sample(&[], self.request_votes.get());
        page.counter(
            "raft_committed_entries_total",
            "Log entries committed since the start.",
        )
        .sample(
            &[],
            status
                .commit
                .saturating_sub(self.committed_before.load(Ordering::Relaxed)),
        );
        // A leader is its own heartbeat, also where there is nobody else to hear it.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let heartbeat = match (status.role, now) {
            (Role::Leader, Ok(now)) => now.as_secs(),
            _ => self.last_heartbeat.load(Ordering::Relaxed),
        };
        page.gauge("raft_last_heartbeat", "Unix time of the last heartbeat.")
            .sample(&[], heartbeat);
        page.gauge("raft_current_term", "The current term.")
            .sample(&[], status.term);
        let state = match status.role {
            Role::Follower => 0,
            Role::PreCandidate | Role::Candidate => 1,
            Role::Leader => 2,
        };
        page.gauge("raft_node_state", "0 follower, 1 candidate, 2 leader.")
            .sample(&[], state);
        page.gauge("raft_is_leader", "Whether this member leads.")
            .sample(&[], u64::from(status.role == Role::Leader));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
