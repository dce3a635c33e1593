//! Locks and elections: who has its turn when, what stays of a caller that goes away, and etcd's words.

use std::time::Duration;

use kvorum_proto::etcdserverpb::{self as pb, lease_client::LeaseClient};
use kvorum_proto::v3electionpb::election_client::ElectionClient;
use kvorum_proto::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use kvorum_proto::v3lockpb::lock_client::LockClient;
use kvorum_proto::v3lockpb::{LockRequest, UnlockRequest};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::etcd_kv::{client, put};
use crate::replica::Server;

const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until it is so.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn grant(server: &Server, id: i64) {
    let mut leases = LeaseClient::new(server.channel().await);
    let granted = leases.lease_grant(pb::LeaseGrantRequest { ttl: 600, id }).await;
    assert_eq!(granted.unwrap().into_inner().id, id);
}

async fn locks(server: &Server) -> LockClient<Channel> {
    LockClient::new(server.channel().await)
}

async fn elections(server: &Server) -> ElectionClient<Channel> {
    ElectionClient::new(server.channel().await)
}

fn lock(lease: i64) -> LockRequest {
    LockRequest {
        name: "l".into(),
        lease,
    }
}

fn unlock(lease: i64) -> UnlockRequest {
    UnlockRequest {
        key: format!("l/{lease:x}").into(),
    }
}

/// The keys of a queue, the oldest first.
async fn queue(server: &Server) -> Vec<String> {
    let all = pb::RangeRequest {
        key: "l/".into(),
        range_end: "l0".into(),
        sort_target: pb::range_request::SortTarget::Create.into(),
        ..Default::default()
    };
    let found = client(server).await.range(all).await.unwrap().into_inner();
    found
        .kvs
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
        .collect()
}

#[track_caller]
fn check<T: std::fmt::Debug>(result: Result<Response<T>, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn a_lock_is_the_oldest_key_below_its_name() {
    let server = Server::start();
    let mut locks = locks(&server).await;
    grant(&server, 0x1f).await;
    let held = locks.lock(lock(0x1f)).await.unwrap().into_inner();
    assert_eq!((&held.key[..], held.header.unwrap().revision), (&b"l/1f"[..], 2));
    // The same lease holds it already.
    let again = locks.lock(lock(0x1f)).await.unwrap().into_inner();
    assert_eq!(
        (&again.key[..], again.header.unwrap().revision),
        (&b"l/1f"[..], 2)
    );
    let mut kv = client(&server).await;
    let record = kv
        .range(crate::etcd_kv::get("l/1f"))
        .await
        .unwrap()
        .into_inner()
        .kvs
        .remove(0);
    assert_eq!((record.value.as_ref(), record.lease), (&b""[..], 0x1f));

    let given_up = locks.unlock(unlock(0x1f)).await.unwrap().into_inner();
    assert_eq!(given_up.header.unwrap().revision, 3);
    // To give it up twice is no error, and changes nothing.
    let given_up = locks.unlock(unlock(0x1f)).await.unwrap().into_inner();
    assert_eq!(given_up.header.unwrap().revision, 3);

    // Without a lease one of sixty seconds is granted.
    let held = locks.lock(lock(0)).await.unwrap().into_inner();
    let lease = i64::from_str_radix(std::str::from_utf8(&held.key[2..]).unwrap(), 16).unwrap();
    let mut leases = LeaseClient::new(server.channel().await);
    let all = leases
        .lease_leases(pb::LeaseLeasesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(all.leases.iter().any(|found| found.id == lease), "{all:?}");

    check(
        locks.lock(lock(77)).await,
        Code::Unknown,
        "etcdserver: requested lease not found",
    );
    check(
        locks.unlock(UnlockRequest::default()).await,
        Code::Unknown,
        "etcdserver: key is not provided",
    );
}

/// Waits for the lock of a lease; says so when it is held.
fn wait_for(mut locks: LockClient<Channel>, lease: i64, turns: mpsc::UnboundedSender<i64>) -> JoinHandle<()> {
    tokio::spawn(async move {
        locks.lock(lock(lease)).await.unwrap();
        turns.send(lease).unwrap();
    })
}

#[tokio::test]
async fn those_who_wait_have_their_turns_one_by_one_in_order() {
    let server = Server::start();
    let locks = locks(&server).await;
    let (turns, mut taken) = mpsc::unbounded_channel();
    const COUNT: i64 = 20;
    for lease in 1..=COUNT {
        grant(&server, lease).await;
        wait_for(locks.clone(), lease, turns.clone());
        eventually("it stands in line", async || {
            queue(&server).await.len() == lease as usize
        })
        .await;
    }
    for lease in 1..=COUNT {
        let holder = tokio::time::timeout(PATIENCE, taken.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(holder, lease);
        assert!(taken.try_recv().is_err(), "two hold the lock");
        locks.clone().unlock(unlock(lease)).await.unwrap();
    }
    assert_eq!(queue(&server).await, [""; 0]);
}

#[tokio::test]
async fn who_goes_away_stands_in_nobodys_way() {
    let server = Server::start();
    let mut locks = locks(&server).await;
    for lease in 1..=3 {
        grant(&server, lease).await;
    }
    locks.lock(lock(1)).await.unwrap();
    let (turns, mut taken) = mpsc::unbounded_channel();
    let gone = wait_for(locks.clone(), 2, turns.clone());
    eventually("the second waits", async || queue(&server).await.len() == 2).await;
    wait_for(locks.clone(), 3, turns);
    eventually("the third waits", async || queue(&server).await.len() == 3).await;
    gone.abort();
    eventually("the second is gone", async || {
        queue(&server).await == ["l/1", "l/3"]
    })
    .await;
    locks.unlock(unlock(1)).await.unwrap();
    assert_eq!(taken.recv().await, Some(3));

    // One that waits only for a time.
    let mut late = Request::new(lock(2));
    late.set_timeout(Duration::from_millis(50));
    let status = locks.lock(late).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{status}"
    );
    eventually("its place is given up", async || queue(&server).await == ["l/3"]).await;
}

/// In whatever step of the way it does.
#[tokio::test]
async fn who_goes_away_at_any_moment_leaves_nothing() {
    let server = Server::start();
    let mut locks = locks(&server).await;
    for lease in 1..=60 {
        grant(&server, lease).await;
    }
    locks.lock(lock(1)).await.unwrap();
    for lease in 2..=60_u64 {
        let mut locks = locks.clone();
        let waiting = tokio::spawn(async move { locks.lock(lock(lease as i64)).await });
        tokio::time::sleep(Duration::from_micros(lease * 40)).await;
        waiting.abort();
        let _ = waiting.await;
    }
    let mut kv = client(&server).await;
    eventually("all are gone", async || queue(&server).await == ["l/1"]).await;
    // Nor does anything arrive later and stay.
    kv.put(put("after", "")).await.unwrap();
    eventually("all are gone", async || queue(&server).await == ["l/1"]).await;
}

#[tokio::test]
async fn a_lease_that_ends_gives_up_its_place() {
    let server = Server::start();
    let mut locks = locks(&server).await;
    for lease in 1..=3 {
        grant(&server, lease).await;
    }
    locks.lock(lock(1)).await.unwrap();
    let mut second = locks.clone();
    let second = tokio::spawn(async move { second.lock(lock(2)).await });
    eventually("the second waits", async || queue(&server).await.len() == 2).await;
    let mut third = locks.clone();
    let third = tokio::spawn(async move { third.lock(lock(3)).await });
    eventually("the third waits", async || queue(&server).await.len() == 3).await;
    let mut leases = LeaseClient::new(server.channel().await);
    leases
        .lease_revoke(pb::LeaseRevokeRequest { id: 2 })
        .await
        .unwrap();
    leases
        .lease_revoke(pb::LeaseRevokeRequest { id: 1 })
        .await
        .unwrap();
    check(second.await.unwrap(), Code::Unknown, "mutex: session is expired");
    assert_eq!(third.await.unwrap().unwrap().into_inner().key, "l/3");
}

#[tokio::test]
async fn a_member_that_stops_lets_its_callers_go() {
    let mut server = Server::start();
    let mut locks = locks(&server).await;
    grant(&server, 1).await;
    grant(&server, 2).await;
    locks.lock(lock(1)).await.unwrap();
    let mut second = locks.clone();
    let second = tokio::spawn(async move { second.lock(lock(2)).await });
    eventually("the second waits", async || queue(&server).await.len() == 2).await;
    let http = server.http.take().unwrap();
    tokio::task::spawn_blocking(move || http.drain(PATIENCE))
        .await
        .unwrap();
    check(
        second.await.unwrap(),
        Code::Unavailable,
        "etcdserver: server stopped",
    );
    assert_eq!(server.handle.state().facts().keys, 1, "its place is given up");
}

fn campaign(lease: i64, value: &'static str) -> CampaignRequest {
    CampaignRequest {
        name: "l".into(),
        lease,
        value: value.into(),
    }
}

fn proclaim(leader: &LeaderKey, value: &'static str) -> ProclaimRequest {
    ProclaimRequest {
        leader: Some(leader.clone()),
        value: value.into(),
    }
}

fn of_election() -> LeaderRequest {
    LeaderRequest { name: "l".into() }
}

fn said(answer: &LeaderResponse) -> (String, String, i64) {
    let kv = answer.kv.as_ref().unwrap();
    let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
    (
        text(&kv.key),
        text(&kv.value),
        answer.header.as_ref().unwrap().revision,
    )
}

#[tokio::test]
async fn leaders_campaign_proclaim_and_resign() {
    let server = Server::start();
    let mut elections = elections(&server).await;
    grant(&server, 1).await;
    grant(&server, 2).await;
    check(
        elections.leader(of_election()).await,
        Code::Unknown,
        "election: no leader",
    );
    let mut seen = elections.observe(of_election()).await.unwrap().into_inner();

    let won = elections.campaign(campaign(1, "a")).await.unwrap().into_inner();
    let first = won.leader.unwrap();
    let expected = LeaderKey {
        name: "l".into(),
        key: "l/1".into(),
        rev: 2,
        lease: 1,
    };
    assert_eq!((&first, won.header.unwrap().revision), (&expected, 2));
    assert_eq!(
        said(&seen.message().await.unwrap().unwrap()),
        ("l/1".into(), "a".into(), 2)
    );

    // The leader's own campaign is over at once, and says something else.
    elections.campaign(campaign(1, "b")).await.unwrap();
    let answer = elections.leader(of_election()).await.unwrap().into_inner();
    assert_eq!(said(&answer), ("l/1".into(), "b".into(), 3));
    elections.proclaim(proclaim(&first, "c")).await.unwrap();
    for value in ["b", "c"] {
        assert_eq!(said(&seen.message().await.unwrap().unwrap()).1, value);
    }

    // The second waits; what it says is not heard before it leads.
    let mut other = elections.clone();
    let second = tokio::spawn(async move { other.campaign(campaign(2, "d")).await });
    eventually("the second waits", async || queue(&server).await.len() == 2).await;
    let resigned = elections
        .resign(ResignRequest {
            leader: Some(first.clone()),
        })
        .await
        .unwrap();
    assert_eq!(resigned.into_inner().header.unwrap().revision, 6);
    let second = second.await.unwrap().unwrap().into_inner().leader.unwrap();
    assert_eq!((&second.key[..], second.rev), (&b"l/2"[..], 5));
    assert_eq!(
        said(&seen.message().await.unwrap().unwrap()),
        ("l/2".into(), "d".into(), 6)
    );

    // One that does not lead any more.
    check(
        elections.proclaim(proclaim(&first, "e")).await,
        Code::Unknown,
        "election: not leader",
    );
    let nothing = elections
        .resign(ResignRequest { leader: Some(first) })
        .await
        .unwrap();
    assert_eq!(nothing.into_inner().header.unwrap().revision, 6);
    let no_key = "\"leader\" field must be provided";
    check(
        elections.proclaim(ProclaimRequest::default()).await,
        Code::Unknown,
        no_key,
    );
    check(
        elections.resign(ResignRequest::default()).await,
        Code::Unknown,
        no_key,
    );
    check(
        elections.campaign(campaign(9, "x")).await,
        Code::Unknown,
        "etcdserver: requested lease not found",
    );
}

/// The observer sees a vacancy that ends, and everything that leaders say, in order.
#[tokio::test]
async fn observers_follow_from_one_leader_to_the_next() {
    let server = Server::start();
    let mut elections = elections(&server).await;
    grant(&server, 1).await;
    let mut seen = elections.observe(of_election()).await.unwrap().into_inner();
    for round in 0..20 {
        let won = elections
            .campaign(campaign(1, "first"))
            .await
            .unwrap()
            .into_inner();
        let leader = won.leader.unwrap();
        // A vacancy may be over before the observer looks: it sees the present leader then.
        if round % 2 == 0 {
            let answer = tokio::time::timeout(PATIENCE, seen.message()).await.unwrap();
            assert_eq!(said(&answer.unwrap().unwrap()).1, "first", "round {round}");
        }
        elections.proclaim(proclaim(&leader, "last")).await.unwrap();
        loop {
            let answer = tokio::time::timeout(PATIENCE, seen.message()).await.unwrap();
            let (_, value, revision) = said(&answer.unwrap().unwrap());
            assert!(revision >= leader.rev, "an older leader in round {round}");
            if value == "last" {
                break;
            }
        }
        elections
            .resign(ResignRequest { leader: Some(leader) })
            .await
            .unwrap();
    }
}
