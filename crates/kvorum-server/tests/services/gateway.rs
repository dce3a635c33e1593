//! The JSON gateway over real sockets: messages, streams, websockets, refusals, and callers that go away.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kvorum_node::WriteFailure;
use kvorum_proto::etcdserverpb::{self as pb, lease_client::LeaseClient};
use kvorum_server::SurfaceOptions;
use kvorum_server::operations::Operations;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::etcd_kv;
use crate::replica::{MEMBER, Server, Setting, Trouble};
use crate::rest::{Answer, send};

const PATIENCE: Duration = Duration::from_secs(20);

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

async fn post(server: &Server, path: &str, body: impl ToString) -> Answer {
    send(
        server,
        "POST",
        &format!("/v3/{path}"),
        "",
        body.to_string().as_bytes(),
    )
    .await
}

/// An answer without its header, which must be there.
#[track_caller]
fn body_of(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let mut body = answer.json();
    let header = body.as_object_mut().unwrap().remove("header").unwrap_or_default();
    assert_eq!(header["member_id"], MEMBER.to_string(), "{}", answer.body);
    body
}

#[track_caller]
fn check_refused(answer: &Answer, status: u16, code: i32, text: &str, outcome: Option<&str>) {
    let expected = json!({ "error": text, "code": code, "message": text, "details": [] });
    assert_eq!((answer.status, answer.json()), (status, expected));
    assert_eq!(answer.header("kvorum-outcome"), outcome);
}

#[tokio::test]
async fn keys_transactions_and_members() {
    let server = Server::start();
    let (a, one) = (b64("a"), b64("1"));
    let put = post(&server, "kv/put", json!({"key": a, "value": one})).await;
    assert_eq!(body_of(&put), json!({}));
    assert_eq!(put.json()["header"]["revision"], "2");
    let record = json!({"key": a, "value": one, "create_revision": "2", "mod_revision": "2", "version": "1"});
    let range = post(&server, "kv/range", json!({"key": a})).await;
    assert_eq!(body_of(&range), json!({"kvs": [record], "count": "1"}));
    let txn = json!({
        "compare": [{"target": "VALUE", "key": a, "value": one}],
        "success": [{"request_put": {"key": a, "value": b64("2"), "prev_kv": true}}, {"requestRange": {"key": a}}],
    });
    let answer = body_of(&post(&server, "kv/txn", txn).await);
    assert_eq!(answer["succeeded"], true);
    assert_eq!(answer["responses"][0]["response_put"]["prev_kv"], record);
    assert_eq!(
        answer["responses"][1]["response_range"]["kvs"][0]["value"],
        b64("2")
    );
    let deleted = body_of(&post(&server, "kv/deleterange", json!({"key": a})).await);
    assert_eq!(deleted, json!({"deleted": "1"}));
    body_of(&post(&server, "kv/compaction", json!({"revision": 3})).await);
    let members = body_of(&post(&server, "cluster/member/list", "").await);
    assert_eq!(members["members"][0]["peerURLs"], json!(["http://10.0.0.7:2380"]));
    let status = body_of(&post(&server, "maintenance/status", "").await);
    assert_eq!(status["leader"], MEMBER.to_string());
    let granted = body_of(&post(&server, "lease/grant", json!({"TTL": 60, "ID": "7"})).await);
    assert_eq!(granted, json!({"ID": "7", "TTL": "60"}));
    assert_eq!(
        body_of(&post(&server, "kv/lease/leases", "").await),
        json!({"leases": [{"ID": "7"}]})
    );
    let held = body_of(&post(&server, "lock/lock", json!({"name": b64("l"), "lease": 7})).await);
    assert_eq!(held, json!({"key": b64("l/7")}));
}

#[tokio::test]
async fn refusals_have_etcds_words_and_both_gateways_fields() {
    let server = Server::start();
    let no_key = "etcdserver: key is not provided";
    check_refused(&post(&server, "kv/range", "{}").await, 400, 3, no_key, None);
    check_refused(
        &post(&server, "kv/put", "{}").await,
        400,
        3,
        no_key,
        Some("not-applied"),
    );
    let no_lease = "etcdserver: requested lease not found";
    check_refused(
        &post(&server, "lease/revoke", r#"{"ID":9}"#).await,
        404,
        5,
        no_lease,
        Some("not-applied"),
    );
    check_refused(
        &post(&server, "lock/lock", r#"{"lease":9}"#).await,
        500,
        2,
        no_lease,
        Some("not-applied"),
    );
    check_refused(
        &post(&server, "maintenance/transfer-leadership", r#"{"targetID":5}"#).await,
        400,
        9,
        "etcdserver: bad leader transferee",
        None,
    );
    check_refused(
        &post(&server, "kv/nothing", "{}").await,
        404,
        5,
        "Not Found",
        None,
    );
    check_refused(&post(&server, "", "{}").await, 404, 5, "Not Found", None);
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let answer = send(&server, method, "/v3/kv/range", "", b"{}").await;
        check_refused(&answer, 501, 12, "Method Not Allowed", None);
    }
    server.set(|behaviour| behaviour.writes = Some(Trouble::Failure(WriteFailure::LeaderLost)));
    let put = json!({"key": b64("a")});
    check_refused(
        &post(&server, "kv/put", &put).await,
        503,
        14,
        "etcdserver: request timed out, possibly due to previous leader failure",
        Some("unknown"),
    );
    server.set(|behaviour| behaviour.writes = Some(Trouble::Silence));
    let waits = "grpc-timeout: 50m\r\n";
    let answer = send(&server, "POST", "/v3/kv/put", waits, put.to_string().as_bytes()).await;
    check_refused(&answer, 503, 14, "etcdserver: request timed out", Some("unknown"));
}

#[tokio::test]
async fn bad_bodies_are_refused_and_harm_nothing() {
    let server = Server::with(Setting {
        request_bytes_max: 1000,
        ..Setting::default()
    });
    let deep = format!("{{\"success\":{}", "[".repeat(10_000));
    for (path, body) in [
        ("kv/put", "{"),
        ("kv/put", "nonsense"),
        ("kv/put", "null"),
        ("kv/put", r#"{"key":7}"#),
        ("kv/put", r#"{"key":"!"}"#),
        ("kv/put", r#"{"lease":"99999999999999999999"}"#),
        ("kv/put", r#"{"lease":-9223372036854775809}"#),
        ("kv/txn", deep.as_str()),
        ("kv/txn", "\u{0}\u{ff}"),
    ] {
        let answer = post(&server, path, body).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (400, &json!(3)),
            "{}",
            answer.body
        );
        assert_eq!(answer.header("kvorum-outcome"), Some("not-applied"));
    }
    // As large as a service's own limits say, and larger than is read at all.
    let too_large = json!({"key": b64("a"), "value": b64(&"x".repeat(1200))});
    let text = "etcdserver: request is too large";
    check_refused(
        &post(&server, "kv/put", too_large).await,
        400,
        3,
        text,
        Some("not-applied"),
    );
    let wire_max = 1000 + 512 * 1024;
    let larger = json!({"key": b64("a"), "value": b64(&"x".repeat(wire_max))}).to_string();
    let answer = post(&server, "kv/put", &larger).await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (429, &json!(8)),
        "{}",
        answer.body
    );
    let largest = format!("{{\"key\":\"{}\"}}", "A".repeat(2 * wire_max + 4));
    let answer = post(&server, "kv/put", &largest).await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (413, &json!(8)),
        "{}",
        answer.body
    );
    let coded = send(&server, "POST", "/v3/kv/put", "content-encoding: gzip\r\n", b"{}").await;
    assert_eq!(coded.status, 415);
    // A body that ends before its length.
    let mut cut = TcpStream::connect(server.address).await.unwrap();
    let head =
        b"POST /v3/kv/put HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"key\":\"YQ==\"}";
    cut.write_all(head).await.unwrap();
    drop(cut);
    assert_eq!(server.handle.state().facts().keys, 0);
    body_of(&post(&server, "kv/put", json!({"key": b64("a")})).await);
}

/// A stream over HTTP/1.1, read line by line.
struct Lines {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Lines {
    /// Sends the head and the first piece of a body that goes on.
    async fn open(server: &Server, path: &str, body: &str) -> Lines {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut lines = Lines {
            stream,
            read: Vec::new(),
        };
        let head =
            format!("POST /v3/{path} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
        lines.stream.write_all(head.as_bytes()).await.unwrap();
        lines.send(body).await;
        lines
    }

    async fn send(&mut self, body: &str) {
        let chunk = format!("{:x}\r\n{body}\r\n", body.len());
        self.stream.write_all(chunk.as_bytes()).await.unwrap();
    }

    async fn end_requests(&mut self) {
        self.stream.write_all(b"0\r\n\r\n").await.unwrap();
    }

    /// The next line that is a JSON object; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"}\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).collect();
                let text = String::from_utf8(line).unwrap();
                return Some(serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap());
            }
            let mut buffer = [0; 4096];
            let count = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            if count == 0 || self.read.ends_with(b"0\r\n\r\n") {
                return None;
            }
            self.read.extend_from_slice(&buffer[..count]);
            if self.read.ends_with(b"\r\n0\r\n\r\n") && !self.read.windows(2).any(|pair| pair == b"}\n") {
                return None;
            }
        }
    }
}

#[tokio::test]
async fn a_watch_goes_on_with_its_body() {
    let server = Server::start();
    let mut kv = etcd_kv::client(&server).await;
    kv.put(etcd_kv::put("a", "1")).await.unwrap();
    let create = |key: &str| json!({"create_request": {"key": b64(key), "start_revision": "1"}}).to_string();
    let mut watch = Lines::open(&server, "watch", &create("a")).await;
    assert_eq!(watch.next().await.unwrap()["result"]["created"], true);
    let event = |line: Value| {
        let kv = &line["result"]["events"][0]["kv"];
        (kv["key"].clone(), line["result"]["watch_id"].clone())
    };
    assert_eq!(event(watch.next().await.unwrap()), (json!(b64("a")), Value::Null));
    // Another watcher on the same stream, in two pieces.
    let second = create("b");
    let (head, rest) = second.split_at(9);
    watch.send(head).await;
    watch.send(rest).await;
    assert_eq!(watch.next().await.unwrap()["result"]["watch_id"], "1");
    kv.put(etcd_kv::put("b", "2")).await.unwrap();
    assert_eq!(event(watch.next().await.unwrap()), (json!(b64("b")), json!("1")));
    // Without more requests the watchers go on.
    watch.end_requests().await;
    kv.put(etcd_kv::put("a", "3")).await.unwrap();
    assert_eq!(event(watch.next().await.unwrap()).0, b64("a"));

    // A request that is none ends it.
    for bad in ["nonsense", "[]", r#"{"create_request":7}"#] {
        let mut watch = Lines::open(&server, "watch", &create("a")).await;
        watch.next().await.unwrap();
        watch.next().await.unwrap();
        watch.send(bad).await;
        assert_eq!(watch.next().await.unwrap()["error"]["code"], 3, "{bad}");
        assert_eq!(watch.next().await, None);
        // At the beginning there is still a status to say it.
        let answer = post(&server, "watch", bad).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!(3)));
    }
    let cut = &create("a")[..20];
    assert_eq!(post(&server, "watch", cut).await.status, 400);
}

#[tokio::test]
async fn callers_that_go_away_take_their_call_along() {
    let server = Server::start();
    let mut leases = LeaseClient::new(server.channel().await);
    for id in 1..=2 {
        leases
            .lease_grant(pb::LeaseGrantRequest { ttl: 600, id })
            .await
            .unwrap();
    }
    let lock = |lease: i64| json!({"name": b64("l"), "lease": lease}).to_string();
    body_of(&post(&server, "lock/lock", lock(1)).await);
    let mut waiting = TcpStream::connect(server.address).await.unwrap();
    let body = lock(2);
    let head = format!(
        "POST /v3/lock/lock HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    waiting.write_all(head.as_bytes()).await.unwrap();
    let keys = async |expected: u64| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while server.handle.state().facts().keys != expected {
            assert!(tokio::time::Instant::now() < deadline, "not {expected} keys");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    keys(2).await;
    drop(waiting);
    keys(1).await;
    let create = json!({"create_request": {"key": b64("a")}}).to_string();
    let mut watch = Lines::open(&server, "watch", &create).await;
    watch.next().await.unwrap();
    let watchers = || server.metrics.watchers.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(watchers(), 1);
    drop(watch);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while watchers() != 0 {
        assert!(tokio::time::Instant::now() < deadline, "the watcher stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_snapshot_is_lines_of_blobs() {
    let server = Server::start();
    let answer = post(&server, "maintenance/snapshot", "{}").await;
    assert_eq!(answer.status, 200);
    let lines: Vec<Value> = answer
        .body
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let bytes = |line: &Value| {
        STANDARD
            .decode(line["result"]["blob"].as_str().unwrap())
            .unwrap()
            .len() as u64
    };
    let (hash, blobs) = lines.split_last().unwrap();
    assert_eq!(
        (bytes(hash), &hash["result"]["remaining_bytes"]),
        (32, &Value::Null)
    );
    let mut remaining: u64 = blobs.iter().map(bytes).sum();
    for blob in blobs {
        remaining -= bytes(blob);
        let said = blob["result"]["remaining_bytes"].as_str().unwrap_or("0");
        assert_eq!(said, remaining.to_string());
    }
}

async fn websocket(server: &Server, path: &str, headers: &str) -> Result<WebSocketStream<TcpStream>, String> {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "GET /v3/{path} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    if !answer.starts_with("HTTP/1.1 101 ") {
        return Err(answer);
    }
    // The example of RFC 6455.
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

async fn receive(socket: &mut WebSocketStream<TcpStream>) -> Option<Value> {
    use futures_util::StreamExt;
    match tokio::time::timeout(PATIENCE, socket.next())
        .await
        .unwrap()?
        .unwrap()
    {
        Message::Text(text) => Some(serde_json::from_str(&text).unwrap()),
        Message::Close(_) => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn websockets() {
    use futures_util::SinkExt;
    let server = Server::start();
    let mut kv = etcd_kv::client(&server).await;
    let mut socket = websocket(&server, "watch", "").await.unwrap();
    let create = json!({"create_request": {"key": b64("a")}}).to_string();
    socket.send(Message::text(create.clone())).await.unwrap();
    assert_eq!(receive(&mut socket).await.unwrap()["result"]["created"], true);
    kv.put(etcd_kv::put("a", "1")).await.unwrap();
    let seen = receive(&mut socket).await.unwrap();
    assert_eq!(seen["result"]["events"][0]["kv"]["value"], b64("1"));
    socket.send(Message::text("nonsense")).await.unwrap();
    assert_eq!(receive(&mut socket).await.unwrap()["error"]["code"], 3);
    assert_eq!(receive(&mut socket).await, None);

    // A method without streams answers once.
    let mut socket = websocket(&server, "kv/range", "").await.unwrap();
    socket
        .send(Message::text(json!({"key": b64("a")}).to_string()))
        .await
        .unwrap();
    assert_eq!(receive(&mut socket).await.unwrap()["count"], "1");
    assert_eq!(receive(&mut socket).await, None);
    let mut socket = websocket(&server, "kv/range", "sec-websocket-protocol: Bearer, t.1\r\n")
        .await
        .unwrap();
    socket.send(Message::text("{}")).await.unwrap();
    assert_eq!(receive(&mut socket).await.unwrap()["error"]["code"], 3);

    // Pages of foreign origins get none, nor do speakers of older protocols.
    let foreign = websocket(&server, "watch", "origin: http://evil.example\r\n")
        .await
        .err();
    assert!(foreign.unwrap().starts_with("HTTP/1.1 403 "));
    let old = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 8\r\n";
    assert_eq!(send(&server, "GET", "/v3/watch", old, b"").await.status, 400);
    // A member that stops ends them.
    let mut server = server;
    let mut socket = websocket(&server, "watch", "").await.unwrap();
    socket.send(Message::text(create)).await.unwrap();
    receive(&mut socket).await.unwrap();
    let http = server.http.take().unwrap();
    let drained = tokio::task::spawn_blocking(move || http.drain(PATIENCE));
    let last = receive(&mut socket).await.unwrap();
    assert_eq!(last["error"]["message"], "etcdserver: server stopped");
    drained.await.unwrap();
}

#[tokio::test]
async fn pages_need_leave_and_the_gateway_can_be_closed() {
    let server = Server::with(Setting {
        surfaces: SurfaceOptions {
            cors: vec!["http://a.example".to_owned()],
            ..SurfaceOptions::default()
        },
        ..Setting::default()
    });
    let call =
        async |method: &str, headers: &str| send(&server, method, "/v3/kv/range", headers, b"{}").await;
    let foreign = call("POST", "origin: http://b.example\r\n").await;
    assert_eq!(
        (foreign.status, foreign.header("access-control-allow-origin")),
        (403, None)
    );
    let allowed = call("POST", "origin: http://a.example\r\n").await;
    assert_eq!(
        allowed.header("access-control-allow-origin"),
        Some("http://a.example")
    );
    assert_eq!(allowed.status, 400);
    let asked = "origin: http://a.example\r\naccess-control-request-method: POST\r\n";
    let preflight = call("OPTIONS", asked).await;
    assert_eq!(
        (preflight.status, preflight.header("access-control-allow-methods")),
        (204, Some("POST"))
    );
    assert!(
        preflight
            .header("access-control-allow-headers")
            .unwrap()
            .contains("authorization")
    );

    let closed = Server::with(Setting {
        operations: Operations {
            gateway: false,
            ..Operations::default()
        },
        ..Setting::default()
    });
    assert_eq!(post(&closed, "kv/range", "{}").await.status, 404);
}

/// An answer in JSON holds its share of the memory for answers until it is sent.
#[tokio::test]
async fn large_answers_are_within_the_budget() {
    let server = Server::with(Setting {
        range_bytes_max: 64 << 20,
        ..Setting::default()
    });
    let mut kv = etcd_kv::client(&server).await;
    for key in 0..12 {
        kv.put(etcd_kv::put(format!("k{key}"), vec![b'x'; 1 << 20]))
            .await
            .unwrap();
    }
    let free = server.budget.free();
    let all = json!({"key": b64("k"), "range_end": b64("l")}).to_string();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST /v3/kv/range HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{all}",
        all.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.read_u8().await.unwrap();
    assert!(
        server.budget.free() < free,
        "the answer is under way and holds nothing"
    );
    drop(slow);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while server.budget.free() != free {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the answer is gone and still holds"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
