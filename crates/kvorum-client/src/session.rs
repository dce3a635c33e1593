//! Sessions: what makes the retry of a write take effect once (thesis §6.3).
//!
//! A session is registered through the log and names its writes by a sequence. The cluster keeps the replies of
//! the last [`WINDOW`] sequences, so a number that may be retried must stay inside: **newest minus oldest
//! unanswered is below [`WINDOW`] in every session**. More writes in flight use more sessions. A session in which
//! a write was given up is retired, because that write's number would block the window for ever.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

/// Sequences of one session whose replies the cluster keeps.
pub(crate) const WINDOW: u64 = 64;
/// Most sessions that one client opens; beyond `SESSIONS_MAX * WINDOW` writes in flight, writes wait.
const SESSIONS_MAX: usize = 256;

#[derive(Debug)]
struct Session {
    id: u64,
    /// The next sequence to give out, from 1 on.
    next: u64,
    unanswered: BTreeSet<u64>,
    retired: bool,
}

impl Session {
    fn has_room(&self) -> bool {
        !self.retired
            && self
                .unanswered
                .first()
                .is_none_or(|oldest| self.next - oldest < WINDOW)
    }
}

#[derive(Debug, Default)]
struct State {
    sessions: Vec<Session>,
    registering: bool,
    unsupported: bool,
}

/// The sessions of one client.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    state: Mutex<State>,
    /// Told whenever room, a registration's end or a failure may let a waiter go on.
    changed: Notify,
}

/// The right to send one write under one number. Dropping it without [`Permit::answered`] retires the session.
#[derive(Debug)]
pub(crate) struct Permit {
    sessions: Arc<Sessions>,
    id: u64,
    seq: u64,
    answered: bool,
}

/// What to do next for a permit.
#[derive(Debug)]
pub(crate) enum Acquired {
    /// Send with this.
    Permit(Permit),
    /// Register a session, then report by [`Sessions::registered`] or [`Registration`]'s drop.
    Register(Registration),
    /// The cluster has no sessions.
    Unsupported,
}

/// The right to register; only one at a time.
#[derive(Debug)]
pub(crate) struct Registration {
    sessions: Arc<Sessions>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }

    /// Waits for room, or for the right to make some.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Acquired {
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut state = self.lock();
                if state.unsupported {
                    return Acquired::Unsupported;
                }
                if let Some(session) = state.sessions.iter_mut().find(|s| s.has_room()) {
                    let seq = session.next;
                    session.next += 1;
                    session.unanswered.insert(seq);
                    return Acquired::Permit(Permit {
                        sessions: self.clone(),
                        id: session.id,
                        seq,
                        answered: false,
                    });
                }
                if !state.registering && state.sessions.len() < SESSIONS_MAX {
                    state.registering = true;
                    return Acquired::Register(Registration {
                        sessions: self.clone(),
                    });
                }
            }
            notified.await;
        }
    }

    fn release(&self, id: u64, seq: u64, answered: bool) {
        let mut state = self.lock();
        if let Some(at) = state.sessions.iter().position(|s| s.id == id) {
            let session = &mut state.sessions[at];
            session.unanswered.remove(&seq);
            session.retired |= !answered;
            if session.retired && session.unanswered.is_empty() {
                state.sessions.swap_remove(at);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Registration {
    /// The cluster opened this session.
    pub(crate) fn registered(self, id: u64) {
        let session = Session {
            id,
            next: 1,
            unanswered: BTreeSet::new(),
            retired: false,
        };
        self.sessions.lock().sessions.push(session);
    }

    /// The cluster does not know sessions.
    pub(crate) fn unsupported(self) {
        self.sessions.lock().unsupported = true;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.sessions.lock().registering = false;
        self.sessions.changed.notify_waiters();
    }
}

impl Permit {
    /// The value of the `kvorum-session` metadata.
    pub(crate) fn metadata(&self) -> String {
        format!("{}-{}", self.id, self.seq)
    }

    /// The write's outcome is known: its number need not be kept.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.sessions.release(self.id, self.seq, self.answered);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// What `acquire` gives at once; `None` if it waits.
    fn acquire(sessions: &Arc<Sessions>) -> Option<Acquired> {
        match pin!(sessions.acquire()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(acquired) => Some(acquired),
            Poll::Pending => None,
        }
    }

    fn register(sessions: &Arc<Sessions>, id: u64) {
        match acquire(sessions) {
            Some(Acquired::Register(registration)) => registration.registered(id),
            other => panic!("expected the right to register, got {other:?}"),
        }
    }

    fn permit(sessions: &Arc<Sessions>) -> Permit {
        match acquire(sessions) {
            Some(Acquired::Permit(permit)) => permit,
            other => panic!("expected a permit, got {other:?}"),
        }
    }

    #[test]
    fn the_window_counts_from_the_oldest_unanswered_number() {
        let sessions = Arc::new(Sessions::default());
        register(&sessions, 7);
        let oldest = permit(&sessions);
        assert_eq!(oldest.metadata(), "7-1");
        for seq in 2..=WINDOW {
            let next = permit(&sessions);
            assert_eq!(next.metadata(), format!("7-{seq}"));
            next.answered();
        }
        // 65 - 1 = 64: the oldest reply would leave the window.
        register(&sessions, 8);
        assert_eq!(permit(&sessions).metadata(), "8-1");
        oldest.answered();
        assert_eq!(permit(&sessions).metadata(), "7-65");
    }

    #[test]
    fn one_registration_at_a_time_and_others_wait() {
        let sessions = Arc::new(Sessions::default());
        let Some(Acquired::Register(first)) = acquire(&sessions) else {
            panic!()
        };
        assert!(acquire(&sessions).is_none());
        drop(first);
        let Some(Acquired::Register(second)) = acquire(&sessions) else {
            panic!()
        };
        second.unsupported();
        assert!(matches!(acquire(&sessions), Some(Acquired::Unsupported)));
    }

    #[test]
    fn a_write_given_up_retires_its_session() {
        let sessions = Arc::new(Sessions::default());
        register(&sessions, 7);
        let (given_up, other) = (permit(&sessions), permit(&sessions));
        drop(given_up);
        register(&sessions, 9);
        let fresh = permit(&sessions);
        assert_eq!(fresh.metadata(), "9-1");
        fresh.answered();
        other.answered();
        assert_eq!(sessions.lock().sessions.len(), 1);
    }
}
