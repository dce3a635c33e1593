//! `MANIFEST`: what a healthy generation must hold, written beside the tree and checked before it is opened.
//!
//! The tree's version file lists its table files, but the tree does not check that file's checksum, and a
//! version file that is whole but *old* (a rename that a disk lost) looks healthy to it: it would open the old
//! state and delete the newer tables as strays. So after every change of the tree, and before anyone is told
//! that a batch is durable, the manifest states the tree's version, its tables and the highest durable mark.
//! At start the tree must be at that version, or at most [`AHEAD_MAX`] changes further (a crash between the
//! change and the manifest), hold every table that is listed, and hold at least that mark. Anything else is
//! corruption, found before the tree can delete a file.
//!
//! ```text
//! 0 "KVMF" | 4 format u32 | 8 generation u64 | 16 tree version u64 | 24 mark u64 | 32 tables u32 | 36 zero u32
//! 40 per table: id u64 | bytes u64 | xxh3-128 of the file u128
//! end xxh3-64 of all before
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use lsm_tree::{AbstractTree, Tree};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use super::fault::{Fault, guarded};
use super::layout::{check_format, replace_durably, u32_at, u64_at};

const MANIFEST: &str = "MANIFEST";
const MAGIC: &[u8; 4] = b"KVMF";
const FORMAT: u32 = 1;
const HEAD_BYTES: usize = 40;
const TABLE_BYTES: usize = 32;

/// Changes of the tree that a crash may leave without a manifest: one by the flush, one by the compaction.
const AHEAD_MAX: u64 = 2;

/// One table file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TableFile {
    bytes: u64,
    checksum: u128,
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    generation: u64,
    version: u64,
    pub mark: u64,
    tables: BTreeMap<u64, TableFile>,
}

/// The manifest that was stated last.
pub(super) struct Stated {
    pub manifest: Manifest,
    /// Whether it is on disk.
    pub durable: bool,
    /// Flushed memtables that wait for it.
    pub owed: usize,
    /// Every table that was ever part of the tree while this store is open: other files are strays.
    pub known: BTreeSet<u64>,
}

impl Stated {
    pub(super) fn durable(manifest: Manifest) -> Self {
        let known = manifest.table_ids().collect();
        Self {
            manifest,
            durable: true,
            owed: 0,
            known,
        }
    }
}

impl Manifest {
    pub(super) fn table_ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.tables.keys().copied()
    }

    /// States the tree as it is now, with `mark` known to be durable in it.
    pub(super) fn of(tree: &Tree, generation: u64, mark: u64) -> Result<Self, Fault> {
        guarded("listing the tables", || {
            let version = tree.current_version();
            let mut tables = BTreeMap::new();
            for table in version.iter_tables() {
                let bytes = fs::metadata(&*table.path)?.len();
                tables.insert(
                    table.id(),
                    TableFile {
                        bytes,
                        checksum: table.checksum().into_u128(),
                    },
                );
            }
            Ok(Self {
                generation,
                version: version.id(),
                mark,
                tables,
            })
        })
    }

    /// Writes it durably into the generation's directory.
    pub(super) fn write(&self, dir: &Path) -> Result<(), Fault> {
        replace_durably(&dir.join(MANIFEST), &self.encode())
    }

    pub(super) fn read(dir: &Path) -> Result<Self, Fault> {
        let bytes = fs::read(dir.join(MANIFEST))
            .map_err(|error| Fault::io(format_args!("reading {MANIFEST}"), &error))?;
        Self::decode(&bytes)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.tables.len() * TABLE_BYTES + 8);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.mark.to_le_bytes());
        let count = u32::try_from(self.tables.len()).expect("fewer than four billion tables");
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for (id, table) in &self.tables {
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.extend_from_slice(&table.bytes.to_le_bytes());
            bytes.extend_from_slice(&table.checksum.to_le_bytes());
        }
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let bad = |why: &str| Fault::Corrupt(format!("{MANIFEST}: {why}"));
        if bytes.len() < HEAD_BYTES + 8 || &bytes[..4] != MAGIC {
            return Err(bad("not a manifest"));
        }
        check_format(MANIFEST, u32_at(bytes, 4), FORMAT)?;
        let end = bytes.len() - 8;
        if xxh3_64(&bytes[..end]) != u64_at(bytes, end) {
            return Err(bad("checksum mismatch"));
        }
        let listed = &bytes[HEAD_BYTES..end];
        if !listed.len().is_multiple_of(TABLE_BYTES)
            || (listed.len() / TABLE_BYTES) as u64 != u32_at(bytes, 32).into()
        {
            return Err(bad("wrong length"));
        }
        let tables = listed.chunks_exact(TABLE_BYTES).map(|entry| {
            let checksum = u128::from_le_bytes(entry[16..].try_into().expect("the rest is sixteen bytes"));
            (
                u64_at(entry, 0),
                TableFile {
                    bytes: u64_at(entry, 8),
                    checksum,
                },
            )
        });
        Ok(Self {
            generation: u64_at(bytes, 8),
            version: u64_at(bytes, 16),
            mark: u64_at(bytes, 24),
            tables: tables.collect(),
        })
    }

    /// Checks the tree's files before the tree is opened, because opening deletes what it does not know.
    pub(super) fn check_files(&self, generation: u64, tree: &Path) -> Result<(), Fault> {
        let bad = |why: String| Err(Fault::Corrupt(why));
        if self.generation != generation {
            return bad(format!(
                "{MANIFEST} is of generation {}, not {generation}",
                self.generation
            ));
        }
        let version = checked_version(tree)?;
        if version < self.version || version - self.version > AHEAD_MAX {
            return bad(format!(
                "the tree is at version {version}, {MANIFEST} at {}",
                self.version
            ));
        }
        // A further version may have replaced tables of this one; those were removed rightly.
        if version == self.version {
            for (id, table) in &self.tables {
                let path = tree.join("tables").join(id.to_string());
                let found = fs::metadata(&path)
                    .map_err(|error| Fault::io(format_args!("table {id}"), &error))?
                    .len();
                if found != table.bytes {
                    return bad(format!("table {id} has {found} bytes, not {}", table.bytes));
                }
            }
        }
        Ok(())
    }

    /// Checks what the opened tree holds.
    pub(super) fn check_tree(&self, found: &Self) -> Result<(), Fault> {
        if found.version == self.version && found.tables != self.tables {
            return Err(Fault::Corrupt(format!(
                "the tree's tables are not those of {MANIFEST}"
            )));
        }
        for (id, table) in &found.tables {
            if self.tables.get(id).is_some_and(|listed| listed != table) {
                return Err(Fault::Corrupt(format!("table {id} is not the one of {MANIFEST}")));
            }
        }
        if found.mark < self.mark {
            return Err(Fault::Corrupt(format!(
                "the tree ends at mark {}, {} was durable",
                found.mark, self.mark
            )));
        }
        Ok(())
    }
}

/// Reads every table file of the present state whole and compares it with its checksum; `pace` is told of
/// each piece read, and may sleep. Returns the bytes read.
pub(super) fn scrub(tree: &Tree, mut pace: impl FnMut(u64)) -> Result<u64, Fault> {
    // Holding the tables keeps their files from being removed by a compaction.
    let tables: Vec<lsm_tree::Table> = guarded("listing the tables", || {
        Ok(tree.current_version().iter_tables().cloned().collect())
    })?;
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0;
    for table in &tables {
        let mut hash = Xxh3::new();
        let mut read = || -> std::io::Result<()> {
            let mut file = File::open(&*table.path)?;
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                hash.update(&buffer[..count]);
                total += count as u64;
                pace(count as u64);
            }
        };
        read().map_err(|error| Fault::io(format_args!("table {}", table.id()), &error))?;
        if hash.digest128() != table.checksum().into_u128() {
            return Err(Fault::Corrupt(format!("table {}: checksum mismatch", table.id())));
        }
    }
    Ok(total)
}

/// The version that the tree's pointer names, if the version file has the checksum that the pointer states.
fn checked_version(tree: &Path) -> Result<u64, Fault> {
    let pointer = read(&tree.join("current"))?;
    if pointer.len() != 25 || pointer[24] != 0 {
        return Err(Fault::Corrupt("the tree's pointer is malformed".into()));
    }
    let version = u64_at(&pointer, 0);
    let stated = u128::from_le_bytes(pointer[8..24].try_into().expect("sixteen bytes"));
    if xxh3_128(&read(&tree.join(format!("v{version}")))?) != stated {
        return Err(Fault::Corrupt(format!(
            "the tree's version {version}: checksum mismatch"
        )));
    }
    Ok(version)
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(path).map_err(|error| Fault::io(format_args!("reading {}", path.display()), &error))
}

/// Whether the tree's pointer on disk names no version beyond the one that the tree in memory is at. If a failed
/// change left it ahead, the next change would write over the version file that the pointer names.
pub(super) fn pointer_agrees(tree: &Tree, path: &Path) -> bool {
    let Ok(pointer) = fs::read(path.join("current")) else {
        return false;
    };
    // Read second: while a change is under way this waits for it, so a healthy tree is never behind.
    let in_memory = guarded("reading the tree's version", || Ok(tree.current_version().id()));
    pointer.len() == 25 && in_memory.is_ok_and(|version| u64_at(&pointer, 0) <= version)
}

/// Whether a generation has never held a table.
pub(super) fn has_no_tables(generation: &Path) -> bool {
    match fs::read_dir(generation.join("tree/tables")) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_survives_a_round_trip_and_no_flipped_bit() {
        let table = |bytes| TableFile {
            bytes,
            checksum: u128::from(bytes) << 70,
        };
        let manifest = Manifest {
            generation: 2,
            version: 9,
            mark: 1234,
            tables: BTreeMap::from([(1, table(10)), (7, table(70))]),
        };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..length]).is_err(), "length {length}");
        }
    }
}
