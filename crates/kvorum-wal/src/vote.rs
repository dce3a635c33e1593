//! The second copy of term and vote: the file `vote`.
//!
//! It is written after the log's copy is durable, so a file that is ahead proves that the log lost what was durable.
//! The file that replaces it is claimed beforehand: a vote does not need free space.

use std::path::{Path, PathBuf};

use crate::WalError;
use crate::disk::{Disk, DiskFile, is_no_space, read_file, replace_file_durably, temporary_path};
use crate::format::{Defect, FORMAT_VERSION, VOTE_BYTES, decode_vote, encode_vote};
use crate::types::{HardState, VoteCopy};

/// What the vote file says.
pub enum FoundVote {
    Missing,
    Bad,
    Valid(HardState),
}

/// The vote file of one log.
#[derive(Debug)]
pub struct VoteFile {
    path: PathBuf,
    /// Whether the file that will replace it has its space.
    claimed: bool,
}

impl VoteFile {
    pub fn new(dir: &Path) -> VoteFile {
        VoteFile {
            path: dir.join("vote"),
            claimed: false,
        }
    }

    pub fn read<D: Disk>(&self, disk: &D, identity: &[u8]) -> Result<FoundVote, WalError> {
        let bytes = match read_file(disk, &self.path, 1 << 16) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(FoundVote::Missing),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => return Ok(FoundVote::Bad),
            Err(e) => return Err(WalError::io("reading", &self.path, &e)),
        };
        match decode_vote(&bytes) {
            Ok((_, of)) if of != identity => Err(WalError::WrongIdentity {
                file: self.path.clone(),
            }),
            Ok((hard_state, _)) => Ok(FoundVote::Valid(hard_state)),
            Err(Defect::Bad(_)) => Ok(FoundVote::Bad),
            Err(Defect::Newer(found)) => Err(WalError::Newer {
                file: self.path.clone(),
                found,
                known: FORMAT_VERSION,
            }),
        }
    }

    /// Refuses to begin a log beside the vote of one that is gone: the member might vote twice.
    pub fn check_unused<D: Disk>(
        &self,
        disk: &D,
        identity: &[u8],
        initial: HardState,
    ) -> Result<(), WalError> {
        match self.read(disk, identity)? {
            // A creation that was cut short may have left this one.
            FoundVote::Valid(vote) if vote != initial && vote != HardState::default() => {
                let why = format!("a vote of term {} without its log", vote.term);
                Err(WalError::Corrupt {
                    segment: 0,
                    file: self.path.clone(),
                    offset: 0,
                    why,
                })
            }
            _ => Ok(()),
        }
    }

    /// Compares the two copies. The log's holds: the file may be missing, bad or behind. Two votes in one term are
    /// corruption, and so is a file that is ahead (a higher term, or a vote where the log has none): what was durable
    /// before it is gone from the log, entries that were acknowledged with it perhaps among that.
    pub fn compare(&self, log: HardState, file: &FoundVote) -> Result<VoteCopy, WalError> {
        let file = match file {
            FoundVote::Missing => return Ok(VoteCopy::Missing),
            FoundVote::Bad => return Ok(VoteCopy::Bad),
            FoundVote::Valid(file) => *file,
        };
        let rank = |state: HardState| (state.term, state.vote != 0);
        let why = match rank(file).cmp(&rank(log)) {
            std::cmp::Ordering::Less => return Ok(VoteCopy::Behind),
            std::cmp::Ordering::Equal if file.vote == log.vote => return Ok(VoteCopy::Agreed),
            std::cmp::Ordering::Equal => format!(
                "two votes in term {}: {} here, {} in the log",
                log.term, file.vote, log.vote
            ),
            std::cmp::Ordering::Greater => format!(
                "term {} and vote {} stand here, which the log held before; it ends with term {} and vote {}: its \
                 newest batches are lost",
                file.term, file.vote, log.term, log.vote
            ),
        };
        Err(WalError::Corrupt {
            segment: 0,
            file: self.path.clone(),
            offset: 0,
            why,
        })
    }

    /// Claims the space of the next replacement. A full disk is `None`: nothing changed, try again.
    pub fn claim<D: Disk>(&mut self, disk: &D) -> Result<Option<()>, WalError> {
        if self.claimed {
            return Ok(Some(()));
        }
        let temporary = temporary_path(&self.path);
        let claim = || {
            let file = disk.open_or_create(&temporary)?;
            file.preallocate(VOTE_BYTES as u64)?;
            file.sync_all()?;
            crate::disk::sync_parent(disk, &self.path)
        };
        match claim() {
            Ok(()) => {
                self.claimed = true;
                Ok(Some(()))
            }
            Err(e) if is_no_space(&e) => Ok(None),
            Err(e) => Err(WalError::io("claiming space for", &temporary, &e)),
        }
    }

    /// Replaces the file; durable on return.
    pub fn replace<D: Disk>(
        &mut self,
        disk: &D,
        hard_state: HardState,
        identity: &[u8],
    ) -> Result<(), WalError> {
        self.claimed = false;
        replace_file_durably(disk, &self.path, &encode_vote(hard_state, identity))
            .map_err(|e| WalError::io("replacing", &self.path, &e))
    }
}
