//! gRPC's health service: a member serves until it drains. A learner refuses these questions like etcd's (`routes`).

use std::pin::Pin;

use kvorum_proto::grpc_health::v1::health_check_response::ServingStatus;
use kvorum_proto::grpc_health::v1::health_server::Health;
use kvorum_proto::grpc_health::v1::{HealthCheckRequest, HealthCheckResponse};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::api::Core;
use crate::http::Phase;

/// The services that can be asked for by name.
const SERVICES: [&str; 10] = [
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Maintenance",
    "v3lockpb.Lock",
    "v3electionpb.Election",
    "kv.KVStore",
    "kv_pb.KVService",
    "raft_pb.RaftService",
    "kvorum.v1.Kvorum",
];

/// See the module.
#[derive(Clone, Debug)]
pub struct HealthService(Core);

impl HealthService {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        HealthService(core)
    }
}

fn answer(phase: Phase) -> HealthCheckResponse {
    let status = if phase == Phase::Serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(*self.0.phase.borrow())))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (changes, receiver) = tokio::sync::mpsc::channel(1);
        let is_known = SERVICES.contains(&request.get_ref().service.as_str());
        let mut phase = self.0.phase.clone();
        tokio::spawn(async move {
            loop {
                let change = match is_known {
                    true => answer(*phase.borrow_and_update()),
                    false => HealthCheckResponse {
                        status: ServingStatus::ServiceUnknown.into(),
                    },
                };
                let is_over = *phase.borrow() > Phase::Serving;
                if changes.send(Ok(change)).await.is_err() || is_over {
                    return;
                }
                tokio::select! {
                    changed = phase.changed() => if changed.is_err() { return },
                    () = changes.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
