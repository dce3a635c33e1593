//! What watch streams are told of events: the hub's core, sans-IO. A server feeds it and moves its output.
//!
//! Promises (etcd's): a watcher is given every change of its range once, in revision order, all changes of one
//! revision in one message (unless it asked for fragments), and nothing before its `Created`; after a progress
//! message of revision R nothing at or before R comes.
//!
//! A watcher is *synced* while it has been given all up to the hub's revision; then it is served as revisions are
//! published. Where its stream has too much waiting, or it starts in the past, it is not: [`Hub::catch_up`] reads
//! for it from the ring of recent events, else from history. Only a compaction cancels a watcher.
//!
//! Faults survived: a stream that is not read costs its limit and one revision at most, and slows nobody.

mod index;
mod ring;
mod stream;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvorum_model::{Error, Event, KeyRange, Revision, limits};

use self::index::Index;
use self::ring::Ring;
use self::stream::{Delivery, Stream, Watcher};
use crate::machine::RevisionEvents;
use crate::read::{ReadError, ReadView, Reader, Wanted};
use crate::store::Store;

const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Sizes of a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubOptions {
    /// Memory for recent events, shared by all watchers, in bytes.
    pub ring_bytes: usize,
    /// What may wait on one stream, in bytes; one revision of one watcher may go beyond it.
    pub stream_bytes_max: usize,
    /// Above this size a message to a watcher that asked for fragments is divided, in bytes.
    pub fragment_bytes_max: usize,
}

impl Default for HubOptions {
    fn default() -> Self {
        HubOptions {
            ring_bytes: 64 << 20,
            stream_bytes_max: 1 << 20,
            fragment_bytes_max: limits::REQUEST_BYTES_MAX + 512 * 1024,
        }
    }
}

/// A stream of one client; it carries any number of watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A watcher on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct WatcherId {
    stream: StreamId,
    watch: i64,
}

/// A request to watch (`WatchCreateRequest`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which keys; an empty key means the smallest one, as in etcd.
    pub range: KeyRange,
    /// From which revision on; 0: after the current one.
    pub start_revision: Revision,
    /// The ID that the client wants; 0: one is chosen. -1 stands for no watcher and is refused as taken.
    pub watch_id: i64,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
    /// With each event, the record before it.
    pub prev_kv: bool,
    /// Take part in [`Hub::tick`].
    pub progress_notify: bool,
    /// Messages may be divided.
    pub fragment: bool,
}

/// A message for a stream. `revision` is for its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchOutput {
    /// The watcher exists; its events follow.
    Created {
        /// Its ID.
        watch_id: i64,
        /// The hub's revision: without a start revision, events after it follow.
        revision: Revision,
    },
    /// The watcher is gone, or (`created`) was refused.
    Canceled {
        /// Its ID; -1 for one that was refused.
        watch_id: i64,
        /// The hub's revision; 0 with `compact_revision`, as in etcd.
        revision: Revision,
        /// It was refused: the message answers its creation, too.
        created: bool,
        /// Why; empty if the client asked for it, or `compact_revision` says it.
        reason: Cow<'static, str>,
        /// Where a new watcher could start, if history that it needs is compacted; else 0.
        compact_revision: Revision,
    },
    /// Changes, in order; whole revisions, unless this or the message before it is a `fragment`.
    Events {
        /// Whose.
        watch_id: i64,
        /// The hub's revision.
        revision: Revision,
        /// What happened.
        events: Vec<Event>,
        /// More of the same message follows.
        fragment: bool,
    },
    /// Everything up to `revision` was sent.
    Progress {
        /// To whom; -1: to all watchers of the stream.
        watch_id: i64,
        /// Up to where.
        revision: Revision,
    },
}

/// How much [`Hub::catch_up`] reads in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUpBudget {
    /// Changes that are looked at.
    pub changes: usize,
    /// Bytes of events that are read from the store.
    pub bytes: usize,
}

impl Default for CatchUpBudget {
    fn default() -> Self {
        CatchUpBudget {
            changes: 10_000,
            bytes: 1 << 20,
        }
    }
}

/// All watch streams of one member. See the module's documentation.
#[derive(Debug)]
pub struct Hub {
    options: HubOptions,
    ring: Ring,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u64,
    index: Index,
    lagging: BTreeSet<WatcherId>,
    ready: BTreeSet<StreamId>,
    /// Streams that may owe an answer to a progress request.
    asking: BTreeSet<StreamId>,
    /// Numbers deliveries; never 0.
    round: u64,
}

impl Hub {
    /// A hub whose next revision is the one after `revision`: that of the state machine when it was opened.
    pub fn new(revision: Revision, options: HubOptions) -> Self {
        Hub {
            ring: Ring::new(revision, options.ring_bytes),
            options,
            streams: BTreeMap::new(),
            next_stream: 0,
            index: Index::default(),
            lagging: BTreeSet::new(),
            ready: BTreeSet::new(),
            asking: BTreeSet::new(),
            round: 0,
        }
    }

    /// The last published revision.
    pub fn revision(&self) -> Revision {
        self.ring.newest()
    }

    /// How many watchers there are, and how many of them lag.
    pub fn watchers(&self) -> (usize, usize) {
        (
            self.streams.values().map(|stream| stream.watchers.len()).sum(),
            self.lagging.len(),
        )
    }

    /// Events that wait to be taken, all streams together.
    pub fn pending_events(&self) -> usize {
        let streams = self.ready.iter().filter_map(|id| self.streams.get(id));
        streams.map(Stream::events).sum()
    }

    /// How many watchers a stream has.
    pub fn watchers_of(&self, stream: StreamId) -> usize {
        self.streams
            .get(&stream)
            .map_or(0, |stream| stream.watchers.len())
    }

    /// Whether so much waits on the stream that its requests should not be read for now.
    pub fn is_full(&self, stream: StreamId) -> bool {
        self.streams
            .get(&stream)
            .is_some_and(|stream| stream.bytes() >= self.options.stream_bytes_max)
    }

    /// A new stream.
    pub fn open(&mut self) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 1;
        self.streams.insert(id, Stream::default());
        id
    }

    /// Ends a stream with all its watchers; nothing is said on it.
    pub fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        for (watch, watcher) in stream.watchers {
            let watcher_id = WatcherId { stream: id, watch };
            self.index.remove(&watcher.range, watcher_id);
            self.lagging.remove(&watcher_id);
        }
        self.ready.remove(&id);
        self.asking.remove(&id);
    }

    /// Creates a watcher. The answer, and whatever follows, comes by [`Hub::take`]; one that starts in the past
    /// waits for [`Hub::catch_up`].
    pub fn create(&mut self, id: StreamId, mut request: WatchRequest) {
        let revision = self.revision();
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        self.ready.insert(id);
        if request.range.key.is_empty() {
            request.range.key = Bytes::from_static(&[0]);
        }
        if request.start_revision < 0 {
            return stream.refuse(revision, Error::Compacted.to_string());
        }
        let range = &request.range;
        if !range.is_point() && !range.is_from_key() && range.end <= range.key {
            return stream.refuse(revision, EMPTY_RANGE);
        }
        let Some(watch) = stream.allocate(request.watch_id) else {
            return stream.refuse(revision, DUPLICATE_ID);
        };
        let watcher_id = WatcherId { stream: id, watch };
        let watcher = Watcher::new(request, revision);
        stream.say(WatchOutput::Created {
            watch_id: watch,
            revision,
        });
        self.index.insert(&watcher.range, watcher_id);
        if !watcher.is_synced {
            self.lagging.insert(watcher_id);
        }
        stream.watchers.insert(watch, watcher);
    }

    /// Answers a request to watch that somebody else refused (permission denied): `reason` is the full error text.
    pub fn refuse(&mut self, id: StreamId, reason: impl Into<Cow<'static, str>>) {
        let revision = self.revision();
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.refuse(revision, reason);
            self.ready.insert(id);
        }
    }

    /// Ends a watcher at its client's wish; of an unknown one nothing is said.
    pub fn cancel(&mut self, id: StreamId, watch_id: i64) {
        let revision = self.revision();
        if self.remove(WatcherId {
            stream: id,
            watch: watch_id,
        }) {
            let (reason, compact_revision) = (Cow::Borrowed(""), 0);
            let output = WatchOutput::Canceled {
                watch_id,
                revision,
                created: false,
                reason,
                compact_revision,
            };
            self.say(id, output);
            self.answer_progress();
        }
    }

    /// Asks for a progress message to the whole stream. It is answered as soon as all watchers of the stream have
    /// all up to the hub's revision and have reached their start; a stream without watchers is not answered.
    pub fn progress_request(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.request_progress();
            self.asking.insert(id);
            self.answer_progress();
        }
    }

    /// The stream's progress interval has passed (the server times it, with etcd's jitter): tells the watchers that
    /// asked for it, are synced, and had no event since the last tick.
    pub fn tick(&mut self, id: StreamId) {
        let revision = self.revision();
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.tick(revision);
            if stream.has_output() {
                self.ready.insert(id);
            }
        }
    }

    /// New revisions, each once and in order, after the state machine has published them to readers.
    ///
    /// # Panics
    /// If a revision is left out or comes twice.
    pub fn publish(&mut self, revisions: &[RevisionEvents]) {
        self.round += 1;
        let Some(last) = revisions.last() else { return };
        for revision in revisions {
            self.ring.push(revision);
            if self.index.is_empty() {
                continue;
            }
            self.deliver(&revision.events, last.revision, |watcher| watcher.is_synced);
        }
        self.answer_progress();
    }

    /// The state machine was replaced by a snapshot of this revision: what lies between is read from its history.
    pub fn reset(&mut self, revision: Revision) {
        assert!(
            revision >= self.revision(),
            "a snapshot is never older than what was published"
        );
        let first_missed = self.revision() + 1;
        self.ring.reset(revision);
        for (id, stream) in &mut self.streams {
            for (watch, watcher) in &mut stream.watchers {
                if watcher.is_synced && watcher.next <= revision {
                    watcher.is_synced = false;
                    watcher.next = watcher.next.max(first_missed);
                    self.lagging.insert(WatcherId {
                        stream: *id,
                        watch: *watch,
                    });
                }
            }
        }
    }

    /// Serves watchers that lag and whose streams have room, within the budget: from the ring, else from history,
    /// which must be that of the state machine whose revisions were published. True: more can be done at once.
    pub fn catch_up<S: Store>(
        &mut self,
        reader: &Reader<S>,
        budget: CatchUpBudget,
    ) -> Result<bool, ReadError> {
        if self.lagging.is_empty() {
            return Ok(false);
        }
        let view = reader.view();
        let with_room = self.lagging_with_room();
        let served = self.cancel_compacted(with_room, view.compacted());
        let first = self.ring.first();
        let (near, far): (BTreeSet<_>, BTreeSet<_>) =
            served.into_iter().partition(|id| self.next_of(*id) >= first);
        if !near.is_empty() {
            self.catch_up_near(near, view.compacted(), budget);
        }
        if !far.is_empty() {
            self.catch_up_far(far, &view, budget)?;
        }
        self.answer_progress();
        Ok(!self.lagging_with_room().is_empty())
    }

    /// Everything that waits for a stream, in order.
    pub fn take(&mut self, id: StreamId) -> Vec<WatchOutput> {
        self.ready.remove(&id);
        let fragment_bytes_max = self.options.fragment_bytes_max;
        self.streams
            .get_mut(&id)
            .map(|stream| stream.take(fragment_bytes_max))
            .unwrap_or_default()
    }

    /// The streams for which [`Hub::take`] has something.
    pub fn streams_with_output(&self) -> impl Iterator<Item = StreamId> {
        self.ready.iter().copied()
    }

    /// Whether watchers lag whose streams have room: call [`Hub::catch_up`].
    pub fn can_catch_up(&self) -> bool {
        !self.lagging_with_room().is_empty()
    }

    fn lagging_with_room(&self) -> BTreeSet<WatcherId> {
        let max = self.options.stream_bytes_max;
        self.lagging
            .iter()
            .filter(|id| self.streams[&id.stream].has_room(max))
            .copied()
            .collect()
    }

    fn watcher(&mut self, id: WatcherId) -> &mut Watcher {
        let stream = self
            .streams
            .get_mut(&id.stream)
            .expect("a known watcher's stream is there");
        stream
            .watchers
            .get_mut(&id.watch)
            .expect("a known watcher is there")
    }

    fn next_of(&self, id: WatcherId) -> Revision {
        self.streams[&id.stream].watchers[&id.watch].next
    }

    fn say(&mut self, id: StreamId, output: WatchOutput) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.say(output);
            self.ready.insert(id);
        }
    }

    fn remove(&mut self, id: WatcherId) -> bool {
        let watcher = self
            .streams
            .get_mut(&id.stream)
            .and_then(|stream| stream.watchers.remove(&id.watch));
        let Some(watcher) = watcher else { return false };
        self.index.remove(&watcher.range, id);
        self.lagging.remove(&id);
        true
    }

    fn answer_progress(&mut self) {
        let revision = self.revision();
        let Hub {
            asking,
            streams,
            ready,
            ..
        } = self;
        asking.retain(|id| {
            let Some(stream) = streams.get_mut(id) else {
                return false;
            };
            let still_asks = stream.answer_progress(revision);
            if stream.has_output() {
                ready.insert(*id);
            }
            still_asks
        });
    }

    /// Gives the events of one revision to those watchers of their keys that are `meant`. Where a stream is full, the
    /// watcher lags from this revision on.
    fn deliver(&mut self, events: &[Event], header: Revision, meant: impl Fn(&Watcher) -> bool) {
        let Hub {
            index,
            streams,
            ready,
            lagging,
            options,
            round,
            ..
        } = self;
        let revision_bytes = events.iter().map(event_bytes).sum();
        let delivery = Delivery {
            header,
            round: *round,
            revision_bytes,
        };
        for event in events {
            let revision = event.kv.mod_revision;
            index.each(&event.kv.key, &mut |id| {
                let stream = streams
                    .get_mut(&id.stream)
                    .expect("the index names streams that are there");
                let watcher = stream
                    .watchers
                    .get_mut(&id.watch)
                    .expect("the index names watchers that are there");
                if !meant(watcher) || watcher.next > revision || !watcher.wants(event.kind) {
                    return;
                }
                if stream.give(id.watch, event, delivery, options.stream_bytes_max) {
                    ready.insert(id.stream);
                } else {
                    let watcher = stream.watchers.get_mut(&id.watch).expect("it was just there");
                    (watcher.is_synced, watcher.is_chosen) = (false, false);
                    watcher.next = revision;
                    lagging.insert(id);
                }
            });
        }
    }

    /// Cancels those of the watchers whose history is gone; returns the others.
    fn cancel_compacted(&mut self, ids: BTreeSet<WatcherId>, compacted: Revision) -> BTreeSet<WatcherId> {
        let first = self.ring.first();
        ids.into_iter()
            .filter(|id| {
                let watcher = self.watcher(*id);
                // A new watcher may not start below the compaction, even if the ring still holds the events.
                let needs_history = watcher.is_new || watcher.next < first;
                watcher.is_new = false;
                let is_gone = needs_history && watcher.next < compacted;
                if is_gone {
                    self.remove(*id);
                    let stream = self
                        .streams
                        .get_mut(&id.stream)
                        .expect("a known watcher's stream is there");
                    stream.cancel_compacted(id.watch, compacted);
                    self.ready.insert(id.stream);
                }
                !is_gone
            })
            .collect()
    }

    /// Serves watchers from the ring, which may hold what history does not have any more: the record before an event
    /// at the last compaction, for one. Where an event comes from must not show.
    fn catch_up_near(&mut self, ids: BTreeSet<WatcherId>, compacted: Revision, budget: CatchUpBudget) {
        let mut revision = self.choose(&ids);
        let mut changes = 0;
        while let Some(found) = self.ring.get(revision) {
            let mut events = found.events.clone();
            if revision <= compacted {
                events = events.iter().map(without_previous).collect();
            }
            changes += events.len();
            self.deliver(&events, self.ring.newest(), |watcher| watcher.is_chosen);
            revision += 1;
            if changes >= budget.changes {
                break;
            }
        }
        self.advance(ids, revision);
    }

    /// Serves watchers from history.
    fn catch_up_far<S: Store>(
        &mut self,
        ids: BTreeSet<WatcherId>,
        view: &ReadView<S>,
        budget: CatchUpBudget,
    ) -> Result<(), ReadError> {
        let from = self.choose(&ids);
        let newest = self.revision();
        let Hub { index, streams, .. } = self;
        let page = view.history(from, budget.changes, budget.bytes, |key, kind, revision| {
            let mut wanted = Wanted::No;
            index.each(key, &mut |id| {
                let watcher = &streams[&id.stream].watchers[&id.watch];
                let is_meant = watcher.is_chosen && watcher.next <= revision && watcher.wants(kind);
                if is_meant && revision <= newest && wanted != Wanted::WithPrevious {
                    wanted = if watcher.prev_kv {
                        Wanted::WithPrevious
                    } else {
                        Wanted::Yes
                    };
                }
            });
            wanted
        })?;
        // Readers may see revisions that are not published here yet: those come by `publish`.
        for events in page
            .events
            .chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision)
        {
            self.deliver(events, newest, |watcher| watcher.is_chosen);
        }
        self.advance(ids, page.through.min(newest) + 1);
        Ok(())
    }

    /// Begins a delivery to certain lagging watchers; the first revision that one of them needs.
    fn choose(&mut self, ids: &BTreeSet<WatcherId>) -> Revision {
        self.round += 1;
        for id in ids {
            self.watcher(*id).is_chosen = true;
        }
        ids.iter()
            .map(|id| self.next_of(*id))
            .min()
            .expect("somebody is to be served")
    }

    /// Ends it: those whose streams were not full have everything before `next`.
    fn advance(&mut self, ids: BTreeSet<WatcherId>, next: Revision) {
        let newest = self.revision();
        for id in ids {
            let watcher = self.watcher(id);
            if std::mem::take(&mut watcher.is_chosen) {
                watcher.next = watcher.next.max(next);
                watcher.is_synced = watcher.next > newest;
                if watcher.is_synced {
                    self.lagging.remove(&id);
                }
            }
        }
    }
}

fn without_previous(event: &Event) -> Event {
    Event {
        prev_kv: None,
        ..event.clone()
    }
}

/// What an event weighs in a buffer.
pub(crate) fn event_bytes(event: &Event) -> usize {
    const RECORD_BYTES: usize = 50;
    let prev = event
        .prev_kv
        .as_ref()
        .map_or(0, |kv| kv.key.len() + kv.value.len() + RECORD_BYTES);
    event.kv.key.len() + event.kv.value.len() + RECORD_BYTES + prev
}
