//! From what recovery found on disk to a core that may start (RS1–RS6, TM1).

use std::fmt;

use crate::interface::{Options, Restored};
use crate::log::Log;
use crate::raft::Raft;
use crate::types::{Entry, Index, LogId, Micros, Term};

/// Why a core does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The settings make no sense; this one.
    Options(&'static str),
    /// What was recovered contradicts itself: the member must be rebuilt from its peers.
    Corrupt(String),
    /// The log or the state machine lost what it once held durably (RS4): rebuild from peers.
    LostData(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Options(what) => write!(f, "{what}"),
            StartError::Corrupt(what) => write!(f, "the recovered log is corrupt: {what}"),
            StartError::LostData(what) => write!(f, "this member lost data: {what}"),
        }
    }
}

impl std::error::Error for StartError {}

impl Options {
    fn check(&self) -> Result<(), StartError> {
        // Both zero: no time at all, for model checkers.
        let timed = self.election_timeout > 0 || self.heartbeat_interval > 0;
        let checks = [
            (self.id != 0, "member ID 0 is reserved"),
            (
                self.heartbeat_interval <= self.election_timeout / 5,
                "the heartbeat interval is above T_min / 5",
            ),
            (
                !timed || self.heartbeat_interval > 0,
                "the heartbeat interval is 0",
            ),
            (
                self.election_timeout <= Micros::MAX / 1_000_000_000,
                "the election timeout is too long",
            ),
            (
                self.window_messages > 0 && self.window_bytes > 0,
                "the window is empty",
            ),
            (
                self.append_bytes_max > 0 && self.append_entries_max > 0,
                "appends would be empty",
            ),
            (self.apply_bytes_max > 0, "nothing would be applied"),
            (self.entry_bytes_max > 0, "no entry would be small enough"),
            (
                self.entry_bytes_max <= u32::MAX as usize,
                "entries could be longer than their length field",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some(&(_, what)) => Err(StartError::Options(what)),
            None => Ok(()),
        }
    }
}

impl Raft {
    /// A follower without a leader (RS1), from what recovery found. A first write may follow with the first
    /// step: the log's reset after a crash between a snapshot's install and it (RS3).
    pub fn new(options: Options, restored: Restored, now: Micros) -> Result<Raft, StartError> {
        options.check()?;
        let Restored {
            hard_state,
            base,
            entries,
            terms,
            configs,
            commit_mark,
            applied,
        } = restored;
        let found = Found::new(entries, terms)?;
        if found.first > base.last.index + 1 {
            return Err(StartError::Corrupt(format!(
                "it starts at {}, its base ends at {}",
                found.first, base.last.index
            )));
        }
        // RS3: a crash came between an install and the log's reset if the log does not begin at the base. An
        // empty one does not tell: then the reset, which changes nothing twice, is written again.
        let term_at_base = found.term_at(base.last.index);
        let begins_at_base = found.is_empty() || found.first == base.last.index + 1;
        let continues = begins_at_base || term_at_base == Some(base.last.term);
        let resets = !begins_at_base || (found.is_empty() && base.last.index > 0);
        let mut log = Log::new(&base, options.cache_bytes_max);
        if continues {
            found.into_log(&mut log, configs)?;
        }
        if hard_state.term < log.last().term {
            return Err(StartError::Corrupt(format!(
                "its last entry has term {}, the current term is {}",
                log.last().term,
                hard_state.term
            )));
        }
        let commit = restored_commit(&log, commit_mark, applied)?;
        // SM1: nobody else ever voted in what this member knows.
        let known = || {
            log.configurations()
                .filter(|(_, configuration)| !configuration.is_empty())
        };
        let sole = known().next().is_some()
            && known().all(|(_, configuration)| configuration.is_sole_voter(options.id));
        let mut raft = Raft::assemble(options, hard_state, log, commit, applied.index, now);
        if resets {
            raft.writes.snapshot(&base, !continues);
        }
        if sole {
            raft.clock.silent_until = now;
            raft.clock.election_at = now;
        }
        Ok(raft)
    }
}

/// RS4.
fn restored_commit(log: &Log, commit_mark: Index, applied: LogId) -> Result<Index, StartError> {
    let base = log.base();
    if applied.index < base.index {
        return Err(StartError::LostData(format!(
            "the state machine ends at {}, the log begins after {}",
            applied.index, base.index
        )));
    }
    let commit = commit_mark.max(base.index).max(applied.index);
    if commit > log.last().index {
        return Err(StartError::LostData(format!(
            "the log ends at {}, but {commit} was committed or applied",
            log.last().index
        )));
    }
    if log.term_at(applied.index) != Some(applied.term) {
        return Err(StartError::Corrupt(format!(
            "the state machine applied entry {}@{}, the log has term {:?} there",
            applied.index,
            applied.term,
            log.term_at(applied.index)
        )));
    }
    Ok(commit)
}

/// The recovered entries, some of them as runs of terms only.
struct Found {
    first: Index,
    runs: Vec<(Index, Term)>,
    /// The first index of `entries`.
    cached: Index,
    entries: Vec<Entry>,
}

impl Found {
    fn new(entries: Vec<Entry>, runs: Vec<(Index, Term)>) -> Result<Found, StartError> {
        for pair in runs.windows(2) {
            if pair[0].0 >= pair[1].0 || pair[0].1 >= pair[1].1 {
                return Err(StartError::Corrupt(format!(
                    "terms do not ascend at entry {}",
                    pair[1].0
                )));
            }
        }
        let Some(head) = entries.first() else {
            return match runs.first() {
                None => Ok(Found {
                    first: 0,
                    runs,
                    cached: 0,
                    entries,
                }),
                Some(_) => Err(StartError::Corrupt("its newest entries are missing".into())),
            };
        };
        let cached = head.index;
        if runs
            .last()
            .is_some_and(|&(first, term)| first >= cached || term > head.term)
        {
            return Err(StartError::Corrupt(format!(
                "terms do not ascend at entry {cached}"
            )));
        }
        let first = runs.first().map_or(cached, |&(first, _)| first);
        if first == 0 {
            return Err(StartError::Corrupt("it has an entry 0".into()));
        }
        Ok(Found {
            first,
            runs,
            cached,
            entries,
        })
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn term_at(&self, index: Index) -> Option<Term> {
        if index >= self.cached {
            return self
                .entries
                .get(usize::try_from(index - self.cached).ok()?)
                .map(|entry| entry.term);
        }
        let run = self.runs.partition_point(|&(first, _)| first <= index);
        run.checked_sub(1).map(|run| self.runs[run].1)
    }

    /// What is above the log's base.
    fn into_log(
        mut self,
        log: &mut Log,
        mut configs: Vec<(Index, crate::types::Configuration)>,
    ) -> Result<(), StartError> {
        let base = log.base().index;
        if self.cached > base + 1 {
            let above = self.runs.partition_point(|&(first, _)| first <= base + 1);
            let mut runs = self.runs.split_off(above.saturating_sub(1));
            if let Some(run) = runs.first_mut() {
                run.0 = run.0.max(base + 1);
            }
            configs.retain(|&(index, _)| base < index && index < self.cached);
            if configs.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
                return Err(StartError::Corrupt("its configurations do not ascend".into()));
            }
            log.extend_below_cache(runs, self.cached - 1, configs);
        } else {
            let covered = self.entries.partition_point(|entry| entry.index <= base);
            self.entries.drain(..covered);
        }
        log.append(&self.entries).map_err(StartError::Corrupt)
    }
}
