//! The state between two batches, and the changes of single keys to it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use kvorum_model::{
    DeleteRangeRequest, DeleteRangeResponse, Error, Event, EventKind, KeyRange, KeyValue, LeaseProof,
    PutRequest, PutResponse, Reply, Revision, limits,
};

use super::RevisionEvents;
use crate::auth::{AuthChange, AuthState};
use crate::cache::{Head, KeyFilter, Known, detached, hash_of};
use crate::layout::{read_record, record_sub, split_data_key, write_delete, write_put};
use crate::leases::{LeaseRecord, Leases};
use crate::read::{Found, ReadError, Shared, Source, check_bounds, newest, point_at, scan_at};
use crate::samples::Samples;
use crate::sessions::Sessions;
use crate::state::{ClusterState, State};
use crate::store::{StoreError, View};

/// What the applier works on. `pending` holds the newest state of each key whose writes are in `writes` and not yet
/// in the store; the store's view stands at `view_revision`.
pub(super) struct Core<V> {
    pub shared: Arc<Shared<V>>,
    pub view: V,
    pub view_revision: Revision,
    /// All keys of the store and of `pending`, once they are gathered.
    pub filter: Option<Arc<KeyFilter>>,
    /// The filter that is being filled.
    pub next_filter: Option<KeyFilter>,
    pub state: State,
    pub configuration: Bytes,
    pub cluster: Arc<ClusterState>,
    pub auth: Arc<AuthState>,
    pub samples: Samples,
    pub sessions: Sessions,
    pub leases: Leases,
    pub pending: BTreeMap<Bytes, Head>,
    pub writes: Vec<(Bytes, Option<Bytes>)>,
    pub events: Vec<RevisionEvents>,
    pub auth_changes: Vec<AuthChange>,
    /// Memory for digests.
    pub scratch: Vec<u8>,
}

/// A change that is decided and not yet written.
pub(super) struct Planned {
    pub key: Bytes,
    /// The new record without its revision; `None`: a deletion.
    pub put: Option<KeyValue>,
    pub old: Head,
}

impl<V: View> Core<V> {
    /// The empty state on the view that is published.
    pub fn new(shared: Arc<Shared<V>>) -> Self {
        let published = shared.published();
        Core {
            view: published.view.clone(),
            view_revision: published.state.revision,
            filter: None,
            next_filter: None,
            state: State::default(),
            configuration: Bytes::new(),
            cluster: Arc::default(),
            auth: Arc::default(),
            samples: Samples::default(),
            sessions: Sessions::default(),
            leases: Leases::default(),
            pending: BTreeMap::new(),
            writes: Vec::new(),
            events: Vec::new(),
            auth_changes: Vec::new(),
            scratch: Vec::new(),
            shared,
        }
    }

    /// The newest state of a key.
    pub fn head(&self, key: &Bytes) -> Result<Head, StoreError> {
        let hash = hash_of(key);
        let hint = match self.shared.cache.get(key, hash, Revision::MAX) {
            Known::Head(head) => return Ok(head),
            Known::Hint(hint) => Some(hint),
            Known::Nothing => None,
        };
        if let Some(head) = self.pending.get(key) {
            return Ok(head.clone());
        }
        let Some((stored, record)) = newest(&self.view, key, hash, self.filter.as_deref(), hint)? else {
            return Ok(Head::Absent);
        };
        // It will be kept: without the block of the store that it lies in.
        let (key, head) = match read_record(&stored, &record)?.as_ref().map(detached) {
            Some(kv) => (kv.key.clone(), Head::Live(kv)),
            None => (
                Bytes::copy_from_slice(key),
                Head::Deleted(split_data_key(&stored)?.1),
            ),
        };
        self.shared
            .cache
            .set(key, hash, head.clone(), record_sub(&record)?);
        Ok(head)
    }

    /// Decides a put. Refusals are etcd's, in its order.
    pub fn plan_put(&self, request: PutRequest) -> Result<(Planned, PutResponse), ReadError> {
        check_key(&request.key)?;
        self.check_lease(request.lease)?;
        let old = self.head(&request.key)?;
        plan_put(request, old).map_err(ReadError::from)
    }

    /// Whether a put may name this lease; 0 names none.
    pub fn check_lease(&self, id: i64) -> Result<(), Error> {
        if id == 0 || self.leases.contains(id) {
            Ok(())
        } else {
            Err(Error::LeaseNotFound)
        }
    }

    /// Grants a lease, as of the entry that is applied.
    pub fn grant_lease(&mut self, id: i64, ttl_s: i64) -> Result<Reply, Error> {
        let record = LeaseRecord {
            id,
            ttl_s,
            remaining_s: 0,
            granted: self.state.index,
            granted_ms: self.state.time_ms,
        };
        let ttl_s_min = limits::lease_ttl_s_min(self.cluster.election_timeout_ms);
        let LeaseRecord { id, ttl_s, .. } = self.leases.grant(record, ttl_s_min, &mut self.writes)?;
        Ok(Reply::LeaseGranted { id, ttl_s })
    }

    /// Ends a lease: its keys go, in key order and as one revision, and then it goes.
    pub fn revoke_lease(&mut self, id: i64, expiry: Option<LeaseProof>) -> Result<Reply, ReadError> {
        if let Some(keys) = self.leases.ending(id, expiry, self.state.term)? {
            let mut planned = Vec::with_capacity(keys.len());
            for key in keys {
                let old = self.head(&key)?;
                let is_attached = matches!(&old, Head::Live(kv) if kv.lease == id);
                assert!(is_attached, "a lease has exactly the keys that name it");
                planned.push(Planned { key, put: None, old });
            }
            self.write_all(planned);
            self.leases.remove(id, &mut self.writes);
        }
        Ok(Reply::LeaseRevoked)
    }

    /// Applies a put.
    pub fn put(&mut self, request: PutRequest) -> Result<PutResponse, ReadError> {
        let (planned, response) = self.plan_put(request)?;
        let mut events = Vec::with_capacity(1);
        self.write(planned, self.state.revision + 1, 0, &mut events);
        self.finish_revision(events);
        Ok(response)
    }

    /// Applies a deletion.
    pub fn delete_range(&mut self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, ReadError> {
        let (planned, response) = plan_delete(self, &request)?;
        self.write_all(planned);
        Ok(response)
    }

    /// Writes changes as one revision; none if there are none.
    pub fn write_all(&mut self, planned: Vec<Planned>) {
        let mut events = Vec::with_capacity(planned.len());
        for (sub, change) in (0u32..).zip(planned) {
            self.write(change, self.state.revision + 1, sub, &mut events);
        }
        if !events.is_empty() {
            self.finish_revision(events);
        }
    }

    fn write(&mut self, planned: Planned, main: Revision, sub: u32, events: &mut Vec<Event>) {
        let prev = planned.old.prev(self.state.compacted);
        let prev_kv = planned.old.into_live();
        let lease_before = prev_kv.as_ref().map_or(0, |kv| kv.lease);
        let hash = hash_of(&planned.key);
        let (written, kind, head) = match planned.put {
            Some(mut kv) => {
                kv.mod_revision = main;
                if prev_kv.is_none() {
                    kv.create_revision = main;
                    self.state.live_keys += 1;
                    self.note_key(hash);
                }
                let written = write_put(&kv, sub, prev);
                let head = Head::Live(written.kv.clone());
                (written, EventKind::Put, head)
            }
            None => {
                assert!(prev_kv.is_some(), "only a key that is there is deleted");
                self.state.live_keys -= 1;
                (
                    write_delete(&planned.key, main, sub, prev),
                    EventKind::Delete,
                    Head::Deleted(main),
                )
            }
        };
        let key = written.kv.key.clone();
        self.shared.cache.set(key.clone(), hash, head.clone(), sub);
        let before = self.pending.insert(key, head);
        assert!(
            before.is_none_or(|before| before.prev(0) != main),
            "a key is written once per revision"
        );
        self.writes.push((written.data.0, Some(written.data.1)));
        self.writes.push((written.history.0, Some(written.history.1)));
        self.leases
            .moved(&written.kv.key, lease_before, written.kv.lease, &mut self.writes);
        events.push(Event {
            kind,
            kv: written.kv,
            prev_kv,
        });
    }

    /// A key that may not be in the filters is written.
    fn note_key(&self, hash: u64) {
        for filter in self.filter.as_deref().into_iter().chain(&self.next_filter) {
            filter.add(hash);
        }
    }

    fn finish_revision(&mut self, events: Vec<Event>) {
        self.state.revision += 1;
        self.events.push(RevisionEvents {
            revision: self.state.revision,
            events: events.into(),
        });
    }

    /// The changes in `layers` (later ones over earlier ones) that lie in a range, over those that are pending.
    pub fn overlay<'a>(
        &'a self,
        own: Option<&'a BTreeMap<Bytes, Option<KeyValue>>>,
        range: &KeyRange,
    ) -> Vec<(&'a Bytes, Option<&'a KeyValue>)> {
        fn live(head: &Head) -> Option<&KeyValue> {
            if let Head::Live(kv) = head { Some(kv) } else { None }
        }
        let within = |key: &&Bytes| range.contains(key);
        let pending = self
            .pending
            .range(range.key.clone()..)
            .take_while(|(key, _)| within(key));
        let mut overlay: Vec<_> = pending.map(|(key, head)| (key, live(head))).collect();
        if let Some(own) = own {
            for (key, kv) in own.range(range.key.clone()..).take_while(|(key, _)| within(key)) {
                match overlay.binary_search_by(|(known, _)| (*known).cmp(key)) {
                    Ok(at) => overlay[at].1 = kv.as_ref(),
                    Err(at) => overlay.insert(at, (key, kv.as_ref())),
                }
            }
        }
        overlay
    }

    /// Walks over the newest records of a range: the store's, under `overlay`.
    pub fn merge(
        &self,
        range: &KeyRange,
        overlay: Vec<(&Bytes, Option<&KeyValue>)>,
        visit: &mut dyn FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        let mut over = overlay.into_iter().peekable();
        for found in scan_at(&self.view, range, Revision::MAX) {
            let found = found?;
            if over.peek().is_none() {
                if visit(found)?.is_break() {
                    return Ok(());
                }
                continue;
            }
            let below = found.into_kv()?;
            let mut hidden = false;
            while let Some((key, kv)) = over.next_if(|(key, _)| *key <= &below.key) {
                hidden |= *key == below.key;
                if let Some(kv) = kv
                    && visit(Found::Known(kv.clone()))?.is_break()
                {
                    return Ok(());
                }
            }
            if !hidden && visit(Found::Known(below))?.is_break() {
                return Ok(());
            }
        }
        for kv in over.filter_map(|(_, kv)| kv) {
            if visit(Found::Known(kv.clone()))?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A range at an older revision, for which the store's view must be new enough.
    pub fn each_at(
        &self,
        range: &KeyRange,
        at: Revision,
        visit: &mut dyn FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        self.assert_view_holds(at);
        for found in scan_at(&self.view, range, at) {
            if visit(found?)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// A key at an older revision, for which the store's view must be new enough.
    pub fn point_at(&self, key: &[u8], at: Revision) -> Result<Option<KeyValue>, StoreError> {
        self.assert_view_holds(at);
        match point_at(&self.view, key, at)? {
            Some((stored, record)) => read_record(&stored, &record),
            None => Ok(None),
        }
    }

    fn assert_view_holds(&self, at: Revision) {
        assert!(
            at <= self.view_revision,
            "the batch is written before a revision in it is read"
        );
    }
}

impl<V: View> Source for Core<V> {
    fn revision(&self) -> Revision {
        self.state.revision
    }

    fn compacted(&self) -> Revision {
        self.state.compacted
    }

    fn live_keys(&self) -> u64 {
        self.state.live_keys
    }

    fn point(&self, key: &Bytes, at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        match at {
            None => Ok(self.head(key)?.into_live()),
            Some(at) => self.point_at(key, at),
        }
    }

    fn each(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        visit: &mut dyn FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        match at {
            None => self.merge(range, self.overlay(None, range), visit),
            Some(at) => self.each_at(range, at, visit),
        }
    }
}

/// What no replica stores, whatever was validated.
pub(super) fn check_key(key: &[u8]) -> Result<(), Error> {
    let max = limits::KEY_BYTES_CEILING;
    match key.len() {
        0 => Err(Error::EmptyKey),
        bytes if bytes > max => Err(Error::KeyTooLarge {
            bytes: bytes as u64,
            max: max as u64,
        }),
        _ => Ok(()),
    }
}

/// Decides a put over a known state.
pub(super) fn plan_put(request: PutRequest, old: Head) -> Result<(Planned, PutResponse), Error> {
    let before = match &old {
        Head::Live(kv) => Some(kv),
        _ => None,
    };
    if before.is_none() && (request.ignore_value || request.ignore_lease) {
        return Err(Error::KeyNotFound);
    }
    let response = PutResponse {
        prev_kv: if request.prev_kv { before.cloned() } else { None },
    };
    let put = KeyValue {
        key: request.key.clone(),
        create_revision: before.map_or(0, |kv| kv.create_revision),
        mod_revision: 0,
        version: before.map_or(0, |kv| kv.version) + 1,
        value: match before {
            Some(kv) if request.ignore_value => kv.value.clone(),
            _ => request.value,
        },
        lease: match before {
            Some(kv) if request.ignore_lease => kv.lease,
            _ => request.lease,
        },
    };
    Ok((
        Planned {
            key: request.key,
            put: Some(put),
            old,
        },
        response,
    ))
}

/// Decides a deletion in a state.
pub(super) fn plan_delete(
    source: &impl Source,
    request: &DeleteRangeRequest,
) -> Result<(Vec<Planned>, DeleteRangeResponse), ReadError> {
    check_bounds(&request.range)?;
    let mut found = Vec::new();
    if request.range.is_point() {
        found.extend(source.point(&request.range.key, None)?);
    } else {
        source.each(&request.range, None, &mut |record| {
            // It goes into the event, and so stays for long: without the block of the store that it lies in.
            found.push(match record {
                Found::Known(kv) => kv,
                stored => detached(&stored.into_kv()?),
            });
            Ok(ControlFlow::Continue(()))
        })?;
    }
    let response = DeleteRangeResponse {
        deleted: found.len() as i64,
        prev_kvs: if request.prev_kv {
            found.clone()
        } else {
            Vec::new()
        },
    };
    let planned = found.into_iter().map(|kv| Planned {
        key: kv.key.clone(),
        put: None,
        old: Head::Live(kv),
    });
    Ok((planned.collect(), response))
}
