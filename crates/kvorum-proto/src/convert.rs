//! Model ⇄ wire.
//!
//! Requests: `From` or `TryFrom`, which refuses what the model has no words for; the rest of etcd's checks are
//! the model's `validate`. Answers: functions, because a header is known only to the handler.
//!
//! Recursion is bounded: prost decodes no message deeper than a hundred levels.

use bytes::Bytes;
use kvorum_model as model;
use kvorum_model::{Error, KeyRange};

use crate::etcdserverpb as pb;
use crate::mvccpb;
use crate::status::Rejected;

impl TryFrom<pb::RangeRequest> for model::RangeRequest {
    type Error = Rejected;

    fn try_from(r: pb::RangeRequest) -> Result<Self, Rejected> {
        use pb::range_request::{SortOrder, SortTarget};
        // Of two faults etcd names this one.
        if r.key.is_empty() {
            return Err(Error::EmptyKey.into());
        }
        let range = KeyRange {
            key: r.key,
            end: r.range_end,
        };
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

impl From<pb::PutRequest> for model::PutRequest {
    fn from(r: pb::PutRequest) -> Self {
        model::PutRequest {
            key: r.key,
            value: r.value,
            lease: r.lease,
            prev_kv: r.prev_kv,
            ignore_value: r.ignore_value,
            ignore_lease: r.ignore_lease,
        }
    }
}

impl From<pb::DeleteRangeRequest> for model::DeleteRangeRequest {
    fn from(r: pb::DeleteRangeRequest) -> Self {
        model::DeleteRangeRequest {
            range: KeyRange {
                key: r.key,
                end: r.range_end,
            },
            prev_kv: r.prev_kv,
        }
    }
}

impl TryFrom<pb::TxnRequest> for model::TxnRequest {
    type Error = Rejected;

    fn try_from(r: pb::TxnRequest) -> Result<Self, Rejected> {
        Ok(model::TxnRequest {
            compare: r
                .compare
                .into_iter()
                .map(TryFrom::try_from)
                .collect::<Result<_, _>>()?,
            success: r
                .success
                .into_iter()
                .map(TryFrom::try_from)
                .collect::<Result<_, _>>()?,
            failure: r
                .failure
                .into_iter()
                .map(TryFrom::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<pb::RequestOp> for model::RequestOp {
    type Error = Rejected;

    /// An operation without content is `key not found`, as in etcd.
    fn try_from(op: pb::RequestOp) -> Result<Self, Rejected> {
        use pb::request_op::Request;
        Ok(match op.request {
            Some(Request::RequestRange(r)) => model::RequestOp::Range(r.try_into()?),
            Some(Request::RequestPut(r)) => model::RequestOp::Put(r.into()),
            Some(Request::RequestDeleteRange(r)) => model::RequestOp::DeleteRange(r.into()),
            Some(Request::RequestTxn(r)) => model::RequestOp::Txn(r.try_into()?),
            None => return Err(Error::KeyNotFound.into()),
        })
    }
}

impl TryFrom<pb::Compare> for model::Compare {
    type Error = Rejected;

    /// `target` decides; an operand of another kind counts as 0 or empty, as in etcd.
    fn try_from(c: pb::Compare) -> Result<Self, Rejected> {
        use pb::compare::{CompareResult, CompareTarget, TargetUnion};
        let range = KeyRange {
            key: c.key,
            end: c.range_end,
        };
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
        check_range(|r| r.sort_order = 3, Err(Error::InvalidSortOption));
        check_range(|r| r.sort_order = -1, Err(Error::InvalidSortOption));
        check_range(|r| r.sort_target = 5, Err(Error::InvalidSortOption));
        let both = |r: &mut pb::RangeRequest| (r.key, r.sort_target) = (Bytes::new(), 5);
        check_range(both, Err(Error::EmptyKey));
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
    }

    #[test]
    fn a_bad_operation_spoils_the_transaction_at_any_depth() {
        let refused = |op: pb::RequestOp, expected: Rejected| {
            let nested = pb::TxnRequest {
                failure: vec![op],
                ..Default::default()
            };
            let txn = pb::TxnRequest {
                success: vec![self::op(Request::RequestTxn(nested))],
                ..Default::default()
            };
            assert_eq!(model::TxnRequest::try_from(txn), Err(expected));
        };
        refused(pb::RequestOp { request: None }, Error::KeyNotFound.into());
        let bad_sort = pb::RangeRequest {
            key: "k".into(),
            sort_order: 7,
            ..Default::default()
        };
        refused(
            op(Request::RequestRange(bad_sort)),
            Error::InvalidSortOption.into(),
        );
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
