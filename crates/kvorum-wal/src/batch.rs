//! One batch on its way to the disk: the frame in one reusable buffer, what it does to the index, and the state
//! after it.

use crate::format::{
    FRAME_HEADER_BYTES, FrameHeader, HARD_STATE_RECORD_BYTES, Head, Record, TRUNCATE_RECORD_BYTES,
    base_record_bytes, begin_frame, entry_record_bytes, finish_frame, put_entry, put_hard_state, put_head,
    put_purge, put_reset, put_truncate,
};
use crate::index::{Change, Changes};
use crate::state::LogState;
use crate::types::{Entry, Write};

/// A large batch must not keep its memory for ever.
const BUFFER_KEPT_BYTES: usize = 4 << 20;

/// Where a frame goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub segment: u64,
    pub generation: u64,
    pub checksum_seed: u32,
    pub offset: u64,
}

/// A frame being built.
#[derive(Debug, Default)]
pub struct Batch {
    pub buffer: Vec<u8>,
    pub changes: Changes,
    pub state: LogState,
    place: Option<Place>,
}

/// Length of a write's records.
pub fn write_bytes(write: &Write) -> usize {
    let hard_state = write.hard_state.map_or(0, |_| HARD_STATE_RECORD_BYTES);
    let reset = write.reset.as_ref().map_or(0, base_record_bytes);
    let truncate = write.truncate_from.map_or(0, |_| TRUNCATE_RECORD_BYTES);
    let entries: usize = write.entries.iter().map(entry_record_bytes).sum();
    hard_state + reset + truncate + entries
}

impl Batch {
    /// Starts a frame on top of `state`.
    pub fn begin(&mut self, place: Place, state: &LogState) {
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        }
        begin_frame(&mut self.buffer);
        self.changes.clear();
        self.state = state.clone();
        self.place = Some(place);
    }

    fn place(&self) -> Place {
        self.place.expect("begin came first")
    }

    /// Restates the state so far; first in the first frame of a segment.
    pub fn head(&mut self) {
        let head = Head {
            hard_state: self.state.hard_state,
            base: self.state.base.clone(),
            next_index: self.state.last_index + 1,
        };
        put_head(&mut self.buffer, &head);
    }

    /// Adds one record; only a record of a frame that was valid, or a checked one, may come here.
    pub fn record(&mut self, record: &Record) {
        let valid = match record {
            Record::Head(_) => Ok(()),
            Record::HardState(hard_state) => {
                put_hard_state(&mut self.buffer, *hard_state);
                self.state.hard_state = *hard_state;
                Ok(())
            }
            Record::Reset(base) => {
                put_reset(&mut self.buffer, base);
                self.changes.push(Change::Reset {
                    base_index: base.index,
                });
                self.state.reset(base);
                Ok(())
            }
            Record::Purge(base) => {
                put_purge(&mut self.buffer, base);
                self.changes.push(Change::Purge {
                    base_index: base.index,
                });
                self.state.purge(base)
            }
            Record::Truncate(from) => self.truncate(*from),
            Record::Entry(entry) => self.entry(entry),
        };
        valid.expect("records are checked before they are written");
    }

    fn truncate(&mut self, from: u64) -> Result<(), String> {
        put_truncate(&mut self.buffer, from);
        self.changes.push(Change::Truncate { from });
        self.state.truncate(from)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), String> {
        let place = self.place();
        let offset = place.offset + self.buffer.len() as u64;
        put_entry(&mut self.buffer, entry, place.checksum_seed);
        self.changes
            .entry(entry.index, place.segment, offset, entry_record_bytes(entry));
        self.state.append(entry.index)
    }

    /// Adds a write that was checked against the state.
    pub fn write(&mut self, write: &Write) {
        if let Some(hard_state) = write.hard_state {
            self.record(&Record::HardState(hard_state));
        }
        if let Some(base) = &write.reset {
            self.record(&Record::Reset(base.clone()));
        }
        let mut valid = write.truncate_from.map_or(Ok(()), |from| self.truncate(from));
        for entry in &write.entries {
            valid = valid.and_then(|()| self.entry(entry));
        }
        valid.expect("writes are checked before they are written");
        self.state.mark_commit(write.commit_mark);
    }

    /// Completes the frame; the buffer then holds it with its padding.
    pub fn finish(&mut self, batch: u64, durable_to: u64, previous: u64) {
        let place = self.place();
        let header = FrameHeader {
            generation: place.generation,
            segment: place.segment,
            batch,
            durable_to,
            previous,
            commit_mark: self.state.commit_mark,
            payload_bytes: 0,
            payload_crc: 0,
        };
        debug_assert!(self.buffer.len() >= FRAME_HEADER_BYTES);
        finish_frame(&mut self.buffer, header);
    }
}
