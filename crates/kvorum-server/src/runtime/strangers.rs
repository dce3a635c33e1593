//! Whether this member's data belongs to another cluster than the members at the addresses it knows.
//!
//! A directory of another cluster with the same names, addresses and token looks right until a peer names its
//! cluster's UUID. One peer that does may itself be the stranger, so the member ends only once a majority of all
//! members, itself counted among them, is of other clusters and none has ever agreed since this process began. Such
//! a member could neither vote nor serve: its own majority is not there. A member that once met one of its own, and
//! a member of a cluster of two, go on whatever the others say.

use std::collections::BTreeMap;

use tonic::Status;
use tonic::metadata::MetadataValue;

/// Where a refusal names the cluster of the one who refuses.
const CLUSTER_UUID: &str = "kvorum-cluster-uuid-bin";

/// Adds the cluster of the one who refuses, for [`cluster_of`].
pub(super) fn name_cluster(mut refusal: Status, uuid: u128) -> Status {
    let value = MetadataValue::from_bytes(&uuid.to_be_bytes());
    refusal.metadata_mut().insert_bin(CLUSTER_UUID, value);
    refusal
}

/// The cluster of a peer that refused because this member's is another one.
fn cluster_of(refusal: &Status) -> Option<u128> {
    let bytes = refusal.metadata().get_bin(CLUSTER_UUID)?.to_bytes().ok()?;
    bytes[..].try_into().ok().map(u128::from_be_bytes)
}

/// What the peers last said. Invariant: nobody is in `strangers` once a peer agreed.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    agreed: bool,
    strangers: BTreeMap<u64, u128>,
}

impl Strangers {
    /// A peer took this member for one of its cluster.
    pub(super) fn agreed(&mut self) {
        self.agreed = true;
        self.strangers.clear();
    }

    /// `peer`, one of `peers` others, could not be met. Returns its cluster if this member has to end.
    pub(super) fn refused(&mut self, peer: u64, refusal: &Status, peers: usize) -> Option<u128> {
        if self.agreed {
            return None;
        }
        let Some(uuid) = cluster_of(refusal) else {
            self.strangers.remove(&peer);
            return None;
        };
        self.strangers.insert(peer, uuid);
        let members = peers + 1;
        let majority = members / 2 + 1;
        (self.strangers.len() >= majority).then_some(uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign() -> Status {
        name_cluster(Status::failed_precondition("this is cluster 8, not 7"), 8)
    }

    #[test]
    fn one_stranger_among_the_peers_stops_nobody() {
        for peers in 1..=6 {
            let mut met = Strangers::default();
            for _ in 0..10 {
                assert_eq!(met.refused(1, &foreign(), peers), None);
            }
        }
    }

    #[test]
    fn a_majority_of_strangers_ends_a_member_that_nobody_knows() {
        let check = |peers: usize, needed: u64| {
            let mut met = Strangers::default();
            for peer in 1..needed {
                assert_eq!(met.refused(peer, &foreign(), peers), None, "{peers}");
            }
            assert_eq!(met.refused(needed, &foreign(), peers), Some(8), "{peers}");
        };
        check(2, 2);
        check(3, 3);
        check(4, 3);
        check(6, 4);
    }

    #[test]
    fn a_member_that_met_its_own_goes_on() {
        let mut met = Strangers::default();
        met.refused(1, &foreign(), 2);
        met.agreed();
        assert_eq!(met.refused(1, &foreign(), 2), None);
        assert_eq!(met.refused(2, &foreign(), 2), None);
    }

    #[test]
    fn who_is_silent_or_refuses_otherwise_is_no_stranger() {
        let mut met = Strangers::default();
        met.refused(1, &foreign(), 2);
        assert_eq!(met.refused(1, &Status::unavailable("restarts"), 2), None);
        assert_eq!(met.refused(2, &foreign(), 2), None);
        assert_eq!(
            met.refused(1, &Status::failed_precondition("lost its data"), 2),
            None
        );
        assert_eq!(met.refused(1, &foreign(), 2), Some(8));
    }
}
