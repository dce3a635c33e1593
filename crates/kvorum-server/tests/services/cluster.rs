//! etcd's Cluster service.

use std::sync::{Arc, Mutex};

use kvorum_node::AdminError;
use kvorum_proto::Outcome;
use kvorum_proto::etcdserverpb::cluster_client::ClusterClient;
use kvorum_proto::etcdserverpb::{self as etcd};
use kvorum_proto::kvorum::v1::PeerChangeResponse;
use kvorum_proto::kvorum::v1::peer_change_request::Change;
use kvorum_server::operations::Operations;
use tonic::{Code, Status};

use crate::replica::{MEMBER, OTHER, Server, Setting};

fn add(url: &str, is_learner: bool) -> etcd::MemberAddRequest {
    etcd::MemberAddRequest {
        peer_ur_ls: vec![url.to_owned()],
        is_learner,
    }
}

#[tokio::test]
async fn members_are_added_promoted_and_removed() {
    let server = Server::start();
    let mut client = ClusterClient::new(server.channel().await);
    for (is_learner, promotes) in [
        (true, "promote_when_ready: false"),
        (false, "promote_when_ready: true"),
    ] {
        let answer = client
            .member_add(add("http://h:1", is_learner))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.header.unwrap().revision, 0);
        let member = answer.member.unwrap();
        assert_eq!((member.id, member.is_learner), (11, is_learner));
        assert_eq!((&member.name[..], member.client_ur_ls.len()), ("", 0));
        assert_eq!(member.peer_ur_ls, ["http://h:1"]);
        assert!(answer.members.iter().any(|member| member.id == 11));
        let asked = server.behaviour.lock().unwrap().asked.pop().unwrap();
        assert!(
            asked.starts_with("Checked") && asked.contains(promotes),
            "{asked}"
        );
    }
    let request = etcd::MemberRemoveRequest { id: OTHER };
    let removed = client.member_remove(request).await.unwrap().into_inner();
    assert_eq!(removed.header.unwrap().revision, 0);
    assert!(removed.members.iter().all(|member| member.id != OTHER));
    let request = etcd::MemberPromoteRequest { id: OTHER };
    let promoted = client.member_promote(request).await.unwrap().into_inner();
    assert_eq!(promoted.header.unwrap().revision, 0);
    assert!(promoted.members.iter().any(|member| member.id == MEMBER));
}

#[tokio::test]
async fn refusals_have_etcds_codes_and_words() {
    let server = Server::start();
    let mut client = ClusterClient::new(server.channel().await);
    for url in ["h:1", "http://h", "https://h:1", "http://h:1/x", ""] {
        let status = client.member_add(add(url, false)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{url}");
        assert_eq!(status.message(), "etcdserver: given member URLs are invalid");
    }
    for (error, code, text) in [
        (AdminError::UnknownMember(5), Code::NotFound, "member not found"),
        (AdminError::NoLiveQuorum, Code::Unavailable, "unhealthy cluster"),
        (
            AdminError::NotEnoughStarted,
            Code::FailedPrecondition,
            "re-configuration failed due to not enough started members",
        ),
        (
            AdminError::NotReady(5),
            Code::FailedPrecondition,
            "can only promote a learner member which is in sync with leader",
        ),
        (
            AdminError::NotLearner(5),
            Code::FailedPrecondition,
            "can only promote a learner member",
        ),
        (
            AdminError::TooManyLearners,
            Code::FailedPrecondition,
            "too many learner members in cluster",
        ),
        (
            AdminError::AddressInUse,
            Code::FailedPrecondition,
            "Peer URLs already exists",
        ),
    ] {
        server.set(|b| b.admin = Some(error));
        let request = etcd::MemberPromoteRequest { id: 5 };
        let status = client.member_promote(request).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (code, &*format!("etcdserver: {text}"))
        );
        assert_eq!(Outcome::of(&status), Some(Outcome::NotApplied));
    }
}

/// etcd-client's `test_cluster` removes a member right after it was promoted, while the cluster still leaves the joint
/// configuration of the promotion: that was refused.
#[tokio::test]
async fn a_change_waits_for_the_one_under_way() {
    let server = Server::start();
    let mut client = ClusterClient::new(server.channel().await);
    server.set(|b| b.admin = Some(AdminError::Busy));
    let request = etcd::MemberRemoveRequest { id: OTHER };
    let under_way_ends = async {
        while server.behaviour.lock().unwrap().asked.len() < 2 {
            tokio::task::yield_now().await;
        }
        server.set(|b| b.admin = None);
    };
    let (removed, ()) = tokio::join!(client.member_remove(request), under_way_ends);
    let members = removed.unwrap().into_inner().members;
    assert!(members.iter().all(|member| member.id != OTHER));

    // One that does not end in time is named.
    server.set(|b| b.admin = Some(AdminError::Busy));
    let mut patience = std::time::Duration::from_millis(200);
    let status = loop {
        let mut request = tonic::Request::new(request);
        request.set_timeout(patience);
        let status = client.member_remove(request).await.unwrap_err();
        // On a busy machine the client's own clock may run out before the member's answer is here: the longer the
        // wait, the more time the member leaves for that.
        if status.code() != Code::Cancelled || patience.as_secs() > 10 {
            break status;
        }
        patience *= 3;
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("under way"), "{status:?}");
    assert_eq!(Outcome::of(&status), Some(Outcome::NotApplied));
}

/// A member that does not lead asks the one that does, and asks again when that one led no more.
#[tokio::test]
async fn another_leader_makes_the_change() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let forward_change = {
        let asked = asked.clone();
        Arc::new(
            move |leader, request: kvorum_proto::kvorum::v1::PeerChangeRequest| {
                let mut asked = asked.lock().unwrap();
                asked.push((leader, request.checked, request.change.unwrap()));
                let answer = match asked.len() {
                    1 => Err(Status::failed_precondition(
                        "etcdserver: not leader; no leader is known",
                    )),
                    2 => Ok(PeerChangeResponse { added: 0 }),
                    _ => Err(Status::not_found("etcdserver: member not found")),
                };
                Box::pin(async { answer }) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
            },
        )
    };
    let server = Server::with(Setting {
        operations: Operations {
            forward_change,
            ..Operations::default()
        },
        ..Setting::default()
    });
    server.publish(|status| status.leader = OTHER);
    let mut client = ClusterClient::new(server.channel().await);
    let request = etcd::MemberRemoveRequest { id: 77 };
    client.member_remove(request).await.unwrap();
    let expected = (OTHER, true, Change::Remove(77));
    assert_eq!(*asked.lock().unwrap(), [expected.clone(), expected]);
    let status = client.member_remove(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}
