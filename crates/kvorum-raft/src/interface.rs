//! The seam: everything that goes into the core and everything that comes out.
//!
//! One [`Input`] in, a list of [`Effect`]s out; the same state, seed and inputs give the same bytes.
//! What must wait for the disk is kept inside, keyed by the `seq` of the write it waits for; the shell may
//! send every [`Effect::Send`] at once and cannot get the order wrong.

use bytes::Bytes;

use crate::message::Message;
use crate::types::{
    Configuration, Entry, HardState, Index, LogId, MemberChange, MemberId, Micros, Seq, SnapshotMeta, Term,
    Token,
};

/// Settings of one core; all of them are checked by `Raft::new`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// This member.
    pub id: MemberId,
    /// The cluster; messages of another one are dropped.
    pub cluster: u64,
    /// A number that differs at each start of this member; part of the names of forwarded reads (RD5).
    pub boot: u64,
    /// Seed of the election timeouts' draws.
    pub seed: u64,
    /// Minimal election timeout T_min; the timeout is drawn from [T_min, 2·T_min).
    pub election_timeout: Micros,
    /// Heartbeat interval, at most T_min / 5 (TM1).
    pub heartbeat_interval: Micros,
    /// Pre-vote on (the default); off only in tests and model suites.
    pub pre_vote: bool,
    /// Leader leases for reads (RD6). Off by default.
    pub lease_reads: bool,
    /// Bytes of entries in one append (LG5; a single larger entry passes).
    pub append_bytes_max: usize,
    /// Entries in one append.
    pub append_entries_max: usize,
    /// Without an answer from a quorum for so long a leader steps down (EL12); 0: T_max.
    pub check_quorum: Micros,
    /// Appends in flight to one peer (RP1).
    pub window_messages: usize,
    /// Bytes in flight to one peer (RP1).
    pub window_bytes: usize,
    /// Bytes appended and not yet committed at the leader (LG6).
    pub uncommitted_bytes_max: usize,
    /// Bytes of the newest entries kept in memory for replication and apply.
    pub cache_bytes_max: usize,
    /// Bytes of entries handed out by one `Apply` effect.
    pub apply_bytes_max: usize,
    /// Largest size of one entry's data (LG5).
    pub entry_bytes_max: usize,
    /// How far, in bytes, a learner may be behind to be promoted (MB8).
    pub promote_lag_bytes: u64,
    /// Bytes of flushed log kept for live peers that lag and for running snapshot transfers (LG4). Beyond
    /// it they need a snapshot.
    pub retain_bytes_max: u64,
}

/// What recovery found on disk. See the rules RS1–RS7.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Term and vote.
    pub hard_state: HardState,
    /// The log's base: purge mark or last install. Entries start at `base.last.index + 1`; after a crash between
    /// an install and the log's reset they are the old ones (RS3).
    pub base: SnapshotMeta,
    /// The recovered entries above the base, or only the newest part of them: see `terms`.
    pub entries: Vec<Entry>,
    /// (first index, term) of each run of equal terms from base+1 up to the first of `entries`;
    /// empty if `entries` holds everything. Configuration entries below `entries` come in `configs`.
    pub terms: Vec<(Index, Term)>,
    /// Configuration entries in the part of the log that `entries` leaves out.
    pub configs: Vec<(Index, Configuration)>,
    /// The commit mark found in the log.
    pub commit_mark: Index,
    /// What the state machine has durably applied.
    pub applied: LogId,
}

/// What happens to the core. `now` comes with each (see `Raft::step`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Time may have passed; look at the clock.
    Tick,
    /// A peer said something.
    Message(Message),
    /// Append these commands, in order, as one batch. Answered by `Accepted` or `Refused`, perhaps later `Unknown`.
    Propose {
        /// The shell's name for the batch.
        token: Token,
        /// The commands.
        commands: Vec<Bytes>,
    },
    /// Change the membership in one step (MB2, MB3).
    ChangeConfig {
        /// The shell's name for the change.
        token: Token,
        /// What to change.
        changes: Vec<MemberChange>,
        /// Opaque bytes for the state machine, carried in the entry (in a joint change: in the first entry).
        context: Bytes,
    },
    /// Hand leadership over, to the best voter if 0 (TR1–TR3). A target that is not fit is ignored: ask
    /// `Raft::check_transfer` first.
    TransferTo(MemberId),
    /// A linearizable read wants an index (RD1–RD7). Answered by `ReadReady` or `ReadDropped` (at once if too
    /// many wait, FL2).
    Read {
        /// The shell's name for the (batch of) read(s).
        token: Token,
    },
    /// The disk finished every `Persist` up to this one.
    Persisted(Seq),
    /// The disk failed; nothing leaves any more.
    PersistFailed,
    /// The state machine applied up to this index.
    Applied(Index),
    /// The state machine holds this index durably; what is below may be purged.
    Flushed(Index),
    /// The answer to `Fetch`.
    Fetched {
        /// The effect's id.
        id: u64,
        /// The entries from the first asked-for index on; empty means that the read failed, which is fatal (RP9).
        entries: Vec<Entry>,
    },
    /// The state machine has a snapshot that can be sent (SN1).
    SnapshotBuilt {
        /// For which peer.
        peer: MemberId,
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// The shell's transfer to this peer ended, or the snapshot could not be built. One stream per peer: a
    /// stream that a later `SendSnapshot` replaces ends without a report (SN1).
    SnapshotSent {
        /// The peer.
        peer: MemberId,
        /// Whether the peer has all of it.
        ok: bool,
    },
    /// The shell finished the `Install` of this snapshot: the state machine holds it durably.
    SnapshotInstalled(SnapshotMeta),
    /// The connection to this peer broke.
    Unreachable(MemberId),
}

/// One write for the log; order on disk is order of `seq`. A crash keeps a prefix of the writes,
/// and each write whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Persist {
    /// Its number.
    pub seq: Seq,
    /// New term and vote, if they changed.
    pub hard_state: Option<HardState>,
    /// The log's base becomes this snapshot: entries up to `snapshot.last.index` are discarded (SN3). Those
    /// above it stay, unless `truncate_from` cuts them; the log may also end below it.
    pub snapshot: Option<SnapshotMeta>,
    /// Cut the log from this index on, after the base was moved and before appending.
    pub truncate_from: Option<Index>,
    /// Entries to append; contiguous.
    pub entries: Vec<Entry>,
    /// The commit index to note with it; never awaited.
    pub commit_mark: Index,
}

/// Why a proposal, change or transfer was refused; nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefuseReason {
    /// This member does not lead; the leader, if known, else 0.
    NotLeader(MemberId),
    /// Leadership is being handed to this member: retry there.
    Transferring(MemberId),
    /// Too much is appended and not committed (LG6), or disk or state machine are far behind (FL3).
    Overloaded,
    /// One entry is larger than the limit (LG5).
    TooLarge,
    /// A change is under way, or no entry of this term is committed yet (MB2).
    ChangeInProgress,
    /// The change makes no sense against the latest configuration (MB9), with the rule that it breaks.
    InvalidChange(&'static str),
    /// A half of the new configuration would have no live quorum (MB8).
    NoLiveQuorum,
    /// The learner is not caught up, not active, or unknown (MB8); or the transfer's target is not fit (TR1).
    NotReady(MemberId),
    /// The core stopped.
    Stopped,
}

/// The role of this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it could win (EL1).
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write this, in order; answer `Persisted`.
    Persist(Persist),
    /// Send this; everything it promises is durable.
    Send(Message),
    /// Apply these entries, in order; contiguous with the last `Apply`. Answer `Applied`.
    Apply(Vec<Entry>),
    /// Read entries `from..=to` (or a non-empty prefix) from the log; answer `Fetched` with this id.
    Fetch {
        /// The answer's id.
        id: u64,
        /// First index.
        from: Index,
        /// Last index.
        to: Index,
        /// A bound on the bytes; at least one entry is returned.
        bytes_max: usize,
    },
    /// This peer needs a snapshot of at least this index, which may not be applied yet; answer
    /// `SnapshotBuilt`, then `SnapshotSent`.
    NeedSnapshot {
        /// The peer.
        peer: MemberId,
        /// The least index that helps.
        at_least: Index,
    },
    /// Stream the snapshot built for this message's receiver, then deliver this message as its last frame;
    /// answer `SnapshotSent`. The receiver's shell feeds the message to its core only after it holds and has
    /// verified the whole snapshot.
    SendSnapshot(Message),
    /// Make the received snapshot the state; answer `SnapshotInstalled`.
    Install(SnapshotMeta),
    /// Reads of this token may be served once `index` is applied.
    ReadReady {
        /// The read's token.
        token: Token,
        /// What must be applied first.
        index: Index,
    },
    /// Reads of this token were dropped: leadership or term changed; ask again.
    ReadDropped {
        /// The read's token.
        token: Token,
    },
    /// The batch was appended: its first entry is at `first`.
    Accepted {
        /// The batch's token.
        token: Token,
        /// The term of its entries.
        term: Term,
        /// The index of its first entry.
        first: Index,
    },
    /// Nothing was appended.
    Refused {
        /// The batch's token.
        token: Token,
        /// Why.
        why: RefuseReason,
    },
    /// The batch was accepted, then leadership was lost: it may have been applied or may be yet.
    Unknown {
        /// The batch's token.
        token: Token,
    },
    /// Role, term or known leader changed.
    Role {
        /// The current term.
        term: Term,
        /// The leader, 0 if unknown.
        leader: MemberId,
        /// This member's role.
        role: Role,
    },
    /// The configuration in force changed, or was committed.
    Config {
        /// In force (from append on).
        latest: Configuration,
        /// The newest committed one.
        committed: Configuration,
    },
    /// The commit index moved (for metrics and for the shell's own bookkeeping).
    Committed(Index),
    /// The log may be purged up to this entry, which becomes its base together with the configuration at it
    /// (RS5): every live peer has it, and the state is flushed (LG4).
    Purge(SnapshotMeta),
    /// This peer once acknowledged what it no longer has (RS7).
    PeerLostData(MemberId),
    /// This member was removed from the cluster.
    Removed,
    /// An invariant broke or the disk failed: stop the process.
    Fatal(String),
}
