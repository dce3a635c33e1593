//! The store's keys and records, drawn in `docs/design/state-format.md`.
//!
//! ```text
//! d | esc(key) 00 01 | !main      → sub, record       every retained version, the newest of a key first
//! r | main | sub                  → kind, prev, key   every retained change, in revision order
//! s | session [| seq]             → session state
//! m | …                           → meta (see `state`)
//! l g | lease, l k | lease | key   leases and their keys (see `leases`)
//! a …                             users, roles and permissions (see `auth`)
//! ```
//! `esc` writes a zero byte as `00 FF`, so that encoded keys order as raw keys do. In keys, integers are
//! big-endian (`!main`: all bits flipped); in records, little-endian. `prev` is the revision of the key's change
//! before, 0 if that is compacted or there was none: with it, removal after a compaction needs no search.

use std::ops::Bound;

use bytes::Bytes;
use kvorum_model::{EventKind, KeyRange, KeyValue, Revision};

use crate::store::StoreError;

pub(crate) const AUTH: u8 = b'a';
pub(crate) const DATA: u8 = b'd';
pub(crate) const HISTORY: u8 = b'r';
pub(crate) const SESSION: u8 = b's';
pub(crate) const LEASE: u8 = b'l';
pub(crate) const META: u8 = b'm';

const ZERO: [u8; 2] = [0, 0xff];
const TERMINATOR: [u8; 2] = [0, 1];
/// Directly above every key that begins with the same escaped key and the terminator.
const AFTER_TERMINATOR: [u8; 2] = [0, 2];

const LIVE: u8 = 1;
const LEASED: u8 = 2;
/// Flags and `sub` before the rest of a version's record.
const RECORD_HEADER_BYTES: usize = 5;
/// What a put has between that and a lease or the value.
const REVISIONS_BYTES: usize = 16;
/// Kind and `prev` before the key in a history record.
const HISTORY_HEADER_BYTES: usize = 9;

/// A record that is not as this module writes it.
pub(crate) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_string())
}

fn escape(out: &mut Vec<u8>, key: &[u8]) {
    let mut rest = key;
    while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&rest[..zero]);
        out.extend_from_slice(&ZERO);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
}

/// The bytes that all versions of a key begin with.
pub(crate) fn data_prefix(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 12);
    out.push(DATA);
    escape(&mut out, key);
    out.extend_from_slice(&TERMINATOR);
    out
}

/// The key of one version.
pub(crate) fn data_key(key: &[u8], main: Revision) -> Bytes {
    let mut out = data_prefix(key);
    out.extend_from_slice(&(!(main as u64)).to_be_bytes());
    out.into()
}

/// All versions of the keys in a range; `None` if the range is empty.
pub(crate) fn data_bounds(range: &KeyRange) -> Option<(Bound<Bytes>, Bound<Bytes>)> {
    let from = data_prefix(&range.key);
    let to = if range.is_point() {
        after(from.clone())
    } else if range.is_from_key() {
        vec![DATA + 1]
    } else if range.end > range.key {
        data_prefix(&range.end)
    } else {
        return None;
    };
    Some((Bound::Included(from.into()), Bound::Excluded(to.into())))
}

/// The place after all versions of the key with this prefix.
pub(crate) fn after(mut prefix: Vec<u8>) -> Vec<u8> {
    let end = prefix.len() - TERMINATOR.len();
    prefix[end..].copy_from_slice(&AFTER_TERMINATOR);
    prefix
}

/// Splits a version's key into the prefix of its key and the revision.
pub(crate) fn split_data_key(stored: &[u8]) -> Result<(&[u8], Revision), StoreError> {
    let Some((prefix, main)) = stored.split_last_chunk::<8>() else {
        return Err(corrupt("a version's key is too short"));
    };
    if prefix.len() < 1 + TERMINATOR.len() || prefix[0] != DATA || !prefix.ends_with(&TERMINATOR) {
        return Err(corrupt("a version's key has no terminator"));
    }
    Ok((prefix, !u64::from_be_bytes(*main) as Revision))
}

/// The key that a version's key names; shares the bytes unless there are zeros in it.
pub(crate) fn raw_key(stored: &Bytes) -> Result<Bytes, StoreError> {
    let (prefix, _) = split_data_key(stored)?;
    let escaped = 1..prefix.len() - TERMINATOR.len();
    let bytes = &stored[escaped.clone()];
    if !bytes.contains(&0) {
        return Ok(stored.slice(escaped));
    }
    let mut key = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        if *byte == 0 && rest.next() != Some(&ZERO[1]) {
            return Err(corrupt("a key is not escaped"));
        }
        key.push(*byte);
    }
    Ok(key.into())
}

/// What a version's record says: the key's state from its revision on; `None`: deleted.
pub(crate) fn read_record(stored_key: &Bytes, record: &Bytes) -> Result<Option<KeyValue>, StoreError> {
    if !is_live(record)? {
        return Ok(None);
    }
    let (_, main) = split_data_key(stored_key)?;
    read_live(raw_key(stored_key)?, main, record).map(Some)
}

/// Whether a version's record is a put.
pub(crate) fn is_live(record: &[u8]) -> Result<bool, StoreError> {
    match record.first() {
        Some(0) if record.len() == RECORD_HEADER_BYTES => Ok(false),
        Some(&flags) if flags & LIVE != 0 && flags & !(LIVE | LEASED) == 0 => Ok(true),
        _ => Err(corrupt("a version's record has unknown flags")),
    }
}

/// The number of the version's change within its revision.
pub(crate) fn record_sub(record: &[u8]) -> Result<u32, StoreError> {
    let sub = record
        .get(1..RECORD_HEADER_BYTES)
        .ok_or_else(|| corrupt("a version's record is too short"))?;
    Ok(u32::from_le_bytes(sub.try_into().expect("four bytes")))
}

fn read_live(key: Bytes, main: Revision, record: &Bytes) -> Result<KeyValue, StoreError> {
    let leased = record[0] & LEASED != 0;
    let lease_at = RECORD_HEADER_BYTES + REVISIONS_BYTES;
    let value_at = if leased { lease_at + 8 } else { lease_at };
    if record.len() < value_at {
        return Err(corrupt("a version's record is too short"));
    }
    Ok(KeyValue {
        key,
        create_revision: i64_at(record, RECORD_HEADER_BYTES),
        mod_revision: main,
        version: i64_at(record, RECORD_HEADER_BYTES + 8),
        lease: if leased { i64_at(record, lease_at) } else { 0 },
        value: record.slice(value_at..),
    })
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The key of one change.
pub(crate) fn history_key(main: Revision, sub: u32) -> Bytes {
    let mut out = Vec::with_capacity(13);
    push_history_key(&mut out, main, sub);
    out.into()
}

fn push_history_key(out: &mut Vec<u8>, main: Revision, sub: u32) {
    out.push(HISTORY);
    out.extend_from_slice(&(main as u64).to_be_bytes());
    out.extend_from_slice(&sub.to_be_bytes());
}

/// One change, as its history record tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub main: Revision,
    pub sub: u32,
    pub kind: EventKind,
    /// The revision of the key's change before; see the module's documentation.
    pub prev: Revision,
    pub key: Bytes,
}

/// Reads a history record.
pub(crate) fn read_change(stored_key: &[u8], record: &Bytes) -> Result<Change, StoreError> {
    let key: &[u8; 13] = stored_key
        .try_into()
        .map_err(|_| corrupt("a change's key has another length"))?;
    if record.len() < HISTORY_HEADER_BYTES {
        return Err(corrupt("a change's record is too short"));
    }
    let kind = match record[0] {
        0 => EventKind::Delete,
        1 => EventKind::Put,
        _ => return Err(corrupt("a change is of an unknown kind")),
    };
    Ok(Change {
        main: u64::from_be_bytes(key[1..9].try_into().expect("eight bytes")) as Revision,
        sub: u32::from_be_bytes(key[9..].try_into().expect("four bytes")),
        kind,
        prev: i64_at(record, 1),
        key: record.slice(HISTORY_HEADER_BYTES..),
    })
}

/// The two writes of one change, and the state that they leave the key in.
pub(crate) struct Written {
    pub data: (Bytes, Bytes),
    pub history: (Bytes, Bytes),
    /// After a put: the new record, in the memory of the writes.
    pub kv: KeyValue,
}

/// Encodes a put: one buffer for all four byte strings. `kv` says what the record becomes.
pub(crate) fn write_put(kv: &KeyValue, sub: u32, prev: Revision) -> Written {
    let zeros = kv.key.iter().filter(|byte| **byte == 0).count();
    let data_len = 1 + kv.key.len() + zeros + TERMINATOR.len() + 8;
    let history_at = data_len;
    let change_at = history_at + 13;
    let record_at = change_at + HISTORY_HEADER_BYTES + kv.key.len();
    let lease_bytes = if kv.lease != 0 { 8 } else { 0 };
    let value_at = record_at + RECORD_HEADER_BYTES + REVISIONS_BYTES + lease_bytes;

    let mut out = Vec::with_capacity(value_at + kv.value.len());
    push_data_key(&mut out, kv, zeros);
    push_history_key(&mut out, kv.mod_revision, sub);
    push_change(&mut out, EventKind::Put, prev, &kv.key);
    out.push(if kv.lease != 0 { LIVE | LEASED } else { LIVE });
    out.extend_from_slice(&sub.to_le_bytes());
    out.extend_from_slice(&kv.create_revision.to_le_bytes());
    out.extend_from_slice(&kv.version.to_le_bytes());
    if kv.lease != 0 {
        out.extend_from_slice(&kv.lease.to_le_bytes());
    }
    out.extend_from_slice(&kv.value);

    let bytes = Bytes::from(out);
    Written {
        data: (bytes.slice(..data_len), bytes.slice(record_at..)),
        history: (
            bytes.slice(history_at..change_at),
            bytes.slice(change_at..record_at),
        ),
        kv: KeyValue {
            key: bytes.slice(change_at + HISTORY_HEADER_BYTES..record_at),
            value: bytes.slice(value_at..),
            ..*kv
        },
    }
}

/// Encodes a deletion of `key` at `main`. `Written::kv` is the event's record.
pub(crate) fn write_delete(key: &Bytes, main: Revision, sub: u32, prev: Revision) -> Written {
    let kv = KeyValue {
        key: key.clone(),
        mod_revision: main,
        ..KeyValue::default()
    };
    let zeros = key.iter().filter(|byte| **byte == 0).count();
    let data_len = 1 + key.len() + zeros + TERMINATOR.len() + 8;
    let change_at = data_len + 13;
    let record_at = change_at + HISTORY_HEADER_BYTES + key.len();
    let mut out = Vec::with_capacity(record_at + RECORD_HEADER_BYTES);
    push_data_key(&mut out, &kv, zeros);
    push_history_key(&mut out, main, sub);
    push_change(&mut out, EventKind::Delete, prev, key);
    out.push(0);
    out.extend_from_slice(&sub.to_le_bytes());
    let bytes = Bytes::from(out);
    Written {
        data: (bytes.slice(..data_len), bytes.slice(record_at..)),
        history: (
            bytes.slice(data_len..change_at),
            bytes.slice(change_at..record_at),
        ),
        kv: KeyValue {
            key: bytes.slice(change_at + HISTORY_HEADER_BYTES..record_at),
            ..kv
        },
    }
}

fn push_data_key(out: &mut Vec<u8>, kv: &KeyValue, zeros: usize) {
    out.push(DATA);
    if zeros == 0 {
        out.extend_from_slice(&kv.key);
    } else {
        escape(out, &kv.key);
    }
    out.extend_from_slice(&TERMINATOR);
    out.extend_from_slice(&(!(kv.mod_revision as u64)).to_be_bytes());
}

fn push_change(out: &mut Vec<u8>, kind: EventKind, prev: Revision, key: &[u8]) {
    out.push(match kind {
        EventKind::Delete => 0,
        EventKind::Put => 1,
    });
    out.extend_from_slice(&prev.to_le_bytes());
    out.extend_from_slice(key);
}

/// The key of a session's own record.
pub(crate) fn session_key(id: u64) -> Bytes {
    let mut out = Vec::with_capacity(9);
    out.push(SESSION);
    out.extend_from_slice(&id.to_be_bytes());
    out.into()
}

/// The key of a reply that a session keeps.
pub(crate) fn session_reply_key(id: u64, seq: u64) -> Bytes {
    let mut out = Vec::with_capacity(17);
    out.push(SESSION);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&seq.to_be_bytes());
    out.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    fn random_key(rng: &mut Rng) -> Bytes {
        let length = 1 + rng.below(4);
        (0..length)
            .map(|_| [0, 1, 2, b'a', 0xfe, 0xff][rng.below(6) as usize])
            .collect::<Vec<u8>>()
            .into()
    }

    #[test]
    fn encoded_keys_order_as_raw_keys_and_newest_versions_come_first() {
        let mut rng = Rng::new(7);
        for _ in 0..20_000 {
            let (a, b) = (random_key(&mut rng), random_key(&mut rng));
            let (at, bt) = (1 + rng.below(3) as Revision, 1 + rng.below(3) as Revision);
            let (stored_a, stored_b) = (data_key(&a, at), data_key(&b, bt));
            assert_eq!(
                stored_a.cmp(&stored_b),
                a.cmp(&b).then(bt.cmp(&at)),
                "{a:?}@{at} {b:?}@{bt}"
            );
            assert_eq!(raw_key(&stored_a).unwrap(), a);
            assert_eq!(
                split_data_key(&stored_a).unwrap(),
                (data_prefix(&a).as_slice(), at)
            );
        }
    }

    #[test]
    fn bounds_hold_exactly_the_keys_of_a_range() {
        let mut rng = Rng::new(8);
        for _ in 0..20_000 {
            let end = if rng.below(4) == 0 {
                Bytes::new()
            } else {
                random_key(&mut rng)
            };
            let range = KeyRange {
                key: random_key(&mut rng),
                end,
            };
            let key = random_key(&mut rng);
            let stored = data_key(&key, 1 + rng.below(1000) as Revision);
            let inside = match data_bounds(&range) {
                Some((Bound::Included(from), Bound::Excluded(to))) => from <= stored && stored < to,
                _ => false,
            };
            assert_eq!(inside, range.contains(&key), "{range:?} {key:?}");
        }
    }

    #[test]
    fn what_a_put_or_delete_writes_reads_back() {
        let mut rng = Rng::new(9);
        for sub in 0..2_000 {
            let kv = KeyValue {
                key: random_key(&mut rng),
                create_revision: 3,
                mod_revision: 1 + rng.below(1 << 40) as Revision,
                version: 4,
                value: vec![7; rng.below(9) as usize].into(),
                lease: rng.below(2) as i64 * 77,
            };
            let put = write_put(&kv, sub, 5);
            assert_eq!(put.kv, kv);
            assert_eq!(put.data.0, data_key(&kv.key, kv.mod_revision));
            assert_eq!(put.history.0, history_key(kv.mod_revision, sub));
            assert_eq!(read_record(&put.data.0, &put.data.1).unwrap(), Some(kv.clone()));
            assert_eq!(record_sub(&put.data.1).unwrap(), sub);
            let change = read_change(&put.history.0, &put.history.1).unwrap();
            let (main, key) = (kv.mod_revision, kv.key.clone());
            assert_eq!(
                change,
                Change {
                    main,
                    sub,
                    kind: EventKind::Put,
                    prev: 5,
                    key: key.clone()
                }
            );

            let delete = write_delete(&key, main, sub, 9);
            assert_eq!(
                delete.kv,
                KeyValue {
                    key: key.clone(),
                    mod_revision: main,
                    ..KeyValue::default()
                }
            );
            assert_eq!(delete.data.0, put.data.0);
            assert_eq!(read_record(&delete.data.0, &delete.data.1).unwrap(), None);
            assert_eq!(record_sub(&delete.data.1).unwrap(), sub);
            let change = read_change(&delete.history.0, &delete.history.1).unwrap();
            assert_eq!(
                change,
                Change {
                    main,
                    sub,
                    kind: EventKind::Delete,
                    prev: 9,
                    key
                }
            );
        }
    }

    #[test]
    fn damaged_records_are_corrupt_not_a_panic() {
        let kv = KeyValue {
            key: Bytes::from_static(b"k\0"),
            version: 1,
            lease: 3,
            ..KeyValue::default()
        };
        let put = write_put(&kv, 0, 0);
        for cut in 0..put.data.0.len() {
            let short = put.data.0.slice(..cut);
            let _ = raw_key(&short);
            let _ = read_record(&short, &put.data.1);
        }
        for cut in 0..put.data.1.len() {
            assert!(read_record(&put.data.0, &put.data.1.slice(..cut)).is_err());
        }
        for cut in 0..HISTORY_HEADER_BYTES {
            assert!(read_change(&put.history.0, &put.history.1.slice(..cut)).is_err());
        }
        assert!(raw_key(&Bytes::from_static(b"d\0x\0\x0112345678")).is_err());
    }
}
