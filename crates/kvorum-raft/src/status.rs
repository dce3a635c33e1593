//! What operators and tests see of a core.

use crate::interface::Role;
use crate::progress::Stream;
use crate::raft::Raft;
use crate::types::{Configuration, HardState, Index, LogId, MemberId, Micros, Seq, SnapshotMeta};

/// A core's state at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: MemberId,
    /// Term and vote.
    pub hard_state: HardState,
    /// The leader, 0 if unknown.
    pub leader: MemberId,
    /// This member's role.
    pub role: Role,
    /// The commit index.
    pub commit: Index,
    /// Applied by the state machine.
    pub applied: Index,
    /// The end of the log.
    pub last: LogId,
    /// The own log is durable up to here.
    pub persisted: Index,
    /// The first index of the log: what is below was purged or covered by a snapshot.
    pub first: Index,
    /// The last write handed to the disk, and the last one done.
    pub writes: (Seq, Seq),
    /// In force (MB1).
    pub latest: Configuration,
    /// The newest committed one.
    pub committed: Configuration,
    /// At a leader: each peer.
    pub peers: Vec<PeerStatus>,
    /// At a leader: to whom leadership is being handed.
    pub transfer: Option<MemberId>,
    /// Reads that wait.
    pub reads_waiting: usize,
    /// At a leader: bytes appended and not committed.
    pub uncommitted_bytes: u64,
    /// A leader: whether a quorum answered within T_max. Others: whether the leader was heard within T_max.
    pub has_quorum_contact: bool,
    /// Whether a snapshot is being installed.
    pub installing: bool,
    /// Whether this member was removed.
    pub removed: bool,
}

/// How the stream to a peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// One append at a time.
    Probe,
    /// Pipelined.
    Replicate,
    /// Waits for a snapshot.
    Snapshot,
    /// Lost what it had acknowledged; not counted (RS7).
    LostData,
}

/// What a leader knows of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerStatus {
    /// The peer.
    pub id: MemberId,
    /// How its stream stands.
    pub state: PeerState,
    /// What it holds durably.
    pub matched: Index,
    /// What it is sent next.
    pub next: Index,
    /// Appends in flight, and their bytes.
    pub in_flight: (usize, usize),
    /// Bytes of the log above `matched`, rounded up.
    pub lag_bytes: u64,
    /// Whether it answered within T_max.
    pub active: bool,
    /// When it answered last.
    pub last_contact: Option<Micros>,
}

impl Raft {
    /// The whole state at this moment.
    pub fn status(&self) -> Status {
        let since = self.active_since();
        let heard = self.clock.promised.is_some_and(|(_, at)| at >= since);
        let leader = self.as_leader();
        Status {
            id: self.options.id,
            hard_state: self.hard_state,
            leader: self.leader,
            role: self.role(),
            commit: self.commit,
            applied: self.applied,
            last: self.log.last(),
            persisted: self.writes.persisted(),
            first: self.log.base().index + 1,
            writes: (self.writes.issued(), self.writes.done()),
            latest: self.latest_configuration().clone(),
            committed: self.committed_configuration().clone(),
            peers: self.peers(),
            transfer: self.transfer_target(),
            reads_waiting: self.reads_waiting(),
            uncommitted_bytes: leader.map_or(0, |leader| leader.uncommitted_bytes()),
            has_quorum_contact: match leader {
                Some(leader) => leader.has_live_quorum(self, self.clock.t_max()),
                None => self.leader != 0 && heard,
            },
            installing: self.installing.is_some(),
            removed: self.removed,
        }
    }

    /// The snapshot that is becoming this member's state, or will as soon as what was written before is durable.
    pub fn installing(&self) -> Option<&SnapshotMeta> {
        self.installing.as_ref().map(|installing| &installing.meta)
    }

    /// At a leader: to whom leadership is being handed.
    pub fn transfer_target(&self) -> Option<MemberId> {
        let transfer = self.as_leader()?.transfer.as_ref()?;
        Some(transfer.target)
    }

    /// At a leader: each peer, by ID.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let since = self.active_since();
        let Some(leader) = self.as_leader() else {
            return Vec::new();
        };
        let peers = leader.peers.iter().map(|(&id, peer)| PeerStatus {
            id,
            state: match peer.stream {
                _ if peer.lost_data => PeerState::LostData,
                Stream::Probe { .. } => PeerState::Probe,
                Stream::Replicate => PeerState::Replicate,
                Stream::Snapshot(_) => PeerState::Snapshot,
            },
            matched: peer.matched,
            next: peer.next,
            in_flight: peer.in_flight(),
            lag_bytes: self.log.bytes_above(peer.matched),
            active: peer.is_active(since),
            last_contact: peer.contact,
        });
        peers.collect()
    }
}
