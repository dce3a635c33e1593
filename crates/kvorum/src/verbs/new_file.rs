//! A file that appears when it is complete: written beside its place, synced, and renamed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::failure::{self, Failure};

const BUFFER_BYTES: usize = 1 << 20;

/// See the module. Dropped before [`commit`](NewFile::commit), it leaves nothing.
pub struct NewFile {
    path: PathBuf,
    partial: BufWriter<NamedTempFile>,
}

impl NewFile {
    /// Begins a file that will be at `path`.
    ///
    /// # Errors
    /// Nothing can be written into its directory.
    pub fn at(path: &Path) -> Result<Self, Failure> {
        let partial = tempfile::Builder::new()
            .prefix(".kvorum-")
            .tempfile_in(directory(path))
            .map_err(|error| cannot(path, &error))?;
        Ok(NewFile {
            path: path.to_owned(),
            partial: BufWriter::with_capacity(BUFFER_BYTES, partial),
        })
    }

    /// The file is complete: from now on it is there, a crash included.
    ///
    /// # Errors
    /// It could not be written, synced or renamed; nothing of it is left.
    pub fn commit(self) -> Result<(), Failure> {
        let path = &self.path;
        let partial = self.partial.into_inner().map_err(io::IntoInnerError::into_error);
        let partial = partial.map_err(|error| cannot(path, &error))?;
        let renamed = || {
            partial.as_file().sync_all()?;
            partial.persist(path).map_err(|error| error.error)?;
            File::open(directory(path))?.sync_all()
        };
        renamed().map_err(|error| cannot(path, &error))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.partial.flush()
    }
}

fn directory(path: &Path) -> &Path {
    path.parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn cannot(path: &Path, error: &io::Error) -> Failure {
    Failure::error(format!("cannot write {}: {}", path.display(), failure::os(error)))
}
