//! Every limit of the data model, with its default.

/// Largest key by default, in bytes (a cluster setting up to [`KEY_BYTES_CEILING`]).
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// No cluster setting allows longer keys: the tree below takes 65,535 bytes after escaping.
pub const KEY_BYTES_CEILING: usize = 32_000;
/// Largest request as encoded for the log, in bytes (etcd's `--max-request-bytes`).
pub const REQUEST_BYTES_MAX: usize = 1_572_864;
/// Most operations in one list of a transaction (etcd's `--max-txn-ops`).
pub const TXN_OPS_MAX: usize = 128;
/// Deepest nesting of transactions; the budget of operations ends it long before.
pub const TXN_DEPTH_MAX: usize = 32;
/// Replies kept of one session.
pub const SESSION_WINDOW: u64 = 64;
/// Largest reply that a session keeps, encoded, in bytes: a longer one is kept as header and counts.
pub const SESSION_REPLY_BYTES_MAX: usize = 1024;
/// Most sessions at one time.
pub const SESSIONS_MAX: usize = 65_536;
/// Most bytes of kept replies in all sessions together.
pub const SESSIONS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A session unused for so long, in entry time (ms), is removed.
pub const SESSION_IDLE_MS: u64 = 10 * 60 * 1000;
/// Longest life of a lease, in seconds (etcd's `MaxLeaseTTL`).
pub const LEASE_TTL_S_MAX: i64 = 9_000_000_000;
/// Longest name of a user or a role, in bytes.
pub const NAME_BYTES_MAX: usize = 1024;
/// Longest hash of a password, in bytes; bcrypt's has 60.
pub const PASSWORD_HASH_BYTES_MAX: usize = 1024;

/// The shortest life of a lease, in seconds: one and a half times the minimal election timeout, rounded up, as etcd has
/// it. A shorter one would often end while the cluster elects a leader.
pub fn lease_ttl_s_min(election_timeout_ms: u64) -> i64 {
    let ms = election_timeout_ms.saturating_mul(3).div_ceil(2);
    i64::try_from(ms.div_ceil(1000))
        .unwrap_or(LEASE_TTL_S_MAX)
        .clamp(1, LEASE_TTL_S_MAX)
}
