//! Commands and what they consist of.

use super::DecodeError;
use super::limits::TXN_DEPTH_MAX;
use super::primitive::{Reader, Sink};
use crate::command::{Alarm, Command, LeaseProof, LeaseRemainder, MemberRecord, Setting};
use crate::types::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyRange, PutRequest, RangeRequest, RequestOp,
    SortOrder, SortTarget, TxnRequest,
};

const PUT: u8 = 1;
const DELETE_RANGE: u8 = 2;
const TXN: u8 = 3;
const COMPACT: u8 = 4;
const REGISTER: u8 = 5;
const EXPIRE_SESSIONS: u8 = 6;
const CLUSTER_INIT: u8 = 7;
const PUBLISH_MEMBER: u8 = 8;
const ADD_MEMBER: u8 = 9;
const REMOVE_MEMBER: u8 = 10;
const CLUSTER_SETTING: u8 = 11;
const BATCH: u8 = 12;
const LEASE_GRANT: u8 = 13;
const LEASE_REVOKE: u8 = 14;
const LEASE_CHECKPOINT: u8 = 15;
const AUTH: u8 = 16;
const SET_ALARM: u8 = 20;
const MOVE_MEMBER: u8 = 21;

pub(super) fn command(out: &mut impl Sink, command: &Command) {
    match command {
        Command::Put(request) => {
            out.u8(PUT);
            put(out, request);
        }
        Command::DeleteRange(request) => {
            out.u8(DELETE_RANGE);
            delete_range(out, request);
        }
        Command::Txn(request) => {
            out.u8(TXN);
            txn(out, request);
        }
        Command::Compact(revision) => {
            out.u8(COMPACT);
            out.i64(*revision);
        }
        Command::Register => out.u8(REGISTER),
        Command::ExpireSessions(ids) => {
            out.u8(EXPIRE_SESSIONS);
            out.list(ids, |out, id| out.u64(*id));
        }
        Command::ClusterInit {
            uuid,
            election_timeout_ms,
        } => {
            out.u8(CLUSTER_INIT);
            out.u128(*uuid);
            out.u64(*election_timeout_ms);
        }
        Command::PublishMember(record) => {
            out.u8(PUBLISH_MEMBER);
            member(out, record);
        }
        Command::AddMember(record) => {
            out.u8(ADD_MEMBER);
            member(out, record);
        }
        Command::RemoveMember(id) => {
            out.u8(REMOVE_MEMBER);
            out.u64(*id);
        }
        Command::ClusterSetting(setting) => {
            out.u8(CLUSTER_SETTING);
            match setting {
                Setting::KeyBytesMax(bytes) => {
                    out.u8(1);
                    out.u64(*bytes);
                }
                Setting::HistoryMs(ms) => {
                    out.u8(2);
                    out.u64(*ms);
                }
            }
        }
        Command::SetAlarm {
            alarm,
            member,
            raised,
        } => {
            out.u8(SET_ALARM);
            out.u8(match alarm {
                Alarm::NoSpace => 1,
                Alarm::Corrupt => 2,
            });
            out.u64(*member);
            out.u8((*raised).into());
        }
        Command::MoveMember { id, peer_addresses } => {
            out.u8(MOVE_MEMBER);
            out.u64(*id);
            out.list(peer_addresses, |out, address| out.bytes(address.as_bytes()));
        }
        Command::Batch(commands) => {
            out.u8(BATCH);
            out.list(commands, |out, item| self::command(out, item));
        }
        Command::LeaseGrant { id, ttl_s } => {
            out.u8(LEASE_GRANT);
            out.i64(*id);
            out.i64(*ttl_s);
        }
        Command::LeaseRevoke { id, expiry } => {
            out.u8(LEASE_REVOKE);
            out.i64(*id);
            out.u8(expiry.is_some().into());
            if let Some(LeaseProof { term, granted }) = expiry {
                out.u64(*term);
                out.u64(*granted);
            }
        }
        Command::LeaseCheckpoint { term, leases } => {
            out.u8(LEASE_CHECKPOINT);
            out.u64(*term);
            out.list(leases, |out, lease| {
                out.i64(lease.id);
                out.u64(lease.granted);
                out.i64(lease.remaining_s);
            });
        }
        Command::Auth(command) => {
            out.u8(AUTH);
            super::auth::command(out, command);
        }
    }
}

pub(super) fn read_command(reader: &mut Reader) -> Result<Command, DecodeError> {
    match reader.u8("the command")? {
        BATCH => Ok(Command::Batch(reader.list(1, "a batch", |reader| {
            let tag = reader.u8("the command")?;
            match tag {
                PUBLISH_MEMBER | ADD_MEMBER | REMOVE_MEMBER | CLUSTER_SETTING => read_simple(reader, tag),
                _ => Err(reader.malformed("a batch holds membership and settings only")),
            }
        })?)),
        tag => read_simple(reader, tag),
    }
}

/// Any command but a batch.
fn read_simple(reader: &mut Reader, tag: u8) -> Result<Command, DecodeError> {
    Ok(match tag {
        PUT => Command::Put(read_put(reader)?),
        DELETE_RANGE => Command::DeleteRange(read_delete_range(reader)?),
        TXN => Command::Txn(read_txn(reader, 1)?),
        COMPACT => Command::Compact(reader.i64("the revision")?),
        REGISTER => Command::Register,
        EXPIRE_SESSIONS => {
            Command::ExpireSessions(reader.list(8, "sessions", |reader| reader.u64("a session"))?)
        }
        CLUSTER_INIT => Command::ClusterInit {
            uuid: reader.u128("the cluster's UUID")?,
            election_timeout_ms: reader.u64("the election timeout")?,
        },
        PUBLISH_MEMBER => Command::PublishMember(read_member(reader)?),
        ADD_MEMBER => Command::AddMember(read_member(reader)?),
        REMOVE_MEMBER => Command::RemoveMember(reader.u64("the member")?),
        CLUSTER_SETTING => Command::ClusterSetting(match reader.u8("the setting")? {
            1 => Setting::KeyBytesMax(reader.u64("the setting")?),
            2 => Setting::HistoryMs(reader.u64("the setting")?),
            tag => {
                return Err(DecodeError::Newer {
                    what: "cluster setting",
                    value: tag.into(),
                });
            }
        }),
        LEASE_GRANT => Command::LeaseGrant {
            id: reader.i64("the lease")?,
            ttl_s: reader.i64("its TTL")?,
        },
        LEASE_REVOKE => {
            let id = reader.i64("the lease")?;
            let is_expiry = reader.flags(1, "lease revocation flags")? != 0;
            let expiry = if is_expiry {
                let term = reader.u64("the term")?;
                let granted = reader.u64("the grant")?;
                Some(LeaseProof { term, granted })
            } else {
                None
            };
            Command::LeaseRevoke { id, expiry }
        }
        LEASE_CHECKPOINT => Command::LeaseCheckpoint {
            term: reader.u64("the term")?,
            leases: reader.list(24, "leases", |reader| {
                Ok(LeaseRemainder {
                    id: reader.i64("the lease")?,
                    granted: reader.u64("the grant")?,
                    remaining_s: reader.i64("the remainder")?,
                })
            })?,
        },
        AUTH => Command::Auth(super::auth::read_command(reader)?),
        SET_ALARM => Command::SetAlarm {
            alarm: match reader.u8("the alarm")? {
                1 => Alarm::NoSpace,
                2 => Alarm::Corrupt,
                tag => {
                    return Err(DecodeError::Newer {
                        what: "alarm",
                        value: tag.into(),
                    });
                }
            },
            member: reader.u64("the member")?,
            raised: reader.flags(1, "alarm flags")? != 0,
        },
        MOVE_MEMBER => Command::MoveMember {
            id: reader.u64("the member")?,
            peer_addresses: reader.list(4, "peer addresses", |reader| reader.string("a peer address"))?,
        },
        0 => return Err(reader.malformed("command 0")),
        tag => {
            return Err(DecodeError::Newer {
                what: "command",
                value: tag.into(),
            });
        }
    })
}

fn member(out: &mut impl Sink, record: &MemberRecord) {
    out.u64(record.id);
    out.bytes(record.name.as_bytes());
    out.list(&record.peer_addresses, |out, address| {
        out.bytes(address.as_bytes())
    });
    out.list(&record.client_urls, |out, url| out.bytes(url.as_bytes()));
    out.u128(record.incarnation);
    out.u32(record.feature_level);
    out.u8(flag(record.promote_when_ready, 1));
}

fn read_member(reader: &mut Reader) -> Result<MemberRecord, DecodeError> {
    Ok(MemberRecord {
        id: reader.u64("the member")?,
        name: reader.string("the member's name")?,
        peer_addresses: reader.list(4, "peer addresses", |reader| reader.string("a peer address"))?,
        client_urls: reader.list(4, "client URLs", |reader| reader.string("a client URL"))?,
        incarnation: reader.u128("the incarnation")?,
        feature_level: reader.u32("the feature level")?,
        promote_when_ready: reader.flags(1, "member flags")? != 0,
    })
}

pub(super) fn key_range(out: &mut impl Sink, range: &KeyRange) {
    out.bytes(&range.key);
    out.bytes(&range.end);
}

pub(super) fn read_key_range(reader: &mut Reader) -> Result<KeyRange, DecodeError> {
    Ok(KeyRange {
        key: reader.bytes("a key")?,
        end: reader.bytes("a range's end")?,
    })
}

const PUT_PREV_KV: u8 = 1;
const PUT_IGNORE_VALUE: u8 = 2;
const PUT_IGNORE_LEASE: u8 = 4;
const PUT_LEASE: u8 = 8;
const PUT_FLAGS: u8 = PUT_PREV_KV | PUT_IGNORE_VALUE | PUT_IGNORE_LEASE | PUT_LEASE;

fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}

fn put(out: &mut impl Sink, request: &PutRequest) {
    out.u8(flag(request.prev_kv, PUT_PREV_KV)
        | flag(request.ignore_value, PUT_IGNORE_VALUE)
        | flag(request.ignore_lease, PUT_IGNORE_LEASE)
        | flag(request.lease != 0, PUT_LEASE));
    if request.lease != 0 {
        out.i64(request.lease);
    }
    out.bytes(&request.key);
    out.bytes(&request.value);
}

fn read_put(reader: &mut Reader) -> Result<PutRequest, DecodeError> {
    let flags = reader.flags(PUT_FLAGS, "put flags")?;
    Ok(PutRequest {
        lease: reader.optional(flags & PUT_LEASE != 0, "the lease")?,
        key: reader.bytes("the key")?,
        value: reader.bytes("the value")?,
        prev_kv: flags & PUT_PREV_KV != 0,
        ignore_value: flags & PUT_IGNORE_VALUE != 0,
        ignore_lease: flags & PUT_IGNORE_LEASE != 0,
    })
}

fn delete_range(out: &mut impl Sink, request: &DeleteRangeRequest) {
    out.u8(flag(request.prev_kv, 1));
    key_range(out, &request.range);
}

fn read_delete_range(reader: &mut Reader) -> Result<DeleteRangeRequest, DecodeError> {
    let flags = reader.flags(1, "delete flags")?;
    Ok(DeleteRangeRequest {
        range: read_key_range(reader)?,
        prev_kv: flags != 0,
    })
}

const RANGE_KEYS_ONLY: u8 = 1;
const RANGE_COUNT_ONLY: u8 = 2;
const RANGE_LIMIT: u8 = 4;
const RANGE_REVISION: u8 = 8;
const RANGE_FILTERS: u8 = 16;
const RANGE_FLAGS: u8 = RANGE_KEYS_ONLY | RANGE_COUNT_ONLY | RANGE_LIMIT | RANGE_REVISION | RANGE_FILTERS;

fn range(out: &mut impl Sink, request: &RangeRequest) {
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    let filtered = filters != [0; 4];
    out.u8(flag(request.keys_only, RANGE_KEYS_ONLY)
        | flag(request.count_only, RANGE_COUNT_ONLY)
        | flag(request.limit != 0, RANGE_LIMIT)
        | flag(request.revision != 0, RANGE_REVISION)
        | flag(filtered, RANGE_FILTERS));
    out.u8(request.sort_order as u8);
    out.u8(request.sort_target as u8);
    key_range(out, &request.range);
    if request.limit != 0 {
        out.i64(request.limit);
    }
    if request.revision != 0 {
        out.i64(request.revision);
    }
    if filtered {
        filters.iter().for_each(|filter| out.i64(*filter));
    }
}

fn read_range(reader: &mut Reader) -> Result<RangeRequest, DecodeError> {
    let flags = reader.flags(RANGE_FLAGS, "range flags")?;
    let sort_order = match reader.u8("the sort order")? {
        0 => SortOrder::None,
        1 => SortOrder::Ascend,
        2 => SortOrder::Descend,
        order => {
            return Err(DecodeError::Newer {
                what: "sort order",
                value: order.into(),
            });
        }
    };
    let sort_target = match reader.u8("the sort target")? {
        0 => SortTarget::Key,
        1 => SortTarget::Version,
        2 => SortTarget::Create,
        3 => SortTarget::Mod,
        4 => SortTarget::Value,
        target => {
            return Err(DecodeError::Newer {
                what: "sort target",
                value: target.into(),
            });
        }
    };
    let range = read_key_range(reader)?;
    let limit = reader.optional(flags & RANGE_LIMIT != 0, "the limit")?;
    let revision = reader.optional(flags & RANGE_REVISION != 0, "the revision")?;
    let mut filters = [0; 4];
    if flags & RANGE_FILTERS != 0 {
        for filter in &mut filters {
            *filter = reader.i64("a filter")?;
        }
        if filters == [0; 4] {
            return Err(reader.malformed("filters that are off are left out, not written"));
        }
    }
    Ok(RangeRequest {
        range,
        limit,
        revision,
        sort_order,
        sort_target,
        keys_only: flags & RANGE_KEYS_ONLY != 0,
        count_only: flags & RANGE_COUNT_ONLY != 0,
        min_mod_revision: filters[0],
        max_mod_revision: filters[1],
        min_create_revision: filters[2],
        max_create_revision: filters[3],
    })
}

const OP_RANGE: u8 = 1;
const OP_PUT: u8 = 2;
const OP_DELETE_RANGE: u8 = 3;
const OP_TXN: u8 = 4;

/// The smallest operation, a put of nothing: tag, flags, two lengths. (It sizes no allocation of a valid entry.)
const OP_BYTES_MIN: usize = 10;
/// The smallest compare: target, result, two lengths, a length.
const COMPARE_BYTES_MIN: usize = 14;

fn txn(out: &mut impl Sink, request: &TxnRequest) {
    out.list(&request.compare, compare);
    out.list(&request.success, op);
    out.list(&request.failure, op);
}

fn read_txn(reader: &mut Reader, depth: usize) -> Result<TxnRequest, DecodeError> {
    if depth > TXN_DEPTH_MAX {
        return Err(reader.malformed("transactions are nested too deep"));
    }
    Ok(TxnRequest {
        compare: reader.list(COMPARE_BYTES_MIN, "compares", read_compare)?,
        success: reader.list(OP_BYTES_MIN, "operations", |reader| read_op(reader, depth))?,
        failure: reader.list(OP_BYTES_MIN, "operations", |reader| read_op(reader, depth))?,
    })
}

fn op(out: &mut impl Sink, op: &RequestOp) {
    match op {
        RequestOp::Range(request) => {
            out.u8(OP_RANGE);
            range(out, request);
        }
        RequestOp::Put(request) => {
            out.u8(OP_PUT);
            put(out, request);
        }
        RequestOp::DeleteRange(request) => {
            out.u8(OP_DELETE_RANGE);
            delete_range(out, request);
        }
        RequestOp::Txn(request) => {
            out.u8(OP_TXN);
            txn(out, request);
        }
    }
}

fn read_op(reader: &mut Reader, depth: usize) -> Result<RequestOp, DecodeError> {
    Ok(match reader.u8("an operation")? {
        OP_RANGE => RequestOp::Range(read_range(reader)?),
        OP_PUT => RequestOp::Put(read_put(reader)?),
        OP_DELETE_RANGE => RequestOp::DeleteRange(read_delete_range(reader)?),
        OP_TXN => RequestOp::Txn(read_txn(reader, depth + 1)?),
        0 => return Err(reader.malformed("operation 0")),
        tag => {
            return Err(DecodeError::Newer {
                what: "operation",
                value: tag.into(),
            });
        }
    })
}

fn compare(out: &mut impl Sink, compare: &Compare) {
    out.u8(match compare.target {
        CompareTarget::Version(_) => 1,
        CompareTarget::Create(_) => 2,
        CompareTarget::Mod(_) => 3,
        CompareTarget::Value(_) => 4,
        CompareTarget::Lease(_) => 5,
        CompareTarget::LiveKeys(_) => 6,
    });
    out.u8(match compare.result {
        CompareResult::Equal => 1,
        CompareResult::Greater => 2,
        CompareResult::Less => 3,
        CompareResult::NotEqual => 4,
    });
    key_range(out, &compare.range);
    match &compare.target {
        CompareTarget::Version(n)
        | CompareTarget::Create(n)
        | CompareTarget::Mod(n)
        | CompareTarget::Lease(n)
        | CompareTarget::LiveKeys(n) => {
            out.i64(*n);
        }
        CompareTarget::Value(value) => out.bytes(value),
    }
}

fn read_compare(reader: &mut Reader) -> Result<Compare, DecodeError> {
    let target = reader.u8("a compare's target")?;
    let result = match reader.u8("a compare's result")? {
        0 => return Err(reader.malformed("compare result 0")),
        1 => CompareResult::Equal,
        2 => CompareResult::Greater,
        3 => CompareResult::Less,
        4 => CompareResult::NotEqual,
        result => {
            return Err(DecodeError::Newer {
                what: "compare result",
                value: result.into(),
            });
        }
    };
    let range = read_key_range(reader)?;
    let operand = "a compare's operand";
    let target = match target {
        0 => return Err(reader.malformed("compare target 0")),
        1 => CompareTarget::Version(reader.i64(operand)?),
        2 => CompareTarget::Create(reader.i64(operand)?),
        3 => CompareTarget::Mod(reader.i64(operand)?),
        4 => CompareTarget::Value(reader.bytes(operand)?),
        5 => CompareTarget::Lease(reader.i64(operand)?),
        6 => CompareTarget::LiveKeys(reader.i64(operand)?),
        target => {
            return Err(DecodeError::Newer {
                what: "compare target",
                value: target.into(),
            });
        }
    };
    Ok(Compare {
        range,
        result,
        target,
    })
}
