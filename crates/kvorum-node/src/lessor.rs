//! When leases end: the leader's deadlines over the leases that every replica has.
//!
//! Every member follows the table as it applies entries; only a leader that has applied an entry of its own term (the
//! *primary*) has deadlines. They are on its own time input. A new primary gives each lease what a checkpoint left of
//! it, else its whole TTL, counted from its own start; so it never ends a lease sooner than an earlier leader
//! promised, provided that
//! - a renewal is answered only while no checkpoint says less: one that is in the log, or on its way there, is cleared
//!   through the log first;
//! - a lease whose end was proposed is never renewed in that term;
//! - proposals carry the term, and a later term's log does not obey them (the state machine sees to it).
//!
//! Work is bounded: each call of [`Lessor::due`] takes what its budget allows, and the rest stays due.

use std::collections::{BTreeMap, BTreeSet};

use kvorum_model::{LeaseProof, LeaseRemainder};
use kvorum_mvcc::{LeaseChange, LeaseRecord};
use kvorum_raft::{Index, Micros, Term};

const SECOND: Micros = 1_000_000;
/// When a proposed end that did not come is proposed again.
const REVOKE_RETRY: Micros = 3 * SECOND;
/// Ends of leases that are proposed together: about 8 KiB in the log. Other writes wait for no more than so many of
/// them, and the next follow after a rest three times as long as these took, so that three quarters of the log, the disks and the
/// processors stay for others, however fast they are.
pub(crate) const REVOKING_MAX: usize = 128;
/// Longest of these rests: where others make it slow, leases end all the same.
const REST_MAX: Micros = 10_000;
/// Remainders in one entry: about 16 KiB.
const CHECKPOINTS_MAX: usize = 680;

/// One lease. All but the first three are the primary's.
#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl_s: i64,
    remaining_s: i64,
    granted: Index,
    deadline: Micros,
    checkpoint_at: Micros,
    /// Its place in `wakes`: no later than the two above while nothing was proposed.
    wake: Micros,
    revoking: bool,
    /// A checkpoint or a clearing one is proposed and not applied.
    checkpointing: bool,
    /// Since when a clearing checkpoint is under way.
    clearing: Option<Micros>,
    /// Clearing ones that are proposed and not applied. A lost one stays counted: then the lease is not checkpointed
    /// any more, so that what clears is always later in the log than what it is to clear.
    clears_open: u32,
}

/// What a renewal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// There is no such lease.
    Missing,
    /// It lives for so many seconds from now.
    Renewed(i64),
    /// It ran out, and its end is not applied yet: wait for that.
    Ending,
    /// A checkpoint must be cleared first: propose this, if it is not on its way, and wait until it is applied.
    Clear(Option<LeaseRemainder>),
}

/// What is to be proposed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Leases that ran out.
    pub(crate) ends: Vec<(i64, LeaseProof)>,
    /// What remains of others.
    pub(crate) checkpoints: Vec<LeaseRemainder>,
}

/// See the module. Invariant: as primary, `wakes` holds exactly (wake, ID) of each lease.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    leases: BTreeMap<i64, Lease>,
    wakes: BTreeSet<(Micros, i64)>,
    /// The term in which this member is primary; 0: it is not.
    primary_in: Term,
    /// Ends that are proposed and, as far as is known, on their way.
    revoking: usize,
    /// When the first of them was proposed, or the last one applied.
    progress_at: Micros,
    /// When they were proposed.
    proposed_at: Micros,
    /// No end is proposed before.
    rest_until: Micros,
    checkpoint_interval: Micros,
    /// Renewals that were answered, for the metrics.
    pub(crate) renewed: u64,
}

fn seconds(seconds: i64) -> Micros {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(SECOND)
}

impl Lease {
    fn new(record: &LeaseRecord) -> Lease {
        Lease {
            ttl_s: record.ttl_s,
            remaining_s: record.remaining_s,
            granted: record.granted,
            deadline: Micros::MAX,
            checkpoint_at: Micros::MAX,
            wake: Micros::MAX,
            revoking: false,
            checkpointing: false,
            clearing: None,
            clears_open: 0,
        }
    }

    /// It lives until then.
    fn run_until(&mut self, now: Micros, deadline: Micros, checkpoint_interval: Micros) {
        self.deadline = deadline;
        self.checkpoint_at = match deadline.saturating_sub(now) > checkpoint_interval {
            true => now + checkpoint_interval,
            false => Micros::MAX,
        };
    }

    fn start(&mut self, now: Micros, checkpoint_interval: Micros) {
        let lives_s = if self.remaining_s > 0 {
            self.remaining_s
        } else {
            self.ttl_s
        };
        (self.revoking, self.checkpointing, self.clearing) = (false, false, None);
        self.clears_open = 0;
        self.run_until(now, now.saturating_add(seconds(lives_s)), checkpoint_interval);
        self.wake = self.deadline.min(self.checkpoint_at);
    }
}

impl Lessor {
    /// No leases yet.
    pub(crate) fn new(checkpoint_interval: Micros) -> Lessor {
        Lessor {
            checkpoint_interval,
            ..Lessor::default()
        }
    }

    /// How many leases there are.
    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// The term in which this member is primary, or 0.
    pub(crate) fn primary_in(&self) -> Term {
        self.primary_in
    }

    /// Another state took the place of the one that was followed. Never while this member is primary.
    pub(crate) fn reset(&mut self, records: &[LeaseRecord]) {
        self.demote();
        self.leases = records
            .iter()
            .map(|record| (record.id, Lease::new(record)))
            .collect();
    }

    /// This member leads in `term`, and has applied an entry of it.
    pub(crate) fn promote(&mut self, now: Micros, term: Term) {
        self.demote();
        self.primary_in = term;
        for (id, lease) in &mut self.leases {
            lease.start(now, self.checkpoint_interval);
            self.wakes.insert((lease.wake, *id));
        }
    }

    /// This member does not lead any more.
    pub(crate) fn demote(&mut self) {
        self.primary_in = 0;
        self.revoking = 0;
        self.wakes.clear();
    }

    /// Follows the state machine.
    pub(crate) fn applied(&mut self, now: Micros, change: &LeaseChange) {
        match change {
            LeaseChange::Granted(record) => {
                let mut lease = Lease::new(record);
                if self.primary_in != 0 {
                    lease.start(now, self.checkpoint_interval);
                    self.wakes.insert((lease.wake, record.id));
                }
                self.leases.insert(record.id, lease);
            }
            LeaseChange::Checkpointed { id, remaining_s } => {
                if let Some(lease) = self.leases.get_mut(id) {
                    lease.remaining_s = *remaining_s;
                    if *remaining_s == 0 {
                        (lease.checkpointing, lease.clearing) = (false, None);
                        lease.clears_open = lease.clears_open.saturating_sub(1);
                    } else if lease.clearing.is_none() {
                        lease.checkpointing = false;
                    }
                }
            }
            LeaseChange::Revoked(id) => {
                if let Some(lease) = self.leases.remove(id) {
                    self.wakes.remove(&(lease.wake, *id));
                    if lease.revoking {
                        (self.revoking, self.progress_at) = (self.revoking.saturating_sub(1), now);
                        let took = now.saturating_sub(self.proposed_at);
                        self.rest_until = now + (3 * took).min(REST_MAX);
                    }
                }
            }
        }
    }

    /// Renews a lease, as primary. `patience` is how long a proposal may take before it counts as lost.
    pub(crate) fn renew(&mut self, now: Micros, id: i64, patience: Micros) -> Renewal {
        let Some(lease) = self.leases.get_mut(&id) else {
            return Renewal::Missing;
        };
        if lease.revoking || lease.deadline <= now {
            return Renewal::Ending;
        }
        if lease.remaining_s > 0 || lease.checkpointing {
            if lease.clearing.is_some_and(|since| since + patience > now) {
                return Renewal::Clear(None);
            }
            (lease.checkpointing, lease.clearing) = (true, Some(now));
            lease.clears_open += 1;
            // It came in time: the log's delay does not end it.
            lease.deadline = lease.deadline.max(now + 2 * patience);
            return Renewal::Clear(Some(LeaseRemainder {
                id,
                granted: lease.granted,
                remaining_s: 0,
            }));
        }
        let deadline = now.saturating_add(seconds(lease.ttl_s));
        lease.run_until(now, deadline, self.checkpoint_interval);
        self.renewed += 1;
        Renewal::Renewed(lease.ttl_s)
    }

    /// Whole seconds that remain of a lease, as primary, and its TTL.
    pub(crate) fn remaining(&self, now: Micros, id: i64) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        let left_s = lease.deadline.saturating_sub(now) / SECOND;
        Some((i64::try_from(left_s).unwrap_or(i64::MAX), lease.ttl_s))
    }

    /// When [`due`](Lessor::due) is to be called again, if a rest is all that it waits for.
    pub(crate) fn rests_until(&self) -> Option<Micros> {
        let ends = self
            .wakes
            .first()
            .is_some_and(|(wake, _)| *wake <= self.rest_until);
        (self.revoking == 0 && ends).then_some(self.rest_until)
    }

    /// What is to be proposed now; the caller proposes it.
    pub(crate) fn due(&mut self, now: Micros) -> Due {
        let mut due = Due::default();
        if now >= self.progress_at + REVOKE_RETRY {
            // Nothing came of them for so long: the log did not take them.
            (self.revoking, self.progress_at) = (0, now);
        }
        if self.revoking > 0 || now < self.rest_until {
            return due;
        }
        while let Some(&(wake, id)) = self.wakes.first()
            && wake <= now
            && self.revoking < REVOKING_MAX
            && due.checkpoints.len() < CHECKPOINTS_MAX
        {
            self.wakes.pop_first();
            let lease = self.leases.get_mut(&id).expect("only leases wake");
            if lease.deadline <= now {
                (self.progress_at, self.proposed_at) = (now, now);
                self.revoking += 1;
                lease.revoking = true;
                lease.wake = now + REVOKE_RETRY;
                let proof = LeaseProof {
                    term: self.primary_in,
                    granted: lease.granted,
                };
                due.ends.push((id, proof));
            } else {
                if lease.checkpoint_at <= now {
                    let left = lease.deadline - now;
                    lease.run_until(now, lease.deadline, self.checkpoint_interval);
                    let remaining_s = i64::try_from(left.div_ceil(SECOND)).unwrap_or(i64::MAX);
                    if lease.clears_open == 0 && remaining_s < lease.ttl_s {
                        lease.checkpointing = true;
                        due.checkpoints.push(LeaseRemainder {
                            id,
                            granted: lease.granted,
                            remaining_s,
                        });
                    }
                }
                lease.wake = lease.deadline.min(lease.checkpoint_at);
            }
            self.wakes.insert((lease.wake, id));
        }
        due
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PATIENCE: Micros = SECOND;
    const CHECKPOINT_INTERVAL: Micros = 300 * SECOND;

    fn record(id: i64, ttl_s: i64, remaining_s: i64) -> LeaseRecord {
        LeaseRecord {
            id,
            ttl_s,
            remaining_s,
            granted: 100 + id as u64,
            granted_ms: 0,
        }
    }

    fn primary(records: &[LeaseRecord]) -> Lessor {
        let mut lessor = Lessor::new(CHECKPOINT_INTERVAL);
        lessor.reset(records);
        lessor.promote(0, 4);
        lessor
    }

    fn checkpointed(id: i64, remaining_s: i64) -> LeaseChange {
        LeaseChange::Checkpointed { id, remaining_s }
    }

    fn ends(lessor: &mut Lessor, now: Micros) -> Vec<i64> {
        lessor.due(now).ends.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn leases_end_in_order_once_and_not_before_their_time() {
        let mut lessor = primary(&[record(1, 9, 0), record(2, 3, 0), record(3, 9, 4)]);
        assert_eq!(ends(&mut lessor, 3 * SECOND - 1), [0; 0]);
        assert_eq!(lessor.remaining(SECOND / 2, 1), Some((8, 9)));
        let due = lessor.due(4 * SECOND);
        let proof = |granted| LeaseProof { term: 4, granted };
        assert_eq!(due.ends, [(2, proof(102)), (3, proof(103))]);
        assert_eq!(lessor.renew(4 * SECOND, 2, PATIENCE), Renewal::Ending);
        assert_eq!(ends(&mut lessor, 5 * SECOND), [0; 0]);
        lessor.applied(5 * SECOND, &LeaseChange::Revoked(2));
        assert_eq!(lessor.renew(5 * SECOND, 2, PATIENCE), Renewal::Missing);
        // The other proposal was lost.
        assert_eq!(ends(&mut lessor, 8 * SECOND), [3]);
    }

    #[test]
    fn a_renewed_lease_lives_on_and_a_new_primary_starts_anew() {
        let mut lessor = primary(&[record(1, 9, 0)]);
        assert_eq!(lessor.renew(8 * SECOND, 1, PATIENCE), Renewal::Renewed(9));
        assert_eq!(ends(&mut lessor, 17 * SECOND - 1), [0; 0]);
        lessor.promote(16 * SECOND, 5);
        assert_eq!(ends(&mut lessor, 25 * SECOND - 1), [0; 0]);
        assert_eq!(ends(&mut lessor, 25 * SECOND), [1]);
        lessor.demote();
        assert_eq!(ends(&mut lessor, 99 * SECOND), [0; 0]);
    }

    /// A lease of ten minutes: after five the log is told what remains; a renewal must have that cleared before it is
    /// answered, for the next leader goes by it.
    #[test]
    fn what_a_checkpoint_says_is_cleared_before_more_is_promised() {
        let mut lessor = primary(&[record(1, 600, 0)]);
        let due = lessor.due(CHECKPOINT_INTERVAL);
        let remainder = |remaining_s| LeaseRemainder {
            id: 1,
            granted: 101,
            remaining_s,
        };
        assert_eq!(due.checkpoints, [remainder(300)]);
        // Proposed is enough: it may be in the log already.
        let now = CHECKPOINT_INTERVAL + SECOND;
        let clear = Renewal::Clear(Some(remainder(0)));
        assert_eq!(lessor.renew(now, 1, PATIENCE), clear);
        assert_eq!(lessor.renew(now, 1, PATIENCE), Renewal::Clear(None));
        lessor.applied(now, &checkpointed(1, 300));
        assert_eq!(lessor.renew(now, 1, PATIENCE), Renewal::Clear(None));
        assert_eq!(lessor.renew(now + PATIENCE, 1, PATIENCE), clear, "asked again");
        lessor.applied(now, &checkpointed(1, 0));
        assert_eq!(lessor.renew(now, 1, PATIENCE), Renewal::Renewed(600));
    }

    #[test]
    fn a_lease_that_is_renewed_often_enough_is_never_checkpointed() {
        let mut lessor = primary(&[record(1, 600, 0)]);
        for minute in 1..60 {
            let now = minute * 60 * SECOND;
            assert_eq!(lessor.due(now), Due::default());
            assert_eq!(lessor.renew(now, 1, PATIENCE), Renewal::Renewed(600));
        }
    }

    #[test]
    fn many_that_end_together_leave_three_quarters_of_the_time_to_others() {
        let records: Vec<LeaseRecord> = (1..=1000).map(|id| record(id, 5, 0)).collect();
        let mut lessor = primary(&records);
        let mut seen = Vec::new();
        let mut now = 5 * SECOND;
        assert_eq!(lessor.rests_until(), None);
        let mut open = ends(&mut lessor, now);
        for took in [3_000, 1_000, 50_000].into_iter().cycle() {
            assert!(open.len() <= REVOKING_MAX);
            now += took;
            for id in open.drain(..) {
                assert_eq!((ends(&mut lessor, now), lessor.rests_until()), (vec![], None));
                lessor.applied(now, &LeaseChange::Revoked(id));
                seen.push(id);
            }
            let Some(rested) = lessor.rests_until() else { break };
            assert_eq!(rested, now + (3 * took).min(REST_MAX));
            assert!(ends(&mut lessor, rested - 1).is_empty());
            now = rested;
            open = ends(&mut lessor, now);
        }
        assert_eq!(seen, (1..=1000).collect::<Vec<i64>>());
        assert_eq!((lessor.len(), lessor.wakes.len(), lessor.revoking), (0, 0, 0));
    }

    /// As many ends as may be open at one time were proposed, and an overloaded log took none: the lessor must not
    /// wait for them for ever, while thousands of others are due before them.
    #[test]
    fn lost_proposals_do_not_stop_all_others() {
        let records: Vec<LeaseRecord> = (1..=1000).map(|id| record(id, 5, 0)).collect();
        let mut lessor = primary(&records);
        assert_eq!(ends(&mut lessor, 5 * SECOND).len(), REVOKING_MAX);
        assert_eq!(ends(&mut lessor, 6 * SECOND).len(), 0);
        let mut now = 5 * SECOND;
        while lessor.len() > 0 {
            now += REVOKE_RETRY;
            assert!(now < 60 * SECOND, "{} leases never end", lessor.len());
            let mut open = ends(&mut lessor, now);
            while !open.is_empty() {
                for id in &open {
                    lessor.applied(now, &LeaseChange::Revoked(*id));
                }
                open = ends(&mut lessor, now);
            }
        }
    }
}
