//! Linearizable reads: read index, rounds, leases (thesis §6.4; RD1–RD7).
//!
//! The leader numbers rounds within its term; every heartbeat and append carries the newest, every answer
//! returns it. A read takes the commit index at its arrival and waits for a round that starts later: a quorum
//! that answers it still followed this leader after the read came. Members that do not lead forward what
//! waits as one batch, under a name that is never used twice.

use std::collections::VecDeque;

use crate::interface::Effect;
use crate::message::{MessageBody, ReadId};
use crate::raft::{Raft, State};
use crate::types::{Index, MemberId, Micros, Token};

/// Most reads that wait in one core; more are dropped at once (FL2).
pub const READS_MAX: usize = 16_384;
/// ρ: the error of a clock's rate that leases allow for, in millionths (RD6).
pub const CLOCK_ERROR_PPM: u64 = 10_000;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reader {
    Local(Token),
    Remote(ReadId),
}

/// Reads at the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct LeaderReads {
    round: u64,
    /// Rounds not older than the newest confirmed one, and when they started.
    started: VecDeque<(u64, Micros)>,
    /// Before the first own-term commit (RD1).
    held: VecDeque<Reader>,
    /// For the next round.
    waiting: VecDeque<(Reader, Index)>,
    /// (round, reader, index), ascending.
    confirming: VecDeque<(u64, Reader, Index)>,
    /// No lease in this term any more (TM1).
    lease_lost: bool,
    /// TimeoutNow messages that may still arrive: target, last index named (RD7).
    timeouts_out: Vec<(MemberId, Index)>,
}

impl LeaderReads {
    /// The newest round.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// A round starts: what waits joins it. Rounds older than the newest confirmed one are forgotten.
    pub fn start_round(&mut self, now: Micros, confirmed: u64) {
        self.confirmed_start(confirmed);
        self.round += 1;
        self.started.push_back((self.round, now));
        let round = self.round;
        self.confirming.extend(
            self.waiting
                .drain(..)
                .map(|(reader, index)| (round, reader, index)),
        );
    }

    /// An aborted transfer's TimeoutNow may still arrive.
    pub fn timeout_now_is_out(&mut self, target: MemberId, last: Index) {
        self.timeouts_out.retain(|&(id, _)| id != target);
        self.timeouts_out.push((target, last));
    }

    /// `target` has acknowledged up to `matched`: a TimeoutNow that names less is void.
    pub fn rule_out_timeout_now(&mut self, target: MemberId, matched: Index) {
        self.timeouts_out
            .retain(|&(id, last)| id != target || matched <= last);
    }

    fn len(&self) -> usize {
        self.held.len() + self.waiting.len() + self.confirming.len()
    }

    fn drain(&mut self) -> Vec<Reader> {
        let confirming = self.confirming.drain(..).map(|(_, reader, _)| reader);
        let waiting = self.waiting.drain(..).map(|(reader, _)| reader);
        confirming.chain(waiting).chain(self.held.drain(..)).collect()
    }

    /// When the newest confirmed round started; older rounds are forgotten.
    fn confirmed_start(&mut self, confirmed: u64) -> Option<Micros> {
        while self.started.front().is_some_and(|&(round, _)| round < confirmed) {
            self.started.pop_front();
        }
        self.started
            .front()
            .filter(|&&(round, _)| round == confirmed)
            .map(|&(_, at)| at)
    }

    pub fn forget_times(&mut self) {
        for (_, at) in &mut self.started {
            *at = 0;
        }
    }
}

/// Reads at a member that does not lead (RD5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ForwardedReads {
    /// Not asked for yet.
    waiting: VecDeque<Token>,
    /// Asked for by the current try.
    asked: VecDeque<Token>,
    /// The current try, and when it left.
    current: Option<(ReadId, Micros)>,
    counter: u64,
}

impl ForwardedReads {
    pub fn forget_times(&mut self) {
        if let Some((_, at)) = &mut self.current {
            *at = 0;
        }
    }

    /// The current try is void; its reads wait again, before the others.
    fn forget_try(&mut self) {
        self.current = None;
        self.asked.append(&mut self.waiting);
        std::mem::swap(&mut self.asked, &mut self.waiting);
    }
}

impl Raft {
    pub(crate) fn read(&mut self, token: Token) {
        let count = self.as_leader().map_or(0, |leader| leader.reads.len());
        if count + self.forwarded_reads.waiting.len() + self.forwarded_reads.asked.len() >= READS_MAX {
            return self.outbox.push(Effect::ReadDropped { token });
        }
        match &mut self.state {
            State::Leader(leader) => leader.reads.held.push_back(Reader::Local(token)),
            _ => self.forwarded_reads.waiting.push_back(token),
        }
    }

    pub(crate) fn on_read_index(&mut self, from: MemberId, read: ReadId) {
        let leader_id = self.leader;
        match &mut self.state {
            State::Leader(leader) if leader.reads.len() < READS_MAX && read.member == from => {
                leader.reads.held.push_back(Reader::Remote(read));
            }
            _ => self.send(
                from,
                MessageBody::ReadIndexReply {
                    read,
                    index: None,
                    leader: leader_id,
                },
            ),
        }
    }

    /// Answers what is confirmed, starts a round if reads wait for one.
    pub(crate) fn serve_reads(&mut self) {
        let own_term = self.has_committed_own_term();
        let commit = self.commit;
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        if own_term {
            leader
                .reads
                .waiting
                .extend(leader.reads.held.drain(..).map(|reader| (reader, commit)));
        }
        if leader.reads.waiting.is_empty() && leader.reads.confirming.is_empty() {
            return;
        }
        if self.holds_lease() {
            self.answer_under_lease();
        }
        loop {
            let confirmed = self.confirmed_round();
            self.answer_up_to(confirmed);
            let now = self.clock.now;
            let Some(leader) = self.as_leader_mut() else {
                return;
            };
            if !leader.reads.confirming.is_empty() || leader.reads.waiting.is_empty() {
                return;
            }
            leader.reads.start_round(now, confirmed);
            let configuration = self.log.configuration();
            let voters: Vec<MemberId> = configuration
                .voters
                .union(&configuration.outgoing)
                .copied()
                .collect();
            self.send_heartbeats(&voters, 0);
        }
    }

    /// The newest round that a quorum of the latest configuration has answered (RD2, RD3).
    pub(crate) fn confirmed_round(&self) -> u64 {
        let Some(leader) = self.as_leader() else { return 0 };
        self.log.configuration().quorum_value(|id| {
            if id == self.options.id {
                leader.reads.round
            } else {
                leader
                    .peers
                    .get(&id)
                    .filter(|peer| !peer.lost_data)
                    .map_or(0, |peer| peer.round)
            }
        })
    }

    fn answer_up_to(&mut self, confirmed: u64) {
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        leader.reads.confirmed_start(confirmed);
        let count = leader
            .reads
            .confirming
            .partition_point(|&(round, ..)| round <= confirmed);
        let answered: Vec<_> = leader.reads.confirming.drain(..count).collect();
        for (_, reader, index) in answered {
            self.answer_read(reader, Some(index));
        }
    }

    fn answer_under_lease(&mut self) {
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        let answered: Vec<_> = leader.reads.waiting.drain(..).collect();
        for (reader, index) in answered {
            self.answer_read(reader, Some(index));
        }
    }

    fn answer_read(&mut self, reader: Reader, index: Option<Index>) {
        match (reader, index) {
            (Reader::Local(token), Some(index)) => self.outbox.push(Effect::ReadReady { token, index }),
            (Reader::Local(token), None) => self.outbox.push(Effect::ReadDropped { token }),
            (Reader::Remote(read), index) => {
                let leader = if index.is_some() { self.leader } else { 0 };
                self.send(read.member, MessageBody::ReadIndexReply { read, index, leader });
            }
        }
    }

    /// RD6: every voter of a quorum has promised, when it answered the newest confirmed round, to follow
    /// nobody else for T_min; RD7: and nobody was asked to campaign meanwhile. A leader outside the configuration has
    /// no lease: a sole voter that restarts leads without silence (SM1), and knows nothing of the leader it had.
    pub(crate) fn holds_lease(&mut self) -> bool {
        let confirmed = self.confirmed_round();
        let (now, t_min) = (self.clock.now, self.clock.t_min);
        let votes = self.log.configuration().is_voter(self.options.id);
        let on = self.options.lease_reads && votes && self.has_committed_own_term();
        let Some(leader) = self.as_leader_mut() else {
            return false;
        };
        let handing_over = leader
            .transfer
            .as_ref()
            .is_some_and(|transfer| transfer.sent.is_some());
        let Some(start) = leader.reads.confirmed_start(confirmed) else {
            return false;
        };
        on && !handing_over
            && !leader.reads.lease_lost
            && leader.reads.timeouts_out.is_empty()
            && now < start.saturating_add(lease_length(t_min))
    }

    /// The clock went back: no lease in this term any more (TM1).
    pub(crate) fn lose_lease(&mut self) {
        if let Some(leader) = self.as_leader_mut() {
            leader.reads.lease_lost = true;
        }
    }

    /// RD4: role or term changes; whoever waits must ask again.
    pub(crate) fn drop_reads(&mut self) {
        let readers = self
            .as_leader_mut()
            .map(|leader| leader.reads.drain())
            .unwrap_or_default();
        for reader in readers {
            self.answer_read(reader, None);
        }
        self.forwarded_reads.forget_try();
        while let Some(token) = self.forwarded_reads.waiting.pop_front() {
            self.outbox.push(Effect::ReadDropped { token });
        }
    }

    /// Asks the leader for an index for everything that waits, one try at a time.
    pub(crate) fn drive_forwarded_reads(&mut self) {
        let reads = &mut self.forwarded_reads;
        if self.leader == 0
            || self.leader == self.options.id
            || reads.current.is_some()
            || reads.waiting.is_empty()
        {
            return;
        }
        reads.counter += 1;
        reads.asked.append(&mut reads.waiting);
        let read = ReadId {
            member: self.options.id,
            boot: self.options.boot,
            counter: reads.counter,
        };
        reads.current = Some((read, self.clock.now));
        self.send(self.leader, MessageBody::ReadIndex { read });
    }

    /// A try without an answer is given up; the next one has another name.
    pub(crate) fn retry_forwarded_reads(&mut self) {
        if self.read_retry_at().is_some_and(|at| self.clock.now >= at) {
            self.forget_forwarded_try();
        }
    }

    /// When the current try is given up.
    pub(crate) fn read_retry_at(&self) -> Option<Micros> {
        self.forwarded_reads
            .current
            .map(|(_, at)| at + self.clock.t_min / 2)
    }

    pub(crate) fn forget_forwarded_try(&mut self) {
        self.forwarded_reads.forget_try();
    }

    /// The index answers the reads; it never moves the own commit (RD5).
    pub(crate) fn on_read_index_reply(&mut self, read: ReadId, index: Option<Index>) {
        let reads = &mut self.forwarded_reads;
        if reads.current.is_none_or(|(current, _)| current != read) {
            return;
        }
        reads.current = None;
        while let Some(token) = self.forwarded_reads.asked.pop_front() {
            self.answer_read(Reader::Local(token), index);
        }
    }

    /// How many reads wait.
    pub(crate) fn reads_waiting(&self) -> usize {
        let at_leader = self.as_leader().map_or(0, |leader| leader.reads.len());
        at_leader + self.forwarded_reads.waiting.len() + self.forwarded_reads.asked.len()
    }
}

/// How long after its start a confirmed round protects reads: T_min·(1−ρ)/(1+ρ) less a margin of a twentieth.
fn lease_length(t_min: Micros) -> Micros {
    let million = 1_000_000;
    let length = t_min.saturating_mul(million - CLOCK_ERROR_PPM) / (million + CLOCK_ERROR_PPM);
    length - t_min / 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rd6_only_rounds_that_matter_are_remembered() {
        let mut reads = LeaderReads::default();
        for round in 0..1000u64 {
            reads.start_round(round, round.saturating_sub(2));
        }
        assert!(reads.started.len() < 5);
        assert_eq!(reads.confirmed_start(999), Some(998));
        assert_eq!(reads.confirmed_start(998), None);
    }
}
