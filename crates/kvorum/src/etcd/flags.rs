//! etcd's flags: all that etcd 3.6 knows, and for each what becomes of it here.
//!
//! The table is the one source: what is parsed, what the environment and the file may say, what the help shows, what
//! is refused. A flag of security or of recovery that has no effect here yet is refused unless it says what holds
//! anyway: accepted and ignored it would be a hole.

use Fate::{Effect, Gate, Ignored, Ours, Refused, Renamed};
use Group::{Auth, Clustering, Experimental, Kvorum, Logging, Member, Profiling, Security, Tracing, Unsafe};
use Kind::{Bool, Duration, Int, Text, Texts, Uint, Urls};

/// A group of the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Member,
    Clustering,
    Security,
    Auth,
    Profiling,
    Logging,
    Tracing,
    Experimental,
    Unsafe,
    Kvorum,
}

impl Group {
    /// In etcd's order, with its titles.
    pub const ALL: [(Group, &'static str); 10] = [
        (Member, "Member"),
        (Clustering, "Clustering"),
        (Security, "Security"),
        (Auth, "Auth"),
        (Profiling, "Profiling and Monitoring"),
        (Logging, "Logging"),
        (Tracing, "Experimental distributed tracing"),
        (Experimental, "Experimental feature"),
        (Unsafe, "Unsafe feature"),
        (Kvorum, "kvorum"),
    ];
}

/// How a value reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As Go's `strconv.ParseBool`; alone on the command line it is true.
    Bool,
    Text,
    /// With commas between.
    Texts,
    /// URLs with commas between; the last flag counts whole.
    Urls,
    Uint,
    Int,
    /// As Go's `time.ParseDuration`; in the file also nanoseconds.
    Duration,
}

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It does what it does in etcd, or what the documentation's table says.
    Effect,
    /// It is the old name of this one.
    Renamed(&'static str),
    /// It is the old form of this feature gate.
    Gate(&'static str),
    /// It is taken and does nothing; why.
    Ignored(&'static str),
    /// With another value than its default the member does not start; what to do instead, if something.
    Refused(&'static str),
    /// kvorum's own.
    Ours,
}

/// One flag.
#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    pub group: Group,
    pub kind: Kind,
    /// etcd's default, as its help shows it.
    pub default: &'static str,
    pub fate: Fate,
    /// One line.
    pub help: &'static str,
}

const fn flag(
    name: &'static str,
    group: Group,
    kind: Kind,
    default: &'static str,
    fate: Fate,
    help: &'static str,
) -> Flag {
    Flag {
        name,
        group,
        kind,
        default,
        fate,
        help,
    }
}

/// The flag of this name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Flags that etcd itself takes and ignores: they are of a time before its third version.
pub const FORGOTTEN: [&str; 15] = [
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "vv",
    "test.coverprofile",
    "test.outputdir",
];

const NO_TLS: &str =
    "kvorum does not speak TLS; run it on a trusted network, or behind a proxy that ends TLS";
const NO_DISCOVERY: &str = "name the members with --initial-cluster";
const NO_CHECK: &str = "kvorum's members compare a digest of all that they applied all the time, without a flag; leave this one out";
const NO_TRACING: &str = "leave it out; --metrics and the log tell of slow requests";
const BOLT: &str = "kvorum's store is not bbolt";
const FILES: &str = "kvorum removes files that it does not need by itself";

/// All of etcd's flags, in the order of its help, then kvorum's.
#[rustfmt::skip]
pub static FLAGS: &[Flag] = &[
    flag("name", Member, Text, "default", Effect, "Human-readable name for this member."),
    flag("data-dir", Member, Text, "${name}.etcd", Effect, "Path to the data directory."),
    flag("wal-dir", Member, Text, "", Effect, "Path to the dedicated wal directory: the log."),
    flag("snapshot-count", Member, Uint, "10000", Ignored("a restart replays what --log-bytes-max of `kvorum serve` allows (KVORUM_LOG_BYTES_MAX), whatever the number of entries"), "Number of committed transactions to trigger a snapshot."),
    flag("heartbeat-interval", Member, Uint, "100", Effect, "Time (in milliseconds) of a heartbeat interval."),
    flag("election-timeout", Member, Uint, "1000", Effect, "Time (in milliseconds) for an election to timeout."),
    flag("initial-election-tick-advance", Member, Bool, "true", Ignored("a member that starts keeps silent for one election timeout: leases of an earlier leader may rely on it"), "Whether to fast-forward initial election ticks on boot for faster election."),
    flag("listen-peer-urls", Member, Urls, "http://localhost:2380", Effect, "List of URLs to listen on for peer traffic."),
    flag("listen-client-urls", Member, Urls, "http://localhost:2379", Effect, "List of URLs to listen on for client grpc traffic and http as long as --listen-client-http-urls is not specified."),
    flag("listen-client-http-urls", Member, Urls, "", Effect, "List of URLs to listen on for http only client traffic. Enabling this flag removes http services from --listen-client-urls."),
    flag("max-snapshots", Member, Uint, "5", Ignored(FILES), "Maximum number of snapshot files to retain (0 is unlimited)."),
    flag("max-wals", Member, Uint, "5", Ignored(FILES), "Maximum number of wal files to retain (0 is unlimited)."),
    flag("memory-mlock", Member, Bool, "false", Ignored("kvorum's store is read through a cache of its own (KVORUM_CACHE_BYTES), not mapped"), "Enable to enforce etcd pages (in particular bbolt) to stay in RAM."),
    flag("quota-backend-bytes", Member, Int, "0", Effect, "Largest size (in bytes) of the store. Exceeding it raises an alarm that allows no writes until it is disarmed. 0: 2 GiB; negative: no limit."),
    flag("backend-bbolt-freelist-type", Member, Text, "map", Ignored(BOLT), "The type of freelist that bbolt uses (array and map)."),
    flag("backend-batch-interval", Member, Duration, "0s", Ignored(BOLT), "Maximum time before commit the backend transaction."),
    flag("backend-batch-limit", Member, Int, "0", Ignored(BOLT), "Maximum operations before commit the backend transaction."),
    flag("max-txn-ops", Member, Uint, "128", Effect, "Maximum number of operations permitted in a transaction."),
    flag("max-request-bytes", Member, Uint, "1572864", Effect, "Maximum client request size in bytes the server will accept."),
    flag("max-concurrent-streams", Member, Uint, "4294967295", Effect, "Maximum concurrent streams that each client can open at a time."),
    flag("grpc-keepalive-min-time", Member, Duration, "5s", Ignored("no client is closed for its pings: they are answered below the place that could count them"), "Minimum duration interval that a client should wait before pinging server."),
    flag("grpc-keepalive-interval", Member, Duration, "2h0m0s", Effect, "Frequency duration of server-to-client ping to check if a connection is alive (0 to disable)."),
    flag("grpc-keepalive-timeout", Member, Duration, "20s", Effect, "Additional duration of wait before closing a non-responsive connection (0 to disable)."),
    flag("socket-reuse-port", Member, Bool, "false", Refused("leave it out"), "Enable to set socket option SO_REUSEPORT on listeners."),
    flag("socket-reuse-address", Member, Bool, "false", Refused("leave it out: a port in TIME_WAIT can be bound anyway"), "Enable to set socket option SO_REUSEADDR on listeners."),
    flag("enable-grpc-gateway", Member, Bool, "true", Effect, "Enable GRPC gateway."),
    flag("raft-read-timeout", Member, Duration, "5s", Ignored("kvorum pings its peers' connections"), "Read timeout set on each rafthttp connection."),
    flag("raft-write-timeout", Member, Duration, "5s", Ignored("kvorum pings its peers' connections"), "Write timeout set on each rafthttp connection."),
    flag("feature-gates", Member, Text, "", Effect, "Feature gates, as Name=true with commas between."),
    flag("initial-advertise-peer-urls", Clustering, Urls, "http://localhost:2380", Effect, "List of this member's peer URLs to advertise to the rest of the cluster."),
    flag("initial-cluster", Clustering, Text, "default=http://localhost:2380", Effect, "Initial cluster configuration for bootstrapping."),
    flag("initial-cluster-state", Clustering, Text, "new", Effect, "Initial cluster state ('new' or 'existing'). Ignored on restarts."),
    flag("initial-cluster-token", Clustering, Text, "etcd-cluster", Effect, "Initial cluster token for the etcd cluster during bootstrap."),
    flag("advertise-client-urls", Clustering, Urls, "http://localhost:2379", Effect, "List of this member's client URLs to advertise to the public."),
    flag("discovery", Clustering, Text, "", Refused(NO_DISCOVERY), "Discovery URL used to bootstrap the cluster."),
    flag("discovery-token", Clustering, Text, "", Refused(NO_DISCOVERY), "V3 discovery: discovery token for the etcd cluster to be bootstrapped."),
    flag("discovery-endpoints", Clustering, Texts, "", Refused(NO_DISCOVERY), "V3 discovery: List of gRPC endpoints of the discovery service."),
    flag("discovery-dial-timeout", Clustering, Duration, "2s", Refused(NO_DISCOVERY), "V3 discovery: dial timeout for client connections."),
    flag("discovery-request-timeout", Clustering, Duration, "5s", Refused(NO_DISCOVERY), "V3 discovery: timeout for discovery requests (excluding dial timeout)."),
    flag("discovery-keepalive-time", Clustering, Duration, "2s", Refused(NO_DISCOVERY), "V3 discovery: keepalive time for client connections."),
    flag("discovery-keepalive-timeout", Clustering, Duration, "6s", Refused(NO_DISCOVERY), "V3 discovery: keepalive timeout for client connections."),
    flag("discovery-insecure-transport", Clustering, Bool, "true", Refused(NO_DISCOVERY), "V3 discovery: disable transport security for client connections."),
    flag("discovery-insecure-skip-tls-verify", Clustering, Bool, "false", Refused(NO_DISCOVERY), "V3 discovery: skip server certificate verification."),
    flag("discovery-cert", Clustering, Text, "", Refused(NO_DISCOVERY), "V3 discovery: identify secure client using this TLS certificate file."),
    flag("discovery-key", Clustering, Text, "", Refused(NO_DISCOVERY), "V3 discovery: identify secure client using this TLS key file."),
    flag("discovery-cacert", Clustering, Text, "", Refused(NO_DISCOVERY), "V3 discovery: verify certificates of TLS-enabled secure servers using this CA bundle."),
    flag("discovery-user", Clustering, Text, "", Refused(NO_DISCOVERY), "V3 discovery: username[:password] for authentication."),
    flag("discovery-password", Clustering, Text, "", Refused(NO_DISCOVERY), "V3 discovery: password for authentication."),
    flag("discovery-fallback", Clustering, Text, "exit", Refused(NO_DISCOVERY), "Expected behavior ('exit') when discovery services fails."),
    flag("discovery-proxy", Clustering, Text, "", Refused(NO_DISCOVERY), "HTTP proxy to use for traffic to discovery service."),
    flag("discovery-srv", Clustering, Text, "", Refused(NO_DISCOVERY), "DNS srv domain used to bootstrap the cluster."),
    flag("discovery-srv-name", Clustering, Text, "", Refused(NO_DISCOVERY), "Suffix to the dns srv name queried when bootstrapping."),
    flag("strict-reconfig-check", Clustering, Bool, "true", Effect, "Reject reconfiguration requests that would cause quorum loss."),
    flag("pre-vote", Clustering, Bool, "true", Effect, "Enable the raft Pre-Vote algorithm to prevent disruption when a node that has been partitioned away rejoins the cluster."),
    flag("auto-compaction-retention", Clustering, Text, "0", Effect, "Auto compaction retention length. 0 means disable auto compaction."),
    flag("auto-compaction-mode", Clustering, Text, "periodic", Effect, "Interpret 'auto-compaction-retention' one of: periodic|revision."),
    flag("v2-deprecation", Clustering, Text, "write-only", Ignored("kvorum has no v2 store"), "Phase of v2store deprecation."),
    flag("enable-v2", Clustering, Bool, "false", Ignored("kvorum has no v2 API"), "Accept etcd V2 client requests (etcd 3.5)."),
    flag("proxy", Clustering, Text, "off", Ignored("kvorum is no proxy"), "Proxy mode (etcd 3.5)."),
    flag("proxy-failure-wait", Clustering, Uint, "5000", Ignored("kvorum is no proxy"), "Time (in milliseconds) an endpoint is held in a failed state (etcd 3.5)."),
    flag("proxy-refresh-interval", Clustering, Uint, "30000", Ignored("kvorum is no proxy"), "Time (in milliseconds) of the endpoints refresh interval (etcd 3.5)."),
    flag("proxy-dial-timeout", Clustering, Uint, "1000", Ignored("kvorum is no proxy"), "Time (in milliseconds) for a dial to timeout (etcd 3.5)."),
    flag("proxy-write-timeout", Clustering, Uint, "5000", Ignored("kvorum is no proxy"), "Time (in milliseconds) for a write to timeout (etcd 3.5)."),
    flag("proxy-read-timeout", Clustering, Uint, "0", Ignored("kvorum is no proxy"), "Time (in milliseconds) for a read to timeout (etcd 3.5)."),
    flag("cert-file", Security, Text, "", Refused(NO_TLS), "Path to the client server TLS cert file."),
    flag("key-file", Security, Text, "", Refused(NO_TLS), "Path to the client server TLS key file."),
    flag("client-cert-auth", Security, Bool, "false", Refused(NO_TLS), "Enable client cert authentication."),
    flag("client-cert-file", Security, Text, "", Refused(NO_TLS), "Path to an explicit peer client TLS cert file."),
    flag("client-key-file", Security, Text, "", Refused(NO_TLS), "Path to an explicit peer client TLS key file."),
    flag("client-crl-file", Security, Text, "", Refused(NO_TLS), "Path to the client certificate revocation list file."),
    flag("client-cert-allowed-hostname", Security, Texts, "", Refused(NO_TLS), "Comma-separated list of SAN hostnames for client cert authentication."),
    flag("trusted-ca-file", Security, Text, "", Refused(NO_TLS), "Path to the client server TLS trusted CA cert file."),
    flag("auto-tls", Security, Bool, "false", Refused(NO_TLS), "Client TLS using generated certificates."),
    flag("peer-cert-file", Security, Text, "", Refused(NO_TLS), "Path to the peer server TLS cert file."),
    flag("peer-key-file", Security, Text, "", Refused(NO_TLS), "Path to the peer server TLS key file."),
    flag("peer-client-cert-auth", Security, Bool, "false", Refused(NO_TLS), "Enable peer client cert authentication."),
    flag("peer-client-cert-file", Security, Text, "", Refused(NO_TLS), "Path to an explicit peer client TLS cert file."),
    flag("peer-client-key-file", Security, Text, "", Refused(NO_TLS), "Path to an explicit peer client TLS key file."),
    flag("peer-trusted-ca-file", Security, Text, "", Refused(NO_TLS), "Path to the peer server TLS trusted CA file."),
    flag("peer-cert-allowed-cn", Security, Texts, "", Refused(NO_TLS), "Comma-separated list of allowed CNs for inter-peer TLS authentication."),
    flag("peer-cert-allowed-hostname", Security, Texts, "", Refused(NO_TLS), "Comma-separated list of allowed SAN hostnames for inter-peer TLS authentication."),
    flag("peer-auto-tls", Security, Bool, "false", Refused(NO_TLS), "Peer TLS using self-generated certificates."),
    flag("self-signed-cert-validity", Security, Uint, "1", Ignored("it makes no certificates"), "The validity period of the client and peer certificates that are automatically generated, in years."),
    flag("peer-crl-file", Security, Text, "", Refused(NO_TLS), "Path to the peer certificate revocation list file."),
    flag("peer-skip-client-san-verification", Security, Bool, "false", Refused(NO_TLS), "Skip verification of SAN field in client certificate for peer connections."),
    flag("experimental-peer-skip-client-san-verification", Security, Bool, "false", Renamed("peer-skip-client-san-verification"), ""),
    flag("cipher-suites", Security, Texts, "", Refused(NO_TLS), "Comma-separated list of supported TLS cipher suites between client/server and peers."),
    flag("cors", Security, Texts, "*", Effect, "Comma-separated whitelist of origins for CORS, or cross-origin resource sharing, (empty or * means allow all)."),
    flag("host-whitelist", Security, Texts, "*", Effect, "Acceptable hostnames from HTTP client requests, if server is not secure (empty or * means allow all)."),
    flag("tls-min-version", Security, Text, "TLS1.2", Refused(NO_TLS), "Minimum TLS version supported by etcd."),
    flag("tls-max-version", Security, Text, "", Refused(NO_TLS), "Maximum TLS version supported by etcd."),
    flag("auth-token", Auth, Text, "simple", Effect, "Specify a v3 authentication token type and its options ('simple')."),
    flag("bcrypt-cost", Auth, Uint, "10", Effect, "Specify the cost / strength of the bcrypt algorithm for hashing auth passwords. Valid values are between 4 and 31."),
    flag("auth-token-ttl", Auth, Uint, "300", Effect, "Time (in seconds) of the auth-token-ttl."),
    flag("enable-pprof", Profiling, Bool, "false", Ignored("kvorum is not written in Go; `perf` reads its symbols"), "Enable runtime profiling data via HTTP server."),
    flag("metrics", Profiling, Text, "basic", Effect, "Set level of detail for exported metrics, specify 'extensive' to include server side grpc histogram metrics."),
    flag("listen-metrics-urls", Profiling, Urls, "", Effect, "List of URLs to listen on for the /metrics and /health endpoints."),
    flag("logger", Logging, Text, "zap", Ignored("kvorum's log has one form for people and one for programs: --log-format"), "Currently only supports 'zap' for structured logging."),
    flag("log-outputs", Logging, Texts, "default", Effect, "'stdout', 'stderr' (the default), or file paths, with commas between."),
    flag("log-level", Logging, Text, "info", Effect, "Configures log level. Only supports debug, info, warn, error, panic, or fatal."),
    flag("log-format", Logging, Text, "json", Effect, "Configures log format. Only supports json, console."),
    flag("log-package-levels", Logging, Text, "", Ignored("--log-level holds for all"), "Log levels of single packages (etcd 3.4)."),
    flag("debug", Logging, Bool, "false", Ignored("write --log-level=debug"), "Enable debug-level logging (etcd 3.4)."),
    flag("enable-log-rotation", Logging, Bool, "false", Refused("let logrotate or the supervisor rotate"), "Enable log rotation of a single log-outputs file target."),
    flag("log-rotation-config-json", Logging, Text, "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}", Ignored("it counts with --enable-log-rotation only"), "Configures log rotation if enabled with a JSON logger config."),
    flag("warning-unary-request-duration", Logging, Duration, "300ms", Effect, "Set time duration after which a warning is logged if a unary request takes more than this duration."),
    flag("experimental-warning-unary-request-duration", Logging, Duration, "300ms", Renamed("warning-unary-request-duration"), ""),
    flag("enable-distributed-tracing", Tracing, Bool, "false", Refused(NO_TRACING), "Enable distributed tracing."),
    flag("distributed-tracing-address", Tracing, Text, "localhost:4317", Refused(NO_TRACING), "Distributed tracing collector address."),
    flag("distributed-tracing-service-name", Tracing, Text, "etcd", Refused(NO_TRACING), "Distributed tracing service name, must be same across all etcd instances."),
    flag("distributed-tracing-instance-id", Tracing, Text, "", Refused(NO_TRACING), "Distributed tracing instance ID, must be unique per each etcd instance."),
    flag("distributed-tracing-sampling-rate", Tracing, Int, "0", Refused(NO_TRACING), "Number of samples to collect per million spans for distributed tracing."),
    flag("experimental-enable-distributed-tracing", Tracing, Bool, "false", Renamed("enable-distributed-tracing"), ""),
    flag("experimental-distributed-tracing-address", Tracing, Text, "localhost:4317", Renamed("distributed-tracing-address"), ""),
    flag("experimental-distributed-tracing-service-name", Tracing, Text, "etcd", Renamed("distributed-tracing-service-name"), ""),
    flag("experimental-distributed-tracing-instance-id", Tracing, Text, "", Renamed("distributed-tracing-instance-id"), ""),
    flag("experimental-distributed-tracing-sampling-rate", Tracing, Int, "0", Renamed("distributed-tracing-sampling-rate"), ""),
    flag("corrupt-check-time", Experimental, Duration, "0s", Refused(NO_CHECK), "Duration of time between cluster corruption check passes."),
    flag("experimental-corrupt-check-time", Experimental, Duration, "0s", Renamed("corrupt-check-time"), ""),
    flag("compact-hash-check-time", Experimental, Duration, "1m0s", Effect, "Duration of time between leader checks followers compaction hashes; counts with the gate CompactHashCheck only."),
    flag("experimental-compact-hash-check-time", Experimental, Duration, "1m0s", Renamed("compact-hash-check-time"), ""),
    flag("compaction-batch-limit", Experimental, Int, "1000", Effect, "Maximum number of revisions deleted in each --compaction-sleep-interval after a compaction."),
    flag("experimental-compaction-batch-limit", Experimental, Int, "1000", Renamed("compaction-batch-limit"), ""),
    flag("compaction-sleep-interval", Experimental, Duration, "10ms", Effect, "The interval in which --compaction-batch-limit revisions may be deleted after a compaction."),
    flag("experimental-compaction-sleep-interval", Experimental, Duration, "10ms", Renamed("compaction-sleep-interval"), ""),
    flag("watch-progress-notify-interval", Experimental, Duration, "10m0s", Effect, "Duration of periodical watch progress notification."),
    flag("experimental-watch-progress-notify-interval", Experimental, Duration, "10m0s", Renamed("watch-progress-notify-interval"), ""),
    flag("warning-apply-duration", Experimental, Duration, "100ms", Ignored("--warning-unary-request-duration tells of slow requests whole"), "Warning is generated if requests take more than this duration."),
    flag("experimental-warning-apply-duration", Experimental, Duration, "100ms", Renamed("warning-apply-duration"), ""),
    flag("bootstrap-defrag-threshold-megabytes", Experimental, Uint, "0", Ignored("kvorum's store gives space back by itself"), "Enable the defrag during etcd server bootstrap on condition that it will free at least the provided threshold of disk space."),
    flag("experimental-bootstrap-defrag-threshold-megabytes", Experimental, Uint, "0", Renamed("bootstrap-defrag-threshold-megabytes"), ""),
    flag("max-learners", Experimental, Int, "1", Effect, "Set the max number of learner members allowed in the cluster membership."),
    flag("experimental-max-learners", Experimental, Int, "1", Renamed("max-learners"), ""),
    flag("downgrade-check-time", Experimental, Duration, "5s", Ignored("there is no older kvorum to go back to"), "Duration of time between two downgrade status checks."),
    flag("experimental-downgrade-check-time", Experimental, Duration, "5s", Renamed("downgrade-check-time"), ""),
    flag("experimental-memory-mlock", Experimental, Bool, "false", Renamed("memory-mlock"), ""),
    flag("snapshot-catchup-entries", Experimental, Uint, "5000", Ignored("a peer catches up from the log while it lies within --log-bytes-max of `kvorum serve` (KVORUM_LOG_BYTES_MAX)"), "Number of entries for a slow follower to catch up after compacting the raft storage entries."),
    flag("experimental-snapshot-catchup-entries", Experimental, Uint, "5000", Renamed("snapshot-catchup-entries"), ""),
    flag("experimental-snapshot-catch-up-entries", Experimental, Uint, "5000", Renamed("snapshot-catchup-entries"), ""),
    flag("experimental-initial-corrupt-check", Experimental, Bool, "false", Gate("InitialCorruptCheck"), ""),
    flag("experimental-compact-hash-check-enabled", Experimental, Bool, "false", Gate("CompactHashCheck"), ""),
    flag("experimental-enable-lease-checkpoint", Experimental, Bool, "false", Gate("LeaseCheckpoint"), ""),
    flag("experimental-enable-lease-checkpoint-persist", Experimental, Bool, "false", Gate("LeaseCheckpointPersist"), ""),
    flag("experimental-txn-mode-write-with-shared-buffer", Experimental, Bool, "true", Gate("TxnModeWriteWithSharedBuffer"), ""),
    flag("experimental-stop-grpc-service-on-defrag", Experimental, Bool, "false", Gate("StopGRPCServiceOnDefrag"), ""),
    flag("force-new-cluster", Unsafe, Bool, "false", Refused("`kvorum restore` makes a cluster of one from a snapshot"), "Force to create a new one-member cluster."),
    flag("unsafe-no-fsync", Unsafe, Bool, "false", Ignored("kvorum acknowledges nothing that is not on disk; there is no way to switch that off"), "Disables fsync, unsafe, will cause data loss."),
    flag("config-file", Kvorum, Text, "", Effect, "Path to the server configuration file, in YAML. All other flags and the environment are ignored then."),
    flag("version", Kvorum, Bool, "false", Effect, "Print the version and exit."),
    flag("compat-version", Kvorum, Text, "", Ours, "The etcd version that this member says it is: X.Y.Z."),
    flag("until-stdin-closes", Kvorum, Bool, "false", Ours, ""),
];

/// The feature gates of etcd 3.6, with their defaults, and what becomes of the other value.
pub const GATES: [(&str, bool, Fate); 9] = [
    (
        "StopGRPCServiceOnDefrag",
        false,
        Ignored("a member serves while it is defragmented"),
    ),
    ("InitialCorruptCheck", false, Refused(NO_CHECK)),
    ("CompactHashCheck", false, Refused(NO_CHECK)),
    (
        "TxnModeWriteWithSharedBuffer",
        true,
        Ignored("transactions never block reads"),
    ),
    // kvorum always does both.
    ("LeaseCheckpoint", false, Effect),
    ("LeaseCheckpointPersist", false, Effect),
    (
        "SetMemberLocalAddr",
        false,
        Refused("leave it out: the system chooses the address of outgoing connections"),
    ),
    ("AllAlpha", false, Refused("name the gates that are wanted")),
    ("AllBeta", false, Effect),
];
