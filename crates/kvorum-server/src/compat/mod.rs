//! The services of the systems that kvorum replaces: thin adapters onto the same commands and reads.

pub(crate) mod dist_kv;
pub(crate) mod raft_kv;
pub(crate) mod raft_kv_store;

pub use raft_kv::RaftKv;
pub use raft_kv_store::RaftKvStore;

/// To readers whose values are strings.
const NOT_UTF8: &str = "the value is not UTF-8; read it through kv.KVStore or etcd's API";
