//! Members are killed under load, again and again. Nothing that was acknowledged is lost, no answer
//! contradicts another, and the members agree in the end.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum_check::digest::compare_digests;
use kvorum_check::history::Outcome;
use kvorum_check::{Evidence, FinalState, History, Kv, Op};

use crate::cluster::Cluster;
use crate::load::{Load, to_kv, with_local_tasks};

const CYCLES: usize = 10;
/// Answers before each kill, and with a member missing.
const ANSWERS: u64 = 150;

fn seed() -> u64 {
    std::env::var("KVORUM_TEST_SEED").map_or(1, |text| text.parse().unwrap())
}

#[tokio::test]
async fn kill_9_of_random_members_under_load_loses_nothing() {
    with_local_tasks(async {
        let seed = seed();
        eprintln!("KVORUM_TEST_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut cluster = Cluster::start(3, &[]).await;
        let load = Load::start(&cluster, seed);
        let mut leaders_killed = 0;
        for cycle in 0..CYCLES {
            load.answers(ANSWERS).await;
            let leader = cluster.leader().await;
            // Every other time the leader; else whoever it is.
            let victim = match cycle % 2 {
                0 => leader,
                _ => random.usize(..3),
            };
            leaders_killed += usize::from(victim == leader);
            cluster.members[victim].kill().await;
            load.answers(ANSWERS).await;
            cluster.members[victim].start();
            cluster.members[victim].wait_for_status().await;
        }
        assert!(leaders_killed >= CYCLES / 2);
        let history = load.end().await;
        check(&mut cluster, &history).await;
    })
    .await;
}

async fn check(cluster: &mut Cluster, history: &History) {
    let statuses = cluster.check_agreement().await;
    let mut finals = Vec::new();
    for (status, member) in statuses.iter().zip(&cluster.members) {
        let kvs: Vec<Kv> = member.local_records("").await.into_iter().map(to_kv).collect();
        check_own_keys(history, &kvs, &member.name);
        finals.push(FinalState {
            member: status.member_id,
            revision: u64::try_from(status.revision).unwrap(),
            kvs,
        });
    }
    let digests: Vec<(u64, u64, Bytes)> = statuses
        .iter()
        .map(|status| (status.member_id, status.applied_index, status.digest.clone()))
        .collect();
    let digests: Vec<(u64, u64, &[u8])> = digests.iter().map(|(m, i, d)| (*m, *i, &d[..])).collect();
    compare_digests(&digests).unwrap();
    let evidence = Evidence {
        finals: &finals,
        ..Evidence::new(history)
    };
    if let Err(failures) = evidence.check() {
        panic!(
            "{}",
            failures
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        );
    }
}

/// Said without any checker: a key that was put once, and acknowledged, is there.
fn check_own_keys(history: &History, kvs: &[Kv], name: &str) {
    let found: BTreeMap<&Bytes, &Bytes> = kvs.iter().map(|kv| (&kv.key, &kv.value)).collect();
    let mut acknowledged = 0;
    for record in history.records() {
        if let (Op::Put { key, value }, Outcome::Ok(_)) = (&record.op, &record.outcome)
            && key.starts_with(b"own/")
        {
            acknowledged += 1;
            assert_eq!(found.get(key), Some(&value), "{key:?} on {name}");
        }
    }
    assert!(
        acknowledged > CYCLES,
        "the load wrote {acknowledged} keys of its own"
    );
}
