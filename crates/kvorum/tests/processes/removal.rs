//! Members that are removed: they end, whoever they were.

use crate::cluster::{Cluster, PATIENCE};
use crate::program::run;

/// Once, the others hung up on a leader when they heard that it leaves: its removal was finished without it only after
/// an election timeout, and it never heard of it; it went on, without a leader and without a word. And where it did
/// hear in time, it ended before it had answered whoever asked.
#[tokio::test]
async fn a_leader_that_is_removed_answers_and_ends() {
    let mut cluster = Cluster::start(3, &[]).await;
    // Asked of the leader itself, then of the one that remains.
    for ask_other in [false, true] {
        let leader = cluster.leader().await;
        let name = cluster.members[leader].name.clone();
        let asked = cluster.endpoints(leader + usize::from(ask_other))[0].to_owned();
        run(&["member", "remove", &name, "--endpoints", &asked]).await;
        let mut gone = cluster.members.remove(leader);
        let status = gone.ended(PATIENCE).await;
        assert_eq!(status.code(), Some(1), "{name}");
        let log = std::fs::read_to_string(&gone.log).unwrap();
        assert!(log.contains("was removed from the cluster"), "{log}");
        let leader = cluster.leader().await;
        let client = cluster.members[leader].client();
        client.put("after", name).await.unwrap();
    }
}
