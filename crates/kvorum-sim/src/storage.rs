//! A process's disk and state machine at work, as the server's threads do it: the log's writer takes everything
//! that waits and makes it durable with one sync; the applier does one thing after the other.

use std::collections::VecDeque;

use kvorum_model::Envelope;
use kvorum_mvcc::Options;
use kvorum_node::{Applications, Input, Staged};
use kvorum_raft::{Entry, EntryKind, Index, LogId, MemberId, Micros, Persist, SnapshotMeta};
use kvorum_wal::{Space, WalError};

use crate::bugs::Bug;
use crate::clients::Answer;
use crate::env::{Env, Event, ProcessEvent};
use crate::marks::Mark;
use crate::process::Process;

/// Between two tries to write to a full disk.
const SPACE_RETRY: Micros = 250_000;
/// Most writes in one batch.
const WRITES_MAX: usize = 1024;

/// Work for the log's writer.
#[derive(Debug)]
pub(crate) enum LogWork {
    Persist(Persist),
    Purge(SnapshotMeta),
}

/// Work for the applier.
#[derive(Debug)]
pub(crate) enum ApplyWork {
    Apply(Vec<Entry>),
    BuildSnapshot { peer: MemberId, at_least: Index },
    Install { staged: Staged, meta: SnapshotMeta },
    DropStaged(Staged),
    InstallSettled(LogId),
    Housekeep { time_ms: u64 },
}

impl Process {
    // The log's writer.

    pub(crate) fn log_work(&mut self, env: &mut Env, work: LogWork) {
        self.log.push_back(work);
        self.kick_log(env);
    }

    fn kick_log(&mut self, env: &mut Env) {
        if !self.log_busy && !self.log.is_empty() {
            self.log_busy = true;
            let count = self.log.len().min(WRITES_MAX);
            self.log_taken = self.log.drain(..count).collect();
            let delay = 20 + env.random.about(env.profile.disk) + self.disk_delay;
            self.after(env, delay, ProcessEvent::LogDone);
            if !env.calm && self.taken_bytes() > 1024 && env.random.one_in(40) {
                // Writes are short; this is how a power loss finds some under way that are large enough to be torn.
                env.schedule(
                    delay / 2,
                    Event::Crash {
                        host: self.id,
                        power: true,
                    },
                );
            }
        }
    }

    fn taken_bytes(&self) -> usize {
        let entries = self.log_taken.iter().flat_map(|work| match work {
            LogWork::Persist(persist) => &persist.entries[..],
            LogWork::Purge(_) => &[],
        });
        entries.map(|entry| entry.data.len()).sum()
    }

    /// What the writer took is written now.
    pub(crate) fn log_done(&mut self, env: &mut Env) {
        let mut persists = VecDeque::new();
        let mut result = Ok(());
        while let Some(work) = self.log_taken.pop_front() {
            match work {
                LogWork::Persist(persist) => persists.push_back(persist),
                LogWork::Purge(meta) => {
                    result = self.write_log(env, &mut persists);
                    if result.is_ok() {
                        result = self.replica.log.purge(&meta);
                    } else {
                        self.log_taken.push_front(LogWork::Purge(meta));
                    }
                    if result.is_err() {
                        break;
                    }
                }
            }
        }
        if result.is_ok() {
            result = self.write_log(env, &mut persists);
        }
        match result {
            Ok(()) => {
                self.log_busy = false;
                self.follow_space(env);
                self.kick_log(env);
            }
            Err(WalError::NoSpace { .. }) => {
                env.reach(Mark::DiskFull);
                for persist in persists.into_iter().rev() {
                    self.log_taken.push_front(LogWork::Persist(persist));
                }
                if !self.log_exhausted {
                    self.log_exhausted = true;
                    self.push(env, Input::Space { exhausted: true });
                }
                self.after(env, SPACE_RETRY, ProcessEvent::LogRetry);
            }
            Err(error) => {
                // The writer's thread ends here: `log_busy` stays set.
                if !self.excused {
                    env.fail(format!("member {}: the log fails: {error}", self.id));
                }
                env.reach(Mark::DiskFailed);
                self.push(env, Input::PersistFailed);
            }
        }
    }

    /// Writes what waits, tells the replica, and notes what the disk holds now.
    fn write_log(&mut self, env: &mut Env, persists: &mut VecDeque<Persist>) -> Result<(), WalError> {
        if persists.is_empty() {
            return Ok(());
        }
        if env.has_bug(Bug::VoteNotWritten) {
            let votes = persists
                .iter_mut()
                .filter_map(|persist| persist.hard_state.as_mut());
            votes.for_each(|hard_state| hard_state.vote = 0);
        }
        if env.has_bug(Bug::CommitMarkTooHigh) {
            for persist in persists.iter_mut() {
                persist.commit_mark = persist
                    .entries
                    .last()
                    .map_or(persist.commit_mark, |entry| entry.index);
            }
        }
        if env.has_bug(Bug::SyncDropped) {
            self.before_last_write = Some(self.disk.fork());
        }
        let hard_state = persists.iter().rev().find_map(|persist| persist.hard_state);
        let seq = self.replica.log.write(persists)?;
        if let Some(hard_state) = hard_state {
            (self.on_disk.term, self.on_disk.vote) = (hard_state.term, hard_state.vote);
        }
        self.on_disk.last = self.replica.log.wal().stats().last_index;
        if !env.has_bug(Bug::PersistedTooEarly) {
            self.push(env, Input::Persisted(seq));
        }
        Ok(())
    }

    /// Tells the replica when claiming space ahead begins to fail, and when it works again.
    fn follow_space(&mut self, env: &mut Env) {
        let exhausted = self.replica.log.wal().space() == Space::Exhausted;
        if exhausted != self.log_exhausted {
            self.log_exhausted = exhausted;
            self.push(env, Input::Space { exhausted });
        }
        if exhausted {
            env.reach(Mark::DiskFull);
            self.after(env, SPACE_RETRY, ProcessEvent::LogRetry);
        }
    }

    /// Tries a full disk again.
    pub(crate) fn log_retry(&mut self, env: &mut Env) {
        if !self.log_taken.is_empty() {
            return self.log_done(env);
        }
        if !self.log_busy && self.log_exhausted {
            match self.replica.log.wal().retry_claim() {
                Ok(_) => self.follow_space(env),
                Err(error) if self.excused => {
                    env.note(format_args!("{} cannot claim space: {error}", self.id));
                    self.log_busy = true;
                    self.push(env, Input::PersistFailed);
                }
                Err(error) => env.fail(format!("member {}: the log fails: {error}", self.id)),
            }
        }
    }

    /// Half of what the writer took may be on its way to the disk when the power goes: how far it came is decided
    /// by the number of IOs it still gets.
    pub(crate) fn cut_log_write(&mut self, env: &mut Env) {
        let mut persists: VecDeque<Persist> = std::mem::take(&mut self.log_taken)
            .into_iter()
            .filter_map(|work| match work {
                LogWork::Persist(persist) => Some(persist),
                LogWork::Purge(_) => None,
            })
            .collect();
        if persists.is_empty() || env.random.one_in(4) {
            return;
        }
        let io = self.disk.ios() + env.random.between(1, 3);
        self.disk.fail_at(io, kvorum_wal::disk::Fault::Crash);
        // Its result is of no interest: nobody is left to hear of it.
        let written = self.replica.log.write(&mut persists).is_ok();
        env.note(format_args!(
            "{} dies writing its log, {}",
            self.id,
            if written { "at the end" } else { "within" }
        ));
    }

    pub(crate) fn fetch_done(&mut self, env: &mut Env, id: u64, from: Index, to: Index, bytes_max: usize) {
        let entries = self.replica.log.reader().fetch(from, to, bytes_max);
        let entries = entries.unwrap_or_else(|error| {
            // A snapshot may have taken their place meanwhile. Whether anybody still wants them, the core knows: it
            // stops if they count.
            env.note(format_args!(
                "{}: entries {from} to {to} cannot be read: {error}",
                self.id
            ));
            Vec::new()
        });
        self.push(env, Input::Fetched { id, entries });
    }

    // The applier.

    pub(crate) fn apply_work(&mut self, env: &mut Env, work: ApplyWork) {
        self.apply.push_back(work);
        self.kick_apply(env);
    }

    /// Whether a snapshot is being installed, or will be.
    pub(crate) fn installs_waiting(&self) -> bool {
        let installs = |work: &ApplyWork| matches!(work, ApplyWork::Install { .. });
        self.apply.iter().any(installs)
    }

    fn kick_apply(&mut self, env: &mut Env) {
        if !self.apply_busy && !self.apply.is_empty() {
            self.apply_busy = true;
            let mut delay = 5 + env.random.about(env.profile.apply);
            if matches!(self.apply.front(), Some(ApplyWork::Install { .. }))
                && !env.calm
                && env.random.one_in(2)
            {
                // States are small; this is how an install takes so long that its sender sends another snapshot.
                delay += env.random.about(6 * env.profile.election_timeout);
            }
            self.after(env, delay, ProcessEvent::ApplyDone);
        }
    }

    /// The applier does the next thing; entries that follow each other are one batch.
    pub(crate) fn apply_done(&mut self, env: &mut Env) {
        self.apply_busy = false;
        match self.apply.pop_front().expect("the applier is busy with it") {
            ApplyWork::Apply(mut entries) => {
                while let Some(ApplyWork::Apply(more)) = self.apply.front_mut() {
                    entries.append(more);
                    self.apply.pop_front();
                }
                self.apply_entries(env, entries);
            }
            ApplyWork::BuildSnapshot { peer, at_least } => self.wanted.push((peer, at_least)),
            ApplyWork::Install { staged, meta } => self.install(env, staged, meta),
            ApplyWork::DropStaged(staged) => self.drop_staged(env, staged),
            ApplyWork::InstallSettled(last) => {
                self.install
                    .take_if(|install| *install == (last.index, last.term));
            }
            ApplyWork::Housekeep { time_ms } => {
                let found = self.replica.apply.housekeeping(time_ms);
                self.push(env, Input::Housekeeping(found));
            }
        }
        self.build_wanted(env);
        self.kick_apply(env);
    }

    /// Opens the views whose index is reached.
    fn build_wanted(&mut self, env: &mut Env) {
        let applied = self.replica.apply.applied().index;
        let reached: Vec<_> = self
            .wanted
            .extract_if(.., |(_, at_least)| *at_least <= applied)
            .collect();
        for (peer, _) in reached {
            match self.replica.apply.snapshot_meta() {
                Ok(meta) => {
                    let view = self.machine().snapshot();
                    self.views.insert(peer, view);
                    self.push(env, Input::SnapshotBuilt { peer, meta });
                }
                Err(error) => env.fail(format!("member {}: {error}", self.id)),
            }
        }
    }

    fn apply_entries(&mut self, env: &mut Env, mut entries: Vec<Entry>) {
        for entry in &entries {
            if entry.kind == EntryKind::Command {
                self.note_session(env, Process::session_of(&entry.data), entry.index);
            }
        }
        if env.has_bug(Bug::CommandSkipped) && self.id.is_multiple_of(3) && env.random.one_in(500) {
            let commands = entries
                .iter_mut()
                .filter(|entry| entry.kind == EntryKind::Command);
            commands.take(1).for_each(|entry| entry.kind = EntryKind::Noop);
        }
        if env.has_bug(Bug::OwnTimeApplied) {
            let own_ms = self.clock.local(env.now) / 1000;
            for entry in entries
                .iter_mut()
                .filter(|entry| entry.kind == EntryKind::Command)
            {
                let mut data = entry.data.to_vec();
                Envelope::stamp(&mut data, own_ms);
                entry.data = data.into();
            }
        }
        let Applications {
            replies,
            events,
            mut report,
            // Simulated clients do not log in.
            auth: _,
        } = match self.replica.apply.apply(entries) {
            Ok(done) => done,
            Err(error) => return env.fail(format!("member {} cannot apply: {error}", self.id)),
        };
        let check = env.leases.applied(env.now, &report.leases, &events);
        env.must(check);
        for applied in replies {
            let answer = Answer::Applied {
                revision: applied.revision,
                result: applied.result,
            };
            self.answer_write(env, applied.origin, answer);
        }
        self.feed_watchers(env, events);
        self.maintain(env);
        report.flushed = self.flushed(env);
        self.note_state(env);
        self.push(env, Input::Applied(report));
    }

    /// Removes compacted history, and flushes some of the batches that wait.
    fn maintain(&mut self, env: &mut Env) {
        let now_ms = self.clock.local(env.now) / 1000;
        match self.replica.apply.machine_mut().maintenance(now_ms) {
            Ok(done) if done.removed > 0 => env.reach(Mark::HistoryRemoved),
            Ok(_) => {}
            Err(error) => env.fail(format!("member {}: maintenance fails: {error}", self.id)),
        }
        if env.random.one_in(env.profile.flush_one_in) {
            let store = self.machine().store();
            let waiting = store.unflushed_batches() as u64;
            store.flush_batches(env.random.between(0, waiting) as usize);
        }
    }

    fn flushed(&self, env: &Env) -> Index {
        let machine = self.machine();
        if env.has_bug(Bug::FlushedTooHigh) {
            machine.applied().1
        } else {
            machine.flushed()
        }
    }

    /// Holds the state against everybody else's.
    fn note_state(&self, env: &mut Env) {
        let machine = self.machine();
        let (index, digest) = (machine.applied().1, machine.digest());
        env.truth.reports.push((self.id, index, digest));
        let check = env.truth.reaches(self.id, index, digest);
        env.must(check);
    }

    /// A staged snapshot is not wanted.
    fn drop_staged(&mut self, env: &mut Env, staged: Staged) {
        env.reach(Mark::SnapshotUnwanted);
        if self.staged.remove(&staged).is_none() {
            env.fail(format!("member {} drops a snapshot that is not staged", self.id));
        }
    }

    /// The staged snapshot becomes the state.
    fn install(&mut self, env: &mut Env, staged: Staged, meta: SnapshotMeta) {
        let last = meta.last;
        let Some(machine) = self.staged.remove(&staged) else {
            return env.fail(format!(
                "member {} installs a snapshot at {last:?} that is not staged",
                self.id
            ));
        };
        env.reach(Mark::SnapshotInstalled);
        let report = self.replica.apply.install(machine);
        self.install = (!env.has_bug(Bug::InstallRecordLost)).then_some((meta.last.index, meta.last.term));
        self.note_state(env);
        self.watch_installed(env);
        self.push(env, Input::Installed { meta, report });
        if !env.calm && env.random.one_in(3) {
            // The log's reset follows at once; this is how a crash comes between.
            let delay = env.random.about(env.profile.disk);
            let power = env.random.one_in(2);
            env.schedule(delay, Event::Crash { host: self.id, power });
        }
    }

    /// Settings of a state machine in a simulated world.
    pub(crate) fn machine_options(&self) -> Options {
        machine_options()
    }
}

/// Settings of a state machine in a simulated world: little memory, slow removal.
pub(crate) fn machine_options() -> Options {
    Options {
        cache_bytes: 4096,
        removals_per_second: 2000,
        ..Options::default()
    }
}
