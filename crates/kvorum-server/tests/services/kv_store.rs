use std::sync::atomic::Ordering;

use kvorum_node::WriteFailure;
use kvorum_proto::Outcome;
use kvorum_proto::kv::{self as pb, kv_store_client::KvStoreClient};
use tonic::{Code, Request};

use crate::replica::{Server, Setting, Trouble};
use crate::rest::{Answer, send};

fn put(key: &str, value: &[u8]) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned(),
        value: value.to_vec().into(),
    }
}

#[tokio::test]
async fn put_get_delete_and_status() {
    let server = Server::start();
    let mut client = KvStoreClient::new(server.channel().await);
    let answer = client.put(put("a", b"\xff\x00")).await.unwrap().into_inner();
    assert_eq!(
        answer,
        pb::PutResponse {
            success: true,
            error: String::new(),
            index: 1
        }
    );
    let get = || pb::GetRequest { key: "a".to_owned() };
    let answer = client.get(get()).await.unwrap().into_inner();
    assert_eq!(
        (answer.found, &answer.value[..], &answer.error[..]),
        (true, &b"\xff\x00"[..], "")
    );
    let delete = || pb::DeleteRequest { key: "a".to_owned() };
    let answer = client.delete(delete()).await.unwrap().into_inner();
    assert_eq!(
        answer,
        pb::DeleteResponse {
            success: true,
            error: String::new(),
            index: 2
        }
    );
    assert!(!client.get(get()).await.unwrap().into_inner().found);
    // A deletion that finds nothing has an index as well.
    assert_eq!(client.delete(delete()).await.unwrap().into_inner().index, 3);

    let status = client
        .get_cluster_status(pb::ClusterStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let expected = pb::ClusterStatusResponse {
        node_id: "n7".to_owned(),
        state: "leader".to_owned(),
        current_term: 3,
        leader_id: "n7".to_owned(),
        peers: vec!["n9".to_owned()],
        commit_index: 30,
        last_applied: 29,
    };
    assert_eq!(status, expected);
}

#[tokio::test]
async fn refusals_by_the_store_and_everything_else() {
    let server = Server::start();
    let mut client = KvStoreClient::new(server.channel().await);
    let status = client.put(put("", b"x")).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "etcdserver: key is not provided")
    );
    assert_eq!(Outcome::of(&status), Some(Outcome::NotApplied));

    server.set(|b| b.writes = Some(Trouble::Failure(WriteFailure::NoSpace)));
    let answer = client.put(put("a", b"x")).await.unwrap();
    assert_eq!(answer.metadata().get("kvorum-outcome").unwrap(), "not-applied");
    let answer = answer.into_inner();
    assert_eq!((answer.success, answer.index), (false, 0));
    assert_eq!(answer.error, "etcdserver: mvcc: database space exceeded");

    server.set(|b| b.writes = Some(Trouble::Failure(WriteFailure::LeaderLost)));
    let status = client
        .delete(pb::DeleteRequest { key: "a".to_owned() })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), Outcome::of(&status)),
        (Code::Unavailable, Some(Outcome::Unknown))
    );
}

/// A read names the same limit as a write, not that of a range's end.
#[tokio::test]
async fn a_key_that_is_too_long_is_told_the_limit() {
    let server = Server::start();
    let mut client = KvStoreClient::new(server.channel().await);
    let key = "k".repeat(4097);
    let error = client.get(pb::GetRequest { key }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let text = "kvorum: key of 4097 bytes is longer than the limit of 4096";
    assert_eq!(error.message(), text);
}

#[tokio::test]
async fn local_reads_by_metadata() {
    let server = Server::start();
    let mut client = KvStoreClient::new(server.channel().await);
    client.put(put("a", b"1")).await.unwrap();
    server.set(|b| b.reads = Some(Trouble::Failure(kvorum_node::ReadFailure::TimedOut)));
    let ask = |consistency: &str| {
        let mut request = Request::new(pb::GetRequest { key: "a".to_owned() });
        request
            .metadata_mut()
            .insert("kvorum-consistency", consistency.parse().unwrap());
        request
    };
    assert_eq!(
        client.get(ask("linearizable")).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert!(client.get(ask("local")).await.unwrap().into_inner().found);
    assert_eq!(
        client.get(ask("whatever")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_key_that_is_not_utf_8_is_the_callers_mistake() {
    let server = Server::start();
    let body = b"\x00\x00\x00\x00\x04\x0a\x02\xff\xfe".to_vec();
    let answer = crate::http_port::grpc_raw(&server, "/kv.KVStore/Put", body).await;
    assert_eq!(answer.get("grpc-status").unwrap(), "3");
    assert_eq!(answer.get("kvorum-outcome").unwrap(), "not-applied");
}

async fn batch(server: &Server, body: &str) -> Answer {
    send(server, "POST", "/batch", "", body.as_bytes()).await
}

fn puts(count: usize) -> String {
    let put = |n: usize| format!(r#"{{"type":"put","key":"k{n:04}","value":"MQ=="}}"#);
    let operations: Vec<String> = (0..count).map(put).collect();
    format!(r#"{{"operations":[{}]}}"#, operations.join(","))
}

async fn value(server: &Server, key: &str) -> Option<Vec<u8>> {
    let request = pb::GetRequest { key: key.to_owned() };
    let mut client = KvStoreClient::new(server.channel().await);
    let answer = client.get(request).await.unwrap().into_inner();
    answer.found.then(|| answer.value.to_vec())
}

#[tokio::test]
async fn a_batch_is_one_transaction_in_which_the_last_operation_on_a_key_counts() {
    let server = Server::start();
    let mut client = KvStoreClient::new(server.channel().await);
    client.put(put("old", b"x")).await.unwrap();
    let body = r#"{"operations":[
        {"type":"put","key":"a","value":"/wA="},
        {"type":"delete","key":"old"},
        {"type":"put","key":"b","value":"MQ"},
        {"type":"put","key":"twice","value":"MQ=="},
        {"type":"PUT","key":"twice","value":"Mg=="},
        {"type":"put","key":"gone","value":"MQ=="},
        {"type":"delete","key":"gone"},
        {"type":"put","key":"empty"}]}"#;
    let answer = batch(&server, body).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, r#"{"indices":[2,2,2,2,2,2,2,2]}"#)
    );
    assert_eq!(value(&server, "a").await.unwrap(), b"\xff\x00");
    assert_eq!(value(&server, "b").await.unwrap(), b"1");
    assert_eq!(value(&server, "twice").await.unwrap(), b"2");
    assert_eq!(value(&server, "empty").await.unwrap(), b"");
    assert_eq!(
        (value(&server, "old").await, value(&server, "gone").await),
        (None, None)
    );
    // All of it is one revision.
    let revision = server.handle.state().facts().revision;
    assert_eq!(revision, 3);
    let answer = batch(&server, r#"{"operations":[]}"#).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"indices":[]}"#));
}

#[tokio::test]
async fn a_batch_has_a_limit() {
    let server = Server::start();
    let answer = batch(&server, &puts(1000)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["indices"].as_array().unwrap().len(), 1000);
    assert_eq!(server.handle.state().facts().keys, 1000);
    let answer = batch(&server, &puts(1001)).await;
    assert_eq!(
        (answer.status, answer.header("kvorum-outcome")),
        (400, Some("not-applied"))
    );
    assert_eq!(
        answer.json()["message"],
        "a batch has at most 1000 operations; this one has 1001"
    );

    let server = Server::with(Setting {
        request_bytes_max: 3000,
        ..Setting::default()
    });
    let answer = batch(&server, &puts(200)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("request is too large"), "{}", answer.body);
    assert_eq!(server.handle.state().facts().keys, 0, "all or nothing");
}

#[tokio::test]
async fn a_batch_names_what_is_wrong_with_it() {
    let server = Server::start();
    let one = |operation: &str| format!(r#"{{"operations":[{{"type":"put","key":"a"}},{operation}]}}"#);
    for (body, part) in [
        (String::new(), "not JSON with operations"),
        ("{}".to_owned(), "not JSON with operations"),
        (one(r#"{"type":"put","key":""}"#), "operation 1: empty key"),
        (
            one(r#"{"type":"increment","key":"a"}"#),
            "operation 1: type `increment`",
        ),
        (
            one(r#"{"type":"put","key":"a","value":"!"}"#),
            "operation 1: the value is not base64",
        ),
        (
            one(&format!(r#"{{"type":"put","key":"{}"}}"#, "k".repeat(5000))),
            "longer than the limit",
        ),
    ] {
        let answer = batch(&server, &body).await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_i64()),
            (400, Some(3)),
            "{}",
            answer.body
        );
        assert!(answer.body.contains(part), "{part}: {}", answer.body);
        assert_eq!(answer.header("kvorum-outcome"), Some("not-applied"));
    }
    assert_eq!(server.handle.state().facts().keys, 0);
    server.set(|b| b.writes = Some(Trouble::Failure(WriteFailure::LeaderLost)));
    let answer = batch(&server, &puts(1)).await;
    assert_eq!(
        (answer.status, answer.header("kvorum-outcome")),
        (503, Some("unknown"))
    );
    server.set(|b| b.writes = Some(Trouble::Failure(WriteFailure::NoSpace)));
    assert_eq!(batch(&server, &puts(1)).await.status, 429);
}

/// A name and its type, as that system's dashboards expect them.
#[tokio::test]
async fn its_metrics_have_their_names_and_types() {
    let server = Server::start();
    let page = crate::rest::get(&server, "/metrics").await.body;
    for (name, kind, value) in [
        ("raft_leader_elections_total", "counter", Some(4)),
        ("raft_append_entries_total", "counter", Some(0)),
        ("raft_request_vote_total", "counter", Some(0)),
        ("raft_committed_entries_total", "counter", Some(30)),
        ("raft_last_heartbeat", "gauge", None),
        ("raft_current_term", "gauge", Some(3)),
        ("raft_node_state", "gauge", Some(2)),
        ("raft_is_leader", "gauge", Some(1)),
    ] {
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        let found: Vec<u64> = page
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("{name} "))?.parse().ok())
            .collect();
        match value {
            Some(value) => assert_eq!(found, [value], "{name}"),
            None => assert!(
                found.len() == 1 && found[0] > 1_700_000_000,
                "a leader's is now: {found:?}"
            ),
        }
    }
    use kvorum_raft::Role;
    for (role, state) in [(Role::Follower, 0), (Role::PreCandidate, 1), (Role::Candidate, 1)] {
        server.publish(|status| status.role = role);
        let page = crate::rest::get(&server, "/metrics").await.body;
        for line in [format!("raft_node_state {state}"), "raft_is_leader 0".to_owned()] {
            assert!(page.lines().any(|found| found == line), "{line}");
        }
    }
}

/// The commit index may come back a little lower from a crash. As a counter that was taken for one that began anew,
/// and a rate over it showed the whole index at once.
#[tokio::test]
async fn committed_entries_count_from_the_start_of_the_process() {
    let server = Server::start();
    server.metrics.committed_before.store(28, Ordering::Relaxed);
    let page = crate::rest::get(&server, "/metrics").await.body;
    assert!(page.contains("\nraft_committed_entries_total 2\n"), "{page}");
}
