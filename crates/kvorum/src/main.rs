//! The program `kvorum`: argv, the merged configuration, signals, exit codes.
//!
//! `serve` runs a member, `demo` a whole cluster on this machine, `bench` measures one; all other commands are
//! clients. Whatever fails says so in one line on stderr and by the exit code (see [`failure`]).

// This is the outermost shell: the clock, the threads and the waiting of a real process are its business.
#![allow(clippy::disallowed_methods)]

mod bench;
mod cli;
mod config;
mod demo;
mod etcd;
mod failure;
mod serve;
mod start;
mod units;
mod verbs;

use std::process::ExitCode;

/// Memory is taken by one thread and freed by another all the time here: an entry by the replica and the log's writer, a
/// memtable by the applier and the store's. See docs/adr/0006.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = start::arguments(std::env::args_os().collect(), start::is_set);
    let outcome = match cli::parse(args) {
        Ok(command) => cli::run(command),
        Err(exit) => return exit,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
