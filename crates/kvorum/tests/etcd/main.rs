//! kvorum against the reference: the same requests, and the same `etcdctl` commands, sent to both must be
//! answered alike, field by field, revisions included.
//!
//! The reference is etcd itself (`tools/etcd-ref`). The tests that need it are ignored unless asked for;
//! `tools/etcd-diff/run` builds it and asks for them. What is meant to differ stands, with its reason and a test
//! that it still differs, in [`intended`]; what kvorum does not serve yet in [`unsupported`].
//!
//! - `KVORUM_DIFF_SEED` draws another sequence; `KVORUM_DIFF_STEPS` makes it longer, or cuts it short;
//!   `KVORUM_DIFF_MEMBERS=1` runs it on one member instead of three.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod call;
#[path = "../processes/cluster.rs"]
#[allow(dead_code, reason = "shared with the tests of processes")]
mod cluster;
mod compacted;
mod ctl;
mod gateway;
mod gateway_users;
mod generate;
#[path = "../processes/http.rs"]
mod http;
mod intended;
mod limits;
#[path = "../processes/place.rs"]
#[allow(dead_code, reason = "shared with the tests of processes")]
mod place;
mod place_ctl;
#[path = "../processes/program.rs"]
#[allow(dead_code, reason = "shared with the tests of processes")]
mod program;
mod reference;
mod sequence;
mod unsupported;
mod users;
mod watches;
