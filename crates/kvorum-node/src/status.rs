//! What a replica says about itself.

use std::sync::Arc;

use kvorum_model::Revision;
use kvorum_mvcc::ClusterState;
use kvorum_raft::{Configuration, Index, LogId, MemberId, PeerState, Role, Term};

use crate::node::Node;

/// One peer as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its ID.
    pub id: MemberId,
    /// What of the log it is known to have.
    pub matched: Index,
    /// Whether it answered within the election timeout.
    pub active: bool,
    /// How replication to it goes: probe, replicate, snapshot, lost-data.
    pub state: &'static str,
    /// When it last answered, µs before now; none if never in this term.
    pub last_contact_ago: Option<u64>,
}

/// A replica at one moment.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its ID.
    pub id: MemberId,
    /// Its term.
    pub term: Term,
    /// The leader it knows, or 0.
    pub leader: MemberId,
    /// Its role.
    pub role: Role,
    /// The commit index.
    pub commit: Index,
    /// The last applied index.
    pub applied: Index,
    /// The last applied index that the store holds durably.
    pub flushed: Index,
    /// The last entry of its log.
    pub last: LogId,
    /// The last entry that its log holds durably.
    pub persisted: Index,
    /// The first index its log still has.
    pub first: Index,
    /// The store's revision.
    pub revision: Revision,
    /// Who votes and who listens.
    pub configuration: Configuration,
    /// The peers, if it leads.
    pub peers: Vec<PeerStatus>,
    /// To whom it hands leadership, or 0.
    pub transferring_to: MemberId,
    /// Whether it leads with a live quorum, or hears a leader. Otherwise it is cut off from the majority.
    pub connected: bool,
    /// The log's disk is full.
    pub space_exhausted: bool,
    /// Writes of callers of this member that are under way.
    pub writes_waiting: usize,
    /// Linearizable reads of callers of this member that are under way.
    pub reads_waiting: usize,
    /// Leases that there are.
    pub leases: usize,
    /// Renewals of leases that this member answered as the leader.
    pub leases_renewed: u64,
    /// Leaders this member has seen come.
    pub leader_changes: u64,
    /// The newest agreed index at which a member's digest differed from this one's, and that member.
    pub divergence: Option<(Index, MemberId)>,
    /// Members and settings as applied.
    pub cluster: Arc<ClusterState>,
}

impl NodeStatus {
    /// Whether this member is in the cluster without a vote: a learner, or a newcomer whose log does not hold yet that
    /// it was added. One that was removed is no learner.
    pub fn is_learner(&self) -> bool {
        !self.configuration.is_voter(self.id) && !self.cluster.removed.contains(&self.id)
    }
}

impl Node {
    /// The replica now. Costs a walk over the peers: for people and metrics, not for each request.
    pub fn status(&self) -> NodeStatus {
        let raft = self.raft.status();
        let peers = raft.peers.iter().map(|peer| PeerStatus {
            id: peer.id,
            matched: peer.matched,
            active: peer.active,
            state: match peer.state {
                PeerState::Probe => "probe",
                PeerState::Replicate => "replicate",
                PeerState::Snapshot => "snapshot",
                PeerState::LostData => "lost-data",
            },
            last_contact_ago: peer.last_contact.map(|at| self.now.saturating_sub(at)),
        });
        NodeStatus {
            id: self.id(),
            term: raft.hard_state.term,
            leader: raft.leader,
            role: raft.role,
            commit: raft.commit,
            applied: self.applied,
            flushed: self.flushed,
            last: raft.last,
            persisted: raft.persisted,
            first: raft.first,
            revision: self.revision,
            configuration: raft.latest,
            peers: peers.collect(),
            transferring_to: raft.transfer.unwrap_or(0),
            connected: raft.has_quorum_contact,
            space_exhausted: self.space_exhausted,
            writes_waiting: self.writes_waiting(),
            reads_waiting: self.reads_waiting(),
            leases: self.leases.lessor.len(),
            leases_renewed: self.leases.lessor.renewed,
            leader_changes: self.leader_changes,
            divergence: self.keeping.divergence,
            cluster: self.cluster.clone(),
        }
    }
}
