//! The applier's thread: applies what is committed, answers callers, feeds the watch hub, and keeps the store in
//! order between batches.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kvorum_mvcc::lsm::InstallRecord;
use kvorum_mvcc::{LsmStore, Store, StoreError};
use kvorum_node::{ApplyDriver, Input, Staged};
use kvorum_raft::{Entry, LogId, SnapshotMeta};
use tokio::sync::oneshot;

use super::clock;
use super::peers::Inbox;
use super::snapshots::{Built, Stage};
use super::space::{Part, SpaceWatch};
use crate::handle::{ReplicaPort, StoreFigures};
use crate::metrics::Metrics;
use crate::watching::WatchHandle;

/// How long the thread waits for work before it looks after the store.
const IDLE: Duration = Duration::from_millis(50);
/// Most entries applied as one batch.
const ENTRIES_MAX: usize = 8192;
/// Between two looks whether a full disk has space again.
const SPACE_RETRY: Duration = Duration::from_millis(250);
/// How often the figures are published, in ms.
const FIGURES_INTERVAL_MS: u64 = 200;

/// Rewrites the store; for a thread that may block.
pub(crate) type Rewrite = Box<dyn FnOnce() -> Result<(), StoreError> + Send>;

/// Work for the applier.
pub(crate) enum ApplyWork {
    Apply(Vec<Entry>),
    BuildSnapshot {
        peer: u64,
        at_least: u64,
    },
    Install {
        staged: Staged,
        meta: SnapshotMeta,
    },
    InstallSettled(LogId),
    DropStaged(Staged),
    Housekeep {
        time_ms: u64,
    },
    /// Remove what is compacted, flush, and hand out what rewrites the store.
    Defragment(oneshot::Sender<Rewrite>),
    /// Publish the store's figures now, and say so.
    Figures(oneshot::Sender<()>),
    Stop,
}

pub(crate) struct Applier {
    pub(crate) driver: ApplyDriver<LsmStore>,
    pub(crate) inbox: Inbox,
    pub(crate) port: ReplicaPort,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) watch: WatchHandle,
    pub(crate) built: Built,
    pub(crate) stage: Stage,
    /// Snapshots asked for at an index that is not applied yet.
    pub(crate) wanted: Vec<(u64, u64)>,
    pub(crate) figures_at: u64,
    /// The flushed index that the replica was last told.
    pub(crate) flushed_told: u64,
    /// Whether the store cannot flush for lack of space.
    pub(crate) full: bool,
    /// Bytes of entries applied since then.
    pub(crate) since_full: usize,
    /// Most bytes of entries that are applied without asking the store in between: a fraction of what it still takes
    /// into memory when its disk is full.
    pub(crate) piece_bytes: usize,
    pub(crate) space: Arc<SpaceWatch>,
    /// Who waits for defragmentation.
    pub(crate) defragmenting: Vec<oneshot::Sender<Rewrite>>,
}

impl Applier {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// Why nothing more can be applied; the member must stop.
    pub(crate) fn run(mut self, work: &Receiver<ApplyWork>) -> Result<(), String> {
        let mut pending = None;
        loop {
            let next = match pending.take() {
                Some(next) => next,
                None => match work.recv_timeout(if self.defragmenting.is_empty() {
                    IDLE
                } else {
                    Duration::ZERO
                }) {
                    Ok(next) => next,
                    Err(RecvTimeoutError::Timeout) => {
                        self.maintain()?;
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                },
            };
            match next {
                ApplyWork::Apply(mut entries) => {
                    while entries.len() < ENTRIES_MAX {
                        match work.try_recv() {
                            Ok(ApplyWork::Apply(more)) => entries.extend(more),
                            Ok(other) => {
                                pending = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.apply(entries)?;
                }
                ApplyWork::BuildSnapshot { peer, at_least } => self.wanted.push((peer, at_least)),
                ApplyWork::Install { staged, meta } => self.install(staged, meta)?,
                ApplyWork::InstallSettled(last) => self.settle(last)?,
                ApplyWork::DropStaged(staged) => drop(self.stage.take(staged)),
                ApplyWork::Housekeep { time_ms } => {
                    (self.inbox)(Input::Housekeeping(self.driver.housekeeping(time_ms)));
                }
                ApplyWork::Defragment(done) => self.defragmenting.push(done),
                ApplyWork::Figures(done) => {
                    self.publish_figures();
                    // Who asked may be gone.
                    let _ = done.send(());
                }
                ApplyWork::Stop => return Ok(()),
            }
            self.build_wanted()?;
            self.maintain()?;
        }
    }

    /// Applies entries in pieces that the store can take. An error in the middle of one would be the end of this
    /// member, so that the store is asked before, never surprised.
    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), String> {
        let mut piece = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            if bytes > 0 && bytes + entry.data.len() > self.piece_bytes {
                self.apply_piece(std::mem::take(&mut piece), std::mem::take(&mut bytes))?;
                self.maintain()?;
            }
            bytes += entry.data.len();
            piece.push(entry);
        }
        self.apply_piece(piece, bytes)
    }

    /// While the disk is full the store takes a little into memory; beyond that, entries wait here for space.
    fn apply_piece(&mut self, entries: Vec<Entry>, bytes: usize) -> Result<(), String> {
        if self.full {
            self.since_full += bytes;
        }
        while self.full && self.since_full > self.piece_bytes {
            std::thread::park_timeout(SPACE_RETRY);
            self.maintain()?;
        }
        let started = Instant::now();
        let done = self.driver.apply(entries).map_err(|error| error.to_string())?;
        self.metrics.note_apply(started.elapsed());
        self.metrics.note_applied(&done.replies);
        self.port.note_auth(done.auth);
        // Before the answers: a watch that is created after a write was answered begins after it.
        if !done.events.is_empty() {
            self.watch.publish(done.events);
        }
        self.port.complete(done.replies);
        self.flushed_told = done.report.flushed;
        (self.inbox)(Input::Applied(done.report));
        Ok(())
    }

    fn build_wanted(&mut self) -> Result<(), String> {
        let applied = self.driver.applied().index;
        for (peer, _) in self.wanted.extract_if(.., |(_, at_least)| *at_least <= applied) {
            let meta = self.driver.snapshot_meta().map_err(|error| error.to_string())?;
            self.built.put(peer, self.driver.machine().snapshot());
            (self.inbox)(Input::SnapshotBuilt { peer, meta });
        }
        Ok(())
    }

    /// A step of it, so that entries are applied in between. All who asked get the same.
    fn defragment(&mut self) -> Result<(), String> {
        if self.defragmenting.is_empty() || self.full {
            return Ok(());
        }
        let machine = self.driver.machine_mut();
        let flushed = match machine.remove_now() {
            Ok(true) => return Ok(()),
            Ok(false) => machine.store().flush(),
            Err(error) => Err(error),
        };
        match flushed {
            Ok(()) => {}
            Err(StoreError::NoSpace) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        for done in self.defragmenting.drain(..) {
            // Who asked may be gone.
            let _ = done.send(Box::new(self.driver.machine().store().rewrite()));
        }
        Ok(())
    }

    fn install(&mut self, staged: Staged, meta: SnapshotMeta) -> Result<(), String> {
        let last = meta.last;
        let machine = self.stage.take(staged);
        let machine = machine
            .ok_or_else(|| format!("the snapshot at {last:?} is to be installed and is not staged"))?;
        machine
            .store()
            .make_current(record_of(last))
            .map_err(|error| error.to_string())?;
        let report = self.driver.install(machine);
        self.port.forget_tokens();
        tracing::info!(index = last.index, "installed a snapshot");
        self.watch.reset(report.revision);
        (self.inbox)(Input::Installed { meta, report });
        Ok(())
    }

    fn settle(&mut self, last: LogId) -> Result<(), String> {
        let store = self.driver.machine().store();
        let cleared = store.clear_install_record(record_of(last));
        cleared.map_err(|error| error.to_string())
    }

    /// Between batches: the store flushes, history is removed, figures are published. A full disk is no failure.
    fn maintain(&mut self) -> Result<(), String> {
        let now_ms = clock::now() / 1000;
        match self.driver.machine_mut().maintenance(now_ms) {
            Ok(_) if self.full => {
                (self.full, self.since_full) = (false, 0);
                self.space.tell(Part::Store, false);
            }
            Ok(_) => {}
            Err(StoreError::NoSpace) if !self.full => {
                self.full = true;
                self.space.tell(Part::Store, true);
            }
            Err(StoreError::NoSpace) => {}
            Err(error) => return Err(error.to_string()),
        }
        self.defragment()?;
        if now_ms >= self.figures_at {
            self.figures_at = now_ms + FIGURES_INTERVAL_MS;
            self.publish_figures();
            let machine = self.driver.machine();
            if machine.flushed() > self.flushed_told {
                self.flushed_told = machine.flushed();
                (self.inbox)(Input::Applied(self.driver.progress()));
            }
        }
        Ok(())
    }

    fn publish_figures(&self) {
        let machine = self.driver.machine();
        self.port.publish_figures(StoreFigures {
            disk_bytes: machine.store().disk_bytes(),
            sessions: machine.sessions() as u64,
        });
    }
}

fn record_of(last: LogId) -> InstallRecord {
    InstallRecord {
        index: last.index,
        term: last.term,
    }
}
