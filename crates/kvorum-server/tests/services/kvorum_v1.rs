use kvorum_node::{AdminError, ReadFailure};
use kvorum_proto::Outcome;
use kvorum_proto::etcdserverpb::cluster_client::ClusterClient;
use kvorum_proto::etcdserverpb::kv_client::KvClient;
use kvorum_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kvorum_proto::etcdserverpb::{self as etcd, request_op::Request as Op};
use kvorum_proto::grpc_health::v1::HealthCheckRequest;
use kvorum_proto::grpc_health::v1::health_check_response::ServingStatus;
use kvorum_proto::grpc_health::v1::health_client::HealthClient;
use kvorum_proto::kvorum::v1::{self as pb, kvorum_client::KvorumClient};
use tonic::Code;
use tonic::transport::Channel;

use crate::etcd_kv::put;
use crate::replica::{CLUSTER, MEMBER, OTHER, Server, Trouble};

async fn client(server: &Server) -> KvorumClient<Channel> {
    KvorumClient::new(server.channel().await).max_decoding_message_size(usize::MAX)
}

fn named(name: &str) -> Option<pb::MemberSelector> {
    Some(pb::MemberSelector {
        id: 0,
        name: name.to_owned(),
    })
}

#[tokio::test]
async fn status_tells_what_the_member_knows() {
    let server = Server::start();
    KvClient::new(server.channel().await)
        .put(put("a", "1"))
        .await
        .unwrap();
    let mut client = client(&server).await;
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (status.member_id, &status.name[..], status.cluster_id),
        (MEMBER, "n7", CLUSTER)
    );
    assert_eq!(
        (status.role(), status.suffrage()),
        (pb::Role::Leader, pb::Suffrage::Voter)
    );
    assert_eq!(
        (status.term, status.leader_id, status.majority_contact),
        (3, MEMBER, true)
    );
    assert_eq!(
        (status.first_index, status.last_index, status.last_term),
        (5, 31, 2)
    );
    assert_eq!(
        (status.persisted_index, status.commit_index, status.flushed_index),
        (31, 30, 20)
    );
    assert_eq!(
        (
            status.applied_index,
            status.revision,
            status.keys,
            status.db_bytes
        ),
        (1, 2, 1, 12_345)
    );
    assert_eq!(
        (
            status.cluster_uuid.len(),
            status.digest.len(),
            status.errors.len()
        ),
        (16, 16, 0)
    );
    assert_eq!(status.members.len(), 2);
    assert_eq!((status.members[1].id, &status.members[1].name[..]), (OTHER, "n9"));

    server.publish(|status| (status.leader, status.connected, status.space_exhausted) = (0, false, true));
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.errors[0].contains("cut off") && status.errors[1].contains("disk is full"));
}

#[tokio::test]
async fn members_are_named_by_id_or_name() {
    let server = Server::start();
    let mut client = client(&server).await;
    let members = client
        .members(pb::MembersRequest { linearizable: true })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((members.members.len(), members.leader_id), (2, MEMBER));

    let replace = pb::MemberReplaceRequest {
        member: named("n9"),
        ..Default::default()
    };
    let answer = client.member_replace(replace).await.unwrap().into_inner();
    let new = answer.member.unwrap();
    assert_eq!(
        (new.id, &new.name[..], &new.peer_addresses[..]),
        (11, "n9", &["10.0.0.9:2380".to_owned()][..])
    );
    let add = pb::MemberAddRequest {
        name: "n10".to_owned(),
        peer_addresses: vec!["h:1".to_owned()],
    };
    assert_eq!(
        client
            .member_add(add)
            .await
            .unwrap()
            .into_inner()
            .member
            .unwrap()
            .id,
        11
    );
    let selector = Some(pb::MemberSelector {
        id: OTHER,
        name: String::new(),
    });
    client
        .member_promote(pb::MemberPromoteRequest {
            member: selector.clone(),
        })
        .await
        .unwrap();
    let left = client
        .member_remove(pb::MemberRemoveRequest { member: selector })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(left.members.len(), 1);
    assert_eq!(left.members[0].name, "n7");
    let asked = server.behaviour.lock().unwrap().asked.join("\n");
    for expected in ["Replace { old: 9", "AddLearner", "Promote(9)", "Remove(9)"] {
        assert!(asked.contains(expected), "{asked}");
    }

    let status = client
        .member_remove(pb::MemberRemoveRequest {
            member: named("nobody"),
        })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "etcdserver: member not found: `nobody`")
    );
    for (name, addresses) in [
        ("n9", vec!["h:1"]),
        ("", vec!["h:1"]),
        ("n10", vec!["nonsense"]),
        ("n10", vec![]),
    ] {
        let peer_addresses = addresses.into_iter().map(str::to_owned).collect();
        let add = pb::MemberAddRequest {
            name: name.to_owned(),
            peer_addresses,
        };
        let status = client.member_add(add).await.unwrap_err();
        assert_eq!(
            (status.code(), Outcome::of(&status)),
            (Code::InvalidArgument, Some(Outcome::NotApplied))
        );
    }
}

/// A member that has just restarted, or lags, knows other members than there are: what it does not find it must not
/// deny before a quorum confirmed that it is up to date.
#[tokio::test]
async fn a_member_that_may_lag_denies_nobody() {
    let server = Server::start();
    let mut client = client(&server).await;
    server.set(|b| b.reads = Some(Trouble::Failure(ReadFailure::TimedOut)));
    for name in ["newcomer", "n9"] {
        let remove = pb::MemberRemoveRequest { member: named(name) };
        let status = client.member_remove(remove).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{name}");
        assert_eq!(Outcome::of(&status), Some(Outcome::NotApplied), "{name}");
    }
    assert!(server.behaviour.lock().unwrap().asked.is_empty());
}

#[tokio::test]
async fn administrators_hear_why_not() {
    let server = Server::start();
    let mut client = client(&server).await;
    let not_leader = "etcdserver: not leader; the leader is n9 at http://10.0.0.9:2379";
    let unknown = Outcome::Unknown;
    for (error, code, text, outcome) in [
        (
            AdminError::NotLeader(OTHER),
            Code::FailedPrecondition,
            not_leader,
            Outcome::NotApplied,
        ),
        (
            AdminError::NoLiveQuorum,
            Code::Unavailable,
            "etcdserver: unhealthy cluster",
            Outcome::NotApplied,
        ),
        (
            AdminError::Unknown,
            Code::Unavailable,
            "etcdserver: leader changed",
            unknown,
        ),
        (
            AdminError::TimedOut,
            Code::Unavailable,
            "etcdserver: request timed out",
            unknown,
        ),
        (
            AdminError::Invalid("no".to_owned()),
            Code::FailedPrecondition,
            "kvorum: no",
            Outcome::NotApplied,
        ),
    ] {
        server.set(|b| b.admin = Some(error));
        let status = client
            .member_promote(pb::MemberPromoteRequest { member: named("n9") })
            .await
            .unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text));
        assert_eq!(Outcome::of(&status), Some(outcome));
    }
}

#[tokio::test]
async fn a_transfer_is_answered_when_it_is_done() {
    let server = Server::start();
    let mut client = client(&server).await;
    let transfer = client.transfer_leadership(pb::TransferLeadershipRequest { to: named("n9") });
    let done = async {
        while server.behaviour.lock().unwrap().asked.is_empty() {
            tokio::task::yield_now().await;
        }
        server.publish(|status| status.leader = OTHER);
    };
    let (answer, ()) = tokio::join!(transfer, done);
    assert_eq!(answer.unwrap().into_inner().leader_id, OTHER);
    assert_eq!(server.behaviour.lock().unwrap().asked, ["Transfer(9)"]);
}

#[tokio::test]
async fn an_export_is_whole_sorted_and_at_one_revision() {
    let server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    let count = 5000;
    for chunk in (0..count).collect::<Vec<_>>().chunks(100) {
        let op = |n: &usize| etcd::RequestOp {
            request: Some(Op::RequestPut(put(format!("k{n:05}"), vec![1; 500]))),
        };
        let success = chunk.iter().map(op).collect();
        kv.txn(etcd::TxnRequest {
            success,
            ..Default::default()
        })
        .await
        .unwrap();
    }
    let mut client = client(&server).await;
    let mut export = client
        .export(pb::ExportRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first = export.message().await.unwrap().unwrap();
    assert_eq!(first.revision, 51);
    assert!(first.kvs.len() < count);
    kv.delete_range(etcd::DeleteRangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        prev_kv: false,
    })
    .await
    .unwrap();
    let (mut keys, mut total) = (first.kvs, None);
    while let Some(message) = export.message().await.unwrap() {
        assert_eq!((message.revision, total), (51, None));
        keys.extend(message.kvs);
        total = message.total;
    }
    assert_eq!((keys.len(), total), (count, Some(count as u64)));
    assert!(keys.is_sorted_by(|a, b| a.key < b.key));

    let mut export = client
        .export(pb::ExportRequest::default())
        .await
        .unwrap()
        .into_inner();
    let empty = export.message().await.unwrap().unwrap();
    assert_eq!((empty.kvs.len(), empty.total), (0, Some(0)));
    let future = pb::ExportRequest {
        revision: 99,
        ..Default::default()
    };
    let status = client
        .export(future)
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
}

#[tokio::test]
async fn maintenance_cluster_and_health() {
    let server = Server::start();
    let mut maintenance = MaintenanceClient::new(server.channel().await);
    let status = maintenance
        .status(etcd::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (&status.version[..], &status.storage_version[..]),
        ("3.6.12", "3.6.0")
    );
    assert_eq!(
        (
            status.leader,
            status.raft_term,
            status.raft_index,
            status.raft_applied_index
        ),
        (MEMBER, 3, 30, 29)
    );
    assert_eq!(
        (status.db_size, status.errors.len(), status.is_learner),
        (12_345, 0, false)
    );
    let alarms = || etcd::AlarmRequest::default();
    assert!(
        maintenance
            .alarm(alarms())
            .await
            .unwrap()
            .into_inner()
            .alarms
            .is_empty()
    );
    server.publish(|status| status.space_exhausted = true);
    let raised = maintenance.alarm(alarms()).await.unwrap().into_inner().alarms;
    assert_eq!(
        raised,
        [etcd::AlarmMember {
            member_id: MEMBER,
            alarm: etcd::AlarmType::Nospace.into()
        }]
    );
    let status = maintenance
        .move_leader(etcd::MoveLeaderRequest { target_id: 99 })
        .await
        .unwrap_err();
    assert_eq!(status.message(), "etcdserver: bad leader transferee");
    let done = maintenance.defragment(etcd::DefragmentRequest {}).await.unwrap();
    assert_eq!(done.into_inner().header, None);

    let mut cluster = ClusterClient::new(server.channel().await);
    let list = cluster
        .member_list(etcd::MemberListRequest { linearizable: true })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.header.unwrap().revision, 0);
    assert_eq!(list.members[0].peer_ur_ls, ["http://10.0.0.7:2380"]);
    assert_eq!((list.members.len(), &list.members[1].name[..]), (2, "n9"));

    let mut health = HealthClient::new(server.channel().await);
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    assert_eq!(
        health.check(check("")).await.unwrap().into_inner().status(),
        ServingStatus::Serving
    );
    assert_eq!(
        health
            .check(check("etcdserverpb.KV"))
            .await
            .unwrap()
            .into_inner()
            .status(),
        ServingStatus::Serving
    );
    assert_eq!(
        health.check(check("nothing")).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn health_watchers_hear_of_the_end() {
    let mut server = Server::start();
    let mut health = HealthClient::new(server.channel().await);
    let mut changes = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        changes.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    let http = server.http.take().unwrap();
    let draining = tokio::task::spawn_blocking(move || http.drain(std::time::Duration::from_secs(20)));
    assert_eq!(
        changes.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
    assert!(changes.message().await.unwrap().is_none());
    drop(health);
    draining.await.unwrap();
}
