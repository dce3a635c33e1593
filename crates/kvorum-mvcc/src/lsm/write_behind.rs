//! Has the disk write a table while the table grows.
//!
//! The tree leaves a table's bytes to the kernel and syncs them when the table is whole: tens of megabytes at once,
//! and the log of the same disk, which syncs every few milliseconds, waits behind all of them. Synced as they come,
//! they are in its way for a piece at a time.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

/// What is handed to the disk at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Counts what one writer of tables has written.
pub(super) struct WriteBehind {
    tables: PathBuf,
    unsynced: usize,
}

impl WriteBehind {
    /// For a writer into this directory of tables.
    pub(super) fn new(tables: PathBuf) -> Self {
        Self { tables, unsynced: 0 }
    }

    /// So many bytes more were written.
    ///
    /// # Errors
    /// The disk did not take what was written before: the table is to be given up. (The kernel reports such a
    /// failure to this descriptor and to the tree's own, so that neither hides it from the other.)
    pub(super) fn wrote(&mut self, bytes: usize) -> io::Result<()> {
        self.unsynced += bytes;
        if self.unsynced < PIECE_BYTES {
            return Ok(());
        }
        self.unsynced = 0;
        self.sync_youngest()
    }

    /// The table that is being written is the youngest. Where a flush and a merge write at the same time, the merge
    /// loses its turns to the flush, which is the shorter of the two.
    fn sync_youngest(&self) -> io::Result<()> {
        let mut youngest: Option<u64> = None;
        for entry in fs::read_dir(&self.tables)? {
            let id = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            youngest = youngest.max(id);
        }
        let Some(id) = youngest else { return Ok(()) };
        match File::open(self.tables.join(id.to_string())) {
            Ok(table) => table.sync_data(),
            // A merge may have dropped it in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_at_a_time_is_synced_and_a_missing_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("7"), b"a table").unwrap();
        fs::write(dir.path().join("not a table"), b"").unwrap();
        let mut writer = WriteBehind::new(dir.path().to_owned());
        writer.wrote(PIECE_BYTES).unwrap();
        assert_eq!(writer.unsynced, 0);
        writer.wrote(PIECE_BYTES - 1).unwrap();
        assert_eq!(writer.unsynced, PIECE_BYTES - 1);
        fs::remove_dir_all(dir.path()).unwrap();
        let error = writer.wrote(1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
