//! Where kvorum is meant to answer otherwise than etcd, with the reasons, and the proof that it does.
//!
//! A row whose difference is gone fails: delete it. Beside the rows: etcd sorts without keeping the order of records
//! that are equal in what is sorted by, kvorum leaves those in the order of their keys (`call/ties.rs`); and
//! HashKV at a revision that was compacted (`compacted.rs`): such requests are not drawn.

use kvorum_client::proto::etcd::range_request::{SortOrder, SortTarget};
use kvorum_client::proto::etcd::request_op::Request as Op;
use kvorum_client::proto::etcd::{self, RequestOp, TxnRequest};
use tonic::Code;

use crate::call::{Answer, Request, Server};
use crate::cluster::Cluster;
use crate::reference::Reference;
use crate::watches::Stream;

/// Whether the servers may answer this transaction differently (see the rows below): too many are named rather than
/// too few.
pub fn differs(txn: &TxnRequest) -> bool {
    (has_open_delete(txn) && has_put(txn)) || nested_delete_after_put(txn)
}

/// Whether both refuse a transaction that has several faults, for another one each: operations without content and
/// unknown sort options kvorum finds first, wherever they stand.
pub fn other_fault(request: &Request, ours: &Answer, theirs: &Answer) -> bool {
    let is_invalid = |answer: &Answer| matches!(answer, Answer::Refused(Code::InvalidArgument, _));
    let unreadable = |op: &Option<Op>| match op {
        None => true,
        Some(Op::RequestRange(range)) => {
            SortOrder::try_from(range.sort_order).is_err() || SortTarget::try_from(range.sort_target).is_err()
        }
        Some(_) => false,
    };
    matches!(request, Request::Txn(txn) if any(txn, &unreadable)) && is_invalid(ours) && is_invalid(theirs)
}

fn ops(txn: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    txn.success.iter().chain(&txn.failure)
}

fn any(txn: &TxnRequest, wanted: &dyn Fn(&Option<Op>) -> bool) -> bool {
    ops(txn).any(|op| match &op.request {
        Some(Op::RequestTxn(nested)) => any(nested, wanted),
        request => wanted(request),
    })
}

fn has_put(txn: &TxnRequest) -> bool {
    any(txn, &|op| matches!(op, Some(Op::RequestPut(_))))
}

fn has_delete(txn: &TxnRequest) -> bool {
    any(txn, &|op| matches!(op, Some(Op::RequestDeleteRange(_))))
}

fn has_open_delete(txn: &TxnRequest) -> bool {
    any(
        txn,
        &|op| matches!(op, Some(Op::RequestDeleteRange(delete)) if delete.range_end.as_ref() == b"\0"),
    )
}

fn nested_delete_after_put(txn: &TxnRequest) -> bool {
    [&txn.success, &txn.failure].into_iter().any(|list| {
        let mut put_before = false;
        list.iter().any(|op| {
            let Some(Op::RequestTxn(nested)) = &op.request else {
                return false;
            };
            let found = (put_before && has_delete(nested)) || nested_delete_after_put(nested);
            put_before |= has_put(nested);
            found
        })
    })
}

/// One intended difference.
struct Row {
    /// Why.
    reason: &'static str,
    request: Request,
    /// kvorum's refusal; the reference serves the request.
    ours: (Code, &'static str),
}

fn put(key: &'static str) -> RequestOp {
    op(Op::RequestPut(etcd::PutRequest {
        key: key.into(),
        ..Default::default()
    }))
}

fn delete(key: &'static str, range_end: &'static str) -> RequestOp {
    op(Op::RequestDeleteRange(etcd::DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..Default::default()
    }))
}

fn nested(success: Vec<RequestOp>) -> RequestOp {
    op(Op::RequestTxn(TxnRequest {
        success,
        ..Default::default()
    }))
}

fn op(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn txn(success: Vec<RequestOp>) -> Request {
    Request::Txn(TxnRequest {
        success,
        ..Default::default()
    })
}

fn compare(result: i32, target: i32) -> Request {
    let compare = etcd::Compare {
        result,
        target,
        key: "k".into(),
        ..Default::default()
    };
    Request::Txn(TxnRequest {
        compare: vec![compare],
        ..Default::default()
    })
}

fn rows() -> Vec<Row> {
    const DUPLICATE: (Code, &str) = (
        Code::InvalidArgument,
        "etcdserver: duplicate key given in txn request",
    );
    vec![
        Row {
            reason: "a key has one change in a revision; etcd overlooks a put within a delete that is open at the top",
            request: txn(vec![delete("a", "\0"), put("b")]),
            ours: DUPLICATE,
        },
        Row {
            reason: "the same; etcd overlooks a nested delete of what an earlier nested transaction puts",
            request: txn(vec![nested(vec![put("b")]), nested(vec![delete("a", "c")])]),
            ours: DUPLICATE,
        },
        Row {
            reason: "a comparison that kvorum does not know cannot hold; etcd lets it hold",
            request: compare(4, 0),
            ours: (Code::InvalidArgument, "kvorum: unknown compare result"),
        },
        Row {
            reason: "the same of an unknown target",
            request: compare(0, 5),
            ours: (Code::InvalidArgument, "kvorum: unknown compare target"),
        },
        Row {
            reason: "revision 0 is before everything; etcd takes it until something was compacted",
            request: Request::Compact(etcd::CompactionRequest::default()),
            ours: (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
        },
        Row {
            reason: "keys have a limit, etcd has only that of requests",
            request: Request::Put(etcd::PutRequest {
                key: vec![b'k'; 4097].into(),
                ..Default::default()
            }),
            ours: (
                Code::InvalidArgument,
                "kvorum: key of 4097 bytes is longer than the limit of 4096",
            ),
        },
    ]
}

#[test]
fn the_generator_leaves_out_what_differs() {
    for row in rows() {
        if let Request::Txn(txn) = &row.request
            && txn.compare.is_empty()
        {
            assert!(differs(txn), "{}", row.reason);
        }
    }
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn intended_differences_are_still_there() {
    let cluster = Cluster::start(1, &[]).await;
    let reference = Reference::start(&[]).await;
    let ours = Server::connect("kvorum", &cluster.endpoints(0)).await;
    let theirs = Server::connect("the reference", &[&reference.client]).await;
    for row in rows() {
        let Row {
            reason,
            request,
            ours: (code, text),
        } = row;
        let answer = ours.call(0, request.clone(), None).await;
        assert_eq!(answer, Answer::Refused(code, text.to_owned()), "{reason}");
        let answer = theirs.call(0, request, None).await;
        assert!(!matches!(answer, Answer::Refused(..)), "{reason}: {answer:?}");
    }
    // In progress messages -1 stands for all watchers of a stream, in refusals for none: it is nobody's ID.
    let request = etcd::WatchCreateRequest {
        key: "k".into(),
        watch_id: -1,
        ..Default::default()
    };
    let created = Stream::open(&ours, 0).create(&ours, request.clone()).await;
    assert_eq!(created, None);
    let created = Stream::open(&theirs, 0).create(&theirs, request).await;
    assert_eq!(created, Some(-1));
}
