//! Received snapshots between the stage and the log: which of them are wanted, and when an install is settled.
//!
//! Invariants: what is on the stage is installed or dropped, once; what the core waits to install stays there;
//! an install record is cleared by the log's reset to its own snapshot and by no other, because a later install may
//! already have put its own record in the place of an earlier one.

use kvorum_raft::{LogId, Seq};

use crate::interface::Staged;

/// The received snapshots of one replica.
#[derive(Debug, Default)]
pub(crate) struct Installs {
    /// On the stage, by the last entry that each covers.
    waiting: Vec<(Staged, LogId)>,
    /// The newest that was handed to the state machine.
    handed: Option<LogId>,
    /// The log write that resets the log to the newest installed one, while it is not durable.
    unsettled: Option<(Seq, LogId)>,
}

impl Installs {
    /// A snapshot was put on the stage.
    pub(crate) fn received(&mut self, staged: Staged, last: LogId) {
        self.waiting.push((staged, last));
    }

    /// The core installs the one that ends here: it leaves the stage.
    pub(crate) fn hand(&mut self, last: LogId) -> Option<Staged> {
        let at = self.waiting.iter().position(|(_, held)| *held == last)?;
        self.handed = Some(last);
        Some(self.waiting.remove(at).0)
    }

    /// Takes everything off the stage but what the core still waits to install, once.
    pub(crate) fn unwanted(&mut self, installing: Option<LogId>) -> Vec<Staged> {
        let awaited = installing.filter(|last| self.handed != Some(*last));
        let kept = self
            .waiting
            .iter()
            .position(|(_, last)| Some(*last) == awaited)
            .map(|at| self.waiting.swap_remove(at));
        let dropped = self.waiting.drain(..).map(|(staged, _)| staged).collect();
        self.waiting.extend(kept);
        dropped
    }

    /// The state machine is the snapshot that ends here; the log is reset to it by this write or one before.
    pub(crate) fn installed(&mut self, last: LogId, reset: Seq) {
        self.unsettled = Some((reset, last));
    }

    /// The log holds every write up to this one: the install whose record can go now.
    pub(crate) fn settled(&mut self, persisted: Seq) -> Option<LogId> {
        self.unsettled
            .take_if(|(reset, _)| *reset <= persisted)
            .map(|(_, last)| last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> LogId {
        LogId { term: 1, index }
    }

    /// A second snapshot that comes while one is installed, and is not wanted, used to stay on the stage until the
    /// next install, with all its files.
    #[test]
    fn what_comes_unwanted_during_an_install_is_dropped() {
        let mut installs = Installs::default();
        installs.received(1, id(10));
        assert_eq!(installs.hand(id(10)), Some(1));
        assert_eq!(installs.unwanted(Some(id(10))), Vec::<Staged>::new());
        // The same again, and an older one: the core goes on with what it has.
        installs.received(2, id(10));
        assert_eq!(installs.unwanted(Some(id(10))), [2]);
        installs.received(3, id(7));
        assert_eq!(installs.unwanted(Some(id(10))), [3]);
        // A newer one is wanted, and waits until the disk holds what came before it.
        installs.received(4, id(20));
        assert_eq!(installs.unwanted(Some(id(20))), Vec::<Staged>::new());
        installs.received(5, id(20));
        assert_eq!(installs.unwanted(Some(id(20))), [5]);
        // One that is newer still takes its place.
        installs.received(6, id(30));
        assert_eq!(installs.unwanted(Some(id(30))), [4]);
        assert_eq!(installs.hand(id(30)), Some(6));
        assert_eq!(installs.unwanted(None), Vec::<Staged>::new());
        assert_eq!(installs.hand(id(30)), None);
    }

    /// Two installs are under way, and the log's reset to the first becomes durable when the second has already put
    /// its own record into the store: that record must stay, or a crash before the second reset leaves a store
    /// ahead of its log for no reason that recovery can see.
    #[test]
    fn a_reset_settles_its_own_install_only() {
        let mut installs = Installs::default();
        installs.received(1, id(10));
        assert_eq!(installs.hand(id(10)), Some(1));
        installs.received(2, id(20));
        assert_eq!(installs.hand(id(20)), Some(2));
        installs.installed(id(10), 5);
        assert_eq!(installs.settled(4), None);
        assert_eq!(installs.settled(5), Some(id(10)));
        installs.installed(id(20), 6);
        assert_eq!(installs.settled(6), Some(id(20)));
        assert_eq!(installs.settled(7), None);
    }
}
