//! One stream: its watchers, and what waits to be sent on it.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use kvorum_model::{Event, EventKind, KeyRange, Revision};

use super::{WatchOutput, WatchRequest, event_bytes};

/// What a message takes beside its events.
const MESSAGE_BYTES: usize = 64;

/// One watcher. While it is synced it has been given, or has queued, everything up to the hub's revision.
#[derive(Debug)]
pub(super) struct Watcher {
    pub range: KeyRange,
    no_put: bool,
    no_delete: bool,
    pub prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// No event was queued since the last tick.
    is_quiet: bool,
    /// Its start was not yet held against the last compaction.
    pub is_new: bool,
    pub is_synced: bool,
    /// The delivery that is going on is for it.
    pub is_chosen: bool,
    /// Synced: nothing before this is wanted. Else: the first revision that it has not been given.
    pub next: Revision,
    /// The newest revision of which events were queued.
    given: Revision,
    /// The round of the last message of events, and its number on the stream.
    open: (u64, u64),
}

impl Watcher {
    pub fn new(request: WatchRequest, current: Revision) -> Self {
        let next = if request.start_revision == 0 {
            current + 1
        } else {
            request.start_revision
        };
        Watcher {
            range: request.range,
            no_put: request.no_put,
            no_delete: request.no_delete,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            is_quiet: true,
            is_new: next <= current,
            is_synced: next > current,
            is_chosen: false,
            next,
            given: 0,
            open: (0, 0),
        }
    }

    pub fn wants(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }

    /// Whether a progress message of this revision would tell it something true and useful.
    fn is_at(&self, revision: Revision) -> bool {
        self.is_synced && self.next <= revision + 1
    }
}

/// What all events of a revision have in common when they are given out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    /// The revision for the messages' headers.
    pub header: Revision,
    /// Events of one round go into one message.
    pub round: u64,
    /// What the events of the revision weigh together.
    pub revision_bytes: usize,
}

/// Invariant: `bytes` is the weight of `queue`.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    queue: VecDeque<Queued>,
    /// How many messages were taken: the number of the first in the queue.
    taken: u64,
    bytes: usize,
    /// An event found no room since the last `take`.
    is_blocked: bool,
    wants_progress: bool,
}

#[derive(Debug)]
struct Queued {
    output: WatchOutput,
    bytes: usize,
    /// May be sent in pieces.
    fragment: bool,
}

impl Stream {
    /// How many events wait to be taken.
    pub fn events(&self) -> usize {
        let of = |queued: &Queued| match &queued.output {
            WatchOutput::Events { events, .. } => events.len(),
            _ => 0,
        };
        self.queue.iter().map(of).sum()
    }

    /// The ID for a new watcher: the one asked for, or for 0 the next free one; `None` if it is taken.
    pub fn allocate(&mut self, asked: i64) -> Option<i64> {
        match asked {
            0 => {
                while self.watchers.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                Some(self.next_id - 1)
            }
            // It stands for no watcher, and for all of them.
            -1 => None,
            asked => (!self.watchers.contains_key(&asked)).then_some(asked),
        }
    }

    pub fn say(&mut self, output: WatchOutput) {
        self.push(Queued {
            output,
            bytes: MESSAGE_BYTES,
            fragment: false,
        });
    }

    pub fn refuse(&mut self, revision: Revision, reason: impl Into<Cow<'static, str>>) {
        self.say(WatchOutput::Canceled {
            watch_id: -1,
            revision,
            created: true,
            reason: reason.into(),
            compact_revision: 0,
        });
    }

    fn push(&mut self, queued: Queued) {
        self.bytes += queued.bytes;
        self.queue.push_back(queued);
    }

    pub fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether an event may find room.
    pub fn has_room(&self, bytes_max: usize) -> bool {
        !self.is_blocked && self.bytes < bytes_max
    }

    /// Queues an event of a watcher; false, and nothing done, if this is the watcher's first event of its revision
    /// and the whole revision finds no room. (A revision is never divided, and an empty queue takes any.)
    pub fn give(&mut self, watch: i64, event: &Event, delivery: Delivery, bytes_max: usize) -> bool {
        let watcher = self
            .watchers
            .get_mut(&watch)
            .expect("the index names watchers that are there");
        let prev_kv = if watcher.prev_kv {
            event.prev_kv.clone()
        } else {
            None
        };
        let event = Event {
            kind: event.kind,
            kv: event.kv.clone(),
            prev_kv,
        };
        let bytes = event_bytes(&event);
        let begins = event.kv.mod_revision != watcher.given;
        if begins && self.bytes > 0 && self.bytes + delivery.revision_bytes > bytes_max {
            self.is_blocked = true;
            return false;
        }
        watcher.given = event.kv.mod_revision;
        watcher.is_quiet = false;
        self.bytes += bytes;
        let (open_round, number) = watcher.open;
        if open_round == delivery.round {
            let queued = &mut self.queue[(number - self.taken) as usize];
            if let WatchOutput::Events { events, .. } = &mut queued.output {
                events.push(event);
                queued.bytes += bytes;
                return true;
            }
        }
        watcher.open = (delivery.round, self.taken + self.queue.len() as u64);
        let fragment = watcher.fragment;
        let events = vec![event];
        let output = WatchOutput::Events {
            watch_id: watch,
            revision: delivery.header,
            events,
            fragment: false,
        };
        self.bytes += MESSAGE_BYTES;
        self.queue.push_back(Queued {
            output,
            bytes: bytes + MESSAGE_BYTES,
            fragment,
        });
        true
    }

    pub fn request_progress(&mut self) {
        self.wants_progress = !self.watchers.is_empty();
    }

    /// Answers a progress request once all watchers are synced; whether it is still open.
    pub fn answer_progress(&mut self, revision: Revision) -> bool {
        if self.wants_progress && self.watchers.values().all(|watcher| watcher.is_at(revision)) {
            self.wants_progress = false;
            if !self.watchers.is_empty() {
                self.say(WatchOutput::Progress {
                    watch_id: -1,
                    revision,
                });
            }
        }
        self.wants_progress
    }

    /// Tells the watchers that asked for it, and had nothing since the last tick, how far they are.
    pub fn tick(&mut self, revision: Revision) {
        let mut quiet = Vec::new();
        for (watch_id, watcher) in self
            .watchers
            .iter_mut()
            .filter(|(_, watcher)| watcher.progress_notify)
        {
            if watcher.is_quiet && watcher.is_at(revision) {
                quiet.push(*watch_id);
            }
            watcher.is_quiet = true;
        }
        for watch_id in quiet {
            self.say(WatchOutput::Progress { watch_id, revision });
        }
    }

    /// As etcd says it: with neither a revision nor words.
    pub fn cancel_compacted(&mut self, watch_id: i64, compact_revision: Revision) {
        self.say(WatchOutput::Canceled {
            watch_id,
            revision: 0,
            created: false,
            reason: Cow::Borrowed(""),
            compact_revision,
        });
    }

    /// Everything that waits, in order; messages that may be divided in pieces of at most about
    /// `fragment_bytes_max`.
    pub fn take(&mut self, fragment_bytes_max: usize) -> Vec<WatchOutput> {
        (self.bytes, self.is_blocked) = (0, false);
        self.taken += self.queue.len() as u64;
        let mut outputs = Vec::with_capacity(self.queue.len());
        for queued in self.queue.drain(..) {
            match queued.output {
                WatchOutput::Events {
                    watch_id,
                    revision,
                    events,
                    ..
                } if queued.fragment && queued.bytes >= fragment_bytes_max => {
                    divide(watch_id, revision, events, fragment_bytes_max, &mut outputs);
                }
                output => outputs.push(output),
            }
        }
        outputs
    }
}

/// Cuts a message into pieces; all but the last say that more follows.
fn divide(
    watch_id: i64,
    revision: Revision,
    events: Vec<Event>,
    bytes_max: usize,
    outputs: &mut Vec<WatchOutput>,
) {
    let (mut piece, mut bytes) = (Vec::new(), 0);
    for event in events {
        let event_bytes = event_bytes(&event);
        if !piece.is_empty() && bytes + event_bytes > bytes_max {
            let events = std::mem::take(&mut piece);
            outputs.push(WatchOutput::Events {
                watch_id,
                revision,
                events,
                fragment: true,
            });
            bytes = 0;
        }
        bytes += event_bytes;
        piece.push(event);
    }
    outputs.push(WatchOutput::Events {
        watch_id,
        revision,
        events: piece,
        fragment: false,
    });
}
