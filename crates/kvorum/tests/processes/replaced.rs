//! The program in the place of the three systems that it replaces: started by their names, flags, variables and
//! files alone, each cluster outlives its leader and takes it back.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvorum_client::proto::v1::Suffrage;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use crate::cluster::{Cluster, Member, PATIENCE, client, turn};
use crate::http::request;
use crate::program::{Ran, binary, clean, eventually, free_port, run};

/// How a replaced program is started.
#[derive(Clone, Default)]
struct Start {
    /// The name of the program, in its directory; empty: its own.
    name: &'static str,
    args: Vec<String>,
    variables: Vec<(String, String)>,
    /// Where it is started.
    directory: PathBuf,
}

impl Start {
    fn variables(mut self, pairs: &[(&str, &str)]) -> Start {
        self.variables.extend(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        self
    }

    fn args(mut self, args: &[&str]) -> Start {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    fn command(&self) -> Command {
        let program = match self.name {
            "" => binary(),
            name => self.directory.join(name),
        };
        if !self.name.is_empty() && !program.exists() {
            symlink(binary(), &program).unwrap();
        }
        let mut command = Command::new(program);
        clean(&mut command);
        command
            .args(&self.args)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .kill_on_drop(true);
        command
    }

    async fn run(&self) -> Ran {
        Ran::of(self.command()).await
    }
}

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A member of whom only the addresses matter here: its start says the rest.
fn member(name: &str, dir: &Path, client: String, peer: String) -> Member {
    let mut member = Member::new(name, dir, &[]);
    (member.client, member.peer) = (client, peer);
    member
}

fn start(member: &mut Member, start: &Start) {
    member.start_as(start.command());
}

/// Waits until a member votes.
async fn votes(member: &mut Member) -> u64 {
    eventually(&format!("{} votes", member.name), PATIENCE, async || {
        member.is_running();
        let status = member.status().await?;
        (status.suffrage() == Suffrage::Voter).then_some(status.member_id)
    })
    .await
}

/// Kills the leader, writes and reads through all others, and starts it again.
async fn outlives_its_leader(cluster: &mut Cluster, starts: &[Start]) {
    client(&cluster.endpoints(0)).put("before", "1").await.unwrap();
    let leader = cluster.leader().await;
    cluster.members[leader].kill().await;
    for n in 1..cluster.members.len() {
        let at = (leader + n) % cluster.members.len();
        let other = cluster.members[at].client();
        other.put(format!("after/{n}"), "2").await.unwrap();
        assert!(other.get("before").await.unwrap().is_some());
    }
    start(&mut cluster.members[leader], &starts[leader]);
    cluster.members[leader].wait_for_status().await;
    cluster.check_agreement().await;
}

#[tokio::test]
async fn three_members_by_the_flags_of_raft_kv_store() {
    let (turn, dir) = (turn().await, directory());
    let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
    let mut members = Vec::new();
    let mut starts = Vec::new();
    for (n, (port, http)) in ports.iter().enumerate() {
        let others = ports.iter().enumerate().filter(|(other, _)| *other != n);
        // All three forms that need no name service; itself in the list does no harm.
        let peers: Vec<String> = others
            .map(|(other, (port, _))| match (n + other) % 2 {
                0 => format!("127.0.0.1:{port}"),
                _ => format!("node-{}=localhost:{port}", other + 1),
            })
            .chain([format!("node-{}=127.0.0.1:{port}", n + 1)])
            .collect();
        let start = Start {
            name: "raft-kv-store",
            directory: dir.path().to_owned(),
            ..Start::default()
        };
        starts.push(start.args(&[
            &format!("--id=node-{}", n + 1),
            "-port",
            &port.to_string(),
            &format!("--http-port={http}"),
            "-data-dir=data",
            &format!("--peers={}", peers.join(",")),
        ]));
        let grpc = format!("127.0.0.1:{port}");
        members.push(member(&format!("node-{}", n + 1), dir.path(), grpc.clone(), grpc));
    }
    for (member, how) in members.iter_mut().zip(&starts) {
        start(member, how);
    }
    for member in &mut members {
        votes(member).await;
    }
    let mut cluster = Cluster::of(members, dir, turn);
    outlives_its_leader(&mut cluster, &starts).await;
    assert!(cluster.dir.path().join("data/node-2/identity").exists());
    for (_, http) in &ports {
        let at = format!("127.0.0.1:{http}");
        let (status, metrics) = request("GET", &at, "/metrics", b"").await.unwrap();
        assert!(status == 200 && metrics.contains("raft_node_state"), "{metrics}");
    }

    let sent = run(&["send", "300", "--endpoints", &cluster.endpoints(0).join(",")]).await;
    let leader = cluster.leader().await;
    let through = format!("300 pairs written through {}", cluster.members[leader].client);
    assert!(sent.starts_with(&through), "{sent}");
    let keys = cluster.members[leader].status().await.unwrap().keys;
    assert!(keys > 300, "{keys}");

    // With peers and clients on one port, a graceful stop is as quick as elsewhere.
    cluster.members[0].terminate();
    let status = cluster.members[0].end(Duration::from_secs(5)).await;
    assert!(status.success(), "{status}");

    // Ports that are asked for must be had.
    let taken = ports[1].1.to_string();
    let lone = |args: &[&str]| {
        let start = Start {
            name: "raft-kv-store",
            directory: cluster.dir.path().to_owned(),
            ..Start::default()
        };
        let free = [free_port().to_string(), free_port().to_string()];
        let all = [
            &[
                "--id=x",
                "--data-dir=data",
                "--port",
                &free[0],
                "--http-port",
                &free[1],
            ],
            args,
        ]
        .concat();
        start.args(&all)
    };
    let ran = lone(&["--metrics-port", &taken]).run().await;
    let words = ["--metrics-port", &taken, "in use by another process"];
    ran.failed(1, &words);
    assert!(!ran.error().contains("listen-client"), "{ran:?}");
    assert!(!cluster.dir.path().join("data/x").exists());
    let ran = lone(&["--peers=a=h:1,b="]).run().await;
    ran.failed(2, &["--peers: `b=` is not a member"]);
}

#[tokio::test]
async fn five_members_by_the_variables_of_raft_kv() {
    let (turn, dir) = (turn().await, directory());
    // Every member has an address of its own, as a container has, and so its ports 7000 and 6000.
    let seed = std::process::id();
    let host = |n: usize| format!("127.{}.{}.{}", 1 + seed % 250, seed / 250 % 250, n + 1);
    let list: Vec<String> = (0..5).map(|n| format!("{}@{}:8000", n + 1, host(n))).collect();
    let mut members = Vec::new();
    let mut starts = Vec::new();
    for n in 0..5 {
        let own = dir.path().join(format!("raft-kv-{}", n + 1));
        std::fs::create_dir(&own).unwrap();
        let start = Start {
            directory: own.clone(),
            ..Start::default()
        };
        starts.push(start.variables(&[
            ("RAFT_ID", &(n + 1).to_string()),
            ("RAFT_CLUSTER", &list.join(",")),
            ("RAFT_COMMIT_PERIOD", "50"),
            ("RAFT_START_DELAY", "100"),
            ("RAFT_ELECTION_TIMEOUT", "600"),
            ("RAFT_REQUEST_VOTE_TIMEOUT", "1000"),
            ("RAFT_APPEND_ENTRIES_TIMEOUT", "500"),
            ("RAFT_STALE_PERIOD", "1000"),
            ("RAFT_HEARTBEAT_BATCH_SIZE", "1000"),
            ("LOG_LEVEL", "INFO"),
            ("BADGER_ENTRY_PATH", "data/entry"),
            ("BADGER_KV_PATH", "kv"),
            ("BADGER_STATE_PATH", "data/state"),
        ]));
        let grpc = format!("{}:8000", host(n));
        members.push(member(&(n + 1).to_string(), dir.path(), grpc.clone(), grpc));
    }
    for (member, how) in members.iter_mut().zip(&starts) {
        start(member, how);
    }
    for member in &mut members {
        votes(member).await;
    }
    let mut cluster = Cluster::of(members, dir, turn);
    outlives_its_leader(&mut cluster, &starts).await;
    let (status, _) = request(
        "POST",
        &format!("{}:7000", host(1)),
        "/kv",
        br#"{"key":"k","value":"v"}"#,
    )
    .await
    .unwrap();
    assert_eq!(status, 200);
    let found = request("GET", &format!("{}:7000", host(4)), "/kv/k", b"")
        .await
        .unwrap();
    assert_eq!(found, (200, r#"{"value":"v"}"#.to_owned()));
    let (status, _) = request("GET", &format!("{}:6000", host(2)), "/raft/info", b"")
        .await
        .unwrap();
    assert_eq!(status, 200);
    for (path, is_there) in [
        ("data/entry/lock", true),
        ("data/entry/vote", false),
        ("data/state/vote", true),
        ("data/state/identity", true),
        ("kv/CURRENT", true),
    ] {
        let path = cluster.dir.path().join("raft-kv-1").join(path);
        assert_eq!(path.exists(), is_there, "{}", path.display());
    }
    let log = std::fs::read_to_string(&cluster.members[0].log).unwrap();
    assert!(log.contains("RAFT_COMMIT_PERIOD does nothing"), "{log}");
    asks_anew_where_nothing_is_answered(&mut cluster).await;
}

/// A member that stands still answers nothing, and its connections stay: after the time that is set they are opened
/// anew. Once it goes on, it catches up.
async fn asks_anew_where_nothing_is_answered(cluster: &mut Cluster) {
    let leader = cluster.leader().await;
    let still = (leader + 1) % cluster.members.len();
    cluster.members[still].signal(Signal::STOP);
    let writer = cluster.members[leader].client();
    // Whoever leads: on a busy machine that may change.
    let logs: Vec<PathBuf> = cluster.members.iter().map(|member| member.log.clone()).collect();
    eventually("a connection is opened anew", PATIENCE, async || {
        writer.put("while/one/stands/still", "1").await.unwrap();
        let told = |log: &PathBuf| {
            let log = std::fs::read_to_string(log).unwrap();
            log.contains("not answered for 500ms: the connection is opened anew")
        };
        logs.iter().any(told).then_some(())
    })
    .await;
    cluster.members[still].signal(Signal::CONT);
    cluster.check_agreement().await;
}

/// Once, messages named kvorum's own settings, which whoever starts it in another system's words never wrote.
async fn mistakes_are_told_in_the_words_of_who_made_them(of: &impl Fn(&[(&str, &str)]) -> Start) {
    let two = ("RAFT_CLUSTER", "1@127.0.0.1:1,2@127.0.0.1:2");
    let raft_kv = async |more: &[(&str, &str)], words: &[&str]| {
        let start = of(&[("RAFT_ID", "1"), two]).variables(more).args(&["config"]);
        let ran = start.run().await;
        ran.failed(2, words);
        for ours in ["append-entries-max", "initial-cluster"] {
            assert!(!ran.error().contains(ours), "{ran:?}");
        }
    };
    raft_kv(
        &[("RAFT_HEARTBEAT_BATCH_SIZE", "0")],
        &["RAFT_HEARTBEAT_BATCH_SIZE must be greater than 0"],
    )
    .await;
    raft_kv(
        &[("RAFT_CLUSTER", "1@h:1,1@h:2")],
        &["RAFT_CLUSTER names `1` twice"],
    )
    .await;
    raft_kv(
        &[("RAFT_CLUSTER", "1@h:1,2@h:1")],
        &["RAFT_CLUSTER gives h:1 to two"],
    )
    .await;
    raft_kv(&[("RAFT_CLUSTER", "1@h:1,2@h:0")], &["RAFT_CLUSTER: `2@h:0`"]).await;
    raft_kv(
        &[("RAFT_CLUSTER", "1@h:1,,2@h:2")],
        &["RAFT_CLUSTER: item 2 of", "is empty"],
    )
    .await;

    let store = |args: &[&str]| of(&[]).args(&[&["config"], args].concat());
    let cases = [
        (&["--peers=a=h:1,a=h:2"][..], "--peers names `a` twice"),
        (&["--peers=a=h:1,"], "--peers: item 2 of"),
        (&["--peers=a=h:0"], "--peers: `a=h:0`"),
        (&["--port=0"], "--port"),
        (
            &["--port=7", "--http-port=7"],
            "--http-port: 7 is the port of --port, too",
        ),
        (&["--id=a b"], "--id `a b` must be"),
    ];
    for (args, words) in cases {
        store(args).run().await.failed(2, &[words]);
    }
    let misspelt = store(&["--id=a"]).variables(&[("RAFT_FOO", "1")]);
    let ran = misspelt.run().await;
    assert!(
        ran.code == Some(0) && ran.stderr.contains("RAFT_FOO is unknown"),
        "{ran:?}"
    );

    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let dist_kv = of(&[
        ("SERVICE_RAFT_NODE_ID", "node1"),
        ("SERVICE_RAFT_LEADER", "true"),
        ("SERVICE_RAFT_STORE_DIR", "never-made"),
    ]);
    let peer = format!("127.0.0.1:{}", free_port());
    let both = [("SERVER_ADDRESS", &*taken), ("SERVICE_RAFT_ADDR", &*peer)];
    let words = [
        &*format!("SERVER_ADDRESS {taken} is in use"),
        "another port with SERVER_ADDRESS",
    ];
    dist_kv.clone().variables(&both).run().await.failed(1, &words);
    let both = [("SERVER_ADDRESS", &*peer), ("SERVICE_RAFT_ADDR", &*taken)];
    let words = [&*format!("SERVICE_RAFT_ADDR {taken} is in use")];
    dist_kv.variables(&both).run().await.failed(1, &words);
}

/// The variables of a member of dist-kv-store.
fn node(name: &str, dir: &Path, more: &[(&str, &str)]) -> (Member, Vec<(String, String)>) {
    let (http, raft) = (free_port(), free_port());
    let store = dir.join(format!("{name}-data"));
    let own = [
        ("SERVER_ADDRESS", format!("127.0.0.1:{http}")),
        ("SERVICE_RAFT_ADDR", format!("localhost:{raft}")),
        ("SERVICE_RAFT_NODE_ID", name.to_owned()),
        ("SERVICE_RAFT_STORE_DIR", store.display().to_string()),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    let more = more
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let (client, peer) = (format!("127.0.0.1:{http}"), format!("localhost:{raft}"));
    let mut member = member(name, dir, client, peer);
    member.data_dir = store;
    (member, own.into_iter().chain(more).collect())
}

fn as_file(variables: &[(String, String)]) -> String {
    variables
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}

async fn post(at: &str, key: &str) -> u16 {
    let body = format!(r#"{{"key":"{key}","value":"v"}}"#);
    request("POST", at, "/key", body.as_bytes())
        .await
        .map_or(0, |(status, _)| status)
}

#[tokio::test]
async fn three_members_of_dist_kv_store_join_each_other() {
    let (turn, dir) = (turn().await, directory());
    let path = dir.path().to_owned();
    // Each is told in another way: by a `.env` that lies there, by the environment, by a file that is named.
    let (first, variables) = node("node1", &path, &[("SERVICE_RAFT_LEADER", "true")]);
    let cwd = path.join("cwd");
    std::fs::create_dir(&cwd).unwrap();
    std::fs::write(cwd.join(".env"), as_file(&variables)).unwrap();
    let first_start = Start {
        directory: cwd,
        ..Start::default()
    };
    let (second, variables) = node(
        "node2",
        &path,
        &[("SERVICE_RAFT_JOIN_ADDR", first.client.as_str())],
    );
    let second_start = Start {
        directory: path.clone(),
        variables,
        ..Start::default()
    };
    let (third, variables) = node(
        "node3",
        &path,
        &[("SERVICE_RAFT_JOIN_ADDR", second.client.as_str())],
    );
    std::fs::write(path.join(".env3"), as_file(&variables)).unwrap();
    let third_start = Start {
        directory: path.clone(),
        ..Start::default()
    };
    let starts = [
        first_start,
        second_start,
        third_start.args(&["--env-file", ".env3"]),
    ];
    let mut members = vec![first, second, third];
    for (member, how) in members.iter_mut().zip(&starts) {
        start(member, how);
        // The first answer of all comes from a voter.
        let status = member.wait_for_status().await;
        assert_eq!(status.suffrage(), Suffrage::Voter, "{}", member.name);
    }
    let log = std::fs::read_to_string(&members[0].log).unwrap();
    assert!(log.contains("variables are read from .env"), "{log}");
    let mut cluster = Cluster::of(members, dir, turn);
    assert_eq!(post(&cluster.members[2].client, "a").await, 201);
    outlives_its_leader(&mut cluster, &starts).await;

    // One comes back with an empty directory: as its own successor.
    let lost = (cluster.leader().await + 1) % 3;
    let old = votes(&mut cluster.members[lost]).await;
    cluster.members[lost].kill().await;
    std::fs::remove_dir_all(&cluster.members[lost].data_dir).unwrap();
    let running = cluster.members[(lost + 1) % 3].client.clone();
    let again = starts[lost].clone().variables(&[
        ("SERVICE_RAFT_LEADER", "false"),
        ("SERVICE_RAFT_JOIN_ADDR", &running),
    ]);
    start(&mut cluster.members[lost], &again);
    let new = votes(&mut cluster.members[lost]).await;
    assert_ne!(new, old, "an ID is never used again");
    let members = cluster.members[lost].client().members().await.unwrap().members;
    assert_eq!(members.len(), 3, "{members:?}");
    assert_eq!(post(&cluster.members[lost].client, "a").await, 409);
    cluster.check_agreement().await;
    the_first_one_comes_back_too(&mut cluster, &starts[0]).await;
}

/// Once, the first member founded a second cluster when its directory was lost: its environment tells it to found one
/// and names nobody whom it could ask. But the others call it.
async fn the_first_one_comes_back_too(cluster: &mut Cluster, how: &Start) {
    let before = votes(&mut cluster.members[0]).await;
    let uuid = cluster.members[1].status().await.unwrap().cluster_uuid;
    cluster.members[0].kill().await;
    std::fs::remove_dir_all(&cluster.members[0].data_dir).unwrap();
    start(&mut cluster.members[0], how);
    let after = votes(&mut cluster.members[0]).await;
    assert_ne!(after, before, "an ID is never used again");
    assert_eq!(cluster.members[0].status().await.unwrap().cluster_uuid, uuid);
    assert_eq!(post(&cluster.members[0].client, "a").await, 409);
    let members = cluster.members[0].client().members().await.unwrap().members;
    assert_eq!(members.len(), 3, "{members:?}");
    cluster.check_agreement().await;
}

#[tokio::test]
async fn one_member_of_dist_kv_store_for_trying_out() {
    let (_turn, dir) = (turn().await, directory());
    let at = format!("127.0.0.1:{}", free_port());
    let start_alone = Start {
        directory: dir.path().to_owned(),
        ..Start::default()
    };
    let temporary = dir.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let start_alone = start_alone.variables(&[
        ("SERVICE_DEBUG", "true"),
        ("SERVICE_RAFT_NODE_ID", "node1"),
        ("SERVER_ADDRESS", &at),
        ("TMPDIR", temporary.to_str().unwrap()),
    ]);
    let mut lone = member("node1", dir.path(), at.clone(), String::new());
    start(&mut lone, &start_alone);
    lone.wait_for_status().await;
    eventually("it takes writes", PATIENCE, async || {
        (post(&at, "k").await == 201).then_some(())
    })
    .await;
    lone.terminate();
    assert!(lone.end(PATIENCE).await.success());
    let left = std::fs::read_dir(&temporary).unwrap().count();
    assert_eq!(left, 0, "its data is deleted");
}

#[tokio::test]
async fn starts_that_cannot_be() {
    let dir = directory();
    let of = |pairs: &[(&str, &str)]| {
        let start = Start {
            directory: dir.path().to_owned(),
            ..Start::default()
        };
        start.variables(pairs)
    };
    let raft_kv = [("RAFT_ID", "1"), ("RAFT_CLUSTER", "1@127.0.0.1:1,2@127.0.0.1:2")];
    let both = of(&[("RAFT_ID", "1"), ("SERVICE_RAFT_NODE_ID", "node1")]);
    both.run().await.failed(
        2,
        &["RAFT_ID", "raft-kv", "SERVICE_RAFT_NODE_ID", "dist-kv-store"],
    );
    let both = of(&raft_kv).args(&["--id=a"]);
    both.run().await.failed(2, &["RAFT_ID", "--id", "raft-kv-store"]);
    // Names that many programs have tell no family.
    let config = of(&raft_kv)
        .variables(&[("SERVER_ADDRESS", "x"), ("RAFT_KLUSTER", "x")])
        .args(&["config"]);
    let ran = config.run().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("RAFT_KLUSTER is unknown"), "{ran:?}");
    assert!(ran.stdout.contains("# environment RAFT_ID"), "{ran:?}");
    let malformed = of(&[("RAFT_ID", "1"), ("RAFT_CLUSTER", "1@h:1,2h:2")]);
    malformed
        .run()
        .await
        .failed(2, &["RAFT_CLUSTER: `2h:2` is not a member", "ID@HOST:PORT"]);
    let missing = of(&[]).args(&["--env-file", "nowhere.env"]);
    missing.run().await.failed(2, &["nowhere.env", "--env-file"]);

    mistakes_are_told_in_the_words_of_who_made_them(&of).await;

    // Neither the first member nor told whom to join.
    let (mut member, variables) = node("node2", dir.path(), &[]);
    let mut neither = of(&[]);
    neither.variables = variables.clone();
    neither
        .run()
        .await
        .failed(1, &["SERVICE_RAFT_LEADER=true", "SERVICE_RAFT_JOIN_ADDR"]);
    // Nobody is there to join.
    let nobody = format!("127.0.0.1:{}", free_port());
    let mut alone = of(&[
        ("SERVICE_RAFT_JOIN_ADDR", nobody.as_str()),
        ("SERVICE_RAFT_TIMEOUT", "1s"),
    ]);
    alone.variables.extend(variables);
    let begun = tokio::time::Instant::now();
    let ran = alone.run().await;
    ran.failed(
        1,
        &[
            "could not join through",
            &nobody,
            "within 1 s",
            "SERVICE_RAFT_JOIN_ADDR",
        ],
    );
    let took = begun.elapsed();
    assert!(
        (Duration::from_millis(300)..Duration::from_secs(20)).contains(&took),
        "{took:?}"
    );
    assert!(
        !member.data_dir.join("identity").exists(),
        "nothing stands in the way of the next try"
    );

    // Who is told to stop meanwhile does not go on trying.
    let patient = alone.variables(&[("SERVICE_RAFT_TIMEOUT", "10m")]);
    start(&mut member, &patient);
    eventually("it tries", PATIENCE, async || {
        let log = std::fs::read_to_string(&member.log).unwrap();
        log.contains("cannot join through").then_some(())
    })
    .await;
    member.terminate();
    assert!(member.end(Duration::from_secs(10)).await.success());
}
