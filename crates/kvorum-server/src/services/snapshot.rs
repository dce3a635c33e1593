//! Maintenance/Snapshot: the state as one stream of bytes, of which its reader knows at each moment how much is still
//! to come, and at the end whether it got all of it.
//!
//! The content is kvorum's own (`docs/design/snapshot-format.md`): the same frames that members send each other. They
//! are made from one view of the store, twice: once to learn how long they are, once to send them. No more than a few
//! frames are in memory, however slow the reader is.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kvorum_mvcc::StoreError;
use kvorum_proto::etcdserverpb as pb;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::local::SnapshotFrames;
use crate::metrics::{Method, Metrics};

/// Bytes of one message, as etcd has it.
const BLOB_BYTES: usize = 32 * 1024;
/// The stream is filled with zeros to a multiple of this before its hash: etcdctl takes no other length for whole.
const SECTOR_BYTES: u64 = 512;
/// Messages that wait for the connection.
const MESSAGES_AHEAD: usize = 64;

pub(super) type SnapshotStream = ReceiverStream<Result<pb::SnapshotResponse, Status>>;

/// Starts a thread that may block, which feeds the stream.
pub(super) fn stream(
    frames: Box<dyn SnapshotFrames>,
    version: String,
    metrics: Arc<Metrics>,
) -> SnapshotStream {
    let (messages, receiver) = mpsc::channel(MESSAGES_AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = feed(frames, &version, &messages, &metrics) {
            let status = Status::unavailable(format!("kvorum: the snapshot broke off: {error}; ask again"));
            // The reader hears it, or is gone.
            let _ = messages.blocking_send(Err(status));
        }
    });
    ReceiverStream::new(receiver)
}

fn feed(
    mut frames: Box<dyn SnapshotFrames>,
    version: &str,
    messages: &mpsc::Sender<Result<pb::SnapshotResponse, Status>>,
    metrics: &Metrics,
) -> Result<(), StoreError> {
    let mut remaining = 0;
    while let Some(frame) = frames.next_frame()? {
        if messages.is_closed() {
            return Ok(());
        }
        remaining += frame.len() as u64;
    }
    let padding = remaining.next_multiple_of(SECTOR_BYTES) - remaining;
    remaining += padding;
    frames.restart();
    let (mut hash, mut waiting) = (Sha256::new(), BytesMut::new());
    let send = |blob: Bytes, remaining: u64| {
        let message = pb::SnapshotResponse {
            header: None,
            remaining_bytes: remaining,
            blob,
            version: version.to_owned(),
        };
        metrics.message_out(Method::Snapshot);
        messages.blocking_send(Ok(message)).is_ok()
    };
    loop {
        let frame = frames.next_frame()?;
        let is_end = frame.is_none();
        match frame {
            Some(frame) => waiting.extend_from_slice(&frame),
            None => waiting.resize(waiting.len() + padding as usize, 0),
        }
        while waiting.len() >= BLOB_BYTES || (is_end && !waiting.is_empty()) {
            let blob = waiting.split_to(waiting.len().min(BLOB_BYTES)).freeze();
            hash.update(&blob);
            remaining -= blob.len() as u64;
            if !send(blob, remaining) {
                return Ok(());
            }
        }
        if is_end {
            let digest = hash.finalize();
            send(Bytes::copy_from_slice(&digest), remaining);
            return Ok(());
        }
    }
}
