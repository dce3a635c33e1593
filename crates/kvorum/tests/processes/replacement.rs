//! A member that lost its directory: refused as who it was, welcome as its own successor.

use kvorum_client::proto::v1::Suffrage;

use crate::cluster::{Cluster, Member, PATIENCE, client, turn};
use crate::program::{eventually, run};

/// Little memory and little log, so that a few megabytes of writes leave the log's beginning behind.
const SETTINGS: [&str; 4] = ["--memtable-bytes", "1MiB", "--log-bytes-max", "2MiB"];
const RECORDS: usize = 6000;
const VALUE_BYTES: usize = 2048;

#[tokio::test]
async fn a_member_that_lost_its_directory_is_replaced() {
    let mut cluster = Cluster::start(3, &SETTINGS).await;
    fill(&cluster).await;
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    eventually("the leader's log begins later", PATIENCE, async || {
        (cluster.members[leader].status().await?.first_index > 1).then_some(())
    })
    .await;

    cluster.members[lost].kill().await;
    let member = &cluster.members[lost];
    std::fs::remove_dir_all(&member.data_dir).unwrap();
    let old_id = member_id(&cluster, lost).await;
    let refused = member.refused(&[]).await;
    let name = member.name.clone();
    refused.failed(1, &["lost its data", "member replace", &name]);

    // Nothing is left of the attempt that would have to be cleared away.
    let endpoints = cluster.endpoints(leader).join(",");
    run(&["member", "replace", &name, "--endpoints", &endpoints]).await;
    let command = cluster.members[lost].command(&["--join"]);
    cluster.members[lost].start_as(command);
    let status = eventually("the successor votes", PATIENCE, async || {
        cluster.members[lost].is_running();
        let status = cluster.members[lost].status().await?;
        (status.suffrage() == Suffrage::Voter).then_some(status)
    })
    .await;
    assert_ne!(status.member_id, old_id, "an ID is never used again");
    assert!(
        status.first_index > 1,
        "it came back by a snapshot, not by the log"
    );
    cluster.check_agreement().await;
    for member in &cluster.members {
        let records = member.local_records("fill/").await;
        assert_eq!(records.len(), RECORDS, "{}", member.name);
        assert!(records.iter().all(|kv| kv.value.len() == VALUE_BYTES));
    }

    // It counts: with another member gone, it makes the majority.
    let leader = cluster.leader().await;
    let other = (0..3).find(|n| *n != lost && *n != leader).unwrap();
    cluster.members[other].kill().await;
    let successor = cluster.members[lost].client();
    successor.put("after", "replacement").await.unwrap();
    let found = cluster.members[leader]
        .client()
        .get("after")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&found.value[..], b"replacement");

    // A restart needs no --join.
    cluster.members[other].start();
    cluster.members[other].wait_for_status().await;
    cluster.members[lost].kill().await;
    cluster.members[lost].start();
    cluster.members[lost].wait_for_status().await;
    cluster.check_agreement().await;
}

/// Once, the cluster knew no name for it, and it could be replaced by its ID only, which nobody had seen.
#[tokio::test]
async fn a_founder_that_never_said_its_name_is_replaced_by_it() {
    let turn = turn().await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut members: Vec<Member> = (1..=3)
        .map(|n| Member::new(&format!("n{n}"), dir.path(), &[]))
        .collect();
    let founders: Vec<String> = members
        .iter()
        .map(|member| format!("{}={}", member.name, member.peer))
        .collect();
    for member in &mut members {
        let list = ["--initial-cluster".to_owned(), founders.join(",")];
        member.settings.extend(list);
    }
    members[0].start();
    members[1].start();
    let mut cluster = Cluster::of(members, dir, turn);
    cluster.leader().await;
    let endpoints = cluster.endpoints(0)[..2].join(",");
    run(&["member", "replace", "n3", "--endpoints", &endpoints]).await;
    let command = cluster.members[2].command(&["--join"]);
    cluster.members[2].start_as(command);
    eventually("the successor votes", PATIENCE, async || {
        cluster.members[2].is_running();
        let status = cluster.members[2].status().await?;
        (status.suffrage() == Suffrage::Voter).then_some(())
    })
    .await;
    cluster.check_agreement().await;
}

async fn fill(cluster: &Cluster) {
    let client = client(&cluster.endpoints(0));
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..RECORDS {
        if writes.len() >= 128 {
            writes.join_next().await.unwrap().unwrap();
        }
        let client = client.clone();
        writes.spawn(async move {
            let value = vec![b'a' + (n % 26) as u8; VALUE_BYTES];
            client.put(format!("fill/{n:05}"), value).await.unwrap();
        });
    }
    while let Some(write) = writes.join_next().await {
        write.unwrap();
    }
}

/// The ID under which the others know a member.
async fn member_id(cluster: &Cluster, at: usize) -> u64 {
    let others = cluster.endpoints(at + 1);
    let answer = client(&others[..2]).members().await.unwrap();
    let name = &cluster.members[at].name;
    answer
        .members
        .iter()
        .find(|member| member.name == *name)
        .unwrap()
        .id
}
