//! A cluster of cores in one process: simulated disks, state machines and message pool, all of it driven by
//! hand. Every effect is judged by the [`Oracle`] as it happens.

#![allow(clippy::unwrap_used, dead_code)]

pub mod disk;
pub mod oracle;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use disk::{Disk, Machine};
use kvorum_raft::*;
use oracle::Oracle;

pub const CLUSTER: u64 = 7;
pub const MS: Micros = 1000;

/// A message on its way; the end of a snapshot's stream reports to its sender.
#[derive(Clone, Debug, PartialEq)]
pub struct Flight {
    pub message: Message,
    pub snapshot: bool,
}

/// What a node's surroundings do by themselves, at once.
#[derive(Clone, Copy, Debug)]
pub struct Auto {
    pub persist: bool,
    pub apply: bool,
    pub fetch: bool,
    pub build: bool,
    pub install: bool,
}

impl Auto {
    pub const ALL: Auto = Auto {
        persist: true,
        apply: true,
        fetch: true,
        build: true,
        install: true,
    };
    pub const NONE: Auto = Auto {
        persist: false,
        apply: false,
        fetch: false,
        build: false,
        install: false,
    };
}

pub struct Node {
    pub raft: Option<Raft>,
    pub options: Options,
    pub disk: Disk,
    pub machine: Machine,
    pub auto: Auto,
    pub writes: VecDeque<Persist>,
    pub applies: VecDeque<Vec<Entry>>,
    pub fetches: VecDeque<(u64, Index, Index, usize)>,
    /// Snapshots to build: peer → least index.
    pub builds: BTreeMap<MemberId, Index>,
    pub installs: VecDeque<SnapshotMeta>,
    /// The node's clock runs at this many millionths of true time.
    pub rate_ppm: u64,
    /// Recovery reports only the newest part of the log as entries.
    pub recover_tail: Option<usize>,
}

impl Node {
    pub fn raft(&self) -> &Raft {
        self.raft.as_ref().expect("the node is up")
    }
}

pub struct Cluster {
    pub now: Micros,
    pub nodes: BTreeMap<MemberId, Node>,
    pub flights: Vec<Flight>,
    pub cuts: BTreeSet<(MemberId, MemberId)>,
    /// Stopped processes: messages to them wait, nothing ticks.
    pub paused: BTreeSet<MemberId>,
    pub oracle: Oracle,
    /// What is worth a line, in order.
    pub events: Vec<String>,
    queue: VecDeque<(MemberId, Input)>,
    /// Entries of another leader were cut so many times.
    pub cut: usize,
    /// The read that is the current input: answered in the same step, it needed no round.
    reading: Option<Token>,
}

pub fn options(id: MemberId) -> Options {
    Options {
        id,
        cluster: CLUSTER,
        boot: 1,
        seed: 1,
        election_timeout: 1000 * MS,
        heartbeat_interval: 100 * MS,
        pre_vote: true,
        lease_reads: false,
        append_bytes_max: 1 << 16,
        append_entries_max: usize::MAX,
        check_quorum: 0,
        window_messages: 16,
        window_bytes: 1 << 20,
        uncommitted_bytes_max: 1 << 20,
        cache_bytes_max: 1 << 20,
        apply_bytes_max: 1 << 16,
        entry_bytes_max: 1 << 16,
        promote_lag_bytes: 0,
        retain_bytes_max: 0,
    }
}

impl Cluster {
    pub fn new() -> Cluster {
        Cluster {
            now: 0,
            nodes: BTreeMap::new(),
            flights: Vec::new(),
            cuts: BTreeSet::new(),
            paused: BTreeSet::new(),
            oracle: Oracle::default(),
            events: Vec::new(),
            queue: VecDeque::new(),
            cut: 0,
            reading: None,
        }
    }

    /// A member whose disk holds these entries; without any a joiner.
    pub fn add(&mut self, options: Options, term: Term, entries: Vec<Entry>) {
        let id = options.id;
        let mut disk = Disk::default();
        disk.hard_state.term = term;
        disk.entries = entries;
        let node = Node {
            raft: None,
            options,
            disk: disk.clone(),
            machine: Machine::default(),
            auto: Auto::ALL,
            writes: VecDeque::new(),
            applies: VecDeque::new(),
            fetches: VecDeque::new(),
            builds: BTreeMap::new(),
            installs: VecDeque::new(),
            rate_ppm: 1_000_000,
            recover_tail: None,
        };
        self.nodes.insert(id, node);
        self.start(id).unwrap();
    }

    /// Founders of a cluster.
    pub fn found(&mut self, founders: Vec<Options>) {
        let ids: Vec<_> = founders.iter().map(|options| options.id).collect();
        for options in founders {
            self.add(options, 1, vec![founders_entry(ids.iter().copied())]);
        }
    }

    pub fn start(&mut self, id: MemberId) -> Result<(), StartError> {
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.raft.is_none(), "{id} is up already");
        let now = self.now * node.rate_ppm / 1_000_000;
        let restored = node.disk.restore(&node.machine, node.recover_tail);
        let raft = Raft::new(node.options.clone(), restored, now)?;
        self.oracle.started(id, &raft, &node.disk);
        node.raft = Some(raft);
        self.input(id, Input::Tick);
        Ok(())
    }

    pub fn restart(&mut self, id: MemberId) -> Result<(), StartError> {
        let node = self.nodes.get_mut(&id).unwrap();
        node.options.boot += 1;
        self.start(id)
    }

    /// The process dies; of the writes that are not durable the first `keep` survive.
    pub fn crash(&mut self, id: MemberId, keep: usize) {
        let node = self.nodes.get_mut(&id).unwrap();
        for write in node.writes.drain(..).take(keep) {
            node.disk.write(&write);
            node.machine.log_written(&write);
        }
        node.writes.clear();
        node.applies.clear();
        node.fetches.clear();
        node.builds.clear();
        node.installs.clear();
        node.machine.crash();
        node.raft = None;
    }

    pub fn now_of(&self, id: MemberId) -> Micros {
        self.now * self.nodes[&id].rate_ppm / 1_000_000
    }

    pub fn input(&mut self, id: MemberId, input: Input) {
        self.queue.push_back((id, input));
        while let Some((id, input)) = self.queue.pop_front() {
            self.step(id, input);
        }
    }

    pub fn campaign(&mut self, id: MemberId) {
        let now = self.now_of(id);
        let mut out = Vec::new();
        let node = self.nodes.get_mut(&id).unwrap();
        node.raft
            .as_mut()
            .expect("the node is up")
            .campaign_now(now, &mut out);
        self.absorb(id, out);
        while let Some((id, input)) = self.queue.pop_front() {
            self.step(id, input);
        }
    }

    fn step(&mut self, id: MemberId, input: Input) {
        let now = self.now_of(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(raft) = node.raft.as_mut() else { return };
        self.oracle.before(id, raft, &input);
        self.reading = match input {
            Input::Read { token } => Some(token),
            _ => None,
        };
        if std::env::var_os("TRACE").is_some() {
            eprintln!("{} {id} <- {input:?}", self.now);
        }
        let mut out = Vec::new();
        raft.step(now, input, &mut out);
        self.absorb(id, out);
    }

    fn absorb(&mut self, id: MemberId, out: Vec<Effect>) {
        let now = self.now_of(id);
        let node = self.nodes.get_mut(&id).unwrap();
        // Writes first: what the oracle asks of the log then includes this step.
        for effect in &out {
            if let Effect::Persist(write) = effect {
                if write.snapshot.is_none() && write.truncate_from.is_some() {
                    self.cut += 1;
                }
                self.oracle.wrote(id, write, node.raft.as_ref().unwrap());
            }
        }
        self.oracle.after(id, &self.nodes, now);
        for effect in out {
            if let Some(line) = describe(&effect) {
                self.events.push(format!("{id}: {line}"));
            }
            self.effect(id, effect);
        }
    }

    fn effect(&mut self, id: MemberId, effect: Effect) {
        let node = self.nodes.get_mut(&id).unwrap();
        let auto = node.auto;
        match effect {
            Effect::Persist(write) => {
                node.writes.push_back(write);
                if auto.persist {
                    self.persist(id);
                }
            }
            Effect::Send(message) => {
                if matches!(message.body, MessageBody::TimeoutNow { .. }) {
                    self.events.push(format!("{id}: transfers to {}", message.to));
                }
                self.oracle.sent(&message, &node.disk);
                self.send(Flight {
                    message,
                    snapshot: false,
                });
            }
            Effect::SendSnapshot(message) => {
                // One stream per peer: a new one ends the old.
                self.flights
                    .retain(|flight| !(flight.snapshot && is_link(flight, id, message.to)));
                self.send(Flight {
                    message,
                    snapshot: true,
                });
            }
            Effect::Apply(entries) => {
                node.applies.push_back(entries);
                if auto.apply {
                    self.apply(id);
                }
            }
            Effect::Fetch {
                id: fetch,
                from,
                to,
                bytes_max,
            } => {
                node.fetches.push_back((fetch, from, to, bytes_max));
                if auto.fetch {
                    self.fetch(id);
                }
            }
            Effect::NeedSnapshot { peer, at_least } => {
                node.builds.insert(peer, at_least);
                if auto.build {
                    self.build(id);
                }
            }
            Effect::Install(meta) => {
                node.installs.push_back(meta);
                if auto.install {
                    self.install(id);
                }
            }
            Effect::Purge(meta) => {
                assert!(
                    meta.last.index <= node.machine.flushed.last.index,
                    "purged what is not flushed"
                );
                node.disk.purge(&meta);
            }
            Effect::ReadReady { token, index } => {
                if self.reading == Some(token)
                    && node.options.lease_reads
                    && node.disk.base.configuration.voters.len() != 1
                {
                    self.events.push(format!("{id}: lease read {token}"));
                }
                self.oracle.read_ready(token, index);
            }
            Effect::ReadDropped { token } => self.oracle.read_dropped(token),
            Effect::Fatal(why) => self.oracle.fatal(id, &why),
            _ => {}
        }
    }

    fn send(&mut self, flight: Flight) {
        if self.cuts.contains(&(flight.message.from, flight.message.to)) {
            self.lose(flight);
        } else {
            self.flights.push(flight);
        }
    }

    /// The disk finishes the oldest write.
    pub fn persist(&mut self, id: MemberId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some(write) = node.writes.pop_front() {
            node.disk.write(&write);
            node.machine.log_written(&write);
            self.queue.push_back((id, Input::Persisted(write.seq)));
        }
    }

    pub fn apply(&mut self, id: MemberId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some(entries) = node.applies.pop_front() {
            for entry in &entries {
                self.oracle.applied(id, entry);
                node.machine.apply(entry);
            }
            let applied = node.machine.applied.last.index;
            self.queue.push_back((id, Input::Applied(applied)));
            self.build_if_auto(id);
        }
    }

    pub fn fetch(&mut self, id: MemberId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some((fetch, from, to, bytes_max)) = node.fetches.pop_front() {
            let entries = node.disk.read(from, to, bytes_max);
            self.queue.push_back((id, Input::Fetched { id: fetch, entries }));
        }
    }

    fn build_if_auto(&mut self, id: MemberId) {
        if self.nodes[&id].auto.build {
            self.build(id);
        }
    }

    /// Builds every snapshot that the state machine can build now.
    pub fn build(&mut self, id: MemberId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let applied = node.machine.applied.last.index;
        let (ready, rest) = std::mem::take(&mut node.builds)
            .into_iter()
            .partition(|&(_, at)| at <= applied);
        node.builds = rest;
        let ready: BTreeMap<MemberId, Index> = ready;
        for peer in ready.into_keys() {
            let meta = node.machine.applied.clone();
            self.queue.push_back((id, Input::SnapshotBuilt { peer, meta }));
        }
    }

    pub fn install(&mut self, id: MemberId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some(meta) = node.installs.pop_front() {
            self.oracle.installed(&meta);
            node.applies.clear();
            node.machine.install(&meta);
            self.queue.push_back((id, Input::SnapshotInstalled(meta)));
        }
    }

    pub fn flush(&mut self, id: MemberId) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.machine.flushed = node.machine.applied.clone();
        let index = node.machine.flushed.last.index;
        self.input(id, Input::Flushed(index));
    }

    /// Runs completions that were queued by `persist`, `apply`, `fetch`, `build` and `install`.
    pub fn run_queue(&mut self) {
        while let Some((id, input)) = self.queue.pop_front() {
            self.step(id, input);
        }
    }

    /// Hands a message to its receiver.
    pub fn deliver(&mut self, flight: Flight) {
        let (from, to) = (flight.message.from, flight.message.to);
        let up = self.nodes.get(&to).is_some_and(|node| node.raft.is_some());
        if up {
            // What arrives has been through the codec.
            let mut bytes = Vec::new();
            encode_message(&flight.message, &mut bytes);
            let decoded = decode_message(Bytes::from(bytes)).unwrap();
            assert_eq!(decoded, flight.message);
            self.input(to, Input::Message(flight.message));
        }
        if flight.snapshot {
            self.input(from, Input::SnapshotSent { peer: to, ok: up });
        }
    }

    /// A message that never arrives.
    pub fn lose(&mut self, flight: Flight) {
        if flight.snapshot {
            let (from, to) = (flight.message.from, flight.message.to);
            self.queue
                .push_back((from, Input::SnapshotSent { peer: to, ok: false }));
        }
    }

    /// Delivers everything until nothing is on its way.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.flights.is_empty() {
                return;
            }
            let flight = self.flights.remove(0);
            self.deliver(flight);
        }
        panic!("messages never end: {:?}", self.flights);
    }

    /// Time passes in steps of a millisecond; messages take one, timers fire.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += MS;
            let flights = std::mem::take(&mut self.flights);
            let (wait, due) = flights
                .into_iter()
                .partition(|flight| self.paused.contains(&flight.message.to));
            self.flights = wait;
            let due: Vec<Flight> = due;
            for flight in due {
                self.deliver(flight);
            }
            self.tick_due();
        }
    }

    pub fn tick_due(&mut self) {
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        for id in ids {
            let now = self.now_of(id);
            let raft = self.nodes[&id]
                .raft
                .as_ref()
                .filter(|_| !self.paused.contains(&id));
            if raft.is_some_and(|raft| raft.next_deadline() <= now) {
                self.input(id, Input::Tick);
            }
        }
    }

    pub fn leader(&self) -> Option<MemberId> {
        let up = self.nodes.values().filter_map(|node| node.raft.as_ref());
        let leaders = up.filter(|raft| raft.is_leader());
        leaders.max_by_key(|raft| raft.term()).map(|raft| raft.id())
    }
}

pub fn is_link(flight: &Flight, from: MemberId, to: MemberId) -> bool {
    flight.message.from == from && flight.message.to == to
}

/// Effects worth a line.
fn describe(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Role { term, leader, role } => match leader {
            0 => format!("{role:?} in term {term}, no leader"),
            _ => format!("{role:?} in term {term}, leader {leader}"),
        },
        Effect::Committed(index) => format!("committed {index}"),
        Effect::Accepted { token, term, first } => format!("accepted {token} at {first}@{term}"),
        Effect::Refused { token, why } => format!("refused {token}: {why:?}"),
        Effect::Unknown { token } => format!("unknown {token}"),
        Effect::ReadReady { token, index } => format!("read {token} ready at {index}"),
        Effect::ReadDropped { token } => format!("read {token} dropped"),
        Effect::Config { latest, committed } => {
            if latest == committed {
                format!("configuration {}", describe_configuration(latest))
            } else {
                let (latest, committed) = (describe_configuration(latest), describe_configuration(committed));
                format!("configuration {latest}, committed {committed}")
            }
        }
        Effect::NeedSnapshot { peer, at_least } => format!("needs a snapshot ≥ {at_least} for {peer}"),
        Effect::SendSnapshot(message) => format!("sends {}", describe_message(message)),
        Effect::Install(meta) => format!("installs {}@{}", meta.last.index, meta.last.term),
        Effect::Purge(meta) => format!("purges up to {}", meta.last.index),
        Effect::PeerLostData(peer) => format!("{peer} lost data"),
        Effect::Removed => "removed".into(),
        Effect::Fatal(why) => format!("FATAL {why}"),
        Effect::Persist(_) | Effect::Send(_) | Effect::Apply(_) | Effect::Fetch { .. } => return None,
    })
}

pub fn describe_configuration(configuration: &Configuration) -> String {
    let list = |ids: &BTreeSet<MemberId>| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(" ");
    let mut text = format!("({})", list(&configuration.voters));
    for (name, ids) in [
        ("&", &configuration.outgoing),
        (" learners ", &configuration.learners),
        (" to demote ", &configuration.learners_next),
        (" removed ", &configuration.removed),
    ] {
        if !ids.is_empty() {
            text += &format!("{name}({})", list(ids));
        }
    }
    text
}

pub fn describe_message(message: &Message) -> String {
    let id = |id: &LogId| format!("{}@{}", id.index, id.term);
    let answer = |granted: &bool| if *granted { "yes" } else { "no" };
    let body = match &message.body {
        MessageBody::PreVote { last, .. } => format!("PreVote for {} last {}", message.term + 1, id(last)),
        MessageBody::PreVoteReply { asked, granted, .. } => {
            format!("PreVoteReply {asked} {}", answer(granted))
        }
        MessageBody::Vote { last, forced, .. } => {
            format!("Vote last {}{}", id(last), if *forced { " forced" } else { "" })
        }
        MessageBody::VoteReply { granted, .. } => format!("VoteReply {}", answer(granted)),
        MessageBody::Append {
            prev,
            commit,
            entries,
            ..
        } => {
            let terms: Vec<_> = entries.iter().map(|entry| entry.term.to_string()).collect();
            format!("Append after {} [{}] commit {commit}", id(prev), terms.join(" "))
        }
        MessageBody::AppendReply { prev, result, .. } => match result {
            AppendResult::Matched(index) => format!("AppendReply matched {index}"),
            AppendResult::Refused { hint, last } => {
                format!("AppendReply refused {prev}, hint {} last {last}", id(hint))
            }
        },
        MessageBody::Heartbeat { round, commit, .. } => format!("Heartbeat round {round} commit {commit}"),
        MessageBody::HeartbeatReply {
            round, installing, ..
        } => {
            format!(
                "HeartbeatReply round {round}{}",
                if *installing { " installing" } else { "" }
            )
        }
        MessageBody::Commit { commit } => format!("Commit {commit}"),
        MessageBody::Snapshot { meta, .. } => {
            format!(
                "Snapshot {} {}",
                id(&meta.last),
                describe_configuration(&meta.configuration)
            )
        }
        MessageBody::TimeoutNow { last } => format!("TimeoutNow last {}", id(last)),
        MessageBody::ReadIndex { read } => format!("ReadIndex #{}", read.counter),
        MessageBody::ReadIndexReply { read, index, .. } => match index {
            Some(index) => format!("ReadIndexReply #{} {index}", read.counter),
            None => format!("ReadIndexReply #{} none", read.counter),
        },
        MessageBody::HigherTerm => "HigherTerm".into(),
        MessageBody::Removed => "Removed".into(),
    };
    format!("{}->{} term {} {body}", message.from, message.to, message.term)
}
