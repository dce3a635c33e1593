//! Locks and elections on a real cluster: many who want one lock, holders that vanish, a leader that is killed, and
//! the command line.

use std::process::Stdio;

use kvorum_client::proto::etcd;
use kvorum_client::proto::etcd::alarm_request::AlarmAction;
use kvorum_client::proto::etcd::maintenance_client::MaintenanceClient;
use kvorum_client::{Client, Credentials, Options};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::{Cluster, PATIENCE, client};
use crate::program::{Ran, command, eventually, run, try_run};

/// A client that prefers member `at`.
fn at(cluster: &Cluster, at: usize) -> Client {
    client(&cluster.endpoints(at))
}

async fn count(client: &Client) -> u64 {
    let record = client.get("count").await.unwrap();
    record.map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap())
}

/// A sum that is read and written in two steps is right only if nobody else is between them; and the leader of the
/// cluster is killed while they wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_whoever_leads() {
    const CLIENTS: u64 = 12;
    const TURNS: u64 = 5;
    let mut cluster = Cluster::start(3, &[]).await;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = at(&cluster, number as usize % 3);
        clients.spawn(async move {
            let lease = client.lease_grant(120, 0).await.unwrap().id;
            for _ in 0..TURNS {
                let held = timeout(PATIENCE, client.lock("l", lease)).await.unwrap().unwrap();
                let before = count(&client).await;
                tokio::task::yield_now().await;
                client.put("count", (before + 1).to_string()).await.unwrap();
                client.unlock(held.key).await.unwrap();
            }
        });
    }
    let witness = at(&cluster, 0);
    eventually("they are at it", PATIENCE, async || {
        (count(&witness).await >= 10).then_some(())
    })
    .await;
    let leader = cluster.leader().await;
    cluster.members[leader].kill().await;
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    cluster.members[leader].start();
    cluster.members[leader].wait_for_status().await;
    assert_eq!(count(&witness).await, CLIENTS * TURNS);
    cluster.check_agreement().await;
}

#[tokio::test]
async fn a_turn_comes_when_the_holder_is_gone() {
    let mut cluster = Cluster::start(3, &[]).await;
    let (first, second) = (at(&cluster, 0), at(&cluster, 1));
    // The holder's lease is not renewed.
    let short = first.lease_grant(2, 0).await.unwrap().id;
    first.lock("l", short).await.unwrap();
    let long = second.lease_grant(600, 0).await.unwrap().id;
    let held = timeout(PATIENCE, second.lock("l", long)).await.unwrap().unwrap();
    assert_eq!(held.key, format!("l/{long:x}"));

    // The leader is killed while somebody waits, at it or at another member.
    let leader = cluster.leader().await;
    let mut waiting = JoinSet::new();
    for number in 0..3 {
        let client = at(&cluster, (leader + number) % 3);
        waiting.spawn(async move {
            let lease = client.lease_grant(600, 0).await.unwrap().id;
            let held = client.lock("l", lease).await.unwrap();
            client.unlock(held.key).await.unwrap();
        });
    }
    let other = at(&cluster, (leader + 1) % 3);
    let queued = async || {
        let (key, range_end) = kvorum_client::prefix_range(b"l/");
        let request = kvorum_client::proto::etcd::RangeRequest {
            key,
            range_end,
            count_only: true,
            ..Default::default()
        };
        other.range(request).await.unwrap().count
    };
    eventually("all three wait", PATIENCE, async || {
        (queued().await == 4).then_some(())
    })
    .await;
    cluster.members[leader].kill().await;
    other.unlock(held.key).await.unwrap();
    while let Some(ended) = timeout(PATIENCE, waiting.join_next()).await.unwrap() {
        ended.unwrap();
    }
    assert_eq!(queued().await, 0);
}

#[tokio::test]
async fn observers_see_the_leaders_through_the_loss_of_a_member() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    // One that asks the member that will be killed first, and one that asks another.
    let mut observers = [
        at(&cluster, leader).observe("e"),
        at(&cluster, (leader + 1) % 3).observe("e"),
    ];
    let candidate = at(&cluster, (leader + 1) % 3);
    let lease = candidate.lease_grant(600, 0).await.unwrap().id;
    let key = candidate
        .campaign("e", lease, "before")
        .await
        .unwrap()
        .leader
        .unwrap();
    let mut sees = async |expected: &str| {
        for observer in &mut observers {
            let seen = timeout(PATIENCE, observer.next()).await.unwrap().unwrap();
            assert_eq!(seen.kv.unwrap().value, expected);
        }
    };
    sees("before").await;
    cluster.members[leader].kill().await;
    candidate.proclaim(key.clone(), "after").await.unwrap();
    sees("after").await;
    candidate.resign(key.clone()).await.unwrap();
    assert!(candidate.proclaim(key, "late").await.is_err());
    candidate.campaign("e", lease, "again").await.unwrap();
    sees("again").await;
}

/// A command that runs on, line by line.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(args: &[&str]) -> Running {
        let mut command = command(args);
        command.stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines }
    }

    async fn line(&mut self) -> String {
        timeout(PATIENCE, self.lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// SIGTERM; it must end well.
    async fn end(mut self) {
        let pid = Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

#[tokio::test]
async fn locks_and_elections_at_the_command_line() {
    let cluster = Cluster::start(1, &[]).await;
    let endpoint = cluster.members[0].client.clone();
    let to = ["--endpoints", endpoint.as_str()];

    let mut holder = Running::start(&[&["lock", "l"], &to[..]].concat());
    let key = holder.line().await;
    assert!(key.starts_with("l/"), "{key}");
    let mut waiting = Running::start(&[&["lock", "l", "-o", "json"], &to[..]].concat());
    let listed = async || run(&[&["ls", "l/"], &to[..]].concat()).await.lines().count();
    eventually("the second waits", PATIENCE, async || {
        (listed().await == 2).then_some(())
    })
    .await;
    holder.end().await;
    let line: serde_json::Value = serde_json::from_str(&waiting.line().await).unwrap();
    assert_eq!(
        line["key"],
        format!("l/{}", line["lease"].as_str().unwrap().trim_start_matches('0'))
    );
    waiting.end().await;
    assert_eq!(listed().await, 0);
    assert_eq!(
        run(&[&["lease", "list"], &to[..]].concat()).await,
        "",
        "leases are ended"
    );

    // A command under the lock: its output, its environment, its exit code.
    let script = "echo $KVORUM_LOCK_KEY $KVORUM_LOCK_REVISION; test $ETCD_LOCK_KEY = $KVORUM_LOCK_KEY || exit 1; exit 7";
    let ran = try_run(&[&["lock", "l"], &to[..], &["--", "sh", "-c", script]].concat()).await;
    assert_eq!(ran.code, Some(7), "{ran:?}");
    assert!(ran.stdout.starts_with("l/") && ran.stderr.is_empty(), "{ran:?}");
    let ran = try_run(&[&["lock", "l"], &to[..], &["--", "/no/such/program"]].concat()).await;
    ran.failed(1, &["cannot run /no/such/program"]);
    assert_eq!(listed().await, 0);

    // A lease that is taken away takes the lock, and the command with it.
    let mut running =
        Running::start(&[&["lock", "l", "--ttl", "2"], &to[..], &["--", "sleep", "1000"]].concat());
    let lease = eventually("a lease", PATIENCE, async || {
        let leases = run(&[&["lease", "list"], &to[..]].concat()).await;
        let is_held = listed().await == 1;
        leases.lines().next().filter(|_| is_held).map(str::to_owned)
    })
    .await;
    run(&[&["lease", "revoke", lease.as_str()], &to[..]].concat()).await;
    let status = timeout(PATIENCE, running.child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(1));

    let mut listener = Running::start(&[&["elect", "e", "-l"], &to[..]].concat());
    let mut leader = Running::start(&[&["elect", "e", "hello"], &to[..]].concat());
    let said = leader.line().await;
    assert!(said.starts_with("e/") && said.ends_with("\thello"), "{said}");
    assert_eq!(listener.line().await, said);
    leader.end().await;
    listener.end().await;
    try_run(&[&["elect", "e"], &to[..]].concat())
        .await
        .failed(2, &["VALUE"]);
}

#[tokio::test]
async fn history_trees_compaction_and_alarms_at_the_command_line() {
    let cluster = Cluster::start(1, &[]).await;
    let endpoint = cluster.members[0].client.clone();
    let to = ["--endpoints", endpoint.as_str()];
    let call = async |args: &[&str]| run(&[args, &to].concat()).await;
    let tried = async |args: &[&str]| -> Ran { try_run(&[args, &to].concat()).await };

    for value in ["1", "2"] {
        call(&["put", "a/k", value]).await;
    }
    call(&["del", "a/k"]).await;
    call(&["put", "a/b/c", "x"]).await;
    call(&["put", "a/k", "3"]).await;
    let first: i64 = call(&["history", "a/k"])
        .await
        .split('\t')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let line = |offset: i64, rest: &str| format!("{}\t{rest}\n", first + offset);
    let last = line(4, "PUT\t3");
    let all = [
        line(0, "PUT\t1"),
        line(1, "PUT\t2"),
        line(2, "DELETE"),
        last.clone(),
    ]
    .concat();
    assert_eq!(call(&["history", "a/k"]).await, all);
    let json = call(&["history", "a/k", "-o", "json"]).await;
    let records: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.len(), 4);
    assert_eq!(
        (&records[2]["type"], &records[3]["version"]),
        (&"delete".into(), &1.into())
    );

    assert_eq!(call(&["tree"]).await, "a/\n  b/\n    c\n  k\n");
    assert_eq!(call(&["tree", "a/b"]).await, "a/\n  b/\n    c\n");
    let tree: serde_json::Value = serde_json::from_str(&call(&["tree", "-o", "json"]).await).unwrap();
    assert_eq!(tree["children"][0]["children"][1]["name"], "k");
    assert_eq!(
        call(&["get", "a/k", "--rev", &(first + 1).to_string()]).await,
        "2\n"
    );

    // Bytes as they are, whatever is in them.
    call(&["put", "raw/a\nb", "1\n\n"]).await;
    assert_eq!(call(&["get", "raw/a\nb", "-o", "raw"]).await, "1\n\n");
    assert_eq!(
        call(&["get", "raw/", "--prefix", "-o", "raw"]).await,
        "raw/a\nb\x001\n\n\0"
    );
    assert_eq!(call(&["ls", "raw/", "-o", "raw"]).await, "raw/a\nb\0");
    tried(&["put", "a/k", "4", "-o", "raw"])
        .await
        .failed(2, &["`get` and `ls`"]);

    // What is overwritten before the compaction is gone, what was valid then is still there.
    let at = (first + 1).to_string();
    assert_eq!(call(&["compact", &at, "--physical"]).await, "OK\n");
    assert_eq!(
        call(&["history", "a/k"]).await,
        [line(1, "PUT\t2"), line(2, "DELETE"), last.clone()].concat()
    );
    tried(&["compact", &at]).await.failed(1, &["compacted"]);
    tried(&["compact", "999999"]).await.failed(1, &["in the future"]);
    let json: serde_json::Value =
        serde_json::from_str(&call(&["compact", &(first + 4).to_string(), "-o", "json"]).await).unwrap();
    assert_eq!(json["compacted"], first + 4);
    assert_eq!(call(&["history", "a/k"]).await, last);
    tried(&["history", "never"]).await.failed(3, &["never"]);

    assert_eq!(call(&["alarm", "list"]).await, "");
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{endpoint}")).unwrap();
    let mut maintenance = MaintenanceClient::new(channel.connect().await.unwrap());
    let raise = etcd::AlarmRequest {
        action: AlarmAction::Activate.into(),
        member_id: 7,
        alarm: etcd::AlarmType::Corrupt.into(),
    };
    maintenance.alarm(raise).await.unwrap();
    assert_eq!(call(&["alarm", "list"]).await, "0000000000000007\tCORRUPT\n");
    let json: serde_json::Value =
        serde_json::from_str(&call(&["alarm", "disarm", "-o", "json"]).await).unwrap();
    assert_eq!(
        json["alarms"],
        serde_json::json!([{"member": "0000000000000007", "alarm": "CORRUPT"}])
    );
    assert_eq!(call(&["alarm", "list"]).await, "");
}

/// Once, locks and elections were asked for without the caller's name: where users were on, nobody got any.
#[tokio::test]
async fn who_logs_in_gets_locks_and_leads() {
    let cluster = Cluster::start(1, &[]).await;
    let at = ["--endpoints", &cluster.members[0].client];
    let by_root = [at[0], at[1], "--user", "root:secret"];
    for args in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        run(&[args, &at].concat()).await;
    }
    let options = Options {
        endpoints: vec![at[1].to_owned()],
        credentials: Some(Credentials {
            user: "root".to_owned(),
            password: "secret".to_owned(),
        }),
        ..Options::default()
    };
    let client = Client::new(options).unwrap();
    let lease = client.lease_grant(120, 0).await.unwrap().id;
    let held = timeout(PATIENCE, client.lock("l", lease)).await.unwrap().unwrap();
    client.unlock(held.key).await.unwrap();

    // Its token is none any more.
    run(&[&["auth", "disable"][..], &by_root].concat()).await;
    run(&[&["auth", "enable"][..], &at].concat()).await;
    let won = client.campaign("e", lease, "me");
    timeout(PATIENCE, won).await.unwrap().unwrap();
    run(&[&["auth", "disable"][..], &by_root].concat()).await;
    run(&[&["auth", "enable"][..], &at].concat()).await;
    let mut observer = client.observe("e");
    let leads = timeout(PATIENCE, observer.next()).await.unwrap().unwrap();
    assert_eq!(&leads.kv.unwrap().value[..], b"me");

    run(&[&["lock"][..], &by_root, &["l", "--", "true"]].concat()).await;
    try_run(&[&["lock"][..], &at, &["l", "--", "true"]].concat())
        .await
        .failed(1, &["authentication is on"]);
}
