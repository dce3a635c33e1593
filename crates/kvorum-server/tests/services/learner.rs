//! A learner answers what etcd's learner does, and refuses all else in its words.

use std::sync::Arc;

use kvorum_proto::Outcome;
use kvorum_proto::etcdserverpb as pb;
use kvorum_proto::etcdserverpb::cluster_client::ClusterClient;
use kvorum_proto::etcdserverpb::kv_client::KvClient;
use kvorum_proto::etcdserverpb::lease_client::LeaseClient;
use kvorum_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kvorum_proto::etcdserverpb::watch_client::WatchClient;
use kvorum_proto::grpc_health::v1::HealthCheckRequest;
use kvorum_proto::grpc_health::v1::health_client::HealthClient;
use kvorum_raft::Configuration;
use tonic::{Code, Status};

use crate::replica::{MEMBER, OTHER, Server};

#[track_caller]
fn refused<T: std::fmt::Debug>(what: &str, result: Result<T, Status>) {
    let status = result.expect_err(what);
    let told = (status.code(), status.message());
    let expected = (
        Code::FailedPrecondition,
        "etcdserver: rpc not supported for learner",
    );
    assert_eq!(told, expected, "{what}");
}

#[tokio::test]
async fn a_learner_serves_its_own_state_and_no_more() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let put = pb::PutRequest {
        key: "k".into(),
        value: "v".into(),
        ..pb::PutRequest::default()
    };
    kv.put(put.clone()).await.unwrap();
    server.publish(|status| {
        status.configuration.voters.remove(&MEMBER);
        status.configuration.learners.insert(MEMBER);
    });

    let local = pb::RangeRequest {
        key: "k".into(),
        serializable: true,
        ..pb::RangeRequest::default()
    };
    let linearizable = pb::RangeRequest {
        serializable: false,
        ..local.clone()
    };
    let answer = kv.range(local.clone()).await.unwrap().into_inner();
    assert_eq!(answer.kvs[0].value, "v");
    let mut stream = kv.range_stream(local).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let status = maintenance
        .status(pb::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(status.is_learner);
    let mut snapshot = maintenance
        .snapshot(pb::SnapshotRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(snapshot.message().await.unwrap().is_some());

    refused("range", kv.range(linearizable.clone()).await);
    refused("range stream", kv.range_stream(linearizable).await);
    let written = kv.put(put).await;
    assert_eq!(
        Outcome::of(written.as_ref().unwrap_err()),
        Some(Outcome::NotApplied)
    );
    refused("put", written);
    refused("delete", kv.delete_range(pb::DeleteRangeRequest::default()).await);
    refused("txn", kv.txn(pb::TxnRequest::default()).await);
    refused("compact", kv.compact(pb::CompactionRequest::default()).await);
    refused("alarm", maintenance.alarm(pb::AlarmRequest::default()).await);
    refused(
        "defragment",
        maintenance.defragment(pb::DefragmentRequest {}).await,
    );
    refused("hash", maintenance.hash(pb::HashRequest {}).await);
    refused("hash kv", maintenance.hash_kv(pb::HashKvRequest::default()).await);
    refused(
        "move leader",
        maintenance.move_leader(pb::MoveLeaderRequest::default()).await,
    );
    let mut cluster = ClusterClient::new(channel.clone());
    refused(
        "member list",
        cluster.member_list(pb::MemberListRequest::default()).await,
    );
    refused(
        "member add",
        cluster.member_add(pb::MemberAddRequest::default()).await,
    );
    let mut lease = LeaseClient::new(channel.clone());
    refused("grant", lease.lease_grant(pb::LeaseGrantRequest::default()).await);
    refused("leases", lease.lease_leases(pb::LeaseLeasesRequest {}).await);
    let pings = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 1 }]);
    refused("keep alive", lease.lease_keep_alive(pings).await);
    let wishes = tokio_stream::iter([pb::WatchRequest::default()]);
    refused("watch", WatchClient::new(channel.clone()).watch(wishes).await);
    // Who balances load by gRPC's health service sends it nothing.
    let mut health = HealthClient::new(channel);
    refused("health", health.check(HealthCheckRequest::default()).await);
    refused(
        "health's watch",
        health.watch(HealthCheckRequest::default()).await,
    );

    server.publish(|status| {
        status.configuration.learners.remove(&MEMBER);
        status.configuration.voters.insert(MEMBER);
    });
    kv.put(pb::PutRequest {
        key: "k".into(),
        ..pb::PutRequest::default()
    })
    .await
    .unwrap();
    health.check(HealthCheckRequest::default()).await.unwrap();
}

/// A newcomer whose log does not hold yet that it was added handed writes on to the leader, and asked it for reads.
#[tokio::test]
async fn a_newcomer_is_a_learner_before_it_hears_that_it_was_added() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let mut maintenance = MaintenanceClient::new(channel);
    let others = Configuration::of_voters([OTHER]);
    for configuration in [Configuration::default(), others] {
        server.publish(|status| status.configuration = configuration);
        refused("put", kv.put(pb::PutRequest::default()).await);
        refused("range", kv.range(pb::RangeRequest::default()).await);
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap();
        assert!(status.into_inner().is_learner);
    }
    // One that was removed is none: it hears what becomes of it elsewhere.
    server.publish(|status| {
        Arc::make_mut(&mut status.cluster).removed.insert(MEMBER);
    });
    let status = maintenance.status(pb::StatusRequest {}).await.unwrap();
    assert!(!status.into_inner().is_learner);
}
