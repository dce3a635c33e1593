//! Whether a running cluster calls a member that is about to found one.
//!
//! A member whose setting says "found a cluster" and whose directory is gone would found a second one, and knows
//! nobody to ask. But the members of the cluster that it belonged to know its address, and go on dialling it: so
//! before it founds anything it listens for a while on its peer port. Whoever calls there by the name of a cluster is
//! asked to take it back ([`super::announcement`]).
//!
//! What it cannot see: a cluster of which no other member runs, or is reachable, or has the same address for it.

use std::sync::Mutex;
use std::time::Duration;

use kvorum_proto::kvorum::v1::peer_server::{Peer, PeerServer};
use kvorum_proto::kvorum::v1::{
    Frame, Hello, IntroduceRequest, IntroduceResponse, JoinResponse, PeerChangeRequest, PeerChangeResponse,
    PeerJoinRequest, SnapshotChunk, SnapshotDone,
};
use kvorum_wal::RealDisk;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use super::directory::StartError;
use super::identity::Identity;
use super::listeners::Listeners;
use super::peer_service::FrameStream;
use super::serve::ServeError;
use crate::http::{HttpLimits, HttpServer, Phase};
use crate::options::ServeOptions;
use crate::routes::RoutesBuilder;

/// Whether this start would found a cluster and is told to listen first.
pub(crate) fn are_awaited(options: &ServeOptions) -> Result<bool, StartError> {
    let founds = options.bootstrap && !options.join && options.join_through.is_empty();
    if !founds || options.listen_before_founding.is_zero() {
        return Ok(false);
    }
    let identity = Identity::load(&RealDisk, &options.data_dir).map_err(StartError::other)?;
    Ok(identity.is_none())
}

/// The peer addresses of a member that called within the time; empty if none did.
///
/// # Errors
/// `Stopped`.
pub(crate) async fn listen(
    options: &ServeOptions,
    listeners: &Listeners,
    stopped: &watch::Receiver<bool>,
) -> Result<Vec<String>, ServeError> {
    let socket = listeners.peer_socket().map_err(StartError::other)?;
    let (tell, mut calls) = mpsc::unbounded_channel();
    let service = PeerServer::new(Listening {
        name: options.name.clone(),
        tell: Mutex::new(tell),
    });
    let routes = RoutesBuilder::default().grpc(service, &[]).build();
    let (phase, _) = watch::channel(Phase::Serving);
    let server = HttpServer::start(vec![(socket, routes)], HttpLimits::default(), 1, phase, |_| {
        std::future::pending()
    })
    .map_err(StartError::other)?;
    let patience: Duration = options.listen_before_founding;
    tracing::info!(
        "before a cluster is founded: does a running one call this member? listening for {patience:?}"
    );
    let mut stopped = stopped.clone();
    let called: Result<Option<Hello>, ServeError> = tokio::select! {
        call = calls.recv() => Ok(call),
        () = tokio::time::sleep(patience) => Ok(None),
        _ = stopped.wait_for(|stopped| *stopped) => Err(StartError::Stopped.into()),
    };
    // Its threads are waited for: not on a thread that runs this.
    tokio::task::spawn_blocking(move || drop(server))
        .await
        .map_err(StartError::other)?;
    let Some(hello) = called? else {
        return Ok(Vec::new());
    };
    tracing::warn!(
        "member {} of a running cluster calls this one at {}: its data directory was lost. No second cluster is \
         founded; this member asks to be taken back",
        hello.name,
        options.peer_address()
    );
    Ok(hello.peer_addresses)
}

/// What a member answers that listens.
struct Listening {
    name: String,
    tell: Mutex<mpsc::UnboundedSender<Hello>>,
}

impl Listening {
    async fn note<T>(&self, calls: Request<Streaming<Frame>>) -> Result<Response<T>, Status> {
        let first = calls.into_inner().message().await?;
        let hello = first.and_then(|frame| frame.hello);
        let of_a_cluster = |hello: &Hello| !hello.cluster_uuid.is_empty() && !hello.peer_addresses.is_empty();
        if let Some(hello) = hello.filter(of_a_cluster) {
            // Only the first is waited for.
            let _ = self.tell.lock().expect("no panic while held").send(hello);
        }
        not_yet()
    }
}

fn not_yet<T>() -> Result<Response<T>, Status> {
    Err(Status::unavailable(
        "this member has an empty data directory, and listens whether a cluster calls it",
    ))
}

#[tonic::async_trait]
impl Peer for Listening {
    type VotesStream = FrameStream;
    type AppendsStream = FrameStream;

    async fn votes(&self, calls: Request<Streaming<Frame>>) -> Result<Response<FrameStream>, Status> {
        self.note(calls).await
    }

    async fn appends(&self, calls: Request<Streaming<Frame>>) -> Result<Response<FrameStream>, Status> {
        self.note(calls).await
    }

    async fn snapshot(&self, _: Request<Streaming<SnapshotChunk>>) -> Result<Response<SnapshotDone>, Status> {
        not_yet()
    }

    async fn join(&self, _: Request<PeerJoinRequest>) -> Result<Response<JoinResponse>, Status> {
        not_yet()
    }

    async fn change(&self, _: Request<PeerChangeRequest>) -> Result<Response<PeerChangeResponse>, Status> {
        not_yet()
    }

    async fn introduce(&self, _: Request<IntroduceRequest>) -> Result<Response<IntroduceResponse>, Status> {
        let name = self.name.clone();
        Ok(Response::new(IntroduceResponse { name }))
    }
}
