//! The incoming half of a member's peer connections.

use std::pin::Pin;
use std::sync::Arc;

use kvorum_node::{Input, PeerMessage};
use kvorum_proto::kvorum::v1::peer_server::Peer;
use kvorum_proto::kvorum::v1::{Frame, Hello, JoinResponse, PeerJoinRequest, SnapshotChunk, SnapshotDone};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::figures::note_message;
use super::handshake::Acquaintance;
use super::peers::{Inbox, PeerNet};
use super::snapshots::SnapshotReceiver;
use crate::handle::ReplicaHandle;
use crate::joining;
use crate::metrics::Metrics;

/// Serves the peers of one member.
pub struct PeerService {
    acquaintance: Arc<Acquaintance>,
    inbox: Inbox,
    net: PeerNet,
    snapshots: SnapshotReceiver,
    metrics: Arc<Metrics>,
    handle: ReplicaHandle,
}

impl PeerService {
    /// A service that feeds `inbox`.
    pub(crate) fn new(
        acquaintance: Arc<Acquaintance>,
        inbox: Inbox,
        net: PeerNet,
        snapshots: SnapshotReceiver,
        metrics: Arc<Metrics>,
        handle: ReplicaHandle,
    ) -> Self {
        PeerService {
            acquaintance,
            inbox,
            net,
            snapshots,
            metrics,
            handle,
        }
    }

    /// The Hello to answer with, or why there is none.
    fn answer(&self, hello: &Hello) -> Result<Hello, Status> {
        self.acquaintance.judge(hello)?;
        if hello.member_id != 0 {
            self.net.meet(hello.member_id, hello.peer_addresses.clone());
            return Ok(self.acquaintance.hello(hello.member_id));
        }
        let id = self.acquaintance.awaited(&hello.name).ok_or_else(|| {
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
        tokio::spawn(async move {
            // Held to the end: the dialler hears on it that the stream ended.
            let answers = answers;
            while let Ok(Some(frame)) = frames.message().await {
                match PeerMessage::decode(frame.payload) {
                    Ok(message) if message.from == from && from != 0 => {
                        note_message(&metrics, &message);
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

type FrameStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

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
        self.snapshots.receive(first, chunks).await.map(Response::new)
    }

    async fn join(&self, request: Request<PeerJoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let PeerJoinRequest { hello, request } = request.into_inner();
        let hello = hello.ok_or_else(|| Status::invalid_argument("a peer starts with a Hello"))?;
        self.acquaintance.judge(&hello)?;
        if hello.member_id == 0 {
            return Err(Status::permission_denied("only members hand announcements on"));
        }
        let record = joining::record_of(&request.unwrap_or_default())?;
        let deadline = self.handle.deadline(None);
        joining::at_leader(&self.handle, record, deadline)
            .await
            .map(Response::new)
    }
}
