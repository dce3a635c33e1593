//! The replica's seam: what goes in and what comes out.

use std::sync::Arc;

use bytes::Bytes;
use kvorum_model::{MemberRecord, Revision};
use kvorum_mvcc::{ClusterState, LeaseChange, LeaseRecord};
use kvorum_raft::{Entry, Index, LogId, MemberId, Message, Micros, Persist, Seq, SnapshotMeta, Token};

use crate::wire::PeerMessage;

/// Settings of one replica.
#[derive(Clone, Debug)]
pub struct Options {
    /// The consensus core's settings, this member's ID and boot nonce among them.
    pub raft: kvorum_raft::Options,
    /// What this member says of itself (`PublishMember`).
    pub record: MemberRecord,
    /// A random number: the cluster's UUID if this member is the first leader.
    pub fresh_uuid: u128,
    /// Most requests that wait for a leader to be known.
    pub held_requests_max: usize,
    /// Most bytes of commands in one forwarded batch.
    pub forward_bytes_max: usize,
    /// Most bytes of commands in one batch at the leader (one larger part passes alone).
    pub batch_bytes_max: usize,
    /// While so many log writes are not durable yet, writes gather.
    pub log_writes_open_max: u64,
    /// How often what remains of a lease that lives longer is written down.
    pub lease_checkpoint_interval: Micros,
    /// What the cluster knows of this member's addresses stands above what `record` says.
    pub keeps_addresses: bool,
    /// As leader, compact history that is older than the cluster keeps.
    pub compacts_by_age: bool,
    /// How much history a cluster keeps that this member is the first to lead, in ms; 0: all of it.
    pub history_ms: u64,
}

/// One write of a caller on this member.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The caller's number: the envelope's origin sequence. Below [`Node::INTERNAL`](crate::Node::INTERNAL).
    pub seq: u64,
    /// The encoded envelope, its time not yet stamped.
    pub command: Bytes,
    /// When the caller stops waiting.
    pub deadline: Micros,
}

/// One linearizable read of a caller on this member, or one that stands for several.
#[derive(Clone, Copy, Debug)]
pub struct ReadRequest {
    /// The caller's number.
    pub id: u64,
    /// When the caller stops waiting.
    pub deadline: Micros,
}

/// What a caller asks about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseAsk {
    /// Renew it.
    KeepAlive,
    /// How long it lives.
    TimeToLive,
}

/// One question about a lease of a caller on this member.
#[derive(Clone, Copy, Debug)]
pub struct LeaseCall {
    /// The caller's number.
    pub id: u64,
    /// The lease.
    pub lease: i64,
    /// What.
    pub ask: LeaseAsk,
    /// When the caller stops waiting.
    pub deadline: Micros,
}

/// The answer to a question about a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// Seconds that it lives from now on. Of a lease that is not there: 0 to a renewal, else -1.
    pub ttl_s: i64,
    /// Seconds that it lives after a renewal; 0 if it is not there.
    pub granted_s: i64,
}

/// What an administrator asks for. Answered by the leader only.
#[derive(Clone, Debug)]
pub enum AdminRequest {
    /// Add a learner. Its `id` is given by the leader if it is 0, or not free.
    AddLearner(MemberRecord),
    /// A member announces itself, by name, addresses and, if it tells it, incarnation: a new name is added as a
    /// learner that is promoted once in sync. A known one is answered [`AdminReply::Known`], unless the
    /// announcement comes from another directory than its own: then it lost its data, and is replaced as by
    /// [`AdminRequest::Replace`] if the leader has not heard it for a maximal election timeout. Asked again, it
    /// changes nothing.
    Register(MemberRecord),
    /// Make a learner a voter.
    Promote(MemberId),
    /// Remove a member for good.
    Remove(MemberId),
    /// Remove `old` and add its successor as a learner that is promoted once in sync, in one change.
    Replace {
        /// The member that lost its data.
        old: MemberId,
        /// Its successor; `id` is given by the leader.
        new: MemberRecord,
    },
    /// One of the above, after the checks that etcd makes with `strict-reconfig-check`.
    Checked {
        /// The request; not [`AdminRequest::Register`].
        request: Box<AdminRequest>,
        /// Most learners that are not on their way to a vote.
        learners_max: usize,
    },
    /// Hand leadership to this member, or with 0 to the best one.
    Transfer(MemberId),
}

/// The answer to an [`AdminRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminReply {
    /// The change is committed; the new member, if there is one, has this ID.
    Changed(Option<MemberId>),
    /// Nothing had to change: this member is known already.
    Known(MemberId),
    /// The transfer has begun (its end shows in the status).
    TransferStarted,
}

/// Why an [`AdminRequest`] was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// This member does not lead; the leader, if known, else 0.
    NotLeader(MemberId),
    /// No such member.
    UnknownMember(MemberId),
    /// Another change is under way, or the leader is too new: retry.
    Busy,
    /// A half of the new configuration would have no live quorum.
    NoLiveQuorum,
    /// The learner is not in sync yet, or the transfer's target is not fit.
    NotReady(MemberId),
    /// The name belongs to this member, which was heard of not long ago.
    InUse(MemberId),
    /// Too few voters have started for a majority of the new configuration.
    NotEnoughStarted,
    /// Only a learner can be promoted.
    NotLearner(MemberId),
    /// Another member has one of these peer addresses.
    AddressInUse,
    /// There are as many learners as may be.
    TooManyLearners,
    /// The change makes no sense.
    Invalid(String),
    /// Appended, then leadership was lost: it may have happened.
    Unknown,
    /// The deadline passed; the change may still happen.
    TimedOut,
}

/// Why a write failed. The first group never took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteFailure {
    /// No leader was known until the deadline.
    NoLeader,
    /// Too much waits here or at the leader.
    Overloaded,
    /// One command is larger than the log takes.
    TooLarge,
    /// The leader's disk is full, and the command needs space.
    NoSpace,
    /// Another entry took its place in the log.
    Superseded,
    /// This member stops.
    Stopping,
    /// It was handed to a leader that was lost: it may have been applied, or may be yet.
    LeaderLost,
}

impl WriteFailure {
    /// Whether the write may have taken effect, or may take effect yet.
    pub fn is_unknown(self) -> bool {
        matches!(self, WriteFailure::LeaderLost)
    }
}

/// Why a linearizable read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadFailure {
    /// No leader confirmed until the deadline.
    TimedOut,
    /// Too many wait.
    Overloaded,
    /// This member stops.
    Stopping,
}

/// What the state machine reached by applying.
#[derive(Clone, Debug, Default)]
pub struct ApplyReport {
    /// The last applied entry.
    pub applied: LogId,
    /// The last applied entry that the store holds durably.
    pub flushed: Index,
    /// The store's revision.
    pub revision: Revision,
    /// Digests at agreed indexes passed by this application, in order.
    pub digests: Vec<(Index, u128)>,
    /// Members and settings, if they changed.
    pub cluster: Option<Arc<ClusterState>>,
    /// What became of leases, in order.
    pub leases: Vec<LeaseChange>,
    /// All leases, if this is another state than the one before.
    pub all_leases: Option<Vec<LeaseRecord>>,
}

/// What the state machine would have removed, asked by the leader from time to time.
#[derive(Clone, Debug, Default)]
pub struct Housekeeping {
    /// Sessions unused for too long.
    pub expired_sessions: Vec<u64>,
    /// Forget history up to here.
    pub compact_to: Option<Revision>,
}

/// A received snapshot's place on the shell's stage.
pub type Staged = u64;

/// What happens to a replica.
#[derive(Debug)]
pub enum Input {
    /// Time may have passed.
    Tick,
    /// A peer's message, from an authenticated connection.
    Peer(PeerMessage),
    /// Writes of local callers, in order.
    Propose(Vec<Proposal>),
    /// Reads of local callers.
    Read(Vec<ReadRequest>),
    /// Questions of local callers about leases.
    Leases(Vec<LeaseCall>),
    /// An administrator's request.
    Admin {
        /// The caller's number.
        id: u64,
        /// What.
        request: AdminRequest,
        /// When the caller stops waiting.
        deadline: Micros,
    },
    /// The log holds every write up to this one durably.
    Persisted(Seq),
    /// The log failed; the process must end.
    PersistFailed,
    /// Entries read from the log; empty if the read failed.
    Fetched {
        /// Which [`Effect::Fetch`].
        id: u64,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// An [`Effect::Apply`] was carried out.
    Applied(ApplyReport),
    /// A view of the state that can be sent to this peer is open.
    SnapshotBuilt {
        /// For whom.
        peer: MemberId,
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// The transfer to this peer ended.
    SnapshotSent {
        /// The peer.
        peer: MemberId,
        /// Whether it has all of it.
        ok: bool,
    },
    /// A whole snapshot was received, verified, and put on the stage.
    SnapshotReceived {
        /// Its place there; no other snapshot ever had it in this process.
        staged: Staged,
        /// The last entry that the staged state has applied.
        last: LogId,
        /// What came with it.
        message: Message,
    },
    /// An [`Effect::Install`] was carried out.
    Installed {
        /// The snapshot.
        meta: SnapshotMeta,
        /// The state machine after it.
        report: ApplyReport,
    },
    /// The connection to this peer broke, or there was none for what was to be sent.
    Unreachable {
        /// The peer.
        peer: MemberId,
        /// The number of the last forward that was handed to a connection which broke; 0: none was. It and those
        /// before it may have arrived, or may arrive yet.
        handed: Token,
        /// Forwards that never were handed to a connection, nor will be.
        unsent: Vec<Token>,
    },
    /// This member is about to stop: what was not handed on will not be.
    Stopping,
    /// Whether the log can still claim space for entries that need it.
    Space {
        /// No space is left.
        exhausted: bool,
    },
    /// The answer to [`Effect::Housekeep`].
    Housekeeping(Housekeeping),
}

/// What the shell must do for a replica.
#[derive(Debug)]
pub enum Effect {
    /// Write this to the log, in order; answer [`Input::Persisted`].
    Persist(Persist),
    /// Read from the log; answer [`Input::Fetched`].
    Fetch {
        /// The answer's id.
        id: u64,
        /// First index.
        from: Index,
        /// Last index.
        to: Index,
        /// Bound on the bytes; at least one entry.
        bytes_max: usize,
    },
    /// Purge the log up to here.
    Purge(SnapshotMeta),
    /// Apply these entries, in order; answer [`Input::Applied`].
    Apply(Vec<Entry>),
    /// Open a view of the applied state to send to this peer; answer [`Input::SnapshotBuilt`].
    BuildSnapshot {
        /// For whom.
        peer: MemberId,
        /// The least index that helps it.
        at_least: Index,
    },
    /// Stream the view opened for this message's receiver, then the message; answer [`Input::SnapshotSent`].
    SendSnapshot(Message),
    /// Make the snapshot in this place the state; answer [`Input::Installed`].
    Install {
        /// Its place on the stage.
        staged: Staged,
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// The log was reset to the snapshot that ends here: its install record can go, if it is still the store's.
    InstallSettled(LogId),
    /// The snapshot in this place is not wanted.
    DropStaged(Staged),
    /// Send this to `message.to`.
    Send(PeerMessage),
    /// These writes of local callers failed.
    WritesFailed {
        /// Their numbers.
        seqs: Vec<u64>,
        /// Why.
        why: WriteFailure,
    },
    /// A view of the state taken from now on serves these reads.
    ReadsReady(Vec<u64>),
    /// These reads failed.
    ReadsFailed {
        /// Their numbers.
        ids: Vec<u64>,
        /// Why.
        why: ReadFailure,
    },
    /// Answers about leases, by the callers' numbers.
    LeasesDone(Vec<(u64, Result<LeaseAnswer, ReadFailure>)>),
    /// An administrator's answer.
    AdminDone {
        /// The caller's number.
        id: u64,
        /// The answer.
        result: Result<AdminReply, AdminError>,
    },
    /// Ask the state machine what could be removed at this cluster time; answer [`Input::Housekeeping`].
    Housekeep {
        /// Cluster time in ms.
        time_ms: u64,
    },
    /// The members or their addresses changed.
    ClusterChanged(Arc<ClusterState>),
    /// A peer once acknowledged what it no longer has; it must be replaced.
    PeerLostData(MemberId),
    /// This member was removed: end the process.
    Removed,
    /// This member must stop at once.
    Fatal(String),
}
