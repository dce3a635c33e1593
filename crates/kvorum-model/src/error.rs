//! What can be wrong with a request, in the texts that etcd's clients match.

use std::fmt;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is malformed: mend it.
    Invalid,
    /// It asks for a revision that is not there.
    OutOfRange,
    /// What it names does not exist.
    NotFound,
    /// The state does not allow it.
    FailedPrecondition,
    /// A limit is reached: free something, or wait.
    Exhausted,
    /// Data is damaged: an operator must act.
    DataLoss,
    /// The user may not do this.
    Denied,
    /// Who asks is not known (any more): log in again.
    Unauthenticated,
}

/// Why the state machine, or the check before it, refuses a request. Identical on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// A key is empty.
    EmptyKey,
    /// A key is longer than the cluster allows.
    KeyTooLarge {
        /// Its length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// `ignore_value` or `ignore_lease` on a key that is not there, or an empty operation.
    KeyNotFound,
    /// `ignore_value` together with a value.
    ValueProvided,
    /// `ignore_lease` together with a lease.
    LeaseProvided,
    /// More operations than a transaction may have.
    TooManyOps,
    /// A transaction writes one key twice.
    DuplicateKey,
    /// The request, encoded, is over the limit.
    RequestTooLarge,
    /// An unknown sort order or target.
    InvalidSortOption,
    /// The revision is compacted.
    Compacted,
    /// The revision is in the future.
    FutureRevision,
    /// No such lease.
    LeaseNotFound,
    /// The lease's ID is taken.
    LeaseExists,
    /// The lease would live longer than [`crate::limits::LEASE_TTL_S_MAX`].
    LeaseTtlTooLarge,
    /// The session is unknown, expired, or the sequence is below its window: what happened is not known.
    SessionExpired,
    /// The sequence was used with another request.
    SessionMismatch,
    /// Too many sessions, or too many kept replies.
    TooManySessions,
    /// The store or the disk is out of space.
    NoSpace,
    /// A corruption alarm stands.
    Corrupt,
    /// A command this version does not know was skipped by every member (an operator's `--skip-entry`).
    Skipped,
    /// A user has no name; also: authentication is on, and nobody is named as the one who asks.
    UserEmpty,
    /// A role has no name.
    RoleEmpty,
    /// A name of a user or a role is longer than [`crate::limits::NAME_BYTES_MAX`].
    NameTooLarge {
        /// Its length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Unknown user, wrong password, or a user that has none.
    AuthenticationFailed,
    /// A permission is to be granted and none is named.
    PermissionNotGiven,
    /// The superuser would be locked out, or a permission is of no range of keys.
    InvalidAuthManagement,
    /// Users, roles or permissions changed after the request was checked: ask again.
    OldAuthRevision,
    /// Authentication cannot be turned on without the user `root`,
    RootUserNotFound,
    /// or with one that does not have the role `root`.
    RootRoleNotGranted,
    /// The user's name is taken.
    UserExists,
    /// No such user.
    UserNotFound,
    /// The role's name is taken.
    RoleExists,
    /// No such role.
    RoleNotFound,
    /// The user does not have that role.
    RoleNotGranted,
    /// The role does not have that permission.
    PermissionNotGranted,
    /// Authentication is off, so that nobody can log in.
    AuthNotEnabled,
    /// The user may not do this.
    PermissionDenied,
    /// The token is unknown here: it expired, its user or authentication changed, or this member started anew.
    InvalidToken,
}

impl Error {
    /// What a caller can do.
    pub fn kind(&self) -> ErrorKind {
        use Error::*;
        match self {
            EmptyKey
            | KeyTooLarge { .. }
            | KeyNotFound
            | ValueProvided
            | LeaseProvided
            | TooManyOps
            | DuplicateKey
            | RequestTooLarge
            | InvalidSortOption
            | SessionMismatch
            | UserEmpty
            | RoleEmpty
            | NameTooLarge { .. }
            | AuthenticationFailed
            | PermissionNotGiven
            | InvalidAuthManagement
            | OldAuthRevision => ErrorKind::Invalid,
            Compacted | FutureRevision | LeaseTtlTooLarge => ErrorKind::OutOfRange,
            LeaseNotFound => ErrorKind::NotFound,
            LeaseExists | SessionExpired | Skipped | RootUserNotFound | RootRoleNotGranted | UserExists
            | UserNotFound | RoleExists | RoleNotFound | RoleNotGranted | PermissionNotGranted
            | AuthNotEnabled => ErrorKind::FailedPrecondition,
            TooManySessions | NoSpace => ErrorKind::Exhausted,
            Corrupt => ErrorKind::DataLoss,
            PermissionDenied => ErrorKind::Denied,
            InvalidToken => ErrorKind::Unauthenticated,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Error::*;
        f.write_str(match self {
            EmptyKey => "etcdserver: key is not provided",
            KeyTooLarge { bytes, max } => {
                return write!(
                    f,
                    "kvorum: key of {bytes} bytes is longer than the limit of {max}"
                );
            }
            KeyNotFound => "etcdserver: key not found",
            ValueProvided => "etcdserver: value is provided",
            LeaseProvided => "etcdserver: lease is provided",
            TooManyOps => "etcdserver: too many operations in txn request",
            DuplicateKey => "etcdserver: duplicate key given in txn request",
            RequestTooLarge => "etcdserver: request is too large",
            InvalidSortOption => "etcdserver: invalid sort option",
            Compacted => "etcdserver: mvcc: required revision has been compacted",
            FutureRevision => "etcdserver: mvcc: required revision is a future revision",
            LeaseNotFound => "etcdserver: requested lease not found",
            LeaseExists => "etcdserver: lease already exists",
            LeaseTtlTooLarge => "etcdserver: too large lease TTL",
            SessionExpired => "kvorum: session expired; outcome unknown",
            SessionMismatch => "kvorum: session sequence was used with another request",
            TooManySessions => "kvorum: too many sessions; close some or wait for idle ones to expire",
            NoSpace => "etcdserver: mvcc: database space exceeded",
            Corrupt => "etcdserver: corrupt cluster",
            Skipped => "kvorum: the entry was skipped by the operator",
            UserEmpty => "etcdserver: user name is empty",
            RoleEmpty => "etcdserver: role name is empty",
            NameTooLarge { bytes, max } => {
                return write!(
                    f,
                    "kvorum: a name of {bytes} bytes is longer than the limit of {max}"
                );
            }
            AuthenticationFailed => "etcdserver: authentication failed, invalid user ID or password",
            PermissionNotGiven => "etcdserver: permission not given",
            InvalidAuthManagement => "etcdserver: invalid auth management",
            OldAuthRevision => "etcdserver: revision of auth store is old",
            RootUserNotFound => "etcdserver: root user does not exist",
            RootRoleNotGranted => "etcdserver: root user does not have root role",
            UserExists => "etcdserver: user name already exists",
            UserNotFound => "etcdserver: user name not found",
            RoleExists => "etcdserver: role name already exists",
            RoleNotFound => "etcdserver: role name not found",
            RoleNotGranted => "etcdserver: role is not granted to the user",
            PermissionNotGranted => "etcdserver: permission is not granted to the role",
            AuthNotEnabled => "etcdserver: authentication is not enabled",
            PermissionDenied => "etcdserver: permission denied",
            InvalidToken => "etcdserver: invalid auth token",
        })
    }
}

impl std::error::Error for Error {}
