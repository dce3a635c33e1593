//! What members say to each other.
//!
//! Every message names cluster, sender, receiver and the sender's term. Bodies that promise something about
//! the sender's disk ([`MessageBody::is_promise`]) leave only through the core's gate, once that is true.

use crate::types::{Entry, Index, LogId, MemberId, SnapshotMeta, Term};

/// One message of the consensus core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The sender's cluster; a receiver of another one drops the message.
    pub cluster: u64,
    /// Who says it.
    pub from: MemberId,
    /// To whom.
    pub to: MemberId,
    /// The sender's current term.
    pub term: Term,
    /// What it says.
    pub body: MessageBody,
}

/// The name of one try of a forwarded batch of reads: never used twice (RD5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId {
    /// The member that asks.
    pub member: MemberId,
    /// Its boot nonce.
    pub boot: u64,
    /// Grows with each try of this boot.
    pub counter: u64,
}

/// What a follower says to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendResult {
    /// Its log equals the leader's up to this index, durably (RP5, RP6).
    Matched(Index),
    /// Its log has no entry (prev.index, prev.term).
    Refused {
        /// Its highest entry with index ≤ prev.index and term ≤ prev.term (RP4).
        hint: LogId,
        /// The end of its log (RS7).
        last: Index,
    },
}

/// The kinds of messages. `epoch` names a stream of appends to one peer, `round` a read round of the leader's
/// term (RD2), `campaign` one try to be elected (EL3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MessageBody {
    /// Would you vote for me in the term after mine (EL1)?
    PreVote {
        /// The asker's campaign.
        campaign: u64,
        /// The end of the asker's log.
        last: LogId,
    },
    /// Answer to `PreVote`; its header carries the answerer's own term (EL2).
    PreVoteReply {
        /// The campaign answered.
        campaign: u64,
        /// The term asked for.
        asked: Term,
        /// Whether a vote would be given.
        granted: bool,
    },
    /// Vote for me in this message's term. A promise: term, own vote and the log up to `last` are durable.
    Vote {
        /// The candidate's campaign.
        campaign: u64,
        /// The end of the candidate's log.
        last: LogId,
        /// The leader asked for this election (TR2): stickiness and silence do not hold.
        forced: bool,
    },
    /// Answer to `Vote`. A grant is a promise: term and vote are durable.
    VoteReply {
        /// The campaign answered.
        campaign: u64,
        /// Whether the vote was given.
        granted: bool,
    },
    /// Entries after `prev`; may be none.
    Append {
        /// The stream.
        epoch: u64,
        /// The newest read round.
        round: u64,
        /// The entry before the first of `entries`.
        prev: LogId,
        /// The leader's commit index.
        commit: Index,
        /// Contiguous entries from `prev.index + 1` on.
        entries: Vec<Entry>,
    },
    /// Answer to `Append` or `Snapshot`. `Matched` is a promise: all of that is durable.
    AppendReply {
        /// The stream answered.
        epoch: u64,
        /// The newest round seen.
        round: u64,
        /// `prev.index` of the append answered; for a snapshot its last index.
        prev: Index,
        /// The answer.
        result: AppendResult,
    },
    /// The leader lives.
    Heartbeat {
        /// The stream.
        epoch: u64,
        /// The newest read round.
        round: u64,
        /// min(commit, what the receiver acknowledged) (RP7).
        commit: Index,
        /// What no live member needs any more: up to here logs may be purged (LG4).
        keep: Index,
    },
    /// Answer to `Heartbeat`.
    HeartbeatReply {
        /// The stream answered.
        epoch: u64,
        /// The newest round seen.
        round: u64,
        /// The answerer's boot nonce: another one means that it restarted (SN1).
        boot: u64,
        /// Whether it is installing a snapshot.
        installing: bool,
    },
    /// The commit index as far as the receiver acknowledged it (RP10). Not answered.
    Commit {
        /// min(commit, what the receiver acknowledged).
        commit: Index,
    },
    /// The last frame of a snapshot's stream: everything before it was received and verified.
    Snapshot {
        /// The stream.
        epoch: u64,
        /// The newest read round.
        round: u64,
        /// What the snapshot covers.
        meta: SnapshotMeta,
    },
    /// Campaign at once, if your log ends exactly here (TR2).
    TimeoutNow {
        /// The end of the leader's log.
        last: LogId,
    },
    /// A follower's waiting reads want an index (RD5).
    ReadIndex {
        /// The try.
        read: ReadId,
    },
    /// Answer to `ReadIndex`.
    ReadIndexReply {
        /// The try answered.
        read: ReadId,
        /// The index; none if the answerer cannot tell (it does not lead, or led no longer).
        index: Option<Index>,
        /// The leader the answerer knows of, 0 for none.
        leader: MemberId,
    },
    /// Nothing but the header's term (EL6).
    HigherTerm,
    /// A committed configuration removed the receiver (MB7).
    Removed,
}

impl MessageBody {
    /// Whether the message vouches for the sender's disk, so that it must wait for it.
    pub fn is_promise(&self) -> bool {
        match self {
            MessageBody::Vote { .. } => true,
            MessageBody::VoteReply { granted, .. } => *granted,
            MessageBody::AppendReply { result, .. } => matches!(result, AppendResult::Matched(_)),
            _ => false,
        }
    }

    /// Whether only the leader of the message's term sends it.
    pub fn is_from_leader(&self) -> bool {
        matches!(
            self,
            MessageBody::Append { .. }
                | MessageBody::Heartbeat { .. }
                | MessageBody::Commit { .. }
                | MessageBody::Snapshot { .. }
                | MessageBody::TimeoutNow { .. }
        )
    }
}
