//! The replicated state machine: one revisioned keyspace with transactions, history and sessions, on a narrow
//! [`Store`] trait.
//!
//! It must not know consensus, sockets, async or the wall clock: entries come in by index, time comes in with the
//! entries, and every replica that applies the same entries writes the same bytes and gives the same replies.

pub mod lsm;
pub mod store;
#[cfg(test)]
mod testing;

pub use lsm::LsmStore;
pub use store::{Batch, MemStore, MemView, SimStore, Store, StoreError, StoreItem, StoreIter, View};
