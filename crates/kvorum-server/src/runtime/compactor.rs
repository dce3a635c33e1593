//! Compaction by itself, as etcd's `--auto-compaction-mode` has it: by the leader, of history that is older than a
//! time, or more than a number of revisions back.
//!
//! [`Schedule`] decides, on times that it is given; [`run`] asks it and carries out what it says.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kvorum_model::{Command, Error, Revision};

use crate::api::Core;
use crate::etcd_options::Compaction;
use crate::handle::WriteError;

/// Between two compactions by age at most, and the time that a longer one is divided by.
const HOUR: Duration = Duration::from_secs(3600);
/// A period is looked at so often.
const LOOKS_PER_PERIOD: u32 = 10;
/// Between two compactions by number.
const REVISIONS_INTERVAL: Duration = Duration::from_secs(300);
/// However short the period.
const LOOK_MIN: Duration = Duration::from_millis(10);

/// When what is compacted.
#[derive(Debug)]
enum Schedule {
    Periodic {
        period: Duration,
        /// The store's revisions at the last looks; the first is as old as the period, once there are enough.
        revisions: VecDeque<Revision>,
        /// What was compacted last, and when that was, or the start.
        last: (Revision, Instant),
        /// How long after that the next one may come: the period at first, then its length or an hour.
        pause: Duration,
    },
    Revisions {
        keep: i64,
        last: Revision,
    },
}

impl Schedule {
    /// `None`: nothing is ever compacted.
    fn new(policy: Compaction, now: Instant, revision: Revision) -> Option<Schedule> {
        match policy {
            Compaction::Off => None,
            Compaction::Periodic(period) => Some(Schedule::Periodic {
                period,
                revisions: VecDeque::from([revision]),
                last: (0, now),
                pause: period,
            }),
            Compaction::Revisions(keep) => Some(Schedule::Revisions {
                keep: i64::try_from(keep).unwrap_or(i64::MAX),
                last: 0,
            }),
        }
    }

    /// How long to wait between two looks.
    fn interval(&self) -> Duration {
        match self {
            Schedule::Periodic { period, .. } => ((*period).min(HOUR) / LOOKS_PER_PERIOD).max(LOOK_MIN),
            Schedule::Revisions { .. } => REVISIONS_INTERVAL,
        }
    }

    /// Looks at the store: to which revision to compact, if it is time for that and this member leads.
    fn look(&mut self, now: Instant, revision: Revision, leads: bool) -> Option<Revision> {
        let looks = self.interval();
        match self {
            Schedule::Periodic {
                period,
                revisions,
                last,
                pause,
            } => {
                let oldest = *revisions.front().expect("there is always one");
                revisions.push_back(revision);
                let kept = period.div_duration_f64(looks) as usize + 1;
                if revisions.len() > kept {
                    revisions.pop_front();
                }
                if !leads || now.saturating_duration_since(last.1) < *pause || oldest == last.0 {
                    return None;
                }
                *pause = (*period).min(HOUR);
                Some(oldest)
            }
            Schedule::Revisions { keep, last } => {
                let target = revision.saturating_sub(*keep);
                (leads && target > 0 && target != *last).then_some(target)
            }
        }
    }

    /// It was compacted to this revision.
    fn done(&mut self, now: Instant, revision: Revision) {
        match self {
            Schedule::Periodic { last, .. } => *last = (revision, now),
            Schedule::Revisions { last, .. } => *last = revision,
        }
    }
}

/// Compacts for as long as it is polled.
pub(crate) async fn run(core: Core, policy: Compaction) {
    let revision = || core.handle.state().facts().revision;
    let Some(mut schedule) = Schedule::new(policy, Instant::now(), revision()) else {
        return;
    };
    loop {
        tokio::time::sleep(schedule.interval()).await;
        let leads = core.handle.leader() == core.handle.identity().member_id;
        let Some(target) = schedule.look(Instant::now(), revision(), leads) else {
            continue;
        };
        tracing::info!(revision = target, "starting auto compaction");
        // The cluster's own: nobody asks for it.
        let (compact, deadline) = (Command::Compact(target), core.handle.deadline(None));
        let result = core.handle.write(compact, None, None, deadline).await;
        let result = result.and_then(|applied| applied.result.map(drop).map_err(WriteError::Refused));
        match result {
            // Somebody did it before.
            Ok(()) | Err(WriteError::Refused(Error::Compacted)) => {
                tracing::info!(revision = target, "completed auto compaction");
                schedule.done(Instant::now(), target);
            }
            Err(error) => tracing::warn!(revision = target, %error, "failed auto compaction"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Looks once per interval for `looks` times while each adds ten revisions; what was compacted, and after how long.
    fn compacted(policy: Compaction, looks: u32, leads: impl Fn(u32) -> bool) -> Vec<(u64, Revision)> {
        let start = Instant::now();
        let mut schedule = Schedule::new(policy, start, 1).unwrap();
        let mut found = Vec::new();
        for look in 1..=looks {
            let now = start + schedule.interval() * look;
            if let Some(target) = schedule.look(now, 1 + 10 * Revision::from(look), leads(look)) {
                schedule.done(now, target);
                found.push((now.duration_since(start).as_secs(), target));
            }
        }
        found
    }

    #[test]
    fn by_age_the_revision_of_a_period_ago() {
        let ten_minutes = Compaction::Periodic(Duration::from_secs(600));
        // A look a minute: at the tenth the store is as old as the period. From then on it is, as in etcd, what the look
        // before the one of that time saw.
        assert_eq!(
            compacted(ten_minutes, 30, |_| true),
            [(600, 1), (1200, 91), (1800, 191)]
        );
        // Of five hours, looks every six minutes; from then on hourly.
        let five_hours = Compaction::Periodic(5 * HOUR);
        assert_eq!(
            compacted(five_hours, 70, |_| true),
            [(18_000, 1), (21_600, 91), (25_200, 191)]
        );
        // Who does not lead looks on; who comes to lead begins where the others may have been.
        assert_eq!(compacted(ten_minutes, 25, |look| look > 23), [(1440, 131)]);
        assert!(Schedule::new(Compaction::Off, Instant::now(), 1).is_none());
    }

    #[test]
    fn by_number_all_but_so_many() {
        let keep = Compaction::Revisions(25);
        assert_eq!(compacted(keep, 4, |_| true), [(900, 6), (1200, 16)]);
        assert_eq!(compacted(Compaction::Revisions(u64::MAX), 9, |_| true), []);
        let mut schedule = Schedule::new(keep, Instant::now(), 1).unwrap();
        assert_eq!(schedule.look(Instant::now(), 100, true), Some(75));
        // It failed: it is tried again; then nothing is new.
        assert_eq!(schedule.look(Instant::now(), 100, true), Some(75));
        schedule.done(Instant::now(), 75);
        assert_eq!(schedule.look(Instant::now(), 100, true), None);
        assert_eq!(schedule.look(Instant::now(), 110, false), None);
    }

    #[test]
    fn a_failed_compaction_is_tried_at_the_next_look() {
        let start = Instant::now();
        let mut schedule = Schedule::new(Compaction::Periodic(Duration::from_secs(10)), start, 5).unwrap();
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 1..10 {
            assert_eq!(schedule.look(at(second), 5, true), None);
        }
        assert_eq!(schedule.look(at(10), 5, true), Some(5));
        assert_eq!(schedule.look(at(11), 6, true), Some(5));
        schedule.done(at(11), 5);
        assert_eq!(schedule.look(at(12), 6, true), None);
    }
}
