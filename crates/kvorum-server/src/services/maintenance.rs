//! etcd's Maintenance service: how a member is, its alarms, its hashes, its snapshot, and what an operator does to it.

use kvorum_model::{Alarm, Command};
use kvorum_node::{AdminError, AdminRequest};
use kvorum_proto::etcdserverpb::downgrade_request::DowngradeAction;
use kvorum_proto::etcdserverpb::maintenance_server::Maintenance;
use kvorum_proto::etcdserverpb::{self as pb, AlarmType, alarm_request::AlarmAction};
use kvorum_proto::refused;
use tonic::{Request, Response, Status};

use super::Context;
use super::snapshot::{SnapshotStream, stream};
use crate::api::Core;
use crate::metrics::Method;
use crate::reads::{blocking, state_status};

/// How often a moved leadership is looked for.
const LEADER_POLL: std::time::Duration = std::time::Duration::from_millis(5);

/// The least size of the store that is told: etcdctl 3.6 divides by it.
const DB_BYTES_MIN: u64 = 4096;

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
        let db_bytes = figures.disk_bytes.max(DB_BYTES_MIN) as i64;
        let mut errors = Vec::new();
        if status.leader == 0 {
            errors.push("etcdserver: no leader".to_owned());
        }
        // As Go prints a protobuf message, with the space at its end.
        errors.extend(
            core.alarms()
                .into_iter()
                .map(|(alarm, member)| format!("memberID:{member} alarm:{} ", kind(alarm).as_str_name())),
        );
        pb::StatusResponse {
            header: Some(core.header(facts.revision)),
            version: core.etcd_version.to_owned(),
            db_size: db_bytes,
            leader: status.leader,
            raft_index: status.commit,
            raft_term: status.term,
            raft_applied_index: status.applied,
            errors,
            db_size_in_use: db_bytes,
            is_learner: status.is_learner(),
            storage_version: storage_version(core.etcd_version),
            db_size_quota: core.operations.quota.bytes as i64,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }
    }

    /// The header of an answer that is about no revision of its own.
    fn header(&self) -> pb::ResponseHeader {
        self.0.header(self.0.handle.state().facts().revision)
    }

    async fn answer_alarm(&self, request: Request<pb::AlarmRequest>) -> Result<pb::AlarmResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let request = request.into_inner();
        let action = AlarmAction::try_from(request.action)
            .map_err(|_| Status::invalid_argument("kvorum: unknown alarm action"))?;
        let wanted = AlarmType::try_from(request.alarm)
            .map_err(|_| Status::invalid_argument("kvorum: unknown alarm"))?;
        match action {
            AlarmAction::Get => self.0.require_user(&context).await?,
            _ => self.0.require_admin(&context).await?,
        }
        let alarms = match (action, of_kind(wanted)) {
            (AlarmAction::Get, wanted) => {
                self.0.barrier(&context).await?;
                let mut alarms = self.0.alarms();
                alarms.retain(|(alarm, _)| wanted.is_none_or(|wanted| wanted == *alarm));
                alarms
            }
            // etcd answers these with nothing, too.
            (_, None) => Vec::new(),
            (action, Some(alarm)) => {
                let raised = action == AlarmAction::Activate;
                let stood = self
                    .0
                    .set_alarm(&context, alarm, request.member_id, raised)
                    .await?;
                match raised || stood {
                    true => vec![(alarm, request.member_id)],
                    false => Vec::new(),
                }
            }
        };
        let alarms = alarms.into_iter().map(|(alarm, member_id)| pb::AlarmMember {
            member_id,
            alarm: kind(alarm).into(),
        });
        Ok(pb::AlarmResponse {
            header: Some(self.header()),
            alarms: alarms.collect(),
        })
    }

    async fn move_to(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<pb::MoveLeaderResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        self.0.require_admin(&context).await?;
        let target = request.into_inner().target_id;
        let not_leader = || Status::failed_precondition("etcdserver: not leader");
        let bad_transferee = || Status::failed_precondition("etcdserver: bad leader transferee");
        let status = self.0.handle.status();
        if status.leader != status.id {
            return Err(not_leader());
        }
        if !status.configuration.voters.contains(&target) {
            return Err(bad_transferee());
        }
        let timed_out = || Status::unavailable("etcdserver: request timed out");
        let transfer = AdminRequest::Transfer(target);
        match self.0.handle.admin(transfer, context.deadline).await {
            Ok(_) => {}
            Err(AdminError::NotLeader(_)) => return Err(not_leader()),
            Err(AdminError::NotReady(_)) => return Err(bad_transferee()),
            Err(_) => return Err(timed_out()),
        }
        while self.0.handle.leader() != target {
            if std::time::Instant::now() >= context.deadline {
                return Err(timed_out());
            }
            tokio::time::sleep(LEADER_POLL).await;
        }
        // As in etcd, without a header.
        Ok(pb::MoveLeaderResponse::default())
    }

    async fn hash_keyspace(&self, request: Request<pb::HashKvRequest>) -> Result<pb::HashKvResponse, Status> {
        self.require_admin(&request).await?;
        let (state, revision) = (self.0.handle.state().clone(), request.into_inner().revision);
        let seen = blocking(move || state.hash_kv(revision))
            .await?
            .map_err(state_status)?;
        Ok(pb::HashKvResponse {
            header: Some(self.0.header(seen.revision)),
            hash: seen.answer.hash,
            compact_revision: seen.answer.compacted,
            hash_revision: seen.answer.revision,
        })
    }

    async fn hash_everything(&self, request: Request<pb::HashRequest>) -> Result<pb::HashResponse, Status> {
        self.require_admin(&request).await?;
        let state = self.0.handle.state().clone();
        let seen = blocking(move || state.hash()).await?.map_err(state_status)?;
        Ok(pb::HashResponse {
            header: Some(self.0.header(seen.revision)),
            hash: seen.answer,
        })
    }

    async fn require_admin<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let context = Context::of(request, &self.0.handle)?;
        self.0.require_admin(&context).await
    }

    /// No version of kvorum is an older etcd: a target is malformed or not one that can be reached. To cancel what never
    /// began succeeds, as in etcd 3.6.
    async fn no_downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<pb::DowngradeResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        self.0.require_admin(&context).await?;
        let request = request.into_inner();
        let action = DowngradeAction::try_from(request.action)
            .map_err(|_| Status::invalid_argument("kvorum: unknown downgrade action"))?;
        if action != DowngradeAction::Cancel && !is_version(&request.version) {
            let text = "etcdserver: wrong downgrade target version format";
            return Err(Status::invalid_argument(text));
        }
        self.0.barrier(&context).await?;
        match action {
            DowngradeAction::Cancel => Ok(pb::DowngradeResponse {
                header: Some(self.header()),
                version: minor_version(self.0.etcd_version).to_owned(),
            }),
            _ => Err(Status::invalid_argument(
                "etcdserver: invalid downgrade target version",
            )),
        }
    }
}

impl Core {
    /// Raises or disarms an alarm on all members; whether it stood before.
    pub(crate) async fn set_alarm(
        &self,
        context: &Context,
        alarm: Alarm,
        member: u64,
        raised: bool,
    ) -> Result<bool, Status> {
        let command = Command::SetAlarm {
            alarm,
            member,
            raised,
        };
        match self.write(context, command).await?.result {
            Ok(kvorum_model::Reply::AlarmSet(stood)) => Ok(stood),
            Ok(_) => Err(Status::internal("kvorum: the answer does not fit the request")),
            Err(error) => Err(refused(&error)),
        }
    }
}

/// `X.Y.0` of `X.Y.Z`, as etcd names storage formats.
pub(crate) fn storage_version(version: &str) -> String {
    format!("{}.0", minor_version(version))
}

/// `X.Y` of `X.Y.Z`, as etcd names a cluster's version.
fn minor_version(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(minor, _)| minor)
}

/// `X.Y` or `X.Y.Z`.
fn is_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (2..=3).contains(&parts.len()) && parts.iter().all(is_number)
}

fn kind(alarm: Alarm) -> AlarmType {
    match alarm {
        Alarm::NoSpace => AlarmType::Nospace,
        Alarm::Corrupt => AlarmType::Corrupt,
    }
}

/// etcd's name of an alarm.
pub(crate) fn alarm_name(alarm: Alarm) -> &'static str {
    kind(alarm).as_str_name()
}

fn of_kind(alarm: AlarmType) -> Option<Alarm> {
    match alarm {
        AlarmType::None => None,
        AlarmType::Nospace => Some(Alarm::NoSpace),
        AlarmType::Corrupt => Some(Alarm::Corrupt),
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = SnapshotStream;

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        self.0
            .counted(Method::Status, async {
                let context = Context::of(&request, &self.0.handle)?;
                self.0.require_user(&context).await?;
                Ok(self.status_of_member())
            })
            .await
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        self.0.counted(Method::Alarm, self.answer_alarm(request)).await
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.0.counted(Method::MoveLeader, self.move_to(request)).await
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        let defragment = async {
            self.require_admin(&request).await?;
            (self.0.operations.defragment)().await?;
            // As in etcd, without a header.
            Ok(pb::DefragmentResponse::default())
        };
        self.0.counted(Method::Defragment, defragment).await
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.0.counted(Method::Hash, self.hash_everything(request)).await
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        self.0.counted(Method::HashKv, self.hash_keyspace(request)).await
    }

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let start = async {
            self.require_admin(&request).await?;
            let frames = self.0.handle.state().snapshot();
            let version = storage_version(self.0.etcd_version);
            Ok(stream(frames, version, self.0.metrics.clone()))
        };
        self.0.counted(Method::Snapshot, start).await
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.0
            .counted(Method::Downgrade, self.no_downgrade(request))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, expected) in [
            ("3.5", true),
            ("3.5.0", true),
            ("3", false),
            ("", false),
            ("3.5.0.1", false),
            ("3.x", false),
            ("v3.5", false),
            ("3.5.", false),
        ] {
            assert_eq!(is_version(text), expected, "{text}");
        }
        assert_eq!(storage_version("3.6.12"), "3.6.0");
    }
}
