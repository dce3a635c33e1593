#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use kvorum_model::{Command, PutRequest};

use super::*;
use crate::machine::tests::{entry, put};
use crate::machine::{Options, StateMachine};
use crate::store::{Batch, MemStore, Store};

fn machine(keys: usize, value_bytes: usize) -> StateMachine<MemStore> {
    let mut machine = StateMachine::open(MemStore::new(), Options::default()).unwrap();
    for n in 0..keys {
        let value = Bytes::from(vec![n as u8; value_bytes]);
        let command = Command::Put(PutRequest {
            key: format!("{n:05}").into(),
            value,
            ..PutRequest::default()
        });
        machine.apply(&[entry(n as u64 + 1, command)]).unwrap();
    }
    machine
}

fn frames(machine: &StateMachine<MemStore>) -> Vec<Bytes> {
    let mut reader = machine.snapshot();
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        frames.push(frame);
    }
    frames
}

fn sink() -> SnapshotSink<MemStore> {
    SnapshotSink::new(MemStore::new()).unwrap()
}

fn install(frames: &[Bytes]) -> Result<StateMachine<MemStore>, SnapshotError> {
    let mut sink = sink();
    for frame in frames {
        sink.push(frame.clone())?;
    }
    sink.finish(Options::default())
}

#[test]
fn chunks_are_at_most_a_mebibyte_but_for_a_single_record() {
    let mut machine = machine(30, 100_000);
    let big = Command::Put(PutRequest {
        key: "00010a".into(),
        value: vec![1; 1_500_000].into(),
        ..PutRequest::default()
    });
    machine.apply(&[entry(31, big)]).unwrap();
    let frames = frames(&machine);
    assert_eq!(SnapshotHeader::from_frame(frames[0].clone()).unwrap().index, 31);
    let long: Vec<usize> = frames
        .iter()
        .map(Bytes::len)
        .filter(|bytes| *bytes > 1 << 20)
        .collect();
    assert_eq!(long.len(), 1);
    assert!(frames.len() > 5);
    for frame in &frames {
        assert_eq!(frame_bytes(&frame[..FRAME_HEADER_BYTES]).unwrap(), frame.len());
    }
    let installed = install(&frames).unwrap();
    assert_eq!(installed.digest(), machine.digest());
    assert_eq!(installed.flushed(), 31);
    assert_eq!(
        installed
            .reader()
            .view()
            .get(b"00010a")
            .unwrap()
            .unwrap()
            .value
            .len(),
        1_500_000
    );
}

#[test]
fn an_empty_state_is_a_snapshot_too() {
    let frames = frames(&machine(0, 0));
    assert_eq!(frames.len(), 2);
    assert_eq!(install(&frames).unwrap().revision(), 1);
}

/// The snapshot is of the state when it was taken, whatever is applied while it is read.
#[test]
fn a_snapshot_stands_still() {
    let mut machine = machine(200, 20_000);
    let expected = frames(&machine);
    let mut reader = machine.snapshot();
    let mut got = vec![reader.next_frame().unwrap().unwrap()];
    machine.apply(&[entry(201, put("00000", "changed"))]).unwrap();
    while let Some(frame) = reader.next_frame().unwrap() {
        got.push(frame);
    }
    assert_eq!(got, expected);
}

#[test]
fn a_transfer_resumes_at_a_chunk() {
    let machine = machine(200, 20_000);
    let whole = frames(&machine);
    let mut reader = machine.snapshot();
    let mut sink = sink();
    for _ in 0..3 {
        sink.push(reader.next_frame().unwrap().unwrap()).unwrap();
    }
    // Sent and lost on the way.
    reader.next_frame().unwrap();
    let lost = reader.next_frame().unwrap().unwrap();
    assert_eq!(sink.push(lost), Err(SnapshotError::Order { expected: 2, got: 3 }));
    reader.resume(sink.next_chunk());
    assert_eq!(sink.push(whole[0].clone()), Ok(()), "the header comes again");
    let repeated = sink.push(whole[1].clone());
    assert_eq!(repeated, Err(SnapshotError::Order { expected: 2, got: 0 }));
    while let Some(frame) = reader.next_frame().unwrap() {
        sink.push(frame).unwrap();
    }
    assert!(sink.is_complete());
    assert_eq!(
        sink.finish(Options::default()).unwrap().digest(),
        machine.digest()
    );
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let frames = frames(&machine(20, 10));
    for (number, frame) in frames.iter().enumerate() {
        for at in 0..frame.len() {
            let mut damaged = frame.to_vec();
            damaged[at] ^= 1 << (at % 8);
            let mut sink = sink();
            for good in &frames[..number] {
                sink.push(good.clone()).unwrap();
            }
            assert!(sink.push(damaged.into()).is_err(), "byte {at} of frame {number}");
            // The right frame may follow.
            for good in &frames[number..] {
                sink.push(good.clone()).unwrap();
            }
            assert!(sink.is_complete());
        }
        for cut in [0, 1, FRAME_HEADER_BYTES, frame.len() - 1] {
            let mut sink = sink();
            frames[..number]
                .iter()
                .for_each(|good| sink.push(good.clone()).unwrap());
            assert!(sink.push(frame.slice(..cut)).is_err());
        }
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (one, other) = (frames(&machine(200, 20_000)), frames(&machine(200, 20_001)));
    assert_eq!(
        install(&one[..one.len() - 1]).unwrap_err(),
        SnapshotError::Incomplete
    );
    assert!(matches!(
        install(&one[1..]).unwrap_err(),
        SnapshotError::Damaged(_)
    ));
    let mut mixed = one.clone();
    mixed[2] = other[2].clone();
    assert!(matches!(install(&mixed).unwrap_err(), SnapshotError::Damaged(_)));
    let mut short = one.clone();
    short.remove(2);
    assert!(matches!(
        install(&short).unwrap_err(),
        SnapshotError::Order { .. }
    ));
    let headers = [one[0].clone(), other[0].clone()];
    assert!(matches!(
        install(&headers).unwrap_err(),
        SnapshotError::Damaged(_)
    ));
    // A header that promises another state than the chunks hold, with hashes that agree.
    let mut header = SnapshotHeader::from_frame(one[0].clone()).unwrap();
    header.digest += 1;
    let (header, header_hash) = header.encode();
    let chunks: Vec<format::Hash> = one[1..one.len() - 1]
        .iter()
        .map(|frame| format::Frame::decode(frame.clone()).unwrap().1)
        .collect();
    let mut forged = one.clone();
    *forged.last_mut().unwrap() = format::end_frame(records(&one), &header_hash, &chunks);
    forged[0] = header;
    let error = install(&forged).unwrap_err();
    assert_eq!(
        error,
        SnapshotError::Damaged("what it holds is not what its header says")
    );
}

fn records(frames: &[Bytes]) -> u64 {
    let count = |frame: &Bytes| match format::Frame::decode(frame.clone()).unwrap().0 {
        format::Frame::Chunk { records, .. } => records.len() as u64,
        _ => 0,
    };
    frames.iter().map(count).sum()
}

#[test]
fn only_an_empty_store_takes_a_snapshot() {
    let used = MemStore::new();
    used.write(Batch {
        writes: vec![],
        mark: 1,
    })
    .unwrap();
    used.flush().unwrap();
    assert_eq!(SnapshotSink::new(used).unwrap_err(), SnapshotError::NotEmpty);
    let machine = machine(3, 3);
    let store = machine.store().crash();
    assert!(SnapshotSink::new(store).is_ok(), "nothing of it was flushed");
}

#[test]
fn a_full_store_refuses_a_chunk_and_says_so() {
    let frames = frames(&machine(10, 10));
    let store = MemStore::new();
    store.set_fault(Some(StoreError::NoSpace));
    let mut sink = SnapshotSink::new(store).unwrap();
    sink.push(frames[0].clone()).unwrap();
    assert_eq!(
        sink.push(frames[1].clone()),
        Err(SnapshotError::Store(StoreError::NoSpace))
    );
}
