//! A session of the unmodified `etcdctl`, on kvorum and on the reference: exit codes and words must be the same.
//!
//! Commands stand in [`SESSION`], in order: each finds what those before it left. Not in it:
//!
//! - `check perf` and `check datascale`: they take a minute, and print what the machine can do;
//! - `make-mirror`: it does not end; the Go client's mirror is in `clients/go`;
//! - `downgrade enable`, and `validate` of a version before: kvorum refuses, in etcd's words, what etcd would do;
//! - `completion` and `help`: they ask no server.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kvorum_client::proto::etcd::{self, cluster_client::ClusterClient, lease_client::LeaseClient};
use prost::Message;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use tonic::transport::Channel;

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
    /// The same, where the order of lines is that of identifiers.
    Sorted,
    /// As a message, but for the header's own fields.
    Message(fn(&[u8]) -> String),
    /// The first so many lines word for word; then the command, which goes on, is ended.
    Lines(usize),
    /// The same, but for words with digits.
    ShapedLines(usize),
}
use As::{Json, Lines, Message as AsMessage, Shape, ShapedLines, Sorted, Text};

/// One command: its arguments, divided at spaces, its standard input, and how it is compared. In the arguments, `$OWN`
/// is the ID of the first member, `$LEARNER` that of the learner, `$FILE` a file that is not there.
struct Row(&'static str, &'static str, As);

/// A lease that both have from the beginning: those of `lease grant` have IDs of their own.
const LEASE: i64 = 0x10e1;

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
    Row("get k1 --write-out=protobuf", "", AsMessage(range)),
    Row("get k1 --write-out=table", "", Text),
    Row("get k --prefix --sort-by=VALUE --order=ASCEND", "", Text),
    Row("get k --prefix --sort-by=NONSENSE", "", Text),
    Row("get k --prefix --min-mod-rev=4", "", Text),
    Row("get k --prefix --max-create-rev=3 --keys-only", "", Text),
    Row("get k --prefix --count-only", "", Text),
    Row("get", "", Text),
    Row("put", "", Text),
    Row("put k7 -- -dash", "", Text),
    Row("put k7 again --write-out=fields", "", Shape),
    Row("put k7 again --write-out=protobuf", "", AsMessage(put)),
    Row("del k7 --write-out=protobuf --prev-kv", "", AsMessage(delete)),
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
    Row(
        "txn --write-out=protobuf",
        "\n\nget k1\nput k6 6\n\n\n",
        AsMessage(txn),
    ),
    Row("txn --write-out=fields", "\n\nget k1\ndel k6\n\n\n", Shape),
    Row(
        "txn --interactive",
        "lease(\"k1\") = \"0\"\n\nget k1\n\nget k2\n\n",
        Text,
    ),
    Row("txn", "\n\nput k1 a\nput k1 b\n\n\n", Text),
    Row("txn", "nonsense\n\n\n\n", Text),
    Row("del k3", "", Text),
    Row("del k3", "", Text),
    Row("del k5 --prev-kv", "", Text),
    Row("del key --prefix --write-out=json", "", Json),
    Row("put k6 six", "", Text),
    Row("put k8 eight", "", Text),
    Row("watch k1 --rev=2", "", Lines(9)),
    Row("watch k1 k3 --rev=2", "", Lines(9)),
    Row("watch k8 --rev=2 -- echo event", "", Lines(4)),
    Row(
        "watch k8 --rev=2 --progress-notify --write-out=fields",
        "",
        ShapedLines(4),
    ),
    Row("watch", "", Text),
    Row("watch k --prefix --rev=4 --prev-kv", "", Lines(12)),
    Row("compaction 4", "", Text),
    Row("compaction 4", "", Text),
    Row("compaction 1000", "", Text),
    Row("compaction 6 --physical", "", Text),
    Row("get k1 --rev=5", "", Text),
    Row("get k1 --rev=6", "", Text),
    Row("watch k1 --rev=3", "", Text),
    Row("watch k --prefix --rev=6 --prev-kv", "", Lines(8)),
    Row("endpoint hashkv --write-out=json", "", Json),
    Row("endpoint hashkv --rev=8 --write-out=json", "", Json),
    Row("endpoint hashkv --rev=1000", "", Shape),
    Row("del k2 k6 --prev-kv", "", Text),
    Row("del k6 --from-key --write-out=fields", "", Shape),
    Row("del k --prefix", "", Text),
    Row("get k --prefix", "", Text),
    Row("put l1 1 --lease=10e1", "", Text),
    Row("put l2 2 --lease=10e1 --write-out=json", "", Json),
    Row("get l1 --write-out=json", "", Json),
    Row("lease list", "", Text),
    Row("lease list --write-out=json", "", Json),
    Row("lease grant 1000", "", Shape),
    Row("lease grant 1000 --write-out=json", "", Json),
    Row("lease grant 0", "", Shape),
    Row("lease grant 10000000000", "", Text),
    Row("lease grant nonsense", "", Text),
    Row("lease timetolive 4d2", "", Text),
    Row("lease timetolive 10e1", "", Shape),
    Row("lease timetolive 10e1 --keys", "", Shape),
    Row("lease timetolive 10e1 --keys --write-out=json", "", Json),
    Row("lease timetolive 10e1 --write-out=fields", "", Shape),
    Row("lease keep-alive 10e1", "", Lines(1)),
    Row("lease keep-alive 10e1 --once", "", Text),
    Row("lease keep-alive 10e1 --once --write-out=json", "", Json),
    Row("lease keep-alive 4d2 --once", "", Text),
    Row("lease keep-alive 4d2", "", Text),
    Row("lease revoke 4d2", "", Text),
    Row("lease revoke 10e1", "", Text),
    Row("get l --prefix", "", Text),
    Row("lease list", "", Shape),
    Row("lock name echo held", "", Text),
    Row("elect name value", "", ShapedLines(2)),
    Row("elect name --listen", "", ShapedLines(2)),
    Row("member list", "", Shape),
    Row("member list --write-out=json", "", Json),
    Row("member list --write-out=table", "", Shape),
    Row("member list --write-out=fields", "", Shape),
    Row("member add n9", "", Text),
    Row("member add n9 --peer-urls=nonsense", "", Text),
    Row(
        "member add n9 --learner --peer-urls=http://127.0.0.1:1",
        "",
        Sorted,
    ),
    Row("member add n8 --learner --peer-urls=http://127.0.0.1:3", "", Text),
    Row("member list", "", Sorted),
    Row("member update $LEARNER --peer-urls=http://127.0.0.1:2", "", Shape),
    Row("member promote $LEARNER", "", Text),
    Row("member remove $LEARNER", "", Shape),
    Row("member promote $OWN", "", Text),
    Row("member promote 1", "", Text),
    Row("member remove 1", "", Text),
    Row("member update 1 --peer-urls=http://127.0.0.1:2", "", Text),
    Row("endpoint health", "", Shape),
    Row("endpoint health --cluster", "", Shape),
    Row("endpoint health --write-out=json", "", Json),
    Row("endpoint health --write-out=table", "", Shape),
    Row("endpoint status", "", Shape),
    Row("endpoint status --cluster", "", Shape),
    Row("endpoint status --write-out=json", "", Json),
    Row("endpoint status --write-out=table", "", Shape),
    Row("endpoint status --write-out=fields", "", Shape),
    Row("endpoint hashkv --cluster", "", Shape),
    Row("alarm list", "", Text),
    Row("alarm disarm", "", Text),
    Row("defrag", "", Shape),
    Row("defrag --cluster", "", Shape),
    Row("snapshot save $FILE", "", Shape),
    Row("move-leader 1", "", Text),
    Row("move-leader $OWN", "", Shape),
    Row("downgrade cancel", "", Text),
    Row("downgrade validate nonsense", "", Text),
    Row("downgrade validate 3.1", "", Text),
    Row("auth status", "", Text),
    Row("auth enable", "", Text),
    Row("role add reader", "", Text),
    Row("role add reader", "", Text),
    Row("role add nobody", "", Text),
    Row("role grant-permission reader read k --prefix", "", Text),
    Row("role grant-permission reader readwrite a c", "", Text),
    Row("role grant-permission reader write z", "", Text),
    Row("role grant-permission reader read y --from-key", "", Text),
    Row("role grant-permission reader nonsense k", "", Text),
    Row("role grant-permission nothing read k", "", Text),
    Row("role get reader", "", Text),
    Row("role get reader --write-out=json", "", Json),
    Row("role get nothing", "", Text),
    Row("role revoke-permission reader z", "", Text),
    Row("role revoke-permission reader z", "", Text),
    Row("role list", "", Text),
    Row("user add alice:secret", "", Text),
    Row("user add alice:secret", "", Text),
    Row("user add bob --no-password", "", Text),
    Row("user add carol --new-user-password=secret", "", Text),
    Row("user add dave --interactive=false", "secret\n", Text),
    Row("user grant-role alice reader", "", Text),
    Row("user grant-role alice nothing", "", Text),
    Row("user grant-role nobody reader", "", Text),
    Row("user get alice", "", Text),
    Row("user get alice --detail", "", Text),
    Row("user get alice --write-out=json", "", Json),
    Row("user list", "", Text),
    Row("user passwd alice --interactive=false", "better\n", Text),
    Row("user revoke-role alice nobody", "", Text),
    Row("user delete bob", "", Text),
    Row("user delete bob", "", Text),
    Row("auth enable", "", Text),
    Row("user add root:secret", "", Text),
    Row("user grant-role root root", "", Text),
    Row("auth enable", "", Text),
    Row("auth status --user=root:secret", "", Text),
    Row("put kk vv", "", Text),
    Row("put kk vv --user=root:wrong", "", Text),
    Row("put kk vv --user=nobody:secret", "", Text),
    Row("put kk vv --user=root:secret", "", Text),
    Row("put kk vv --user=alice:better", "", Text),
    Row("get k --prefix --user=alice:better", "", Text),
    Row("get k l --user=alice:better", "", Text),
    Row("get k m --user=alice:better", "", Text),
    Row("get a --prefix --user=alice:better", "", Text),
    Row("put a 1 --user=alice:better", "", Text),
    Row("del a --prev-kv --user=alice:better", "", Text),
    Row(
        "txn --user=alice:better",
        "value(\"z\") = \"1\"\n\nput a 1\n\n\n",
        Text,
    ),
    Row("watch m --user=alice:better", "", Text),
    Row("compaction 1 --user=alice:better", "", Text),
    Row("lease grant 100 --user=alice:better", "", Shape),
    Row("member list --user=alice:better", "", Shape),
    Row("user list --user=alice:better", "", Text),
    Row("user get alice --user=alice:better", "", Text),
    Row("role get reader --user=alice:better", "", Text),
    Row("role get root --user=alice:better", "", Text),
    Row("user delete root --user=root:secret", "", Text),
    Row("role delete root --user=root:secret", "", Text),
    Row("role delete reader --user=root:secret", "", Text),
    Row("get k --prefix --user=alice:better", "", Text),
    Row("auth disable --user=alice:better", "", Text),
    Row("auth disable --user=root:secret", "", Text),
    Row("auth status", "", Text),
    Row("auth disable", "", Text),
    Row("put kk vv", "", Text),
    Row("version", "", Text),
    Row("nonsense", "", Text),
];

/// Fields of JSON that are a server's own.
const OWN_FIELDS: [&str; 16] = [
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
    "id",
    "ttl",
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

/// One of the two servers.
struct Side {
    endpoint: String,
    channel: Channel,
    /// Where `$FILE` is.
    file: String,
}

impl Side {
    async fn of(endpoint: &str, dir: &Path, name: &str) -> Side {
        let address = Channel::from_shared(format!("http://{endpoint}")).unwrap();
        let channel = address.connect().await.unwrap();
        let lease = etcd::LeaseGrantRequest { id: LEASE, ttl: 1000 };
        LeaseClient::new(channel.clone())
            .lease_grant(lease)
            .await
            .unwrap();
        Side {
            endpoint: endpoint.to_owned(),
            channel,
            file: dir.join(name).display().to_string(),
        }
    }

    async fn arguments(&self, args: &str) -> Vec<String> {
        let mut args = args.replace("$FILE", &self.file);
        if args.contains('$') {
            let request = etcd::MemberListRequest { linearizable: true };
            let mut client = ClusterClient::new(self.channel.clone());
            let members = client.member_list(request).await.unwrap().into_inner().members;
            for (name, is_learner) in [("$OWN", false), ("$LEARNER", true)] {
                if let Some(member) = members.iter().find(|member| member.is_learner == is_learner) {
                    args = args.replace(name, &format!("{:x}", member.id));
                }
            }
        }
        args.split(' ').map(str::to_owned).collect()
    }

    async fn run(&self, row: &Row) -> Left {
        let Row(args, stdin, how) = row;
        let mut child = Command::new(tool("etcd-ref-ctl"))
            .args(["--endpoints", &self.endpoint])
            .args(self.arguments(args).await)
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
        let (mut stdout, mut stderr) = (Vec::new(), String::new());
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut errors = child.stderr.take().unwrap();
        let ended = timeout(COMMAND_TIMEOUT, async {
            if let Lines(count) | ShapedLines(count) = how {
                for _ in 0..*count {
                    output.read_until(b'\n', &mut stdout).await.unwrap();
                }
                child.kill().await.unwrap();
            } else {
                output.read_to_end(&mut stdout).await.unwrap();
            }
            errors.read_to_string(&mut stderr).await.unwrap();
            child.wait().await.unwrap()
        });
        let Ok(ended) = ended.await else {
            panic!(
                "etcdctl {args} does not end on {}; so far: {}",
                self.endpoint,
                String::from_utf8_lossy(&stdout)
            )
        };
        Left {
            code: ended.code(),
            stdout: match how {
                AsMessage(decode) => decode(&stdout),
                _ => self.level(std::str::from_utf8(&stdout).unwrap(), how),
            },
            // Lines of its log tell of retries, with times and addresses.
            stderr: self.level(
                &stderr
                    .lines()
                    .filter(|line| !line.starts_with('{'))
                    .map(|line| format!("{line}\n"))
                    .collect::<String>(),
                how,
            ),
        }
    }

    fn level(&self, text: &str, how: &As) -> String {
        let text = text
            .replace(&self.endpoint, "ENDPOINT")
            .replace(&self.file, "FILE");
        let shaped = || text.lines().map(|line| shape(line) + "\n");
        match how {
            Text | Lines(_) | AsMessage(_) => text,
            Shape | ShapedLines(_) => shaped().collect(),
            Sorted => {
                let mut lines: Vec<String> = shaped().collect();
                lines.sort();
                lines.concat()
            }
            Json => match serde_json::from_str(&text) {
                Ok(mut json) => {
                    level_json(&mut json);
                    json.to_string()
                }
                Err(_) => text,
            },
        }
    }
}

/// A message that was printed, with a levelled header.
macro_rules! message {
    ($name:ident, $message:ty) => {
        fn $name(bytes: &[u8]) -> String {
            let mut message = <$message>::decode(bytes).unwrap();
            let header = message.header.as_mut().expect("there is a header");
            (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
            format!("{message:?}")
        }
    };
}
message!(range, etcd::RangeResponse);
message!(put, etcd::PutResponse);
message!(delete, etcd::DeleteRangeResponse);
message!(txn, etcd::TxnResponse);

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
                // etcd's come in no order.
                if name == "keys"
                    && let Value::Array(keys) = value
                {
                    keys.sort_by_key(Value::to_string);
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
    let dir = cluster.dir.path();
    let ours = Side::of(&cluster.members[0].client, dir, "ours").await;
    let theirs = Side::of(&reference.client, dir, "theirs").await;
    let mut differences = Vec::new();
    let mut count = 0;
    for row in SESSION {
        if needed(row.0).is_some_and(|service| !is_supported(service)) {
            continue;
        }
        let (ours, theirs) = tokio::join!(ours.run(row), theirs.run(row));
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
