//! The shell that gives a replica its threads, sockets, files and clock.

pub mod options;

pub use options::{Address, Founder, OptionsError, ServeOptions};
