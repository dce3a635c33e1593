//! Moves the watch hub of [`kvorum_mvcc::watch`]: one thread takes new revisions from the applier and requests
//! from the streams, and gives each stream what is for it, no faster than its client reads.
//!
//! - The applier never waits for watchers. If the thread falls behind by more than [`BACKLOG_BYTES_MAX`], what
//!   waits is dropped and the hub is told to read it from history instead.
//! - A stream holds at most one batch beside what the hub holds for it (bounded there); the next is taken when
//!   the stream asks. A client that sends requests without reading answers is not read any further.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kvorum_model::{Event, Revision};
use kvorum_mvcc::watch::{CatchUpBudget, Hub, HubOptions, StreamId, WatchOutput, WatchRequest};
use kvorum_mvcc::{ReadError, Reader, RevisionEvents, Store, StoreError};
use tokio::sync::{Semaphore, mpsc};

use crate::access::MayWatch;
use crate::metrics::Metrics;

/// Bytes of unpublished events in the queue to the hub.
const BACKLOG_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Requests of one stream on their way to the hub.
const STREAM_REQUESTS_MAX: usize = 128;
/// Most watchers on one stream.
pub const STREAM_WATCHERS_MAX: usize = 65_536;
/// What is told to a watcher beyond that.
const TOO_MANY_WATCHERS: &str = "kvorum: too many watchers on one stream; open another";

/// Something that a stream asks for.
#[derive(Debug)]
enum Request {
    Open(mpsc::Sender<Vec<WatchOutput>>, Arc<Gauge>),
    Create(WatchRequest),
    /// Somebody who may not watch asked; the error's text.
    Refuse(String),
    Cancel(i64),
    Progress,
    /// The client took what it was given; more may come.
    Ready,
    Close,
}

/// What stream and thread share.
#[derive(Debug)]
struct Gauge {
    /// The thread has more for the stream than it can take.
    wants_ready: AtomicBool,
    /// How many requests the stream may send.
    requests: Semaphore,
}

#[derive(Debug, Default)]
struct Queue {
    revisions: Vec<RevisionEvents>,
    revision_bytes: usize,
    /// The hub must read everything up to here from history.
    reset_to: Option<Revision>,
    requests: Vec<(u64, Request)>,
    asleep: bool,
    stopped: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    next_stream: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of the lock panics")
    }

    fn signal(&self, mut queue: MutexGuard<'_, Queue>) {
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.arrived.notify_one();
        }
    }

    fn request(&self, stream: u64, request: Request) {
        let mut queue = self.lock();
        if !queue.stopped {
            queue.requests.push((stream, request));
            self.signal(queue);
        }
    }
}

/// The way to the hub. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WatchHandle(Arc<Shared>);

impl WatchHandle {
    /// New revisions, each once and in order, after they became visible to readers and before their writers are
    /// answered.
    pub fn publish(&self, revisions: Vec<RevisionEvents>) {
        let Some(last) = revisions.last().map(|last| last.revision) else {
            return;
        };
        let bytes = |revision: &RevisionEvents| revision.events.iter().map(event_bytes).sum::<usize>();
        let mut queue = self.0.lock();
        queue.revision_bytes += revisions.iter().map(bytes).sum::<usize>();
        if queue.revision_bytes > BACKLOG_BYTES_MAX {
            queue.revisions.clear();
            queue.revision_bytes = 0;
            queue.reset_to = Some(last);
        } else {
            queue.revisions.extend(revisions);
        }
        self.0.signal(queue);
    }

    /// The state was replaced by a snapshot of this revision.
    pub fn reset(&self, revision: Revision) {
        let mut queue = self.0.lock();
        queue.revisions.clear();
        queue.revision_bytes = 0;
        queue.reset_to = Some(revision);
        self.0.signal(queue);
    }

    /// Ends [`WatchDriver::run`], and with it all streams.
    pub fn stop(&self) {
        let mut queue = self.0.lock();
        queue.stopped = true;
        self.0.signal(queue);
    }

    /// A new stream.
    pub(crate) fn open(&self) -> (StreamRequests, StreamAnswers) {
        let id = self.0.next_stream.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(1);
        let gauge = Gauge {
            wants_ready: AtomicBool::new(false),
            requests: Semaphore::new(STREAM_REQUESTS_MAX),
        };
        let gauge = Arc::new(gauge);
        self.0.request(id, Request::Open(sender, gauge.clone()));
        let requests = StreamRequests {
            id,
            shared: self.0.clone(),
            gauge: gauge.clone(),
        };
        (
            requests,
            StreamAnswers {
                id,
                shared: self.0.clone(),
                gauge,
                receiver,
            },
        )
    }
}

/// What an event weighs while it waits for the hub; shared buffers count each time.
fn event_bytes(event: &Event) -> usize {
    let previous = event
        .prev_kv
        .as_ref()
        .map_or(0, |kv| kv.key.len() + kv.value.len());
    event.kv.key.len() + event.kv.value.len() + previous + size_of::<Event>()
}

/// A stream's way to ask.
#[derive(Debug)]
pub(crate) struct StreamRequests {
    id: u64,
    shared: Arc<Shared>,
    gauge: Arc<Gauge>,
}

impl StreamRequests {
    pub(crate) async fn create(&self, _: MayWatch, request: WatchRequest) {
        self.send(Request::Create(request)).await;
    }

    pub(crate) async fn refuse(&self, reason: String) {
        self.send(Request::Refuse(reason)).await;
    }

    pub(crate) async fn cancel(&self, watch_id: i64) {
        self.send(Request::Cancel(watch_id)).await;
    }

    pub(crate) async fn progress(&self) {
        self.send(Request::Progress).await;
    }

    /// Waits while too much of this stream is under way.
    async fn send(&self, request: Request) {
        let permit = self
            .gauge
            .requests
            .acquire()
            .await
            .expect("the semaphore is never closed");
        permit.forget();
        self.shared.request(self.id, request);
    }
}

/// A stream's answers. Dropped, it ends the stream.
#[derive(Debug)]
pub(crate) struct StreamAnswers {
    id: u64,
    shared: Arc<Shared>,
    gauge: Arc<Gauge>,
    receiver: mpsc::Receiver<Vec<WatchOutput>>,
}

impl StreamAnswers {
    /// The next answers; `None` once the hub stopped.
    pub(crate) fn poll(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Vec<WatchOutput>>> {
        let polled = self.receiver.poll_recv(context);
        if matches!(polled, std::task::Poll::Ready(Some(_)))
            && self.gauge.wants_ready.swap(false, Ordering::AcqRel)
        {
            self.shared.request(self.id, Request::Ready);
        }
        polled
    }
}

impl Drop for StreamAnswers {
    fn drop(&mut self) {
        self.shared.request(self.id, Request::Close);
    }
}

/// One stream as the thread knows it.
#[derive(Debug)]
struct Outlet {
    stream: StreamId,
    answers: mpsc::Sender<Vec<WatchOutput>>,
    gauge: Arc<Gauge>,
    /// When the watchers that want it are told how far they are.
    notify_at: Option<Instant>,
}

/// The thread's part.
pub struct WatchDriver<S: Store> {
    shared: Arc<Shared>,
    reader: Reader<S>,
    hub: Hub,
    outlets: HashMap<u64, Outlet>,
    by_stream: HashMap<StreamId, u64>,
    /// For each request that is done, its stream, until it may send another.
    owing: Vec<u64>,
    notifications: BTreeSet<(Instant, u64)>,
    progress_interval: Duration,
    metrics: Arc<Metrics>,
}

/// A hub that goes on from what `reader` shows, and the way to it. `progress_interval` is that of watchers with
/// `progress_notify` (etcd's default: ten minutes).
pub fn watch_hub<S: Store>(
    reader: Reader<S>,
    options: HubOptions,
    progress_interval: Duration,
    metrics: Arc<Metrics>,
) -> (WatchHandle, WatchDriver<S>) {
    let shared = Arc::new(Shared::default());
    let driver = WatchDriver {
        shared: shared.clone(),
        hub: Hub::new(reader.view().revision(), options),
        reader,
        outlets: HashMap::new(),
        by_stream: HashMap::new(),
        owing: Vec::new(),
        notifications: BTreeSet::new(),
        progress_interval,
        metrics,
    };
    (WatchHandle(shared), driver)
}

impl<S: Store> WatchDriver<S> {
    /// Moves the hub until [`WatchHandle::stop`]; blocks.
    ///
    /// # Errors
    /// The store failed: the member must stop.
    pub fn run(mut self) -> Result<(), StoreError> {
        let mut queue = Queue::default();
        let mut goes_on = false;
        loop {
            self.receive(&mut queue, goes_on);
            if queue.stopped {
                return Ok(());
            }
            if let Some(revision) = queue.reset_to.take() {
                self.hub.reset(revision);
            }
            // Behind a reset nothing is left of what it covers.
            let known = self.hub.revision();
            queue.revisions.retain(|revision| revision.revision > known);
            self.hub.publish(&queue.revisions);
            queue.revisions.clear();
            for (id, request) in std::mem::take(&mut queue.requests) {
                self.handle(id, request);
            }
            self.notify_due();
            match self.hub.catch_up(&self.reader, CatchUpBudget::default()) {
                // A view that expired is replaced by a new one next time.
                Ok(_) | Err(ReadError::Store(StoreError::ViewExpired)) => {}
                Err(ReadError::Store(error)) => return Err(error),
                Err(error) => unreachable!("the hub asks only for what is there: {error}"),
            }
            let ready: Vec<StreamId> = self.hub.streams_with_output().collect();
            for stream in ready {
                self.move_output(stream);
            }
            self.give_leave();
            self.count();
            // Not before: what was taken made room.
            goes_on = self.hub.can_catch_up();
        }
    }

    /// Swaps out what arrived; waits for it unless there is work.
    fn receive(&self, into: &mut Queue, goes_on: bool) {
        let mut queue = self.shared.lock();
        let is_idle = |queue: &Queue| {
            queue.revisions.is_empty()
                && queue.requests.is_empty()
                && queue.reset_to.is_none()
                && !queue.stopped
        };
        while !goes_on && is_idle(&queue) {
            let next = self
                .notifications
                .first()
                .map(|(at, _)| at.saturating_duration_since(Instant::now()));
            queue.asleep = true;
            let wait = next.unwrap_or(Duration::from_secs(3600));
            let (woken, timeout) = self
                .shared
                .arrived
                .wait_timeout(queue, wait)
                .expect("no holder of the lock panics");
            queue = woken;
            queue.asleep = false;
            if timeout.timed_out() {
                break;
            }
        }
        let stopped = queue.stopped;
        std::mem::swap(&mut *queue, into);
        (queue.stopped, queue.asleep, into.stopped) = (stopped, false, stopped);
    }

    fn handle(&mut self, id: u64, request: Request) {
        if let Request::Open(answers, gauge) = request {
            let stream = self.hub.open();
            self.by_stream.insert(stream, id);
            self.outlets.insert(
                id,
                Outlet {
                    stream,
                    answers,
                    gauge,
                    notify_at: None,
                },
            );
            return;
        }
        let Some(outlet) = self.outlets.get(&id) else {
            return;
        };
        let stream = outlet.stream;
        if matches!(
            request,
            Request::Create(_) | Request::Refuse(_) | Request::Cancel(_) | Request::Progress
        ) {
            self.owing.push(id);
        }
        match request {
            Request::Create(_) if self.hub.watchers_of(stream) >= STREAM_WATCHERS_MAX => {
                self.hub.refuse(stream, TOO_MANY_WATCHERS);
            }
            Request::Create(request) => {
                if request.progress_notify {
                    self.schedule(id);
                }
                self.hub.create(stream, request);
            }
            Request::Refuse(reason) => self.hub.refuse(stream, reason),
            Request::Cancel(watch_id) => self.hub.cancel(stream, watch_id),
            Request::Progress => self.hub.progress_request(stream),
            // It only wakes: what waits is given to all streams that have room.
            Request::Ready => {}
            Request::Close => self.close(id),
            Request::Open(..) => unreachable!("handled above"),
        }
    }

    fn close(&mut self, id: u64) {
        if let Some(outlet) = self.outlets.remove(&id) {
            self.hub.close(outlet.stream);
            self.by_stream.remove(&outlet.stream);
            if let Some(at) = outlet.notify_at {
                self.notifications.remove(&(at, id));
            }
        }
    }

    /// Gives a stream what waits for it, if it has room.
    fn move_output(&mut self, stream: StreamId) {
        let outlet = &self.outlets[&self.by_stream[&stream]];
        // First the wish, then the look: a stream that takes its batch in between sees the wish.
        outlet.gauge.wants_ready.store(true, Ordering::Release);
        match outlet.answers.try_reserve() {
            Ok(place) => {
                outlet.gauge.wants_ready.store(false, Ordering::Release);
                place.send(self.hub.take(stream));
            }
            Err(mpsc::error::TrySendError::Full(())) => {}
            // Its close is on the way.
            Err(mpsc::error::TrySendError::Closed(())) => drop(self.hub.take(stream)),
        }
    }

    /// Lets streams send again whose requests were done and which have room for the answers.
    fn give_leave(&mut self) {
        let WatchDriver {
            owing, outlets, hub, ..
        } = self;
        owing.retain(|id| match outlets.get(id) {
            Some(outlet) if hub.is_full(outlet.stream) => true,
            Some(outlet) => {
                outlet.gauge.requests.add_permits(1);
                false
            }
            None => false,
        });
    }

    /// Sets the stream's clock, if it does not go yet. Streams that were opened together are told apart a little.
    fn schedule(&mut self, id: u64) {
        let jitter = self.progress_interval.mul_f64((id % 11) as f64 / 100.0);
        let outlet = self.outlets.get_mut(&id).expect("asked for by an open stream");
        if outlet.notify_at.is_none() {
            let at = Instant::now() + self.progress_interval + jitter;
            outlet.notify_at = Some(at);
            self.notifications.insert((at, id));
        }
    }

    fn notify_due(&mut self) {
        let now = Instant::now();
        while let Some(&(at, id)) = self.notifications.first().filter(|(at, _)| *at <= now) {
            self.notifications.remove(&(at, id));
            let outlet = self.outlets.get_mut(&id).expect("a closed stream has no clock");
            outlet.notify_at = None;
            self.hub.tick(outlet.stream);
            self.schedule(id);
        }
    }

    fn count(&self) {
        self.metrics
            .watch_streams
            .store(self.outlets.len() as u64, Ordering::Relaxed);
        let (watchers, slow) = self.hub.watchers();
        self.metrics.watchers.store(watchers as u64, Ordering::Relaxed);
        self.metrics.slow_watchers.store(slow as u64, Ordering::Relaxed);
        self.metrics
            .pending_events
            .store(self.hub.pending_events() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use kvorum_model::{Command, Envelope, KeyRange, Origin, PutRequest};
    use kvorum_mvcc::{ApplyEntry, MemStore, Options, Payload, StateMachine};

    /// A state machine, its hub, and the hub's driver, not yet running.
    fn hub() -> (StateMachine<MemStore>, WatchHandle, WatchDriver<MemStore>) {
        let machine = StateMachine::open(MemStore::new(), Options::default()).unwrap();
        let (handle, driver) = watch_hub(
            machine.reader(),
            HubOptions::default(),
            Duration::from_secs(600),
            Arc::default(),
        );
        (machine, handle, driver)
    }

    fn put(machine: &mut StateMachine<MemStore>, value: bytes::Bytes) -> Vec<RevisionEvents> {
        let request = PutRequest {
            key: "a".into(),
            value,
            ..PutRequest::default()
        };
        let command = Command::Put(request);
        let envelope = Envelope {
            time_ms: 1,
            origin: Origin::default(),
            session: None,
            caller: None,
            command,
        };
        let index = machine.applied().1 + 1;
        let payload = Payload::Command(envelope.encode());
        machine
            .apply(&[ApplyEntry {
                index,
                term: 1,
                payload,
            }])
            .unwrap()
            .events
    }

    fn create() -> WatchRequest {
        WatchRequest {
            range: KeyRange::point("a"),
            start_revision: 2,
            ..WatchRequest::default()
        }
    }

    async fn next(answers: &mut StreamAnswers) -> Vec<WatchOutput> {
        let next = std::future::poll_fn(|context| answers.poll(context));
        tokio::time::timeout(Duration::from_secs(20), next)
            .await
            .unwrap()
            .unwrap()
    }

    #[tokio::test]
    async fn a_backlog_that_is_dropped_is_read_from_history() {
        let (mut machine, handle, driver) = hub();
        let (requests, mut answers) = handle.open();
        requests.create(MayWatch::in_a_test(), create()).await;
        let value = bytes::Bytes::from(vec![b'x'; 1024 * 1024]);
        let count = BACKLOG_BYTES_MAX / value.len() + 10;
        for _ in 0..count {
            handle.publish(put(&mut machine, value.clone()));
        }
        assert!(handle.0.lock().reset_to.is_some() && handle.0.lock().revision_bytes < BACKLOG_BYTES_MAX);
        let thread = std::thread::spawn(move || driver.run());
        let mut revisions = Vec::new();
        while revisions.len() < count {
            for output in next(&mut answers).await {
                if let WatchOutput::Events { events, .. } = output {
                    revisions.extend(events.iter().map(|event| event.kv.mod_revision));
                }
            }
        }
        assert_eq!(revisions, (2..2 + count as i64).collect::<Vec<_>>());
        handle.stop();
        assert_eq!(thread.join().unwrap(), Ok(()));
        assert!(
            std::future::poll_fn(|context| answers.poll(context))
                .await
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_reset_loses_nothing() {
        let (mut machine, handle, driver) = hub();
        let (requests, mut answers) = handle.open();
        requests.create(MayWatch::in_a_test(), create()).await;
        // As after the installation of a snapshot: these revisions were never published.
        for n in 0..5 {
            put(&mut machine, n.to_string().into());
        }
        handle.reset(machine.revision());
        let last = put(&mut machine, "last".into());
        handle.publish(last);
        let thread = std::thread::spawn(move || driver.run());
        let mut values = Vec::new();
        while values.len() < 6 {
            for output in next(&mut answers).await {
                if let WatchOutput::Events { events, .. } = output {
                    values.extend(events.into_iter().map(|event| event.kv.value));
                }
            }
        }
        assert_eq!(values, ["0", "1", "2", "3", "4", "last"]);
        handle.stop();
        thread.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_watcher_more_than_a_stream_may_have_is_refused() {
        let (_machine, handle, driver) = hub();
        let thread = std::thread::spawn(move || driver.run());
        let (requests, mut answers) = handle.open();
        let create_all = async {
            for _ in 0..=STREAM_WATCHERS_MAX {
                requests
                    .create(
                        MayWatch::in_a_test(),
                        WatchRequest {
                            start_revision: 0,
                            ..create()
                        },
                    )
                    .await;
            }
        };
        let read_all = async {
            let (mut created, mut refused) = (0, 0);
            while created + refused <= STREAM_WATCHERS_MAX {
                for output in next(&mut answers).await {
                    match output {
                        WatchOutput::Created { .. } => created += 1,
                        WatchOutput::Canceled {
                            created: true,
                            reason,
                            ..
                        } => {
                            assert_eq!(reason, TOO_MANY_WATCHERS);
                            refused += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            (created, refused)
        };
        let ((), counts) = tokio::join!(create_all, read_all);
        assert_eq!(counts, (STREAM_WATCHERS_MAX, 1));
        handle.stop();
        thread.join().unwrap().unwrap();
    }
}
