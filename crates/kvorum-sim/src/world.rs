//! A world: members, clients, watchers, faults, and the one queue of events that drives them all.
//!
//! Three parts: the run with its faults; then everything is healed, and the members must agree within a simulated
//! minute; then what everybody saw goes to the checkers.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use kvorum_check::{Evidence, FinalState, History, KeyRange, Limits, Op, OpId, Outcome, Reply};
use kvorum_raft::{MemberId, Micros};

use crate::bugs::Bug;
use crate::clients::{Answer, Client, key};
use crate::env::{Env, Event};
use crate::host::Host;
use crate::lessees::{FIRST as FIRST_LESSEE, Lessee};
use crate::marks::{Mark, Marks};
use crate::nemesis::{self, Nemesis};
use crate::profile::{Fault, Profile};
use crate::random::Random;
use crate::trace::Trace;
use crate::watchers::Watcher;

/// Within this time after the last fault all members must agree, and have served the last requests.
pub const CONVERGENCE_MAX: Micros = 60_000_000;
/// Between two looks at a healed world.
const LOOK_INTERVAL: Micros = 250_000;
const WATCHERS: usize = 4;
const LESSEES: usize = 3;

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// How long faults strike.
    pub duration: Micros,
    /// How many members found the cluster.
    pub founders: RangeInclusive<u64>,
    /// A mistake that is made on purpose.
    pub bug: Option<Bug>,
    /// Keep the trace as text.
    pub trace: bool,
}

impl Plan {
    /// A simulated minute, three to five founders.
    pub fn new(seed: u64) -> Plan {
        Plan {
            seed,
            duration: 60_000_000,
            founders: 3..=5,
            bug: None,
            trace: false,
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
    /// Hash of all that happened, and the number of lines that tell it.
    pub trace: (u128, u64),
    /// The lines, if they were kept.
    pub text: Option<String>,
    /// Situations reached.
    pub marks: Marks,
    /// Events simulated.
    pub events: u64,
    /// Operations of clients: answered, not applied, unknown.
    pub operations: [u64; 3],
    /// The last applied entry.
    pub entries: u64,
    /// Simulated time from the last fault until all members agreed.
    pub convergence: Option<Micros>,
}

impl Report {
    /// The run in a line, and what went wrong in further ones.
    pub fn summary(&self) -> String {
        let [answered, not_applied, unknown] = self.operations;
        let end = match (&self.failure, self.convergence) {
            (Some(failure), _) => format!("FAILED: {failure}"),
            (None, after) => format!("agreed after {} ms", after.unwrap_or(0) / 1000),
        };
        format!(
            "seed {}: {} events, {} entries, {answered} operations answered, {not_applied} not applied, \
             {unknown} unknown, trace {:032x}; {end}",
            self.seed, self.events, self.entries, self.trace.0
        )
    }
}

/// How far the end of a run has come.
#[derive(Debug)]
enum Phase {
    Faults,
    /// Healed; the members do not agree yet.
    Converging,
    /// All agree; each live member is asked to write, then to read everything, by a client of its own.
    Writing(BTreeMap<MemberId, OpId>),
    Reading(BTreeMap<MemberId, OpId>),
    /// Watchers still miss something up to this revision.
    Watching(u64),
    Done,
}

struct World {
    env: Env,
    hosts: BTreeMap<MemberId, Host>,
    clients: Vec<Client>,
    lessees: Vec<Lessee>,
    watchers: Vec<Watcher>,
    nemesis: Nemesis,
    history: History,
    phase: Phase,
    healed_at: Micros,
    convergence: Option<Micros>,
    finals: Vec<FinalState>,
}

/// Runs one world to its end and judges it.
pub fn run(plan: &Plan) -> Report {
    let mut world = World::new(plan);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.play())) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        world.env.fail(format!("panic: {}", text.unwrap_or_default()));
    }
    world.judge(plan.seed)
}

/// Runs worlds on all processors, one thread each; says what came of each as it ends, and returns all in the order
/// of the plans.
#[allow(clippy::disallowed_methods)] // Threads around worlds; inside there are none.
pub fn run_all(plans: Vec<Plan>, each: impl Fn(&Report) + Sync) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((at, plan)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            plans.get(at).map(|plan| (at, plan))
        } {
            let report = run(plan);
            each(&report);
            done.push((at, report));
        }
        done
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut reports: Vec<(usize, Report)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a world's panic is a failure"))
            .collect()
    });
    reports.sort_by_key(|(at, _)| *at);
    reports.into_iter().map(|(_, report)| report).collect()
}

impl World {
    fn new(plan: &Plan) -> World {
        let mut random = Random::new(plan.seed);
        let mut profile = Profile::draw(&mut random, (*plan.founders.start(), *plan.founders.end()));
        if plan.bug == Some(Bug::RestartedEmpty) {
            profile.faults.extend([Fault::LostDisk; 5]);
        }
        let mut env = Env::new(random, profile, Trace::new(plan.trace), plan.bug);
        env.note(format_args!("seed {}: {:?}", plan.seed, env.profile.clone()));
        // As in the product, founders' IDs are hashes, and lie above those that are counted later.
        let founders: Vec<MemberId> = (1..=env.profile.founders).map(|n| 1000 + n).collect();
        let mut hosts = BTreeMap::new();
        for &id in &founders {
            hosts.insert(id, Host::new(&mut env, id, founders.clone()));
            let delay = env.random.below(2_000_000);
            env.schedule(delay, Event::Boot { host: id });
        }
        let clients: Vec<Client> = (0..env.profile.clients as usize).map(Client::new).collect();
        for client in 0..clients.len() {
            let delay = env.random.below(1_000_000);
            env.schedule(delay, Event::Turn { client });
        }
        let lessees: Vec<Lessee> = (0..LESSEES).map(Lessee::new).collect();
        for lessee in 0..LESSEES {
            let (delay, client) = (env.random.below(3_000_000), FIRST_LESSEE + lessee);
            env.schedule(delay, Event::Turn { client });
        }
        let mut watchers: Vec<Watcher> = (0..WATCHERS).map(|id| Watcher::new(&mut env, id)).collect();
        for watcher in &mut watchers {
            watcher.begin(&mut env);
            let (delay, watcher) = (env.random.below(3_000_000), watcher.id());
            env.schedule(delay, Event::WatcherTurn { watcher });
        }
        env.schedule(2_000_000, Event::NextFault);
        env.schedule(1_000_000, Event::Administer);
        env.schedule(plan.duration, Event::Heal);
        World {
            env,
            hosts,
            clients,
            lessees,
            watchers,
            nemesis: Nemesis::default(),
            history: History::new(),
            phase: Phase::Faults,
            healed_at: 0,
            convergence: None,
            finals: Vec::new(),
        }
    }

    fn play(&mut self) {
        while self.env.failure.is_none() && !matches!(self.phase, Phase::Done) {
            match self.env.next() {
                Some(event) => {
                    self.happen(event);
                    if self.env.leases.tell(self.env.events, &mut self.history) {
                        self.env.reach(Mark::LeaseEnded);
                    }
                }
                None => self.env.fail("nothing is left to happen".into()),
            }
        }
    }

    fn members(&self) -> Vec<MemberId> {
        self.hosts
            .values()
            .filter(|host| host.is_alive())
            .map(|host| host.id)
            .collect()
    }

    fn happen(&mut self, event: Event) {
        let World {
            env, hosts, nemesis, ..
        } = self;
        match event {
            Event::Process { host, life, what } => {
                if let Some(host) = hosts.get_mut(&host) {
                    host.process_event(env, life, what);
                }
            }
            Event::Arrival {
                from,
                to,
                life,
                frame,
            } => {
                if let Some(host) = hosts.get_mut(&to) {
                    host.arrival(env, from, life, frame);
                }
            }
            Event::Request {
                host,
                client,
                attempt,
                ..
            } => {
                if !self.deliver(host, event) {
                    self.env.answer(client, attempt, Answer::NotApplied);
                }
            }
            Event::Admin { host, .. } | Event::Unwatch { host, .. } => {
                self.deliver(host, event);
            }
            Event::Watch { host, connection, .. } => {
                if !self.deliver(host, event) {
                    self.env.schedule(500, Event::WatchBroken { connection });
                }
            }
            Event::Answer { .. } | Event::Timeout { .. } | Event::Turn { .. } => self.client(event),
            Event::WatcherTurn { watcher } => {
                let members = self.members();
                self.watchers[watcher].turn(&mut self.env, &members);
            }
            Event::Watched { connection, output } => {
                self.watchers[connection.watcher].receive(env, connection, output)
            }
            Event::WatchBroken { connection } => self.watchers[connection.watcher].broken(connection),
            Event::AdminAnswer { id, result } => nemesis.answered(env, hosts, id, result),
            Event::Boot { host } => hosts.get_mut(&host).expect("hosts stay").boot(env),
            Event::Crash { host, power } => self.crash(host, power),
            Event::Unblock { links } => env.net.unblock(&links),
            Event::Resume { host } => hosts.get_mut(&host).expect("hosts stay").resume(env),
            Event::DiskRecovers { host } => {
                let host = hosts.get_mut(&host).expect("hosts stay");
                (host.disk_delay, host.disk_capacity) = (0, None);
                host.apply_disk_weather();
            }
            Event::WeatherClears => env.net.bad_weather = false,
            Event::NextFault => nemesis.strike(env, hosts),
            Event::Administer => nemesis.administer(env, hosts),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    fn deliver(&mut self, host: MemberId, event: Event) -> bool {
        self.hosts
            .get_mut(&host)
            .is_some_and(|host| host.deliver(&mut self.env, event))
    }

    fn client(&mut self, event: Event) {
        let members = self.members();
        let World {
            env,
            clients,
            lessees,
            history,
            ..
        } = self;
        match event {
            Event::Answer {
                client,
                attempt,
                answer,
            } if client >= FIRST_LESSEE => {
                let lessee = &mut lessees[client - FIRST_LESSEE];
                lessee.answer(env, history, &members, attempt, Some(answer));
            }
            Event::Timeout { client, attempt } if client >= FIRST_LESSEE => {
                let lessee = &mut lessees[client - FIRST_LESSEE];
                lessee.answer(env, history, &members, attempt, None);
            }
            Event::Turn { client } if client >= FIRST_LESSEE => {
                lessees[client - FIRST_LESSEE].turn(env, &members);
            }
            Event::Answer {
                client,
                attempt,
                answer,
            } => {
                clients[client].answer(env, history, &members, attempt, answer);
            }
            Event::Timeout { client, attempt } => clients[client].timeout(env, history, &members, attempt),
            Event::Turn { client } => clients[client].turn(env, history, &members),
            _ => {}
        }
    }

    /// A machine fails, and is started again after a while.
    fn crash(&mut self, host: MemberId, power: bool) {
        let World { env, hosts, .. } = self;
        let Some(host) = hosts
            .get_mut(&host)
            .filter(|host| host.process().is_some() && !env.calm)
        else {
            return;
        };
        host.crash(env, power);
        let delay = env
            .random
            .about(*env.random.clone().pick(&[100_000, 1_000_000, 3_000_000]));
        env.schedule(delay, Event::Boot { host: host.id });
    }

    /// No more faults; what is broken is mended.
    fn heal(&mut self) {
        let World {
            env,
            hosts,
            clients,
            lessees,
            ..
        } = self;
        env.note(format_args!("the world is healed"));
        env.calm = true;
        env.net.unblock_all();
        env.net.bad_weather = false;
        for host in hosts.values_mut() {
            (host.disk_delay, host.disk_capacity) = (0, None);
            host.apply_disk_weather();
            host.resume(env);
            host.mend_disk(env);
            host.boot(env);
        }
        clients.iter_mut().for_each(|client| client.stopping = true);
        lessees.iter_mut().for_each(|lessee| lessee.stopping = true);
        self.healed_at = env.now;
        self.phase = Phase::Converging;
        env.schedule(LOOK_INTERVAL, Event::Look);
    }

    /// Looks how far the healed world is.
    fn look(&mut self) {
        if self.env.now > self.healed_at + CONVERGENCE_MAX {
            let why = self
                .disagreement()
                .unwrap_or_else(|| format!("they agree, but {:?} does not end", self.phase));
            let states: Vec<String> = self.hosts.values().map(Host::describe).collect();
            return self.env.fail(format!(
                "a minute after the last fault: {why}\n  {}",
                states.join("\n  ")
            ));
        }
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Converging => match self.disagreement() {
                None => self.agreed(),
                Some(_) => self.phase = Phase::Converging,
            },
            Phase::Writing(asked) => self.written(asked),
            Phase::Reading(asked) => self.read(asked),
            Phase::Watching(revision) => self.watched(revision),
            other => self.phase = other,
        }
        self.env.schedule(LOOK_INTERVAL, Event::Look);
    }

    /// The members of the cluster, if there is a leader that knows them.
    fn voters_and_learners(&self) -> Vec<MemberId> {
        nemesis::configuration(&self.hosts)
            .map(|found| found.members().into_iter().collect())
            .unwrap_or_default()
    }

    /// Why the members do not agree yet.
    fn disagreement(&self) -> Option<String> {
        if self.clients.iter().any(|client| !client.is_idle()) {
            return Some("clients still wait for answers".into());
        }
        if self.lessees.iter().any(|lessee| !lessee.is_idle()) {
            return Some("holders of leases still wait for answers".into());
        }
        let Some(leader) = nemesis::leader(&self.hosts) else {
            return Some("nobody leads".into());
        };
        let process = self.hosts[&leader].process().expect("a leader runs");
        let (raft, machine) = (process.node().raft(), process.machine());
        let leases = machine.leases().len();
        if leases > 0 {
            return Some(format!("{leases} leases have not run out"));
        }
        let configuration = raft.latest_configuration();
        if configuration.is_joint() {
            return Some("the configuration is joint".into());
        }
        if raft.status().last.index != machine.applied().1 {
            return Some(format!("leader {leader} has not applied its log"));
        }
        configuration.members().into_iter().find_map(|id| {
            let Some(process) = self.hosts.get(&id).and_then(Host::process) else {
                return Some(format!("member {id} does not run"));
            };
            let state = (
                process.machine().applied(),
                process.machine().digest(),
                process.node().leader(),
            );
            let same = state == (machine.applied(), machine.digest(), leader);
            (!same).then(|| format!("member {id} has (applied, digest, leader) {state:?}"))
        })
    }

    fn agreed(&mut self) {
        self.convergence = Some(self.env.now - self.healed_at);
        self.env.note(format_args!("the members agree"));
        let asked = self.ask_each(|member| Op::put(key(0), format!("end.{member}")));
        self.phase = Phase::Writing(asked);
    }

    /// Each member gets a client of its own that asks it something.
    fn ask_each(&mut self, op: impl Fn(MemberId) -> Op) -> BTreeMap<MemberId, OpId> {
        let mut asked = BTreeMap::new();
        for member in self.voters_and_learners() {
            let mut client = Client::of(self.clients.len(), member);
            let id = client.perform(&mut self.env, &mut self.history, op(member));
            self.clients.push(client);
            asked.insert(member, id);
        }
        asked
    }

    fn answers(&self, asked: &BTreeMap<MemberId, OpId>) -> Option<Vec<(MemberId, Outcome)>> {
        let records = self.history.records();
        let ended = |id: &OpId| records[id.position()].completed.is_some();
        asked.values().all(ended).then(|| {
            asked
                .iter()
                .map(|(&member, id)| (member, records[id.position()].outcome.clone()))
                .collect()
        })
    }

    fn written(&mut self, asked: BTreeMap<MemberId, OpId>) {
        let Some(answers) = self.answers(&asked) else {
            self.phase = Phase::Writing(asked);
            return;
        };
        if let Some((member, outcome)) = answers
            .iter()
            .find(|(_, outcome)| !matches!(outcome, Outcome::Ok(_)))
        {
            return self.env.fail(format!(
                "a write to member {member} of the healed cluster: {outcome:?}"
            ));
        }
        let asked = self.ask_each(|_| Op::Range(KeyRange::all()));
        self.phase = Phase::Reading(asked);
    }

    fn read(&mut self, asked: BTreeMap<MemberId, OpId>) {
        let Some(answers) = self.answers(&asked) else {
            self.phase = Phase::Reading(asked);
            return;
        };
        let mut newest = 0;
        for (member, outcome) in answers {
            let Outcome::Ok(Reply::Range { revision, kvs }) = outcome else {
                return self.env.fail(format!(
                    "a read from member {member} of the healed cluster: {outcome:?}"
                ));
            };
            newest = newest.max(revision);
            self.finals.push(FinalState {
                member,
                revision,
                kvs,
            });
        }
        self.watched(newest);
    }

    /// Watchers connect until each has been told that it has everything.
    fn watched(&mut self, revision: u64) {
        let members = self.voters_and_learners();
        self.phase = Phase::Done;
        for watcher in self
            .watchers
            .iter_mut()
            .filter(|watcher| !watcher.is_complete(revision))
        {
            watcher.connect(&mut self.env, &members, true);
            self.phase = Phase::Watching(revision);
        }
    }

    /// The checkers' turn.
    fn judge(mut self, seed: u64) -> Report {
        let seen: Vec<_> = self.watchers.into_iter().flat_map(Watcher::into_seen).collect();
        if self.env.failure.is_none() || self.env.bug.is_some() {
            let evidence = Evidence {
                history: &self.history,
                watchers: &seen,
                finals: &self.finals,
                digests: &self.env.truth.reports,
                limits: Limits::default(),
            };
            if let Err(failures) = evidence.check() {
                let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
                self.env.fail(failures.join("\n"));
            }
        }
        let mut operations = [0; 3];
        for record in self.history.records() {
            operations[match record.outcome {
                Outcome::Ok(_) => 0,
                Outcome::NotApplied => 1,
                Outcome::Unknown => 2,
            }] += 1;
        }
        Report {
            seed,
            failure: self.env.failure,
            trace: self.env.trace.sum(),
            text: self.env.trace.into_text(),
            marks: self.env.marks,
            events: self.env.events,
            operations,
            entries: self.env.truth.last(),
            convergence: self.convergence,
        }
    }
}
