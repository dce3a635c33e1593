//! The replica's event loop: the consensus core in the middle, the rooms around it.

use std::sync::Arc;

use kvorum_model::Revision;
use kvorum_mvcc::ClusterState;
use kvorum_raft::{Index, LogId, MemberId, MessageBody, Micros, Raft, Role, Seq, Token};

use crate::clock::ClusterClock;
use crate::housekeeping::Keeping;
use crate::installs::Installs;
use crate::interface::{
    AdminError, AdminReply, ApplyReport, Effect, Input, Options, ReadFailure, Staged, WriteFailure,
};
use crate::leases::LeaseRoom;
use crate::membership::Membership;
use crate::reads::Reads;
use crate::wire::{PeerBody, PeerMessage};
use crate::writes::Writes;

/// How often waiting requests are looked through for deadlines.
const SWEEP_INTERVAL: Micros = 50_000;

/// One step's time and effects.
pub(crate) struct Context<'a> {
    pub(crate) now: Micros,
    pub(crate) from: MemberId,
    pub(crate) out: &'a mut Vec<Effect>,
}

impl Context<'_> {
    pub(crate) fn send(&mut self, to: MemberId, body: PeerBody) {
        let from = self.from;
        self.out.push(Effect::Send(PeerMessage { from, to, body }));
    }

    /// Nobody waits for a member's own proposals: they are tried again by whoever made them.
    pub(crate) fn fail(&mut self, mut seqs: Vec<u64>, why: WriteFailure) {
        seqs.retain(|seq| seq & Node::INTERNAL == 0);
        if !seqs.is_empty() {
            self.out.push(Effect::WritesFailed { seqs, why });
        }
    }

    pub(crate) fn fail_reads(&mut self, ids: Vec<u64>, why: ReadFailure) {
        if !ids.is_empty() {
            self.out.push(Effect::ReadsFailed { ids, why });
        }
    }

    pub(crate) fn admin_done(&mut self, id: u64, result: Result<AdminReply, AdminError>) {
        self.out.push(Effect::AdminDone { id, result });
    }
}

/// One replica. Deterministic: the same options, inputs and times give the same effects.
///
/// Invariants: a caller's write is in at most one of held, proposed, forwarded, in the log; `applied` never
/// falls; nothing is sent that the core has not released.
#[derive(Debug)]
pub struct Node {
    pub(crate) options: Options,
    pub(crate) raft: Raft,
    pub(crate) clock: ClusterClock,
    pub(crate) writes: Writes,
    pub(crate) reads: Reads,
    pub(crate) leases: LeaseRoom,
    pub(crate) membership: Membership,
    pub(crate) keeping: Keeping,
    pub(crate) cluster: Arc<ClusterState>,
    pub(crate) now: Micros,
    pub(crate) applied: Index,
    pub(crate) flushed: Index,
    pub(crate) revision: Revision,
    pub(crate) space_exhausted: bool,
    pub(crate) leader_changes: u64,
    pub(crate) initialised_in_term: u64,
    /// The last log write that was issued, and the last one that is durable.
    issued: Seq,
    persisted: Seq,
    installs: Installs,
    pub(crate) introduce_again_at: Micros,
    /// The cluster knew this member as it was started, at some time since.
    pub(crate) introduced: bool,
    /// This member named the cluster, and said how much history it keeps.
    pub(crate) history_told: bool,
    known: (u64, MemberId, Role),
    /// Since when `known` stands; of a leader, since when it leads.
    pub(crate) known_since: Micros,
    leaderless_since: Option<Micros>,
    /// Begins with the boot nonce: a late answer to a forward of this member's last process must not be taken for
    /// one to this process's forward.
    next_token: Token,
    next_sweep: Micros,
    /// Reused between steps.
    core_effects: Vec<kvorum_raft::Effect>,
}

impl Node {
    /// Set in the numbers of a member's own proposals, for which no caller waits.
    pub const INTERNAL: u64 = 1 << 63;

    /// A replica around a recovered core and the state that its store holds.
    pub fn new(
        options: Options,
        raft: Raft,
        report: ApplyReport,
        cluster: Arc<ClusterState>,
        time_ms: u64,
        now: Micros,
    ) -> Node {
        let known = (raft.term(), raft.leader(), Role::Follower);
        let next_token = (options.raft.boot << 32) & !Node::INTERNAL;
        let leases = LeaseRoom::new(
            options.lease_checkpoint_interval,
            report.all_leases.as_deref().unwrap_or_default(),
        );
        let introduced = options.keeps_addresses;
        Node {
            options,
            raft,
            clock: ClusterClock::new(time_ms, now),
            writes: Writes::default(),
            reads: Reads::default(),
            leases,
            membership: Membership::default(),
            keeping: Keeping::default(),
            cluster,
            now,
            applied: report.applied.index,
            flushed: report.flushed,
            revision: report.revision,
            space_exhausted: false,
            leader_changes: 0,
            initialised_in_term: 0,
            issued: 0,
            persisted: 0,
            installs: Installs::default(),
            introduce_again_at: 0,
            introduced,
            history_told: false,
            known,
            known_since: now,
            leaderless_since: Some(now),
            next_token,
            next_sweep: 0,
            core_effects: Vec::new(),
        }
    }

    /// This member's ID.
    pub fn id(&self) -> MemberId {
        self.options.raft.id
    }

    /// Whether this member leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// The leader this member knows, or 0.
    pub fn leader(&self) -> MemberId {
        self.raft.leader()
    }

    /// The consensus core, for checkers and the console.
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// When the shell must call [`Node::step`] with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Micros {
        let rest = self.leases.lessor.rests_until().filter(|at| *at > self.now);
        let due = self.raft.next_deadline().min(self.next_sweep);
        rest.map_or(due, |at| due.min(at))
    }

    /// One input in, effects appended to `out`. `now` never goes back between calls.
    pub fn step(&mut self, now: Micros, input: Input, out: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        let context = &mut Context {
            now: self.now,
            from: self.id(),
            out,
        };
        match input {
            Input::Tick => self.step_raft(context, kvorum_raft::Input::Tick),
            Input::Peer(message) => self.peer_message(context, message),
            Input::Propose(proposals) => self.propose(context, proposals),
            Input::Read(reads) => self.read(context, reads),
            Input::Leases(calls) => self.lease_calls(context, calls),
            Input::Admin {
                id,
                request,
                deadline,
            } => self.administer(context, id, request, deadline),
            Input::Persisted(seq) => {
                self.persisted = self.persisted.max(seq);
                self.step_raft(context, kvorum_raft::Input::Persisted(seq));
                if let Some(last) = self.installs.settled(self.persisted) {
                    context.out.push(Effect::InstallSettled(last));
                }
                self.propose_gathered(context);
            }
            Input::PersistFailed => self.step_raft(context, kvorum_raft::Input::PersistFailed),
            Input::Fetched { id, entries } => {
                self.step_raft(context, kvorum_raft::Input::Fetched { id, entries });
            }
            Input::Applied(report) => self.reached(context, report),
            Input::SnapshotBuilt { peer, meta } => {
                self.step_raft(context, kvorum_raft::Input::SnapshotBuilt { peer, meta });
            }
            Input::SnapshotSent { peer, ok } => {
                self.step_raft(context, kvorum_raft::Input::SnapshotSent { peer, ok });
            }
            Input::SnapshotReceived {
                staged,
                last,
                message,
            } => self.snapshot_received(context, staged, last, message),
            Input::Installed { meta, report } => {
                self.step_raft(context, kvorum_raft::Input::SnapshotInstalled(meta));
                self.installs.installed(report.applied, self.issued);
                self.reached(context, report);
            }
            Input::Unreachable { peer, handed, unsent } => {
                self.forwards_unsent(context, &unsent);
                self.forwards_lost(context, peer, handed);
                self.lease_calls_lost(peer);
                self.step_raft(context, kvorum_raft::Input::Unreachable(peer));
            }
            Input::Stopping => self.stop_holding(context),
            Input::Space { exhausted } => self.space_exhausted = exhausted,
            Input::Housekeeping(found) => self.propose_removals(context, found),
        }
        self.follow_role(context);
        if self.now >= self.next_sweep {
            self.next_sweep = self.now + SWEEP_INTERVAL;
            self.sweep(context);
        } else if self.leases.lessor.rests_until().is_some_and(|at| at <= self.now) {
            self.propose_lease_ends(context);
        }
    }

    fn peer_message(&mut self, context: &mut Context<'_>, message: PeerMessage) {
        let PeerMessage { from, to, body } = message;
        if to != self.id() {
            return;
        }
        match body {
            // A snapshot's message comes with the snapshot, never alone.
            PeerBody::Raft(message) if matches!(message.body, MessageBody::Snapshot { .. }) => {}
            PeerBody::Raft(message) if message.from == from && message.to == to => {
                self.step_raft(context, kvorum_raft::Input::Message(message));
            }
            PeerBody::Raft(_) => {}
            PeerBody::Forward { id, commands } => self.forwarded(context, from, id, commands),
            PeerBody::ForwardAccepted { id, term, first } => self.forward_accepted(id, term, first),
            PeerBody::ForwardRefused { id, why } => self.forward_refused(context, from, id, why),
            PeerBody::Digest { index, digest } => self.digest_heard(context, from, index, digest),
            PeerBody::LeaseCalls { id, calls } => self.lease_calls_heard(context, from, id, &calls),
            PeerBody::LeaseAnswers { id, answers } => self.lease_answers_heard(context, id, answers),
            PeerBody::LeaseRefused { id } => self.lease_calls_refused(id),
        }
    }

    /// The core decides what becomes of a staged snapshot: what it does not install, now or as soon as what came
    /// before is durable, leaves the stage.
    fn snapshot_received(
        &mut self,
        context: &mut Context<'_>,
        staged: Staged,
        last: LogId,
        message: kvorum_raft::Message,
    ) {
        self.installs.received(staged, last);
        let names =
            |body: &MessageBody| matches!(body, MessageBody::Snapshot { meta, .. } if meta.last == last);
        if names(&message.body) {
            self.step_raft(context, kvorum_raft::Input::Message(message));
        }
        let installing = self.raft.installing().map(|meta| meta.last);
        let dropped = self.installs.unwanted(installing);
        context.out.extend(dropped.into_iter().map(Effect::DropStaged));
    }

    fn reached(&mut self, context: &mut Context<'_>, report: ApplyReport) {
        assert!(
            report.applied.index >= self.applied,
            "the applied index never falls"
        );
        self.applied = report.applied.index;
        self.revision = report.revision;
        self.follow_leases(context, &report);
        self.step_raft(context, kvorum_raft::Input::Applied(self.applied));
        if report.flushed > self.flushed {
            self.flushed = report.flushed;
            self.step_raft(context, kvorum_raft::Input::Flushed(self.flushed));
        }
        if let Some(cluster) = report.cluster {
            self.cluster_changed(context, cluster);
        }
        self.settle_writes(context, report.applied.index);
        self.settle_reads(context);
        self.settle_leases(context, &report.leases);
        self.settle_changes(context);
        self.note_digests(context, report.digests);
        self.settle_removal(context);
    }

    fn follow_role(&mut self, context: &mut Context<'_>) {
        let role = (self.raft.term(), self.raft.leader(), self.raft.role());
        if role == self.known {
            return;
        }
        if role.1 != 0 && (role.0, role.1) != (self.known.0, self.known.1) {
            self.leader_changes += 1;
        }
        (self.known, self.known_since) = (role, self.now);
        self.leaderless_since = if role.1 == 0 {
            self.leaderless_since.or(Some(self.now))
        } else {
            None
        };
        self.propose_gathered(context);
        self.release_held(context);
        self.ask(context);
        self.leases_follow_role(context);
        self.introduce(context);
    }

    fn sweep(&mut self, context: &mut Context<'_>) {
        // In this order: what is held because the known leader cannot be reached must not be tried again for ever.
        self.expire_held(context);
        self.release_held(context);
        self.expire_forwards(context);
        self.refresh_reads(context);
        self.refresh_leases(context);
        self.expire_changes(context);
        self.introduce(context);
        self.promote_ready(context);
        self.look_after(context);
        let patience = 4 * self.options.raft.election_timeout;
        if self
            .leaderless_since
            .is_some_and(|since| since + patience < self.now)
        {
            self.abandon_writes(context);
        }
    }

    pub(crate) fn next_token(&mut self) -> Token {
        self.next_token += 1;
        self.next_token
    }

    /// Log writes that are not durable yet.
    pub(crate) fn log_writes_open(&self) -> u64 {
        self.issued.saturating_sub(self.persisted)
    }

    pub(crate) fn is_transferring(&self) -> bool {
        self.raft.transfer_target().is_some()
    }

    /// Steps the core and carries its effects on.
    pub(crate) fn step_raft(&mut self, context: &mut Context<'_>, input: kvorum_raft::Input) {
        let mut effects = std::mem::take(&mut self.core_effects);
        self.raft.step(context.now, input, &mut effects);
        for effect in effects.drain(..) {
            self.carry_on(context, effect);
        }
        self.core_effects = effects;
    }

    fn carry_on(&mut self, context: &mut Context<'_>, effect: kvorum_raft::Effect) {
        use kvorum_raft::Effect as Core;
        match effect {
            Core::Persist(persist) => {
                if !self.raft.is_leader() {
                    self.clock.observe(&persist.entries, context.now);
                }
                self.issued = persist.seq;
                context.out.push(Effect::Persist(persist));
            }
            Core::Send(message) => context.send(message.to, PeerBody::Raft(message)),
            Core::Apply(entries) => context.out.push(Effect::Apply(entries)),
            Core::Fetch {
                id,
                from,
                to,
                bytes_max,
            } => {
                context.out.push(Effect::Fetch {
                    id,
                    from,
                    to,
                    bytes_max,
                });
            }
            Core::NeedSnapshot { peer, at_least } => {
                context.out.push(Effect::BuildSnapshot { peer, at_least })
            }
            Core::SendSnapshot(message) => context.out.push(Effect::SendSnapshot(message)),
            Core::Install(meta) => {
                let staged = self.installs.hand(meta.last);
                let staged =
                    staged.expect("the core hears of a snapshot when it is staged, and installs it once");
                context.out.push(Effect::Install { staged, meta });
            }
            Core::ReadReady { token, index } if self.leases.asked(token) => {
                self.leases_confirmed(context, token, index);
            }
            Core::ReadReady { token, index } => self.read_confirmed(context, token, index),
            Core::ReadDropped { token } if self.leases.asked(token) => self.leases_dropped(token),
            Core::ReadDropped { token } => self.read_dropped(token),
            Core::Accepted { token, term, first } => {
                self.change_accepted(token, first);
                self.accepted(context, token, term, first);
            }
            Core::Refused { token, why } => self.refused(context, token, why),
            Core::Unknown { token } => self.change_unknown(context, token),
            Core::Purge(base) => context.out.push(Effect::Purge(base)),
            Core::PeerLostData(peer) => context.out.push(Effect::PeerLostData(peer)),
            Core::Removed => self.removed(context),
            Core::Fatal(why) => context.out.push(Effect::Fatal(why)),
            Core::Role { .. } | Core::Config { .. } | Core::Committed(_) => {}
        }
    }
}
