//! The events of the newest revisions, shared by all watchers.

use std::collections::VecDeque;

use kvorum_model::Revision;

use super::event_bytes;
use crate::machine::RevisionEvents;

/// What a revision takes beside its events.
const REVISION_BYTES: usize = 64;

/// Invariants: revisions follow one another without a gap, up to the newest; `bytes` is their sum.
#[derive(Debug)]
pub(super) struct Ring {
    revisions: VecDeque<RevisionEvents>,
    /// The newest revision, held or not.
    newest: Revision,
    bytes: usize,
    bytes_max: usize,
}

impl Ring {
    /// An empty ring after revision `newest`.
    pub fn new(newest: Revision, bytes_max: usize) -> Self {
        Ring {
            revisions: VecDeque::new(),
            newest,
            bytes: 0,
            bytes_max,
        }
    }

    pub fn newest(&self) -> Revision {
        self.newest
    }

    /// The first revision from which on all are held.
    pub fn first(&self) -> Revision {
        self.newest + 1 - self.revisions.len() as Revision
    }

    pub fn push(&mut self, revision: &RevisionEvents) {
        assert_eq!(
            revision.revision,
            self.newest + 1,
            "revisions are published one after the other"
        );
        self.newest = revision.revision;
        self.bytes += bytes(revision);
        self.revisions.push_back(revision.clone());
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.revisions.pop_front()
        {
            self.bytes -= bytes(&oldest);
        }
    }

    /// A revision that is held.
    pub fn get(&self, revision: Revision) -> Option<&RevisionEvents> {
        let at = usize::try_from(revision - self.first()).ok()?;
        self.revisions.get(at)
    }

    /// Forgets everything, up to revision `newest`.
    pub fn reset(&mut self, newest: Revision) {
        *self = Ring::new(newest, self.bytes_max);
    }
}

fn bytes(revision: &RevisionEvents) -> usize {
    REVISION_BYTES + revision.events.iter().map(event_bytes).sum::<usize>()
}
