//! etcd's hash of the keyspace (HashKV), bit for bit: a cluster can be held against a live etcd with the same history.
//!
//! It is the CRC-32C of the bucket's name `key`, then of the records that etcd's backend would hold, in revision order:
//! a key of 17 bytes (main revision, `_`, number within it; big-endian), 18 with a `t` at the end for a deletion, and
//! the marshalled `mvccpb.KeyValue` (of a deletion only the key). Which records:
//!
//! - Above the last compaction all of them, deletions too.
//! - At or below it those that are live and the newest of their key at the *hashed* revision. If there is no live key
//!   at that revision, etcd leaves nothing out: then those that the compaction kept.
//! - A deletion exactly at the compaction is kept by etcd from 3.5.16 and 3.6 on, and hashed by none of them.
//!
//! The records below the compaction are found in key order. Their checksums, each with its length, are gathered in
//! bounded memory, sorted, and combined as zlib does it, so that no value is read twice and none is kept.

use std::ops::Bound;

use bytes::Bytes;
use kvorum_model::{Error, EventKind, KeyRange, KeyValue, Revision};

use super::{Found, ReadError, ReadView, scan_at};
use crate::layout::{
    DATA, HISTORY, corrupt, data_key, history_key, read_change, read_record, record_sub, split_data_key,
};
use crate::state::REMOVAL_KEY;
use crate::store::{Store, StoreError, View};

const BUCKET: &[u8] = b"key";
const TOMBSTONE: u8 = b't';
/// etcd's compacted revision before the first compaction.
const NEVER: Revision = -1;
/// Checksums of records that are kept at one time: 24 MiB, twice that while they are gathered.
const PIECES_MAX: usize = 1 << 20;
/// After the last record of a keyspace.
const LAST: Place = (Revision::MAX, u32::MAX);

/// Main revision and the change's number within it.
type Place = (Revision, u32);

/// The answer to etcd's HashKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyspaceHash {
    /// The hash.
    pub hash: u32,
    /// The last compaction, -1 if there was none.
    pub compacted: Revision,
    /// The revision up to which records are in it.
    pub revision: Revision,
}

impl<S: Store> ReadView<S> {
    /// etcd's hash of all records up to a revision (0: the newest). Walks over the whole keyspace and the retained
    /// history: for a thread that may block.
    ///
    /// # Errors
    /// `Compacted` and `FutureRevision`, as etcd answers.
    pub fn hash_kv(&self, revision: Revision) -> Result<KeyspaceHash, ReadError> {
        self.hash_kv_with(revision, PIECES_MAX)
    }

    fn hash_kv_with(&self, revision: Revision, pieces_max: usize) -> Result<KeyspaceHash, ReadError> {
        let (current, compacted) = (self.revision(), self.compacted());
        if revision > current {
            return Err(Error::FutureRevision.into());
        }
        if revision > 0 && revision < compacted {
            return Err(Error::Compacted.into());
        }
        let revision = if revision == 0 { current } else { revision };
        let view = self.store_view();
        let crc = crc32c::crc32c(BUCKET);
        let crc = hash_kept(view, compacted, revision, crc, pieces_max)?;
        Ok(KeyspaceHash {
            hash: hash_changes(view, compacted, revision, crc)?,
            compacted: if compacted == 0 { NEVER } else { compacted },
            revision,
        })
    }

    /// A hash of the whole state: etcd's hash of the keyspace, then everything else that members have in common, so
    /// that members at the same applied entry have the same. Its value is kvorum's own.
    pub fn hash(&self) -> Result<u32, ReadError> {
        let mut crc = self.hash_kv(0)?.hash;
        let bound = |byte: u8| Bytes::copy_from_slice(&[byte]);
        for (from, to) in [(0, DATA), (DATA + 1, HISTORY), (HISTORY + 1, u8::MAX)] {
            let view = self.store_view();
            for record in view.range(Bound::Included(bound(from)), Bound::Excluded(bound(to))) {
                let (key, value) = record?;
                if key != REMOVAL_KEY {
                    crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &key), &value);
                }
            }
        }
        Ok(crc)
    }
}

/// The records at and below the compaction.
fn hash_kept(
    view: &impl View,
    compacted: Revision,
    revision: Revision,
    mut crc: u32,
    pieces_max: usize,
) -> Result<u32, StoreError> {
    if compacted == 0 || revision <= 0 {
        return Ok(crc);
    }
    let any_live = scan_at(view, &KeyRange::prefix(b""), revision)
        .next()
        .transpose()?
        .is_some();
    let at = if any_live { revision } else { compacted };
    let mut after = (0, 0);
    loop {
        let (pieces, more) = gather(view, at, compacted, after, pieces_max)?;
        for piece in &pieces {
            crc = combine(crc, piece.crc, piece.bytes);
        }
        match pieces.last() {
            Some(last) if more => after = last.at,
            _ => return Ok(crc),
        }
    }
}

/// One record's place in the order, its checksum and length.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: Place,
    crc: u32,
    bytes: u64,
}

/// The first `pieces_max` live records at revision `at` that were written after `after` and not after the compaction,
/// in order; and whether there are more.
fn gather(
    view: &impl View,
    at: Revision,
    compacted: Revision,
    after: Place,
    pieces_max: usize,
) -> Result<(Vec<Piece>, bool), StoreError> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut bound = LAST;
    for found in scan_at(view, &KeyRange::prefix(b""), at) {
        let Found::Stored { key, record } = found? else {
            unreachable!("a view of the store knows only what is stored")
        };
        let place = (split_data_key(&key)?.1, record_sub(&record)?);
        if place.0 > compacted || place <= after || place > bound {
            continue;
        }
        let kv = Found::Stored { key, record }.into_kv()?;
        let (crc, bytes) = Marshalled::put(place, &kv).append_to(0, &kv.value);
        pieces.push(Piece {
            at: place,
            crc,
            bytes,
        });
        if pieces.len() > 2 * pieces_max {
            bound = cut(&mut pieces, pieces_max);
        }
    }
    let mut more = bound != LAST;
    if pieces.len() > pieces_max {
        cut(&mut pieces, pieces_max);
        more = true;
    }
    pieces.sort_unstable_by_key(|piece| piece.at);
    Ok((pieces, more))
}

/// Keeps the first so many; the place of the last of them.
fn cut(pieces: &mut Vec<Piece>, pieces_max: usize) -> Place {
    let (_, last, _) = pieces.select_nth_unstable_by_key(pieces_max - 1, |piece| piece.at);
    let last = last.at;
    pieces.truncate(pieces_max);
    last
}

/// The changes above the compaction.
fn hash_changes(
    view: &impl View,
    compacted: Revision,
    revision: Revision,
    mut crc: u32,
) -> Result<u32, StoreError> {
    // A revision that is negative, as etcd takes it, has no changes: the interval is empty.
    let from = Bound::Included(history_key(compacted + 1, 0));
    let to = Bound::Excluded(history_key(revision.max(0) + 1, 0));
    for item in view.range(from, to) {
        let (stored, record) = item?;
        let change = read_change(&stored, &record)?;
        let place = (change.main, change.sub);
        crc = match change.kind {
            EventKind::Delete => Marshalled::deletion(place, &change.key).append_to(crc, &[]).0,
            EventKind::Put => {
                let at = data_key(&change.key, change.main);
                let record = view.get(&at)?;
                let record = record.ok_or_else(|| corrupt("a put in the history has no record"))?;
                let kv = read_record(&at, &record)?;
                let kv = kv.ok_or_else(|| corrupt("a put in the history is a deletion in the keyspace"))?;
                Marshalled::put(place, &kv).append_to(crc, &kv.value).0
            }
        };
    }
    Ok(crc)
}

/// A record as etcd's backend holds it, but for the value, which stands between the two parts.
struct Marshalled {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Marshalled {
    /// Fields 1 to 6 of `mvccpb.KeyValue`: key, create revision, mod revision, version, value, lease.
    fn put(place: Place, kv: &KeyValue) -> Self {
        let mut head = revision_key(place, kv.key.len());
        push_bytes(&mut head, 1, &kv.key);
        push_integer(&mut head, 2, kv.create_revision);
        push_integer(&mut head, 3, kv.mod_revision);
        push_integer(&mut head, 4, kv.version);
        push_length(&mut head, 5, kv.value.len());
        let mut tail = Vec::new();
        push_integer(&mut tail, 6, kv.lease);
        Marshalled { head, tail }
    }

    fn deletion(place: Place, key: &[u8]) -> Self {
        let mut head = revision_key(place, key.len());
        head.push(TOMBSTONE);
        push_bytes(&mut head, 1, key);
        Marshalled {
            head,
            tail: Vec::new(),
        }
    }

    /// The checksum of what `crc` is the checksum of and this record, and the record's length.
    fn append_to(&self, crc: u32, value: &[u8]) -> (u32, u64) {
        let crc = crc32c::crc32c_append(crc, &self.head);
        let crc = crc32c::crc32c_append(crc, value);
        let bytes = self.head.len() + value.len() + self.tail.len();
        (crc32c::crc32c_append(crc, &self.tail), bytes as u64)
    }
}

fn revision_key((main, sub): Place, key_bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + key_bytes);
    out.extend_from_slice(&main.to_be_bytes());
    out.push(b'_');
    out.extend_from_slice(&u64::from(sub).to_be_bytes());
    out
}

/// As proto3 has it, an empty or zero field is left out.
fn push_integer(out: &mut Vec<u8>, field: u8, value: i64) {
    if value != 0 {
        out.push(field << 3);
        push_varint(out, value as u64);
    }
}

fn push_bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    push_length(out, field, value.len());
    out.extend_from_slice(value);
}

fn push_length(out: &mut Vec<u8>, field: u8, bytes: usize) {
    if bytes != 0 {
        out.push(field << 3 | 2);
        push_varint(out, bytes as u64);
    }
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Castagnoli's polynomial without x^32, the lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// 1, that is x^0.
const ONE: u32 = 1 << 31;
/// x^(8 · 2^n) for each n.
const ZERO_BYTES: [u32; 64] = {
    let mut table = [0; 64];
    // x^8.
    table[0] = ONE >> 8;
    let mut n = 1;
    while n < 64 {
        table[n] = multiply(table[n - 1], table[n - 1]);
        n += 1;
    }
    table
};

/// The product of two polynomials modulo [`POLYNOMIAL`].
const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 0 { b >> 1 } else { b >> 1 ^ POLYNOMIAL };
        bit >>= 1;
    }
    product
}

/// The checksum of two byte strings from the checksum of each and the length of the second.
fn combine(first: u32, second: u32, second_bytes: u64) -> u32 {
    let mut shifted = first;
    let mut left = second_bytes;
    while left != 0 {
        shifted = multiply(ZERO_BYTES[left.trailing_zeros() as usize], shifted);
        left &= left - 1;
    }
    shifted ^ second
}

#[cfg(test)]
mod tests;
