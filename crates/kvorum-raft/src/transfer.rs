//! Handing leadership over (thesis §3.10; TR1–TR3, MB6, FL3).

use crate::interface::RefuseReason;
use crate::message::MessageBody;
use crate::raft::Raft;
use crate::types::{LogId, MemberId, Micros};

/// A transfer under way. Proposals are refused while it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Handover {
    pub target: MemberId,
    /// When it is given up.
    pub deadline: Micros,
    /// What TimeoutNow named, once it was sent.
    pub sent: Option<LogId>,
    /// The leader is no voter any more: it steps down whatever happens (MB6).
    leaves: bool,
}

impl Raft {
    /// Whether leadership could be handed to `target` now (0: to the best voter); the target, or why not (TR1).
    pub fn check_transfer(&self, target: MemberId) -> Result<MemberId, RefuseReason> {
        let leader = self.as_leader().ok_or(RefuseReason::NotLeader(self.leader))?;
        if target == 0 {
            return self.best_successor().ok_or(RefuseReason::NotReady(0));
        }
        if target == self.options.id {
            return Ok(target);
        }
        let since = self.active_since();
        let fit = self.log.configuration().voters.contains(&target)
            && leader
                .peers
                .get(&target)
                .is_some_and(|peer| peer.is_active(since) && peer.is_replicating());
        if fit {
            Ok(target)
        } else {
            Err(RefuseReason::NotReady(target))
        }
    }

    /// The active voter that has most of the log; of equals the first.
    fn best_successor(&self) -> Option<MemberId> {
        let leader = self.as_leader()?;
        let since = self.active_since();
        let voters = self.log.configuration().voters.iter().rev();
        let fit = voters.filter_map(|&id| {
            let peer = leader.peers.get(&id)?;
            (peer.is_active(since) && peer.is_replicating()).then_some((peer.matched, id))
        });
        fit.max_by_key(|&(matched, _)| matched).map(|(_, id)| id)
    }

    /// TR3: the same target changes nothing, another one replaces it, this member is done. One that is not fit
    /// is ignored: the shell asks [`Raft::check_transfer`] first.
    pub(crate) fn transfer_to(&mut self, target: MemberId) {
        let Ok(target) = self.check_transfer(target) else {
            return;
        };
        let running = self.as_leader().and_then(|leader| leader.transfer.as_ref());
        if target == self.options.id || running.is_some_and(|transfer| transfer.target == target) {
            return;
        }
        let leaves = running.is_some_and(|transfer| transfer.leaves);
        self.abort_transfer();
        self.start_transfer(target, leaves);
    }

    fn start_transfer(&mut self, target: MemberId, leaves: bool) {
        let deadline = self.clock.now + self.clock.t_max();
        if let Some(leader) = self.as_leader_mut() {
            leader.transfer = Some(Handover {
                target,
                deadline,
                sent: None,
                leaves,
            });
        }
    }

    /// Writes are accepted again. A TimeoutNow that was sent may still arrive: an empty entry makes it void (RD7).
    pub(crate) fn abort_transfer(&mut self) {
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        let Some(transfer) = leader.transfer.take() else {
            return;
        };
        if let Some(last) = transfer.sent {
            leader.reads.timeout_now_is_out(transfer.target, last.index);
            self.append_noop();
        }
    }

    pub(crate) fn give_up_transfer_in_time(&mut self) {
        let now = self.clock.now;
        let Some(transfer) = self.as_leader().and_then(|leader| leader.transfer.as_ref()) else {
            return;
        };
        if now < transfer.deadline {
            return;
        }
        if transfer.leaves {
            self.become_follower(self.hard_state.term, 0);
        } else {
            self.abort_transfer();
        }
    }

    /// Sends TimeoutNow as soon as the target has everything.
    pub(crate) fn drive_transfer(&mut self) {
        let last = self.log.last();
        let Some(leader) = self.as_leader() else { return };
        let Some(transfer) = leader.transfer.clone() else {
            return;
        };
        let peer = leader.peers.get(&transfer.target);
        let Some(peer) = peer.filter(|_| self.log.configuration().voters.contains(&transfer.target)) else {
            self.abort_transfer();
            return self.feed_peers();
        };
        if transfer.sent.is_some() || peer.matched != last.index {
            return;
        }
        if let Some(transfer) = self.as_leader_mut().and_then(|leader| leader.transfer.as_mut()) {
            transfer.sent = Some(last);
        }
        self.send(transfer.target, MessageBody::TimeoutNow { last });
        if transfer.leaves {
            self.become_follower(self.hard_state.term, 0);
        }
    }

    /// The target lives and still follows: the first TimeoutNow may have been lost.
    pub(crate) fn repeat_timeout_now(&mut self, from: MemberId) {
        let Some(transfer) = self.as_leader().and_then(|leader| leader.transfer.as_ref()) else {
            return;
        };
        let last = self.log.last();
        if transfer.target == from && transfer.sent == Some(last) {
            self.send(from, MessageBody::TimeoutNow { last });
        }
    }

    /// Called at each acknowledgement (RD7).
    pub(crate) fn rule_out_timeout_now(&mut self, from: MemberId) {
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        if let Some(peer) = leader.peers.get(&from) {
            leader.reads.rule_out_timeout_now(from, peer.matched);
        }
    }

    /// TR2: the leader asks this member to campaign, if its log is exactly the leader's.
    pub(crate) fn on_timeout_now(&mut self, last: LogId) {
        let voter = self.log.configuration().is_voter(self.options.id);
        if last == self.log.last() && voter && self.may_campaign() {
            self.campaign(true);
        }
    }

    /// MB6: a leader outside the committed configuration looks for a successor and steps down.
    pub(crate) fn leave_leadership_if_outside(&mut self) {
        let configuration = self.log.configuration();
        let outside = !configuration.is_joint()
            && !configuration.is_voter(self.options.id)
            && self.log.configuration_index() <= self.commit;
        if !outside || !self.has_committed_own_term() {
            return;
        }
        match self.as_leader_mut().and_then(|leader| leader.transfer.as_mut()) {
            Some(transfer) => transfer.leaves = true,
            None => match self.best_successor() {
                Some(target) => self.start_transfer(target, true),
                None => self.become_follower(self.hard_state.term, 0),
            },
        }
    }

    /// FL3: a leader whose own disk stalls while the others are well hands over.
    pub(crate) fn hand_over_if_disk_stalls(&mut self) {
        let Some(since) = self.writes.oldest_open() else {
            return;
        };
        let Some(leader) = self.as_leader() else { return };
        let stalled = self.clock.now - since > self.clock.t_max();
        if !stalled || leader.transfer.is_some() {
            return;
        }
        let (me, t_max) = (self.options.id, self.clock.t_max());
        let others = self
            .log
            .configuration()
            .has_quorum(|id| id != me && leader.is_live(self, id, t_max));
        if let Some(target) = self.best_successor().filter(|_| others) {
            self.start_transfer(target, false);
        }
    }
}
