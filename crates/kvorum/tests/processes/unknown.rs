//! A write whose answer is lost: neither done nor not done, and the exit code says so.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::program::{run, try_run};

/// The exit code of a write that may have been applied.
const UNKNOWN: i32 = 4;
const VALUE: &str = "the-value-after-which-the-line-is-dead";

#[tokio::test]
async fn a_put_that_was_sent_and_not_answered_is_unknown() {
    let cluster = Cluster::start(1, &[]).await;
    let server = cluster.members[0].client.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (dead, _) = watch::channel(false);
        while let Ok((client, _)) = listener.accept().await {
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = TcpStream::connect(&server).await.unwrap().into_split();
            tokio::spawn(requests(from_client, to_server, dead.clone()));
            tokio::spawn(answers(from_server, to_client, dead.subscribe()));
        }
    });
    let ran = try_run(&["put", "k", VALUE, "--endpoints", &endpoint, "--timeout", "2s"]).await;
    ran.failed(
        UNKNOWN,
        &[
            "the write may have been applied",
            "read it back before writing again",
        ],
    );
    let found = run(&["get", "k", "--endpoints", &cluster.members[0].client]).await;
    assert_eq!(found.trim_end(), VALUE, "this one was applied");
}

/// Carries requests; from the value on, no answer comes back.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, dead: watch::Sender<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if buffer[..read]
            .windows(VALUE.len())
            .any(|bytes| bytes == VALUE.as_bytes())
        {
            dead.send_replace(true);
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, dead: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if !*dead.borrow() && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
