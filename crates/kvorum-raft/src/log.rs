//! The core's view of its log: terms of all entries, the newest entries themselves, the configurations.
//!
//! Terms are kept as runs, so that a log of millions of entries costs a few words. The newest entries are kept
//! in memory within a byte limit, the uncommitted ones always; older ones are fetched by the shell. Sizes are
//! remembered at coarse marks, for lags and limits in bytes.
//!
//! Invariants: entries `base.index + 1 ..= last.index` exist and their terms never fall; the cache is their
//! newest part, and below them perhaps some that the base already covers and that nobody reads; `configs` starts with the configuration at the base and ascends (RS5, LG2).

use std::collections::VecDeque;

use crate::blocks::Blocks;
use crate::types::{ConfigEntry, Configuration, Entry, EntryKind, Index, LogId, SnapshotMeta, Term};

/// What an entry is taken to weigh beyond its data.
pub const ENTRY_OVERHEAD_BYTES: usize = 32;
/// Entries below the base that are dropped at a time: a flush of the store lets go of hundreds of thousands.
const COVERED_DROPPED_MAX: usize = 1024;
/// Distance of size marks at most; less if the cache is small.
const MARK_BYTES_MAX: usize = 64 * 1024;

/// What an entry weighs in all limits.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_OVERHEAD_BYTES
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    base: LogId,
    last: LogId,
    /// (first index, term) of each run of equal terms above the base.
    runs: VecDeque<(Index, Term)>,
    cache: Blocks,
    cache_bytes: usize,
    cache_bytes_max: usize,
    /// Bytes of all entries ever appended here (cut ones taken back).
    bytes: u64,
    /// (index, bytes up to and with it), ascending; the front is at or below the base.
    marks: VecDeque<(Index, u64)>,
    configs: VecDeque<(Index, Configuration)>,
}

impl Log {
    /// An empty log above this base.
    pub fn new(base: &SnapshotMeta, cache_bytes_max: usize) -> Log {
        Log {
            base: base.last,
            last: base.last,
            runs: VecDeque::new(),
            cache: Blocks::default(),
            cache_bytes: 0,
            cache_bytes_max,
            bytes: 0,
            marks: VecDeque::from([(base.last.index, 0)]),
            configs: VecDeque::from([(base.last.index, base.configuration.clone())]),
        }
    }

    /// Entries that exist on disk only, as recovery reports them: their runs of terms up to `last`, and their
    /// configurations. Used once, before the first append.
    pub fn extend_below_cache(
        &mut self,
        runs: Vec<(Index, Term)>,
        last: Index,
        configs: Vec<(Index, Configuration)>,
    ) {
        if let Some(&(_, term)) = runs.last() {
            self.runs.extend(runs);
            self.last = LogId { term, index: last };
            self.marks.push_back((last, self.bytes));
        }
        self.configs.extend(configs);
    }

    pub fn base(&self) -> LogId {
        self.base
    }

    pub fn last(&self) -> LogId {
        self.last
    }

    /// The first index held in memory, of the log or below its base.
    fn cache_first(&self) -> Index {
        self.last.index + 1 - self.cache.len() as u64
    }

    /// The term of the entry at `index`; known from the base to the last entry (LG3).
    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last.index {
            return None;
        }
        let run = self.runs.partition_point(|&(first, _)| first <= index);
        Some(self.runs[run - 1].1)
    }

    /// Whether the log, or what its base covers with certainty, has this entry.
    pub fn has(&self, id: LogId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// The highest entry with index ≤ `bound.index` and term ≤ `bound.term` (RP4). Below the base only the
    /// index is meaningful.
    pub fn highest_at_most(&self, bound: LogId) -> LogId {
        let mut index = bound.index.min(self.last.index);
        for run in (0..self.runs.partition_point(|&(first, _)| first <= index)).rev() {
            let (first, term) = self.runs[run];
            if term <= bound.term {
                return LogId { term, index };
            }
            index = first - 1;
        }
        if index == self.base.index && self.base.term > bound.term {
            index = index.saturating_sub(1);
        }
        LogId {
            term: self.base.term.min(bound.term),
            index,
        }
    }

    /// Appends entries that follow the last one. The error is a broken invariant.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), String> {
        let distance = (self.cache_bytes_max / 64).clamp(1, MARK_BYTES_MAX) as u64;
        for entry in entries {
            if entry.index != self.last.index + 1 || entry.term < self.last.term {
                return Err(format!(
                    "entry {}@{} does not follow {}@{}",
                    entry.index, entry.term, self.last.index, self.last.term
                ));
            }
            if entry.kind == EntryKind::Config {
                let config = ConfigEntry::decode(&entry.data).map_err(|error| {
                    format!("configuration entry {} cannot be read: {error}", entry.index)
                })?;
                if config.configuration.is_empty() {
                    return Err(format!("configuration entry {} has no voters", entry.index));
                }
                self.configs.push_back((entry.index, config.configuration));
            }
            if entry.term > self.last.term || self.runs.is_empty() {
                self.runs.push_back((entry.index, entry.term));
            }
            self.last = LogId {
                term: entry.term,
                index: entry.index,
            };
            let size = entry_bytes(entry);
            self.bytes += size as u64;
            if self
                .marks
                .back()
                .is_none_or(|&(_, at)| self.bytes - at >= distance)
            {
                self.marks.push_back((entry.index, self.bytes));
            }
            self.cache_bytes += size;
            self.cache.push_back(entry.clone());
        }
        Ok(())
    }

    /// Cuts the log from `from` on, with the configurations there (LG2).
    pub fn truncate(&mut self, from: Index) {
        debug_assert!(from > self.base.index);
        while self.cache.back().is_some_and(|entry| entry.index >= from) {
            let size = self.cache.pop_back().map_or(0, |entry| entry_bytes(&entry));
            self.cache_bytes -= size;
            self.bytes -= size as u64;
        }
        let last = from - 1;
        let term = self
            .term_at(last)
            .expect("a cut is above the base, and all terms above it are known");
        self.last = LogId { term, index: last };
        while self.runs.back().is_some_and(|&(first, _)| first >= from) {
            self.runs.pop_back();
        }
        while self.marks.len() > 1 && self.marks.back().is_some_and(|&(index, _)| index >= from) {
            self.marks.pop_back();
        }
        while self.configs.len() > 1 && self.configs.back().is_some_and(|&(index, _)| index >= from) {
            self.configs.pop_back();
        }
    }

    /// Moves the base up to `to`, an entry of the log.
    pub fn compact(&mut self, to: Index) {
        let Some(term) = self.term_at(to) else { return };
        self.base = LogId { term, index: to };
        while self.runs.len() > 1 && self.runs[1].0 <= to + 1 {
            self.runs.pop_front();
        }
        match self.runs.front_mut() {
            Some(_) if to == self.last.index => self.runs.clear(),
            Some(run) => run.0 = run.0.max(to + 1),
            None => {}
        }
        while self.configs.len() > 1 && self.configs[1].0 <= to {
            self.configs.pop_front();
        }
        if let Some(config) = self.configs.front_mut() {
            config.0 = to;
        }
        while self.marks.len() > 1 && self.marks[1].0 <= to {
            self.marks.pop_front();
        }
        self.drop_covered();
    }

    /// Forgets everything: the log is what the snapshot covers (LG3).
    pub fn reset(&mut self, meta: &SnapshotMeta) {
        let bytes = self.bytes;
        *self = Log::new(meta, self.cache_bytes_max);
        self.bytes = bytes;
        self.marks = VecDeque::from([(meta.last.index, bytes)]);
    }

    /// The configuration at the base becomes the snapshot's (MB10); the rest of the log stays.
    pub fn rebase(&mut self, meta: &SnapshotMeta) {
        self.compact(meta.last.index);
        if let Some(config) = self.configs.front_mut() {
            config.1 = meta.configuration.clone();
        }
    }

    /// Drops the oldest cached entries while the cache is over its limit. What is above `durable` (not both
    /// committed and persisted) stays always; what is above `used` (not yet handed to the state machine)
    /// stays up to twice the limit.
    pub fn evict(&mut self, durable: Index, used: Index) {
        self.drop_covered();
        while self.cache_bytes > self.cache_bytes_max {
            match self.cache.front() {
                Some(entry) if entry.index > durable => break,
                Some(entry) if entry.index > used && self.cache_bytes <= 2 * self.cache_bytes_max => break,
                Some(_) => self.evict_front(),
                None => break,
            }
        }
    }

    /// Drops some of what the base covers.
    fn drop_covered(&mut self) {
        for _ in 0..COVERED_DROPPED_MAX {
            match self.cache.front() {
                Some(entry) if entry.index <= self.base.index => self.evict_front(),
                _ => break,
            }
        }
    }

    fn evict_front(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= entry_bytes(&entry);
        }
    }

    /// Cached entries `from..=to`, as many as fit `bytes_max`, at least one. None if `from` is not cached.
    pub fn read(&self, from: Index, to: Index, bytes_max: usize) -> Option<Vec<Entry>> {
        if from <= self.base.index {
            return None;
        }
        let skip = usize::try_from(from.checked_sub(self.cache_first())?).ok()?;
        let mut bytes = 0;
        let mut count = 0;
        for entry in self.cache.after(skip) {
            bytes += entry_bytes(entry);
            if entry.index > to || (count > 0 && bytes > bytes_max) {
                break;
            }
            count += 1;
        }
        if count == 0 {
            return None;
        }
        Some(self.cache.after(skip).take(count).cloned().collect())
    }

    /// Bytes of the log up to `index`, rounded down to a mark.
    pub fn bytes_at(&self, index: Index) -> u64 {
        if index >= self.last.index {
            return self.bytes;
        }
        let mark = self.marks.partition_point(|&(at, _)| at <= index);
        match mark {
            0 => self.marks.front().map_or(0, |&(_, bytes)| bytes),
            mark => self.marks[mark - 1].1,
        }
    }

    /// Bytes of the entries above `index`, rounded up.
    pub fn bytes_above(&self, index: Index) -> u64 {
        self.bytes - self.bytes_at(index)
    }

    /// The lowest marked index with no more than `bytes` above it.
    pub fn index_with_at_most_above(&self, bytes: u64) -> Index {
        let mark = self.marks.partition_point(|&(_, at)| self.bytes - at > bytes);
        self.marks.get(mark).map_or(self.last.index, |&(index, _)| index)
    }

    /// Exact bytes of the cached entries above `index`.
    pub fn cached_bytes_above(&self, index: Index) -> u64 {
        self.cache
            .iter_back()
            .take_while(|entry| entry.index > index)
            .map(|entry| entry_bytes(entry) as u64)
            .sum()
    }

    /// The configuration in force: the newest one, committed or not (MB1).
    pub fn configuration(&self) -> &Configuration {
        &self
            .configs
            .back()
            .expect("the base's configuration is always there")
            .1
    }

    /// The index of the configuration in force; the base's index if it comes from there.
    pub fn configuration_index(&self) -> Index {
        self.configs
            .back()
            .expect("the base's configuration is always there")
            .0
    }

    /// The configuration before the one in force.
    pub fn previous_configuration(&self) -> Option<&Configuration> {
        self.configs.len().checked_sub(2).map(|at| &self.configs[at].1)
    }

    /// The newest configuration at or below `index`.
    pub fn configuration_at(&self, index: Index) -> &Configuration {
        let after = self.configs.partition_point(|&(at, _)| at <= index);
        &self.configs[after.max(1) - 1].1
    }

    /// (index, configuration), ascending; the first is the base's.
    pub fn configurations(&self) -> impl DoubleEndedIterator<Item = &(Index, Configuration)> {
        self.configs.iter()
    }

    /// The structure's own invariants; the error names the broken one.
    pub fn check(&self) -> Result<(), String> {
        if self.base.index > self.last.index {
            return Err("the log's base is above its end".into());
        }
        if self
            .cache
            .back()
            .is_some_and(|entry| entry.index != self.last.index)
        {
            return Err("the cache does not end with the log".into());
        }
        if self.runs.back().is_some_and(|&(_, term)| term != self.last.term) {
            return Err("the last run of terms is not the last entry's".into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(index: Index, term: Term) -> Entry {
        Entry {
            term,
            index,
            kind: EntryKind::Command,
            data: Bytes::from_static(b"0123456789"),
        }
    }

    /// A log with entries of these terms from index 1 on.
    fn log(terms: &[Term]) -> Log {
        let mut log = Log::new(&SnapshotMeta::default(), 1 << 20);
        let entries: Vec<_> = terms
            .iter()
            .zip(1..)
            .map(|(&term, index)| entry(index, term))
            .collect();
        log.append(&entries).unwrap();
        log
    }

    fn terms(log: &Log) -> Vec<Term> {
        (log.base().index..=log.last().index)
            .map(|index| log.term_at(index).unwrap())
            .collect()
    }

    #[test]
    fn terms_survive_cuts_and_compaction_everywhere() {
        let all = [1, 1, 2, 4, 4, 4, 7];
        for to in 0..=7u64 {
            for cut in to + 1..=8 {
                let mut log = log(&all);
                log.compact(to);
                if cut <= 7 {
                    log.truncate(cut);
                }
                let mut expected = vec![0];
                expected.extend(all);
                assert_eq!(
                    terms(&log),
                    expected[to as usize..cut as usize],
                    "compact {to}, cut {cut}"
                );
                assert_eq!(log.term_at(cut), None);
                assert!(to == 0 || log.term_at(to - 1).is_none());
                log.check().unwrap();
                log.append(&[entry(cut, 9)]).unwrap();
                assert_eq!(log.last(), LogId { term: 9, index: cut });
                log.check().unwrap();
            }
        }
    }

    #[test]
    fn rp4_hint_is_the_highest_entry_within_both_bounds() {
        let log = log(&[1, 1, 2, 4, 4, 4, 7]);
        for (term, index, expected) in [
            (9, 9, (7, 7)),
            (7, 6, (4, 6)),
            (3, 6, (2, 3)),
            (2, 9, (2, 3)),
            (1, 9, (1, 2)),
            (0, 9, (0, 0)),
            (4, 5, (4, 5)),
        ] {
            let found = log.highest_at_most(LogId { term, index });
            assert_eq!((found.term, found.index), expected, "{index}@{term}");
        }
    }

    #[test]
    fn cache_keeps_what_is_not_durable_and_pages() {
        let mut log = log(&[1; 10]);
        let one = entry_bytes(&entry(1, 1));
        log.cache_bytes_max = 3 * one;
        log.evict(5, 5);
        assert_eq!(log.cache_first(), 6);
        log.evict(8, 5);
        assert_eq!(log.cache_first(), 6, "not handed out: kept up to twice the limit");
        log.evict(8, 8);
        assert_eq!(log.cache_first(), 8);
        assert_eq!(log.read(7, 10, 1000), None);
        assert_eq!(log.read(8, 10, 1).unwrap().len(), 1);
        assert_eq!(log.read(8, 10, 2 * one).unwrap().len(), 2);
        assert_eq!(log.read(8, 9, 1000).unwrap().len(), 2);
        assert_eq!(log.read(11, 20, 1000), None);
    }

    /// A flush of the store covers half a million entries at once: to drop all of them in one step took a replica
    /// milliseconds, in which it did nothing else.
    #[test]
    fn what_a_new_base_covers_goes_in_pieces_and_is_not_read_meanwhile() {
        let many = 3 * COVERED_DROPPED_MAX;
        let mut log = log(&vec![1; many]);
        let base = many as u64 - 1;
        log.compact(base);
        assert_eq!(log.cache.len(), many - COVERED_DROPPED_MAX);
        assert_eq!(log.read(base, base, 1000), None);
        assert_eq!(log.read(base + 1, base + 1, 1000).unwrap().len(), 1);
        log.truncate(base + 1);
        log.check().unwrap();
        log.append(&[entry(base + 1, 2)]).unwrap();
        assert_eq!(log.read(base + 1, base + 1, 1000).unwrap(), [entry(base + 1, 2)]);
        log.evict(0, 0);
        log.evict(0, 0);
        assert_eq!(log.cache.len(), 1);
        log.check().unwrap();
    }

    #[test]
    fn append_refuses_gaps_falling_terms_and_garbage() {
        let mut log = log(&[1, 2]);
        assert!(log.append(&[entry(4, 2)]).is_err());
        assert!(log.append(&[entry(3, 1)]).is_err());
        let config = Entry {
            kind: EntryKind::Config,
            ..entry(3, 2)
        };
        assert!(log.append(&[config]).is_err());
    }
}
