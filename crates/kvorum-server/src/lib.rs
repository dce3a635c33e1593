//! The shell that gives a replica its threads, sockets, files and clock.

// The shell is the seam where time and threads enter.
#![allow(clippy::disallowed_methods)]

pub mod access;
pub mod api;
mod authority;
pub mod budget;
pub mod compat;
pub mod console;
pub mod etcd_options;
pub mod gateway;
mod guard;
pub mod handle;
pub mod http;
pub mod joining;
pub mod local;
pub mod mailbox;
pub mod metrics;
mod names;
pub mod operations;
pub mod options;
pub mod pending;
pub mod rest;
pub mod routes;
pub mod runtime;
pub mod services;
pub mod sockets;
pub mod watching;

pub use access::reads;
pub use options::{Address, Founder, OptionsError, ServeOptions, SurfaceOptions};
