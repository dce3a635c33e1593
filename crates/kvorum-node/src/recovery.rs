//! From what is on disk to a running replica.
//!
//! The store says what it has applied, the log says the rest; the core checks that they fit (RS2–RS4). A store
//! ahead of its log is legal only right after an install whose log reset a crash prevented: then the store
//! carries an install record, and the log is reset to it here.

use kvorum_mvcc::{StateMachine, Store};
use kvorum_raft::{
    Configuration, EntryKind, Index, LogId, Micros, Raft, Restored, SnapshotMeta, Term, founders_entry,
};
use kvorum_wal::{Base, Disk, Recovered, Wal, WalError, Write};

use crate::apply_driver::{ApplyDriver, ApplyError, configuration};
use crate::interface::Options;
use crate::log_driver::{LogDriver, encoded, entry_from_log, entry_to_log};
use crate::node::Node;

/// Why a replica cannot start from its directory.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The store cannot be read.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Log, store and settings do not fit together.
    #[error("{0}")]
    Start(String),
}

/// A replica with its drivers, ready to step.
pub struct Replica<D: Disk, S: Store> {
    /// The event loop.
    pub node: Node,
    /// Its log.
    pub log: LogDriver<D>,
    /// Its state.
    pub apply: ApplyDriver<S>,
}

/// The first write of a founder's log: the entry that all founders agree on (MB12), and its term, below which
/// the current term never is (RS2).
pub fn founding_write(founders: &[u64]) -> Write {
    let entry = entry_to_log(&founders_entry(founders.iter().copied()));
    Write {
        hard_state: Some(kvorum_wal::HardState {
            term: entry.term,
            vote: 0,
        }),
        entries: vec![entry],
        ..Write::default()
    }
}

/// Assembles a replica from an open log, what it recovered, and an open state machine.
///
/// `install` is the store's install record, if it has one: (index, term) of a snapshot that was installed and
/// to which the log was perhaps not reset yet.
pub fn assemble<D: Disk, S: Store>(
    options: Options,
    mut wal: Wal<D>,
    mut recovered: Recovered,
    machine: StateMachine<S>,
    install: Option<(Index, Term)>,
    now: Micros,
) -> Result<Replica<D, S>, RecoveryError> {
    let (term, index) = machine.applied();
    let applied = LogId { term, index };
    let held = configuration(&machine)?;
    if let Some((index, term)) = install
        && applied == (LogId { term, index })
        && !log_holds(&recovered, applied)
    {
        recovered = reset_log(&mut wal, recovered, applied, &held)?;
    }
    let time_ms = recovered_time(&recovered).max(machine.time_ms());
    let restored = restore(recovered, applied)?;
    let raft = Raft::new(options.raft.clone(), restored, now)
        .map_err(|error| RecoveryError::Start(error.to_string()))?;
    let apply = ApplyDriver::new(machine);
    let report = apply.report();
    let cluster = apply.machine().cluster();
    let node = Node::new(options, raft, report, cluster, time_ms, now);
    Ok(Replica {
        node,
        log: LogDriver::new(wal),
        apply,
    })
}

/// Whether the log has exactly this entry, or begins right after it.
fn log_holds(recovered: &Recovered, id: LogId) -> bool {
    if recovered.base.index == id.index {
        return recovered.base.term == id.term;
    }
    let in_entries = recovered
        .entries
        .iter()
        .any(|entry| entry.index == id.index && entry.term == id.term);
    let below = recovered.entries.first().map_or(0, |entry| entry.index);
    let run = recovered.terms.iter().rev().find(|(first, _)| *first <= id.index);
    in_entries || (id.index < below && run.is_some_and(|(_, term)| *term == id.term))
}

/// Finishes an install that a crash cut between the store's switch and the log's reset.
fn reset_log<D: Disk>(
    wal: &mut Wal<D>,
    recovered: Recovered,
    applied: LogId,
    configuration: &Configuration,
) -> Result<Recovered, RecoveryError> {
    let base = Base {
        index: applied.index,
        term: applied.term,
        configuration: encoded(configuration),
    };
    let term = recovered.hard_state.term.max(applied.term);
    let vote = if term == recovered.hard_state.term {
        recovered.hard_state.vote
    } else {
        0
    };
    let hard_state = kvorum_wal::HardState { term, vote };
    wal.append(&[Write {
        hard_state: Some(hard_state),
        reset: Some(base.clone()),
        commit_mark: applied.index,
        ..Write::default()
    }])?;
    Ok(Recovered {
        hard_state,
        base,
        entries: Vec::new(),
        terms: Vec::new(),
        kinds_kept: Vec::new(),
        last_index: applied.index,
        commit_mark: applied.index,
        ..recovered
    })
}

fn recovered_time(recovered: &Recovered) -> u64 {
    let stamps = recovered
        .entries
        .iter()
        .rev()
        .filter(|entry| entry.kind == EntryKind::Command as u8);
    stamps
        .filter_map(|entry| kvorum_model::Envelope::peek_time(&entry.data).ok())
        .next()
        .unwrap_or(0)
}

fn restore(recovered: Recovered, applied: LogId) -> Result<Restored, RecoveryError> {
    let malformed = |error: kvorum_raft::DecodeError| {
        RecoveryError::Start(format!("the log holds a malformed configuration: {error}"))
    };
    let base_configuration = if recovered.base.configuration.is_empty() {
        Configuration::default()
    } else {
        Configuration::decode(&recovered.base.configuration).map_err(malformed)?
    };
    let mut configs = Vec::new();
    for entry in recovered.kinds_kept {
        let config = kvorum_raft::ConfigEntry::decode(&entry.data).map_err(malformed)?;
        configs.push((entry.index, config.configuration));
    }
    Ok(Restored {
        hard_state: kvorum_raft::HardState {
            term: recovered.hard_state.term,
            vote: recovered.hard_state.vote,
        },
        base: SnapshotMeta {
            last: LogId {
                term: recovered.base.term,
                index: recovered.base.index,
            },
            configuration: base_configuration,
        },
        entries: recovered
            .entries
            .into_iter()
            .map(entry_from_log)
            .collect::<Result<_, _>>()?,
        terms: recovered.terms,
        configs,
        commit_mark: recovered.commit_mark,
        applied,
    })
}
