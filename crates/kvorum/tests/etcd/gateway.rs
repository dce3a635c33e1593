//! The JSON gateway and the probes, held against the reference over HTTP: the same requests to both, one after the
//! other, status and bodies compared field by field.
//!
//! By shape only: identifiers of cluster, members and leases that a server chooses, terms, sizes, versions, tokens. kvorum
//! says more in some places, on purpose: `error` and `details` in errors (for clients of older gateways),
//! `kvorum` in `/version`, the fields of another system in `/health`. The words about bodies that are no JSON are each
//! parser's own.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::reference::Reference;

/// Longest that an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// What has another value on each server.
const BY_SHAPE: [&str; 15] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "dbSize",
    "dbSizeInUse",
    "dbSizeQuota",
    "leader",
    "raftIndex",
    "raftTerm",
    "raftAppliedIndex",
    "version",
    "storageVersion",
    "etcdserver",
    "remaining_bytes",
    "token",
];

/// How an answer is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All fields.
    Fields,
    /// The names of the fields at the top.
    Names,
    /// Status and code.
    Code,
    /// So many lines of a stream that goes on.
    Lines(usize),
    /// Lines of text in any order.
    Text,
}

pub fn post(path: &str, body: Value) -> Call {
    ("POST", format!("/v3/{path}"), body.to_string(), By::Fields)
}

/// Base64.
pub fn b(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Method, path, body, and how the answers are compared.
pub type Call = (&'static str, String, String, By);

fn of_keys() -> Vec<Call> {
    let (a, c) = (b("a"), b("c"));
    let range = |more: Value| {
        let mut body = json!({"key": a, "range_end": b("z")});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        post("kv/range", body)
    };
    vec![
        post("kv/put", json!({"key": a, "value": b("1")})),
        post("kv/put", json!({"key": a, "value": "_-8", "prev_kv": true})),
        post("kv/put", json!({"key": b("b"), "value": b("2")})),
        post("kv/put", json!({"key": c, "value": b(""), "lease": "9"})),
        post("kv/put", json!({"key": c, "ignore_value": true})),
        post("kv/put", json!({})),
        post("kv/range", json!({"key": a})),
        post("kv/range", json!({"key": a, "serializable": true})),
        post("kv/range", json!({"key": b("nothing")})),
        range(json!({})),
        range(json!({"limit": 1})),
        range(json!({"limit": "1", "sort_order": "DESCEND", "sort_target": "MOD"})),
        range(json!({"limit": 1.0, "sortOrder": 2, "sortTarget": 3})),
        range(json!({"keys_only": true, "unknown": {"of": ["nobody"]}})),
        range(json!({"count_only": true})),
        range(json!({"revision": 2})),
        range(json!({"revision": "-9223372036854775808"})),
        range(json!({"revision": 99})),
        range(json!({"sort_order": 9})),
        range(json!({"sort_order": "SIDEWAYS"})),
        range(json!({"min_mod_revision": 3, "maxModRevision": "4"})),
        post(
            "kv/txn",
            json!({
                "compare": [{"target": "VERSION", "result": "GREATER", "key": a, "version": "1"}],
                "success": [
                    {"request_put": {"key": b("t"), "value": b("t")}},
                    {"requestRange": {"key": a}},
                    {"request_delete_range": {"key": b("b"), "prev_kv": true}},
                    {"request_txn": {"success": [{"request_range": {"key": b("t")}}]}},
                ],
                "failure": [{"request_range": {"key": a}}],
            }),
        ),
        post(
            "kv/txn",
            json!({"compare": [{"target": 0, "result": 0, "key": a, "version": 77}], "failure": [{"request_range": {"key": a}}]}),
        ),
        post("kv/txn", json!({"success": [{}]})),
        post(
            "kv/txn",
            json!({"success": [{"request_put": {"key": a}}, {"request_put": {"key": a}}]}),
        ),
        post("kv/deleterange", json!({"key": b("t")})),
        post("kv/deleterange", json!({"key": b("t")})),
        post("kv/compaction", json!({"revision": 3})),
        post("kv/compaction", json!({"revision": 3})),
        post("kv/compaction", json!({"revision": "99"})),
        range(json!({"revision": 2})),
    ]
}

fn of_leases() -> Vec<Call> {
    let (key, lease) = (b("leased"), json!({"ID": "77"}));
    vec![
        post("lease/grant", json!({"TTL": "600", "ID": 77})),
        post("lease/grant", json!({"TTL": 600, "ID": 77})),
        post("lease/grant", json!({"TTL": "99999999999", "ID": 78})),
        post("kv/put", json!({"key": key, "lease": 77})),
        post("lease/leases", json!({})),
        post("kv/lease/leases", json!({})),
        (
            "POST",
            "/v3/lease/timetolive".to_owned(),
            json!({"ID": 77, "keys": true}).to_string(),
            By::Names,
        ),
        post("kv/lease/timetolive", json!({"ID": 78})),
        (
            "POST",
            "/v3/lease/keepalive".to_owned(),
            format!("{lease}{}", json!({"ID": 78})),
            By::Lines(2),
        ),
        post("lease/revoke", lease.clone()),
        post("kv/lease/revoke", lease),
        post("kv/range", json!({"key": key})),
    ]
}

fn of_turns() -> Vec<Call> {
    let (name, election) = (b("l"), b("e"));
    let leader = |rev: i64| json!({"name": election, "key": b("e/58"), "rev": rev, "lease": 88});
    vec![
        post("lease/grant", json!({"TTL": 600, "ID": 88})),
        post("lock/lock", json!({"name": name, "lease": "88"})),
        post("lock/lock", json!({"name": name, "lease": 88})),
        post("lock/lock", json!({"name": name, "lease": 99})),
        post("lock/unlock", json!({"key": b("l/58")})),
        post("lock/unlock", json!({})),
        post("election/leader", json!({"name": election})),
        post(
            "election/campaign",
            json!({"name": election, "lease": 88, "value": b("v")}),
        ),
        post(
            "election/campaign",
            json!({"name": election, "lease": 88, "value": b("w")}),
        ),
        post("election/campaign", json!({"name": election, "lease": 99})),
        post("election/leader", json!({"name": election})),
        post("election/proclaim", json!({"leader": leader(1), "value": b("x")})),
        post("election/proclaim", json!({})),
        (
            "POST",
            "/v3/election/observe".to_owned(),
            json!({"name": election}).to_string(),
            By::Lines(1),
        ),
        post("election/resign", json!({"leader": leader(1)})),
        post("election/resign", json!({})),
        post("lease/revoke", json!({"ID": 88})),
    ]
}

fn of_watches() -> Vec<Call> {
    let watch = |create: Value, lines: usize| {
        let body = json!({"create_request": create}).to_string();
        ("POST", "/v3/watch".to_owned(), body, By::Lines(lines))
    };
    // Of one revision each, so that nothing depends on how changes are put together.
    let (a, t) = (b("a"), b("t"));
    vec![
        watch(json!({"key": t, "start_revision": 6}), 2),
        watch(
            json!({"key": t, "range_end": b("u"), "start_revision": "6", "prev_kv": true, "watch_id": 5}),
            2,
        ),
        watch(json!({"key": t, "start_revision": 5, "filters": ["NODELETE"]}), 2),
        watch(
            json!({"key": b("b"), "range_end": b("c"), "startRevision": 5, "filters": [0]}),
            2,
        ),
        watch(json!({"key": a, "start_revision": 1}), 2),
        watch(json!({"key": a, "range_end": a}), 1),
    ]
}

fn of_the_cluster() -> Vec<Call> {
    let names = |path: &str| ("POST", format!("/v3/{path}"), "{}".to_owned(), By::Names);
    vec![
        names("maintenance/status"),
        names("cluster/member/list"),
        post("maintenance/alarm", json!({})),
        post(
            "maintenance/alarm",
            json!({"action": "ACTIVATE", "alarm": "CORRUPT"}),
        ),
        post("maintenance/alarm", json!({"action": 2, "alarm": 2})),
        post("maintenance/hashkv", json!({})),
        post("maintenance/hashkv", json!({"revision": 99})),
        names("maintenance/hash"),
        post("maintenance/defragment", json!({})),
        post("maintenance/transfer-leadership", json!({"targetID": "5"})),
        post(
            "maintenance/downgrade",
            json!({"action": "VALIDATE", "version": "x"}),
        ),
        post("cluster/member/remove", json!({"ID": "5"})),
        post("cluster/member/promote", json!({"ID": 5})),
        post(
            "cluster/member/update",
            json!({"ID": 5, "peerURLs": ["http://127.0.0.1:1"]}),
        ),
        post("cluster/member/add", json!({"peerURLs": ["nonsense"]})),
    ]
}

fn of_bad_input() -> Vec<Call> {
    let bad = |body: &str| ("POST", "/v3/kv/put".to_owned(), body.to_owned(), By::Code);
    let deep = format!(
        "{{\"success\":[{}",
        "{\"request_txn\":{\"success\":[".repeat(10_000)
    );
    let routes = ["GET", "PUT", "DELETE", "PATCH"]
        .map(|method| (method, "/v3/kv/range".to_owned(), "{}".to_owned(), By::Fields));
    let mut calls = vec![
        bad("{"),
        bad("null"),
        bad("[]"),
        bad("\"a\""),
        bad("nonsense"),
        bad(r#"{"key":7}"#),
        bad(r#"{"key":"!"}"#),
        bad(r#"{"key":["YQ=="]}"#),
        bad(r#"{"lease":"9223372036854775808"}"#),
        bad(r#"{"lease":9223372036854775808}"#),
        bad(r#"{"lease":1.5}"#),
        bad(r#"{"lease":true}"#),
        bad(r#"{"prev_kv":"true"}"#),
        bad(r#"{"key":"YQ==""#),
        bad(r#"{"key":"YQ==","key":"Yg=="}"#),
        bad(r#"{"key":null,"key":"YQ=="}"#),
        bad(r#"{"prev_kv":false,"prevKv":false}"#),
        ("POST", "/v3/kv/txn".to_owned(), deep, By::Code),
        post(
            "kv/put",
            json!({"key": b("large"), "value": "A".repeat(2_100_000)}),
        ),
        (
            "POST",
            "/v3/kv/put".to_owned(),
            json!({"key": b("larger"), "value": "A".repeat(4_000_000)}).to_string(),
            By::Code,
        ),
        (
            "POST",
            "/v3/kv/range".to_owned(),
            format!("{} and more", json!({"key": b("a")})),
            By::Fields,
        ),
        ("POST", "/v3/kv/range".to_owned(), String::new(), By::Fields),
        post("kv/nothing", json!({})),
        post("", json!({})),
        post("kv/range/", json!({})),
        ("GET", "/v3/".to_owned(), String::new(), By::Fields),
        ("GET", "/v3/nothing".to_owned(), String::new(), By::Fields),
        ("DELETE", "/v3/kv/nothing".to_owned(), String::new(), By::Fields),
    ];
    calls.extend(routes);
    let to = |path: &str, body: &str, by| ("POST", format!("/v3/{path}"), body.to_owned(), by);
    calls.extend(
        [
            r#"{"success":[],"success":[]}"#,
            r#"{"success":[{"request_put":{"key":"YQ==","key":"Yg=="}}]}"#,
            r#"{"success":[{"request_range":{"key":"YQ=="},"request_put":{"key":"YQ=="}}]}"#,
        ]
        .map(|body| to("kv/txn", body, By::Code)),
    );
    // What nobody knows may be there twice, and null is in no oneof.
    calls.push(to(
        "kv/range",
        r#"{"key":"YQ==","unknown":1,"unknown":2}"#,
        By::Fields,
    ));
    calls.push(to(
        "kv/txn",
        r#"{"success":[{"request_range":{"key":"YQ=="},"request_put":null}]}"#,
        By::Fields,
    ));
    // Kinds that nobody knows, by name and by number, and numbers that are none of a kind.
    for kind in [
        "9",
        "-1",
        "\"ZZ\"",
        "\"1\"",
        "2147483647",
        "2147483648",
        "-2147483649",
        "1.5",
        "true",
        "null",
        "[]",
    ] {
        let range = format!(r#"{{"key":"YQ==","sort_order":{kind}}}"#);
        calls.push(to("kv/range", &range, By::Code));
    }
    for filter in ["9", "\"ZZ\"", "\"1\"", "2147483647"] {
        let watch = format!(r#"{{"create_request":{{"key":"YQ==","filters":[{filter}]}}}}"#);
        calls.push(to("watch", &watch, By::Lines(1)));
    }
    for compare in [
        r#"{"target":"ZZ","key":"YQ=="}"#,
        r#"{"result":"ZZ","key":"YQ==","version":"1"}"#,
    ] {
        calls.push(to("kv/txn", &format!(r#"{{"compare":[{compare}]}}"#), By::Fields));
    }
    calls.push(to("maintenance/alarm", r#"{"action":"ZZ"}"#, By::Fields));
    calls
}

fn of_probes() -> Vec<Call> {
    let get = |path: &str, by: By| ("GET", path.to_owned(), String::new(), by);
    let mut calls: Vec<Call> = [
        "/livez",
        "/livez?verbose",
        "/livez/serializable_read",
        "/livez/serializable_read?verbose",
        "/readyz",
        "/readyz?verbose",
        "/readyz?verbose&exclude=non_learner&exclude=data_corruption",
        "/readyz?exclude=nothing",
        "/readyz/linearizable_read",
        "/readyz/data_corruption?verbose",
        "/readyz/non_learner",
        "/livez/",
        "/readyz/",
        "/livez/linearizable_read",
        "/readyz/nothing",
        "/readyz/non_learner/",
        "/livez?verbose=false",
        "/livez?exclude=serializable_read&verbose",
        "/readyz?exclude=",
        "/readyz/data_corruption?exclude=data_corruption&verbose",
    ]
    .iter()
    .map(|path| get(path, By::Text))
    .collect();
    calls.extend(
        [
            "/health",
            "/health?serializable=true",
            "/health?exclude=NOSPACE",
            "/version",
        ]
        .map(|path| get(path, By::Fields)),
    );
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let paths = [
            "/health",
            "/livez",
            "/livez/serializable_read",
            "/readyz",
            "/version",
            "/debug/vars",
        ];
        calls.extend(paths.map(|path| (method, path.to_owned(), String::new(), By::Text)));
    }
    calls
}

/// Status and body; `headers` are whole lines.
pub async fn call(address: &str, headers: &str, (method, path, body, by): &Call) -> (u16, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        // A body that is refused early is not read to its end.
        let _ = stream.write_all(body.as_bytes()).await;
        let mut answer = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let is_enough =
                matches!(by, By::Lines(count) if lines(&String::from_utf8_lossy(&answer)).len() >= *count);
            let count = if is_enough {
                0
            } else {
                stream.read(&mut buffer).await.unwrap_or(0)
            };
            if count == 0 {
                break;
            }
            answer.extend_from_slice(&buffer[..count]);
        }
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(ANSWER_TIMEOUT, exchange).await;
    let answer = answer
        .unwrap_or_else(|_| panic!("{address} does not answer {path} {body}"))
        .unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The whole lines of a stream that are JSON objects.
fn lines(body: &str) -> Vec<Value> {
    body.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(Value::is_object)
        .collect()
}

/// Without what is compared by shape, and without what only kvorum says.
pub fn normal(mut value: Value, path: &str) -> Value {
    fn visit(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for name in BY_SHAPE {
                    if let Some(value) = fields.get_mut(name) {
                        *value = json!("some");
                    }
                }
                if fields.contains_key("code") {
                    fields.remove("error");
                    fields.remove("details");
                }
                fields.values_mut().for_each(visit);
            }
            Value::Array(values) => values.iter_mut().for_each(visit),
            _ => {}
        }
    }
    visit(&mut value);
    let own: &[&str] = match path {
        "/version" => &["kvorum", "etcdcluster", "storage"],
        path if path.starts_with("/health") => &["status", "state", "leader_id", "timestamp"],
        _ => &[],
    };
    if let Some(fields) = value.as_object_mut() {
        own.iter().for_each(|name| drop(fields.remove(*name)));
    }
    value
}

/// What of an answer is compared.
pub fn compared(call: &Call, (status, body): &(u16, String)) -> (u16, Value) {
    let (_, path, _, by) = call;
    let value = || normal(serde_json::from_str(body).unwrap_or_else(|_| json!(body)), path);
    let shown = match by {
        By::Fields => value(),
        By::Names => json!(
            value()
                .as_object()
                .map(|fields| fields.keys().cloned().collect::<Vec<_>>())
        ),
        By::Code => value()["code"].clone(),
        By::Lines(count) => lines(body)
            .into_iter()
            .take(*count)
            .map(|line| normal(line, path))
            .collect(),
        By::Text => {
            let mut lines: Vec<&str> = body.lines().collect();
            lines.sort_unstable();
            json!(lines)
        }
    };
    (*status, shown)
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn the_gateway_answers_alike() {
    // etcd has a quota unless told otherwise.
    let cluster = Cluster::start(1, &["--quota-bytes", "2GiB"]).await;
    let reference = Reference::start(&[]).await;
    let parts = [
        of_keys(),
        of_leases(),
        of_turns(),
        of_watches(),
        of_the_cluster(),
        of_bad_input(),
        of_probes(),
    ];
    let (mut differences, mut count) = (Vec::new(), 0);
    for request in parts.iter().flatten() {
        count += 1;
        let ours = compared(request, &call(&cluster.members[0].client, "", request).await);
        let theirs = compared(request, &call(&reference.client, "", request).await);
        if ours != theirs {
            let (method, path, body, _) = request;
            let body: String = body.chars().take(200).collect();
            differences.push(format!(
                "{method} {path} {body}\n  kvorum:    {} {}\n  reference: {} {}",
                ours.0, ours.1, theirs.0, theirs.1
            ));
        }
    }
    println!("{count} requests compared");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
