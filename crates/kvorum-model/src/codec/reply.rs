//! Replies and errors, as sessions keep them and as the digest sees them.

use super::DecodeError;
use super::limits::TXN_DEPTH_MAX;
use super::primitive::{Reader, Sink};
use crate::auth::Secret;
use crate::command::Reply;
use crate::error::Error;
use crate::types::{DeleteRangeResponse, KeyValue, PutResponse, RangeResponse, ResponseOp, TxnResponse};

const OK: u8 = 0;
const FAILED: u8 = 1;

const PUT: u8 = 1;
const DELETE_RANGE: u8 = 2;
const TXN: u8 = 3;
const COMPACT: u8 = 4;
const REGISTERED: u8 = 5;
const DONE: u8 = 6;
const LEASE_GRANTED: u8 = 7;
const LEASE_REVOKED: u8 = 8;
const ALARM_SET: u8 = 12;
const AUTHENTICATED: u8 = 13;

pub(super) fn result(out: &mut impl Sink, result: &Result<Reply, Error>) {
    match result {
        Ok(reply) => {
            out.u8(OK);
            self::reply(out, reply);
        }
        Err(error) => {
            out.u8(FAILED);
            self::error(out, error);
        }
    }
}

pub(super) fn read_result(reader: &mut Reader) -> Result<Result<Reply, Error>, DecodeError> {
    match reader.u8("the outcome")? {
        OK => Ok(Ok(read_reply(reader)?)),
        FAILED => Ok(Err(read_error(reader)?)),
        _ => Err(reader.malformed("neither a reply nor an error")),
    }
}

fn reply(out: &mut impl Sink, reply: &Reply) {
    match reply {
        Reply::Put(response) => {
            out.u8(PUT);
            put(out, response);
        }
        Reply::DeleteRange(response) => {
            out.u8(DELETE_RANGE);
            delete_range(out, response);
        }
        Reply::Txn(response) => {
            out.u8(TXN);
            txn(out, response);
        }
        Reply::Compact => out.u8(COMPACT),
        Reply::Registered(id) => {
            out.u8(REGISTERED);
            out.u64(*id);
        }
        Reply::LeaseGranted { id, ttl_s } => {
            out.u8(LEASE_GRANTED);
            out.i64(*id);
            out.i64(*ttl_s);
        }
        Reply::LeaseRevoked => out.u8(LEASE_REVOKED),
        Reply::Done => out.u8(DONE),
        Reply::AlarmSet(before) => {
            out.u8(ALARM_SET);
            out.u8((*before).into());
        }
        Reply::Authenticated(token) => {
            out.u8(AUTHENTICATED);
            out.bytes(&token.0);
        }
    }
}

fn read_reply(reader: &mut Reader) -> Result<Reply, DecodeError> {
    Ok(match reader.u8("the reply")? {
        PUT => Reply::Put(read_put(reader)?),
        DELETE_RANGE => Reply::DeleteRange(read_delete_range(reader)?),
        TXN => Reply::Txn(read_txn(reader, 1)?),
        COMPACT => Reply::Compact,
        REGISTERED => Reply::Registered(reader.u64("the session")?),
        DONE => Reply::Done,
        LEASE_GRANTED => Reply::LeaseGranted {
            id: reader.i64("the lease")?,
            ttl_s: reader.i64("its TTL")?,
        },
        LEASE_REVOKED => Reply::LeaseRevoked,
        ALARM_SET => Reply::AlarmSet(reader.flags(1, "alarm reply flags")? != 0),
        AUTHENTICATED => Reply::Authenticated(Secret(reader.bytes("a token")?)),
        0 => return Err(reader.malformed("reply 0")),
        tag => {
            return Err(DecodeError::Newer {
                what: "reply",
                value: tag.into(),
            });
        }
    })
}

/// The smallest record: two lengths and four numbers.
const KEY_VALUE_BYTES_MIN: usize = 40;

fn key_value(out: &mut impl Sink, kv: &KeyValue) {
    out.bytes(&kv.key);
    out.i64(kv.create_revision);
    out.i64(kv.mod_revision);
    out.i64(kv.version);
    out.i64(kv.lease);
    out.bytes(&kv.value);
}

fn read_key_value(reader: &mut Reader) -> Result<KeyValue, DecodeError> {
    Ok(KeyValue {
        key: reader.bytes("a key")?,
        create_revision: reader.i64("a revision")?,
        mod_revision: reader.i64("a revision")?,
        version: reader.i64("a version")?,
        lease: reader.i64("a lease")?,
        value: reader.bytes("a value")?,
    })
}

fn put(out: &mut impl Sink, response: &PutResponse) {
    out.u8(response.prev_kv.is_some().into());
    if let Some(kv) = &response.prev_kv {
        key_value(out, kv);
    }
}

fn read_put(reader: &mut Reader) -> Result<PutResponse, DecodeError> {
    let present = reader.flags(1, "put reply flags")? != 0;
    Ok(PutResponse {
        prev_kv: present.then(|| read_key_value(reader)).transpose()?,
    })
}

fn delete_range(out: &mut impl Sink, response: &DeleteRangeResponse) {
    out.i64(response.deleted);
    out.list(&response.prev_kvs, key_value);
}

fn read_delete_range(reader: &mut Reader) -> Result<DeleteRangeResponse, DecodeError> {
    Ok(DeleteRangeResponse {
        deleted: reader.i64("a count")?,
        prev_kvs: reader.list(KEY_VALUE_BYTES_MIN, "records", read_key_value)?,
    })
}

fn range(out: &mut impl Sink, response: &RangeResponse) {
    out.u8(response.more.into());
    out.i64(response.count);
    out.list(&response.kvs, key_value);
}

fn read_range(reader: &mut Reader) -> Result<RangeResponse, DecodeError> {
    Ok(RangeResponse {
        more: reader.flags(1, "range reply flags")? != 0,
        count: reader.i64("a count")?,
        kvs: reader.list(KEY_VALUE_BYTES_MIN, "records", read_key_value)?,
    })
}

fn txn(out: &mut impl Sink, response: &TxnResponse) {
    out.u8(response.succeeded.into());
    out.list(&response.responses, op);
}

fn read_txn(reader: &mut Reader, depth: usize) -> Result<TxnResponse, DecodeError> {
    if depth > TXN_DEPTH_MAX {
        return Err(reader.malformed("transactions are nested too deep"));
    }
    Ok(TxnResponse {
        succeeded: reader.flags(1, "transaction reply flags")? != 0,
        responses: reader.list(2, "responses", |reader| read_op(reader, depth))?,
    })
}

fn op(out: &mut impl Sink, op: &ResponseOp) {
    match op {
        ResponseOp::Range(response) => {
            out.u8(1);
            range(out, response);
        }
        ResponseOp::Put(response) => {
            out.u8(2);
            put(out, response);
        }
        ResponseOp::DeleteRange(response) => {
            out.u8(3);
            delete_range(out, response);
        }
        ResponseOp::Txn(response) => {
            out.u8(4);
            txn(out, response);
        }
    }
}

fn read_op(reader: &mut Reader, depth: usize) -> Result<ResponseOp, DecodeError> {
    Ok(match reader.u8("a response")? {
        1 => ResponseOp::Range(read_range(reader)?),
        2 => ResponseOp::Put(read_put(reader)?),
        3 => ResponseOp::DeleteRange(read_delete_range(reader)?),
        4 => ResponseOp::Txn(read_txn(reader, depth + 1)?),
        0 => return Err(reader.malformed("response 0")),
        tag => {
            return Err(DecodeError::Newer {
                what: "response",
                value: tag.into(),
            });
        }
    })
}

const KEY_TOO_LARGE: u8 = 2;
const NAME_TOO_LARGE: u8 = 34;

/// The numbers of the errors that carry nothing. Never reused.
const ERRORS: [(u8, Error); 36] = [
    (1, Error::EmptyKey),
    (3, Error::KeyNotFound),
    (4, Error::ValueProvided),
    (5, Error::LeaseProvided),
    (6, Error::TooManyOps),
    (7, Error::DuplicateKey),
    (8, Error::RequestTooLarge),
    (9, Error::InvalidSortOption),
    (10, Error::Compacted),
    (11, Error::FutureRevision),
    (12, Error::LeaseNotFound),
    (13, Error::SessionExpired),
    (14, Error::SessionMismatch),
    (15, Error::TooManySessions),
    (16, Error::NoSpace),
    (17, Error::Skipped),
    (18, Error::LeaseExists),
    (19, Error::LeaseTtlTooLarge),
    (24, Error::Corrupt),
    (32, Error::UserEmpty),
    (33, Error::RoleEmpty),
    (35, Error::AuthenticationFailed),
    (36, Error::PermissionNotGiven),
    (37, Error::InvalidAuthManagement),
    (38, Error::OldAuthRevision),
    (39, Error::RootUserNotFound),
    (40, Error::RootRoleNotGranted),
    (41, Error::UserExists),
    (42, Error::UserNotFound),
    (43, Error::RoleExists),
    (44, Error::RoleNotFound),
    (45, Error::RoleNotGranted),
    (46, Error::PermissionNotGranted),
    (47, Error::AuthNotEnabled),
    (48, Error::PermissionDenied),
    (49, Error::InvalidToken),
];

fn error(out: &mut impl Sink, error: &Error) {
    if let Error::KeyTooLarge { bytes, max } | Error::NameTooLarge { bytes, max } = error {
        let is_key = matches!(error, Error::KeyTooLarge { .. });
        out.u8(if is_key { KEY_TOO_LARGE } else { NAME_TOO_LARGE });
        out.u64(*bytes);
        out.u64(*max);
        return;
    }
    let (code, _) = ERRORS
        .iter()
        .find(|(_, known)| known == error)
        .expect("every error has a number");
    out.u8(*code);
}

fn read_error(reader: &mut Reader) -> Result<Error, DecodeError> {
    match reader.u8("the error")? {
        KEY_TOO_LARGE => Ok(Error::KeyTooLarge {
            bytes: reader.u64("a length")?,
            max: reader.u64("a limit")?,
        }),
        NAME_TOO_LARGE => Ok(Error::NameTooLarge {
            bytes: reader.u64("a length")?,
            max: reader.u64("a limit")?,
        }),
        0 => Err(reader.malformed("error 0")),
        code => match ERRORS.iter().find(|(known, _)| *known == code) {
            Some((_, error)) => Ok(error.clone()),
            None => Err(DecodeError::Newer {
                what: "error",
                value: code.into(),
            }),
        },
    }
}
