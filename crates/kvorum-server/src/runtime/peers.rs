//! The connections between members.
//!
//! Each member dials each other one and sends on what it dialled: one stream for what is small and urgent, one
//! for log entries and forwarded writes, so that neither blocks the other. A stream starts with a Hello in both
//! directions ([`super::handshake`]). What cannot be sent is dropped: the consensus core expects no more of a
//! network, and hears of a broken connection. A forwarded write is different: whoever asked for it must learn
//! whether it may have been sent. So nothing waits for a connection that is not there; the replica is told at once
//! which forwards were not handed to one, and when one breaks, which were ([`Outbox`]).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use kvorum_mvcc::ClusterState;
use kvorum_node::{Input, Lane, PeerBody, PeerMessage};
use kvorum_proto::Outcome;
use kvorum_proto::kvorum::v1::peer_client::PeerClient;
use kvorum_proto::kvorum::v1::{
    Frame, Hello, JoinRequest, JoinResponse, PeerChangeRequest, PeerChangeResponse, PeerJoinRequest,
};
use kvorum_raft::{MessageBody, Token};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::figures::note_message;
use super::handshake::Acquaintance;
use super::replica_thread::End;
use super::strangers::Strangers;
use crate::metrics::{Metrics, PeerFigures};

/// Messages that wait for one lane's connection to take them.
const LANE_MESSAGES_MAX: usize = 8192;
/// Frames handed to a connection and not yet written.
const FRAMES_MAX: usize = 256;
/// A peer that does not answer a connection or a Hello for so long is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A member that was removed is talked to for so long: it may lead until its removal is committed, which takes answers,
/// and must hear of it.
const FAREWELL: Duration = Duration::from_secs(10);
/// Pauses between tries, doubling from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Largest frame: an append is limited to far less, but one entry may be larger than an append.
pub(crate) const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
/// HTTP/2 windows of a connection between members, in bytes.
pub(crate) const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Where inputs for the replica go.
pub type Inbox = Arc<dyn Fn(Input) + Send + Sync>;

/// Told if what the peers say ends this member.
pub(crate) type OnEnd = Arc<dyn Fn(End) + Send + Sync>;

/// The outgoing half of a member's peer connections.
#[derive(Clone)]
pub struct PeerNet {
    shared: Arc<Shared>,
}

struct Shared {
    acquaintance: Arc<Acquaintance>,
    inbox: Inbox,
    on_end: OnEnd,
    metrics: Arc<Metrics>,
    runtime: tokio::runtime::Handle,
    timeouts: PeerTimeouts,
    peers: RwLock<BTreeMap<u64, Peer>>,
    /// Peers that dialled this member, with the addresses they told: a joiner knows no others at first.
    met: Mutex<BTreeMap<u64, Vec<String>>>,
    /// What a connection to this peer last failed with: each trouble is logged once.
    troubles: Mutex<BTreeMap<u64, String>>,
    strangers: Mutex<Strangers>,
}

/// How long connections are given; zero: as long as is usual.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PeerTimeouts {
    /// For one of votes and heartbeats to open.
    pub(crate) vote: Duration,
    /// For log entries on one to be answered: after it the connection is opened anew. Usually for ever, as a peer that
    /// is gone is noticed by the pings.
    pub(crate) append: Duration,
}

struct Peer {
    addresses: Vec<String>,
    /// It was removed, and its time runs.
    is_leaving: bool,
    figures: Arc<PeerFigures>,
    answers: Arc<Answers>,
    control: mpsc::Sender<PeerMessage>,
    bulk: mpsc::Sender<PeerMessage>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Peer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl PeerNet {
    /// A net without peers yet.
    pub(crate) fn new(
        acquaintance: Arc<Acquaintance>,
        inbox: Inbox,
        on_end: OnEnd,
        metrics: Arc<Metrics>,
        runtime: tokio::runtime::Handle,
        timeouts: PeerTimeouts,
    ) -> Self {
        let (peers, met, troubles) = (RwLock::default(), Mutex::default(), Mutex::default());
        PeerNet {
            shared: Arc::new(Shared {
                acquaintance,
                inbox,
                on_end,
                metrics,
                runtime,
                timeouts,
                peers,
                met,
                troubles,
                strangers: Mutex::default(),
            }),
        }
    }

    /// A peer dialled this member: it can be answered, whether the cluster's records are here yet or not.
    pub fn meet(&self, id: u64, addresses: Vec<String>) {
        self.shared
            .strangers
            .lock()
            .expect("no panic while held")
            .agreed();
        if addresses.is_empty() {
            return;
        }
        self.shared
            .met
            .lock()
            .expect("no panic while held")
            .insert(id, addresses.clone());
        let mut peers = self.shared.peers.write().expect("no panic while held");
        peers.entry(id).or_insert_with(|| self.start(id, addresses));
    }

    /// The peers are now these, with their addresses (`host:port`), and those that dialled this member and are not
    /// `removed`; connections to others end, those to members that were removed after [`FAREWELL`].
    pub fn set_peers(&self, mut wanted: BTreeMap<u64, Vec<String>>, removed: &BTreeSet<u64>) {
        {
            let mut met = self.shared.met.lock().expect("no panic while held");
            met.retain(|id, _| !removed.contains(id));
            for (id, addresses) in met.iter() {
                wanted.entry(*id).or_insert_with(|| addresses.clone());
            }
        }
        let mut peers = self.shared.peers.write().expect("no panic while held");
        peers.retain(|id, peer| match wanted.get(id) {
            Some(addresses) => *addresses == peer.addresses,
            None if removed.contains(id) => {
                if !std::mem::replace(&mut peer.is_leaving, true) {
                    self.let_go_later(*id);
                }
                true
            }
            None => false,
        });
        let metrics = &self.shared.metrics.peers;
        metrics.keep(|id| wanted.contains_key(&id) || peers.contains_key(&id));
        for (id, addresses) in wanted {
            peers.entry(id).or_insert_with(|| self.start(id, addresses));
        }
    }

    /// Ends the connection to a member that was removed when its time is over.
    fn let_go_later(&self, id: u64) {
        let shared = Arc::downgrade(&self.shared);
        self.shared.runtime.spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            if let Some(shared) = shared.upgrade() {
                let gone = shared.peers.write().expect("no panic while held").remove(&id);
                drop(gone);
                let peers = shared.peers.read().expect("no panic while held");
                shared.metrics.peers.keep(|id| peers.contains_key(&id));
            }
        });
    }

    /// Whether this member sends to that one.
    pub(crate) fn has(&self, id: u64) -> bool {
        let peers = self.shared.peers.read().expect("no panic while held");
        peers.contains_key(&id)
    }

    /// The peers that the cluster's records name, other than this member.
    pub fn peers_of(cluster: &ClusterState, own: u64) -> BTreeMap<u64, Vec<String>> {
        let others = cluster
            .members
            .values()
            .filter(|member| member.id != own && !member.peer_addresses.is_empty());
        others
            .map(|member| (member.id, member.peer_addresses.clone()))
            .collect()
    }

    /// Queues a message; drops it, and says so, if its receiver is unknown or cannot keep up.
    pub fn send(&self, message: PeerMessage) {
        if let Some(message) = self.queue(message) {
            self.shared
                .note_unsent(message.to, std::slice::from_ref(&message));
            (self.shared.inbox)(Input::Unreachable {
                peer: message.to,
                handed: 0,
                unsent: message.forward().into_iter().collect(),
            });
        }
    }

    /// Gives the message back if it cannot be queued.
    fn queue(&self, message: PeerMessage) -> Option<PeerMessage> {
        let peers = self.shared.peers.read().expect("no panic while held");
        let Some(peer) = peers.get(&message.to) else {
            return Some(message);
        };
        note_message(&self.shared.metrics, &message);
        if is_heartbeat(&message) {
            peer.figures.heartbeat_sent();
        }
        let lane = if message.lane() == Lane::Control {
            &peer.control
        } else {
            &peer.bulk
        };
        lane.try_send(message).err().map(TrySendError::into_inner)
    }

    /// A peer said something: perhaps it answered log entries.
    pub(crate) fn note_answer(&self, message: &PeerMessage) {
        let PeerBody::Raft(raft) = &message.body else {
            return;
        };
        let peers = self.shared.peers.read().expect("no panic while held");
        let Some(peer) = peers.get(&message.from) else {
            return;
        };
        match raft.body {
            MessageBody::AppendReply { prev, .. } => peer.answers.note(prev),
            MessageBody::HeartbeatReply { .. } => peer.figures.heartbeat_answered(),
            _ => {}
        }
    }

    /// Where this peer is reached.
    pub fn addresses(&self, peer: u64) -> Vec<String> {
        let peers = self.shared.peers.read().expect("no panic while held");
        peers
            .get(&peer)
            .map(|peer| peer.addresses.clone())
            .unwrap_or_default()
    }

    /// Hands a joiner's announcement to this peer.
    pub(crate) async fn forward_join(&self, peer: u64, request: JoinRequest) -> Result<JoinResponse, Status> {
        let mut last = Status::unavailable("the leader's address is not known yet");
        for address in self.addresses(peer) {
            match connect(&address).await {
                Ok(mut client) => {
                    let hello = Some(self.shared.acquaintance.hello(peer));
                    let request = PeerJoinRequest {
                        hello,
                        request: Some(request),
                    };
                    return client.join(request).await.map(tonic::Response::into_inner);
                }
                Err(status) => last = status,
            }
        }
        Err(last)
    }

    /// Hands a change of the membership to this peer.
    pub(crate) async fn forward_change(
        &self,
        peer: u64,
        request: PeerChangeRequest,
    ) -> Result<PeerChangeResponse, Status> {
        let mut last = Status::unavailable("the leader's address is not known yet");
        for address in self.addresses(peer) {
            match connect(&address).await {
                Ok(mut client) => {
                    let request = PeerChangeRequest {
                        hello: Some(self.shared.acquaintance.hello(peer)),
                        ..request
                    };
                    return client.change(request).await.map(tonic::Response::into_inner);
                }
                Err(status) => last = status,
            }
        }
        Err(Outcome::NotApplied.mark(last))
    }

    /// Ends all connections.
    pub fn close(&self) {
        self.shared.peers.write().expect("no panic while held").clear();
    }

    fn start(&self, id: u64, addresses: Vec<String>) -> Peer {
        let answers = Arc::new(Answers::default());
        let figures = self.shared.metrics.peers.of(id);
        let lane = |lane: Lane| {
            let (sender, receiver) = mpsc::channel(LANE_MESSAGES_MAX);
            let patience = Patience {
                at_most: self.shared.timeouts.append,
                answers: answers.clone(),
            };
            let outbox = Outbox {
                peer: id,
                messages: receiver,
                handed: 0,
                inbox: self.shared.inbox.clone(),
                figures: figures.clone(),
                metrics: self.shared.metrics.clone(),
            };
            let run = run_lane(self.shared.clone(), addresses.clone(), lane, outbox, patience);
            (sender, self.shared.runtime.spawn(run))
        };
        let (control, control_task) = lane(Lane::Control);
        let (bulk, bulk_task) = lane(Lane::Bulk);
        Peer {
            addresses,
            is_leaving: false,
            figures,
            answers,
            control,
            bulk,
            tasks: [control_task, bulk_task],
        }
    }
}

/// Whether it is a leader's sign of life.
fn is_heartbeat(message: &PeerMessage) -> bool {
    matches!(&message.body, PeerBody::Raft(raft) if matches!(raft.body, MessageBody::Heartbeat { .. }))
}

/// Counts messages that no connection took.
fn note_unsent(metrics: &Metrics, figures: &PeerFigures, messages: &[PeerMessage]) {
    figures.send_failures.add(messages.len() as u64);
    let heartbeats = messages.iter().filter(|message| is_heartbeat(message)).count();
    metrics.heartbeat_failures.add(heartbeats as u64);
}

impl Shared {
    fn note_unsent(&self, peer: u64, messages: &[PeerMessage]) {
        note_unsent(&self.metrics, &self.metrics.peers.of(peer), messages);
    }

    /// Ends this member if this refusal shows that its data is of another cluster than its peers.
    fn end_among_strangers(&self, peer: u64, refusal: &Status) {
        let peers = self.peers.read().expect("no panic while held").len();
        let mut strangers = self.strangers.lock().expect("no panic while held");
        if let Some(theirs) = strangers.refused(peer, refusal, peers) {
            let own = self.acquaintance.identity().cluster_uuid;
            (self.on_end)(End::Stranger(format!(
                "it belongs to cluster {own:032x}, but most members of --initial-cluster are of cluster \
                 {theirs:032x} and none is of its own; check --data-dir and the addresses"
            )));
        }
    }
}

/// What is to be sent on a lane.
///
/// Invariant: a forward that came out of it was either handed to a connection, and its number is at most `handed`
/// when the replica hears that this connection broke, or the replica hears that it never will be sent.
struct Outbox {
    peer: u64,
    messages: mpsc::Receiver<PeerMessage>,
    /// The number of the last forward that was handed to the present connection.
    handed: Token,
    inbox: Inbox,
    figures: Arc<PeerFigures>,
    metrics: Arc<Metrics>,
}

impl Outbox {
    /// Waits for something while there is no connection: what is to be sent meanwhile is turned away. `None` if the
    /// peer is none any more.
    async fn closed_until<T>(&mut self, event: impl Future<Output = T>) -> Option<T> {
        let mut event = pin!(event);
        loop {
            tokio::select! {
                biased;
                outcome = &mut event => return Some(outcome),
                message = self.messages.recv() => self.turn_away(Some(message?)),
            }
        }
    }

    /// There is no connection any more: tells the replica what was handed to it, and that this message and those
    /// that wait will not be sent.
    fn turn_away(&mut self, message: Option<PeerMessage>) {
        let waiting = std::iter::from_fn(|| self.messages.try_recv().ok());
        let unsent: Vec<PeerMessage> = message.into_iter().chain(waiting).collect();
        note_unsent(&self.metrics, &self.figures, &unsent);
        self.figures.forget_heartbeat();
        let unsent = unsent.iter().filter_map(PeerMessage::forward).collect();
        (self.inbox)(Input::Unreachable {
            peer: self.peer,
            handed: std::mem::take(&mut self.handed),
            unsent,
        });
    }
}

impl Drop for Outbox {
    /// The peer is none any more, or has another address.
    fn drop(&mut self) {
        self.turn_away(None);
    }
}

/// One lane for as long as the peer is one: connects, sends, and connects again.
async fn run_lane(
    shared: Arc<Shared>,
    addresses: Vec<String>,
    lane: Lane,
    mut outbox: Outbox,
    patience: Patience,
) {
    let (id, mut pause) = (outbox.peer, BACKOFF.0);
    for address in addresses.iter().cycle() {
        let limit = match (lane, shared.timeouts.vote) {
            (Lane::Control, limit) if !limit.is_zero() => limit,
            _ => 2 * CONNECT_TIMEOUT,
        };
        let opening = tokio::time::timeout(limit, open(&shared, id, address, lane));
        let Some(opened) = outbox.closed_until(opening).await else {
            return;
        };
        match opened.unwrap_or_else(|_| Err(Status::unavailable("the peer does not answer in time"))) {
            Ok(stream) => {
                shared.troubles.lock().expect("no panic while held").remove(&id);
                shared.strangers.lock().expect("no panic while held").agreed();
                tracing::debug!(peer = %format_args!("{id:016x}"), address, ?lane, "connected to peer");
                pause = BACKOFF.0;
                let _open = Open::new(&outbox.figures);
                if pump(stream, &mut outbox, &patience).await.is_none() {
                    return;
                }
                outbox.turn_away(None);
            }
            Err(status) => {
                let known = {
                    let mut troubles = shared.troubles.lock().expect("no panic while held");
                    troubles
                        .insert(id, status.message().to_owned())
                        .is_some_and(|old| old == status.message())
                };
                if !known && status.code() != Code::Unavailable {
                    tracing::warn!(peer = %format_args!("{id:016x}"), address, "peer refuses: {}", status.message());
                }
                if status.code() == Code::PermissionDenied {
                    tracing::error!("{}", status.message());
                    (shared.on_end)(End::Removed);
                }
                shared.end_among_strangers(id, &status);
            }
        }
        if outbox.closed_until(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// Counts a connection for as long as it lives.
struct Open(Arc<PeerFigures>);

impl Open {
    fn new(figures: &Arc<PeerFigures>) -> Self {
        figures.open.fetch_add(1, Ordering::Relaxed);
        Open(figures.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open stream: frames go in, and its end is heard on the answers.
struct Opened {
    frames: mpsc::Sender<Frame>,
    answers: Streaming<Frame>,
}

async fn open(shared: &Shared, id: u64, address: &str, lane: Lane) -> Result<Opened, Status> {
    let mut client = connect(address).await?;
    let (frames, receiver) = mpsc::channel(FRAMES_MAX);
    let answers = greet(
        &mut client,
        shared.acquaintance.hello(id),
        lane,
        &frames,
        receiver,
    )
    .await?;
    let (hello, answers) = answers;
    if hello.member_id != id {
        return Err(Status::failed_precondition(format!(
            "{address} is member {:016x} ({}), not {id:016x}: check the peer addresses",
            hello.member_id, hello.name
        )));
    }
    shared.acquaintance.judge(&hello)?;
    Ok(Opened { frames, answers })
}

/// A client of the peer at `host:port`.
pub(crate) async fn connect(address: &str) -> Result<PeerClient<Channel>, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::invalid_argument(format!("peer address {address}: {error}")))?;
    let channel = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect()
        .await
        .map_err(|error| Status::unavailable(format!("peer {address} cannot be reached: {error}")))?;
    Ok(PeerClient::new(channel)
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX))
}

/// Says Hello and waits for the answer.
async fn greet(
    client: &mut PeerClient<Channel>,
    hello: Hello,
    lane: Lane,
    frames: &mpsc::Sender<Frame>,
    receiver: mpsc::Receiver<Frame>,
) -> Result<(Hello, Streaming<Frame>), Status> {
    let first = Frame {
        hello: Some(hello),
        ..Frame::default()
    };
    frames.try_send(first).expect("a new channel has room");
    let requests = ReceiverStream::new(receiver);
    let exchange = async {
        let mut answers = match lane {
            Lane::Control => client.votes(requests).await?,
            Lane::Bulk => client.appends(requests).await?,
        }
        .into_inner();
        let hello = answers.message().await?.and_then(|frame| frame.hello);
        let hello = hello.ok_or_else(|| Status::failed_precondition("the peer answered without a Hello"))?;
        Ok((hello, answers))
    };
    tokio::time::timeout(CONNECT_TIMEOUT, exchange)
        .await
        .map_err(|_| Status::unavailable("the peer does not answer"))?
}

/// Asks a peer who it is, and with `hello.member_id` 0 which ID this member was given. The stream then ends.
pub(crate) async fn ask(address: &str, hello: Hello) -> Result<Hello, Status> {
    let mut client = tokio::time::timeout(CONNECT_TIMEOUT, connect(address))
        .await
        .map_err(|_| Status::unavailable(format!("peer {address} does not answer")))??;
    let (frames, receiver) = mpsc::channel(1);
    let (hello, _) = greet(&mut client, hello, Lane::Control, &frames, receiver).await?;
    Ok(hello)
}

/// What a peer answered to log entries: how often, and to which append last, by the index that it followed.
#[derive(Debug, Default)]
struct Answers {
    count: AtomicU64,
    prev: AtomicU64,
}

impl Answers {
    fn note(&self, prev: u64) {
        self.prev.store(prev, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether this append, or a later one, was answered.
    fn include(&self, ask: &Ask) -> bool {
        self.count.load(Ordering::Relaxed) > ask.before && self.prev.load(Ordering::Relaxed) >= ask.prev
    }
}

/// An append that was sent.
#[derive(Clone, Copy, Debug)]
struct Ask {
    deadline: Instant,
    /// The index that it follows.
    prev: u64,
    /// How many answers there were before it.
    before: u64,
}

/// How long log entries may go unanswered.
struct Patience {
    /// Zero: for ever.
    at_most: Duration,
    answers: Arc<Answers>,
}

impl Patience {
    /// What is to be answered after this message, if anything is.
    fn after(&self, message: &PeerMessage) -> Option<Ask> {
        let PeerBody::Raft(raft) = &message.body else {
            return None;
        };
        match &raft.body {
            MessageBody::Append { prev, .. } if !self.at_most.is_zero() => Some(Ask {
                deadline: Instant::now() + self.at_most,
                prev: prev.index,
                before: self.answers.count.load(Ordering::Relaxed),
            }),
            _ => None,
        }
    }
}

/// What of a connection's appends waits for an answer: the oldest that is looked at, and the newest.
#[derive(Default)]
struct Unanswered {
    watched: Option<Ask>,
    newest: Option<Ask>,
}

impl Unanswered {
    fn sent(&mut self, ask: Option<Ask>) {
        self.newest = ask.or(self.newest);
        self.watched = self.watched.or(ask);
    }

    /// The watched one's time is over: whether it was not answered. Otherwise the newest is watched, unless that was
    /// answered, too.
    fn is_over(&mut self, answers: &Answers) -> bool {
        if self.watched.take().is_some_and(|ask| !answers.include(&ask)) {
            return true;
        }
        self.watched = self.newest.take().filter(|ask| !answers.include(ask));
        false
    }
}

/// Sends until the connection ends, or is to be opened anew (`Some`), or the peer is none any more (`None`).
async fn pump(mut stream: Opened, outbox: &mut Outbox, patience: &Patience) -> Option<()> {
    let mut unanswered = Unanswered::default();
    loop {
        let deadline = async {
            match unanswered.watched {
                Some(ask) => tokio::time::sleep_until(ask.deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        // A message leaves the outbox only when the connection has a place for it.
        let next = async {
            let place = stream.frames.reserve().await.ok()?;
            Some((place, outbox.messages.recv().await))
        };
        tokio::select! {
            // In this order: nothing is handed to a connection whose end is known.
            biased;
            () = deadline => {
                if unanswered.is_over(&patience.answers) {
                    tracing::info!(
                        "log entries were not answered for {:?}: the connection is opened anew",
                        patience.at_most
                    );
                    return Some(());
                }
            }
            answer = stream.answers.message() => {
                if !matches!(answer, Ok(Some(_))) {
                    return Some(());
                }
            }
            next = next => {
                let Some((place, message)) = next else {
                    return Some(());
                };
                let message = message?;
                outbox.handed = message.forward().unwrap_or(outbox.handed);
                unanswered.sent(patience.after(&message));
                let payload = message.encode();
                outbox.figures.sent_bytes.add(payload.len() as u64);
                place.send(Frame { payload, ..Frame::default() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(prev: u64, answers: &Answers) -> Option<Ask> {
        Some(Ask {
            deadline: Instant::now(),
            prev,
            before: answers.count.load(Ordering::Relaxed),
        })
    }

    /// Once, when the first of two appends was answered, the second was forgotten: a peer that stood still from then
    /// on was waited for without end.
    #[test]
    fn the_answer_to_one_append_is_none_to_the_next() {
        let answers = Answers::default();
        let mut unanswered = Unanswered::default();
        unanswered.sent(ask(4, &answers));
        unanswered.sent(ask(5, &answers));
        answers.note(4);
        assert!(!unanswered.is_over(&answers), "the first was answered");
        assert!(unanswered.is_over(&answers), "the second was not");

        let mut unanswered = Unanswered::default();
        unanswered.sent(ask(6, &answers));
        unanswered.sent(None);
        unanswered.sent(ask(7, &answers));
        answers.note(7);
        assert!(!unanswered.is_over(&answers), "an answer is one to all before");
        assert!(unanswered.watched.is_none());
    }

    #[test]
    fn an_old_answer_does_not_count_for_an_append_that_is_sent_again() {
        let answers = Answers::default();
        answers.note(9);
        let mut unanswered = Unanswered::default();
        unanswered.sent(ask(9, &answers));
        assert!(unanswered.is_over(&answers));
    }
}
