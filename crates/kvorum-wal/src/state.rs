//! What the log says in sum: the state that writes change and that recovery rebuilds.
//!
//! The same transitions check a caller's writes before anything is written and what recovery reads.

use crate::types::{Base, HardState, Write};

/// Invariants: `last_index >= base.index`; the commit mark never falls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    pub hard_state: HardState,
    pub base: Base,
    pub last_index: u64,
    pub commit_mark: u64,
}

impl LogState {
    pub fn reset(&mut self, base: &Base) {
        self.base = base.clone();
        self.last_index = base.index;
    }

    /// The log begins after `base` from now on.
    pub fn purge(&mut self, base: &Base) -> Result<(), String> {
        let (first, last) = (self.base.index, self.last_index);
        if !(first..=last).contains(&base.index) {
            return Err(format!(
                "purge to {}: the log reaches from after {first} to {last}",
                base.index
            ));
        }
        self.base = base.clone();
        Ok(())
    }

    pub fn truncate(&mut self, from: u64) -> Result<(), String> {
        if from <= self.base.index {
            return Err(format!(
                "truncate from {from}: the log begins after {}",
                self.base.index
            ));
        }
        self.last_index = self.last_index.min(from - 1);
        Ok(())
    }

    pub fn append(&mut self, index: u64) -> Result<(), String> {
        if Some(index) != self.last_index.checked_add(1) {
            return Err(format!(
                "append of entry {index}: the log ends at {}",
                self.last_index
            ));
        }
        self.last_index = index;
        Ok(())
    }

    pub fn mark_commit(&mut self, commit_mark: u64) {
        self.commit_mark = self.commit_mark.max(commit_mark);
    }

    pub fn write(&mut self, write: &Write) -> Result<(), String> {
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(base) = &write.reset {
            self.reset(base);
        }
        if let Some(from) = write.truncate_from {
            self.truncate(from)?;
        }
        for entry in &write.entries {
            self.append(entry.index)?;
        }
        self.mark_commit(write.commit_mark);
        Ok(())
    }
}
