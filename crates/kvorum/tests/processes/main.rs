//! Real processes on loopback with their data on a real file system, killed with kill -9: what only shows
//! where operating system, sockets and files are not simulated.
//!
//! `KVORUM_TEST_BINARY` names another program to test than the one that Cargo built, a release build for
//! instance; `KVORUM_TEST_SEED` draws other members to kill. The tests take turns: two clusters on one small
//! machine would only measure each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod cluster;
mod damage;
mod dashboards;
mod demo;
mod etcd_place;
mod http;
mod import;
mod joining;
mod kill_cycles;
mod leases;
mod load;
mod one_member;
mod place;
mod program;
mod removal;
mod replaced;
mod replacement;
mod restore;
mod stop;
mod strangers;
mod surfaces;
mod turns;
mod unknown;
mod users;
mod users_clients;
