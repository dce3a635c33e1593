//! "raft-kv": its gRPC services by generated clients, and pages of other origins on its REST routes. (The routes
//! themselves are in `rest`.)

use std::time::Duration;

use kvorum_node::{ReadFailure, WriteFailure};
use kvorum_proto::Outcome;
use kvorum_proto::etcdserverpb::kv_client::KvClient;
use kvorum_proto::kv_pb::{self as pb, kv_service_client::KvServiceClient};
use kvorum_proto::raft_pb::{InfoRequest, InfoResponse, raft_service_client::RaftServiceClient};
use kvorum_server::SurfaceOptions;
use tonic::{Code, Request};

use crate::etcd_kv::put;
use crate::replica::{Server, Setting, Trouble};
use crate::rest::send;

fn get(key: &str) -> pb::GetRequest {
    pb::GetRequest { key: key.to_owned() }
}

fn set(key: &str, value: &str) -> pb::SetRequest {
    let (key, value) = (key.to_owned(), value.to_owned());
    pb::SetRequest { key, value }
}

fn del(key: &str) -> pb::DelRequest {
    pb::DelRequest { key: key.to_owned() }
}

#[tokio::test]
async fn set_get_and_del() {
    let server = Server::start();
    let mut client = KvServiceClient::new(server.channel().await);
    client.set(set("a", "1 é")).await.unwrap();
    assert_eq!(client.get(get("a")).await.unwrap().into_inner().value, "1 é");
    for _ in 0..2 {
        client.del(del("a")).await.unwrap();
    }
    let status = client.get(get("a")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "not found"));
}

#[tokio::test]
async fn an_empty_key_is_the_callers_mistake() {
    let server = Server::start();
    let mut client = KvServiceClient::new(server.channel().await);
    let read = client.get(get("")).await.unwrap_err();
    let written = client.set(set("", "1")).await.unwrap_err();
    let deleted = client.del(del("")).await.unwrap_err();
    for status in [&read, &written, &deleted] {
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "empty key")
        );
    }
    assert_eq!(Outcome::of(&written), Some(Outcome::NotApplied));
    assert_eq!(Outcome::of(&deleted), Some(Outcome::NotApplied));
}

#[tokio::test]
async fn info_is_the_member_as_it_is() {
    let server = Server::start();
    let mut client = RaftServiceClient::new(server.channel().await);
    let mut expected = InfoResponse {
        term: 3,
        commit_index: 30,
        last_applied: 29,
        last_log_index: 31,
        last_log_term: 2,
        state: "leader".to_owned(),
    };
    assert_eq!(client.info(InfoRequest {}).await.unwrap().into_inner(), expected);
    use kvorum_raft::Role;
    for (role, state) in [
        (Role::Follower, "follower"),
        (Role::PreCandidate, "candidate"),
        (Role::Candidate, "candidate"),
    ] {
        server.publish(|status| status.role = role);
        expected.state = state.to_owned();
        assert_eq!(client.info(InfoRequest {}).await.unwrap().into_inner(), expected);
    }
}

#[tokio::test]
async fn no_quorum_is_unavailable_and_a_deadline_is_one() {
    let server = Server::with(Setting {
        request_timeout: Duration::from_millis(200),
        ..Setting::default()
    });
    let mut client = KvServiceClient::new(server.channel().await);
    server.set(|b| {
        b.writes = Some(Trouble::Failure(WriteFailure::NoLeader));
        b.reads = Some(Trouble::Failure(ReadFailure::TimedOut));
    });
    server.publish(|status| status.leader = 0);
    let status = client.set(set("a", "1")).await.unwrap_err();
    assert_eq!(
        (status.code(), Outcome::of(&status)),
        (Code::Unavailable, Some(Outcome::NotApplied))
    );
    assert_eq!(client.get(get("a")).await.unwrap_err().code(), Code::Unavailable);

    server.set(|b| b.writes = Some(Trouble::Silence));
    server.publish(|_| {});
    let status = client.del(del("a")).await.unwrap_err();
    assert_eq!(
        (status.code(), Outcome::of(&status)),
        (Code::DeadlineExceeded, Some(Outcome::Unknown))
    );
    assert_eq!(
        client.get(get("a")).await.unwrap_err().code(),
        Code::DeadlineExceeded
    );
}

#[tokio::test]
async fn a_value_that_is_not_utf_8_and_a_local_read() {
    let server = Server::start();
    let channel = server.channel().await;
    KvClient::new(channel.clone())
        .put(put("binary", vec![0xff]))
        .await
        .unwrap();
    let mut client = KvServiceClient::new(channel);
    let status = client.get(get("binary")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("not UTF-8"), "{}", status.message());

    client.set(set("a", "1")).await.unwrap();
    server.set(|b| b.reads = Some(Trouble::Failure(ReadFailure::TimedOut)));
    assert_eq!(
        client.get(get("a")).await.unwrap_err().code(),
        Code::DeadlineExceeded
    );
    let mut local = Request::new(get("a"));
    local
        .metadata_mut()
        .insert("kvorum-consistency", "local".parse().unwrap());
    assert_eq!(client.get(local).await.unwrap().into_inner().value, "1");
}

#[tokio::test]
async fn its_calls_between_members_are_not_served() {
    let server = Server::start();
    let answer = crate::http_port::grpc_raw(&server, "/raft_pb.RaftService/AppendEntries", vec![0; 5]).await;
    assert_eq!(answer.get("grpc-status").unwrap(), "12");
}

fn with_cors(origins: &[&str]) -> Server {
    Server::with(Setting {
        surfaces: SurfaceOptions {
            cors: origins.iter().map(|origin| (*origin).to_owned()).collect(),
            ..SurfaceOptions::default()
        },
        ..Setting::default()
    })
}

const PAGE: &str = "origin: http://localhost:3000\r\n";
const PREFLIGHT: &str = "origin: http://localhost:3000\r\naccess-control-request-method: POST\r\n\
                         access-control-request-headers: content-type\r\n";

#[tokio::test]
async fn pages_of_other_origins_may_call_where_it_is_switched_on() {
    let server = with_cors(&["*"]);
    let answer = send(&server, "OPTIONS", "/kv", PREFLIGHT, b"").await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("POST"));
    assert!(
        answer
            .header("access-control-allow-headers")
            .unwrap()
            .contains("content-type")
    );
    let answer = send(&server, "OPTIONS", "/kv/a", PREFLIGHT, b"").await;
    assert_eq!(
        answer.header("access-control-allow-methods"),
        Some("GET, HEAD, DELETE")
    );

    let answer = send(&server, "POST", "/kv", PAGE, br#"{"key":"a","value":"1"}"#).await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, Some("*"))
    );
    // Errors can be read as well, with their outcome.
    let answer = send(&server, "POST", "/kv", PAGE, b"{}").await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (400, Some("*"))
    );
    assert_eq!(
        answer.header("access-control-expose-headers"),
        Some("kvorum-outcome")
    );
    for path in ["/kv/a", "/raft/info", "/status"] {
        let answer = send(&server, "GET", path, PAGE, b"").await;
        assert_eq!(
            (answer.status, answer.header("access-control-allow-origin")),
            (200, Some("*")),
            "{path}"
        );
    }
    // Without an origin there is nobody to tell, and other routes are no page's business.
    assert_eq!(
        send(&server, "GET", "/kv/a", "", b"")
            .await
            .header("access-control-allow-origin"),
        None
    );
    for path in ["/key/a", "/metrics"] {
        let answer = send(&server, "GET", path, PAGE, b"").await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
    }
    assert_eq!(send(&server, "OPTIONS", "/key", PREFLIGHT, b"").await.status, 405);
}

#[tokio::test]
async fn only_the_listed_origins_may_and_by_default_none() {
    let server = with_cors(&["http://localhost:3000"]);
    let answer = send(&server, "GET", "/raft/info", PAGE, b"").await;
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("http://localhost:3000")
    );
    assert_eq!(answer.header("vary"), Some("origin"));
    let other = send(
        &server,
        "GET",
        "/raft/info",
        "origin: http://evil.example\r\n",
        b"",
    )
    .await;
    assert_eq!(
        (other.status, other.header("access-control-allow-origin")),
        (200, None)
    );

    let server = Server::start();
    let answer = send(&server, "OPTIONS", "/kv", PREFLIGHT, b"").await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (405, None)
    );
    let answer = send(&server, "GET", "/raft/info", PAGE, b"").await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, None)
    );
}

/// A browser sends a simple write of any page without asking: before, a page that someone merely looked at could
/// write into a member on the same machine.
#[tokio::test]
async fn a_foreign_page_cannot_write() {
    let server = Server::start();
    let foreign = "origin: http://evil.example\r\ncontent-type: text/plain\r\n";
    for (method, path, body) in [
        ("POST", "/kv", br#"{"key":"a","value":"1"}"#.as_slice()),
        ("DELETE", "/kv/a", b""),
        ("POST", "/key", br#"{"key":"a","value":"1"}"#),
    ] {
        let answer = send(&server, method, path, foreign, body).await;
        let outcome = answer.header("kvorum-outcome");
        assert_eq!(
            (answer.status, outcome),
            (403, Some("not-applied")),
            "{method} {path}"
        );
    }
    assert_eq!(send(&server, "GET", "/kv/a", "", b"").await.status, 404);
    // A page of this server itself sends the same header.
    let own = "origin: http://localhost\r\n";
    let answer = send(&server, "POST", "/kv", own, br#"{"key":"a","value":"1"}"#).await;
    assert_eq!(answer.status, 200);
}
