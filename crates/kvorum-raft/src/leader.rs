//! What only a leader has, and what it does each step and each tick.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::interface::{Effect, RefuseReason};
use crate::log::entry_bytes;
use crate::message::MessageBody;
use crate::progress::{Progress, Stream, Transfer};
use crate::raft::{Raft, State};
use crate::reads::LeaderReads;
use crate::transfer::Handover;
use crate::types::{Entry, EntryKind, Index, MemberId, Micros, Token};

/// State of a leader; gone with its role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leader {
    pub elected_at: Micros,
    /// Its first entry: before that commits nothing else does, is read, or reconfigures (EL13).
    pub first_own: Index,
    pub peers: BTreeMap<MemberId, Progress>,
    pub heartbeat_at: Micros,
    /// Appended and not committed.
    batches: VecDeque<Batch>,
    uncommitted_bytes: u64,
    pub reads: LeaderReads,
    pub transfer: Option<Handover>,
}

/// Entries that were appended together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Batch {
    last: Index,
    bytes: u64,
    token: Option<Token>,
}

impl Leader {
    /// A leader that was just elected.
    pub fn new(raft: &mut Raft) -> Leader {
        let last = raft.log.last().index;
        let mut peers = BTreeMap::new();
        for id in raft.members_to_feed() {
            raft.epoch += 1;
            peers.insert(id, Progress::new(last, raft.epoch));
        }
        // What predecessors left is counted anew (LG6).
        let bytes = raft.log.cached_bytes_above(raft.commit);
        Leader {
            elected_at: raft.clock.now,
            first_own: last + 1,
            peers,
            heartbeat_at: raft.clock.now + raft.options.heartbeat_interval,
            batches: VecDeque::from([Batch {
                last,
                bytes,
                token: None,
            }]),
            uncommitted_bytes: bytes,
            reads: LeaderReads::default(),
            transfer: None,
        }
    }

    /// A vote is an answer to something sent in this term (EL12).
    pub fn count_votes_as_contact(&mut self, granted: &BTreeSet<MemberId>, now: Micros) {
        for (id, progress) in &mut self.peers {
            if granted.contains(id) {
                progress.contact = Some(now);
            }
        }
    }

    /// Whether a quorum answered less than `within` ago.
    pub fn has_live_quorum(&self, raft: &Raft, within: Micros) -> bool {
        raft.log
            .configuration()
            .has_quorum(|id| self.is_live(raft, id, within))
    }

    /// Whether this voter answered less than `within` ago; the leader itself always did.
    pub fn is_live(&self, raft: &Raft, id: MemberId, within: Micros) -> bool {
        let now = raft.clock.now;
        id == raft.options.id
            || self.peers.get(&id).is_some_and(|peer| {
                !peer.lost_data && peer.contact.is_some_and(|at| now.saturating_sub(at) < within)
            })
    }

    /// Entries up to `commit` are no longer uncommitted.
    fn commit_batches(&mut self, commit: Index) {
        while self.batches.front().is_some_and(|batch| batch.last <= commit) {
            if let Some(batch) = self.batches.pop_front() {
                self.uncommitted_bytes -= batch.bytes;
            }
        }
    }

    /// Bytes appended and not committed (LG6).
    pub fn uncommitted_bytes(&self) -> u64 {
        self.uncommitted_bytes
    }

    pub fn forget_times(&mut self) {
        self.elected_at = 0;
        self.heartbeat_at = 0;
        self.reads.forget_times();
        if let Some(transfer) = &mut self.transfer {
            transfer.deadline = 0;
        }
        for peer in self.peers.values_mut() {
            peer.contact = peer.contact.map(|_| 0);
            if let Stream::Snapshot(Transfer::Sent(_, deadline)) = &mut peer.stream {
                *deadline = 0;
            }
        }
    }
}

impl Raft {
    pub(crate) fn as_leader(&self) -> Option<&Leader> {
        match &self.state {
            State::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    pub(crate) fn as_leader_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.state {
            State::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    /// Whether an entry of the leader's own term is committed (EL13).
    pub(crate) fn has_committed_own_term(&self) -> bool {
        self.as_leader()
            .is_some_and(|leader| self.commit >= leader.first_own)
    }

    /// What follows, for a leader, from whatever happened in this step.
    pub(crate) fn drive_leader(&mut self) {
        if !self.is_leader() {
            return;
        }
        self.advance_commit();
        if self.leave_joint() {
            // The final configuration counts at once: its quorum may hold more than both halves did.
            self.advance_commit();
        }
        self.feed_peers();
        self.serve_reads();
        self.retire_peers();
        self.leave_leadership_if_outside();
        self.drive_transfer();
    }

    pub(crate) fn tick_leader(&mut self) {
        let now = self.clock.now;
        let Some(leader) = self.as_leader() else { return };
        let patience = match self.options.check_quorum {
            0 => self.clock.t_max(),
            patience => patience,
        };
        if now - leader.elected_at >= patience && !leader.has_live_quorum(self, patience) {
            return self.become_follower(self.hard_state.term, 0);
        }
        self.hand_over_if_disk_stalls();
        self.give_up_transfer_in_time();
        if self.as_leader().is_some_and(|leader| now >= leader.heartbeat_at) {
            self.purge();
            self.heartbeat_all();
        }
    }

    /// A heartbeat to everyone, which is a read round, too (RD2).
    fn heartbeat_all(&mut self) {
        let keep = self.needed_above().unwrap_or(0);
        let (now, interval) = (self.clock.now, self.options.heartbeat_interval);
        let confirmed = self.confirmed_round();
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        leader.heartbeat_at = now + interval;
        leader.reads.start_round(now, confirmed);
        let everyone: Vec<MemberId> = leader.peers.keys().copied().collect();
        self.send_heartbeats(&everyone, keep);
    }

    /// Heartbeats of the newest round (FL1: they never wait for entries).
    pub(crate) fn send_heartbeats(&mut self, to: &[MemberId], keep: Index) {
        let State::Leader(leader) = &mut self.state else {
            return;
        };
        let round = leader.reads.round();
        for id in to {
            let Some(peer) = leader.peers.get_mut(id) else {
                continue;
            };
            let commit = self.commit.min(peer.counted_match());
            peer.told_commit = peer.told_commit.max(commit);
            let body = MessageBody::Heartbeat {
                epoch: peer.epoch,
                round,
                commit,
                keep,
            };
            self.outbox.send(*id, self.hard_state.term, body);
        }
    }

    pub(crate) fn propose(&mut self, token: Token, commands: Vec<Bytes>) {
        if let Err(why) = self.check_proposal(&commands) {
            return self.outbox.push(Effect::Refused { token, why });
        }
        let term = self.hard_state.term;
        let first = self.log.last().index + 1;
        let entries = commands
            .into_iter()
            .zip(first..)
            .map(|(data, index)| Entry {
                term,
                index,
                kind: EntryKind::Command,
                data,
            })
            .collect();
        self.append_as_leader(entries, Some(token));
        self.outbox.push(Effect::Accepted { token, term, first });
    }

    fn check_proposal(&self, commands: &[Bytes]) -> Result<(), RefuseReason> {
        let leader = self.as_leader().ok_or(RefuseReason::NotLeader(self.leader))?;
        if let Some(transfer) = &leader.transfer {
            return Err(RefuseReason::Transferring(transfer.target));
        }
        if commands.is_empty() {
            return Err(RefuseReason::InvalidChange("the batch is empty"));
        }
        if commands
            .iter()
            .any(|command| command.len() > self.options.entry_bytes_max)
        {
            return Err(RefuseReason::TooLarge);
        }
        // LG6: the first batch passes whatever its size, else it never would.
        let bytes: usize = commands
            .iter()
            .map(|command| command.len() + crate::log::ENTRY_OVERHEAD_BYTES)
            .sum();
        let max = self.options.uncommitted_bytes_max as u64;
        let uncommitted = leader.uncommitted_bytes;
        if self.commit < self.log.last().index && uncommitted + bytes as u64 > max {
            return Err(RefuseReason::Overloaded);
        }
        // FL3: the own disk or state machine is far behind.
        let done = self.applied.min(self.writes.persisted());
        let behind = self
            .log
            .bytes_at(self.commit)
            .saturating_sub(self.log.bytes_at(done));
        if done < self.commit && behind > max {
            return Err(RefuseReason::Overloaded);
        }
        Ok(())
    }

    /// The empty entry of a new leader (EL13), or one that moves the log past an aborted transfer (RD7).
    pub(crate) fn append_noop(&mut self) {
        let term = self.hard_state.term;
        let index = self.log.last().index + 1;
        self.append_as_leader(
            vec![Entry {
                term,
                index,
                kind: EntryKind::Noop,
                data: Bytes::new(),
            }],
            None,
        );
    }

    pub(crate) fn append_as_leader(&mut self, entries: Vec<Entry>, token: Option<Token>) {
        if let Err(why) = self.log.append(&entries) {
            return self.fail(why);
        }
        let last = self.log.last().index;
        let bytes = entries.iter().map(|entry| entry_bytes(entry) as u64).sum();
        if let Some(leader) = self.as_leader_mut() {
            leader.batches.push_back(Batch { last, bytes, token });
            leader.uncommitted_bytes += bytes;
        }
        self.writes.entries(entries);
    }

    /// RP8: an entry of the own term that a quorum holds commits everything up to it.
    fn advance_commit(&mut self) {
        let State::Leader(leader) = &self.state else {
            return;
        };
        let (me, own) = (self.options.id, self.writes.persisted());
        let reached = self.log.configuration().quorum_value(|id| {
            if id == me {
                own
            } else {
                leader.peers.get(&id).map_or(0, Progress::counted_match)
            }
        });
        if reached > self.commit && self.log.term_at(reached) == Some(self.hard_state.term) {
            self.commit = reached;
            if let Some(leader) = self.as_leader_mut() {
                leader.commit_batches(reached);
            }
        }
    }

    /// Leadership is over: what was appended and not committed may or may not be applied yet.
    pub(crate) fn end_leadership(&mut self, leader: Leader) {
        for batch in leader.batches.iter().filter(|batch| batch.last > self.commit) {
            if let Some(token) = batch.token {
                self.outbox.push(Effect::Unknown { token });
            }
        }
    }
}
