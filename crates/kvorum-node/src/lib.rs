//! One replica, assembled from the consensus core, the log, and the state machine, and still sans-IO.
//!
//! [`Node`] is one deterministic event loop: an [`Input`] and the time go in, [`Effect`]s come out. It calls
//! neither disk nor store. [`LogDriver`] and [`ApplyDriver`] execute its effects on them: on threads in the
//! server, inline with scheduled completions in the simulator, the same code in both. Only recovery
//! ([`recovery`]) reads directly.
//!
//! Rooms: `writes` (proposals, forwarding, outcomes), `reads` (the read gate), `leases`
//! (renewals and questions) with `lessor` (when leases end), `membership` (changes, records,
//! promotion), `installs` (received snapshots), `housekeeping` (sessions, compaction, digests), `clock` (cluster time), `wire` (peer messages).

mod apply_driver;
mod clock;
mod housekeeping;
mod installs;
mod interface;
mod leases;
mod lessor;
mod log_driver;
mod membership;
mod node;
mod reads;
pub mod recovery;
mod status;
mod wire;
mod writes;

pub use apply_driver::{Applications, ApplyDriver, ApplyError};
pub use interface::{
    AdminError, AdminReply, AdminRequest, ApplyReport, Effect, Housekeeping, Input, LeaseAnswer, LeaseAsk,
    LeaseCall, Options, Proposal, ReadFailure, ReadRequest, Staged, WriteFailure,
};
pub use log_driver::{LogDriver, LogReader};
pub use node::Node;
pub use status::{NodeStatus, PeerStatus};
pub use wire::{Lane, PeerBody, PeerMessage, WireError};
