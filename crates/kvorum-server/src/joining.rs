//! How a member that nobody announced joins: it announces itself to any member, the leader decides.
//!
//! The member that is asked hands the announcement to the leader over the peer port and tries again while there
//! is none, or another change is under way; to announce twice changes nothing, so trying again is safe. The
//! newcomer is a learner until it is in sync. Only members that are told so (`open_join`) take announcements from
//! clients; what comes from a peer is trusted.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvorum_model::MemberRecord;
use kvorum_node::{AdminError, AdminReply, AdminRequest, NodeStatus};
use kvorum_proto::Outcome;
use kvorum_proto::kvorum::v1::{JoinRequest, JoinResponse};
use tonic::{Code, Status};

use crate::api::Core;
use crate::handle::ReplicaHandle;
use crate::options::{Address, check_name};
use crate::services::kvorum_v1::{joined, members};

/// Between two tries of an announcement.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest that one try at another member takes; it may be gone.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the newcomer is looked for in the published status.
const PUBLISH_POLL: Duration = Duration::from_millis(5);
/// Most addresses of one member.
const ADDRESSES_MAX: usize = 8;

/// An answer on its way.
pub type Forwarding = Pin<Box<dyn Future<Output = Result<JoinResponse, Status>> + Send>>;

/// Hands an announcement to this member, the leader.
pub type ForwardJoin = Arc<dyn Fn(u64, JoinRequest) -> Forwarding + Send + Sync>;

/// For a member that has no peers.
pub fn no_peers() -> ForwardJoin {
    Arc::new(|_, _| Box::pin(async { Err(Status::unavailable("etcdserver: no leader")) }))
}

/// A client's announcement, wherever the leader is.
pub(crate) async fn join(
    core: &Core,
    request: JoinRequest,
    deadline: Instant,
) -> Result<JoinResponse, Status> {
    if !core.surfaces.open_join {
        return Err(not_applied(Status::permission_denied(
            "kvorum: members do not announce themselves here (there are no join tokens yet); announce this one \
             with `kvorum member add`, or start this server with --open-join",
        )));
    }
    let record = record_of(&request).map_err(not_applied)?;
    loop {
        let (own, leader) = (core.handle.identity().member_id, core.handle.leader());
        let result = if leader == own {
            at_leader(&core.handle, record.clone(), deadline).await
        } else if leader == 0 {
            Err(not_applied(Status::unavailable("etcdserver: no leader")))
        } else {
            forward(core, leader, request.clone(), deadline).await
        };
        match result {
            Err(status) if status.code() == Code::Unavailable && Instant::now() + PAUSE < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

async fn forward(
    core: &Core,
    leader: u64,
    request: JoinRequest,
    deadline: Instant,
) -> Result<JoinResponse, Status> {
    let patience = FORWARD_TIMEOUT.min(deadline.saturating_duration_since(Instant::now()));
    match tokio::time::timeout(patience, (core.forward_join)(leader, request)).await {
        Ok(result) => result,
        Err(_) => Err(Outcome::Unknown.mark(Status::unavailable("etcdserver: request timed out"))),
    }
}

/// An announcement that reached the leader; `Unavailable` if it is none any more, or busy.
pub(crate) async fn at_leader(
    handle: &ReplicaHandle,
    record: MemberRecord,
    deadline: Instant,
) -> Result<JoinResponse, Status> {
    let id = match handle
        .admin(AdminRequest::Register(record.clone()), deadline)
        .await
    {
        Ok(AdminReply::Known(id) | AdminReply::Changed(Some(id))) => id,
        Ok(AdminReply::Changed(None) | AdminReply::TransferStarted) => {
            return Err(
                Outcome::Unknown.mark(Status::internal("kvorum: the answer does not fit the request"))
            );
        }
        Err(error) => return Err(refusal(&error, &record.name)),
    };
    // The configuration counts from its entry on, the members' records from their apply on.
    let is_shown = |status: &NodeStatus| {
        let ids = status.configuration.members();
        ids.contains(&id) && ids.iter().all(|id| status.cluster.members.contains_key(id))
    };
    let mut status = handle.status();
    while !is_shown(&status) {
        if Instant::now() >= deadline {
            return Err(Outcome::Unknown.mark(Status::unavailable("etcdserver: request timed out")));
        }
        tokio::time::sleep(PUBLISH_POLL).await;
        status = handle.status();
    }
    let members = members(&status);
    let known = members.iter().find(|member| member.id == id).cloned();
    Ok(JoinResponse {
        cluster_uuid: status.cluster.uuid.to_be_bytes().to_vec().into(),
        cluster_id: handle.identity().cluster_id,
        member: Some(known.unwrap_or_else(|| joined(MemberRecord { id, ..record }))),
        members,
    })
}

fn refusal(error: &AdminError, name: &str) -> Status {
    use AdminError::*;
    let unavailable = |text: &str| Status::unavailable(text);
    let (status, outcome) = match error {
        InUse(_) => {
            let text = format!(
                "kvorum: `{name}` is a member that was heard of just now; stop it, or choose another name"
            );
            (Status::already_exists(text), Outcome::NotApplied)
        }
        NoLiveQuorum => (unavailable("etcdserver: unhealthy cluster"), Outcome::NotApplied),
        NotLeader(_) => (unavailable("etcdserver: not leader"), Outcome::NotApplied),
        Unknown => (unavailable("etcdserver: leader changed"), Outcome::Unknown),
        TimedOut => (unavailable("etcdserver: request timed out"), Outcome::Unknown),
        Invalid(what) => (
            Status::failed_precondition(format!("kvorum: {what}")),
            Outcome::NotApplied,
        ),
        Busy | NotReady(_) | UnknownMember(_) | NotEnoughStarted | NotLearner(_) | AddressInUse
        | TooManyLearners => (
            unavailable("kvorum: another change of the membership is under way, or the leader is new; retry"),
            Outcome::NotApplied,
        ),
    };
    outcome.mark(status)
}

/// What an announcement says, checked.
pub(crate) fn record_of(request: &JoinRequest) -> Result<MemberRecord, Status> {
    let invalid = |text: String| Status::invalid_argument(format!("kvorum: {text}"));
    check_name("name", &request.name).map_err(|error| invalid(error.to_string()))?;
    if !(1..=ADDRESSES_MAX).contains(&request.peer_addresses.len()) {
        return Err(invalid(format!(
            "a member has 1 to {ADDRESSES_MAX} peer addresses"
        )));
    }
    for text in &request.peer_addresses {
        let address: Address = text.parse().map_err(|error| invalid(format!("{error}")))?;
        if address.port == 0 || address.is_unspecified() {
            return Err(invalid(format!(
                "the others cannot reach {address}; write the address they use"
            )));
        }
    }
    let incarnation = match &request.incarnation[..] {
        [] => 0,
        bytes => u128::from_be_bytes(
            bytes
                .try_into()
                .map_err(|_| invalid("an incarnation has 16 bytes".to_owned()))?,
        ),
    };
    Ok(MemberRecord {
        name: request.name.clone(),
        peer_addresses: request.peer_addresses.clone(),
        incarnation,
        ..MemberRecord::default()
    })
}

fn not_applied(status: Status) -> Status {
    Outcome::NotApplied.mark(status)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_checked() {
        let request = |name: &str, addresses: &[&str], incarnation: &[u8]| JoinRequest {
            name: name.to_owned(),
            peer_addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            incarnation: incarnation.to_vec().into(),
        };
        let record = record_of(&request("node2", &["localhost:21002"], &[1; 16])).unwrap();
        assert_eq!((record.name.as_str(), record.id), ("node2", 0));
        assert_eq!(record.incarnation, u128::from_be_bytes([1; 16]));
        assert_eq!(record_of(&request("a", &["h:1"], &[])).unwrap().incarnation, 0);
        let many: Vec<&str> = vec!["h:1"; 9];
        for (name, addresses, incarnation, part) in [
            ("", &["h:1"][..], &[][..], "name"),
            ("a b", &["h:1"], &[], "name"),
            ("a", &[], &[], "1 to 8 peer addresses"),
            ("a", &many, &[], "1 to 8 peer addresses"),
            ("a", &["h"], &[], "host:port"),
            ("a", &["0.0.0.0:1"], &[], "cannot reach"),
            ("a", &["h:0"], &[], "cannot reach"),
            ("a", &["h:1"], &[1; 15], "16 bytes"),
        ] {
            let status = record_of(&request(name, addresses, incarnation)).unwrap_err();
            assert!(status.message().contains(part), "{}", status.message());
            assert_eq!(status.code(), Code::InvalidArgument);
        }
    }
}
