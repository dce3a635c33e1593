//! Random watchers, each held against the replay of what it asked for.

use std::collections::BTreeMap;

use kvorum_model::{Command, EventKind};

use super::*;
use crate::machine::tests::random;
use crate::testing::Rng;

/// One watcher of the random test, as its client sees it.
struct Client {
    request: WatchRequest,
    created_at: Revision,
    seen: Vec<Event>,
    bookmark: Revision,
    canceled: bool,
}

struct Random {
    rng: Rng,
    world: World,
    /// The changes of each revision.
    events: Vec<Vec<Event>>,
    compacted: Revision,
    clients: BTreeMap<(StreamId, i64), Client>,
    streams: Vec<StreamId>,
    /// Applied and not yet published.
    unpublished: Vec<RevisionEvents>,
}

impl Random {
    fn new(seed: u64) -> Self {
        let options = HubOptions {
            ring_bytes: 3_000,
            stream_bytes_max: 600,
            fragment_bytes_max: 300,
        };
        let mut world = World::new(options);
        let streams = (0..4).map(|_| world.hub.open()).collect();
        Random {
            rng: Rng::new(seed),
            world,
            events: vec![vec![]; 2],
            compacted: 0,
            clients: BTreeMap::new(),
            streams,
            unpublished: Vec::new(),
        }
    }

    fn stream(&mut self) -> StreamId {
        self.streams[self.rng.below(4) as usize]
    }

    fn create(&mut self) {
        let stream = self.stream();
        let current = self.world.hub.revision();
        let start_revision = match self.rng.below(4) {
            0 => 0,
            1 => current + self.rng.below(5) as Revision,
            _ => (current - self.rng.below(30) as Revision).max(1),
        };
        let flag = |rng: &mut Rng| rng.below(3) == 0;
        let request = WatchRequest {
            range: random::range(&mut self.rng),
            start_revision,
            watch_id: 0,
            no_put: self.rng.below(5) == 0,
            no_delete: self.rng.below(5) == 0,
            prev_kv: flag(&mut self.rng),
            progress_notify: flag(&mut self.rng),
            fragment: flag(&mut self.rng),
        };
        let range = &request.range;
        if !range.is_point() && !range.is_from_key() && range.end <= range.key {
            return;
        }
        // What waits is taken first, so that the answer comes alone.
        self.take(stream);
        self.world.hub.create(stream, request.clone());
        let outputs = self.world.hub.take(stream);
        let [WatchOutput::Created { watch_id, revision }] = outputs[..] else {
            panic!("{outputs:?}")
        };
        assert_eq!(revision, current);
        let client = Client {
            request,
            created_at: current,
            seen: vec![],
            bookmark: 0,
            canceled: false,
        };
        self.clients.insert((stream, watch_id), client);
    }

    fn take(&mut self, stream: StreamId) {
        let mut partial: Option<(i64, Vec<Event>)> = None;
        for output in self.world.hub.take(stream) {
            match output {
                WatchOutput::Events {
                    watch_id,
                    events,
                    fragment,
                    ..
                } => {
                    let client = self.clients.get_mut(&(stream, watch_id)).expect("created before");
                    assert!(!client.canceled && !events.is_empty());
                    assert!(client.request.fragment || !fragment);
                    let mut whole = match partial.take() {
                        Some((of, before)) => {
                            assert_eq!(of, watch_id, "the pieces of a message come together");
                            before
                        }
                        None => vec![],
                    };
                    whole.extend(events);
                    if fragment {
                        partial = Some((watch_id, whole));
                        continue;
                    }
                    assert!(whole.iter().all(|event| event.kv.mod_revision > client.bookmark));
                    let last = client.seen.last().map_or(0, |event| event.kv.mod_revision);
                    assert!(
                        whole[0].kv.mod_revision > last,
                        "all of a revision is in one message"
                    );
                    client.seen.extend(whole);
                }
                WatchOutput::Progress {
                    watch_id: -1,
                    revision,
                } => {
                    for ((_, _), client) in self.clients.iter_mut().filter(|((of, _), _)| *of == stream) {
                        client.bookmark = revision;
                    }
                }
                WatchOutput::Progress { watch_id, revision } => {
                    self.clients.get_mut(&(stream, watch_id)).unwrap().bookmark = revision;
                }
                WatchOutput::Canceled {
                    watch_id,
                    compact_revision,
                    created,
                    ..
                } => {
                    assert!(!created && compact_revision > 0 && compact_revision <= self.compacted);
                    self.clients.get_mut(&(stream, watch_id)).unwrap().canceled = true;
                }
                WatchOutput::Created { .. } => panic!("answered at creation"),
            }
        }
        assert!(partial.is_none(), "the last piece comes with the others");
    }

    fn apply(&mut self) {
        let command = random::command(&mut self.rng, self.world.machine.revision());
        let rare = matches!(command, Command::Compact(_)) && self.rng.below(8) > 0;
        if rare || command.validate(&Default::default()).is_err() {
            return;
        }
        let revisions = self.world.apply(command);
        self.events
            .extend(revisions.iter().map(|revision| revision.events.to_vec()));
        self.unpublished.extend(revisions);
        self.compacted = self.world.machine.compacted();
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0..=8 => self.apply(),
            9..=12 => {
                let unpublished = std::mem::take(&mut self.unpublished);
                self.world.hub.publish(&unpublished);
            }
            13 => self.create(),
            14..=15 => {
                let reader = self.world.machine.reader();
                let budget = CatchUpBudget {
                    changes: self.rng.below(9) as usize,
                    bytes: self.rng.below(500) as usize,
                };
                self.world.hub.catch_up(&reader, budget).unwrap();
            }
            16..=17 => {
                let stream = self.stream();
                self.take(stream);
            }
            18 => {
                let stream = self.stream();
                if self.rng.below(2) == 0 {
                    self.world.hub.progress_request(stream);
                } else {
                    self.world.hub.tick(stream);
                }
            }
            _ => {
                self.world.machine.maintenance(0).unwrap();
            }
        }
    }

    /// Everything is published and read; each client must have seen the replay of its request.
    fn finish(mut self) -> usize {
        let unpublished = std::mem::take(&mut self.unpublished);
        self.world.hub.publish(&unpublished);
        for _ in 0..2_000 {
            let reader = self.world.machine.reader();
            self.world
                .hub
                .catch_up(&reader, CatchUpBudget::default())
                .unwrap();
            for stream in self.streams.clone() {
                self.take(stream);
            }
        }
        assert_eq!(self.world.hub.watchers().1, 0, "nobody lags for ever");
        let mut checked = 0;
        for client in self.clients.values() {
            let request = &client.request;
            let start = match request.start_revision {
                0 => client.created_at + 1,
                start => start,
            };
            let mut expected: Vec<Event> = self
                .events
                .iter()
                .skip(start as usize)
                .flatten()
                .cloned()
                .collect();
            expected.retain(|event| {
                let filtered = if event.kind == EventKind::Put {
                    request.no_put
                } else {
                    request.no_delete
                };
                request.range.contains(&event.kv.key) && !filtered
            });
            let mut seen = client.seen.clone();
            for (seen, expected) in seen.iter_mut().zip(&mut expected) {
                // A record before it may be gone by compaction; it is never another one.
                if !request.prev_kv || seen.prev_kv.is_none() {
                    assert_eq!(
                        (seen.prev_kv.is_some(), request.prev_kv && seen.prev_kv.is_some()),
                        (false, false)
                    );
                    expected.prev_kv = None;
                }
            }
            if client.canceled {
                expected.truncate(seen.len());
            }
            assert_eq!(seen, expected);
            checked += seen.len();
        }
        checked
    }
}

#[test]
fn watchers_see_the_replay_of_what_they_asked_for() {
    let (mut canceled, mut seen) = (0, 0);
    for seed in 0..15 {
        let mut random = Random::new(seed);
        for _ in 0..1_500 {
            random.step();
        }
        canceled += random.clients.values().filter(|client| client.canceled).count();
        seen += random.finish();
    }
    assert!(
        canceled > 100 && seen > 10_000,
        "{canceled} canceled, {seen} seen"
    );
}
