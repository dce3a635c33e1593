//! A member that is asked to stop does not keep the cluster waiting.

use std::time::Duration;

use kvorum_client::{Client, Options};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::cluster::{Cluster, PATIENCE};
use crate::program::eventually;

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

/// Once, who waited for an answer when the time for a graceful stop was over found the connection gone.
#[tokio::test]
async fn whoever_waits_when_a_member_stops_hears_what_became_of_the_write() {
    let settings = ["--drain-timeout", "3s", "--request-timeout", "60s"];
    let mut cluster = Cluster::start(2, &settings).await;

    // The leader appends it, and nobody else can.
    let leader = cluster.leader().await;
    cluster.members[1 - leader].signal(Signal::STOP);
    let waiting = post(&cluster.members[leader].client).await;
    eventually("the write is under way", PATIENCE, async || {
        let status = cluster.members[leader].status().await?;
        (status.last_index > status.commit_index).then_some(())
    })
    .await;
    cluster.members[leader].terminate();
    let answer = answer(waiting).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("kvorum-outcome: unknown"), "{answer}");
    assert_eq!(cluster.members[leader].end(STOP_MAX).await.code(), Some(0));

    // Without a leader it is held, and nothing came of it.
    let lone = &mut cluster.members[1 - leader];
    lone.signal(Signal::CONT);
    eventually("it knows that it is alone", PATIENCE, async || {
        let status = lone.status().await?;
        (status.leader_id == 0).then_some(())
    })
    .await;
    let waiting = post(&lone.client).await;
    eventually("the write is held", PATIENCE, async || {
        let page = crate::http::request("GET", &lone.client, "/metrics", b"")
            .await
            .ok()?
            .1;
        page.contains("etcd_server_proposals_pending 1\n").then_some(())
    })
    .await;
    lone.terminate();
    let answer = self::answer(waiting).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("kvorum-outcome: not-applied"), "{answer}");
    assert_eq!(lone.end(STOP_MAX).await.code(), Some(0));
}

/// Sends a write and does not wait for its answer.
async fn post(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = r#"{"key":"waits","value":"1"}"#;
    let length = body.len();
    let request = format!("POST /kv HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let read = timeout(STOP_MAX, stream.read_to_string(&mut text)).await;
    read.expect("it ends in time").unwrap();
    text
}
