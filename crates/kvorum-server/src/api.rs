//! What all services of a member share, and the table of them.

use std::sync::Arc;

use kvorum_model::{Alarm, Command, CommandLimits, Error, Revision};
use kvorum_mvcc::Applied;
use kvorum_proto::etcdserverpb::ResponseHeader;
use kvorum_proto::etcdserverpb::auth_server::AuthServer;
use kvorum_proto::etcdserverpb::cluster_server::ClusterServer;
use kvorum_proto::etcdserverpb::kv_server::KvServer;
use kvorum_proto::etcdserverpb::lease_server::LeaseServer;
use kvorum_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use kvorum_proto::etcdserverpb::watch_server::WatchServer;
use kvorum_proto::grpc_health::v1::health_server::HealthServer;
use kvorum_proto::kv::kv_store_server::KvStoreServer;
use kvorum_proto::kv_pb::kv_service_server::KvServiceServer;
use kvorum_proto::kvorum::v1::kvorum_server::KvorumServer;
use kvorum_proto::kvorum::v1::peer_server::PeerServer;
use kvorum_proto::raft_pb::raft_service_server::RaftServiceServer;
use kvorum_proto::v3electionpb::election_server::ElectionServer;
use kvorum_proto::v3lockpb::lock_server::LockServer;
use tokio::sync::watch;
use tonic::{Response, Status};

use crate::compat::{RaftKv, RaftKvStore};
use crate::etcd_options::Serves;
use crate::guard::Guard;
use crate::handle::{ReadError, ReplicaHandle, WriteError};
use crate::http::Phase;
use crate::joining::ForwardJoin;
use crate::metrics::{Method, Metrics, SLOW_READ_INDEX};
use crate::operations::Operations;
use crate::options::SurfaceOptions;
use crate::reads::Reads;
use crate::rest::RestApi;
use crate::routes::{Only, Routes, RoutesBuilder, Services, not_by_learner};
use crate::runtime::PeerService;
use crate::services::{
    AuthService, ClusterService, Context, ElectionService, EtcdKv, EtcdLease, EtcdWatch, HealthService,
    KvorumService, LockService, MaintenanceService,
};
use crate::watching::WatchHandle;

/// What gRPC adds to a request of the largest size: above it the message is not even read (etcd's grpcOverheadBytes).
pub const WIRE_OVERHEAD_BYTES: usize = 512 * 1024;

/// What etcd's quota counts for a record beside key and value.
const RECORD_OVERHEAD_BYTES: usize = 256;

/// What changes users, roles and permissions.
const AUTH_WRITES: &[&str] = &[
    "AuthEnable",
    "AuthDisable",
    "Authenticate",
    "UserAdd",
    "UserDelete",
    "UserChangePassword",
    "UserGrantRole",
    "UserRevokeRole",
    "RoleAdd",
    "RoleDelete",
    "RoleGrantPermission",
    "RoleRevokePermission",
];

/// What all services share. Cheap to clone.
#[derive(Clone)]
pub struct Core {
    /// The replica.
    pub handle: ReplicaHandle,
    /// Reads of its state.
    pub reads: Reads,
    /// Where they count.
    pub metrics: Arc<Metrics>,
    /// Where the server is in its life.
    pub phase: watch::Receiver<Phase>,
    /// The etcd version that this member says it is.
    pub etcd_version: &'static str,
    /// When this member started.
    pub started: std::time::Instant,
    /// What the replaced systems' surfaces are told.
    pub surfaces: Arc<SurfaceOptions>,
    /// How a joiner's announcement reaches the leader, should another member lead.
    pub forward_join: ForwardJoin,
    /// What operators' requests need of the member.
    pub operations: Operations,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// The header of an answer that saw this revision.
    pub(crate) fn header(&self, revision: Revision) -> ResponseHeader {
        let identity = self.handle.identity();
        ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            revision,
            raft_term: self.handle.term(),
        }
    }

    /// The header of a write's answer. The status may have been published before its term began.
    pub(crate) fn header_of(&self, applied: &Applied) -> ResponseHeader {
        let header = self.header(applied.revision);
        ResponseHeader {
            raft_term: header.raft_term.max(applied.term),
            ..header
        }
    }

    pub(crate) async fn write(&self, context: &Context, command: Command) -> Result<Applied, WriteError> {
        self.write_within(&self.handle.limits(), context, command).await
    }

    /// [`Self::write`] with limits of the surface's own.
    pub(crate) async fn write_within(
        &self,
        limits: &CommandLimits,
        context: &Context,
        command: Command,
    ) -> Result<Applied, WriteError> {
        context.check_leader_for_write(&self.handle)?;
        let caller = self
            .permit_command(limits, context, &command)
            .await
            .map_err(WriteError::Refused)?;
        let needs_space = command.needs_space();
        if needs_space && !self.has_room_for(command.encoded_len() + RECORD_OVERHEAD_BYTES) {
            self.note_full();
            return Err(WriteError::Refused(Error::NoSpace));
        }
        let propose = async |caller| {
            let (command, session) = (command.clone(), context.session);
            let proposed = self
                .handle
                .write_within(limits, command, caller, session, context.deadline);
            proposed.await
        };
        let mut result = propose(caller.clone()).await;
        // This member was behind when it looked who asks; it is not any more, and nothing was applied. (A session keeps
        // the refusal: under the same number nothing else can come of it.)
        if let Ok(applied) = &result
            && context.session.is_none()
            && matches!(applied.result, Err(Error::OldAuthRevision | Error::UserEmpty))
        {
            let again = self.permit_command(limits, context, &command).await;
            let again = again.map_err(WriteError::Refused)?;
            if again != caller {
                result = propose(again).await;
            }
        }
        let full = WriteError::Refused(Error::NoSpace);
        if needs_space && result.as_ref() == Err(&full) {
            self.note_full();
        }
        if !matches!(result, Ok(_) | Err(WriteError::Refused(_))) {
            self.metrics.proposals_failed.add_one();
        }
        result
    }

    /// A write was refused for want of space. Where the alarm is to stay, as in etcd, all members hear of it; the
    /// refusal does not wait for that.
    fn note_full(&self) {
        let member = self.handle.identity().member_id;
        let alarm = (Alarm::NoSpace, member);
        if !self.operations.quota.alarm_stays || self.handle.state().cluster().alarms.contains(&alarm) {
            return;
        }
        let handle = self.handle.clone();
        let raise = Command::SetAlarm {
            alarm: Alarm::NoSpace,
            member,
            raised: true,
        };
        tokio::spawn(async move {
            if let Err(error) = handle.write(raise, None, None, handle.deadline(None)).await {
                tracing::warn!("the alarm for want of space was not raised: {error}");
            }
        });
    }

    /// Carries a call out and counts it.
    pub(crate) async fn counted<T>(
        &self,
        method: Method,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let started = self.metrics.begin(method);
        self.metrics.end(method, started, call.await).map(Response::new)
    }

    /// A learner's own state is all that it may answer from.
    pub(crate) fn refuse_as_learner(&self) -> Result<(), Status> {
        match self.handle.is_learner() {
            true => Err(not_by_learner()),
            false => Ok(()),
        }
    }

    pub(crate) async fn barrier(&self, context: &Context) -> Result<(), ReadError> {
        let started = std::time::Instant::now();
        let result = context.barrier(&self.handle).await;
        if started.elapsed() > SLOW_READ_INDEX {
            self.metrics.slow_read_indexes.add_one();
        }
        if result.is_err() {
            self.metrics.read_indexes_failed.add_one();
        }
        result
    }

    /// A refusal for surfaces whose texts are not etcd's: with the limit that was passed, and the option behind it.
    pub(crate) fn explain(&self, error: &Error) -> String {
        let limits = self.handle.limits();
        match error {
            Error::RequestTooLarge => {
                format!(
                    "{error}: the limit is {} bytes (--request-bytes-max)",
                    limits.request_bytes_max
                )
            }
            error => error.to_string(),
        }
    }
}

/// All services of the client port.
pub fn routes(core: &Core, watch: WatchHandle) -> Routes {
    routes_of(core, watch, Serves::All)
}

/// What a socket for clients serves.
pub(crate) fn routes_of(core: &Core, watch: WatchHandle, serves: Serves) -> Routes {
    let all = || add_services(RoutesBuilder::default(), core, watch.clone());
    match serves {
        Serves::All => all().rest(guarded(core)),
        Serves::Grpc => all().purpose("gRPC is served here; HTTP is on --listen-client-http-urls"),
        Serves::Http => all()
            .rest(guarded(core))
            .without_grpc()
            .purpose("gRPC is on --listen-client-urls"),
        Serves::Metrics => {
            let core = core.clone();
            RoutesBuilder::default()
                .rest(|services| {
                    let paths = &["/metrics", "/health", "/livez", "/readyz"];
                    Only::new(RestApi::new(core, services), paths)
                })
                .purpose("only /metrics, /health, /livez and /readyz are served here")
        }
    }
    .build()
}

/// The REST routes and the JSON gateway to these gRPC services.
fn guarded(core: &Core) -> impl FnOnce(Services) -> Guard<RestApi> + use<> {
    let core = core.clone();
    |services| {
        let (hosts, gateway) = (core.operations.hosts.clone(), core.operations.gateway);
        Guard::new(RestApi::new(core, services), hosts, gateway)
    }
}

/// The same and the service of peers, for a port that serves both.
pub(crate) fn routes_with(core: &Core, watch: WatchHandle, peers: PeerServer<PeerService>) -> Routes {
    add_services(RoutesBuilder::default(), core, watch)
        .grpc(peers, &[])
        .rest(guarded(core))
        .build()
}

/// Adds the services of clients to a table, the most used first.
pub fn add_services(builder: RoutesBuilder, core: &Core, watch: WatchHandle) -> RoutesBuilder {
    let wire_max = core.handle.limits().request_bytes_max + WIRE_OVERHEAD_BYTES;
    let maintenance = MaintenanceServer::new(MaintenanceService::new(core.clone()));
    let kv_store = KvStoreServer::new(RaftKvStore::new(core.clone()));
    let raft_kv = KvServiceServer::new(RaftKv::new(core.clone()));
    let lock = LockServer::new(LockService::new(core.clone(), watch.clone()));
    let election = ElectionServer::new(ElectionService::new(core.clone(), watch.clone()));
    let raft_info = RaftServiceServer::new(RaftKv::new(core.clone()));
    let handle = core.handle.clone();
    builder
        .learner(move || handle.is_learner())
        .counting(core.metrics.clone())
        .grpc(
            KvServer::new(EtcdKv::new(core.clone())).max_decoding_message_size(wire_max),
            &["Put", "DeleteRange", "Txn", "Compact"],
        )
        .grpc(
            WatchServer::new(EtcdWatch::new(core.clone(), watch)).max_decoding_message_size(wire_max),
            &[],
        )
        .grpc(
            LeaseServer::new(EtcdLease::new(core.clone())).max_decoding_message_size(wire_max),
            &["LeaseGrant", "LeaseRevoke"],
        )
        .grpc(lock.max_decoding_message_size(wire_max), &["Lock", "Unlock"])
        .grpc(
            election.max_decoding_message_size(wire_max),
            &["Campaign", "Proclaim", "Resign"],
        )
        .grpc(
            KvorumServer::new(KvorumService::new(core.clone())).max_decoding_message_size(wire_max),
            &[
                "RegisterSession",
                "MemberAdd",
                "MemberPromote",
                "MemberRemove",
                "MemberReplace",
                "Join",
            ],
        )
        .grpc(kv_store.max_decoding_message_size(wire_max), &["Put", "Delete"])
        .grpc(raft_kv.max_decoding_message_size(wire_max), &["Set", "Del"])
        .grpc(raft_info.max_decoding_message_size(wire_max), &[])
        .grpc(maintenance.max_decoding_message_size(wire_max), &[])
        .grpc(
            ClusterServer::new(ClusterService::new(core.clone())).max_decoding_message_size(wire_max),
            &[],
        )
        .grpc(
            AuthServer::new(AuthService::new(core.clone())).max_decoding_message_size(wire_max),
            AUTH_WRITES,
        )
        .grpc(
            HealthServer::new(HealthService::new(core.clone())).max_decoding_message_size(wire_max),
            &[],
        )
}
