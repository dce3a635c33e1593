//! Leases: how long each lives, and the keys that go with it.
//!
//! The table stands in memory and in the store. It knows no clock: that a lease ran out is decided by the leader and
//! comes as a command. What a leader had before it when it decided travels along (a term, and which grant it meant);
//! the table holds it against what is there, so that no decision of an earlier leader, nor one about an earlier lease
//! of the same ID, takes effect late.
//!
//! Invariants: a key is in the set of exactly the lease that its newest record names; every change of the table is in
//! the batch of the entry that made it, and in `changes`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvorum_model::{Error, LeaseProof, LeaseRemainder, limits};

use crate::layout::{LEASE, corrupt};
use crate::state::{Fields, prefixed};
use crate::store::{StoreError, View};

const GRANT: u8 = b'g';
const KEY: u8 = b'k';
const PREFIX_BYTES: usize = 2;
const ID_BYTES: usize = 8;

type Write = (Bytes, Option<Bytes>);

/// One lease as every replica has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its ID, not 0.
    pub id: i64,
    /// How long it lives after a renewal, in seconds.
    pub ttl_s: i64,
    /// What remained of it at the last checkpoint, in seconds; 0: it was renewed since, or never checkpointed.
    pub remaining_s: i64,
    /// The index of the entry that granted it.
    pub granted: u64,
    /// The time of that entry, in ms.
    pub granted_ms: u64,
}

/// What an entry did to the leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// A new one.
    Granted(LeaseRecord),
    /// Its remainder is another.
    Checkpointed {
        /// The lease.
        id: i64,
        /// In seconds; 0: all of its TTL.
        remaining_s: i64,
    },
    /// It is gone, and its keys are.
    Revoked(i64),
}

#[derive(Debug)]
struct Lease {
    record: LeaseRecord,
    keys: BTreeSet<Bytes>,
}

/// All leases. See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<i64, Lease>,
    /// What happened since the applier took it last.
    pub changes: Vec<LeaseChange>,
}

impl Leases {
    /// Whether a put may name it.
    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// The keys of a lease, in order; none if there is no such lease.
    pub fn keys(&self, id: i64) -> Vec<Bytes> {
        let keys = self.leases.get(&id).map(|lease| &lease.keys);
        keys.into_iter().flatten().cloned().collect()
    }

    /// All of them, by ID.
    pub fn records(&self) -> Vec<LeaseRecord> {
        self.leases.values().map(|lease| lease.record).collect()
    }

    /// Grants a lease; `record.ttl_s` is raised to `ttl_s_min`.
    pub fn grant(
        &mut self,
        mut record: LeaseRecord,
        ttl_s_min: i64,
        writes: &mut Vec<Write>,
    ) -> Result<LeaseRecord, Error> {
        if record.id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if record.ttl_s > limits::LEASE_TTL_S_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&record.id) {
            return Err(Error::LeaseExists);
        }
        record.ttl_s = record.ttl_s.max(ttl_s_min);
        writes.push((grant_key(record.id), Some(encode(&record))));
        self.changes.push(LeaseChange::Granted(record));
        let keys = BTreeSet::new();
        self.leases.insert(record.id, Lease { record, keys });
        Ok(record)
    }

    /// The keys of a lease that is to end, in order; `None` if `expiry` proves nothing any more and it stays.
    pub fn ending(
        &self,
        id: i64,
        expiry: Option<LeaseProof>,
        term: u64,
    ) -> Result<Option<Vec<Bytes>>, Error> {
        let lease = self.leases.get(&id).ok_or(Error::LeaseNotFound)?;
        let holds = expiry.is_none_or(|proof| proof.term == term && proof.granted == lease.record.granted);
        Ok(holds.then(|| lease.keys.iter().cloned().collect()))
    }

    /// Removes a lease whose keys are deleted.
    ///
    /// # Panics
    /// If a key is attached to it.
    pub fn remove(&mut self, id: i64, writes: &mut Vec<Write>) {
        let gone = self.leases.remove(&id);
        assert!(
            gone.is_some_and(|lease| lease.keys.is_empty()),
            "a lease ends after its keys"
        );
        writes.push((grant_key(id), None));
        self.changes.push(LeaseChange::Revoked(id));
    }

    /// Takes remainders that a leader of `measured_in` found, if that is the term of the entry that brings them.
    pub fn checkpoint(
        &mut self,
        (measured_in, term): (u64, u64),
        remainders: &[LeaseRemainder],
        writes: &mut Vec<Write>,
    ) {
        if measured_in != term {
            return;
        }
        for remainder in remainders {
            let Some(lease) = self.leases.get_mut(&remainder.id) else {
                continue;
            };
            let record = &mut lease.record;
            if record.granted != remainder.granted {
                continue;
            }
            record.remaining_s = remainder.remaining_s.clamp(0, record.ttl_s);
            writes.push((grant_key(record.id), Some(encode(record))));
            self.changes.push(LeaseChange::Checkpointed {
                id: record.id,
                remaining_s: record.remaining_s,
            });
        }
    }

    /// A key's newest record named the lease `before` and names `now`; 0: none.
    pub fn moved(&mut self, key: &Bytes, before: i64, now: i64, writes: &mut Vec<Write>) {
        if before == now {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&before) {
            lease.keys.remove(key);
            writes.push((attachment_key(before, key), None));
        }
        if now != 0 {
            let lease = self
                .leases
                .get_mut(&now)
                .expect("a put that names no lease is refused before");
            // It stays for long: without the memory of the value beside it.
            lease.keys.insert(Bytes::copy_from_slice(key));
            writes.push((attachment_key(now, key), Some(Bytes::new())));
        }
    }

    /// Reads what the store holds.
    pub fn load(view: &impl View) -> Result<Leases, StoreError> {
        let mut leases = Leases::default();
        for record in stored_leases(view) {
            let record = record?;
            let keys = BTreeSet::new();
            leases.leases.insert(record.id, Lease { record, keys });
        }
        for item in prefixed(view, &[LEASE, KEY]) {
            let (stored, _) = item?;
            let id = id_of(&stored)?;
            let lease = leases
                .leases
                .get_mut(&id)
                .ok_or_else(|| corrupt("a key is attached to a lease that is not there"))?;
            lease
                .keys
                .insert(Bytes::copy_from_slice(&stored[PREFIX_BYTES + ID_BYTES..]));
        }
        Ok(leases)
    }
}

/// The leases in a view.
pub(crate) fn stored_leases(view: &impl View) -> impl Iterator<Item = Result<LeaseRecord, StoreError>> + '_ {
    prefixed(view, &[LEASE, GRANT]).map(|item| {
        let (key, record) = item?;
        decode(id_of(&key)?, &record)
    })
}

/// One lease in a view.
pub(crate) fn stored_lease(view: &impl View, id: i64) -> Result<Option<LeaseRecord>, StoreError> {
    let record = view.get(&grant_key(id))?;
    record.map(|record| decode(id, &record)).transpose()
}

/// The keys of a lease in a view, in order.
pub(crate) fn stored_keys(view: &impl View, id: i64) -> Result<Vec<Bytes>, StoreError> {
    use std::ops::Bound::{Excluded, Unbounded};
    // User keys are never empty, so that all of them are above the bare prefix.
    let prefix = attachment_key(id, b"");
    let mut keys = Vec::new();
    for item in view.range(Excluded(prefix.clone()), Unbounded) {
        let (key, _) = item?;
        if !key.starts_with(&prefix) {
            break;
        }
        keys.push(key.slice(prefix.len()..));
    }
    Ok(keys)
}

fn encode(record: &LeaseRecord) -> Bytes {
    let mut out = Vec::with_capacity(32);
    out.extend_from_slice(&record.ttl_s.to_le_bytes());
    out.extend_from_slice(&record.remaining_s.to_le_bytes());
    out.extend_from_slice(&record.granted.to_le_bytes());
    out.extend_from_slice(&record.granted_ms.to_le_bytes());
    out.into()
}

fn decode(id: i64, record: &[u8]) -> Result<LeaseRecord, StoreError> {
    let mut fields = Fields(record);
    let record = LeaseRecord {
        id,
        ttl_s: fields.u64()? as i64,
        remaining_s: fields.u64()? as i64,
        granted: fields.u64()?,
        granted_ms: fields.u64()?,
    };
    fields.end()?;
    Ok(record)
}

fn grant_key(id: i64) -> Bytes {
    let mut out = Vec::with_capacity(PREFIX_BYTES + ID_BYTES);
    out.extend_from_slice(&[LEASE, GRANT]);
    out.extend_from_slice(&ordered(id));
    out.into()
}

fn attachment_key(id: i64, key: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(PREFIX_BYTES + ID_BYTES + key.len());
    out.extend_from_slice(&[LEASE, KEY]);
    out.extend_from_slice(&ordered(id));
    out.extend_from_slice(key);
    out.into()
}

/// Bytes that order as the numbers do.
fn ordered(id: i64) -> [u8; ID_BYTES] {
    ((id ^ i64::MIN) as u64).to_be_bytes()
}

fn id_of(stored: &[u8]) -> Result<i64, StoreError> {
    stored
        .get(PREFIX_BYTES..PREFIX_BYTES + ID_BYTES)
        .and_then(|id| id.try_into().ok())
        .map(|id| u64::from_be_bytes(id) as i64 ^ i64::MIN)
        .ok_or_else(|| corrupt("a lease's key is too short"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{Batch, MemStore, Store};

    fn record(id: i64, ttl_s: i64, granted: u64) -> LeaseRecord {
        LeaseRecord {
            id,
            ttl_s,
            remaining_s: 0,
            granted,
            granted_ms: 1,
        }
    }

    fn proof(term: u64, granted: u64) -> Option<LeaseProof> {
        Some(LeaseProof { term, granted })
    }

    #[test]
    fn grants_are_checked_and_short_ones_raised() {
        let (mut leases, mut writes) = (Leases::default(), Vec::new());
        let mut grant = |id, ttl_s| leases.grant(record(id, ttl_s, 5), 2, &mut writes);
        assert_eq!(grant(7, 10).unwrap().ttl_s, 10);
        assert_eq!(grant(-7, -3).unwrap().ttl_s, 2);
        assert_eq!(grant(7, 10), Err(Error::LeaseExists));
        assert_eq!(grant(0, 10), Err(Error::LeaseNotFound));
        assert_eq!(
            grant(8, limits::LEASE_TTL_S_MAX + 1),
            Err(Error::LeaseTtlTooLarge)
        );
        assert_eq!(
            grant(8, limits::LEASE_TTL_S_MAX).unwrap().ttl_s,
            limits::LEASE_TTL_S_MAX
        );
    }

    /// An expiry that an earlier leader decided, or that meant an earlier lease of the same ID, comes too late.
    #[test]
    fn late_decisions_of_leaders_change_nothing() {
        let (mut leases, mut writes) = (Leases::default(), Vec::new());
        leases.grant(record(7, 10, 5), 2, &mut writes).unwrap();
        assert_eq!(leases.ending(7, proof(3, 5), 4), Ok(None));
        assert_eq!(leases.ending(7, proof(4, 4), 4), Ok(None));
        assert_eq!(leases.ending(7, proof(4, 5), 4), Ok(Some(vec![])));
        assert_eq!(leases.ending(7, None, 4), Ok(Some(vec![])));
        assert_eq!(leases.ending(8, None, 4), Err(Error::LeaseNotFound));
        let remainder = |granted| LeaseRemainder {
            id: 7,
            granted,
            remaining_s: 3,
        };
        let before = writes.len();
        leases.checkpoint((3, 4), &[remainder(5)], &mut writes);
        leases.checkpoint((4, 4), &[remainder(4)], &mut writes);
        assert_eq!((writes.len(), leases.records()[0].remaining_s), (before, 0));
        leases.checkpoint((4, 4), &[remainder(5)], &mut writes);
        assert_eq!((writes.len(), leases.records()[0].remaining_s), (before + 1, 3));
    }

    #[test]
    fn the_store_holds_the_table() {
        let (mut leases, mut writes) = (Leases::default(), Vec::new());
        for id in [7, 8, i64::MIN] {
            leases.grant(record(id, 10, 5), 2, &mut writes).unwrap();
        }
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"\0b"));
        leases.moved(&a, 0, 7, &mut writes);
        leases.moved(&b, 0, 7, &mut writes);
        leases.moved(&a, 7, 8, &mut writes);
        let store = MemStore::new();
        store.write(Batch { writes, mark: 1 }).unwrap();
        let view = store.view();
        assert_eq!(stored_keys(&view, 7), Ok(vec![b.clone()]));
        assert_eq!(stored_keys(&view, 8), Ok(vec![a]));
        assert_eq!(stored_keys(&view, 9), Ok(vec![]));
        assert_eq!(stored_lease(&view, 8), Ok(Some(record(8, 10, 5))));
        assert_eq!(stored_lease(&view, 9), Ok(None));
        let loaded = Leases::load(&view).unwrap();
        assert_eq!(loaded.records(), leases.records());
        assert_eq!(loaded.ending(7, None, 1), Ok(Some(vec![b])));
    }
}
