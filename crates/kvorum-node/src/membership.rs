//! Membership as an administrator sees it: changes, transfers, who a member says it is, and the promotion of
//! a replacement once it is in sync.

use std::sync::Arc;

use kvorum_model::{Command, Envelope, MemberRecord, Origin, Setting};
use kvorum_raft::{Index, MemberChange, MemberId, Micros, RefuseReason, Token};
use rustc_hash::FxHashMap;

use crate::interface::{AdminError, AdminReply, AdminRequest, Effect};
use crate::node::{Context, Node};

mod checks;

#[derive(Debug)]
struct Pending {
    /// The caller's number; none for a promotion that the leader does by itself.
    id: Option<u64>,
    added: Option<MemberId>,
    index: Option<Index>,
    deadline: Micros,
}

/// What is to be done about an announcement.
enum Registration {
    /// This change.
    Change(AdminRequest),
    /// Nothing.
    Done(Result<AdminReply, AdminError>),
}

/// Changes under way.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    pending: FxHashMap<Token, Pending>,
    /// The newest membership entry this member appended as leader: the next ID is read only after it is applied.
    last_change: Index,
    /// This member was removed, and has still to apply what it knows to be committed.
    ends: bool,
}

impl Node {
    /// An administrator's request.
    pub(crate) fn administer(
        &mut self,
        context: &mut Context<'_>,
        id: u64,
        request: AdminRequest,
        deadline: Micros,
    ) {
        if !self.raft.is_leader() {
            let leader = self.raft.leader();
            return context.admin_done(id, Err(AdminError::NotLeader(leader)));
        }
        if let AdminRequest::Transfer(target) = request {
            return self.transfer(context, id, target);
        }
        if self.applied < self.membership.last_change {
            return context.admin_done(id, Err(AdminError::Busy));
        }
        let request = match request {
            AdminRequest::Checked {
                request,
                learners_max,
            } => match self.check_as_etcd(&request, learners_max) {
                Ok(()) => *request,
                Err(error) => return context.admin_done(id, Err(error)),
            },
            AdminRequest::Register(record) => match self.registration(context, record) {
                Registration::Change(request) => request,
                Registration::Done(result) => return context.admin_done(id, result),
            },
            request => request,
        };
        match self.change_of(request) {
            Ok((changes, command, added)) => {
                let pending = Pending {
                    id: Some(id),
                    added,
                    index: None,
                    deadline,
                };
                self.change(context, changes, Some(command), pending);
            }
            Err(error) => context.admin_done(id, Err(error)),
        }
    }

    fn change_of(
        &self,
        request: AdminRequest,
    ) -> Result<(Vec<MemberChange>, Command, Option<MemberId>), AdminError> {
        let known = |id: MemberId| {
            if self.raft.latest_configuration().contains(id) {
                Ok(id)
            } else {
                Err(AdminError::UnknownMember(id))
            }
        };
        Ok(match request {
            AdminRequest::AddLearner(record) => {
                let record = self.with_new_id(record);
                let id = record.id;
                (
                    vec![MemberChange::AddLearner(id)],
                    Command::AddMember(record),
                    Some(id),
                )
            }
            AdminRequest::Promote(id) => (
                vec![MemberChange::Promote(known(id)?)],
                Command::Batch(vec![]),
                None,
            ),
            AdminRequest::Remove(id) => (
                vec![MemberChange::Remove(known(id)?)],
                Command::RemoveMember(id),
                None,
            ),
            AdminRequest::Replace { old, new } => {
                let new = MemberRecord {
                    promote_when_ready: true,
                    ..self.with_new_id(new)
                };
                let id = new.id;
                (
                    vec![MemberChange::Remove(known(old)?), MemberChange::AddLearner(id)],
                    Command::Batch(vec![Command::RemoveMember(old), Command::AddMember(new)]),
                    Some(id),
                )
            }
            AdminRequest::Register(_) | AdminRequest::Transfer(_) | AdminRequest::Checked { .. } => {
                unreachable!("handled by the caller")
            }
        })
    }

    /// What the announcement of a member by itself amounts to. Every change before it is applied: a name is not
    /// given twice.
    fn registration(&self, context: &Context<'_>, record: MemberRecord) -> Registration {
        let record = MemberRecord {
            promote_when_ready: true,
            ..record
        };
        let configuration = self.raft.latest_configuration();
        let mut members = self.cluster.members.values();
        let known = members.find(|known| known.name == record.name && configuration.contains(known.id));
        let Some(known) = known else {
            let incarnation = 0; // it says so itself as soon as it has started
            return Registration::Change(AdminRequest::AddLearner(MemberRecord {
                incarnation,
                ..record
            }));
        };
        let is_awaited = known.incarnation == 0 && known.peer_addresses == record.peer_addresses;
        if record.incarnation == 0 || record.incarnation == known.incarnation || is_awaited {
            return Registration::Done(Ok(AdminReply::Known(known.id)));
        }
        let is_active = |peer: &kvorum_raft::PeerStatus| peer.id == known.id && peer.active;
        if known.id == self.id() || self.raft.peers().iter().any(is_active) {
            return Registration::Done(Err(AdminError::InUse(known.id)));
        }
        if context.now < self.known_since + 2 * self.options.raft.election_timeout {
            // The leader is new: it may not have heard it yet.
            return Registration::Done(Err(AdminError::Busy));
        }
        let (old, incarnation) = (known.id, 0);
        let new = MemberRecord {
            incarnation,
            ..record
        };
        Registration::Change(AdminRequest::Replace { old, new })
    }

    /// With the ID that it has, or else the next one of the replicated counter, that no member has or had.
    fn with_new_id(&self, record: MemberRecord) -> MemberRecord {
        let configuration = self.raft.latest_configuration();
        let taken = |id: &MemberId| {
            configuration.contains(*id)
                || configuration.removed.contains(id)
                || self.cluster.members.contains_key(id)
        };
        let chosen = Some(record.id).filter(|id| *id != 0);
        let mut counted = self.cluster.next_member.max(1)..;
        let id = chosen
            .into_iter()
            .chain(&mut counted)
            .find(|id| !taken(id))
            .expect("u64 is not exhausted");
        MemberRecord { id, ..record }
    }

    fn change(
        &mut self,
        context: &mut Context<'_>,
        changes: Vec<MemberChange>,
        command: Option<Command>,
        pending: Pending,
    ) {
        let token = self.next_token();
        self.membership.pending.insert(token, pending);
        let bytes = command
            .map(|command| self.internal_envelope(context, command))
            .unwrap_or_default();
        self.step_raft(
            context,
            kvorum_raft::Input::ChangeConfig {
                token,
                changes,
                context: bytes,
            },
        );
    }

    /// The core appended something: if it is a change, remember where.
    pub(crate) fn change_accepted(&mut self, token: Token, index: Index) {
        if let Some(pending) = self.membership.pending.get_mut(&token) {
            pending.index = Some(index);
            self.membership.last_change = self.membership.last_change.max(index);
        }
    }

    /// The core refused something that is no batch of writes.
    pub(crate) fn change_refused(&mut self, context: &mut Context<'_>, token: Token, why: RefuseReason) {
        if let Some(Pending { id: Some(id), .. }) = self.membership.pending.remove(&token) {
            let error = match why {
                RefuseReason::NotLeader(leader) | RefuseReason::Transferring(leader) => {
                    AdminError::NotLeader(leader)
                }
                RefuseReason::NoLiveQuorum => AdminError::NoLiveQuorum,
                RefuseReason::NotReady(member) => AdminError::NotReady(member),
                RefuseReason::InvalidChange(what) => AdminError::Invalid(what.to_owned()),
                _ => AdminError::Busy,
            };
            context.admin_done(id, Err(error));
        }
    }

    /// Leadership was lost with a change in the log.
    pub(crate) fn change_unknown(&mut self, context: &mut Context<'_>, token: Token) {
        if let Some(Pending { id: Some(id), .. }) = self.membership.pending.remove(&token) {
            context.admin_done(id, Err(AdminError::Unknown));
        }
    }

    /// Changes at or below the applied index are done.
    pub(crate) fn settle_changes(&mut self, context: &mut Context<'_>) {
        let applied = self.applied;
        let mut done: Vec<Pending> = self
            .membership
            .pending
            .extract_if(|_, pending| pending.index.is_some_and(|index| index <= applied))
            .map(|(_, pending)| pending)
            .collect();
        done.sort_by_key(|pending| pending.index);
        for pending in done {
            if let Some(id) = pending.id {
                context.admin_done(id, Ok(AdminReply::Changed(pending.added)));
            }
        }
    }

    /// The core says that this member was removed.
    pub(crate) fn removed(&mut self, context: &mut Context<'_>) {
        self.membership.ends = true;
        self.settle_removal(context);
    }

    /// A member that was removed ends, but not before whoever asked for it on this member is answered.
    pub(crate) fn settle_removal(&mut self, context: &mut Context<'_>) {
        if self.membership.ends && self.applied >= self.raft.commit() {
            self.membership.ends = false;
            context.out.push(Effect::Removed);
        }
    }

    /// Callers that stopped waiting hear that the change may still happen.
    pub(crate) fn expire_changes(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let mut late: Vec<u64> = self
            .membership
            .pending
            .extract_if(|_, pending| pending.deadline <= now)
            .filter_map(|(_, pending)| pending.id)
            .collect();
        late.sort_unstable();
        for id in late {
            context.admin_done(id, Err(AdminError::TimedOut));
        }
    }

    fn transfer(&mut self, context: &mut Context<'_>, id: u64, target: MemberId) {
        let target = if target == 0 {
            self.best_successor()
        } else {
            target
        };
        if target == 0 || !self.raft.latest_configuration().is_voter(target) {
            return context.admin_done(id, Err(AdminError::NotReady(target)));
        }
        self.step_raft(context, kvorum_raft::Input::TransferTo(target));
        let begun = target == self.id() || self.is_transferring();
        let result = if begun {
            Ok(AdminReply::TransferStarted)
        } else {
            Err(AdminError::NotReady(target))
        };
        context.admin_done(id, result);
    }

    /// The voter that has most of the log, 0 if there is none to hand over to.
    fn best_successor(&self) -> MemberId {
        let voters = self.raft.latest_configuration();
        let fit = self
            .raft
            .peers()
            .into_iter()
            .filter(|peer| peer.active && voters.is_voter(peer.id));
        fit.max_by_key(|peer| (peer.matched, std::cmp::Reverse(peer.id)))
            .map_or(0, |peer| peer.id)
    }

    /// Says who this member is until the cluster knows it; names the cluster if nobody has.
    pub(crate) fn introduce(&mut self, context: &mut Context<'_>) {
        if self.cluster.uuid == 0 {
            if self.raft.is_leader() && self.initialised_in_term != self.raft.term() {
                self.initialised_in_term = self.raft.term();
                let election_timeout_ms = self.options.raft.election_timeout / 1000;
                let uuid = self.options.fresh_uuid;
                self.propose_internal(
                    context,
                    vec![Command::ClusterInit {
                        uuid,
                        election_timeout_ms,
                    }],
                );
            }
            return;
        }
        self.tell_history(context);
        let known = self.cluster.members.get(&self.id());
        let record = MemberRecord {
            promote_when_ready: known.is_some_and(|known| known.promote_when_ready),
            peer_addresses: match known {
                // An operator moved it since this start: where it is now is what it is told at its next start.
                Some(known) if self.introduced => known.peer_addresses.clone(),
                _ => self.options.record.peer_addresses.clone(),
            },
            ..self.options.record.clone()
        };
        self.introduced |= known == Some(&record);
        if known != Some(&record) && self.raft.leader() != 0 && context.now >= self.introduce_again_at {
            self.introduce_again_at = context.now + 2 * self.options.raft.election_timeout;
            // It may have been moved by an entry that is not applied here yet: then no address is said.
            let stays = self.options.keeps_addresses && known.is_some();
            let peer_addresses = if stays { Vec::new() } else { record.peer_addresses };
            let record = MemberRecord {
                peer_addresses,
                ..record
            };
            self.propose_internal(context, vec![Command::PublishMember(record)]);
        }
    }

    /// Who gave the cluster its name also says how much history it keeps, once.
    fn tell_history(&mut self, context: &mut Context<'_>) {
        let is_due = self.cluster.uuid == self.options.fresh_uuid
            && self.options.history_ms != kvorum_mvcc::HISTORY_MS
            && self.raft.is_leader();
        if is_due && !std::mem::replace(&mut self.history_told, true) {
            let setting = Setting::HistoryMs(self.options.history_ms);
            self.propose_internal(context, vec![Command::ClusterSetting(setting)]);
        }
    }

    /// The leader makes voters of the replacements that are in sync; the core refuses those that are not.
    pub(crate) fn promote_ready(&mut self, context: &mut Context<'_>) {
        if !self.raft.is_leader()
            || !self.membership.pending.is_empty()
            || self.applied < self.membership.last_change
        {
            return;
        }
        let learners = &self.raft.latest_configuration().learners;
        let ready = learners.iter().copied().find(|id| {
            self.cluster
                .members
                .get(id)
                .is_some_and(|record| record.promote_when_ready && record.incarnation != 0)
        });
        if let Some(id) = ready {
            let deadline = context.now + self.options.raft.election_timeout;
            let pending = Pending {
                id: None,
                added: None,
                index: None,
                deadline,
            };
            self.change(context, vec![MemberChange::Promote(id)], None, pending);
        }
    }

    /// Proposes commands of this member's own, in order.
    pub(crate) fn propose_internal(&mut self, context: &mut Context<'_>, commands: Vec<Command>) {
        let deadline = context.now + self.options.raft.election_timeout;
        let proposals = commands.into_iter().map(|command| crate::interface::Proposal {
            seq: Node::INTERNAL | self.next_token(),
            command: self.internal_envelope(context, command),
            deadline,
        });
        let proposals = proposals.collect();
        self.propose(context, proposals);
    }

    /// An envelope of this member's own, for which nobody waits.
    pub(crate) fn internal_envelope(&mut self, context: &Context<'_>, command: Command) -> bytes::Bytes {
        let origin = Origin {
            member: self.id(),
            boot: self.options.raft.boot,
            seq: Node::INTERNAL,
        };
        Envelope {
            time_ms: self.clock.time_ms(context.now),
            origin,
            session: None,
            caller: None,
            command,
        }
        .encode()
    }

    /// Proposes removals that housekeeping found.
    pub(crate) fn propose_removals(
        &mut self,
        context: &mut Context<'_>,
        found: crate::interface::Housekeeping,
    ) {
        if !self.raft.is_leader() {
            return;
        }
        if !found.expired_sessions.is_empty() {
            self.propose_internal(context, vec![Command::ExpireSessions(found.expired_sessions)]);
        }
        if let Some(revision) = found.compact_to
            && self.options.compacts_by_age
        {
            self.propose_internal(context, vec![Command::Compact(revision)]);
        }
    }

    /// The state machine's members or settings changed.
    pub(crate) fn cluster_changed(
        &mut self,
        context: &mut Context<'_>,
        cluster: Arc<kvorum_mvcc::ClusterState>,
    ) {
        self.cluster = cluster.clone();
        context.out.push(Effect::ClusterChanged(cluster));
    }
}
