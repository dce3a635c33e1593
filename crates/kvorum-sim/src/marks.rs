//! "Sometimes" marks: situations that a set of seeds must reach, or it proves less than it claims.

use std::collections::BTreeMap;

macro_rules! marks {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A situation worth reaching.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark {
            $($(#[doc = $doc])* $name,)*
        }

        impl Mark {
            /// All of them.
            pub const ALL: &'static [Mark] = &[$(Mark::$name),*];
        }
    };
}

marks! {
    /// A snapshot became a member's state.
    SnapshotInstalled,
    /// A newer snapshot was to be installed before the one before it was.
    InstallOvertaken,
    /// A whole snapshot was received and not wanted.
    SnapshotUnwanted,
    /// A transfer of a snapshot broke off.
    SnapshotInterrupted,
    /// A crash came between a snapshot's install and the log's reset, and recovery finished it.
    InstallFinishedByRecovery,
    /// Recovery cut a torn batch off the log's end.
    TornTailRepaired,
    /// Recovery found the two copies of term and vote differing, and repaired one.
    VoteCopyRepaired,
    /// A crash lost batches that the store had not flushed; they were applied again from the log.
    StoreLostBatches,
    /// A lease was renewed.
    LeaseRenewed,
    /// A lease ran out, and its key with it.
    LeaseEnded,
    /// A leader lost its office while writes of its callers were under way.
    LeaderChangedWithWritesInFlight,
    /// A write's place in the log was taken by another entry.
    WriteSuperseded,
    /// A write ended with nobody knowing whether it took effect.
    WriteUnknown,
    /// A session's request was applied twice and took effect once.
    SessionRetryDeduplicated,
    /// A write was forwarded to a member that did not lead any more.
    ForwardRefused,
    /// A forward was never sent, and its sender knew.
    ForwardUnsent,
    /// A member restarted with a joint configuration in force.
    JointRestarted,
    /// A learner became a voter.
    LearnerPromoted,
    /// A member that lost its disk was replaced, and its successor votes.
    MemberReplaced,
    /// A member was removed and heard of it.
    MemberRemoved,
    /// A leader removed itself.
    LeaderRemovedItself,
    /// Leadership was handed over on request.
    LeadershipTransferred,
    /// All members were down at once.
    AllRestarted,
    /// A leader slept longer than an election takes, and woke up deposed.
    LeaderSleptThroughElection,
    /// A log write failed on a disk that was full.
    DiskFull,
    /// A log write failed; the member stopped, and started again.
    DiskFailed,
    /// A log was purged.
    LogPurged,
    /// Entries were read back from the log on disk.
    FetchedFromLog,
    /// Links failed in one direction only.
    OneWayPartition,
    /// Only neighbours on a ring heard each other.
    RingPartition,
    /// A message of the core was delivered twice.
    MessageDuplicated,
    /// A linearizable read was served by a member that does not lead.
    FollowerRead,
    /// History was compacted, and removed in the background.
    HistoryRemoved,
    /// A watcher's past was compacted away under it.
    WatchCompacted,
    /// A watcher resumed on another member.
    WatchResumed,
    /// A watcher that was far behind was fed from the history.
    WatchReadHistory,
}

/// How often each mark was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(BTreeMap<Mark, u64>);

impl Marks {
    pub(crate) fn reach(&mut self, mark: Mark) {
        *self.0.entry(mark).or_default() += 1;
    }

    /// How often it was reached.
    pub fn count(&self, mark: Mark) -> u64 {
        self.0.get(&mark).copied().unwrap_or(0)
    }

    /// Adds those of another world.
    pub fn add(&mut self, other: &Marks) {
        for (&mark, count) in &other.0 {
            *self.0.entry(mark).or_default() += count;
        }
    }

    /// Those that were never reached.
    pub fn missing(&self) -> Vec<Mark> {
        Mark::ALL
            .iter()
            .copied()
            .filter(|&mark| self.count(mark) == 0)
            .collect()
    }
}
