//! The unmodified `etcdctl` on members in an etcd's place: who they are, changes of the membership, learners, alarms,
//! compaction by itself, and a copy of a real etcd.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::cluster::{Cluster, Member, PATIENCE, turn};
use crate::http::request;
use crate::place::{Words, command, settings};
use crate::program::{Ran, eventually};
use crate::reference::{Reference, tool};

async fn etcdctl(endpoints: &str, arguments: &[&str]) -> Ran {
    let mut command = Command::new(tool("etcd-ref-ctl"));
    command
        .args(["--endpoints", endpoints])
        .args(arguments)
        .kill_on_drop(true);
    Ran::of(command).await
}

async fn done(endpoints: &str, arguments: &[&str]) -> String {
    let ran = etcdctl(endpoints, arguments).await;
    assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
    ran.stdout
}

async fn json(endpoints: &str, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--write-out=json"]].concat();
    let text = done(endpoints, &arguments).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Fails until it is done: the cluster may be about to elect, or a member to catch up.
async fn at_last(endpoints: &str, arguments: &[&str]) -> String {
    eventually(&format!("etcdctl {arguments:?}"), PATIENCE, async || {
        let ran = etcdctl(endpoints, arguments).await;
        (ran.code == Some(0)).then_some(ran.stdout)
    })
    .await
}

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A running cluster, without the last `waiting` members of `count`, which have names and ports only.
async fn cluster(count: usize, waiting: usize, more: &[(&str, &str)]) -> (Cluster, Vec<Member>) {
    let (turn, dir) = (turn().await, directory());
    let mut members: Vec<Member> = (1..=count)
        .map(|n| Member::new(&format!("m{n}"), dir.path(), &[]))
        .collect();
    let waiting = members.split_off(count - waiting);
    let founders: Vec<(String, String)> = members
        .iter()
        .map(|member| (member.name.clone(), member.peer.clone()))
        .collect();
    for member in &mut members {
        let start = settings(member, &founders, more);
        member.start_as(command(dir.path(), Words::Flags, &start));
    }
    let mut cluster = Cluster::of(members, dir, turn);
    for member in &mut cluster.members {
        member.wait_for_status().await;
    }
    cluster.leader().await;
    all_have_names(&cluster).await;
    (cluster, waiting)
}

/// Waits until the members have told the cluster who they are.
async fn all_have_names(cluster: &Cluster) {
    let at = &cluster.members[0].client;
    eventually("all members have names", PATIENCE, async || {
        let ran = etcdctl(at, &["member", "list", "--write-out=json"]).await;
        let listed: Value = serde_json::from_str(&ran.stdout).ok()?;
        let has_name = |member: &Value| member["name"].is_string();
        listed["members"].as_array()?.iter().all(has_name).then_some(())
    })
    .await;
}

/// Starts a member that was announced, with what `etcdctl member add` printed for it.
fn join(dir: &Path, member: &mut Member, printed: &str, more: &[(&str, &str)]) {
    let line = printed
        .lines()
        .find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER="))
        .unwrap_or_else(|| panic!("no line for the newcomer: {printed}"));
    let mut start = settings(member, &[], more);
    start.retain(|(flag, _)| flag != "initial-cluster");
    start.push(("initial-cluster".into(), line.trim_matches('"').into()));
    start.push(("initial-cluster-state".into(), "existing".into()));
    member.start_as(command(dir, Words::Flags, &start));
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn members_are_added_promoted_and_removed_by_etcdctl() {
    let (mut cluster, mut waiting) = cluster(4, 2, &[("max-learners", "1")]).await;
    let path = cluster.dir.path().to_owned();
    let endpoints = cluster.endpoints(0).join(",");
    let one = cluster.members[0].client.clone();
    done(&endpoints, &["put", "before", "1"]).await;

    // A voter of two, with one that is not started: nothing may be added before it is.
    let mut third = waiting.remove(0);
    let url = |member: &Member| format!("--peer-urls=http://{}", member.peer);
    let printed = done(&one, &["member", "add", "m3", &url(&third)]).await;
    assert!(
        printed.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""),
        "{printed}"
    );
    let again = etcdctl(&one, &["member", "add", "m4", &url(&waiting[0])]).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    let words = "re-configuration failed due to not enough started members";
    assert!(again.stderr.contains(words), "{again:?}");
    let listed = json(&one, &["member", "list"]).await;
    let new = &listed["members"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["name"].is_null())
        .cloned();
    assert!(
        new.as_ref().is_some_and(|m| m["clientURLs"].is_null()),
        "{listed}"
    );
    join(&path, &mut third, &printed, &[]);
    third.wait_for_status().await;
    cluster.members.push(third);
    all_have_names(&cluster).await;

    // A learner, of which there may be one.
    let mut fourth = waiting.remove(0);
    let printed = eventually("a learner may be added", PATIENCE, async || {
        let ran = etcdctl(&one, &["member", "add", "m4", "--learner", &url(&fourth)]).await;
        (ran.code == Some(0)).then_some(ran.stdout)
    })
    .await;
    let id = printed.split_whitespace().nth(1).unwrap().to_owned();
    let second = etcdctl(
        &one,
        &[
            "member",
            "add",
            "m5",
            "--learner",
            "--peer-urls=http://127.0.0.1:1",
        ],
    )
    .await;
    assert!(
        second.stderr.contains("too many learner members in cluster"),
        "{second:?}"
    );
    let taken = etcdctl(&one, &["member", "add", "m5", &url(&fourth)]).await;
    assert!(taken.stderr.contains("Peer URLs already exists"), "{taken:?}");
    let early = etcdctl(&one, &["member", "promote", &id]).await;
    assert!(
        early
            .stderr
            .contains("can only promote a learner member which is in sync with leader"),
        "{early:?}"
    );
    join(&path, &mut fourth, &printed, &[]);
    fourth.wait_for_status().await;
    let learner = fourth.client.clone();
    cluster.members.push(fourth);
    // Until it has come so far in the log, it does not know that it is one.
    eventually("it knows what it is", PATIENCE, async || {
        let status = json(&learner, &["endpoint", "status"]).await;
        (status[0]["Status"]["isLearner"] == true).then_some(())
    })
    .await;
    at_last(&learner, &["get", "before", "--consistency=s"]).await;
    for refused in [
        &["put", "k", "v"][..],
        &["get", "before"],
        &["member", "list"],
        &["lease", "list"],
    ] {
        let ran = etcdctl(&learner, refused).await;
        assert_ne!(ran.code, Some(0), "{refused:?}: {ran:?}");
        assert!(
            ran.stderr.contains("etcdserver: rpc not supported for learner"),
            "{ran:?}"
        );
    }
    at_last(&one, &["member", "promote", &id]).await;
    at_last(&learner, &["put", "promoted", "1"]).await;

    // A removed member ends, and its ID is another's never again.
    let leader = cluster.leader().await;
    let gone = (0..4).find(|at| *at != leader && *at != 0).unwrap();
    let listed = json(&one, &["member", "list"]).await;
    let name = cluster.members[gone].name.clone();
    let members = listed["members"].as_array().unwrap();
    assert_eq!(members.len(), 4, "{listed}");
    let found = members.iter().find(|m| m["name"] == name.as_str()).unwrap();
    let hex = format!("{:x}", found["ID"].as_u64().unwrap());
    let removed = done(&one, &["member", "remove", &hex]).await;
    assert!(
        removed.contains(&format!("Member {hex:0>16} removed from cluster")) || removed.contains(&hex),
        "{removed}"
    );
    let mut gone = cluster.members.remove(gone);
    gone.ended(PATIENCE).await;
    at_last(&one, &["put", "after", "1"]).await;
    assert_eq!(
        json(&one, &["member", "list"]).await["members"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

/// IDs, hashes and versions as the reference prints them for the same cluster.
#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn a_copy_of_an_etcd_proves_itself_equal() {
    let (cluster, _) = cluster(1, 0, &[("compat-version", "3.5.21")]).await;
    let reference = Reference::start(&["--name=n1"]).await;
    for n in 0..20 {
        done(
            &reference.client,
            &["put", &format!("key/{n}"), &format!("value {n}")],
        )
        .await;
    }
    done(&reference.client, &["del", "key/3"]).await;
    let at = cluster.members[0].client.clone();
    let mut mirror = Command::new(tool("etcd-ref-ctl"))
        .args(["--endpoints", &reference.client, "make-mirror", &at])
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let all = ["get", "", "--prefix", "--sort-by=key"];
    eventually("the mirror is whole", PATIENCE, async || {
        let (ours, theirs) = tokio::join!(done(&at, &all), done(&reference.client, &all));
        (ours == theirs).then_some(())
    })
    .await;
    done(&reference.client, &["put", "key/new", "1"]).await;
    eventually("the mirror follows", PATIENCE, async || {
        (done(&at, &["get", "key/new", "--print-value-only"]).await == "1\n").then_some(())
    })
    .await;
    mirror.kill().await.unwrap();
    let status = json(&at, &["endpoint", "status"]).await;
    assert_eq!(status[0]["Status"]["version"], "3.5.21", "{status}");
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn a_full_quota_stays_full_until_it_is_disarmed() {
    // The quota is passed with the first large value.
    let (cluster, _) = cluster(1, 0, &[("quota-backend-bytes", "262144")]).await;
    let at = cluster.members[0].client.clone();
    let large = "x".repeat(100_000);
    let full = eventually("it is full", PATIENCE, async || {
        let ran = etcdctl(&at, &["put", "large", &large]).await;
        (ran.code != Some(0)).then_some(ran)
    })
    .await;
    assert!(full.stderr.contains("mvcc: database space exceeded"), "{full:?}");
    eventually("the alarm stands", PATIENCE, async || {
        let alarms = done(&at, &["alarm", "list"]).await;
        alarms.contains("alarm:NOSPACE").then_some(())
    })
    .await;
    let revision = json(&at, &["endpoint", "status"]).await[0]["Status"]["header"]["revision"].to_string();
    done(&at, &["del", "large"]).await;
    let revision = (revision.parse::<i64>().unwrap() + 1).to_string();
    done(&at, &["compact", &revision, "--physical"]).await;
    done(&at, &["defrag"]).await;
    // There is room, but nobody said so.
    let still = etcdctl(&at, &["put", "k", "v"]).await;
    assert!(
        still.stderr.contains("mvcc: database space exceeded"),
        "{still:?}"
    );
    done(&at, &["alarm", "disarm"]).await;
    at_last(&at, &["put", "k", "v"]).await;
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn history_is_compacted_by_age_where_it_is_asked_for() {
    let (mut cluster, _) = cluster(3, 0, &[("auto-compaction-retention", "1s")]).await;
    let endpoints = cluster.endpoints(0).join(",");
    for n in 0..5 {
        done(&endpoints, &["put", "k", &n.to_string()]).await;
    }
    eventually("the first revision is compacted", PATIENCE, async || {
        done(&endpoints, &["put", "k", "again"]).await;
        let old = etcdctl(&endpoints, &["get", "k", "--rev=2"]).await;
        old.stderr
            .contains("required revision has been compacted")
            .then_some(())
    })
    .await;
    // The next leader goes on with it.
    let leader = cluster.leader().await;
    cluster.members[leader].kill().await;
    let rest = cluster.endpoints((leader + 1) % 3)[..2].join(",");
    at_last(&rest, &["put", "k", "marked"]).await;
    let revision = json(&rest, &["endpoint", "status"]).await[0]["Status"]["header"]["revision"].to_string();
    eventually(
        "a revision of the new leader is compacted",
        PATIENCE,
        async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            done(&rest, &["put", "k", "again"]).await;
            let old = etcdctl(&rest, &["get", "k", &format!("--rev={revision}")]).await;
            old.stderr
                .contains("required revision has been compacted")
                .then_some(())
        },
    )
    .await;
}

/// Of three members one is down: no change may cost the majority, unless nobody checks.
#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn changes_that_would_cost_the_majority_are_refused() {
    let newcomer = "--peer-urls=http://127.0.0.1:1";
    for strict in ["true", "false"] {
        let (mut cluster, _) = cluster(3, 0, &[("strict-reconfig-check", strict)]).await;
        let leader = cluster.leader().await;
        let at = cluster.members[leader].client.clone();
        let listed = json(&at, &["member", "list"]).await;
        let id = |name: &str| {
            let members = listed["members"].as_array().unwrap();
            let found = members.iter().find(|member| member["name"] == name).unwrap();
            format!("{:x}", found["ID"].as_u64().unwrap())
        };
        let (up, down) = ((leader + 1) % 3, (leader + 2) % 3);
        let (up_id, down_id) = (id(&cluster.members[up].name), id(&cluster.members[down].name));
        // A leader that has just begun has heard of nobody yet: that it misses somebody means something only later.
        let heard = async |is: &str| {
            let line = format!("kvorum_peer_active{{To=\"{down_id}\"}} {is}");
            eventually(&line, PATIENCE, async || {
                let (_, page) = request("GET", &at, "/metrics", b"").await.ok()?;
                page.contains(&line).then_some(())
            })
            .await;
        };
        heard("1").await;
        cluster.members[down].kill().await;
        heard("0").await;
        if strict == "true" {
            for change in [
                &["member", "add", "m4", newcomer][..],
                &["member", "remove", &up_id],
            ] {
                eventually(&format!("{change:?} is refused"), PATIENCE, async || {
                    let ran = etcdctl(&at, change).await;
                    assert_ne!(ran.code, Some(0), "{change:?}: {ran:?}");
                    ran.stderr.contains("etcdserver: unhealthy cluster").then_some(())
                })
                .await;
            }
            // What is down may go.
            at_last(&at, &["member", "remove", &down_id]).await;
        } else {
            let printed = at_last(&at, &["member", "add", "m4", newcomer]).await;
            assert!(printed.contains("added to cluster"), "{printed}");
        }
        at_last(&at, &["put", "k", "v"]).await;
    }
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn etcdctl_calls_through_a_socket_in_the_file_system() {
    let (turn, dir) = (turn().await, directory());
    let socket = format!("unix://{}", dir.path().join("k.sock").display());
    let mut member = Member::new("m1", dir.path(), &[]);
    let mut start = settings(&member, &[("m1".into(), member.peer.clone())], &[]);
    let both = format!("http://{},{socket}", member.client);
    start.push(("listen-client-urls".into(), both.clone()));
    start.push(("advertise-client-urls".into(), both));
    member.start_as(command(dir.path(), Words::Flags, &start));
    let mut cluster = Cluster::of(vec![member], dir, turn);
    cluster.members[0].wait_for_status().await;
    all_have_names(&cluster).await;
    at_last(&socket, &["put", "k", "v"]).await;
    assert_eq!(done(&socket, &["get", "k", "--print-value-only"]).await, "v\n");
    let listed = json(&socket, &["member", "list"]).await;
    assert!(
        listed["members"][0]["clientURLs"].to_string().contains(&socket),
        "{listed}"
    );
}

/// `--initial-advertise-peer-urls` counts at the beginning; where a member is, `member update` says. Its name may change.
#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn a_member_is_moved_and_renamed() {
    let (mut cluster, _) = cluster(1, 0, &[]).await;
    let path = cluster.dir.path().to_owned();
    let member = &mut cluster.members[0];
    let at = member.client.clone();
    let listed = json(&at, &["member", "list"]).await;
    let id = format!("{:x}", listed["members"][0]["ID"].as_u64().unwrap());
    let moved = "http://127.0.0.1:1";
    done(&at, &["member", "update", &id, &format!("--peer-urls={moved}")]).await;
    member.kill().await;
    let founders = [("renamed".to_owned(), member.peer.clone())];
    let mut start = settings(member, &founders, &[("initial-cluster-token", "another")]);
    start.push(("name".into(), "renamed".into()));
    member.start_as(command(&path, Words::Flags, &start));
    let listed = eventually("it has another name", PATIENCE, async || {
        let ran = etcdctl(&at, &["member", "list", "--write-out=json"]).await;
        let listed: Value = serde_json::from_str(&ran.stdout).ok()?;
        (listed["members"][0]["name"] == "renamed").then_some(listed)
    })
    .await;
    assert_eq!(listed["members"][0]["peerURLs"][0], moved, "{listed}");
    assert_eq!(
        format!("{:x}", listed["members"][0]["ID"].as_u64().unwrap()),
        id,
        "{listed}"
    );
}
