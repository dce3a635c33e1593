//! What travels through the log, and what comes back from applying it.

use crate::auth::{AuthCommand, Caller, Secret};
use crate::types::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, Revision, TxnRequest, TxnResponse,
};

/// Who proposed an entry: the member whose caller waits for its reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The member.
    pub member: u64,
    /// A number that differs at each start of it.
    pub boot: u64,
    /// The member's own number for the request.
    pub seq: u64,
}

/// The request of a session (thesis §6.3): the same pair twice takes effect once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionRef {
    /// The session, as `Register` returned it.
    pub id: u64,
    /// The client's number in it, from 1 on.
    pub seq: u64,
}

/// One entry's content. See `docs/design/entry-format.md` for its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Cluster time in ms, stamped by the leader (`Envelope::stamp`); the only time in replicated state.
    pub time_ms: u64,
    /// Who waits for the reply.
    pub origin: Origin,
    /// The session, if the caller uses one.
    pub session: Option<SessionRef>,
    /// Who asks; `None`: the cluster itself, or nobody that is known.
    pub caller: Option<Caller>,
    /// The command.
    pub command: Command,
}

/// Something that changes replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Write one key.
    Put(PutRequest),
    /// Delete keys.
    DeleteRange(DeleteRangeRequest),
    /// A transaction.
    Txn(TxnRequest),
    /// Forget history up to this revision.
    Compact(Revision),
    /// Open a session.
    Register,
    /// Remove sessions that were unused for [`crate::limits::SESSION_IDLE_MS`]; each is checked again at apply.
    ExpireSessions(Vec<u64>),
    /// The first leader's first entry of its own: names the cluster.
    ClusterInit {
        /// Random; stands in every data directory and handshake.
        uuid: u128,
        /// The minimal election timeout of all members, in ms.
        election_timeout_ms: u64,
    },
    /// A member says who it is.
    PublishMember(MemberRecord),
    /// The next ID for a member that joins is taken (context of a membership change as well).
    AddMember(MemberRecord),
    /// A member is gone (context of a membership change).
    RemoveMember(u64),
    /// Change a setting of the whole cluster.
    ClusterSetting(Setting),
    /// An alarm rises, or is disarmed.
    SetAlarm {
        /// What is wrong.
        alarm: Alarm,
        /// With which member.
        member: u64,
        /// It rises.
        raised: bool,
    },
    /// A member's peers reach it elsewhere from now on; nothing if there is no such member.
    MoveMember {
        /// Its ID.
        id: u64,
        /// As in [`MemberRecord::peer_addresses`].
        peer_addresses: Vec<String>,
    },
    /// Several of these as one (context of a `member replace`); not accepted from clients.
    Batch(Vec<Command>),
    /// A lease: keys that are attached to it go when it ends.
    LeaseGrant {
        /// Its ID: not 0, and free. Chosen before it is proposed.
        id: i64,
        /// How long it lives without a renewal, in seconds; less than the cluster's least is raised to that.
        ttl_s: i64,
    },
    /// The end of a lease and its keys, in one revision.
    LeaseRevoke {
        /// Its ID.
        id: i64,
        /// Set if nobody asked for it: the lease ran out at the leader.
        expiry: Option<LeaseProof>,
    },
    /// What remained of leases at the leader, for the leader after it.
    LeaseCheckpoint {
        /// The term in whose log it counts: that of the leader that measured.
        term: u64,
        /// What remains.
        leases: Vec<LeaseRemainder>,
    },
    /// A change of users, roles and permissions.
    Auth(AuthCommand),
}

/// What a leader that lets a lease run out had before it. A command with another term's proof, or about a lease that
/// was granted anew, changes nothing: a later leader may have promised more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseProof {
    /// The term of the leader that decided.
    pub term: u64,
    /// The index of the entry that granted the lease.
    pub granted: u64,
}

/// What remains of one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseRemainder {
    /// The lease.
    pub id: i64,
    /// The index of the entry that granted it.
    pub granted: u64,
    /// Seconds, rounded up; 0: all of its TTL again.
    pub remaining_s: i64,
}

/// What all members refuse requests for until it is disarmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alarm {
    /// A member is out of space: nothing that needs some is written.
    NoSpace,
    /// A member's data is damaged: nothing is written or read.
    Corrupt,
}

/// A setting that all members must agree on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Setting {
    /// Longest key in bytes.
    KeyBytesMax(u64),
    /// How much history automatic compaction keeps, in ms; 0: all of it.
    HistoryMs(u64),
}

/// What the cluster knows of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemberRecord {
    /// Its ID.
    pub id: u64,
    /// Its name, for people.
    pub name: String,
    /// Addresses for peers, `host:port`.
    pub peer_addresses: Vec<String>,
    /// URLs for clients; empty until it started.
    pub client_urls: Vec<String>,
    /// Made with its data directory; 0 until it is known.
    pub incarnation: u128,
    /// The newest feature level it can run.
    pub feature_level: u32,
    /// A learner that the leader promotes by itself once it is in sync (a replacement of a voter).
    pub promote_when_ready: bool,
}

/// What applying a command answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// To [`Command::Put`].
    Put(PutResponse),
    /// To [`Command::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// To [`Command::Txn`].
    Txn(TxnResponse),
    /// To [`Command::Compact`].
    Compact,
    /// To [`Command::Register`]: the session's ID.
    Registered(u64),
    /// To [`Command::LeaseGrant`].
    LeaseGranted {
        /// The lease.
        id: i64,
        /// How long it lives, in seconds.
        ttl_s: i64,
    },
    /// To [`Command::LeaseRevoke`]; also if its [`LeaseProof`] no longer held and nothing changed.
    LeaseRevoked,
    /// To [`Command::SetAlarm`]: whether it stood already.
    AlarmSet(bool),
    /// To [`AuthCommand::Authenticate`]: the token.
    Authenticated(Secret),
    /// To everything else.
    Done,
}

impl Command {
    /// Whether it can fill the store, and is refused when space is out.
    pub fn needs_space(&self) -> bool {
        match self {
            Command::Put(_) => true,
            Command::Txn(txn) => txn.has_put(),
            Command::LeaseGrant { .. } => true,
            // A session is small, and what frees space may need one.
            _ => false,
        }
    }
}
