//! The operating system's files. Linux is supported; other Unixes work for development (`sync_data` and
//! `sync_all` of the standard library flush the drive's cache on macOS, too).

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use super::{Disk, DiskFile, ListedFile, LockError};

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// A file of the real file system.
#[derive(Debug)]
pub struct RealFile(File);

/// An exclusive `flock`, released when this is dropped or the process ends in whatever way.
#[derive(Debug)]
pub struct RealLock(#[expect(dead_code, reason = "held open, not read")] File);

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for RealDisk {
    type File = RealFile;
    type Lock = RealLock;

    fn open(&self, path: &Path) -> io::Result<RealFile> {
        options().open(path).map(RealFile)
    }

    fn open_or_create(&self, path: &Path) -> io::Result<RealFile> {
        options().create(true).truncate(false).open(path).map(RealFile)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<ListedFile>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                files.push(ListedFile {
                    name,
                    bytes: metadata.len(),
                });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> Result<RealLock, LockError> {
        let mut file = options()
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {
                // What is written is for people; the lock itself is the kernel's.
                let mut write = || {
                    file.set_len(0)?;
                    writeln!(file, "{}", std::process::id())
                };
                match write() {
                    Err(e) if !super::is_no_space(&e) => Err(LockError::Io(e)),
                    _ => Ok(RealLock(file)),
                }
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // A holder that just started may not have written its pid yet: 0 then.
                let _ = file.take(32).read_to_string(&mut text);
                Err(LockError::Held {
                    pid: text.trim().parse().unwrap_or(0),
                })
            }
            Err(TryLockError::Error(e)) => Err(LockError::Io(e)),
        }
    }

    fn random(&self) -> io::Result<u64> {
        getrandom::u64().map_err(io::Error::other)
    }
}

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(&self.0, bytes, offset)
    }

    #[cfg(target_os = "linux")]
    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        loop {
            match fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) => return self.fill(bytes),
                Err(e) => return Err(e.into()),
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        self.fill(bytes)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

impl RealFile {
    /// Claims space where the file system cannot allocate it: by writing zeros after the present end.
    fn fill(&self, bytes: u64) -> io::Result<()> {
        const CHUNK: u64 = 1 << 20;
        let zeros = vec![0; CHUNK as usize];
        let mut offset = self.0.metadata()?.len();
        while offset < bytes {
            let n = CHUNK.min(bytes - offset);
            self.0.write_all_at(&zeros[..n as usize], offset)?;
            offset += n;
        }
        Ok(())
    }
}
