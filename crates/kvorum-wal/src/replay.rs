//! Rebuilding state, index and newest entries from frames, in the order they were written.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::format::{FRAME_HEADER_BYTES, Head, Record};
use crate::frames::Frame;
use crate::index::{Change, Changes, Index};
use crate::state::LogState;
use crate::types::{Entry, KIND_CONFIGURATION, Recovered};

/// The newest entries, and what must be known of the others.
///
/// Invariants: `entries` is contiguous; `terms` covers, if anything, the indexes before it without a gap.
#[derive(Debug, Default)]
pub struct Collected {
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    terms: Vec<(u64, u64)>,
    kept: Vec<Entry>,
    /// Entries before this index are not in the segments that were read.
    available_from: u64,
}

impl Collected {
    pub fn new(bytes_max: usize) -> Collected {
        Collected {
            bytes_max,
            ..Collected::default()
        }
    }

    fn add(&mut self, record: &Record) {
        match record {
            Record::Head(_) | Record::HardState(_) | Record::Purge(_) => {}
            Record::Reset(base) => {
                *self = Collected {
                    bytes_max: self.bytes_max,
                    available_from: base.index + 1,
                    ..Collected::default()
                };
            }
            Record::Truncate(from) => {
                while self.entries.back().is_some_and(|entry| entry.index >= *from) {
                    self.bytes -= self.entries.pop_back().map_or(0, |entry| entry.data.len());
                }
                self.terms.retain(|(first, _)| first < from);
                self.kept.retain(|entry| entry.index < *from);
                self.available_from = self.available_from.min(*from);
            }
            Record::Entry(entry) => {
                self.bytes += entry.data.len();
                self.entries.push_back(entry.clone());
                while self.bytes > self.bytes_max && self.entries.len() > 1 {
                    self.leave_out_oldest();
                }
            }
        }
    }

    fn leave_out_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else {
            return;
        };
        self.bytes -= entry.data.len();
        if self.terms.last().is_none_or(|(_, term)| *term != entry.term) {
            self.terms.push((entry.index, entry.term));
        }
        if entry.kind == KIND_CONFIGURATION {
            // A copy, so that one small entry does not hold on to a whole chunk of the log.
            self.kept.push(Entry {
                data: Bytes::copy_from_slice(&entry.data),
                ..entry
            });
        }
    }

    /// First index that was read; entries from the base up to it are missing.
    pub fn available_from(&self) -> u64 {
        self.available_from
    }

    /// Everything after the base.
    pub fn finish(mut self, state: &LogState) -> Recovered {
        let base_index = state.base.index;
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.index <= base_index)
        {
            self.entries.pop_front();
        }
        self.kept.retain(|entry| entry.index > base_index);
        let entries_from = self
            .entries
            .front()
            .map_or(state.last_index + 1, |entry| entry.index);
        if entries_from <= base_index + 1 {
            self.terms.clear();
        }
        let covering = self.terms.partition_point(|(first, _)| *first <= base_index + 1);
        self.terms.drain(..covering.saturating_sub(1));
        if let Some((first, _)) = self.terms.first_mut() {
            *first = base_index + 1;
        }
        Recovered {
            hard_state: state.hard_state,
            base: state.base.clone(),
            entries: self.entries.into(),
            terms: self.terms,
            kinds_kept: self.kept,
            last_index: state.last_index,
            commit_mark: state.commit_mark,
            report: crate::types::RecoveryReport::default(),
        }
    }
}

/// The log as far as it was replayed.
#[derive(Debug)]
pub struct Replay<F> {
    pub state: LogState,
    pub collected: Collected,
    pub index: Index<F>,
    /// Number of the last batch replayed; `None` before the first.
    pub batch: Option<u64>,
    changes: Changes,
}

impl<F> Replay<F> {
    pub fn new(recover_bytes_max: usize) -> Replay<F> {
        Replay {
            state: LogState::default(),
            collected: Collected::new(recover_bytes_max),
            index: Index::new(),
            batch: None,
            changes: Changes::default(),
        }
    }

    /// Starts from the head of the oldest segment, or checks that a later head agrees with what was replayed.
    pub fn head(&mut self, head: &Head, batch: u64, commit_mark: u64) -> Result<(), &'static str> {
        let last_index = head
            .next_index
            .checked_sub(1)
            .filter(|last| *last >= head.base.index);
        let last_index = last_index.ok_or("its head contradicts itself")?;
        let restated = LogState {
            hard_state: head.hard_state,
            base: head.base.clone(),
            last_index,
            commit_mark: self.state.commit_mark,
        };
        if self.batch.is_none() {
            self.state = LogState {
                commit_mark,
                ..restated
            };
            self.batch = Some(batch.checked_sub(1).ok_or("its batch number is 0")?);
            self.collected.available_from = head.next_index;
            self.index.base_index = head.base.index;
            self.index.last_index = last_index;
            return Ok(());
        }
        if restated == self.state {
            Ok(())
        } else {
            Err("its head disagrees with the segment before")
        }
    }

    /// Applies a proved frame.
    pub fn apply(&mut self, frame: &Frame, first: bool, checksum_seed: u32) -> Result<(), String> {
        self.changes.clear();
        for (record, at, bytes) in frame.records(first, checksum_seed)? {
            let offset = frame.offset + (FRAME_HEADER_BYTES + at) as u64;
            match &record {
                Record::Head(_) => {}
                Record::HardState(hard_state) => self.state.hard_state = *hard_state,
                Record::Reset(base) => {
                    self.state.reset(base);
                    self.changes.push(Change::Reset {
                        base_index: base.index,
                    });
                }
                Record::Purge(base) => {
                    self.state.purge(base)?;
                    self.changes.push(Change::Purge {
                        base_index: base.index,
                    });
                }
                Record::Truncate(from) => {
                    self.state.truncate(*from)?;
                    self.changes.push(Change::Truncate { from: *from });
                }
                Record::Entry(entry) => {
                    self.state.append(entry.index)?;
                    self.changes
                        .entry(entry.index, frame.header.segment, offset, bytes);
                }
            }
            self.collected.add(&record);
        }
        self.state.mark_commit(frame.header.commit_mark);
        self.index.apply(&self.changes);
        self.batch = Some(frame.header.batch);
        Ok(())
    }

    /// Notes what a frame says that is going to be written anew, without counting it as replayed. Returns its
    /// records, without the head, and the state after them.
    pub fn collect(
        &mut self,
        frame: &Frame,
        first: bool,
        seed: u32,
    ) -> Result<(Vec<Record>, LogState), String> {
        let mut state = self.state.clone();
        let mut records = Vec::new();
        for (record, ..) in frame.records(first, seed)? {
            match &record {
                Record::Head(_) => continue,
                Record::HardState(hard_state) => state.hard_state = *hard_state,
                Record::Reset(base) => state.reset(base),
                Record::Purge(base) => state.purge(base)?,
                Record::Truncate(from) => state.truncate(*from)?,
                Record::Entry(entry) => state.append(entry.index)?,
            }
            self.collected.add(&record);
            records.push(record);
        }
        state.mark_commit(frame.header.commit_mark);
        Ok((records, state))
    }
}
