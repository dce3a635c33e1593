//! The watch checker: a watcher must see exactly the replayed changes of its range.
//!
//! In order, none twice, none left out, from its start revision to where it stopped; all changes of one
//! revision in one message, in the order in which the revision made them; and after a progress mark nothing
//! of that revision or an earlier one. A watcher that stopped anywhere may have seen any prefix of that,
//! unless it is said to be complete.
//!
//! A revision that nobody saw ([`crate::replay`]'s hidden gaps) is taken as missed only if all unknown writes
//! that could have written it lie in the watcher's range.

use std::ops::RangeInclusive;

use crate::history::{Event, KeyRange, Op};
use crate::replay::Change;
use crate::{Checker, Failure, Kind, Replay};

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Events, of one revision or several.
    Events(Vec<Event>),
    /// Everything up to this revision was sent.
    Progress(u64),
}

/// What a watcher asked for and got. One that was cut off and resumed after its last revision goes on in the
/// same list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    /// Its name (only for messages).
    pub id: u64,
    /// The first revision it wants; above the history's base.
    pub start_revision: u64,
    /// The keys it wants.
    pub range: KeyRange,
    /// The messages in the order in which they came.
    pub received: Vec<Received>,
    /// It ran until it must have seen everything up to this revision; `None`: it stopped anywhere.
    pub complete_to: Option<u64>,
}

impl Watcher {
    /// A watcher that has received nothing yet.
    pub fn new(id: u64, start_revision: u64, range: KeyRange) -> Watcher {
        Watcher {
            id,
            start_revision,
            range,
            received: Vec::new(),
            complete_to: None,
        }
    }

    /// All events received, for [`Replay::with_sightings`].
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.received.iter().flat_map(|received| match received {
            Received::Events(events) => &events[..],
            Received::Progress(_) => &[],
        })
    }
}

/// Checks one watcher. Its events must be among the replay's sightings.
///
/// # Errors
/// A violation naming the revision; malformed if the watcher starts at or before the history's base, or if
/// it saw a revision that the replay was not told of.
pub fn check(replay: &Replay<'_>, watcher: &Watcher) -> Result<(), Failure> {
    let base = replay.history().base().revision;
    if watcher.start_revision <= base {
        let message = format!("watcher {} starts at or before the base, {base}", watcher.id);
        return Err(Failure::new(Checker::Watch, Kind::Malformed, message));
    }
    let mut walk = Walk {
        replay,
        watcher,
        next: watcher.start_revision,
    };
    for received in &watcher.received {
        match received {
            Received::Events(events) => {
                if events.is_empty() {
                    return Err(walk.failure("an empty message", vec![]));
                }
                for group in events.chunk_by(|one, other| one.revision() == other.revision()) {
                    walk.group(group)?;
                }
            }
            Received::Progress(revision) => walk.skip_to(revision.saturating_add(1), "marked as sent")?,
        }
    }
    match watcher.complete_to {
        Some(revision) => walk.skip_to(revision.saturating_add(1), "never sent"),
        None => Ok(()),
    }
}

struct Walk<'a> {
    replay: &'a Replay<'a>,
    watcher: &'a Watcher,
    /// Everything below was received.
    next: u64,
}

impl Walk<'_> {
    /// The events of one revision in one message.
    fn group(&mut self, group: &[Event]) -> Result<(), Failure> {
        let revision = group[0].revision();
        if revision < self.next {
            let message = format!(
                "revision {revision} came again, too late, split, or unasked: the next one due was {}",
                self.next
            );
            return Err(self.failure(&message, self.writers(revision..=revision)));
        }
        self.skip_to(revision, "left out")?;
        let due = match self.replay.log().get(&revision) {
            Some(Change::Known { events, .. }) => events,
            Some(Change::Hidden { .. }) => {
                let message = format!("watcher {} is not among the replay's sightings", self.watcher.id);
                return Err(Failure::new(Checker::Watch, Kind::Malformed, message));
            }
            None => return Err(self.failure(&format!("revision {revision} does not exist"), vec![])),
        };
        let due: Vec<_> = due
            .iter()
            .filter(|event| self.watcher.range.contains(&event.key))
            .collect();
        if due.len() != group.len() || !due.iter().zip(group).all(|(due, event)| due.is(event)) {
            let message = format!("revision {revision} came as {group:?}, but is {due:?}");
            return Err(self.failure(&message, self.writers(revision..=revision)));
        }
        self.next = revision + 1;
        Ok(())
    }

    /// Goes on to `next`: nothing in between may concern the watcher.
    fn skip_to(&mut self, next: u64, how: &str) -> Result<(), Failure> {
        if next <= self.next {
            return Ok(());
        }
        let missed = self
            .replay
            .log()
            .range(self.next..next)
            .find(|(_, change)| self.concerns(change));
        if let Some((&revision, _)) = missed {
            let message = format!("revision {revision} was {how}, but not received");
            return Err(self.failure(&message, self.writers(revision..=revision)));
        }
        self.next = next;
        Ok(())
    }

    /// Whether a change certainly lies in the watcher's range.
    fn concerns(&self, change: &Change) -> bool {
        let range = &self.watcher.range;
        match change {
            Change::Known { events, .. } => events.iter().any(|event| range.contains(&event.key)),
            Change::Hidden { candidates } => {
                candidates
                    .iter()
                    .all(|at| match &self.replay.history().records()[*at].op {
                        Op::Put { key, .. } | Op::Delete { key } => range.contains(key),
                        Op::Txn { puts, .. } => puts.iter().any(|put| range.contains(&put.key)),
                        Op::Get { .. } | Op::Range(_) => false,
                    })
            }
        }
    }

    fn writers(&self, revisions: RangeInclusive<u64>) -> Vec<usize> {
        revisions
            .filter_map(|revision| self.replay.writer(revision))
            .collect()
    }

    fn failure(&self, message: &str, operations: Vec<usize>) -> Failure {
        let Watcher {
            id, start_revision, ..
        } = self.watcher;
        Failure::violation(
            Checker::Watch,
            format!("watcher {id} from revision {start_revision}: {message}"),
        )
        .with_operations(self.replay.history(), operations)
    }
}

#[cfg(test)]
mod tests;
