//! What can go wrong, said so that a person knows what to do.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the log. One line each, with what to do about it.
///
/// Only [`WalError::Io`] latches: every later call of the [`Wal`](crate::Wal) that returned it returns it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// A write or sync failed. What it was about may or may not be on disk: stop the process; recovery at the
    /// next start finds out. Never retried.
    #[error("{doing} {path} failed: {why}; stop this member, check the disk, start it again", path = .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The kind of the operating system's error.
        kind: io::ErrorKind,
        /// The operating system's words.
        why: String,
    },
    /// There is no claimed space left for this, and none could be claimed. Nothing was written; may be retried.
    #[error("no space for the log in {dir}: {bytes} bytes must be free there", dir = .dir.display())]
    NoSpace {
        /// The log's directory.
        dir: PathBuf,
        /// How many bytes could not be claimed: one more segment, or all that a new log needs.
        bytes: u64,
    },
    /// The log lost or changed data that was durable. Nothing was cut: replace this member from its peers.
    #[error("the log is corrupt: {file} at offset {offset}: {why}; do not delete anything, replace this member", file = .file.display())]
    Corrupt {
        /// The segment's number; 0 if it is not about one.
        segment: u64,
        /// The file.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// The directory belongs to another cluster, member or life of the member.
    #[error("{file} belongs to another cluster or member: point this member at its own data directory", file = .file.display())]
    WrongIdentity {
        /// The file that says so.
        file: PathBuf,
    },
    /// A newer kvorum wrote this.
    #[error("{file} has format {found}, this version reads up to {known}: use the newer kvorum again", file = .file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// Another process has the directory open.
    #[error("{dir} is in use by process {pid}: stop it, or use another data directory", dir = .dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process; 0 if unknown.
        pid: u32,
    },
    /// There is already a log where one was to be made.
    #[error("{dir} already holds a log: open it, or use an empty directory", dir = .dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no log where one was to be opened.
    #[error("{dir} holds no log: check the path of the data directory", dir = .dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// The caller asked for what cannot be: a bug of the caller. Nothing was written.
    #[error("the log refuses a call: {0}")]
    Invalid(String),
    /// The entries asked for are not in the log (any more).
    #[error("entries {from}..={to} are not in the log, which holds {first}..={last}")]
    OutOfRange {
        /// First index asked for.
        from: u64,
        /// Last index asked for.
        to: u64,
        /// The log's first index.
        first: u64,
        /// The log's last index (first − 1 if it is empty).
        last: u64,
    },
}

impl WalError {
    pub(crate) fn io(doing: &'static str, path: &Path, error: &io::Error) -> WalError {
        WalError::Io {
            doing,
            path: path.to_owned(),
            kind: error.kind(),
            why: error.to_string(),
        }
    }
}
