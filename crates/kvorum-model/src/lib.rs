//! The words of kvorum: keys, requests, commands, replies, events, errors and limits, and the versioned
//! encoding of a command.
//!
//! Nothing here does IO, reads a clock, or knows of consensus. The meaning of requests and answers is that of
//! etcd's v3 API (`etcdserverpb`, `mvccpb`); what etcd has no words for is documented where it stands.

mod auth;
mod codec;
mod command;
mod error;
pub mod limits;
mod types;
mod validate;

pub use auth::{Access, AuthCommand, Caller, Permission, ROOT_ROLE, ROOT_USER, Secret};
pub use codec::DecodeError;
pub use command::{
    Alarm, Command, Envelope, LeaseProof, LeaseRemainder, MemberRecord, Origin, Reply, SessionRef, Setting,
};
pub use error::{Error, ErrorKind};
pub use types::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, Event, EventKind,
    KeyRange, KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseOp,
    Revision, SortOrder, SortTarget, TxnRequest, TxnResponse,
};
pub use validate::CommandLimits;
