//! A cluster of one keeps what it acknowledged without anybody's help.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kvorum_client::{Client, Options};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::cluster::{Cluster, PATIENCE};

/// Writers at one time.
const WRITERS: usize = 16;

/// Writes keys of this round until the member is gone; gives those that were acknowledged.
async fn write(
    client: Client,
    round: usize,
    writer: usize,
    acknowledged: tokio::sync::mpsc::UnboundedSender<Bytes>,
) {
    for n in 0.. {
        let key = Bytes::from(format!("{round}/{writer}/{n}"));
        if client.put(key.clone(), key.clone()).await.is_err() || acknowledged.send(key).is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_single_member_keeps_every_acknowledged_write() {
    let mut cluster = Cluster::start(1, &[]).await;
    let mut written = Vec::new();
    for round in 0..3 {
        let options = Options {
            endpoints: vec![cluster.members[0].client.clone()],
            timeout: Duration::from_secs(2),
            // A write goes out once: after the kill the writers end.
            sessions: false,
            ..Options::default()
        };
        let client = Client::new(options).unwrap();
        let (sender, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write(client.clone(), round, writer, sender.clone()));
        }
        drop(sender);
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..500 {
            written.push(timeout_at(deadline, acknowledged.recv()).await.unwrap().unwrap());
        }
        cluster.members[0].kill().await;
        while let Some(key) = timeout_at(deadline, acknowledged.recv()).await.unwrap() {
            written.push(key);
        }
        writers.join_all().await;
        cluster.members[0].start();
        cluster.members[0].wait_for_status().await;
        // Answered once everything that was acknowledged is applied again.
        cluster.members[0].client().get("any").await.unwrap();
        let records = cluster.members[0].local_records("").await;
        let found: BTreeMap<Bytes, Bytes> = records.into_iter().map(|kv| (kv.key, kv.value)).collect();
        for key in &written {
            assert_eq!(found.get(key), Some(key), "after kill {round}");
        }
    }
}
