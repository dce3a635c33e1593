//! Members that announce themselves: a cluster grows from one member by registrations, sent to any member; one that
//! lost its directory comes back by registering again.

use kvorum_client::proto::v1::{JoinRequest, JoinResponse, Suffrage};
use kvorum_client::{Code, Error};
use tempfile::TempDir;

use crate::cluster::{Member, PATIENCE, turn};
use crate::http::request;
use crate::program::eventually;

const SETTINGS: [&str; 3] = ["--open-join", "--service-max-map-size", "20"];

/// A cluster that begins with one member.
struct Growing {
    members: Vec<Member>,
    dir: TempDir,
}

impl Growing {
    async fn begin() -> Growing {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut first = Member::new("node1", dir.path(), &SETTINGS);
        first.start();
        first.wait_for_status().await;
        let members = vec![first];
        Growing { members, dir }
    }

    /// Registers the member that comes next at `at`, starts it, and waits until it votes.
    async fn grow(&mut self, at: usize) {
        let name = format!("node{}", self.members.len() + 1);
        let member = Member::new(&name, self.dir.path(), &SETTINGS);
        let body = format!(r#"{{"follower_id":"{name}","follower_addr":"{}"}}"#, member.peer);
        for _ in 0..2 {
            let answer = request(
                "POST",
                &self.members[at].client,
                "/register-follower",
                body.as_bytes(),
            )
            .await;
            assert_eq!(answer.unwrap(), (200, "registered".to_owned()));
        }
        let joined = join(&self.members[at], &member, &[]).await.unwrap();
        self.members.push(member);
        let last = self.members.len() - 1;
        self.start_joined(last, &joined).await;
    }

    /// Starts a member with what the cluster told it, and waits until it votes under the ID that it was given.
    async fn start_joined(&mut self, at: usize, joined: &JoinResponse) {
        let list: Vec<String> = joined
            .members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_addresses[0]))
            .collect();
        let member = &mut self.members[at];
        let command = member.command(&["--join", "--initial-cluster", &list.join(",")]);
        member.start_as(command);
        let status = eventually("the newcomer votes", PATIENCE, async || {
            member.is_running();
            let status = member.status().await?;
            (status.suffrage() == Suffrage::Voter).then_some(status)
        })
        .await;
        assert_eq!(status.member_id, joined.member.as_ref().unwrap().id);
        assert_eq!(status.cluster_uuid, joined.cluster_uuid);
    }

    async fn leader(&self) -> usize {
        eventually("there is a leader", PATIENCE, async || {
            for member in &self.members {
                if let Some(status) = member.status().await
                    && status.majority_contact
                    && status.leader_id != 0
                {
                    for (at, other) in self.members.iter().enumerate() {
                        let other = other.status().await;
                        if other.is_some_and(|other| other.member_id == status.leader_id) {
                            return Some(at);
                        }
                    }
                }
            }
            None
        })
        .await
    }
}

/// `kvorum.v1.Kvorum/Join` at one member for another.
async fn join(at: &Member, newcomer: &Member, incarnation: &[u8]) -> Result<JoinResponse, Error> {
    let request = JoinRequest {
        name: newcomer.name.clone(),
        peer_addresses: vec![newcomer.peer.clone()],
        incarnation: incarnation.to_vec().into(),
    };
    at.client().join(request).await
}

#[tokio::test]
async fn a_cluster_grows_by_registrations_and_takes_a_lost_member_back() {
    let _turn = turn().await;
    let mut cluster = Growing::begin().await;
    cluster.grow(0).await;
    // At a follower as well: the leader hears of it.
    let follower = 1 - cluster.leader().await;
    cluster.grow(follower).await;
    exactly_the_limit_is_created(&cluster).await;

    // One loses its directory while it lives on in the cluster's memory: as long as it was heard of just now, its
    // name is not given away.
    let lost = (cluster.leader().await + 1) % 3;
    let asked = (lost + 1) % 3;
    let fresh = [7; 16];
    let refused = join(&cluster.members[asked], &cluster.members[lost], &fresh).await;
    let in_use =
        |error: &Error| matches!(error, Error::Rejected { code, .. } if *code == Code::AlreadyExists);
    assert!(refused.as_ref().is_err_and(in_use), "{refused:?}");
    let before = cluster.members[lost].status().await.unwrap();
    cluster.members[lost].kill().await;
    std::fs::remove_dir_all(&cluster.members[lost].data_dir).unwrap();
    let joined = eventually("it may come back", PATIENCE, async || {
        let answer = join(&cluster.members[asked], &cluster.members[lost], &fresh).await;
        answer.ok()
    })
    .await;
    assert_ne!(
        joined.member.as_ref().unwrap().id,
        before.member_id,
        "an ID is never used again"
    );
    assert_eq!(joined.members.len(), 3);
    // Announced again, it is the same one.
    let again = join(&cluster.members[asked], &cluster.members[lost], &fresh)
        .await
        .unwrap();
    assert_eq!(again.member.unwrap().id, joined.member.as_ref().unwrap().id);
    cluster.start_joined(lost, &joined).await;
    let keys = cluster.members[lost].local_records("race/").await.len();
    assert_eq!(keys, 20);
}

/// Many create keys at all members at once, where the number of keys is limited to 20: 20 win.
async fn exactly_the_limit_is_created(cluster: &Growing) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..90 {
        let address = cluster.members[number % 3].client.clone();
        tasks.spawn(async move {
            // Each key is tried at two members: one of both finds it there, or there is no room.
            let body = format!(r#"{{"key":"race/{}","value":"{number}"}}"#, number / 2);
            let answer = request("POST", &address, "/key", body.as_bytes()).await.unwrap();
            let known = [
                (201, "key created successfully!"),
                (409, "key already exists\n"),
                (400, "max keys exceeded\n"),
            ];
            assert!(known.contains(&(answer.0, answer.1.as_str())), "{answer:?}");
            answer.0
        });
    }
    let statuses: Vec<u16> = tasks.join_all().await;
    assert_eq!(
        statuses.iter().filter(|status| **status == 201).count(),
        20,
        "{statuses:?}"
    );
    for member in &cluster.members {
        let (status, body) = request(
            "POST",
            &member.client,
            "/key",
            br#"{"key":"one-more","value":""}"#,
        )
        .await
        .unwrap();
        assert_eq!((status, body.as_str()), (400, "max keys exceeded\n"));
    }
}
