//! A disk in memory that fails the way real disks do, and the same way each time for the same seed.
//!
//! What a process sees and what would survive a power cut are kept apart. A write, a cut or a claim is visible
//! at once and *pending* until its file is synced; a new name, a rename or a removal is pending until its
//! directory is synced. [`SimDisk::crash`] decides from a seed what of the pending survives: nothing,
//! everything, a torn prefix, or any 512-byte sectors and any names in any order. Syncing a file does not make
//! its name durable.
//!
//! Faults are planted by the number of an IO ([`SimDisk::fail_at`]); every operation that changes the disk
//! counts as one. After [`Fault::Crash`] every operation fails until [`SimDisk::crash`]. A handle belongs to one
//! life of the process: after a crash or restart the old handles, files and locks are dead.
//!
//! Not simulated: directories as such (`create_dir` is durable at once), access times, holes that save space.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, ListedFile, LockError};

/// What survives a crash survives in units of this many bytes.
const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

/// What goes wrong at an IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails with EIO; half of a write is done before.
    Eio,
    /// The operation fails with ENOSPC and does nothing.
    NoSpace,
    /// A write takes only half of its bytes, without an error. Nothing for other operations.
    ShortWrite,
    /// A sync fails with EIO, and what it should have made durable never will be, though it can still be read
    /// and every later sync succeeds. Like `Eio` for other operations, and for directories: file systems keep
    /// the order of names, and do not forget some of them.
    LoseSync,
    /// The power goes off in the middle of the operation.
    Crash,
}

/// The simulated disk. Clones are handles to the same one; [`SimDisk::fork`] copies it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    life: u64,
}

/// A file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
}

/// A lock on a file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

#[derive(Clone, Debug)]
struct State {
    random: Random,
    /// The life of the process that may use the disk now.
    life: u64,
    powered: bool,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending_names: Vec<NameChange>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    ios: u64,
    reads: u64,
    faults: BTreeMap<u64, Fault>,
    read_faults: BTreeSet<u64>,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    seen: Content,
    durable: Content,
    pending: Vec<Change>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    size: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    Size(u64),
    AtLeast(u64),
}

#[derive(Clone, Debug)]
enum NameChange {
    Link { path: PathBuf, inode: u64 },
    Unlink { path: PathBuf, inode: u64 },
    Rename { from: PathBuf, to: PathBuf, inode: u64 },
}

/// How much of the pending changes of one file, or of the names, a crash keeps.
#[derive(Clone, Copy)]
enum Survival {
    Nothing,
    Everything,
    /// The first so many changes, and some sectors of the next one.
    TornPrefix(usize),
    /// Any sectors of any change.
    Anything,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }

    fn survival(&mut self, changes: usize) -> Survival {
        match self.next() % 4 {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::TornPrefix((self.next() % (changes as u64 + 1)) as usize),
            _ => Survival::Anything,
        }
    }
}

impl Content {
    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        self.size = self.size.max(offset + bytes.len() as u64);
        while !bytes.is_empty() {
            let at = (offset % PAGE) as usize;
            let n = bytes.len().min(PAGE as usize - at);
            let page = self
                .pages
                .entry(offset / PAGE)
                .or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[at..at + n].copy_from_slice(&bytes[..n]);
            offset += n as u64;
            bytes = &bytes[n..];
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let n = (self.size.saturating_sub(offset)).min(buffer.len() as u64) as usize;
        let mut done = 0;
        while done < n {
            let at = offset + done as u64;
            let inside = (at % PAGE) as usize;
            let m = (n - done).min(PAGE as usize - inside);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => buffer[done..done + m].copy_from_slice(&page[inside..inside + m]),
                None => buffer[done..done + m].fill(0),
            }
            done += m;
        }
        n
    }

    fn set_size(&mut self, size: u64) {
        if size < self.size {
            self.pages.retain(|page, _| page * PAGE < size);
            if let Some(page) = self.pages.get_mut(&(size / PAGE)) {
                Arc::make_mut(page)[(size % PAGE) as usize..].fill(0);
            }
        }
        self.size = size;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => self.write(*offset, bytes),
            Change::Size(size) => self.set_size(*size),
            Change::AtLeast(size) => self.size = self.size.max(*size),
        }
    }

    /// Applies each sector of a change, or not.
    fn apply_torn(&mut self, change: &Change, random: &mut Random) {
        let Change::Write { offset, bytes } = change else {
            if random.coin() {
                self.apply(change);
            }
            return;
        };
        let end = offset + bytes.len() as u64;
        let mut from = *offset;
        while from < end {
            let to = end.min((from / SECTOR + 1) * SECTOR);
            if random.coin() {
                self.write(from, &bytes[(from - offset) as usize..(to - offset) as usize]);
            }
            from = to;
        }
    }
}

impl Inode {
    fn charged(&self) -> u64 {
        self.seen.size.max(self.durable.size).div_ceil(PAGE) * PAGE
    }

    fn change(&mut self, change: Change) {
        self.seen.apply(&change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            self.durable.apply(&change);
        }
    }

    fn crash(&mut self, random: &mut Random) {
        let survival = random.survival(self.pending.len());
        for (i, change) in std::mem::take(&mut self.pending).iter().enumerate() {
            match survival {
                Survival::Nothing => {}
                Survival::Everything => self.durable.apply(change),
                Survival::TornPrefix(whole) if i < whole => self.durable.apply(change),
                Survival::TornPrefix(whole) if i > whole => {}
                Survival::TornPrefix(_) | Survival::Anything => self.durable.apply_torn(change, random),
            }
        }
        self.seen = self.durable.clone();
    }
}

impl NameChange {
    fn touches(&self, dir: &Path) -> bool {
        match self {
            NameChange::Link { path, .. } | NameChange::Unlink { path, .. } => path.parent() == Some(dir),
            NameChange::Rename { from, to, .. } => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        let unlink = |names: &mut BTreeMap<PathBuf, u64>, path: &Path, inode: u64| {
            if names.get(path) == Some(&inode) {
                names.remove(path);
            }
        };
        match self {
            NameChange::Link { path, inode } => {
                names.insert(path.clone(), *inode);
            }
            NameChange::Unlink { path, inode } => unlink(names, path, *inode),
            NameChange::Rename { from, to, inode } => {
                unlink(names, from, *inode);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

impl State {
    /// Counts one changing IO and says what goes wrong with it.
    fn io(&mut self, life: u64) -> io::Result<Option<Fault>> {
        self.alive(life)?;
        self.ios += 1;
        match self.faults.remove(&self.ios) {
            Some(Fault::NoSpace) => Err(no_space()),
            Some(Fault::Crash) => {
                self.powered = false;
                Ok(Some(Fault::Crash))
            }
            fault => Ok(fault),
        }
    }

    fn alive(&self, life: u64) -> io::Result<()> {
        if self.powered && self.life == life {
            Ok(())
        } else {
            Err(dead())
        }
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(dead)
    }

    /// Whether the file may be `size` bytes long.
    fn claim(&self, inode: u64, size: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity else {
            return Ok(());
        };
        let now = self.inodes.get(&inode).map_or(0, Inode::charged);
        let then = size.div_ceil(PAGE) * PAGE;
        if then > now && self.used() - now + then > capacity {
            Err(no_space())
        } else {
            Ok(())
        }
    }

    /// Space that was given up is free when that is durable.
    fn used(&self) -> u64 {
        let named: BTreeSet<&u64> = self.names.values().chain(self.durable_names.values()).collect();
        named
            .into_iter()
            .filter_map(|inode| self.inodes.get(inode))
            .map(Inode::charged)
            .sum()
    }

    fn name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    fn crash(&mut self, seed: u64) {
        let mut random = Random(seed);
        let survival = random.survival(self.pending_names.len());
        for (i, change) in std::mem::take(&mut self.pending_names).iter().enumerate() {
            let keep = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::TornPrefix(whole) => i < whole,
                Survival::Anything => random.coin(),
            };
            if keep {
                change.apply(&mut self.durable_names);
            }
        }
        for inode in self.inodes.values_mut() {
            inode.crash(&mut random);
        }
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
        self.restart();
    }

    fn restart(&mut self) {
        self.life += 1;
        self.powered = true;
        self.locks.clear();
        self.faults.clear();
        self.read_faults.clear();
    }
}

fn dead() -> io::Error {
    io::Error::other("the simulated machine is off")
}

fn eio() -> io::Error {
    io::Error::other("simulated EIO")
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "simulated ENOSPC")
}

/// Turns the fault of an operation without a special way to fail into its result.
fn outcome(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        None | Some(Fault::ShortWrite) => Ok(()),
        Some(Fault::Crash) => Err(dead()),
        Some(Fault::Eio | Fault::LoseSync | Fault::NoSpace) => Err(eio()),
    }
}

impl SimDisk {
    /// An empty disk of unlimited size. The seed decides what [`Disk::random`] returns.
    pub fn new(seed: u64) -> SimDisk {
        let state = State {
            random: Random(seed),
            life: 1,
            powered: true,
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            directories: BTreeSet::new(),
            locks: BTreeSet::new(),
            capacity: None,
            ios: 0,
            reads: 0,
            faults: BTreeMap::new(),
            read_faults: BTreeSet::new(),
        };
        SimDisk {
            state: Arc::new(Mutex::new(state)),
            life: 1,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of another thread inside leaves a disk like any other: nothing here spans two changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An independent copy of the disk as it is now, with its pending changes, faults and locks.
    pub fn fork(&self) -> SimDisk {
        SimDisk {
            state: Arc::new(Mutex::new(self.state().clone())),
            life: self.life,
        }
    }

    /// Power off and on: the seed decides what survives of all that was not synced. Returns the handle of the
    /// process's next life; this one is dead. Planted faults are forgotten.
    #[must_use = "the old handle is dead"]
    pub fn crash(&self, seed: u64) -> SimDisk {
        let mut state = self.state();
        state.crash(seed);
        SimDisk {
            state: self.state.clone(),
            life: state.life,
        }
    }

    /// The process ends and starts again without a power cut: everything written is still seen, durable or not.
    #[must_use = "the old handle is dead"]
    pub fn restart(&self) -> SimDisk {
        let mut state = self.state();
        state.restart();
        SimDisk {
            state: self.state.clone(),
            life: state.life,
        }
    }

    /// Switches the power off now; [`SimDisk::crash`] switches it on again.
    pub fn power_off(&self) {
        self.state().powered = false;
    }

    /// How many changing IOs there were since the disk was made.
    pub fn ios(&self) -> u64 {
        self.state().ios
    }

    /// How many reads there were since the disk was made.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// Plants a fault at the changing IO with this number (the next one is [`SimDisk::ios`] + 1).
    pub fn fail_at(&self, io: u64, fault: Fault) {
        self.state().faults.insert(io, fault);
    }

    /// Makes the read with this number (the next one is [`SimDisk::reads`] + 1) fail with EIO.
    pub fn fail_read_at(&self, read: u64) {
        self.state().read_faults.insert(read);
    }

    /// Limits the space of all files together, in bytes (each file rounded up to 4 KiB); `None` lifts it.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// The space that all files take now, or would take after a crash.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Flips the bits of `mask` in one byte of a file, on the platter and in what is read. False if the file
    /// does not reach so far.
    pub fn rot(&self, path: &Path, offset: u64, mask: u8) -> bool {
        let mut state = self.state();
        let Some(inode) = state.names.get(path).copied() else {
            return false;
        };
        let Some(inode) = state.inodes.get_mut(&inode) else {
            return false;
        };
        if offset >= inode.seen.size {
            return false;
        }
        for content in [&mut inode.seen, &mut inode.durable] {
            let mut byte = [0];
            if content.read(offset, &mut byte) == 1 {
                content.write(offset, &[byte[0] ^ mask]);
            }
        }
        true
    }

    /// The content of a file as a process would read it; `None` if there is no such file.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = state.inodes.get(state.names.get(path)?)?;
        let mut bytes = vec![0; inode.seen.size as usize];
        inode.seen.read(0, &mut bytes);
        Some(bytes)
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let state = self.state();
        state.alive(self.life)?;
        let missing = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("{} is not there", path.display()),
            )
        };
        let inode = *state.names.get(path).ok_or_else(missing)?;
        Ok(SimFile {
            disk: self.clone(),
            inode,
        })
    }

    fn open_or_create(&self, path: &Path) -> io::Result<SimFile> {
        match self.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let mut state = self.state();
        let fault = state.io(self.life)?;
        if fault != Some(Fault::Crash) {
            outcome(fault)?;
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.name(NameChange::Link {
            path: path.to_owned(),
            inode,
        });
        outcome(fault)?;
        Ok(SimFile {
            disk: self.clone(),
            inode,
        })
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive(self.life)?;
        state.directories.insert(path.to_owned());
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.io(self.life)?;
        if fault != Some(Fault::Crash) {
            outcome(fault)?;
        }
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.name(NameChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            inode,
        });
        outcome(fault)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.io(self.life)?;
        if fault != Some(Fault::Crash) {
            outcome(fault)?;
        }
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        state.name(NameChange::Unlink {
            path: path.to_owned(),
            inode,
        });
        outcome(fault)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<ListedFile>> {
        let state = self.state();
        state.alive(self.life)?;
        let mut files = Vec::new();
        for (path, inode) in &state.names {
            if path.parent() == Some(dir)
                && let Some(name) = path.file_name().and_then(|name| name.to_str())
            {
                let bytes = state.inodes.get(inode).map_or(0, |i| i.seen.size);
                files.push(ListedFile {
                    name: name.to_owned(),
                    bytes,
                });
            }
        }
        if files.is_empty() && !state.directories.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(files)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.io(self.life)?;
        let (synced, rest) = std::mem::take(&mut state.pending_names)
            .into_iter()
            .partition(|c| c.touches(dir));
        let synced: Vec<NameChange> = synced;
        state.pending_names = rest;
        match fault {
            None | Some(Fault::ShortWrite) => {
                for change in &synced {
                    change.apply(&mut state.durable_names);
                }
            }
            Some(_) => {
                let rest = std::mem::replace(&mut state.pending_names, synced);
                state.pending_names.extend(rest);
            }
        }
        outcome(fault)
    }

    fn lock(&self, path: &Path) -> Result<SimLock, LockError> {
        self.open_or_create(path).map_err(LockError::Io)?;
        if !self.state().locks.insert(path.to_owned()) {
            return Err(LockError::Held {
                pid: self.life as u32,
            });
        }
        Ok(SimLock {
            disk: self.clone(),
            path: path.to_owned(),
        })
    }

    fn random(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.alive(self.life)?;
        Ok(state.random.next())
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.life == self.disk.life {
            state.locks.remove(&self.path);
        }
    }
}

impl SimFile {
    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let fault = state.io(self.disk.life)?;
        let inode = state.inode(self.inode)?;
        match fault {
            None | Some(Fault::ShortWrite) => inode.sync(),
            Some(Fault::LoseSync) => inode.pending.clear(),
            Some(_) => {}
        }
        outcome(fault)
    }

    fn resize(&self, size: u64, change: Change) -> io::Result<()> {
        let mut state = self.disk.state();
        let fault = state.io(self.disk.life)?;
        if fault != Some(Fault::Crash) {
            outcome(fault)?;
        }
        state.claim(self.inode, size)?;
        state.inode(self.inode)?.change(change);
        outcome(fault)
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.alive(self.disk.life)?;
        Ok(state.inode(self.inode)?.seen.size)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.alive(self.disk.life)?;
        state.reads += 1;
        let reads = state.reads;
        if state.read_faults.remove(&reads) {
            return Err(eio());
        }
        Ok(state.inode(self.inode)?.seen.read(offset, buffer))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        let fault = state.io(self.disk.life)?;
        let taken = match fault {
            Some(Fault::Eio | Fault::ShortWrite | Fault::LoseSync) => bytes.len() / 2,
            _ => bytes.len(),
        };
        // Half of nothing would be an error of its own: a short write takes at least one byte.
        let taken = if fault == Some(Fault::ShortWrite) {
            taken.max(bytes.len().min(1))
        } else {
            taken
        };
        state.claim(self.inode, offset + taken as u64)?;
        if taken > 0 {
            state.inode(self.inode)?.change(Change::Write {
                offset,
                bytes: bytes[..taken].into(),
            });
        }
        outcome(fault)?;
        Ok(taken)
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        self.resize(bytes, Change::AtLeast(bytes))
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.resize(bytes, Change::Size(bytes))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}
