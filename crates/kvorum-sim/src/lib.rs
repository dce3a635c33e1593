//! Whole clusters in one thread, on simulated clock, network, disk and randomness.
//!
//! A [`Plan`] names a seed; [`run`] plays the world that follows from it: three to seven whole replicas
//! ([`kvorum_node`]), each with a log on a simulated disk and the production state machine on a simulated store,
//! clients and watchers, and faults of all kinds. Then everything is healed, the members must agree within a
//! simulated minute, and what the clients and watchers saw goes to the checkers of [`kvorum_check`].
//!
//! The same seed gives the same trace, byte for byte: one queue of events ordered by time and number, one source
//! of randomness, no other clock, no threads, no iteration over hash maps. `docs/testing.md` says how to run many
//! seeds and how to read one that failed.
//!
//! Rooms: `world` (phases, judgement), `env` (events, time, weather), `network`, `host` (a machine), `process` (what
//! a crash ends) with `storage` and `transfer`, `clients`, `lessees`
//! (leases), `watchers`, `nemesis` (faults, administration), `profile`
//! (what a seed draws), `truth` (what must hold between members at all times), `marks`, `bugs`, `trace`.

mod bugs;
mod clients;
mod describe;
mod env;
mod host;
mod lessees;
mod marks;
mod nemesis;
mod network;
mod process;
mod profile;
mod random;
mod storage;
mod trace;
mod transfer;
mod truth;
mod watchers;
mod world;

pub use bugs::Bug;
pub use marks::{Mark, Marks};
pub use world::{CONVERGENCE_MAX, Plan, Report, run, run_all};
