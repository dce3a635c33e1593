//! The one queue that the replica's thread waits on: requests of callers, and whatever else its shell feeds it.
//!
//! Sending takes one short lock and wakes the thread only if it sleeps; receiving swaps the whole batch out.
//! So a burst of senders costs the thread one wake and one lock, and what arrives while it works forms the next
//! batch by itself. Requests are bounded (the excess is refused at once); the shell's own inputs are not
//! refused here, each of their sources has a bound of its own.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use kvorum_node::{AdminRequest, LeaseAsk};

/// A write on its way to the replica.
#[derive(Debug)]
pub struct Write {
    /// The caller's number; the envelope's origin sequence.
    pub seq: u64,
    /// The encoded envelope, its time not yet stamped.
    pub command: Bytes,
    /// When the replica should give up what it has not handed on.
    pub deadline: Instant,
}

/// A linearizable read on its way to the replica.
#[derive(Debug)]
pub struct Read {
    /// The caller's number.
    pub id: u64,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// A question about a lease on its way to the replica.
#[derive(Debug)]
pub struct Lease {
    /// The caller's number.
    pub id: u64,
    /// The lease.
    pub lease: i64,
    /// What.
    pub ask: LeaseAsk,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// An administrator's request on its way to the replica.
#[derive(Debug)]
pub struct Admin {
    /// The caller's number.
    pub id: u64,
    /// What.
    pub request: AdminRequest,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// Everything that arrived since the last [`Mailbox::take`]; each kind in the order of its arrival.
#[derive(Debug)]
pub struct Batch<X> {
    /// Writes.
    pub writes: Vec<Write>,
    /// Linearizable reads.
    pub reads: Vec<Read>,
    /// Questions about leases.
    pub leases: Vec<Lease>,
    /// Administrators' requests.
    pub admin: Vec<Admin>,
    /// The shell's own inputs.
    pub others: Vec<X>,
}

impl<X> Default for Batch<X> {
    fn default() -> Self {
        Batch {
            writes: Vec::new(),
            reads: Vec::new(),
            leases: Vec::new(),
            admin: Vec::new(),
            others: Vec::new(),
        }
    }
}

impl<X> Batch<X> {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.reads.is_empty()
            && self.leases.is_empty()
            && self.admin.is_empty()
            && self.others.is_empty()
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.writes.clear();
        self.reads.clear();
        self.leases.clear();
        self.admin.clear();
        self.others.clear();
    }
}

/// Why a request was not taken: too many wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Where callers' requests go; the handle's side of a [`Mailbox`], whatever else that carries.
pub trait Submit: Send + Sync {
    /// Hands a write over.
    fn write(&self, write: Write) -> Result<(), Full>;
    /// Hands a read over.
    fn read(&self, read: Read) -> Result<(), Full>;
    /// Hands a question about a lease over.
    fn lease(&self, lease: Lease) -> Result<(), Full>;
    /// Hands an administrator's request over.
    fn admin(&self, admin: Admin) -> Result<(), Full>;
}

/// See the module.
#[derive(Debug)]
pub struct Mailbox<X> {
    state: Mutex<State<X>>,
    arrived: Condvar,
    requests_max: usize,
}

#[derive(Debug)]
struct State<X> {
    batch: Batch<X>,
    /// The receiver waits for a signal; whoever clears this sends it.
    asleep: bool,
}

impl<X> Mailbox<X> {
    /// A mailbox that holds at most `requests_max` requests of each kind.
    pub fn new(requests_max: usize) -> Self {
        let state = State {
            batch: Batch::default(),
            asleep: false,
        };
        Mailbox {
            state: Mutex::new(state),
            arrived: Condvar::new(),
            requests_max,
        }
    }

    /// Sends one of the shell's own inputs.
    pub fn send(&self, input: X) {
        let mut state = self.lock();
        state.batch.others.push(input);
        self.signal(state);
    }

    /// Sends several of the shell's own inputs at the price of one.
    pub fn send_all(&self, inputs: impl IntoIterator<Item = X>) {
        let mut state = self.lock();
        state.batch.others.extend(inputs);
        self.signal(state);
    }

    /// Waits until something is there, or until `deadline`; swaps all of it into `into`, which must be empty.
    pub fn take(&self, into: &mut Batch<X>, deadline: Instant) {
        assert!(into.is_empty(), "the last batch was not worked off");
        let mut state = self.lock();
        while state.batch.is_empty() {
            let patience = deadline.saturating_duration_since(Instant::now());
            if patience.is_zero() {
                break;
            }
            state.asleep = true;
            state = self
                .arrived
                .wait_timeout(state, patience)
                .expect("no holder of the lock panics")
                .0;
            state.asleep = false;
        }
        std::mem::swap(&mut state.batch, into);
    }

    fn lock(&self) -> MutexGuard<'_, State<X>> {
        self.state.lock().expect("no holder of the lock panics")
    }

    fn signal(&self, mut state: MutexGuard<'_, State<X>>) {
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.arrived.notify_one();
        }
    }
}

impl<X: Send> Submit for Mailbox<X> {
    fn write(&self, write: Write) -> Result<(), Full> {
        let mut state = self.lock();
        if state.batch.writes.len() >= self.requests_max {
            return Err(Full);
        }
        state.batch.writes.push(write);
        self.signal(state);
        Ok(())
    }

    fn read(&self, read: Read) -> Result<(), Full> {
        let mut state = self.lock();
        if state.batch.reads.len() >= self.requests_max {
            return Err(Full);
        }
        state.batch.reads.push(read);
        self.signal(state);
        Ok(())
    }

    fn lease(&self, lease: Lease) -> Result<(), Full> {
        let mut state = self.lock();
        if state.batch.leases.len() >= self.requests_max {
            return Err(Full);
        }
        state.batch.leases.push(lease);
        self.signal(state);
        Ok(())
    }

    fn admin(&self, admin: Admin) -> Result<(), Full> {
        let mut state = self.lock();
        if state.batch.admin.len() >= self.requests_max {
            return Err(Full);
        }
        state.batch.admin.push(admin);
        self.signal(state);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn write(seq: u64) -> Write {
        Write {
            seq,
            command: Bytes::new(),
            deadline: Instant::now(),
        }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn everything_arrives_once_in_order_and_wakes_a_sleeper() {
        let mailbox = Arc::new(Mailbox::<u64>::new(usize::MAX));
        let senders: Vec<_> = (0..4)
            .map(|sender| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || {
                    for n in 0..1000 {
                        match n % 2 {
                            0 => mailbox.send(sender * 1000 + n),
                            _ => mailbox.write(write(sender * 1000 + n)).unwrap(),
                        }
                    }
                })
            })
            .collect();
        let (mut batch, mut seen) = (Batch::default(), Vec::new());
        while seen.len() < 4000 {
            mailbox.take(&mut batch, later());
            assert!(!batch.is_empty(), "woken, or waited thirty seconds, for nothing");
            seen.append(&mut batch.others);
            seen.extend(batch.writes.drain(..).map(|write| write.seq));
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        for parity in 0..2 {
            for sender in 0..4 {
                let of_one = |n: &&u64| **n / 1000 == sender && **n % 2 == parity;
                let order: Vec<u64> = seen.iter().filter(of_one).copied().collect();
                assert!(order.is_sorted() && order.len() == 500);
            }
        }
    }

    #[test]
    fn requests_are_bounded_and_the_shells_own_inputs_are_not() {
        let mailbox = Mailbox::<u64>::new(2);
        assert_eq!(
            [0, 1, 2].map(|n| mailbox.write(write(n))),
            [Ok(()), Ok(()), Err(Full)]
        );
        let read = |id| {
            mailbox.read(Read {
                id,
                deadline: later(),
            })
        };
        assert_eq!([0, 1, 2].map(read), [Ok(()), Ok(()), Err(Full)]);
        mailbox.send_all(0..100);
        let mut batch = Batch::default();
        mailbox.take(&mut batch, later());
        assert_eq!(
            (batch.writes.len(), batch.reads.len(), batch.others.len()),
            (2, 2, 100)
        );
        assert_eq!(mailbox.write(write(3)), Ok(()));
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let mut batch = Batch::<u64>::default();
        Mailbox::new(1).take(&mut batch, Instant::now() + Duration::from_millis(5));
        assert!(batch.is_empty());
    }
}
