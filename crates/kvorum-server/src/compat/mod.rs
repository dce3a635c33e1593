//! The services of the systems that kvorum replaces: thin adapters onto the same commands and reads.

mod raft_kv_store;

pub use raft_kv_store::RaftKvStore;
