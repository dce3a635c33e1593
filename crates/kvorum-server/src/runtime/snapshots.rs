//! Snapshots on their way between members: sent from a view of the state, received into a store of its own.
//!
//! One snapshot is received at a time. What was received of a transfer that broke off is kept, so that the sender
//! resumes at the chunk that is missing. The whole, verified, waits on the stage until the consensus core says
//! whether it is wanted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvorum_mvcc::lsm::{self, Installer};
use kvorum_mvcc::{LsmStore, SnapshotReader, SnapshotSink, StateMachine, Store};
use kvorum_node::{Input, Staged};
use kvorum_proto::kvorum::v1::{SnapshotChunk, SnapshotDone, SnapshotOffer};
use kvorum_raft::{LogId, Message, MessageBody};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::handshake::Acquaintance;
use super::peers::{self, Inbox, PeerNet};

/// Frames read ahead of the connection.
const FRAMES_AHEAD: usize = 4;
/// How often a transfer that broke off is taken up again before it counts as failed.
const TRIES: u32 = 5;
/// Pause between them.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes a second that one transfer sends at most, so that it leaves room for the log.
const RATE_BYTES: u64 = 64 * 1024 * 1024;

type View = <LsmStore as Store>::View;

/// Snapshots that were built and not sent yet, by receiver.
#[derive(Clone, Default)]
pub(crate) struct Built(Arc<Mutex<BTreeMap<u64, SnapshotReader<View>>>>);

impl Built {
    pub(crate) fn put(&self, peer: u64, snapshot: SnapshotReader<View>) {
        self.0.lock().expect("no panic while held").insert(peer, snapshot);
    }

    fn take(&self, peer: u64) -> Option<SnapshotReader<View>> {
        self.0.lock().expect("no panic while held").remove(&peer)
    }
}

/// Sends snapshots.
#[derive(Clone)]
pub(crate) struct SnapshotSender {
    pub(crate) acquaintance: Arc<Acquaintance>,
    pub(crate) net: PeerNet,
    pub(crate) built: Built,
    pub(crate) inbox: Inbox,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl SnapshotSender {
    /// Streams the snapshot built for this message's receiver, then the message; tells the replica how it ended.
    pub(crate) fn send(&self, message: Message) {
        let sender = self.clone();
        self.runtime.spawn(async move {
            let peer = message.to;
            let ok = match sender.transfer(message).await {
                Ok(()) => true,
                Err(status) => {
                    tracing::warn!(peer = %format_args!("{peer:016x}"), "a snapshot was not delivered: {}", status.message());
                    false
                }
            };
            (sender.inbox)(Input::SnapshotSent { peer, ok });
        });
    }

    async fn transfer(&self, message: Message) -> Result<(), Status> {
        let peer = message.to;
        let snapshot = self
            .built
            .take(peer)
            .ok_or_else(|| Status::internal("no snapshot was built for it"))?;
        let address = self.net.addresses(peer).into_iter().next();
        let address = address.ok_or_else(|| Status::unavailable("its address is not known"))?;
        let mut snapshot = Some(snapshot);
        let mut last = Status::unavailable("not tried");
        for _ in 0..TRIES {
            let reader = snapshot.take().expect("each try gives it back");
            let (reader, result) = self.try_once(&address, &message, reader).await?;
            match result {
                Ok(()) => return Ok(()),
                Err(status) => last = status,
            }
            snapshot = Some(reader);
            tokio::time::sleep(PAUSE).await;
        }
        Err(last)
    }

    /// One connection's worth of it. Gives the reader back, to resume with.
    async fn try_once(
        &self,
        address: &str,
        message: &Message,
        mut reader: SnapshotReader<View>,
    ) -> Result<(SnapshotReader<View>, Result<(), Status>), Status> {
        let id = snapshot_id(message);
        let mut client = match peers::connect(address).await {
            Ok(client) => client,
            Err(status) => return Ok((reader, Err(status))),
        };
        let hello = self.acquaintance.hello(message.to);
        let offer = SnapshotOffer {
            id: id.clone(),
            ..SnapshotOffer::default()
        };
        let question = SnapshotChunk {
            hello: Some(hello.clone()),
            offer: Some(offer.clone()),
            ..Default::default()
        };
        let resume_at = match client.snapshot(tokio_stream::iter([question])).await {
            Ok(done) => done.into_inner().next_chunk,
            Err(status) => return Ok((reader, Err(status))),
        };
        let (chunks, receiver) = mpsc::channel(FRAMES_AHEAD);
        let first = SnapshotChunk {
            hello: Some(hello),
            offer: Some(offer),
            ..Default::default()
        };
        let last = SnapshotChunk {
            message: encoded(message),
            ..SnapshotChunk::default()
        };
        let read = tokio::task::spawn_blocking(move || {
            let result = stream_frames(&mut reader, resume_at, first, last, &chunks);
            (reader, result)
        });
        let answer = client.snapshot(ReceiverStream::new(receiver)).await;
        let (reader, read) = read
            .await
            .map_err(|_| Status::internal("reading the snapshot panicked"))?;
        let result = match (read, answer) {
            (Err(why), _) => return Err(why),
            (Ok(()), Ok(done)) if done.get_ref().complete => Ok(()),
            (Ok(()), Ok(_)) => Err(Status::unavailable("the receiver holds only a part of it")),
            (Ok(()), Err(status)) => Err(status),
        };
        Ok((reader, result))
    }
}

/// Reads frames as fast as the receiver takes them, within the rate limit. A receiver that went away is no error
/// here: its own answer says why.
fn stream_frames(
    reader: &mut SnapshotReader<View>,
    resume_at: u64,
    first: SnapshotChunk,
    last: SnapshotChunk,
    chunks: &mpsc::Sender<SnapshotChunk>,
) -> Result<(), Status> {
    let unreadable =
        |error: kvorum_mvcc::StoreError| Status::internal(format!("the snapshot cannot be read: {error}"));
    if resume_at > 0 {
        reader.resume(resume_at);
    }
    if chunks.blocking_send(first).is_err() {
        return Ok(());
    }
    let (started, mut sent) = (Instant::now(), 0);
    while let Some(data) = reader.next_frame().map_err(unreadable)? {
        sent += data.len() as u64;
        if chunks
            .blocking_send(SnapshotChunk {
                data,
                ..SnapshotChunk::default()
            })
            .is_err()
        {
            return Ok(());
        }
        let due = Duration::from_micros(sent * 1_000_000 / RATE_BYTES);
        if let Some(early) = due.checked_sub(started.elapsed()) {
            std::thread::park_timeout(early);
        }
    }
    let _ = chunks.blocking_send(last);
    Ok(())
}

/// Names a snapshot: sender's cluster and term, receiver, and what it covers. The same state gives the same frames.
fn snapshot_id(message: &Message) -> Bytes {
    let mut hash = Sha256::new();
    for number in [message.cluster, message.from, message.term] {
        hash.update(number.to_le_bytes());
    }
    if let MessageBody::Snapshot { meta, .. } = &message.body {
        hash.update(meta.last.term.to_le_bytes());
        hash.update(meta.last.index.to_le_bytes());
    }
    Bytes::copy_from_slice(&hash.finalize()[..16])
}

fn encoded(message: &Message) -> Bytes {
    let mut bytes = Vec::new();
    kvorum_raft::encode_message(message, &mut bytes);
    bytes.into()
}

/// Received snapshots that wait for the core's word.
#[derive(Clone, Default)]
pub(crate) struct Stage(Arc<Mutex<Staging>>);

#[derive(Default)]
struct Staging {
    held: BTreeMap<Staged, StateMachine<LsmStore>>,
    last: Staged,
}

impl Stage {
    /// Takes one in; its place is its alone for as long as this process lives.
    fn put(&self, machine: StateMachine<LsmStore>) -> Staged {
        let mut staging = self.0.lock().expect("no panic while held");
        staging.last += 1;
        let place = staging.last;
        staging.held.insert(place, machine);
        place
    }

    pub(crate) fn take(&self, place: Staged) -> Option<StateMachine<LsmStore>> {
        self.0.lock().expect("no panic while held").held.remove(&place)
    }
}

/// Receives snapshots.
#[derive(Clone)]
pub struct SnapshotReceiver {
    shared: Arc<ReceiverShared>,
}

struct ReceiverShared {
    store_dir: PathBuf,
    store_options: lsm::Options,
    machine_options: kvorum_mvcc::Options,
    stage: Stage,
    inbox: Inbox,
    /// The transfer under way, or broken off. Taken out while frames go in.
    partial: Mutex<Option<Partial>>,
}

struct Partial {
    id: Bytes,
    sink: SnapshotSink<LsmStore>,
}

impl SnapshotReceiver {
    pub(crate) fn new(
        store_dir: PathBuf,
        store_options: lsm::Options,
        machine_options: kvorum_mvcc::Options,
        stage: Stage,
        inbox: Inbox,
    ) -> Self {
        let partial = Mutex::new(None);
        let shared = ReceiverShared {
            store_dir,
            store_options,
            machine_options,
            stage,
            inbox,
            partial,
        };
        SnapshotReceiver {
            shared: Arc::new(shared),
        }
    }

    /// Takes one stream in. A stream that only offers is answered with the chunk to begin at.
    pub(crate) async fn receive(
        &self,
        first: SnapshotChunk,
        mut chunks: Streaming<SnapshotChunk>,
    ) -> Result<SnapshotDone, Status> {
        let offer = first
            .offer
            .ok_or_else(|| Status::invalid_argument("a snapshot starts with an offer"))?;
        let Some(next) = chunks.message().await? else {
            return Ok(SnapshotDone {
                complete: false,
                next_chunk: self.shared.next_chunk(&offer.id),
            });
        };
        let (frames, receiver) = mpsc::channel(FRAMES_AHEAD);
        let shared = self.shared.clone();
        let load = tokio::task::spawn_blocking(move || shared.load(offer.id, receiver));
        let mut chunk = Some(next);
        while let Some(some) = chunk {
            // A loader that gave up says why below.
            if frames.send(some).await.is_err() {
                break;
            }
            chunk = chunks.message().await?;
        }
        drop(frames);
        load.await
            .map_err(|_| Status::internal("loading the snapshot panicked"))?
    }
}

impl ReceiverShared {
    fn next_chunk(&self, id: &Bytes) -> u64 {
        let partial = self.partial.lock().expect("no panic while held");
        partial
            .as_ref()
            .filter(|partial| partial.id == *id)
            .map_or(0, |partial| partial.sink.next_chunk())
    }

    /// Loads frames until the sender's message comes; keeps what came if the stream ends before.
    fn load(&self, id: Bytes, mut frames: mpsc::Receiver<SnapshotChunk>) -> Result<SnapshotDone, Status> {
        let kept = self.partial.lock().expect("no panic while held").take();
        let mut partial = match kept.filter(|partial| partial.id == id) {
            Some(partial) => partial,
            None => Partial {
                id,
                sink: self.sink()?,
            },
        };
        while let Some(chunk) = frames.blocking_recv() {
            if !chunk.message.is_empty() {
                return self.stage(partial.sink, chunk.message);
            }
            if let Err(error) = partial.sink.push(chunk.data) {
                return Err(Status::data_loss(error.to_string()));
            }
        }
        let next_chunk = partial.sink.next_chunk();
        *self.partial.lock().expect("no panic while held") = Some(partial);
        Ok(SnapshotDone {
            complete: false,
            next_chunk,
        })
    }

    fn sink(&self) -> Result<SnapshotSink<LsmStore>, Status> {
        let failed =
            |error: &dyn std::fmt::Display| Status::internal(format!("cannot receive a snapshot: {error}"));
        let installer =
            Installer::begin(&self.store_dir, self.store_options.clone()).map_err(|error| failed(&error))?;
        SnapshotSink::new(installer.into_store()).map_err(|error| failed(&error))
    }

    fn stage(&self, sink: SnapshotSink<LsmStore>, message: Bytes) -> Result<SnapshotDone, Status> {
        let message = kvorum_raft::decode_message(message);
        let message = message.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let machine = sink.finish(self.machine_options.clone());
        let machine = machine.map_err(|error| Status::data_loss(error.to_string()))?;
        let (term, index) = machine.applied();
        let staged = self.stage.put(machine);
        (self.inbox)(Input::SnapshotReceived {
            staged,
            last: LogId { term, index },
            message,
        });
        Ok(SnapshotDone {
            complete: true,
            next_chunk: 0,
        })
    }
}
