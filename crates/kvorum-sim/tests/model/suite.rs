//! The bounds of one model: who there is, what may happen how often, what the network does.

use bytes::Bytes;
use kvorum_raft::*;

/// How often something may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Election timeouts that pass.
    pub campaigns: u8,
    pub crashes: u8,
    pub proposals: u8,
    /// Messages that arrive and arrive again later.
    pub duplicates: u8,
    pub reads: u8,
    pub transfers: u8,
    pub changes: u8,
    /// Flushes of a state machine, after which its log may be purged.
    pub flushes: u8,
    /// Ticks at a leader: without a clock its check-quorum timeout, with one its heartbeat.
    pub ticks: u8,
}

/// How messages travel. In both, any message may be lost at no cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Each pair of members has a queue; a message that arrives voids those before it.
    Ordered,
    /// A set: any message arrives before any other.
    Unordered,
}

/// A bug planted in the shell around the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// `Persisted` is reported when a write is issued, not when it is done.
    PersistedTooEarly,
    /// The same only for the own entries of a leader.
    LeaderCountsUnsynced,
    /// A crash loses the vote and keeps the term.
    VoteLost,
    /// The disk does not cut what a write tells it to cut, and keeps the old entries.
    CutForgotten,
    /// Recovery does not recognise the newest configuration entry.
    ConfigurationForgotten,
    /// A member starts again under its old boot number.
    BootNotFresh,
    /// A restarted member has no silence: its clock seems to have run while it was down.
    SilenceForgotten,
    /// An install is reported before the state machine holds it.
    InstallTooEarly,
}

/// What a member's disk holds at first.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    pub hard_state: HardState,
    /// From index 1 on.
    pub entries: Vec<Entry>,
    pub mark: Index,
}

/// One model.
#[derive(Clone, Debug)]
pub struct Suite {
    pub name: &'static str,
    /// One for each member 1, 2, …
    pub starts: Vec<Start>,
    /// Whose election timeouts may pass.
    pub campaigners: Vec<MemberId>,
    pub budget: Budget,
    /// States with a higher term are out of bounds.
    pub term_max: Term,
    pub network: Network,
    pub pre_vote: bool,
    /// The disk's completions are actions of their own; else a write is done in the step that issues it.
    pub slow_disk: bool,
    /// Messages travel that only refuse or only say that a term is higher.
    pub refusals: bool,
    /// `Commit` messages travel; without them the commit index comes with appends only.
    pub commit_hints: bool,
    /// Begins when 1 leads the second term, everyone has its first entry and nothing is on its way.
    pub leader_in_office: bool,
    /// The one change of members that may be asked for.
    pub change: Vec<MemberChange>,
    /// Leases, with a clock: units of time that may pass, and each member's rate in millionths.
    pub clock: Option<Clock>,
    pub plant: Option<Plant>,
}

/// The clock of the lease suite.
#[derive(Clone, Debug)]
pub struct Clock {
    pub units: u64,
    pub rates_ppm: Vec<u64>,
}

/// One unit of the model's time.
pub const UNIT: Micros = 1000;
/// T_min of the suites with a clock, in units.
pub const T_MIN_UNITS: u64 = 3;

impl Suite {
    /// Three founders on empty logs, pre-vote off, a disk without delay, nothing allowed yet.
    pub fn new(name: &'static str) -> Suite {
        let founder = Start {
            hard_state: HardState { term: 1, vote: 0 },
            entries: vec![founders_entry(1..=3)],
            mark: 0,
        };
        Suite {
            name,
            starts: vec![founder; 3],
            campaigners: vec![1, 2, 3],
            budget: Budget::default(),
            term_max: 3,
            network: Network::Ordered,
            pre_vote: false,
            slow_disk: false,
            refusals: false,
            commit_hints: false,
            leader_in_office: false,
            change: Vec::new(),
            clock: None,
            plant: None,
        }
    }

    /// Whether the members are alike at first: then the first candidate may be any of them.
    pub fn is_symmetric(&self) -> bool {
        !self.leader_in_office && self.starts.windows(2).all(|pair| pair[0] == pair[1])
    }

    pub fn options(&self, id: MemberId, boot: u64) -> Options {
        let t_min = self.clock.as_ref().map_or(0, |_| T_MIN_UNITS * UNIT);
        Options {
            id,
            cluster: 7,
            boot,
            seed: 1,
            election_timeout: t_min,
            heartbeat_interval: t_min / 5,
            pre_vote: self.pre_vote,
            lease_reads: self.clock.is_some(),
            append_bytes_max: 1 << 16,
            append_entries_max: usize::MAX,
            check_quorum: 0,
            // One append a pair, as in etcd's specification.
            window_messages: 1,
            window_bytes: 1 << 20,
            uncommitted_bytes_max: 1 << 20,
            cache_bytes_max: 1 << 20,
            apply_bytes_max: 1 << 16,
            entry_bytes_max: 1 << 16,
            promote_lag_bytes: 1 << 16,
            retain_bytes_max: 0,
        }
    }
}

/// A log by its entries' terms, from index 2 on, above the founders' entry.
pub fn log(terms: &[Term]) -> Vec<Entry> {
    let mut entries = vec![founders_entry(1..=3)];
    for (&term, index) in terms.iter().zip(2..) {
        entries.push(Entry {
            term,
            index,
            kind: EntryKind::Command,
            data: Bytes::from_static(b"x"),
        });
    }
    entries
}

/// A configuration entry.
pub fn config_entry(term: Term, index: Index, configuration: Configuration) -> Entry {
    let data = ConfigEntry {
        configuration,
        context: Bytes::new(),
    }
    .encode();
    Entry {
        term,
        index,
        kind: EntryKind::Config,
        data,
    }
}
