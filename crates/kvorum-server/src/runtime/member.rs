//! A running member: its threads, its peers and its ports, from an open directory until it is stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvorum_mvcc::watch::HubOptions;
use kvorum_mvcc::{StateMachine, StoreError, lsm};
use kvorum_node::recovery::{Replica, assemble};
use kvorum_node::{AdminRequest, Input};
use kvorum_proto::kvorum::v1::peer_server::PeerServer;
use kvorum_wal::VoteCopy;
use tokio::sync::{oneshot, watch};
use tonic::Status;

use super::apply_thread::{Applier, ApplyWork};
use super::clock;
use super::directory::{Directory, StartError};
use super::ending::{Ending, thread};
use super::figures::LogFigures;
use super::handshake::Acquaintance;
use super::identity::{founder_names, founders_by_id};
use super::leadership::Leadership;
use super::listeners::ClientListener;
use super::log_thread::{LogWork, run_reader, run_writer};
use super::node_options::{node_options, random};
use super::peer_service::{Farewell, PeerService};
use super::peers::{FRAME_BYTES_MAX, Inbox, OnEnd, PeerNet, PeerTimeouts, WINDOW_BYTES};
use super::replica_thread::{self, End, Outlets};
use super::roster::{cluster_watcher, peers};
use super::serve::ServeError;
use super::snapshots::{Built, SnapshotReceiver, SnapshotSender, Stage};
use super::space::SpaceWatch;
use crate::api::{self, Core};
use crate::budget::Budget;
use crate::etcd_options::{Serves, WATCH_PROGRESS_MIN};
use crate::handle::{
    HandleOptions, Identity as Shown, ReplicaHandle, ReplicaPort, StoreFigures, replica_handle,
};
use crate::http::{HttpLimits, HttpServer, Phase};
use crate::mailbox::Mailbox;
use crate::metrics::{Detail, Metrics};
use crate::operations::{MemberIds, Operations};
use crate::options::ServeOptions;
use crate::reads::Reads;
use crate::routes::RoutesBuilder;
use crate::watching::{WatchHandle, watch_hub};

/// Between two looks at whether a newcomer votes.
const VOTE_POLL: Duration = Duration::from_millis(10);

/// A running member without its client port.
pub(super) struct Member {
    pub(super) handle: ReplicaHandle,
    pub(super) port: ReplicaPort,
    net: PeerNet,
    watch: WatchHandle,
    metrics: Arc<Metrics>,
    ended: watch::Receiver<Option<End>>,
    pub(super) inbox: Inbox,
    stop: Arc<AtomicBool>,
    log_work: mpsc::Sender<LogWork>,
    apply_work: mpsc::Sender<ApplyWork>,
    threads: Vec<JoinHandle<()>>,
    /// Where the client ports are in their life.
    phase: watch::Sender<Phase>,
    /// What serves peers.
    peer_service: PeerServer<PeerService>,
    /// The peers' own port; `None` if they share one with clients.
    _peer_port: Option<HttpServer>,
}

impl Member {
    pub(super) fn start(
        options: &ServeOptions,
        runtime: &tokio::runtime::Runtime,
        peer_listeners: Vec<std::net::TcpListener>,
        mut directory: Directory,
    ) -> Result<Member, ServeError> {
        let runtime = runtime.handle().clone();
        let store_options = lsm::Options {
            memtable_bytes: options.memtable_bytes as u64,
            stagger: Some(directory.identity.member),
            cache_bytes: options.cache_bytes as u64,
            ..lsm::Options::default()
        };
        let machine_options = kvorum_mvcc::Options {
            removals_per_second: options.etcd.removals_per_second,
            ..kvorum_mvcc::Options::default()
        };
        let (wal, recovered) = directory.open_log()?;
        if recovered.report.torn_tail.is_some() {
            tracing::info!("the log's unacknowledged tail was cut off by a crash, and is cut");
        }
        if matches!(recovered.report.vote_copy, VoteCopy::Missing | VoteCopy::Bad) {
            tracing::warn!(
                "the second copy of the vote beside the log was missing or damaged; it is written anew from the log"
            );
        }
        let store = directory.open_store(&recovered, &store_options)?;
        let install = store.install_record().map_err(StartError::other)?;
        let machine = StateMachine::open(store, machine_options.clone()).map_err(StartError::other)?;
        let identity = directory.identity.clone();
        let boot = random()? as u64;
        let node_options = node_options(options, &identity, boot)?;
        let record = node_options.record.clone();
        let installed = install.map(|record| (record.index, record.term));
        let Replica { node, log, apply } =
            assemble(node_options, wal, recovered, machine, installed, clock::now())
                .map_err(StartError::other)?;
        if let Some(record) = install {
            let store = apply.machine().store();
            store.clear_install_record(record).map_err(StartError::other)?;
        }

        let workers = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        let mailbox: Arc<Mailbox<Input>> = Arc::new(Mailbox::new(options.requests_max));
        let shown = Shown {
            cluster_id: identity.cluster_id(),
            member_id: identity.member,
            boot,
            name: identity.name.clone(),
            founders: founder_names(options),
        };
        let handle_options = HandleOptions {
            shards: workers,
            requests_max: options.requests_max,
            request_bytes_max: options.request_bytes_max,
            txn_ops_max: options.etcd.txn_ops_max,
            request_timeout: options.request_limit(),
            auth: options.auth,
        };
        let (handle, port) = replica_handle(
            shown,
            handle_options,
            mailbox.clone(),
            node.status(),
            StoreFigures::default(),
            Arc::new(apply.machine().reader()),
        );
        let inbox: Inbox = {
            let mailbox = mailbox.clone();
            Arc::new(move |input| mailbox.send(input))
        };
        let (ending, ended) = watch::channel(None);
        let ending = Ending(Arc::new(ending));
        let on_end: OnEnd = {
            let ending = ending.clone();
            Arc::new(move |end| ending.tell(end))
        };

        let metrics = Arc::new(Metrics::new(Detail {
            rpc_durations: options.etcd.rpc_durations,
            slow_request: options.etcd.slow_request,
            quota_bytes: options.quota.bytes as u64,
        }));
        metrics
            .committed_before
            .store(handle.status().commit, Ordering::Relaxed);
        let acquaintance = Arc::new(Acquaintance::new(identity.clone(), boot, record));
        let cluster = apply.machine().cluster();
        let net = PeerNet::new(
            acquaintance.clone(),
            inbox.clone(),
            on_end,
            metrics.clone(),
            runtime.clone(),
            PeerTimeouts {
                vote: options.vote_timeout,
                append: options.append_timeout,
            },
        );
        net.set_peers(peers(options, &identity, &cluster), &cluster.removed);
        let _ = acquaintance.learn(&cluster);
        let (built, stage) = (Built::default(), Stage::default());
        let (log_need, store_need) = directory.needs(options);
        let receiver = SnapshotReceiver::new(
            directory.store_dir(),
            store_options,
            machine_options,
            stage.clone(),
            inbox.clone(),
        );
        let (phase, phases) = watch::channel(Phase::Serving);
        let farewell = options.shares_peer_port().then(|| Farewell {
            phase: phases,
            pending: port.pending().clone(),
        });
        let peer_service = PeerServer::new(
            PeerService::new(
                acquaintance.clone(),
                inbox.clone(),
                net.clone(),
                receiver,
                metrics.clone(),
                handle.clone(),
                farewell,
            )
            .open_to_joiners(options.surfaces.open_join),
        )
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
        let peer_port = (!peer_listeners.is_empty())
            .then(|| open_peer_port(peer_listeners, peer_service.clone()))
            .transpose()?;

        let (log_work, log_queue) = mpsc::channel();
        let (fetch_work, fetch_queue) = mpsc::channel();
        let (apply_work, apply_queue) = mpsc::channel();
        let figures = LogFigures::on(&metrics);
        let hub_options = HubOptions {
            ring_bytes: options.watch_ring_bytes,
            stream_bytes_max: options.watch_stream_bytes_max,
            ..HubOptions::default()
        };
        let (watch, watch_driver) = watch_hub(
            apply.machine().reader(),
            hub_options,
            options.etcd.watch_progress.max(WATCH_PROGRESS_MIN),
            metrics.clone(),
        );
        let sender = SnapshotSender {
            acquaintance: acquaintance.clone(),
            net: net.clone(),
            built: built.clone(),
            inbox: inbox.clone(),
            runtime: runtime.clone(),
        };
        let outlets = Outlets {
            pending: port.pending().clone(),
            log: log_work.clone(),
            fetch: fetch_work,
            apply: apply_work.clone(),
            peers: net.clone(),
            send_snapshot: Box::new(move |message| sender.send(message)),
            cluster_changed: cluster_watcher(
                options.clone(),
                directory,
                acquaintance,
                net.clone(),
                ending.clone(),
            ),
            publish: {
                let (port, leadership) = (port.clone(), Leadership::new(&options.etcd.version));
                Box::new(move |status| {
                    leadership.note(&status);
                    port.publish_node(status);
                })
            },
        };
        let space = Arc::new(SpaceWatch::new(log_need, store_need, inbox.clone()));
        let applier = Applier {
            driver: apply,
            inbox: inbox.clone(),
            port: port.clone(),
            metrics: metrics.clone(),
            watch: watch.clone(),
            built,
            stage,
            wanted: Vec::new(),
            figures_at: 0,
            flushed_told: 0,
            full: false,
            since_full: 0,
            piece_bytes: options.memtable_bytes / 4,
            space: space.clone(),
            defragmenting: Vec::new(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let log_reader = log.reader();
        let threads = vec![
            thread("log", &ending, {
                let inbox = inbox.clone();
                move || {
                    run_writer(log, &log_queue, &inbox, &space, &figures)
                        .err()
                        .map(|error| End::Fatal(error.to_string()))
                }
            })?,
            thread("log-reader", &ending, {
                let inbox = inbox.clone();
                move || {
                    run_reader(&log_reader, &fetch_queue, &inbox);
                    None
                }
            })?,
            thread("apply", &ending, move || {
                applier.run(&apply_queue).err().map(End::Fatal)
            })?,
            thread("watch", &ending, move || {
                watch_driver
                    .run()
                    .err()
                    .map(|error| End::Fatal(error.to_string()))
            })?,
            thread("replica", &ending, {
                let stop = stop.clone();
                move || Some(replica_thread::run(node, &mailbox, &outlets, &stop))
            })?,
        ];
        Ok(Member {
            handle,
            port,
            net,
            watch,
            metrics,
            ended,
            inbox,
            stop,
            log_work,
            apply_work,
            threads,
            phase,
            peer_service,
            _peer_port: peer_port,
        })
    }

    /// What the services share.
    pub(super) fn core(&self, options: &ServeOptions) -> Core {
        Core {
            handle: self.handle.clone(),
            reads: Reads::new(self.handle.clone(), Budget::new(options.range_bytes_max)),
            metrics: self.metrics.clone(),
            phase: self.phase.subscribe(),
            // One short text for the life of the process.
            etcd_version: options.etcd.version.clone().leak(),
            started: Instant::now(),
            surfaces: Arc::new(options.surfaces.clone()),
            forward_join: {
                let net = self.net.clone();
                Arc::new(move |leader, request| {
                    let net = net.clone();
                    Box::pin(async move { net.forward_join(leader, request).await })
                })
            },
            operations: self.operations(options),
        }
    }

    pub(super) fn open_client_port(
        &self,
        core: &Core,
        options: &ServeOptions,
        listeners: Vec<ClientListener>,
        workers: usize,
    ) -> Result<HttpServer, ServeError> {
        let shared = api::routes_with(core, self.watch.clone(), self.peer_service.clone());
        let tables = Serves::ALL.map(|serves| api::routes_of(core, self.watch.clone(), serves));
        let listeners = listeners.into_iter().map(|listener| {
            let routes = match listener.is_shared {
                true => &shared,
                false => &tables[listener.serves as usize],
            };
            (listener.socket, routes.clone())
        });
        let limits = HttpLimits {
            connections_max: options.connections_max,
            streams_max: options.etcd.streams_max,
            ping_interval: options.etcd.ping_interval,
            ping_timeout: options.etcd.ping_timeout,
            ..HttpLimits::default()
        };
        let pending = self.port.pending().clone();
        let background = move |worker| {
            let pending = pending.clone();
            async move { pending.dispatch(worker).await }
        };
        let server = HttpServer::start(
            listeners.collect(),
            limits,
            workers,
            self.phase.clone(),
            background,
        )
        .map_err(|error| ServeError::Listen(format!("cannot start the client port's threads: {error}")))?;
        let traffic = server.traffic();
        self.metrics.source(move |page| traffic.render(page));
        Ok(server)
    }

    pub(super) fn is_voter(&self) -> bool {
        let status = self.handle.status();
        status.configuration.voters.contains(&status.id)
    }

    /// Waits until this member votes; whether it does, and neither must end nor was told to stop.
    pub(super) async fn wait_for_vote(&self, stopped: &watch::Receiver<bool>) -> bool {
        tracing::info!("clients are served as soon as this member votes");
        let mut stopped = stopped.clone();
        let votes = async {
            while !self.is_voter() {
                tokio::time::sleep(VOTE_POLL).await;
            }
        };
        tokio::select! {
            () = votes => true,
            _ = stopped.wait_for(|stopped| *stopped) => false,
            _ = self.ended() => false,
        }
    }

    fn operations(&self, options: &ServeOptions) -> Operations {
        let (net, work) = (self.net.clone(), Mutex::new(self.apply_work.clone()));
        Operations {
            forward_change: Arc::new(move |leader, request| {
                let net = net.clone();
                Box::pin(async move { net.forward_change(leader, request).await })
            }),
            defragment: Arc::new(move || {
                let work = work.lock().expect("no panic while held").clone();
                Box::pin(defragmented(work))
            }),
            quota: options.quota,
            learners_max: options.etcd.learners_max,
            strict_reconfiguration: options.etcd.strict_reconfiguration,
            ids: match options.etcd.identity {
                Some(_) => MemberIds::Etcd,
                None => MemberIds::Counted,
            },
            founders: founders_by_id(options),
            hosts: options.etcd.hosts.clone(),
            gateway: options.etcd.gateway,
        }
    }

    /// Resolves when the member ends by itself.
    pub(super) async fn ended(&self) -> End {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().expect("waited for it"),
            Err(_) => End::Fatal("its threads are gone".to_owned()),
        }
    }

    /// A leader hands leadership over before it goes, so that writes pause for a moment only.
    pub(super) fn hand_over(&self, runtime: &tokio::runtime::Runtime, patience: Duration) {
        let status = self.handle.status();
        if status.leader != status.id || status.configuration.voters.len() < 2 {
            return;
        }
        let deadline = Instant::now() + patience;
        runtime.block_on(async {
            if let Err(error) = self.handle.admin(AdminRequest::Transfer(0), deadline).await {
                tracing::warn!("leadership could not be handed over: {error:?}");
                return;
            }
            while self.handle.leader() == status.id && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    /// Ends the threads; waits for those that end.
    pub(super) fn stop(mut self) {
        self.port.pending().close();
        self.stop.store(true, Ordering::Release);
        (self.inbox)(Input::Tick);
        // A thread that is gone already takes no work.
        let _ = self.log_work.send(LogWork::Stop);
        let _ = self.apply_work.send(ApplyWork::Stop);
        self.watch.stop();
        self.net.close();
        let deadline = Instant::now() + Duration::from_secs(2);
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            if thread.is_finished() && thread.join().is_err() {
                tracing::error!("a thread of the member panicked");
            }
        }
    }
}

/// Rewrites the store as soon as the applier is ready for it. When it is done, the published figures are of what is
/// left: who then disarms an alarm is not refused, and the alarm not raised again, for what is gone.
async fn defragmented(applier: mpsc::Sender<ApplyWork>) -> Result<(), Status> {
    let stopped = || Status::unavailable("etcdserver: server stopped");
    // An applier that is gone drops the senders.
    let (sender, ready) = oneshot::channel();
    let _ = applier.send(ApplyWork::Defragment(sender));
    let rewrite = ready.await.map_err(|_| stopped())?;
    let rewritten = tokio::task::spawn_blocking(rewrite)
        .await
        .map_err(|_| stopped())?;
    rewritten.map_err(|error| match error {
        StoreError::NoSpace => Status::resource_exhausted(error.to_string()),
        error => Status::unavailable(error.to_string()),
    })?;
    let (sender, published) = oneshot::channel();
    let _ = applier.send(ApplyWork::Figures(sender));
    published.await.map_err(|_| stopped())
}

fn open_peer_port(
    listeners: Vec<std::net::TcpListener>,
    service: PeerServer<PeerService>,
) -> Result<HttpServer, ServeError> {
    let routes = RoutesBuilder::default()
        .grpc(service, &[])
        .purpose("this is a member's peer port; clients use its client port (--listen-client)")
        .build();
    let limits = HttpLimits {
        connections_max: 256,
        ping_interval: Duration::from_secs(5),
        ping_timeout: Duration::from_secs(5),
        stream_window_bytes: WINDOW_BYTES,
        connection_window_bytes: WINDOW_BYTES,
        ..HttpLimits::default()
    };
    let (phase, _) = watch::channel(Phase::Serving);
    let listeners = listeners.into_iter().map(|listener| (listener, routes.clone()));
    HttpServer::start(listeners.collect(), limits, 1, phase, |_| std::future::pending())
        .map_err(|error| ServeError::Listen(format!("cannot start the peer port's threads: {error}")))
}
