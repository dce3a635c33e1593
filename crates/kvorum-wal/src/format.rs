//! The bytes on disk: segment headers, batch frames, their records, the vote file. `docs/design/log-format.md`
//! draws them.
//!
//! Everything is little-endian. Every checksum is a CRC-32C that begins with the segment's generation, a random
//! number drawn each time a segment file is put to use: neither a value that somebody stored nor what a recycled
//! file held before can pass for a frame. Decoding never panics and takes no length on trust.

use bytes::{BufMut, Bytes};
use crc32c::{crc32c, crc32c_append};

use crate::types::{Base, Entry, HardState};

/// Segment headers and frames begin at multiples of this. A page that was synced is never written again, so a
/// later write that is torn cannot damage an earlier batch.
pub const PAGE_BYTES: u64 = 4096;
pub const FRAME_HEADER_BYTES: usize = 64;
pub const ENTRY_HEADER_BYTES: usize = 28;
/// A head record without its configuration.
pub const HEAD_RECORD_BYTES: usize = 45;
/// Longest identity.
pub const IDENTITY_BYTES_MAX: usize = 64;
/// The newest format this version reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"KVORUMSG";
const VOTE_MAGIC: [u8; 8] = *b"KVORUMVT";
const FRAME_MAGIC: [u8; 4] = *b"KVFR";
/// Segment header and vote file: magic, version, checksum, then the rest; all under the checksum.
const SHEET_BYTES: usize = 256;
pub const VOTE_BYTES: usize = SHEET_BYTES;

const RECORD_HEAD: u8 = 1;
const RECORD_HARD_STATE: u8 = 2;
const RECORD_RESET: u8 = 3;
const RECORD_PURGE: u8 = 4;
const RECORD_TRUNCATE: u8 = 5;
const RECORD_ENTRY: u8 = 6;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Not valid, and why.
    Bad(&'static str),
    /// Valid, in a version that is not known here.
    Newer(u32),
}

/// The first page of a segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub number: u64,
    pub generation: u64,
    pub bytes: u64,
    pub identity: Vec<u8>,
}

/// The head of a batch frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub generation: u64,
    pub segment: u64,
    pub batch: u64,
    /// Everything before this offset was durable when the frame was written: in this segment, or, for the first
    /// frame of a segment, in the segment before, which ends there.
    pub durable_to: u64,
    /// For the first frame of a segment, the segment before; else 0.
    pub previous: u64,
    pub commit_mark: u64,
    pub payload_bytes: u32,
    pub payload_crc: u32,
}

/// What a segment restates at its beginning, as of the end of the segment before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub hard_state: HardState,
    pub base: Base,
    /// The index that the next appended entry gets.
    pub next_index: u64,
}

/// One step in a frame's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Head(Head),
    HardState(HardState),
    Reset(Base),
    Purge(Base),
    Truncate(u64),
    Entry(Entry),
}

/// The beginning of every checksum of a segment.
pub fn checksum_seed(generation: u64) -> u32 {
    crc32c(&generation.to_le_bytes())
}

/// How many bytes a frame takes in its segment, padding included.
pub fn frame_span(payload_bytes: usize) -> u64 {
    (FRAME_HEADER_BYTES as u64 + payload_bytes as u64).div_ceil(PAGE_BYTES) * PAGE_BYTES
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"))
}

fn seal_sheet(sheet: &mut [u8; SHEET_BYTES]) {
    let crc = sheet_checksum(sheet);
    sheet[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn sheet_checksum(sheet: &[u8]) -> u32 {
    crc32c_append(crc32c(&sheet[..12]), &sheet[16..SHEET_BYTES])
}

/// Magic, version and checksum are in the same place in every version, so a newer one is told from a bad one.
fn open_sheet<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Result<&'a [u8], Defect> {
    let sheet = bytes.get(..SHEET_BYTES).ok_or(Defect::Bad("it is cut short"))?;
    if sheet[..8] != *magic {
        return Err(Defect::Bad("its magic is wrong"));
    }
    if u32_at(sheet, 12) != sheet_checksum(sheet) {
        return Err(Defect::Bad("its checksum is wrong"));
    }
    match u32_at(sheet, 8) {
        FORMAT_VERSION => Ok(sheet),
        0 => Err(Defect::Bad("its version is 0")),
        version => Err(Defect::Newer(version)),
    }
}

fn put_identity(sheet: &mut [u8; SHEET_BYTES], at: usize, identity: &[u8]) {
    assert!(
        identity.len() <= IDENTITY_BYTES_MAX,
        "the identity's length was checked at create and open"
    );
    sheet[at] = identity.len() as u8;
    sheet[at + 1..at + 1 + identity.len()].copy_from_slice(identity);
}

fn get_identity(sheet: &[u8], at: usize) -> Result<&[u8], Defect> {
    match sheet[at] as usize {
        length if length <= IDENTITY_BYTES_MAX => Ok(&sheet[at + 1..at + 1 + length]),
        _ => Err(Defect::Bad("its identity is too long")),
    }
}

impl SegmentHeader {
    /// The whole first page.
    pub fn encode(&self) -> Vec<u8> {
        let mut sheet = [0; SHEET_BYTES];
        sheet[..8].copy_from_slice(&SEGMENT_MAGIC);
        sheet[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        sheet[16..24].copy_from_slice(&self.number.to_le_bytes());
        sheet[24..32].copy_from_slice(&self.generation.to_le_bytes());
        sheet[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        put_identity(&mut sheet, 40, &self.identity);
        seal_sheet(&mut sheet);
        let mut page = sheet.to_vec();
        page.resize(PAGE_BYTES as usize, 0);
        page
    }

    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, Defect> {
        let sheet = open_sheet(bytes, &SEGMENT_MAGIC)?;
        Ok(SegmentHeader {
            number: u64_at(sheet, 16),
            generation: u64_at(sheet, 24),
            bytes: u64_at(sheet, 32),
            identity: get_identity(sheet, 40)?.to_vec(),
        })
    }
}

/// The second copy of term and vote.
pub fn encode_vote(hard_state: HardState, identity: &[u8]) -> Vec<u8> {
    let mut sheet = [0; SHEET_BYTES];
    sheet[..8].copy_from_slice(&VOTE_MAGIC);
    sheet[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    sheet[16..24].copy_from_slice(&hard_state.term.to_le_bytes());
    sheet[24..32].copy_from_slice(&hard_state.vote.to_le_bytes());
    put_identity(&mut sheet, 32, identity);
    seal_sheet(&mut sheet);
    sheet.to_vec()
}

/// Term, vote and identity from the vote file.
pub fn decode_vote(bytes: &[u8]) -> Result<(HardState, Vec<u8>), Defect> {
    let sheet = open_sheet(bytes, &VOTE_MAGIC)?;
    let hard_state = HardState {
        term: u64_at(sheet, 16),
        vote: u64_at(sheet, 24),
    };
    Ok((hard_state, get_identity(sheet, 32)?.to_vec()))
}

impl FrameHeader {
    fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.batch.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable_to.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.previous.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.commit_mark.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c_append(checksum_seed(self.generation), &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at the beginning of `bytes`, if it is a valid one of this segment in its present life.
    pub fn decode(bytes: &[u8], segment: &SegmentHeader) -> Option<FrameHeader> {
        let bytes = bytes.get(..FRAME_HEADER_BYTES)?;
        let header = FrameHeader {
            generation: u64_at(bytes, 8),
            segment: u64_at(bytes, 16),
            batch: u64_at(bytes, 24),
            durable_to: u64_at(bytes, 32),
            previous: u64_at(bytes, 40),
            commit_mark: u64_at(bytes, 48),
            payload_bytes: u32_at(bytes, 56),
            payload_crc: u32_at(bytes, 60),
        };
        let valid = bytes[..4] == FRAME_MAGIC
            && header.generation == segment.generation
            && header.segment == segment.number
            && u32_at(bytes, 4) == crc32c_append(checksum_seed(header.generation), &bytes[8..]);
        valid.then_some(header)
    }

    /// Whether these are the bytes that the header announces.
    pub fn matches(&self, payload: &[u8]) -> bool {
        payload.len() == self.payload_bytes as usize
            && crc32c_append(checksum_seed(self.generation), payload) == self.payload_crc
    }

    /// Bytes of the whole frame, padding included.
    pub fn span(&self) -> u64 {
        frame_span(self.payload_bytes as usize)
    }
}

/// Starts a frame in an empty buffer: room for the header, then the caller's records.
pub fn begin_frame(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(FRAME_HEADER_BYTES, 0);
}

/// Fills in the header of the frame in the buffer and pads it. `header` gets its length and checksum here.
pub fn finish_frame(buffer: &mut Vec<u8>, mut header: FrameHeader) {
    let payload = &buffer[FRAME_HEADER_BYTES..];
    header.payload_bytes = u32::try_from(payload.len()).expect("segments are at most 1 GiB");
    header.payload_crc = crc32c_append(checksum_seed(header.generation), payload);
    buffer[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
    buffer.resize(header.span() as usize, 0);
}

/// Length of a base record.
pub fn base_record_bytes(base: &Base) -> usize {
    21 + base.configuration.len()
}

/// Length of an entry record.
pub fn entry_record_bytes(entry: &Entry) -> usize {
    ENTRY_HEADER_BYTES + entry.data.len()
}

/// Length of a hard-state record.
pub const HARD_STATE_RECORD_BYTES: usize = 17;
/// Length of a truncate record.
pub const TRUNCATE_RECORD_BYTES: usize = 9;

fn put_base(buffer: &mut Vec<u8>, base: &Base) {
    buffer.put_u64_le(base.index);
    buffer.put_u64_le(base.term);
    buffer.put_u32_le(u32::try_from(base.configuration.len()).expect("its length was checked"));
    buffer.put_slice(&base.configuration);
}

pub fn put_head(buffer: &mut Vec<u8>, head: &Head) {
    buffer.put_u8(RECORD_HEAD);
    buffer.put_u64_le(head.hard_state.term);
    buffer.put_u64_le(head.hard_state.vote);
    buffer.put_u64_le(head.next_index);
    put_base(buffer, &head.base);
}

pub fn put_hard_state(buffer: &mut Vec<u8>, hard_state: HardState) {
    buffer.put_u8(RECORD_HARD_STATE);
    buffer.put_u64_le(hard_state.term);
    buffer.put_u64_le(hard_state.vote);
}

pub fn put_reset(buffer: &mut Vec<u8>, base: &Base) {
    buffer.put_u8(RECORD_RESET);
    put_base(buffer, base);
}

pub fn put_purge(buffer: &mut Vec<u8>, base: &Base) {
    buffer.put_u8(RECORD_PURGE);
    put_base(buffer, base);
}

pub fn put_truncate(buffer: &mut Vec<u8>, from: u64) {
    buffer.put_u8(RECORD_TRUNCATE);
    buffer.put_u64_le(from);
}

pub fn put_entry(buffer: &mut Vec<u8>, entry: &Entry, seed: u32) {
    let start = buffer.len();
    let mut header = [0; ENTRY_HEADER_BYTES];
    header[0] = RECORD_ENTRY;
    header[1] = entry.kind;
    let length = u32::try_from(entry.data.len()).expect("its length was checked");
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[12..20].copy_from_slice(&entry.index.to_le_bytes());
    header[20..28].copy_from_slice(&entry.term.to_le_bytes());
    let crc = entry_checksum(seed, &header, &entry.data);
    header[8..12].copy_from_slice(&crc.to_le_bytes());
    buffer.extend_from_slice(&header);
    buffer.extend_from_slice(&entry.data);
    debug_assert_eq!(buffer.len() - start, entry_record_bytes(entry));
}

fn entry_checksum(seed: u32, header: &[u8], data: &[u8]) -> u32 {
    crc32c_append(
        crc32c_append(crc32c_append(seed, &header[..8]), &header[12..ENTRY_HEADER_BYTES]),
        data,
    )
}

/// Whether the bytes at `at` begin an entry record, and how long it says it is. Not verified.
pub fn entry_record_length(bytes: &[u8], at: usize) -> Option<usize> {
    let header = bytes.get(at..at.checked_add(ENTRY_HEADER_BYTES)?)?;
    (header[0] == RECORD_ENTRY).then(|| ENTRY_HEADER_BYTES + u32_at(header, 4) as usize)
}

/// The entry at `at` and where the next record begins. Its data is a slice of `bytes`.
pub fn decode_entry(bytes: &Bytes, at: usize, seed: u32) -> Result<(Entry, usize), &'static str> {
    let length = entry_record_length(bytes, at).ok_or("no entry begins here")?;
    let end = at
        .checked_add(length)
        .filter(|end| *end <= bytes.len())
        .ok_or("an entry is cut short")?;
    let header = &bytes[at..at + ENTRY_HEADER_BYTES];
    let data = at + ENTRY_HEADER_BYTES..end;
    if u32_at(header, 8) != entry_checksum(seed, header, &bytes[data.clone()]) {
        return Err("an entry's checksum is wrong");
    }
    let entry = Entry {
        index: u64_at(header, 12),
        term: u64_at(header, 20),
        kind: header[1],
        data: bytes.slice(data),
    };
    Ok((entry, end))
}

fn decode_base(bytes: &Bytes, at: usize) -> Result<(Base, usize), &'static str> {
    let fixed = bytes.get(at..at + 20).ok_or("a base is cut short")?;
    let length = u32_at(fixed, 16) as usize;
    let end = (at + 20)
        .checked_add(length)
        .filter(|end| *end <= bytes.len())
        .ok_or("a base is cut short")?;
    let base = Base {
        index: u64_at(fixed, 0),
        term: u64_at(fixed, 8),
        configuration: bytes.slice(at + 20..end),
    };
    Ok((base, end))
}

/// The record at `at` of a payload and where the next one begins.
pub fn decode_record(bytes: &Bytes, at: usize, seed: u32) -> Result<(Record, usize), &'static str> {
    let kind = *bytes.get(at).ok_or("a record is cut short")?;
    let fixed = |length: usize| bytes.get(at + 1..at + 1 + length).ok_or("a record is cut short");
    match kind {
        RECORD_HEAD => {
            let fields = fixed(24)?;
            let hard_state = HardState {
                term: u64_at(fields, 0),
                vote: u64_at(fields, 8),
            };
            let next_index = u64_at(fields, 16);
            let (base, end) = decode_base(bytes, at + 25)?;
            Ok((
                Record::Head(Head {
                    hard_state,
                    base,
                    next_index,
                }),
                end,
            ))
        }
        RECORD_HARD_STATE => {
            let fields = fixed(16)?;
            let hard_state = HardState {
                term: u64_at(fields, 0),
                vote: u64_at(fields, 8),
            };
            Ok((Record::HardState(hard_state), at + HARD_STATE_RECORD_BYTES))
        }
        RECORD_RESET => decode_base(bytes, at + 1).map(|(base, end)| (Record::Reset(base), end)),
        RECORD_PURGE => decode_base(bytes, at + 1).map(|(base, end)| (Record::Purge(base), end)),
        RECORD_TRUNCATE => Ok((Record::Truncate(u64_at(fixed(8)?, 0)), at + TRUNCATE_RECORD_BYTES)),
        RECORD_ENTRY => decode_entry(bytes, at, seed).map(|(entry, end)| (Record::Entry(entry), end)),
        _ => Err("a record's type is unknown"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn segment() -> SegmentHeader {
        SegmentHeader {
            number: 3,
            generation: 0x0123_4567_89ab_cdef,
            bytes: 64 << 20,
            identity: b"who".to_vec(),
        }
    }

    fn records() -> Vec<Record> {
        let base = |index| Base {
            index,
            term: 2,
            configuration: Bytes::from_static(b"members"),
        };
        let hard_state = HardState { term: 5, vote: 9 };
        vec![
            Record::Head(Head {
                hard_state,
                base: base(7),
                next_index: 12,
            }),
            Record::HardState(hard_state),
            Record::Reset(base(20)),
            Record::Purge(base(20)),
            Record::Truncate(21),
            Record::Entry(Entry {
                index: 21,
                term: 5,
                kind: 1,
                data: Bytes::from_static(b"data"),
            }),
            Record::Entry(Entry {
                index: 22,
                term: 5,
                kind: 0,
                data: Bytes::new(),
            }),
        ]
    }

    fn frame() -> Vec<u8> {
        let seed = checksum_seed(segment().generation);
        let mut buffer = Vec::new();
        begin_frame(&mut buffer);
        for record in records() {
            match &record {
                Record::Head(head) => put_head(&mut buffer, head),
                Record::HardState(hard_state) => put_hard_state(&mut buffer, *hard_state),
                Record::Reset(base) => put_reset(&mut buffer, base),
                Record::Purge(base) => put_purge(&mut buffer, base),
                Record::Truncate(from) => put_truncate(&mut buffer, *from),
                Record::Entry(entry) => put_entry(&mut buffer, entry, seed),
            }
        }
        let header = FrameHeader {
            generation: segment().generation,
            segment: segment().number,
            batch: 17,
            durable_to: 8192,
            previous: 2,
            commit_mark: 19,
            payload_bytes: 0,
            payload_crc: 0,
        };
        finish_frame(&mut buffer, header);
        buffer
    }

    /// Format version 1, byte for byte. Whoever changes one of these numbers makes logs on disk unreadable.
    #[test]
    fn version_1_stays_what_it_is() {
        assert_eq!(crc32c(&segment().encode()), 0xb5c8_119a, "segment header");
        assert_eq!(
            crc32c(&encode_vote(HardState { term: 5, vote: 9 }, b"who")),
            0x7910_4242,
            "vote"
        );
        assert_eq!(crc32c(&frame()), 0xd195_028e, "frame");
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(SegmentHeader::decode(&segment().encode()), Ok(segment()));
        let vote = encode_vote(HardState { term: 5, vote: 9 }, b"who");
        assert_eq!(
            decode_vote(&vote),
            Ok((HardState { term: 5, vote: 9 }, b"who".to_vec()))
        );
        let frame = frame();
        let header = FrameHeader::decode(&frame, &segment()).unwrap();
        assert_eq!((header.batch, header.span()), (17, frame.len() as u64));
        let end = FRAME_HEADER_BYTES + header.payload_bytes as usize;
        let payload = Bytes::copy_from_slice(&frame[FRAME_HEADER_BYTES..end]);
        assert!(header.matches(&payload) && frame[end..].iter().all(|byte| *byte == 0));
        let (mut at, mut read) = (0, Vec::new());
        while at < payload.len() {
            let (record, next) = decode_record(&payload, at, checksum_seed(header.generation)).unwrap();
            read.push(record);
            at = next;
        }
        assert_eq!(read, records());
    }

    /// Another generation, another segment, a flipped bit: no frame. A payload cut anywhere: an error, no panic.
    #[test]
    fn what_is_not_quite_right_is_refused() {
        let frame = frame();
        assert_eq!(
            FrameHeader::decode(
                &frame,
                &SegmentHeader {
                    generation: 1,
                    ..segment()
                }
            ),
            None
        );
        assert_eq!(
            FrameHeader::decode(
                &frame,
                &SegmentHeader {
                    number: 4,
                    ..segment()
                }
            ),
            None
        );
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut frame = frame.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&frame, &segment()), None, "bit {bit}");
        }
        for bit in 0..SHEET_BYTES * 8 {
            let mut page = segment().encode();
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&page).is_err(), "bit {bit}");
        }
        let seed = checksum_seed(segment().generation);
        for start in FRAME_HEADER_BYTES..frame.len() {
            for end in start..frame.len().min(start + 60) {
                let piece = Bytes::copy_from_slice(&frame[start..end]);
                if let Ok((_, next)) = decode_record(&piece, 0, seed) {
                    assert!(next <= piece.len());
                }
            }
        }
    }
}
