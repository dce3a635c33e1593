//! etcd's Election service, see [`super::queue`].
//!
//! Errors carry the words of etcd's, and like them the code `Unknown` where a step inside failed.

use kvorum_model::KeyRange;
use kvorum_proto::etcdserverpb as pb;
use kvorum_proto::v3electionpb::election_server::Election;
use kvorum_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::queue::{Caller, Place, Queues, below, is_delete, prefix_of, step_failed};
use crate::api::Core;
use crate::metrics::Method;
use crate::watching::WatchHandle;

/// Proclamations of one stream that its client has not taken yet.
const PROCLAMATIONS_WAITING_MAX: usize = 16;

/// See the module.
#[derive(Clone, Debug)]
pub struct ElectionService(Queues);

impl ElectionService {
    /// The service of this member.
    pub fn new(core: Core, hub: WatchHandle) -> Self {
        ElectionService(Queues::new(core, hub))
    }

    async fn stand(&self, request: Request<CampaignRequest>) -> Result<CampaignResponse, Status> {
        let caller = Caller::of(&request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let mut place = self.0.join(&caller, &name, lease, value.clone()).await?;
        if let Err(status) = wait(&place, value).await {
            place.withdraw().await;
            return Err(status);
        }
        place.keep();
        Ok(CampaignResponse {
            header: place.header.take(),
            leader: Some(LeaderKey {
                name,
                key: place.key.clone(),
                rev: place.revision,
                lease: place.lease,
            }),
        })
    }

    async fn say(&self, request: Request<ProclaimRequest>) -> Result<ProclaimResponse, Status> {
        let caller = Caller::of(&request);
        let (metadata, extensions, ProclaimRequest { leader, value }) = request.into_parts();
        let leader = leader.ok_or_else(no_leader_key)?;
        let lease = self
            .0
            .lease_or_new(&caller, leader.lease)
            .await
            .map_err(step_failed)?;
        let put = pb::PutRequest {
            key: leader.key,
            value,
            lease,
            ..pb::PutRequest::default()
        };
        let request = Request::from_parts(metadata, extensions, (put, leader.rev));
        let answer = self.0.proclaim(request).await.map_err(step_failed)?;
        match answer.succeeded {
            true => Ok(ProclaimResponse {
                header: answer.header,
            }),
            false => Err(not_leader()),
        }
    }

    async fn who_leads(&self, request: Request<LeaderRequest>) -> Result<LeaderResponse, Status> {
        let caller = Caller::of(&request);
        let prefix = prefix_of(&request.get_ref().name);
        let first = async { self.0.first(&caller, &prefix).await.map_err(step_failed) };
        let found = self.0.within(&caller, first).await?;
        match found.kvs.into_iter().next() {
            Some(kv) => Ok(LeaderResponse {
                header: found.header,
                kv: Some(kv),
            }),
            None => Err(Status::unknown("election: no leader")),
        }
    }

    async fn give_up(&self, request: Request<ResignRequest>) -> Result<ResignResponse, Status> {
        let (metadata, extensions, ResignRequest { leader }) = request.into_parts();
        let leader = leader.ok_or_else(no_leader_key)?;
        let request = Request::from_parts(metadata, extensions, (leader.key, leader.rev));
        // Somebody who does not lead any more has nothing to give up.
        let answer = self.0.resign(request).await.map_err(step_failed)?;
        Ok(ResignResponse {
            header: answer.header,
        })
    }
}

fn no_leader_key() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

/// Says `value` and waits for the leadership.
async fn wait(place: &Place, value: bytes::Bytes) -> Result<(), Status> {
    if place
        .earlier
        .as_ref()
        .is_some_and(|earlier| earlier.value != value)
        && !place.proclaim(value).await.map_err(step_failed)?.succeeded
    {
        return Err(not_leader());
    }
    if place.is_first {
        return Ok(());
    }
    place.turn().await?;
    match place.still_there().await? {
        (_, true) => Ok(()),
        // etcd says that it leads.
        (_, false) => Err(Status::unknown("election: session is expired")),
    }
}

/// One leader after the other, and what each says, until the client is gone.
async fn observe(
    queues: &Queues,
    caller: &Caller,
    name: &[u8],
    answers: &mpsc::Sender<Result<LeaderResponse, Status>>,
) -> Result<(), Status> {
    let prefix = prefix_of(name);
    let send = async |header, kv: kvorum_proto::mvccpb::KeyValue| {
        let answer = LeaderResponse {
            header: Some(header),
            kv: Some(kv),
        };
        queues.core.metrics.message_out(Method::Observe);
        answers.send(Ok(answer)).await.is_ok()
    };
    loop {
        let found = queues.first(caller, &prefix).await.map_err(step_failed)?;
        let header = found.header.unwrap_or_default();
        let (header, kv) = match found.kvs.into_iter().next() {
            Some(kv) => (header, kv),
            None => match first_put(queues, caller, below(&prefix), header.revision).await? {
                Some(kv) => (queues.core.header(kv.mod_revision), kv),
                None => continue,
            },
        };
        let (key, seen) = (kv.key.clone(), header.revision);
        if !send(header, kv).await {
            return Ok(());
        }
        let mut watching = queues.watch(caller, KeyRange::point(key), seen + 1).await?;
        'leader: while let Some((revision, events)) = watching.next().await? {
            for event in events {
                if is_delete(&event) {
                    break 'leader;
                }
                if !send(queues.core.header(revision), event.kv.into()).await {
                    return Ok(());
                }
            }
        }
    }
}

/// The first key that is put below a prefix; `None`: its history is gone.
async fn first_put(
    queues: &Queues,
    caller: &Caller,
    range: KeyRange,
    from: i64,
) -> Result<Option<kvorum_proto::mvccpb::KeyValue>, Status> {
    let mut watching = queues.watch(caller, range, from).await?;
    while let Some((_, events)) = watching.next().await? {
        if let Some(put) = events.into_iter().find(|event| !is_delete(event)) {
            return Ok(Some(put.kv.into()));
        }
    }
    Ok(None)
}

#[tonic::async_trait]
impl Election for ElectionService {
    type ObserveStream = ReceiverStream<Result<LeaderResponse, Status>>;

    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        self.0.core.counted(Method::Campaign, self.stand(request)).await
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        self.0.core.counted(Method::Proclaim, self.say(request)).await
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        self.0.core.counted(Method::Leader, self.who_leads(request)).await
    }

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = Caller::of(&request);
        let name = request.into_inner().name;
        let (answers, receiver) = mpsc::channel(PROCLAMATIONS_WAITING_MAX);
        let queues = self.0.clone();
        tokio::spawn(async move {
            let observing = queues.within(&caller, observe(&queues, &caller, &name, &answers));
            let ended = tokio::select! {
                ended = observing => ended,
                () = answers.closed() => return,
            };
            if let Err(status) = ended {
                // The client hears it, or is gone.
                let _ = answers.send(Err(status)).await;
            }
        });
        let started = async { Ok(ReceiverStream::new(receiver)) };
        self.0.core.counted(Method::Observe, started).await
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        self.0.core.counted(Method::Resign, self.give_up(request)).await
    }
}
