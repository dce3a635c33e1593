//! kvorum's consensus core: Raft after Ongaro's thesis (2014), sans-IO.
//!
//! [`Raft`] is one member. [`Input`]s with the time go in, [`Effect`]s come out; nothing here knows clocks,
//! disks, sockets, threads, or what an entry's bytes mean. The same state, seed and inputs give the same
//! effects. The rules that it follows have identifiers (EL4, RP10, …): `docs/raft.md` lists them, each with
//! the failure that it prevents and the test that covers it.
//!
//! Rooms: `raft` (the state and one step of it), `election` (the door for messages, terms and votes), `leader`,
//! `replication` and `progress` (the leader's side), `follower`, `membership` and `configuration`, `reads`,
//! `transfer`, `snapshot`, `restart`, `log` and `blocks`, `writes` (the disk and what waits for it), `clock`, `invariants`.

mod blocks;
mod clock;
pub mod codec;
mod configuration;
mod election;
mod follower;
pub mod interface;
mod invariants;
mod leader;
mod log;
mod membership;
pub mod message;
mod progress;
mod raft;
mod reads;
mod replication;
mod restart;
mod snapshot;
mod status;
mod transfer;
pub mod types;
mod writes;

pub use codec::{DecodeError, decode_message, encode_message};
pub use configuration::MEMBERS_MAX;
pub use interface::*;
pub use log::ENTRY_OVERHEAD_BYTES;
pub use membership::founders_entry;
pub use message::*;
pub use raft::Raft;
pub use reads::{CLOCK_ERROR_PPM, READS_MAX};
pub use restart::StartError;
pub use status::{PeerState, PeerStatus, Status};
pub use types::*;
