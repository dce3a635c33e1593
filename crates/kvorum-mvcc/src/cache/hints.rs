//! Where the newest versions of keys stand: hints that turn a search in the store into an exact look-up.
//!
//! A hint is the revision and the number within it of a change; the record that it leads to carries the same number.
//! No two keys share such a pair, so a record that agrees shows that the hint was made for this key, and as every
//! later change of the key would have replaced the hint, that it is the key's newest version. A hint that leads
//! nowhere costs one look-up. So hints may be dropped, and keys may share a hash.

use kvorum_model::Revision;

/// Hints that share a place; of those the one of the oldest change gives way.
const WAYS: usize = 4;

/// A change: a place in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub main: Revision,
    pub sub: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    hash: u64,
    hint: Hint,
}

/// An entry of revision 0 is empty.
const EMPTY: Entry = Entry {
    hash: 0,
    hint: Hint { main: 0, sub: 0 },
};

/// A table of fixed size. Invariant: a hash stands in it once at most.
#[derive(Default)]
pub(super) struct Hints {
    buckets: Vec<[Entry; WAYS]>,
}

impl Hints {
    /// A table of about `bytes`; it is allocated at the first use.
    pub fn set(&mut self, hash: u64, hint: Hint, bytes: usize) {
        if self.buckets.is_empty() {
            self.buckets = vec![[EMPTY; WAYS]; (bytes / size_of::<[Entry; WAYS]>()).max(1)];
        }
        let bucket = self.bucket(hash);
        let known = bucket
            .iter()
            .position(|entry| entry.hint.main > 0 && entry.hash == hash);
        let oldest = (0..WAYS).min_by_key(|at| bucket[*at].hint.main).unwrap_or(0);
        bucket[known.unwrap_or(oldest)] = Entry { hash, hint };
    }

    /// Adds a hint only where one is missing.
    pub fn offer(&mut self, hash: u64, hint: Hint, bytes: usize) {
        if self.get(hash).is_none() {
            self.set(hash, hint, bytes);
        }
    }

    pub fn get(&mut self, hash: u64) -> Option<Hint> {
        if self.buckets.is_empty() {
            return None;
        }
        let found = self
            .bucket(hash)
            .iter()
            .find(|entry| entry.hint.main > 0 && entry.hash == hash);
        found.map(|entry| entry.hint)
    }

    fn bucket(&mut self, hash: u64) -> &mut [Entry; WAYS] {
        // The top bits chose the shard.
        let at = (u64::from(hash as u32) * self.buckets.len() as u64) >> 32;
        &mut self.buckets[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way() {
        let mut hints = Hints::default();
        let hint = |main| Hint { main, sub: 7 };
        assert_eq!(hints.get(1), None);
        for n in 1..=5 {
            hints.set(n << 40, hint(n as Revision), 1);
        }
        assert_eq!(hints.get(1 << 40), None);
        assert_eq!(hints.get(2 << 40), Some(hint(2)));
        hints.set(2 << 40, hint(9), 1);
        hints.offer(2 << 40, hint(3), 1);
        assert_eq!(
            hints.get(2 << 40),
            Some(hint(9)),
            "one hint a hash, the last that was set"
        );
    }
}
