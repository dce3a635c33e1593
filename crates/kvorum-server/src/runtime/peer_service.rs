//! The incoming half of a member's peer connections.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use kvorum_node::{Input, PeerMessage};
use kvorum_proto::kvorum::v1::peer_server::Peer;
use kvorum_proto::kvorum::v1::{
    Frame, Hello, IntroduceRequest, IntroduceResponse, JoinResponse, PeerChangeRequest, PeerChangeResponse,
    PeerJoinRequest, SnapshotChunk, SnapshotDone,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::figures::note_message;
use super::handshake::Acquaintance;
use super::peers::{Inbox, PeerNet};
use super::snapshots::SnapshotReceiver;
use crate::handle::ReplicaHandle;
use crate::http::Phase;
use crate::joining;
use crate::metrics::Metrics;
use crate::operations;
use crate::pending::Pending;

/// Between two looks at whether requests are still under way.
const FAREWELL_POLL: Duration = Duration::from_millis(10);

/// Serves the peers of one member.
pub struct PeerService {
    acquaintance: Arc<Acquaintance>,
    inbox: Inbox,
    net: PeerNet,
    snapshots: SnapshotReceiver,
    metrics: Arc<Metrics>,
    handle: ReplicaHandle,
    farewell: Option<Farewell>,
    open_join: bool,
}

/// When peers that share the port of clients are let go: their streams would not end by themselves, and the drain
/// waits for all; while requests are under way, they are needed.
#[derive(Clone)]
pub(crate) struct Farewell {
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) pending: Arc<Pending>,
}

impl Farewell {
    async fn wait(mut self) {
        // A server that is gone drains nothing any more.
        let _ = self.phase.wait_for(|phase| *phase > Phase::Serving).await;
        while !self.pending.is_empty() {
            tokio::time::sleep(FAREWELL_POLL).await;
        }
    }
}

impl PeerService {
    /// Whether the cluster has this member: by its records, or by its configuration, which names founders before they
    /// have said their names.
    fn is_member(&self, id: u64) -> bool {
        self.acquaintance.is_member(id) || self.handle.status().configuration.contains(id)
    }

    /// A service that feeds `inbox`.
    pub(crate) fn new(
        acquaintance: Arc<Acquaintance>,
        inbox: Inbox,
        net: PeerNet,
        snapshots: SnapshotReceiver,
        metrics: Arc<Metrics>,
        handle: ReplicaHandle,
        farewell: Option<Farewell>,
    ) -> Self {
        PeerService {
            acquaintance,
            inbox,
            net,
            snapshots,
            metrics,
            handle,
            farewell,
            open_join: false,
        }
    }

    /// Whoever is no member yet may announce itself here.
    pub(crate) fn open_to_joiners(self, open_join: bool) -> Self {
        PeerService { open_join, ..self }
    }

    /// The Hello to answer with, or why there is none.
    fn answer(&self, hello: &Hello) -> Result<Hello, Status> {
        self.acquaintance.judge(hello)?;
        if hello.member_id != 0 {
            self.net.meet(hello.member_id, hello.peer_addresses.clone());
            return Ok(self.acquaintance.hello(hello.member_id));
        }
        let id = self
            .acquaintance
            .awaited(&hello.name, &hello.peer_addresses)
            .ok_or_else(|| {
                Status::not_found(format!(
                    "no member named {} is awaited here; announce it first: `kvorum member replace {}`",
                    hello.name, hello.name
                ))
            })?;
        Ok(self.acquaintance.hello(id))
    }

    async fn serve(&self, request: Request<Streaming<Frame>>) -> Result<Response<FrameStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.and_then(|frame| frame.hello);
        let hello = first.ok_or_else(|| Status::invalid_argument("a peer stream starts with a Hello"))?;
        let answer = self.answer(&hello)?;
        let (answers, receiver) = mpsc::channel(1);
        let first = Frame {
            hello: Some(answer),
            ..Frame::default()
        };
        answers.try_send(Ok(first)).expect("a new channel has room");
        let (inbox, metrics, from) = (self.inbox.clone(), self.metrics.clone(), hello.member_id);
        let (farewell, net) = (self.farewell.clone(), self.net.clone());
        let acquaintance = self.acquaintance.clone();
        let figures = (from != 0).then(|| metrics.peers.of(from));
        tokio::spawn(async move {
            // Held to the end: the dialler hears on it that the stream ended.
            let answers = answers;
            let mut let_go = pin!(async {
                match farewell {
                    Some(farewell) => farewell.wait().await,
                    None => std::future::pending().await,
                }
            });
            loop {
                let frame = tokio::select! {
                    frame = frames.message() => frame,
                    () = &mut let_go => break,
                };
                let Ok(Some(frame)) = frame else { break };
                if let Some(figures) = &figures {
                    figures.received_bytes.add(frame.payload.len() as u64);
                }
                // Nothing could be answered any more, not even that it was removed: it hears that when it calls again.
                if !net.has(from)
                    && let Err(removed) = acquaintance.check_not_removed(from)
                {
                    let _ = answers.send(Err(removed)).await;
                    break;
                }
                match PeerMessage::decode(frame.payload) {
                    Ok(message) if message.from == from && from != 0 => {
                        note_message(&metrics, &message);
                        net.note_answer(&message);
                        inbox(Input::Peer(message));
                    }
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!(peer = %format_args!("{from:016x}"), "dropped a connection: {error}");
                        let _ = answers
                            .send(Err(Status::invalid_argument(error.to_string())))
                            .await;
                        break;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

pub(crate) type FrameStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type VotesStream = FrameStream;
    type AppendsStream = FrameStream;

    async fn votes(&self, request: Request<Streaming<Frame>>) -> Result<Response<FrameStream>, Status> {
        self.serve(request).await
    }

    async fn appends(&self, request: Request<Streaming<Frame>>) -> Result<Response<FrameStream>, Status> {
        self.serve(request).await
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotDone>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a snapshot starts with a Hello"))?;
        let hello = first
            .hello
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("a snapshot starts with a Hello"))?;
        self.acquaintance.judge(hello)?;
        if hello.member_id == 0 {
            return Err(Status::permission_denied("only members send snapshots"));
        }
        self.snapshots.receive(first, chunks).await.map(Response::new)
    }

    async fn change(
        &self,
        request: Request<PeerChangeRequest>,
    ) -> Result<Response<PeerChangeResponse>, Status> {
        let mut request = request.into_inner();
        let hello = request.hello.take();
        let hello = hello.ok_or_else(|| Status::invalid_argument("a peer starts with a Hello"))?;
        self.acquaintance.judge(&hello)?;
        if !self.is_member(hello.member_id) {
            return Err(Status::permission_denied("only members hand changes on"));
        }
        operations::forwarded(&self.handle, request)
            .await
            .map(Response::new)
    }

    async fn join(&self, request: Request<PeerJoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let PeerJoinRequest { hello, request } = request.into_inner();
        let hello = hello.ok_or_else(|| Status::invalid_argument("a peer starts with a Hello"))?;
        self.acquaintance.judge(&hello)?;
        let from_member = self.is_member(hello.member_id);
        if !from_member && !self.open_join {
            return Err(Status::permission_denied("only members hand announcements on"));
        }
        // Who is no member has no name here, and so no right where rights count.
        if !from_member && self.handle.state().auth().is_enabled() {
            return Err(Status::permission_denied(
                "authentication is on, so members do not announce themselves; an administrator announces this one: \
                 `kvorum member add`",
            ));
        }
        let request = request.unwrap_or_default();
        let record = joining::record_of(&request)?;
        let leader = self.handle.leader();
        if !from_member && leader != self.handle.identity().member_id {
            return self.net.forward_join(leader, request).await.map(Response::new);
        }
        let deadline = self.handle.deadline(None);
        joining::at_leader(&self.handle, record, deadline)
            .await
            .map(Response::new)
    }

    async fn introduce(&self, _: Request<IntroduceRequest>) -> Result<Response<IntroduceResponse>, Status> {
        let name = self.acquaintance.identity().name;
        Ok(Response::new(IntroduceResponse { name }))
    }
}
