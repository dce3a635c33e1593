use std::time::Duration;

use kvorum_model::limits::{KEY_BYTES_MAX, REQUEST_BYTES_MAX};
use kvorum_node::{ReadFailure, WriteFailure};
use kvorum_proto::Outcome;
use kvorum_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvorum_proto::etcdserverpb::request_op::Request as Op;
use kvorum_proto::etcdserverpb::{self as pb, kv_client::KvClient};
use kvorum_proto::kvorum::v1::{RegisterSessionRequest, kvorum_client::KvorumClient};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::replica::{CLUSTER, MEMBER, Server, Setting, Trouble};

pub fn put(key: impl Into<bytes::Bytes>, value: impl Into<bytes::Bytes>) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

pub fn get(key: &'static str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

pub fn op(op: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(op) }
}

pub async fn client(server: &Server) -> KvClient<Channel> {
    KvClient::new(server.channel().await).max_decoding_message_size(usize::MAX)
}

#[track_caller]
fn check(status: Status, code: Code, text: &str, outcome: Option<Outcome>) {
    assert_eq!((status.code(), status.message()), (code, text));
    assert_eq!(Outcome::of(&status), outcome, "{text}");
}

const NOT_APPLIED: Option<Outcome> = Some(Outcome::NotApplied);

#[tokio::test]
async fn puts_gets_and_deletes() {
    let server = Server::start();
    let mut kv = client(&server).await;
    let header = kv.put(put("a", "1")).await.unwrap().into_inner().header.unwrap();
    assert_eq!(
        (
            header.cluster_id,
            header.member_id,
            header.revision,
            header.raft_term
        ),
        (CLUSTER, MEMBER, 2, 3)
    );
    let answer = kv
        .put(pb::PutRequest {
            prev_kv: true,
            ..put("a", "2")
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.prev_kv.unwrap().value, "1");
    kv.put(put("b", "3")).await.unwrap();

    let answer = kv.range(get("a")).await.unwrap().into_inner();
    assert_eq!(
        (answer.count, answer.more, answer.header.unwrap().revision),
        (1, false, 4)
    );
    let kv_a = &answer.kvs[0];
    assert_eq!(
        (
            &kv_a.value[..],
            kv_a.create_revision,
            kv_a.mod_revision,
            kv_a.version
        ),
        (&b"2"[..], 2, 3, 2)
    );

    let all = pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        limit: 1,
        ..Default::default()
    };
    let answer = kv.range(all).await.unwrap().into_inner();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (1, 2, true));
    let old = pb::RangeRequest {
        revision: 2,
        ..get("a")
    };
    let answer = kv.range(old).await.unwrap().into_inner();
    assert_eq!(
        (&answer.kvs[0].value[..], answer.header.unwrap().revision),
        (&b"1"[..], 4)
    );

    let delete = pb::DeleteRangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        prev_kv: true,
    };
    let answer = kv.delete_range(delete.clone()).await.unwrap().into_inner();
    assert_eq!(
        (
            answer.deleted,
            answer.prev_kvs.len(),
            answer.header.unwrap().revision
        ),
        (2, 2, 5)
    );
    let answer = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!((answer.deleted, answer.header.unwrap().revision), (0, 5));
}

#[tokio::test]
async fn a_transaction_runs_one_of_its_lists() {
    let server = Server::start();
    let mut kv = client(&server).await;
    let absent = pb::Compare {
        key: "a".into(),
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        target_union: Some(TargetUnion::CreateRevision(0)),
        ..Default::default()
    };
    let txn = pb::TxnRequest {
        compare: vec![absent],
        success: vec![op(Op::RequestRange(get("a"))), op(Op::RequestPut(put("a", "1")))],
        failure: vec![op(Op::RequestRange(get("a")))],
    };
    let answer = kv.txn(txn.clone()).await.unwrap().into_inner();
    assert_eq!(
        (
            answer.succeeded,
            answer.responses.len(),
            answer.header.unwrap().revision
        ),
        (true, 2, 2)
    );
    let answer = kv.txn(txn).await.unwrap().into_inner();
    assert_eq!(
        (
            answer.succeeded,
            answer.responses.len(),
            answer.header.unwrap().revision
        ),
        (false, 1, 2)
    );
    // One that only reads goes past the log: a silent log does not hold it up.
    server.set(|b| b.writes = Some(Trouble::Silence));
    let reads = pb::TxnRequest {
        success: vec![op(Op::RequestRange(get("a")))],
        ..Default::default()
    };
    let answer = kv.txn(reads).await.unwrap().into_inner();
    assert_eq!((answer.succeeded, answer.header.unwrap().revision), (true, 2));
}

#[tokio::test]
async fn bad_requests_are_refused_in_etcds_words() {
    let server = Server::start();
    let mut kv = client(&server).await;
    kv.put(put("a", "1")).await.unwrap();
    let (invalid, out_of_range) = (Code::InvalidArgument, Code::OutOfRange);

    let status = kv.put(put("", "x")).await.unwrap_err();
    check(status, invalid, "etcdserver: key is not provided", NOT_APPLIED);
    let status = kv
        .put(pb::PutRequest {
            ignore_value: true,
            ..put("a", "x")
        })
        .await
        .unwrap_err();
    check(status, invalid, "etcdserver: value is provided", NOT_APPLIED);
    let status = kv
        .put(pb::PutRequest {
            ignore_lease: true,
            lease: 5,
            ..put("a", "x")
        })
        .await
        .unwrap_err();
    check(status, invalid, "etcdserver: lease is provided", NOT_APPLIED);
    let status = kv
        .put(pb::PutRequest {
            lease: 5,
            ..put("a", "x")
        })
        .await
        .unwrap_err();
    check(
        status,
        Code::NotFound,
        "etcdserver: requested lease not found",
        NOT_APPLIED,
    );
    let status = kv
        .put(pb::PutRequest {
            ignore_value: true,
            ..put("no", "")
        })
        .await
        .unwrap_err();
    check(status, invalid, "etcdserver: key not found", NOT_APPLIED);

    check(
        kv.range(get("")).await.unwrap_err(),
        invalid,
        "etcdserver: key is not provided",
        None,
    );
    let future = pb::RangeRequest {
        revision: 9,
        ..get("a")
    };
    let text = "etcdserver: mvcc: required revision is a future revision";
    check(kv.range(future).await.unwrap_err(), out_of_range, text, None);
    let odd = pb::RangeRequest {
        sort_order: 3,
        ..get("a")
    };
    check(
        kv.range(odd).await.unwrap_err(),
        invalid,
        "etcdserver: invalid sort option",
        None,
    );

    let status = kv
        .delete_range(pb::DeleteRangeRequest::default())
        .await
        .unwrap_err();
    check(status, invalid, "etcdserver: key is not provided", NOT_APPLIED);

    let twice = vec![
        op(Op::RequestPut(put("k", "1"))),
        op(Op::RequestPut(put("k", "2"))),
    ];
    let status = kv
        .txn(pb::TxnRequest {
            success: twice,
            ..Default::default()
        })
        .await
        .unwrap_err();
    check(
        status,
        invalid,
        "etcdserver: duplicate key given in txn request",
        NOT_APPLIED,
    );
    let hollow = pb::TxnRequest {
        success: vec![pb::RequestOp { request: None }],
        ..Default::default()
    };
    check(
        kv.txn(hollow).await.unwrap_err(),
        invalid,
        "etcdserver: key not found",
        NOT_APPLIED,
    );
}

#[tokio::test]
async fn limits_hold_at_one_more() {
    let server = Server::start();
    let mut kv = client(&server).await;
    let key = |bytes: usize| vec![b'k'; bytes];
    kv.put(put(key(KEY_BYTES_MAX), "")).await.unwrap();
    let status = kv.put(put(key(KEY_BYTES_MAX + 1), "")).await.unwrap_err();
    let text = "kvorum: key of 4097 bytes is longer than the limit of 4096";
    check(status, Code::InvalidArgument, text, NOT_APPLIED);

    let puts = |count: usize| pb::TxnRequest {
        success: (0..count)
            .map(|n| op(Op::RequestPut(put(format!("k{n}"), ""))))
            .collect(),
        ..Default::default()
    };
    kv.txn(puts(128)).await.unwrap();
    let status = kv.txn(puts(129)).await.unwrap_err();
    check(
        status,
        Code::InvalidArgument,
        "etcdserver: too many operations in txn request",
        NOT_APPLIED,
    );

    // A request's size is that of its command in the log; find its overhead, then stand on the limit.
    let command = |value: usize| {
        kvorum_model::Command::Put(kvorum_model::PutRequest {
            key: "a".into(),
            value: vec![0; value].into(),
            ..Default::default()
        })
    };
    let mut value = REQUEST_BYTES_MAX;
    while command(value).encoded_len() > REQUEST_BYTES_MAX {
        value -= 1;
    }
    kv.put(put("a", vec![0; value])).await.unwrap();
    let status = kv.put(put("a", vec![0; value + 1])).await.unwrap_err();
    check(
        status,
        Code::InvalidArgument,
        "etcdserver: request is too large",
        NOT_APPLIED,
    );

    // And on the wire half a MiB more.
    let wire_max = REQUEST_BYTES_MAX + 512 * 1024;
    let message = |bytes: usize| put("a", vec![0; bytes - 8]);
    let fits = (0..8)
        .map(|less| message(wire_max - less))
        .find(|m| prost::Message::encoded_len(m) <= wire_max);
    let fits = fits.unwrap();
    let status = kv.put(fits.clone()).await.unwrap_err();
    check(
        status,
        Code::InvalidArgument,
        "etcdserver: request is too large",
        NOT_APPLIED,
    );
    let status = kv.put(put("a", vec![0; wire_max])).await.unwrap_err();
    let found = prost::Message::encoded_len(&put("a", vec![0; wire_max]));
    let text = format!("grpc: received message larger than max ({found} vs. {wire_max})");
    check(status, Code::ResourceExhausted, &text, NOT_APPLIED);
    let status = kv
        .range(pb::RangeRequest {
            key: vec![0; wire_max].into(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), Outcome::of(&status)),
        (Code::ResourceExhausted, None)
    );
}

#[tokio::test]
async fn failures_on_the_way_say_what_became_of_the_write() {
    let server = Server::start();
    let mut kv = client(&server).await;
    let (unavailable, exhausted) = (Code::Unavailable, Code::ResourceExhausted);
    let expected = [
        (
            WriteFailure::NoLeader,
            unavailable,
            "etcdserver: no leader",
            Outcome::NotApplied,
        ),
        (
            WriteFailure::Overloaded,
            exhausted,
            "etcdserver: too many requests",
            Outcome::NotApplied,
        ),
        (
            WriteFailure::TooLarge,
            Code::InvalidArgument,
            "etcdserver: request is too large",
            Outcome::NotApplied,
        ),
        (
            WriteFailure::NoSpace,
            exhausted,
            "etcdserver: mvcc: database space exceeded",
            Outcome::NotApplied,
        ),
        (
            WriteFailure::Superseded,
            unavailable,
            "etcdserver: leader changed",
            Outcome::NotApplied,
        ),
        (
            WriteFailure::Stopping,
            unavailable,
            "etcdserver: server stopped",
            Outcome::NotApplied,
        ),
        (
            WriteFailure::LeaderLost,
            unavailable,
            "etcdserver: request timed out, possibly due to previous leader failure",
            Outcome::Unknown,
        ),
    ];
    for (failure, code, text, outcome) in expected {
        server.set(|b| b.writes = Some(Trouble::Failure(failure)));
        check(
            kv.put(put("a", "1")).await.unwrap_err(),
            code,
            text,
            Some(outcome),
        );
    }
    for (failure, code, text) in [
        (
            ReadFailure::TimedOut,
            unavailable,
            "etcdserver: request timed out",
        ),
        (
            ReadFailure::Overloaded,
            exhausted,
            "etcdserver: too many requests",
        ),
        (ReadFailure::Stopping, unavailable, "etcdserver: server stopped"),
    ] {
        server.set(|b| b.reads = Some(Trouble::Failure(failure)));
        check(kv.range(get("a")).await.unwrap_err(), code, text, None);
    }
    // A local read asks nobody.
    kv.range(pb::RangeRequest {
        serializable: true,
        ..get("a")
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_the_outcome_is_unknown() {
    let server = Server::start();
    server.set(|b| (b.writes, b.reads) = (Some(Trouble::Silence), Some(Trouble::Silence)));
    // Not by a tonic client: that would not wait for the server's word.
    let put_a = b"\x00\x00\x00\x00\x06\x0a\x01a\x12\x011".to_vec();
    for (method, body, outcome) in [
        ("Put", put_a, Some("unknown")),
        ("Range", b"\0\0\0\0\x03\x0a\x01a".to_vec(), None),
    ] {
        let started = std::time::Instant::now();
        let path = format!("/etcdserverpb.KV/{method}");
        let answer = crate::http_port::grpc_with(&server, &path, &[("grpc-timeout", "150m")], body).await;
        let text = |name: &str| answer.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(
            (text("grpc-status"), text("kvorum-outcome")),
            (Some("14"), outcome)
        );
        assert_eq!(text("grpc-message"), Some("etcdserver:%20request%20timed%20out"));
        assert!((Duration::from_millis(140)..Duration::from_secs(5)).contains(&started.elapsed()));
    }

    // The server's own limit, where the caller sets none.
    let server = Server::with(Setting {
        request_timeout: Duration::from_millis(100),
        ..Setting::default()
    });
    let mut kv = client(&server).await;
    server.set(|b| b.writes = Some(Trouble::Silence));
    let status = kv.put(put("a", "1")).await.unwrap_err();
    check(
        status,
        Code::Unavailable,
        "etcdserver: request timed out",
        Some(Outcome::Unknown),
    );
    assert!(server.handle.pending().is_empty());
}

#[tokio::test]
async fn who_requires_a_leader_does_not_wait_for_one() {
    let server = Server::start();
    let mut kv = client(&server).await;
    server.publish(|status| status.leader = 0);
    let mut request = Request::new(put("a", "1"));
    request
        .metadata_mut()
        .insert("hasleader", "true".parse().unwrap());
    check(
        kv.put(request).await.unwrap_err(),
        Code::Unavailable,
        "etcdserver: no leader",
        NOT_APPLIED,
    );
    let mut request = Request::new(get("a"));
    request
        .metadata_mut()
        .insert("hasleader", "true".parse().unwrap());
    check(
        kv.range(request).await.unwrap_err(),
        Code::Unavailable,
        "etcdserver: no leader",
        None,
    );
    // Others are served as soon as the replica can.
    kv.put(put("a", "1")).await.unwrap();
}

#[tokio::test]
async fn one_request_more_than_may_wait_is_refused() {
    let server = Server::with(Setting {
        requests_max: 2,
        workers: 1,
        ..Setting::default()
    });
    let kv = client(&server).await;
    server.set(|b| b.writes = Some(Trouble::Silence));
    let waiting: Vec<_> = (0..2)
        .map(|n| {
            let mut kv = kv.clone();
            tokio::spawn(async move { kv.put(put(format!("k{n}"), "")).await })
        })
        .collect();
    while server.handle.pending().len() < 2 {
        tokio::task::yield_now().await;
    }
    let status = kv.clone().put(put("one too many", "")).await.unwrap_err();
    check(
        status,
        Code::ResourceExhausted,
        "etcdserver: too many requests",
        NOT_APPLIED,
    );
    // A client that goes away makes room.
    waiting.into_iter().for_each(|task| task.abort());
    while !server.handle.pending().is_empty() {
        tokio::task::yield_now().await;
    }
    server.set(|b| b.writes = None);
    kv.clone().put(put("a", "")).await.unwrap();
}

#[tokio::test]
async fn when_the_replica_is_gone_everybody_hears_it() {
    let server = Server::start();
    let kv = client(&server).await;
    server.set(|b| b.writes = Some(Trouble::Silence));
    let mut first = kv.clone();
    let under_way = tokio::spawn(async move { first.put(put("a", "1")).await });
    while server.handle.pending().is_empty() {
        tokio::task::yield_now().await;
    }
    server.port.pending().close();
    let text = "etcdserver: server stopped";
    check(
        under_way.await.unwrap().unwrap_err(),
        Code::Unavailable,
        text,
        Some(Outcome::Unknown),
    );
    check(
        kv.clone().put(put("b", "1")).await.unwrap_err(),
        Code::Unavailable,
        text,
        NOT_APPLIED,
    );
    check(
        kv.clone().range(get("b")).await.unwrap_err(),
        Code::Unavailable,
        text,
        None,
    );
}

#[tokio::test]
async fn a_session_takes_effect_once() {
    let server = Server::start();
    let mut kv = client(&server).await;
    let register = RegisterSessionRequest {};
    let id = KvorumClient::new(server.channel().await)
        .register_session(register)
        .await
        .unwrap();
    let id = id.into_inner().session_id;
    let under = |session: String, request: pb::PutRequest| {
        let mut request = Request::new(request);
        request
            .metadata_mut()
            .insert("kvorum-session", session.parse().unwrap());
        request
    };
    let first = kv
        .put(under(format!("{id}-1"), put("a", "1")))
        .await
        .unwrap()
        .into_inner();
    kv.put(put("a", "2")).await.unwrap();
    let again = kv
        .put(under(format!("{id}-1"), put("a", "1")))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.header.unwrap().revision, first.header.unwrap().revision);
    assert_eq!(kv.range(get("a")).await.unwrap().into_inner().kvs[0].value, "2");

    let status = kv
        .put(under(format!("{id}-1"), put("a", "other")))
        .await
        .unwrap_err();
    let text = "kvorum: session sequence was used with another request";
    check(status, Code::InvalidArgument, text, NOT_APPLIED);
    let status = kv
        .put(under("999-1".to_owned(), put("a", "3")))
        .await
        .unwrap_err();
    let text = "kvorum: session expired; outcome unknown";
    check(status, Code::FailedPrecondition, text, Some(Outcome::Unknown));
    let status = kv
        .put(under("nonsense".to_owned(), put("a", "3")))
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), Outcome::of(&status)),
        (Code::InvalidArgument, NOT_APPLIED)
    );
}

#[tokio::test]
async fn compaction() {
    let server = Server::start();
    let mut kv = client(&server).await;
    for n in 0..5 {
        kv.put(put("a", n.to_string())).await.unwrap();
    }
    let compact = |revision, physical| pb::CompactionRequest { revision, physical };
    let answer = kv.compact(compact(4, true)).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 6);
    let text = "etcdserver: mvcc: required revision has been compacted";
    check(
        kv.compact(compact(4, false)).await.unwrap_err(),
        Code::OutOfRange,
        text,
        NOT_APPLIED,
    );
    check(
        kv.range(pb::RangeRequest {
            revision: 3,
            ..get("a")
        })
        .await
        .unwrap_err(),
        Code::OutOfRange,
        text,
        None,
    );
    kv.range(pb::RangeRequest {
        revision: 4,
        ..get("a")
    })
    .await
    .unwrap();
    let text = "etcdserver: mvcc: required revision is a future revision";
    check(
        kv.compact(compact(7, false)).await.unwrap_err(),
        Code::OutOfRange,
        text,
        NOT_APPLIED,
    );
}

#[tokio::test]
async fn what_is_not_a_message_is_the_callers_mistake() {
    let server = Server::start();
    let body = b"\x00\x00\x00\x00\x02\x0a\xff".to_vec();
    let answer = crate::http_port::grpc_raw(&server, "/etcdserverpb.KV/Put", body).await;
    assert_eq!(answer.get("grpc-status").unwrap(), "3");
    assert_eq!(answer.get("kvorum-outcome").unwrap(), "not-applied");
    let answer = crate::http_port::grpc_raw(&server, "/no.Such/Thing", Vec::new()).await;
    assert_eq!(answer.get("grpc-status").unwrap(), "12");
}
