//! The client port as its clients see it: real sockets, real tonic clients and raw HTTP, on a replica that is
//! one thread which applies every command at once, or misbehaves as a test wants it to.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod access;
mod auth;
mod cluster;
mod dist_kv;
mod etcd_kv;
mod etcd_range;
mod etcd_watch;
mod gateway;
mod http_port;
mod kv_store;
mod kvorum_v1;
mod learner;
mod maintenance;
mod queue;
mod raft_kv;
mod replica;
mod rest;
mod surfaces;
