//! Users on a real cluster, at the command line: nobody gets past the gate, whichever member is asked, when the
//! leader is lost and when all have started again.

use crate::cluster::{Cluster, PATIENCE};
use crate::program::{Ran, command, eventually, run, try_run};

/// One command against these members, as this user.
async fn as_user(endpoints: &str, user: &str, args: &[&str]) -> Ran {
    let mut command = command(args);
    command.args(["--endpoints", endpoints, "--user", user]);
    Ran::of(command).await
}

/// Refused, and with these words.
fn check_refused(ran: &Ran, words: &str) {
    assert_ne!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains(words), "{ran:?}");
}

#[tokio::test]
async fn only_who_may_does_on_every_member_and_after_its_loss() {
    const ROOT: &str = "root:secret";
    const READER: &str = "reader:r";
    let mut cluster = Cluster::start(3, &["--bcrypt-cost", "4"]).await;
    // Asked now: later, only who is known is told.
    let leader = cluster.leader().await;
    let all = cluster.endpoints(0).join(",");
    let at = ["--endpoints", &all];
    for args in [
        &["user", "add", ROOT][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", READER],
        &["role", "add", "readers"],
        &[
            "role",
            "grant-permission",
            "readers",
            "read",
            "shared/",
            "--prefix",
        ],
        &["user", "grant-role", "reader", "readers"],
        &["put", "shared/a", "1"],
        &["put", "secret/a", "2"],
        &["auth", "enable"],
    ] {
        run(&[args, &at].concat()).await;
    }

    let check = async |endpoints: &str| {
        let nobody = try_run(&["get", "shared/a", "--endpoints", endpoints]).await;
        check_refused(&nobody, "user");
        check_refused(
            &as_user(endpoints, "reader:wrong", &["get", "shared/a"]).await,
            "authentication failed",
        );
        let read = as_user(endpoints, READER, &["get", "shared/a"]).await;
        assert_eq!((read.code, read.stdout.trim_end()), (Some(0), "1"), "{read:?}");
        for args in [
            &["get", "secret/a"][..],
            &["put", "shared/a", "3"],
            &["ls", ""],
            &["export", "-"],
            &["snapshot", "save", "/dev/null"],
            &["user", "list"],
            &["compact", "2"],
        ] {
            check_refused(&as_user(endpoints, READER, args).await, "permission denied");
        }
        let written = as_user(endpoints, ROOT, &["put", "secret/a", "4"]).await;
        assert_eq!(written.code, Some(0), "{written:?}");
    };
    for member in 0..3 {
        check(cluster.endpoints(member)[0]).await;
    }

    cluster.members[leader].kill().await;
    let others = (1..3).map(|n| cluster.endpoints((leader + n) % 3)[0]);
    let others = others.collect::<Vec<_>>().join(",");
    eventually("another leads", PATIENCE, async || {
        let put = as_user(&others, ROOT, &["put", "secret/a", "5"]).await;
        (put.code == Some(0)).then_some(())
    })
    .await;
    check(&others).await;

    // What a role loses, its users lose at once; and tokens of before a restart open nothing by mistake.
    for member in &mut cluster.members {
        if member.is_running() {
            member.kill().await;
        }
    }
    for member in &mut cluster.members {
        member.start();
    }
    for member in 0..3 {
        eventually("it serves again", PATIENCE, async || {
            let put = as_user(cluster.endpoints(member)[0], ROOT, &["put", "secret/a", "6"]).await;
            (put.code == Some(0)).then_some(())
        })
        .await;
    }
    check(&all).await;
    let revoke = ["role", "revoke-permission", "readers", "shared/", "--prefix"];
    let revoked = as_user(&all, ROOT, &revoke).await;
    assert_eq!(revoked.code, Some(0), "{revoked:?}");
    for member in 0..3 {
        let read = as_user(cluster.endpoints(member)[0], READER, &["get", "shared/a"]).await;
        check_refused(&read, "permission denied");
    }
    assert_eq!(as_user(&all, ROOT, &["auth", "disable"]).await.code, Some(0));
    assert_eq!(
        run(&["get", "secret/a", "--endpoints", &all]).await.trim_end(),
        "4"
    );
}
