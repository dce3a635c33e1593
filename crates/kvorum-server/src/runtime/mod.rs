//! One member's life: its directory, its threads, its peers.
//!
//! ```text
//! client port ─▶ mailbox ─▶ replica ─▶ log writer, log reader, applier, peers
//!      ▲                        ▲             │
//!      └── pending ◀── answers ─┴─────────────┘
//! ```

mod announcement;
mod apply_thread;
mod clock;
mod directory;
mod figures;
mod handshake;
mod identity;
mod introduction;
mod leadership;
mod listeners;
mod log_thread;
mod peer_service;
mod peers;
mod replica_thread;
mod restore;
mod serve;
mod snapshots;
mod space;
mod strangers;

pub use directory::StartError;
pub(crate) use peer_service::PeerService;
pub use replica_thread::End;
pub use restore::{RestoreError, Restored, restore};
pub use serve::{ServeError, serve};
