//! Planted bugs: the harness is proved by finding them.
//!
//! Each is a mistake that a shell around the replica could make, planted in the simulator's shell and nowhere near
//! the shipped code. This crate is a test build as a whole: nothing of it is linked into the server.

/// A mistake that the simulator makes on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A log write is reported durable when it is handed over, not when it is.
    PersistedTooEarly,
    /// A sync of the log does nothing: what it should have made durable is gone after a power loss.
    SyncDropped,
    /// The vote is not written, only the term.
    VoteNotWritten,
    /// Linearizable reads are served at once, from what is applied here.
    ReadWithoutGate,
    /// The gate is kept, but the view was taken before the read index was known.
    ViewTakenTooEarly,
    /// A retry of a session's request goes out without its session.
    RetryWithoutSession,
    /// A write whose leader was lost is reported as not applied.
    UnknownReportedAsNotApplied,
    /// One member's applier takes a command for an empty entry.
    CommandSkipped,
    /// The store's flushed mark is reported too high, and the log purged beyond what the store would still have.
    FlushedTooHigh,
    /// A member whose disk was lost starts again under its old ID.
    RestartedEmpty,
    /// A forwarded write is delivered twice.
    ForwardDeliveredTwice,
    /// An event is lost on its way to the watch hub.
    WatchEventLost,
    /// A watcher resumes after the last event that it was sent, not after the last that it got.
    WatchResumedTooLate,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 13] = [
        Bug::PersistedTooEarly,
        Bug::SyncDropped,
        Bug::VoteNotWritten,
        Bug::ReadWithoutGate,
        Bug::ViewTakenTooEarly,
        Bug::RetryWithoutSession,
        Bug::UnknownReportedAsNotApplied,
        Bug::CommandSkipped,
        Bug::FlushedTooHigh,
        Bug::RestartedEmpty,
        Bug::ForwardDeliveredTwice,
        Bug::WatchEventLost,
        Bug::WatchResumedTooLate,
    ];

    /// Whether the checks on running members are switched off for it: they would see at once what the checks on
    /// clients' histories, the core's own invariants and recovery shall be shown to find, too.
    pub(crate) fn hides_from_invariants(self) -> bool {
        matches!(self, Bug::PersistedTooEarly | Bug::CommandSkipped)
    }
}
