//! One machine: a disk and a store that outlive the processes that run on it, one after the other.

use std::path::Path;

use kvorum_model::MemberRecord;
use kvorum_mvcc::{SimStore, StateMachine};
use kvorum_node::recovery::{RecoveryError, assemble, founding_write};
use kvorum_raft::{Index, MemberId, Micros, Term};
use kvorum_wal::{SimDisk, VoteCopy, Wal, WalError, Write};

use crate::bugs::Bug;
use crate::env::{Env, Event, ProcessEvent};
use crate::marks::Mark;
use crate::network::Frame;
use crate::process::{End, LocalClock, OnDisk, Process};
use crate::storage::machine_options;

const LOG_DIR: &str = "/member/log";
/// The cluster's number in every message of the core.
const CLUSTER: u64 = 0x6b76;

/// What is left of a member while it does not run.
struct Remains {
    disk: SimDisk,
    store: SimStore,
    install: Option<(Index, Term)>,
}

/// Why a member is not running, or that it is.
enum State {
    Running(Box<Process>),
    Down(Box<Remains>),
    /// Its disk is gone; it never comes back under this ID.
    Destroyed,
    /// The cluster removed it, and it has heard so.
    Removed,
}

/// One machine. See the module's documentation.
pub(crate) struct Host {
    pub id: MemberId,
    incarnation: u128,
    /// The founders, if it is one.
    founders: Vec<MemberId>,
    state: State,
    lives: u64,
    clock: LocalClock,
    /// The process gets no time; what reaches it waits.
    pub paused: bool,
    waiting: Vec<Event>,
    /// What the disk adds to each write, now and after a restart.
    pub disk_delay: Micros,
    pub disk_capacity: Option<u64>,
}

fn wal_options() -> kvorum_wal::Options {
    kvorum_wal::Options {
        batch_bytes_max: 16 << 10,
        recover_bytes_max: 16 << 10,
        segment_bytes: 64 << 10,
        ..kvorum_wal::Options::small()
    }
}

impl Host {
    /// A machine with an empty directory: a founder's (`founders` holds its ID), or a joiner's.
    pub(crate) fn new(env: &mut Env, id: MemberId, founders: Vec<MemberId>) -> Host {
        let incarnation = u128::from(env.random.next()) << 64 | u128::from(env.random.next()) | 1;
        let drift = env.profile.drift_ppm;
        let clock = LocalClock {
            zero: env.random.below(1 << 40),
            drift_ppm: env.random.between(0, 2 * drift) as i64 - drift as i64,
        };
        let mut host = Host {
            id,
            incarnation,
            founders,
            state: State::Destroyed,
            lives: 0,
            clock,
            paused: false,
            waiting: Vec::new(),
            disk_delay: 0,
            disk_capacity: None,
        };
        host.format(env);
        host
    }

    /// Makes the directory as a fresh member's.
    fn format(&mut self, env: &mut Env) {
        let disk = SimDisk::new(env.random.next());
        let initial = if self.founders.is_empty() {
            Write::default()
        } else {
            founding_write(&self.founders)
        };
        let made = Wal::create(
            disk.clone(),
            Path::new(LOG_DIR),
            wal_options(),
            &self.identity(),
            &initial,
        );
        env.must(
            made.map(drop)
                .map_err(|error| format!("member {}: no log could be made: {error}", self.id)),
        );
        self.state = State::Down(Box::new(Remains {
            disk,
            store: SimStore::new(),
            install: None,
        }));
    }

    fn identity(&self) -> [u8; 8] {
        self.id.to_le_bytes()
    }

    pub(crate) fn process(&self) -> Option<&Process> {
        match &self.state {
            State::Running(process) => Some(process),
            _ => None,
        }
    }

    pub(crate) fn process_mut(&mut self) -> Option<&mut Process> {
        match &mut self.state {
            State::Running(process) => Some(process),
            _ => None,
        }
    }

    /// Whether it runs, or will again.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.state, State::Running(_) | State::Down(_))
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(self.state, State::Down(_))
    }

    pub(crate) fn is_destroyed(&self) -> bool {
        matches!(self.state, State::Destroyed)
    }

    /// The member in one line.
    pub(crate) fn describe(&self) -> String {
        let id = self.id;
        match &self.state {
            State::Running(process) => format!("{id}: {:?}", process.node().raft().status()),
            State::Down(_) => format!("{id}: down"),
            State::Destroyed => format!("{id}: its disk is lost"),
            State::Removed => format!("{id}: removed"),
        }
    }

    /// Starts a process on what is left of the last one.
    pub(crate) fn boot(&mut self, env: &mut Env) {
        if !self.is_down() {
            return;
        }
        let State::Down(remains) = &self.state else { return };
        let (disk, store, install) = (remains.disk.clone(), remains.store.crash(), remains.install);
        self.lives += 1;
        self.clock.zero += env.random.below(1 << 30);
        match self.recover(env, disk, store, install) {
            Ok(mut process) => {
                env.net.set_life(self.id, self.lives);
                process.wake(env);
                self.state = State::Running(Box::new(process));
                self.apply_disk_weather();
            }
            Err(RecoveryError::Log(WalError::NoSpace { .. })) => {
                env.note(format_args!("{} finds no space to start", self.id));
                env.schedule(500_000, Event::Boot { host: self.id });
            }
            Err(why) => env.fail(format!("member {} does not start: {why}", self.id)),
        }
    }

    fn recover(
        &mut self,
        env: &mut Env,
        disk: SimDisk,
        store: SimStore,
        install: Option<(Index, Term)>,
    ) -> Result<Process, RecoveryError> {
        let boot = if env.has_bug(Bug::BootNotFresh) {
            self.id
        } else {
            env.random.next()
        };
        let (wal, recovered) = Wal::open(disk.clone(), Path::new(LOG_DIR), wal_options(), &self.identity())?;
        let opened = StateMachine::open(store, machine_options());
        let machine = opened.map_err(|error| RecoveryError::Start(error.to_string()))?;
        let (applied, report) = (machine.applied(), &recovered.report);
        env.note(format_args!(
            "{} boots as {boot:016x}: log {}..={} term {} mark {}, applied {}@{}, {report:?}",
            self.id,
            recovered.base.index + 1,
            recovered.last_index,
            recovered.hard_state.term,
            recovered.commit_mark,
            applied.1,
            applied.0
        ));
        if report.torn_tail.is_some() {
            env.reach(Mark::TornTailRepaired);
        }
        if report.vote_copy != VoteCopy::Agreed {
            env.reach(Mark::VoteCopyRepaired);
        }
        if install.is_some_and(|(index, _)| index > recovered.last_index) {
            env.reach(Mark::InstallFinishedByRecovery);
        }
        let hard_state = recovered.hard_state;
        let options = self.options(env, boot);
        let now = self.clock.local(env.now);
        let mut replica = assemble(options, wal, recovered, machine, install, now)?;
        if replica.node.raft().latest_configuration().is_joint() {
            env.reach(Mark::JointRestarted);
        }
        let last = replica.log.wal().stats().last_index;
        let on_disk = OnDisk {
            last,
            term: hard_state.term,
            vote: hard_state.vote,
        };
        Ok(Process::new(
            self.id,
            (self.lives, boot),
            self.clock,
            replica,
            disk,
            // The log is at the snapshot now, if it was not before: the record has done its work.
            None,
            on_disk,
        ))
    }

    fn options(&self, env: &mut Env, boot: u64) -> kvorum_node::Options {
        let profile = &env.profile;
        let raft = kvorum_raft::Options {
            id: self.id,
            cluster: CLUSTER,
            boot,
            seed: boot,
            election_timeout: profile.election_timeout,
            heartbeat_interval: profile.heartbeat_interval,
            pre_vote: true,
            lease_reads: profile.lease_reads,
            append_bytes_max: 4096,
            append_entries_max: usize::MAX,
            check_quorum: 0,
            window_messages: 8,
            window_bytes: 16 << 10,
            uncommitted_bytes_max: 256 << 10,
            cache_bytes_max: profile.cache_bytes_max,
            apply_bytes_max: 8192,
            entry_bytes_max: 8192,
            promote_lag_bytes: 8192,
            retain_bytes_max: profile.retain_bytes_max,
        };
        let record = MemberRecord {
            id: self.id,
            name: format!("m{}", self.id),
            peer_addresses: vec![format!("member-{}:2380", self.id)],
            incarnation: self.incarnation,
            feature_level: 1,
            ..MemberRecord::default()
        };
        let fresh_uuid = u128::from(env.random.next()) << 64 | u128::from(env.random.next()) | 1;
        kvorum_node::Options {
            raft,
            record,
            fresh_uuid,
            held_requests_max: 64,
            forward_bytes_max: 4096,
            batch_bytes_max: 4096,
            log_writes_open_max: 2,
            lease_checkpoint_interval: profile.lease_checkpoint_interval,
            keeps_addresses: false,
            compacts_by_age: true,
            history_ms: kvorum_mvcc::HISTORY_MS,
        }
    }

    /// Ends the process, if one runs. With `power` the machine goes off, and what was not synced is lost, torn or
    /// kept as the disk pleases.
    pub(crate) fn crash(&mut self, env: &mut Env, power: bool) {
        let State::Running(mut process) = std::mem::replace(&mut self.state, State::Destroyed) else {
            return;
        };
        env.note(format_args!(
            "{} {}",
            self.id,
            if power { "loses power" } else { "is killed" }
        ));
        if process.log_busy {
            process.cut_log_write(env);
        }
        process.break_connections(env);
        process.break_watches(env);
        let store = process.machine().store();
        if store.unflushed_batches() > 0 {
            env.reach(Mark::StoreLostBatches);
        }
        let (store, install) = (store.crash(), process.install);
        let mut disk = process.disk.clone();
        if env.has_bug(Bug::SyncDropped)
            && power
            && let Some(before) = process.before_last_write.take()
        {
            disk = before;
        }
        drop(process);
        let disk = if power {
            disk.crash(env.random.next())
        } else {
            disk.restart()
        };
        self.state = State::Down(Box::new(Remains { disk, store, install }));
        self.paused = false;
        self.waiting.clear();
        env.net.set_life(self.id, 0);
    }

    /// The machine burns down.
    pub(crate) fn destroy(&mut self, env: &mut Env) {
        self.crash(env, true);
        env.note(format_args!("{} loses its disk", self.id));
        if env.has_bug(Bug::RestartedEmpty) {
            self.format(env);
            env.schedule(1_000_000, Event::Boot { host: self.id });
        } else {
            self.state = State::Destroyed;
        }
    }

    /// Something inside the process is due.
    pub(crate) fn process_event(&mut self, env: &mut Env, life: u64, what: ProcessEvent) {
        if self.paused {
            return self.waiting.push(Event::Process {
                host: self.id,
                life,
                what,
            });
        }
        let Some(process) = self.process_mut().filter(|process| process.life == life) else {
            return;
        };
        let end = match what {
            ProcessEvent::Run => process.run(env),
            ProcessEvent::LogDone => {
                process.log_done(env);
                None
            }
            ProcessEvent::LogRetry => {
                process.log_retry(env);
                None
            }
            ProcessEvent::ApplyDone => {
                process.apply_done(env);
                None
            }
            ProcessEvent::FetchDone {
                id,
                from,
                to,
                bytes_max,
            } => {
                process.fetch_done(env, id, from, to, bytes_max);
                None
            }
            ProcessEvent::ServeReads(ids) => {
                process.serve_reads(env, ids);
                None
            }
            ProcessEvent::Notice(input) => {
                process.push(env, *input);
                None
            }
            ProcessEvent::TransferTimeout { stream, sent } => {
                process.transfer_failed(env, stream, Some(sent));
                None
            }
            ProcessEvent::Watch => {
                process.watch_turn(env);
                None
            }
        };
        match end {
            None => {}
            Some(End::Removed) => {
                env.note(format_args!("{} was removed", self.id));
                env.reach(Mark::MemberRemoved);
                self.crash(env, false);
                self.state = State::Removed;
            }
            Some(End::Excused) => {
                let power = env.random.one_in(2);
                self.crash(env, power);
                let delay = env.random.about(1_000_000);
                env.schedule(delay, Event::Boot { host: self.id });
            }
        }
    }

    /// A frame arrives; `life`: on a connection to that process.
    pub(crate) fn arrival(&mut self, env: &mut Env, from: MemberId, life: Option<u64>, frame: Frame) {
        if env.net.is_blocked(from, self.id) {
            return env.lost(from, self.id);
        }
        if self.paused {
            return self.waiting.push(Event::Arrival {
                from,
                to: self.id,
                life,
                frame,
            });
        }
        let id = self.id;
        match self.process_mut() {
            Some(process) if life.is_none_or(|life| life == process.life) => {
                process.arrival(env, from, frame)
            }
            _ => env.lost(from, id),
        }
    }

    /// Something for the process that waits while it is paused, and that a dead one never gets; whether it was taken.
    pub(crate) fn deliver(&mut self, env: &mut Env, event: Event) -> bool {
        if self.paused {
            self.waiting.push(event);
            return true;
        }
        let Some(process) = self.process_mut() else {
            return false;
        };
        match event {
            Event::Request {
                client,
                attempt,
                request,
                ..
            } => process.request(env, client, attempt, request),
            Event::Admin { id, request, .. } => process.administer(env, id, request),
            Event::Watch {
                connection,
                request,
                progress,
                ..
            } => process.watch(env, connection, request, progress),
            Event::Unwatch { connection, .. } => process.unwatch(connection),
            other => unreachable!("{other:?} is not for a process"),
        }
        true
    }

    /// The process gets no time from now on.
    pub(crate) fn pause(&mut self, env: &mut Env) {
        if let Some(process) = self.process_mut() {
            let raft = process.node().raft();
            process.slept_leading = raft.is_leader().then(|| raft.term());
            self.paused = true;
            env.note(format_args!("{} is paused", self.id));
        }
    }

    /// It runs again: everything that waited comes at once.
    pub(crate) fn resume(&mut self, env: &mut Env) {
        if std::mem::take(&mut self.paused) {
            env.note(format_args!("{} runs again", self.id));
            for event in std::mem::take(&mut self.waiting) {
                match event {
                    // The replica's own thread has its turn after the others.
                    Event::Process {
                        what: ProcessEvent::Run,
                        ..
                    } => {
                        if let Some(process) = self.process_mut() {
                            process.overslept(env);
                        }
                    }
                    event => env.schedule(0, event),
                }
            }
        }
    }

    /// What the disk is now: as slow, as full as the world wants it.
    pub(crate) fn apply_disk_weather(&mut self) {
        let (delay, capacity) = (self.disk_delay, self.disk_capacity);
        if let Some(process) = self.process_mut() {
            process.disk_delay = delay;
            process.disk.set_capacity(capacity);
        }
    }

    /// A disk that is about to fail is exchanged by a healthy one; that ends the process.
    pub(crate) fn mend_disk(&mut self, env: &mut Env) {
        if self.process().is_some_and(|process| process.excused) {
            self.crash(env, false);
        }
    }

    /// One of the next operations of its disk fails.
    pub(crate) fn break_disk(&mut self, env: &mut Env) {
        let fault = *env
            .random
            .pick(&[kvorum_wal::disk::Fault::Eio, kvorum_wal::disk::Fault::LoseSync]);
        let ahead = env.random.between(1, 20);
        if let Some(process) = self.process_mut() {
            process.disk.fail_at(process.disk.ios() + ahead, fault);
            process.excused = true;
        }
    }
}
