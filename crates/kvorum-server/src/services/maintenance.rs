//! etcd's Maintenance and Cluster services, as far as they are served: status, alarms to look at, leadership
//! transfer, the list of members. The rest answers `Unimplemented`.

use kvorum_model::MemberRecord;
use kvorum_node::{AdminError, AdminRequest, NodeStatus};
use kvorum_proto::etcdserverpb::cluster_server::Cluster;
use kvorum_proto::etcdserverpb::maintenance_server::Maintenance;
use kvorum_proto::etcdserverpb::{self as pb, alarm_request::AlarmAction};
use tonic::{Request, Response, Status};

use super::Context;
use crate::api::Core;
use crate::metrics::Method;

/// See the module.
#[derive(Clone, Debug)]
pub struct MaintenanceService(Core);

impl MaintenanceService {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        MaintenanceService(core)
    }

    fn status_of_member(&self) -> pb::StatusResponse {
        let core = &self.0;
        let (status, facts, figures) = (
            core.handle.status(),
            core.handle.state().facts(),
            core.handle.figures(),
        );
        let mut errors = Vec::new();
        if status.leader == 0 {
            errors.push("etcdserver: no leader".to_owned());
        }
        errors.extend(alarms(&status).iter().map(|alarm| {
            format!(
                "memberID:{} alarm:{}",
                alarm.member_id,
                pb::AlarmType::Nospace.as_str_name()
            )
        }));
        pb::StatusResponse {
            header: Some(core.header(facts.revision)),
            version: core.etcd_version.to_owned(),
            db_size: figures.disk_bytes as i64,
            leader: status.leader,
            raft_index: status.commit,
            raft_term: status.term,
            raft_applied_index: status.applied,
            errors,
            db_size_in_use: figures.disk_bytes as i64,
            is_learner: status.configuration.learners.contains(&status.id),
            storage_version: storage_version(core.etcd_version),
            db_size_quota: 0,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }
    }
}

/// `X.Y.0` of `X.Y.Z`, as etcd names storage formats.
pub(crate) fn storage_version(version: &str) -> String {
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    format!("{minor}.0")
}

/// The alarms that this member has raised.
fn alarms(status: &NodeStatus) -> Vec<pb::AlarmMember> {
    let no_space = pb::AlarmMember {
        member_id: status.id,
        alarm: pb::AlarmType::Nospace.into(),
    };
    status.space_exhausted.then_some(no_space).into_iter().collect()
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = tokio_stream::Empty<Result<pb::SnapshotResponse, Status>>;

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let started = self.0.metrics.begin(Method::Status);
        self.0
            .metrics
            .end(Method::Status, started, Ok(self.status_of_member()))
            .map(Response::new)
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let request = request.into_inner();
        if request.action() != AlarmAction::Get {
            return Err(Status::unimplemented(
                "kvorum: alarms rise and clear by themselves",
            ));
        }
        let wanted = |alarm: &pb::AlarmMember| {
            (request.member_id == 0 || request.member_id == alarm.member_id)
                && (request.alarm() == pb::AlarmType::None || request.alarm == alarm.alarm)
        };
        let alarms = alarms(&self.0.handle.status())
            .into_iter()
            .filter(wanted)
            .collect();
        let header = self.0.header(self.0.handle.state().facts().revision);
        Ok(Response::new(pb::AlarmResponse {
            header: Some(header),
            alarms,
        }))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let target = request.into_inner().target_id;
        let status = self.0.handle.status();
        if !status.configuration.voters.contains(&target) {
            return Err(Status::failed_precondition("etcdserver: bad leader transferee"));
        }
        match self
            .0
            .handle
            .admin(AdminRequest::Transfer(target), context.deadline)
            .await
        {
            Ok(_) => {}
            Err(AdminError::NotLeader(_)) => {
                return Err(Status::failed_precondition("etcdserver: not leader"));
            }
            Err(AdminError::NotReady(_)) => {
                return Err(Status::failed_precondition("etcdserver: bad leader transferee"));
            }
            Err(_) => return Err(Status::unavailable("etcdserver: request timed out")),
        }
        let header = self.0.header(self.0.handle.state().facts().revision);
        Ok(Response::new(pb::MoveLeaderResponse { header: Some(header) }))
    }

    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        Err(not_served())
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Err(not_served())
    }

    async fn hash_kv(&self, _: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        Err(not_served())
    }

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_served())
    }

    async fn downgrade(
        &self,
        _: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(not_served())
    }
}

fn not_served() -> Status {
    Status::unimplemented("kvorum: this version does not serve it")
}

/// etcd's Cluster service.
#[derive(Clone, Debug)]
pub struct ClusterService(Core);

impl ClusterService {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        ClusterService(core)
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let started = self.0.metrics.begin(Method::MemberList);
        let list = async {
            let context = Context::of(&request, &self.0.handle)?;
            if request.get_ref().linearizable {
                self.0.barrier(&context).await?;
            }
            let status = self.0.handle.status();
            // As in etcd the headers of this service carry no revision.
            Ok(pb::MemberListResponse {
                header: Some(self.0.header(0)),
                members: members(&status),
            })
        };
        self.0
            .metrics
            .end(Method::MemberList, started, list.await)
            .map(Response::new)
    }

    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(not_served())
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(not_served())
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(not_served())
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(not_served())
    }
}

/// The members in the order of their IDs, those that have not said who they are among them.
fn members(status: &NodeStatus) -> Vec<pb::Member> {
    let unknown = MemberRecord::default();
    status
        .configuration
        .members()
        .into_iter()
        .map(|id| {
            let record = status.cluster.members.get(&id).unwrap_or(&unknown);
            pb::Member {
                id,
                name: record.name.clone(),
                peer_ur_ls: record
                    .peer_addresses
                    .iter()
                    .map(|address| format!("http://{address}"))
                    .collect(),
                client_ur_ls: record.client_urls.clone(),
                is_learner: status.configuration.learners.contains(&id),
            }
        })
        .collect()
}
