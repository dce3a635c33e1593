//! The core: its state, and one step of it.
//!
//! [`Raft::step`] takes one [`Input`], changes state, and ends with the same chain each time: release what the
//! disk has made true, drive the role, hand out what may be applied, issue the write, report, check the
//! invariants. A broken invariant or a failed disk leaves nothing but [`Effect::Fatal`], once and for ever.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use crate::clock::Clock;
use crate::election::Campaign;
use crate::interface::{Effect, Input, Options, RefuseReason, Role};
use crate::invariants::Floor;
use crate::leader::Leader;
use crate::log::Log;
use crate::message::{Message, MessageBody};
use crate::reads::ForwardedReads;
use crate::snapshot::Installing;
use crate::types::{Configuration, HardState, Index, LogId, MemberId, Micros, Term};
use crate::writes::{Promise, Writes};

/// Effects handed to the state machine and not yet answered; more wait inside and are handed out together.
const APPLIES_MAX: usize = 4;

/// The consensus core of one member. See the crate's documentation.
///
/// Equality and hash are those of the whole state. With `election_timeout` and `heartbeat_interval` both 0 and
/// a constant `now` no part of it depends on time: that is how a model checker uses it. Otherwise see
/// [`Raft::without_time`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Raft {
    pub(crate) options: Options,
    pub(crate) hard_state: HardState,
    pub(crate) log: Log,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    /// Handed to the state machine.
    pub(crate) handed: Index,
    /// Ends of the `Apply` effects that are not answered.
    applies: VecDeque<Index>,
    /// The fetch for the next `Apply`, and its first index.
    apply_fetch: Option<(u64, Index)>,
    pub(crate) flushed: Index,
    /// What no live member needs any more, as the leader says (LG4).
    pub(crate) keep_above: Index,
    pub(crate) leader: MemberId,
    pub(crate) state: State,
    pub(crate) clock: Clock,
    pub(crate) writes: Writes,
    /// Number of the last campaign (EL3).
    pub(crate) campaign: u64,
    /// Number of the last stream of appends.
    pub(crate) epoch: u64,
    /// Number of the last fetch.
    fetches: u64,
    /// The newest read round heard from this term's leader (RD2).
    pub(crate) round_heard: u64,
    pub(crate) forwarded_reads: ForwardedReads,
    pub(crate) installing: Option<Installing>,
    /// A committed configuration removed this member (MB7).
    pub(crate) removed: bool,
    pub(crate) outbox: Outbox,
    reported: Reported,
    floor: Floor,
    failure: Option<String>,
}

/// The role with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    Follower,
    PreCandidate(Campaign),
    Candidate(Campaign),
    Leader(Box<Leader>),
}

/// The effects of the current step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outbox {
    cluster: u64,
    id: MemberId,
    pub effects: Vec<Effect>,
    /// A promise was about to leave without its gate.
    ungated: bool,
}

impl Outbox {
    pub fn message(&self, to: MemberId, term: Term, body: MessageBody) -> Message {
        Message {
            cluster: self.cluster,
            from: self.id,
            to,
            term,
            body,
        }
    }

    /// Sends what promises nothing.
    pub fn send(&mut self, to: MemberId, term: Term, body: MessageBody) {
        self.ungated |= body.is_promise();
        let message = self.message(to, term, body);
        self.effects.push(Effect::Send(message));
    }

    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}

/// What the shell was told last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reported {
    role: (Term, MemberId, Role),
    commit: Index,
    latest: Configuration,
    committed: Configuration,
    removed: bool,
}

impl Raft {
    /// The parts are consistent: `restart.rs` has checked them.
    pub(crate) fn assemble(
        options: Options,
        hard_state: HardState,
        log: Log,
        commit: Index,
        applied: Index,
        now: Micros,
    ) -> Raft {
        let seed = options.seed ^ options.id.wrapping_mul(0xd134_2543_de82_ef95);
        let clock = Clock::new(now, options.election_timeout, options.heartbeat_interval, seed);
        let committed = log.configuration_at(commit).clone();
        let reported = Reported {
            role: (hard_state.term, 0, Role::Follower),
            commit,
            latest: log.configuration().clone(),
            committed,
            removed: false,
        };
        let campaign = options.boot.rotate_left(32);
        let outbox = Outbox {
            cluster: options.cluster,
            id: options.id,
            effects: Vec::new(),
            ungated: false,
        };
        let mut raft = Raft {
            writes: Writes::new(log.last().index),
            options,
            hard_state,
            log,
            commit,
            applied,
            handed: applied,
            applies: VecDeque::new(),
            apply_fetch: None,
            flushed: applied,
            keep_above: 0,
            leader: 0,
            state: State::Follower,
            clock,
            campaign,
            epoch: 0,
            fetches: 0,
            round_heard: 0,
            forwarded_reads: ForwardedReads::default(),
            installing: None,
            removed: false,
            outbox,
            reported,
            floor: Floor::default(),
            failure: None,
        };
        raft.floor = Floor::of(&raft);
        raft
    }

    /// One input in, its effects appended to `out`. `now` is the time of a monotonic clock that also counts
    /// suspend; the shell calls with [`Input::Tick`] at [`Raft::next_deadline`] at the latest, after it has fed
    /// the messages that wait.
    pub fn step(&mut self, now: Micros, input: Input, out: &mut Vec<Effect>) {
        if self.failure.is_some() {
            return refuse_after_failure(&input, out);
        }
        self.run(now, out, |raft| raft.handle(input));
    }

    /// Starts an election as if the election timeout had just passed, whatever the clock says. For model
    /// checkers and tests; a shell uses [`Input::Tick`]. Nothing happens if this member may not campaign (EL10).
    pub fn campaign_now(&mut self, now: Micros, out: &mut Vec<Effect>) {
        if self.failure.is_none() {
            self.run(now, out, |raft| {
                if !raft.is_leader() && raft.may_campaign() {
                    raft.campaign(false);
                }
            });
        }
    }

    fn run(&mut self, now: Micros, out: &mut Vec<Effect>, act: impl FnOnce(&mut Raft)) {
        let start = out.len();
        std::mem::swap(&mut self.outbox.effects, out);
        if !self.clock.advance(now) {
            self.lose_lease();
        }
        act(self);
        if self.failure.is_none() {
            self.settle();
        }
        self.check_invariants();
        std::mem::swap(&mut self.outbox.effects, out);
        if let Some(failure) = &self.failure {
            out.truncate(start);
            out.push(Effect::Fatal(failure.clone()));
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Tick => self.tick(),
            Input::Message(message) => self.receive(message),
            Input::Propose { token, commands } => self.propose(token, commands),
            Input::ChangeConfig {
                token,
                changes,
                context,
            } => self.change_config(token, &changes, context),
            Input::TransferTo(target) => self.transfer_to(target),
            Input::Read { token } => self.read(token),
            Input::Persisted(seq) => {
                if let Err(why) = self.writes.complete(seq) {
                    self.fail(why);
                }
            }
            Input::PersistFailed => self.fail("the disk failed".into()),
            Input::Applied(index) => self.on_applied(index),
            Input::Flushed(index) => self.on_flushed(index),
            Input::Fetched { id, entries } => self.on_fetched(id, entries),
            Input::SnapshotBuilt { peer, meta } => self.on_snapshot_built(peer, meta),
            Input::SnapshotSent { peer, ok } => self.on_snapshot_sent(peer, ok),
            Input::SnapshotInstalled(meta) => self.on_snapshot_installed(meta),
            Input::Unreachable(peer) => self.on_unreachable(peer),
        }
    }

    fn tick(&mut self) {
        if !self.clock.is_settled() {
            return;
        }
        if self.is_leader() {
            self.tick_leader()
        } else {
            self.tick_election()
        }
        self.retry_forwarded_reads();
    }

    /// What follows from the new state. Ends when nothing more follows.
    fn settle(&mut self) {
        loop {
            while let Some(promise) = self.writes.release() {
                match promise {
                    Promise::Send(message) => self.outbox.push(Effect::Send(message)),
                    Promise::OwnVote { term, campaign } => self.on_own_vote(term, campaign),
                    Promise::Install(last) => self.install(last),
                }
            }
            self.drive_leader();
            self.drive_forwarded_reads();
            self.hand_out();
            let mark = self.commit.min(self.log.last().index);
            let write = self.writes.issue(self.log.last().index, mark, self.clock.now);
            if let Some(write) = write {
                self.outbox.push(Effect::Persist(write));
            }
            if self.failure.is_some() || !self.writes.can_release() {
                break;
            }
        }
        let durable = self.commit.min(self.writes.persisted());
        self.log.evict(durable, self.handed);
        self.report();
    }

    /// Hands committed, durable entries to the state machine.
    fn hand_out(&mut self) {
        let limit = self.commit.min(self.writes.persisted());
        while self.installing.is_none()
            && self.apply_fetch.is_none()
            && self.handed < limit
            && self.applies.len() < APPLIES_MAX
        {
            let bytes_max = self.options.apply_bytes_max;
            match self.log.read(self.handed + 1, limit, bytes_max) {
                Some(entries) => self.hand(entries),
                None => {
                    let id = self.next_fetch();
                    self.apply_fetch = Some((id, self.handed + 1));
                    self.outbox.push(Effect::Fetch {
                        id,
                        from: self.handed + 1,
                        to: limit,
                        bytes_max,
                    });
                }
            }
        }
    }

    fn hand(&mut self, entries: Vec<crate::types::Entry>) {
        if let Some(last) = entries.last() {
            self.handed = last.index;
            self.applies.push_back(last.index);
            self.outbox.push(Effect::Apply(entries));
        }
    }

    fn on_applied(&mut self, index: Index) {
        if index > self.handed {
            return self.fail(format!(
                "entry {index} is reported applied, but only {} were handed out",
                self.handed
            ));
        }
        self.applied = self.applied.max(index);
        while self.applies.front().is_some_and(|&end| end <= index) {
            self.applies.pop_front();
        }
    }

    pub(crate) fn next_fetch(&mut self) -> u64 {
        self.fetches += 1;
        self.fetches
    }

    fn on_fetched(&mut self, id: u64, entries: Vec<crate::types::Entry>) {
        let Some((expected, from)) = self.apply_fetch else {
            return self.on_fetched_for_peer(id, entries);
        };
        if expected != id {
            return self.on_fetched_for_peer(id, entries);
        }
        self.apply_fetch = None;
        if self.check_fetched(from, &entries) {
            let mut entries = entries;
            let limit = self.commit.min(self.writes.persisted());
            entries.retain(|entry| entry.index <= limit);
            self.hand(entries);
        }
    }

    /// Whether the shell read what was asked for; if not, the log cannot be trusted (RP9).
    pub(crate) fn check_fetched(&mut self, from: Index, entries: &[crate::types::Entry]) -> bool {
        if entries.is_empty() {
            self.fail(format!("the log could not be read from entry {from} on"));
            return false;
        }
        for (entry, index) in entries.iter().zip(from..) {
            if entry.index != index || self.log.term_at(index) != Some(entry.term) {
                self.fail(format!(
                    "entry {}@{} was read where {index}@{:?} is",
                    entry.index,
                    entry.term,
                    self.log.term_at(index)
                ));
                return false;
            }
        }
        true
    }

    /// The state machine is being replaced: what is still being read for it must not reach it (SN3).
    pub(crate) fn pause_applying(&mut self) {
        self.apply_fetch = None;
    }

    /// The state machine was replaced: everything up to `index` is applied, nothing is on its way to it.
    pub(crate) fn restart_applying(&mut self, index: Index) {
        self.applied = self.applied.max(index);
        self.handed = self.handed.max(index);
        self.applies.clear();
        self.apply_fetch = None;
    }

    /// The first index that a read under way needs.
    pub(crate) fn apply_fetch_from(&self) -> Option<Index> {
        self.apply_fetch.map(|(_, from)| from)
    }

    fn report(&mut self) {
        let role = (self.hard_state.term, self.leader, self.role());
        if role != self.reported.role {
            self.reported.role = role;
            self.outbox.push(Effect::Role {
                term: role.0,
                leader: role.1,
                role: role.2,
            });
        }
        if self.commit != self.reported.commit {
            self.reported.commit = self.commit;
            self.outbox.push(Effect::Committed(self.commit));
        }
        let latest = self.log.configuration();
        let committed = self.log.configuration_at(self.commit);
        if *latest != self.reported.latest || *committed != self.reported.committed {
            self.reported.latest = latest.clone();
            self.reported.committed = committed.clone();
            let (latest, committed) = (latest.clone(), committed.clone());
            self.outbox.push(Effect::Config { latest, committed });
        }
        if self.committed_configuration().removed.contains(&self.options.id) {
            self.removed = true;
        }
        if self.removed && !self.reported.removed {
            self.reported.removed = true;
            self.outbox.push(Effect::Removed);
        }
    }

    /// Stops this core: the first reason stays.
    pub(crate) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    fn check_invariants(&mut self) {
        if self.outbox.ungated {
            self.fail("a promise left before the disk made it true".into());
        }
        if self.failure.is_none() {
            match Floor::check(self) {
                Ok(()) => self.floor = Floor::of(self),
                Err(why) => self.fail(format!("invariant broken: {why}")),
            }
        }
    }

    pub(crate) fn floor(&self) -> &Floor {
        &self.floor
    }

    /// When the shell must call with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Micros {
        let due = match &self.state {
            State::Leader(leader) => leader.heartbeat_at,
            _ => self.clock.election_at,
        };
        let due = self.read_retry_at().map_or(due, |at| due.min(at));
        // Often enough that no gap between inputs looks like a pause of the process (TM2).
        let latest = self.clock.now + (self.clock.t_min / 4).max(1);
        due.max(self.clock.grace_until).max(self.clock.now).min(latest)
    }

    /// This member's ID.
    pub fn id(&self) -> MemberId {
        self.options.id
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        matches!(self.state, State::Leader(_))
    }

    /// The leader of the current term as far as it is known, else 0.
    pub fn leader(&self) -> MemberId {
        self.leader
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// Term and vote.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The commit index.
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// What the state machine has applied.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// The end of the log.
    pub fn last(&self) -> LogId {
        self.log.last()
    }

    /// The term of the entry at `index`, if the log reaches there (its base included).
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The configuration in force: the log's newest, committed or not (MB1).
    pub fn latest_configuration(&self) -> &Configuration {
        self.log.configuration()
    }

    /// The newest committed configuration.
    pub fn committed_configuration(&self) -> &Configuration {
        self.log.configuration_at(self.commit)
    }

    /// This member's role.
    pub fn role(&self) -> Role {
        match self.state {
            State::Follower => Role::Follower,
            State::PreCandidate(_) => Role::PreCandidate,
            State::Candidate(_) => Role::Candidate,
            State::Leader(_) => Role::Leader,
        }
    }

    /// Why the core stopped, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The same state with every time and random number set to nothing: for hashing states that differ in
    /// nothing else.
    pub fn without_time(&self) -> Raft {
        let mut raft = self.clone();
        raft.clock = raft.clock.without_time();
        raft.writes.forget_times();
        raft.forwarded_reads.forget_times();
        if let State::Leader(leader) = &mut raft.state {
            leader.forget_times();
        }
        raft
    }

    /// Hashes [`Raft::without_time`].
    pub fn hash_without_time(&self, hasher: &mut impl Hasher) {
        self.without_time().hash(hasher);
    }
}

/// After a failure nothing happens; who asks for something is told.
fn refuse_after_failure(input: &Input, out: &mut Vec<Effect>) {
    match *input {
        Input::Propose { token, .. } | Input::ChangeConfig { token, .. } => {
            out.push(Effect::Refused {
                token,
                why: RefuseReason::Stopped,
            });
        }
        Input::Read { token } => out.push(Effect::ReadDropped { token }),
        _ => {}
    }
}
