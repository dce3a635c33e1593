//! A member's state as one stream of bytes: etcd's Maintenance/Snapshot.

use std::io::Write;

use kvorum_proto::etcdserverpb::SnapshotRequest;
use kvorum_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use sha2::{Digest, Sha256};
use tonic::Request;

use crate::error::{Error, describe, rejected};
use crate::{Client, MESSAGE_BYTES_MAX};

impl Client {
    /// Writes the state of the server at hand to `out`: the snapshot, and the SHA-256 of it that the server sent and
    /// that was found right. How many bytes that are. A stream that breaks off is not taken up again.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Protocol`] if less came than was announced, or the hash is another.
    pub async fn snapshot(&self, out: &mut impl Write) -> Result<u64, Error> {
        let inner = &self.inner;
        let (_, endpoint) = inner.endpoints.preferred();
        let unavailable = |message: String| Error::Unavailable { message };
        let channel = endpoint
            .channel(inner.attempt_timeout)
            .await
            .map_err(unavailable)?;
        let mut request = Request::new(SnapshotRequest {});
        let signed = self.sign(&channel, inner.attempt_timeout, &mut request).await;
        signed.map_err(|status| rejected(&status))?;
        let mut client = MaintenanceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = client.snapshot(request).await;
        let mut stream = answer.map_err(|status| rejected(&status))?.into_inner();
        let (mut hash, mut bytes, mut remaining) = (Sha256::new(), 0, None);
        loop {
            let message = stream.message().await;
            let message = message.map_err(|status| unavailable(describe(&status)))?;
            let message = message.ok_or_else(|| Error::Protocol("the snapshot broke off".to_owned()))?;
            out.write_all(&message.blob)
                .map_err(|error| Error::Config(format!("the snapshot cannot be written: {error}")))?;
            bytes += message.blob.len() as u64;
            if remaining == Some(0) {
                return match message.blob[..] == hash.finalize()[..] {
                    true => Ok(bytes),
                    false => Err(Error::Protocol("the snapshot came damaged".to_owned())),
                };
            }
            hash.update(&message.blob);
            remaining = Some(message.remaining_bytes);
        }
    }
}
