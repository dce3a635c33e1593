//! Users over the JSON gateway, and watches over its websockets, held against the reference like [`crate::gateway`].
//!
//! Left out: calls without streams over a websocket, which the reference answers only once the client has closed it; and a
//! password for a user without one, which kvorum refuses like a wrong one.
//!
//! Tokens are each server's own: a row names the user, and each server gets the token that it gave out itself.

use std::collections::BTreeMap;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::cluster::Cluster;
use crate::gateway::{Call, b, call, compared, normal, post};
use crate::reference::Reference;

/// Longest that a message may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who asks, and how the token stands in the header.
#[derive(Clone, Copy, Debug)]
enum As {
    Nobody,
    /// `Authorization: TOKEN`
    Plain(&'static str),
    /// `Authorization: Bearer TOKEN`
    Bearer(&'static str),
    /// `Authorization:` these words.
    Words(&'static str),
    /// `Grpc-Metadata-Token: TOKEN`
    Metadata(&'static str),
}

impl As {
    fn header(self, tokens: &BTreeMap<&'static str, String>) -> String {
        match self {
            As::Nobody => String::new(),
            As::Plain(user) => format!("authorization: {}\r\n", tokens[user]),
            As::Bearer(user) => format!("authorization: Bearer {}\r\n", tokens[user]),
            As::Words(words) => format!("authorization: {words}\r\n"),
            As::Metadata(user) => format!("grpc-metadata-token: {}\r\n", tokens[user]),
        }
    }
}

/// One of the two, and what it gave out.
struct Side {
    address: String,
    tokens: BTreeMap<&'static str, String>,
}

impl Side {
    async fn answer(&self, who: As, request: &Call) -> (u16, Value) {
        let answer = call(&self.address, &who.header(&self.tokens), request).await;
        compared(request, &answer)
    }

    async fn log_in(&mut self, user: &'static str, password: &str) {
        let request = post("auth/authenticate", json!({"name": user, "password": password}));
        let (status, body) = call(&self.address, "", &request).await;
        assert_eq!(status, 200, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        self.tokens
            .insert(user, body["token"].as_str().unwrap().to_owned());
    }
}

struct Pair {
    kvorum: Side,
    reference: Side,
    differences: Vec<String>,
    count: usize,
}

impl Pair {
    async fn ask(&mut self, who: As, request: Call) {
        self.count += 1;
        let (ours, theirs) = (
            self.kvorum.answer(who, &request).await,
            self.reference.answer(who, &request).await,
        );
        if ours != theirs {
            let (method, path, body, _) = request;
            self.differences.push(format!(
                "{method} {path} {body} as {who:?}\n  kvorum:    {} {}\n  reference: {} {}",
                ours.0, ours.1, theirs.0, theirs.1
            ));
        }
    }

    async fn all(&mut self, who: As, calls: Vec<Call>) {
        for call in calls {
            self.ask(who, call).await;
        }
    }

    async fn log_in(&mut self, user: &'static str, password: &str) {
        self.kvorum.log_in(user, password).await;
        self.reference.log_in(user, password).await;
    }
}

fn user(name: &str, password: &str) -> Value {
    json!({"name": name, "password": password})
}

fn grant(role: &str, kind: impl Into<Value>, key: &str, end: &str) -> Value {
    json!({"name": role, "perm": {"permType": kind.into(), "key": b(key), "range_end": b(end)}})
}

/// While authentication is off.
fn of_operators() -> Vec<Call> {
    vec![
        post("auth/status", json!({})),
        post("auth/enable", json!({})),
        post("auth/authenticate", user("root", "r")),
        post("auth/user/list", json!({})),
        post("auth/user/add", json!({})),
        post("auth/user/add", user("root", "r")),
        post("auth/user/add", user("root", "r")),
        post("auth/user/add", user("me", "m")),
        post(
            "auth/user/add",
            json!({"name": "passwordless", "options": {"no_password": true}}),
        ),
        post(
            "auth/user/add",
            json!({"name": "noOne", "options": {"noPassword": true}}),
        ),
        post("auth/user/list", json!({})),
        post("auth/enable", json!({})),
        post("auth/role/add", json!({})),
        post("auth/role/add", json!({"name": "root"})),
        post("auth/role/add", json!({"name": "own"})),
        post("auth/role/add", json!({"name": "own"})),
        post("auth/role/add", json!({"name": "other"})),
        post("auth/role/list", json!({})),
        post("auth/role/grant", grant("own", "READWRITE", "own/", "own0")),
        post("auth/role/grant", grant("own", "READ", "a", "")),
        post("auth/role/grant", grant("own", 1, "w", "\0")),
        post("auth/role/grant", grant("nothing", 0, "a", "")),
        post("auth/role/grant", json!({"name": "own"})),
        post("auth/role/get", json!({"role": "own"})),
        post("auth/role/get", json!({"role": "nothing"})),
        post(
            "auth/role/revoke",
            json!({"role": "own", "key": b("w"), "range_end": b("\0")}),
        ),
        post(
            "auth/role/revoke",
            json!({"role": "own", "key": b("w"), "rangeEnd": b("\0")}),
        ),
        post("auth/role/get", json!({"role": "own"})),
        post("auth/user/grant", json!({"user": "root", "role": "root"})),
        post("auth/user/grant", json!({"user": "me", "role": "own"})),
        post("auth/user/grant", json!({"user": "me", "role": "own"})),
        post("auth/user/grant", json!({"user": "me", "role": "other"})),
        post("auth/user/grant", json!({"user": "nobody", "role": "own"})),
        post("auth/user/grant", json!({"user": "me", "role": "nothing"})),
        post("auth/user/get", json!({"name": "me"})),
        post("auth/user/get", json!({"name": "nobody"})),
        post("auth/user/revoke", json!({"name": "me", "role": "other"})),
        post("auth/user/revoke", json!({"name": "me", "role": "other"})),
        post("auth/user/changepw", user("me", "mine")),
        post("auth/user/changepw", user("nobody", "x")),
        post("auth/role/delete", json!({"role": "other"})),
        post("auth/role/delete", json!({"role": "other"})),
        post("auth/user/delete", json!({"name": "noOne"})),
        post("auth/user/delete", json!({"name": "noOne"})),
        post("kv/put", json!({"key": b("a"), "value": b("1")})),
        post("kv/put", json!({"key": b("b"), "value": b("2")})),
        post("lease/grant", json!({"ID": 77, "TTL": 600})),
        post("auth/authenticate", user("root", "r")),
        post("auth/disable", json!({})),
        post("auth/enable", json!({})),
        post("auth/enable", json!({})),
    ]
}

/// By everybody, while authentication is on.
fn of_callers() -> Vec<Call> {
    let range = |key: &str, end: &str| post("kv/range", json!({"key": b(key), "range_end": b(end)}));
    vec![
        range("a", ""),
        range("b", ""),
        range("own/", "own0"),
        range("own/", "\0"),
        post("kv/put", json!({"key": b("own/a"), "value": b("1")})),
        post("kv/put", json!({"key": b("a"), "value": b("1")})),
        post("kv/deleterange", json!({"key": b("own/a"), "prev_kv": true})),
        post("kv/deleterange", json!({"key": b("b")})),
        post("kv/txn", json!({"success": [{"request_range": {"key": b("b")}}]})),
        post(
            "kv/txn",
            json!({"success": [{"request_put": {"key": b("own/t")}}]}),
        ),
        post("kv/compaction", json!({"revision": 1})),
        post("lease/leases", json!({})),
        post(
            "maintenance/alarm",
            json!({"action": "ACTIVATE", "alarm": "CORRUPT", "memberID": 5}),
        ),
        post(
            "maintenance/alarm",
            json!({"action": "DEACTIVATE", "alarm": "CORRUPT", "memberID": 5}),
        ),
        post("maintenance/hashkv", json!({})),
        post("maintenance/defragment", json!({})),
        post("cluster/member/remove", json!({"ID": 5})),
        post("lock/lock", json!({"name": b("b"), "lease": 77})),
        post("lock/lock", json!({"name": b("own/l"), "lease": 77})),
        post("election/leader", json!({"name": b("b")})),
        post("auth/user/list", json!({})),
        post("auth/user/get", json!({"name": "me"})),
        post("auth/user/get", json!({"name": "root"})),
        post("auth/role/list", json!({})),
        post("auth/role/get", json!({"role": "own"})),
        post("auth/role/get", json!({"role": "root"})),
        post("auth/user/add", user("another", "x")),
        post("auth/user/delete", json!({"name": "another"})),
        post("auth/user/changepw", user("nobody", "x")),
    ]
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn the_gateway_answers_alike_where_users_count() {
    let cluster = Cluster::start(1, &["--bcrypt-cost", "4"]).await;
    let reference = Reference::start(&["--bcrypt-cost=4"]).await;
    let side = |address: &str| Side {
        address: address.to_owned(),
        tokens: BTreeMap::new(),
    };
    let mut pair = Pair {
        kvorum: side(&cluster.members[0].client),
        reference: side(&reference.client),
        differences: Vec::new(),
        count: 0,
    };
    pair.all(As::Nobody, of_operators()).await;
    for (name, password) in [("root", "r"), ("root", "wrong"), ("nobody", "x"), ("", "")] {
        pair.ask(As::Nobody, post("auth/authenticate", user(name, password)))
            .await;
    }
    pair.log_in("root", "r").await;
    pair.log_in("me", "mine").await;
    let words = [
        "nonsense",
        "Bearer nonsense",
        "Bearer abcdefghijklmnop.1",
        "Basic bWU6bWluZQ==",
        "Bearer ",
    ];
    let mut callers = vec![As::Nobody, As::Plain("me"), As::Plain("root")];
    callers.extend(words.map(As::Words));
    for who in callers {
        pair.all(who, of_callers()).await;
    }
    for who in [As::Bearer("me"), As::Metadata("me")] {
        pair.ask(who, post("kv/range", json!({"key": b("a")}))).await;
    }
    // A token ends with its password, and with authentication; it is off for everybody then.
    pair.ask(As::Plain("me"), post("auth/disable", json!({}))).await;
    pair.ask(As::Plain("root"), post("auth/user/changepw", user("me", "m")))
        .await;
    pair.ask(As::Plain("me"), post("kv/range", json!({"key": b("a")})))
        .await;
    pair.ask(As::Plain("root"), post("auth/disable", json!({}))).await;
    pair.ask(As::Plain("me"), post("kv/range", json!({"key": b("a")})))
        .await;
    pair.ask(As::Nobody, post("auth/authenticate", user("root", "r")))
        .await;
    pair.ask(As::Nobody, post("kv/range", json!({"key": b("a")})))
        .await;
    println!("{} requests compared", pair.count);
    assert!(pair.differences.is_empty(), "{}", pair.differences.join("\n"));
}

/// A websocket, with a token if there is one.
async fn websocket(address: &str, path: &str, token: Option<&str>) -> WebSocketStream<TcpStream> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let token = token.map(|token| format!("sec-websocket-protocol: Bearer, {token}\r\n"));
    let head = format!(
        "GET /v3/{path} HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}\r\n",
        token.as_deref().unwrap_or_default()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{address}: {answer}");
    let agreed = answer
        .to_ascii_lowercase()
        .contains("sec-websocket-protocol: bearer\r\n");
    assert_eq!(agreed, token.is_some(), "{address}: {answer}");
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

/// A step of a conversation over one websocket.
#[derive(Clone, Debug)]
enum Step {
    /// The client says this.
    Say(Value),
    /// The client puts this key elsewhere.
    Put(&'static str),
    /// So many messages of the server are compared.
    Hear(usize),
}

/// What a server says in a conversation.
async fn converse(address: &str, path: &str, token: Option<&str>, steps: &[Step]) -> Vec<Value> {
    let mut socket = websocket(address, path, token).await;
    let mut heard = Vec::new();
    for step in steps {
        match step {
            Step::Say(message) => socket.send(Message::text(message.to_string())).await.unwrap(),
            Step::Put(key) => {
                let header = token
                    .map(|token| format!("authorization: {token}\r\n"))
                    .unwrap_or_default();
                let put = post("kv/put", json!({"key": b(key), "value": b("v")}));
                let (status, body) = call(address, &header, &put).await;
                assert_eq!(status, 200, "{body}");
            }
            Step::Hear(count) => {
                for _ in 0..*count {
                    let message = timeout(PATIENCE, socket.next()).await;
                    let message =
                        message.unwrap_or_else(|_| panic!("{address} is silent on {path} after {heard:?}"));
                    heard.push(match message {
                        Some(Ok(Message::Text(text))) => normal(serde_json::from_str(&text).unwrap(), path),
                        // How one takes leave is the library's matter.
                        Some(Ok(Message::Close(_)) | Err(_)) | None => json!("the end"),
                        other => json!(format!("{other:?}")),
                    });
                }
            }
        }
    }
    heard
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn websockets_say_the_same() {
    use Step::*;
    let cluster = Cluster::start(1, &["--bcrypt-cost", "4"]).await;
    let reference = Reference::start(&["--bcrypt-cost=4"]).await;
    let addresses = [cluster.members[0].client.as_str(), reference.client.as_str()];
    let create = |create: Value| Say(json!({"create_request": create}));
    let conversations: Vec<(&str, Vec<Step>)> = vec![
        (
            "watch",
            vec![
                create(json!({"key": b("a")})),
                Hear(1),
                Put("a"),
                Hear(1),
                // A second watcher on the same stream, and progress of both.
                create(json!({"key": b("b"), "range_end": b("c"), "prev_kv": true, "watch_id": "7"})),
                Hear(1),
                Put("b"),
                Put("b"),
                Hear(2),
                Say(json!({"progress_request": {}})),
                Hear(1),
                Say(json!({"cancel_request": {"watch_id": 7}})),
                Hear(1),
                Put("b"),
                Put("a"),
                Hear(1),
            ],
        ),
        (
            "watch",
            vec![
                create(json!({"key": b("a"), "start_revision": "2", "filters": ["NODELETE"]})),
                Hear(2),
            ],
        ),
        (
            "watch",
            vec![create(json!({"key": b("a"), "range_end": b("a")})), Hear(1)],
        ),
        (
            "watch",
            vec![create(json!({"key": b("a"), "start_revision": -1})), Hear(1)],
        ),
        (
            "lease/keepalive",
            vec![
                Say(json!({"ID": 7})),
                Hear(1),
                Say(json!({"ID": "8"})),
                Hear(1),
                Say(json!({"ID": 7})),
                Hear(1),
            ],
        ),
    ];
    for address in addresses {
        let granted = call(address, "", &post("lease/grant", json!({"ID": 7, "TTL": 600}))).await;
        assert_eq!(granted.0, 200, "{address}: {}", granted.1);
    }
    for (path, steps) in &conversations {
        let [ours, theirs] = addresses.map(|address| converse(address, path, None, steps));
        assert_eq!(ours.await, theirs.await, "{path}: {steps:?}");
    }

    // With a token, which a page can only hand over as a name of a protocol.
    let mut tokens = Vec::new();
    for address in addresses {
        for call_of in [
            post("auth/user/add", user("root", "r")),
            post("auth/user/add", user("me", "m")),
            post("auth/role/add", json!({"name": "own"})),
            post("auth/role/grant", grant("own", "READWRITE", "own/", "own0")),
            post("auth/user/grant", json!({"user": "me", "role": "own"})),
            post("auth/user/grant", json!({"user": "root", "role": "root"})),
            post("auth/enable", json!({})),
        ] {
            let (status, body) = call(address, "", &call_of).await;
            assert_eq!(status, 200, "{address}: {body}");
        }
        let mut side = Side {
            address: address.to_owned(),
            tokens: BTreeMap::new(),
        };
        side.log_in("me", "m").await;
        tokens.push(side.tokens.remove("me").unwrap());
    }
    let own = [create(json!({"key": b("own/a")})), Hear(1), Put("own/a"), Hear(1)];
    let others = [create(json!({"key": b("other")})), Hear(1)];
    for (path, steps) in [("watch", &own[..]), ("watch", &others)] {
        let ours = converse(addresses[0], path, Some(&tokens[0]), steps).await;
        let theirs = converse(addresses[1], path, Some(&tokens[1]), steps).await;
        assert_eq!(ours, theirs, "{path}: {steps:?}");
    }
    for token in [None, Some("nonsense")] {
        let [ours, theirs] = addresses.map(|address| converse(address, "watch", token, &others));
        assert_eq!(ours.await, theirs.await, "as {token:?}");
    }
}
