//! What operators do to a member or the cluster, beyond what the replica itself answers: changes of the membership on
//! whichever member they are asked for, defragmentation, and the quota.
//!
//! A change is made by the leader. A member that does not lead hands it on over the peer port, and again only if the
//! other one said that it did nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvorum_model::{Alarm, MemberRecord};
use kvorum_node::{AdminError, AdminReply, AdminRequest, NodeStatus};
use kvorum_proto::Outcome;
use kvorum_proto::kvorum::v1::peer_change_request::Change;
use kvorum_proto::kvorum::v1::{Member, MemberReplacement, PeerChangeRequest, PeerChangeResponse, Suffrage};
use tonic::{Code, Status};

use crate::api::Core;
use crate::handle::ReplicaHandle;
use crate::options::Founder;
use crate::runtime::identity::etcd_member_id;

/// Between two tries of a change.
const PAUSE: Duration = Duration::from_millis(50);
/// What a member says that was taken for the leader; it did nothing.
const NOT_LEADER: &str = "etcdserver: not leader";

/// An answer on its way.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;
/// Hands a change to this member, the leader.
pub type ForwardChange = Arc<dyn Fn(u64, PeerChangeRequest) -> Answer<PeerChangeResponse> + Send + Sync>;
/// Removes what is compacted and gives the space back.
pub type Defragment = Arc<dyn Fn() -> Answer<()> + Send + Sync>;

/// What a member's services need of the member around them. The default is a member alone, without a store to look
/// after.
#[derive(Clone)]
pub struct Operations {
    /// How a change reaches the leader, should another member lead.
    pub forward_change: ForwardChange,
    /// How the store is defragmented.
    pub defragment: Defragment,
    /// What may fill the store.
    pub quota: Quota,
    /// Most learners that are to stay learners, as etcd counts them.
    pub learners_max: usize,
    /// Make etcd's checks (`strict-reconfig-check`) for changes that are asked for by etcd's API.
    pub strict_reconfiguration: bool,
    /// How members that are added get their IDs.
    pub ids: MemberIds,
    /// The founders that this member was told of, by ID: of one that never published itself nothing else is known.
    pub founders: BTreeMap<u64, Founder>,
    /// The names that HTTP requests may call this member by; none for all.
    pub hosts: Vec<String>,
    /// Whether etcd's gateway is served.
    pub gateway: bool,
}

/// How a member that is added gets its ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberIds {
    /// From the cluster's counter.
    #[default]
    Counted,
    /// By etcd's rule, from its peer URLs and the time.
    Etcd,
}

impl MemberIds {
    /// The ID of a member that is added now; 0: the leader gives it one.
    pub(crate) fn choose(self, peer_urls: &[String]) -> u64 {
        match self {
            MemberIds::Counted => 0,
            MemberIds::Etcd => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let seconds = now.map_or(0, |since| since.as_secs());
                etcd_member_id(peer_urls, "", Some(seconds))
            }
        }
    }
}

/// How large the store may become, by `Status.dbSize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes; 0: no limit.
    pub bytes: usize,
    /// Passing it raises an alarm for the whole cluster that stays until it is disarmed, as in etcd. Otherwise this
    /// member refuses writes for as long as the store is too large.
    pub alarm_stays: bool,
}

impl Default for Operations {
    fn default() -> Self {
        Operations {
            forward_change: Arc::new(|_, _| {
                Box::pin(async { Err(Status::unavailable("etcdserver: no leader")) })
            }),
            defragment: Arc::new(|| Box::pin(async { Ok(()) })),
            quota: Quota::default(),
            learners_max: 1,
            strict_reconfiguration: true,
            ids: MemberIds::default(),
            founders: BTreeMap::new(),
            hosts: Vec::new(),
            gateway: true,
        }
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations")
            .field("quota", &self.quota)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Whether the store may take so many bytes more.
    pub(crate) fn has_room_for(&self, bytes: usize) -> bool {
        let quota = self.operations.quota.bytes;
        quota == 0 || self.handle.figures().disk_bytes + (bytes as u64) < quota as u64
    }

    /// The alarms that stand, the replicated ones and this member's own, in order.
    pub(crate) fn alarms(&self) -> Vec<(Alarm, u64)> {
        let status = self.handle.status();
        let mut alarms = self.handle.state().cluster().alarms.clone();
        let over_quota = !self.operations.quota.alarm_stays && !self.has_room_for(0);
        if status.space_exhausted || over_quota {
            alarms.insert((Alarm::NoSpace, status.id));
        }
        alarms.into_iter().collect()
    }
}

/// Makes a change of the membership, whoever leads. The ID of the new member, if there is one.
pub(crate) async fn change(
    core: &Core,
    request: AdminRequest,
    deadline: Instant,
) -> Result<Option<u64>, Status> {
    loop {
        let (own, leader) = (core.handle.identity().member_id, core.handle.leader());
        let may_wait = Instant::now() + PAUSE < deadline;
        if leader == 0 && may_wait {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        if leader == own || leader == 0 {
            return at_leader(&core.handle, request, deadline)
                .await
                .map_err(|error| refusal(&core.handle.status(), &error));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let forwarded = (core.operations.forward_change)(leader, encode(&request, left)?);
        match tokio::time::timeout(left, forwarded).await {
            Ok(Ok(answer)) => return Ok((answer.added != 0).then_some(answer.added)),
            // It led no more. Whoever does will be known in a moment.
            Ok(Err(status)) if may_wait && is_not_leader(&status) => tokio::time::sleep(PAUSE).await,
            Ok(Err(status)) => return Err(status),
            Err(_) => return Err(Outcome::Unknown.mark(Status::unavailable("etcdserver: request timed out"))),
        }
    }
}

fn is_not_leader(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().starts_with(NOT_LEADER)
}

/// Makes a change on this member, if it leads, after the one that is under way: a change is answered when it counts,
/// which is a moment before the next one may begin, and etcd's clients do not ask twice.
pub(crate) async fn at_leader(
    handle: &ReplicaHandle,
    request: AdminRequest,
    deadline: Instant,
) -> Result<Option<u64>, AdminError> {
    loop {
        match handle.admin(request.clone(), deadline).await {
            Ok(AdminReply::Changed(added)) => return Ok(added),
            Ok(AdminReply::Known(id)) => return Ok(Some(id)),
            Ok(AdminReply::TransferStarted) => return Ok(None),
            Err(AdminError::Busy) if Instant::now() + PAUSE < deadline => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

/// A change that another member handed on.
pub(crate) async fn forwarded(
    handle: &ReplicaHandle,
    request: PeerChangeRequest,
) -> Result<PeerChangeResponse, Status> {
    let wanted = Duration::from_millis(request.timeout_ms.into());
    let request = decode(request)?;
    let added = at_leader(handle, request, handle.deadline(Some(wanted))).await;
    let added = added.map_err(|error| refusal(&handle.status(), &error))?;
    Ok(PeerChangeResponse {
        added: added.unwrap_or(0),
    })
}

fn encode(request: &AdminRequest, left: Duration) -> Result<PeerChangeRequest, Status> {
    let member = |record: &MemberRecord| Member {
        id: record.id,
        name: record.name.clone(),
        peer_addresses: record.peer_addresses.clone(),
        suffrage: match record.promote_when_ready {
            true => Suffrage::Voter,
            false => Suffrage::Learner,
        }
        .into(),
        ..Member::default()
    };
    let (checked, learners_max, request) = match request {
        AdminRequest::Checked {
            request,
            learners_max,
        } => (true, *learners_max, &**request),
        request => (false, 0, request),
    };
    let change = match request {
        AdminRequest::AddLearner(record) => Change::Add(member(record)),
        AdminRequest::Promote(id) => Change::Promote(*id),
        AdminRequest::Remove(id) => Change::Remove(*id),
        AdminRequest::Replace { old, new } => Change::Replace(MemberReplacement {
            old: *old,
            new: Some(member(new)),
        }),
        AdminRequest::Register(_) | AdminRequest::Transfer(_) | AdminRequest::Checked { .. } => {
            return Err(Status::internal("kvorum: no change of the membership"));
        }
    };
    Ok(PeerChangeRequest {
        hello: None,
        change: Some(change),
        checked,
        learners_max: learners_max.try_into().unwrap_or(u32::MAX),
        timeout_ms: left.as_millis().try_into().unwrap_or(u32::MAX),
    })
}

fn decode(request: PeerChangeRequest) -> Result<AdminRequest, Status> {
    let record = |member: Member| MemberRecord {
        promote_when_ready: member.suffrage() == Suffrage::Voter,
        id: member.id,
        name: member.name,
        peer_addresses: member.peer_addresses,
        ..MemberRecord::default()
    };
    let change = match request.change {
        Some(Change::Add(member)) => AdminRequest::AddLearner(record(member)),
        Some(Change::Promote(id)) => AdminRequest::Promote(id),
        Some(Change::Remove(id)) => AdminRequest::Remove(id),
        Some(Change::Replace(MemberReplacement { old, new: Some(new) })) => AdminRequest::Replace {
            old,
            new: record(new),
        },
        _ => {
            return Err(Status::invalid_argument(
                "kvorum: a change that is not known here: upgrade this member",
            ));
        }
    };
    Ok(match request.checked {
        true => AdminRequest::Checked {
            request: Box::new(change),
            learners_max: request.learners_max as usize,
        },
        false => change,
    })
}

/// A refusal in etcd's words where it has some.
pub(crate) fn refusal(status: &NodeStatus, error: &AdminError) -> Status {
    use AdminError::*;
    use Outcome::{NotApplied, Unknown as Unclear};
    let precondition = |text: &str| (Status::failed_precondition(text), NotApplied);
    let (status, outcome) = match error {
        NotLeader(leader) => precondition(&not_leader(status, *leader)),
        UnknownMember(_) => (Status::not_found("etcdserver: member not found"), NotApplied),
        Busy => {
            let text = "kvorum: another change of the membership is under way, or the leader is new; retry";
            (Status::unavailable(text), NotApplied)
        }
        NoLiveQuorum => (Status::unavailable("etcdserver: unhealthy cluster"), NotApplied),
        NotReady(_) => {
            precondition("etcdserver: can only promote a learner member which is in sync with leader")
        }
        NotLearner(_) => precondition("etcdserver: can only promote a learner member"),
        NotEnoughStarted => {
            precondition("etcdserver: re-configuration failed due to not enough started members")
        }
        AddressInUse => precondition("etcdserver: Peer URLs already exists"),
        TooManyLearners => precondition("etcdserver: too many learner members in cluster"),
        InUse(_) => precondition("kvorum: that member was heard of just now"),
        Invalid(what) => precondition(&format!("kvorum: {what}")),
        Unknown => (Status::unavailable("etcdserver: leader changed"), Unclear),
        TimedOut => (Status::unavailable("etcdserver: request timed out"), Unclear),
    };
    outcome.mark(status)
}

/// With a word about where to go.
fn not_leader(status: &NodeStatus, leader: u64) -> String {
    match status.cluster.members.get(&leader) {
        Some(record) => {
            let urls = record.client_urls.join(", ");
            format!("{NOT_LEADER}; the leader is {} at {urls}", record.name)
        }
        None => format!("{NOT_LEADER}; no leader is known"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_change_survives_the_way_to_the_leader() {
        let record = MemberRecord {
            id: 17,
            name: "n4".into(),
            peer_addresses: vec!["a:1".into(), "b:2".into()],
            promote_when_ready: true,
            ..MemberRecord::default()
        };
        let checked = AdminRequest::Checked {
            request: Box::new(AdminRequest::AddLearner(record.clone())),
            learners_max: 3,
        };
        for request in [
            checked,
            AdminRequest::AddLearner(MemberRecord::default()),
            AdminRequest::Promote(7),
            AdminRequest::Remove(u64::MAX),
            AdminRequest::Replace {
                old: 5,
                new: record.clone(),
            },
        ] {
            let wire = encode(&request, Duration::from_secs(2)).unwrap();
            assert_eq!(wire.timeout_ms, 2000);
            assert_eq!(format!("{:?}", decode(wire).unwrap()), format!("{request:?}"));
        }
        assert!(encode(&AdminRequest::Transfer(1), Duration::ZERO).is_err());
        assert!(decode(PeerChangeRequest::default()).is_err());
    }
}
