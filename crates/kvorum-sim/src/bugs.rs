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
    /// A forwarded write is delivered, and called one that was never sent.
    ForwardCalledUnsent,
    /// An event is lost on its way to the watch hub.
    WatchEventLost,
    /// A watcher resumes one revision too late.
    WatchResumedTooLate,
    /// What is in the log counts as committed after a restart.
    CommitMarkTooHigh,
    /// The store does not remember that it was installed from a snapshot.
    InstallRecordLost,
    /// A member's processes all have the same boot nonce.
    BootNotFresh,
    /// Answers find their callers by number alone, whoever's they are.
    AnswersMixedUp,
    /// Each member takes its own clock for the entries' time when it applies them.
    OwnTimeApplied,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 19] = [
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
        Bug::ForwardCalledUnsent,
        Bug::WatchEventLost,
        Bug::WatchResumedTooLate,
        Bug::CommitMarkTooHigh,
        Bug::InstallRecordLost,
        Bug::BootNotFresh,
        Bug::AnswersMixedUp,
        Bug::OwnTimeApplied,
    ];

    /// Whether the checks on running members are switched off for it: they would see at once what recovery, the
    /// core's own invariants and the checks on clients' histories shall be shown to find, too.
    pub(crate) fn hides_from_invariants(self) -> bool {
        matches!(
            self,
            Bug::PersistedTooEarly | Bug::CommandSkipped | Bug::CommitMarkTooHigh | Bug::OwnTimeApplied
        )
    }
}
