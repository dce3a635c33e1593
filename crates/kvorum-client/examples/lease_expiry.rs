//! What it costs when very many leases end together: how long the cluster takes, and what its puts feel meanwhile.
//!
//! ```text
//! cargo run --release -p kvorum-client --example lease_expiry -- 127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403 100000 60
//! ```
//! Arguments: endpoints, how many leases, their TTL in seconds. Each lease gets a key. Then leadership is handed over:
//! the new leader lets every lease begin anew, so that all of them end at the same moment. (A cluster of one hands
//! nothing over; there they end as far apart as they were granted.) Puts go on all the time, each writer waiting
//! 10 ms between two; their latencies are told for the ten seconds before the end and for the time in which the keys go, which a
//! watcher sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvorum_client::proto::etcd;
use kvorum_client::{Client, Options, WatchItem, WatchOptions, Watcher, prefix_range};
use tokio::sync::Mutex;
use tokio::time::Instant;

const PREFIX: &str = "lease-bench/";
/// Grants at one time.
const GRANTERS: usize = 256;
/// Puts at one time.
const WRITERS: usize = 16;
/// What each of them waits between two puts.
const PAUSE: Duration = Duration::from_millis(10);
/// How much of the time before counts.
const BEFORE: Duration = Duration::from_secs(10);

type Latencies = Arc<Mutex<Vec<(Instant, Duration)>>>;

/// A client for each endpoint, that one first.
fn clients(endpoints: &[String]) -> Vec<Client> {
    let each = 0..endpoints.len();
    each.map(|first| {
        let mut endpoints = endpoints.to_vec();
        endpoints.rotate_left(first);
        let options = Options {
            endpoints,
            timeout: Duration::from_secs(60),
            // What a session keeps would be written as well.
            sessions: false,
            ..Options::default()
        };
        Client::new(options).expect("endpoints as host:port")
    })
    .collect()
}

async fn grant(client: Client, next: Arc<AtomicU64>, leases: u64, ttl_s: i64) {
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= leases {
            return;
        }
        let lease = client.lease_grant(ttl_s, 0).await.expect("a lease").id;
        let put = etcd::PutRequest {
            key: format!("{PREFIX}{n:08}").into(),
            value: "v".into(),
            lease,
            ..Default::default()
        };
        client.put_request(put).await.expect("a key under a lease");
    }
}

async fn write(client: Client, writer: usize, done: Latencies) {
    for n in 0u64.. {
        tokio::time::sleep(PAUSE).await;
        let started = Instant::now();
        let key = format!("other/{writer}/{}", n % 1000);
        if client.put(key, "value").await.is_ok() {
            done.lock().await.push((started, started.elapsed()));
        }
    }
}

/// Waits until that many keys are gone; says when the first was, and the last.
async fn keys_gone(watcher: &mut Watcher, keys: u64) -> (Instant, Instant) {
    let (mut gone, mut first) = (0, None);
    while gone < keys {
        if let WatchItem::Events(events) = watcher.next().await.expect("a watcher") {
            first.get_or_insert_with(Instant::now);
            gone += events.len() as u64;
        }
    }
    (first.expect("there were keys"), Instant::now())
}

/// Number, median and 99th percentile of the puts that began in an interval.
fn tell(name: &str, latencies: &[(Instant, Duration)], from: Instant, to: Instant) {
    let within = latencies.iter().filter(|(at, _)| (from..to).contains(at));
    let mut took: Vec<Duration> = within.map(|(_, took)| *took).collect();
    took.sort();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    println!(
        "{name}: {} puts in {:.1} s, p50 {:?}, p99 {:?}",
        took.len(),
        (to - from).as_secs_f64(),
        at(50),
        at(99)
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, endpoints, leases, ttl_s] = &args[..] else {
        panic!("give endpoints, how many leases, and their TTL in seconds");
    };
    let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
    let clients = clients(&endpoints);
    let of = |n: usize| clients[n % clients.len()].clone();
    let leases: u64 = leases.parse().expect("a number of leases");
    let ttl_s: u32 = ttl_s.parse().expect("seconds");

    let (started, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let granters = (0..GRANTERS).map(|n| tokio::spawn(grant(of(n), next.clone(), leases, ttl_s.into())));
    for granter in granters.collect::<Vec<_>>() {
        granter.await.expect("a granter ends well");
    }
    let took = started.elapsed().as_secs_f64();
    println!("{leases} leases with a key each, granted in {took:.1} s");
    assert!(took < f64::from(ttl_s), "give a longer TTL: the first have ended");
    if endpoints.len() > 1 {
        let moved = of(0).transfer_leadership(None).await;
        moved.expect("leadership is handed over");
    }

    let (key, range_end) = prefix_range(PREFIX.as_bytes());
    let mut watcher = of(1).watch(WatchOptions {
        key,
        range_end,
        ..WatchOptions::default()
    });
    let there = watcher.next().await.expect("a watcher");
    assert!(matches!(there, WatchItem::Created { .. }), "{there:?}");
    let done = Latencies::default();
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| tokio::spawn(write(of(n), n, done.clone())))
        .collect();
    let (first, last) = keys_gone(&mut watcher, leases).await;
    writers.iter().for_each(|writer| writer.abort());
    println!("all of them ended within {:.2} s", (last - first).as_secs_f64());
    let latencies = done.lock().await;
    let margin = Duration::from_millis(500);
    tell("before", &latencies, first - BEFORE, first - margin);
    tell("while they end", &latencies, first - margin, last);
}
