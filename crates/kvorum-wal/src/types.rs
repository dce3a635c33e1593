//! The words of the log's interface.

use std::path::PathBuf;

use bytes::Bytes;

use crate::WalError;
use crate::batch::write_bytes;
use crate::format::{FRAME_HEADER_BYTES, HEAD_RECORD_BYTES, PAGE_BYTES, frame_span};

/// The [`Entry::kind`] of configuration entries: recovery returns all of them, wherever they are in the log.
pub const KIND_CONFIGURATION: u8 = 1;

/// One entry of the replicated log. The log looks at nothing in it but the index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its position; the first entry after [`Base`] `b` has `b.index + 1`.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// What it is to the consensus core; only [`KIND_CONFIGURATION`] means something here.
    pub kind: u8,
    /// Its bytes.
    pub data: Bytes,
}

/// Term and vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// The current term.
    pub term: u64,
    /// Whom this member voted for in it; 0 for nobody.
    pub vote: u64,
}

/// Where the log begins: the last entry that is not in it any more, and the configuration there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Base {
    /// Index of the last entry before the log; 0 if there never was one.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The configuration at that entry; opaque here.
    pub configuration: Bytes,
}

/// One atomic write. After a crash the log holds a prefix of the writes, each whole or not at all.
///
/// The parts take effect in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Write {
    /// New term and vote.
    pub hard_state: Option<HardState>,
    /// Discard the whole log; it begins anew after this base (a snapshot was installed).
    pub reset: Option<Base>,
    /// Discard the entries from this index on. It must be above the base; beyond the end it does nothing.
    pub truncate_from: Option<u64>,
    /// Entries to append: contiguous, the first one directly after the last entry of the log.
    pub entries: Vec<Entry>,
    /// The commit index to note. Lower than the one noted before: ignored.
    pub commit_mark: u64,
}

impl Write {
    /// How many bytes it takes in a batch, for comparison with [`Options::batch_bytes_max`].
    pub fn encoded_bytes(&self) -> usize {
        write_bytes(self)
    }
}

/// Settings of a log. Segment and limits may differ from one open to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Size of a segment file: a multiple of 4096, at most 1 GiB.
    pub segment_bytes: u64,
    /// Most bytes written under one sync. What is given to `append` beyond that is split between writes; a
    /// single [`Write`] that is larger is refused.
    pub batch_bytes_max: usize,
    /// Largest [`Base::configuration`].
    pub configuration_bytes_max: usize,
    /// How many bytes of entries `open` returns; older ones are left on disk.
    pub recover_bytes_max: usize,
    /// Segments of claimed space kept beside the current and the next one, to go on with on a full disk; the last
    /// one is used by recovery only. At least 2.
    pub spare_segments_min: usize,
    /// Purged segments are kept as spares up to this many, then removed.
    pub spare_segments_max: usize,
    /// Fresh space is written with zeros so far ahead of the log's end, because a sync then does not have to
    /// change the file's extents. A multiple of 4096; 0 switches it off.
    pub fill_bytes: u64,
    /// Where the second copy of term and vote lies, an existing directory; `None`: with the log.
    pub vote_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            batch_bytes_max: 16 << 20,
            configuration_bytes_max: 64 << 10,
            recover_bytes_max: 64 << 20,
            spare_segments_min: 2,
            spare_segments_max: 4,
            fill_bytes: 1 << 20,
            vote_dir: None,
        }
    }
}

impl Options {
    /// Settings for tests and simulations: 32 KiB segments, batches of 8 KiB.
    pub fn small() -> Options {
        Options {
            segment_bytes: 32 << 10,
            batch_bytes_max: 8 << 10,
            configuration_bytes_max: 1 << 10,
            recover_bytes_max: 1 << 20,
            spare_segments_min: 2,
            spare_segments_max: 4,
            fill_bytes: 8 << 10,
            vote_dir: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), WalError> {
        let refuse = |why: &str| Err(WalError::Invalid(why.to_owned()));
        if !self.segment_bytes.is_multiple_of(PAGE_BYTES) || self.segment_bytes > 1 << 30 {
            return refuse("segment_bytes must be a multiple of 4096, at most 1 GiB");
        }
        if !self.fill_bytes.is_multiple_of(PAGE_BYTES) {
            return refuse("fill_bytes must be a multiple of 4096");
        }
        if self.spare_segments_min < 2 || self.spare_segments_max <= self.spare_segments_min {
            return refuse("spare_segments_min must be at least 2, spare_segments_max more than it");
        }
        let head = HEAD_RECORD_BYTES + self.configuration_bytes_max;
        if PAGE_BYTES + frame_span(self.batch_bytes_max + head) > self.segment_bytes {
            return refuse("segment_bytes must hold a page, a configuration and a batch");
        }
        if self.batch_bytes_max < FRAME_HEADER_BYTES + 2 * head {
            return refuse("batch_bytes_max must hold two configurations");
        }
        Ok(())
    }
}

/// What `open` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Term and vote.
    pub hard_state: HardState,
    /// Where the log begins.
    pub base: Base,
    /// The newest entries, up to `Options::recover_bytes_max`; contiguous up to the last one of the log.
    pub entries: Vec<Entry>,
    /// (first index, term) of each run of equal terms in the part of the log that `entries` leaves out: from
    /// `base.index + 1` up to the entry before the first of `entries`. Empty if nothing was left out.
    pub terms: Vec<(u64, u64)>,
    /// The entries of kind [`KIND_CONFIGURATION`] in the part left out.
    pub kinds_kept: Vec<Entry>,
    /// Index of the log's last entry; `base.index` if there is none.
    pub last_index: u64,
    /// The highest commit mark noted.
    pub commit_mark: u64,
    /// What recovery did.
    pub report: RecoveryReport,
}

/// What recovery did; for the operator and for tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segments read.
    pub segments: u64,
    /// Batches found and valid.
    pub batches: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Where the torn tail of an unacknowledged batch was cut: (segment, offset).
    pub torn_tail: Option<(u64, u64)>,
    /// Batches at the end, not proved durable, that were written anew into a fresh segment.
    pub batches_rewritten: u64,
    /// How the second copy of term and vote was found.
    pub vote_copy: VoteCopy,
}

/// How the second copy of term and vote was found. All but `Agreed` were repaired. One that is ahead of the log is
/// none of these: it proves that the log lost what was durable, and is corruption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VoteCopy {
    /// Both copies say the same.
    #[default]
    Agreed,
    /// The file is missing; the log's copy was used.
    Missing,
    /// The file's checksum is wrong; the log's copy was used.
    Bad,
    /// The file was older: a crash came between the two.
    Behind,
}

/// What one `append` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Number of the last batch written.
    pub batch: u64,
    /// Batches written, each with one sync.
    pub batches: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// Whether space for the next segments is claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// The spare segments are there, or nobody needed them yet.
    #[default]
    Healthy,
    /// Claiming failed with a full disk. Appending goes on in what is claimed: let in only what frees space or
    /// keeps the cluster going, and call `retry_claim` now and then.
    Exhausted,
}

/// Counters since the log was opened, and its extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches committed.
    pub batches: u64,
    /// Syncs for batches: equals `batches`.
    pub batch_syncs: u64,
    /// Other syncs: claiming, purging, votes.
    pub other_syncs: u64,
    /// Bytes of committed frames, padding included.
    pub frame_bytes: u64,
    /// Bytes written in all: frames, zeros ahead of them, headers, votes.
    pub bytes_written: u64,
    /// Entries appended.
    pub entries: u64,
    /// Segments with entries or still kept for some.
    pub segments: u64,
    /// Segments of claimed space that are ready.
    pub spare_segments: u64,
    /// Segments taken from spares that purging made.
    pub segments_recycled: u64,
    /// The log's first index.
    pub first_index: u64,
    /// The log's last index; first − 1 if it is empty.
    pub last_index: u64,
    /// Bytes of the log in its segments, headers and padding included.
    pub log_bytes: u64,
}
