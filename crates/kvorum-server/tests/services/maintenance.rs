//! etcd's Maintenance service.

use kvorum_proto::etcdserverpb::alarm_request::AlarmAction;
use kvorum_proto::etcdserverpb::downgrade_request::DowngradeAction;
use kvorum_proto::etcdserverpb::kv_client::KvClient;
use kvorum_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use kvorum_proto::etcdserverpb::{self as etcd, AlarmType};
use kvorum_server::handle::StoreFigures;
use kvorum_server::operations::{Operations, Quota};
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::etcd_kv::put;
use crate::replica::{MEMBER, OTHER, Server, Setting};

fn alarm(action: AlarmAction, alarm: AlarmType, member_id: u64) -> etcd::AlarmRequest {
    etcd::AlarmRequest {
        action: action.into(),
        member_id,
        alarm: alarm.into(),
    }
}

fn get_alarms() -> etcd::AlarmRequest {
    alarm(AlarmAction::Get, AlarmType::None, 0)
}

fn delete(key: &str) -> etcd::DeleteRangeRequest {
    etcd::DeleteRangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

fn range(key: &str) -> etcd::RangeRequest {
    etcd::RangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

/// The same history as in a test of etcd gives the hash that stands there (see kvorum-mvcc, `read/hash/tests.rs`).
#[tokio::test]
async fn hash_kv_is_etcds() {
    let server = Server::start();
    let (mut kv, mut client) = (
        KvClient::new(server.channel().await),
        MaintenanceClient::new(server.channel().await),
    );
    let names = ["alice", "bob", "celine", "dominik", "eve", "frederica", "gorge"];
    for i in 0..=71usize {
        let key = if i == 30 { "zenek" } else { names[i % 7] };
        kv.put(put(key, i.to_string())).await.unwrap();
    }
    let ask = |revision| etcd::HashKvRequest { revision };
    let answer = client.hash_kv(ask(0)).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 73);
    assert_eq!(
        (answer.hash, answer.compact_revision, answer.hash_revision),
        (1913897190, -1, 73)
    );
    let answer = client.hash_kv(ask(35)).await.unwrap().into_inner();
    assert_eq!((answer.hash, answer.hash_revision), (4082599214, 35));
    let status = client.hash_kv(ask(74)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision"
        )
    );
    let before = client.hash(etcd::HashRequest {}).await.unwrap().into_inner().hash;
    kv.put(put("a", "1")).await.unwrap();
    let after = client.hash(etcd::HashRequest {}).await.unwrap().into_inner().hash;
    assert_ne!(before, after);
}

#[tokio::test]
async fn a_no_space_alarm_lets_go_what_makes_room() {
    let server = Server::start();
    let (mut kv, mut client) = (
        KvClient::new(server.channel().await),
        MaintenanceClient::new(server.channel().await),
    );
    kv.put(put("a", "1")).await.unwrap();
    let raise = alarm(AlarmAction::Activate, AlarmType::Nospace, OTHER);
    let member = etcd::AlarmMember {
        member_id: OTHER,
        alarm: AlarmType::Nospace.into(),
    };
    for _ in 0..2 {
        let raised = client.alarm(raise).await.unwrap().into_inner();
        assert_eq!(raised.alarms, [member]);
    }
    assert_eq!(
        client.alarm(get_alarms()).await.unwrap().into_inner().alarms,
        [member]
    );
    let corrupt = alarm(AlarmAction::Get, AlarmType::Corrupt, 0);
    assert!(
        client
            .alarm(corrupt)
            .await
            .unwrap()
            .into_inner()
            .alarms
            .is_empty()
    );
    let status = client.status(etcd::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.errors, ["memberID:9 alarm:NOSPACE "]);

    let refused = kv.put(put("b", "1")).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded"
        )
    );
    assert_eq!(kv.range(range("a")).await.unwrap().into_inner().count, 1);
    assert_eq!(
        kv.delete_range(delete("a")).await.unwrap().into_inner().deleted,
        1
    );
    let compact = etcd::CompactionRequest {
        revision: 3,
        physical: false,
    };
    kv.compact(compact).await.unwrap();

    let disarm = alarm(AlarmAction::Deactivate, AlarmType::Nospace, OTHER);
    assert_eq!(client.alarm(disarm).await.unwrap().into_inner().alarms, [member]);
    assert!(client.alarm(disarm).await.unwrap().into_inner().alarms.is_empty());
    kv.put(put("b", "1")).await.unwrap();
}

#[tokio::test]
async fn a_corruption_alarm_stops_reads_and_writes() {
    let server = Server::start();
    let (mut kv, mut client) = (
        KvClient::new(server.channel().await),
        MaintenanceClient::new(server.channel().await),
    );
    let raise = alarm(AlarmAction::Activate, AlarmType::Corrupt, MEMBER);
    client.alarm(raise).await.unwrap();
    let compact = etcd::CompactionRequest {
        revision: 1,
        physical: false,
    };
    for status in [
        kv.put(put("b", "1")).await.unwrap_err(),
        kv.range(range("b")).await.unwrap_err(),
        kv.delete_range(delete("b")).await.unwrap_err(),
        kv.compact(compact).await.unwrap_err(),
        kv.txn(etcd::TxnRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!(
            (status.code(), status.message()),
            (Code::DataLoss, "etcdserver: corrupt cluster")
        );
    }
    let disarm = alarm(AlarmAction::Deactivate, AlarmType::Corrupt, MEMBER);
    client.alarm(disarm).await.unwrap();
    kv.put(put("b", "1")).await.unwrap();
}

fn with_quota(alarm_stays: bool) -> Server {
    let quota = Quota {
        bytes: 20_000,
        alarm_stays,
    };
    Server::with(Setting {
        operations: Operations {
            quota,
            ..Operations::default()
        },
        ..Setting::default()
    })
}

fn grow(server: &Server, disk_bytes: u64) {
    server.port.publish_figures(StoreFigures {
        disk_bytes,
        ..server.handle.figures()
    });
}

#[tokio::test]
async fn a_quota_clears_by_itself() {
    let server = with_quota(false);
    let (mut kv, mut client) = (
        KvClient::new(server.channel().await),
        MaintenanceClient::new(server.channel().await),
    );
    kv.put(put("a", "1")).await.unwrap();
    // What does not fit any more, though something smaller would.
    let large = kv.put(put("a", vec![0; 9000])).await.unwrap_err();
    assert_eq!(large.code(), Code::ResourceExhausted);
    kv.put(put("a", "2")).await.unwrap();
    grow(&server, 20_001);
    assert_eq!(
        kv.put(put("a", "1")).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    let alarms = client.alarm(get_alarms()).await.unwrap().into_inner().alarms;
    assert_eq!((alarms.len(), alarms[0].member_id), (1, MEMBER));
    let status = client.status(etcd::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.db_size, status.db_size_quota), (20_001, 20_000));
    grow(&server, 9_000);
    kv.put(put("a", "1")).await.unwrap();
    assert!(
        client
            .alarm(get_alarms())
            .await
            .unwrap()
            .into_inner()
            .alarms
            .is_empty()
    );
}

#[tokio::test]
async fn etcds_quota_alarm_stays() {
    let server = with_quota(true);
    let (mut kv, mut client) = (
        KvClient::new(server.channel().await),
        MaintenanceClient::new(server.channel().await),
    );
    grow(&server, 20_001);
    assert_eq!(
        kv.put(put("a", "1")).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while client
        .alarm(get_alarms())
        .await
        .unwrap()
        .into_inner()
        .alarms
        .is_empty()
    {
        assert!(std::time::Instant::now() < deadline, "the alarm never rose");
        tokio::task::yield_now().await;
    }
    grow(&server, 9_000);
    assert_eq!(
        kv.put(put("a", "1")).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    let disarm = alarm(AlarmAction::Deactivate, AlarmType::Nospace, MEMBER);
    client.alarm(disarm).await.unwrap();
    kv.put(put("a", "1")).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_says_what_is_to_come_and_ends_with_its_hash() {
    let server = Server::start();
    let (mut kv, mut client) = (
        KvClient::new(server.channel().await),
        MaintenanceClient::new(server.channel().await),
    );
    for n in 0..30 {
        kv.put(put(format!("k{n}"), vec![n; 5000])).await.unwrap();
    }
    let mut stream = client
        .snapshot(etcd::SnapshotRequest {})
        .await
        .unwrap()
        .into_inner();
    let (mut bytes, mut blobs, mut remaining) = (Vec::new(), Vec::new(), None);
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(message.version, "3.6.0");
        blobs.push(message.blob);
        let blob = blobs.last().unwrap();
        if let Some(before) = remaining
            && before > 0
        {
            assert_eq!(before, message.remaining_bytes + blob.len() as u64);
        }
        remaining = Some(message.remaining_bytes);
    }
    let digest = blobs.pop().unwrap();
    assert_eq!((digest.len(), remaining), (32, Some(0)));
    for blob in &blobs {
        bytes.extend_from_slice(blob);
    }
    assert!(
        blobs.len() > 4
            && blobs[..blobs.len() - 1]
                .iter()
                .all(|blob| blob.len() == 32 * 1024)
    );
    assert_eq!(digest[..], Sha256::digest(&bytes)[..]);
    assert!(bytes.starts_with(b"kvSH"));
    assert_eq!(bytes.len() % 512, 0, "etcdctl takes no other length for whole");
}

#[tokio::test]
async fn leadership_moves_only_from_the_leader_to_a_voter() {
    let server = Server::start();
    let mut client = MaintenanceClient::new(server.channel().await);
    let to = |target_id| etcd::MoveLeaderRequest { target_id };
    let status = client.move_leader(to(99)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "etcdserver: bad leader transferee")
    );
    let done = async {
        while server.behaviour.lock().unwrap().asked.is_empty() {
            tokio::task::yield_now().await;
        }
        server.publish(|status| status.leader = OTHER);
    };
    let (moved, ()) = tokio::join!(client.move_leader(to(OTHER)), done);
    assert_eq!(moved.unwrap().into_inner().header, None);
    let status = client.move_leader(to(OTHER)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "etcdserver: not leader")
    );
}

#[tokio::test]
async fn there_is_nothing_to_downgrade_to() {
    let server = Server::start();
    let mut client = MaintenanceClient::new(server.channel().await);
    for (action, version, code, text) in [
        (
            DowngradeAction::Validate,
            "nonsense",
            Code::InvalidArgument,
            "wrong downgrade target version format",
        ),
        (
            DowngradeAction::Enable,
            "3.5",
            Code::InvalidArgument,
            "invalid downgrade target version",
        ),
    ] {
        let request = etcd::DowngradeRequest {
            action: action.into(),
            version: version.to_owned(),
        };
        let status = client.downgrade(request).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (code, &*format!("etcdserver: {text}"))
        );
    }
    // To end what never began succeeds, as in etcd 3.6: kvorum refused it.
    let request = etcd::DowngradeRequest {
        action: DowngradeAction::Cancel.into(),
        version: String::new(),
    };
    let canceled = client.downgrade(request).await.unwrap().into_inner();
    assert_eq!(canceled.version, "3.6");
}
