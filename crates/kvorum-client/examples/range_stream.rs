//! What memory a server needs to stream a range that is much larger than that.
//!
//! ```text
//! cargo run --release -p kvorum-client --example range_stream -- 127.0.0.1:2379 1024 PID
//! ```
//! Arguments: the endpoint, how many MiB of records to write (of 1 KiB each), and the server's process. Then all of
//! them are read by one RangeStream, twice: by a client that reads as fast as it can, and by one that stops for ten
//! seconds in the middle. Both must get every key once and in order.

use std::time::Duration;

use kvorum_client::prefix_range;
use kvorum_client::proto::etcd;
use kvorum_client::proto::etcd::kv_client::KvClient;
use tokio::time::Instant;

const PREFIX: &str = "stream-bench/";
const VALUE_BYTES: usize = 1000;
/// Puts of one transaction.
const PUTS: u64 = 128;
const PAUSE: Duration = Duration::from_secs(10);

fn key(n: u64) -> String {
    format!("{PREFIX}{n:010}")
}

/// Resident memory of a process, in MiB.
fn resident_mib(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server's process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .expect("its memory");
    kib.parse::<u64>().expect("a number of KiB") / 1024
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, endpoint, mib, pid] = &args[..] else {
        panic!("give an endpoint, how many MiB, and the server's process");
    };
    let keys = mib.parse::<u64>().expect("a number of MiB") * 1024;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{endpoint}")).expect("host:port");
    let mut client = KvClient::new(channel.connect().await.expect("a server"));
    for first in (0..keys).step_by(PUTS as usize) {
        let put = |n: u64| etcd::RequestOp {
            request: Some(etcd::request_op::Request::RequestPut(etcd::PutRequest {
                key: key(n).into(),
                value: vec![n as u8; VALUE_BYTES].into(),
                ..Default::default()
            })),
        };
        let txn = etcd::TxnRequest {
            success: (first..keys.min(first + PUTS)).map(put).collect(),
            ..Default::default()
        };
        client.txn(txn).await.expect("the records are written");
    }
    println!(
        "{mib} MiB written; the server has {} MiB resident",
        resident_mib(pid)
    );
    for pause in [Duration::ZERO, PAUSE] {
        let (key_bytes, range_end) = prefix_range(PREFIX.as_bytes());
        let request = etcd::RangeRequest {
            key: key_bytes,
            range_end,
            ..Default::default()
        };
        let (started, mut next, mut most) = (Instant::now(), 0, 0);
        let mut stream = client.range_stream(request).await.expect("a stream").into_inner();
        while let Some(chunk) = stream.message().await.expect("a chunk") {
            for kv in chunk.range_response.map(|part| part.kvs).unwrap_or_default() {
                assert_eq!(kv.key, key(next).as_bytes());
                next += 1;
                if next == keys / 2 {
                    tokio::time::sleep(pause).await;
                }
                if next % 4096 == 0 {
                    most = most.max(resident_mib(pid));
                }
            }
        }
        assert_eq!(next, keys, "every key comes once");
        let took = (started.elapsed() - pause).as_secs_f64();
        println!(
            "paused {} s: {mib} MiB in {took:.1} s, {:.0} MiB/s; the server had at most {most} MiB resident",
            pause.as_secs(),
            keys as f64 / 1024.0 / took,
        );
    }
}
