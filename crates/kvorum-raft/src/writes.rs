//! Writes on their way to the disk, and everything that waits for them.
//!
//! Each [`Persist`] has a number; the disk works in order and reports a watermark. What promises something
//! about the disk is held here as a [`Gated`] keyed by the number it waits for: there is no other way out for
//! it. A queue of (number, end of the log at that write) turns the watermark into the persisted index; a cut
//! lowers what is queued, so that a late completion cannot vouch for cut entries.

use std::collections::VecDeque;

use crate::interface::Persist;
use crate::message::{AppendResult, Message, MessageBody};
use crate::types::{Entry, HardState, Index, LogId, Micros, Seq, SnapshotMeta, Term};

/// What may happen only when the disk holds everything written so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Promise {
    /// A message that vouches for the disk.
    Send(Message),
    /// The own vote counts.
    OwnVote { term: Term, campaign: u64 },
    /// The snapshot that ends here becomes the state.
    Install(LogId),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Gated {
    seq: Seq,
    promise: Promise,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Open {
    seq: Seq,
    /// The end of the log once this write is done, as lowered by later cuts.
    last: Index,
    issued_at: Micros,
}

/// What the current step has for the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Pending {
    hard_state: Option<HardState>,
    snapshot: Option<SnapshotMeta>,
    truncate_from: Option<Index>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Writes {
    issued: Seq,
    done: Seq,
    persisted: Index,
    open: VecDeque<Open>,
    gated: VecDeque<Gated>,
    /// Promises of the current step: their number is known when the step's write is issued.
    fresh: Vec<Promise>,
    pending: Pending,
}

impl Writes {
    /// Nothing under way; the disk holds the log up to `persisted`.
    pub fn new(persisted: Index) -> Writes {
        Writes {
            issued: 0,
            done: 0,
            persisted,
            open: VecDeque::new(),
            gated: VecDeque::new(),
            fresh: Vec::new(),
            pending: Pending::default(),
        }
    }

    /// The own log is durable up to here.
    pub fn persisted(&self) -> Index {
        self.persisted
    }

    pub fn issued(&self) -> Seq {
        self.issued
    }

    pub fn done(&self) -> Seq {
        self.done
    }

    /// When the oldest write that is not done was issued.
    pub fn oldest_open(&self) -> Option<Micros> {
        self.open.front().map(|open| open.issued_at)
    }

    pub fn hard_state(&mut self, hard_state: HardState) {
        self.pending.hard_state = Some(hard_state);
    }

    pub fn entries(&mut self, entries: Vec<Entry>) {
        if self.pending.entries.is_empty() {
            self.pending.entries = entries;
        } else {
            self.pending.entries.extend(entries);
        }
    }

    /// The log is cut from `from` on: nothing written before vouches for those entries any more (LG2).
    pub fn truncate(&mut self, from: Index) {
        self.pending.truncate_from = Some(self.pending.truncate_from.map_or(from, |other| other.min(from)));
        self.pending.entries.retain(|entry| entry.index < from);
        self.lower(from - 1);
        let vouches = |promise: &Promise| match promise {
            Promise::Send(Message {
                body: MessageBody::AppendReply { result, .. },
                ..
            }) => {
                matches!(result, AppendResult::Matched(matched) if *matched >= from)
            }
            _ => false,
        };
        self.gated.retain(|gated| !vouches(&gated.promise));
        self.fresh.retain(|promise| !vouches(promise));
    }

    /// The log's base becomes the snapshot, which is durable. If the log does not continue it, the rest goes.
    pub fn snapshot(&mut self, meta: &SnapshotMeta, discard_rest: bool) {
        if discard_rest {
            self.truncate(meta.last.index + 1);
        }
        self.pending.snapshot = Some(meta.clone());
        self.persisted = self.persisted.max(meta.last.index);
    }

    fn lower(&mut self, last: Index) {
        self.persisted = self.persisted.min(last);
        for open in &mut self.open {
            open.last = open.last.min(last);
        }
    }

    /// Holds a promise until everything written so far, this step's write included, is durable.
    pub fn hold(&mut self, promise: Promise) {
        self.fresh.push(promise);
    }

    /// Ends the step: the write, if there is something to write.
    pub fn issue(&mut self, last: Index, commit_mark: Index, now: Micros) -> Option<Persist> {
        let pending = std::mem::take(&mut self.pending);
        let write = (pending != Pending::default()).then(|| {
            self.issued += 1;
            self.open.push_back(Open {
                seq: self.issued,
                last,
                issued_at: now,
            });
            Persist {
                seq: self.issued,
                hard_state: pending.hard_state,
                snapshot: pending.snapshot,
                truncate_from: pending.truncate_from,
                entries: pending.entries,
                commit_mark,
            }
        });
        let seq = self.issued;
        self.gated
            .extend(self.fresh.drain(..).map(|promise| Gated { seq, promise }));
        write
    }

    /// The disk finished every write up to `seq`. The error is a number that was never issued.
    pub fn complete(&mut self, seq: Seq) -> Result<(), String> {
        if seq > self.issued {
            return Err(format!(
                "write {seq} is reported durable, but only {} were issued",
                self.issued
            ));
        }
        self.done = self.done.max(seq);
        while self.open.front().is_some_and(|open| open.seq <= self.done) {
            if let Some(open) = self.open.pop_front() {
                self.persisted = self.persisted.max(open.last);
            }
        }
        Ok(())
    }

    /// The next promise that has become true.
    pub fn release(&mut self) -> Option<Promise> {
        if self.gated.front()?.seq > self.done {
            return None;
        }
        self.gated.pop_front().map(|gated| gated.promise)
    }

    /// Whether a held promise has become true.
    pub fn can_release(&self) -> bool {
        self.gated.front().is_some_and(|gated| gated.seq <= self.done)
    }

    /// Sets every remembered time to nothing.
    pub fn forget_times(&mut self) {
        for open in &mut self.open {
            open.issued_at = 0;
        }
    }

    /// Promises of terms before `term` interest nobody any more.
    pub fn drop_before(&mut self, term: Term) {
        let keeps = |promise: &Promise| match promise {
            Promise::Send(message) => message.term >= term,
            Promise::OwnVote { term: voted, .. } => *voted >= term,
            Promise::Install(_) => true,
        };
        self.gated.retain(|gated| keeps(&gated.promise));
        self.fresh.retain(keeps);
    }

    /// The campaign is over: its requests need not leave any more.
    pub fn drop_campaign(&mut self) {
        let keeps = |promise: &Promise| match promise {
            Promise::Send(message) => !matches!(message.body, MessageBody::Vote { .. }),
            Promise::OwnVote { .. } => false,
            Promise::Install(_) => true,
        };
        self.gated.retain(|gated| keeps(&gated.promise));
        self.fresh.retain(keeps);
    }

    /// The highest number that something waits for (an invariant: at most `issued`).
    pub fn gated_up_to(&self) -> Seq {
        self.gated.back().map_or(0, |gated| gated.seq)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::EntryKind;

    fn entries(indexes: std::ops::RangeInclusive<Index>) -> Vec<Entry> {
        indexes
            .map(|index| Entry {
                term: 1,
                index,
                kind: EntryKind::Noop,
                data: Bytes::new(),
            })
            .collect()
    }

    #[test]
    fn a_late_completion_does_not_vouch_for_cut_entries() {
        let mut writes = Writes::new(0);
        writes.entries(entries(1..=5));
        assert_eq!(writes.issue(5, 0, 0).unwrap().seq, 1);
        writes.truncate(3);
        writes.entries(entries(3..=4));
        let second = writes.issue(4, 0, 0).unwrap();
        assert_eq!(
            (second.seq, second.truncate_from, second.entries.len()),
            (2, Some(3), 2)
        );
        writes.complete(1).unwrap();
        assert_eq!(writes.persisted(), 2);
        writes.complete(1).unwrap();
        writes.complete(2).unwrap();
        assert_eq!(writes.persisted(), 4);
        writes.complete(1).unwrap();
        assert_eq!((writes.persisted(), writes.done()), (4, 2));
        assert!(writes.complete(3).is_err());
    }

    #[test]
    fn a_promise_waits_for_everything_written_before_it() {
        let mut writes = Writes::new(0);
        let vote = Promise::OwnVote { term: 1, campaign: 1 };
        writes.hard_state(HardState { term: 1, vote: 1 });
        writes.hold(vote.clone());
        writes.issue(0, 0, 0).unwrap();
        assert_eq!(writes.release(), None);
        writes.complete(1).unwrap();
        assert_eq!(writes.release(), Some(vote.clone()));
        assert_eq!(writes.release(), None);
        // Nothing open: a promise is true at once.
        writes.hold(vote.clone());
        assert!(writes.issue(0, 0, 0).is_none());
        assert_eq!(writes.release(), Some(vote));
    }
}
