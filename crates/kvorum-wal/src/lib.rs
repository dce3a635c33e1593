//! The Raft log, term, vote and commit mark on disk.
//!
//! [`Wal::append`] makes any number of [`Write`]s durable with one sync and returns; [`Wal::open`] finds after a
//! crash all that was acknowledged, and of the rest a prefix of the writes, each whole or not at all. What the
//! entries mean, and when they may be cut or counted, is the consensus core's affair and unknown here.
//!
//! The rules, each kept by one module:
//! - one sequence of segment files holds everything, so order on disk is order in time (`wal`);
//! - batch N+1 is written only after the sync of batch N returned, so a frame proves all frames before it;
//!   on this recovery tells a torn tail, which is cut, from corruption, which never is (`recovery`);
//! - nothing is trusted because it can be read: the unproved tail is written anew before use (`recovery`);
//! - space is claimed ahead, so a full disk is met while claiming and never while appending (`segments`);
//! - the first failed write or sync latches: nothing is acknowledged after it (`wal`);
//! - term and vote are in the log and in a file of their own (`vote`);
//! - all IO goes through [`disk::Disk`], so every crash can be simulated ([`disk::SimDisk`]).
//!
//! `docs/design/log-format.md` draws the bytes.

pub mod disk;

mod batch;
mod error;
mod format;
mod frames;
mod index;
mod reader;
mod recovery;
mod replay;
mod segments;
mod state;
mod types;
mod vote;
mod wal;

pub use disk::{Disk, DiskFile, RealDisk, SimDisk, replace_file_durably};
pub use error::WalError;
pub use reader::WalReader;
pub use types::{
    Appended, Base, Entry, HardState, KIND_CONFIGURATION, Options, Recovered, RecoveryReport, Space, Stats,
    VoteCopy, Write,
};
pub use wal::Wal;
