//! Sorted answers: etcd's sort leaves open in what order records come that are equal in what is sorted by, and which
//! of them a limit cuts off. Here such records are put in the order of their keys, and where the limit cut through
//! them, only what is sorted by is kept of them.

use kvorum_client::proto::etcd::range_request::{SortOrder, SortTarget};
use kvorum_client::proto::etcd::request_op::Request as Op;
use kvorum_client::proto::etcd::response_op::Response;
use kvorum_client::proto::etcd::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use kvorum_client::proto::mvcc::KeyValue;

use super::{Answer, Request};

/// Levels the sorted answers in an answer.
pub fn level(request: &Request, answer: &mut Answer) {
    match (request, answer) {
        (Request::Range(request), Answer::Range(answer)) => level_range(request, answer),
        (Request::Txn(request), Answer::Txn(answer)) => level_txn(request, answer),
        _ => {}
    }
}

fn level_txn(request: &TxnRequest, answer: &mut TxnResponse) {
    let ops = if answer.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (op, answer) in ops.iter().zip(&mut answer.responses) {
        match (&op.request, &mut answer.response) {
            (Some(Op::RequestRange(request)), Some(Response::ResponseRange(answer))) => {
                level_range(request, answer);
            }
            (Some(Op::RequestTxn(request)), Some(Response::ResponseTxn(answer))) => {
                level_txn(request, answer)
            }
            _ => {}
        }
    }
}

fn level_range(request: &RangeRequest, answer: &mut RangeResponse) {
    let target = request.sort_target();
    if target == SortTarget::Key && request.sort_order() == SortOrder::None {
        return;
    }
    // Of equal values nobody knows once they are left out: then all may be equal.
    let hidden = request.keys_only && target == SortTarget::Value;
    let equal = |a: &KeyValue, b: &KeyValue| hidden || sorted_by(target, a) == sorted_by(target, b);
    let cut = answer.more;
    let mut groups: Vec<&mut [KeyValue]> = answer.kvs.chunk_by_mut(equal).collect();
    for group in &mut groups {
        group.sort_by(|a, b| a.key.cmp(&b.key));
    }
    if cut && let Some(last) = groups.last_mut() {
        for kv in last.iter_mut() {
            *kv = sorted_by(target, kv);
        }
    }
}

/// A record with nothing but what is sorted by.
fn sorted_by(target: SortTarget, kv: &KeyValue) -> KeyValue {
    let mut only = KeyValue::default();
    match target {
        SortTarget::Key => only.key = kv.key.clone(),
        SortTarget::Version => only.version = kv.version,
        SortTarget::Create => only.create_revision = kv.create_revision,
        SortTarget::Mod => only.mod_revision = kv.mod_revision,
        SortTarget::Value => only.value = kv.value.clone(),
    }
    only
}

#[test]
fn only_what_sorting_leaves_open_is_levelled() {
    let kv = |key: &'static str, version| KeyValue {
        key: key.into(),
        version,
        ..Default::default()
    };
    let levelled = |kvs: Vec<KeyValue>, more| {
        let request = RangeRequest {
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Version.into(),
            ..Default::default()
        };
        let mut answer = RangeResponse {
            kvs,
            more,
            ..Default::default()
        };
        level_range(&request, &mut answer);
        answer.kvs
    };
    let sorted = [kv("a", 1), kv("b", 1), kv("c", 2)];
    assert_eq!(levelled(vec![kv("b", 1), kv("a", 1), kv("c", 2)], false), sorted);
    assert_eq!(
        levelled(vec![kv("b", 1), kv("a", 1), kv("c", 2)], true)[2],
        kv("", 2)
    );
    let wrong = vec![kv("c", 2), kv("a", 1), kv("b", 1)];
    assert_eq!(levelled(wrong.clone(), false), wrong);
}
