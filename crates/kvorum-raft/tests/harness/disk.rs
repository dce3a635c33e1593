//! What survives a crash: the log as `Persist` effects describe it, and a state machine with its flushes.

use kvorum_raft::*;

#[derive(Clone, Debug, Default, PartialEq)]
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
        self.entries.get(at as usize)
    }

    /// Carries out a write; its shape is checked.
    pub fn write(&mut self, write: &Persist) {
        if let Some(hard_state) = write.hard_state {
            assert!(hard_state.term >= self.hard_state.term, "the term on disk fell");
            if hard_state.term == self.hard_state.term {
                let vote = self.hard_state.vote;
                assert!(
                    vote == 0 || vote == hard_state.vote,
                    "the vote on disk changed within a term"
                );
            }
            self.hard_state = hard_state;
        }
        if let Some(snapshot) = &write.snapshot {
            assert!(
                snapshot.last.index >= self.base.last.index,
                "the base on disk fell"
            );
            self.entries.retain(|entry| entry.index > snapshot.last.index);
            self.base = snapshot.clone();
        }
        if let Some(from) = write.truncate_from {
            assert!(from > self.base.last.index);
            self.entries.retain(|entry| entry.index < from);
        }
        for entry in &write.entries {
            assert_eq!(entry.index, self.last().index + 1, "a gap on disk");
            assert!(entry.term >= self.last().term && entry.term <= self.hard_state.term);
            self.entries.push(entry.clone());
        }
        if self
            .entries
            .first()
            .is_some_and(|entry| entry.index != self.base.last.index + 1)
        {
            panic!("the log does not continue its base: {write:?}");
        }
        assert!(
            write.commit_mark <= self.last().index,
            "the commit mark is above its own write"
        );
        self.mark = self.mark.max(write.commit_mark);
    }

    pub fn purge(&mut self, meta: &SnapshotMeta) {
        assert_eq!(
            self.term_at(meta.last.index),
            Some(meta.last.term),
            "purged what is not durable"
        );
        self.entries.retain(|entry| entry.index > meta.last.index);
        self.base = meta.clone();
    }

    pub fn read(&self, from: Index, to: Index, bytes_max: usize) -> Vec<Entry> {
        let mut bytes = 0;
        let mut entries = Vec::new();
        for index in from..=to {
            let Some(entry) = self.entry(index) else { break };
            bytes += entry.data.len() + ENTRY_OVERHEAD_BYTES;
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            entries.push(entry.clone());
        }
        entries
    }

    /// What recovery tells the core; with `tail` only the newest entries are read, the others are named.
    pub fn restore(&self, machine: &Machine, tail: Option<usize>) -> Restored {
        let base = machine.install_record.clone().unwrap_or(self.base.clone());
        let mut restored = Restored {
            hard_state: self.hard_state,
            base,
            entries: self.entries.clone(),
            commit_mark: self.mark,
            applied: machine.flushed.last,
            ..Restored::default()
        };
        if let Some(tail) = tail
            && tail > 0
            && tail < restored.entries.len()
        {
            let cut = restored.entries.len() - tail;
            for entry in restored.entries.drain(..cut) {
                if restored.terms.last().is_none_or(|&(_, term)| term != entry.term) {
                    restored.terms.push((entry.index, entry.term));
                }
                if entry.kind == EntryKind::Config {
                    let config = ConfigEntry::decode(&entry.data).unwrap();
                    restored.configs.push((entry.index, config.configuration));
                }
            }
        }
        restored
    }
}

/// A state machine: which entry it has applied last and the configuration there; what of it is durable.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub applied: SnapshotMeta,
    pub flushed: SnapshotMeta,
    /// An installed snapshot that the log was not reset to yet.
    pub install_record: Option<SnapshotMeta>,
}

impl Machine {
    pub fn apply(&mut self, entry: &Entry) {
        assert_eq!(entry.index, self.applied.last.index + 1, "applied out of order");
        self.applied.last = LogId {
            term: entry.term,
            index: entry.index,
        };
        if entry.kind == EntryKind::Config {
            self.applied.configuration = ConfigEntry::decode(&entry.data).unwrap().configuration;
        }
    }

    pub fn install(&mut self, meta: &SnapshotMeta) {
        assert!(meta.last.index > self.applied.last.index, "an install went back");
        self.applied = meta.clone();
        self.flushed = meta.clone();
        self.install_record = Some(meta.clone());
    }

    pub fn log_written(&mut self, write: &Persist) {
        let settles = |record: &mut SnapshotMeta| {
            write
                .snapshot
                .as_ref()
                .is_some_and(|snapshot| snapshot.last.index >= record.last.index)
        };
        self.install_record.take_if(settles);
    }

    pub fn crash(&mut self) {
        self.applied = self.flushed.clone();
    }
}
