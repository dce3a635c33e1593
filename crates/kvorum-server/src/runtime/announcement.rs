//! How a member that nobody announced joins: it announces itself through the client port of a running member, or, if
//! one called it ([`super::callers`]), through its peer port.
//!
//! The announcement carries the number of the new directory (its incarnation). A new name becomes a learner, which
//! is promoted once it is in sync; a known one whose member has fallen silent is replaced. To announce twice changes
//! nothing, so everything that may pass is tried again until the time is over. From the answer the newcomer knows
//! its ID and the members' peer addresses; the first of them that knows of it, too, tells it the cluster.

use std::fmt;
use std::time::{Duration, Instant};

use kvorum_proto::kvorum::v1::kvorum_client::KvorumClient;
use kvorum_proto::kvorum::v1::{JoinRequest, JoinResponse, PeerJoinRequest};
use tokio::sync::watch;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::directory::StartError;
use super::handshake::{Acquaintance, read_u128};
use super::identity::Identity;
use super::peers::{self, connect};
use crate::options::{Address, ServeOptions};

/// Pauses between tries, doubling from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest that one member may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a member announces itself.
#[derive(Debug)]
pub(crate) enum Door {
    /// A client port.
    Client(Address),
    /// A peer port.
    Peer(String),
}

impl Door {
    /// Those that the options name, and those of members that called.
    pub(crate) fn all(options: &ServeOptions, callers: Vec<String>) -> Vec<Door> {
        let told = options.join_through.iter().cloned().map(Door::Client);
        told.chain(callers.into_iter().map(Door::Peer)).collect()
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Door::Client(address) => address.fmt(f),
            Door::Peer(address) => write!(f, "the peer port {address}"),
        }
    }
}

/// Announces this member until it is taken up, refused for good, or told to stop.
///
/// # Errors
/// `Refused`, `NotJoined`, `Stopped`.
pub(crate) async fn join(
    options: &ServeOptions,
    incarnation: u128,
    doors: &[Door],
    stopped: &watch::Receiver<bool>,
) -> Result<Identity, StartError> {
    let mut stopped = stopped.clone();
    tokio::select! {
        joined = until_joined(options, incarnation, doors) => joined,
        _ = stopped.wait_for(|stopped| *stopped) => Err(StartError::Stopped),
    }
}

async fn until_joined(
    options: &ServeOptions,
    incarnation: u128,
    doors: &[Door],
) -> Result<Identity, StartError> {
    let deadline = Instant::now() + options.join_timeout;
    let (mut pause, mut told) = (BACKOFF.0, String::new());
    for through in doors.iter().cycle() {
        let last = match announce(options, incarnation, through).await {
            Ok(identity) => {
                tracing::info!(member = %format_args!("{:016x}", identity.member), "joined through {through}");
                return Ok(identity);
            }
            Err(status) if is_final(status.code()) => {
                return Err(StartError::Refused(status.message().to_owned()));
            }
            Err(status) => status.message().to_owned(),
        };
        if last != told {
            tracing::warn!("cannot join through {through} yet: {last}");
        }
        if Instant::now() + pause >= deadline {
            return Err(StartError::NotJoined {
                through: through.to_string(),
                seconds: options.join_timeout.as_secs_f64(),
                last,
            });
        }
        told = last;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
    unreachable!("the list is not empty, and so the cycle does not end")
}

/// What stays as it is, however often one asks.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented | Code::Unauthenticated
    )
}

async fn announce(options: &ServeOptions, incarnation: u128, through: &Door) -> Result<Identity, Status> {
    let slow = |_| Status::unavailable(format!("{through} does not answer"));
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask_to_join(options, incarnation, through));
    let answer = answer.await.map_err(slow)??;
    let id = answer.member.as_ref().map_or(0, |member| member.id);
    let mut last = Status::unavailable("no member of the cluster is known there");
    let others = answer.members.iter().filter(|member| member.id != id);
    for address in others.flat_map(|member| &member.peer_addresses) {
        match peers::ask(address, Acquaintance::joiner_hello(&options.name, Vec::new())).await {
            Ok(hello) if hello.to_member_id == id && id != 0 => {
                return Ok(Identity {
                    member: id,
                    name: options.name.clone(),
                    token: options.cluster_token.clone(),
                    token_hash: read_u128(&hello.token_hash)?,
                    cluster_uuid: read_u128(&hello.cluster_uuid)?,
                    incarnation,
                    founders: Vec::new(),
                    started: false,
                });
            }
            Ok(_) => last = Status::unavailable(format!("{address} does not know of this member yet")),
            Err(status) => last = status,
        }
    }
    // Whoever is behind, or gone, is asked again: the announcement stands.
    Err(Status::unavailable(last.message()))
}

async fn ask_to_join(
    options: &ServeOptions,
    incarnation: u128,
    through: &Door,
) -> Result<JoinResponse, Status> {
    let request = JoinRequest {
        name: options.name.clone(),
        peer_addresses: vec![options.peer_address().to_string()],
        incarnation: incarnation.to_be_bytes().to_vec().into(),
    };
    let through = match through {
        Door::Client(address) => address,
        Door::Peer(address) => {
            let request = PeerJoinRequest {
                hello: Some(Acquaintance::joiner_hello(&options.name, Vec::new())),
                request: Some(request),
            };
            let answer = connect(address).await?.join(request).await?;
            return Ok(answer.into_inner());
        }
    };
    let endpoint = Endpoint::from_shared(format!("http://{through}"))
        .map_err(|error| Status::invalid_argument(format!("{through}: {error}")))?;
    let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
    let channel = channel.map_err(|_| Status::unavailable(format!("{through} cannot be reached")))?;
    let answer = KvorumClient::new(channel).join(request).await?;
    Ok(answer.into_inner())
}
