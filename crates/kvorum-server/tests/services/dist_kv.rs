//! "dist-kv-store": one test a line of what it promises, over raw HTTP, to the byte.

use std::time::Duration;

use kvorum_node::{AdminError, ReadFailure, WriteFailure};
use kvorum_proto::kvorum::v1::{JoinRequest, kvorum_client::KvorumClient};
use kvorum_server::SurfaceOptions;
use tonic::Code;

use crate::etcd_kv::put;
use crate::replica::{Server, Setting, Trouble};
use crate::rest::{Answer, get, send};

const TEXT: &str = "text/plain; charset=utf-8";

async fn create(server: &Server, body: &str) -> Answer {
    send(
        server,
        "POST",
        "/key",
        "content-type: application/json\r\n",
        body.as_bytes(),
    )
    .await
}

async fn delete(server: &Server, path: &str) -> Answer {
    send(server, "DELETE", path, "", b"").await
}

async fn register(server: &Server, body: &str) -> Answer {
    send(server, "POST", "/register-follower", "", body.as_bytes()).await
}

#[track_caller]
fn check(answer: &Answer, status: u16, body: &str) {
    assert_eq!((answer.status, answer.body.as_str()), (status, body));
    assert_eq!(answer.header("content-type"), Some(TEXT));
}

/// An error of a write, which says what became of it.
#[track_caller]
fn check_write(answer: &Answer, status: u16, body: &str, outcome: &str) {
    check(answer, status, body);
    assert_eq!(answer.header("kvorum-outcome"), Some(outcome));
}

fn limited(key_bytes_max: usize, value_bytes_max: usize, keys_max: usize) -> Server {
    Server::with(Setting {
        surfaces: SurfaceOptions {
            key_bytes_max,
            value_bytes_max,
            keys_max,
            ..SurfaceOptions::default()
        },
        ..Setting::default()
    })
}

fn open() -> Server {
    Server::with(Setting {
        request_timeout: Duration::from_millis(500),
        surfaces: SurfaceOptions {
            open_join: true,
            ..SurfaceOptions::default()
        },
        ..Setting::default()
    })
}

#[tokio::test]
async fn a_key_is_created_once_read_and_deleted() {
    let server = Server::start();
    check(
        &create(&server, r#"{"key":"k","value":"v"}"#).await,
        201,
        "key created successfully!",
    );
    let again = create(&server, r#"{"key":"k","value":"other"}"#).await;
    check_write(&again, 409, "key already exists\n", "not-applied");
    check(&get(&server, "/key/k").await, 200, r#"{ "k" : "v" }"#);
    check(&delete(&server, "/key/k").await, 200, "key deleted successfully");
    check_write(
        &delete(&server, "/key/k").await,
        404,
        "key not found\n",
        "not-applied",
    );
    check(&get(&server, "/key/k").await, 404, "key not found\n");
    check(
        &create(&server, r#"{"key":"k","value":"again"}"#).await,
        201,
        "key created successfully!",
    );
}

/// Once these were JSON, which that system's clients do not expect.
#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_told_in_text() {
    let server = Server::with(Setting {
        surfaces: SurfaceOptions {
            errors_as_text: true,
            ..SurfaceOptions::default()
        },
        ..Setting::default()
    });
    check(&get(&server, "/nothing").await, 404, "404 page not found\n");
    for (path, allowed) in [("/key", "POST"), ("/hello", "GET, HEAD"), ("/kv", "POST")] {
        let answer = send(&server, "PUT", path, "", b"").await;
        check(&answer, 405, "Method Not Allowed\n");
        assert_eq!(answer.header("allow"), Some(allowed));
    }
    // Elsewhere its own routes still answer as it does.
    let server = Server::start();
    check(
        &send(&server, "PUT", "/key", "", b"").await,
        405,
        "Method Not Allowed\n",
    );
    let page = "origin: http://elsewhere.example\r\n";
    let answer = send(&server, "POST", "/key", page, b"{}").await;
    let text = "a page of another origin may not write here; --cors ORIGIN of the member allows one\n";
    check_write(&answer, 403, text, "not-applied");
    assert_eq!(get(&server, "/nothing").await.json()["code"], 5);
}

#[tokio::test]
async fn strings_are_escaped_as_json_has_them() {
    let server = Server::start();
    let body = r#"{"key":"a \"b\"","value":"é\n\\"}"#;
    assert_eq!(create(&server, body).await.status, 201);
    let answer = get(&server, "/key/a%20%22b%22").await;
    check(&answer, 200, "{ \"a \\\"b\\\"\" : \"é\\n\\\\\" }");
}

#[tokio::test]
async fn a_body_that_is_none_is_named() {
    let server = Server::start();
    for body in ["", "{", "[]", r#"{"key":1,"value":"x"}"#, "key=a&value=1"] {
        check_write(
            &create(&server, body).await,
            400,
            "Unable to decode body\n",
            "not-applied",
        );
    }
    check_write(
        &create(&server, r#"{"value":"x"}"#).await,
        400,
        "empty key\n",
        "not-applied",
    );
    // As in Go's JSON: what is missing is empty, what is unknown is ignored.
    let answer = create(&server, r#"{"Key":"a","value":null,"more":[1]}"#).await;
    check(&answer, 201, "key created successfully!");
    check(&get(&server, "/key/a").await, 200, r#"{ "a" : "" }"#);
}

#[tokio::test]
async fn key_and_value_have_limits_in_bytes() {
    let server = limited(4, 5, 1000);
    // Two bytes each: bytes count, not letters.
    check(
        &create(&server, r#"{"key":"éé","value":"12345"}"#).await,
        201,
        "key created successfully!",
    );
    let answer = create(&server, r#"{"key":"ééx","value":"1"}"#).await;
    check_write(&answer, 400, "key size exceeded\n", "not-applied");
    let answer = create(&server, r#"{"key":"k","value":"123456"}"#).await;
    check_write(&answer, 400, "value size exceeded\n", "not-applied");
    check(&get(&server, "/key/12345").await, 400, "key size exceeded\n");
    check(&get(&server, "/key/1234").await, 404, "key not found\n");
}

#[tokio::test]
async fn the_defaults_of_the_limits() {
    let server = Server::start();
    let body = |key: usize, value: usize| {
        format!(
            r#"{{"key":"{}","value":"{}"}}"#,
            "k".repeat(key),
            "v".repeat(value)
        )
    };
    assert_eq!(create(&server, &body(100, 200)).await.status, 201);
    check(
        &create(&server, &body(101, 200)).await,
        400,
        "key size exceeded\n",
    );
    check(
        &create(&server, &body(99, 201)).await,
        400,
        "value size exceeded\n",
    );
    let path = |key: usize| format!("/key/{}", "k".repeat(key));
    assert_eq!(get(&server, &path(100)).await.status, 200);
    assert_eq!(get(&server, &path(101)).await.status, 400);
}

#[tokio::test]
async fn the_number_of_keys_has_a_limit_that_counts_all_live_keys() {
    let server = limited(100, 200, 3);
    let mut kv = kvorum_proto::etcdserverpb::kv_client::KvClient::new(server.channel().await);
    kv.put(put("of-another-surface", "1")).await.unwrap();
    for key in ["a", "b"] {
        let body = format!(r#"{{"key":"{key}","value":"1"}}"#);
        assert_eq!(create(&server, &body).await.status, 201);
    }
    let full = create(&server, r#"{"key":"c","value":"1"}"#).await;
    check_write(&full, 400, "max keys exceeded\n", "not-applied");
    let known = create(&server, r#"{"key":"a","value":"1"}"#).await;
    check_write(&known, 409, "key already exists\n", "not-applied");
    // Of this surface only.
    kv.put(put("beyond", "1")).await.unwrap();
    for key in ["beyond", "a"] {
        assert_eq!(delete(&server, &format!("/key/{key}")).await.status, 200);
    }
    check(
        &create(&server, r#"{"key":"c","value":"1"}"#).await,
        201,
        "key created successfully!",
    );
}

#[tokio::test]
async fn without_a_leader() {
    let server = Server::with(Setting {
        request_timeout: Duration::from_millis(200),
        ..Setting::default()
    });
    let body = r#"{"key":"a","value":"1"}"#;
    assert_eq!(create(&server, body).await.status, 201);
    server.publish(|status| status.leader = 0);
    server.set(|b| {
        b.writes = Some(Trouble::Failure(WriteFailure::NoLeader));
        b.reads = Some(Trouble::Failure(ReadFailure::TimedOut));
    });
    let no_leader = "Leader not ready yet!! please try later\n";
    check_write(&create(&server, body).await, 503, no_leader, "not-applied");
    check_write(&delete(&server, "/key/a").await, 503, no_leader, "not-applied");
    check(&get(&server, "/key/a").await, 503, no_leader);
    let local = send(&server, "GET", "/key/a", "kvorum-consistency: local\r\n", b"").await;
    check(&local, 200, r#"{ "a" : "1" }"#);
    server.set(|b| b.writes = Some(Trouble::Silence));
    check_write(
        &create(&server, body).await,
        503,
        "etcdserver: request timed out\n",
        "unknown",
    );
    server.publish(|_| {});
    check_write(
        &create(&server, body).await,
        504,
        "etcdserver: request timed out\n",
        "unknown",
    );
}

#[tokio::test]
async fn a_sign_of_life() {
    check(&get(&Server::start(), "/hello").await, 200, "world!");
}

#[tokio::test]
async fn a_follower_is_registered_once() {
    let server = open();
    let body = r#"{"follower_id":"node2","follower_addr":"localhost:21002"}"#;
    check(&register(&server, body).await, 200, "registered");
    let known = r#"{"follower_id":"n9","follower_addr":"10.0.0.9:2380"}"#;
    check(&register(&server, known).await, 200, "registered");
    let asked = server.behaviour.lock().unwrap().asked.clone();
    assert_eq!(asked.len(), 2);
    assert!(
        asked[0].starts_with("Register(MemberRecord { id: 0, name: \"node2\""),
        "{asked:?}"
    );
    assert!(
        asked[0].contains("localhost:21002") && asked[0].contains("incarnation: 0"),
        "{asked:?}"
    );

    let lost =
        r#"{"follower_id":"n9","follower_addr":"h:1","incarnation":"000000000000000000000000000000ff"}"#;
    check(&register(&server, lost).await, 200, "registered");
    assert!(server.behaviour.lock().unwrap().asked[2].contains("incarnation: 255"));
}

#[tokio::test]
async fn registrations_that_are_none() {
    let server = open();
    for body in [
        "",
        "{",
        "[]",
        r#"{"follower_id":7}"#,
        r#"{"follower_id":"a","incarnation":"xyz"}"#,
    ] {
        check_write(
            &register(&server, body).await,
            400,
            "unable to decode body\n",
            "not-applied",
        );
    }
    for body in [
        "{}",
        r#"{"follower_id":"a"}"#,
        r#"{"follower_id":"a","follower_addr":"nowhere"}"#,
        r#"{"follower_id":"a b","follower_addr":"h:1"}"#,
        r#"{"follower_id":"a","follower_addr":"0.0.0.0:1"}"#,
    ] {
        let answer = register(&server, body).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (400, Some(TEXT)),
            "{body}"
        );
        assert!(answer.body.ends_with('\n'), "{}", answer.body);
    }
    assert!(server.behaviour.lock().unwrap().asked.is_empty());
}

#[tokio::test]
async fn registration_is_closed_where_it_is_not_opened() {
    let server = Server::start();
    let answer = register(&server, r#"{"follower_id":"a","follower_addr":"h:1"}"#).await;
    assert_eq!(
        (answer.status, answer.header("kvorum-outcome")),
        (403, Some("not-applied"))
    );
    assert!(
        answer.body.contains("join token") && answer.body.contains("--open-join"),
        "{}",
        answer.body
    );
    let mut kvorum = KvorumClient::new(server.channel().await);
    let status = kvorum.join(JoinRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_registration_reaches_the_leader_from_any_member_or_says_why_not() {
    let server = open();
    let body = r#"{"follower_id":"node2","follower_addr":"localhost:21002"}"#;
    // The first try fails: that leader is none any more.
    server.publish(|status| status.leader = crate::replica::OTHER);
    check(&register(&server, body).await, 200, "registered");
    assert_eq!(
        server.behaviour.lock().unwrap().asked,
        ["to 9: node2", "to 9: node2"]
    );

    server.publish(|status| status.leader = 0);
    let answer = register(&server, body).await;
    check(&answer, 503, "Leader not ready yet!! please try later\n");

    server.publish(|_| {});
    server.set(|b| b.admin = Some(AdminError::InUse(9)));
    let in_use = "kvorum: `node2` is a member that was heard of just now; stop it, or choose another name\n";
    check_write(&register(&server, body).await, 409, in_use, "not-applied");
    server.set(|b| b.admin = Some(AdminError::Busy));
    assert_eq!(register(&server, body).await.status, 503);
}

#[tokio::test]
async fn a_joiner_is_told_what_it_needs() {
    let server = open();
    let mut kvorum = KvorumClient::new(server.channel().await);
    let request = JoinRequest {
        name: "node2".to_owned(),
        peer_addresses: vec!["localhost:21002".to_owned()],
        incarnation: vec![1; 16].into(),
    };
    let answer = kvorum.join(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.cluster_uuid, 0x1234_u128.to_be_bytes().to_vec());
    assert_eq!(answer.cluster_id, crate::replica::CLUSTER);
    let member = answer.member.unwrap();
    assert_eq!((member.id, member.name.as_str()), (11, "node2"));
    let members: Vec<(u64, &str)> = answer
        .members
        .iter()
        .map(|member| (member.id, member.peer_addresses[0].as_str()))
        .collect();
    assert_eq!(
        members,
        [
            (7, "10.0.0.7:2380"),
            (9, "10.0.0.9:2380"),
            (11, "localhost:21002")
        ]
    );
    let bad = JoinRequest {
        incarnation: vec![1; 3].into(),
        ..request
    };
    assert_eq!(kvorum.join(bad).await.unwrap_err().code(), Code::InvalidArgument);
}
