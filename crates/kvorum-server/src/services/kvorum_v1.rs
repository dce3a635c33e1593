//! `kvorum.v1`: what etcd's API has no words for.

use std::sync::Arc;

use kvorum_model::{Command, KeyRange, MemberRecord, Reply};
use kvorum_node::{AdminRequest, NodeStatus, PeerStatus};
use kvorum_proto::kvorum::v1::kvorum_server::Kvorum;
use kvorum_proto::kvorum::v1::{self as pb, MemberSelector};
use kvorum_proto::{Outcome, refused, status_of};
use kvorum_raft::Role;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Context;
use crate::api::Core;
use crate::metrics::Method;
use crate::operations;
use crate::options::Founder;

/// Records, and bytes, of one message of an export.
const EXPORT_RECORDS: usize = 1000;
const EXPORT_BYTES: usize = 1024 * 1024;

/// How often, and how many times, a change is looked for in the published status.
const PUBLISH_POLL: std::time::Duration = std::time::Duration::from_millis(5);
const PUBLISH_POLLS: u32 = 100;

/// See the module.
#[derive(Clone, Debug)]
pub struct KvorumService(Core);

impl KvorumService {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        KvorumService(core)
    }

    async fn register(&self, request: Request<pb::RegisterSessionRequest>) -> Result<u64, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let named = self.0.require_token(&context);
        named.map_err(|status| Outcome::NotApplied.mark(status))?;
        match self.0.write(&context, Command::Register).await?.result {
            Ok(Reply::Registered(session)) => Ok(session),
            Err(error) => Err(refused(&error)),
            Ok(_) => {
                Err(Outcome::Unknown.mark(Status::internal("kvorum: the answer does not fit the request")))
            }
        }
    }

    fn status_of_member(&self) -> pb::StatusResponse {
        let core = &self.0;
        let (status, facts, figures) = (
            core.handle.status(),
            core.handle.state().facts(),
            core.handle.figures(),
        );
        let uuid = status.cluster.uuid;
        pb::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_uuid: if uuid == 0 {
                Vec::new()
            } else {
                uuid.to_be_bytes().to_vec()
            }
            .into(),
            cluster_id: core.handle.identity().cluster_id,
            member_id: status.id,
            name: core.handle.identity().name.clone(),
            role: match status.role {
                Role::Follower => pb::Role::Follower,
                Role::PreCandidate => pb::Role::PreCandidate,
                Role::Candidate => pb::Role::Candidate,
                Role::Leader => pb::Role::Leader,
            }
            .into(),
            suffrage: suffrage(&status, status.id).into(),
            term: status.term,
            leader_id: status.leader,
            majority_contact: status.connected,
            first_index: status.first,
            // The status is published from time to time, the store's facts are of this moment.
            last_index: status.last.index.max(facts.applied),
            last_term: status.last.term,
            persisted_index: status.persisted,
            commit_index: status.commit.max(facts.applied),
            applied_index: facts.applied,
            flushed_index: status.flushed,
            revision: facts.revision,
            compact_revision: facts.compacted,
            keys: facts.keys,
            db_bytes: figures.disk_bytes,
            db_bytes_in_use: figures.disk_bytes,
            digest: facts.digest.to_be_bytes().to_vec().into(),
            sessions: figures.sessions,
            watchers: core.metrics.watchers.load(std::sync::atomic::Ordering::Relaxed),
            pending_writes: status.writes_waiting as u64,
            uptime_ms: core.started.elapsed().as_millis() as u64,
            feature_level: status
                .cluster
                .members
                .get(&status.id)
                .map_or(0, |record| record.feature_level),
            errors: errors(&status),
            members: members(&status),
        }
    }

    /// The member that a request means. A member that lags, or restarts, knows others than there are: a name is
    /// looked up once what was committed before the question is applied here.
    ///
    /// # Errors
    /// NotFound if there is none; Unavailable if no quorum confirms in time what this member knows.
    async fn selected(&self, context: &Context, selector: Option<MemberSelector>) -> Result<u64, Status> {
        let selector = selector.unwrap_or_default();
        let barrier = self.0.barrier(context).await;
        barrier.map_err(|error| Outcome::NotApplied.mark(error.into()))?;
        let applied = self.0.handle.state().facts().applied;
        let status = self.status_once(|status| status.applied >= applied).await;
        let unknown = |who: String| {
            Outcome::NotApplied.mark(Status::not_found(format!("etcdserver: member not found: {who}")))
        };
        if selector.id != 0 {
            let is_known = status.configuration.contains(selector.id);
            return if is_known {
                Ok(selector.id)
            } else {
                Err(unknown(format!("{:x}", selector.id)))
            };
        }
        let named = status
            .cluster
            .members
            .values()
            .find(|record| record.name == selector.name);
        match named.filter(|record| status.configuration.contains(record.id)) {
            Some(record) => Ok(record.id),
            None => self
                .silent_founder(&status, &selector.name)
                .ok_or_else(|| unknown(format!("`{}`", selector.name))),
        }
    }

    async fn require_admin(&self, context: &Context) -> Result<(), Status> {
        let permitted = async {
            self.0.require_token(context)?;
            self.0.require_admin(context).await
        };
        permitted.await.map_err(|status| Outcome::NotApplied.mark(status))
    }

    async fn require_user<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let context = Context::of(request, &self.0.handle)?;
        self.0.require_token(&context)?;
        self.0.require_user(&context).await
    }

    /// A founder of this name that ended before the cluster heard its name from it.
    fn silent_founder(&self, status: &NodeStatus, name: &str) -> Option<u64> {
        let is_silent = |id: &u64| {
            let record = status.cluster.members.get(id);
            status.configuration.contains(*id) && record.is_none_or(|record| record.name.is_empty())
        };
        let mut founders = self.0.operations.founders.iter();
        let found = founders.find(|(id, founder)| founder.name == name && is_silent(id));
        found.map(|(id, _)| *id)
    }

    /// Makes a change of the membership, whoever leads.
    async fn administer(&self, context: &Context, request: AdminRequest) -> Result<Option<u64>, Status> {
        self.require_admin(context).await?;
        operations::change(&self.0, request, context.deadline).await
    }

    /// The status that this member publishes now and then, once it shows this; or, should that take long, as it is.
    async fn status_once(&self, shows: impl Fn(&NodeStatus) -> bool) -> Arc<NodeStatus> {
        for _ in 0..PUBLISH_POLLS {
            let status = self.0.handle.status();
            if shows(&status) {
                return status;
            }
            tokio::time::sleep(PUBLISH_POLL).await;
        }
        self.0.handle.status()
    }

    /// The members, once a change of them shows.
    async fn members_once(&self, changed: impl Fn(&NodeStatus) -> bool) -> Vec<pb::Member> {
        members(&*self.status_once(changed).await)
    }

    /// Checks the name and the addresses of a member that is to join.
    fn newcomer(
        &self,
        name: String,
        peer_addresses: Vec<String>,
        replaced: u64,
    ) -> Result<MemberRecord, Status> {
        let invalid = |text: String| Err(Outcome::NotApplied.mark(Status::invalid_argument(text)));
        if name.is_empty() || name.len() > crate::options::NAME_BYTES_MAX {
            return invalid(format!(
                "kvorum: a name has 1 to {} bytes",
                crate::options::NAME_BYTES_MAX
            ));
        }
        let status = self.0.handle.status();
        let is_other = |record: &&MemberRecord| record.name == name && record.id != replaced;
        if status.cluster.members.values().any(|record| is_other(&record)) {
            return invalid(format!(
                "kvorum: a member with the name `{name}` exists; choose another name"
            ));
        }
        for address in &peer_addresses {
            if let Err(error) = address.parse::<crate::options::Address>() {
                return invalid(format!("kvorum: {error}"));
            }
        }
        if peer_addresses.is_empty() {
            return invalid("etcdserver: given member URLs are invalid".to_owned());
        }
        Ok(MemberRecord {
            name,
            peer_addresses,
            ..MemberRecord::default()
        })
    }

    async fn add(&self, request: Request<pb::MemberAddRequest>) -> Result<pb::MemberAddResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        self.require_admin(&context).await?;
        let request = request.into_inner();
        let record = self.newcomer(request.name, request.peer_addresses, 0)?;
        let id = self
            .administer(&context, AdminRequest::AddLearner(record.clone()))
            .await?
            .unwrap_or(0);
        let member = joined(MemberRecord { id, ..record });
        Ok(pb::MemberAddResponse {
            member: Some(member),
            members: self
                .members_once(|status| status.configuration.contains(id))
                .await,
        })
    }

    async fn replace(
        &self,
        request: Request<pb::MemberReplaceRequest>,
    ) -> Result<pb::MemberReplaceResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        self.require_admin(&context).await?;
        let request = request.into_inner();
        let old = self.selected(&context, request.member).await?;
        let known = self
            .0
            .handle
            .status()
            .cluster
            .members
            .get(&old)
            .filter(|record| !record.name.is_empty())
            .cloned()
            .or_else(|| self.0.operations.founders.get(&old).map(told))
            .unwrap_or_default();
        let name = if request.name.is_empty() {
            known.name
        } else {
            request.name
        };
        let addresses = if request.peer_addresses.is_empty() {
            known.peer_addresses
        } else {
            request.peer_addresses
        };
        let new = self.newcomer(name, addresses, old)?;
        let id = self
            .administer(
                &context,
                AdminRequest::Replace {
                    old,
                    new: new.clone(),
                },
            )
            .await?
            .unwrap_or(0);
        let member = joined(MemberRecord { id, ..new });
        Ok(pb::MemberReplaceResponse {
            member: Some(member),
            members: self
                .members_once(|status| status.configuration.contains(id))
                .await,
        })
    }

    async fn promote(&self, request: Request<pb::MemberPromoteRequest>) -> Result<Vec<pb::Member>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        self.require_admin(&context).await?;
        let id = self.selected(&context, request.into_inner().member).await?;
        self.administer(&context, AdminRequest::Promote(id)).await?;
        Ok(self
            .members_once(|status| status.configuration.voters.contains(&id))
            .await)
    }

    async fn remove(&self, request: Request<pb::MemberRemoveRequest>) -> Result<Vec<pb::Member>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        self.require_admin(&context).await?;
        let id = self.selected(&context, request.into_inner().member).await?;
        self.administer(&context, AdminRequest::Remove(id)).await?;
        Ok(self
            .members_once(|status| !status.configuration.contains(id))
            .await)
    }

    async fn transfer(&self, request: Request<pb::TransferLeadershipRequest>) -> Result<u64, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        self.require_admin(&context).await?;
        let target = match request.into_inner().to {
            Some(selector) if selector != MemberSelector::default() => {
                self.selected(&context, Some(selector)).await?
            }
            _ => 0,
        };
        let before = self.0.handle.leader();
        let transfer = AdminRequest::Transfer(target);
        operations::at_leader(&self.0.handle, transfer, context.deadline)
            .await
            .map_err(|error| operations::refusal(&self.0.handle.status(), &error))?;
        // Begun; wait until somebody else leads.
        let mut poll = tokio::time::interval(std::time::Duration::from_millis(5));
        loop {
            let leader = self.0.handle.leader();
            if leader != 0 && (leader == target || (target == 0 && leader != before)) {
                return Ok(leader);
            }
            if std::time::Instant::now() >= context.deadline {
                return Err(Status::unavailable(
                    "kvorum: leadership did not move in time; look at the status",
                ));
            }
            poll.tick().await;
        }
    }

    async fn start_export(
        &self,
        request: Request<pb::ExportRequest>,
    ) -> Result<Response<ExportStream>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        self.0.require_token(&context)?;
        let request = request.into_inner();
        let range = match request.key.is_empty() && request.range_end.is_empty() {
            true => KeyRange::prefix(b""),
            false => KeyRange {
                key: request.key,
                end: request.range_end,
            },
        };
        let probe = kvorum_model::RangeRequest {
            range: range.clone(),
            ..Default::default()
        };
        probe
            .validate(&self.0.handle.limits())
            .map_err(|error| status_of(&error))?;
        if !request.serializable {
            self.0.barrier(&context).await?;
        }
        // One message is built while one is on its way: no more is in memory, however slow the receiver.
        let (messages, receiver) = tokio::sync::mpsc::channel(1);
        let (core, revision) = (self.0.clone(), request.revision.max(0));
        tokio::spawn(export(core, context, range, revision, messages));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends a range page by page at the revision of the first page; no view stays open while the receiver is slow.
async fn export(
    core: Core,
    context: Context,
    mut range: KeyRange,
    mut revision: i64,
    messages: tokio::sync::mpsc::Sender<Result<pb::ExportResponse, Status>>,
) {
    let mut sent = 0;
    loop {
        let seen = match core
            .page(&context, range.clone(), revision, (EXPORT_RECORDS, EXPORT_BYTES))
            .await
        {
            Ok(seen) => seen,
            Err(status) => {
                // The receiver hears it, or is gone.
                let _ = messages.send(Err(status)).await;
                return;
            }
        };
        if revision == 0 {
            revision = seen.revision;
        }
        sent += seen.answer.kvs.len() as u64;
        let next = seen.answer.next;
        let kvs = seen.answer.kvs.into_iter().map(Into::into).collect();
        let total = next.is_none().then_some(sent);
        if messages
            .send(Ok(pb::ExportResponse { revision, kvs, total }))
            .await
            .is_err()
        {
            return;
        }
        match next {
            Some(next) => range.key = next,
            None => return,
        }
    }
}

fn suffrage(status: &NodeStatus, id: u64) -> pb::Suffrage {
    let configuration = &status.configuration;
    if configuration.voters.contains(&id) {
        pb::Suffrage::Voter
    } else if configuration.learners.contains(&id) {
        pb::Suffrage::Learner
    } else if configuration.outgoing.contains(&id) {
        pb::Suffrage::Leaving
    } else {
        pb::Suffrage::Unspecified
    }
}

/// The members in the order of their IDs, with their progress if this member leads.
pub(crate) fn members(status: &NodeStatus) -> Vec<pb::Member> {
    let member = |id: u64| {
        let record = status.cluster.members.get(&id).cloned().unwrap_or_default();
        let peer = status.peers.iter().find(|peer| peer.id == id);
        let own = (id == status.id).then_some(pb::MemberProgress {
            match_index: status.persisted,
            active: true,
            ..pb::MemberProgress::default()
        });
        pb::Member {
            id,
            name: record.name,
            peer_addresses: record.peer_addresses,
            client_urls: record.client_urls,
            suffrage: suffrage(status, id).into(),
            feature_level: record.feature_level,
            progress: own.or_else(|| peer.map(progress)),
        }
    };
    status.configuration.members().into_iter().map(member).collect()
}

fn progress(peer: &PeerStatus) -> pb::MemberProgress {
    pb::MemberProgress {
        match_index: peer.matched,
        active: peer.active,
        last_contact_ms: peer.last_contact_ago.unwrap_or(0) / 1000,
        never_heard: peer.last_contact_ago.is_none(),
        receives_snapshot: peer.state == "snapshot",
    }
}

/// A member as it joins.
pub(crate) fn joined(record: MemberRecord) -> pb::Member {
    pb::Member {
        id: record.id,
        name: record.name,
        peer_addresses: record.peer_addresses,
        suffrage: pb::Suffrage::Learner.into(),
        ..pb::Member::default()
    }
}

/// What a person should know.
fn errors(status: &NodeStatus) -> Vec<String> {
    let mut errors = Vec::new();
    if !status.connected {
        errors.push("cut off from the majority: writes and linearizable reads wait".to_owned());
    }
    if status.space_exhausted {
        errors.push("the disk is full: writes are refused until there is space".to_owned());
    }
    if let Some((index, member)) = status.divergence {
        errors.push(format!(
            "the digest at index {index} differs from that of member {member:x}"
        ));
    }
    errors
}

type ExportStream = ReceiverStream<Result<pb::ExportResponse, Status>>;

impl KvorumService {
    /// Counts a call.
    async fn counted<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<Response<T>, Status> {
        self.0.counted(Method::Kvorum, call).await
    }
}

/// What is known of a founder that did not publish itself.
fn told(founder: &Founder) -> MemberRecord {
    MemberRecord {
        name: founder.name.clone(),
        peer_addresses: vec![founder.address.to_string()],
        ..MemberRecord::default()
    }
}

#[tonic::async_trait]
impl Kvorum for KvorumService {
    type ExportStream = ExportStream;

    async fn register_session(
        &self,
        request: Request<pb::RegisterSessionRequest>,
    ) -> Result<Response<pb::RegisterSessionResponse>, Status> {
        let call = async {
            Ok(pb::RegisterSessionResponse {
                session_id: self.register(request).await?,
            })
        };
        self.counted(call).await
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let call = async {
            self.require_user(&request).await?;
            Ok(self.status_of_member())
        };
        self.counted(call).await
    }

    async fn members(
        &self,
        request: Request<pb::MembersRequest>,
    ) -> Result<Response<pb::MembersResponse>, Status> {
        let call = async {
            let context = Context::of(&request, &self.0.handle)?;
            self.require_user(&request).await?;
            if request.get_ref().linearizable {
                self.0.barrier(&context).await?;
            }
            let status = self.0.handle.status();
            Ok(pb::MembersResponse {
                members: members(&status),
                leader_id: status.leader,
            })
        };
        self.counted(call).await
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.counted(self.add(request)).await
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.counted(async {
            Ok(pb::MemberPromoteResponse {
                members: self.promote(request).await?,
            })
        })
        .await
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.counted(async {
            Ok(pb::MemberRemoveResponse {
                members: self.remove(request).await?,
            })
        })
        .await
    }

    async fn member_replace(
        &self,
        request: Request<pb::MemberReplaceRequest>,
    ) -> Result<Response<pb::MemberReplaceResponse>, Status> {
        self.counted(self.replace(request)).await
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinResponse>, Status> {
        let call = async {
            let context = Context::of(&request, &self.0.handle)?;
            self.require_admin(&context).await?;
            crate::joining::join(&self.0, request.into_inner(), context.deadline).await
        };
        self.counted(call).await
    }

    async fn transfer_leadership(
        &self,
        request: Request<pb::TransferLeadershipRequest>,
    ) -> Result<Response<pb::TransferLeadershipResponse>, Status> {
        self.counted(async {
            Ok(pb::TransferLeadershipResponse {
                leader_id: self.transfer(request).await?,
            })
        })
        .await
    }

    async fn export(&self, request: Request<pb::ExportRequest>) -> Result<Response<ExportStream>, Status> {
        let started = self.0.metrics.begin(Method::Kvorum);
        self.0
            .metrics
            .end(Method::Kvorum, started, self.start_export(request).await)
    }
}
