//! A member that is asked to stop does not keep the cluster waiting.

use std::time::Duration;

use kvorum_client::{Client, Options};
use tokio::time::{Instant, timeout};

use crate::cluster::Cluster;

/// Longest pause of writes while the leader goes. Handing over takes some milliseconds and an election at
/// least 750; in between lies what a busy machine needs.
const PAUSE_MAX: Duration = Duration::from_millis(1500);
/// Longest that a graceful stop may take.
const STOP_MAX: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_leader_that_is_asked_to_stop_hands_over() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let others = cluster.endpoints(leader + 1);
    let endpoints = others[..2].iter().map(|text| (*text).to_owned()).collect();
    let client = Client::new(Options {
        endpoints,
        ..Options::default()
    })
    .unwrap();
    let mut pause = Duration::ZERO;
    let mut write = async || {
        let started = Instant::now();
        client.put("key", "value").await.unwrap();
        pause = pause.max(started.elapsed());
    };
    write().await;
    cluster.members[leader].terminate();
    let stopping = Instant::now();
    let status = {
        let mut ended = std::pin::pin!(cluster.members[leader].end(STOP_MAX));
        loop {
            tokio::select! {
                status = &mut ended => break status,
                () = write() => {}
            }
        }
    };
    assert_eq!(status.code(), Some(0));
    write().await;
    eprintln!(
        "stopped in {:?}, longest pause of writes {pause:?}",
        stopping.elapsed()
    );
    assert!(pause < PAUSE_MAX, "writes paused for {pause:?}");
    timeout(STOP_MAX, cluster.leader()).await.unwrap();
}
