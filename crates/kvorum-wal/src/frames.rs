//! Reading the frames of one segment and telling valid from torn from nothing.

use bytes::Bytes;

use crate::WalError;
use crate::disk::{DiskFile, read_full_at};
use crate::format::{FRAME_HEADER_BYTES, FrameHeader, Head, PAGE_BYTES, Record, decode_record};
use crate::segments::SegmentFile;

/// Segments are read in pieces of this size.
const CHUNK_BYTES: usize = 256 << 10;

/// A valid frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub header: FrameHeader,
    pub offset: u64,
    pub payload: Bytes,
}

/// A record and the bytes of its frame's payload that it takes.
type Placed = (Record, usize, usize);

impl Frame {
    /// All records; a head is allowed, and demanded, only where the first frame of a segment begins.
    pub fn records(&self, first: bool, checksum_seed: u32) -> Result<Vec<Placed>, &'static str> {
        let mut records = Vec::new();
        let mut at = 0;
        while at < self.payload.len() {
            let (record, next) = decode_record(&self.payload, at, checksum_seed)?;
            if matches!(record, Record::Head(_)) != (first && at == 0) {
                return Err("a head is missing, or where it must not be");
            }
            records.push((record, at, next - at));
            at = next;
        }
        if first && records.is_empty() {
            Err("its head is missing")
        } else {
            Ok(records)
        }
    }
}

/// The head that the first frame of a segment begins with.
pub fn head_of(frame: &Frame, checksum_seed: u32) -> Result<Head, &'static str> {
    match decode_record(&frame.payload, 0, checksum_seed)? {
        (Record::Head(head), _) => Ok(head),
        _ => Err("its head is missing"),
    }
}

/// What an offset holds.
pub enum Slot {
    Valid(Frame),
    Torn(FrameHeader),
    Nothing,
}

/// Reads a segment's frames through a chunk in memory.
pub struct FrameReader<'a, F> {
    segment: &'a SegmentFile<F>,
    /// Nothing exists from here on.
    limit: u64,
    chunk: Bytes,
    chunk_at: u64,
}

impl<'a, F: DiskFile> FrameReader<'a, F> {
    /// Reads up to `limit`, which must not be beyond the file's end.
    pub fn new(segment: &'a SegmentFile<F>, limit: u64) -> FrameReader<'a, F> {
        FrameReader {
            segment,
            limit,
            chunk: Bytes::new(),
            chunk_at: 0,
        }
    }

    /// `length` bytes at `offset`; `None` if they are not all before the limit.
    fn bytes(&mut self, offset: u64, length: usize) -> Result<Option<Bytes>, WalError> {
        if offset + length as u64 > self.limit {
            return Ok(None);
        }
        if offset < self.chunk_at || offset + length as u64 > self.chunk_at + self.chunk.len() as u64 {
            let size = (length.max(CHUNK_BYTES) as u64).min(self.limit - offset) as usize;
            let mut chunk = vec![0; size];
            let read = read_full_at(&self.segment.file, &mut chunk, offset)
                .map_err(|e| WalError::io("reading", &self.segment.path, &e))?;
            chunk.truncate(read);
            self.chunk = chunk.into();
            self.chunk_at = offset;
        }
        let at = (offset - self.chunk_at) as usize;
        Ok((at + length <= self.chunk.len()).then(|| self.chunk.slice(at..at + length)))
    }

    fn header_at(&mut self, offset: u64) -> Result<Option<FrameHeader>, WalError> {
        let bytes = self.bytes(offset, FRAME_HEADER_BYTES)?;
        Ok(bytes.and_then(|bytes| FrameHeader::decode(&bytes, &self.segment.header)))
    }

    /// What is at `offset`, where a frame may begin.
    pub fn slot(&mut self, offset: u64) -> Result<Slot, WalError> {
        let Some(header) = self.header_at(offset)? else {
            return Ok(Slot::Nothing);
        };
        let payload = self.bytes(offset + FRAME_HEADER_BYTES as u64, header.payload_bytes as usize)?;
        Ok(match payload {
            Some(payload) if header.matches(&payload) => Slot::Valid(Frame {
                header,
                offset,
                payload,
            }),
            _ => Slot::Torn(header),
        })
    }

    /// Where, behind a bad frame at `bad`, there is proof that it was durable: the header of a frame that was
    /// written after it. (The copy of an earlier frame, stored as somebody's value, proves nothing.)
    pub fn search(&mut self, bad: u64) -> Result<Option<u64>, WalError> {
        let mut offset = bad;
        while offset + PAGE_BYTES < self.limit {
            offset += PAGE_BYTES;
            if let Some(header) = self.header_at(offset)?
                && header.previous == 0
                && header.durable_to > bad
            {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }
}
