//! Taking a snapshot's frames into a new store.

use bytes::Bytes;

use super::format::{Frame, Hash, closing_hash};
use super::{SnapshotError, SnapshotHeader};
use crate::machine::{Options, StateMachine};
use crate::state::STATE_KEY;
use crate::store::{Batch, Store, View};

/// Verifies frames and loads them into an empty store.
///
/// A frame that is refused leaves the sink as it was, so the right one may follow; after an error of the store it is
/// of no more use.
pub struct SnapshotSink<S: Store> {
    store: S,
    header: Option<(SnapshotHeader, Hash)>,
    chunks: Vec<Hash>,
    records: u64,
    last_key: Bytes,
    complete: bool,
}

impl<S: Store> std::fmt::Debug for SnapshotSink<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let header = self.header.as_ref().map(|(header, _)| header);
        f.debug_struct("SnapshotSink")
            .field("header", &header)
            .field("chunks", &self.chunks.len())
            .finish()
    }
}

impl<S: Store> SnapshotSink<S> {
    /// Into a store that was never written to.
    pub fn new(store: S) -> Result<Self, SnapshotError> {
        if store.flushed_mark() != 0 || store.view().get(&STATE_KEY)?.is_some() {
            return Err(SnapshotError::NotEmpty);
        }
        let (chunks, last_key) = (Vec::new(), Bytes::new());
        Ok(SnapshotSink {
            store,
            header: None,
            chunks,
            records: 0,
            last_key,
            complete: false,
        })
    }

    /// What the snapshot covers, once its header has come.
    pub fn header(&self) -> Option<&SnapshotHeader> {
        self.header.as_ref().map(|(header, _)| header)
    }

    /// The number of the chunk that is to come next: where a transfer resumes.
    pub fn next_chunk(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// Whether the end frame has come, and agreed.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes one frame in. A header that comes again, at a resumption, must be the same.
    pub fn push(&mut self, frame: Bytes) -> Result<(), SnapshotError> {
        let (frame, hash) = Frame::decode(frame)?;
        match (frame, &self.header) {
            (Frame::Header(header), None) => self.header = Some((header, hash)),
            (Frame::Header(_), Some((_, known))) if *known == hash => {}
            (Frame::Header(_), Some(_)) => return Err(SnapshotError::Damaged("another snapshot's header")),
            (_, None) => return Err(SnapshotError::Damaged("it does not begin with its header")),
            (Frame::Chunk { number, records }, Some(_)) => self.chunk(number, records, hash)?,
            (
                Frame::End {
                    chunks,
                    records,
                    hash,
                },
                Some((_, header_hash)),
            ) => {
                if chunks != self.next_chunk() {
                    return Err(SnapshotError::Order {
                        expected: self.next_chunk(),
                        got: chunks,
                    });
                }
                if records != self.records || hash != closing_hash(header_hash, &self.chunks) {
                    return Err(SnapshotError::Damaged("its end does not fit what came before"));
                }
                self.complete = true;
            }
        }
        Ok(())
    }

    fn chunk(&mut self, number: u64, records: Vec<(Bytes, Bytes)>, hash: Hash) -> Result<(), SnapshotError> {
        if number != self.next_chunk() || self.complete {
            return Err(SnapshotError::Order {
                expected: self.next_chunk(),
                got: number,
            });
        }
        let (Some((first, _)), Some((last, _))) = (records.first(), records.last()) else {
            return Err(SnapshotError::Damaged("a chunk is empty"));
        };
        if *first <= self.last_key {
            return Err(SnapshotError::Damaged("chunks are out of order"));
        }
        let (last, count) = (Bytes::copy_from_slice(last), records.len() as u64);
        self.store.ingest(records)?;
        self.chunks.push(hash);
        self.records += count;
        self.last_key = last;
        Ok(())
    }

    /// Makes what came durable, opens it, and holds it against its header. The machine then takes the place of the
    /// present one by [`StateMachine::replace`].
    pub fn finish(self, options: Options) -> Result<StateMachine<S>, SnapshotError> {
        let Some((header, _)) = self.header.filter(|_| self.complete) else {
            return Err(SnapshotError::Incomplete);
        };
        self.store.write(Batch {
            writes: Vec::new(),
            mark: header.index,
        })?;
        self.store.flush()?;
        let machine = StateMachine::open(self.store, options).map_err(SnapshotError::Open)?;
        if *machine.snapshot().header() != header {
            return Err(SnapshotError::Damaged(
                "what it holds is not what its header says",
            ));
        }
        Ok(machine)
    }
}
