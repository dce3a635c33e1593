//! The last answers of a member that drains: a little before its time is over it answers who still waits. They hear
//! what became of their requests, and do not find the connection gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvorum_node::Input;

use super::peers::Inbox;
use crate::pending::Pending;

/// Longest time that the answers have to reach their callers.
const MARGIN_MAX: Duration = Duration::from_millis(500);
/// Between the replica's last answers and the end of all other waits.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// How long before the end of a drain the last answers are given.
pub(crate) fn margin(drain_timeout: Duration) -> Duration {
    MARGIN_MAX.min(drain_timeout / 4)
}

/// Ends all waits at this time: what the replica holds was not applied, of the rest nobody knows.
pub(crate) async fn give(at: Instant, inbox: Inbox, pending: Arc<Pending>) {
    tokio::time::sleep_until(at.into()).await;
    inbox(Input::Stopping);
    tokio::time::sleep(LAST_WORDS).await;
    pending.close();
}
