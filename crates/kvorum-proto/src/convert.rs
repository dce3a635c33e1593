//! Model ⇄ wire.
//!
//! Requests: `TryFrom`, which checks what etcd's API layer checks, in its order. Answers: functions, because
//! a header is known only to the handler.

use bytes::Bytes;
use kvorum_model as model;
use kvorum_model::limits::{KEY_BYTES_CEILING, TXN_DEPTH_MAX, TXN_OPS_MAX};
use kvorum_model::{Error, KeyRange};

use crate::etcdserverpb as pb;
use crate::mvccpb;
use crate::status::Rejected;
use crate::txn::check_duplicates;

/// A range as etcd's requests name it. Longer bounds than any key plus one byte find nothing that a shorter
/// one does not, and are refused, so that nothing below meets them.
fn key_range(key: Bytes, end: Bytes) -> Result<KeyRange, Rejected> {
    if key.is_empty() {
        return Err(Error::EmptyKey.into());
    }
    let longest = key.len().max(end.len());
    if longest > KEY_BYTES_CEILING + 1 {
        return Err(Error::KeyTooLarge {
            bytes: longest as u64,
            max: KEY_BYTES_CEILING as u64,
        }
        .into());
    }
    Ok(KeyRange { key, end })
}

impl TryFrom<pb::RangeRequest> for model::RangeRequest {
    type Error = Rejected;

    fn try_from(r: pb::RangeRequest) -> Result<Self, Rejected> {
        use pb::range_request::{SortOrder, SortTarget};
        let range = key_range(r.key, r.range_end)?;
        let sort_order = match SortOrder::try_from(r.sort_order) {
            Ok(SortOrder::None) => model::SortOrder::None,
            Ok(SortOrder::Ascend) => model::SortOrder::Ascend,
            Ok(SortOrder::Descend) => model::SortOrder::Descend,
            Err(_) => return Err(Error::InvalidSortOption.into()),
        };
        let sort_target = match SortTarget::try_from(r.sort_target) {
            Ok(SortTarget::Key) => model::SortTarget::Key,
            Ok(SortTarget::Version) => model::SortTarget::Version,
            Ok(SortTarget::Create) => model::SortTarget::Create,
            Ok(SortTarget::Mod) => model::SortTarget::Mod,
            Ok(SortTarget::Value) => model::SortTarget::Value,
            Err(_) => return Err(Error::InvalidSortOption.into()),
        };
        Ok(model::RangeRequest {
            range,
            limit: r.limit,
            revision: r.revision,
            sort_order,
            sort_target,
            keys_only: r.keys_only,
            count_only: r.count_only,
            min_mod_revision: r.min_mod_revision,
            max_mod_revision: r.max_mod_revision,
            min_create_revision: r.min_create_revision,
            max_create_revision: r.max_create_revision,
        })
    }
}

impl TryFrom<pb::PutRequest> for model::PutRequest {
    type Error = Rejected;

    fn try_from(r: pb::PutRequest) -> Result<Self, Rejected> {
        if r.key.is_empty() {
            return Err(Error::EmptyKey.into());
        }
        if r.ignore_value && !r.value.is_empty() {
            return Err(Error::ValueProvided.into());
        }
        if r.ignore_lease && r.lease != 0 {
            return Err(Error::LeaseProvided.into());
        }
        Ok(model::PutRequest {
            key: r.key,
            value: r.value,
            lease: r.lease,
            prev_kv: r.prev_kv,
            ignore_value: r.ignore_value,
            ignore_lease: r.ignore_lease,
        })
    }
}

impl TryFrom<pb::DeleteRangeRequest> for model::DeleteRangeRequest {
    type Error = Rejected;

    fn try_from(r: pb::DeleteRangeRequest) -> Result<Self, Rejected> {
        Ok(model::DeleteRangeRequest {
            range: key_range(r.key, r.range_end)?,
            prev_kv: r.prev_kv,
        })
    }
}

/// A transaction within `ops_max` operations (etcd's `--max-txn-ops`).
pub fn txn_request(r: pb::TxnRequest, ops_max: usize) -> Result<model::TxnRequest, Rejected> {
    let txn = txn_level(r, ops_max, TXN_DEPTH_MAX)?;
    check_duplicates(&txn)?;
    Ok(txn)
}

impl TryFrom<pb::TxnRequest> for model::TxnRequest {
    type Error = Rejected;

    /// Within the default limit of operations.
    fn try_from(r: pb::TxnRequest) -> Result<Self, Rejected> {
        txn_request(r, TXN_OPS_MAX)
    }
}

/// One level; what it uses of the budget is not there for the levels below.
fn txn_level(r: pb::TxnRequest, ops_max: usize, depth_left: usize) -> Result<model::TxnRequest, Rejected> {
    let ops = r.compare.len().max(r.success.len()).max(r.failure.len());
    if ops > ops_max || depth_left == 0 {
        return Err(Error::TooManyOps.into());
    }
    let op = |op| request_op(op, ops_max - ops, depth_left - 1);
    Ok(model::TxnRequest {
        compare: r
            .compare
            .into_iter()
            .map(TryFrom::try_from)
            .collect::<Result<_, _>>()?,
        success: r.success.into_iter().map(op).collect::<Result<_, _>>()?,
        failure: r.failure.into_iter().map(op).collect::<Result<_, _>>()?,
    })
}

fn request_op(op: pb::RequestOp, ops_max: usize, depth_left: usize) -> Result<model::RequestOp, Rejected> {
    use pb::request_op::Request;
    Ok(match op.request {
        Some(Request::RequestRange(r)) => model::RequestOp::Range(r.try_into()?),
        Some(Request::RequestPut(r)) => model::RequestOp::Put(r.try_into()?),
        Some(Request::RequestDeleteRange(r)) => model::RequestOp::DeleteRange(r.try_into()?),
        Some(Request::RequestTxn(r)) => model::RequestOp::Txn(txn_level(r, ops_max, depth_left)?),
        None => return Err(Error::KeyNotFound.into()),
    })
}

impl TryFrom<pb::Compare> for model::Compare {
    type Error = Rejected;

    /// `target` decides; an operand of another kind counts as 0 or empty, as in etcd.
    fn try_from(c: pb::Compare) -> Result<Self, Rejected> {
        use pb::compare::{CompareResult, CompareTarget, TargetUnion};
        let range = key_range(c.key, c.range_end)?;
        let result = match CompareResult::try_from(c.result) {
            Ok(CompareResult::Equal) => model::CompareResult::Equal,
            Ok(CompareResult::Greater) => model::CompareResult::Greater,
            Ok(CompareResult::Less) => model::CompareResult::Less,
            Ok(CompareResult::NotEqual) => model::CompareResult::NotEqual,
            Err(_) => return Err(Rejected::UnknownEnum("compare result")),
        };
        let target = match (CompareTarget::try_from(c.target), c.target_union) {
            (Ok(CompareTarget::Version), Some(TargetUnion::Version(v))) => model::CompareTarget::Version(v),
            (Ok(CompareTarget::Version), _) => model::CompareTarget::Version(0),
            (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(v))) => {
                model::CompareTarget::Create(v)
            }
            (Ok(CompareTarget::Create), _) => model::CompareTarget::Create(0),
            (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(v))) => model::CompareTarget::Mod(v),
            (Ok(CompareTarget::Mod), _) => model::CompareTarget::Mod(0),
            (Ok(CompareTarget::Value), Some(TargetUnion::Value(v))) => model::CompareTarget::Value(v),
            (Ok(CompareTarget::Value), _) => model::CompareTarget::Value(Bytes::new()),
            (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(v))) => model::CompareTarget::Lease(v),
            (Ok(CompareTarget::Lease), _) => model::CompareTarget::Lease(0),
            (Err(_), _) => return Err(Rejected::UnknownEnum("compare target")),
        };
        Ok(model::Compare {
            range,
            result,
            target,
        })
    }
}

impl From<model::KeyValue> for mvccpb::KeyValue {
    fn from(kv: model::KeyValue) -> Self {
        mvccpb::KeyValue {
            key: kv.key,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: kv.value,
            lease: kv.lease,
        }
    }
}

impl From<model::Event> for mvccpb::Event {
    fn from(event: model::Event) -> Self {
        let r#type = match event.kind {
            model::EventKind::Put => mvccpb::event::EventType::Put,
            model::EventKind::Delete => mvccpb::event::EventType::Delete,
        };
        mvccpb::Event {
            r#type: r#type.into(),
            kv: Some(event.kv.into()),
            prev_kv: event.prev_kv.map(Into::into),
        }
    }
}

/// The answer to a read.
pub fn range_response(r: model::RangeResponse, header: pb::ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: r.kvs.into_iter().map(Into::into).collect(),
        more: r.more,
        count: r.count,
    }
}

/// The answer to a put.
pub fn put_response(r: model::PutResponse, header: pb::ResponseHeader) -> pb::PutResponse {
    pb::PutResponse {
        header: Some(header),
        prev_kv: r.prev_kv.map(Into::into),
    }
}

/// The answer to a deletion.
pub fn delete_response(r: model::DeleteRangeResponse, header: pb::ResponseHeader) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: r.deleted,
        prev_kvs: r.prev_kvs.into_iter().map(Into::into).collect(),
    }
}

/// The answer to a transaction. As in etcd the answers inside carry a header with nothing but a revision: the
/// one before the transaction up to its first change, its own from there on; a nested one's header is empty.
pub fn txn_response(r: model::TxnResponse, header: pb::ResponseHeader) -> pb::TxnResponse {
    let mut revision = header.revision - i64::from(r.responses.iter().any(changed));
    txn_level_response(r, header, &mut revision, header.revision)
}

/// Whether the operation changed something.
fn changed(op: &model::ResponseOp) -> bool {
    match op {
        model::ResponseOp::Range(_) => false,
        model::ResponseOp::Put(_) => true,
        model::ResponseOp::DeleteRange(r) => r.deleted > 0,
        model::ResponseOp::Txn(r) => r.responses.iter().any(changed),
    }
}

/// `revision` is the newest one that the operations so far have seen or made; `last` the transaction's own.
fn txn_level_response(
    r: model::TxnResponse,
    header: pb::ResponseHeader,
    revision: &mut i64,
    last: i64,
) -> pb::TxnResponse {
    use pb::response_op::Response;
    let mut respond = |op: model::ResponseOp| {
        if !matches!(op, model::ResponseOp::Txn(_)) && changed(&op) {
            *revision = last;
        }
        let inner = pb::ResponseHeader {
            revision: *revision,
            ..Default::default()
        };
        let response = match op {
            model::ResponseOp::Range(r) => Response::ResponseRange(range_response(r, inner)),
            model::ResponseOp::Put(r) => Response::ResponsePut(put_response(r, inner)),
            model::ResponseOp::DeleteRange(r) => Response::ResponseDeleteRange(delete_response(r, inner)),
            model::ResponseOp::Txn(r) => {
                Response::ResponseTxn(txn_level_response(r, Default::default(), revision, last))
            }
        };
        pb::ResponseOp {
            response: Some(response),
        }
    };
    let responses = r.responses.into_iter().map(&mut respond).collect();
    pb::TxnResponse {
        header: Some(header),
        succeeded: r.succeeded,
        responses,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::etcdserverpb::request_op::Request;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp {
            request: Some(request),
        }
    }
    fn put(key: &'static str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest {
            key: key.into(),
            ..Default::default()
        }))
    }
    fn nest(success: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(pb::TxnRequest {
            success,
            ..Default::default()
        }))
    }
    fn check_txn(success: Vec<pb::RequestOp>, expected: Result<(), Rejected>) {
        let result = model::TxnRequest::try_from(pb::TxnRequest {
            success,
            ..Default::default()
        });
        assert_eq!(result.map(|_| ()), expected);
    }
    fn check_range(change: impl FnOnce(&mut pb::RangeRequest), expected: Result<(), Error>) {
        let mut request = pb::RangeRequest {
            key: "k".into(),
            ..Default::default()
        };
        change(&mut request);
        assert_eq!(
            model::RangeRequest::try_from(request).map(|_| ()),
            expected.map_err(Rejected::Model)
        );
    }
    fn check_put(change: impl FnOnce(&mut pb::PutRequest), expected: Result<(), Error>) {
        let mut request = pb::PutRequest {
            key: "k".into(),
            ..Default::default()
        };
        change(&mut request);
        assert_eq!(
            model::PutRequest::try_from(request).map(|_| ()),
            expected.map_err(Rejected::Model)
        );
    }
    fn check_compare(
        change: impl FnOnce(&mut pb::Compare),
        expected: Result<model::CompareTarget, Rejected>,
    ) {
        let mut compare = pb::Compare {
            key: "k".into(),
            ..Default::default()
        };
        change(&mut compare);
        assert_eq!(model::Compare::try_from(compare).map(|c| c.target), expected);
    }

    #[test]
    fn ranges() {
        check_range(|_| {}, Ok(()));
        check_range(|r| r.key = Bytes::new(), Err(Error::EmptyKey));
        check_range(|r| r.sort_order = 3, Err(Error::InvalidSortOption));
        check_range(|r| r.sort_order = -1, Err(Error::InvalidSortOption));
        check_range(|r| r.sort_target = 5, Err(Error::InvalidSortOption));
        check_range(|r| r.range_end = vec![b'x'; KEY_BYTES_CEILING + 1].into(), Ok(()));
        let bytes = KEY_BYTES_CEILING as u64 + 2;
        let too_large = Error::KeyTooLarge {
            bytes,
            max: KEY_BYTES_CEILING as u64,
        };
        check_range(
            |r| r.range_end = vec![b'x'; KEY_BYTES_CEILING + 2].into(),
            Err(too_large.clone()),
        );
        check_range(
            |r| r.key = vec![b'x'; KEY_BYTES_CEILING + 2].into(),
            Err(too_large),
        );
    }

    #[test]
    fn puts() {
        check_put(|_| {}, Ok(()));
        check_put(|r| r.key = Bytes::new(), Err(Error::EmptyKey));
        check_put(
            |r| (r.ignore_value, r.value) = (true, "v".into()),
            Err(Error::ValueProvided),
        );
        check_put(|r| r.ignore_value = true, Ok(()));
        check_put(
            |r| (r.ignore_lease, r.lease) = (true, 1),
            Err(Error::LeaseProvided),
        );
        check_put(|r| r.ignore_lease = true, Ok(()));
    }

    #[test]
    fn compares() {
        use crate::etcdserverpb::compare::TargetUnion;
        use model::CompareTarget::{Mod, Value, Version};
        check_compare(|_| {}, Ok(Version(0)));
        check_compare(|c| c.target_union = Some(TargetUnion::Version(4)), Ok(Version(4)));
        // The operand of another target counts as zero.
        check_compare(
            |c| (c.target, c.target_union) = (2, Some(TargetUnion::Version(4))),
            Ok(Mod(0)),
        );
        check_compare(
            |c| (c.target, c.target_union) = (3, None),
            Ok(Value(Bytes::new())),
        );
        check_compare(|c| c.target = 5, Err(Rejected::UnknownEnum("compare target")));
        check_compare(|c| c.result = 4, Err(Rejected::UnknownEnum("compare result")));
        check_compare(|c| c.key = Bytes::new(), Err(Rejected::Model(Error::EmptyKey)));
    }

    #[test]
    fn transactions_at_their_limits() {
        let keys: Vec<&'static str> = (0..129).map(|i| &*format!("k{i}").leak()).collect();
        check_txn(keys[..128].iter().map(|k| put(k)).collect(), Ok(()));
        check_txn(
            keys.iter().map(|k| put(k)).collect(),
            Err(Error::TooManyOps.into()),
        );
        // What the outer list uses up is not there for the inner one.
        let inner = |n: usize| nest(keys[..n].iter().map(|k| put(k)).collect());
        check_txn(vec![inner(127)], Ok(()));
        check_txn(vec![inner(128)], Err(Error::TooManyOps.into()));
        let deep = |levels: usize| (1..levels).fold(put("a"), |op, _| nest(vec![op]));
        check_txn(vec![deep(TXN_DEPTH_MAX)], Ok(()));
        check_txn(vec![deep(TXN_DEPTH_MAX + 1)], Err(Error::TooManyOps.into()));
        check_txn(
            vec![pb::RequestOp { request: None }],
            Err(Error::KeyNotFound.into()),
        );
        check_txn(vec![put("a"), put("a")], Err(Error::DuplicateKey.into()));
        check_txn(vec![put("")], Err(Error::EmptyKey.into()));
        check_txn(vec![nest(vec![put("")])], Err(Error::EmptyKey.into()));
    }

    /// As etcd 3.4 answers: see the rule at `txn_response`.
    #[test]
    fn headers_inside_a_transaction() {
        let read = || model::ResponseOp::Range(model::RangeResponse::default());
        let delete = |deleted| {
            model::ResponseOp::DeleteRange(model::DeleteRangeResponse {
                deleted,
                prev_kvs: vec![],
            })
        };
        let put = || model::ResponseOp::Put(model::PutResponse::default());
        let revisions = |responses: Vec<model::ResponseOp>| -> Vec<i64> {
            let header = pb::ResponseHeader {
                revision: 9,
                ..Default::default()
            };
            let answer = txn_response(
                model::TxnResponse {
                    succeeded: true,
                    responses,
                },
                header,
            );
            assert_eq!(answer.header.unwrap().revision, 9);
            fn collect(answer: pb::TxnResponse, into: &mut Vec<i64>) {
                use pb::response_op::Response::*;
                for op in answer.responses {
                    match op.response.unwrap() {
                        ResponseRange(r) => into.push(r.header.unwrap().revision),
                        ResponsePut(r) => into.push(r.header.unwrap().revision),
                        ResponseDeleteRange(r) => into.push(r.header.unwrap().revision),
                        ResponseTxn(r) => {
                            into.push(r.header.unwrap().revision);
                            collect(r, into);
                        }
                    }
                }
            }
            let mut into = vec![];
            collect(answer, &mut into);
            into
        };
        assert_eq!(revisions(vec![read(), delete(0)]), [9, 9]);
        assert_eq!(revisions(vec![read(), delete(0), put(), read()]), [8, 8, 9, 9]);
        let nested = model::TxnResponse {
            succeeded: true,
            responses: vec![read(), put(), delete(0)],
        };
        let nested = model::ResponseOp::Txn(nested);
        assert_eq!(revisions(vec![read(), nested, read()]), [8, 0, 8, 9, 9, 9]);
    }
}
