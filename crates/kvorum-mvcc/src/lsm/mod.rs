//! The store on disk: an LSM tree without a journal of its own, because the Raft log already is one.
//!
//! It owns the tree (crate `lsm-tree`, one tree for everything), the directory around it ([`layout`]), what it
//! must hold ([`manifest`]), the threads that flush and compact ([`workers`]), how what they write reaches the disk
//! ([`write_behind`]), and the views ([`view`]).
//! `docs/design/store-format.md` has the files byte by byte and every rule with its reason.
//!
//! Invariants:
//! - A batch is one sequence number of the tree, and its mark is a key written with it. Sequence numbers are the
//!   tree's own: they are never compared with a mark, an index or a revision.
//! - Memtables are rotated by the applier between batches only, and flushed one at a time, oldest first, each in
//!   one atomic change of the tree: so the disk always holds exactly a prefix of the batches.
//! - `flushed_mark` moves only after the manifest that promises it is durable.
//!
//! Faults survived: a kill at any instant (the prefix that was flushed is there); a full disk (data stays in
//! memory, the work is retried); a flipped bit or a lost file (reported as corruption, never served). Any other
//! IO error latches: the store answers no further write.

// The engine lies beyond the seam: its threads and its clock (the age of a view, the pause before a full disk is
// tried again) decide nothing that is replicated.
#![allow(clippy::disallowed_methods)]

mod fault;
mod graveyard;
mod install;
mod layout;
mod manifest;
mod shape;
#[cfg(test)]
mod tests;
mod view;
mod workers;
mod write_behind;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, InternalValue, Memtable, SeqNo, SequenceNumberCounter,
    Tree, ValueType,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::fault::{Fault, guarded};
use self::graveyard::Graveyard;
pub use self::install::Installer;
pub use self::layout::InstallRecord;
use self::layout::{Current, Generation};
use self::manifest::Manifest;
use self::shape::Shape;
pub use self::view::LsmView;
use self::view::Published;
use self::workers::{Control, Structure};
use crate::store::{Batch, STORE_KEY_BYTES_MAX, Store, StoreError};

/// Where the mark of the last batch is kept. Keys from here on are the store's own.
const MARK_KEY: &[u8] = b"\xff\xffmark";

/// Level-0 runs at which the applier waits for the compaction. The tree counts them in a `u8` that overflows in
/// silence, and each one costs every read.
const L0_RUNS_MAX: usize = 20;

/// Sealed memtables that may wait for the flush before the applier waits.
const SEALED_MAX: usize = 3;

/// How an [`LsmStore`] uses memory and disk.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size at which a memtable is sealed and flushed. What is not flushed, which a restart replays from the
    /// log, stays under five times this.
    pub memtable_bytes: u64,
    /// Has each memtable sealed somewhere between three quarters of that size and all of it, drawn from this seed. Members
    /// apply the same writes: with seeds of their own they do not all flush in the same moment, and a majority of
    /// them is not flushing. `None`: at that size.
    pub stagger: Option<u64>,
    /// Memory for blocks of table files.
    pub cache_bytes: u64,
    /// How long a view may be read after a batch, a flush or a compaction has superseded it.
    pub view_age_max: Duration,
    /// Compress table files with LZ4, except the youngest level.
    pub compress: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memtable_bytes: 32 << 20,
            stagger: None,
            cache_bytes: 64 << 20,
            view_age_max: Duration::from_secs(600),
            compress: true,
        }
    }
}

impl Options {
    /// The size at which this memtable is sealed.
    fn seal_bytes(&self, memtable: &Memtable) -> u64 {
        let Some(seed) = self.stagger else {
            return self.memtable_bytes;
        };
        let drawn = xxh3_64_with_seed(&memtable.id().to_le_bytes(), seed);
        self.memtable_bytes - drawn % (self.memtable_bytes / 4).max(1)
    }

    /// The hard limit of what is not flushed: beyond it a write waits, and is refused if the disk is full.
    fn unflushed_bytes_max(&self) -> u64 {
        self.memtable_bytes * (SEALED_MAX as u64 + 2)
    }
}

/// A [`Store`] on disk. Dropping it stops its threads and loses what was not flushed; the log has it.
///
/// One store of a directory is open at a time; a data directory's own lock keeps other processes away.
pub struct LsmStore {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What the store, its workers and nobody else share.
///
/// Locks are taken in this order: `writer`, `tables_busy`, `structure`, the published state's, `manifest`,
/// `control`.
struct Shared {
    tree: Tree,
    numbers: SequenceNumberCounter,
    options: Options,
    /// The applier's: the memtable that takes writes.
    writer: Mutex<Writer>,
    /// Which memtables there are. Held while it changes and until the change is published.
    structure: Mutex<Structure>,
    published: Published,
    /// The last manifest that was stated, durable or still to be written.
    manifest: Mutex<manifest::Stated>,
    /// Taken shared while tables are written, alone to remove what such a write has left behind.
    tables_busy: RwLock<()>,
    control: Mutex<Control>,
    /// Something for the workers to do.
    work: Condvar,
    /// Something was done that the applier may be waiting for.
    progress: Condvar,
    flushed_mark: AtomicU64,
    graveyard: Arc<Graveyard>,
    home: Arc<Generation>,
}

struct Writer {
    active: Arc<Memtable>,
    mark: u64,
    /// The size at which the active one is sealed.
    seal_bytes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under a lock is caught and latched where it happens; what the lock guards is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LsmStore {
    /// Makes an empty store in a directory that has none; the directory is made if it is not there.
    pub fn create(dir: &Path, options: Options) -> Result<Self, StoreError> {
        install::prepare(dir)?;
        let store = install::fresh_generation(dir, options, 1)?;
        Current {
            generation: 1,
            record: None,
        }
        .write(store.shared.home.dir())?;
        Ok(store)
    }

    /// Opens the store in a directory, removes what earlier stores left there, and waits until the compaction
    /// has caught up with what many short lives left behind.
    ///
    /// Any doubt about the files is [`StoreError::Corrupt`], found before anything is changed.
    pub fn open(dir: &Path, options: Options) -> Result<Self, StoreError> {
        let Some(current) = Current::read(dir)? else {
            let why = match layout::generations(dir) {
                Ok(found) if !found.is_empty() => Fault::Corrupt("data without a CURRENT".into()),
                _ => Fault::Invalid(format!("there is no store in {}", dir.display())),
            };
            return Err(why.into());
        };
        let home = Generation::claim(dir, current.generation)?;
        let stated = Manifest::read(home.path())?;
        stated.check_files(home.number, &home.tree())?;
        let store = Self::start(home, options, Some(&stated))?;
        layout::remove_leftovers(dir, Some(current.generation))?;
        match store.shared.wait_for_room() {
            // A full disk is no reason not to start: what is there can be read, and deletes make room.
            Ok(()) | Err(Fault::NoSpace(_)) => Ok(store),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Whether a store was created in this directory.
    pub fn exists(dir: &Path) -> Result<bool, StoreError> {
        Ok(Current::read(dir)?.is_some())
    }

    /// Opens the tree of a generation and starts the threads. `stated` is what it must hold; a new generation
    /// has none yet.
    fn start(home: Arc<Generation>, options: Options, stated: Option<&Manifest>) -> Result<Self, Fault> {
        let numbers = SequenceNumberCounter::default();
        let control = Mutex::new(Control::default());
        let stop = lock(&control).stop_flag();
        let tree = open_tree(&home, &options, &numbers, stop)?;
        let newest = guarded("reading the tree's numbers", || Ok(tree.get_highest_seqno()))?;
        // Numbers begin at 1, so that the first read number has something below it.
        numbers.set(newest.map_or(1, |newest| newest + 1));

        let active = tree.active_memtable();
        let shape = Shape::capture(&tree, vec![active.clone()])?;
        let mark = match shape.get(MARK_KEY, SeqNo::MAX)? {
            None => 0,
            Some(bytes) => u64::from_le_bytes(
                bytes
                    .as_ref()
                    .try_into()
                    .map_err(|_| Fault::Corrupt("the mark is malformed".into()))?,
            ),
        };
        let found = Manifest::of(&tree, home.number, mark)?;
        match stated {
            Some(stated) => stated.check_tree(&found)?,
            None => found.write(home.path())?,
        }
        let (graveyard, freer) = Graveyard::start()?;
        let shared = Arc::new(Shared {
            published: Published::new(numbers.get(), shape, home.clone(), graveyard.clone()),
            graveyard,
            writer: Mutex::new(Writer {
                active: active.clone(),
                mark,
                seal_bytes: options.seal_bytes(&active),
            }),
            structure: Mutex::new(Structure::new(active)),
            manifest: Mutex::new(manifest::Stated::durable(found)),
            tables_busy: RwLock::default(),
            control,
            work: Condvar::new(),
            progress: Condvar::new(),
            flushed_mark: AtomicU64::new(mark),
            tree,
            numbers,
            options,
            home,
        });
        let mut store = Self {
            shared,
            workers: vec![freer],
        };
        workers::start(&store.shared, &mut store.workers)?;
        Ok(store)
    }

    /// The record that a snapshot's installation left, until [`clear_install_record`](Self::clear_install_record).
    pub fn install_record(&self) -> Result<Option<InstallRecord>, StoreError> {
        Ok(self.shared.current()?.record)
    }

    /// Forgets this record durably: the log has been reset to it. Another one, of a later install, stays.
    pub fn clear_install_record(&self, record: InstallRecord) -> Result<(), StoreError> {
        let current = self.shared.current()?;
        if current.record != Some(record) {
            return Ok(());
        }
        let cleared = Current {
            record: None,
            ..current
        };
        Ok(cleared.write(self.shared.home.dir())?)
    }

    /// Reads every table file whole and compares it with its checksum; `pace` is told of each piece read and
    /// may sleep. For a background thread; returns the bytes read.
    pub fn scrub(&self, pace: impl FnMut(u64)) -> Result<u64, StoreError> {
        let result = manifest::scrub(&self.shared.tree, pace);
        if let Err(fault @ Fault::Corrupt(_)) = &result {
            self.shared.latch(fault);
        }
        Ok(result?)
    }
}

impl Drop for LsmStore {
    fn drop(&mut self) {
        self.shared.stop();
        self.shared.graveyard.close();
        for worker in self.workers.drain(..) {
            // A worker catches its panics; one that died all the same has nothing left to say.
            let _ = worker.join();
        }
    }
}

fn open_tree(
    home: &Generation,
    options: &Options,
    numbers: &SequenceNumberCounter,
    stop: Arc<std::sync::atomic::AtomicBool>,
) -> Result<Tree, Fault> {
    use lsm_tree::config::CompressionPolicy;
    let below = if options.compress {
        CompressionType::Lz4
    } else {
        CompressionType::None
    };
    // The tree's own counter of visible numbers is of no use here: it moves before a batch is whole.
    let config = lsm_tree::Config::new(home.tree(), numbers.clone(), SequenceNumberCounter::default())
        .use_cache(Arc::new(Cache::with_capacity_bytes(options.cache_bytes)))
        .data_block_compression_policy(CompressionPolicy::new([CompressionType::None, below]))
        .with_compaction_filter_factory(Some(Arc::new(workers::BetweenRecords::new(stop, home.tables()))));
    match guarded("opening the tree", || config.open())? {
        AnyTree::Standard(tree) => Ok(tree),
        AnyTree::Blob(_) => Err(Fault::Corrupt("the tree keeps its values apart".into())),
    }
}

impl Shared {
    fn current(&self) -> Result<Current, Fault> {
        match Current::read(self.home.dir())? {
            Some(current) if current.generation == self.home.number => Ok(current),
            _ => Err(Fault::Invalid("another store has taken this one's place".into())),
        }
    }

    /// Bytes that only memory holds.
    fn unflushed_bytes(&self, writer: &Writer) -> u64 {
        writer.active.size() + lock(&self.structure).sealed_bytes()
    }

    /// Waits until the active memtable may be sealed, and seals it.
    fn make_room(&self, writer: &mut Writer) -> Result<(), Fault> {
        self.wait_for_room()?;
        self.latching(self.rotate(writer))
    }

    /// Seals the active memtable, unless it is empty, and hands it to the flush.
    fn rotate(&self, writer: &mut Writer) -> Result<(), Fault> {
        let mut structure = lock(&self.structure);
        let Some(sealed) = guarded("rotating the memtable", || Ok(self.tree.rotate_memtable()))? else {
            return Ok(());
        };
        writer.active = self.tree.active_memtable();
        writer.seal_bytes = self.options.seal_bytes(&writer.active);
        structure.rotated(sealed, writer.mark, writer.active.clone());
        self.publish(&structure)?;
        drop(structure);
        self.sealed_one();
        Ok(())
    }

    /// Publishes the structure that the caller has changed under its lock.
    fn publish(&self, structure: &Structure) -> Result<(), Fault> {
        self.published
            .reshape(Shape::capture(&self.tree, structure.memtables())?);
        Ok(())
    }
}

impl LsmStore {
    /// What writes all tables anew, without what was deleted or replaced, on whatever thread runs it; nothing waits
    /// for it but its caller. What only memory holds is not in it: flush before.
    pub fn rewrite(&self) -> impl FnOnce() -> Result<(), StoreError> + Send + 'static {
        let shared = self.shared.clone();
        move || Ok(shared.rewrite()?)
    }
}

impl Store for LsmStore {
    type View = LsmView;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if key.is_empty() {
            return Ok(None);
        }
        Ok(self.shared.published.get_newest(key)?)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let shared = &*self.shared;
        shared.check()?;
        let mut writer = lock(&shared.writer);
        if writer.active.size() >= writer.seal_bytes
            && shared.unflushed_bytes(&writer) >= shared.options.unflushed_bytes_max()
        {
            shared.make_room(&mut writer)?;
        }
        assert!(
            batch.mark >= writer.mark,
            "a batch took the mark from {} back to {}",
            writer.mark,
            batch.mark
        );
        for (key, _) in &batch.writes {
            assert!(
                !key.is_empty() && key.len() <= STORE_KEY_BYTES_MAX && &key[..] < MARK_KEY,
                "a store key has 1 to {STORE_KEY_BYTES_MAX} bytes and does not begin with ff ff"
            );
        }
        let number = shared.numbers.next();
        // Two entries of one key and one number are one entry of the memtable, the later one: as the batch says.
        for (key, value) in batch.writes {
            writer.active.insert(match value {
                Some(value) => InternalValue::from_components(key, value, number, ValueType::Value),
                None => InternalValue::new_tombstone(key, number),
            });
        }
        let mark = Bytes::copy_from_slice(&batch.mark.to_le_bytes());
        let key = Bytes::from_static(MARK_KEY);
        writer.active.insert(InternalValue::from_components(
            key,
            mark,
            number,
            ValueType::Value,
        ));
        writer.mark = batch.mark;
        shared.published.advance(number + 1);
        Ok(())
    }

    fn view(&self) -> LsmView {
        LsmView::new(self.shared.published.current())
    }

    fn maintain(&self) -> Result<(), StoreError> {
        let shared = &*self.shared;
        shared.check()?;
        shared.published.end_old(shared.options.view_age_max);
        let mut writer = lock(&shared.writer);
        if writer.active.size() >= writer.seal_bytes {
            shared.make_room(&mut writer)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let shared = &*self.shared;
        shared.check()?;
        let mut writer = lock(&shared.writer);
        let mark = writer.mark;
        shared.latching(shared.rotate(&mut writer))?;
        shared.wait_for_flush()?;
        assert!(
            shared.flushed_mark.load(Ordering::Acquire) == mark,
            "all batches were flushed"
        );
        Ok(())
    }

    fn flushed_mark(&self) -> u64 {
        self.shared.flushed_mark.load(Ordering::Acquire)
    }

    fn disk_bytes(&self) -> u64 {
        // Of the published state, which no worker holds while it syncs a change of the tree.
        self.shared.published.bytes()
    }
}
