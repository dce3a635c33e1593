//! Membership changes at the leader, and what removal means to the removed (thesis §4; MB1–MB12).

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::interface::{Effect, RefuseReason};
use crate::message::MessageBody;
use crate::progress::Progress;
use crate::raft::{Raft, State};
use crate::types::{ConfigEntry, Configuration, Entry, EntryKind, MemberChange, MemberId, Token};

/// The entry that every founder of a cluster writes to its empty log (MB12): index 1, term 1, the founders as
/// voters.
pub fn founders_entry(ids: impl IntoIterator<Item = MemberId>) -> Entry {
    let configuration = Configuration::of_voters(ids);
    let data = ConfigEntry {
        configuration,
        context: Bytes::new(),
    }
    .encode();
    Entry {
        term: 1,
        index: 1,
        kind: EntryKind::Config,
        data,
    }
}

impl Raft {
    pub(crate) fn change_config(&mut self, token: Token, changes: &[MemberChange], context: Bytes) {
        match self.check_change(changes, &context) {
            Err(why) => self.outbox.push(Effect::Refused { token, why }),
            Ok(configuration) => {
                if self.ends_transfer(changes) {
                    self.abort_transfer();
                }
                let (term, first) = (self.hard_state.term, self.log.last().index + 1);
                self.append_configuration(configuration, context, Some(token));
                self.outbox.push(Effect::Accepted { token, term, first });
            }
        }
    }

    fn check_change(&self, changes: &[MemberChange], context: &Bytes) -> Result<Configuration, RefuseReason> {
        let leader = self.as_leader().ok_or(RefuseReason::NotLeader(self.leader))?;
        if let Some(transfer) = &leader.transfer
            && !self.ends_transfer(changes)
        {
            return Err(RefuseReason::Transferring(transfer.target));
        }
        let latest = self.log.configuration();
        // MB2: one at a time, and none before an own-term commit.
        if self.log.configuration_index() > self.commit || latest.is_joint() || !self.has_committed_own_term()
        {
            return Err(RefuseReason::ChangeInProgress);
        }
        let next = latest.change(changes).map_err(RefuseReason::InvalidChange)?;
        if context.len() > self.options.entry_bytes_max {
            return Err(RefuseReason::TooLarge);
        }
        let since = self.active_since();
        for change in changes {
            if let MemberChange::Promote(id) = *change {
                let in_sync = leader.peers.get(&id).is_some_and(|peer| {
                    peer.is_active(since)
                        && peer.is_replicating()
                        && self.log.bytes_above(peer.matched) <= self.options.promote_lag_bytes
                });
                if !in_sync {
                    return Err(RefuseReason::NotReady(id));
                }
            }
        }
        // MB8: a joint configuration without a live quorum in each half could not be left again.
        let live =
            |id| id == self.options.id || leader.peers.get(&id).is_some_and(|peer| peer.is_active(since));
        if next.voters != latest.voters && !next.has_quorum(live) {
            return Err(RefuseReason::NoLiveQuorum);
        }
        Ok(next)
    }

    /// Whether the change takes the vote from the target of the running transfer (TR3).
    fn ends_transfer(&self, changes: &[MemberChange]) -> bool {
        let target = self
            .as_leader()
            .and_then(|leader| leader.transfer.as_ref())
            .map(|transfer| transfer.target);
        changes.iter().any(|change| match *change {
            MemberChange::Demote(id) | MemberChange::Remove(id) => Some(id) == target,
            _ => false,
        })
    }

    fn append_configuration(&mut self, configuration: Configuration, context: Bytes, token: Option<Token>) {
        let (term, index) = (self.hard_state.term, self.log.last().index + 1);
        let last = index - 1;
        let data = ConfigEntry {
            configuration,
            context,
        }
        .encode();
        self.append_as_leader(
            vec![Entry {
                term,
                index,
                kind: EntryKind::Config,
                data,
            }],
            token,
        );
        // New members are fed from now on (MB1).
        for id in self.members_to_feed() {
            let epoch = self.epoch + 1;
            let State::Leader(leader) = &mut self.state else {
                return;
            };
            if let std::collections::btree_map::Entry::Vacant(vacant) = leader.peers.entry(id) {
                vacant.insert(Progress::new(last, epoch));
                self.epoch = epoch;
            }
        }
    }

    /// Everyone in the committed configuration and in those after it, but this member (RP10).
    pub(crate) fn members_to_feed(&self) -> BTreeSet<MemberId> {
        let mut members = self.committed_configuration().members();
        for (index, configuration) in self.log.configurations() {
            if *index > self.commit {
                members.append(&mut configuration.members());
            }
        }
        members.remove(&self.options.id);
        members
    }

    /// MB5: once the joint configuration and an own-term entry are committed, the final one follows, once. True if
    /// it does now.
    pub(crate) fn leave_joint(&mut self) -> bool {
        let configuration = self.log.configuration();
        let transferring = self.as_leader().is_none_or(|leader| leader.transfer.is_some());
        let due = configuration.is_joint()
            && self.log.configuration_index() <= self.commit
            && self.has_committed_own_term()
            && !transferring;
        if due {
            let last = configuration.leave();
            self.append_configuration(last, Bytes::new(), None);
        }
        due
    }

    /// Members whose removal is committed are told so and fed no more.
    pub(crate) fn retire_peers(&mut self) {
        let Some(leader) = self.as_leader() else { return };
        let configuration = self.log.configuration();
        if self.log.configuration_index() > self.commit
            || leader.peers.keys().all(|&id| configuration.contains(id))
        {
            return;
        }
        let gone: Vec<MemberId> = leader
            .peers
            .keys()
            .copied()
            .filter(|&id| !configuration.contains(id))
            .collect();
        for id in gone {
            if let Some(leader) = self.as_leader_mut() {
                leader.peers.remove(&id);
            }
            self.send(id, MessageBody::Removed);
        }
    }

    /// MB7: a committed configuration removed this member; it campaigns no more.
    pub(crate) fn on_removed(&mut self, from: MemberId) {
        let knows_sender = self
            .log
            .configurations()
            .any(|(_, configuration)| configuration.contains(from));
        if !knows_sender && !self.log.configuration().is_empty() {
            return;
        }
        self.removed = true;
        if matches!(self.state, State::PreCandidate(_) | State::Candidate(_)) {
            self.become_follower(self.hard_state.term, 0);
        }
    }
}
