//! Requests, answers and records in the terms of etcd's v3 API.

use bytes::Bytes;

/// The number of a change to the keyspace: 1 is the empty store, the first write makes 2.
pub type Revision = i64;

/// One live version of a key (`mvccpb.KeyValue`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Revision of the put that created it (after its last delete).
    pub create_revision: Revision,
    /// Revision of the last put.
    pub mod_revision: Revision,
    /// Puts since its creation; 1 at creation.
    pub version: i64,
    /// The value.
    pub value: Bytes,
    /// The lease that it is attached to; 0 for none.
    pub lease: i64,
}

/// Which keys: etcd's convention of `key` and `range_end`.
///
/// An empty `end` means the one key; an `end` of one zero byte means every key ≥ `key` (with `key` one zero
/// byte too: all keys); otherwise the half-open interval `[key, end)`, empty if `end <= key`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key.
    pub key: Bytes,
    /// See above.
    pub end: Bytes,
}

impl KeyRange {
    /// The one key.
    pub fn point(key: impl Into<Bytes>) -> Self {
        KeyRange {
            key: key.into(),
            end: Bytes::new(),
        }
    }

    /// All keys that start with `prefix`; with an empty prefix, all keys.
    pub fn prefix(prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return KeyRange {
                key: Bytes::from_static(&[0]),
                end: Bytes::from_static(&[0]),
            };
        }
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return KeyRange {
                    key: Bytes::copy_from_slice(prefix),
                    end: end.into(),
                };
            }
        }
        KeyRange {
            key: Bytes::copy_from_slice(prefix),
            end: Bytes::from_static(&[0]),
        }
    }

    /// Whether it names exactly one key.
    pub fn is_point(&self) -> bool {
        self.end.is_empty()
    }

    /// Whether it is open at the top.
    pub fn is_from_key(&self) -> bool {
        self.end.as_ref() == [0]
    }

    /// Whether `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_point() {
            key == self.key.as_ref()
        } else {
            key >= self.key.as_ref() && (self.is_from_key() || key < self.end.as_ref())
        }
    }
}

/// By what a range is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SortTarget {
    /// The key; also the natural order of answers.
    #[default]
    Key,
    /// `version`.
    Version,
    /// `create_revision`.
    Create,
    /// `mod_revision`.
    Mod,
    /// `value`.
    Value,
}

/// In which direction; `None` with a target other than the key sorts ascending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SortOrder {
    /// As stored.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Greatest first.
    Descend,
}

/// A read (`RangeRequest`). Whether it is linearizable is the read gate's matter, not the store's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Most records to return; 0 or less: no limit.
    pub limit: i64,
    /// At which revision; 0 or less: the newest.
    pub revision: Revision,
    /// Order.
    pub sort_order: SortOrder,
    /// What the order looks at.
    pub sort_target: SortTarget,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Filters applied before the limit, 0 = off: `mod_revision >= min_mod_revision`, and so on.
    pub min_mod_revision: Revision,
    /// See `min_mod_revision`.
    pub max_mod_revision: Revision,
    /// See `min_mod_revision`.
    pub min_create_revision: Revision,
    /// See `min_mod_revision`.
    pub max_create_revision: Revision,
}

/// Its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RangeResponse {
    /// The records.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut the answer.
    pub more: bool,
    /// All keys in the range at that revision, whatever limit and filters say.
    pub count: i64,
}

/// A write of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PutRequest {
    /// The key; not empty.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease to attach it to; 0 detaches.
    pub lease: i64,
    /// Return the record that it replaces.
    pub prev_kv: bool,
    /// Keep the value that is there; the key must exist.
    pub ignore_value: bool,
    /// Keep the lease that is there; the key must exist.
    pub ignore_lease: bool,
}

/// Its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PutResponse {
    /// The replaced record, if asked for.
    pub prev_kv: Option<KeyValue>,
}

/// A deletion. One that finds nothing makes no revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeleteRangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Return the deleted records.
    pub prev_kv: bool,
}

/// Its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeleteRangeResponse {
    /// How many keys it deleted.
    pub deleted: i64,
    /// The deleted records, if asked for, in key order.
    pub prev_kvs: Vec<KeyValue>,
}

/// How a compare compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompareResult {
    /// `==`
    Equal,
    /// `>`
    Greater,
    /// `<`
    Less,
    /// `!=`
    NotEqual,
}

/// What a compare looks at, with the operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CompareTarget {
    /// `version`; 0 for a key that is not there.
    Version(i64),
    /// `create_revision`; 0 for a key that is not there.
    Create(Revision),
    /// `mod_revision`; 0 for a key that is not there.
    Mod(Revision),
    /// The value; always false for a key that is not there.
    Value(Bytes),
    /// `lease`; 0 for a key that is not there.
    Lease(i64),
    /// How many live keys the store has in all, whatever the range names. A guard of kvorum's own, without a word
    /// in etcd's API; costs nothing, the state machine keeps the number.
    LiveKeys(i64),
}

/// One condition of a transaction. Over a range it holds if it holds for every key; an empty range counts as
/// one missing key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// How.
    pub result: CompareResult,
    /// What.
    pub target: CompareTarget,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequestOp {
    /// A read; sees the transaction's own earlier writes.
    Range(RangeRequest),
    /// A write.
    Put(PutRequest),
    /// A deletion.
    DeleteRange(DeleteRangeRequest),
    /// A nested transaction; its compares see the state before the outermost transaction.
    Txn(TxnRequest),
}

/// A transaction: one main revision for all its writes, all or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TxnRequest {
    /// The conditions; all must hold for `success`.
    pub compare: Vec<Compare>,
    /// Run if they hold.
    pub success: Vec<RequestOp>,
    /// Run if not.
    pub failure: Vec<RequestOp>,
}

/// The answer to one operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResponseOp {
    /// To a read.
    Range(RangeResponse),
    /// To a write.
    Put(PutResponse),
    /// To a deletion.
    DeleteRange(DeleteRangeResponse),
    /// To a nested transaction.
    Txn(TxnResponse),
}

/// The answer to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TxnResponse {
    /// Which list ran.
    pub succeeded: bool,
    /// One answer an operation.
    pub responses: Vec<ResponseOp>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted; `kv` then has only `key` and `mod_revision`.
    Delete,
}

/// One change of one key (`mvccpb.Event`), at revision `kv.mod_revision`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The record after it.
    pub kv: KeyValue,
    /// The record before it, where a watcher asked for it and it is not compacted.
    pub prev_kv: Option<KeyValue>,
}
