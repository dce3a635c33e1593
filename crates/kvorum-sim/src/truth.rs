//! What must be true of all members together, looked at while the world runs.
//!
//! - at most one leader a term; one vote a member and term, restarts included;
//! - an index, once applied anywhere, has the same entry everywhere and for ever;
//! - the state after an index has the same digest everywhere.
//!
//! `Process` adds what is true of one member and its disk: a vote, a candidacy or an acknowledgement is sent only
//! when the disk holds what it promises, and nothing is applied that the own disk does not hold.

use std::collections::BTreeMap;

use kvorum_model::SessionRef;
use kvorum_raft::{Entry, Index, MemberId, Term};

use crate::env::Env;

/// The record. With `watching` off it only records (to prove that the checks at the end suffice).
#[derive(Debug)]
pub(crate) struct Truth {
    pub watching: bool,
    leaders: BTreeMap<Term, MemberId>,
    votes: BTreeMap<(MemberId, Term), MemberId>,
    /// Term, kind and hash of each applied entry; the first has index 1.
    applied: Vec<(Term, u8, u64)>,
    digests: BTreeMap<Index, (u128, MemberId)>,
    /// The first index of each session's request.
    requests: BTreeMap<(u64, u64), Index>,
    /// (member, index, digest), as the checker takes it.
    pub reports: Vec<(u64, u64, u128)>,
}

impl Truth {
    pub(crate) fn new(watching: bool) -> Truth {
        Truth {
            watching,
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            applied: Vec::new(),
            digests: BTreeMap::new(),
            requests: BTreeMap::new(),
            reports: Vec::new(),
        }
    }

    fn judge(&self, holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
        if holds || !self.watching {
            Ok(())
        } else {
            Err(why())
        }
    }

    pub(crate) fn leads(&mut self, member: MemberId, term: Term) -> Result<(), String> {
        let leader = *self.leaders.entry(term).or_insert(member);
        self.judge(leader == member, || {
            format!("members {leader} and {member} both lead term {term}")
        })
    }

    pub(crate) fn votes(&mut self, voter: MemberId, term: Term, candidate: MemberId) -> Result<(), String> {
        let first = *self.votes.entry((voter, term)).or_insert(candidate);
        self.judge(first == candidate, || {
            format!("member {voter} votes for {candidate} in term {term}, and voted for {first}")
        })
    }

    pub(crate) fn applies(&mut self, member: MemberId, entry: &Entry) -> Result<(), String> {
        let seen = (entry.term, entry.kind as u8, Env::hash(&entry.data));
        let at = entry.index as usize - 1;
        match self.applied.get(at) {
            Some(known) => self.judge(*known == seen, || {
                format!(
                    "member {member} applies entry {}@{} (kind {:?}), but {}@{} was applied before",
                    entry.index, entry.term, entry.kind, entry.index, known.0
                )
            }),
            None if at == self.applied.len() => {
                self.applied.push(seen);
                Ok(())
            }
            None => self.judge(false, || {
                format!(
                    "member {member} applies entry {}, nobody applied {}",
                    entry.index,
                    self.applied.len() + 1
                )
            }),
        }
    }

    /// The state of a member after an index.
    pub(crate) fn reaches(&mut self, member: MemberId, index: Index, digest: u128) -> Result<(), String> {
        let (known, first) = *self.digests.entry(index).or_insert((digest, member));
        self.judge(known == digest, || {
            format!("members {first} and {member} differ after entry {index}: {known:032x}, {digest:032x}")
        })
    }

    /// The last entry that anyone applied.
    pub(crate) fn last(&self) -> Index {
        self.applied.len() as Index
    }

    /// Whether this request of a session stands in the log a second time.
    pub(crate) fn is_repeated(&mut self, session: SessionRef, index: Index) -> bool {
        *self.requests.entry((session.id, session.seq)).or_insert(index) != index
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kvorum_raft::EntryKind;

    use super::*;

    fn entry(index: Index, term: Term, data: &'static [u8]) -> Entry {
        Entry {
            term,
            index,
            kind: EntryKind::Command,
            data: Bytes::from_static(data),
        }
    }

    #[test]
    fn two_leaders_two_votes_two_entries_and_two_states_are_found() {
        let mut truth = Truth::new(true);
        assert!(truth.leads(1, 5).and(truth.leads(1, 5)).is_ok());
        assert!(truth.leads(2, 5).is_err());
        assert!(
            truth.votes(1, 5, 2).is_ok() && truth.votes(1, 6, 3).is_ok() && truth.votes(1, 5, 3).is_err()
        );
        assert!(truth.applies(1, &entry(1, 1, b"a")).is_ok() && truth.applies(2, &entry(1, 1, b"a")).is_ok());
        assert!(
            truth.applies(2, &entry(1, 1, b"b")).is_err() && truth.applies(2, &entry(3, 1, b"c")).is_err()
        );
        assert!(truth.reaches(1, 1, 7).is_ok() && truth.reaches(2, 1, 8).is_err());
        let request = SessionRef { id: 1, seq: 1 };
        assert!(
            !truth.is_repeated(request, 4) && !truth.is_repeated(request, 4) && truth.is_repeated(request, 9)
        );
    }
}
