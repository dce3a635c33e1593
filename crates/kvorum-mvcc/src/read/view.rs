//! Readers: shared, on any thread, never in the applier's way.

use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kvorum_model::{
    Alarm, Event, EventKind, KeyRange, KeyValue, RangeRequest, RangeResponse, RequestOp, ResponseOp,
    Revision, TxnRequest, TxnResponse,
};

use super::{Found, ReadError, Scan, Source, answer_range, check_bounds, check_revision, holds, kv_bytes};
use super::{check_revision_in_txn, newest, point_at, scan_at};
use crate::auth::AuthState;
use crate::cache::{HeadCache, KeyFilter, Known, detached, hash_of};
use crate::layout::{Change, data_key, history_key, read_change, read_record, record_sub};
use crate::leases::{LeaseRecord, stored_keys, stored_lease, stored_leases};
use crate::snapshot::SnapshotReader;
use crate::state::{ClusterState, State};
use crate::store::{Store, StoreError, View};

/// One published state: everything in it is of the same applied entry.
pub(crate) struct Published<V> {
    pub view: V,
    pub state: State,
    pub configuration: Bytes,
    pub cluster: Arc<ClusterState>,
    pub auth: Arc<AuthState>,
    /// Compactions up to this revision are removed from the store, too.
    pub removed: Revision,
    /// All keys of the view, once they are gathered.
    pub filter: Option<Arc<KeyFilter>>,
}

/// What the applier and the readers share.
pub(crate) struct Shared<V> {
    pub published: Mutex<Arc<Published<V>>>,
    pub cache: HeadCache,
}

impl<V> Shared<V> {
    pub fn published(&self) -> Arc<Published<V>> {
        self.published
            .lock()
            .expect("no holder of the lock panics")
            .clone()
    }

    pub fn publish(&self, published: Published<V>) {
        let published = Arc::new(published);
        let old = std::mem::replace(
            &mut *self.published.lock().expect("no holder of the lock panics"),
            published,
        );
        // Dropped outside the lock: closing a view may take the engine's own locks.
        drop(old);
    }
}

/// Gives views of the newest published state, on any thread, without waiting for the applier.
pub struct Reader<S: Store> {
    shared: Arc<Shared<S::View>>,
}

impl<S: Store> Clone for Reader<S> {
    fn clone(&self) -> Self {
        Reader {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: Store> std::fmt::Debug for Reader<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("state", &self.shared.published().state)
            .finish()
    }
}

impl<S: Store> Reader<S> {
    pub(crate) fn new(shared: Arc<Shared<S::View>>) -> Self {
        Reader { shared }
    }

    /// The state as of the last applied batch. It never changes; take another for newer data, and drop it soon: the
    /// store keeps all that an open view sees, and may end views that live too long.
    pub fn view(&self) -> ReadView<S> {
        ReadView {
            published: self.shared.published(),
            shared: Arc::clone(&self.shared),
        }
    }
}

/// One consistent state of everything. Cheap to clone.
pub struct ReadView<S: Store> {
    published: Arc<Published<S::View>>,
    shared: Arc<Shared<S::View>>,
}

impl<S: Store> Clone for ReadView<S> {
    fn clone(&self) -> Self {
        ReadView {
            published: Arc::clone(&self.published),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: Store> std::fmt::Debug for ReadView<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadView")
            .field("state", &self.published.state)
            .finish()
    }
}

/// A piece of a range, see [`ReadView::page`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The records, in key order.
    pub kvs: Vec<KeyValue>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<Bytes>,
}

/// A piece of history, see [`ReadView::history`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryPage {
    /// The changes that were wanted, in revision order.
    pub events: Vec<Event>,
    /// Everything wanted up to this revision is in `events`.
    pub through: Revision,
}

impl<S: Store> ReadView<S> {
    /// The current revision of this state: what answers carry in their header.
    pub fn revision(&self) -> Revision {
        self.published.state.revision
    }

    /// The last compaction, 0 for none: older revisions cannot be read, this one can.
    pub fn compacted(&self) -> Revision {
        self.published.state.compacted
    }

    /// Compactions up to this revision are removed from the store, too ("physical" in etcd's words).
    pub fn removed(&self) -> Revision {
        self.published.removed
    }

    /// Term and index of the last applied entry.
    pub fn applied(&self) -> (u64, u64) {
        (self.published.state.term, self.published.state.index)
    }

    /// The latest time of an applied entry, in ms.
    pub fn time_ms(&self) -> u64 {
        self.published.state.time_ms
    }

    /// How many keys there are.
    pub fn live_keys(&self) -> u64 {
        self.published.state.live_keys
    }

    /// The chained digest of all applied entries.
    pub fn digest(&self) -> u128 {
        self.published.state.digest
    }

    /// The members and settings.
    pub fn cluster(&self) -> Arc<ClusterState> {
        Arc::clone(&self.published.cluster)
    }

    /// Users, roles and permissions.
    pub fn auth(&self) -> Arc<AuthState> {
        Arc::clone(&self.published.auth)
    }

    /// Whether an alarm of this kind stands.
    pub fn has_alarm(&self, alarm: Alarm) -> bool {
        self.published.cluster.has_alarm(alarm)
    }

    /// The configuration's bytes as the last `Payload::Config` brought them.
    pub fn configuration(&self) -> Bytes {
        self.published.configuration.clone()
    }

    /// The newest record of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, ReadError> {
        let key = Bytes::copy_from_slice(key);
        check_bounds(&KeyRange::point(key.clone()))?;
        Ok(self.point(&key, None)?)
    }

    /// One lease.
    pub fn lease(&self, id: i64) -> Result<Option<LeaseRecord>, ReadError> {
        Ok(stored_lease(&self.published.view, id)?)
    }

    /// The keys that go with a lease, in key order; none if there is no such lease.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, ReadError> {
        Ok(stored_keys(&self.published.view, id)?)
    }

    /// All leases.
    pub fn leases(&self) -> Result<Vec<LeaseRecord>, ReadError> {
        Ok(stored_leases(&self.published.view).collect::<Result<_, _>>()?)
    }

    /// Answers a read. The request must have been validated; `count` walks over the whole range, as it is the
    /// number of all its keys.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        self.range_within(request, usize::MAX)
    }

    /// As [`ReadView::range`], but gives up when the records take more than `bytes_max` in memory.
    pub fn range_within(&self, request: &RangeRequest, bytes_max: usize) -> Result<RangeResponse, ReadError> {
        if let Some(answer) = self.whole_keyspace(request, bytes_max)? {
            return Ok(answer);
        }
        answer_range(self, request, bytes_max)
    }

    /// Answers a transaction that only reads ([`TxnRequest::is_read_only`]) without the log.
    pub fn txn(&self, request: &TxnRequest, bytes_max: usize) -> Result<TxnResponse, ReadError> {
        debug_assert!(request.is_read_only());
        let mut succeeded = true;
        for compare in &request.compare {
            succeeded = succeeded && holds(self, compare)?;
        }
        let ops = if succeeded {
            &request.success
        } else {
            &request.failure
        };
        let mut left = bytes_max;
        let mut responses = Vec::new();
        for op in ops {
            if let RequestOp::Range(range) = op {
                check_revision_in_txn(range.revision, self.revision(), self.compacted())?;
                let too_large = |error| match error {
                    ReadError::TooLarge { .. } => ReadError::TooLarge { bytes_max },
                    other => other,
                };
                let response = self.range_within(range, left).map_err(too_large)?;
                left = left.saturating_sub(response.kvs.iter().map(kv_bytes).sum());
                responses.push(ResponseOp::Range(response));
            }
        }
        Ok(TxnResponse { succeeded, responses })
    }

    /// The records of a range in key order at a revision (0 or less: the newest of this view), with bounded memory:
    /// for exports and streams on a thread of their own.
    pub fn scan(&self, range: &KeyRange, revision: Revision) -> Result<Scan<'_, S::View>, ReadError> {
        check_bounds(range)?;
        let at = check_revision(revision, self.revision(), self.compacted())?;
        Ok(Scan(scan_at(
            &self.published.view,
            range,
            at.unwrap_or(self.revision()),
        )))
    }

    /// As [`ReadView::scan`], one piece a call: at most `records_max` records (at least one), and no further record
    /// once they take `bytes_max`. The next piece is the page of the same range with `key` set to `next`.
    pub fn page(
        &self,
        range: &KeyRange,
        revision: Revision,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Page, ReadError> {
        let mut page = Page::default();
        let mut bytes = 0;
        for kv in self.scan(range, revision)? {
            let kv = kv?;
            if !page.kvs.is_empty() && (page.kvs.len() >= records_max || bytes >= bytes_max) {
                page.next = Some(kv.key);
                break;
            }
            bytes += kv_bytes(&kv);
            page.kvs.push(kv);
        }
        Ok(page)
    }

    pub(super) fn store_view(&self) -> &S::View {
        &self.published.view
    }

    /// A snapshot of this state, to be read on any thread.
    pub fn snapshot(&self) -> SnapshotReader<S::View> {
        SnapshotReader::new(&self.published)
    }

    /// The changes from revision `from` on, for as long as at most `changes_max` are looked at (whole revisions; at
    /// least one) and those that are `wanted` take at most about `bytes_max`. `wanted` is asked with key, kind and
    /// revision, and says whether the event is wanted, and whether with the record before it.
    ///
    /// Refused with `Compacted` if `from` is below the last compaction.
    pub fn history(
        &self,
        from: Revision,
        changes_max: usize,
        bytes_max: usize,
        mut wanted: impl FnMut(&[u8], EventKind, Revision) -> Wanted,
    ) -> Result<HistoryPage, ReadError> {
        if from < self.compacted() {
            return Err(kvorum_model::Error::Compacted.into());
        }
        let mut page = HistoryPage {
            events: Vec::new(),
            through: from - 1,
        };
        let (mut looked_at, mut bytes) = (0, 0);
        let end = history_key(self.revision() + 1, 0);
        let changes = self
            .published
            .view
            .range(Bound::Included(history_key(from, 0)), Bound::Excluded(end));
        let mut reading = from;
        for item in changes {
            let (key, record) = item?;
            let change = read_change(&key, &record)?;
            if change.main > reading {
                page.through = change.main - 1;
                if looked_at >= changes_max || bytes >= bytes_max {
                    return Ok(page);
                }
                reading = change.main;
            }
            looked_at += 1;
            let wanted = wanted(&change.key, change.kind, change.main);
            if wanted != Wanted::No {
                // It may wait in a stream for long: without the blocks of the store that it lies in.
                let mut event = self.event(change, wanted == Wanted::WithPrevious)?;
                event.kv = detached(&event.kv);
                event.prev_kv = event.prev_kv.as_ref().map(detached);
                bytes += crate::watch::event_bytes(&event);
                page.events.push(event);
            }
        }
        page.through = self.revision().max(page.through);
        Ok(page)
    }

    fn event(&self, change: Change, with_previous: bool) -> Result<Event, StoreError> {
        let Change {
            main,
            kind,
            prev,
            key,
            ..
        } = change;
        let prev_kv = match prev {
            // etcd reads it at the revision before; it is gone if that is compacted.
            1.. if with_previous && main > self.compacted() => self.version(&key, prev)?,
            _ => None,
        };
        let kv = match kind {
            EventKind::Delete => KeyValue {
                key,
                mod_revision: main,
                ..KeyValue::default()
            },
            EventKind::Put => self
                .version(&key, main)?
                .ok_or_else(|| crate::layout::corrupt("a put in the history has no record"))?,
        };
        Ok(Event { kind, kv, prev_kv })
    }

    fn version(&self, key: &[u8], main: Revision) -> Result<Option<KeyValue>, StoreError> {
        let stored = data_key(key, main);
        match self.published.view.get(&stored)? {
            Some(record) => read_record(&stored, &record),
            None => Ok(None),
        }
    }

    /// All keys, in their order, now: the counter knows how many there are, so a limit ends the walk.
    fn whole_keyspace(
        &self,
        request: &RangeRequest,
        bytes_max: usize,
    ) -> Result<Option<RangeResponse>, ReadError> {
        let all = request.range.key.as_ref() == [0] && request.range.is_from_key();
        let newest = request.revision <= 0 || request.revision == self.revision();
        let plain = RangeRequest {
            range: request.range.clone(),
            limit: request.limit,
            revision: request.revision,
            keys_only: request.keys_only,
            count_only: request.count_only,
            ..RangeRequest::default()
        };
        let cut = request.count_only || request.limit > 0;
        if !(all && newest && cut && plain == *request) {
            return Ok(None);
        }
        let count = self.live_keys() as i64;
        if request.count_only {
            return Ok(Some(RangeResponse {
                kvs: Vec::new(),
                more: false,
                count,
            }));
        }
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        for kv in self.scan(&request.range, 0)?.take(limit) {
            let mut kv = kv?;
            if request.keys_only {
                kv.value.clear();
            }
            bytes += kv_bytes(&kv);
            if bytes > bytes_max {
                return Err(ReadError::TooLarge { bytes_max });
            }
            kvs.push(kv);
        }
        let more = count > kvs.len() as i64;
        Ok(Some(RangeResponse { kvs, more, count }))
    }
}

/// Whether an event is wanted from [`ReadView::history`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It is not.
    No,
    /// It is, without the record before it.
    Yes,
    /// It is, with the record before it.
    WithPrevious,
}

impl<S: Store> Source for ReadView<S> {
    fn revision(&self) -> Revision {
        self.published.state.revision
    }

    fn compacted(&self) -> Revision {
        self.published.state.compacted
    }

    fn live_keys(&self) -> u64 {
        self.published.state.live_keys
    }

    fn point(&self, key: &Bytes, at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        let (published, revision) = (&*self.published, self.revision());
        if let Some(at) = at.filter(|at| *at != revision) {
            return match point_at(&published.view, key, at)? {
                Some((stored, record)) => read_record(&stored, &record),
                None => Ok(None),
            };
        }
        let hash = hash_of(key);
        let hint = match self.shared.cache.get(key, hash, revision) {
            Known::Head(head) => return Ok(head.into_live()),
            Known::Hint(hint) => Some(hint),
            Known::Nothing => None,
        };
        let Some((stored, record)) = newest(&published.view, key, hash, published.filter.as_deref(), hint)?
        else {
            return Ok(None);
        };
        let kv = read_record(&stored, &record)?;
        if let Some(kv) = &kv {
            self.shared.cache.offer(kv, hash, record_sub(&record)?, revision);
        }
        Ok(kv)
    }

    fn each(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        visit: &mut dyn FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        for found in scan_at(&self.published.view, range, at.unwrap_or(self.revision())) {
            if visit(found?)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
