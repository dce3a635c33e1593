//! Watchers: each follows a range, loses its connection now and then, and resumes where it was on another member.
//!
//! The hub's core runs inside each process, as in the server, with a ring and stream limits so small that watchers
//! lag and are fed from the history.

use std::collections::BTreeMap;

use kvorum_check::{KeyRange as CheckedRange, Received};
use kvorum_model::{Event as Change, EventKind, KeyRange, Revision};
use kvorum_mvcc::RevisionEvents;
use kvorum_mvcc::watch::{CatchUpBudget, Hub, HubOptions, StreamId, WatchOutput, WatchRequest};
use kvorum_raft::{MemberId, Micros};

use crate::bugs::Bug;
use crate::clients::{checked_kv, key};
use crate::env::{Env, Event, ProcessEvent};
use crate::marks::Mark;
use crate::process::Process;

/// From a hub to its watcher: always the same, so that a stream keeps its order.
const STREAM_DELAY: Micros = 200;
const HUB_OPTIONS: HubOptions = HubOptions {
    ring_bytes: 2048,
    stream_bytes_max: 4096,
    fragment_bytes_max: 1 << 20,
};
/// A start so far below the hub's revision is not in the ring any more: an event takes at least 50 bytes there.
const BEYOND_RING: Revision = 2048 / 50 + 1;

/// A connection of a watcher: the watcher, and the number of its try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub watcher: usize,
    pub attempt: u64,
}

/// The hub of one process.
#[derive(Debug)]
pub(crate) struct Watching {
    hub: Hub,
    streams: BTreeMap<StreamId, Connection>,
    /// A turn is due.
    scheduled: bool,
}

impl Watching {
    pub(crate) fn new(revision: Revision) -> Watching {
        Watching {
            hub: Hub::new(revision, HUB_OPTIONS),
            streams: BTreeMap::new(),
            scheduled: false,
        }
    }
}

impl Process {
    /// Revisions that were applied.
    pub(crate) fn feed_watchers(&mut self, env: &mut Env, mut revisions: Vec<RevisionEvents>) {
        if env.has_bug(Bug::WatchEventLost)
            && env.random.one_in(100)
            && let Some(last) = revisions.last_mut()
        {
            last.events = last.events[1..].into();
        }
        self.watching.hub.publish(&revisions);
        self.watch_soon(env);
    }

    /// A snapshot took the place of the state.
    pub(crate) fn watch_installed(&mut self, env: &mut Env) {
        self.watching.hub.reset(self.machine().revision());
        self.watch_soon(env);
    }

    /// A watcher connects. `progress`: it asks to be told when it has everything.
    pub(crate) fn watch(
        &mut self,
        env: &mut Env,
        connection: Connection,
        request: WatchRequest,
        progress: bool,
    ) {
        let hub = &mut self.watching.hub;
        if request.start_revision > 0 && request.start_revision + BEYOND_RING < hub.revision() {
            env.reach(Mark::WatchReadHistory);
        }
        let stream = hub.open();
        hub.create(stream, request);
        if progress {
            hub.progress_request(stream);
        }
        self.watching.streams.insert(stream, connection);
        self.watch_soon(env);
    }

    /// A watcher has gone.
    pub(crate) fn unwatch(&mut self, connection: Connection) {
        let Watching { hub, streams, .. } = &mut self.watching;
        for (stream, _) in streams.extract_if(.., |_, known| *known == connection) {
            hub.close(stream);
        }
    }

    fn watch_soon(&mut self, env: &mut Env) {
        if !std::mem::replace(&mut self.watching.scheduled, true) {
            let delay = env.random.between(10, 2_000);
            self.after(env, delay, ProcessEvent::Watch);
        }
    }

    /// Lets watchers catch up, and sends what waits; some streams are slow.
    pub(crate) fn watch_turn(&mut self, env: &mut Env) {
        self.watching.scheduled = false;
        let reader = self.machine().reader();
        let hub = &mut self.watching.hub;
        let budget = CatchUpBudget {
            changes: 20,
            bytes: 4096,
        };
        let mut more = match hub.catch_up(&reader, budget) {
            Ok(more) => more,
            Err(error) => return env.fail(format!("member {}: watchers cannot catch up: {error}", self.id)),
        };
        let ready: Vec<StreamId> = hub.streams_with_output().collect();
        for stream in ready {
            if env.random.one_in(4) {
                more = true;
                continue;
            }
            let Some(&connection) = self.watching.streams.get(&stream) else {
                continue;
            };
            for output in self.watching.hub.take(stream) {
                env.schedule(STREAM_DELAY, Event::Watched { connection, output });
            }
        }
        if more || self.watching.hub.can_catch_up() {
            self.watch_soon(env);
        }
    }

    /// The watchers' connections break.
    pub(crate) fn break_watches(&mut self, env: &mut Env) {
        for connection in std::mem::take(&mut self.watching.streams).into_values() {
            let delay = env.random.between(200, 5_000);
            env.schedule(delay, Event::WatchBroken { connection });
        }
    }
}

/// One watcher of the world.
#[derive(Debug)]
pub(crate) struct Watcher {
    id: usize,
    range: KeyRange,
    /// Where it is connected, and the number of its try.
    host: Option<MemberId>,
    attempt: u64,
    /// What it wants next; 0: whatever comes.
    next: Revision,
    /// What it saw, for the checker; the last one grows. A compaction begins another.
    seen: Vec<kvorum_check::Watcher>,
}

impl Watcher {
    pub(crate) fn new(env: &mut Env, id: usize) -> Watcher {
        let keys = env.profile.keys;
        let range = match env.random.below(3) {
            0 => KeyRange::prefix(b""),
            1 => KeyRange::point(key(env.random.below(keys))),
            _ => KeyRange {
                key: key(env.random.below(keys)),
                end: key(keys),
            },
        };
        Watcher {
            id,
            range,
            host: None,
            attempt: 0,
            next: 0,
            seen: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> usize {
        self.id
    }

    /// The first connection watches from now on, or from the beginning.
    pub(crate) fn begin(&mut self, env: &mut Env) {
        if env.random.one_in(2) {
            self.start_at(2);
        }
    }

    fn start_at(&mut self, revision: Revision) {
        self.next = revision;
        let range = checked_range(&self.range);
        self.seen
            .push(kvorum_check::Watcher::new(self.id as u64, revision as u64, range));
    }

    fn connection(&self) -> Connection {
        Connection {
            watcher: self.id,
            attempt: self.attempt,
        }
    }

    /// Now and then it connects elsewhere; if it is not connected, it does.
    pub(crate) fn turn(&mut self, env: &mut Env, members: &[MemberId]) {
        if self.host.is_none() || env.random.one_in(6) {
            self.connect(env, members, false);
        }
        let pause = env.random.about(800_000);
        env.schedule(pause, Event::WatcherTurn { watcher: self.id });
    }

    /// Connects anew, at the place where it was.
    pub(crate) fn connect(&mut self, env: &mut Env, members: &[MemberId], progress: bool) {
        if members.is_empty() {
            return;
        }
        if let Some(host) = self.host {
            env.schedule(
                300,
                Event::Unwatch {
                    host,
                    connection: self.connection(),
                },
            );
        }
        self.attempt += 1;
        let host = *env.random.pick(members);
        if self.next > 2 && self.host != Some(host) {
            env.reach(Mark::WatchResumed);
        }
        self.host = Some(host);
        let too_late = env.has_bug(Bug::WatchResumedTooLate) && self.next > 2 && !progress;
        let start_revision = self.next + Revision::from(too_late);
        let request = WatchRequest {
            range: self.range.clone(),
            start_revision,
            ..WatchRequest::default()
        };
        let connection = self.connection();
        env.schedule(
            300,
            Event::Watch {
                host,
                connection,
                request,
                progress,
            },
        );
    }

    pub(crate) fn broken(&mut self, connection: Connection) {
        if connection == self.connection() {
            self.host = None;
        }
    }

    /// Something was sent to it, perhaps on a connection that it has left.
    pub(crate) fn receive(&mut self, env: &mut Env, connection: Connection, output: WatchOutput) {
        if connection != self.connection() {
            return;
        }
        match output {
            WatchOutput::Created { revision, .. } => {
                if self.next == 0 {
                    self.start_at(revision + 1);
                }
            }
            WatchOutput::Events { events, .. } => {
                self.next = events.last().map_or(self.next, |event| event.kv.mod_revision + 1);
                let events = events.iter().map(checked_event).collect();
                self.note(Received::Events(events));
            }
            WatchOutput::Progress { revision, .. } => {
                self.next = self.next.max(revision + 1);
                self.note(Received::Progress(revision as u64));
                if let Some(seen) = self.seen.last_mut() {
                    seen.complete_to = Some(revision as u64);
                }
            }
            WatchOutput::Canceled {
                compact_revision,
                reason,
                ..
            } => {
                self.host = None;
                if compact_revision == 0 {
                    return env.fail(format!("watcher {} is cancelled: {reason}", self.id));
                }
                env.reach(Mark::WatchCompacted);
                self.start_at(compact_revision);
            }
        }
    }

    fn note(&mut self, received: Received) {
        if let Some(seen) = self.seen.last_mut() {
            seen.received.push(received);
        }
    }

    /// Whether it has everything up to this revision.
    pub(crate) fn is_complete(&self, revision: u64) -> bool {
        self.seen
            .last()
            .is_some_and(|seen| seen.complete_to.is_some_and(|to| to >= revision))
    }

    pub(crate) fn into_seen(self) -> Vec<kvorum_check::Watcher> {
        self.seen
    }
}

fn checked_range(range: &KeyRange) -> CheckedRange {
    if range.is_point() {
        CheckedRange::single(range.key.clone())
    } else if range.is_from_key() {
        CheckedRange {
            start: range.key.clone(),
            end: None,
        }
    } else {
        CheckedRange::between(range.key.clone(), range.end.clone())
    }
}

fn checked_event(change: &Change) -> kvorum_check::Event {
    match change.kind {
        EventKind::Put => kvorum_check::Event::Put(checked_kv(&change.kv)),
        EventKind::Delete => kvorum_check::Event::Delete {
            key: change.kv.key.clone(),
            revision: change.kv.mod_revision as u64,
        },
    }
}
