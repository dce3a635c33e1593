//! One running member: the replica with everything around it that the server has threads for.
//!
//! A process is what a crash ends: whatever is not on its [`SimDisk`] or flushed in its store goes with it. Effects
//! are carried out as in the server: the log's writer and the applier (`storage`) each do one thing at a time, in
//! order, and take their time; the replica sees what they did through its mailbox.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kvorum_model::{Envelope, Origin, RangeRequest, SessionRef};
use kvorum_mvcc::{MemView, ReadView, SimStore, SnapshotReader, StateMachine};
use kvorum_node::recovery::Replica;
use kvorum_node::{
    AdminError, AdminReply, AdminRequest, Effect, Input, LeaseCall, Node, PeerBody, PeerMessage, Proposal,
    ReadRequest, Staged, WriteFailure,
};
use kvorum_raft::{AppendResult, Entry, Index, MemberId, MessageBody, Micros, Term};
use kvorum_wal::SimDisk;

use crate::bugs::Bug;
use crate::clients::{Answer, Request};
use crate::describe::Brief;
use crate::env::{Env, Event, ProcessEvent};
use crate::marks::Mark;
use crate::network::Frame;
use crate::storage::{ApplyWork, LogWork};
use crate::transfer::{Incoming, Outgoing};
use crate::watchers::Watching;

/// A clock that has its own zero and runs at its own rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalClock {
    pub zero: Micros,
    pub drift_ppm: i64,
}

impl LocalClock {
    pub(crate) fn local(&self, now: Micros) -> Micros {
        let drift = now as i128 * self.drift_ppm as i128 / 1_000_000;
        (self.zero as i128 + now as i128 + drift) as Micros
    }

    /// The earliest world time at which the clock shows `local`.
    fn world(&self, local: Micros) -> Micros {
        let since = local.saturating_sub(self.zero) as i128;
        let mut at = (since * 1_000_000 / (1_000_000 + self.drift_ppm as i128)) as Micros;
        while self.local(at) < local {
            at += 1;
        }
        at
    }
}

/// Who waits for a write's or a read's answer.
#[derive(Debug)]
pub(crate) struct Caller {
    client: usize,
    attempt: u64,
}

/// A read between its caller and a view.
struct PendingRead {
    caller: Caller,
    request: RangeRequest,
    /// For [`Bug::ViewTakenTooEarly`].
    early: Option<ReadView<SimStore>>,
}

/// What the disk holds, as of the last finished write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OnDisk {
    pub last: Index,
    pub term: Term,
    pub vote: MemberId,
}

/// Why a process ends by itself.
#[derive(Debug)]
pub(crate) enum End {
    /// The member was removed from the cluster.
    Removed,
    /// It cannot go on after a fault that was injected.
    Excused,
}

/// What waits for the replica's thread.
#[derive(Default)]
struct Mailbox {
    others: Vec<Input>,
    reads: Vec<ReadRequest>,
    leases: Vec<LeaseCall>,
    writes: Vec<Proposal>,
}

/// One running member. See the module's documentation.
pub(crate) struct Process {
    pub id: MemberId,
    pub life: u64,
    boot: u64,
    pub clock: LocalClock,
    pub replica: Replica<SimDisk, SimStore>,
    pub disk: SimDisk,
    /// The install record of the store: set by an install, cleared when the log has followed.
    pub install: Option<(Index, Term)>,
    mailbox: Mailbox,
    run_at: Option<Micros>,
    effects: Vec<Effect>,
    writes: BTreeMap<u64, Caller>,
    reads: BTreeMap<u64, PendingRead>,
    lease_calls: BTreeMap<u64, Caller>,
    next_request: u64,

    pub log: VecDeque<LogWork>,
    pub log_taken: VecDeque<LogWork>,
    pub log_busy: bool,
    pub log_exhausted: bool,
    pub on_disk: OnDisk,
    /// For [`Bug::SyncDropped`]: the disk before the last write.
    pub before_last_write: Option<SimDisk>,
    /// Added to the time of each log write.
    pub disk_delay: Micros,
    /// A write of this disk was made to fail: the process may stop because of it.
    pub excused: bool,

    pub apply: VecDeque<ApplyWork>,
    pub apply_busy: bool,

    /// Snapshots asked for at an index that is not applied yet, by peer.
    pub wanted: Vec<(MemberId, Index)>,
    pub views: BTreeMap<MemberId, SnapshotReader<MemView>>,
    pub outgoing: Vec<Outgoing>,
    pub incoming: Option<Incoming>,
    /// Received snapshots that wait for the core's word, and how many came in all.
    pub staged: BTreeMap<Staged, StateMachine<SimStore>>,
    pub staged_count: Staged,
    pub watching: Watching,

    leading: bool,
    joint: bool,
    /// It led in this term when it was paused.
    pub slept_leading: Option<Term>,
}

impl Process {
    pub(crate) fn new(
        id: MemberId,
        (life, boot): (u64, u64),
        clock: LocalClock,
        replica: Replica<SimDisk, SimStore>,
        disk: SimDisk,
        install: Option<(Index, Term)>,
        on_disk: OnDisk,
    ) -> Process {
        let joint = replica.node.raft().latest_configuration().is_joint();
        let watching = Watching::new(replica.apply.machine().revision());
        Process {
            id,
            life,
            boot,
            clock,
            replica,
            disk,
            install,
            mailbox: Mailbox::default(),
            run_at: None,
            effects: Vec::new(),
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            lease_calls: BTreeMap::new(),
            next_request: 1,
            log: VecDeque::new(),
            log_taken: VecDeque::new(),
            log_busy: false,
            log_exhausted: false,
            on_disk,
            before_last_write: None,
            disk_delay: 0,
            excused: false,
            apply: VecDeque::new(),
            apply_busy: false,
            wanted: Vec::new(),
            views: BTreeMap::new(),
            outgoing: Vec::new(),
            incoming: None,
            staged: BTreeMap::new(),
            staged_count: 0,
            watching,
            leading: false,
            joint,
            slept_leading: None,
        }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.replica.node
    }

    pub(crate) fn machine(&self) -> &StateMachine<SimStore> {
        self.replica.apply.machine()
    }

    /// Lets something happen inside this process later.
    pub(crate) fn after(&self, env: &mut Env, delay: Micros, what: ProcessEvent) {
        env.schedule(
            delay,
            Event::Process {
                host: self.id,
                life: self.life,
                what,
            },
        );
    }

    /// Puts an input into the mailbox and wakes the replica.
    pub(crate) fn push(&mut self, env: &mut Env, input: Input) {
        self.mailbox.others.push(input);
        self.wake(env);
    }

    pub(crate) fn wake(&mut self, env: &mut Env) {
        let delay = env.random.between(1, 40);
        self.wake_at(env, env.now + delay);
    }

    /// Its thread should have run while the process was paused.
    pub(crate) fn overslept(&mut self, env: &mut Env) {
        self.run_at = None;
        self.wake(env);
    }

    fn wake_at(&mut self, env: &mut Env, at: Micros) {
        if self.run_at.is_none_or(|run_at| at < run_at) {
            self.run_at = Some(at);
            self.after(env, at - env.now, ProcessEvent::Run);
        }
    }

    /// A client's request came in.
    pub(crate) fn request(&mut self, env: &mut Env, client: usize, attempt: u64, request: Request) {
        let caller = Caller { client, attempt };
        let seq = self.next_request;
        self.next_request += 1;
        let now = self.clock.local(env.now);
        match request {
            Request::Write {
                command,
                session,
                patience,
            } => {
                let origin = Origin {
                    member: self.id,
                    boot: self.boot,
                    seq,
                };
                let command = Envelope {
                    time_ms: 0,
                    origin,
                    session,
                    caller: None,
                    command,
                }
                .encode();
                self.writes.insert(seq, caller);
                self.mailbox.writes.push(Proposal {
                    seq,
                    command,
                    deadline: now + patience,
                });
            }
            Request::Lease { ask, lease, patience } => {
                self.lease_calls.insert(seq, caller);
                self.mailbox.leases.push(LeaseCall {
                    id: seq,
                    lease,
                    ask,
                    deadline: now + patience,
                });
            }
            Request::Read { request, patience } => {
                let early = env
                    .has_bug(Bug::ViewTakenTooEarly)
                    .then(|| self.machine().reader().view());
                self.reads.insert(
                    seq,
                    PendingRead {
                        caller,
                        request,
                        early,
                    },
                );
                if env.has_bug(Bug::ReadWithoutGate) {
                    return self.serve_reads(env, vec![seq]);
                }
                self.mailbox.reads.push(ReadRequest {
                    id: seq,
                    deadline: now + patience,
                });
            }
        }
        self.wake(env);
    }

    /// The replica's thread runs: everything that waits, then what the clock demands, then the effects.
    pub(crate) fn run(&mut self, env: &mut Env) -> Option<End> {
        if self.run_at != Some(env.now) {
            return None;
        }
        self.run_at = None;
        for input in std::mem::take(&mut self.mailbox.others) {
            self.step(env, input);
        }
        if !self.mailbox.reads.is_empty() {
            let reads = std::mem::take(&mut self.mailbox.reads);
            self.step(env, Input::Read(reads));
        }
        if !self.mailbox.leases.is_empty() {
            let leases = std::mem::take(&mut self.mailbox.leases);
            self.step(env, Input::Leases(leases));
        }
        if !self.mailbox.writes.is_empty() {
            let writes = std::mem::take(&mut self.mailbox.writes);
            self.step(env, Input::Propose(writes));
        }
        if self.clock.local(env.now) >= self.node().next_deadline() {
            self.step(env, Input::Tick);
        }
        for effect in std::mem::take(&mut self.effects) {
            env.note(format_args!("{} » {}", self.id, Brief(&effect)));
            if let Some(end) = self.carry_out(env, effect) {
                return Some(end);
            }
        }
        self.follow_role(env);
        let deadline = self.clock.world(self.node().next_deadline());
        self.wake_at(env, deadline.max(env.now + 50));
        None
    }

    fn step(&mut self, env: &mut Env, input: Input) {
        env.note(format_args!("{} « {}", self.id, Brief(&input)));
        self.replica
            .node
            .step(self.clock.local(env.now), input, &mut self.effects);
    }

    fn carry_out(&mut self, env: &mut Env, effect: Effect) -> Option<End> {
        match effect {
            Effect::Persist(persist) => {
                if env.has_bug(Bug::PersistedTooEarly) {
                    self.push(env, Input::Persisted(persist.seq));
                }
                self.log_work(env, LogWork::Persist(persist));
            }
            Effect::Purge(meta) => {
                env.reach(Mark::LogPurged);
                self.log_work(env, LogWork::Purge(meta));
            }
            Effect::Fetch {
                id,
                from,
                to,
                bytes_max,
            } => {
                env.reach(Mark::FetchedFromLog);
                let mut delay = env.random.about(env.profile.disk / 2);
                if !env.calm && env.random.one_in(20) {
                    // A busy disk: this is how a snapshot takes the entries' place while they are read.
                    delay += env.random.about(2 * env.profile.election_timeout);
                }
                self.after(
                    env,
                    delay,
                    ProcessEvent::FetchDone {
                        id,
                        from,
                        to,
                        bytes_max,
                    },
                );
            }
            Effect::Apply(entries) => self.commit(env, entries),
            Effect::BuildSnapshot { peer, at_least } => {
                self.apply_work(env, ApplyWork::BuildSnapshot { peer, at_least });
            }
            Effect::SendSnapshot(message) => self.send_snapshot(env, message),
            Effect::Install { staged, meta } => {
                if self.installs_waiting() {
                    env.reach(Mark::InstallOvertaken);
                }
                self.apply_work(env, ApplyWork::Install { staged, meta });
            }
            Effect::InstallSettled(last) => self.apply_work(env, ApplyWork::InstallSettled(last)),
            Effect::DropStaged(staged) => self.apply_work(env, ApplyWork::DropStaged(staged)),
            Effect::Send(message) => self.send(env, &message),
            Effect::WritesFailed { seqs, why } => self.writes_failed(env, &seqs, why),
            Effect::ReadsReady(ids) => {
                if !self.node().is_leader() {
                    env.reach(Mark::FollowerRead);
                }
                let delay = env.random.between(1, 100);
                self.after(env, delay, ProcessEvent::ServeReads(ids));
            }
            Effect::ReadsFailed { ids, .. } => {
                for id in ids {
                    self.answer_read(env, id, Answer::NotApplied);
                }
            }
            Effect::LeasesDone(done) => {
                for (id, result) in done {
                    let answer = result.map_or(Answer::NotApplied, Answer::Lease);
                    if let Some(caller) = self.lease_calls.remove(&id) {
                        env.answer(caller.client, caller.attempt, answer);
                    }
                }
            }
            Effect::AdminDone { id, result } => self.admin_done(env, id, result),
            Effect::Housekeep { time_ms } => self.apply_work(env, ApplyWork::Housekeep { time_ms }),
            Effect::ClusterChanged(_) => {}
            Effect::PeerLostData(peer) => {
                env.fail(format!(
                    "member {} finds that member {peer} lost what it acknowledged",
                    self.id
                ));
            }
            Effect::Removed => return Some(End::Removed),
            Effect::Fatal(_) if self.excused => return Some(End::Excused),
            Effect::Fatal(why) => env.fail(format!("member {} stops: {why}", self.id)),
        }
        None
    }

    /// Committed entries on their way to the applier.
    fn commit(&mut self, env: &mut Env, entries: Vec<Entry>) {
        for entry in &entries {
            let check = env.truth.applies(self.id, entry);
            env.must(check);
        }
        let last = entries.last().map_or(0, |entry| entry.index);
        if env.truth.watching && last > self.on_disk.last {
            let (id, held) = (self.id, self.on_disk.last);
            env.fail(format!(
                "member {id} applies entry {last}, its disk holds only {held}"
            ));
        }
        self.apply_work(env, ApplyWork::Apply(entries));
    }

    fn send(&mut self, env: &mut Env, message: &PeerMessage) {
        if env.truth.watching
            && let PeerBody::Raft(core) = &message.body
        {
            let check = self.vouches(env, core.term, message.to, &core.body);
            env.must(check);
        }
        let bytes = message.encode();
        env.trace.bytes(&bytes);
        let frame = match &message.body {
            PeerBody::Raft(_) => Frame::Core(bytes),
            &PeerBody::Forward { id, .. } => {
                let frame = Frame::Forward { id, bytes };
                if env.has_bug(Bug::ForwardDeliveredTwice) && env.random.one_in(20) {
                    env.transmit(self.id, message.to, frame.clone());
                }
                frame
            }
            PeerBody::ForwardRefused { .. } => {
                env.reach(Mark::ForwardRefused);
                Frame::Call(bytes)
            }
            _ => Frame::Call(bytes),
        };
        env.transmit(self.id, message.to, frame);
    }

    /// Whether the disk holds what a message promises.
    fn vouches(&self, env: &mut Env, term: Term, to: MemberId, body: &MessageBody) -> Result<(), String> {
        let OnDisk {
            last,
            term: held_term,
            vote,
        } = self.on_disk;
        let fail = |what: String| {
            Err(format!(
                "member {} {what} in term {term}, its disk holds term {held_term}, vote {vote}, entries to {last}",
                self.id
            ))
        };
        match *body {
            MessageBody::AppendReply {
                result: AppendResult::Matched(index),
                ..
            } if index > last => fail(format!("acknowledges entry {index}")),
            MessageBody::VoteReply { granted: true, .. } => {
                if (held_term, vote) != (term, to) {
                    return fail(format!("votes for {to}"));
                }
                env.truth.votes(self.id, term, to)
            }
            MessageBody::Vote { last: end, .. } => {
                if (held_term, vote) != (term, self.id) || end.index > last {
                    return fail(format!("asks for votes with entries to {}", end.index));
                }
                env.truth.votes(self.id, term, self.id)
            }
            _ => Ok(()),
        }
    }

    fn writes_failed(&mut self, env: &mut Env, seqs: &[u64], why: WriteFailure) {
        for seq in seqs {
            let Some(caller) = self.writes.remove(seq) else {
                continue;
            };
            if why == WriteFailure::Superseded {
                env.reach(Mark::WriteSuperseded);
            }
            let unknown = why.is_unknown() && !env.has_bug(Bug::UnknownReportedAsNotApplied);
            let answer = if unknown {
                Answer::Unknown
            } else {
                Answer::NotApplied
            };
            env.answer(caller.client, caller.attempt, answer);
        }
    }

    /// An entry of this process was applied: its caller gets the answer.
    pub(crate) fn answer_write(&mut self, env: &mut Env, origin: Origin, answer: Answer) {
        let own = (origin.member, origin.boot) == (self.id, self.boot);
        if (own || env.has_bug(Bug::AnswersMixedUp))
            && let Some(caller) = self.writes.remove(&origin.seq)
        {
            env.answer(caller.client, caller.attempt, answer);
        }
    }

    fn answer_read(&mut self, env: &mut Env, id: u64, answer: Answer) {
        if let Some(PendingRead { caller, .. }) = self.reads.remove(&id) {
            env.answer(caller.client, caller.attempt, answer);
        }
    }

    /// Confirmed reads are answered from a view of the state as it is now.
    pub(crate) fn serve_reads(&mut self, env: &mut Env, ids: Vec<u64>) {
        let view = self.machine().reader().view();
        for id in ids {
            let Some(read) = self.reads.get(&id) else { continue };
            let view = read.early.as_ref().unwrap_or(&view);
            let answer = match view.range(&read.request) {
                Ok(response) => Answer::Read {
                    revision: view.revision(),
                    response,
                },
                Err(error) => {
                    env.fail(format!(
                        "member {}: a read of the newest revision fails: {error}",
                        self.id
                    ));
                    Answer::NotApplied
                }
            };
            self.answer_read(env, id, answer);
        }
    }

    fn admin_done(&mut self, env: &mut Env, id: u64, result: Result<AdminReply, AdminError>) {
        let delay = env.random.between(50, 500);
        env.schedule(delay, Event::AdminAnswer { id, result });
    }

    /// An administrator's request came in.
    pub(crate) fn administer(&mut self, env: &mut Env, id: u64, request: AdminRequest) {
        let deadline = self.clock.local(env.now) + 8 * env.profile.election_timeout;
        self.push(
            env,
            Input::Admin {
                id,
                request,
                deadline,
            },
        );
    }

    /// A frame came in.
    pub(crate) fn arrival(&mut self, env: &mut Env, from: MemberId, frame: Frame) {
        match frame {
            Frame::Core(bytes) | Frame::Call(bytes) | Frame::Forward { bytes, .. } => {
                match PeerMessage::decode(bytes) {
                    Ok(message) => self.push(env, Input::Peer(message)),
                    Err(error) => env.fail(format!(
                        "member {} cannot read a message of {from}: {error}",
                        self.id
                    )),
                }
            }
            Frame::Piece {
                stream,
                number,
                bytes,
                last,
            } => self.piece(env, from, stream, number, &bytes, last),
            Frame::End {
                stream,
                number,
                message,
            } => self.transfer_ends(env, from, stream, number, message),
            Frame::Received { stream, next } => self.piece_received(env, stream, next),
            Frame::Declined { stream } => self.transfer_failed(env, stream, None),
        }
    }

    /// Looks at what the last step made of this member.
    fn follow_role(&mut self, env: &mut Env) {
        let raft = self.replica.node.raft();
        let (term, leading) = (raft.term(), raft.is_leader());
        if leading {
            let check = env.truth.leads(self.id, term);
            env.must(check);
        }
        if self.leading && !leading && !self.writes.is_empty() {
            env.reach(Mark::LeaderChangedWithWritesInFlight);
        }
        self.leading = leading;
        if let Some(led) = self.slept_leading.take()
            && term > led
        {
            env.reach(Mark::LeaderSleptThroughElection);
        }
        let joint = raft.latest_configuration().is_joint();
        if joint && !self.joint && !env.calm && env.random.one_in(3) {
            // Joint configurations are short; this is how restarts find them.
            let delay = env.random.about(env.profile.disk + env.profile.link);
            let power = env.random.one_in(2);
            env.schedule(delay, Event::Crash { host: self.id, power });
        }
        self.joint = joint;
    }

    /// The process is gone: its callers' connections break.
    pub(crate) fn break_connections(&mut self, env: &mut Env) {
        for caller in std::mem::take(&mut self.writes).into_values() {
            env.answer(caller.client, caller.attempt, Answer::Unknown);
        }
        for caller in std::mem::take(&mut self.lease_calls).into_values() {
            env.answer(caller.client, caller.attempt, Answer::NotApplied);
        }
        for read in std::mem::take(&mut self.reads).into_values() {
            env.answer(read.caller.client, read.caller.attempt, Answer::NotApplied);
        }
        if !self.outgoing.is_empty() || self.incoming.is_some() {
            env.reach(Mark::SnapshotInterrupted);
        }
    }

    /// Remembers a session's request in the log, to notice the second one.
    pub(crate) fn note_session(&self, env: &mut Env, session: Option<SessionRef>, index: Index) {
        if let Some(session) = session
            && env.truth.is_repeated(session, index)
        {
            env.reach(Mark::SessionRetryDeduplicated);
        }
    }

    /// The session of an encoded command, if it has one.
    pub(crate) fn session_of(data: &Bytes) -> Option<SessionRef> {
        Envelope::decode(data.clone()).ok()?.session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_a_time_exactly_when_it_says_it_will() {
        for drift_ppm in [-9_000, -1, 0, 1, 9_000] {
            let clock = LocalClock {
                zero: 12_345,
                drift_ppm,
            };
            for local in [12_345, 12_346, 99_999, 60_000_000, 3_600_000_000] {
                let at = clock.world(local);
                assert!(clock.local(at) >= local && (at == 0 || clock.local(at - 1) < local));
            }
        }
    }
}
