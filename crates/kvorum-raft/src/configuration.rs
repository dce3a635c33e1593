//! What configurations mean: quorums, members, and the step from one to the next (thesis §4.3).
//!
//! Every change of voters goes through a joint configuration (MB3); in it each decision needs a majority of
//! both halves (MB4). Nothing here knows the log.

use std::collections::BTreeSet;

use crate::types::{Configuration, MemberChange, MemberId};

/// Most members of one configuration, learners included.
pub const MEMBERS_MAX: usize = 255;

impl Configuration {
    /// A configuration of these voters and nothing else.
    pub fn of_voters(voters: impl IntoIterator<Item = MemberId>) -> Configuration {
        Configuration {
            voters: voters.into_iter().collect(),
            ..Configuration::default()
        }
    }

    /// Whether nobody is in it: a member that has not heard of its cluster (MB12).
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    /// Whether it is joint.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` votes, in either half.
    pub fn is_voter(&self, id: MemberId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Whether `id` is in it at all.
    pub fn contains(&self, id: MemberId) -> bool {
        self.is_voter(id) || self.learners.contains(&id)
    }

    /// Whether `id` alone decides everything (SM1).
    pub fn is_sole_voter(&self, id: MemberId) -> bool {
        !self.is_joint() && self.voters.len() == 1 && self.voters.contains(&id)
    }

    /// Everyone in it, ascending.
    pub fn members(&self) -> BTreeSet<MemberId> {
        self.voters
            .iter()
            .chain(&self.outgoing)
            .chain(&self.learners)
            .copied()
            .collect()
    }

    /// Whether the members for which `agrees` holds contain a majority of each half (MB4).
    pub fn has_quorum(&self, agrees: impl Fn(MemberId) -> bool) -> bool {
        majority_of(&self.voters, &agrees) && (!self.is_joint() || majority_of(&self.outgoing, &agrees))
    }

    /// Whether a quorum could still agree if those for which `refuses` holds never do.
    pub fn can_reach_quorum(&self, refuses: impl Fn(MemberId) -> bool) -> bool {
        self.has_quorum(|id| !refuses(id))
    }

    /// The highest value that a quorum has reached, given each member's own (RP8, RD2, EL12). Computed from
    /// all values every time; without a voter nothing is reached.
    pub fn quorum_value(&self, value: impl Fn(MemberId) -> u64) -> u64 {
        let incoming = majority_value(&self.voters, &value);
        if self.is_joint() {
            incoming.min(majority_value(&self.outgoing, &value))
        } else {
            incoming
        }
    }

    /// The configuration after `changes`: joint if the voters differ (MB3). The error names what is wrong (MB9).
    pub fn change(&self, changes: &[MemberChange]) -> Result<Configuration, &'static str> {
        if self.is_joint() {
            return Err("the configuration is joint");
        }
        if changes.is_empty() {
            return Err("the change is empty");
        }
        let mut next = self.clone();
        let mut named = BTreeSet::new();
        for change in changes {
            if !named.insert(change.member()) {
                return Err("a member is named twice");
            }
            next.apply(*change)?;
        }
        if next.voters.is_empty() {
            return Err("no voter is left");
        }
        if next.members().len() > MEMBERS_MAX {
            return Err("too many members");
        }
        if next.voters != self.voters {
            next.outgoing = self.voters.clone();
            // Who votes until the joint configuration is left is neither learner nor tombstone before.
            for voter in &self.voters {
                next.removed.remove(voter);
            }
        }
        Ok(next)
    }

    fn apply(&mut self, change: MemberChange) -> Result<(), &'static str> {
        match change {
            MemberChange::AddLearner(0) => return Err("0 is no member"),
            MemberChange::AddLearner(id) if self.removed.contains(&id) => {
                return Err("the member was removed; IDs are never reused");
            }
            MemberChange::AddLearner(id) if self.contains(id) => return Err("the member is there already"),
            MemberChange::AddLearner(id) => {
                self.learners.insert(id);
            }
            MemberChange::Promote(id) => {
                if !self.learners.remove(&id) {
                    return Err("only a learner can be promoted");
                }
                self.voters.insert(id);
            }
            MemberChange::Demote(id) => {
                if !self.voters.remove(&id) {
                    return Err("only a voter can be demoted");
                }
                self.learners_next.insert(id);
            }
            MemberChange::Remove(id) => {
                if !self.voters.remove(&id) && !self.learners.remove(&id) {
                    return Err("the member is not there");
                }
                self.removed.insert(id);
            }
        }
        Ok(())
    }

    /// The final configuration of a joint one: the outgoing half leaves or listens (MB5).
    pub fn leave(&self) -> Configuration {
        let mut next = self.clone();
        for id in std::mem::take(&mut next.outgoing) {
            if !next.voters.contains(&id) && !next.learners_next.contains(&id) {
                next.removed.insert(id);
            }
        }
        next.learners.append(&mut next.learners_next);
        next
    }
}

impl MemberChange {
    /// The member that changes.
    pub fn member(&self) -> MemberId {
        match *self {
            MemberChange::AddLearner(id)
            | MemberChange::Promote(id)
            | MemberChange::Demote(id)
            | MemberChange::Remove(id) => id,
        }
    }
}

fn majority_of(voters: &BTreeSet<MemberId>, agrees: impl Fn(MemberId) -> bool) -> bool {
    voters.iter().filter(|&&id| agrees(id)).count() > voters.len() / 2
}

/// The highest value that more than half of the voters have reached. Groups are small: comparing each with
/// each needs no memory.
fn majority_value(voters: &BTreeSet<MemberId>, value: impl Fn(MemberId) -> u64) -> u64 {
    let mut best = 0;
    for &id in voters {
        let candidate = value(id);
        if candidate > best && majority_of(voters, |other| value(other) >= candidate) {
            best = candidate;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[MemberId]) -> BTreeSet<MemberId> {
        ids.iter().copied().collect()
    }

    #[test]
    fn quorum_value_is_the_middle_of_all_values() {
        for (voters, expected) in [
            (&[1][..], 10),
            (&[1, 2], 10),
            (&[1, 2, 3], 20),
            (&[1, 2, 3, 4], 20),
        ] {
            let configuration = Configuration::of_voters(voters.iter().copied());
            assert_eq!(configuration.quorum_value(|id| id * 10), expected, "{voters:?}");
        }
        assert_eq!(Configuration::default().quorum_value(|_| 7), 0);
    }

    #[test]
    fn mb4_joint_needs_both_halves() {
        let joint = Configuration {
            voters: set(&[1, 2, 3]),
            outgoing: set(&[4, 5, 6]),
            ..Configuration::default()
        };
        assert!(!joint.has_quorum(|id| id <= 3));
        assert!(!joint.has_quorum(|id| id >= 4));
        assert!(joint.has_quorum(|id| [1, 2, 4, 5].contains(&id)));
        assert_eq!(joint.quorum_value(|id| id), 2);
    }

    #[test]
    fn mb3_every_change_of_voters_is_joint_and_leaves_once() {
        let old = Configuration {
            voters: set(&[1, 2, 3]),
            learners: set(&[4, 5]),
            ..Configuration::default()
        };
        let changes = [
            MemberChange::Promote(4),
            MemberChange::Remove(1),
            MemberChange::Demote(2),
            MemberChange::Remove(5),
            MemberChange::AddLearner(6),
        ];
        let joint = old.change(&changes).unwrap();
        let expected = Configuration {
            voters: set(&[3, 4]),
            outgoing: set(&[1, 2, 3]),
            learners: set(&[6]),
            learners_next: set(&[2]),
            removed: set(&[5]),
        };
        assert_eq!(joint, expected);
        let last = Configuration {
            voters: set(&[3, 4]),
            learners: set(&[2, 6]),
            removed: set(&[1, 5]),
            ..Configuration::default()
        };
        assert_eq!(joint.leave(), last);
        assert!(joint.change(&changes).is_err());
        let simple = old.change(&[MemberChange::AddLearner(6)]).unwrap();
        assert!(!simple.is_joint());
    }

    #[test]
    fn mb9_changes_that_make_no_sense() {
        let old = Configuration {
            voters: set(&[1]),
            learners: set(&[2]),
            removed: set(&[3]),
            ..Configuration::default()
        };
        use MemberChange::*;
        for changes in [
            &[][..],
            &[AddLearner(0)],
            &[AddLearner(1)],
            &[AddLearner(2)],
            &[AddLearner(3)],
            &[Promote(1)],
            &[Promote(4)],
            &[Demote(2)],
            &[Demote(1)],
            &[Remove(1)],
            &[Remove(4)],
            &[AddLearner(4), Promote(4)],
        ] {
            assert!(old.change(changes).is_err(), "{changes:?}");
        }
        let many: Vec<_> = (10..10 + MEMBERS_MAX as u64 - 2).map(AddLearner).collect();
        assert!(old.change(&many).is_ok());
        let too_many: Vec<_> = (10..10 + MEMBERS_MAX as u64 - 1).map(AddLearner).collect();
        assert_eq!(old.change(&too_many), Err("too many members"));
    }
}
