//! Replay by revision: the answers name the order of the writes; everything else must follow from it.
//!
//! In one pass over the whole history, in the order of the revisions, this checks that
//! - every acknowledged write has a revision of its own (the puts of one transaction share theirs);
//! - real time is respected: what was invoked after another operation completed has a header revision at
//!   least as large, and a larger one if it wrote;
//! - every revision has a writer: a gap needs a write of unknown outcome, another one for each gap, invoked
//!   before anybody was told of that revision;
//! - values, create and mod revisions, versions, guards and "was absent" are those of the replayed store at
//!   the answer's revision, reads of several keys included.
//!
//! The history must hold every write to the store since its base.
//!
//! **Gaps.** If somebody saw what a gap wrote (an answer, a watcher, the final state), its writer is looked
//! for among the unknown writes of just that. Otherwise the gap stays *hidden*: a key that an unknown write
//! could have changed there has from then on several possible states (`possible.rs`), of which later answers
//! strike out those that contradict them; none left is a violation. The possible states of different keys are
//! kept apart, and which unknown write filled a hidden gap is not tracked, only how many there are of the key
//! (and, when gaps are counted, in all): with hidden gaps some violations pass, but nothing correct is
//! flagged. Watchers' events given as sightings leave no gap hidden that a watcher saw. Where several unknown
//! writes could have written what was seen, they are tried in turn, up to [`ATTEMPTS_MAX`] times; then the
//! verdict is undecided. Tests that write every value only once never come there.

use std::collections::BTreeMap;

use crate::history::{Event, Kv};
use crate::{Checker, Failure, History, Kind};

mod possible;
mod run;

pub(crate) use possible::Expected;
use run::Run;

/// Replays of one history with other writers for its ambiguous gaps.
pub const ATTEMPTS_MAX: usize = 200;

/// What happened at a revision.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// An operation wrote it.
    Known {
        /// The operation's position in the history.
        writer: usize,
        /// What a watcher of all keys must see.
        events: Vec<Expected>,
    },
    /// One of these unknown writes did, and nobody saw what.
    Hidden { candidates: Vec<usize> },
}

/// A history that was replayed without finding a violation.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    history: &'a History,
    sightings: Vec<Event>,
    revision: u64,
    log: BTreeMap<u64, Change>,
}

impl<'a> Replay<'a> {
    /// Replays a history by itself.
    ///
    /// # Errors
    /// The first violation found, or a history that cannot be replayed (an answer without a revision).
    pub fn new(history: &'a History) -> Result<Replay<'a>, Failure> {
        Replay::with_sightings(history, &[])
    }

    /// Replays a history, with what watchers saw as further evidence. To check a watcher afterwards
    /// ([`crate::watch::check`]) its events must be among the sightings; events up to the base are ignored.
    ///
    /// # Errors
    /// As [`Replay::new`].
    pub fn with_sightings(history: &'a History, sightings: &[Event]) -> Result<Replay<'a>, Failure> {
        Replay::attempt(history, sightings.to_vec(), None)
    }

    /// Checks the state of the store at the end: each key with its value, revisions and version must be what
    /// the replay leaves; so every acknowledged write is found, or was overwritten or deleted by a later one.
    /// `revision` is that of the answer that showed the state.
    ///
    /// # Errors
    /// A violation that names the key and its last writer.
    pub fn check_final(&self, revision: u64, kvs: &[Kv]) -> Result<(), Failure> {
        let mut sightings = self.sightings.clone();
        sightings.extend(kvs.iter().cloned().map(Event::Put));
        Replay::attempt(self.history, sightings, Some((revision, kvs))).map(|_| ())
    }

    /// The newest revision that anyone was told of.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Position in the history of the operation that wrote a revision; `None` if that is not known.
    pub fn writer(&self, revision: u64) -> Option<usize> {
        match self.log.get(&revision)? {
            Change::Known { writer, .. } => Some(*writer),
            Change::Hidden { .. } => None,
        }
    }

    pub(crate) fn history(&self) -> &History {
        self.history
    }

    pub(crate) fn log(&self) -> &BTreeMap<u64, Change> {
        &self.log
    }

    /// Replays until one choice of writers for the ambiguous gaps works, last choice first.
    fn attempt(
        history: &'a History,
        sightings: Vec<Event>,
        end: Option<(u64, &[Kv])>,
    ) -> Result<Replay<'a>, Failure> {
        history.validate()?;
        let mut choices: Vec<usize> = Vec::new();
        let mut first_failure = None;
        for _ in 0..ATTEMPTS_MAX {
            let mut run = Run::gather(history, &sightings, end, &choices)?;
            let failure = match run.replay() {
                Ok(()) => {
                    let (revision, log) = run.into_log();
                    return Ok(Replay {
                        history,
                        sightings,
                        revision,
                        log,
                    });
                }
                Err(failure) => failure,
            };
            // Count up: the last choice point that has an option left takes it, those after it start anew.
            let mut options = run.options();
            while options.pop_if(|(taken, count)| *taken + 1 == *count).is_some() {}
            let first_failure = first_failure.get_or_insert(failure);
            let Some((taken, _)) = options.last_mut() else {
                return Err(first_failure.clone());
            };
            *taken += 1;
            choices = options.into_iter().map(|(taken, _)| taken).collect();
        }
        let mut failure = first_failure.expect("every attempt failed");
        failure.kind = Kind::Undecided;
        failure.message = format!(
            "gave up after {ATTEMPTS_MAX} attempts; in the first: {}",
            failure.message
        );
        Err(failure)
    }
}

fn violation(history: &History, message: String, operations: Vec<usize>) -> Failure {
    Failure::violation(Checker::Replay, message).with_operations(history, operations)
}

#[cfg(test)]
mod tests;
