//! The newest state of recently used keys, so that applying a put needs no search in the store and point gets
//! need no read.
//!
//! Invariant: an entry holds its key's newest state as far as the applier has come. The applier changes the entry
//! of a key before it publishes the revision that changed the key; a reader of revision R therefore may use an
//! entry whose state began at or before R, and must ignore a younger one.
//!
//! A reader may add what it found in a view of revision R only if no key of the same shard was changed after R:
//! otherwise its find could be stale, and would stand here as the newest.

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use kvorum_model::{KeyValue, Revision};
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_64;

const SHARDS: usize = 16;
/// What an entry takes beside its key and value: slots, index, reference counts.
const ENTRY_BYTES: usize = 256;

/// The newest state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// It is there.
    Live(KeyValue),
    /// It was deleted at this revision.
    Deleted(Revision),
    /// The store held nothing of it when it was looked up, at this revision.
    Absent(Revision),
}

impl Head {
    /// The first revision that it is known to be right for.
    fn since(&self) -> Revision {
        match self {
            Head::Live(kv) => kv.mod_revision,
            Head::Deleted(revision) | Head::Absent(revision) => *revision,
        }
    }

    /// The record, if it is there.
    pub fn into_live(self) -> Option<KeyValue> {
        match self {
            Head::Live(kv) => Some(kv),
            Head::Deleted(_) | Head::Absent(_) => None,
        }
    }

    /// The revision of the key's last change, 0 if there was none or `compacted` has forgotten it. The same on
    /// every replica, whatever each has removed in the background.
    pub fn prev(&self, compacted: Revision) -> Revision {
        match self {
            Head::Live(kv) => kv.mod_revision,
            Head::Deleted(revision) if *revision >= compacted => *revision,
            Head::Deleted(_) | Head::Absent(_) => 0,
        }
    }
}

pub(crate) struct HeadCache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes_max: usize,
}

/// Slots are evicted by the clock algorithm: a hand goes round, spares each used slot once.
#[derive(Default)]
struct Shard {
    index: FxHashMap<u64, usize>,
    slots: Vec<Slot>,
    hand: usize,
    bytes: usize,
    /// The revision of the applier's last change to a key of this shard.
    newest: Revision,
}

struct Slot {
    hash: u64,
    key: Bytes,
    head: Head,
    bytes: usize,
    used: bool,
}

impl HeadCache {
    /// A cache that holds about `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        HeadCache {
            shards,
            shard_bytes_max: bytes_max / SHARDS,
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        self.shards[(hash >> 60) as usize % SHARDS]
            .lock()
            .expect("no holder of the lock panics")
    }

    /// The newest state, for the applier.
    pub fn get(&self, key: &[u8]) -> Option<Head> {
        let hash = xxh3_64(key);
        self.shard(hash).get(hash, key)
    }

    /// The state at `revision`, for readers, if the newest is not younger.
    pub fn get_at(&self, key: &[u8], revision: Revision) -> Option<Head> {
        let hash = xxh3_64(key);
        self.shard(hash)
            .get(hash, key)
            .filter(|head| head.since() <= revision)
    }

    /// What the applier changed or found.
    pub fn set(&self, key: Bytes, head: Head) {
        let hash = xxh3_64(&key);
        let mut shard = self.shard(hash);
        shard.newest = shard.newest.max(head.since());
        shard.set(hash, key, head, self.shard_bytes_max);
    }

    /// What a reader found in a view of `revision`.
    pub fn offer(&self, kv: &KeyValue, revision: Revision) {
        let hash = xxh3_64(&kv.key);
        let mut shard = self.shard(hash);
        if shard.newest <= revision && !shard.index.contains_key(&hash) {
            let kv = detached(kv);
            shard.set(hash, kv.key.clone(), Head::Live(kv), self.shard_bytes_max);
        }
    }

    /// Forgets everything; readers of views before `revision` add nothing from now on.
    pub fn clear(&self, revision: Revision) {
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no holder of the lock panics");
            *shard = Shard {
                newest: revision,
                ..Shard::default()
            };
        }
    }
}

/// A copy that keeps no block of the store in memory.
fn detached(kv: &KeyValue) -> KeyValue {
    let mut bytes = Vec::with_capacity(kv.key.len() + kv.value.len());
    bytes.extend_from_slice(&kv.key);
    bytes.extend_from_slice(&kv.value);
    let bytes = Bytes::from(bytes);
    KeyValue {
        key: bytes.slice(..kv.key.len()),
        value: bytes.slice(kv.key.len()..),
        ..*kv
    }
}

impl Shard {
    fn get(&mut self, hash: u64, key: &[u8]) -> Option<Head> {
        let slot = &mut self.slots[*self.index.get(&hash)?];
        if slot.key != key {
            return None;
        }
        slot.used = true;
        Some(slot.head.clone())
    }

    fn set(&mut self, hash: u64, key: Bytes, head: Head, bytes_max: usize) {
        let value_bytes = if let Head::Live(kv) = &head {
            kv.value.len()
        } else {
            0
        };
        let bytes = ENTRY_BYTES + 2 * key.len() + value_bytes;
        // Of two keys with one hash the later stands here; one entry never takes the place of hundreds.
        let known = self.index.get(&hash).copied();
        if bytes > bytes_max / 4 {
            if let Some(at) = known {
                self.remove(at);
            }
            return;
        }
        let slot = Slot {
            hash,
            key,
            head,
            bytes,
            used: false,
        };
        self.bytes += bytes;
        match known {
            Some(at) => {
                self.bytes -= self.slots[at].bytes;
                self.slots[at] = Slot { used: true, ..slot };
            }
            None => {
                self.index.insert(hash, self.slots.len());
                self.slots.push(slot);
            }
        }
        while self.bytes > bytes_max {
            self.evict_one();
        }
    }

    fn evict_one(&mut self) {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let slot = &mut self.slots[self.hand];
            if !slot.used {
                break;
            }
            slot.used = false;
            self.hand += 1;
        }
        self.remove(self.hand);
    }

    fn remove(&mut self, at: usize) {
        let slot = self.slots.swap_remove(at);
        self.index.remove(&slot.hash);
        self.bytes -= slot.bytes;
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.hash, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, revision: Revision, value_bytes: usize) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            mod_revision: revision,
            value: vec![0; value_bytes].into(),
            ..KeyValue::default()
        }
    }

    fn live(key: &str, revision: Revision, value_bytes: usize) -> Head {
        Head::Live(record(key, revision, value_bytes))
    }

    fn key(name: &str) -> Bytes {
        Bytes::copy_from_slice(name.as_bytes())
    }

    #[test]
    fn a_reader_never_sees_what_is_younger_than_its_view() {
        let cache = HeadCache::new(1 << 20);
        cache.set(key("a"), live("a", 7, 1));
        assert_eq!(cache.get_at(b"a", 6), None);
        assert_eq!(cache.get_at(b"a", 7), Some(live("a", 7, 1)));
        cache.set(key("a"), Head::Deleted(9));
        assert_eq!(cache.get_at(b"a", 8), None);
        assert_eq!(cache.get_at(b"a", 9), Some(Head::Deleted(9)));
    }

    /// The applier changed the key and the entry was evicted; a reader that began before must not bring the old
    /// state in as the newest.
    #[test]
    fn a_reader_cannot_bring_in_a_stale_state() {
        let cache = HeadCache::new(1 << 20);
        cache.set(key("a"), live("a", 7, 1));
        let hash = xxh3_64(b"a");
        cache.shard(hash).remove(0);
        cache.offer(&record("a", 3, 1), 6);
        assert_eq!(cache.get(b"a"), None);
        cache.offer(&record("a", 7, 1), 7);
        assert_eq!(cache.get(b"a"), Some(live("a", 7, 1)));
        cache.clear(10);
        cache.offer(&record("a", 7, 1), 9);
        assert_eq!(cache.get(b"a"), None);
    }

    #[test]
    fn it_stays_within_its_budget_and_keeps_what_is_used() {
        let cache = HeadCache::new(SHARDS * 20_000);
        cache.set(key("hot"), live("hot", 1, 10));
        for n in 0..5_000 {
            let name = format!("cold {n}");
            cache.set(key(&name), live(&name, n, 300));
            assert!(cache.get(b"hot").is_some());
        }
        for shard in &cache.shards {
            let shard = shard.lock().expect("nobody panicked");
            assert!(shard.bytes <= 20_000 && shard.bytes > 15_000, "{}", shard.bytes);
            assert_eq!(
                shard.bytes,
                shard.slots.iter().map(|slot| slot.bytes).sum::<usize>()
            );
            assert_eq!(shard.index.len(), shard.slots.len());
            for (at, slot) in shard.slots.iter().enumerate() {
                assert_eq!(shard.index[&slot.hash], at);
            }
        }
        cache.set(key("hot"), live("hot", 2, 19_000));
        assert_eq!(
            cache.get(b"hot"),
            None,
            "too large to keep: the old state goes all the same"
        );
    }
}
