//! Carries a replica's log effects out on the log: on the log writer's thread in the server, inline in the
//! simulator. Everything that waits is written as one batch with one fsync.

use std::collections::VecDeque;

use bytes::Bytes;
use kvorum_raft::{Configuration, Entry, EntryKind, Index, Persist, Seq, SnapshotMeta};
use kvorum_wal::{Base, Disk, HardState, Wal, WalError, WalReader, Write};

/// The log behind a replica.
pub struct LogDriver<D: Disk> {
    wal: Wal<D>,
}

impl<D: Disk> LogDriver<D> {
    /// Around an open log.
    pub fn new(wal: Wal<D>) -> Self {
        LogDriver { wal }
    }

    /// Writes everything that waits, in order; on return it is durable up to the returned number.
    ///
    /// # Errors
    /// [`WalError::NoSpace`]: nothing of what is left in `persists` was written; the same may be tried again.
    /// After any other error nothing may be written or acknowledged any more.
    pub fn write(&mut self, persists: &mut VecDeque<Persist>) -> Result<Seq, WalError> {
        let last = persists.back().expect("a batch is not empty").seq;
        while !persists.is_empty() {
            // A snapshot changes what the log is; it is written by itself, so that `kept_base` sees the log as it is.
            let plain = persists
                .iter()
                .take_while(|persist| persist.snapshot.is_none())
                .count();
            let count = plain.max(1);
            let kept = if plain == 0 {
                self.kept_base(&persists[0])
            } else {
                None
            };
            let mut writes: Vec<Write> = persists.iter().take(count).map(write_of).collect();
            if kept.is_some() {
                writes[0].reset = None;
            }
            self.wal.append(&writes)?;
            if let Some(base) = kept {
                self.wal.purge(base)?;
            }
            persists.drain(..count);
        }
        Ok(last)
    }

    /// The base of a snapshot inside the log: what follows it stays, so the log is purged and not reset.
    fn kept_base(&self, persist: &Persist) -> Option<Base> {
        let meta = persist.snapshot.as_ref()?;
        let keeps = persist.truncate_from.is_none() && self.wal.stats().last_index > meta.last.index;
        keeps.then(|| base_of(meta))
    }

    /// Forgets the log up to `base`.
    pub fn purge(&mut self, base: &SnapshotMeta) -> Result<(), WalError> {
        self.wal.purge(base_of(base))
    }

    /// Ends a clean stop: proves the last batch durable, so that damage to it is told from a torn tail.
    pub fn close(self) -> Result<(), WalError> {
        self.wal.close()
    }

    /// The log itself: claims space ahead, tells figures.
    pub fn wal(&mut self) -> &mut Wal<D> {
        &mut self.wal
    }

    /// A reader that works beside the writer.
    pub fn reader(&self) -> LogReader<D> {
        LogReader {
            reader: self.wal.reader(),
        }
    }
}

/// Reads the log beside its writer.
#[derive(Clone)]
pub struct LogReader<D: Disk> {
    reader: WalReader<D>,
}

impl<D: Disk> LogReader<D> {
    /// Entries from `from` on, at least one, up to `to` and about `bytes_max` bytes.
    pub fn fetch(&self, from: Index, to: Index, bytes_max: usize) -> Result<Vec<Entry>, WalError> {
        let entries = self.reader.read(from, to, bytes_max)?;
        entries.into_iter().map(entry_from_log).collect()
    }
}

fn write_of(persist: &Persist) -> Write {
    Write {
        hard_state: persist.hard_state.map(|state| HardState {
            term: state.term,
            vote: state.vote,
        }),
        reset: persist.snapshot.as_ref().map(base_of),
        truncate_from: persist.truncate_from,
        entries: persist.entries.iter().map(entry_to_log).collect(),
        commit_mark: persist.commit_mark,
    }
}

fn base_of(meta: &SnapshotMeta) -> Base {
    Base {
        index: meta.last.index,
        term: meta.last.term,
        configuration: encoded(&meta.configuration),
    }
}

/// A configuration's bytes.
pub(crate) fn encoded(configuration: &Configuration) -> Bytes {
    let mut bytes = Vec::new();
    configuration.encode(&mut bytes);
    bytes.into()
}

/// An entry as the log keeps it.
pub(crate) fn entry_to_log(entry: &Entry) -> kvorum_wal::Entry {
    kvorum_wal::Entry {
        index: entry.index,
        term: entry.term,
        kind: entry.kind as u8,
        data: entry.data.clone(),
    }
}

/// An entry as the core knows it.
pub(crate) fn entry_from_log(entry: kvorum_wal::Entry) -> Result<Entry, WalError> {
    let kind = match entry.kind {
        0 => EntryKind::Command,
        1 => EntryKind::Config,
        2 => EntryKind::Noop,
        kind => {
            return Err(WalError::Invalid(format!(
                "entry {} has the unknown kind {kind}: upgrade this member",
                entry.index
            )));
        }
    };
    Ok(Entry {
        term: entry.term,
        index: entry.index,
        kind,
        data: entry.data,
    })
}
