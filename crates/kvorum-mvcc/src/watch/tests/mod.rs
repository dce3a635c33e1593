//! The hub against a replay of what was published, and rule by rule.

#![allow(clippy::unwrap_used)]

mod replay;

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum_model::{Command, DeleteRangeRequest, EventKind, KeyRange, PutRequest, RequestOp, TxnRequest};

use super::*;
use crate::machine::tests::{entry, put};
use crate::machine::{Options, StateMachine};
use crate::store::MemStore;

struct World {
    machine: StateMachine<MemStore>,
    hub: Hub,
}

impl World {
    fn new(options: HubOptions) -> Self {
        let machine = StateMachine::open(MemStore::new(), Options::default()).unwrap();
        World {
            hub: Hub::new(machine.revision(), options),
            machine,
        }
    }

    fn apply(&mut self, command: Command) -> Vec<RevisionEvents> {
        let index = self.machine.applied().1 + 1;
        self.machine.apply(&[entry(index, command)]).unwrap().events
    }

    /// Applies and publishes.
    fn run(&mut self, command: Command) {
        let events = self.apply(command);
        self.hub.publish(&events);
    }

    fn puts(&mut self, key: &str, count: usize) {
        for n in 0..count {
            self.run(put(key, &format!("value {n}")));
        }
    }

    fn catch_up(&mut self) {
        let reader = self.machine.reader();
        while self
            .hub
            .catch_up(
                &reader,
                CatchUpBudget {
                    changes: 3,
                    bytes: 200,
                },
            )
            .unwrap()
        {}
    }

    fn watch(&mut self, stream: StreamId, request: WatchRequest) -> Vec<WatchOutput> {
        self.hub.create(stream, request);
        self.catch_up();
        self.hub.take(stream)
    }
}

fn on(key: &str) -> WatchRequest {
    WatchRequest {
        range: KeyRange::point(key.to_string()),
        ..WatchRequest::default()
    }
}

fn from(key: &str, start_revision: Revision) -> WatchRequest {
    WatchRequest {
        start_revision,
        ..on(key)
    }
}

fn all() -> WatchRequest {
    WatchRequest {
        range: KeyRange::prefix(b""),
        ..WatchRequest::default()
    }
}

fn delete(key: &str) -> Command {
    Command::DeleteRange(DeleteRangeRequest {
        range: KeyRange::point(key.to_string()),
        prev_kv: false,
    })
}

/// What a client that asserts the promises has seen.
fn revisions(outputs: &[WatchOutput]) -> Vec<Revision> {
    let events = outputs.iter().filter_map(|output| match output {
        WatchOutput::Events { events, .. } => Some(events),
        _ => None,
    });
    events.flatten().map(|event| event.kv.mod_revision).collect()
}

fn refused(revision: Revision, reason: &'static str) -> WatchOutput {
    let reason = Cow::Borrowed(reason);
    WatchOutput::Canceled {
        watch_id: -1,
        revision,
        created: true,
        reason,
        compact_revision: 0,
    }
}

#[test]
fn a_watcher_starts_now_in_the_past_or_in_the_future() {
    let mut world = World::new(HubOptions::default());
    world.puts("a", 3);
    let stream = world.hub.open();
    assert_eq!(
        world.watch(stream, on("a")),
        [WatchOutput::Created {
            watch_id: 0,
            revision: 4
        }]
    );
    let past = world.watch(stream, from("a", 3));
    assert_eq!(
        past[0],
        WatchOutput::Created {
            watch_id: 1,
            revision: 4
        }
    );
    assert_eq!(revisions(&past), [3, 4]);
    world.hub.create(stream, from("a", 6));
    world.puts("a", 3);
    let outputs = world.hub.take(stream);
    let mut seen: BTreeMap<i64, Vec<Revision>> = BTreeMap::new();
    for output in &outputs {
        if let WatchOutput::Events { watch_id, .. } = output {
            seen.entry(*watch_id)
                .or_default()
                .extend(revisions(std::slice::from_ref(output)));
        }
    }
    assert_eq!(
        seen,
        BTreeMap::from([(0, vec![5, 6, 7]), (1, vec![5, 6, 7]), (2, vec![6, 7])])
    );
}

#[test]
fn what_cannot_be_watched_is_created_and_canceled() {
    let mut world = World::new(HubOptions::default());
    let stream = world.hub.open();
    let range = KeyRange {
        key: "b".into(),
        end: "b".into(),
    };
    assert_eq!(
        world.watch(
            stream,
            WatchRequest {
                range,
                ..WatchRequest::default()
            }
        ),
        [refused(1, "mvcc: watcher range is empty")]
    );
    assert_eq!(
        world.watch(stream, from("a", -1)),
        [refused(
            1,
            "etcdserver: mvcc: required revision has been compacted"
        )]
    );
    let duplicate = "mvcc: duplicate watch ID provided on the WatchStream";
    let with_id = |watch_id| WatchRequest { watch_id, ..on("a") };
    assert_eq!(world.watch(stream, with_id(-1)), [refused(1, duplicate)]);
    assert_eq!(
        world.watch(stream, with_id(5)),
        [WatchOutput::Created {
            watch_id: 5,
            revision: 1
        }]
    );
    assert_eq!(world.watch(stream, with_id(5)), [refused(1, duplicate)]);
    world.watch(stream, with_id(1));
    for expected in [0, 2, 3, 4, 6] {
        let created = world.watch(stream, on("a"));
        assert_eq!(
            created,
            [WatchOutput::Created {
                watch_id: expected,
                revision: 1
            }],
            "taken IDs are skipped"
        );
    }
    world.hub.refuse(stream, "etcdserver: permission denied");
    assert_eq!(
        world.hub.take(stream),
        [refused(1, "etcdserver: permission denied")]
    );
    assert_eq!(world.hub.watchers_of(stream), 7);
}

#[test]
fn an_empty_key_is_the_smallest() {
    let mut world = World::new(HubOptions::default());
    let stream = world.hub.open();
    world.watch(
        stream,
        WatchRequest {
            range: KeyRange {
                key: Bytes::new(),
                end: "\0".into(),
            },
            ..on("")
        },
    );
    world.watch(stream, on(""));
    world.puts("\0", 1);
    world.puts("x", 1);
    let seen: Vec<_> = world
        .hub
        .take(stream)
        .iter()
        .map(|output| revisions(std::slice::from_ref(output)))
        .collect();
    assert_eq!(seen, [vec![2], vec![2], vec![3]]);
}

#[test]
fn history_below_a_compaction_cancels_only_who_needs_it() {
    let options = HubOptions {
        ring_bytes: 2_000,
        ..HubOptions::default()
    };
    let mut world = World::new(options);
    world.puts("a", 20);
    world.apply(Command::Compact(15));
    let stream = world.hub.open();
    let outputs = world.watch(stream, from("a", 14));
    // As etcd says it.
    let compacted = WatchOutput::Canceled {
        watch_id: 0,
        revision: 0,
        created: false,
        reason: Cow::Borrowed(""),
        compact_revision: 15,
    };
    assert_eq!(
        outputs,
        [
            WatchOutput::Created {
                watch_id: 0,
                revision: 21
            },
            compacted
        ]
    );
    assert_eq!(world.hub.watchers_of(stream), 0);
    let outputs = world.watch(stream, from("a", 15));
    assert_eq!(revisions(&outputs), (15..=21).collect::<Vec<_>>());
    // A new watcher may not start below the compaction even if the ring holds all that it wants.
    world.apply(Command::Compact(21));
    let outputs = world.watch(stream, from("a", 20));
    assert!(matches!(
        outputs[1],
        WatchOutput::Canceled {
            compact_revision: 21,
            ..
        }
    ));
}

/// From the ring as from history: the ring once gave the record before an event at the last compaction, which etcd
/// does not have any more.
#[test]
fn prev_kv_is_the_record_before_unless_it_is_compacted() {
    check_prev_kv(HubOptions {
        ring_bytes: 0,
        ..HubOptions::default()
    });
    check_prev_kv(HubOptions::default());
}

#[track_caller]
fn check_prev_kv(options: HubOptions) {
    let mut world = World::new(options);
    for command in [
        put("a", "1"),
        put("a", "2"),
        delete("a"),
        put("a", "3"),
        put("a", "4"),
    ] {
        world.run(command);
    }
    let stream = world.hub.open();
    let previous = |world: &mut World, start_revision| -> Vec<Option<Bytes>> {
        let request = WatchRequest {
            prev_kv: true,
            start_revision,
            ..on("a")
        };
        let outputs = world.watch(stream, request);
        let events = outputs.iter().filter_map(|output| match output {
            WatchOutput::Events { events, .. } => Some(events),
            _ => None,
        });
        events
            .flatten()
            .map(|event| event.prev_kv.as_ref().map(|kv| kv.value.clone()))
            .collect()
    };
    let expected: Vec<Option<Bytes>> = vec![None, Some("1".into()), Some("2".into()), None, Some("3".into())];
    assert_eq!(previous(&mut world, 2), expected);
    world.apply(Command::Compact(4));
    assert_eq!(previous(&mut world, 4), [None, None, Some("3".into())]);
    while world.machine.maintenance(0).unwrap().pending {}
    assert_eq!(previous(&mut world, 4), [None, None, Some("3".into())]);
}

#[test]
fn filters_leave_out_and_say_nothing() {
    let mut world = World::new(HubOptions::default());
    let stream = world.hub.open();
    world.watch(
        stream,
        WatchRequest {
            no_put: true,
            ..on("a")
        },
    );
    world.puts("a", 2);
    assert_eq!(world.hub.take(stream), []);
    world.run(delete("a"));
    let outputs = world.hub.take(stream);
    let WatchOutput::Events { events, .. } = &outputs[0] else {
        panic!("events")
    };
    assert_eq!(
        (events[0].kind, events[0].kv.mod_revision, events[0].kv.version),
        (EventKind::Delete, 4, 0)
    );
    assert_eq!(
        revisions(&world.watch(
            stream,
            WatchRequest {
                no_delete: true,
                ..from("a", 2)
            }
        )),
        [2, 3]
    );
}

#[test]
fn cancel_answers_once_and_knows_no_strangers() {
    let mut world = World::new(HubOptions::default());
    let stream = world.hub.open();
    world.watch(stream, on("a"));
    world.hub.cancel(stream, 7);
    assert_eq!(world.hub.take(stream), []);
    world.hub.cancel(stream, 0);
    world.hub.cancel(stream, 0);
    let canceled = WatchOutput::Canceled {
        watch_id: 0,
        revision: 1,
        created: false,
        reason: Cow::Borrowed(""),
        compact_revision: 0,
    };
    assert_eq!(world.hub.take(stream), [canceled]);
    world.puts("a", 1);
    assert_eq!(world.hub.take(stream), []);
    world.hub.close(stream);
    assert_eq!(world.hub.watchers(), (0, 0));
}

#[test]
fn progress_is_answered_when_all_watchers_of_the_stream_are_synced() {
    let mut world = World::new(HubOptions {
        ring_bytes: 0,
        ..HubOptions::default()
    });
    world.puts("a", 5);
    let (stream, other) = (world.hub.open(), world.hub.open());
    world.hub.progress_request(stream);
    assert_eq!(world.hub.take(stream), [], "nobody is there to be told");
    world.hub.create(other, from("a", 2));
    world.watch(stream, on("b"));
    world.hub.progress_request(stream);
    let all_of = |revision| WatchOutput::Progress {
        watch_id: -1,
        revision,
    };
    assert_eq!(world.hub.take(stream), [all_of(6)], "other streams do not matter");
    world.hub.create(stream, from("a", 3));
    world.hub.progress_request(stream);
    assert_eq!(
        world.hub.take(stream),
        [WatchOutput::Created {
            watch_id: 1,
            revision: 6
        }],
        "not yet"
    );
    world.catch_up();
    let outputs = world.hub.take(stream);
    assert_eq!(
        (revisions(&outputs), outputs.last()),
        (vec![3, 4, 5, 6], Some(&all_of(6)))
    );
    // A watcher that starts in the future has not come so far.
    world.watch(stream, from("a", 9));
    world.hub.progress_request(stream);
    world.puts("x", 1);
    assert_eq!(world.hub.take(stream), []);
    world.puts("x", 1);
    assert_eq!(world.hub.take(stream), [all_of(8)]);
}

#[test]
fn a_tick_tells_the_quiet_ones() {
    let mut world = World::new(HubOptions::default());
    let stream = world.hub.open();
    let notified = |key| WatchRequest {
        progress_notify: true,
        ..on(key)
    };
    world.watch(stream, notified("a"));
    world.watch(stream, notified("b"));
    world.watch(stream, on("c"));
    world.puts("a", 1);
    world.hub.take(stream);
    world.hub.tick(stream);
    assert_eq!(
        world.hub.take(stream),
        [WatchOutput::Progress {
            watch_id: 1,
            revision: 2
        }]
    );
    world.hub.tick(stream);
    assert_eq!(world.hub.take(stream).len(), 2);
}

/// All changes of a revision come in one message, or, if the watcher allows it, in marked pieces.
#[test]
fn a_revision_is_divided_only_for_those_who_asked() {
    let options = HubOptions {
        stream_bytes_max: 1_000,
        fragment_bytes_max: 1_000,
        ..HubOptions::default()
    };
    let mut world = World::new(options);
    let stream = world.hub.open();
    world.watch(
        stream,
        WatchRequest {
            fragment: true,
            ..all()
        },
    );
    world.watch(stream, all());
    let ops = (0..40).map(|n| {
        let (key, value) = (Bytes::from(format!("{n:02}")), Bytes::from_static(&[b'v'; 50]));
        RequestOp::Put(PutRequest {
            key,
            value,
            ..PutRequest::default()
        })
    });
    world.run(Command::Txn(TxnRequest {
        success: ops.collect(),
        ..TxnRequest::default()
    }));
    let messages = |outputs: Vec<WatchOutput>| -> Vec<(i64, usize, bool)> {
        let message = |output| match output {
            WatchOutput::Events {
                watch_id,
                events,
                fragment,
                ..
            } => (watch_id, events.len(), fragment),
            other => panic!("{other:?}"),
        };
        outputs.into_iter().map(message).collect()
    };
    // One event takes 102 bytes.
    let pieces = [
        (0, 9, true),
        (0, 9, true),
        (0, 9, true),
        (0, 9, true),
        (0, 4, false),
    ];
    assert_eq!(messages(world.hub.take(stream)), pieces);
    // The second watcher found no room, and is served when the stream has been read.
    world.catch_up();
    assert_eq!(messages(world.hub.take(stream)), [(1, 40, false)]);
}

/// A stream that is not read holds its limit, whatever is published; then it gets all of it.
#[test]
fn a_slow_stream_costs_its_limit_and_loses_nothing() {
    let options = HubOptions {
        ring_bytes: 5_000,
        stream_bytes_max: 2_000,
        ..HubOptions::default()
    };
    let mut world = World::new(options);
    let (slow, fast) = (world.hub.open(), world.hub.open());
    world.watch(slow, all());
    world.watch(fast, all());
    let mut fast_seen = Vec::new();
    for _ in 0..200 {
        world.puts("a", 1);
        world.catch_up();
        fast_seen.extend(revisions(&world.hub.take(fast)));
        assert!(world.hub.streams[&slow].bytes() <= 2_000);
    }
    let expected: Vec<Revision> = (2..=201).collect();
    assert_eq!(fast_seen, expected);
    assert_eq!(world.hub.watchers(), (2, 1));
    let mut slow_seen = Vec::new();
    while slow_seen.len() < 200 {
        let outputs = world.hub.take(slow);
        assert!(!outputs.is_empty());
        slow_seen.extend(revisions(&outputs));
        world.catch_up();
    }
    assert_eq!(slow_seen, expected);
    assert_eq!(world.hub.watchers(), (2, 0));
    assert!(!world.hub.is_full(slow));
}

/// Readers are ahead of the hub: what history shows beyond the hub's revision comes by `publish`, and once.
#[test]
fn history_ahead_of_the_hub_is_neither_lost_nor_doubled() {
    let mut world = World::new(HubOptions {
        ring_bytes: 0,
        ..HubOptions::default()
    });
    world.puts("a", 4);
    let unpublished: Vec<RevisionEvents> = (0..3)
        .flat_map(|n| world.apply(put("a", &format!("late {n}"))))
        .collect();
    let stream = world.hub.open();
    world.hub.create(stream, from("a", 2));
    let reader = world.machine.reader();
    assert_eq!(world.hub.catch_up(&reader, CatchUpBudget::default()), Ok(false));
    assert_eq!(revisions(&world.hub.take(stream)), [2, 3, 4, 5]);
    world.hub.publish(&unpublished);
    assert_eq!(revisions(&world.hub.take(stream)), [6, 7, 8]);
}

#[test]
#[should_panic(expected = "revisions are published one after the other")]
fn a_revision_left_out_is_a_bug() {
    let mut world = World::new(HubOptions::default());
    world.apply(put("a", "1"));
    world.puts("a", 1);
}

/// A snapshot takes the state's place: what was not published comes from its history.
#[test]
fn an_installed_snapshot_leaves_no_gap() {
    let mut world = World::new(HubOptions::default());
    let stream = world.hub.open();
    world.watch(stream, all());
    world.watch(
        stream,
        WatchRequest {
            start_revision: 6,
            ..all()
        },
    );
    world.puts("a", 2);
    let mut other = StateMachine::open(MemStore::new(), Options::default()).unwrap();
    for index in 1..=8 {
        other
            .apply(&[entry(index, put("a", &format!("value {}", index - 1)))])
            .unwrap();
    }
    world.machine.replace(other);
    world.hub.reset(world.machine.revision());
    world.catch_up();
    world.puts("a", 1);
    let seen = revisions(&world.hub.take(stream));
    let of = |from: Revision| (from..=10).filter(|revision| *revision <= 10);
    let mut expected: Vec<Revision> = of(2).chain(of(6)).collect();
    expected.sort();
    let mut sorted = seen;
    sorted.sort();
    assert_eq!(sorted, expected);
}
