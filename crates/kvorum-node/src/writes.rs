//! Writes on their way into the log: proposed here, or forwarded to the leader, and what became of them.
//!
//! - A write is forwarded once, and again only if it was certainly not appended: its receiver said so, or it never
//!   left this member, as there was no connection to the receiver.
//! - Batches build themselves: while the log is busy with earlier batches, writes gather, and everything that
//!   gathered becomes one batch, one log write, one append to each peer. There is no timer.
//! - A write that was appended is answered by this member's own apply; this room only tells the callers of
//!   writes that will not be answered so: refused ones, ones whose place in the log another entry took, and
//!   ones whose leader was lost. When leadership changes with a batch in the log, its callers wait until its
//!   place is decided: after a planned transfer most of them succeed.
//! - While no leader is known, writes are held, within their deadlines and a bound.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;

use bytes::Bytes;
use kvorum_model::Envelope;
use kvorum_raft::{Index, MemberId, Micros, RefuseReason, Term, Token};
use rustc_hash::FxHashMap;

use crate::interface::{Proposal, WriteFailure};
use crate::node::{Context, Node};
use crate::wire::{PeerBody, Refusal};

/// Writes at the leader that wait for the log to take the next batch.
#[derive(Debug)]
enum Gathered {
    /// Of callers of this member.
    Local(Vec<Proposal>),
    /// Of callers of another member, which forwarded them under this number.
    Peer {
        member: MemberId,
        id: u64,
        commands: Vec<Bytes>,
    },
}

impl Gathered {
    fn bytes(&self) -> usize {
        match self {
            Gathered::Local(proposals) => proposals.iter().map(|proposal| proposal.command.len()).sum(),
            Gathered::Peer { commands, .. } => commands.iter().map(Bytes::len).sum(),
        }
    }
}

/// Whose commands a part of a batch holds.
#[derive(Debug)]
enum Source {
    /// Callers of this member, by number.
    Local(Vec<u64>),
    /// So many of a member that forwarded them under this number.
    Peer(MemberId, u64, u64),
}

/// A batch of local writes on its way to a leader elsewhere.
#[derive(Debug)]
struct Forwarded {
    leader: MemberId,
    sent_at: Micros,
    proposals: Vec<Proposal>,
}

/// A batch in the log of whose fate this member's callers must hear.
#[derive(Debug)]
struct InLog {
    term: Term,
    last: Index,
    seqs: Vec<u64>,
}

/// The writes between their callers and the log.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// Waiting for a leader to be known.
    held: VecDeque<Proposal>,
    /// At the leader, waiting for the log.
    gathered: VecDeque<Gathered>,
    /// Handed to the core and not yet accepted or refused.
    proposed: FxHashMap<Token, Vec<Source>>,
    /// Forwarded and not yet accepted or refused, by number.
    forwarded: BTreeMap<u64, Forwarded>,
    /// Accepted, in log order as far as this member knows it.
    in_log: VecDeque<InLog>,
}

impl Writes {
    fn note_in_log(&mut self, term: Term, first: Index, seqs: Vec<u64>) {
        let last = first + seqs.len() as u64 - 1;
        self.in_log.push_back(InLog { term, last, seqs });
    }
}

impl Node {
    /// Local callers' writes.
    pub(crate) fn propose(&mut self, context: &mut Context<'_>, proposals: Vec<Proposal>) {
        if proposals.is_empty() {
            return;
        }
        if self.raft.is_leader() && !self.is_transferring() {
            self.propose_here(context, proposals);
        } else {
            match self.raft.leader() {
                leader if leader != 0 && leader != self.id() => self.forward(context, leader, proposals),
                _ => self.hold(context, proposals),
            }
        }
    }

    fn propose_here(&mut self, context: &mut Context<'_>, mut proposals: Vec<Proposal>) {
        if self.space_exhausted {
            let full = proposals.extract_if(.., |proposal| needs_space(&proposal.command));
            context.fail(full.map(|proposal| proposal.seq).collect(), WriteFailure::NoSpace);
        }
        if !proposals.is_empty() {
            // However many came together: what is one batch must fit into one write of the log.
            let parts = parts(proposals, self.options.batch_bytes_max);
            self.writes
                .gathered
                .extend(parts.into_iter().map(Gathered::Local));
            self.propose_gathered(context);
        }
    }

    /// Hands what gathered to the core, unless the log is busy enough.
    pub(crate) fn propose_gathered(&mut self, context: &mut Context<'_>) {
        while !self.writes.gathered.is_empty() && self.log_writes_open() < self.options.log_writes_open_max {
            if !self.raft.is_leader() || self.is_transferring() {
                return self.scatter(context);
            }
            let time_ms = self.clock.time_ms(context.now);
            let (mut sources, mut commands, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some(next) = self.writes.gathered.front() {
                bytes += next.bytes();
                if bytes > self.options.batch_bytes_max && !commands.is_empty() {
                    break;
                }
                match self.writes.gathered.pop_front().expect("just looked at it") {
                    Gathered::Local(proposals) => {
                        sources.push(Source::Local(
                            proposals.iter().map(|proposal| proposal.seq).collect(),
                        ));
                        commands.extend(proposals.into_iter().map(|p| stamped(p.command, time_ms)));
                    }
                    Gathered::Peer {
                        member,
                        id,
                        commands: theirs,
                    } => {
                        sources.push(Source::Peer(member, id, theirs.len() as u64));
                        commands.extend(theirs.into_iter().map(|command| stamped(command, time_ms)));
                    }
                }
            }
            let token = self.next_token();
            self.writes.proposed.insert(token, sources);
            self.step_raft(context, kvorum_raft::Input::Propose { token, commands });
        }
    }

    /// This member does not lead any more: what gathered goes where it can be written. Its own proposals end here:
    /// what it decided as the leader, later ones have not to follow, and what is still to be done is proposed again.
    fn scatter(&mut self, context: &mut Context<'_>) {
        self.initialised_in_term = 0;
        for gathered in std::mem::take(&mut self.writes.gathered) {
            match gathered {
                Gathered::Local(mut proposals) => {
                    proposals.retain(|proposal| proposal.seq & Node::INTERNAL == 0);
                    self.propose(context, proposals);
                }
                Gathered::Peer { member, id, .. } => {
                    context.send(
                        member,
                        PeerBody::ForwardRefused {
                            id,
                            why: Refusal::NotLeader,
                        },
                    );
                }
            }
        }
    }

    fn forward(&mut self, context: &mut Context<'_>, leader: MemberId, proposals: Vec<Proposal>) {
        for proposals in parts(proposals, self.options.forward_bytes_max) {
            let id = self.next_token();
            let commands = proposals
                .iter()
                .map(|proposal| proposal.command.clone())
                .collect();
            let batch = Forwarded {
                leader,
                sent_at: context.now,
                proposals,
            };
            self.writes.forwarded.insert(id, batch);
            context.send(leader, PeerBody::Forward { id, commands });
        }
    }

    fn hold(&mut self, context: &mut Context<'_>, proposals: Vec<Proposal>) {
        let room = self
            .options
            .held_requests_max
            .saturating_sub(self.writes.held.len());
        let mut proposals = proposals;
        let excess = proposals.split_off(room.min(proposals.len()));
        context.fail(
            excess.iter().map(|proposal| proposal.seq).collect(),
            WriteFailure::Overloaded,
        );
        self.writes.held.extend(proposals);
    }

    /// Another member's writes.
    pub(crate) fn forwarded(
        &mut self,
        context: &mut Context<'_>,
        from: MemberId,
        id: u64,
        commands: Vec<Bytes>,
    ) {
        let refusal = if !self.raft.is_leader() || self.is_transferring() {
            Some(Refusal::NotLeader)
        } else if self.space_exhausted && commands.iter().any(needs_space) {
            Some(Refusal::NoSpace)
        } else {
            None
        };
        if let Some(why) = refusal {
            context.send(from, PeerBody::ForwardRefused { id, why });
            return;
        }
        if commands.is_empty() {
            return;
        }
        self.writes.gathered.push_back(Gathered::Peer {
            member: from,
            id,
            commands,
        });
        self.propose_gathered(context);
    }

    /// The core appended a batch.
    pub(crate) fn accepted(&mut self, context: &mut Context<'_>, token: Token, term: Term, first: Index) {
        let mut first = first;
        for source in self.writes.proposed.remove(&token).unwrap_or_default() {
            match source {
                Source::Local(seqs) => {
                    let count = seqs.len() as u64;
                    self.writes.note_in_log(term, first, seqs);
                    first += count;
                }
                Source::Peer(member, id, count) => {
                    context.send(member, PeerBody::ForwardAccepted { id, term, first });
                    first += count;
                }
            }
        }
    }

    /// The core did not append a batch.
    pub(crate) fn refused(&mut self, context: &mut Context<'_>, token: Token, why: RefuseReason) {
        let Some(sources) = self.writes.proposed.remove(&token) else {
            return self.change_refused(context, token, why);
        };
        let refusal = match why {
            RefuseReason::Overloaded => Refusal::Overloaded,
            RefuseReason::TooLarge => Refusal::TooLarge,
            _ => Refusal::NotLeader,
        };
        for source in sources {
            match source {
                Source::Local(seqs) => context.fail(seqs, failure(refusal)),
                Source::Peer(member, id, _) => {
                    context.send(member, PeerBody::ForwardRefused { id, why: refusal })
                }
            }
        }
    }

    /// The leader appended what this member forwarded.
    pub(crate) fn forward_accepted(&mut self, id: u64, term: Term, first: Index) {
        if let Some(batch) = self.writes.forwarded.remove(&id) {
            let seqs = batch.proposals.iter().map(|proposal| proposal.seq).collect();
            self.writes.note_in_log(term, first, seqs);
        }
    }

    /// The receiver did not append what this member forwarded: only then may it be forwarded again.
    pub(crate) fn forward_refused(
        &mut self,
        context: &mut Context<'_>,
        from: MemberId,
        id: u64,
        why: Refusal,
    ) {
        let Some(Forwarded { proposals, .. }) = self.writes.forwarded.remove(&id) else {
            return;
        };
        if why != Refusal::NotLeader {
            let seqs = proposals.iter().map(|proposal| proposal.seq).collect();
            return context.fail(seqs, failure(why));
        }
        self.propose_elsewhere(context, from, proposals);
    }

    /// What `member` certainly did not append.
    fn propose_elsewhere(&mut self, context: &mut Context<'_>, member: MemberId, proposals: Vec<Proposal>) {
        if self.raft.leader() == member {
            // It does not lead any more, or cannot be reached: held until this member hears of it, or reaches it.
            self.hold(context, proposals);
        } else {
            self.propose(context, proposals);
        }
    }

    /// Forwards that never left this member: nobody appended them, nor will.
    pub(crate) fn forwards_unsent(&mut self, context: &mut Context<'_>, ids: &[Token]) {
        for id in ids {
            if let Some(batch) = self.writes.forwarded.remove(id) {
                self.propose_elsewhere(context, batch.leader, batch.proposals);
            }
        }
    }

    /// A connection to `leader` broke: what was `handed` to it and not answered may be in the leader's log. Later
    /// forwards wait for the next connection, or are told unsent.
    pub(crate) fn forwards_lost(&mut self, context: &mut Context<'_>, leader: MemberId, handed: Token) {
        self.fail_forwards(context, ..=handed, |batch| batch.leader == leader);
    }

    /// A forward is answered within a round trip; one that was not for so long will not be.
    pub(crate) fn expire_forwards(&mut self, context: &mut Context<'_>) {
        let (now, patience) = (context.now, 2 * self.options.raft.election_timeout);
        self.fail_forwards(context, .., |batch| batch.sent_at + patience < now);
    }

    fn fail_forwards(
        &mut self,
        context: &mut Context<'_>,
        ids: impl RangeBounds<Token>,
        lost: impl Fn(&Forwarded) -> bool,
    ) {
        for (_, batch) in self.writes.forwarded.extract_if(ids, |_, batch| lost(batch)) {
            let seqs = batch.proposals.iter().map(|proposal| proposal.seq).collect();
            context.fail(seqs, WriteFailure::LeaderLost);
        }
    }

    /// No leader was known for a long time: callers whose writes are in the log and undecided hear so.
    pub(crate) fn abandon_writes(&mut self, context: &mut Context<'_>) {
        for batch in self.writes.in_log.drain(..) {
            context.fail(batch.seqs, WriteFailure::LeaderLost);
        }
    }

    /// Proposes what was held, if there is a leader to propose to.
    pub(crate) fn release_held(&mut self, context: &mut Context<'_>) {
        if self.raft.leader() != 0 && !self.writes.held.is_empty() && !self.is_transferring() {
            let held = std::mem::take(&mut self.writes.held).into();
            self.propose(context, held);
        }
    }

    /// Held writes never took effect, and this member will not be there when there is a leader.
    pub(crate) fn stop_holding(&mut self, context: &mut Context<'_>) {
        let held = self.writes.held.drain(..).map(|proposal| proposal.seq);
        context.fail(held.collect(), WriteFailure::Stopping);
    }

    /// Held writes whose callers stopped waiting never took effect.
    pub(crate) fn expire_held(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let mut expired = Vec::new();
        self.writes.held.retain(|proposal| {
            let keep = proposal.deadline > now;
            if !keep {
                expired.push(proposal.seq);
            }
            keep
        });
        context.fail(expired, WriteFailure::NoLeader);
    }

    /// Everything up to `applied` has its final place: a batch whose entries are not there was superseded.
    pub(crate) fn settle_writes(&mut self, context: &mut Context<'_>, applied: Index) {
        while self
            .writes
            .in_log
            .front()
            .is_some_and(|batch| batch.last <= applied)
        {
            let batch = self.writes.in_log.pop_front().expect("just looked at it");
            self.settle_batch(context, batch);
        }
    }

    /// Entry by entry, as a new leader may have kept the first part of a batch and cut the rest. What lies below
    /// the log's base was perhaps applied elsewhere and came here by a snapshot, without an answer.
    fn settle_batch(&mut self, context: &mut Context<'_>, batch: InLog) {
        let first = batch.last + 1 - batch.seqs.len() as u64;
        let kept = Some(batch.term);
        if self.raft.term_at(first) == kept && self.raft.term_at(batch.last) == kept {
            return;
        }
        let (mut superseded, mut unknown) = (Vec::new(), Vec::new());
        for (index, seq) in (first..).zip(batch.seqs) {
            match self.raft.term_at(index) {
                Some(term) if term == batch.term => {}
                Some(_) => superseded.push(seq),
                None => unknown.push(seq),
            }
        }
        context.fail(superseded, WriteFailure::Superseded);
        context.fail(unknown, WriteFailure::LeaderLost);
    }

    /// How many local writes are between their callers and their answers.
    pub(crate) fn writes_waiting(&self) -> usize {
        let gathered = self.writes.gathered.iter().map(|gathered| match gathered {
            Gathered::Local(proposals) => proposals.len(),
            Gathered::Peer { .. } => 0,
        });
        self.writes.held.len()
            + gathered.sum::<usize>()
            + self
                .writes
                .forwarded
                .values()
                .map(|batch| batch.proposals.len())
                .sum::<usize>()
            + self
                .writes
                .in_log
                .iter()
                .map(|batch| batch.seqs.len())
                .sum::<usize>()
    }
}

/// Divides proposals, in order, into parts of at most `bytes_max` bytes of commands; a single larger one is a part
/// of its own.
fn parts(proposals: Vec<Proposal>, bytes_max: usize) -> Vec<Vec<Proposal>> {
    let mut parts: Vec<Vec<Proposal>> = Vec::new();
    let mut room = 0;
    for proposal in proposals {
        let bytes = proposal.command.len();
        match parts.last_mut() {
            Some(part) if bytes <= room => {
                room -= bytes;
                part.push(proposal);
            }
            _ => {
                room = bytes_max.saturating_sub(bytes);
                parts.push(vec![proposal]);
            }
        }
    }
    parts
}

fn failure(refusal: Refusal) -> WriteFailure {
    match refusal {
        Refusal::NotLeader => WriteFailure::NoLeader,
        Refusal::Overloaded => WriteFailure::Overloaded,
        Refusal::TooLarge => WriteFailure::TooLarge,
        Refusal::NoSpace => WriteFailure::NoSpace,
    }
}

/// The command with the leader's time in it. Its buffer is changed in place if nobody else holds it.
fn stamped(command: Bytes, time_ms: u64) -> Bytes {
    let mut buffer = command
        .try_into_mut()
        .unwrap_or_else(|shared| shared.as_ref().into());
    Envelope::stamp(&mut buffer, time_ms);
    buffer.freeze()
}

fn needs_space(command: &Bytes) -> bool {
    Envelope::decode(command.clone()).is_ok_and(|envelope| envelope.command.needs_space())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_proposals_become_parts_that_a_log_write_takes() {
        let proposal = |bytes: usize| Proposal {
            seq: bytes as u64,
            command: vec![0; bytes].into(),
            deadline: 0,
        };
        let sizes = |proposals: &[usize]| -> Vec<Vec<usize>> {
            let parts = parts(proposals.iter().copied().map(proposal).collect(), 10);
            let sizes = |part: Vec<Proposal>| part.iter().map(|proposal| proposal.command.len()).collect();
            parts.into_iter().map(sizes).collect()
        };
        assert_eq!(sizes(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(sizes(&[4, 6, 1]), [vec![4, 6], vec![1]]);
        assert_eq!(
            sizes(&[11, 3, 12, 5, 5, 1]),
            [vec![11], vec![3], vec![12], vec![5, 5], vec![1]]
        );
    }
}
