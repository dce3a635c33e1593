//! Where each entry is: a sparse index in memory, shared by the writer and all readers.
//!
//! A [`Run`] names a stretch of entry records in one frame; a new one begins with each frame, after each cut, and
//! after [`RUN_BYTES`]. So a log of 256 MiB costs at most a few hundred kilobytes of memory with large batches,
//! and 24 bytes a batch with small ones.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::segments::SegmentFile;

/// A run of records is ended when it has so many bytes.
const RUN_BYTES: u32 = 64 << 10;

/// Consecutive entry records in one frame. Entries from the next run's first index on are dead in this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first_index: u64,
    pub segment: u64,
    pub offset: u32,
    pub bytes: u32,
}

/// One step in what a frame does to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Reset { base_index: u64 },
    Purge { base_index: u64 },
    Truncate { from: u64 },
    Append { run: Run, last_index: u64 },
}

/// Collects what one frame does to the index while the frame is encoded or replayed.
#[derive(Debug, Default)]
pub struct Changes {
    changes: Vec<Change>,
}

impl Changes {
    /// Any step but an entry; the next entry begins a new run.
    pub fn push(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub fn entry(&mut self, index: u64, segment: u64, offset: u64, bytes: usize) {
        let offset = u32::try_from(offset).expect("segments are at most 1 GiB");
        let bytes = u32::try_from(bytes).expect("segments are at most 1 GiB");
        if let Some(Change::Append { run, last_index }) = self.changes.last_mut()
            && run.segment == segment
            && run.offset + run.bytes == offset
            && run.bytes < RUN_BYTES
        {
            run.bytes += bytes;
            *last_index = index;
            return;
        }
        let run = Run {
            first_index: index,
            segment,
            offset,
            bytes,
        };
        self.changes.push(Change::Append {
            run,
            last_index: index,
        });
    }

    pub fn clear(&mut self) {
        self.changes.clear();
    }
}

/// Invariants: runs ascend by first index; the first one holds `base_index + 1`, unless the log is empty or
/// recovery has not come that far; every run's segment is in `segments`.
#[derive(Debug)]
pub struct Index<F> {
    pub base_index: u64,
    pub last_index: u64,
    runs: VecDeque<Run>,
    segments: BTreeMap<u64, Kept<F>>,
}

/// A segment with entries, or between such.
#[derive(Debug)]
struct Kept<F> {
    segment: Arc<SegmentFile<F>>,
    /// Everything before is durable and valid.
    end: u64,
}

impl<F> Index<F> {
    pub fn new() -> Index<F> {
        Index {
            base_index: 0,
            last_index: 0,
            runs: VecDeque::new(),
            segments: BTreeMap::new(),
        }
    }

    pub fn apply(&mut self, changes: &Changes) {
        for change in &changes.changes {
            match *change {
                Change::Reset { base_index } => {
                    self.runs.clear();
                    self.base_index = base_index;
                    self.last_index = base_index;
                }
                Change::Purge { base_index } => self.purge(base_index),
                Change::Truncate { from } => {
                    while self.runs.back().is_some_and(|run| run.first_index >= from) {
                        self.runs.pop_back();
                    }
                    self.last_index = self.last_index.min(from - 1);
                }
                Change::Append { run, last_index } => {
                    self.runs.push_back(run);
                    self.last_index = last_index;
                }
            }
        }
    }

    pub fn purge(&mut self, base_index: u64) {
        self.base_index = base_index;
        if self.last_index <= base_index {
            self.last_index = base_index;
            self.runs.clear();
        }
        while self
            .runs
            .get(1)
            .is_some_and(|run| run.first_index <= base_index + 1)
        {
            self.runs.pop_front();
        }
    }

    /// Keeps a segment, or notes its new end.
    pub fn keep(&mut self, segment: Arc<SegmentFile<F>>, end: u64) {
        self.segments.insert(segment.header.number, Kept { segment, end });
    }

    /// Forgets the segments before the one with the oldest entry (or before `current`, without entries), and
    /// returns them.
    pub fn drop_purged(&mut self, current: u64) -> Vec<Arc<SegmentFile<F>>> {
        let oldest = self.runs.front().map_or(current, |run| run.segment);
        let kept = self.segments.split_off(&oldest);
        let dropped = std::mem::replace(&mut self.segments, kept);
        dropped.into_values().map(|dropped| dropped.segment).collect()
    }

    /// Whether a purge to this index would let `drop_purged` find something.
    pub fn purge_drops(&self, base_index: u64, current: u64) -> bool {
        let at = self.runs.partition_point(|run| run.first_index <= base_index + 1);
        let run = self
            .runs
            .get(at.saturating_sub(1))
            .filter(|_| base_index < self.last_index);
        let oldest = run.map_or(current, |run| run.segment);
        self.segments.range(..oldest).next().is_some()
    }

    pub fn contains_segment(&self, number: u64) -> bool {
        self.segments.contains_key(&number)
    }

    /// The first segment above this number, and its end.
    pub fn segment_after(&self, number: u64) -> Option<(Arc<SegmentFile<F>>, u64)> {
        let (_, kept) = self.segments.range(number + 1..).next()?;
        Some((kept.segment.clone(), kept.end))
    }

    /// How many segments, and how many bytes up to their ends.
    pub fn extent(&self) -> (u64, u64) {
        (
            self.segments.len() as u64,
            self.segments.values().map(|kept| kept.end).sum(),
        )
    }

    /// The runs that hold `from..=to`, each with the last index that is to be taken from it, until they have
    /// `bytes_max` bytes (the first one not counted: it may begin far before `from`).
    pub fn find(&self, from: u64, to: u64, bytes_max: usize) -> Vec<(Run, u64, Arc<SegmentFile<F>>)> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut at = self
            .runs
            .partition_point(|run| run.first_index <= from)
            .saturating_sub(1);
        while let Some(run) = self.runs.get(at)
            && run.first_index <= to
        {
            let next = self.runs.get(at + 1).map_or(u64::MAX, |next| next.first_index);
            let kept = self.segments.get(&run.segment);
            let segment = &kept.expect("the segments of all runs are kept").segment;
            found.push((*run, to.min(next - 1), segment.clone()));
            if found.len() > 1 {
                bytes += run.bytes as usize;
            }
            if bytes >= bytes_max {
                break;
            }
            at += 1;
        }
        found
    }
}
