//! Members and roles in the words of the replaced systems.

use kvorum_node::NodeStatus;
use kvorum_raft::Role;

/// `follower`, `candidate` or `leader`.
pub(crate) fn state_name(status: &NodeStatus) -> &'static str {
    match status.role {
        Role::Follower => "follower",
        Role::PreCandidate | Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

/// A member's name; until it has said it, its ID.
pub(crate) fn member_name(status: &NodeStatus, id: u64) -> String {
    let record = status
        .cluster
        .members
        .get(&id)
        .filter(|record| !record.name.is_empty());
    record.map_or_else(|| format!("{id:x}"), |record| record.name.clone())
}

/// The leader's name; empty if none is known.
pub(crate) fn leader_name(status: &NodeStatus) -> String {
    if status.leader == 0 {
        String::new()
    } else {
        member_name(status, status.leader)
    }
}

/// The names of the other members, in the order of their IDs.
pub(crate) fn other_names(status: &NodeStatus) -> Vec<String> {
    let others = status
        .configuration
        .members()
        .into_iter()
        .filter(|id| *id != status.id);
    others.map(|id| member_name(status, id)).collect()
}
