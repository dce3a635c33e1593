//! etcd's Lease service: grants and revocations go through the log, renewals and questions to the leader's deadlines.

use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{FuturesOrdered, StreamExt};
use kvorum_model::{Command, Error, Reply};
use kvorum_mvcc::Applied;
use kvorum_node::LeaseAsk;
use kvorum_proto::etcdserverpb::{self as pb, lease_server::Lease};
use rustc_hash::FxHasher;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use crate::api::Core;
use crate::http::Phase;
use crate::metrics::Method;

/// Answers of one stream that its client has not taken yet.
const ANSWERS_WAITING_MAX: usize = 64;
/// Renewals of one stream that are under way at the same time.
const RENEWALS_MAX: usize = 256;
/// IDs that are tried where the server chooses, before its caller hears that they are taken.
const CHOICES_MAX: usize = 4;

/// See the module.
#[derive(Clone, Debug)]
pub struct EtcdLease {
    core: Core,
    /// IDs that this member chose since its start.
    chosen: Arc<AtomicU64>,
}

impl EtcdLease {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        EtcdLease {
            core,
            chosen: Arc::default(),
        }
    }

    async fn write(&self, context: &Context, command: Command) -> Result<Applied, Status> {
        self.core.write(context, command).await.map_err(Status::from)
    }

    /// A positive ID that hardly anybody else chooses. To the retry of a session's request the same one, or the
    /// session would take it for another request.
    fn choose(&self, context: &Context) -> i64 {
        let mut hasher = FxHasher::default();
        match context.session {
            Some(session) => {
                hasher.write_u64(session.id);
                hasher.write_u64(session.seq);
            }
            None => {
                let identity = self.core.handle.identity();
                hasher.write_u64(identity.member_id);
                hasher.write_u64(identity.boot);
                hasher.write_u64(self.chosen.fetch_add(1, Ordering::Relaxed));
            }
        }
        (hasher.finish() as i64 & i64::MAX).max(1)
    }

    pub(super) async fn grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<pb::LeaseGrantResponse, Status> {
        let context = Context::of(&request, &self.core.handle)?;
        let pb::LeaseGrantRequest {
            ttl: ttl_s,
            id: asked,
        } = request.into_inner();
        let mut tries = if asked == 0 && context.session.is_none() {
            CHOICES_MAX
        } else {
            1
        };
        loop {
            tries -= 1;
            let id = if asked == 0 { self.choose(&context) } else { asked };
            let applied = self.write(&context, Command::LeaseGrant { id, ttl_s }).await?;
            let header = Some(self.core.header_of(&applied));
            match applied.result {
                Ok(Reply::LeaseGranted { id, ttl_s: ttl }) => {
                    return Ok(pb::LeaseGrantResponse {
                        header,
                        id,
                        ttl,
                        error: String::new(),
                    });
                }
                Err(Error::LeaseExists) if tries > 0 => {}
                other => return Err(super::unexpected(other)),
            }
        }
    }

    async fn revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<pb::LeaseRevokeResponse, Status> {
        let context = Context::of(&request, &self.core.handle)?;
        let id = request.into_inner().id;
        let applied = self
            .write(&context, Command::LeaseRevoke { id, expiry: None })
            .await?;
        let header = Some(self.core.header_of(&applied));
        match applied.result {
            Ok(Reply::LeaseRevoked) => Ok(pb::LeaseRevokeResponse { header }),
            other => Err(super::unexpected(other)),
        }
    }

    /// The header is taken before the renewal, as etcd does: a lease that ended at a revision is never seen renewed
    /// at a later one.
    async fn keep_alive(&self, context: &Context, id: i64) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let header = Some(self.core.header(self.core.handle.state().facts().revision));
        self.core.may_renew(context, id).await?;
        let deadline = self.core.handle.deadline(None);
        let answer = self
            .core
            .handle
            .ask_lease(LeaseAsk::KeepAlive, id, deadline)
            .await?;
        let ttl = answer.ttl_s;
        Ok(pb::LeaseKeepAliveResponse { header, id, ttl })
    }

    async fn keep_alive_counted(
        &self,
        context: &Context,
        id: i64,
    ) -> Result<pb::LeaseKeepAliveResponse, Status> {
        self.core.metrics.message_in(Method::LeaseKeepAlive);
        let answer = self.keep_alive(context, id).await?;
        self.core.metrics.message_out(Method::LeaseKeepAlive);
        Ok(answer)
    }

    async fn time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        let context = Context::of(&request, &self.core.handle)?;
        context.check_leader_for_read(&self.core.handle)?;
        let pb::LeaseTimeToLiveRequest { id, keys: with_keys } = request.into_inner();
        self.core.require_user(&context).await?;
        let answer = self
            .core
            .handle
            .ask_lease(LeaseAsk::TimeToLive, id, context.deadline)
            .await?;
        let mut response = pb::LeaseTimeToLiveResponse {
            header: None,
            id,
            ttl: answer.ttl_s,
            granted_ttl: answer.granted_s,
            keys: Vec::new(),
        };
        if with_keys && answer.ttl_s >= 0 {
            self.core.barrier(&context).await?;
            let seen = self.core.lease_keys(&context, id).await?;
            response.header = Some(self.core.header(seen.revision));
            match seen.answer {
                Some(keys) => response.keys = keys,
                // It ended since.
                None => (response.ttl, response.granted_ttl) = (-1, 0),
            }
        } else {
            response.header = Some(self.core.header(self.core.handle.state().facts().revision));
        }
        Ok(response)
    }

    /// By the time at which each would end had nobody renewed it: renewals are known to the leader alone.
    async fn list(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<pb::LeaseLeasesResponse, Status> {
        let context = Context::of(&request, &self.core.handle)?;
        let mut seen = self.core.leases(&context).await?;
        let ends = |lease: &kvorum_mvcc::LeaseRecord| {
            lease
                .granted_ms
                .saturating_add((lease.ttl_s as u64).saturating_mul(1000))
        };
        seen.answer.sort_by_key(|lease| (ends(lease), lease.id));
        let leases = seen.answer.iter().map(|lease| pb::LeaseStatus { id: lease.id });
        Ok(pb::LeaseLeasesResponse {
            header: Some(self.core.header(seen.revision)),
            leases: leases.collect(),
        })
    }
}

/// Answers the renewals of one stream, in their order, until it ends.
///
/// Many are under way at the same time: one client renews all its leases on one stream, perhaps thousands at once. Each
/// of them waits for the leader, and what is not even read meanwhile counts against the whole connection.
async fn renew(
    service: EtcdLease,
    context: Context,
    mut client: Streaming<pb::LeaseKeepAliveRequest>,
    answers: tokio::sync::mpsc::Sender<Result<pb::LeaseKeepAliveResponse, Status>>,
) {
    let mut phase = service.core.phase.clone();
    let reason: Status = {
        let asked = async {
            let mut under_way = FuturesOrdered::new();
            let mut is_open = true;
            loop {
                tokio::select! {
                    Some(answer) = under_way.next() => match answer {
                        Ok(answer) => {
                            if answers.send(Ok(answer)).await.is_err() {
                                return None;
                            }
                        }
                        Err(status) => return Some(status),
                    },
                    request = client.message(), if is_open && under_way.len() < RENEWALS_MAX => match request {
                        Ok(Some(request)) => {
                            under_way.push_back(service.keep_alive_counted(&context, request.id));
                        }
                        Ok(None) => is_open = false,
                        Err(status) => return Some(status),
                    },
                    else => return None,
                }
            }
        };
        tokio::select! {
            reason = asked => match reason {
                Some(reason) => reason,
                None => return,
            },
            () = answers.closed() => return,
            _ = phase.wait_for(|phase| *phase > Phase::Serving) => Status::unavailable("etcdserver: server stopped"),
            () = super::leaderless(&service.core), if context.require_leader => {
                Status::unavailable("etcdserver: no leader")
            }
        }
    };
    // A client that is gone needs no reason.
    let _ = answers.send(Err(reason)).await;
}

type KeepAlives = ReceiverStream<Result<pb::LeaseKeepAliveResponse, Status>>;

#[tonic::async_trait]
impl Lease for EtcdLease {
    type LeaseKeepAliveStream = KeepAlives;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let metrics = &self.core.metrics;
        let started = metrics.begin(Method::LeaseGrant);
        metrics
            .end(Method::LeaseGrant, started, self.grant(request).await)
            .map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let metrics = &self.core.metrics;
        let started = metrics.begin(Method::LeaseRevoke);
        metrics
            .end(Method::LeaseRevoke, started, self.revoke(request).await)
            .map(Response::new)
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<KeepAlives>, Status> {
        let metrics = &self.core.metrics;
        let started = metrics.begin(Method::LeaseKeepAlive);
        let context = Context::of(&request, &self.core.handle);
        let context = metrics.end(Method::LeaseKeepAlive, started, context)?;
        let (answers, receiver) = tokio::sync::mpsc::channel(ANSWERS_WAITING_MAX);
        tokio::spawn(renew(self.clone(), context, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let metrics = &self.core.metrics;
        let started = metrics.begin(Method::LeaseTimeToLive);
        metrics
            .end(Method::LeaseTimeToLive, started, self.time_to_live(request).await)
            .map(Response::new)
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let metrics = &self.core.metrics;
        let started = metrics.begin(Method::LeaseLeases);
        metrics
            .end(Method::LeaseLeases, started, self.list(request).await)
            .map(Response::new)
    }
}
