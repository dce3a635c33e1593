//! One member's life: its directory, its threads, its peers.
//!
//! ```text
//! client port ─▶ mailbox ─▶ replica ─▶ log writer, log reader, applier, peers
//!      ▲                        ▲             │
//!      └── pending ◀── answers ─┴─────────────┘
//! ```

mod announcement;
mod apply_thread;
mod callers;
mod clock;
mod compactor;
mod directory;
mod ending;
mod figures;
mod handshake;
pub(crate) mod identity;
mod introduction;
mod last_answers;
mod leadership;
mod listeners;
mod log_thread;
mod member;
mod node_options;
mod peer_service;
mod peers;
mod replica_thread;
mod restore;
mod roster;
mod serve;
mod snapshots;
mod space;
mod strangers;

pub use directory::{StartError, is_initialized};
pub(crate) use peer_service::PeerService;
pub use replica_thread::End;
pub use restore::{RestoreError, Restored, restore};
pub use serve::{ETCD_VERSION, ServeError, serve};
