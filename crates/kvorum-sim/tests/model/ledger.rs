//! What must hold over all members and their whole history, and the record of that history. A broken rule is
//! kept in the state: each is a property of its own.

use std::collections::BTreeMap;

use kvorum_raft::*;

/// The rules, each an `always` property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    ElectionSafety,
    LeaderAppendOnly,
    LogMatching,
    LeaderCompleteness,
    StateMachineSafety,
    CommittedChanged,
    CommitWithoutQuorum,
    UntrueVote,
    UntrueAck,
    VotedTwice,
    StaleRead,
    TwoLeases,
    PreVoteChangedReceiver,
    PurgedWhatIsNotDurable,
    AppliedOutOfOrder,
    WriteShape,
    RestartFailed,
    Fatal,
}

/// The history, as far as the rules need it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    pub leaders: BTreeMap<Term, MemberId>,
    /// (voter, term) → whom the vote that left was for.
    votes: BTreeMap<(MemberId, Term), MemberId>,
    /// Entry i+1 as whoever committed it first had it, and the term of the leader that did.
    pub committed: Vec<(Entry, Term)>,
    /// Waiting reads and the highest commit at their arrival.
    pub reads: BTreeMap<Token, Index>,
    /// Reads answered with an index.
    pub reads_ready: u8,
    /// Of those, the ones that no message round preceded.
    pub lease_reads: u8,
    /// Snapshots installed.
    pub installs: u8,
}

impl Ledger {
    pub fn highest_commit(&self) -> Index {
        self.committed.len() as Index
    }

    pub fn committed(&self, index: Index) -> Option<&Entry> {
        let at = usize::try_from(index.checked_sub(1)?).ok()?;
        self.committed.get(at).map(|(entry, _)| entry)
    }

    pub fn vote(&mut self, voter: MemberId, term: Term, candidate: MemberId) -> Result<(), Broken> {
        let first = *self.votes.entry((voter, term)).or_insert(candidate);
        check(first == candidate, Broken::VotedTwice)
    }

    /// `raft` has just become the leader of its term.
    pub fn elected(&mut self, raft: &Raft) -> Result<(), Broken> {
        let (id, term, first) = (raft.id(), raft.term(), raft.status().first);
        let leader = *self.leaders.entry(term).or_insert(id);
        check(leader == id, Broken::ElectionSafety)?;
        // A leader of a lower term may be elected late: it commits nothing any more.
        let has = |(entry, committed_in): &(Entry, Term)| {
            *committed_in >= term || entry.index < first || raft.term_at(entry.index) == Some(entry.term)
        };
        check(self.committed.iter().all(has), Broken::LeaderCompleteness)
    }

    /// A member says that `entry` is committed; if it is the first, it is the leader of `term`.
    pub fn commit(&mut self, entry: &Entry, term: Term) -> Result<(), Broken> {
        match self.committed(entry.index) {
            Some(first) => check(first == entry, Broken::CommittedChanged),
            None => {
                check(entry.index == self.highest_commit() + 1, Broken::CommittedChanged)?;
                self.committed.push((entry.clone(), term));
                Ok(())
            }
        }
    }

    pub fn read_ready(&mut self, token: Token, index: Index) -> Result<(), Broken> {
        self.reads_ready += 1;
        match self.reads.remove(&token) {
            Some(at_least) => check(index >= at_least, Broken::StaleRead),
            None => Ok(()),
        }
    }
}

/// `Ok` if the rule holds.
pub fn check(holds: bool, rule: Broken) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(rule) }
}
