//! Segment files: their names, their claimed space, and the way from spare to segment and back.
//!
//! A file is claimed under a spare's name: its space is allocated and durable before it counts. To be used it gets
//! a header with a number that was never used and a fresh generation, and only when that is durable its
//! segment name; so a file with a segment's name always has a good header. When all its entries are purged it is
//! renamed back, and that is durable before anything is written into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::WalError;
use crate::disk::{Disk, DiskFile, is_no_space, write_all_at};
use crate::format::{PAGE_BYTES, SegmentHeader, checksum_seed};

/// A segment file in use.
#[derive(Debug)]
pub struct SegmentFile<F> {
    pub header: SegmentHeader,
    pub path: PathBuf,
    pub checksum_seed: u32,
    pub file: F,
}

impl<F> SegmentFile<F> {
    pub fn new(header: SegmentHeader, path: PathBuf, file: F) -> SegmentFile<F> {
        let checksum_seed = checksum_seed(header.generation);
        SegmentFile {
            header,
            path,
            checksum_seed,
            file,
        }
    }

    pub fn corrupt(&self, offset: u64, why: &str) -> WalError {
        WalError::Corrupt {
            segment: self.header.number,
            file: self.path.clone(),
            offset,
            why: why.to_owned(),
        }
    }
}

impl<F: DiskFile> SegmentFile<F> {
    /// Cuts off what does not exist any more, and frees its space.
    pub fn shorten(&self, bytes: u64) -> Result<(), WalError> {
        let shorten = || {
            self.file.set_size(bytes)?;
            self.file.sync_all()
        };
        shorten().map_err(|e| WalError::io("shortening", &self.path, &e))
    }
}

/// The segment that is written to, or will be next.
#[derive(Debug)]
pub struct Active<F> {
    pub segment: Arc<SegmentFile<F>>,
    /// Where the next frame goes.
    pub offset: u64,
    /// Up to here the file's blocks were written before, so that a sync need not change its extents.
    pub filled_to: u64,
}

/// The name of a segment's file.
pub fn segment_name(number: u64) -> String {
    format!("{number:016x}.log")
}

/// The number in the name of a segment's file.
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

fn spare_name(number: u64) -> String {
    format!("spare-{number:08x}")
}

fn spare_number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("spare-")?, 16).ok()
}

/// A file of claimed space that is no segment.
#[derive(Debug)]
struct Spare {
    path: PathBuf,
    recycled: bool,
}

/// The claimed space of a log.
#[derive(Debug)]
pub struct Spares {
    dir: PathBuf,
    segment_bytes: u64,
    spares: Vec<Spare>,
    next: u64,
    /// Syncs done here.
    pub syncs: u64,
    /// Bytes written here.
    pub bytes_written: u64,
    /// Spares put to use that were segments before.
    pub recycled: u64,
}

impl Spares {
    pub fn new(dir: &Path, segment_bytes: u64) -> Spares {
        Spares {
            dir: dir.to_owned(),
            segment_bytes,
            spares: Vec::new(),
            next: 1,
            syncs: 0,
            bytes_written: 0,
            recycled: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.spares.len()
    }

    /// Takes over the spares in a listing; those of a wrong size (half claimed, or of other options) are removed.
    pub fn adopt<D: Disk>(&mut self, disk: &D, files: &[crate::disk::ListedFile]) -> Result<(), WalError> {
        for file in files {
            let Some(number) = spare_number(&file.name) else {
                continue;
            };
            self.next = self.next.max(number + 1);
            let path = self.dir.join(&file.name);
            if file.bytes == self.segment_bytes {
                self.spares.push(Spare {
                    path,
                    recycled: false,
                });
            } else {
                disk.remove(&path)
                    .map_err(|e| WalError::io("removing", &path, &e))?;
            }
        }
        Ok(())
    }

    fn no_space(&self) -> WalError {
        WalError::NoSpace {
            dir: self.dir.clone(),
            bytes: self.segment_bytes,
        }
    }

    /// Claims one more spare. `NoSpace` leaves everything as it was.
    pub fn claim<D: Disk>(&mut self, disk: &D, bytes: u64) -> Result<(), WalError> {
        let path = self.dir.join(spare_name(self.next));
        let claim = || {
            let file = disk.open_or_create(&path)?;
            file.preallocate(bytes)?;
            file.sync_all()?;
            disk.sync_dir(&self.dir)
        };
        match claim() {
            Ok(()) => {}
            Err(e) if is_no_space(&e) => {
                // A part may have been allocated: give it back.
                match disk.remove(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(WalError::io("removing", &path, &e));
                    }
                    _ => return Err(self.no_space()),
                }
            }
            Err(e) => return Err(WalError::io("claiming space for", &path, &e)),
        }
        self.syncs += 2;
        self.next += 1;
        self.spares.push(Spare {
            path,
            recycled: false,
        });
        Ok(())
    }

    /// Claims spares until there are `count`, or gives back all of them: a log that cannot begin takes no space
    /// from others, and `NoSpace` then tells how much a beginning needs.
    pub fn claim_all<D: Disk>(&mut self, disk: &D, count: usize) -> Result<(), WalError> {
        while self.spares.len() < count {
            let Err(error) = self.claim(disk, self.segment_bytes) else {
                continue;
            };
            let WalError::NoSpace { dir, .. } = error else {
                return Err(error);
            };
            for Spare { path, .. } in self.spares.drain(..) {
                disk.remove(&path)
                    .map_err(|e| WalError::io("removing", &path, &e))?;
            }
            let bytes = count as u64 * self.segment_bytes;
            return Err(WalError::NoSpace { dir, bytes });
        }
        Ok(())
    }

    /// Opens a spare and writes a segment header into it. Not durable and not renamed yet.
    pub fn take<D: Disk>(
        &mut self,
        disk: &D,
        number: u64,
        identity: &[u8],
    ) -> Result<(PathBuf, Active<D::File>), WalError> {
        // Recycled ones first: their blocks are written already.
        let at = self.spares.iter().position(|spare| spare.recycled).unwrap_or(0);
        if self.spares.is_empty() {
            return Err(self.no_space());
        }
        let spare = self.spares.remove(at);
        let error = |e| WalError::io("preparing", &spare.path, &e);
        let file = disk.open(&spare.path).map_err(error)?;
        let bytes = file.size().map_err(error)?;
        let generation = disk.random().map_err(error)?;
        let header = SegmentHeader {
            number,
            generation,
            bytes,
            identity: identity.to_vec(),
        };
        write_all_at(&file, &header.encode(), 0).map_err(error)?;
        self.bytes_written += PAGE_BYTES;
        self.recycled += u64::from(spare.recycled);
        let segment = SegmentFile::new(header, self.dir.join(segment_name(number)), file);
        let active = Active {
            segment: Arc::new(segment),
            offset: PAGE_BYTES,
            filled_to: if spare.recycled { bytes } else { PAGE_BYTES },
        };
        Ok((spare.path, active))
    }

    /// Makes what was written into a taken spare durable, and gives it its segment name.
    pub fn install<D: Disk>(
        &mut self,
        disk: &D,
        from: &Path,
        active: &Active<D::File>,
    ) -> Result<(), WalError> {
        let error = |e| WalError::io("preparing", &active.segment.path, &e);
        active.segment.file.sync_all().map_err(error)?;
        disk.rename(from, &active.segment.path).map_err(error)?;
        disk.sync_dir(&self.dir).map_err(error)?;
        self.syncs += 2;
        Ok(())
    }

    /// Turns segment files that are not needed any more into spares, up to `spares_max` of them, and removes the
    /// others. Durable on return.
    pub fn give_back<D: Disk>(
        &mut self,
        disk: &D,
        files: &[(PathBuf, bool)],
        spares_max: usize,
    ) -> Result<(), WalError> {
        for (path, whole) in files {
            if *whole && self.spares.len() < spares_max {
                let to = self.dir.join(spare_name(self.next));
                disk.rename(path, &to)
                    .map_err(|e| WalError::io("recycling", path, &e))?;
                self.next += 1;
                self.spares.push(Spare {
                    path: to,
                    recycled: true,
                });
            } else {
                disk.remove(path)
                    .map_err(|e| WalError::io("removing", path, &e))?;
            }
        }
        if !files.is_empty() {
            disk.sync_dir(&self.dir)
                .map_err(|e| WalError::io("syncing", &self.dir, &e))?;
            self.syncs += 1;
        }
        Ok(())
    }
}
