//! What must hold after each step, in release builds, too. A broken one stops the core (`Effect::Fatal`).

use crate::interface::Role;
use crate::raft::Raft;
use crate::types::{HardState, Index};

/// What never falls, as it stood after the last step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Floor {
    hard_state: HardState,
    commit: Index,
    applied: Index,
    base: Index,
}

impl Floor {
    pub fn of(raft: &Raft) -> Floor {
        Floor {
            hard_state: raft.hard_state,
            commit: raft.commit,
            applied: raft.applied,
            base: raft.log.base().index,
        }
    }

    /// The error names the broken invariant.
    pub fn check(raft: &Raft) -> Result<(), String> {
        let floor = raft.floor();
        let (base, last) = (raft.log.base(), raft.log.last());
        let persisted = raft.writes.persisted();
        let vote_kept = raft.hard_state.vote == floor.hard_state.vote || floor.hard_state.vote == 0;
        let checks = [
            (raft.hard_state.term >= floor.hard_state.term, "the term fell"),
            (
                raft.hard_state.term > floor.hard_state.term || vote_kept,
                "the vote changed within a term",
            ),
            (raft.commit >= floor.commit, "the commit index fell"),
            (raft.applied >= floor.applied, "the applied index fell"),
            (base.index >= floor.base, "the log's base fell"),
            (
                base.index <= raft.applied,
                "the log's base is above what is applied",
            ),
            (
                raft.applied <= raft.handed,
                "applied is above what was handed out",
            ),
            (
                raft.handed <= raft.commit.min(persisted),
                "handed out is above committed or durable",
            ),
            (
                raft.commit <= last.index,
                "the commit index is above the log's end",
            ),
            (
                last.term <= raft.hard_state.term,
                "the log's end has a later term than the current one",
            ),
            (
                persisted <= last.index,
                "the persisted index is above the log's end",
            ),
            (
                raft.writes.gated_up_to() <= raft.writes.issued(),
                "something waits for a write never issued",
            ),
        ];
        for (holds, name) in checks {
            if !holds {
                return Err(name.into());
            }
        }
        raft.log.check()?;
        Self::check_leader(raft)
    }

    fn check_leader(raft: &Raft) -> Result<(), String> {
        let Some(leader) = raft.as_leader() else {
            return Ok(());
        };
        debug_assert_eq!(raft.role(), Role::Leader);
        let uncommitted = raft
            .log
            .configurations()
            .rev()
            .take_while(|(index, _)| *index > raft.commit)
            .count();
        if uncommitted > 1 {
            return Err("a leader has two uncommitted configurations".into());
        }
        if raft.log.configuration().voters.is_empty() {
            return Err("a leader's configuration has no voters".into());
        }
        let (messages_max, bytes_max) = (raft.options.window_messages, raft.options.window_bytes);
        for (id, peer) in &leader.peers {
            peer.check(raft.log.last().index, messages_max, bytes_max)
                .map_err(|why| format!("peer {id}: {why}"))?;
        }
        Ok(())
    }
}
