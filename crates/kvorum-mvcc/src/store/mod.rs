//! The seam to the storage engine: an ordered map of byte strings that takes atomic batches.
//!
//! It owns the [`Store`] and [`View`] traits, [`MemStore`] (in memory, also the simulator's store), and the
//! contract suite that every engine passes (`contract`, test builds only).
//!
//! What the state machine relies on:
//! - **One writer.** Only the applier calls `get`, `write`, `maintain`, `flush` and `ingest`; views may be taken
//!   and read on any thread at the same time.
//! - **Whole batches.** A batch is seen entirely or not at all, by views and after a crash. The store survives a
//!   crash as exactly a prefix of its batches, and that prefix never shrinks at a later crash.
//! - **No journal.** What was not flushed is lost by a crash; the Raft log holds it. `flushed_mark` says from
//!   where to replay, and never promises more than a crash at this instant would leave.

use std::ops::Bound;

use bytes::Bytes;

#[cfg(test)]
pub(crate) mod contract;
mod mem;

pub use mem::{MemStore, MemView, SimStore};

/// The longest store key that is ever written or looked up, in bytes.
pub const STORE_KEY_BYTES_MAX: usize = 65_535;

/// Writes that take effect together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Puts (`Some`) and deletes (`None`) in order: of two writes of one key, the later counts.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
    /// The applied index that the batch brings the store to. Never falls from batch to batch of one store;
    /// several batches may have the same one (background removal).
    pub mark: u64,
}

/// Why the engine cannot answer. Anything but `NoSpace` and `ViewExpired` means that this member stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A read or write failed; latched by the engine: it never succeeds again on this handle.
    #[error("store: {0}")]
    Io(String),
    /// What is on disk is not what was written: rebuild this member from its peers.
    #[error("store is corrupt: {0}")]
    Corrupt(String),
    /// The disk is full. Not latched; nothing in memory was lost; the same call may succeed later.
    #[error("store: no space left on the device")]
    NoSpace,
    /// The view is older than the engine keeps versions for: take a new one.
    #[error("store: the view has expired")]
    ViewExpired,
    /// The store was closed, or stands in a crashed simulation.
    #[error("store is closed")]
    Closed,
}

/// One record of a store.
pub type StoreItem = Result<(Bytes, Bytes), StoreError>;

/// Records in key order, from either end.
pub type StoreIter<'a> = Box<dyn DoubleEndedIterator<Item = StoreItem> + Send + 'a>;

/// An ordered key-value engine. See the module's documentation for what its user relies on.
pub trait Store: Send + Sync + 'static {
    /// A consistent picture of it.
    type View: View;

    /// The newest value of a key, all finished writes included. Only for the applier.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Applies a batch atomically. When it returns, `get` and every view taken from now on see it; it is not yet
    /// durable. An error other than `NoSpace` leaves the store unusable; after `NoSpace` nothing of the batch is
    /// there.
    fn write(&self, batch: Batch) -> Result<(), StoreError>;

    /// A picture as of the last whole batch. Cheap: it is taken once a batch and shared by readers. The state
    /// machine keeps one view while nothing is written, and renews it at every batch and in `maintenance()`.
    fn view(&self) -> Self::View;

    /// Housekeeping between batches: rotates the memtable, starts flushes, holds the caller back (blocking) when
    /// flush or compaction cannot follow. Called after each batch, by the applier only. `NoSpace` is not fatal.
    fn maintain(&self) -> Result<(), StoreError>;

    /// Makes everything written durable, and returns when it is.
    fn flush(&self) -> Result<(), StoreError>;

    /// The highest mark whose batches, and all before them, survive a crash. 0 for a new store.
    fn flushed_mark(&self) -> u64;

    /// Bytes on disk, and of what waits in memory to be written there (for the in-memory stores: bytes of the live records).
    fn disk_bytes(&self) -> u64;

    /// Loads records into a store that was never written to, for a snapshot. Keys ascend strictly within a call
    /// and over calls; nobody takes views meanwhile. After the last call comes one `write` with the final mark
    /// and a `flush`; a crash before that may leave anything. An engine that can build its files directly
    /// overrides this.
    fn ingest(&self, records: Vec<(Bytes, Bytes)>) -> Result<(), StoreError> {
        let writes = records
            .into_iter()
            .map(|(key, value)| (key, Some(value)))
            .collect();
        self.write(Batch { writes, mark: 0 })?;
        self.maintain()
    }
}

/// A consistent picture of a [`Store`]; later writes never show in it.
pub trait View: Clone + Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The records in an interval. An interval whose start is not below its end is empty, never a panic.
    fn range(&self, from: Bound<Bytes>, to: Bound<Bytes>) -> StoreIter<'_>;
}
