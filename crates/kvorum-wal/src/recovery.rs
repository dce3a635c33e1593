//! What is on the disk after a crash: reading it, and telling a torn tail from corruption.
//!
//! Nothing is written here. The steps:
//! 1. The last segment is the highest-numbered one whose first frame is valid. Segments above it were prepared,
//!    or their first batch was torn.
//! 2. From its first frame the chain of predecessors is followed back as far as entries are needed. A
//!    predecessor ends where its successor's first frame says: up to there everything must be valid, and what
//!    is behind does not exist.
//! 3. In the last segment the first bad frame is the torn tail of a batch that nobody was told of, unless there
//!    is proof that it was durable: any valid frame header further on, or one in a later segment that names a
//!    later end. Then it is corruption. A header is proof enough, though its frame be torn: it was written only
//!    after the sync of everything before.
//! 4. The last valid frame is not proved durable by a successor; it is handed out to be written anew.
//!
//! A read error is an error, never a torn tail.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::WalError;
use crate::disk::{Disk, DiskFile, ListedFile, read_full_at};
use crate::format::{Defect, FORMAT_VERSION, FrameHeader, Head, PAGE_BYTES, Record, SegmentHeader};
use crate::frames::{Frame, FrameReader, Slot, head_of};
use crate::replay::{Collected, Replay};
use crate::segments::{SegmentFile, segment_name, segment_number};
use crate::state::LogState;
use crate::types::RecoveryReport;

/// The log as it was found. `state` and `index` are as of the end of what is proved; `tail` comes after it.
#[derive(Debug)]
pub struct Found<F> {
    pub state: LogState,
    pub index: crate::index::Index<F>,
    pub collected: Collected,
    /// Records of the last valid frame, to be written anew, and the commit mark in it.
    pub tail: Vec<Record>,
    pub tail_commit_mark: u64,
    /// The last proved batch.
    pub batch: u64,
    /// Where the proved part ends: the segment (0: there is none) and the offset in it.
    pub end: (u64, u64),
    /// The segment that ends there, with the end of its valid frames: what is behind that may be cut off.
    pub last: (Arc<SegmentFile<F>>, u64),
    /// Segments never used, or only by a torn first batch.
    pub unused: Vec<Arc<SegmentFile<F>>>,
    /// Segments that are not needed once the tail is written anew.
    pub superseded: Vec<Arc<SegmentFile<F>>>,
    /// A number higher than that of any segment file.
    pub next_number: u64,
    pub report: RecoveryReport,
}

/// A segment file with a valid header.
struct Candidate<F> {
    segment: Arc<SegmentFile<F>>,
    /// How long the file is.
    size: u64,
    first: First,
}

/// What the place of a segment's first frame holds.
enum First {
    Valid(FrameHeader, Head),
    Torn(FrameHeader),
    Nothing,
}

/// Reads the log in `dir`, of which `files` is the listing.
pub fn recover<D: Disk>(
    disk: &D,
    dir: &Path,
    files: &[ListedFile],
    identity: &[u8],
    recover_bytes_max: usize,
) -> Result<Found<D::File>, WalError> {
    let mut candidates = BTreeMap::new();
    for file in files {
        if let Some(number) = segment_number(&file.name) {
            candidates.insert(number, examine(disk, &dir.join(&file.name), number, identity)?);
        }
    }
    let last = candidates
        .iter()
        .rev()
        .find(|(_, c)| matches!(c.first, First::Valid(..)));
    let Some((&last, _)) = last else {
        return Err(no_log(dir, &candidates));
    };
    let proved_to = check_unused(&candidates, last)?;
    let chain = chain(&candidates, last)?;

    let mut replay = Replay::new(recover_bytes_max);
    let mut report = RecoveryReport {
        segments: chain.len() as u64,
        ..RecoveryReport::default()
    };
    for (number, end) in &chain[..chain.len() - 1] {
        let candidate = &candidates[number];
        replay_sealed(&mut replay, candidate, *end, &mut report)?;
        replay.index.keep(candidate.segment.clone(), *end);
    }
    let candidate = &candidates[&last];
    let (tail, valid_to) = replay_last(&mut replay, candidate, proved_to, &mut report)?;
    let first = tail.offset == PAGE_BYTES;
    let seed = candidate.segment.checksum_seed;
    let corrupt = |why: String| candidate.segment.corrupt(tail.offset, &why);
    let (records, state) = replay.collect(&tail, first, seed).map_err(corrupt)?;
    if replay.collected.available_from() > state.base.index + 1 {
        return Err(missing_entries(
            dir,
            &candidates[&chain[0].0],
            &state,
            replay.collected.available_from(),
        ));
    }
    report.batches_rewritten = 1;

    let end = if first {
        (tail.header.previous, tail.header.durable_to)
    } else {
        (last, tail.offset)
    };
    if !first {
        replay.index.keep(candidate.segment.clone(), tail.offset);
    }
    let unneeded = candidates
        .iter()
        .filter(|(number, _)| !replay.index.contains_segment(**number));
    let (unused, superseded) = unneeded
        .map(|(n, c)| (*n, c.segment.clone()))
        .partition(|(n, _)| *n > last);
    let unnumbered = |segments: Vec<(u64, _)>| segments.into_iter().map(|(_, segment)| segment).collect();
    Ok(Found {
        state: replay.state,
        index: replay.index,
        collected: replay.collected,
        tail: records,
        tail_commit_mark: tail.header.commit_mark,
        batch: replay.batch.expect("the last segment's head was replayed"),
        end,
        last: (candidate.segment.clone(), valid_to),
        unused: unnumbered(unused),
        superseded: unnumbered(superseded),
        next_number: candidates.keys().next_back().map_or(1, |number| number + 1),
        report,
    })
}

fn no_log<F>(dir: &Path, candidates: &BTreeMap<u64, Candidate<F>>) -> WalError {
    match candidates.values().next_back() {
        None => WalError::Missing { dir: dir.to_owned() },
        Some(candidate) => candidate
            .segment
            .corrupt(PAGE_BYTES, "no segment has a valid first frame"),
    }
}

/// Reads a segment's header and first frame.
fn examine<D: Disk>(
    disk: &D,
    path: &Path,
    number: u64,
    identity: &[u8],
) -> Result<Candidate<D::File>, WalError> {
    let error = |e| WalError::io("reading", path, &e);
    let file = disk.open(path).map_err(error)?;
    let size = file.size().map_err(error)?;
    let mut page = vec![0; PAGE_BYTES as usize];
    let read = read_full_at(&file, &mut page, 0).map_err(error)?;
    let corrupt = |why: &str| WalError::Corrupt {
        segment: number,
        file: path.to_owned(),
        offset: 0,
        why: format!("its header is bad: {why}"),
    };
    let header = SegmentHeader::decode(&page[..read]).map_err(|defect| match defect {
        Defect::Bad(why) => corrupt(why),
        Defect::Newer(found) => WalError::Newer {
            file: path.to_owned(),
            found,
            known: FORMAT_VERSION,
        },
    })?;
    if header.identity != identity {
        return Err(WalError::WrongIdentity {
            file: path.to_owned(),
        });
    }
    if header.number != number {
        return Err(corrupt("it has another segment's number"));
    }
    let segment = SegmentFile::new(header, path.to_owned(), file);
    let mut candidate = Candidate {
        segment: Arc::new(segment),
        size,
        first: First::Nothing,
    };
    let slot = FrameReader::new(&candidate.segment, size).slot(PAGE_BYTES)?;
    candidate.first = match slot {
        Slot::Valid(frame) => {
            let head = head_of(&frame, candidate.segment.checksum_seed)
                .map_err(|why| candidate.segment.corrupt(PAGE_BYTES, why))?;
            First::Valid(frame.header, head)
        }
        Slot::Torn(header) => First::Torn(header),
        Slot::Nothing => First::Nothing,
    };
    Ok(candidate)
}

/// Checks that nothing was durable in the segments above the last one, and returns up to where their torn first
/// frames prove the last one durable.
fn check_unused<F: DiskFile>(candidates: &BTreeMap<u64, Candidate<F>>, last: u64) -> Result<u64, WalError> {
    let mut proved_to = PAGE_BYTES;
    for candidate in candidates.range(last + 1..).map(|(_, candidate)| candidate) {
        if let First::Torn(header) = &candidate.first {
            if header.previous == last {
                proved_to = proved_to.max(header.durable_to);
            } else if header.previous > last {
                let why = format!(
                    "it names segment {} as the one before, which has no batch",
                    header.previous
                );
                return Err(candidate.segment.corrupt(PAGE_BYTES, &why));
            }
        }
        if let Some(offset) = FrameReader::new(&candidate.segment, candidate.size).search(PAGE_BYTES)? {
            let why = format!("the first frame is bad, but there is a later one at offset {offset}");
            return Err(candidate.segment.corrupt(PAGE_BYTES, &why));
        }
    }
    Ok(proved_to)
}

/// The segments to replay, oldest first, each with its end; the last one's is open.
fn chain<F>(candidates: &BTreeMap<u64, Candidate<F>>, last: u64) -> Result<Vec<(u64, u64)>, WalError> {
    let mut chain = vec![(last, u64::MAX)];
    let mut base_index = None;
    let mut at = last;
    loop {
        let candidate = &candidates[&at];
        let First::Valid(frame, head) = &candidate.first else {
            return Err(candidate
                .segment
                .corrupt(PAGE_BYTES, "a frame is bad, though later segments follow"));
        };
        // Entries up to the last head's base are not needed; nor is what is before the segment that follows it.
        let base_index = *base_index.get_or_insert(head.base.index);
        let previous = frame.previous;
        if head.next_index <= base_index + 1 || !candidates.contains_key(&previous) {
            break;
        }
        if previous >= at {
            return Err(candidate
                .segment
                .corrupt(PAGE_BYTES, "it names a later segment as the one before"));
        }
        chain.push((previous, frame.durable_to));
        at = previous;
    }
    chain.reverse();
    Ok(chain)
}

fn start<F>(replay: &mut Replay<F>, candidate: &Candidate<F>) -> Result<(), WalError> {
    let First::Valid(frame, head) = &candidate.first else {
        unreachable!("the chain holds valid ones only")
    };
    let corrupt = |why| candidate.segment.corrupt(PAGE_BYTES, why);
    replay.head(head, frame.batch, frame.commit_mark).map_err(corrupt)
}

/// Replays a segment whose end is known: everything before it must be valid.
fn replay_sealed<F: DiskFile>(
    replay: &mut Replay<F>,
    candidate: &Candidate<F>,
    end: u64,
    report: &mut RecoveryReport,
) -> Result<(), WalError> {
    start(replay, candidate)?;
    let corrupt = |offset, why: &str| candidate.segment.corrupt(offset, why);
    let mut reader = FrameReader::new(&candidate.segment, end.min(candidate.size));
    let mut offset = PAGE_BYTES;
    while offset < end {
        let Slot::Valid(frame) = reader.slot(offset)? else {
            return Err(corrupt(offset, "a frame is bad, though later segments follow"));
        };
        check_order(replay, &frame).map_err(|why| corrupt(offset, why))?;
        let first = offset == PAGE_BYTES;
        replay
            .apply(&frame, first, candidate.segment.checksum_seed)
            .map_err(|why| corrupt(offset, &why))?;
        report.batches += 1;
        report.bytes += frame.header.span();
        offset += frame.header.span();
    }
    if offset == end {
        Ok(())
    } else {
        Err(corrupt(offset, "the last frame reaches beyond the end"))
    }
}

/// Replays the last segment up to its last valid frame, which is returned, with the end of the valid part.
fn replay_last<F: DiskFile>(
    replay: &mut Replay<F>,
    candidate: &Candidate<F>,
    proved_to: u64,
    report: &mut RecoveryReport,
) -> Result<(Frame, u64), WalError> {
    start(replay, candidate)?;
    let corrupt = |offset, why: &str| candidate.segment.corrupt(offset, why);
    let mut reader = FrameReader::new(&candidate.segment, candidate.size);
    let mut offset = PAGE_BYTES;
    let mut unproved: Option<Frame> = None;
    let bad = loop {
        let frame = match reader.slot(offset)? {
            Slot::Valid(frame) => frame,
            bad => break bad,
        };
        if let Some(proved) = unproved.take() {
            let first = proved.offset == PAGE_BYTES;
            replay
                .apply(&proved, first, candidate.segment.checksum_seed)
                .map_err(|why| corrupt(proved.offset, &why))?;
        }
        check_order(replay, &frame).map_err(|why| corrupt(offset, why))?;
        report.batches += 1;
        report.bytes += frame.header.span();
        offset += frame.header.span();
        unproved = Some(frame);
    };
    if offset < proved_to {
        let why = format!("a frame is bad, though a later segment proves everything before {proved_to}");
        return Err(corrupt(offset, &why));
    }
    if let Some(later) = reader.search(offset)? {
        let why = format!("a frame is bad, but there is a later one at offset {later}");
        return Err(corrupt(offset, &why));
    }
    if matches!(bad, Slot::Torn(_)) {
        report.torn_tail = Some((candidate.segment.header.number, offset));
    }
    Ok((unproved.expect("the last segment's first frame is valid"), offset))
}

/// Batches are numbered without gaps, and each is written after everything before it was durable.
fn check_order<F>(replay: &Replay<F>, frame: &Frame) -> Result<(), &'static str> {
    if replay.batch != frame.header.batch.checked_sub(1) {
        return Err("a batch is out of order");
    }
    if frame.offset != PAGE_BYTES && frame.header.durable_to != frame.offset {
        return Err("a batch was written before the one before it was durable");
    }
    Ok(())
}

/// The error for entries that the log should have and that no segment holds.
fn missing_entries<F>(dir: &Path, oldest: &Candidate<F>, state: &LogState, available_from: u64) -> WalError {
    let previous = match &oldest.first {
        First::Valid(frame, _) => frame.previous,
        First::Torn(_) | First::Nothing => 0,
    };
    let why = format!(
        "it is missing, with entries {}..={}",
        state.base.index + 1,
        available_from - 1
    );
    WalError::Corrupt {
        segment: previous,
        file: dir.join(segment_name(previous)),
        offset: 0,
        why,
    }
}
