//! What the log says about the leader: who it is, each time that changes, and once that clients are served.
//!
//! A member that listens has promised nothing yet: without a majority it answers local reads only. `ready to serve
//! client requests`, for which supervisors wait as they do with etcd, is said when the first leader is known; what else
//! etcd says of that time, when the cluster has this member's name and addresses.

use std::cell::Cell;
use std::collections::BTreeMap;

use kvorum_node::NodeStatus;

use crate::names::leader_name;

/// The leader that was told last. Kept by the replica's thread.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    /// `X.Y` of the etcd that this member says it is.
    version: String,
    leader: Cell<u64>,
    was_ready: Cell<bool>,
    was_published: Cell<bool>,
}

/// What is to be told of the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// This member has another one.
    Leader,
    /// It has none any more.
    Lost,
}

impl Leadership {
    /// Nothing was told yet. `etcd_version` is `X.Y.Z`.
    pub(crate) fn new(etcd_version: &str) -> Self {
        let minor = etcd_version
            .rsplit_once('.')
            .map_or(etcd_version, |(minor, _)| minor);
        Leadership {
            version: minor.to_owned(),
            ..Leadership::default()
        }
    }

    /// Looks at a status, and logs what is new in it.
    pub(crate) fn note(&self, status: &NodeStatus) {
        match self.news(status.leader) {
            Some(News::Leader) if status.leader == status.id => {
                tracing::info!(term = status.term, "this member leads");
            }
            Some(News::Leader) => {
                let leader = leader_name(status, &BTreeMap::new());
                tracing::info!(term = status.term, leader, "the cluster has a leader");
            }
            Some(News::Lost) => tracing::warn!(
                term = status.term,
                "no leader is known: writes and linearizable reads wait for one"
            ),
            None => {}
        }
        if first(&self.was_ready, status.leader != 0) {
            tracing::info!("ready to serve client requests");
        }
        let own = status.cluster.members.get(&status.id);
        if let Some(record) = own
            && first(&self.was_published, status.leader != 0 && record.incarnation != 0)
        {
            tracing::info!(
                "cluster-version" = self.version,
                "enabled capabilities for version"
            );
            tracing::info!(
                "local-member-id" = format!("{:x}", status.id),
                "local-member-name" = record.name,
                "client-urls" = record.client_urls.join(","),
                "published local member to cluster through raft"
            );
        }
    }

    fn news(&self, leader: u64) -> Option<News> {
        match self.leader.replace(leader) {
            before if before == leader => None,
            _ if leader == 0 => Some(News::Lost),
            _ => Some(News::Leader),
        }
    }
}

/// Whether it holds for the first time.
fn first(held: &Cell<bool>, holds: bool) -> bool {
    holds && !held.replace(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leader_is_told() {
        let leadership = Leadership::default();
        let told = [0, 0, 7, 7, 9, 0, 0, 7].map(|leader| leadership.news(leader));
        let (next, lost) = (Some(News::Leader), Some(News::Lost));
        assert_eq!(told, [None, None, next, None, next, lost, None, next]);
    }

    #[test]
    fn readiness_is_told_once() {
        assert_eq!(Leadership::new("3.6.12").version, "3.6");
        let was_ready = Cell::default();
        let told = [false, true, true, false, true].map(|holds| first(&was_ready, holds));
        assert_eq!(told, [false, true, false, false, false]);
    }
}
