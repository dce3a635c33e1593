//! What a read needs: the memtables and the table files as they were at one moment.
//!
//! The tree offers reads by sequence number and keeps, for each number that might still be asked, the state it
//! needs in a list of its own; a read below what that list holds panics, and a reader that stays open makes it
//! retain every memtable written since. So reads here hold their state themselves: a [`Shape`] keeps its
//! memtables and table files alive by reference count, exactly those, for as long as it is held. The tree's
//! list is pruned to its newest entry after every change.
//!
//! Invariant that makes it right: a shape is only ever paired with a read number greater than every number in
//! its sealed memtables and tables. Whoever drops older versions of a key (flush, compaction) keeps the newest
//! one, so nothing that such a reader may see is dropped.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use lsm_tree::{AbstractTree, InternalValue, Memtable, SeqNo, Slice, Tree, UserKey};

use super::fault::{Fault, guarded};

/// Pairs in key order, from both ends.
pub(super) type Pairs = Box<dyn DoubleEndedIterator<Item = lsm_tree::Result<InternalValue>> + Send>;

type Lookup = dyn Fn(&[u8], SeqNo) -> lsm_tree::Result<Option<InternalValue>> + Send + Sync;
type Scan = dyn Fn((Bound<UserKey>, Bound<UserKey>), SeqNo) -> Pairs + Send + Sync;

pub(super) struct Shape {
    /// Newest first; the active one is the first.
    memtables: Vec<Arc<Memtable>>,
    // The types behind these two are public in the tree's crate but cannot be named outside it.
    tables: Box<Lookup>,
    scan: Box<Scan>,
    table_bytes: u64,
}

impl Shape {
    /// The tree's present state. The caller holds the lock under which memtables are rotated and flushed;
    /// `memtables` are the active one and the sealed ones, newest first.
    ///
    /// A compaction may replace table files between the two reads of the tree's state below. That is harmless:
    /// before and after it the tables give the same answers.
    pub(super) fn capture(tree: &Tree, memtables: Vec<Arc<Memtable>>) -> Result<Self, Fault> {
        guarded("reading the tree's state", || {
            let version = tree.current_version();
            let table_bytes = version.iter_levels().map(|level| level.size()).sum();
            let tables = move |key: &[u8], number| {
                let hash = lsm_tree::table::filter::standard_bloom::Builder::get_hash(key);
                for level in version.iter_levels() {
                    for run in level.iter() {
                        if let Some(table) = run.get_for_key(key)
                            && let Some(item) = table.get(key, number, hash)?
                        {
                            return Ok(Some(item));
                        }
                    }
                }
                Ok(None)
            };
            let state = tree.get_version_history_lock().latest_version();
            let scan = move |range: (Bound<UserKey>, Bound<UserKey>), number| -> Pairs {
                Box::new(Tree::create_internal_range(state.clone(), &range, number, None))
            };
            Ok(Self {
                memtables,
                tables: Box::new(tables),
                scan: Box::new(scan),
                table_bytes,
            })
        })
    }

    /// Bytes in memtables, as they have grown until now, and in tables.
    pub(super) fn bytes(&self) -> u64 {
        let memtables: u64 = self.memtables.iter().map(|memtable| memtable.size()).sum();
        memtables + self.table_bytes
    }

    /// The newest version of `key` below `number`.
    pub(super) fn get(&self, key: &[u8], number: SeqNo) -> Result<Option<Bytes>, Fault> {
        guarded("reading a key", || {
            for memtable in &self.memtables {
                if let Some(item) = memtable.get(key, number) {
                    return Ok(live(item));
                }
            }
            Ok((self.tables)(key, number)?.and_then(live))
        })
    }

    /// The newest versions below `number` of the keys in a range, deleted ones left out.
    pub(super) fn range(&self, from: Bound<Bytes>, to: Bound<Bytes>, number: SeqNo) -> Result<Pairs, Fault> {
        let range = (from.map(Slice::from), to.map(Slice::from));
        guarded("opening a range", || Ok((self.scan)(range, number)))
    }
}

fn live(item: InternalValue) -> Option<Bytes> {
    (!item.is_tombstone()).then(|| item.value.into())
}

/// Lets go of every state that the tree itself still holds for readers by number; there are none here.
pub(super) fn prune(tree: &Tree) -> Result<(), Fault> {
    guarded("removing old versions of the tree", || {
        tree.get_version_history_lock()
            .maintenance(&tree.tree_config().path, SeqNo::MAX)
    })
}
