//! etcd's Lock service, see [`super::queue`].
//!
//! Errors carry the words of etcd's, and like them the code `Unknown` where a step inside failed.

use kvorum_proto::etcdserverpb as pb;
use kvorum_proto::v3lockpb::lock_server::Lock;
use kvorum_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::queue::{Caller, Place, Queues, step_failed};
use crate::api::Core;
use crate::metrics::Method;
use crate::watching::WatchHandle;

/// See the module.
#[derive(Clone, Debug)]
pub struct LockService(Queues);

impl LockService {
    /// The service of this member.
    pub fn new(core: Core, hub: WatchHandle) -> Self {
        LockService(Queues::new(core, hub))
    }

    async fn acquire(&self, request: Request<LockRequest>) -> Result<LockResponse, Status> {
        let caller = Caller::of(&request);
        let LockRequest { name, lease } = request.into_inner();
        let mut place = self.0.join(&caller, &name, lease, bytes::Bytes::new()).await?;
        let answer = match place.is_first {
            true => Ok(place.header.take()),
            false => wait(&place).await,
        };
        match answer {
            Ok(header) => {
                place.keep();
                let key = place.key.clone();
                Ok(LockResponse { header, key })
            }
            Err(status) => {
                place.withdraw().await;
                Err(status)
            }
        }
    }

    async fn release(&self, request: Request<UnlockRequest>) -> Result<UnlockResponse, Status> {
        let (metadata, extensions, UnlockRequest { key }) = request.into_parts();
        let delete = pb::DeleteRangeRequest {
            key,
            ..pb::DeleteRangeRequest::default()
        };
        let request = Request::from_parts(metadata, extensions, delete);
        let deleted = self.0.delete(request).await.map_err(step_failed)?;
        Ok(UnlockResponse {
            header: deleted.header,
        })
    }
}

/// Waits for the lock; the header of the read that showed that the key is still there.
async fn wait(place: &Place) -> Result<Option<pb::ResponseHeader>, Status> {
    place.turn().await?;
    match place.still_there().await? {
        (header, true) => Ok(header),
        (_, false) => Err(Status::unknown("mutex: session is expired")),
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        self.0.core.counted(Method::Lock, self.acquire(request)).await
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        self.0.core.counted(Method::Unlock, self.release(request)).await
    }
}
