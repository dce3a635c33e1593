//! Where superseded states go to be freed.
//!
//! The last holder of a superseded state frees a memtable of a hundred thousand entries and unlinks dead table
//! files: milliseconds that a reader should not pay because it happened to be the last. While the store is open
//! a thread does it. Once it is closed everybody frees for themselves, so that nothing is left when the last
//! view has ended.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::fault::Fault;
use super::lock;
use super::workers::step_back;

/// Something whose drop takes long.
type Heavy = Box<dyn Send>;

pub(super) struct Graveyard {
    open: Mutex<Option<Sender<Heavy>>>,
}

impl Graveyard {
    /// Starts the thread; it ends after [`close`](Self::close).
    pub(super) fn start() -> Result<(Arc<Self>, JoinHandle<()>), Fault> {
        let (sender, receiver) = mpsc::channel::<Heavy>();
        let thread = thread::Builder::new()
            .name("store-free".into())
            .spawn(move || {
                step_back();
                receiver.into_iter().for_each(drop);
            })
            .map_err(|error| Fault::io("starting a thread of the store", &error))?;
        Ok((
            Arc::new(Self {
                open: Mutex::new(Some(sender)),
            }),
            thread,
        ))
    }

    /// Frees it, now or soon.
    pub(super) fn bury(&self, heavy: impl Send + 'static) {
        let sender = lock(&self.open).clone();
        if let Some(sender) = sender {
            // Closed in between: it comes back in the error and is freed here.
            let _ = sender.send(Box::new(heavy));
        }
    }

    /// From now on what is buried is freed at once; the thread ends when it has freed the rest.
    pub(super) fn close(&self) {
        lock(&self.open).take();
    }
}
