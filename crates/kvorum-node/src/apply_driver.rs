//! Carries a replica's state-machine effects out: on the applier's thread in the server, inline in the
//! simulator.
//!
//! Entries are applied in slices that end at the indexes at which digests are compared, so that each replica
//! has its digest at just these.

use kvorum_mvcc::{Applied, ApplyEntry, AuthChange, Payload, RevisionEvents, StateMachine, Store};
use kvorum_raft::{ConfigEntry, Configuration, Entry, EntryKind, LogId, SnapshotMeta};

use crate::housekeeping::DIGEST_INTERVAL;
use crate::interface::{ApplyReport, Housekeeping};
use crate::log_driver::encoded;

/// Applying failed: this member must stop.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// The state machine or its store failed.
    #[error("{0}")]
    Machine(String),
    /// A membership entry in the log cannot be read.
    #[error("membership entry {index} in the log is malformed: {why}")]
    Configuration {
        /// Its index.
        index: u64,
        /// What is wrong.
        why: String,
    },
}

/// What applying gave: answers for callers, events for watchers, progress for the replica.
#[derive(Debug, Default)]
pub struct Applications {
    /// Answers, in log order; each member picks those of its own callers.
    pub replies: Vec<Applied>,
    /// Changes, in revision order.
    pub events: Vec<RevisionEvents>,
    /// What became of tokens, in log order.
    pub auth: Vec<AuthChange>,
    /// Progress.
    pub report: ApplyReport,
}

/// The state machine behind a replica.
#[derive(Debug)]
pub struct ApplyDriver<S: Store> {
    machine: StateMachine<S>,
}

impl<S: Store> ApplyDriver<S> {
    /// Around an open state machine.
    pub fn new(machine: StateMachine<S>) -> Self {
        ApplyDriver { machine }
    }

    /// The state machine.
    pub fn machine(&self) -> &StateMachine<S> {
        &self.machine
    }

    /// The state machine, for maintenance between batches.
    pub fn machine_mut(&mut self) -> &mut StateMachine<S> {
        &mut self.machine
    }

    /// Applies entries that follow the last applied one.
    pub fn apply(&mut self, entries: Vec<Entry>) -> Result<Applications, ApplyError> {
        let mut done = Applications::default();
        let before = self.machine.cluster_version();
        let entries = entries
            .into_iter()
            .map(apply_entry)
            .collect::<Result<Vec<_>, _>>()?;
        let mut rest = entries.as_slice();
        while let Some(first) = rest.first() {
            let to_agreed = DIGEST_INTERVAL - (first.index - 1) % DIGEST_INTERVAL;
            let (slice, tail) = rest.split_at((to_agreed as usize).min(rest.len()));
            let mut outcome = self
                .machine
                .apply(slice)
                .map_err(|error| ApplyError::Machine(error.to_string()))?;
            done.replies.append(&mut outcome.replies);
            done.events.append(&mut outcome.events);
            done.report.leases.append(&mut outcome.leases);
            done.auth.append(&mut outcome.auth);
            let last = slice.last().expect("the slice has a first entry").index;
            if last.is_multiple_of(DIGEST_INTERVAL) {
                done.report.digests.push((last, self.machine.digest()));
            }
            rest = tail;
        }
        self.fill(&mut done.report);
        if self.machine.cluster_version() != before {
            done.report.cluster = Some(self.machine.cluster());
        }
        Ok(done)
    }

    /// Takes the place of the state machine with one opened from an installed snapshot.
    pub fn install(&mut self, machine: StateMachine<S>) -> ApplyReport {
        self.machine.replace(machine);
        let mut report = ApplyReport {
            cluster: Some(self.machine.cluster()),
            all_leases: Some(self.machine.leases()),
            ..ApplyReport::default()
        };
        self.fill(&mut report);
        report
    }

    /// What the leader may propose to remove.
    pub fn housekeeping(&self, time_ms: u64) -> Housekeeping {
        Housekeeping {
            expired_sessions: self.machine.expired_sessions(time_ms),
            compact_to: self.machine.compaction_target(time_ms),
        }
    }

    /// What a snapshot of the state as applied would cover.
    pub fn snapshot_meta(&self) -> Result<SnapshotMeta, ApplyError> {
        Ok(SnapshotMeta {
            last: self.applied(),
            configuration: configuration(&self.machine)?,
        })
    }

    /// The last applied entry.
    pub fn applied(&self) -> LogId {
        let (term, index) = self.machine.applied();
        LogId { term, index }
    }

    /// How far applying and flushing have come.
    pub fn progress(&self) -> ApplyReport {
        let mut report = ApplyReport::default();
        self.fill(&mut report);
        report
    }

    /// The state as it stands.
    pub fn report(&self) -> ApplyReport {
        let mut report = ApplyReport {
            cluster: Some(self.machine.cluster()),
            all_leases: Some(self.machine.leases()),
            ..ApplyReport::default()
        };
        self.fill(&mut report);
        report
    }

    fn fill(&self, report: &mut ApplyReport) {
        report.applied = self.applied();
        report.flushed = self.machine.flushed();
        report.revision = self.machine.revision();
    }
}

/// The configuration that the state machine keeps.
pub(crate) fn configuration<S: Store>(machine: &StateMachine<S>) -> Result<Configuration, ApplyError> {
    let bytes = machine.configuration();
    if bytes.is_empty() {
        return Ok(Configuration::default());
    }
    Configuration::decode(&bytes).map_err(|error| ApplyError::Configuration {
        index: machine.applied().1,
        why: error.to_string(),
    })
}

fn apply_entry(entry: Entry) -> Result<ApplyEntry, ApplyError> {
    let payload = match entry.kind {
        EntryKind::Command => Payload::Command(entry.data),
        EntryKind::Noop => Payload::Noop,
        EntryKind::Config => {
            let config = ConfigEntry::decode(&entry.data).map_err(|error| ApplyError::Configuration {
                index: entry.index,
                why: error.to_string(),
            })?;
            Payload::Config {
                configuration: encoded(&config.configuration),
                context: config.context,
            }
        }
    };
    Ok(ApplyEntry {
        index: entry.index,
        term: entry.term,
        payload,
    })
}
