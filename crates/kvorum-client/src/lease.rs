//! Leases: keys that live as long as somebody renews them.

use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::proto::etcd;
use crate::proto::etcd::lease_client::LeaseClient;
use crate::{Client, Error, MESSAGE_BYTES_MAX};

fn lease(channel: Channel) -> LeaseClient<Channel> {
    LeaseClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// One renewal: a stream that is asked once.
async fn renew_once(
    channel: Channel,
    request: Request<etcd::LeaseKeepAliveRequest>,
) -> Result<Response<etcd::LeaseKeepAliveResponse>, Status> {
    let (metadata, extensions, message) = request.into_parts();
    // The stream stays open until the answer is there: a server may end with its client.
    let asked = tokio_stream::once(message).chain(tokio_stream::pending());
    let asked = Request::from_parts(metadata, extensions, asked);
    let mut answers = lease(channel).lease_keep_alive(asked).await?.into_inner();
    match answers.message().await? {
        Some(answer) => Ok(Response::new(answer)),
        None => Err(Status::unavailable("the stream ended without an answer")),
    }
}

impl Client {
    /// Grants a lease of `ttl_s` seconds; with `id` 0 an ID is chosen. The answer says how long it really lives: the
    /// cluster has a least.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn lease_grant(&self, ttl_s: i64, id: i64) -> Result<etcd::LeaseGrantResponse, Error> {
        // Chosen here, so that the request is the same whenever it is sent again.
        let id = if id == 0 { fastrand::i64(1..) } else { id };
        let request = etcd::LeaseGrantRequest { ttl: ttl_s, id };
        self.write(request, |channel, request| async move {
            lease(channel).lease_grant(request).await
        })
        .await
    }

    /// Ends a lease and deletes its keys, in one revision.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn lease_revoke(&self, id: i64) -> Result<etcd::LeaseRevokeResponse, Error> {
        let request = etcd::LeaseRevokeRequest { id };
        self.write(request, |channel, request| async move {
            lease(channel).lease_revoke(request).await
        })
        .await
    }

    /// Renews a lease once. The answer's TTL is 0 if it is gone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease_keep_alive(&self, id: i64) -> Result<etcd::LeaseKeepAliveResponse, Error> {
        let request = etcd::LeaseKeepAliveRequest { id };
        self.read(request, renew_once).await
    }

    /// How long a lease lives, in seconds (-1: it is gone), and with `keys` which keys go with it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease_time_to_live(
        &self,
        id: i64,
        keys: bool,
    ) -> Result<etcd::LeaseTimeToLiveResponse, Error> {
        let request = etcd::LeaseTimeToLiveRequest { id, keys };
        self.read(request, |channel, request| async move {
            lease(channel).lease_time_to_live(request).await
        })
        .await
    }

    /// All leases that the member which answers knows of.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leases(&self) -> Result<etcd::LeaseLeasesResponse, Error> {
        let request = etcd::LeaseLeasesRequest {};
        self.read(request, |channel, request| async move {
            lease(channel).lease_leases(request).await
        })
        .await
    }
}
