//! Members and roles in the words of the replaced systems.

use std::collections::BTreeMap;

use kvorum_model::MemberRecord;
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

/// A member's name; until it has said it, the one that the settings give a founder (`founders`, by ID); else its ID.
pub(crate) fn member_name(status: &NodeStatus, founders: &BTreeMap<u64, String>, id: u64) -> String {
    name_of(status.cluster.members.get(&id), founders.get(&id), id)
}

fn name_of(record: Option<&MemberRecord>, founder: Option<&String>, id: u64) -> String {
    let said = record.map(|record| &record.name).filter(|name| !name.is_empty());
    said.or(founder).map_or_else(|| format!("{id:x}"), String::clone)
}

/// The leader's name; empty if none is known.
pub(crate) fn leader_name(status: &NodeStatus, founders: &BTreeMap<u64, String>) -> String {
    if status.leader == 0 {
        String::new()
    } else {
        member_name(status, founders, status.leader)
    }
}

/// The names of the other members, in the order of their IDs.
pub(crate) fn other_names(status: &NodeStatus, founders: &BTreeMap<u64, String>) -> Vec<String> {
    let others = status
        .configuration
        .members()
        .into_iter()
        .filter(|id| *id != status.id);
    others.map(|id| member_name(status, founders, id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once, a member whose settings name all founders showed hexadecimal IDs in `/status` and `/health` until each had
    /// said its name through the log: for a moment after every founding, for ever where one was never started.
    #[test]
    fn the_settings_name_a_founder_that_has_not_said_its_name() {
        let record = |name: &str| MemberRecord {
            name: name.to_owned(),
            ..MemberRecord::default()
        };
        let told = "told".to_owned();
        assert_eq!(name_of(None, Some(&told), 0xa), "told");
        assert_eq!(name_of(Some(&record("")), Some(&told), 0xa), "told");
        assert_eq!(name_of(Some(&record("said")), Some(&told), 0xa), "said");
        assert_eq!(name_of(None, None, 0xa), "a", "nobody named it");
    }
}
