//! The replicated state machine: one revisioned keyspace with transactions, history, leases and sessions, on a narrow
//! [`Store`] trait.
//!
//! It must not know consensus, sockets, async or the wall clock: entries come in by index, time comes in with the
//! entries, and every replica that applies the same entries writes the same bytes and gives the same replies.
//!
//! - [`StateMachine`] is the applier's: it takes committed entries and answers them.
//! - [`Reader`] is everyone's: it gives consistent views without waiting for the applier.
//! - [`SnapshotReader`] and [`SnapshotSink`] carry the state to another member, or to a file and back.
//! - [`watch::Hub`] turns events into the answers of watch streams.
//! - [`Store`] is what an engine must do for all of them.

mod auth;
mod cache;
mod layout;
mod leases;
pub mod lsm;
mod machine;
mod read;
mod samples;
mod sessions;
mod snapshot;
mod state;
pub mod store;
#[cfg(test)]
mod testing;
pub mod watch;

pub use auth::{AuthChange, AuthState};
pub use leases::{LeaseChange, LeaseRecord};
pub use lsm::LsmStore;
pub use machine::{
    Applied, ApplyEntry, ApplyOutcome, Fatal, Maintenance, OpenError, Options, Payload, RevisionEvents,
    StateMachine,
};
pub use read::{HistoryPage, KeyspaceHash, Page, ReadError, ReadView, Reader, Scan, Wanted};
pub use snapshot::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, SnapshotError, SnapshotHeader, SnapshotReader, SnapshotSink,
    frame_bytes,
};
pub use state::{ClusterState, HISTORY_MS, Settings};
pub use store::{Batch, MemStore, MemView, SimStore, Store, StoreError, StoreItem, StoreIter, View};
