//! The replaced systems' REST routes on a real cluster: any member takes any write, the loss of the leader is
//! survived, and without a quorum each route and probe says what it promises.

use serde_json::Value;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, PATIENCE};
use crate::http::request;
use crate::program::eventually;

async fn call(cluster: &Cluster, at: usize, method: &str, path: &str, body: &str) -> (u16, String) {
    let address = &cluster.members[at].client;
    request(method, address, path, body.as_bytes()).await.unwrap()
}

/// Once, a write that a follower got between the leader's death and the election was handed to a connection that was
/// not there, and answered "unknown" at once.
async fn writes_wait_for_the_new_leader(cluster: &Cluster, dead: usize) {
    let mut writes = JoinSet::new();
    for number in 0..8 {
        let at = (dead + 1 + number % 2) % 3;
        let address = cluster.members[at].client.clone();
        writes.spawn(async move {
            let body = format!(r#"{{"key":"after-{number}","value":"v"}}"#);
            request("POST", &address, "/key", body.as_bytes()).await.unwrap()
        });
    }
    for answer in writes.join_all().await {
        assert_eq!(answer, (201, "key created successfully!".to_owned()));
    }
    for number in 0..8 {
        let at = (dead + 2 - number % 2) % 3;
        let expected = (200, format!(r#"{{ "after-{number}" : "v" }}"#));
        let path = format!("/key/after-{number}");
        assert_eq!(call(cluster, at, "GET", &path, "").await, expected);
    }
}

#[tokio::test]
async fn the_surfaces_of_a_cluster_that_loses_one_member_after_the_other() {
    let mut cluster = Cluster::start(3, &["--request-timeout", "4s"]).await;
    any_member_takes_any_write(&cluster).await;

    let leader = cluster.leader().await;
    cluster.members[leader].kill().await;
    writes_wait_for_the_new_leader(&cluster, leader).await;

    let last = (leader + 1) % 3;
    cluster.members[(leader + 2) % 3].kill().await;
    without_a_quorum(&cluster, last).await;
}

/// Writes through each route at each member, and reads through each route at the next one.
async fn any_member_takes_any_write(cluster: &Cluster) {
    for at in 0..3 {
        let next = (at + 1) % 3;
        let (kv, key, batch) = (format!("kv{at}"), format!("key{at}"), format!("batch{at}"));
        let body = format!(r#"{{"key":"{kv}","value":"v"}}"#);
        assert_eq!(
            call(cluster, at, "POST", "/kv", &body).await,
            (200, "{}".to_owned())
        );
        let body = format!(r#"{{"key":"{key}","value":"v"}}"#);
        let created = (201, "key created successfully!".to_owned());
        assert_eq!(call(cluster, at, "POST", "/key", &body).await, created);
        let body = format!(r#"{{"operations":[{{"type":"put","key":"{batch}","value":"dg=="}}]}}"#);
        let (status, answer) = call(cluster, at, "POST", "/batch", &body).await;
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(
            answer["indices"][0].as_u64().is_some_and(|index| index > 0),
            "{answer}"
        );
        for written in [&kv, &key, &batch] {
            let found = call(cluster, next, "GET", &format!("/kv/{written}"), "").await;
            assert_eq!(found, (200, r#"{"value":"v"}"#.to_owned()));
            let found = call(cluster, next, "GET", &format!("/key/{written}"), "").await;
            assert_eq!(found, (200, format!(r#"{{ "{written}" : "v" }}"#)));
        }
        let gone = call(cluster, next, "DELETE", &format!("/kv/{kv}"), "").await;
        assert_eq!(gone, (200, "{}".to_owned()));
        let missing = (404, "key not found\n".to_owned());
        assert_eq!(
            call(cluster, at, "DELETE", &format!("/key/{kv}"), "").await,
            missing
        );
    }
}

async fn without_a_quorum(cluster: &Cluster, at: usize) {
    eventually("it knows that it is alone", PATIENCE, async || {
        let (_, body) = call(cluster, at, "GET", "/health", "").await;
        let health: Value = serde_json::from_str(&body).unwrap();
        (health["reason"] == "RAFT NO LEADER").then_some(())
    })
    .await;
    let (status, body) = call(cluster, at, "GET", "/health", "").await;
    let health: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &health["status"], &health["health"]),
        (200, &"degraded".into(), &"false".into())
    );
    assert_eq!(
        call(cluster, at, "GET", "/livez", "").await,
        (200, "ok\n".to_owned())
    );
    assert_eq!(call(cluster, at, "GET", "/readyz", "").await.0, 503);

    let body = r#"{"key":"late","value":"v"}"#;
    let no_leader = (503, "Leader not ready yet!! please try later\n".to_owned());
    assert_eq!(call(cluster, at, "POST", "/key", body).await, no_leader);
    assert_eq!(call(cluster, at, "GET", "/key/key0", "").await, no_leader);
    let (status, answer) = call(cluster, at, "POST", "/kv", body).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["code"]), (503, &14.into()), "{answer}");
    assert_eq!(call(cluster, at, "GET", "/kv/key0", "").await.0, 503);
    let body = r#"{"operations":[{"type":"delete","key":"key0"}]}"#;
    assert_eq!(call(cluster, at, "POST", "/batch", body).await.0, 503);
}
