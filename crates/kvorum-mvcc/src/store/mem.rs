//! A store in memory with cheap consistent views, and with a simulated disk under it.
//!
//! Newest and older versions of a record stand in one map, each with the number of the batch that wrote it; a view
//! is such a number. Versions that no open view can see are dropped as batches are written.
//!
//! Under it lies the picture that a crash would leave: whole batches, moved there by `flush`, or one by one by
//! [`MemStore::flush_batches`] when a simulation wants the boundary elsewhere. [`MemStore::crash`] reopens it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use super::{Batch, Store, StoreError, StoreItem, StoreIter, View};

/// Records that an iterator fetches under one lock.
const PAGE_RECORDS: usize = 64;

/// The store of tests and of the simulator: what [`MemStore`] is called there.
pub type SimStore = MemStore;

/// An in-memory [`Store`]. Dropping it loses everything; [`MemStore::crash`] keeps what was flushed.
#[derive(Default)]
pub struct MemStore {
    shared: Arc<Shared>,
    disk: Mutex<Disk>,
}

/// A view of a [`MemStore`].
pub struct MemView {
    shared: Arc<Shared>,
    seq: u64,
}

#[derive(Default)]
struct Shared {
    records: RwLock<Records>,
    /// How many views stand at each batch number.
    views: Mutex<BTreeMap<u64, usize>>,
}

/// Invariants: versions of a key ascend strictly by batch; no key has an empty list of versions.
#[derive(Default)]
struct Records {
    map: BTreeMap<Bytes, Vec<Version>>,
    /// The number of the last batch.
    seq: u64,
    /// Keys that had more than one version, or only a deletion, after the batch of this number.
    superseded: VecDeque<(u64, Bytes)>,
}

struct Version {
    seq: u64,
    value: Option<Bytes>,
}

/// What a crash leaves, and the batches that it would lose.
#[derive(Default)]
struct Disk {
    durable: BTreeMap<Bytes, Bytes>,
    durable_mark: u64,
    unflushed: VecDeque<Batch>,
    mark: u64,
    bytes: u64,
    fault: Option<StoreError>,
}

impl MemStore {
    /// An empty store.
    pub fn new() -> Self {
        MemStore::default()
    }

    /// What is found after a crash at this instant: a new store that holds the flushed batches only. This one may
    /// be used on (a simulation compares both), but the two share nothing.
    pub fn crash(&self) -> MemStore {
        let disk = self.disk();
        let mut records = Records::default();
        for (key, value) in &disk.durable {
            records.map.insert(
                key.clone(),
                vec![Version {
                    seq: 0,
                    value: Some(value.clone()),
                }],
            );
        }
        MemStore {
            shared: Arc::new(Shared {
                records: RwLock::new(records),
                views: Mutex::default(),
            }),
            disk: Mutex::new(Disk {
                durable: disk.durable.clone(),
                durable_mark: disk.durable_mark,
                unflushed: VecDeque::new(),
                mark: disk.durable_mark,
                bytes: disk.bytes,
                fault: None,
            }),
        }
    }

    /// Makes the oldest `count` batches durable that are not yet: a flush whose boundary lies in the past.
    pub fn flush_batches(&self, count: usize) {
        self.disk().flush(count);
    }

    /// Batches that a crash would lose.
    pub fn unflushed_batches(&self) -> usize {
        self.disk().unflushed.len()
    }

    /// From now on writes and flushes fail with this error (`None`: they work again).
    pub fn set_fault(&self, fault: Option<StoreError>) {
        self.disk().fault = fault;
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("no holder of the lock panics")
    }
}

impl Disk {
    fn flush(&mut self, count: usize) {
        let count = count.min(self.unflushed.len());
        for batch in self.unflushed.drain(..count) {
            self.durable_mark = batch.mark;
            for (key, value) in batch.writes {
                let key_bytes = key.len() as u64;
                let old = match value {
                    Some(value) => {
                        self.bytes += key_bytes + value.len() as u64;
                        self.durable.insert(key, value)
                    }
                    None => self.durable.remove(&key),
                };
                if let Some(old) = old {
                    self.bytes -= key_bytes + old.len() as u64;
                }
            }
        }
    }
}

impl Shared {
    fn records(&self) -> RwLockReadGuard<'_, Records> {
        self.records.read().expect("no holder of the lock panics")
    }

    fn records_mut(&self) -> RwLockWriteGuard<'_, Records> {
        self.records.write().expect("no holder of the lock panics")
    }

    fn views(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.views.lock().expect("no holder of the lock panics")
    }
}

impl Records {
    fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        let seq = self.seq;
        let versions = self.map.entry(key.clone()).or_default();
        match versions.last_mut() {
            Some(last) if last.seq == seq => last.value = value,
            _ => versions.push(Version { seq, value }),
        }
        let garbage = versions.len() > 1 || versions[0].value.is_none();
        if garbage {
            self.superseded.push_back((seq, key));
        }
    }

    /// Drops what no view at `oldest` or later can see.
    fn collect(&mut self, oldest: u64) {
        while let Some((seq, _)) = self.superseded.front()
            && *seq <= oldest
        {
            let (_, key) = self.superseded.pop_front().expect("it has a front");
            let Some(versions) = self.map.get_mut(&key) else {
                continue;
            };
            let keep = versions
                .iter()
                .rposition(|version| version.seq <= oldest)
                .unwrap_or(0);
            versions.drain(..keep);
            if versions.len() == 1 && versions[0].seq <= oldest && versions[0].value.is_none() {
                self.map.remove(&key);
            }
        }
    }

    fn get(&self, key: &[u8], seq: u64) -> Option<Bytes> {
        visible(self.map.get(key)?, seq)
    }
}

fn visible(versions: &[Version], seq: u64) -> Option<Bytes> {
    versions
        .iter()
        .rev()
        .find(|version| version.seq <= seq)?
        .value
        .clone()
}

impl Store for MemStore {
    type View = MemView;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let records = self.shared.records();
        Ok(records.get(key, records.seq))
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut disk = self.disk();
        if let Some(fault) = &disk.fault {
            return Err(fault.clone());
        }
        assert!(
            batch.mark >= disk.mark,
            "a batch took the mark from {} back to {}",
            disk.mark,
            batch.mark
        );
        disk.mark = batch.mark;
        let mut records = self.shared.records_mut();
        records.seq += 1;
        for (key, value) in &batch.writes {
            records.put(key.clone(), value.clone());
        }
        let oldest = self.shared.views().keys().next().copied().unwrap_or(records.seq);
        records.collect(oldest);
        disk.unflushed.push_back(batch);
        Ok(())
    }

    fn view(&self) -> MemView {
        let records = self.shared.records();
        *self.shared.views().entry(records.seq).or_default() += 1;
        MemView {
            shared: Arc::clone(&self.shared),
            seq: records.seq,
        }
    }

    fn maintain(&self) -> Result<(), StoreError> {
        self.disk().fault.clone().map_or(Ok(()), Err)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut disk = self.disk();
        if let Some(fault) = &disk.fault {
            return Err(fault.clone());
        }
        disk.flush(usize::MAX);
        Ok(())
    }

    fn flushed_mark(&self) -> u64 {
        self.disk().durable_mark
    }

    fn disk_bytes(&self) -> u64 {
        self.disk().bytes
    }
}

impl Clone for MemView {
    fn clone(&self) -> Self {
        *self.shared.views().entry(self.seq).or_default() += 1;
        MemView {
            shared: Arc::clone(&self.shared),
            seq: self.seq,
        }
    }
}

impl Drop for MemView {
    fn drop(&mut self) {
        let mut views = self.shared.views();
        if let Some(count) = views.get_mut(&self.seq) {
            *count -= 1;
            if *count == 0 {
                views.remove(&self.seq);
            }
        }
    }
}

impl View for MemView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.shared.records().get(key, self.seq))
    }

    fn range(&self, from: Bound<Bytes>, to: Bound<Bytes>) -> StoreIter<'_> {
        Box::new(MemIter {
            view: self,
            from,
            to,
            front: VecDeque::new(),
            back: VecDeque::new(),
        })
    }
}

/// Fetches pages from both ends. What is not fetched yet lies between `from` and `to`.
struct MemIter<'a> {
    view: &'a MemView,
    from: Bound<Bytes>,
    to: Bound<Bytes>,
    front: VecDeque<(Bytes, Bytes)>,
    /// In key order: the last is taken first.
    back: VecDeque<(Bytes, Bytes)>,
}

impl MemIter<'_> {
    fn is_empty(&self) -> bool {
        let (start, end) = match (&self.from, &self.to) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => return false,
            (Bound::Included(start), Bound::Included(end)) => return start > end,
            (
                Bound::Included(start) | Bound::Excluded(start),
                Bound::Included(end) | Bound::Excluded(end),
            ) => (start, end),
        };
        start >= end
    }

    fn fetch_front(&mut self) {
        if self.is_empty() {
            return;
        }
        let records = self.view.shared.records();
        let range = records
            .map
            .range::<[u8], _>((as_slice(&self.from), as_slice(&self.to)));
        let seq = self.view.seq;
        self.front.extend(
            range
                .filter_map(|(key, all)| Some((key.clone(), visible(all, seq)?)))
                .take(PAGE_RECORDS),
        );
        match self.front.back() {
            Some((key, _)) => self.from = Bound::Excluded(key.clone()),
            None => self.close(),
        }
    }

    fn fetch_back(&mut self) {
        if self.is_empty() {
            return;
        }
        let records = self.view.shared.records();
        let range = records
            .map
            .range::<[u8], _>((as_slice(&self.from), as_slice(&self.to)))
            .rev();
        let seq = self.view.seq;
        for record in range
            .filter_map(|(key, all)| Some((key.clone(), visible(all, seq)?)))
            .take(PAGE_RECORDS)
        {
            self.back.push_front(record);
        }
        match self.back.front() {
            Some((key, _)) => self.to = Bound::Excluded(key.clone()),
            None => self.close(),
        }
    }

    /// Nothing is left to fetch.
    fn close(&mut self) {
        self.from = Bound::Excluded(Bytes::new());
        self.to = Bound::Excluded(Bytes::new());
    }
}

fn as_slice(bound: &Bound<Bytes>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key.as_ref()),
        Bound::Excluded(key) => Bound::Excluded(key.as_ref()),
        Bound::Unbounded => Bound::Unbounded,
    }
}

impl Iterator for MemIter<'_> {
    type Item = StoreItem;

    fn next(&mut self) -> Option<StoreItem> {
        if self.front.is_empty() {
            self.fetch_front();
        }
        self.front.pop_front().or_else(|| self.back.pop_front()).map(Ok)
    }
}

impl DoubleEndedIterator for MemIter<'_> {
    fn next_back(&mut self) -> Option<StoreItem> {
        if self.back.is_empty() {
            self.fetch_back();
        }
        self.back.pop_back().or_else(|| self.front.pop_back()).map(Ok)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::contract::{self, Harness};

    struct InMemory;

    impl Harness for InMemory {
        type Store = MemStore;
        fn fresh(&mut self) -> MemStore {
            MemStore::new()
        }
        fn crash(&mut self, store: MemStore) -> MemStore {
            store.crash()
        }
    }

    #[test]
    fn contract() {
        for seed in 0..4 {
            contract::run(InMemory, seed, 1_500);
        }
    }

    #[test]
    fn old_versions_go_when_no_view_needs_them() {
        let store = MemStore::new();
        let mut views = Vec::new();
        for mark in 1..100u64 {
            let value = (mark % 3 != 0).then(|| Bytes::from(mark.to_string()));
            store
                .write(Batch {
                    writes: vec![(Bytes::from_static(b"k"), value)],
                    mark,
                })
                .unwrap();
            views.push(store.view());
        }
        assert_eq!(views[0].get(b"k").unwrap().as_deref(), Some(b"1".as_slice()));
        drop(views);
        store
            .write(Batch {
                writes: vec![(Bytes::from_static(b"k"), None)],
                mark: 100,
            })
            .unwrap();
        store
            .write(Batch {
                writes: Vec::new(),
                mark: 100,
            })
            .unwrap();
        assert!(store.shared.records().map.is_empty());
        assert!(store.shared.records().superseded.is_empty());
    }

    #[test]
    fn a_crash_keeps_the_flushed_batches() {
        let store = MemStore::new();
        for mark in 1..=3u64 {
            let key = Bytes::from(vec![mark as u8]);
            store
                .write(Batch {
                    writes: vec![(key.clone(), Some(key))],
                    mark,
                })
                .unwrap();
        }
        store.flush_batches(2);
        assert_eq!(
            (
                store.flushed_mark(),
                store.unflushed_batches(),
                store.disk_bytes()
            ),
            (2, 1, 4)
        );
        let after = store.crash();
        assert_eq!(after.get(&[2]).unwrap().as_deref(), Some([2u8].as_slice()));
        assert_eq!(after.get(&[3]).unwrap(), None);
        store.set_fault(Some(StoreError::NoSpace));
        assert_eq!(
            store.write(Batch {
                writes: vec![],
                mark: 4
            }),
            Err(StoreError::NoSpace)
        );
    }
}
