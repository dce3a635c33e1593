//! The entries that are held in memory, in blocks: neither growing nor shrinking ever moves what is there. (One
//! buffer of half a million entries takes milliseconds to move to a larger one, in which a replica does nothing
//! else.)
//!
//! Invariants: no block is empty; all between the first and the last are full.

use std::collections::VecDeque;

use crate::types::Entry;

/// Entries of a block.
const BLOCK: usize = 1024;

/// A queue of entries. Two are equal if their entries are, however they came about, as long as one block holds them:
/// enough for the model checker, which compares states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Blocks {
    blocks: VecDeque<VecDeque<Entry>>,
    len: usize,
}

impl Blocks {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn front(&self) -> Option<&Entry> {
        self.blocks.front()?.front()
    }

    pub fn back(&self) -> Option<&Entry> {
        self.blocks.back()?.back()
    }

    pub fn push_back(&mut self, entry: Entry) {
        match self.blocks.back_mut() {
            Some(block) if block.len() < BLOCK => block.push_back(entry),
            _ => {
                let mut block = VecDeque::with_capacity(if self.blocks.is_empty() { 1 } else { BLOCK });
                block.push_back(entry);
                self.blocks.push_back(block);
            }
        }
        self.len += 1;
    }

    pub fn pop_front(&mut self) -> Option<Entry> {
        let block = self.blocks.front_mut()?;
        let entry = block.pop_front();
        if block.is_empty() {
            self.blocks.pop_front();
        }
        self.len -= usize::from(entry.is_some());
        entry
    }

    pub fn pop_back(&mut self) -> Option<Entry> {
        let block = self.blocks.back_mut()?;
        let entry = block.pop_back();
        if block.is_empty() {
            self.blocks.pop_back();
        }
        self.len -= usize::from(entry.is_some());
        entry
    }

    /// From the newest to the oldest.
    pub fn iter_back(&self) -> impl Iterator<Item = &Entry> {
        self.blocks.iter().rev().flat_map(|block| block.iter().rev())
    }

    /// All but the first `skip`, in order.
    pub fn after(&self, skip: usize) -> impl Iterator<Item = &Entry> {
        let first = self.blocks.front().map_or(0, VecDeque::len);
        let (block, within) = match skip.checked_sub(first) {
            None => (0, skip),
            Some(beyond) => (1 + beyond / BLOCK, beyond % BLOCK),
        };
        let block = block.min(self.blocks.len());
        self.blocks.range(block..).flatten().skip(within)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::EntryKind;

    fn entry(index: u64) -> Entry {
        Entry {
            term: 1,
            index,
            kind: EntryKind::Command,
            data: Bytes::new(),
        }
    }

    /// Every length around the edges of blocks, from every beginning within a block.
    #[test]
    fn whatever_was_pushed_and_popped_the_order_holds() {
        for gone in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1] {
            for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7] {
                let mut blocks = Blocks::default();
                (0..(gone + len) as u64).for_each(|index| blocks.push_back(entry(index)));
                (0..gone as u64).for_each(|index| assert_eq!(blocks.pop_front().unwrap().index, index));
                let all: Vec<u64> = (gone as u64..(gone + len) as u64).collect();
                assert_eq!(blocks.len(), len);
                assert_eq!(blocks.front().map(|entry| entry.index), all.first().copied());
                assert_eq!(blocks.back().map(|entry| entry.index), all.last().copied());
                for skip in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, len, len + 1, len + BLOCK] {
                    let found: Vec<u64> = blocks.after(skip).map(|entry| entry.index).collect();
                    assert_eq!(
                        found,
                        all[skip.min(len)..],
                        "{gone} gone, {len} there, {skip} skipped"
                    );
                }
                let back: Vec<u64> = blocks.iter_back().map(|entry| entry.index).collect();
                assert!(back.iter().eq(all.iter().rev()));
                // Cut in the middle and continued, as a log is by a new leader.
                (0..len / 2).for_each(|_| drop(blocks.pop_back()));
                let next = (gone + len - len / 2) as u64;
                blocks.push_back(entry(next));
                assert_eq!(blocks.after(len - len / 2).next(), Some(&entry(next)));
            }
        }
        assert_eq!(Blocks::default().pop_back(), None);
        assert_eq!(Blocks::default().pop_front(), None);
    }
}
