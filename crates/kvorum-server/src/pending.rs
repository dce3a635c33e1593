//! The callers that wait for the replica, and the way its answers take back to them.
//!
//! The table is cut into shards, one for each worker thread of the server, so that callers of different workers
//! share nothing. The replica's threads put answers, many at a time, into the shards' inboxes and ring each
//! shard's bell once; the shard's dispatcher, a task on the shard's own worker, hands them out there, where
//! waking a task costs no system call. The dispatcher also ends the waits whose deadline has passed.
//!
//! Invariants: every registered wait ends in exactly one answer, or by its caller going away, which removes it.
//! An answer that nobody waits for any more is dropped. After [`Pending::close`] nobody waits.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use kvorum_mvcc::Applied;
use kvorum_node::{AdminError, AdminReply, LeaseAnswer, ReadFailure};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use crate::handle::{ReadError, WriteError};

/// How often deadlines are looked at, while somebody waits.
const TICK: Duration = Duration::from_millis(20);
/// After so many ticks with nobody waiting the dispatcher stops ticking.
const IDLE_TICKS: u32 = 50;

thread_local! {
    /// The shard of the worker that this thread is.
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// Makes this thread the worker whose callers register in this shard.
pub fn set_worker(shard: usize) {
    WORKER.set(shard);
}

/// What a caller waits for.
#[derive(Debug)]
pub(crate) enum Answer {
    Write(Result<Applied, WriteError>),
    Read(Result<(), ReadError>),
    Lease(Result<LeaseAnswer, ReadError>),
    Admin(Result<AdminReply, AdminError>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Write,
    Read,
    Lease,
    Admin,
}

impl Kind {
    fn timed_out(self) -> Answer {
        match self {
            Kind::Write => Answer::Write(Err(WriteError::TimedOut)),
            Kind::Read => Answer::Read(Err(ReadError::TimedOut)),
            Kind::Lease => Answer::Lease(Err(ReadError::TimedOut)),
            Kind::Admin => Answer::Admin(Err(AdminError::TimedOut)),
        }
    }

    fn stopped(self) -> Answer {
        match self {
            Kind::Write => Answer::Write(Err(WriteError::StoppedInFlight)),
            Kind::Read => Answer::Read(Err(ReadError::Stopped)),
            Kind::Lease => Answer::Lease(Err(ReadError::Stopped)),
            Kind::Admin => Answer::Admin(Err(AdminError::Unknown)),
        }
    }
}

/// Why nobody may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
}

#[derive(Debug)]
struct Slot {
    kind: Kind,
    deadline: Instant,
    waker: Option<Waker>,
    answer: Option<Answer>,
}

#[derive(Debug, Default)]
struct Waiters {
    slots: FxHashMap<u64, Slot>,
    next: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shard {
    waiters: Mutex<Waiters>,
    inbox: Mutex<Vec<(u64, Answer)>>,
    bell: Notify,
    /// Whether the dispatcher looks at the deadlines; if not, a new waiter rings.
    ticking: AtomicBool,
}

/// See the module.
#[derive(Debug)]
pub struct Pending {
    shards: Box<[Shard]>,
    /// Most waits in one shard.
    waits_max: usize,
}

impl Pending {
    /// A table for `shards` workers that holds at most `waits_max` waits in all.
    pub fn new(shards: usize, waits_max: usize) -> Self {
        assert!(shards > 0, "somebody must hand the answers out");
        let waits_max = waits_max.div_ceil(shards);
        Pending {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            waits_max,
        }
    }

    /// How many shards, and so dispatchers, there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// How many callers wait.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.waiters().slots.len()).sum()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets the calling task wait. Its number is unique in this process and never 0.
    pub(crate) fn register(&self, kind: Kind, deadline: Instant) -> Result<Wait<'_>, Refusal> {
        let index = WORKER.get() % self.shards.len();
        let shard = &self.shards[index];
        let mut waiters = shard.waiters();
        if waiters.closed {
            return Err(Refusal::Closed);
        }
        if waiters.slots.len() >= self.waits_max {
            return Err(Refusal::Full);
        }
        waiters.next += 1;
        let id = waiters.next * self.shards.len() as u64 + index as u64;
        waiters.slots.insert(
            id,
            Slot {
                kind,
                deadline,
                waker: None,
                answer: None,
            },
        );
        drop(waiters);
        if !shard.ticking.load(Ordering::Relaxed) {
            shard.bell.notify_one();
        }
        Ok(Wait {
            shard,
            id,
            over: false,
        })
    }

    /// Answers writes of this member and boot with what applying them gave.
    pub fn complete(&self, applied: impl IntoIterator<Item = Applied>) {
        self.deliver(
            applied
                .into_iter()
                .map(|applied| (applied.origin.seq, Answer::Write(Ok(applied)))),
        );
    }

    /// Fails writes.
    pub fn fail_writes(&self, seqs: &[u64], why: WriteError) {
        self.deliver(seqs.iter().map(|&seq| (seq, Answer::Write(Err(why.clone())))));
    }

    /// A view of the state taken from now on serves these reads.
    pub fn reads_ready(&self, ids: &[u64]) {
        self.deliver(ids.iter().map(|&id| (id, Answer::Read(Ok(())))));
    }

    /// Fails reads.
    pub fn fail_reads(&self, ids: &[u64], why: ReadError) {
        self.deliver(ids.iter().map(|&id| (id, Answer::Read(Err(why)))));
    }

    /// Answers questions about leases.
    pub fn leases_done(&self, done: Vec<(u64, Result<LeaseAnswer, ReadFailure>)>) {
        self.deliver(
            done.into_iter()
                .map(|(id, answer)| (id, Answer::Lease(answer.map_err(ReadError::from)))),
        );
    }

    /// Answers an administrator.
    pub fn admin_done(&self, id: u64, result: Result<AdminReply, AdminError>) {
        self.deliver([(id, Answer::Admin(result))]);
    }

    /// Ends all waits, and refuses new ones: the replica is gone.
    pub fn close(&self) {
        for shard in &self.shards {
            let mut waiters = shard.waiters();
            waiters.closed = true;
            let open = waiters.slots.iter().filter(|(_, slot)| slot.answer.is_none());
            let answers: Vec<_> = open.map(|(id, slot)| (*id, slot.kind.stopped())).collect();
            drop(waiters);
            shard.inbox().extend(answers);
            shard.bell.notify_one();
        }
    }

    fn deliver(&self, answers: impl IntoIterator<Item = (u64, Answer)>) {
        // All inboxes at once, in their order: there are as many as processors, and they are held briefly.
        let mut inboxes: Vec<_> = self.shards.iter().map(|shard| (shard.inbox(), false)).collect();
        for (id, answer) in answers {
            let (inbox, used) = &mut inboxes[(id % self.shards.len() as u64) as usize];
            inbox.push((id, answer));
            *used = true;
        }
        for (shard, (inbox, used)) in self.shards.iter().zip(inboxes) {
            drop(inbox);
            if used {
                shard.bell.notify_one();
            }
        }
    }

    /// Hands the answers of one shard out, for ever: a task on the worker whose shard it is.
    pub async fn dispatch(&self, shard: usize) {
        let shard = &self.shards[shard];
        let (mut batch, mut wakers) = (Vec::new(), Vec::new());
        let mut idle_ticks = 0;
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ticking = shard.ticking.load(Ordering::Relaxed);
            tokio::select! {
                biased;
                () = shard.bell.notified() => {
                    if !ticking {
                        shard.ticking.store(true, Ordering::Relaxed);
                        clock.reset();
                    }
                }
                _ = clock.tick(), if ticking => {
                    let waiting = shard.expire(Instant::now(), &mut wakers);
                    idle_ticks = if waiting { 0 } else { idle_ticks + 1 };
                    shard.ticking.store(idle_ticks < IDLE_TICKS, Ordering::Relaxed);
                    // A caller that registered just now may have seen it still ticking.
                    if idle_ticks == IDLE_TICKS && !shard.waiters().slots.is_empty() {
                        shard.ticking.store(true, Ordering::Relaxed);
                    }
                }
            }
            std::mem::swap(&mut *shard.inbox(), &mut batch);
            shard.hand_out(&mut batch, &mut wakers);
            wakers.drain(..).for_each(Waker::wake);
        }
    }
}

impl Shard {
    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().expect("no holder of the lock panics")
    }

    fn inbox(&self) -> MutexGuard<'_, Vec<(u64, Answer)>> {
        self.inbox.lock().expect("no holder of the lock panics")
    }

    fn hand_out(&self, batch: &mut Vec<(u64, Answer)>, wakers: &mut Vec<Waker>) {
        if batch.is_empty() {
            return;
        }
        let mut waiters = self.waiters();
        for (id, answer) in batch.drain(..) {
            // The first answer counts: a timeout that came before the reply was told to nobody yet, but the
            // reply that comes after a failure must not turn it into a success half seen.
            if let Some(slot) = waiters.slots.get_mut(&id).filter(|slot| slot.answer.is_none()) {
                slot.answer = Some(answer);
                wakers.extend(slot.waker.take());
            }
        }
    }

    /// Ends the waits that are over time; whether anybody waits at all.
    fn expire(&self, now: Instant, wakers: &mut Vec<Waker>) -> bool {
        let mut waiters = self.waiters();
        for slot in waiters.slots.values_mut() {
            if slot.deadline <= now && slot.answer.is_none() {
                slot.answer = Some(slot.kind.timed_out());
                wakers.extend(slot.waker.take());
            }
        }
        !waiters.slots.is_empty()
    }
}

/// One caller's wait. Dropped, it leaves the table.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    shard: &'a Shard,
    id: u64,
    over: bool,
}

impl Wait<'_> {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl Future for Wait<'_> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let mut waiters = self.shard.waiters();
        let slot = waiters.slots.get_mut(&self.id).expect("polled after its end");
        if let Some(answer) = slot.answer.take() {
            waiters.slots.remove(&self.id);
            drop(waiters);
            self.over = true;
            return Poll::Ready(answer);
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => slot.waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.shard.waiters().slots.remove(&self.id);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Runs `test` beside the dispatchers of a table.
    fn with_table<F: Future>(
        shards: usize,
        waits_max: usize,
        test: impl FnOnce(Arc<Pending>) -> F,
    ) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let table = Arc::new(Pending::new(shards, waits_max));
        runtime.block_on(async {
            for shard in 0..shards {
                let table = table.clone();
                tokio::spawn(async move { table.dispatch(shard).await });
            }
            test(table).await
        })
    }

    fn soon(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    fn is_read(answer: &Answer, expected: Result<(), ReadError>) -> bool {
        matches!(answer, Answer::Read(result) if *result == expected)
    }

    #[test]
    fn answers_find_their_callers_on_every_shard() {
        with_table(3, 100, async |table| {
            let waits: Vec<_> = (0..9)
                .map(|n| {
                    set_worker(n);
                    table.register(Kind::Read, soon(60_000)).unwrap()
                })
                .collect();
            let ids: Vec<u64> = waits.iter().map(Wait::id).collect();
            let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
            assert_eq!((distinct.len(), table.len()), (9, 9));
            table.reads_ready(&ids[..8]);
            // An answer for nobody, and a second one, change nothing.
            table.reads_ready(&[7777]);
            table.fail_reads(&ids[8..], ReadError::Overloaded);
            table.reads_ready(&ids[8..]);
            for (n, wait) in waits.into_iter().enumerate() {
                let expected = if n < 8 { Ok(()) } else { Err(ReadError::Overloaded) };
                assert!(is_read(&wait.await, expected));
            }
            assert!(table.is_empty());
        });
    }

    #[test]
    fn a_deadline_is_kept_whether_the_dispatcher_ticks_or_sleeps() {
        with_table(1, 100, async |table| {
            for _ in 0..2 {
                let started = Instant::now();
                let answer = table.register(Kind::Write, soon(30)).unwrap().await;
                assert!(matches!(answer, Answer::Write(Err(WriteError::TimedOut))));
                assert!(started.elapsed() >= Duration::from_millis(30));
                // Nobody waits: after a while the dispatcher does not tick any more.
                let deadline = soon(20_000);
                while table.shards[0].ticking.load(Ordering::Relaxed) {
                    assert!(Instant::now() < deadline, "the dispatcher ticks for nobody");
                    tokio::time::sleep(TICK).await;
                }
            }
        });
    }

    #[test]
    fn one_wait_more_than_allowed_is_refused_until_one_goes() {
        with_table(1, 2, async |table| {
            let first = table.register(Kind::Read, soon(60_000)).unwrap();
            let _second = table.register(Kind::Read, soon(60_000)).unwrap();
            assert_eq!(
                table.register(Kind::Read, soon(60_000)).err(),
                Some(Refusal::Full)
            );
            drop(first);
            assert!(table.register(Kind::Read, soon(60_000)).is_ok());
        });
    }

    #[test]
    fn after_the_close_nobody_waits() {
        with_table(2, 100, async |table| {
            let write = table.register(Kind::Write, soon(60_000)).unwrap();
            let admin = table.register(Kind::Admin, soon(60_000)).unwrap();
            table.close();
            assert!(matches!(
                write.await,
                Answer::Write(Err(WriteError::StoppedInFlight))
            ));
            assert!(matches!(admin.await, Answer::Admin(Err(AdminError::Unknown))));
            assert_eq!(
                table.register(Kind::Read, soon(60_000)).err(),
                Some(Refusal::Closed)
            );
        });
    }
}
