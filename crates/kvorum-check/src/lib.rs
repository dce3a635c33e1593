//! Histories and the checkers that judge them.
//!
//! A test records what its clients did as a [`History`]; four checkers, each independent of the others,
//! then say whether a correct store could have answered like that:
//!
//! | module | question | believes revisions |
//! |---|---|---|
//! | [`linear`] | is there one order of the operations, within real time, that explains every answer? | no |
//! | [`replay`] | do the revisions of the answers name such an order, and do versions and values follow from it? | yes |
//! | [`watch`] | did a watcher see exactly the changes of that order? | yes |
//! | [`digest`] | did all members compute the same state? | – |
//!
//! [`Evidence::check`] runs them all. The rules common to all of them:
//!
//! - A write that ended in an error which does not say "not applied" counts as *maybe*: it may take effect
//!   at any time after its invocation, once, or never.
//! - Times only say what came before what: one operation precedes another when it completed at a time
//!   strictly smaller than the other's invocation. Equal times count as concurrent, so that a coarse clock
//!   never raises a false alarm (and hides nothing if the caller stamps events with a counter).
//! - A check that cannot decide has failed ([`Kind::Undecided`]).
//! - No checker raises a false alarm; what each may miss is said in its module.
//!
//! This crate knows neither the network nor the store: it depends on no other crate of the workspace.

pub mod digest;
pub mod history;
pub mod linear;
pub mod replay;
pub mod watch;

#[cfg(test)]
mod testkit;

use std::fmt;

pub use bytes::Bytes;
pub use digest::compare_digests;
pub use history::{Base, Event, Guard, History, KeyRange, Kv, Op, OpId, Outcome, Pair, Record, Reply};
pub use linear::Limits;
pub use replay::Replay;
pub use watch::{Received, Watcher};

/// Which checker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checker {
    /// The history itself contradicts its own rules.
    History,
    /// [`linear`].
    Linear,
    /// [`replay`].
    Replay,
    /// [`watch`].
    Watch,
    /// [`digest`].
    Digest,
}

/// What sort of failure it is. All of them fail a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No correct store could have answered like this.
    Violation,
    /// A bound was reached before the answer was known.
    Undecided,
    /// The input is not what the checker expects: a mistake of the test, or an answer of the wrong shape.
    Malformed,
}

/// A failed check, with an explanation for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Who found it.
    pub checker: Checker,
    /// How it failed.
    pub kind: Kind,
    /// The key it is about, if it is about one.
    pub key: Option<Bytes>,
    /// What is wrong, several lines where operations are listed.
    pub message: String,
    /// Positions in the history of the operations that show it.
    pub operations: Vec<usize>,
}

impl Failure {
    pub(crate) fn new(checker: Checker, kind: Kind, message: String) -> Failure {
        Failure {
            checker,
            kind,
            key: None,
            message,
            operations: Vec::new(),
        }
    }

    pub(crate) fn violation(checker: Checker, message: String) -> Failure {
        Failure::new(checker, Kind::Violation, message)
    }

    pub(crate) fn on_key(mut self, key: &Bytes) -> Failure {
        self.key = Some(key.clone());
        self
    }

    /// Names the operations, and lists them below the message.
    pub(crate) fn with_operations(mut self, history: &History, operations: Vec<usize>) -> Failure {
        for &at in &operations {
            self.message
                .push_str(&format!("\n  #{at} {}", history.records()[at]));
        }
        self.operations = operations;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} check: {:?}", self.checker, self.kind)?;
        if let Some(key) = &self.key {
            write!(f, ", key {key:?}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Failure {}

/// What one member holds at the end of a run, after it was healed and has converged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinalState {
    /// Which member (only for messages).
    pub member: u64,
    /// The store's revision when the state was read.
    pub revision: u64,
    /// Every live key.
    pub kvs: Vec<Kv>,
}

/// All that a run left behind.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What the clients did. For the replay it must hold every write to the store after its base.
    pub history: &'a History,
    /// What the watchers saw.
    pub watchers: &'a [Watcher],
    /// The state of each member at the end.
    pub finals: &'a [FinalState],
    /// (member, log index, chained digest of the state after applying it).
    pub digests: &'a [(u64, u64, u128)],
    /// Bounds of the linearizability search.
    pub limits: Limits,
}

impl<'a> Evidence<'a> {
    /// A history alone; fill in the other fields as the run has them.
    pub fn new(history: &'a History) -> Evidence<'a> {
        Evidence {
            history,
            watchers: &[],
            finals: &[],
            digests: &[],
            limits: Limits::default(),
        }
    }

    /// Runs every checker.
    ///
    /// # Errors
    /// All failures found, each checker stopping at its first one; never an empty list.
    pub fn check(&self) -> Result<(), Vec<Failure>> {
        let mut failures = Vec::new();
        failures.extend(linear::check(self.history, &self.limits).err());
        failures.extend(compare_digests(self.digests).err());
        let sightings: Vec<Event> = self.watchers.iter().flat_map(Watcher::events).cloned().collect();
        match Replay::with_sightings(self.history, &sightings) {
            Ok(replay) => {
                for end in self.finals {
                    failures.extend(
                        replay
                            .check_final(end.revision, &end.kvs)
                            .err()
                            .map(|mut failure| {
                                failure.message =
                                    format!("final state of member {}: {}", end.member, failure.message);
                                failure
                            }),
                    );
                }
                failures.extend(
                    self.watchers
                        .iter()
                        .filter_map(|watcher| watch::check(&replay, watcher).err()),
                );
            }
            Err(failure) => failures.push(failure),
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }
}
