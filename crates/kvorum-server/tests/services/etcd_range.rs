use std::time::Duration;

use kvorum_proto::etcdserverpb::request_op::Request as Op;
use kvorum_proto::etcdserverpb::{self as pb, kv_client::KvClient};
use tonic::Code;
use tonic::transport::Channel;

use crate::etcd_kv::{client, op, put};
use crate::replica::{Server, Setting};

async fn filled(server: &Server, keys: usize, value_bytes: usize) -> KvClient<Channel> {
    let mut kv = client(server).await;
    for chunk in (0..keys).collect::<Vec<_>>().chunks(100) {
        let puts = chunk
            .iter()
            .map(|n| op(Op::RequestPut(put(format!("k{n:06}"), vec![7; value_bytes]))));
        kv.txn(pb::TxnRequest {
            success: puts.collect(),
            ..Default::default()
        })
        .await
        .unwrap();
    }
    kv
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn unary_answers_stay_within_their_budget() {
    let server = Server::with(Setting {
        range_bytes_max: 4 << 20,
        ..Setting::default()
    });
    let mut kv = filled(&server, 500, 10_000).await;
    // 5 MB of values.
    let status = kv
        .range(pb::RangeRequest { limit: 0, ..all() })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().contains("RangeStream") && status.message().contains("limit"),
        "{status}"
    );
    let answer = kv
        .range(pb::RangeRequest { limit: 200, ..all() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (200, 500, true));
    // A transaction of reads counts as well.
    let reads = pb::TxnRequest {
        success: vec![op(Op::RequestRange(all()))],
        ..Default::default()
    };
    assert_eq!(kv.txn(reads).await.unwrap_err().code(), Code::ResourceExhausted);
    let free = || server.budget.free() == 4 << 20;
    for _ in 0..1000 {
        if free() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(free(), "the answer that was sent still holds memory");
}

async fn collect(kv: &mut KvClient<Channel>, request: pb::RangeRequest) -> (Vec<usize>, pb::RangeResponse) {
    let mut stream = kv.range_stream(request).await.unwrap().into_inner();
    let (mut sizes, mut merged) = (Vec::new(), pb::RangeResponse::default());
    while let Some(chunk) = stream.message().await.unwrap() {
        let chunk = chunk.range_response.unwrap();
        sizes.push(chunk.kvs.len());
        merged.kvs.extend(chunk.kvs);
        assert!(merged.header.is_none(), "the header is in the last chunk");
        (merged.header, merged.more, merged.count) = (chunk.header, chunk.more, chunk.count);
    }
    (sizes, merged)
}

#[tokio::test]
async fn a_stream_merges_to_what_a_range_answers() {
    let server = Server::start();
    let mut kv = filled(&server, 1000, 10).await;
    for request in [
        all(),
        pb::RangeRequest { limit: 35, ..all() },
        pb::RangeRequest { limit: 1000, ..all() },
        pb::RangeRequest {
            limit: 1001,
            keys_only: true,
            ..all()
        },
        pb::RangeRequest {
            count_only: true,
            ..all()
        },
        pb::RangeRequest { revision: 4, ..all() },
        pb::RangeRequest {
            key: "k000003".into(),
            ..Default::default()
        },
        pb::RangeRequest {
            key: "x".into(),
            range_end: "y".into(),
            ..Default::default()
        },
        pb::RangeRequest {
            key: "k000900".into(),
            range_end: "\0".into(),
            serializable: true,
            ..Default::default()
        },
    ] {
        let (_, streamed) = collect(&mut kv, request.clone()).await;
        assert_eq!(streamed, kv.range(request).await.unwrap().into_inner());
    }
    let (sizes, _) = collect(&mut kv, all()).await;
    assert_eq!(sizes[..4], [10, 20, 40, 80]);
    let sorted = pb::RangeRequest {
        sort_target: 3,
        ..all()
    };
    assert_eq!(
        kv.range_stream(sorted).await.unwrap_err().code(),
        Code::Unimplemented
    );
    let filtered = pb::RangeRequest {
        min_mod_revision: 3,
        ..all()
    };
    assert_eq!(
        kv.range_stream(filtered).await.unwrap_err().code(),
        Code::Unimplemented
    );
}

#[tokio::test]
async fn a_stream_stays_at_its_revision() {
    let server = Server::start();
    let mut kv = filled(&server, 500, 2000).await;
    let mut stream = kv.range_stream(all()).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().range_response.unwrap();
    assert_eq!(first.kvs.len(), 10);
    let delete = pb::DeleteRangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..Default::default()
    };
    kv.delete_range(delete).await.unwrap();
    let mut rest = 0;
    while let Some(chunk) = stream.message().await.unwrap() {
        rest += chunk.range_response.unwrap().kvs.len();
    }
    assert_eq!(rest, 490);
}
