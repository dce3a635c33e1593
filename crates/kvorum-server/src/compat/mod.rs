//! The services of the systems that kvorum replaces: thin adapters onto the same commands and reads.

pub(crate) mod dist_kv;
pub(crate) mod raft_kv;
pub(crate) mod raft_kv_store;

use kvorum_model::Error;
use kvorum_proto::status_of;
use tonic::Status;

use crate::api::Core;

pub use raft_kv::RaftKv;
pub use raft_kv_store::RaftKvStore;

/// To readers whose values are strings.
const NOT_UTF8: &str = "the value is not UTF-8; read it through kv.KVStore or etcd's API";

/// A range may begin behind the longest key, so its limit is not the one of a key.
fn check_key(core: &Core, key: &str) -> Result<(), Status> {
    let max = core.handle.limits().key_bytes_max as u64;
    match key.len() as u64 {
        bytes if bytes > max => Err(status_of(&Error::KeyTooLarge { bytes, max })),
        _ => Ok(()),
    }
}
