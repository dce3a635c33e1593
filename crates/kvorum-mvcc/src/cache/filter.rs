//! Which keys the store may hold: a blocked Bloom filter, so that the first put of a key and the look-up of a missing
//! one need no search.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bits per key: about one look-up in sixty of a missing key searches in vain.
const BITS_PER_KEY: usize = 10;
/// Bits that each key sets in its block.
const PROBES: u32 = 6;
/// The smallest filter: 1.25 MiB.
const KEYS_MIN: usize = 1 << 20;

/// One cache line.
type Block = [AtomicU64; 8];

/// A set of key hashes that grows and never shrinks. The applier adds a key before it publishes the revision that
/// wrote it, so a reader finds in it every key of its view.
pub(crate) struct KeyFilter {
    blocks: Vec<Block>,
    capacity: usize,
    added: AtomicUsize,
}

impl KeyFilter {
    /// For so many keys; more make it less useful, not wrong.
    pub fn new(keys: usize) -> Self {
        let capacity = keys.max(KEYS_MIN);
        let blocks = (capacity * BITS_PER_KEY).div_ceil(512);
        KeyFilter {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            capacity,
            added: AtomicUsize::new(0),
        }
    }

    /// How many keys were added, some perhaps more than once.
    pub fn added(&self) -> usize {
        self.added.load(Ordering::Relaxed)
    }

    /// Whether it holds more than it was made for.
    pub fn is_overfull(&self) -> bool {
        self.added() > self.capacity
    }

    /// Adds a key by its hash.
    pub fn add(&self, hash: u64) {
        self.added.fetch_add(1, Ordering::Relaxed);
        let block = self.block(hash);
        for (word, bit) in probes(hash) {
            block[word].fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// False only if the key was never added.
    pub fn may_contain(&self, hash: u64) -> bool {
        let block = self.block(hash);
        probes(hash).all(|(word, bit)| block[word].load(Ordering::Relaxed) & bit != 0)
    }

    fn block(&self, hash: u64) -> &Block {
        let at = (u128::from(hash) * self.blocks.len() as u128) >> 64;
        &self.blocks[at as usize]
    }
}

/// The bits of a hash in its block: nine bits of a second hash each.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..PROBES).map(move |probe| {
        let nine = (mixed >> (9 * probe + 1)) & 511;
        ((nine >> 6) as usize, 1 << (nine & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    #[test]
    fn added_keys_are_found_and_others_rarely() {
        let filter = KeyFilter::new(0);
        let hash = |n: usize| xxh3_64(format!("key {n}").as_bytes());
        for n in 0..KEYS_MIN {
            filter.add(hash(n));
        }
        assert!(!filter.is_overfull());
        assert!((0..KEYS_MIN).all(|n| filter.may_contain(hash(n))));
        let wrong = (KEYS_MIN..2 * KEYS_MIN)
            .filter(|n| filter.may_contain(hash(*n)))
            .count();
        assert!(wrong < KEYS_MIN / 50, "{wrong} of {KEYS_MIN}");
        filter.add(1);
        assert!(filter.is_overfull());
    }
}
