//! What the clients of a test did and were told: the input of all checkers.
//!
//! A [`History`] is a list of [`Record`]s in the order of their invocation, on top of a [`Base`] (what the
//! store held before). It is written and read as JSON lines, one record a line, so that real processes can
//! leave one behind: keys and values are JSON strings where they are UTF-8 and `{"hex":"00ff"}` otherwise.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Checker, Failure, Kind};

mod text;

/// A key and its value as the store returned it (etcd's `mvccpb.KeyValue` without the lease).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kv {
    /// The key.
    #[serde(with = "text")]
    pub key: Bytes,
    /// The value.
    #[serde(with = "text")]
    pub value: Bytes,
    /// Revision at which the key came into being.
    pub create_revision: u64,
    /// Revision of its last change.
    pub mod_revision: u64,
    /// Changes since it came into being, 1 for the first.
    pub version: u64,
}

/// One change as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A key was put; `mod_revision` is the revision of the event.
    Put(Kv),
    /// A key was deleted.
    Delete {
        /// The key.
        #[serde(with = "text")]
        key: Bytes,
        /// The revision that deleted it.
        revision: u64,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Event::Put(kv) => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }

    /// The revision that changed it.
    pub fn revision(&self) -> u64 {
        match self {
            Event::Put(kv) => kv.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
}

/// The keys from `start` up to, not including, `end`; without an end, all keys from `start` on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The smallest key.
    #[serde(with = "text")]
    pub start: Bytes,
    /// The first key that is no longer in it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::optional")]
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> KeyRange {
        KeyRange {
            start: Bytes::new(),
            end: None,
        }
    }

    /// One key.
    pub fn single(key: impl Into<Bytes>) -> KeyRange {
        let start = key.into();
        let mut end = start.to_vec();
        end.push(0);
        KeyRange {
            start,
            end: Some(end.into()),
        }
    }

    /// From `start` up to, not including, `end`.
    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> KeyRange {
        KeyRange {
            start: start.into(),
            end: Some(end.into()),
        }
    }

    /// Whether a key lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

/// A key and the value that a transaction puts there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pair {
    /// The key.
    #[serde(with = "text")]
    pub key: Bytes,
    /// The value.
    #[serde(with = "text")]
    pub value: Bytes,
}

/// A condition of a transaction: the key has this value, or is absent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Guard {
    /// The key.
    #[serde(with = "text")]
    pub key: Bytes,
    /// The value it must have; `None`: it must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::optional")]
    pub value: Option<Bytes>,
}

/// What a client asked for. Reads are linearizable ones; do not record local reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Put a key.
    Put {
        /// The key.
        #[serde(with = "text")]
        key: Bytes,
        /// The value.
        #[serde(with = "text")]
        value: Bytes,
    },
    /// Delete one key.
    Delete {
        /// The key.
        #[serde(with = "text")]
        key: Bytes,
    },
    /// Read one key.
    Get {
        /// The key.
        #[serde(with = "text")]
        key: Bytes,
    },
    /// If all guards hold, put all pairs in one revision; otherwise do nothing. A key has at most one guard
    /// and one pair.
    Txn {
        /// The conditions, judged before the first put.
        guards: Vec<Guard>,
        /// The puts.
        puts: Vec<Pair>,
    },
    /// Read all keys of a range at one moment, without a limit.
    Range(KeyRange),
}

impl Op {
    /// A put.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Op {
        Op::Put {
            key: key.into(),
            value: value.into(),
        }
    }

    /// A delete of one key.
    pub fn delete(key: impl Into<Bytes>) -> Op {
        Op::Delete { key: key.into() }
    }

    /// A read of one key.
    pub fn get(key: impl Into<Bytes>) -> Op {
        Op::Get { key: key.into() }
    }

    /// Compare and set: puts `value` if the key has the value `expected` (`None`: is absent).
    pub fn cas(key: impl Into<Bytes>, expected: Option<Bytes>, value: impl Into<Bytes>) -> Op {
        let key = key.into();
        Op::Txn {
            guards: vec![Guard {
                key: key.clone(),
                value: expected,
            }],
            puts: vec![Pair {
                key,
                value: value.into(),
            }],
        }
    }

    /// Whether it could change the store.
    pub fn is_write(&self) -> bool {
        match self {
            Op::Put { .. } | Op::Delete { .. } => true,
            Op::Txn { puts, .. } => !puts.is_empty(),
            Op::Get { .. } | Op::Range(_) => false,
        }
    }
}

/// A successful answer. `revision` is that of the answer's header: the write's own revision if it changed
/// something, otherwise the store's revision at which it was judged or read. Surfaces that tell none give 0,
/// which only the linearizability checker accepts (so may they leave out a [`Kv`]'s numbers).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Op::Put`].
    Put {
        /// The write's revision.
        revision: u64,
    },
    /// To [`Op::Delete`].
    Delete {
        /// The write's revision, or the store's if nothing was there.
        revision: u64,
        /// Whether the key was there.
        deleted: bool,
    },
    /// To [`Op::Get`].
    Get {
        /// The store's revision.
        revision: u64,
        /// What was found.
        kv: Option<Kv>,
    },
    /// To [`Op::Txn`].
    Txn {
        /// The write's revision, or the store's if it wrote nothing.
        revision: u64,
        /// Whether the guards held.
        succeeded: bool,
    },
    /// To [`Op::Range`].
    Range {
        /// The store's revision.
        revision: u64,
        /// What was found, in any order.
        kvs: Vec<Kv>,
    },
}

impl Reply {
    /// The header's revision.
    pub fn revision(&self) -> u64 {
        match *self {
            Reply::Put { revision }
            | Reply::Delete { revision, .. }
            | Reply::Get { revision, .. }
            | Reply::Txn { revision, .. }
            | Reply::Range { revision, .. } => revision,
        }
    }

    /// The keys and values that it shows.
    pub fn kvs(&self) -> &[Kv] {
        match self {
            Reply::Get { kv, .. } => kv.as_slice(),
            Reply::Range { kvs, .. } => kvs,
            _ => &[],
        }
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was answered.
    Ok(Reply),
    /// It failed, and certainly took no effect.
    NotApplied,
    /// It failed, or never ended: it may take effect at any time after its invocation, or never.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Who did it (only for people: overlapping operations of one client are fine).
    pub client: u64,
    /// When it was sent, in any monotone unit that all clients of the history share.
    pub invoked: u64,
    /// When it ended; `None`: it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
    /// What was asked.
    pub op: Op,
    /// What came back.
    pub outcome: Outcome,
}

impl Record {
    /// The answer and the time it came, if there was one.
    pub fn answer(&self) -> Option<(u64, &Reply)> {
        match (&self.outcome, self.completed) {
            (Outcome::Ok(reply), Some(completed)) => Some((completed, reply)),
            _ => None,
        }
    }

    /// Whether it changed the store for certain: an acknowledged write that found something to do.
    pub fn changed_the_store(&self) -> bool {
        match self.answer() {
            Some((_, Reply::Put { .. } | Reply::Delete { deleted: true, .. })) => true,
            Some((_, Reply::Txn { succeeded: true, .. })) => self.op.is_write(),
            _ => false,
        }
    }

    /// Whether it is a write that may have taken effect or not.
    pub fn is_maybe_write(&self) -> bool {
        self.outcome == Outcome::Unknown && self.op.is_write()
    }

    fn problem(&self) -> Option<&'static str> {
        if self.completed.is_some_and(|completed| completed < self.invoked) {
            return Some("completed before it was invoked");
        }
        if let Op::Txn { guards, puts } = &self.op {
            let mut keys = BTreeSet::new();
            if !guards.iter().all(|guard| keys.insert(&guard.key)) {
                return Some("two guards on one key");
            }
            keys.clear();
            if !puts.iter().all(|put| keys.insert(&put.key)) {
                return Some("two puts of one key");
            }
        }
        let Outcome::Ok(reply) = &self.outcome else {
            return None;
        };
        if self.completed.is_none() {
            return Some("answered without a completion time");
        }
        match (&self.op, reply) {
            (Op::Put { .. }, Reply::Put { .. }) | (Op::Delete { .. }, Reply::Delete { .. }) => None,
            (Op::Get { key }, Reply::Get { kv, .. }) => kv
                .as_ref()
                .is_some_and(|kv| kv.key != key)
                .then_some("answered with another key"),
            (Op::Txn { guards, .. }, Reply::Txn { succeeded, .. }) => {
                (guards.is_empty() && !succeeded).then_some("failed without a guard")
            }
            (Op::Range(range), Reply::Range { kvs, .. }) => {
                let mut keys = BTreeSet::new();
                if !kvs.iter().all(|kv| range.contains(&kv.key)) {
                    Some("answered with a key outside of the range")
                } else if !kvs.iter().all(|kv| keys.insert(&kv.key)) {
                    Some("answered with one key twice")
                } else {
                    None
                }
            }
            _ => Some("answered with a reply of another kind"),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} [{}, ", self.client, self.invoked)?;
        match self.completed {
            Some(completed) => write!(f, "{completed}] ")?,
            None => write!(f, "…] ")?,
        }
        match &self.op {
            Op::Put { key, value } => write!(f, "put {key:?} = {value:?}")?,
            Op::Delete { key } => write!(f, "delete {key:?}")?,
            Op::Get { key } => write!(f, "get {key:?}")?,
            Op::Range(KeyRange {
                start,
                end: Some(end),
            }) => write!(f, "range {start:?}..{end:?}")?,
            Op::Range(KeyRange { start, end: None }) => write!(f, "range {start:?}..")?,
            Op::Txn { guards, puts } => {
                write!(f, "txn if")?;
                for Guard { key, value } in guards {
                    match value {
                        Some(value) => write!(f, " {key:?} is {value:?}")?,
                        None => write!(f, " {key:?} is absent")?,
                    }
                }
                write!(f, " then put")?;
                for Pair { key, value } in puts {
                    write!(f, " {key:?} = {value:?}")?;
                }
            }
        }
        match &self.outcome {
            Outcome::NotApplied => write!(f, " → not applied"),
            Outcome::Unknown => write!(f, " → unknown"),
            Outcome::Ok(reply) => {
                match reply {
                    Reply::Put { .. } => write!(f, " → ok")?,
                    Reply::Delete { deleted: true, .. } => write!(f, " → deleted")?,
                    Reply::Delete { deleted: false, .. } => write!(f, " → was absent")?,
                    Reply::Txn { succeeded: true, .. } => write!(f, " → succeeded")?,
                    Reply::Txn { succeeded: false, .. } => write!(f, " → guard failed")?,
                    Reply::Get { kv: None, .. } => write!(f, " → absent")?,
                    Reply::Get { kv: Some(kv), .. } => write!(f, " → {}", Brief(kv))?,
                    Reply::Range { kvs, .. } => write!(f, " → {} keys", kvs.len())?,
                }
                write!(f, ", revision {}", reply.revision())
            }
        }
    }
}

/// A value with its numbers, for messages.
pub(crate) struct Brief<'a>(pub(crate) &'a Kv);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kv {
            value,
            create_revision,
            mod_revision,
            version,
            ..
        } = self.0;
        write!(
            f,
            "{value:?} (created {create_revision}, modified {mod_revision}, version {version})"
        )
    }
}

/// What the store held before the first operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The store's revision.
    pub revision: u64,
    /// The live keys.
    pub kvs: Vec<Kv>,
}

impl Default for Base {
    /// An empty store, whose revision is 1.
    fn default() -> Base {
        Base {
            revision: 1,
            kvs: Vec::new(),
        }
    }
}

/// Names an operation of one history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(usize);

impl OpId {
    /// Its position in [`History::records`].
    pub fn position(self) -> usize {
        self.0
    }
}

/// Operations on one store. See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    base: Base,
    records: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Base(Base),
    Op(Record),
}

impl History {
    /// No operations yet, on an empty store.
    pub fn new() -> History {
        History::default()
    }

    /// No operations yet, on a store that already holds something.
    pub fn on(base: Base) -> History {
        History {
            base,
            records: Vec::new(),
        }
    }

    /// What the store held before.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The operations, in the order in which they were recorded.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Records that an operation was sent. Until [`History::complete`] is called it counts as unknown.
    pub fn invoke(&mut self, client: u64, now: u64, op: Op) -> OpId {
        self.push(Record {
            client,
            invoked: now,
            completed: None,
            op,
            outcome: Outcome::Unknown,
        })
    }

    /// Records how an operation ended.
    ///
    /// # Panics
    /// If it has already ended, or ends before it was invoked: the test's bookkeeping is broken.
    pub fn complete(&mut self, id: OpId, now: u64, outcome: Outcome) {
        let record = &mut self.records[id.0];
        assert!(record.completed.is_none(), "operation {} ends twice", id.0);
        assert!(
            record.invoked <= now,
            "operation {} ends before it was invoked",
            id.0
        );
        record.completed = Some(now);
        record.outcome = outcome;
    }

    /// Adds a whole operation.
    pub fn push(&mut self, record: Record) -> OpId {
        self.records.push(record);
        OpId(self.records.len() - 1)
    }

    /// Adds the operations of another history of the same store, timed by the same clock (each thread of a
    /// test keeps its own). The other's base is not looked at.
    pub fn append(&mut self, other: History) {
        self.records.extend(other.records);
    }

    /// Whether each record can be what its operation led to at all; the checkers call it first.
    ///
    /// # Errors
    /// [`Kind::Malformed`], naming the first record that contradicts itself.
    pub fn validate(&self) -> Result<(), Failure> {
        match self
            .records
            .iter()
            .enumerate()
            .find_map(|(at, record)| Some((at, record.problem()?)))
        {
            None => Ok(()),
            Some((at, problem)) => Err(
                Failure::new(Checker::History, Kind::Malformed, problem.to_string())
                    .with_operations(self, vec![at]),
            ),
        }
    }

    /// Writes one JSON object a line: the base, then each record.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_json_lines(&self, mut to: impl Write) -> io::Result<()> {
        let mut line = |line: &Line| {
            serde_json::to_writer(&mut to, line)?;
            to.write_all(b"\n")
        };
        line(&Line::Base(self.base.clone()))?;
        self.records
            .iter()
            .try_for_each(|record| line(&Line::Op(record.clone())))
    }

    /// Reads what [`History::write_json_lines`] wrote. Empty lines are skipped; without a base line the
    /// store was empty; so files of several clients may be concatenated.
    ///
    /// # Errors
    /// Those of the reader, and `InvalidData` with the line's number for a line that is not a record.
    pub fn read_json_lines(from: impl BufRead) -> io::Result<History> {
        let mut history = History::new();
        for (number, line) in from.lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            match serde_json::from_str(&line) {
                Ok(Line::Base(base)) => history.base = base,
                Ok(Line::Op(record)) => history.records.push(record),
                Err(error) => {
                    let message = format!("history, line {}: {error}", number + 1);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
        }
        Ok(history)
    }
}

#[cfg(test)]
mod tests;
