//! Removal of compacted history, in the background and in bounded steps.
//!
//! Compaction at N makes unreadable every version that a change at or before N followed, and every deletion before
//! N. A change's history record names the change before it, so one walk over the records up to N finds them all:
//! nothing is searched, and a step may be repeated. Records before N go, too; those of N stay, as a watch may begin
//! there, and are walked again by the next compaction.
//!
//! The mark is this member's own. It and the removed records are all of the store that replicas may differ in.

use std::ops::Bound;

use bytes::Bytes;
use kvorum_model::{EventKind, Revision};

use crate::layout::{data_key, history_key, read_change};
use crate::state::{Fields, REMOVAL_KEY};
use crate::store::{StoreError, View};

/// Most records of one step, whatever the rate limit allows.
pub(super) const STEP_RECORDS_MAX: u64 = 1000;

/// How far removal has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Removal {
    /// The last compaction that is done.
    removed: Revision,
    /// The first change that is not walked over under the compaction at `target`.
    next: Position,
    /// The compaction that is going on, or the last one.
    target: Revision,
    /// When the allowance was last paid out, on the caller's clock.
    paid_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    main: Revision,
    sub: u32,
}

/// What a step is to write, and where it leads.
pub(super) struct Step {
    pub writes: Vec<(Bytes, Option<Bytes>)>,
    walked: usize,
    removed: Revision,
    next: Position,
    target: Revision,
}

impl Removal {
    pub fn load(view: &impl View) -> Result<Removal, StoreError> {
        let Some(record) = view.get(&REMOVAL_KEY)? else {
            return Ok(Removal::default());
        };
        let mut fields = Fields(&record);
        let removed = fields.u64()? as Revision;
        let next = Position {
            main: fields.u64()? as Revision,
            sub: fields.u32()?,
        };
        fields.end()?;
        Ok(Removal {
            removed,
            next,
            target: next.main,
            paid_ms: None,
        })
    }

    /// Compactions up to this revision are done.
    pub fn removed(&self) -> Revision {
        self.removed
    }

    pub fn is_pending(&self, compacted: Revision) -> bool {
        self.removed < compacted
    }

    /// How many records may go now: what the rate gives for the time since the last call, at most a step.
    pub fn allowance(&mut self, now_ms: u64, per_second: u64) -> usize {
        let elapsed_ms = self.paid_ms.map_or(1000, |paid| now_ms.saturating_sub(paid));
        let records = (elapsed_ms.saturating_mul(per_second) / 1000).min(STEP_RECORDS_MAX);
        if records > 0 {
            self.paid_ms = Some(now_ms);
        }
        records as usize
    }

    /// Plans a step over at most `records_max` records. The caller writes it, then calls [`Removal::done`].
    pub fn step(
        &self,
        view: &impl View,
        compacted: Revision,
        records_max: usize,
    ) -> Result<Option<Step>, StoreError> {
        if !self.is_pending(compacted) || records_max == 0 {
            return Ok(None);
        }
        // The changes of the last target itself are walked over again: now they may go, too.
        let from = if compacted == self.target {
            self.next
        } else {
            self.next.min(first_of(self.target))
        };
        let mut step = Step {
            writes: Vec::new(),
            walked: 0,
            removed: compacted,
            next: from,
            target: compacted,
        };
        let changes = view.range(
            Bound::Included(history_key(from.main, from.sub)),
            Bound::Excluded(history_key(compacted + 1, 0)),
        );
        for item in changes {
            let (key, record) = item?;
            let change = read_change(&key, &record)?;
            if step.walked >= records_max {
                step.removed = self.removed;
                break;
            }
            step.walked += 1;
            step.next = Position {
                main: change.main,
                sub: change.sub + 1,
            };
            if change.prev > 0 {
                step.writes.push((data_key(&change.key, change.prev), None));
            }
            if change.main < compacted {
                step.writes.push((key, None));
                if change.kind == EventKind::Delete {
                    step.writes.push((data_key(&change.key, change.main), None));
                }
            }
        }
        // In the store the mark never passes the target's first change: a restart knows no target.
        let mark = step.next.min(first_of(compacted));
        let mut record = Vec::with_capacity(20);
        record.extend_from_slice(&step.removed.to_le_bytes());
        record.extend_from_slice(&mark.main.to_le_bytes());
        record.extend_from_slice(&mark.sub.to_le_bytes());
        step.writes.push((REMOVAL_KEY, Some(record.into())));
        Ok(Some(step))
    }

    /// The step is written; how many records it walked over.
    pub fn done(&mut self, step: Step) -> usize {
        (self.removed, self.next, self.target) = (step.removed, step.next, step.target);
        step.walked
    }
}

fn first_of(main: Revision) -> Position {
    Position { main, sub: 0 }
}
