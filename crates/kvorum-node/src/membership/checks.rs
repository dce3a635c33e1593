//! What etcd refuses with `strict-reconfig-check` (on by default there), in its order: changes after which too few
//! members would be started or connected for a majority, and changes that contradict the membership.
//!
//! A voter counts as connected if it answered within the election timeout; etcd asks for five seconds of an open
//! connection. A voter that joins is a learner first and gets its vote when it is in sync, so that a change never
//! costs the majority; the checks count it as etcd does, as a voter that is not started.

use kvorum_model::MemberRecord;
use kvorum_raft::MemberId;

use crate::interface::{AdminError, AdminRequest};
use crate::node::Node;

impl Node {
    /// Whether etcd would carry the request out.
    pub(super) fn check_as_etcd(
        &self,
        request: &AdminRequest,
        learners_max: usize,
    ) -> Result<(), AdminError> {
        match request {
            AdminRequest::AddLearner(record) => self.check_addition(record, learners_max),
            AdminRequest::Promote(id) => self.check_promotion(*id),
            AdminRequest::Remove(id) => self.check_removal(*id),
            _ => Ok(()),
        }
    }

    fn check_addition(&self, record: &MemberRecord, learners_max: usize) -> Result<(), AdminError> {
        let (voters, started) = self.count(|id| self.has_started(id));
        let is_restored = (voters, started) == (1, 1);
        if record.promote_when_ready && !is_restored && started < majority(voters + 1) {
            return Err(AdminError::NotEnoughStarted);
        }
        let (_, connected) = self.count(|id| self.is_connected(id));
        if voters > 1 && connected < majority(voters + 1) {
            return Err(AdminError::NoLiveQuorum);
        }
        let configuration = self.raft.latest_configuration();
        let mut members = self.cluster.members.values();
        if members.any(|known| {
            configuration.contains(known.id)
                && record
                    .peer_addresses
                    .iter()
                    .any(|address| known.peer_addresses.contains(address))
        }) {
            return Err(AdminError::AddressInUse);
        }
        let stays = |id: &&MemberId| !self.is_to_vote(**id);
        if !record.promote_when_ready && configuration.learners.iter().filter(stays).count() >= learners_max {
            return Err(AdminError::TooManyLearners);
        }
        Ok(())
    }

    fn check_promotion(&self, id: MemberId) -> Result<(), AdminError> {
        let configuration = self.raft.latest_configuration();
        if configuration.is_voter(id) {
            return Err(AdminError::NotLearner(id));
        }
        if !configuration.contains(id) {
            return Err(AdminError::UnknownMember(id));
        }
        let (voters, started) = self.count(|id| self.has_started(id));
        // It counts as started. Whether it is in sync, the core knows.
        if started + 1 < majority(voters + 1) {
            return Err(AdminError::NotEnoughStarted);
        }
        Ok(())
    }

    fn check_removal(&self, id: MemberId) -> Result<(), AdminError> {
        let configuration = self.raft.latest_configuration();
        if !configuration.contains(id) {
            return Err(AdminError::UnknownMember(id));
        }
        if !configuration.voters.contains(&id) {
            return Ok(());
        }
        let (voters, _) = self.count(|_| true);
        let (_, started) = self.count(|other| other != id && self.has_started(other));
        if started < majority(voters - 1) {
            return Err(AdminError::NotEnoughStarted);
        }
        let (_, connected) = self.count(|id| self.is_connected(id));
        if self.is_connected(id) && connected - 1 < 1 + (voters - 1) / 2 {
            return Err(AdminError::NoLiveQuorum);
        }
        Ok(())
    }

    /// All voters, those on their way among them, and how many of them are so.
    fn count(&self, is_so: impl Fn(MemberId) -> bool) -> (usize, usize) {
        let configuration = self.raft.latest_configuration();
        let joining = configuration.learners.iter().filter(|id| self.is_to_vote(**id));
        let voters: Vec<MemberId> = configuration.voters.iter().chain(joining).copied().collect();
        (voters.len(), voters.into_iter().filter(|id| is_so(*id)).count())
    }

    fn is_to_vote(&self, id: MemberId) -> bool {
        let record = self.cluster.members.get(&id);
        record.is_some_and(|record| record.promote_when_ready)
    }

    fn has_started(&self, id: MemberId) -> bool {
        let record = self.cluster.members.get(&id);
        record.is_some_and(|record| record.incarnation != 0)
    }

    fn is_connected(&self, id: MemberId) -> bool {
        id == self.id() || self.raft.peers().iter().any(|peer| peer.id == id && peer.active)
    }
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}
