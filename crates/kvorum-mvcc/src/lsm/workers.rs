//! The threads that flush and compact, and how the applier waits for them.
//!
//! One thread flushes sealed memtables, oldest first, one at a time; one compacts. A full disk is reported and
//! the work is tried again; any other failure latches and ends both. Neither touches the memtable that takes
//! writes.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lsm_tree::compaction::filter::{Context, ItemAccessor};
use lsm_tree::compaction::{CompactionFilter, Factory, Leveled, Verdict};
use lsm_tree::{AbstractTree, InternalValue, Memtable};

use super::fault::{Fault, STOPPED, caught, guarded};
use super::manifest::{self, Manifest};
use super::write_behind::WriteBehind;
use super::{L0_RUNS_MAX, SEALED_MAX, Shared, lock, shape};

/// How long a worker waits before it tries a full disk again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Size of the tables that a rewriting of all makes; the tree's own choice for its last level.
const REWRITTEN_TABLE_BYTES: u64 = 64 << 20;

/// Which memtables there are.
///
/// Invariant: these are the tree's own, in its order; marks ascend.
pub(super) struct Structure {
    active: Arc<Memtable>,
    /// Oldest first, each with the mark of its last batch.
    sealed: VecDeque<(Arc<Memtable>, u64)>,
}

impl Structure {
    pub(super) fn new(active: Arc<Memtable>) -> Self {
        Self {
            active,
            sealed: VecDeque::new(),
        }
    }

    pub(super) fn rotated(&mut self, sealed: Arc<Memtable>, mark: u64, active: Arc<Memtable>) {
        assert!(
            self.active.id() == sealed.id(),
            "only the applier rotates the memtable"
        );
        self.sealed.push_back((sealed, mark));
        self.active = active;
    }

    /// Newest first.
    pub(super) fn memtables(&self) -> Vec<Arc<Memtable>> {
        let sealed = self.sealed.iter().rev().map(|(memtable, _)| memtable.clone());
        std::iter::once(self.active.clone()).chain(sealed).collect()
    }

    pub(super) fn sealed_bytes(&self) -> u64 {
        self.sealed.iter().map(|(memtable, _)| memtable.size()).sum()
    }
}

/// What the threads tell each other.
#[derive(Default)]
pub(super) struct Control {
    /// Also looked at by a merge between two records.
    stop: Arc<AtomicBool>,
    /// The failure that ended the store's life.
    latched: Option<Fault>,
    /// The last attempt of a worker met a full disk.
    no_space: bool,
    /// A worker that waits for a full disk shall try again now.
    retry: bool,
    /// Sealed memtables that are not yet durable.
    unflushed: usize,
    /// Level-0 runs after the last change.
    l0_runs: usize,
    /// The tree has changed since the compaction looked at it.
    compact: bool,
    /// How often all tables were to be written anew, and how often they were.
    rewrites_wanted: u64,
    rewrites_done: u64,
}

impl Control {
    pub(super) fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    fn ended(&self) -> bool {
        self.latched.is_some() || self.stop.load(Ordering::Relaxed)
    }
}

/// What every merge does between two records.
///
/// It stops when the store closes: the tree has a signal of its own for this, but a merge that it stops commits what it
/// has merged so far in place of all its inputs; an error discards the attempt. And it has the disk write what is
/// merged.
pub(super) struct BetweenRecords {
    stop: Arc<AtomicBool>,
    tables: PathBuf,
}

impl BetweenRecords {
    pub(super) fn new(stop: Arc<AtomicBool>, tables: PathBuf) -> Self {
        Self { stop, tables }
    }
}

impl Factory for BetweenRecords {
    fn name(&self) -> &str {
        "between-records"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Merge {
            stop: self.stop.clone(),
            behind: WriteBehind::new(self.tables.clone()),
        })
    }
}

/// One merge that is going on.
struct Merge {
    stop: Arc<AtomicBool>,
    behind: WriteBehind,
}

impl CompactionFilter for Merge {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other(STOPPED).into());
        }
        self.behind.wrote(item.key().len() + item.value()?.len())?;
        Ok(Verdict::Keep)
    }
}

/// The nice value of the threads that nobody waits for.
const BACKGROUND_NICE: i32 = 10;

/// Starts the threads of a store.
pub(super) fn start(shared: &Arc<Shared>, workers: &mut Vec<JoinHandle<()>>) -> Result<(), Fault> {
    shared.note_l0_runs()?;
    for (name, body) in [
        ("store-flush", flush_loop as fn(&Shared)),
        ("store-compact", compact_loop),
    ] {
        let shared = shared.clone();
        let worker = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                step_back();
                body(&shared);
            })
            .map_err(|error| Fault::io("starting a thread of the store", &error))?;
        workers.push(worker);
    }
    Ok(())
}

/// Lets every other thread of the member go first. Where all cores are in use, what rewrites tables for half a second
/// would otherwise take its turn between any two steps of a write. It still gets a tenth of what they get, so that
/// whoever waits for the flush, or for a lock that it holds, does not wait for ever.
pub(super) fn step_back() {
    // Linux counts this for the calling thread alone (setpriority(2), "C library/kernel differences"). Refused, all
    // goes on as it was.
    let _ = rustix::process::setpriority_process(None, BACKGROUND_NICE);
}

fn flush_loop(shared: &Shared) {
    loop {
        let mut control = lock(&shared.control);
        while !control.ended() && control.unflushed == 0 {
            control = shared.work.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        if control.ended() {
            return;
        }
        drop(control);
        shared.report(caught("flushing", || shared.flush_step()));
    }
}

fn compact_loop(shared: &Shared) {
    let strategy = Arc::new(Leveled::default());
    loop {
        let mut control = lock(&shared.control);
        while !control.ended() && !control.compact && control.rewrites_done == control.rewrites_wanted {
            control = shared.work.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        if control.ended() {
            return;
        }
        if control.rewrites_done < control.rewrites_wanted {
            let wanted = control.rewrites_wanted;
            drop(control);
            let result = caught("rewriting all tables", || shared.rewrite_step());
            if result.is_ok() {
                lock(&shared.control).rewrites_done = wanted;
                shared.progress.notify_all();
            }
            shared.report(result);
            continue;
        }
        control.compact = false;
        drop(control);
        let result = caught("compacting", || shared.compact_step(&strategy));
        if result.is_err() {
            lock(&shared.control).compact = true;
        }
        shared.report(result);
    }
}

/// The newest version of each key of a memtable. All its numbers are below the read number that was published
/// when it was sealed, so no view that will read the table asks for an older one.
fn newest_versions(memtable: &Memtable) -> impl Iterator<Item = InternalValue> + '_ {
    let mut last = None;
    memtable.iter().filter_map(move |item| {
        if last.as_ref() == Some(&item.key.user_key) {
            return None;
        }
        last = Some(item.key.user_key.clone());
        Some(item)
    })
}

impl Shared {
    /// Flushes the oldest sealed memtable, or completes a flush whose manifest is not written yet.
    fn flush_step(&self) -> Result<(), Fault> {
        self.settle()?;
        let oldest = lock(&self.structure).sealed.front().cloned();
        let Some((memtable, mark)) = oldest else {
            return Ok(());
        };
        {
            let _busy = self.tables_busy.read().unwrap_or_else(PoisonError::into_inner);
            let mut behind = WriteBehind::new(self.home.tables());
            let tables = guarded("flushing a memtable", || {
                let items = newest_versions(&memtable).map(|item| {
                    behind.wrote(item.key.user_key.len() + item.value.len())?;
                    Ok(item)
                });
                self.tree.flush_to_tables(items)
            })?;
            let tables = tables
                .expect("a tree that keeps its values together writes tables")
                .0;
            let watermark = self.published.number();
            let mut structure = lock(&self.structure);
            guarded("registering a flush", || {
                self.tree
                    .register_tables(&tables, None, None, &[memtable.id()], watermark)
            })?;
            structure.sealed.pop_front();
            lock(&self.manifest)
                .known
                .extend(tables.iter().map(|table| table.id()));
            self.publish(&structure)?;
        }
        drop(memtable);
        self.changed(Some(mark))
    }

    /// Has the compaction's thread merge all tables, and waits until it has.
    pub(super) fn rewrite(&self) -> Result<(), Fault> {
        let mut control = lock(&self.control);
        control.rewrites_wanted += 1;
        let wanted = control.rewrites_wanted;
        self.work.notify_all();
        while control.rewrites_done < wanted {
            if control.ended() {
                return Err(control.latched.clone().unwrap_or(Fault::Stopped));
            }
            if control.no_space {
                return Err(Fault::NoSpace("the store's disk is full".into()));
            }
            control = self
                .progress
                .wait(control)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn rewrite_step(&self) -> Result<(), Fault> {
        self.settle()?;
        {
            let _busy = self.tables_busy.read().unwrap_or_else(PoisonError::into_inner);
            let watermark = self.published.number();
            guarded("rewriting all tables", || {
                self.tree.major_compact(REWRITTEN_TABLE_BYTES, watermark)
            })?;
            self.publish(&lock(&self.structure))?;
        }
        self.changed(None)
    }

    /// Lets the tree make one change, if it sees one to make, and comes back for the next.
    fn compact_step(&self, strategy: &Arc<Leveled>) -> Result<(), Fault> {
        self.settle()?;
        let version = || {
            guarded("reading the tree's version", || {
                Ok(self.tree.current_version().id())
            })
        };
        let before = version()?;
        {
            let _busy = self.tables_busy.read().unwrap_or_else(PoisonError::into_inner);
            // Views hold what they read themselves; all the same, no version that the youngest one may see
            // is given up.
            let watermark = self.published.number();
            guarded("compacting", || self.tree.compact(strategy.clone(), watermark))?;
            if version()? == before {
                return Ok(());
            }
            self.publish(&lock(&self.structure))?;
        }
        self.changed(None)
    }

    /// States a change of the tree: `mark` is that of a memtable that has just been flushed.
    fn changed(&self, mark: Option<u64>) -> Result<(), Fault> {
        let mut stated = lock(&self.manifest);
        let flushed = mark.unwrap_or(stated.manifest.mark);
        stated.manifest = Manifest::of(&self.tree, self.home.number, flushed)?;
        let ids: Vec<u64> = stated.manifest.table_ids().collect();
        stated.known.extend(ids);
        stated.durable = false;
        stated.owed += usize::from(mark.is_some());
        drop(stated);
        self.note_l0_runs()?;
        shape::prune(&self.tree)?;
        self.settle()
    }

    /// Writes the manifest if the last one is not durable, and then says what it makes durable.
    fn settle(&self) -> Result<(), Fault> {
        let mut stated = lock(&self.manifest);
        if stated.durable {
            return Ok(());
        }
        stated.manifest.write(self.home.path())?;
        stated.durable = true;
        self.flushed_mark.store(stated.manifest.mark, Ordering::Release);
        lock(&self.control).unflushed -= std::mem::take(&mut stated.owed);
        self.progress.notify_all();
        Ok(())
    }

    /// Tells the applier and the compaction how level 0 stands.
    fn note_l0_runs(&self) -> Result<(), Fault> {
        let runs = guarded("counting runs", || Ok(self.tree.l0_run_count()))?;
        let mut control = lock(&self.control);
        control.l0_runs = runs;
        control.compact = true;
        drop(control);
        self.work.notify_all();
        self.progress.notify_all();
        Ok(())
    }

    /// Takes a worker's result: a full disk is waited for, other failures latch.
    fn report(&self, result: Result<(), Fault>) {
        let fault = match result {
            Ok(()) => {
                lock(&self.control).no_space = false;
                return;
            }
            Err(Fault::Stopped) => return self.remove_strays(),
            Err(fault @ Fault::NoSpace(_)) => fault,
            Err(fault) => return self.latch(&fault),
        };
        if !manifest::pointer_agrees(&self.tree, &self.home.tree()) {
            return self.latch(&Fault::Io(format!(
                "{fault}, in the middle of a change of the tree"
            )));
        }
        self.remove_strays();
        let mut control = lock(&self.control);
        control.no_space = true;
        control.retry = false;
        self.progress.notify_all();
        let retry_at = Instant::now() + RETRY_AFTER;
        while !control.ended() && !control.retry {
            let left = retry_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            control = self
                .work
                .wait_timeout(control, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Removes what failed attempts have left: the tree itself does so only at the next start, and until then
    /// the disk that they filled would stay full.
    fn remove_strays(&self) {
        // Alone: no table is being written that is not registered yet.
        let _alone = self.tables_busy.write().unwrap_or_else(PoisonError::into_inner);
        let stated = lock(&self.manifest);
        let Ok(entries) = fs::read_dir(self.home.tables()) else {
            return;
        };
        for entry in entries.flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if id.is_some_and(|id: u64| !stated.known.contains(&id)) {
                // One that stays is removed at the next start.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub(super) fn latch(&self, fault: &Fault) {
        lock(&self.control).latched.get_or_insert_with(|| fault.clone());
        self.work.notify_all();
        self.progress.notify_all();
    }

    /// Latches what is neither success nor a full disk.
    pub(super) fn latching<T>(&self, result: Result<T, Fault>) -> Result<T, Fault> {
        if let Err(fault) = &result
            && !matches!(fault, Fault::NoSpace(_))
        {
            self.latch(fault);
        }
        result
    }

    /// The latched failure, if there is one.
    pub(super) fn check(&self) -> Result<(), Fault> {
        lock(&self.control).latched.clone().map_or(Ok(()), Err)
    }

    pub(super) fn stop(&self) {
        lock(&self.control).stop.store(true, Ordering::Relaxed);
        self.work.notify_all();
        self.progress.notify_all();
    }

    /// Counts a memtable that was just sealed, and wakes the flush.
    pub(super) fn sealed_one(&self) {
        lock(&self.control).unflushed += 1;
        self.work.notify_all();
    }

    /// Waits until another memtable may be sealed.
    pub(super) fn wait_for_room(&self) -> Result<(), Fault> {
        self.wait(lock(&self.control), |control| {
            control.unflushed < SEALED_MAX && control.l0_runs < L0_RUNS_MAX
        })
    }

    /// Waits until no sealed memtable is left. A full disk is tried once more.
    pub(super) fn wait_for_flush(&self) -> Result<(), Fault> {
        let mut control = lock(&self.control);
        if control.no_space {
            control.no_space = false;
            control.retry = true;
            self.work.notify_all();
        }
        self.wait(control, |control| control.unflushed == 0)
    }

    fn wait(
        &self,
        mut control: MutexGuard<'_, Control>,
        enough: impl Fn(&Control) -> bool,
    ) -> Result<(), Fault> {
        loop {
            if let Some(fault) = &control.latched {
                return Err(fault.clone());
            }
            if enough(&control) {
                return Ok(());
            }
            if control.no_space {
                return Err(Fault::NoSpace("the store's disk is full".into()));
            }
            control = self
                .progress
                .wait(control)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
