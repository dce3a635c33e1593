//! The seam to the disk: everything durable goes through [`Disk`] and [`DiskFile`].
//!
//! Two implementations: [`RealDisk`] (the operating system's files) and [`SimDisk`] (deterministic, in memory,
//! with the failures of real disks). The trait is as narrow as what durability needs: positioned reads and
//! writes, claimed space, the two syncs, atomic rename, and the sync of a directory, without which a name is
//! not durable.
//!
//! Every method returns `std::io::Error`; a full disk is [`io::ErrorKind::StorageFull`] (see [`is_no_space`]).

mod real;
mod sim;

use std::io;
use std::path::Path;

pub use real::{RealDisk, RealFile, RealLock};
pub use sim::{Fault, SimDisk, SimFile, SimLock};

/// One file of a directory, as [`Disk::list`] returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Its name inside the directory.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why a lock was not obtained.
#[derive(Debug)]
pub enum LockError {
    /// Another process (its pid, 0 if it has not written it yet) holds it.
    Held {
        /// The holder.
        pid: u32,
    },
    /// The lock file could not be opened or written.
    Io(io::Error),
}

/// A file system. Clones are handles to the same one.
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;
    /// Holds the exclusive lock of a file until it is dropped or the process ends.
    type Lock: Send + Sync + 'static;

    /// Opens an existing file for reading and writing; `NotFound` if there is none.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens a file for reading and writing and makes an empty one if there is none. Its content is kept.
    fn open_or_create(&self, path: &Path) -> io::Result<Self::File>;
    /// Makes a directory (readable by its owner only) and its parents; one that exists is no error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames atomically, replacing what has the new name. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The files (not the directories) of a directory, sorted by name.
    fn list(&self, dir: &Path) -> io::Result<Vec<ListedFile>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock on a file, made if there is none, and writes the pid into it. Never waits.
    fn lock(&self, path: &Path) -> Result<Self::Lock, LockError>;
    /// An unpredictable number (in simulation: from the disk's seed), for the generation of a segment.
    fn random(&self) -> io::Result<u64>;
}

/// An open file of a [`Disk`]; usable by several threads at once.
pub trait DiskFile: Send + Sync + 'static {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Reads at an offset; may read less, and 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at an offset; may write less.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Claims space for the first `bytes` and makes the file at least that long; fresh space reads as zeros.
    /// After it was synced, writing into it does not meet a full disk.
    fn preallocate(&self, bytes: u64) -> io::Result<()>;
    /// Cuts the file, or lengthens it with zeros.
    fn set_size(&self, bytes: u64) -> io::Result<()>;
    /// Makes the content durable, and what is needed to read it (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// Makes content and metadata durable (fsync).
    fn sync_all(&self) -> io::Result<()>;
}

/// Whether an error says that the disk, or the quota on it, is full.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Writes all of `bytes` at `offset`, going on after short writes and interruptions.
pub fn write_all_at<F: DiskFile>(file: &F, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::WriteZero, "the disk took no bytes")),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills `buffer` from `offset` as far as the file reaches and returns how many bytes that was.
pub fn read_full_at<F: DiskFile>(file: &F, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Reads a whole file of at most `bytes_max`; `None` if there is none, `InvalidData` if it is longer.
pub fn read_file<D: Disk>(disk: &D, path: &Path, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let size = file.size()?;
    if size > bytes_max as u64 {
        let why = format!("{} has {size} bytes, more than {bytes_max}", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; size as usize];
    let read = read_full_at(&file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// Where [`replace_file_durably`] writes the new content first: the path with `.tmp` appended.
pub fn temporary_path(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Replaces a file's content so that after a crash it is the old one or the new one, and after the return the
/// new one: writes beside it, syncs, renames, syncs the directory.
///
/// A `.tmp` file that exists is written in place: one that was claimed beforehand makes the replacement
/// independent of free space. On an error the old content is still there, or (if only the last sync failed)
/// either; the caller must not retry and hope.
pub fn replace_file_durably<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_path(path);
    let file = disk.open_or_create(&temporary)?;
    write_all_at(&file, bytes, 0)?;
    if file.size()? != bytes.len() as u64 {
        file.set_size(bytes.len() as u64)?;
    }
    file.sync_all()?;
    drop(file);
    disk.rename(&temporary, path)?;
    sync_parent(disk, path)
}

/// Syncs the directory that a path is in.
pub fn sync_parent<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => disk.sync_dir(parent),
        _ => disk.sync_dir(Path::new(".")),
    }
}
