//! The replica behind the tests, and a server before it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvorum_model::{Envelope, MemberRecord};
use kvorum_mvcc::watch::HubOptions;
use kvorum_mvcc::{ApplyEntry, ClusterState, MemStore, Payload, StateMachine};
use kvorum_node::{
    AdminError, AdminReply, AdminRequest, LeaseAnswer, LeaseAsk, NodeStatus, ReadFailure, WriteFailure,
};
use kvorum_raft::{Configuration, LogId, Role};
use kvorum_server::api::{Core, routes};
use kvorum_server::budget::Budget;
use kvorum_server::handle::{
    HandleOptions, Identity, ReplicaHandle, ReplicaPort, StoreFigures, replica_handle,
};
use kvorum_server::http::{HttpLimits, HttpServer, Phase, listen};
use kvorum_server::joining::ForwardJoin;
use kvorum_server::mailbox::{Batch, Mailbox};
use kvorum_server::metrics::Metrics;
use kvorum_server::operations::Operations;
use kvorum_server::options::{Address, AuthOptions, BCRYPT_COST_MIN, SurfaceOptions};
use kvorum_server::reads::Reads;
use kvorum_server::watching::{WatchHandle, watch_hub};
use tonic::transport::Channel;

pub const MEMBER: u64 = 7;
pub const OTHER: u64 = 9;
pub const CLUSTER: u64 = 0xc1;
const BOOT: u64 = 42;
const TERM: u64 = 3;

/// What the replica does with what reaches it.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Instead of applying a write.
    pub writes: Option<Trouble<WriteFailure>>,
    /// Instead of confirming a read.
    pub reads: Option<Trouble<ReadFailure>>,
    /// Instead of carrying an administrator's request out.
    pub admin: Option<AdminError>,
    /// What administrators asked for.
    pub asked: Vec<String>,
    /// Changes the time that new entries carry.
    pub time_ms: u64,
    /// What others had proposed by the time that the next batch of writes is applied, each list before one.
    pub ahead: VecDeque<Vec<Envelope>>,
}

#[derive(Clone, Copy, Debug)]
pub enum Trouble<F> {
    /// No answer ever.
    Silence,
    /// This failure.
    Failure(F),
}

/// Settings of a test's server.
pub struct Setting {
    pub request_timeout: Duration,
    pub requests_max: usize,
    pub request_bytes_max: usize,
    pub range_bytes_max: usize,
    pub limits: HttpLimits,
    pub hub: HubOptions,
    pub progress_interval: Duration,
    pub workers: usize,
    pub surfaces: SurfaceOptions,
    pub operations: Operations,
    pub auth: AuthOptions,
}

impl Default for Setting {
    fn default() -> Self {
        Setting {
            request_timeout: Duration::from_secs(10),
            requests_max: 1024,
            request_bytes_max: kvorum_model::limits::REQUEST_BYTES_MAX,
            range_bytes_max: 64 << 20,
            limits: HttpLimits::default(),
            hub: HubOptions::default(),
            progress_interval: Duration::from_secs(600),
            workers: 2,
            surfaces: SurfaceOptions::default(),
            operations: Operations::default(),
            auth: AuthOptions {
                bcrypt_cost: BCRYPT_COST_MIN,
                ..AuthOptions::default()
            },
        }
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub handle: ReplicaHandle,
    pub port: ReplicaPort,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub budget: Budget,
    pub metrics: Arc<Metrics>,
    pub http: Option<HttpServer>,
    mailbox: Arc<Mailbox<Stop>>,
    hub: WatchHandle,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Stop;

/// The state of a leader of two voters.
pub fn status() -> NodeStatus {
    let record = |id, name: &str| MemberRecord {
        id,
        name: name.to_owned(),
        peer_addresses: vec![format!("10.0.0.{id}:2380")],
        client_urls: vec![format!("http://10.0.0.{id}:2379")],
        incarnation: 1,
        feature_level: 1,
        promote_when_ready: false,
    };
    let members = BTreeMap::from([(MEMBER, record(MEMBER, "n7")), (OTHER, record(OTHER, "n9"))]);
    NodeStatus {
        id: MEMBER,
        term: TERM,
        leader: MEMBER,
        role: Role::Leader,
        commit: 30,
        applied: 29,
        flushed: 20,
        last: LogId { term: 2, index: 31 },
        persisted: 31,
        first: 5,
        revision: 1,
        configuration: Configuration::of_voters([MEMBER, OTHER]),
        peers: vec![],
        transferring_to: 0,
        connected: true,
        space_exhausted: false,
        writes_waiting: 0,
        reads_waiting: 0,
        leases: 0,
        leases_renewed: 0,
        leader_changes: 4,
        divergence: None,
        cluster: Arc::new(ClusterState {
            uuid: 0x1234,
            election_timeout_ms: 20,
            members,
            ..ClusterState::default()
        }),
    }
}

impl Server {
    pub fn start() -> Server {
        Server::with(Setting::default())
    }

    pub fn with(setting: Setting) -> Server {
        let machine = StateMachine::open(MemStore::new(), kvorum_mvcc::Options::default()).unwrap();
        let mailbox = Arc::new(Mailbox::new(setting.requests_max));
        let identity = Identity {
            cluster_id: CLUSTER,
            member_id: MEMBER,
            boot: BOOT,
            name: "n7".to_owned(),
            founders: Default::default(),
        };
        let options = HandleOptions {
            shards: setting.workers,
            requests_max: setting.requests_max,
            request_bytes_max: setting.request_bytes_max,
            txn_ops_max: kvorum_model::limits::TXN_OPS_MAX,
            request_timeout: setting.request_timeout,
            auth: setting.auth,
        };
        let figures = StoreFigures {
            disk_bytes: 12_345,
            sessions: 1,
        };
        let reader = machine.reader();
        let (handle, port) = replica_handle(
            identity,
            options,
            mailbox.clone(),
            status(),
            figures,
            Arc::new(reader.clone()),
        );
        let metrics = Arc::new(Metrics::default());
        let (hub, driver) = watch_hub(reader, setting.hub, setting.progress_interval, metrics.clone());
        let behaviour = Arc::new(Mutex::new(Behaviour {
            time_ms: 1,
            ..Behaviour::default()
        }));
        let budget = Budget::new(setting.range_bytes_max);
        let (phase, phases) = tokio::sync::watch::channel(Phase::Serving);
        let core = Core {
            handle: handle.clone(),
            reads: Reads::new(handle.clone(), budget.clone()),
            metrics: metrics.clone(),
            phase: phases,
            etcd_version: "3.6.12",
            started: Instant::now(),
            surfaces: Arc::new(setting.surfaces),
            forward_join: forwarder(behaviour.clone()),
            operations: setting.operations,
        };
        let listener = listen("listen-client", &Address::new("127.0.0.1", 0)).unwrap();
        let pending = handle.pending().clone();
        let background = move |worker| {
            let pending = pending.clone();
            async move { pending.dispatch(worker).await }
        };
        let listeners = vec![(listener, routes(&core, hub.clone()))];
        let http = HttpServer::start(listeners, setting.limits, setting.workers, phase, background).unwrap();
        let replica = {
            let (mailbox, port, behaviour, hub) =
                (mailbox.clone(), port.clone(), behaviour.clone(), hub.clone());
            std::thread::spawn(move || replicate(machine, &mailbox, &port, &behaviour, &hub))
        };
        let watch = std::thread::spawn(move || driver.run().unwrap());
        let threads = vec![replica, watch];
        let address = http.addresses()[0];
        Server {
            address,
            handle,
            port,
            behaviour,
            budget,
            metrics,
            http: Some(http),
            mailbox,
            hub,
            threads,
        }
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// Publishes another state of the replica.
    pub fn publish(&self, change: impl FnOnce(&mut NodeStatus)) {
        let mut status = status();
        change(&mut status);
        self.port.publish_node(status);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.mailbox.send(Stop);
        self.hub.stop();
        drop(self.http.take());
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "a thread of the test's replica panicked"
            );
        }
    }
}

/// The leader, as another member hands announcements to it: it says who asked for what.
fn forwarder(behaviour: Arc<Mutex<Behaviour>>) -> ForwardJoin {
    Arc::new(move |leader, request| {
        let mut behaviour = behaviour.lock().unwrap();
        behaviour.asked.push(format!("to {leader}: {}", request.name));
        let tries = behaviour.asked.len();
        Box::pin(async move {
            if tries == 1 {
                return Err(tonic::Status::unavailable("not leader"));
            }
            Ok(kvorum_proto::kvorum::v1::JoinResponse::default())
        })
    })
}

/// A cluster of one, without a log: every command is applied at once.
fn replicate(
    mut machine: StateMachine<MemStore>,
    mailbox: &Mailbox<Stop>,
    port: &ReplicaPort,
    behaviour: &Mutex<Behaviour>,
    hub: &WatchHandle,
) {
    let (mut batch, started) = (Batch::default(), Instant::now());
    loop {
        mailbox.take(&mut batch, Instant::now() + Duration::from_millis(20));
        let now = behaviour.lock().unwrap().clone();
        let seqs: Vec<u64> = batch.writes.iter().map(|write| write.seq).collect();
        match now.writes {
            None => {
                let ahead = match batch.writes.is_empty() {
                    true => None,
                    false => behaviour.lock().unwrap().ahead.pop_front(),
                };
                apply(
                    &mut machine,
                    ahead.unwrap_or_default(),
                    &mut batch,
                    now.time_ms,
                    port,
                    hub,
                );
            }
            Some(Trouble::Silence) => {}
            Some(Trouble::Failure(failure)) => port.pending().fail_writes(&seqs, failure.into()),
        }
        let ids: Vec<u64> = batch.reads.iter().map(|read| read.id).collect();
        match now.reads {
            None => port.pending().reads_ready(&ids),
            Some(Trouble::Silence) => {}
            Some(Trouble::Failure(failure)) => port.pending().fail_reads(&ids, failure.into()),
        }
        let answers = batch.leases.iter().map(|ask| {
            let granted = machine
                .leases()
                .iter()
                .find(|lease| lease.id == ask.lease)
                .map(|lease| lease.ttl_s);
            let missing = if ask.ask == LeaseAsk::KeepAlive { 0 } else { -1 };
            let answer = LeaseAnswer {
                ttl_s: granted.unwrap_or(missing),
                granted_s: granted.unwrap_or(0),
            };
            (ask.id, Ok(answer))
        });
        port.pending().leases_done(answers.collect());
        for admin in &batch.admin {
            behaviour
                .lock()
                .unwrap()
                .asked
                .push(format!("{:?}", admin.request));
            let request = match &admin.request {
                AdminRequest::Checked { request, .. } => request,
                request => request,
            };
            let reply = match request {
                AdminRequest::AddLearner(_) | AdminRequest::Replace { .. } => AdminReply::Changed(Some(11)),
                AdminRequest::Register(record) if record.name == "n9" => AdminReply::Known(OTHER),
                AdminRequest::Register(_) => AdminReply::Changed(Some(11)),
                AdminRequest::Transfer(_) => AdminReply::TransferStarted,
                AdminRequest::Promote(_) | AdminRequest::Remove(_) => AdminReply::Changed(None),
                AdminRequest::Checked { .. } => unreachable!("nothing is checked twice"),
            };
            let is_transfer = matches!(admin.request, AdminRequest::Transfer(_));
            if now.admin.is_none() && !is_transfer {
                let mut status = status();
                match request {
                    AdminRequest::Remove(id) => drop(status.configuration.voters.remove(id)),
                    AdminRequest::AddLearner(_) | AdminRequest::Replace { .. } => {
                        status.configuration.learners.insert(11);
                    }
                    AdminRequest::Register(record) => {
                        status.configuration.learners.insert(11);
                        let record = MemberRecord {
                            id: 11,
                            ..record.clone()
                        };
                        Arc::make_mut(&mut status.cluster).members.insert(11, record);
                    }
                    _ => {}
                }
                port.publish_node(status);
            }
            let result = now.admin.clone().map_or(Ok(reply), Err);
            port.pending().admin_done(admin.id, result);
        }
        if !batch.others.is_empty() {
            return;
        }
        // What a test's physical compaction waits for.
        machine.maintenance(started.elapsed().as_millis() as u64).unwrap();
        batch.clear();
    }
}

fn apply(
    machine: &mut StateMachine<MemStore>,
    ahead: Vec<Envelope>,
    batch: &mut Batch<Stop>,
    time_ms: u64,
    port: &ReplicaPort,
    hub: &WatchHandle,
) {
    let first = machine.applied().1 + 1;
    let commands = batch.writes.drain(..).map(|write| write.command);
    let entries: Vec<ApplyEntry> = (first..)
        .zip(ahead.iter().map(Envelope::encode).chain(commands))
        .map(|(index, command)| {
            let mut command = command.to_vec();
            Envelope::stamp(&mut command, time_ms);
            ApplyEntry {
                index,
                term: TERM,
                payload: Payload::Command(command.into()),
            }
        })
        .collect();
    if entries.is_empty() {
        return;
    }
    let outcome = machine.apply(&entries).unwrap();
    port.note_auth(outcome.auth);
    hub.publish(outcome.events);
    port.complete(outcome.replies);
}
