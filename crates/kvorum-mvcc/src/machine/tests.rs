#![allow(clippy::unwrap_used)]

use super::*;
use crate::store::MemStore;
use kvorum_model::{Command, Envelope, KeyRange, PutRequest, RangeRequest};

fn entry(index: u64, command: Command) -> ApplyEntry {
    let envelope = Envelope {
        time_ms: index,
        origin: Origin {
            member: 1,
            boot: 2,
            seq: index,
        },
        session: None,
        command,
    };
    ApplyEntry {
        index,
        term: 1,
        payload: Payload::Command(envelope.encode()),
    }
}

#[test]
fn smoke() {
    let mut machine = StateMachine::open(MemStore::new(), Options::default()).unwrap();
    let put = |n: u64, k: &str| {
        entry(
            n,
            Command::Put(PutRequest {
                key: k.to_string().into(),
                value: "v".into(),
                ..Default::default()
            }),
        )
    };
    let out = machine.apply(&[put(1, "a"), put(2, "b"), put(3, "a")]).unwrap();
    assert_eq!(out.replies.len(), 3);
    assert_eq!(out.events.len(), 3);
    assert_eq!(machine.revision(), 4);
    let view = machine.reader().view();
    let all = view
        .range(&RangeRequest {
            range: KeyRange::prefix(b""),
            ..Default::default()
        })
        .unwrap();
    assert_eq!(all.kvs.len(), 2);
    assert_eq!(all.kvs[0].version, 2);
    let mut reader = machine.snapshot();
    let mut sink = crate::SnapshotSink::new(MemStore::new()).unwrap();
    while let Some(frame) = reader.next_frame().unwrap() {
        sink.push(frame).unwrap();
    }
    let other = sink.finish(Options::default()).unwrap();
    assert_eq!(other.digest(), machine.digest());
}
