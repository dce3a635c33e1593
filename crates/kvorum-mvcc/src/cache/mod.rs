//! What the applier knows of keys beside the store, so that applying a put needs no search in it and point gets need
//! no read, or an exact one.
//!
//! Three things, from the dearest to the cheapest: the newest records of recently used keys, hints where the newest
//! versions of many more keys stand ([`hints`]), and which keys there may be at all ([`filter`]).
//!
//! Invariant: a record or hint that stands here is its key's newest as far as the applier has come. The applier changes
//! it before it publishes the revision that changed the key; a reader of revision R therefore may use what began at
//! or before R, and must ignore what is younger.
//!
//! While a record stands here, the hint of its hash is not kept up to date, and not looked at; it is set anew when the
//! record goes.
//!
//! A reader may add what it found in a view of revision R only if no key of the same shard was changed after R:
//! otherwise its find could be stale, and would stand here as the newest.

mod filter;
mod hints;

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use kvorum_model::{KeyValue, Revision};
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_64;

pub(crate) use filter::KeyFilter;
pub(crate) use hints::Hint;
use hints::Hints;

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
    /// The store holds nothing of it.
    Absent,
}

impl Head {
    /// The revision of the change that made it so.
    fn main(&self) -> Revision {
        match self {
            Head::Live(kv) => kv.mod_revision,
            Head::Deleted(revision) => *revision,
            Head::Absent => 0,
        }
    }

    /// The record, if it is there.
    pub fn into_live(self) -> Option<KeyValue> {
        match self {
            Head::Live(kv) => Some(kv),
            Head::Deleted(_) | Head::Absent => None,
        }
    }

    /// The revision of the key's last change, 0 if there was none or `compacted` has forgotten it. The same on
    /// every replica, whatever each has removed in the background.
    pub fn prev(&self, compacted: Revision) -> Revision {
        match self {
            Head::Live(kv) => kv.mod_revision,
            Head::Deleted(revision) if *revision >= compacted => *revision,
            Head::Deleted(_) | Head::Absent => 0,
        }
    }
}

/// What is known of a key without the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// This is its newest state.
    Head(Head),
    /// This may be its newest change.
    Hint(Hint),
    /// Nothing.
    Nothing,
}

/// The hash of a key for cache, hints and filter.
pub(crate) fn hash_of(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// Records and hints, shared by applier and readers.
pub(crate) struct HeadCache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes_max: usize,
    shard_hint_bytes: usize,
}

/// Slots are evicted by the clock algorithm: a hand goes round, spares each used slot once.
#[derive(Default)]
struct Shard {
    index: FxHashMap<u64, usize>,
    slots: Vec<Slot>,
    hand: usize,
    bytes: usize,
    hints: Hints,
    /// The revision of the applier's last change to a key of this shard.
    newest: Revision,
}

struct Slot {
    hash: u64,
    key: Bytes,
    head: Head,
    /// The number of the change within its revision.
    sub: u32,
    bytes: usize,
    used: bool,
}

impl HeadCache {
    /// A cache of about `bytes_max` for records and `hint_bytes` for hints.
    pub fn new(bytes_max: usize, hint_bytes: usize) -> Self {
        HeadCache {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_bytes_max: bytes_max / SHARDS,
            shard_hint_bytes: hint_bytes / SHARDS,
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        self.shards[(hash >> 60) as usize % SHARDS]
            .lock()
            .expect("no holder of the lock panics")
    }

    /// What is known of a key's state at `revision`; the applier asks for `Revision::MAX`.
    pub fn get(&self, key: &[u8], hash: u64, revision: Revision) -> Known {
        let known = self.shard(hash).get(hash, key);
        match &known {
            Known::Head(head) if head.main() > revision => Known::Nothing,
            Known::Hint(hint) if hint.main > revision => Known::Nothing,
            _ => known,
        }
    }

    /// What the applier changed or found: the newest state of a key, by its change number `sub`.
    pub fn set(&self, key: Bytes, hash: u64, head: Head, sub: u32) {
        let mut shard = self.shard(hash);
        shard.newest = shard.newest.max(head.main());
        shard.set(hash, key, head, sub, self);
    }

    /// A record that a reader found in a view of `revision`, as the newest of its key.
    pub fn offer(&self, kv: &KeyValue, hash: u64, sub: u32, revision: Revision) {
        let mut shard = self.shard(hash);
        if shard.newest <= revision && !shard.index.contains_key(&hash) {
            let kv = detached(kv);
            shard.set(hash, kv.key.clone(), Head::Live(kv), sub, self);
        }
    }

    /// A hint only, under the same condition.
    pub fn offer_hint(&self, hash: u64, hint: Hint, revision: Revision) {
        let mut shard = self.shard(hash);
        if shard.newest <= revision && !shard.index.contains_key(&hash) {
            shard.hints.offer(hash, hint, self.shard_hint_bytes);
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

/// A copy that keeps no block of the store, and no batch of the log, in memory.
pub(crate) fn detached(kv: &KeyValue) -> KeyValue {
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
    fn get(&mut self, hash: u64, key: &[u8]) -> Known {
        let Some(at) = self.index.get(&hash) else {
            return self.hints.get(hash).map_or(Known::Nothing, Known::Hint);
        };
        let slot = &mut self.slots[*at];
        if slot.key != key {
            return Known::Nothing;
        }
        slot.used = true;
        Known::Head(slot.head.clone())
    }

    fn set(&mut self, hash: u64, key: Bytes, head: Head, sub: u32, sizes: &HeadCache) {
        let value_bytes = if let Head::Live(kv) = &head {
            kv.value.len()
        } else {
            0
        };
        let bytes = ENTRY_BYTES + 2 * key.len() + value_bytes;
        let slot = Slot {
            hash,
            key,
            head,
            sub,
            bytes,
            used: false,
        };
        // Of two keys with one hash the later stands here.
        let known = self.index.get(&hash).copied();
        self.bytes += bytes;
        let at = known.unwrap_or(self.slots.len());
        match known {
            Some(at) => {
                self.bytes -= self.slots[at].bytes;
                self.slots[at] = Slot { used: true, ..slot };
            }
            None => {
                self.index.insert(hash, at);
                self.slots.push(slot);
            }
        }
        // One entry never takes the place of hundreds.
        if bytes > sizes.shard_bytes_max / 4 {
            self.remove(at, sizes.shard_hint_bytes);
        }
        while self.bytes > sizes.shard_bytes_max {
            self.evict_one(sizes.shard_hint_bytes);
        }
    }

    fn evict_one(&mut self, hint_bytes: usize) {
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
        self.remove(self.hand, hint_bytes);
    }

    fn remove(&mut self, at: usize, hint_bytes: usize) {
        let slot = self.slots.swap_remove(at);
        let hint = Hint {
            main: slot.head.main(),
            sub: slot.sub,
        };
        self.hints.set(slot.hash, hint, hint_bytes);
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

    fn set(cache: &HeadCache, name: &str, head: Head) {
        cache.set(key(name), hash_of(name.as_bytes()), head, 0);
    }

    fn get(cache: &HeadCache, name: &str, revision: Revision) -> Known {
        cache.get(name.as_bytes(), hash_of(name.as_bytes()), revision)
    }

    fn offer(cache: &HeadCache, kv: &KeyValue, revision: Revision) {
        cache.offer(kv, hash_of(&kv.key), 0, revision);
    }

    #[test]
    fn a_reader_never_sees_what_is_younger_than_its_view() {
        let cache = HeadCache::new(1 << 20, 1 << 20);
        set(&cache, "a", live("a", 7, 1));
        assert_eq!(get(&cache, "a", 6), Known::Nothing);
        assert_eq!(get(&cache, "a", 7), Known::Head(live("a", 7, 1)));
        set(&cache, "a", Head::Deleted(9));
        assert_eq!(get(&cache, "a", 8), Known::Nothing);
        assert_eq!(get(&cache, "a", 9), Known::Head(Head::Deleted(9)));
        cache.shard(hash_of(b"a")).remove(0, 1000);
        assert_eq!(get(&cache, "a", 8), Known::Nothing, "nor where it stands");
        assert_eq!(get(&cache, "a", 9), Known::Hint(Hint { main: 9, sub: 0 }));
    }

    /// The applier changed the key and the entry was evicted; a reader that began before must not bring the old
    /// state in as the newest.
    #[test]
    fn a_reader_cannot_bring_in_a_stale_state() {
        let cache = HeadCache::new(1 << 20, 0);
        set(&cache, "a", live("a", 7, 1));
        let forget = |cache: &HeadCache| {
            let mut shard = cache.shard(hash_of(b"a"));
            shard.remove(0, 1000);
            shard.hints = Hints::default();
        };
        forget(&cache);
        offer(&cache, &record("a", 3, 1), 6);
        cache.offer_hint(hash_of(b"a"), Hint { main: 3, sub: 0 }, 6);
        assert_eq!(get(&cache, "a", 9), Known::Nothing);
        offer(&cache, &record("a", 7, 1), 7);
        assert_eq!(get(&cache, "a", 9), Known::Head(live("a", 7, 1)));
        cache.clear(10);
        offer(&cache, &record("a", 7, 1), 9);
        assert_eq!(get(&cache, "a", 11), Known::Nothing);
    }

    #[test]
    fn it_stays_within_its_budget_and_keeps_what_is_used() {
        let cache = HeadCache::new(SHARDS * 20_000, 1 << 20);
        set(&cache, "hot", live("hot", 1, 10));
        for n in 1..5_000 {
            let name = format!("cold {n}");
            set(&cache, &name, live(&name, n, 300));
            assert!(matches!(get(&cache, "hot", n), Known::Head(_)));
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
        set(&cache, "hot", live("hot", 6_000, 19_000));
        let hint = Hint { main: 6_000, sub: 0 };
        assert_eq!(
            get(&cache, "hot", 6_000),
            Known::Hint(hint),
            "too large to keep: the old state goes all the same"
        );
    }

    /// Two keys share a hash. The first was evicted once, so an old hint is there; then the second takes the place of
    /// its newer record. The old hint must not come to light again: it leads to an old version.
    #[test]
    fn a_hint_that_was_not_kept_up_to_date_is_never_used() {
        let cache = HeadCache::new(1 << 20, 1 << 20);
        let set = |name: &str, main| cache.set(key(name), 1, live(name, main, 1), 0);
        set("a", 5);
        cache.shard(1).remove(0, 1000);
        assert_eq!(cache.get(b"a", 1, 5), Known::Hint(Hint { main: 5, sub: 0 }));
        set("a", 9);
        set("b", 12);
        assert_eq!(cache.get(b"a", 1, 20), Known::Nothing);
        cache.shard(1).remove(0, 1000);
        assert_eq!(
            cache.get(b"a", 1, 20),
            Known::Hint(Hint { main: 12, sub: 0 }),
            "a record of it says that it is b's"
        );
    }
}
