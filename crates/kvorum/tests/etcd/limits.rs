//! Requests at and over limits, which random ones do not reach.

use bytes::Bytes;
use kvorum_client::proto::etcd::request_op::Request as Op;
use kvorum_client::proto::etcd::{self, RequestOp, TxnRequest};

use crate::call::{Answer, Request, Server};
use crate::cluster::Cluster;
use crate::reference::Reference;

fn put(value_bytes: usize) -> Request {
    Request::Put(etcd::PutRequest {
        key: "k".into(),
        value: vec![b'x'; value_bytes].into(),
        ..Default::default()
    })
}

fn op(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn ranges(count: usize) -> Vec<RequestOp> {
    let range = etcd::RangeRequest {
        key: "nothing".into(),
        ..Default::default()
    };
    vec![op(Op::RequestRange(range)); count]
}

/// Transactions within each other, each with so many operations beside the next one.
fn nested(depth: usize, beside: usize) -> TxnRequest {
    let mut txn = TxnRequest::default();
    for _ in 0..depth {
        let mut success = ranges(beside);
        success.push(op(Op::RequestTxn(txn)));
        txn = TxnRequest {
            success,
            ..Default::default()
        };
    }
    txn
}

fn requests() -> Vec<(&'static str, Request)> {
    let txn = |success| {
        Request::Txn(TxnRequest {
            success,
            ..Default::default()
        })
    };
    let long_key = |bytes: usize| {
        Request::Range(etcd::RangeRequest {
            key: Bytes::from(vec![b'k'; bytes]),
            ..Default::default()
        })
    };
    vec![
        ("a value of 1 MiB", put(1 << 20)),
        ("almost 1.5 MiB", put(1_572_864 - 200)),
        ("over 1.5 MiB", put(1_572_864 + 100)),
        ("almost 2 MiB", put((2 << 20) - 100)),
        ("over 2 MiB: more than is read", put((2 << 20) + 100)),
        ("128 operations", txn(ranges(128))),
        ("129 operations", txn(ranges(129))),
        (
            "11 levels of 11 operations and one more",
            Request::Txn(nested(11, 10)),
        ),
        ("12 levels of them", Request::Txn(nested(12, 10))),
        ("20 levels of one", Request::Txn(nested(20, 0))),
        ("the longest key that is read", long_key(4096)),
    ]
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn limits_are_the_same() {
    let cluster = Cluster::start(1, &[]).await;
    let reference = Reference::start(&[]).await;
    let ours = Server::connect("kvorum", &cluster.endpoints(0)).await;
    let theirs = Server::connect("the reference", &[&reference.client]).await;
    let mut differences = Vec::new();
    for (what, request) in requests() {
        let (ours, theirs) = tokio::join!(
            ours.call(0, request.clone(), None),
            theirs.call(0, request.clone(), None)
        );
        if ours != theirs {
            let shown = |answer: &Answer| format!("{answer:?}").chars().take(300).collect::<String>();
            let (ours, theirs) = (shown(&ours), shown(&theirs));
            differences.push(format!("{what}\n  kvorum:    {ours}\n  reference: {theirs}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
