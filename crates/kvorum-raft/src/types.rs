//! The words of the consensus core: identifiers, log entries, configurations.
//!
//! Nothing here knows what an entry's bytes mean.

use std::collections::BTreeSet;

use bytes::Bytes;

/// A member's identity. 0 is reserved for "nobody". Never reused (MB11).
pub type MemberId = u64;
/// An election term. 0 before the first entry.
pub type Term = u64;
/// A position in the log. The first entry has index 1; 0 means "nothing".
pub type Index = u64;
/// The number of a write handed to the disk; grows by one.
pub type Seq = u64;
/// A monotonic time in microseconds that also counts suspended time (TM1).
pub type Micros = u64;
/// What the shell uses to recognise its own request in an effect. Opaque to the core.
pub type Token = u64;

/// The position of an entry together with its term. Ordered as §3.6.1 compares logs: term first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The entry's term.
    pub term: Term,
    /// The entry's index.
    pub index: Index,
}

/// What an entry is to the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Bytes for the state machine.
    Command = 0,
    /// A [`ConfigEntry`], in force from its append on (MB1).
    Config = 1,
    /// A leader's first entry (EL13), or one that only moves the log.
    Noop = 2,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The term of the leader that appended it.
    pub term: Term,
    /// Its index.
    pub index: Index,
    /// What it is.
    pub kind: EntryKind,
    /// Its bytes; shared, never copied between log, wire and apply.
    pub data: Bytes,
}

/// Who votes and who only listens. `outgoing` is empty unless the configuration is joint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Configuration {
    /// Voters (in a joint configuration: of the new half).
    pub voters: BTreeSet<MemberId>,
    /// Voters of the old half; empty when not joint.
    pub outgoing: BTreeSet<MemberId>,
    /// Members that receive the log and do not vote.
    pub learners: BTreeSet<MemberId>,
    /// Voters of the old half that become learners when the joint configuration is left.
    pub learners_next: BTreeSet<MemberId>,
    /// IDs that were members once and never come back (MB11).
    pub removed: BTreeSet<MemberId>,
}

/// One step of a membership change. A list of them is one change (MB2, MB3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberChange {
    /// Add as learner.
    AddLearner(MemberId),
    /// Make a learner a voter (MB8).
    Promote(MemberId),
    /// Make a voter a learner.
    Demote(MemberId),
    /// Remove and tombstone.
    Remove(MemberId),
}

/// The content of an [`EntryKind::Config`] entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfigEntry {
    /// The configuration that counts from this entry on.
    pub configuration: Configuration,
    /// Bytes the shell put into the change for its state machine (names, addresses); opaque here.
    pub context: Bytes,
}

/// Term and vote; durable before anything that depends on them leaves (§3.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// The current term.
    pub term: Term,
    /// Whom this member voted for in it, 0 for nobody.
    pub vote: MemberId,
}

/// What a snapshot says of the log it replaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SnapshotMeta {
    /// The last entry it covers.
    pub last: LogId,
    /// The configuration at that entry (MB10).
    pub configuration: Configuration,
}
