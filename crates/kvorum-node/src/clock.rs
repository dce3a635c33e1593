//! Cluster time: the last entry's time in the log plus the leader's own monotonic time since.
//!
//! A wrong wall clock moves nothing, and time in the log never goes back.

use kvorum_model::Envelope;
use kvorum_raft::{Entry, EntryKind, Micros};

/// Follows the log's time; stamps new commands at the leader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterClock {
    base_ms: u64,
    base_at: Micros,
}

impl ClusterClock {
    pub(crate) fn new(time_ms: u64, now: Micros) -> Self {
        ClusterClock {
            base_ms: time_ms,
            base_at: now,
        }
    }

    /// Entries went into the log: their last stamp is the new base, unless it is older.
    pub(crate) fn observe(&mut self, entries: &[Entry], now: Micros) {
        let last = entries
            .iter()
            .rev()
            .find(|entry| entry.kind == EntryKind::Command);
        if let Some(time_ms) = last.and_then(|entry| Envelope::peek_time(&entry.data).ok())
            && time_ms > self.base_ms
        {
            *self = ClusterClock {
                base_ms: time_ms,
                base_at: now,
            };
        }
    }

    /// Cluster time in ms.
    pub(crate) fn time_ms(&self, now: Micros) -> u64 {
        self.base_ms + now.saturating_sub(self.base_at) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_on_from_the_last_stamp_and_never_back() {
        let clock = ClusterClock::new(1_000, 5_000_000);
        assert_eq!(clock.time_ms(5_000_000), 1_000);
        assert_eq!(clock.time_ms(5_250_000), 1_250);
        assert_eq!(clock.time_ms(4_000_000), 1_000);
    }
}
