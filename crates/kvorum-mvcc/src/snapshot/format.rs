//! The bytes of a snapshot's frames.
//!
//! ```text
//! frame   "kvS" kind | u32 body length | u64 number | body | SHA-256 of all before it in the frame
//! header  'H', number 0; body: u32 format, u64 term, u64 index, u64 time_ms, i64 revision, i64 compacted,
//!         u64 live keys, u32 feature level, u128 digest, configuration (the rest)
//! chunk   'C', number from 0; body: { u32 key length, u32 value length, key, value } …
//! end     'E', number of chunks; body: u64 records, SHA-256 over the hashes of header and chunks in order
//! ```
//! All integers are little-endian.

use bytes::Bytes;
use kvorum_model::Revision;
use sha2::{Digest, Sha256};

use super::SnapshotError;

const FORMAT: u32 = 1;
const MAGIC: &[u8; 3] = b"kvS";
/// Bytes before a frame's body; enough for [`frame_bytes`].
pub const FRAME_HEADER_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// Records are gathered into a chunk until its frame takes 1 MiB; a single larger one makes a chunk of its own.
pub(super) const CHUNK_BYTES: usize = 1024 * 1024 - HASH_BYTES;
/// No frame is longer.
pub const FRAME_BYTES_MAX: usize = 32 * 1024 * 1024;
const RECORD_HEADER_BYTES: usize = 8;
const HEADER_BODY_BYTES: usize = 4 + 6 * 8 + 4 + 16;

pub(super) type Hash = [u8; HASH_BYTES];

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The term of the last entry that it covers.
    pub term: u64,
    /// The index of that entry.
    pub index: u64,
    /// The latest time of an entry, in ms.
    pub time_ms: u64,
    /// The revision of the keyspace.
    pub revision: Revision,
    /// The last compaction.
    pub compacted: Revision,
    /// How many keys there are.
    pub live_keys: u64,
    /// The feature level of the cluster.
    pub feature_level: u32,
    /// The chained digest at that entry.
    pub digest: u128,
    /// The configuration at that entry, as the log brought it.
    pub configuration: Bytes,
}

/// What a frame is.
#[derive(Debug)]
pub(super) enum Frame {
    Header(SnapshotHeader),
    Chunk {
        number: u64,
        records: Vec<(Bytes, Bytes)>,
    },
    End {
        chunks: u64,
        records: u64,
        hash: Hash,
    },
}

/// The length of a whole frame, from its first [`FRAME_HEADER_BYTES`] bytes: for reading frames from a file.
pub fn frame_bytes(start: &[u8]) -> Result<usize, SnapshotError> {
    if start.len() < FRAME_HEADER_BYTES || !start.starts_with(MAGIC) {
        return Err(SnapshotError::Damaged("a frame does not begin as one"));
    }
    let body = u32::from_le_bytes(start[4..8].try_into().expect("four bytes")) as usize;
    if body > FRAME_BYTES_MAX - FRAME_HEADER_BYTES - HASH_BYTES {
        return Err(SnapshotError::Damaged("a frame is too long"));
    }
    Ok(FRAME_HEADER_BYTES + body + HASH_BYTES)
}

fn begin(kind: u8, number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.push(kind);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&number.to_le_bytes());
    out
}

/// Fills in the length and adds the hash.
fn finish(mut out: Vec<u8>) -> (Bytes, Hash) {
    let body = u32::try_from(out.len() - FRAME_HEADER_BYTES).expect("a body is far below 4 GiB");
    out[4..8].copy_from_slice(&body.to_le_bytes());
    let hash: Hash = Sha256::digest(&out).into();
    out.extend_from_slice(&hash);
    (out.into(), hash)
}

impl SnapshotHeader {
    pub(super) fn encode(&self) -> (Bytes, Hash) {
        let mut out = begin(b'H', 0);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        let numbers = [
            self.term,
            self.index,
            self.time_ms,
            self.revision as u64,
            self.compacted as u64,
            self.live_keys,
        ];
        numbers
            .iter()
            .for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out.extend_from_slice(&self.feature_level.to_le_bytes());
        out.extend_from_slice(&self.digest.to_le_bytes());
        out.extend_from_slice(&self.configuration);
        finish(out)
    }

    fn decode(body: Bytes) -> Result<Self, SnapshotError> {
        let damaged = SnapshotError::Damaged("the header is too short");
        let format = body
            .first_chunk()
            .map(|format| u32::from_le_bytes(*format))
            .ok_or(damaged.clone())?;
        if format != FORMAT {
            return Err(SnapshotError::Format {
                found: format,
                known: FORMAT,
            });
        }
        if body.len() < HEADER_BODY_BYTES {
            return Err(damaged);
        }
        let number =
            |n: usize| u64::from_le_bytes(body[4 + 8 * n..12 + 8 * n].try_into().expect("eight bytes"));
        Ok(SnapshotHeader {
            term: number(0),
            index: number(1),
            time_ms: number(2),
            revision: number(3) as Revision,
            compacted: number(4) as Revision,
            live_keys: number(5),
            feature_level: u32::from_le_bytes(body[52..56].try_into().expect("four bytes")),
            digest: u128::from_le_bytes(body[56..72].try_into().expect("sixteen bytes")),
            configuration: body.slice(HEADER_BODY_BYTES..),
        })
    }

    /// Reads a snapshot's first frame, to know what it covers before anything is taken in.
    pub fn from_frame(frame: Bytes) -> Result<Self, SnapshotError> {
        match Frame::decode(frame)?.0 {
            Frame::Header(header) => Ok(header),
            _ => Err(SnapshotError::Damaged("it does not begin with its header")),
        }
    }
}

/// A chunk that is being filled.
pub(super) struct ChunkWriter {
    out: Vec<u8>,
    pub records: u64,
}

impl ChunkWriter {
    pub fn new(number: u64) -> Self {
        ChunkWriter {
            out: begin(b'C', number),
            records: 0,
        }
    }

    /// Whether the record finds room; the first always does.
    pub fn takes(&self, key: &[u8], value: &[u8]) -> bool {
        self.records == 0 || self.out.len() + RECORD_HEADER_BYTES + key.len() + value.len() <= CHUNK_BYTES
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        for length in [key.len(), value.len()] {
            let length = u32::try_from(length).expect("keys and values are far below 4 GiB");
            self.out.extend_from_slice(&length.to_le_bytes());
        }
        self.out.extend_from_slice(key);
        self.out.extend_from_slice(value);
        self.records += 1;
    }

    pub fn finish(self) -> (Bytes, Hash) {
        finish(self.out)
    }
}

/// The end frame of a snapshot whose frames have these hashes.
pub(super) fn end_frame(records: u64, header: &Hash, chunks: &[Hash]) -> Bytes {
    let mut out = begin(b'E', chunks.len() as u64);
    out.extend_from_slice(&records.to_le_bytes());
    out.extend_from_slice(&closing_hash(header, chunks));
    finish(out).0
}

/// The hash over a snapshot's frames.
pub(super) fn closing_hash(header: &Hash, chunks: &[Hash]) -> Hash {
    let mut hash = Sha256::new();
    hash.update(header);
    chunks.iter().for_each(|chunk| hash.update(chunk));
    hash.finalize().into()
}

impl Frame {
    /// Checks and reads one frame; its hash, too.
    pub fn decode(frame: Bytes) -> Result<(Frame, Hash), SnapshotError> {
        if frame_bytes(&frame)? != frame.len() {
            return Err(SnapshotError::Damaged("a frame has another length than it says"));
        }
        let body_end = frame.len() - HASH_BYTES;
        let hash: Hash = Sha256::digest(&frame[..body_end]).into();
        if hash != frame[body_end..] {
            return Err(SnapshotError::Damaged("a frame's checksum does not match"));
        }
        let number = u64::from_le_bytes(frame[8..16].try_into().expect("eight bytes"));
        let body = frame.slice(FRAME_HEADER_BYTES..body_end);
        let decoded = match frame[3] {
            b'H' => Frame::Header(SnapshotHeader::decode(body)?),
            b'C' => Frame::Chunk {
                number,
                records: decode_records(body)?,
            },
            b'E' if body.len() == 8 + HASH_BYTES => Frame::End {
                chunks: number,
                records: u64::from_le_bytes(body[..8].try_into().expect("eight bytes")),
                hash: body[8..].try_into().expect("a hash"),
            },
            _ => return Err(SnapshotError::Damaged("a frame of an unknown kind")),
        };
        Ok((decoded, hash))
    }
}

fn decode_records(body: Bytes) -> Result<Vec<(Bytes, Bytes)>, SnapshotError> {
    let cut = || SnapshotError::Damaged("a record is cut");
    let mut records: Vec<(Bytes, Bytes)> = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let lengths: &[u8; RECORD_HEADER_BYTES] = body[at..].first_chunk().ok_or_else(cut)?;
        let key_len = u32::from_le_bytes(lengths[..4].try_into().expect("four bytes")) as usize;
        let value_len = u32::from_le_bytes(lengths[4..].try_into().expect("four bytes")) as usize;
        at += RECORD_HEADER_BYTES;
        if key_len + value_len > body.len() - at {
            return Err(cut());
        }
        let key = body.slice(at..at + key_len);
        at += key_len;
        let value = body.slice(at..at + value_len);
        at += value_len;
        if records.last().is_some_and(|(last, _)| *last >= key) {
            return Err(SnapshotError::Damaged("records are out of order"));
        }
        records.push((key, value));
    }
    Ok(records)
}
