//! What survives a crash of a modelled member: the log as `Persist` effects describe it, and a state machine
//! with its flushes. Writes are carried out in order, each whole or not at all.

use kvorum_raft::*;

use crate::ledger::Broken;

/// The log on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Disk {
    pub hard_state: HardState,
    pub base: SnapshotMeta,
    /// Above the base.
    pub entries: Vec<Entry>,
    pub mark: Index,
}

impl Disk {
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.base.last, |entry| LogId {
            term: entry.term,
            index: entry.index,
        })
    }

    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.last.index {
            return Some(self.base.last.term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    pub fn entry(&self, index: Index) -> Option<&Entry> {
        let at = index.checked_sub(self.entries.first()?.index)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// Carries out a write. One that makes no sense is the core's fault.
    pub fn write(&mut self, write: &Persist) -> Result<(), Broken> {
        if let Some(next) = write.hard_state {
            let now = self.hard_state;
            let votes_twice = next.term == now.term && now.vote != 0 && next.vote != now.vote;
            if next.term < now.term || votes_twice {
                return Err(Broken::WriteShape);
            }
            self.hard_state = next;
        }
        if let Some(snapshot) = &write.snapshot {
            if snapshot.last.index < self.base.last.index {
                return Err(Broken::WriteShape);
            }
            self.entries.retain(|entry| entry.index > snapshot.last.index);
            self.base = snapshot.clone();
        }
        if let Some(from) = write.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        for entry in &write.entries {
            let last = self.last();
            if entry.index != last.index + 1 || entry.term < last.term || entry.term > self.hard_state.term {
                return Err(Broken::WriteShape);
            }
            self.entries.push(entry.clone());
        }
        let begins = self.entries.first().map(|entry| entry.index);
        if begins.is_some_and(|index| index != self.base.last.index + 1)
            || write.commit_mark > self.last().index
        {
            return Err(Broken::WriteShape);
        }
        self.mark = self.mark.max(write.commit_mark);
        Ok(())
    }

    /// The log forgets what lies below `meta`, which the state machine holds.
    pub fn purge(&mut self, meta: &SnapshotMeta) -> Result<(), Broken> {
        if self.term_at(meta.last.index) != Some(meta.last.term) {
            return Err(Broken::PurgedWhatIsNotDurable);
        }
        self.entries.retain(|entry| entry.index > meta.last.index);
        self.base = meta.clone();
        Ok(())
    }

    pub fn read(&self, from: Index, to: Index) -> Vec<Entry> {
        (from..=to)
            .map_while(|index| self.entry(index).cloned())
            .collect()
    }

    /// What recovery tells the core.
    pub fn restore(&self, machine: &Machine) -> Restored {
        Restored {
            hard_state: self.hard_state,
            base: machine
                .install_record
                .clone()
                .unwrap_or_else(|| self.base.clone()),
            entries: self.entries.clone(),
            commit_mark: self.mark,
            applied: machine.flushed.last,
            ..Restored::default()
        }
    }
}

/// A state machine: which entry it has applied last, the configuration there, and what of it is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Machine {
    pub applied: SnapshotMeta,
    pub flushed: SnapshotMeta,
    /// An installed snapshot that the log was not reset to yet.
    pub install_record: Option<SnapshotMeta>,
}

impl Machine {
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Broken> {
        if entry.index != self.applied.last.index + 1 {
            return Err(Broken::AppliedOutOfOrder);
        }
        self.applied.last = LogId {
            term: entry.term,
            index: entry.index,
        };
        if entry.kind == EntryKind::Config {
            let config = ConfigEntry::decode(&entry.data).map_err(|_| Broken::WriteShape)?;
            self.applied.configuration = config.configuration;
        }
        Ok(())
    }

    pub fn install(&mut self, meta: &SnapshotMeta) {
        self.applied = meta.clone();
        self.flushed = meta.clone();
        self.install_record = Some(meta.clone());
    }

    /// The log was reset: the record of the install is no longer needed.
    pub fn log_written(&mut self, write: &Persist) {
        let covers = |record: &mut SnapshotMeta| {
            let snapshot = write.snapshot.as_ref();
            snapshot.is_some_and(|snapshot| snapshot.last.index >= record.last.index)
        };
        self.install_record.take_if(covers);
    }

    pub fn crash(&mut self) {
        self.applied = self.flushed.clone();
    }
}
