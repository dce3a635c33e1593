//! What a caller learns when a call does not succeed: above all, whether a write may have happened.

use kvorum_proto::Outcome;
use tonic::{Code, Status};

/// Why a call failed. The message is one line for people.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The cluster refused the request, and nothing changed. Sending it again gives the same answer.
    #[error("{message}")]
    Rejected {
        /// The gRPC code.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// The write may have taken effect, or may do so yet: no answer came, or one that says so. Only reading
    /// tells.
    #[error("outcome unknown, the write may have been applied: {message}")]
    Unknown {
        /// What was seen last.
        message: String,
    },
    /// Nobody answered in time, and nothing changed. Sending it again later may succeed.
    #[error("{message}")]
    Unavailable {
        /// What was seen last, and from whom.
        message: String,
    },
    /// The revision asked for is compacted: history begins after `compact_revision`.
    #[error("history up to revision {compact_revision} is compacted; start from a later revision")]
    Compacted {
        /// The newest revision that is gone.
        compact_revision: i64,
    },
    /// An endpoint or an option is malformed.
    #[error("{0}")]
    Config(String),
    /// An answer makes no sense: a server that speaks another protocol, or a bug.
    #[error("unexpected answer: {0}")]
    Protocol(String),
}

impl Error {
    /// Whether the call may have changed something.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Error::Unknown { .. })
    }
}

/// What the answer to one attempt means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Final: the server considered the request and refused it.
    Refused,
    /// Not applied; another attempt, perhaps elsewhere, may succeed.
    Retry,
    /// Not known: it may have been applied.
    Unknown,
    /// The session, or this number in it, is not known any more; this attempt was not executed.
    SessionExpired,
    /// The server does not have this method.
    Unimplemented,
}

/// Reads a failed attempt's status.
///
/// The trailer decides where it is present. Otherwise only codes that a server gives before it appends, or
/// identically at every replay, count as final; everything else may hide an applied write.
pub(crate) fn judge(status: &Status) -> Verdict {
    if status.code() == Code::FailedPrecondition && status.message().contains("session expired") {
        return Verdict::SessionExpired;
    }
    if status.code() == Code::FailedPrecondition && status.message().contains("not leader") {
        return Verdict::Retry;
    }
    let transient = matches!(
        status.code(),
        Code::Unavailable
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::DataLoss
    );
    match Outcome::of(status) {
        Some(Outcome::Unknown) => return Verdict::Unknown,
        Some(Outcome::NotApplied) if transient && code_passes(status) => return Verdict::Retry,
        Some(Outcome::NotApplied) => return Verdict::Refused,
        None => {}
    }
    match status.code() {
        Code::Unimplemented => Verdict::Unimplemented,
        Code::ResourceExhausted if code_passes(status) => Verdict::Retry,
        Code::ResourceExhausted => Verdict::Refused,
        _ if transient => Verdict::Unknown,
        _ => Verdict::Refused,
    }
}

/// Overload passes by itself; a full store, too many sessions or a message over the limit do not.
fn code_passes(status: &Status) -> bool {
    status.code() != Code::ResourceExhausted || status.message().contains("too many requests")
}

/// The final error of a refused request.
pub(crate) fn rejected(status: &Status) -> Error {
    Error::Rejected {
        code: status.code(),
        message: describe(status),
    }
}

/// One line about a status: the server's words, or what broke underneath.
pub(crate) fn describe(status: &Status) -> String {
    let mut deepest: Option<String> = None;
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        deepest = Some(error.to_string());
        source = error.source();
    }
    let text = deepest.unwrap_or_else(|| match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    });
    text.lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_proto::Outcome::NotApplied;

    #[track_caller]
    fn check(code: Code, message: &str, outcome: Option<Outcome>, expected: Verdict) {
        let status = Status::new(code, message);
        let status = match outcome {
            Some(outcome) => outcome.mark(status),
            None => status,
        };
        assert_eq!(judge(&status), expected, "{code:?} {message}");
    }

    #[test]
    fn the_trailer_decides_and_doubt_means_unknown() {
        check(
            Code::Unavailable,
            "etcdserver: no leader",
            Some(NotApplied),
            Verdict::Retry,
        );
        check(Code::Unavailable, "etcdserver: no leader", None, Verdict::Unknown);
        check(
            Code::Unavailable,
            "etcdserver: request timed out",
            Some(Outcome::Unknown),
            Verdict::Unknown,
        );
        check(Code::DeadlineExceeded, "", None, Verdict::Unknown);
        check(
            Code::InvalidArgument,
            "etcdserver: key is not provided",
            Some(NotApplied),
            Verdict::Refused,
        );
        check(
            Code::InvalidArgument,
            "etcdserver: key is not provided",
            None,
            Verdict::Refused,
        );
        check(
            Code::ResourceExhausted,
            "etcdserver: too many requests",
            None,
            Verdict::Retry,
        );
        check(
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
            None,
            Verdict::Refused,
        );
        check(
            Code::FailedPrecondition,
            "kvorum: session expired; outcome unknown",
            Some(Outcome::Unknown),
            Verdict::SessionExpired,
        );
        check(
            Code::FailedPrecondition,
            "etcdserver: not leader",
            None,
            Verdict::Retry,
        );
        check(
            Code::Unimplemented,
            "unknown service",
            None,
            Verdict::Unimplemented,
        );
    }
}
