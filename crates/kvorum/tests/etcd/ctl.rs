//! A session of the unmodified `etcdctl`, on kvorum and on the reference: exit codes and words must be the same.
//!
//! Commands stand in [`SESSION`], in order: each finds what those before it left.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::reference::{Reference, tool};
use crate::unsupported::{Service, is_supported};

/// Longest that a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How what is printed is compared.
enum As {
    /// Word for word.
    Text,
    /// As JSON, but for the fields that are a server's own.
    Json,
    /// Line by line, but for words with digits: identifiers, addresses, sizes, times.
    Shape,
    /// The first so many lines word for word; then the command, which goes on, is ended.
    Lines(usize),
}
use As::{Json, Lines, Shape, Text};

/// One command: its arguments, divided at spaces, its standard input, and how it is compared.
struct Row(&'static str, &'static str, As);

/// The part of the API that a row needs; else it is left out.
fn needed(args: &str) -> Option<Service> {
    let mut words = args.split(' ');
    match (words.next(), words.next()) {
        (Some("lease"), _) => Some(Service::Lease),
        (Some("defrag"), _) => Some(Service::Defragment),
        (Some("endpoint"), Some("hashkv")) => Some(Service::HashKv),
        _ => None,
    }
}

const SESSION: &[Row] = &[
    Row("put k1 v1", "", Text),
    Row("put k1 v2 --prev-kv", "", Text),
    Row("put k2 v2", "", Text),
    Row("put k3", "value from standard input", Text),
    Row("put k1 --ignore-value", "", Text),
    Row("put k0 --ignore-value", "", Text),
    Row("put k0 v --lease=4d2", "", Text),
    Row("put k1 v3 --ignore-lease --prev-kv", "", Text),
    Row("put key1 w --write-out=json", "", Json),
    Row("get k1", "", Text),
    Row("get nothing", "", Text),
    Row("get k1 --print-value-only", "", Text),
    Row("get k --prefix", "", Text),
    Row("get k --prefix --keys-only", "", Text),
    Row("get k --prefix --count-only --write-out=fields", "", Shape),
    Row("get k --prefix --limit=2 --write-out=json", "", Json),
    Row("get k --prefix --sort-by=MODIFY --order=DESCEND", "", Text),
    Row("get k2 --from-key", "", Text),
    Row("get k1 k3", "", Text),
    Row("get k3 k1", "", Text),
    Row("get k1 --rev=2", "", Text),
    Row("get k1 --rev=1000", "", Text),
    Row("get k1 --consistency=s --write-out=json", "", Json),
    Row("get k1 --hex", "", Text),
    Row("get k1 --write-out=fields", "", Shape),
    Row(
        "txn",
        "value(\"k1\") = \"v3\"\n\nput k1 w1\nget k1\n\nget k2\n\n",
        Text,
    ),
    Row(
        "txn",
        "ver(\"k9\") > \"0\"\ncreate(\"k1\") = \"2\"\n\nput k9 x\n\ndel k2\nget k --prefix\n\n",
        Text,
    ),
    Row(
        "txn --write-out=json",
        "mod(\"k1\") > \"1\"\n\nput k5 5\ndel nothing\n\n\n",
        Json,
    ),
    Row("txn", "\n\nput k1 a\nput k1 b\n\n\n", Text),
    Row("txn", "nonsense\n\n\n\n", Text),
    Row("del k3", "", Text),
    Row("del k3", "", Text),
    Row("del k5 --prev-kv", "", Text),
    Row("del key --prefix --write-out=json", "", Json),
    Row("put k6 six", "", Text),
    Row("watch k1 --rev=2", "", Lines(9)),
    Row("watch k --prefix --rev=4 --prev-kv", "", Lines(12)),
    Row("compaction 4", "", Text),
    Row("compaction 4", "", Text),
    Row("compaction 1000", "", Text),
    Row("compaction 6 --physical", "", Text),
    Row("get k1 --rev=5", "", Text),
    Row("get k1 --rev=6", "", Text),
    Row("watch k1 --rev=3", "", Text),
    Row("watch k --prefix --rev=6 --prev-kv", "", Lines(8)),
    Row("del k --prefix", "", Text),
    Row("get k --prefix", "", Text),
    Row("lease grant 1000", "", Shape),
    Row("lease timetolive 4d2", "", Text),
    Row("lease revoke 4d2", "", Text),
    Row("lease list", "", Shape),
    Row("member list", "", Shape),
    Row("member list --write-out=json", "", Json),
    Row("endpoint health", "", Shape),
    Row("endpoint health --write-out=json", "", Json),
    Row("endpoint status", "", Shape),
    Row("endpoint status --write-out=json", "", Json),
    Row("endpoint status --write-out=table", "", Shape),
    Row("endpoint hashkv", "", Shape),
    Row("alarm list", "", Text),
    Row("defrag", "", Shape),
    Row("move-leader 1", "", Text),
];

/// Fields of JSON that are a server's own.
const OWN_FIELDS: [&str; 14] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "raftTerm",
    "raftIndex",
    "raftAppliedIndex",
    "leader",
    "dbSize",
    "dbSizeInUse",
    "took",
    "ID",
    "name",
    "clientURLs",
    "peerURLs",
];

/// What a command left behind.
#[derive(Debug, PartialEq)]
struct Left {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn run(endpoint: &str, row: &Row) -> Left {
    let Row(args, stdin, how) = row;
    let mut child = Command::new(tool("etcd-ref-ctl"))
        .args(["--endpoints", endpoint])
        .args(args.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // A command that reads nothing may be gone already.
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut errors = child.stderr.take().unwrap();
    let wanted = if let Lines(count) = how {
        *count
    } else {
        usize::MAX
    };
    let ended = timeout(COMMAND_TIMEOUT, async {
        let mut count = 0;
        while count < wanted
            && let Some(line) = lines.next_line().await.unwrap()
        {
            stdout.push_str(&format!("{line}\n"));
            count += 1;
        }
        if let Lines(_) = how {
            child.kill().await.unwrap();
        }
        errors.read_to_string(&mut stderr).await.unwrap();
        child.wait().await.unwrap()
    });
    let Ok(ended) = ended.await else {
        panic!("etcdctl {args} does not end on {endpoint}; so far: {stdout}")
    };
    let level = |text: &str| level(text, endpoint, how);
    Left {
        code: ended.code(),
        stdout: level(&stdout),
        // Lines of its log tell of retries, with times and addresses.
        stderr: level(
            &stderr
                .lines()
                .filter(|line| !line.starts_with('{'))
                .map(|line| format!("{line}\n"))
                .collect::<String>(),
        ),
    }
}

fn level(text: &str, endpoint: &str, how: &As) -> String {
    let text = text.replace(endpoint, "ENDPOINT");
    match how {
        Text | Lines(_) => text,
        Shape => text.lines().map(|line| shape(line) + "\n").collect(),
        Json => match serde_json::from_str(&text) {
            Ok(mut json) => {
                level_json(&mut json);
                json.to_string()
            }
            Err(_) => text,
        },
    }
}

/// A line with words that have digits in them, and the lines of tables, replaced.
fn shape(line: &str) -> String {
    let is_unit = |word: &str| matches!(word.trim_end_matches(','), "B" | "kB" | "MB" | "GB" | "|");
    line.split_whitespace()
        .filter(|word| !is_unit(word) && !word.starts_with('+'))
        .map(|word| {
            if word.contains(|c: char| c.is_ascii_digit()) {
                "#"
            } else {
                word
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Replaces what is a server's own.
fn level_json(json: &mut Value) {
    match json {
        Value::Array(all) => all.iter_mut().for_each(level_json),
        Value::Object(fields) => {
            for (name, value) in fields {
                // A record's version is a number, and compared.
                if name == "Status"
                    && let Value::Object(status) = value
                {
                    // Without a quota the field is absent.
                    status.remove("dbSizeQuota");
                }
                let is_own = match name.as_str() {
                    "version" => value.is_string(),
                    name => OWN_FIELDS.contains(&name),
                };
                if is_own {
                    *value = Value::from("OWN");
                } else {
                    level_json(value);
                }
            }
        }
        _ => {}
    }
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn etcdctl_says_the_same() {
    let cluster = Cluster::start(1, &[]).await;
    let reference = Reference::start(&["--name=n1"]).await;
    let mut differences = Vec::new();
    let mut count = 0;
    for row in SESSION {
        if needed(row.0).is_some_and(|service| !is_supported(service)) {
            continue;
        }
        let (ours, theirs) = tokio::join!(run(&cluster.members[0].client, row), run(&reference.client, row));
        count += 1;
        if ours != theirs {
            differences.push(format!(
                "etcdctl {}\n  kvorum:    {ours:?}\n  reference: {theirs:?}",
                row.0
            ));
        }
    }
    println!(
        "{count} commands of etcdctl, {} of them with other words",
        differences.len()
    );
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
