//! Single rules, by name.

use kvorum_model::{
    Compare, CompareResult, CompareTarget, DecodeError, DeleteRangeRequest, Error, KeyRange, MemberRecord,
    PutRequest, RangeRequest, Reply, RequestOp, Setting, TxnRequest, limits,
};

use super::*;
use crate::machine::Fatal;
use crate::read::{ReadError, Wanted};
use crate::store::{Store, StoreError};

fn range(request: RangeRequest) -> RequestOp {
    RequestOp::Range(request)
}

fn all() -> RangeRequest {
    RangeRequest {
        range: KeyRange::prefix(b""),
        ..RangeRequest::default()
    }
}

fn point(key: &str) -> RangeRequest {
    RangeRequest {
        range: KeyRange::point(key.to_string()),
        ..RangeRequest::default()
    }
}

fn delete(key: &str) -> Command {
    Command::DeleteRange(DeleteRangeRequest {
        range: KeyRange::point(key.to_string()),
        prev_kv: false,
    })
}

#[test]
fn what_changes_nothing_has_an_index_and_no_revision() {
    let mut machine = open(MemStore::new());
    assert_eq!(machine.revision(), 1);
    apply(&mut machine, put("a", "1"));
    assert_eq!(machine.revision(), 2);
    for command in [
        delete("missing"),
        Command::Txn(TxnRequest::default()),
        Command::Register,
        Command::Compact(2),
        Command::Txn(TxnRequest {
            success: vec![range(all())],
            ..TxnRequest::default()
        }),
    ] {
        let applied = apply(&mut machine, command);
        assert!(applied.result.is_ok());
        assert_eq!(applied.revision, 2);
    }
    let out = machine
        .apply(&[ApplyEntry {
            index: 7,
            term: 1,
            payload: Payload::Noop,
        }])
        .unwrap();
    assert_eq!(
        (out.replies.len(), machine.revision(), machine.applied()),
        (0, 2, (1, 7))
    );
    apply(&mut machine, put("a", "1"));
    assert_eq!(
        machine.revision(),
        3,
        "the same value makes a revision all the same"
    );
}

#[test]
fn versions_begin_again_after_a_deletion() {
    let mut machine = open(MemStore::new());
    for command in [put("a", "1"), put("a", "2"), delete("a"), put("a", "3")] {
        apply(&mut machine, command);
    }
    let kv = machine.reader().view().get(b"a").unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn revisions_out_of_range_are_refused() {
    let mut machine = open(MemStore::new());
    for n in 0..9 {
        apply(&mut machine, put("a", &n.to_string()));
    }
    assert_eq!(
        apply(&mut machine, Command::Compact(11)).result,
        Err(Error::FutureRevision)
    );
    assert_eq!(
        apply(&mut machine, Command::Compact(5)).result,
        Ok(Reply::Compact)
    );
    assert_eq!(
        apply(&mut machine, Command::Compact(5)).result,
        Err(Error::Compacted)
    );
    let view = machine.reader().view();
    let at = |revision| {
        view.range(&RangeRequest {
            revision,
            ..point("a")
        })
        .map(|found| found.kvs[0].version)
    };
    assert_eq!(at(4), Err(ReadError::Request(Error::Compacted)));
    assert_eq!(at(5), Ok(4));
    assert_eq!(at(10), Ok(9));
    assert_eq!(at(-7), Ok(9));
    assert_eq!(at(11), Err(ReadError::Request(Error::FutureRevision)));
    let history = view.history(4, 1, 1, |_, _, _| Wanted::Yes);
    assert_eq!(history.unwrap_err(), ReadError::Request(Error::Compacted));
}

/// etcd holds the revisions that a transaction reads against the state before it, and refuses all of it.
#[test]
fn a_read_error_ends_the_transaction_before_any_write() {
    let mut machine = open(MemStore::new());
    apply(&mut machine, put("a", "1"));
    apply(&mut machine, put("a", "2"));
    // Before the first compaction only -1 is the newest, as in etcd.
    for (revision, expected) in [(-1, None), (-2, Some(Error::Compacted))] {
        let txn = TxnRequest {
            success: vec![range(RangeRequest {
                revision,
                ..point("a")
            })],
            ..TxnRequest::default()
        };
        let read_only = machine.reader().view().txn(&txn, usize::MAX);
        assert_eq!(read_only.err(), expected.clone().map(ReadError::Request));
        let logged = apply(&mut machine, Command::Txn(txn)).result;
        assert_eq!(logged.err(), expected);
    }
    apply(&mut machine, Command::Compact(3));
    let write = || {
        RequestOp::Put(PutRequest {
            key: "w".into(),
            ..PutRequest::default()
        })
    };
    let read = |revision| {
        range(RangeRequest {
            revision,
            ..point("a")
        })
    };
    for (revision, error) in [
        (2, Error::Compacted),
        (4, Error::FutureRevision),
        (-1, Error::Compacted),
    ] {
        let txn = TxnRequest {
            success: vec![write(), read(revision)],
            ..TxnRequest::default()
        };
        let nested = RequestOp::Txn(TxnRequest {
            failure: vec![],
            success: vec![read(revision)],
            compare: vec![],
        });
        let deep = TxnRequest {
            success: vec![write(), nested],
            ..TxnRequest::default()
        };
        for txn in [txn, deep] {
            assert_eq!(apply(&mut machine, Command::Txn(txn)).result, Err(error.clone()));
        }
        // One that only reads, without the log: this way once took a negative revision for the newest.
        let read_only = TxnRequest {
            success: vec![read(revision)],
            ..TxnRequest::default()
        };
        let answer = machine.reader().view().txn(&read_only, usize::MAX);
        assert_eq!(answer.unwrap_err(), ReadError::Request(error));
    }
    assert_eq!(machine.revision(), 3);
    assert_eq!(machine.reader().view().get(b"w").unwrap(), None);
}

/// A transaction in a slice reads a revision that an earlier entry of the slice made.
#[test]
fn a_revision_of_the_same_slice_can_be_read() {
    let mut machine = open(MemStore::new());
    let read = TxnRequest {
        success: vec![range(RangeRequest {
            revision: 2,
            ..point("a")
        })],
        ..TxnRequest::default()
    };
    let entries = [
        entry(1, put("a", "1")),
        entry(2, put("a", "2")),
        entry(3, Command::Txn(read)),
        entry(4, put("a", "3")),
    ];
    let outcome = machine.apply(&entries).unwrap();
    let Ok(Reply::Txn(reply)) = &outcome.replies[2].result else {
        panic!("a transaction's reply")
    };
    let kvorum_model::ResponseOp::Range(found) = &reply.responses[0] else {
        panic!("a range's reply")
    };
    assert_eq!(found.kvs[0].value.as_ref(), b"1");
    // One by one, they come to the same digest.
    let mut single = open(MemStore::new());
    for entry in entries {
        single.apply(&[entry]).unwrap();
    }
    assert_eq!(single.digest(), machine.digest());
}

#[test]
fn compares_see_the_state_before_the_outermost_transaction() {
    let mut machine = open(MemStore::new());
    let missing = Compare {
        range: KeyRange::point("k"),
        result: CompareResult::Equal,
        target: CompareTarget::Create(0),
    };
    let nested = TxnRequest {
        compare: vec![missing.clone()],
        success: vec![RequestOp::Range(point("k"))],
        failure: vec![],
    };
    let txn = TxnRequest {
        compare: vec![missing.clone()],
        success: vec![
            RequestOp::Put(PutRequest {
                key: "k".into(),
                ..PutRequest::default()
            }),
            RequestOp::Txn(nested),
        ],
        failure: vec![],
    };
    let Ok(Reply::Txn(reply)) = apply(&mut machine, Command::Txn(txn)).result else {
        panic!("a reply")
    };
    let kvorum_model::ResponseOp::Txn(inner) = &reply.responses[1] else {
        panic!("the nested reply")
    };
    assert!(inner.succeeded, "the key is missing in the state before");
    let kvorum_model::ResponseOp::Range(found) = &inner.responses[0] else {
        panic!("a range")
    };
    assert_eq!(found.count, 1, "reads see the transaction's own writes");
    let value = Compare {
        target: CompareTarget::Value(Bytes::new()),
        ..missing
    };
    let read_only = TxnRequest {
        compare: vec![Compare {
            range: KeyRange::point("other"),
            ..value
        }],
        success: vec![],
        failure: vec![range(all())],
    };
    let reply = machine.reader().view().txn(&read_only, usize::MAX).unwrap();
    assert!(!reply.succeeded, "no comparison with a missing value holds");
    let too_large = machine.reader().view().txn(&read_only, 10);
    assert_eq!(too_large.unwrap_err(), ReadError::TooLarge { bytes_max: 10 });
}

/// A guard on the number of live keys holds inside one batch of entries as well: each entry counts those before it.
#[test]
fn a_guard_on_the_number_of_keys_lets_exactly_that_many_in() {
    let mut machine = open(MemStore::new());
    apply(&mut machine, put("there", "1"));
    let guarded = |key: String| TxnRequest {
        compare: vec![Compare {
            range: KeyRange::prefix(b""),
            result: CompareResult::Less,
            target: CompareTarget::LiveKeys(3),
        }],
        success: vec![RequestOp::Put(PutRequest {
            key: key.into(),
            ..PutRequest::default()
        })],
        failure: vec![],
    };
    let entries: Vec<ApplyEntry> = (0..5)
        .map(|n| entry(2 + n, Command::Txn(guarded(format!("k{n}")))))
        .collect();
    let won: Vec<bool> = machine
        .apply(&entries)
        .unwrap()
        .replies
        .into_iter()
        .map(|applied| matches!(applied.result, Ok(Reply::Txn(reply)) if reply.succeeded))
        .collect();
    assert_eq!(won, [true, true, false, false, false]);
    // One that goes makes room for one.
    apply(&mut machine, delete("there"));
    for (key, expected) in [("x", true), ("y", false)] {
        let Ok(Reply::Txn(reply)) = apply(&mut machine, Command::Txn(guarded(key.into()))).result else {
            panic!("a reply")
        };
        assert_eq!(reply.succeeded, expected, "{key}");
    }
}

#[test]
fn answers_have_a_limit_in_bytes_and_pages_do_not_need_it() {
    let mut machine = open(MemStore::new());
    for n in 0..300 {
        apply(&mut machine, put(&format!("{n:03}"), &"x".repeat(100)));
    }
    let view = machine.reader().view();
    assert_eq!(
        view.range_within(&all(), 10_000),
        Err(ReadError::TooLarge { bytes_max: 10_000 })
    );
    assert_eq!(view.range_within(&all(), 50_000).unwrap().count, 300);
    let first = view
        .range_within(&RangeRequest { limit: 7, ..all() }, 2_000)
        .unwrap();
    assert_eq!((first.kvs.len(), first.more, first.count), (7, true, 300));

    let mut pages = 0;
    let mut found = Vec::new();
    let mut next = KeyRange::prefix(b"");
    loop {
        let page = view.page(&next, 0, 50, 3_000).unwrap();
        assert!(page.kvs.len() <= 21);
        pages += 1;
        found.extend(page.kvs);
        let Some(key) = page.next else { break };
        next.key = key;
    }
    assert!(pages > 10);
    assert_eq!(found, view.range(&all()).unwrap().kvs);
}

/// A hot key with many versions costs its neighbours nothing: they are jumped over.
#[test]
fn old_revisions_of_a_hot_key_are_found() {
    let mut machine = open(MemStore::new());
    apply(&mut machine, put("a", "first"));
    for n in 0..500 {
        apply(&mut machine, put("hot", &n.to_string()));
    }
    apply(&mut machine, put("z", "last"));
    let view = machine.reader().view();
    for (revision, expected) in [
        (2, vec![("a", 2)]),
        (3, vec![("a", 2), ("hot", 3)]),
        (250, vec![("a", 2), ("hot", 250)]),
        (502, vec![("a", 2), ("hot", 502)]),
        (503, vec![("a", 2), ("hot", 502), ("z", 503)]),
    ] {
        let found = view.range(&RangeRequest { revision, ..all() }).unwrap();
        let found: Vec<_> = found
            .kvs
            .iter()
            .map(|kv| (kv.key.as_ref(), kv.mod_revision))
            .collect();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(key, at)| (key.as_bytes(), at))
            .collect();
        assert_eq!(found, expected, "{revision}");
    }
}

#[test]
fn entries_come_in_order_and_each_once() {
    let mut machine = open(MemStore::new());
    apply(&mut machine, put("a", "1"));
    for index in [1, 3] {
        let mut other = open(MemStore::new());
        other.apply(&[entry(1, put("a", "1"))]).unwrap();
        let error = other.apply(&[entry(index, put("a", "2"))]).unwrap_err();
        assert_eq!(
            error,
            Fatal::Order {
                applied: 1,
                got: index
            }
        );
        assert_eq!(other.apply(&[entry(2, put("a", "2"))]), Err(Fatal::Stopped));
    }
    assert!(machine.apply(&[]).unwrap().replies.is_empty());
}

#[test]
fn a_failing_store_stops_the_machine_and_readers_keep_the_old_state() {
    let mut machine = open(MemStore::new());
    apply(&mut machine, put("a", "1"));
    let reader = machine.reader();
    machine.store().set_fault(Some(StoreError::Io("broken".into())));
    let error = machine.apply(&[entry(2, put("a", "2"))]).unwrap_err();
    assert_eq!(error, Fatal::Store(StoreError::Io("broken".into())));
    assert_eq!(reader.view().revision(), 2);
    assert_eq!(reader.view().get(b"a").unwrap().unwrap().value.as_ref(), b"1");
}

#[test]
fn an_unknown_command_stops_the_node_unless_it_is_skipped_on_all() {
    let mut bytes = Envelope {
        time_ms: 1,
        origin: Origin {
            member: 1,
            boot: 2,
            seq: 3,
        },
        session: None,
        caller: None,
        command: Command::Register,
    }
    .encode()
    .to_vec();
    *bytes.last_mut().unwrap() = 200;
    let entry = ApplyEntry {
        index: 1,
        term: 1,
        payload: Payload::Command(bytes.into()),
    };
    let error = open(MemStore::new())
        .apply(std::slice::from_ref(&entry))
        .unwrap_err();
    assert_eq!(
        error,
        Fatal::Decode {
            index: 1,
            error: DecodeError::Newer {
                what: "command",
                value: 200
            }
        }
    );
    assert!(error.to_string().contains("--skip-entry 1"));
    let options = Options {
        skip: [1].into(),
        ..Options::default()
    };
    let mut machine = StateMachine::open(MemStore::new(), options).unwrap();
    let applied = machine.apply(&[entry]).unwrap().replies.pop().unwrap();
    assert_eq!(applied.result, Err(Error::Skipped));
    assert_eq!(
        applied.origin,
        Origin {
            member: 1,
            boot: 2,
            seq: 3
        }
    );
}

#[test]
fn oversize_keys_are_refused_at_apply_too() {
    let mut machine = open(MemStore::new());
    let key = "k".repeat(limits::KEY_BYTES_CEILING);
    assert!(apply(&mut machine, put(&key, "v")).result.is_ok());
    let longer = "k".repeat(limits::KEY_BYTES_CEILING + 1);
    let refused = apply(&mut machine, put(&longer, "v")).result.unwrap_err();
    assert_eq!(
        refused,
        Error::KeyTooLarge {
            bytes: 32_001,
            max: 32_000
        }
    );
    assert_eq!(apply(&mut machine, put("", "v")).result, Err(Error::EmptyKey));
    let lookup = machine.reader().view().get("k".repeat(70_000).as_bytes());
    assert!(matches!(
        lookup,
        Err(ReadError::Request(Error::KeyTooLarge { .. }))
    ));
}

/// A member that was moved since it last looked must not move itself back.
#[test]
fn a_member_that_says_no_address_stays_where_it_is() {
    let mut machine = open(MemStore::new());
    let founder = 0x1234_5678_9abc_def0;
    let record = |name: &str, addresses: &[&str]| MemberRecord {
        id: founder,
        name: name.to_owned(),
        peer_addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
        incarnation: 1,
        ..MemberRecord::default()
    };
    apply(
        &mut machine,
        Command::PublishMember(record("before", &["told:1"])),
    );
    let moved = Command::MoveMember {
        id: founder,
        peer_addresses: vec!["moved:1".to_owned()],
    };
    apply(&mut machine, moved);
    apply(&mut machine, Command::PublishMember(record("after", &[])));
    let cluster = machine.cluster();
    assert_eq!(cluster.members[&founder], record("after", &["moved:1"]));
}

/// A replacement says who it is as soon as it knows the cluster, which is before it has applied its own addition when
/// the log is long. That took the leader's order to promote it away, and it stayed a learner for ever.
#[test]
fn a_newcomer_that_says_who_it_is_too_early_is_still_to_be_promoted() {
    let mut machine = open(MemStore::new());
    let added = MemberRecord {
        id: 1,
        promote_when_ready: true,
        ..MemberRecord::default()
    };
    let published = MemberRecord {
        incarnation: 9,
        promote_when_ready: false,
        ..added.clone()
    };
    apply(&mut machine, Command::AddMember(added));
    apply(&mut machine, Command::PublishMember(published.clone()));
    let expected = MemberRecord {
        promote_when_ready: true,
        ..published
    };
    assert_eq!(machine.cluster().members[&1], expected);
}

#[test]
fn the_cluster_is_named_once_and_members_never_come_back() {
    let mut machine = open(MemStore::new());
    let member = |id: u64, incarnation: u128| MemberRecord {
        id,
        incarnation,
        ..MemberRecord::default()
    };
    apply(
        &mut machine,
        Command::ClusterInit {
            uuid: 5,
            election_timeout_ms: 750,
        },
    );
    apply(
        &mut machine,
        Command::ClusterInit {
            uuid: 6,
            election_timeout_ms: 9,
        },
    );
    let founder = u64::MAX - 3;
    apply(&mut machine, Command::PublishMember(member(founder, 1)));
    apply(&mut machine, Command::PublishMember(member(founder, 2)));
    apply(&mut machine, Command::AddMember(member(1, 0)));
    apply(&mut machine, Command::PublishMember(member(1, 9)));
    let replace = Command::Batch(vec![
        Command::RemoveMember(founder),
        Command::AddMember(member(2, 0)),
    ]);
    let context = Envelope {
        time_ms: 1,
        origin: Origin::default(),
        session: None,
        caller: None,
        command: replace,
    }
    .encode();
    let index = machine.applied().1 + 1;
    let payload = Payload::Config {
        configuration: "voters".into(),
        context,
    };
    let replies = machine
        .apply(&[ApplyEntry {
            index,
            term: 1,
            payload,
        }])
        .unwrap()
        .replies;
    assert_eq!(replies[0].result, Ok(Reply::Done));
    apply(&mut machine, Command::PublishMember(member(founder, 1)));
    apply(&mut machine, Command::ClusterSetting(Setting::HistoryMs(0)));

    let check = |machine: &StateMachine<MemStore>| {
        let cluster = machine.cluster();
        assert_eq!((cluster.uuid, cluster.election_timeout_ms), (5, 750));
        let incarnations: Vec<_> = cluster
            .members
            .iter()
            .map(|(id, m)| (*id, m.incarnation))
            .collect();
        assert_eq!(incarnations, [(1, 9), (2, 0)]);
        assert_eq!(
            (cluster.next_member, cluster.removed.clone()),
            (3, [founder].into())
        );
        assert_eq!(cluster.settings.history_ms, 0);
        assert_eq!(machine.configuration(), "voters");
    };
    check(&machine);
    let version = machine.cluster_version();
    apply(&mut machine, put("a", "1"));
    assert_eq!(machine.cluster_version(), version);
    machine.store().flush().unwrap();
    check(&open(machine.store().crash()));
}

#[test]
fn history_is_kept_for_an_hour() {
    let mut machine = open(MemStore::new());
    let minute = 60_000;
    for n in 1..=180u64 {
        machine
            .apply(&[timed(n, n * minute, None, put("a", "v"))])
            .unwrap();
    }
    // At minute 180, what was replaced before minute 120 may go. Entry n makes revision n + 1; the sample of its
    // minute was taken before it.
    assert_eq!(machine.compaction_target(180 * minute), Some(120));
    assert_eq!(machine.compaction_target(10 * minute), None);
    let target = machine.compaction_target(180 * minute).unwrap();
    machine
        .apply(&[timed(181, 180 * minute, None, Command::Compact(target))])
        .unwrap();
    assert_eq!(machine.compaction_target(180 * minute), None);
    machine.store().flush().unwrap();
    let mut again = open(machine.store().crash());
    assert_eq!(again.compaction_target(181 * minute), Some(121));
    again
        .apply(&[timed(
            182,
            0,
            None,
            Command::ClusterSetting(Setting::HistoryMs(0)),
        )])
        .unwrap();
    assert_eq!(again.compaction_target(999 * minute), None, "all of it is kept");
    assert_eq!(again.time_ms(), 180 * minute, "time does not go back");
}

#[test]
fn removal_keeps_to_its_rate_and_goes_on_after_a_crash() {
    let mut machine = open(MemStore::new());
    for n in 1..=5_000u64 {
        machine
            .apply(&[entry(n, put(&format!("{}", n % 7), "v"))])
            .unwrap();
    }
    machine.apply(&[entry(5_001, Command::Compact(5_001))]).unwrap();
    let digest = machine.digest();
    machine.options.removals_per_second = 2_000;
    let mut now_ms = 50_000;
    let mut removed = machine.maintenance(now_ms).unwrap().removed;
    assert_eq!(removed, 1000, "the first step, whatever the clock says");
    assert_eq!(machine.maintenance(now_ms).unwrap().removed, 0);
    now_ms += 10;
    let step = machine.maintenance(now_ms).unwrap();
    assert_eq!((step.removed, step.pending), (20, true));
    removed += 20;
    machine.store().flush().unwrap();
    let mut machine = open(machine.store().crash());
    assert_eq!(machine.reader().view().removed(), 0);
    while machine.reader().view().removed() < 5_001 {
        now_ms += 1000;
        removed += machine.maintenance(now_ms).unwrap().removed;
    }
    assert_eq!(removed, 5_000, "the mark went with the removals");
    assert!(!machine.maintenance(now_ms).unwrap().pending);
    assert_eq!(machine.digest(), digest);
    assert_eq!(machine.reader().view().range(&all()).unwrap().count, 7);
}

/// One revision with more changes than a step takes.
#[test]
fn removal_takes_a_large_revision_in_steps() {
    let mut machine = open(MemStore::new());
    for n in 1..=3_000u64 {
        machine.apply(&[entry(n, put(&format!("{n}"), "v"))]).unwrap();
    }
    let everything = DeleteRangeRequest {
        range: KeyRange::prefix(b""),
        prev_kv: false,
    };
    apply(&mut machine, Command::DeleteRange(everything));
    let compact = |machine: &mut StateMachine<MemStore>, revision| apply(machine, Command::Compact(revision));
    compact(&mut machine, 3_002).result.unwrap();
    for step in 1..5 {
        machine.maintenance(step * 1000).unwrap();
    }
    // In the middle of the large revision another compaction comes: its deletions go with the next walk.
    apply(&mut machine, put("new", "v"));
    compact(&mut machine, 3_003).result.unwrap();
    let mut now_ms = 100_000;
    while machine.maintenance(now_ms).unwrap().pending {
        now_ms += 1000;
    }
    let left = machine.store().view();
    let versions = crate::state::prefixed(&left, b"d").count();
    let history = crate::state::prefixed(&left, b"r").count();
    assert_eq!((versions, history), (1, 1));
}

#[test]
fn readers_stay_when_a_snapshot_takes_the_states_place() {
    let mut old = open(MemStore::new());
    apply(&mut old, put("a", "1"));
    let reader = old.reader();
    let before = reader.view();
    assert!(before.get(b"a").unwrap().is_some());
    let mut new = open(MemStore::new());
    for command in [put("a", "1"), put("a", "2"), delete("a"), put("b", "3")] {
        apply(&mut new, command);
    }
    old.replace(new);
    assert_eq!(
        before.get(b"a").unwrap().unwrap().value.as_ref(),
        b"1",
        "open views stay as they are"
    );
    assert_eq!(reader.view().get(b"a").unwrap(), None);
    assert_eq!(reader.view().revision(), 5);
    assert!(apply(&mut old, put("c", "4")).result.is_ok());
    assert_eq!(reader.view().revision(), 6);
}

/// What the digest is for: it differs as soon as an entry, a write or an outcome does, and never forgets.
#[test]
fn the_digest_covers_entries_writes_and_outcomes() {
    let digest = |entries: &[ApplyEntry]| {
        let mut machine = open(MemStore::new());
        machine.apply(entries).unwrap();
        machine.digest()
    };
    let noop = |index, term| ApplyEntry {
        index,
        term,
        payload: Payload::Noop,
    };
    let base = [entry(1, put("a", "1")), noop(2, 1)];
    let others = [
        vec![entry(1, put("a", "2")), noop(2, 1)],
        vec![entry(1, put("b", "1")), noop(2, 1)],
        vec![entry(1, put("a", "1")), noop(2, 2)],
        vec![entry(1, put("a", "1")), noop(2, 1), noop(3, 1)],
        vec![noop(1, 1), entry(2, put("a", "1"))],
    ];
    let mut seen: Vec<u128> = others.iter().map(|entries| digest(entries)).collect();
    seen.push(digest(&base));
    // Two refusals write the same and answer differently.
    let with = |put: PutRequest| digest(&[entry(1, Command::Put(put))]);
    seen.push(with(PutRequest {
        key: "a".into(),
        lease: 1,
        ..PutRequest::default()
    }));
    seen.push(with(PutRequest {
        key: "a".into(),
        ignore_value: true,
        ..PutRequest::default()
    }));
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count);
    assert_eq!(digest(&base), digest(&base));
}
