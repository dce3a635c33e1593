//! What the log says about the leader: who it is, each time that changes, and once that clients are served.
//!
//! A member that listens has promised nothing yet: without a majority it answers local reads only. `ready to serve
//! client requests`, for which supervisors wait as they do with etcd, is said when the first leader is known.

use std::cell::Cell;

use kvorum_node::NodeStatus;

use crate::names::leader_name;

/// The leader that was told last. Kept by the replica's thread.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    leader: Cell<u64>,
    was_ready: Cell<bool>,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// This member has a leader, for the first time since it started.
    Ready,
    /// It has another one.
    Leader,
    /// It has none any more.
    Lost,
}

impl Leadership {
    /// Looks at a status, and logs what is new in it.
    pub(crate) fn note(&self, status: &NodeStatus) {
        let news = self.news(status.leader);
        if matches!(news, Some(News::Ready | News::Leader)) {
            let leader = leader_name(status);
            match status.leader == status.id {
                true => tracing::info!(term = status.term, "this member leads"),
                false => tracing::info!(term = status.term, leader, "the cluster has a leader"),
            }
        }
        match news {
            Some(News::Ready) => tracing::info!("ready to serve client requests"),
            Some(News::Lost) => tracing::warn!(
                term = status.term,
                "no leader is known: writes and linearizable reads wait for one"
            ),
            Some(News::Leader) | None => {}
        }
    }

    fn news(&self, leader: u64) -> Option<News> {
        if self.leader.replace(leader) == leader {
            return None;
        }
        Some(match (leader, self.was_ready.get()) {
            (0, _) => News::Lost,
            (_, true) => News::Leader,
            (_, false) => {
                self.was_ready.set(true);
                News::Ready
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_told_once_and_every_leader() {
        let leadership = Leadership::default();
        let told = [0, 0, 7, 7, 9, 0, 0, 7].map(|leader| leadership.news(leader));
        let (ready, next, lost) = (Some(News::Ready), Some(News::Leader), Some(News::Lost));
        assert_eq!(told, [None, None, ready, None, next, lost, None, next]);
    }
}
