//! In an etcd's place: clusters by etcd's flags, variables and files; what is refused, and that it writes nothing.

use std::path::Path;

use kvorum_client::proto::v1::Suffrage;
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Member, PATIENCE, client, turn};
use crate::http::request;
use crate::place::{Words, command, program, ran, settings};
use crate::program::eventually;

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Three members with ports of their own, and their names and peer ports.
fn three(dir: &Path) -> (Vec<Member>, Vec<(String, String)>) {
    let members: Vec<Member> = (1..=3)
        .map(|n| Member::new(&format!("infra{n}"), dir, &[]))
        .collect();
    let founders = members
        .iter()
        .map(|member| (member.name.clone(), member.peer.clone()));
    let founders = founders.collect();
    (members, founders)
}

/// Each line of a member's log as JSON.
fn log_of(member: &Member) -> Vec<Value> {
    let text = std::fs::read_to_string(&member.log).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Starts a cluster of three, kills its leader, starts that one again and reads on all.
async fn lives(words: Words) {
    let (turn, dir) = (turn().await, directory());
    let (mut members, founders) = three(dir.path());
    let starts: Vec<_> = members
        .iter()
        .map(|member| {
            let more = [
                ("initial-cluster-token", "etcd-cluster-1"),
                ("initial-cluster-state", "new"),
            ];
            settings(member, &founders, &more)
        })
        .collect();
    for (member, start) in members.iter_mut().zip(&starts) {
        member.start_as(command(dir.path(), words, start));
    }
    let path = dir.path().to_owned();
    let mut cluster = Cluster::of(members, dir, turn);
    for member in &mut cluster.members {
        member.wait_for_status().await;
    }
    let leader = cluster.leader().await;
    client(&cluster.endpoints(0)).put("before", "1").await.unwrap();
    cluster.members[leader].kill().await;
    client(&cluster.endpoints((leader + 1) % 3))
        .put("after", "2")
        .await
        .unwrap();
    // A restart looks like the first start, whatever it says of the cluster's beginning.
    let mut again = starts[leader].clone();
    again.retain(|(flag, _)| !flag.starts_with("initial-cluster"));
    cluster.members[leader].start_as(command(&path, words, &again));
    cluster.members[leader].wait_for_status().await;
    for member in &cluster.members {
        assert!(
            member.client().get("after").await.unwrap().is_some(),
            "{}",
            member.name
        );
    }
    cluster.check_agreement().await;
    for member in &cluster.members {
        for message in [
            "ready to serve client requests",
            "published local member to cluster through raft",
            "enabled capabilities for version",
        ] {
            let what = format!("{} says: {message}", member.name);
            let line = eventually(&what, PATIENCE, async || {
                log_of(member).into_iter().find(|line| line["msg"] == message)
            })
            .await;
            let is_whole = line["level"] == "info" && line["ts"].is_string() && line["caller"].is_string();
            assert!(is_whole, "{line}");
        }
    }
}

#[tokio::test]
async fn three_members_by_etcds_flags() {
    lives(Words::Flags).await;
}

#[tokio::test]
async fn three_members_by_etcds_variables() {
    lives(Words::Variables).await;
}

#[tokio::test]
async fn three_members_by_etcds_file() {
    lives(Words::File).await;
}

/// As etcd's documentation has it: a Procfile of three lines, all in one directory, and the probes.
#[tokio::test]
async fn three_members_of_a_procfile() {
    let (turn, dir) = (turn().await, directory());
    let (mut members, founders) = three(dir.path());
    let cluster: Vec<String> = founders
        .iter()
        .map(|(name, peer)| format!("{name}=http://{peer}"))
        .collect();
    for member in &mut members {
        let line = format!(
            "--name {name} --listen-client-urls http://{client} --advertise-client-urls http://{client} \
             --listen-peer-urls http://{peer} --initial-advertise-peer-urls http://{peer} \
             --initial-cluster-token etcd-cluster-1 --initial-cluster {cluster} --initial-cluster-state new \
             --enable-pprof --logger=zap --log-outputs=stderr",
            name = member.name,
            client = member.client,
            peer = member.peer,
            cluster = cluster.join(","),
        );
        let mut command = tokio::process::Command::new(program(dir.path()));
        crate::program::clean(&mut command);
        command.args(line.split_whitespace()).current_dir(dir.path());
        member.start_as(command);
    }
    let mut cluster = Cluster::of(members, dir, turn);
    for member in &mut cluster.members {
        member.wait_for_status().await;
        // Nothing was said of its directory.
        assert!(
            cluster
                .dir
                .path()
                .join(format!("{}.etcd", member.name))
                .join("identity")
                .exists()
        );
        let log = log_of(member);
        let pprof = log.iter().any(|line| {
            line["level"] == "warn"
                && line["msg"]
                    .as_str()
                    .unwrap()
                    .starts_with("--enable-pprof has no effect")
        });
        assert!(pprof, "{log:?}");
    }
    cluster.leader().await;
    let at = cluster.members[0].client.clone();
    eventually("it is healthy", PATIENCE, async || {
        let (status, body) = request("GET", &at, "/health", b"").await.ok()?;
        (status == 200 && body.contains("\"health\":\"true\"")).then_some(())
    })
    .await;
    let (_, version) = request("GET", &at, "/version", b"").await.unwrap();
    let version: Value = serde_json::from_str(&version).unwrap();
    let told = ran(cluster.dir.path(), &["--version"]).await.stdout;
    let first = format!("etcd Version: {}", version["etcdserver"].as_str().unwrap());
    assert_eq!(told.lines().next(), Some(first.as_str()));
}

/// `member add` by peer URLs alone comes with etcd's API; here by kvorum's own, the joiner by etcd's words.
#[tokio::test]
async fn a_member_joins_an_existing_cluster_and_keeps_its_place() {
    let (turn, dir) = (turn().await, directory());
    let (mut members, founders) = three(dir.path());
    let last = members.pop().unwrap();
    for member in &mut members {
        let start = settings(member, &founders[..2], &[]);
        member.start_as(command(dir.path(), Words::Flags, &start));
    }
    let path = dir.path().to_owned();
    let mut cluster = Cluster::of(members, dir, turn);
    for member in &mut cluster.members {
        member.wait_for_status().await;
    }
    cluster.leader().await;
    client(&cluster.endpoints(0)).put("before", "1").await.unwrap();

    // Before it is announced, it is refused, and leaves nothing that stands in its way.
    let join = settings(&last, &founders, &[("initial-cluster-state", "existing")]);
    let refused = crate::program::Ran::of(command(&path, Words::Flags, &join)).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("no member named infra3 is awaited here"),
        "{refused:?}"
    );

    let endpoints = cluster.endpoints(0).join(",");
    let add = [
        "member",
        "add",
        "infra3",
        "--peer",
        &last.peer,
        "--endpoints",
        &endpoints,
    ];
    crate::program::run(&add).await;
    cluster.members.push(last);
    cluster.members[2].start_as(command(&path, Words::Flags, &join));
    let joined = &mut cluster.members[2];
    eventually("it votes", PATIENCE, async || {
        joined.is_running();
        let promote = ["member", "promote", "infra3", "--endpoints", &endpoints];
        crate::program::try_run(&promote).await;
        let status = joined.status().await?;
        (status.suffrage() == Suffrage::Voter).then_some(())
    })
    .await;
    cluster.members[2].kill().await;
    cluster.members[2].start_as(command(&path, Words::Flags, &join));
    cluster.members[2].wait_for_status().await;
    assert!(cluster.members[2].client().get("before").await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_not_there_yet_is_refused_and_writes_nothing() {
    let dir = directory();
    for (arguments, code, words) in [
        (&["--cert-file=a.pem"][..], 1, "--cert-file is not yet supported"),
        (
            &["--client-cert-auth"],
            1,
            "--client-cert-auth is not yet supported",
        ),
        (
            &["--force-new-cluster"],
            1,
            "--force-new-cluster is not yet supported",
        ),
        (&["--discovery=http://d/x"], 1, "--discovery is not yet supported"),
        (
            &["--auth-token=jwt,sign-method=RS256"],
            1,
            "--auth-token=jwt is not yet supported",
        ),
        (
            &["--feature-gates=InitialCorruptCheck=true"],
            1,
            "is not yet supported",
        ),
        (
            &["--listen-peer-urls=https://127.0.0.1:1"],
            1,
            "TLS is not yet supported",
        ),
        (
            &["grpc-proxy", "start"],
            1,
            "`etcd grpc-proxy` is not yet supported",
        ),
        (&["--election-timeout=100"], 1, "should be at least as 5 times as"),
        (&["--config-file=none.yml"], 1, "none.yml"),
        (&["stray"], 1, "\"stray\" is not a valid flag"),
        (&["--bogus"], 2, "flag provided but not defined: -bogus"),
        (&["--name"], 2, "flag needs an argument: -name"),
    ] {
        let ran = ran(dir.path(), arguments).await;
        assert_eq!(ran.code, Some(code), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(words), "{arguments:?}: {}", ran.stderr);
        let left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "etcd")
            .collect();
        assert!(left.is_empty(), "{arguments:?} left {left:?}");
    }
    let help = ran(dir.path(), &["--help"]).await;
    assert_eq!(help.code, Some(0));
    for group in ["Member:", "Clustering:", "Security:", "Auth:", "Logging:"] {
        assert!(help.stdout.lines().any(|line| line == group), "{group}");
    }
}

/// A directory of etcd is left as it is.
#[tokio::test]
async fn etcds_own_data_is_not_touched() {
    let dir = directory();
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("member/wal")).unwrap();
    std::fs::create_dir(data.join("lost+found")).unwrap();
    let member = Member::new("a", dir.path(), &[]);
    let urls = [
        format!("http://{}", member.client),
        format!("http://{}", member.peer),
    ];
    let arguments = [
        "--data-dir=data",
        &format!("--listen-client-urls={}", urls[0]),
        &format!("--advertise-client-urls={}", urls[0]),
        &format!("--listen-peer-urls={}", urls[1]),
    ];
    let refused = ran(dir.path(), &arguments).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("the data of an etcd, which kvorum does not read"),
        "{refused:?}"
    );
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 2);
}

/// Sockets of their own for gRPC, for HTTP, for metrics, and one in the file system.
#[tokio::test]
async fn each_socket_serves_what_it_is_for() {
    let (_turn, dir) = (turn().await, directory());
    let mut member = Member::new("a", dir.path(), &[]);
    let ports: Vec<String> = (0..2)
        .map(|_| format!("127.0.0.1:{}", crate::program::free_port()))
        .collect();
    let socket = dir.path().join("k.sock");
    let grpc = format!("http://{},unix://{}", member.client, socket.display());
    let mut start = settings(&member, &[("a".to_owned(), member.peer.clone())], &[]);
    start.extend(
        [
            ("listen-client-urls", grpc),
            ("listen-client-http-urls", format!("http://{}", ports[0])),
            ("listen-metrics-urls", format!("http://{}", ports[1])),
            ("host-whitelist", "127.0.0.1,good.example".to_owned()),
        ]
        .map(|(flag, value)| (flag.to_owned(), value)),
    );
    member.start_as(command(dir.path(), Words::Flags, &start));
    member.wait_for_status().await;
    member.client().put("k", "v").await.unwrap();
    let status = async |at: &str, path: &str| request("GET", at, path, b"").await.unwrap().0;
    assert_eq!(status(&member.client, "/version").await, 404, "gRPC alone");
    assert_eq!(status(&ports[0], "/version").await, 200);
    assert_eq!(status(&ports[1], "/version").await, 404);
    assert_eq!(status(&ports[1], "/metrics").await, 200);
    assert_eq!(status(&ports[1], "/livez").await, 200);
    let client = kvorum_client::Client::new(kvorum_client::Options {
        endpoints: vec![ports[0].clone()],
        timeout: std::time::Duration::from_secs(2),
        ..kvorum_client::Options::default()
    })
    .unwrap();
    assert!(client.get("k").await.is_err(), "HTTP alone");
    // The names that it may be called by.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (host, expected) in [("good.example", "HTTP/1.1 200"), ("evil.example", "HTTP/1.1 421")] {
        let mut stream = tokio::net::TcpStream::connect(&ports[0]).await.unwrap();
        let head = format!("GET /version HTTP/1.1\r\nhost: {host}:1\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(expected), "{host}: {answer}");
    }
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream
        .write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "it is for gRPC: {answer}");
    member.terminate();
    assert!(member.end(PATIENCE).await.success());
    assert!(!socket.exists(), "a socket goes with its member");
}
