//! One member as the model sees it: a shipped core, its disk, its state machine; and the shell that carries
//! out the core's effects, with every rule judged as it goes.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};

use kvorum_raft::*;

use crate::disk::{Disk, Machine};
use crate::ledger::{Broken, Ledger, check};
use crate::shared::Shared;
use crate::suite::{Network, Plant, Start, Suite};

/// A member.
#[derive(Clone, Debug)]
pub struct Member {
    pub raft: Raft,
    boot: u64,
    pub disk: Disk,
    pub machine: Machine,
    /// Issued and not done.
    pub writes: VecDeque<Persist>,
    /// Snapshots to build: peer → least index.
    builds: BTreeMap<MemberId, Index>,
    pub installs: VecDeque<SnapshotMeta>,
    /// No election timeout passes before this local time.
    pub quiet_until: Micros,
    commit: Index,
    leads: Option<Term>,
    timed: bool,
}

impl Hash for Member {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        if self.timed {
            self.raft.hash(hasher);
        } else {
            self.raft.hash_without_time(hasher);
        }
        (self.boot, &self.disk, &self.machine, &self.writes).hash(hasher);
        (&self.builds, &self.installs, self.quiet_until).hash(hasher);
        (self.commit, self.leads).hash(hasher);
    }
}

impl Member {
    pub fn new(suite: &Suite, id: MemberId, start: &Start) -> Result<Member, Broken> {
        let disk = Disk {
            hard_state: start.hard_state,
            entries: start.entries.clone(),
            mark: start.mark,
            ..Disk::default()
        };
        let machine = Machine::default();
        let raft = Raft::new(suite.options(id, 1), disk.restore(&machine), 0);
        Ok(Member {
            raft: raft.map_err(|_| Broken::RestartFailed)?,
            boot: 1,
            disk,
            machine,
            writes: VecDeque::new(),
            builds: BTreeMap::new(),
            installs: VecDeque::new(),
            quiet_until: suite.options(id, 1).election_timeout,
            commit: 0,
            leads: None,
            timed: suite.clock.is_some(),
        })
    }

    /// The log as the core has it, durable or not.
    pub fn accepted(&self) -> Disk {
        let mut disk = self.disk.clone();
        for write in &self.writes {
            // Shapes are judged when the write is done.
            let _ = disk.write(write);
        }
        disk
    }

    /// The process dies and starts again. The writes that are not done are gone; one that was done and not
    /// reported is the case in which its completion came just before.
    fn crash(&mut self, suite: &Suite, now: Micros) -> Result<(), Broken> {
        self.writes.clear();
        self.builds.clear();
        self.installs.clear();
        self.machine.crash();
        match suite.plant {
            Some(Plant::VoteLost) => self.disk.hard_state.vote = 0,
            Some(Plant::ConfigurationForgotten) => {
                let config = |entry: &&mut Entry| entry.kind == EntryKind::Config && entry.index > 1;
                if let Some(entry) = self.disk.entries.iter_mut().rev().find(config) {
                    entry.kind = EntryKind::Noop;
                }
            }
            _ => {}
        }
        if suite.plant != Some(Plant::BootNotFresh) {
            self.boot += 1;
        }
        let options = suite.options(self.raft.id(), self.boot);
        let (mut started, mut quiet) = (now, options.election_timeout);
        if suite.plant == Some(Plant::SilenceForgotten) {
            started = now.saturating_sub(options.election_timeout);
            quiet = 0;
        }
        let restored = self.disk.restore(&self.machine);
        self.raft = Raft::new(options, restored, started).map_err(|_| Broken::RestartFailed)?;
        self.quiet_until = now + quiet;
        self.commit = 0;
        self.leads = None;
        Ok(())
    }
}

/// A message on its way; the end of a snapshot's stream reports to its sender.
#[derive(Clone, Debug, Hash)]
pub struct Packet {
    pub message: Message,
    pub snapshot: bool,
}

impl Packet {
    /// Packets of one queue of an ordered network.
    pub fn queue(&self) -> (MemberId, MemberId, bool) {
        (self.message.from, self.message.to, self.snapshot)
    }
}

/// What happens to one member.
#[derive(Clone, Debug)]
pub enum Event {
    Input(Input),
    Campaign,
    /// The disk finishes the oldest write.
    Persist,
    /// The state machine becomes the oldest snapshot that waits.
    Install,
    Flush,
    Crash,
    Start,
}

/// One member at work, with what it can reach.
pub struct Shell<'a> {
    pub suite: &'a Suite,
    pub member: Member,
    /// Everyone as they were before, this member included.
    pub members: &'a [Shared<Member>],
    pub now: Micros,
    pub network: Vec<Shared<Packet>>,
    pub ledger: Ledger,
    pub queue: VecDeque<Input>,
    /// The read that is the current input: answered in the same step, it needed no round.
    pub reading: Option<Token>,
}

impl Shell<'_> {
    pub fn run(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Input(input) => self.queue.push_back(input),
            Event::Campaign => {
                let mut out = Vec::new();
                self.member.raft.campaign_now(self.now, &mut out);
                self.absorb(out)?;
            }
            Event::Persist => self.persist()?,
            Event::Install => {
                if let Some(meta) = self.member.installs.pop_front() {
                    self.install(&meta)?;
                    self.queue.push_back(Input::SnapshotInstalled(meta));
                }
            }
            Event::Flush => {
                self.member.machine.flushed = self.member.machine.applied.clone();
                let index = self.member.machine.flushed.last.index;
                self.queue.push_back(Input::Flushed(index));
            }
            Event::Crash => {
                self.member.crash(self.suite, self.now)?;
                self.nudge();
            }
            Event::Start => self.nudge(),
        }
        self.finish_writes()?;
        while let Some(input) = self.queue.pop_front() {
            self.step(input)?;
            self.finish_writes()?;
        }
        Ok(())
    }

    /// A disk without delay.
    fn finish_writes(&mut self) -> Result<(), Broken> {
        while !self.suite.slow_disk && !self.member.writes.is_empty() {
            self.persist()?;
        }
        Ok(())
    }

    /// An input that says nothing, after which a restarted core says what it has to.
    fn nudge(&mut self) {
        self.queue
            .push_back(Input::Applied(self.member.machine.applied.last.index));
    }

    fn step(&mut self, input: Input) -> Result<(), Broken> {
        self.reading = match input {
            Input::Read { token } => {
                self.ledger.reads.insert(token, self.ledger.highest_commit());
                Some(token)
            }
            _ => None,
        };
        let asked = matches!(
            &input,
            Input::Message(message) if matches!(message.body, MessageBody::PreVote { .. })
        );
        let before = asked.then(|| self.member.raft.without_time());
        let from = match &input {
            Input::Message(message) if message.body.is_from_leader() => message.from,
            _ => 0,
        };
        let mut out = Vec::new();
        self.member.raft.step(self.now, input, &mut out);
        if let Some(before) = before {
            let equal = before == self.member.raft.without_time();
            check(equal, Broken::PreVoteChangedReceiver)?;
        }
        if from != 0 && self.member.raft.leader() == from && self.member.timed {
            let options = self.suite.options(self.member.raft.id(), 1);
            self.member.quiet_until = self.now + options.election_timeout;
        }
        self.absorb(out)
    }

    fn absorb(&mut self, out: Vec<Effect>) -> Result<(), Broken> {
        // Writes first: what is asked of the log then includes this step.
        for effect in &out {
            match effect {
                Effect::Persist(write) => self.issue(write)?,
                Effect::Fatal(_) => return Err(Broken::Fatal),
                _ => {}
            }
        }
        self.judge_leadership()?;
        self.judge_commit()?;
        for effect in out {
            self.effect(effect)?;
        }
        Ok(())
    }

    fn issue(&mut self, write: &Persist) -> Result<(), Broken> {
        let accepted = self.member.accepted();
        if let Some(from) = write.truncate_from {
            let cuts = from <= accepted.last().index;
            let leads = self.member.leads == Some(self.member.raft.term());
            check(!(cuts && leads), Broken::LeaderAppendOnly)?;
            let keeps = write.snapshot.is_some() || from > self.member.commit;
            check(keeps, Broken::CommittedChanged)?;
        }
        self.member.writes.push_back(write.clone());
        let early = match self.suite.plant {
            Some(Plant::PersistedTooEarly) => true,
            Some(Plant::LeaderCountsUnsynced) => self.member.raft.is_leader(),
            _ => false,
        };
        if early {
            self.queue.push_back(Input::Persisted(write.seq));
        }
        self.judge_log()
    }

    /// The disk finishes the oldest write.
    fn persist(&mut self) -> Result<(), Broken> {
        let Some(mut write) = self.member.writes.pop_front() else {
            return Ok(());
        };
        let seq = write.seq;
        if self.suite.plant == Some(Plant::CutForgotten) && write.truncate_from.take().is_some() {
            let last = self.member.disk.last().index;
            write.entries.retain(|entry| entry.index > last);
        }
        self.member.disk.write(&write)?;
        self.member.machine.log_written(&write);
        self.queue.push_back(Input::Persisted(seq));
        Ok(())
    }

    fn install(&mut self, meta: &SnapshotMeta) -> Result<(), Broken> {
        let committed = self.ledger.committed(meta.last.index);
        let known = committed.is_some_and(|entry| entry.term == meta.last.term);
        check(known, Broken::StateMachineSafety)?;
        self.ledger.installs += 1;
        self.member.machine.install(meta);
        Ok(())
    }

    fn effect(&mut self, effect: Effect) -> Result<(), Broken> {
        let member = &mut self.member;
        match effect {
            Effect::Send(message) => {
                self.judge_message(&message)?;
                self.send(Packet {
                    message,
                    snapshot: false,
                });
            }
            Effect::SendSnapshot(message) => {
                let packet = Packet {
                    message,
                    snapshot: true,
                };
                self.send(packet);
            }
            Effect::Apply(entries) => {
                for entry in &entries {
                    let same = self.ledger.committed(entry.index) == Some(entry);
                    check(same, Broken::StateMachineSafety)?;
                    member.machine.apply(entry)?;
                }
                let applied = member.machine.applied.last.index;
                self.queue.push_back(Input::Applied(applied));
                self.build();
            }
            Effect::Fetch { id, from, to, .. } => {
                let entries = member.disk.read(from, to);
                self.queue.push_back(Input::Fetched { id, entries });
            }
            Effect::NeedSnapshot { peer, at_least } => {
                member.builds.insert(peer, at_least);
                self.build();
            }
            Effect::Install(meta) if self.suite.plant == Some(Plant::InstallTooEarly) => {
                member.machine.applied = meta.clone();
                self.queue.push_back(Input::SnapshotInstalled(meta));
            }
            Effect::Install(meta) => member.installs.push_back(meta),
            Effect::Purge(meta) => {
                let flushed = meta.last.index <= member.machine.flushed.last.index;
                check(flushed, Broken::PurgedWhatIsNotDurable)?;
                member.disk.purge(&meta)?;
            }
            Effect::ReadReady { token, index } => {
                if self.reading == Some(token) {
                    self.ledger.lease_reads += 1;
                }
                self.ledger.read_ready(token, index)?;
            }
            Effect::ReadDropped { token } => {
                self.ledger.reads.remove(&token);
            }
            _ => {}
        }
        Ok(())
    }

    /// Builds every snapshot that the state machine can build now.
    fn build(&mut self) {
        let meta = &self.member.machine.applied;
        let queue = &mut self.queue;
        self.member.builds.retain(|&peer, &mut at_least| {
            let ready = at_least <= meta.last.index;
            if ready {
                let meta = meta.clone();
                queue.push_back(Input::SnapshotBuilt { peer, meta });
            }
            !ready
        });
    }

    fn send(&mut self, packet: Packet) {
        let body = &packet.message.body;
        let hint = matches!(body, MessageBody::Commit { .. });
        if (only_refuses(body) && !self.suite.refusals) || (hint && !self.suite.commit_hints) {
            return;
        }
        if packet.snapshot {
            // One stream per peer: a new one ends the old.
            self.network.retain(|other| other.queue() != packet.queue());
        }
        let packet = Shared::new(packet);
        match self.suite.network {
            Network::Ordered => {
                self.network.push(packet);
                self.network.sort_by_key(|packet| packet.queue());
            }
            Network::Unordered => {
                if !self.network.contains(&packet) {
                    self.network.push(packet);
                    self.network.sort_by_key(|packet| (packet.queue(), packet.key()));
                }
            }
        }
    }

    // The rules.

    fn judge_leadership(&mut self) -> Result<(), Broken> {
        let raft = &self.member.raft;
        let leads = raft.is_leader().then_some(raft.term());
        if leads.is_some() && leads != self.member.leads {
            self.ledger.elected(raft)?;
        }
        self.member.leads = leads;
        Ok(())
    }

    fn judge_commit(&mut self) -> Result<(), Broken> {
        let raft = &self.member.raft;
        let (from, to) = (self.member.commit + 1, raft.commit());
        if from > to {
            return Ok(());
        }
        self.member.commit = to;
        if raft.is_leader() {
            let own = raft.term_at(to) == Some(raft.term());
            let holds = |id: MemberId| {
                let disk = match self.members.get(id as usize - 1) {
                    _ if id == raft.id() => &self.member.disk,
                    Some(member) => &member.disk,
                    None => return false,
                };
                disk.base.last.index >= to || disk.term_at(to) == Some(raft.term())
            };
            let quorum = raft.latest_configuration().has_quorum(holds);
            check(own && quorum, Broken::CommitWithoutQuorum)?;
        }
        let accepted = self.member.accepted();
        for index in from..=to {
            match accepted.entry(index) {
                Some(entry) => {
                    let term = if raft.is_leader() { raft.term() } else { entry.term };
                    self.ledger.commit(entry, term)?;
                }
                // Covered by a snapshot, which was judged when it was installed.
                None => check(index < raft.status().first, Broken::CommittedChanged)?,
            }
        }
        Ok(())
    }

    /// Log matching, against everyone's accepted log.
    fn judge_log(&self) -> Result<(), Broken> {
        let own = self.member.accepted();
        for other in self.members {
            if other.raft.id() == self.member.raft.id() {
                continue;
            }
            let other = other.accepted();
            let mut equal_from_here = false;
            for entry in own.entries.iter().rev() {
                let Some(counterpart) = other.entry(entry.index) else {
                    continue;
                };
                equal_from_here |= counterpart.term == entry.term;
                check(!equal_from_here || counterpart == entry, Broken::LogMatching)?;
            }
        }
        Ok(())
    }

    /// What leaves is true of the disk.
    fn judge_message(&mut self, message: &Message) -> Result<(), Broken> {
        let disk = &self.member.disk;
        let Message { from, to, term, .. } = *message;
        match message.body {
            MessageBody::Vote { last, .. } => {
                let true_now = disk.hard_state == HardState { term, vote: from } && disk.last() == last;
                check(true_now, Broken::UntrueVote)?;
                self.ledger.vote(from, term, from)
            }
            MessageBody::VoteReply { granted: true, .. } => {
                check(
                    disk.hard_state == HardState { term, vote: to },
                    Broken::UntrueVote,
                )?;
                self.ledger.vote(from, term, to)
            }
            MessageBody::AppendReply {
                result: AppendResult::Matched(index),
                ..
            } => {
                let holds = disk.hard_state.term >= term && disk.last().index >= index;
                check(holds, Broken::UntrueAck)?;
                let Some(leader) = self.members.get(to as usize - 1) else {
                    return Ok(());
                };
                if leader.leads != Some(term) {
                    return Ok(());
                }
                let theirs = leader.accepted();
                let first = disk.base.last.index.max(theirs.base.last.index) + 1;
                let equal = (first..=index).all(|at| disk.entry(at) == theirs.entry(at));
                check(equal, Broken::UntrueAck)
            }
            _ => Ok(()),
        }
    }
}

/// Messages that say no more than "no" or "my term is higher": without them less happens, nothing else.
fn only_refuses(body: &MessageBody) -> bool {
    matches!(
        body,
        MessageBody::VoteReply { granted: false, .. }
            | MessageBody::PreVoteReply { granted: false, .. }
            | MessageBody::ReadIndexReply { index: None, .. }
            | MessageBody::HigherTerm
            | MessageBody::Removed
    )
}

/// Whether `message` can change nothing any more: its receiver has a durable higher term, or is no longer what
/// the answer is for and never will be again in that term (RS1).
pub fn is_dead(message: &Message, receiver: &Member, refusals: bool) -> bool {
    let (term, now) = (message.term, receiver.disk.hard_state);
    let same_life = receiver.raft.term() == now.term;
    match message.body {
        MessageBody::PreVote { .. } => now.term > term && !refusals,
        MessageBody::PreVoteReply { asked, .. } => asked <= now.term,
        MessageBody::Vote { .. } => {
            !refusals && (now.term > term || (now.term == term && now.vote != 0 && now.vote != message.from))
        }
        MessageBody::VoteReply { .. } => {
            now.term > term || (now.term == term && same_life && receiver.raft.role() != Role::Candidate)
        }
        MessageBody::AppendReply { .. } | MessageBody::HeartbeatReply { .. } => {
            now.term > term || (now.term == term && same_life && !receiver.raft.is_leader())
        }
        MessageBody::Append { .. }
        | MessageBody::Heartbeat { .. }
        | MessageBody::Snapshot { .. }
        | MessageBody::ReadIndex { .. } => now.term > term && !refusals,
        _ => now.term > term,
    }
}
