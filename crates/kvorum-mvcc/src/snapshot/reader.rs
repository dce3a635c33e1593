//! Writing a snapshot's frames from a view.

use std::ops::Bound;

use bytes::Bytes;

use super::SnapshotHeader;
use super::format::{ChunkWriter, Hash, end_frame};
use crate::read::Published;
use crate::store::{StoreError, View};

/// Yields the frames of a snapshot, one a call; on any thread, while entries are applied elsewhere.
///
/// It holds a store view for as long as it lives. The same reader gives the same bytes for a chunk again, so a
/// transfer that broke off resumes with [`SnapshotReader::resume`].
pub struct SnapshotReader<V> {
    view: V,
    header: SnapshotHeader,
    header_hash: Option<Hash>,
    /// For each chunk that was read: its hash, its last key, and its records.
    chunks: Vec<(Hash, Bytes, u64)>,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Header,
    Chunk,
    End,
    Nothing,
}

impl<V: View> std::fmt::Debug for SnapshotReader<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader")
            .field("header", &self.header)
            .field("next", &self.next)
            .finish()
    }
}

impl<V: View> SnapshotReader<V> {
    pub(crate) fn new(published: &Published<V>) -> Self {
        let state = &published.state;
        SnapshotReader {
            view: published.view.clone(),
            header: SnapshotHeader {
                term: state.term,
                index: state.index,
                time_ms: state.time_ms,
                revision: state.revision,
                compacted: state.compacted,
                live_keys: state.live_keys,
                feature_level: state.feature_level,
                digest: state.digest,
                configuration: published.configuration.clone(),
            },
            header_hash: None,
            chunks: Vec::new(),
            next: Next::Header,
        }
    }

    /// What the snapshot covers.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The next frame: header, chunks, end; then `None` for ever.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, StoreError> {
        match self.next {
            Next::Header => {
                let (frame, hash) = self.header.encode();
                self.header_hash = Some(hash);
                self.next = Next::Chunk;
                Ok(Some(frame))
            }
            Next::Chunk => match self.chunk()? {
                Some(frame) => Ok(Some(frame)),
                None => {
                    self.next = Next::End;
                    self.next_frame()
                }
            },
            Next::End => {
                self.next = Next::Nothing;
                let records = self.chunks.iter().map(|(_, _, records)| records).sum();
                let hashes: Vec<Hash> = self.chunks.iter().map(|(hash, _, _)| *hash).collect();
                Ok(Some(end_frame(records, &self.header_hash(), &hashes)))
            }
            Next::Nothing => Ok(None),
        }
    }

    /// Goes back, so that chunk `number` comes next.
    ///
    /// # Panics
    /// If that chunk lies beyond what was read: a receiver cannot have more than was sent.
    pub fn resume(&mut self, number: u64) {
        assert!(
            number <= self.chunks.len() as u64,
            "chunk {number} was not sent yet"
        );
        self.header_hash = Some(self.header_hash());
        self.chunks.truncate(number as usize);
        self.next = Next::Chunk;
    }

    /// Goes back to the header. What follows are the same bytes again.
    pub fn restart(&mut self) {
        self.chunks.clear();
        self.next = Next::Header;
    }

    fn header_hash(&self) -> Hash {
        self.header_hash.unwrap_or_else(|| self.header.encode().1)
    }

    fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let from = match self.chunks.last() {
            Some((_, last, _)) => Bound::Excluded(last.clone()),
            None => Bound::Unbounded,
        };
        let mut chunk = ChunkWriter::new(self.chunks.len() as u64);
        let mut last = Bytes::new();
        for item in self.view.range(from, Bound::Unbounded) {
            let (key, value) = item?;
            if !chunk.takes(&key, &value) {
                break;
            }
            chunk.put(&key, &value);
            last = key;
        }
        if chunk.records == 0 {
            return Ok(None);
        }
        let records = chunk.records;
        let (frame, hash) = chunk.finish();
        // A copy: the key may be a part of a larger block.
        self.chunks.push((hash, Bytes::copy_from_slice(&last), records));
        Ok(Some(frame))
    }
}
