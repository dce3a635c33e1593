//! Reading entries while the writer goes on.
//!
//! A read takes its plan from the index in one short critical section and reads without any lock. Only entries
//! that are durable are in the index. What a read returns was the log at one moment of the call; if the writer
//! cuts entries meanwhile, the old ones may be returned. A segment that is purged and recycled under a read is
//! noticed, as every entry's checksum begins with the segment's generation.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;

use crate::WalError;
use crate::disk::{Disk, DiskFile, read_full_at};
use crate::format::{PAGE_BYTES, SegmentHeader, decode_entry};
use crate::frames::{FrameReader, Slot};
use crate::index::{Index, Run};
use crate::segments::SegmentFile;
use crate::types::Entry;

/// The index as the writer and the readers share it.
pub(crate) type SharedIndex<F> = Arc<RwLock<Index<F>>>;

/// Reads entries; any number of clones, on any thread, beside the writer.
#[derive(Debug)]
pub struct WalReader<D: Disk> {
    pub(crate) index: SharedIndex<D::File>,
}

impl<D: Disk> Clone for WalReader<D> {
    fn clone(&self) -> Self {
        WalReader {
            index: self.index.clone(),
        }
    }
}

impl<D: Disk> WalReader<D> {
    fn lock(&self) -> RwLockReadGuard<'_, Index<D::File>> {
        // After a panic of the writer the index may be behind the log, which harms no reader.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// First and last index of the durable log; the last is first − 1 if it is empty.
    pub fn range(&self) -> (u64, u64) {
        let index = self.lock();
        (index.base_index + 1, index.last_index)
    }

    /// Entries `from..=to`, or a prefix of them: as many as have at most `bytes_max` bytes of data together,
    /// but at least one.
    ///
    /// # Errors
    /// `OutOfRange` if not all of `from..=to` are in the log; `Io`; `Corrupt` if a checksum does not fit.
    pub fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, WalError> {
        let plan = {
            let index = self.lock();
            in_range(&index, from, to)?;
            index.find(from, to, bytes_max)
        };
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (run, last, segment) in plan {
            let more = read_run(&segment, run, last, from, bytes_max, &mut entries, &mut bytes);
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // The segment may have been purged since the plan was made: then that is the answer.
                    in_range(&self.lock(), from, from)?;
                    return Err(error);
                }
            }
        }
        Ok(entries)
    }
}

impl<D: Disk> WalReader<D> {
    /// Verifies the durable part of the first segment numbered above `after`, frame by frame, and returns its
    /// number, or `None` if there is none. Calling it with each result in turn, now and then, finds damage at rest
    /// before recovery would (as far as the reads reach the disk: what the page cache holds is not read again).
    ///
    /// Reads up to a segment's size in pieces, without a lock.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn scrub(&self, after: u64) -> Result<Option<u64>, WalError> {
        let found = self.lock().segment_after(after);
        let Some((segment, end)) = found else {
            return Ok(None);
        };
        let number = segment.header.number;
        match check_frames(&segment, end) {
            // Purged, and perhaps recycled, since it was looked up.
            Err(_) if !self.lock().contains_segment(number) => Ok(Some(number)),
            result => result.map(|()| Some(number)),
        }
    }
}

fn check_frames<F: DiskFile>(segment: &SegmentFile<F>, end: u64) -> Result<(), WalError> {
    let mut page = vec![0; PAGE_BYTES as usize];
    let read =
        read_full_at(&segment.file, &mut page, 0).map_err(|e| WalError::io("reading", &segment.path, &e))?;
    if SegmentHeader::decode(&page[..read]).as_ref() != Ok(&segment.header) {
        return Err(segment.corrupt(0, "its header is bad"));
    }
    let mut reader = FrameReader::new(segment, end);
    let mut offset = PAGE_BYTES;
    while offset < end {
        match reader.slot(offset)? {
            Slot::Valid(frame) => offset += frame.header.span(),
            Slot::Torn(_) | Slot::Nothing => return Err(segment.corrupt(offset, "a frame is bad")),
        }
    }
    Ok(())
}

fn in_range<F>(index: &Index<F>, from: u64, to: u64) -> Result<(), WalError> {
    if index.base_index < from && from <= to && to <= index.last_index {
        return Ok(());
    }
    Err(WalError::OutOfRange {
        from,
        to,
        first: index.base_index + 1,
        last: index.last_index,
    })
}

/// Takes entries `from..=last` out of a run; false if `bytes_max` is reached.
fn read_run<F: DiskFile>(
    segment: &SegmentFile<F>,
    run: Run,
    last: u64,
    from: u64,
    bytes_max: usize,
    entries: &mut Vec<Entry>,
    bytes: &mut usize,
) -> Result<bool, WalError> {
    let mut buffer = vec![0; run.bytes as usize];
    let read = read_full_at(&segment.file, &mut buffer, run.offset.into())
        .map_err(|e| WalError::io("reading", &segment.path, &e))?;
    buffer.truncate(read);
    let buffer = Bytes::from(buffer);
    let corrupt = |at: usize, why: &str| segment.corrupt(u64::from(run.offset) + at as u64, why);
    let mut at = 0;
    for expected in run.first_index..=last {
        let (entry, next) =
            decode_entry(&buffer, at, segment.checksum_seed).map_err(|why| corrupt(at, why))?;
        if entry.index != expected {
            return Err(corrupt(at, "an entry is not the one that was written there"));
        }
        at = next;
        if expected < from {
            continue;
        }
        *bytes += entry.data.len();
        if *bytes > bytes_max && !entries.is_empty() {
            return Ok(false);
        }
        entries.push(entry);
    }
    Ok(true)
}
