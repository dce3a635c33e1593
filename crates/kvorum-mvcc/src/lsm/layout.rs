//! The store's directory: which generation is current, and how that changes durably.
//!
//! ```text
//! store/CURRENT       names the generation; may carry an install record
//! store/g-<n>/        one generation: MANIFEST and the tree's own directory `tree/`
//! ```
//!
//! A generation is made complete and durable before `CURRENT` names it, so a crash at any point leaves either
//! the old store or the new one. A generation that `CURRENT` does not name is rubbish as soon as nobody in
//! this process reads it: it is removed when its last reader ends, or at the next start.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::fault::Fault;

const CURRENT: &str = "CURRENT";
const CURRENT_MAGIC: &[u8; 4] = b"KVCU";
const CURRENT_FORMAT: u32 = 1;
const CURRENT_BYTES: usize = 48;
const HAS_RECORD: u32 = 1;

/// Says that the store was installed from a snapshot and that the log has not yet been reset to it.
///
/// With it, a store that is ahead of its log is legal at start, if the log is then reset to exactly this
/// entry; without it, such a log has lost data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallRecord {
    /// Index of the last entry that the snapshot contains.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
}

/// The contents of `CURRENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Current {
    pub generation: u64,
    pub record: Option<InstallRecord>,
}

impl Current {
    fn encode(self) -> [u8; CURRENT_BYTES] {
        let mut bytes = [0; CURRENT_BYTES];
        bytes[..4].copy_from_slice(CURRENT_MAGIC);
        bytes[4..8].copy_from_slice(&CURRENT_FORMAT.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        if let Some(record) = self.record {
            bytes[16..20].copy_from_slice(&HAS_RECORD.to_le_bytes());
            bytes[24..32].copy_from_slice(&record.index.to_le_bytes());
            bytes[32..40].copy_from_slice(&record.term.to_le_bytes());
        }
        let checksum = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let bad = |why: &str| Fault::Corrupt(format!("{CURRENT}: {why}"));
        if bytes.len() < 8 || &bytes[..4] != CURRENT_MAGIC {
            return Err(bad("not a store's pointer"));
        }
        check_format(CURRENT, u32_at(bytes, 4), CURRENT_FORMAT)?;
        if bytes.len() != CURRENT_BYTES {
            return Err(bad("wrong length"));
        }
        if xxh3_64(&bytes[..40]) != u64_at(bytes, 40) {
            return Err(bad("checksum mismatch"));
        }
        let record = match u32_at(bytes, 16) {
            0 => None,
            HAS_RECORD => Some(InstallRecord {
                index: u64_at(bytes, 24),
                term: u64_at(bytes, 32),
            }),
            flags => return Err(bad(&format!("unknown flags {flags:#x}"))),
        };
        Ok(Self {
            generation: u64_at(bytes, 8),
            record,
        })
    }

    /// Reads the pointer; `None` if there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, Fault> {
        match fs::read(dir.join(CURRENT)) {
            Ok(bytes) => Self::decode(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Fault::io(format_args!("reading {CURRENT}"), &error)),
        }
    }

    /// Replaces the pointer durably: when this returns, a crash cannot bring the old one back.
    pub(super) fn write(self, dir: &Path) -> Result<(), Fault> {
        replace_durably(&dir.join(CURRENT), &self.encode())
    }
}

/// Refuses a file that a newer version wrote.
pub(super) fn check_format(file: &str, found: u32, known: u32) -> Result<(), Fault> {
    if found > known {
        return Err(Fault::Invalid(format!(
            "{file} has format {found}; this version reads up to {known}: use the newer version"
        )));
    }
    if found == 0 {
        return Err(Fault::Corrupt(format!("{file} has format 0")));
    }
    Ok(())
}

/// The little-endian number at `at`; the caller has checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of four bytes"))
}

/// The little-endian number at `at`; the caller has checked the length.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of eight bytes"))
}

/// Replaces a file so that after a crash it holds the old contents or the new ones, whole, and after this
/// returned the new ones.
pub(super) fn replace_durably(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let attempt = || -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(path.parent().expect("every file of a store is in its directory"))
    };
    attempt().map_err(|error| Fault::io(format_args!("replacing {}", path.display()), &error))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Generations that something in this process has open, by absolute path.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn live() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open generation: keeps its directory for as long as a store, a view or an iterator reads it.
pub(super) struct Generation {
    dir: PathBuf,
    path: PathBuf,
    pub(super) number: u64,
}

impl Generation {
    /// Claims a generation for this process; `dir` is the store's directory and must exist.
    pub(super) fn claim(dir: &Path, number: u64) -> Result<Arc<Self>, Fault> {
        let dir = dir
            .canonicalize()
            .map_err(|error| Fault::io(format_args!("opening {}", dir.display()), &error))?;
        let path = generation_path(&dir, number);
        if !live().insert(path.clone()) {
            return Err(Fault::Invalid(format!(
                "{} is open in this process already",
                path.display()
            )));
        }
        Ok(Arc::new(Self { dir, path, number }))
    }

    /// The generation's own directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The store's directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the tree keeps its files.
    pub(super) fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// Where the tree keeps its tables; the name of each is its number.
    pub(super) fn tables(&self) -> PathBuf {
        self.tree().join("tables")
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let mut live = live();
        live.remove(&self.path);
        // Kept unless another generation is known to be current: without a readable pointer nothing is removed.
        // What cannot be removed now is removed at the next start.
        if let Ok(Some(current)) = Current::read(&self.dir)
            && current.generation != self.number
        {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn generation_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("g-{number}"))
}

/// The generations in the directory, ascending, whether `CURRENT` names them or not.
pub(super) fn generations(dir: &Path) -> Result<Vec<u64>, Fault> {
    let list = || -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            if let Some(number) = name
                .to_str()
                .and_then(|name| name.strip_prefix("g-")?.parse().ok())
            {
                found.push(number);
            }
        }
        found.sort_unstable();
        Ok(found)
    };
    list().map_err(|error| Fault::io(format_args!("listing {}", dir.display()), &error))
}

/// Removes every generation but `keep`, except those that are open in this process.
pub(super) fn remove_leftovers(dir: &Path, keep: Option<u64>) -> Result<(), Fault> {
    let dir = dir
        .canonicalize()
        .map_err(|error| Fault::io(format_args!("opening {}", dir.display()), &error))?;
    for number in generations(&dir)? {
        let path = generation_path(&dir, number);
        let live = live();
        if Some(number) != keep && !live.contains(&path) {
            fs::remove_dir_all(&path)
                .map_err(|error| Fault::io(format_args!("removing {}", path.display()), &error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn current_survives_a_round_trip_and_no_flipped_bit() {
        for record in [None, Some(InstallRecord { index: 77, term: 5 })] {
            let current = Current {
                generation: 3,
                record,
            };
            let bytes = current.encode();
            assert_eq!(Current::decode(&bytes).unwrap(), current);
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(Current::decode(&damaged).is_err(), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert!(Current::decode(&bytes[..length]).is_err(), "length {length}");
            }
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut bytes = Current {
            generation: 1,
            record: None,
        }
        .encode();
        bytes[4] = 2;
        let error = Current::decode(&bytes).unwrap_err();
        assert!(
            matches!(error, Fault::Invalid(ref text) if text.contains("newer version")),
            "{error}"
        );
    }
}
