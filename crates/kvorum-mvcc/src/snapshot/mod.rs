//! Snapshots: the whole state as a sequence of frames, independent of the storage engine; the same for transfer,
//! backup and restore. Drawn in `docs/design/snapshot-format.md`.
//!
//! One header frame, then chunks of records in ascending order of store keys, then an end frame. Each frame carries
//! its own SHA-256, the end frame one over the hashes of all frames before it. Sessions, members and history travel
//! as records like everything else.
//!
//! Faults survived: a frame that is cut, damaged, repeated or out of order is refused by [`SnapshotSink::push`],
//! and the transfer resumes at [`SnapshotSink::next_chunk`]. What was ingested is not a state before
//! [`SnapshotSink::finish`] has compared it with the header.

mod format;
mod reader;
mod sink;
#[cfg(test)]
mod tests;

pub use format::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, SnapshotHeader, frame_bytes};
pub use reader::SnapshotReader;
pub use sink::SnapshotSink;

use crate::machine::OpenError;
use crate::store::StoreError;

/// Why a snapshot cannot be taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A newer version of kvorum wrote it.
    #[error("the snapshot has format {found}; this version reads up to {known}")]
    Format {
        /// What it is.
        found: u32,
        /// What this version knows.
        known: u32,
    },
    /// It is damaged, or no snapshot.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    /// A frame came too early or twice.
    #[error("snapshot chunk {expected} was to come, {got} came")]
    Order {
        /// What was to come.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// It ended before its end frame.
    #[error("the snapshot is incomplete")]
    Incomplete,
    /// The store to ingest it into was in use before.
    #[error("a snapshot is installed into an empty store only")]
    NotEmpty,
    /// What was ingested is not what its header says.
    #[error("the installed snapshot cannot be opened: {0}")]
    Open(OpenError),
}
