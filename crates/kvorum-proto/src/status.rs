//! Errors on the wire: etcd's codes and texts, and the word on what became of a failed write.

use kvorum_model::{Error, ErrorKind};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Trailer (gRPC) or header (REST) of every failed write; see [`Outcome`].
pub const OUTCOME: &str = "kvorum-outcome";

/// What became of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It has had no effect and will have none: to send it again is safe.
    NotApplied,
    /// It may have been applied, or may be yet.
    Unknown,
}

impl Outcome {
    /// The value of the trailer.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::NotApplied => "not-applied",
            Outcome::Unknown => "unknown",
        }
    }

    /// The outcome that a status carries, if any.
    pub fn of(status: &Status) -> Option<Outcome> {
        match status.metadata().get(OUTCOME)?.as_bytes() {
            b"not-applied" => Some(Outcome::NotApplied),
            b"unknown" => Some(Outcome::Unknown),
            _ => None,
        }
    }

    /// What a refusal by the state machine means. It refuses before it changes anything; only of an expired
    /// session's request nobody knows any more what it once did.
    pub fn of_error(error: &Error) -> Outcome {
        match error {
            Error::SessionExpired => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Adds the trailer to a status.
    pub fn mark(self, mut status: Status) -> Status {
        status
            .metadata_mut()
            .insert(OUTCOME, MetadataValue::from_static(self.as_str()));
        status
    }
}

/// Why a message is not a request that the model knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// One of the model's errors.
    #[error(transparent)]
    Model(#[from] Error),
    /// An enum value that no version of the API has.
    #[error("kvorum: unknown {0}")]
    UnknownEnum(&'static str),
}

/// The status of a refusal by the state machine, with etcd's code and text; without [`OUTCOME`].
pub fn status_of(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
    };
    Status::new(code, error.to_string())
}

/// The status of a refused write: [`status_of`] with the outcome that the error implies.
pub fn refused(error: &Error) -> Status {
    Outcome::of_error(error).mark(status_of(error))
}

impl From<Rejected> for Status {
    fn from(rejected: Rejected) -> Status {
        match rejected {
            Rejected::Model(error) => status_of(&error),
            Rejected::UnknownEnum(_) => Status::invalid_argument(rejected.to_string()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(error: Error, code: Code, text: &str, outcome: Outcome) {
        let status = refused(&error);
        assert_eq!((status.code(), status.message()), (code, text));
        assert_eq!(Outcome::of(&status), Some(outcome));
        assert_eq!(Outcome::of(&status_of(&error)), None);
    }

    #[test]
    fn codes_and_texts_are_those_that_etcd_clients_match() {
        use Code::{FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted};
        use Outcome::{NotApplied, Unknown};
        check(
            Error::EmptyKey,
            InvalidArgument,
            "etcdserver: key is not provided",
            NotApplied,
        );
        check(
            Error::KeyNotFound,
            InvalidArgument,
            "etcdserver: key not found",
            NotApplied,
        );
        check(
            Error::ValueProvided,
            InvalidArgument,
            "etcdserver: value is provided",
            NotApplied,
        );
        check(
            Error::LeaseProvided,
            InvalidArgument,
            "etcdserver: lease is provided",
            NotApplied,
        );
        check(
            Error::TooManyOps,
            InvalidArgument,
            "etcdserver: too many operations in txn request",
            NotApplied,
        );
        check(
            Error::DuplicateKey,
            InvalidArgument,
            "etcdserver: duplicate key given in txn request",
            NotApplied,
        );
        check(
            Error::RequestTooLarge,
            InvalidArgument,
            "etcdserver: request is too large",
            NotApplied,
        );
        check(
            Error::InvalidSortOption,
            InvalidArgument,
            "etcdserver: invalid sort option",
            NotApplied,
        );
        check(
            Error::Compacted,
            OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
            NotApplied,
        );
        check(
            Error::FutureRevision,
            OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
            NotApplied,
        );
        check(
            Error::LeaseNotFound,
            NotFound,
            "etcdserver: requested lease not found",
            NotApplied,
        );
        check(
            Error::NoSpace,
            ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
            NotApplied,
        );
        check(
            Error::SessionExpired,
            FailedPrecondition,
            "kvorum: session expired; outcome unknown",
            Unknown,
        );
    }
}
