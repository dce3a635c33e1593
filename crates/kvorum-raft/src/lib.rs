//! kvorum's consensus core: Raft after Ongaro's thesis (2014), sans-IO.
pub mod codec;
pub mod interface;
pub mod message;
pub mod types;

pub use codec::{DecodeError, decode_message, encode_message};
pub use interface::*;
pub use message::*;
pub use types::*;
