//! How a member ends: its threads, any of which may be the reason.
//!
//! The first reason that is told counts. A thread that panics tells it, too; none goes in silence.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use super::directory::StartError;
use super::replica_thread::End;

/// Tells the member's end, once: the first reason counts.
#[derive(Clone)]
pub(super) struct Ending(pub(super) Arc<watch::Sender<Option<End>>>);

impl Ending {
    pub(super) fn tell(&self, end: End) {
        self.0.send_if_modified(|told| {
            let first = told.is_none();
            if first {
                *told = Some(end);
            }
            first
        });
    }
}

/// Starts a thread whose end, wanted or not, is told. A panic is an end, too.
pub(super) fn thread(
    name: &str,
    ending: &Ending,
    run: impl FnOnce() -> Option<End> + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let (ending, name) = (ending.clone(), name.to_owned());
    let named = name.clone();
    let body = move || match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(Some(end)) => ending.tell(end),
        Ok(None) => {}
        Err(_) => ending.tell(End::Fatal(format!(
            "its thread `{named}` panicked; the message stands above"
        ))),
    };
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .map_err(StartError::other)
}
