//! What can go wrong below the store, sorted by what the caller can do about it.
//!
//! The tree reports its errors as one enum, and some kinds of damage as a panic. Every call into it goes
//! through [`guarded`], so that both end here as a [`Fault`]; the store turns that into the crate's error.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::store::StoreError;

/// A failure, cheap to copy because the first one latches and is handed to every later caller.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The disk is full (or the quota is). Nothing was lost: free space and retry.
    NoSpace(String),
    /// The files do not hold what a healthy store must hold. Rebuild from the peers.
    Corrupt(String),
    /// The operating system refused a read or a write.
    Io(String),
    /// The view was open for longer than it may be.
    Expired,
    /// The files are not for this version or this caller; they are as they were.
    Invalid(String),
    /// A compaction gave up because the store closes. Never leaves this module tree.
    Stopped,
}

/// The text of the error by which the compaction filter stops a merge.
pub(super) const STOPPED: &str = "kvorum: the store is closing";

impl Fault {
    /// Classifies an IO error of our own files; `what` says what was attempted.
    pub(super) fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace(format!("{what}: {error}"))
            }
            // A file that is gone or short is damage, not a passing trouble.
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                Self::Corrupt(format!("{what}: {error}"))
            }
            _ => Self::Io(format!("{what}: {error}")),
        }
    }

    fn tree(what: &str, error: &lsm_tree::Error) -> Self {
        match error {
            lsm_tree::Error::Io(error) if error.to_string() == STOPPED => Self::Stopped,
            lsm_tree::Error::Io(error) => Self::io(what, error),
            other => Self::Corrupt(format!("{what}: {other}")),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSpace(text) => write!(f, "no space left: {text}"),
            Self::Corrupt(text) => write!(f, "the store is damaged: {text}"),
            Self::Io(text) | Self::Invalid(text) => f.write_str(text),
            Self::Expired => f.write_str("the view was open for too long; take a new one"),
            Self::Stopped => f.write_str(STOPPED),
        }
    }
}

/// Runs a call into the tree. An error is classified; a panic counts as damage, because the tree panics on
/// files that contradict each other and after it does so its state is unknown.
pub(super) fn guarded<T>(what: &str, call: impl FnOnce() -> lsm_tree::Result<T>) -> Result<T, Fault> {
    caught(what, || call().map_err(|error| Fault::tree(what, &error)))
}

/// Turns a panic into a fault.
pub(super) fn caught<T>(what: &str, call: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(Fault::Corrupt(format!("{what}: {}", panic_text(panic.as_ref())))))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a text")
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NoSpace(_) => Self::NoSpace,
            Fault::Corrupt(text) => Self::Corrupt(text),
            Fault::Io(text) | Fault::Invalid(text) => Self::Io(text),
            Fault::Expired => Self::ViewExpired,
            Fault::Stopped => Self::Closed,
        }
    }
}
