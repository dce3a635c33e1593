use std::time::Duration;

use kvorum_node::{ReadFailure, WriteFailure};
use kvorum_proto::etcdserverpb::kv_client::KvClient;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::etcd_kv::put;
use crate::replica::{Server, Setting, Trouble};

/// An answer over HTTP/1.1.
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self
            .headers
            .lines()
            .find(|line| line.to_lowercase().starts_with(&format!("{name}: ")))?;
        Some(line.split_once(": ").unwrap().1)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }
}

pub async fn send(server: &Server, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A body that is refused early is not read to its end.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        headers: head.to_owned(),
        body: body.to_owned(),
    }
}

pub async fn get(server: &Server, path: &str) -> Answer {
    send(server, "GET", path, "", b"").await
}

async fn post(server: &Server, body: &str) -> Answer {
    send(server, "POST", "/kv", "", body.as_bytes()).await
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, code: i32, text: &str, outcome: Option<&str>) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(
        answer.json(),
        json!({ "code": code, "message": text, "details": [] })
    );
    assert_eq!(answer.header("kvorum-outcome"), outcome);
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn keys_are_set_read_and_deleted() {
    let server = Server::start();
    let answer = post(&server, r#"{"key":"a/b c","value":"1 \"é\""}"#).await;
    assert_eq!((answer.status, &answer.body[..]), (200, "{}"));
    for path in ["/kv/a/b%20c", "/kv/a%2Fb%20c"] {
        let answer = get(&server, path).await;
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({ "value": "1 \"é\"" }))
        );
    }
    for _ in 0..2 {
        let answer = send(&server, "DELETE", "/kv/a/b%20c", "", b"").await;
        assert_eq!((answer.status, &answer.body[..]), (200, "{}"));
    }
    check_error(&get(&server, "/kv/a/b%20c").await, 404, 5, "not found", None);
    assert_eq!(post(&server, r#"{"key":"empty"}"#).await.status, 200);
    assert_eq!(get(&server, "/kv/empty").await.json(), json!({ "value": "" }));
    let head = send(&server, "HEAD", "/kv/empty", "", b"").await;
    assert_eq!((head.status, &head.body[..]), (200, ""));
}

#[tokio::test]
async fn mistakes_are_named() {
    let server = Server::start();
    for body in [r#"{"key":"","value":"x"}"#, r#"{"value":"x"}"#, r#"{"key":null}"#] {
        check_error(
            &post(&server, body).await,
            400,
            3,
            "empty key",
            Some("not-applied"),
        );
    }
    check_error(&get(&server, "/kv/").await, 400, 3, "empty key", None);
    let answer = send(&server, "DELETE", "/kv/", "", b"").await;
    check_error(&answer, 400, 3, "empty key", Some("not-applied"));
    // A misspelt `value` would else write an empty one.
    for body in [
        r#"{"key":"a","vlaue":"x"}"#,
        r#"{"key":"a","val":"x","value":null}"#,
    ] {
        let answer = post(&server, body).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(answer.body.contains("there is no `value`"), "{}", answer.body);
    }
    assert_eq!(get(&server, "/kv/a").await.status, 404);
    let answer = post(&server, r#"{"key":"more","value":"x","comment":[1]}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    for body in ["", "{", "[]", r#"{"key":1}"#, r#"{"key":"a","value":7}"#] {
        let answer = post(&server, body).await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_i64()),
            (400, Some(3)),
            "{body}"
        );
        assert_eq!(answer.header("kvorum-outcome"), Some("not-applied"));
    }
    let answer = send(&server, "POST", "/kv", "", b"{\"key\":\"\xff\"}").await;
    assert_eq!(answer.status, 400);
    let text = "the key in the path is not percent-encoded UTF-8";
    check_error(&get(&server, "/kv/%ff").await, 400, 3, text, None);

    KvClient::new(server.channel().await)
        .put(put("binary", vec![0xff]))
        .await
        .unwrap();
    let text = "the value is not UTF-8; read it through kv.KVStore or etcd's API";
    check_error(&get(&server, "/kv/binary").await, 422, 9, text, None);
    let long = get(&server, &format!("/kv/{}", "x".repeat(4098))).await;
    assert_eq!(long.status, 400);

    check_error(&get(&server, "/nothing").await, 404, 5, "Not Found", None);
    for (method, path, allowed) in [
        ("PUT", "/kv/a", "GET, HEAD, DELETE"),
        ("GET", "/kv", "POST"),
        ("POST", "/health", "GET, HEAD"),
    ] {
        let answer = send(&server, method, path, "", b"").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)));
    }
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let server = Server::with(Setting {
        request_bytes_max: 1000,
        ..Setting::default()
    });
    let body = |value: usize| format!(r#"{{"key":"a","value":"{}"}}"#, "x".repeat(value));
    assert_eq!(post(&server, &body(900)).await.status, 200);
    let answer = post(&server, &body(1001)).await;
    check_error(
        &answer,
        400,
        3,
        "etcdserver: request is too large: the limit is 1000 bytes (--request-bytes-max)",
        Some("not-applied"),
    );
    let answer = post(&server, &body(1000 + 512 * 1024)).await;
    let text = "the body is larger than 525288 bytes, what --request-bytes-max allows";
    check_error(&answer, 413, 8, text, Some("not-applied"));
}

/// Answered from the header: neither is the body waited for, nor is a client that asks told to send it.
#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_not_read() {
    let server = Server::with(Setting {
        request_bytes_max: 1000,
        ..Setting::default()
    });
    for path in ["/kv", "/batch"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(5), read)
            .await
            .unwrap()
            .unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 413") && answer.contains("kvorum-outcome: not-applied"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn encoded_bodies_are_refused_as_such() {
    let server = Server::start();
    let body = br#"{"key":"a","value":"1"}"#;
    let text = "no Content-Encoding is understood here; send the body as it is";
    for path in ["/kv", "/batch"] {
        let answer = send(&server, "POST", path, "content-encoding: gzip\r\n", body).await;
        check_error(&answer, 415, 3, text, Some("not-applied"));
    }
    let answer = send(&server, "POST", "/key", "content-encoding: gzip\r\n", body).await;
    assert_eq!((answer.status, answer.body), (415, format!("{text}\n")));
    let plain = send(&server, "POST", "/kv", "content-encoding: identity\r\n", body).await;
    assert_eq!(plain.status, 200);
}

/// Reads took one byte more than writes, and named that as the limit.
#[tokio::test]
async fn the_longest_key_is_the_same_for_all() {
    let server = Server::start();
    let (longest, longer) = ("k".repeat(4096), "k".repeat(4097));
    assert_eq!(
        post(&server, &format!(r#"{{"key":"{longest}","value":"1"}}"#))
            .await
            .status,
        200
    );
    assert_eq!(get(&server, &format!("/kv/{longest}")).await.status, 200);
    let text = "kvorum: key of 4097 bytes is longer than the limit of 4096";
    let put = post(&server, &format!(r#"{{"key":"{longer}","value":"1"}}"#)).await;
    check_error(&put, 400, 3, text, Some("not-applied"));
    let path = format!("/kv/{longer}");
    check_error(&get(&server, &path).await, 400, 3, text, None);
    let deleted = send(&server, "DELETE", &path, "", b"").await;
    check_error(&deleted, 400, 3, text, Some("not-applied"));
}

#[tokio::test]
async fn what_is_no_object_is_told_without_our_types_names() {
    let server = Server::start();
    for path in ["/kv", "/batch"] {
        for body in ["[]", "null", "5"] {
            let answer = send(&server, "POST", path, "", body.as_bytes()).await;
            let text = answer.json()["message"].to_string();
            assert_eq!(answer.status, 400, "{path} {body}: {text}");
            assert!(!text.contains("struct"), "{path} {body}: {text}");
        }
    }
}

#[tokio::test]
async fn failures_on_the_way() {
    let server = Server::with(Setting {
        request_timeout: Duration::from_millis(200),
        ..Setting::default()
    });
    let body = r#"{"key":"a","value":"1"}"#;
    server.set(|b| b.writes = Some(Trouble::Failure(WriteFailure::NoLeader)));
    check_error(
        &post(&server, body).await,
        503,
        14,
        "etcdserver: no leader",
        Some("not-applied"),
    );
    server.set(|b| b.writes = Some(Trouble::Silence));
    check_error(
        &post(&server, body).await,
        504,
        4,
        "etcdserver: request timed out",
        Some("unknown"),
    );

    server.set(|b| b.reads = Some(Trouble::Failure(ReadFailure::TimedOut)));
    check_error(
        &get(&server, "/kv/a").await,
        504,
        4,
        "etcdserver: request timed out",
        None,
    );
    let local = send(&server, "GET", "/kv/a", "kvorum-consistency: local\r\n", b"").await;
    check_error(&local, 404, 5, "not found", None);
    server.publish(|status| status.leader = 0);
    check_error(
        &get(&server, "/kv/a").await,
        503,
        14,
        "etcdserver: no leader",
        None,
    );
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let server = Server::with(Setting {
        request_timeout: Duration::from_millis(100),
        ..Setting::default()
    });
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"POST /kv HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10\r\n\r\n{")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 504") && answer.contains("kvorum-outcome: not-applied"),
        "{answer}"
    );
}

#[tokio::test]
async fn sessions_work_over_rest() {
    let server = Server::start();
    let mut kvorum = kvorum_proto::kvorum::v1::kvorum_client::KvorumClient::new(server.channel().await);
    let id = kvorum
        .register_session(kvorum_proto::kvorum::v1::RegisterSessionRequest {})
        .await
        .unwrap();
    let session = format!("kvorum-session: {}-1\r\n", id.into_inner().session_id);
    let body = br#"{"key":"a","value":"1"}"#;
    assert_eq!(send(&server, "POST", "/kv", &session, body).await.status, 200);
    assert_eq!(post(&server, r#"{"key":"a","value":"2"}"#).await.status, 200);
    assert_eq!(send(&server, "POST", "/kv", &session, body).await.status, 200);
    assert_eq!(get(&server, "/kv/a").await.json(), json!({ "value": "2" }));
    let gone = send(&server, "POST", "/kv", "kvorum-session: 999-1\r\n", body).await;
    check_error(
        &gone,
        422,
        9,
        "kvorum: session expired; outcome unknown",
        Some("unknown"),
    );
}

/// Once, the retry of a batch was answered with the index of the entry that held the retry.
#[tokio::test]
async fn a_batch_that_is_retried_gives_its_first_index() {
    let server = Server::start();
    let mut kvorum = kvorum_proto::kvorum::v1::kvorum_client::KvorumClient::new(server.channel().await);
    let id = kvorum
        .register_session(kvorum_proto::kvorum::v1::RegisterSessionRequest {})
        .await
        .unwrap();
    let session = format!("kvorum-session: {}-1\r\n", id.into_inner().session_id);
    let body = br#"{"operations":[{"type":"put","key":"a","value":"dg=="}]}"#;
    let batch = async || send(&server, "POST", "/batch", &session, body).await.json();
    let first = batch().await;
    assert!(first["indices"][0].as_u64().unwrap() > 1, "{first}");
    assert_eq!(batch().await, first);
}

/// Once, a member said nothing of a write that it had answered until it published its status the next time.
#[tokio::test]
async fn what_a_member_says_about_itself_holds_the_writes_that_it_answered() {
    let server = Server::start();
    for _ in 0..40 {
        let body = br#"{"operations":[{"type":"put","key":"a","value":"dg=="}]}"#;
        let batch = send(&server, "POST", "/batch", "", body).await.json();
        let index = batch["indices"][0].as_u64().unwrap();
        let info = get(&server, "/raft/info").await.json();
        let number = |name: &str| info[name].as_str().unwrap().parse::<u64>().unwrap();
        let least = ["commitIndex", "lastApplied", "lastLogIndex"].map(number);
        assert!(least.iter().all(|found| *found >= index), "{index}: {info}");
        let status = get(&server, "/status").await.json();
        for name in ["commit_index", "last_applied"] {
            assert!(status[name].as_u64().unwrap() >= index, "{index}: {status}");
        }
    }
}

/// The dashboard's latency was that of gRPC alone, which users of REST never call.
#[tokio::test]
async fn rest_requests_are_timed_by_their_method() {
    let server = Server::start();
    assert_eq!(post(&server, r#"{"key":"a","value":"1"}"#).await.status, 200);
    for _ in 0..2 {
        assert_eq!(get(&server, "/kv/a").await.status, 200);
    }
    assert_eq!(send(&server, "PATCH", "/kv", "", b"").await.status, 405);
    let page = get(&server, "/metrics").await.body;
    for (method, count) in [("GET", 2), ("POST", 1), ("DELETE", 0), ("other", 1)] {
        let line = format!("kvorum_rest_handling_seconds_count{{method=\"{method}\"}} {count}\n");
        assert!(page.contains(&line), "{line} is missing: {page}");
        let all = format!("kvorum_rest_handling_seconds_bucket{{method=\"{method}\",le=\"+Inf\"}} {count}\n");
        assert!(page.contains(&all), "{all} is missing: {page}");
    }
}

#[tokio::test]
async fn what_a_member_says_about_itself() {
    let server = Server::start();
    let info = get(&server, "/raft/info").await.json();
    let expected = json!({
        "term": "3", "commitIndex": "30", "lastApplied": "29", "lastLogIndex": "31", "lastLogTerm": "2",
        "state": "leader",
    });
    assert_eq!(info, expected);
    let expected = json!({
        "node_id": "n7", "state": "leader", "current_term": 3, "leader_id": "n7", "peers": ["n9"],
        "commit_index": 30, "last_applied": 29,
    });
    assert_eq!(get(&server, "/status").await.json(), expected);
    let version = get(&server, "/version").await.json();
    assert_eq!(
        (&version["etcdserver"], &version["etcdcluster"]),
        (&json!("3.6.12"), &json!("3.6.0"))
    );

    let health = get(&server, "/health").await;
    let fields = health.json();
    assert_eq!(
        (health.status, &fields["status"], &fields["health"]),
        (200, &json!("healthy"), &json!("true"))
    );
    assert_eq!(
        (&fields["state"], &fields["leader_id"], &fields["reason"]),
        (&json!("leader"), &json!("n7"), &json!(""))
    );
    let timestamp = fields["timestamp"].as_str().unwrap();
    assert!(
        timestamp.starts_with("20") && timestamp.ends_with('Z'),
        "RFC 3339: {timestamp}"
    );
    server.publish(|status| {
        (status.leader, status.role) = (0, kvorum_raft::Role::PreCandidate);
    });
    let health = get(&server, "/health").await;
    let fields = health.json();
    assert_eq!(
        (health.status, &fields["status"], &fields["health"]),
        (200, &json!("degraded"), &json!("false"))
    );
    assert_eq!(
        (&fields["state"], &fields["reason"]),
        (&json!("candidate"), &json!("RAFT NO LEADER"))
    );
}

#[tokio::test]
async fn probes() {
    let server = Server::start();
    for path in [
        "/livez",
        "/readyz",
        "/livez/serializable_read",
        "/readyz/linearizable_read",
    ] {
        let answer = get(&server, path).await;
        assert_eq!((answer.status, &answer.body[..]), (200, "ok\n"), "{path}");
    }
    let verbose = get(&server, "/readyz?verbose").await.body;
    assert!(
        verbose.contains("[+]linearizable_read ok\n") && verbose.ends_with("[+]non_learner ok\nok\n"),
        "{verbose}"
    );

    server.set(|b| b.reads = Some(Trouble::Failure(ReadFailure::TimedOut)));
    assert_eq!(get(&server, "/livez").await.status, 200);
    let answer = get(&server, "/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(
        answer
            .body
            .contains("[-]linearizable_read failed: etcdserver: request timed out\n"),
        "{}",
        answer.body
    );
    assert!(answer.body.ends_with("[+]non_learner ok\n\n"), "{}", answer.body);
    let verbose = get(
        &server,
        "/readyz?verbose&exclude=linearizable_read&exclude=nothing",
    )
    .await
    .body;
    assert_eq!(
        verbose,
        "[+]data_corruption ok\n[+]serializable_read ok\n[+]non_learner ok\nok\n"
    );
    assert_eq!(
        get(&server, "/readyz?exclude=linearizable_read").await.status,
        200
    );
    // As etcd says it, whose probes they are; `/livez/` once was `/livez`.
    for path in [
        "/readyz/nonsense",
        "/livez/linearizable_read",
        "/livez/",
        "/readyz/",
    ] {
        let answer = get(&server, path).await;
        assert_eq!(
            (answer.status, &answer.body[..]),
            (404, "404 page not found\n"),
            "{path}"
        );
    }
    for path in [
        "/livez",
        "/readyz/non_learner",
        "/health",
        "/version",
        "/debug/vars",
    ] {
        let answer = send(&server, "POST", path, "", b"").await;
        assert_eq!(
            (answer.status, &answer.body[..]),
            (405, "Method Not Allowed\n"),
            "{path}"
        );
    }

    server.publish(|status| status.configuration = kvorum_raft::Configuration::of_voters([9]));
    let answer = get(&server, "/readyz/non_learner").await;
    let learner = "[-]non_learner failed: not supported for learner\n\n";
    assert_eq!((answer.status, &answer.body[..]), (503, learner));
    let vars = get(&server, "/debug/vars").await.json();
    assert_eq!(
        (&vars["raft.status"]["id"], &vars["raft.status"]["raftState"]),
        (&json!("7"), &json!("StateLeader"))
    );
}

#[tokio::test]
async fn alarms_are_in_the_probes_until_they_are_excluded() {
    use kvorum_proto::etcdserverpb::{self as pb, maintenance_client::MaintenanceClient};
    let server = Server::start();
    let mut maintenance = MaintenanceClient::new(server.channel().await);
    for alarm in [pb::AlarmType::Nospace, pb::AlarmType::Corrupt] {
        let raise = pb::AlarmRequest {
            action: pb::alarm_request::AlarmAction::Activate.into(),
            member_id: 7,
            alarm: alarm.into(),
        };
        maintenance.alarm(raise).await.unwrap();
    }
    let reason = async |path: &str| get(&server, path).await.json()["reason"].clone();
    assert_eq!(reason("/health").await, "ALARM NOSPACE");
    assert_eq!(reason("/health?exclude=NOSPACE").await, "ALARM CORRUPT");
    assert_eq!(
        reason("/health?exclude=CORRUPT&exclude=NOSPACE&serializable=true").await,
        ""
    );
    let answer = get(&server, "/readyz/data_corruption").await;
    let corrupt = "[-]data_corruption failed: alarm activated: CORRUPT\n\n";
    assert_eq!((answer.status, &answer.body[..]), (503, corrupt));
    assert_eq!(get(&server, "/livez").await.status, 200);
}

#[tokio::test]
async fn metrics_are_a_page_of_known_names() {
    let server = Server::start();
    post(&server, r#"{"key":"a","value":"1"}"#).await;
    let mut kv = KvClient::new(server.channel().await);
    kv.put(put("a", "1")).await.unwrap();
    kv.put(put("", "1")).await.unwrap_err();
    let answer = get(&server, "/metrics").await;
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
    for expected in [
        "etcd_server_has_leader 1".to_owned(),
        "etcd_server_is_leader 1".to_owned(),
        "etcd_server_leader_changes_seen_total 4".to_owned(),
        "etcd_debugging_mvcc_current_revision 3".to_owned(),
        "etcd_mvcc_db_total_size_in_bytes 12345".to_owned(),
        "raft_current_term 3".to_owned(),
        "raft_node_state 2".to_owned(),
        "raft_is_leader 1".to_owned(),
        "raft_committed_entries_total 30".to_owned(),
        "etcd_server_version{server_version=\"3.6.12\"} 1".to_owned(),
        format!("grpc_server_started_total{{{labels}}} 2"),
        format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 1"),
        format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{labels}}} 1"),
        format!("grpc_server_handling_seconds_count{{{labels}}} 2"),
    ] {
        assert!(
            answer.body.lines().any(|line| line == expected),
            "{expected} is not in\n{}",
            answer.body
        );
    }
    for name in [
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "os_fd_limit",
    ] {
        assert!(answer.body.contains(&format!("\n{name} ")), "{name}");
    }
    // Each line is a comment or a name with a number; each name is declared once.
    let mut declared = std::collections::BTreeSet::new();
    for line in answer.body.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(rest) => assert!(declared.insert(rest.split(' ').next().unwrap()), "{line}"),
            None if line.starts_with("# HELP ") => {}
            None => assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}"),
        }
    }
}
