//! Founders of whom only the address is known say their names before the cluster is founded.
//!
//! A founder's ID is made from its name, so every founder must know all names first. Until it does, a member serves
//! nothing but its own name on its peer port; afterwards everybody goes on answering that question. So members
//! that start at any time find each other, and none waits for one that waits for it.

use std::time::{Duration, Instant};

use kvorum_proto::kvorum::v1::peer_server::{Peer, PeerServer};
use kvorum_proto::kvorum::v1::{
    Frame, IntroduceRequest, IntroduceResponse, JoinResponse, PeerChangeRequest, PeerChangeResponse,
    PeerJoinRequest, SnapshotChunk, SnapshotDone,
};
use kvorum_wal::RealDisk;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::directory::StartError;
use super::identity::Identity;
use super::listeners::Listeners;
use super::peer_service::FrameStream;
use super::peers;
use super::serve::ServeError;
use crate::http::{HttpLimits, HttpServer, Phase};
use crate::options::{Address, Founder, ServeOptions, check_name};
use crate::routes::RoutesBuilder;

/// Pauses between tries, doubling from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest that one may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the log says for whom this member still waits.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// Whether names are missing: once the cluster's own records are known, they have everything.
pub(crate) fn is_needed(options: &ServeOptions) -> Result<bool, StartError> {
    if options.unnamed_founders.is_empty() {
        return Ok(false);
    }
    let identity = Identity::load(&RealDisk, &options.data_dir).map_err(StartError::other)?;
    Ok(identity.is_none_or(|identity| identity.cluster_uuid == 0))
}

/// All founders, once each has said its name; asks for ever.
///
/// # Errors
/// `Stopped`.
pub(crate) async fn learn_names(
    options: &ServeOptions,
    listeners: &Listeners,
    stopped: &watch::Receiver<bool>,
) -> Result<Vec<Founder>, ServeError> {
    let socket = listeners.peer_socket().map_err(StartError::other)?;
    let service = PeerServer::new(Introduction {
        name: options.name.clone(),
    });
    let routes = RoutesBuilder::default().grpc(service, &[]).build();
    let (phase, _) = watch::channel(Phase::Serving);
    let server = HttpServer::start(vec![(socket, routes)], HttpLimits::default(), 1, phase, |_| {
        std::future::pending()
    })
    .map_err(StartError::other)?;
    let mut stopped = stopped.clone();
    let learned = tokio::select! {
        learned = ask_all(options) => Ok(learned),
        _ = stopped.wait_for(|stopped| *stopped) => Err(StartError::Stopped.into()),
    };
    // Its threads are waited for: not on a thread that runs this.
    tokio::task::spawn_blocking(move || drop(server))
        .await
        .map_err(StartError::other)?;
    learned
}

async fn ask_all(options: &ServeOptions) -> Vec<Founder> {
    let mut founders = options.initial_cluster.clone();
    let mut missing = options.unnamed_founders.clone();
    let (mut pause, mut told) = (BACKOFF.0, None);
    loop {
        let mut still = Vec::new();
        for address in missing {
            match ask(&address, &options.name).await {
                Ok(name) if name == options.name => {
                    tracing::info!("{address} is this member");
                    let own = founders.iter_mut().filter(|founder| founder.name == name);
                    own.for_each(|founder| founder.address = address.clone());
                }
                Ok(name) if founders.iter().any(|founder| founder.name == name) => {
                    tracing::info!("{address} is {name}, which is listed already");
                }
                Ok(name) => {
                    tracing::info!("{address} is {name}");
                    founders.push(Founder { name, address });
                }
                Err(status) => {
                    tracing::debug!("{address} does not say its name yet: {}", status.message());
                    still.push(address);
                }
            }
        }
        if still.is_empty() {
            return founders;
        }
        if told.is_none_or(|told: Instant| told.elapsed() >= TELL_INTERVAL) {
            told = Some(Instant::now());
            let names: Vec<String> = still.iter().map(ToString::to_string).collect();
            tracing::info!(
                "before the cluster is founded, {} must say its name",
                names.join(", ")
            );
        }
        missing = still;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

async fn ask(address: &Address, own: &str) -> Result<String, Status> {
    let question = async {
        let mut client = peers::connect(&address.to_string()).await?;
        let request = IntroduceRequest { name: own.to_owned() };
        let name = client.introduce(request).await?.into_inner().name;
        check_name("its name", &name).map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(name)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, question)
        .await
        .map_err(|_| Status::unavailable("no answer"))?
}

/// What a member answers that does not know all founders yet.
struct Introduction {
    name: String,
}

fn not_yet<T>() -> Result<Response<T>, Status> {
    Err(Status::unavailable(
        "this member waits for other founders to say their names",
    ))
}

#[tonic::async_trait]
impl Peer for Introduction {
    type VotesStream = FrameStream;
    type AppendsStream = FrameStream;

    async fn votes(&self, _: Request<Streaming<Frame>>) -> Result<Response<FrameStream>, Status> {
        not_yet()
    }

    async fn appends(&self, _: Request<Streaming<Frame>>) -> Result<Response<FrameStream>, Status> {
        not_yet()
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
