//! What the log says about the leader: who it is, each time that changes, and once that clients are served.
//!
//! A member that listens has promised nothing yet: without a majority it answers local reads only. `ready to serve
//! client requests`, for which supervisors wait as they do with etcd, is said when there is a leader and the cluster
//! knows this member; with it what else etcd says of that moment.

use std::cell::Cell;

use kvorum_node::NodeStatus;

use crate::names::leader_name;

/// The leader that was told last. Kept by the replica's thread.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    /// `X.Y` of the etcd that this member says it is.
    version: String,
    leader: Cell<u64>,
    was_ready: Cell<bool>,
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
                let leader = leader_name(status);
                tracing::info!(term = status.term, leader, "the cluster has a leader");
            }
            Some(News::Lost) => tracing::warn!(
                term = status.term,
                "no leader is known: writes and linearizable reads wait for one"
            ),
            None => {}
        }
        let own = status.cluster.members.get(&status.id);
        let is_known = own.is_some_and(|record| record.incarnation != 0);
        if let Some(record) = own
            && self.becomes_ready(status.leader, is_known)
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
            tracing::info!("ready to serve client requests");
        }
    }

    fn news(&self, leader: u64) -> Option<News> {
        match self.leader.replace(leader) {
            before if before == leader => None,
            _ if leader == 0 => Some(News::Lost),
            _ => Some(News::Leader),
        }
    }

    /// Whether this is the moment from which clients are served.
    fn becomes_ready(&self, leader: u64, is_known: bool) -> bool {
        let is_ready = leader != 0 && is_known;
        is_ready && !self.was_ready.replace(true)
    }
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
    fn readiness_is_told_once_and_not_before_the_cluster_knows_the_member() {
        let leadership = Leadership::new("3.6.12");
        assert_eq!(leadership.version, "3.6");
        let moments = [
            (0, false),
            (0, true),
            (7, false),
            (7, true),
            (7, true),
            (0, true),
            (9, true),
        ];
        let told = moments.map(|(leader, is_known)| leadership.becomes_ready(leader, is_known));
        assert_eq!(told, [false, false, false, true, false, false, false]);
    }
}
