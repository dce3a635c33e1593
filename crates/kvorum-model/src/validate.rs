//! The checks before a command reaches the log: etcd's, in etcd's order and with its texts (`checkTxnRequest` and
//! `checkIntervals` of its `v3rpc/key.go`), and kvorum's limits.
//!
//! A command that passes writes no key twice, whichever way its compares go. In two corners etcd lets such a
//! transaction through and kvorum does not, because one key has one change per revision here: a put inside a
//! delete that is open at the top (`range_end` of one zero byte), and a delete in one nested transaction of a key
//! that an earlier sibling puts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::auth::{AuthCommand, Secret};
use crate::command::{Command, Setting};
use crate::error::Error;
use crate::limits;
use crate::types::{DeleteRangeRequest, KeyRange, PutRequest, RangeRequest, RequestOp, TxnRequest};

/// What commands are held against; the defaults are those of [`limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLimits {
    /// Longest key in bytes (a cluster setting).
    pub key_bytes_max: usize,
    /// Longest command in bytes, as encoded.
    pub request_bytes_max: usize,
    /// Most operations in one list of a transaction; what a transaction uses, those nested in it cannot.
    pub txn_ops_max: usize,
    /// Deepest nesting of transactions.
    pub txn_depth_max: usize,
}

impl Default for CommandLimits {
    fn default() -> Self {
        CommandLimits {
            key_bytes_max: limits::KEY_BYTES_MAX,
            request_bytes_max: limits::REQUEST_BYTES_MAX,
            txn_ops_max: limits::TXN_OPS_MAX,
            txn_depth_max: limits::TXN_DEPTH_MAX,
        }
    }
}

impl Command {
    /// Whether it may be proposed. What only the state can tell (a missing key, a compacted revision) is answered
    /// when it is applied.
    pub fn validate(&self, limits: &CommandLimits) -> Result<(), Error> {
        match self {
            Command::Put(request) => check_put(request, limits)?,
            Command::DeleteRange(request) => check_delete(request, limits)?,
            Command::Txn(request) => request.validate(limits)?,
            Command::ClusterSetting(Setting::KeyBytesMax(bytes)) => {
                let max = limits::KEY_BYTES_CEILING as u64;
                if *bytes > max || *bytes == 0 {
                    return Err(Error::KeyTooLarge { bytes: *bytes, max });
                }
            }
            Command::LeaseGrant { id: 0, .. } => return Err(Error::LeaseNotFound),
            Command::LeaseGrant { ttl_s, .. } if *ttl_s > limits::LEASE_TTL_S_MAX => {
                return Err(Error::LeaseTtlTooLarge);
            }
            Command::Batch(commands) => {
                for command in commands {
                    command.validate(limits)?;
                }
            }
            Command::Auth(command) => check_auth(command, limits)?,
            _ => {}
        }
        if self.encoded_len() > limits.request_bytes_max {
            return Err(Error::RequestTooLarge);
        }
        Ok(())
    }
}

impl RangeRequest {
    /// Whether it may be read. Its revision is the state's matter.
    pub fn validate(&self, limits: &CommandLimits) -> Result<(), Error> {
        check_key_range(&self.range, limits)
    }
}

impl TxnRequest {
    /// Whether it may be run; of one that only reads, too.
    pub fn validate(&self, limits: &CommandLimits) -> Result<(), Error> {
        check_txn(self, limits, limits.txn_ops_max, 1)?;
        check_intervals(&self.success)?;
        check_intervals(&self.failure)?;
        Ok(())
    }

    /// Whether a put is in it, at any depth.
    pub fn has_put(&self) -> bool {
        self.success.iter().chain(&self.failure).any(|op| match op {
            RequestOp::Put(_) => true,
            RequestOp::Txn(txn) => txn.has_put(),
            RequestOp::Range(_) | RequestOp::DeleteRange(_) => false,
        })
    }

    /// Whether it consists of reads alone and can be answered without the log. One with a nested transaction
    /// cannot, as in etcd.
    pub fn is_read_only(&self) -> bool {
        self.success
            .iter()
            .chain(&self.failure)
            .all(|op| matches!(op, RequestOp::Range(_)))
    }
}

fn check_key(key: &[u8], max: usize) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::EmptyKey);
    }
    check_length(key, max)
}

fn check_length(key: &[u8], max: usize) -> Result<(), Error> {
    if key.len() > max {
        return Err(Error::KeyTooLarge {
            bytes: key.len() as u64,
            max: max as u64,
        });
    }
    Ok(())
}

/// Bounds may be one byte longer than keys: the next page begins at the last key and a zero byte.
fn check_key_range(range: &KeyRange, limits: &CommandLimits) -> Result<(), Error> {
    check_key(&range.key, limits.key_bytes_max + 1)?;
    check_length(&range.end, limits.key_bytes_max + 1)
}

fn check_put(request: &PutRequest, limits: &CommandLimits) -> Result<(), Error> {
    check_key(&request.key, limits.key_bytes_max)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

fn check_delete(request: &DeleteRangeRequest, limits: &CommandLimits) -> Result<(), Error> {
    check_key_range(&request.range, limits)
}

/// Only lengths: what else can be wrong is told to those who may change something, when it is applied.
fn check_auth(command: &AuthCommand, limits: &CommandLimits) -> Result<(), Error> {
    let check_name = |name: &String| match name.len() {
        bytes if bytes > limits::NAME_BYTES_MAX => Err(Error::NameTooLarge {
            bytes: bytes as u64,
            max: limits::NAME_BYTES_MAX as u64,
        }),
        _ => Ok(()),
    };
    let check_secret = |secret: &Secret| match secret.0.len() {
        bytes if bytes > limits::PASSWORD_HASH_BYTES_MAX => Err(Error::RequestTooLarge),
        _ => Ok(()),
    };
    let check_range = |range: &KeyRange| {
        check_length(&range.key, limits.key_bytes_max + 1)?;
        check_length(&range.end, limits.key_bytes_max + 1)
    };
    match command {
        AuthCommand::Enable | AuthCommand::Disable => Ok(()),
        AuthCommand::Authenticate {
            user: name,
            token: secret,
            ..
        }
        | AuthCommand::UserAdd {
            name,
            password: secret,
            ..
        }
        | AuthCommand::UserChangePassword {
            name,
            password: secret,
        } => {
            check_name(name)?;
            check_secret(secret)
        }
        AuthCommand::UserDelete { name }
        | AuthCommand::RoleAdd { name }
        | AuthCommand::RoleDelete { name } => check_name(name),
        AuthCommand::UserGrantRole { name, role } | AuthCommand::UserRevokeRole { name, role } => {
            check_name(name)?;
            check_name(role)
        }
        AuthCommand::RoleGrantPermission { name, permission } => {
            check_name(name)?;
            check_range(&permission.range)
        }
        AuthCommand::RoleRevokePermission { name, range } => {
            check_name(name)?;
            check_range(range)
        }
    }
}

/// `budget` is what enclosing transactions have left of `txn_ops_max`.
fn check_txn(txn: &TxnRequest, limits: &CommandLimits, budget: usize, depth: usize) -> Result<(), Error> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if ops > budget || depth > limits.txn_depth_max {
        return Err(Error::TooManyOps);
    }
    for compare in &txn.compare {
        check_key_range(&compare.range, limits)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            RequestOp::Range(request) => request.validate(limits)?,
            RequestOp::Put(request) => check_put(request, limits)?,
            RequestOp::DeleteRange(request) => check_delete(request, limits)?,
            RequestOp::Txn(nested) => check_txn(nested, limits, budget - ops, depth + 1)?,
        }
    }
    Ok(())
}

/// What one list of operations may write, whichever way its compares go.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Intervals<'a>,
}

/// Refuses a key that is put twice, or put and deleted; two deletes of a key, and one key in both lists of a nested
/// transaction, are fine.
fn check_intervals(ops: &[RequestOp]) -> Result<Writes<'_>, Error> {
    let mut writes = Writes::default();
    for op in ops {
        if let RequestOp::DeleteRange(request) = op {
            writes.deletes.insert(&request.range);
        }
    }
    for op in ops {
        if let RequestOp::Txn(txn) = op {
            let then = check_intervals(&txn.success)?;
            let otherwise = check_intervals(&txn.failure)?;
            for list in [&then, &otherwise] {
                let twice = list
                    .puts
                    .iter()
                    .any(|key| writes.puts.contains(key) || writes.deletes.contains(key));
                if twice || writes.puts.iter().any(|key| list.deletes.contains(key)) {
                    return Err(Error::DuplicateKey);
                }
            }
            for list in [then, otherwise] {
                writes.puts.extend(list.puts);
                writes.deletes.extend(list.deletes);
            }
        }
    }
    for op in ops {
        if let RequestOp::Put(request) = op {
            let key = request.key.as_ref();
            if writes.deletes.contains(key) || !writes.puts.insert(key) {
                return Err(Error::DuplicateKey);
            }
        }
    }
    Ok(writes)
}

/// A set of keys as disjoint intervals: start (inclusive) to end.
#[derive(Default)]
struct Intervals<'a>(BTreeMap<&'a [u8], End<'a>>);

/// Where an interval ends. The order is that of the keys they exclude.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End<'a> {
    /// With this key.
    Included(&'a [u8]),
    /// Before this key.
    Excluded(&'a [u8]),
    /// Never.
    Open,
}

impl End<'_> {
    /// Whether the interval goes on to `key`, given that it starts at or before it.
    fn reaches(&self, key: &[u8]) -> bool {
        match self {
            End::Included(end) => key <= *end,
            End::Excluded(end) => key < *end,
            End::Open => true,
        }
    }

    /// Whether it ends later than `other`.
    fn is_later_than(&self, other: &End) -> bool {
        match (self, other) {
            (_, End::Open) => false,
            (End::Open, _) => true,
            (End::Included(a), End::Included(b)) | (End::Excluded(a), End::Excluded(b)) => a > b,
            (End::Included(a), End::Excluded(b)) => a >= b,
            (End::Excluded(a), End::Included(b)) => a > b,
        }
    }
}

impl<'a> Intervals<'a> {
    fn insert(&mut self, range: &'a KeyRange) {
        let start = range.key.as_ref();
        if range.is_point() {
            self.merge(start, End::Included(start));
        } else if range.is_from_key() {
            self.merge(start, End::Open);
        } else if range.end > range.key {
            self.merge(start, End::Excluded(&range.end));
        }
    }

    fn merge(&mut self, mut start: &'a [u8], mut end: End<'a>) {
        if let Some((before, before_end)) = self.0.range(..=start).next_back()
            && before_end.reaches(start)
        {
            start = before;
            if before_end.is_later_than(&end) {
                end = *before_end;
            }
        }
        while let Some((&after, &after_end)) = self
            .0
            .range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
            .next()
            && end.reaches(after)
        {
            self.0.remove(after);
            if after_end.is_later_than(&end) {
                end = after_end;
            }
        }
        self.0.insert(start, end);
    }

    fn extend(&mut self, other: Intervals<'a>) {
        for (start, end) in other.0 {
            self.merge(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.0
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .is_some_and(|(_, end)| end.reaches(key))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{Compare, CompareResult, CompareTarget};

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn put(key: &str) -> RequestOp {
        RequestOp::Put(PutRequest {
            key: bytes(key),
            ..PutRequest::default()
        })
    }

    fn delete(key: &str, end: &str) -> RequestOp {
        let range = KeyRange {
            key: bytes(key),
            end: bytes(end),
        };
        RequestOp::DeleteRange(DeleteRangeRequest {
            range,
            prev_kv: false,
        })
    }

    fn range(key: &str) -> RequestOp {
        RequestOp::Range(RangeRequest {
            range: KeyRange::point(bytes(key)),
            ..RangeRequest::default()
        })
    }

    fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
        TxnRequest {
            compare: vec![],
            success,
            failure,
        }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp::Txn(txn(success, failure))
    }

    #[track_caller]
    fn check(ops: Vec<RequestOp>, expected: Result<(), Error>) {
        let limits = CommandLimits::default();
        assert_eq!(txn(ops.clone(), vec![]).validate(&limits), expected);
        assert_eq!(txn(vec![], ops).validate(&limits), expected, "in the other list");
    }

    /// The corners of etcd's `checkIntervals`, and those in which kvorum is stricter.
    #[test]
    fn no_key_is_written_twice() {
        let twice = Err(Error::DuplicateKey);
        check(vec![put("a"), put("b")], Ok(()));
        check(vec![put("a"), put("a")], twice.clone());
        check(vec![put("a"), delete("a", "")], twice.clone());
        check(vec![delete("a", "c"), put("b")], twice.clone());
        check(vec![put("c"), delete("a", "c")], Ok(()));
        check(vec![delete("a", "c"), delete("b", "d")], Ok(()));
        check(vec![delete("c", "a"), put("b")], Ok(()));
        check(vec![delete("a", "b"), delete("b", "c"), put("bb")], twice.clone());
        check(
            vec![delete("b", "c"), delete("a", "z"), delete("c", "d"), put("y")],
            twice.clone(),
        );
        // Nested: the lists of one child exclude each other, those of siblings do not.
        check(vec![nested(vec![put("a")], vec![put("a")])], Ok(()));
        check(vec![nested(vec![put("a")], vec![delete("a", "")])], Ok(()));
        check(vec![nested(vec![put("a")], vec![]), put("a")], twice.clone());
        check(
            vec![nested(vec![put("a")], vec![]), nested(vec![], vec![put("a")])],
            twice.clone(),
        );
        check(
            vec![nested(vec![], vec![put("a")]), delete("a", "b")],
            twice.clone(),
        );
        check(
            vec![
                nested(vec![delete("a", "c")], vec![]),
                nested(vec![put("b")], vec![]),
            ],
            twice.clone(),
        );
        check(
            vec![nested(vec![nested(vec![put("a")], vec![])], vec![]), put("a")],
            twice.clone(),
        );
        // etcd lets these two through.
        check(
            vec![
                nested(vec![put("b")], vec![]),
                nested(vec![delete("a", "c")], vec![]),
            ],
            twice.clone(),
        );
        check(vec![delete("a", "\0"), put("b")], twice.clone());
        check(vec![delete("b", "\0"), put("a")], Ok(()));
    }

    #[test]
    fn checks_come_in_etcds_order() {
        let limits = CommandLimits::default();
        let request = PutRequest {
            ignore_value: true,
            ignore_lease: true,
            lease: 1,
            ..PutRequest::default()
        };
        let with = |key: &str, value: &str| {
            Command::Put(PutRequest {
                key: bytes(key),
                value: bytes(value),
                ..request.clone()
            })
            .validate(&limits)
        };
        assert_eq!(with("", "v"), Err(Error::EmptyKey));
        assert_eq!(with("k", "v"), Err(Error::ValueProvided));
        assert_eq!(with("k", ""), Err(Error::LeaseProvided));
        check(vec![put("a"), put("a"), put("")], Err(Error::EmptyKey));
        check(vec![range("")], Err(Error::EmptyKey));
        check(vec![delete("", "")], Err(Error::EmptyKey));
        let compare = Compare {
            range: KeyRange::default(),
            result: CompareResult::Equal,
            target: CompareTarget::Version(0),
        };
        let mut request = txn(vec![put("")], vec![]);
        request.compare.push(compare);
        assert_eq!(request.validate(&limits), Err(Error::EmptyKey));
    }

    #[test]
    fn the_budget_of_operations_is_shared_with_what_is_nested() {
        let limits = CommandLimits::default();
        let many = |count: usize| (0..count).map(|_| range("a")).collect::<Vec<_>>();
        let count = |outer: usize, inner: usize| {
            let mut ops = many(outer - 1);
            ops.push(nested(many(inner), vec![]));
            txn(ops, vec![]).validate(&limits)
        };
        assert_eq!(txn(many(128), many(128)).validate(&limits), Ok(()));
        assert_eq!(txn(many(129), vec![]).validate(&limits), Err(Error::TooManyOps));
        assert_eq!(count(1, 127), Ok(()));
        assert_eq!(count(1, 128), Err(Error::TooManyOps));
        assert_eq!(count(100, 28), Ok(()));
        assert_eq!(count(100, 29), Err(Error::TooManyOps));
        let deep = |depth: usize| {
            let mut ops = vec![];
            for _ in 1..depth {
                ops = vec![nested(ops, vec![])];
            }
            txn(ops, vec![]).validate(&limits)
        };
        assert_eq!(deep(limits::TXN_DEPTH_MAX), Ok(()));
        assert_eq!(deep(limits::TXN_DEPTH_MAX + 1), Err(Error::TooManyOps));
    }

    #[test]
    fn sizes_are_limited() {
        let limits = CommandLimits {
            key_bytes_max: 4,
            request_bytes_max: 100,
            ..CommandLimits::default()
        };
        let put = |key: usize, value: usize| {
            let request = PutRequest {
                key: vec![b'k'; key].into(),
                value: vec![0; value].into(),
                ..PutRequest::default()
            };
            Command::Put(request)
        };
        let room = 100 - put(4, 0).encoded_len();
        assert_eq!(put(4, room).validate(&limits), Ok(()));
        assert_eq!(put(4, room + 1).validate(&limits), Err(Error::RequestTooLarge));
        assert_eq!(
            put(5, 0).validate(&limits),
            Err(Error::KeyTooLarge { bytes: 5, max: 4 })
        );
        // A page begins after the last key, that is, with a byte more.
        let range = |key: usize, end: usize| {
            let range = KeyRange {
                key: vec![1; key].into(),
                end: vec![1; end].into(),
            };
            RangeRequest {
                range,
                ..RangeRequest::default()
            }
            .validate(&limits)
        };
        assert_eq!(range(5, 5), Ok(()));
        assert_eq!(range(6, 0), Err(Error::KeyTooLarge { bytes: 6, max: 5 }));
        assert_eq!(range(1, 6), Err(Error::KeyTooLarge { bytes: 6, max: 5 }));
        let setting = |bytes| Command::ClusterSetting(Setting::KeyBytesMax(bytes)).validate(&limits);
        assert_eq!(setting(32_000), Ok(()));
        assert_eq!(
            setting(32_001),
            Err(Error::KeyTooLarge {
                bytes: 32_001,
                max: 32_000
            })
        );
    }

    #[test]
    fn names_hashes_and_ranges_of_auth_commands_are_limited() {
        let limits = CommandLimits {
            key_bytes_max: 4,
            ..CommandLimits::default()
        };
        let check = |command: AuthCommand, expected: Result<(), Error>| {
            assert_eq!(Command::Auth(command).validate(&limits), expected);
        };
        let name = |bytes: usize| "n".repeat(bytes);
        let max = limits::NAME_BYTES_MAX;
        let too_long = Err(Error::NameTooLarge {
            bytes: max as u64 + 1,
            max: max as u64,
        });
        check(AuthCommand::RoleAdd { name: name(max) }, Ok(()));
        check(AuthCommand::RoleAdd { name: name(max + 1) }, too_long.clone());
        check(AuthCommand::UserDelete { name: name(max + 1) }, too_long.clone());
        let grant = |user, role| AuthCommand::UserGrantRole {
            name: name(user),
            role: name(role),
        };
        check(grant(1, max), Ok(()));
        check(grant(1, max + 1), too_long.clone());
        let user = |hash: usize| AuthCommand::UserAdd {
            name: name(1),
            password: Secret(vec![0; hash].into()),
            no_password: false,
        };
        check(user(limits::PASSWORD_HASH_BYTES_MAX), Ok(()));
        check(
            user(limits::PASSWORD_HASH_BYTES_MAX + 1),
            Err(Error::RequestTooLarge),
        );
        let range = |end: usize| AuthCommand::RoleRevokePermission {
            name: name(1),
            range: KeyRange {
                key: bytes("k"),
                end: vec![1; end].into(),
            },
        };
        check(range(5), Ok(()));
        check(range(6), Err(Error::KeyTooLarge { bytes: 6, max: 5 }));
    }

    #[test]
    fn only_reads_can_be_answered_without_the_log() {
        assert!(txn(vec![range("a")], vec![range("b")]).is_read_only());
        assert!(txn(vec![], vec![]).is_read_only());
        assert!(!txn(vec![nested(vec![range("a")], vec![])], vec![]).is_read_only());
        assert!(!txn(vec![], vec![delete("a", "")]).is_read_only());
        assert!(txn(vec![nested(vec![], vec![put("a")])], vec![]).has_put());
        assert!(!txn(vec![delete("a", "")], vec![]).has_put());
    }
}
