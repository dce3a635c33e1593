//! What the client port costs: CPU of the server's threads per put and per linearizable get, with a replica that
//! answers at once and stores nothing, so that only the RPC path is measured. The load comes from a process of
//! its own; answers are checked.
//!
//! `cargo run --release -p kvorum-server --example rpc_cost [in-flight] [connections] [seconds] [workers]`
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvorum_model::{Envelope, PutResponse, Reply};
use kvorum_mvcc::watch::HubOptions;
use kvorum_mvcc::{Applied, ClusterState, MemStore, StateMachine};
use kvorum_node::NodeStatus;
use kvorum_proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use kvorum_raft::{Configuration, LogId, Role};
use kvorum_server::Address;
use kvorum_server::api::{Core, routes};
use kvorum_server::budget::Budget;
use kvorum_server::handle::{HandleOptions, Identity, ReplicaPort, StoreFigures, replica_handle};
use kvorum_server::http::{HttpLimits, HttpServer, Phase, listen};
use kvorum_server::joining::no_peers;
use kvorum_server::mailbox::{Batch, Mailbox};
use kvorum_server::metrics::Metrics;
use kvorum_server::reads::Reads;
use kvorum_server::watching::watch_hub;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: usize| arguments.get(at).and_then(|n| n.parse().ok()).unwrap_or(default);
    if arguments.first().is_some_and(|first| first == "load") {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let seconds = Duration::from_secs(number(5, 5) as u64);
        let count = runtime.block_on(load(
            &arguments[1],
            &arguments[2],
            number(3, 256),
            number(4, 8),
            seconds,
        ));
        println!("{count}");
        return;
    }
    let (in_flight, connections) = (number(0, 256).to_string(), number(1, 8).to_string());
    let (seconds, workers) = (number(2, 5).to_string(), number(3, 2));
    let server = serve(workers);
    let address = format!("http://{}", server.addresses()[0]);
    println!("{in_flight} in flight on {connections} connections, {workers} workers");
    for kind in ["put", "get"] {
        let before = thread_cpu();
        let started = Instant::now();
        let load = Command::new(std::env::current_exe().unwrap())
            .args(["load", &address, kind, &in_flight, &connections, &seconds])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = load.wait_with_output().unwrap();
        let count: u64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let wall = started.elapsed();
        println!("{kind}: {:.0}/s", count as f64 / wall.as_secs_f64());
        for (name, micros) in thread_cpu() {
            let used = micros - before.get(&name).copied().unwrap_or(0);
            println!("  {name:12} {:6.2} µs an operation", used as f64 / count as f64);
        }
    }
}

/// CPU time of this process' threads in µs, those of one name together.
fn thread_cpu() -> BTreeMap<String, u64> {
    let mut threads = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let nanos = read("schedstat")
            .split(' ')
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or(0);
        let name = read("comm")
            .trim()
            .trim_end_matches(|c: char| c.is_ascii_digit() || c == '-')
            .to_owned();
        *threads.entry(name).or_default() += nanos / 1000;
    }
    threads
}

fn serve(workers: usize) -> HttpServer {
    let machine = StateMachine::open(MemStore::new(), kvorum_mvcc::Options::default()).unwrap();
    let mailbox = Arc::new(Mailbox::<()>::new(65_536));
    let identity = Identity {
        cluster_id: 1,
        member_id: 1,
        boot: 1,
        name: "n1".to_owned(),
        founders: Default::default(),
    };
    let options = HandleOptions {
        shards: workers,
        requests_max: 65_536,
        request_bytes_max: kvorum_model::limits::REQUEST_BYTES_MAX,
        txn_ops_max: kvorum_model::limits::TXN_OPS_MAX,
        request_timeout: Duration::from_secs(5),
        auth: kvorum_server::options::AuthOptions::default(),
    };
    let reader = machine.reader();
    let figures = StoreFigures::default();
    let (handle, port) = replica_handle(
        identity,
        options,
        mailbox.clone(),
        status(),
        figures,
        Arc::new(reader.clone()),
    );
    let metrics = Arc::new(Metrics::default());
    let (hub, _) = watch_hub(
        reader,
        HubOptions::default(),
        Duration::from_secs(600),
        metrics.clone(),
    );
    let (phase, phases) = tokio::sync::watch::channel(Phase::Serving);
    let core = Core {
        handle: handle.clone(),
        reads: Reads::new(handle.clone(), Budget::new(512 << 20)),
        metrics,
        phase: phases,
        etcd_version: "3.6.12",
        started: Instant::now(),
        surfaces: Arc::default(),
        forward_join: no_peers(),
        operations: Default::default(),
    };
    let answer = move || answer_at_once(&mailbox, &port);
    std::thread::Builder::new()
        .name("replica".to_owned())
        .spawn(answer)
        .unwrap();
    let listener = listen("listen", &Address::new("127.0.0.1", 0)).unwrap();
    let pending = handle.pending().clone();
    let background = move |worker| {
        let pending = pending.clone();
        async move { pending.dispatch(worker).await }
    };
    let listeners = vec![(listener, routes(&core, hub))];
    HttpServer::start(listeners, HttpLimits::default(), workers, phase, background).unwrap()
}

/// The replica: whatever waits is one batch.
fn answer_at_once(mailbox: &Mailbox<()>, port: &ReplicaPort) {
    let (mut batch, mut revision) = (Batch::default(), 1);
    loop {
        mailbox.take(&mut batch, Instant::now() + Duration::from_secs(3600));
        let mut applied = Vec::with_capacity(batch.writes.len());
        for write in batch.writes.drain(..) {
            revision += 1;
            let origin = Envelope::peek_origin(&write.command).unwrap();
            let result = Ok(Reply::Put(PutResponse::default()));
            applied.push(Applied {
                origin,
                index: revision as u64,
                term: 1,
                revision,
                result,
            });
        }
        port.complete(applied);
        let ids: Vec<u64> = batch.reads.drain(..).map(|read| read.id).collect();
        port.pending().reads_ready(&ids);
        batch.clear();
    }
}

fn status() -> NodeStatus {
    NodeStatus {
        id: 1,
        term: 1,
        leader: 1,
        role: Role::Leader,
        commit: 0,
        applied: 0,
        flushed: 0,
        last: LogId::default(),
        persisted: 0,
        first: 1,
        revision: 1,
        configuration: Configuration::of_voters([1]),
        peers: vec![],
        transferring_to: 0,
        connected: true,
        space_exhausted: false,
        writes_waiting: 0,
        reads_waiting: 0,
        leases: 0,
        leases_renewed: 0,
        leader_changes: 1,
        divergence: None,
        cluster: Arc::new(ClusterState::default()),
    }
}

/// Keeps requests in flight until the time is over; how many were answered.
async fn load(address: &str, kind: &str, in_flight: usize, connections: usize, lasts: Duration) -> u64 {
    let count = Arc::new(AtomicU64::new(0));
    let mut channels = Vec::new();
    for _ in 0..connections {
        let endpoint = tonic::transport::Endpoint::from_shared(address.to_owned()).unwrap();
        channels.push(endpoint.tcp_nodelay(true).connect().await.unwrap());
    }
    let is_put = kind == "put";
    let end = Instant::now() + lasts;
    let tasks: Vec<_> = (0..in_flight)
        .map(|n| {
            let (mut kv, count) = (KvClient::new(channels[n % connections].clone()), count.clone());
            let key = bytes::Bytes::from(format!("{n:032}"));
            let value = bytes::Bytes::from(vec![b'v'; 256]);
            tokio::spawn(async move {
                while Instant::now() < end {
                    if is_put {
                        let put = PutRequest {
                            key: key.clone(),
                            value: value.clone(),
                            ..Default::default()
                        };
                        let answer = kv.put(put).await.unwrap().into_inner();
                        assert!(answer.header.unwrap().revision > 1);
                    } else {
                        let get = RangeRequest {
                            key: key.clone(),
                            ..Default::default()
                        };
                        assert_eq!(kv.range(get).await.unwrap().into_inner().count, 0);
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    count.load(Ordering::Relaxed)
}
