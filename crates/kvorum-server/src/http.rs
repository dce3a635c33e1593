//! The sockets of clients: one port serves gRPC (HTTP/2 without TLS, by prior knowledge) and REST (HTTP/1.1 and
//! HTTP/2), on a few threads that each run their own single-threaded runtime.
//!
//! A connection stays with the thread that got it; that thread also hands the replica's answers to its callers
//! (see [`crate::pending`]), so that a request crosses no thread but the replica's.
//!
//! Survives: connections beyond the limit (closed at once), clients that send nothing, half a header, or no
//! answer to a ping (closed in time), too many streams, resets or header bytes (refused by the protocol), want
//! of file descriptors (waits and goes on). A drain stops accepting, lets requests under way finish, and ends
//! what is left when its time is over.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc as std_mpsc;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tonic::body::Body;

use crate::authority::Mender;
use crate::metrics::Traffic;
use crate::options::Address;
use crate::sockets::{self, Acceptor, Connection, Socket};

/// What every HTTP/2 connection starts with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Read at once of an HTTP/2 connection's first request.
const READ_BYTES: usize = 1024;
/// How long to wait before accepting again when the system has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds on what clients can use up.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Most connections at one time.
    pub connections_max: usize,
    /// Most requests under way on one HTTP/2 connection.
    pub streams_max: u32,
    /// Largest header block in bytes.
    pub header_bytes_max: u32,
    /// Longest time in which a client must send its preface or its header (HTTP/1).
    pub header_timeout: Duration,
    /// A silent HTTP/2 connection is pinged so often (zero: never),
    pub ping_interval: Duration,
    /// and closed if the answer takes longer.
    pub ping_timeout: Duration,
    /// Bytes of request bodies that a client may send ahead on one stream, and
    pub stream_window_bytes: u32,
    /// on all streams of a connection together. It is more than what is sent ahead usually, because of small messages:
    /// a connection is closed ("too many data frames") when half of this is used up by frames that wait to be read,
    /// each counted as 256 bytes less its length; a stream full of the smallest renewals of leases, 15 bytes each, must
    /// stay below that.
    pub connection_window_bytes: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            connections_max: 16_384,
            streams_max: 4096,
            header_bytes_max: 16 * 1024,
            header_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(20),
            stream_window_bytes: 256 * 1024,
            connection_window_bytes: 9 * 1024 * 1024,
        }
    }
}

/// Where the server is in its life. Streams that would not end by themselves watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes connections.
    Serving,
    /// Takes none, and finishes what is under way.
    Draining,
    /// Drops what is left.
    Stopped,
}

/// Opens a listening socket.
///
/// # Errors
/// One line that names the address and says what to do.
pub fn listen(option: &str, address: &Address) -> Result<StdListener, String> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{option} {address} is in use by another process; stop it, or choose another port with --{option}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{option} {address} is not an address of this machine; choose another with --{option}")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "{option} {address} may not be opened by this user; choose a port above 1023 with --{option}"
            )
        }
        _ => format!("{option} {address} cannot be opened: {error}"),
    };
    let addresses = address.resolve().map_err(|error| {
        format!("{option} {address}: the host name cannot be resolved ({error}); write an IP address")
    })?;
    let listener = StdListener::bind(addresses.as_slice()).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(listener)
}

/// A service of one listener.
pub trait Serve:
    Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Serve for S where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// A connection on its way to its worker.
struct Accepted<S> {
    stream: sockets::Accepted,
    service: S,
    slot: Slot,
}

/// A connection's place under the limit.
struct Slot {
    all: Arc<AtomicUsize>,
    of_worker: Arc<AtomicUsize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        self.of_worker.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The running server. Dropped without [`HttpServer::drain`] it stops at once.
pub struct HttpServer {
    addresses: Vec<SocketAddr>,
    connections: Arc<AtomicUsize>,
    traffic: Arc<Traffic>,
    phase: watch::Sender<Phase>,
    workers: Vec<thread::JoinHandle<()>>,
    ended: std_mpsc::Receiver<()>,
}

impl HttpServer {
    /// Serves each socket (see [`listen`]) with its service on `workers` threads.
    ///
    /// `background` gives each worker, by number, a task that it runs for as long as it lives.
    ///
    /// # Errors
    /// The system has no threads or file descriptors left.
    pub fn start<S: Serve, B>(
        listeners: Vec<(impl Into<Socket>, S)>,
        limits: HttpLimits,
        workers: usize,
        phase: watch::Sender<Phase>,
        background: impl Fn(usize) -> B + Clone + Send + 'static,
    ) -> io::Result<HttpServer>
    where
        B: Future<Output = ()> + Send + 'static,
    {
        assert!(workers > 0, "somebody must serve");
        let listeners: Vec<(Socket, S)> = listeners
            .into_iter()
            .map(|(listener, service)| (listener.into(), service))
            .collect();
        let addresses = listeners
            .iter()
            .filter_map(|(listener, _)| listener.address().transpose())
            .collect::<Result<_, _>>()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let (end, ended) = std_mpsc::channel();
        let mut doors = Vec::with_capacity(workers);
        let traffic = Arc::<Traffic>::default();
        let mut server = HttpServer {
            addresses,
            connections,
            traffic: traffic.clone(),
            phase,
            workers: Vec::new(),
            ended,
        };
        for number in 0..workers {
            let (door, incoming) = mpsc::unbounded_channel();
            doors.push(Door {
                door,
                connections: Arc::default(),
            });
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (phase, background, end) = (server.phase.subscribe(), background.clone(), end.clone());
            let traffic = traffic.clone();
            let worker = move || {
                crate::pending::set_worker(number);
                runtime.block_on(async {
                    tokio::spawn(background(number));
                    work(incoming, limits, phase, traffic).await;
                });
                // A blocking read of the store under way is not waited for.
                runtime.shutdown_background();
                let _ = end.send(());
            };
            server.workers.push(
                thread::Builder::new()
                    .name(format!("rpc-{number}"))
                    .spawn(worker)?,
            );
        }
        server.open_gate(listeners, doors, limits.connections_max)?;
        Ok(server)
    }

    /// Accepts on a thread of its own, so that a busy worker does not keep newcomers waiting.
    fn open_gate<S: Serve>(
        &mut self,
        listeners: Vec<(Socket, S)>,
        doors: Vec<Door<S>>,
        connections_max: usize,
    ) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let gate = Arc::new(Gate {
            doors,
            connections: self.connections.clone(),
            connections_max,
        });
        let mut phase = self.phase.subscribe();
        let guard = runtime.enter();
        let listeners = listeners
            .into_iter()
            .map(|(listener, service)| Ok((listener.into_acceptor()?, service)))
            .collect::<io::Result<Vec<_>>>()?;
        drop(guard);
        let accept = move || {
            runtime.block_on(async {
                for (listener, service) in listeners {
                    tokio::spawn(gate.clone().accept(listener, service));
                }
                let _ = phase.wait_for(|phase| *phase > Phase::Serving).await;
            });
        };
        self.workers
            .push(thread::Builder::new().name("accept".to_owned()).spawn(accept)?);
        Ok(())
    }

    /// The ports on which it listens, in the order of the sockets.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Connections now.
    pub fn connections(&self) -> Arc<AtomicUsize> {
        self.connections.clone()
    }

    /// Bytes of the connections that speak gRPC.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// Stops accepting, finishes requests under way for at most `patience`, then drops what is left. Blocks.
    pub fn drain(mut self, patience: Duration) {
        self.advance(Phase::Draining);
        let deadline = Instant::now() + patience;
        let workers = self.workers.len() - 1;
        for _ in 0..workers {
            let rest = deadline.saturating_duration_since(Instant::now());
            if self.ended.recv_timeout(rest).is_err() {
                break;
            }
        }
        self.advance(Phase::Stopped);
        self.join();
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let moved = *phase < to;
            *phase = (*phase).max(to);
            moved
        });
    }

    fn join(&mut self) {
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a thread of the client port panicked");
            }
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.advance(Phase::Stopped);
        self.join();
    }
}

/// The way to a worker.
struct Door<S> {
    door: mpsc::UnboundedSender<Accepted<S>>,
    connections: Arc<AtomicUsize>,
}

struct Gate<S> {
    doors: Vec<Door<S>>,
    connections: Arc<AtomicUsize>,
    connections_max: usize,
}

impl<S: Serve> Gate<S> {
    async fn accept(self: Arc<Self>, listener: Acceptor, service: S) {
        loop {
            match listener.accept().await {
                Ok(stream) => self.admit(stream, service.clone()),
                // The peer gave up before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(
                        "cannot accept connections: {error}; raise the open-file limit (ulimit -n)"
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Gives the connection to the worker that has the fewest; closes it if there are too many.
    fn admit(&self, stream: sockets::Accepted, service: S) {
        if self.connections.load(Ordering::Relaxed) >= self.connections_max {
            return;
        }
        let fewest = |door: &&Door<S>| door.connections.load(Ordering::Relaxed);
        let door = self.doors.iter().min_by_key(fewest).expect("there is a worker");
        self.connections.fetch_add(1, Ordering::Relaxed);
        door.connections.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            all: self.connections.clone(),
            of_worker: door.connections.clone(),
        };
        // A worker that ended takes no more: the connection is closed.
        let _ = door.door.send(Accepted {
            stream,
            service,
            slot,
        });
    }
}

/// One worker's life: until the server is stopped, or drains and nothing is left.
async fn work<S: Serve>(
    mut incoming: mpsc::UnboundedReceiver<Accepted<S>>,
    limits: HttpLimits,
    mut phase: watch::Receiver<Phase>,
    traffic: Arc<Traffic>,
) {
    let mut connections = JoinSet::new();
    let mut gate_open = true;
    loop {
        let now = *phase.borrow_and_update();
        if now == Phase::Stopped || (now == Phase::Draining && connections.is_empty()) {
            return;
        }
        tokio::select! {
            accepted = incoming.recv(), if gate_open => match accepted {
                Some(Accepted { stream, service, slot }) => {
                    let (phase, traffic) = (phase.clone(), traffic.clone());
                    connections.spawn(async move {
                        let _slot = slot;
                        // How a connection ends is its client's matter; there is nobody to tell.
                        let _ = converse(stream, service, limits, phase, traffic).await;
                    });
                }
                None => gate_open = false,
            },
            Some(ended) = connections.join_next() => if ended.is_err() {
                tracing::error!("the task of a connection panicked");
            },
            _ = phase.changed() => {}
        }
    }
}

/// One connection, from its first byte to its end.
async fn converse<S: Serve>(
    stream: sockets::Accepted,
    service: S,
    limits: HttpLimits,
    mut phase: watch::Receiver<Phase>,
    traffic: Arc<Traffic>,
) -> Result<(), hyper::Error> {
    let Ok(stream) = stream.into_connection() else {
        return Ok(());
    };
    let heard = tokio::time::timeout(limits.header_timeout, Heard::first_bytes(stream));
    let heard = tokio::select! {
        heard = heard => heard,
        _ = phase.wait_for(|phase| *phase > Phase::Serving) => return Ok(()),
    };
    let Ok(Ok((mut heard, is_http2))) = heard else {
        return Ok(());
    };
    heard.traffic = is_http2.then_some(traffic);
    let (open, closed) = oneshot::channel::<Infallible>();
    heard.open = Some(open);
    let io = TokioIo::new(heard);
    // Two arms of one shape: the builders have no common trait.
    if is_http2 {
        let mut connection = pin!(http2_builder(&limits).serve_connection(io, service));
        tokio::select! {
            biased;
            result = connection.as_mut() => return result,
            _ = phase.wait_for(|phase| *phase > Phase::Serving) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    } else {
        {
            let connection = http1_builder(&limits).serve_connection(io, service);
            let mut connection = pin!(connection.with_upgrades());
            let ended = tokio::select! {
                biased;
                result = connection.as_mut() => Some(result),
                _ = phase.wait_for(|phase| *phase > Phase::Serving) => None,
            };
            match ended {
                Some(result) => result?,
                None => {
                    connection.as_mut().graceful_shutdown();
                    connection.await?;
                }
            }
        }
        // A websocket that came of it counts as long as it is open.
        let _ = closed.await;
        Ok(())
    }
}

fn http2_builder(limits: &HttpLimits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(limits.header_bytes_max)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .keep_alive_interval(Some(limits.ping_interval).filter(|interval| !interval.is_zero()))
        .keep_alive_timeout(limits.ping_timeout)
        .auto_date_header(false);
    builder
}

fn http1_builder(limits: &HttpLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes_max as usize);
    builder
}

/// A stream whose first bytes were read already; they are read again first.
struct Heard {
    head: [u8; PREFACE.len()],
    /// What of `head` is there, and what of it was read again.
    filled: usize,
    taken: usize,
    /// While an HTTP/2 client's first request is on its way.
    mender: Option<Box<Mender>>,
    stream: Connection,
    /// Where its bytes are counted, if they are.
    traffic: Option<Arc<Traffic>>,
    /// Dropped with the stream.
    open: Option<oneshot::Sender<Infallible>>,
}

impl Heard {
    /// Reads until it is clear whether the client speaks HTTP/2.
    async fn first_bytes(stream: Connection) -> io::Result<(Heard, bool)> {
        let mut heard = Heard {
            head: [0; PREFACE.len()],
            filled: 0,
            taken: 0,
            mender: None,
            stream,
            traffic: None,
            open: None,
        };
        loop {
            let read = heard.stream.read(&mut heard.head[heard.filled..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            heard.filled += read;
            if heard.head[..heard.filled] != PREFACE[..heard.filled] {
                return Ok((heard, false));
            }
            if heard.filled == PREFACE.len() {
                heard.mender = Some(Box::default());
                return Ok((heard, true));
            }
        }
    }
}

impl Heard {
    fn note_sent(&self, written: &Poll<io::Result<usize>>) {
        if let (Some(traffic), Poll::Ready(Ok(bytes))) = (&self.traffic, written) {
            traffic.note_sent(*bytes);
        }
    }
}

/// Reads from the client, and counts it.
fn receive(
    stream: &mut Connection,
    traffic: &Option<Arc<Traffic>>,
    context: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let before = buffer.filled().len();
    let read = Pin::new(stream).poll_read(context, buffer);
    if let Some(traffic) = traffic {
        traffic.note_received(buffer.filled().len() - before);
    }
    read
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let heard = &mut *self;
        if heard.taken < heard.filled {
            let count = buffer.remaining().min(heard.filled - heard.taken);
            buffer.put_slice(&heard.head[heard.taken..heard.taken + count]);
            heard.taken += count;
            return Poll::Ready(Ok(()));
        }
        while let Some(mender) = &mut heard.mender
            && buffer.remaining() > 0
        {
            let clean = mender.read(buffer.remaining());
            if !clean.is_empty() {
                buffer.put_slice(clean);
                return Poll::Ready(Ok(()));
            }
            if mender.is_done() {
                heard.mender = None;
                break;
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(receive(&mut heard.stream, &heard.traffic, context, &mut read))?;
            match read.filled() {
                [] => mender.end(),
                bytes => mender.take_in(bytes),
            }
        }
        receive(&mut heard.stream, &heard.traffic, context, buffer)
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_sent(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
