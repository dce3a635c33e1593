//! What a leader knows of one peer: how far it has the log, and how the stream to it stands (RP1).
//!
//! Invariants: match < next; the window stays within its limits; a new epoch at each entry into probe, so that
//! answers of an earlier stream move nothing but match.

use std::collections::VecDeque;

use crate::types::{Index, LogId, Micros};

/// How the stream to a peer stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    /// One append at a time, until one is accepted.
    Probe {
        /// An append is out, or the peer was reported unreachable; a heartbeat's answer ends the wait.
        paused: bool,
    },
    /// Appends are pipelined within the window.
    Replicate,
    /// The log no longer reaches back far enough.
    Snapshot(Transfer),
}

/// The stages of a snapshot on its way to a peer (SN1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Transfer {
    /// To be asked for as soon as the peer is active.
    Wanted,
    /// The shell builds it.
    Building,
    /// The shell streams it.
    Sending(LogId),
    /// The peer has all of it and installs it; without a sign of that until the deadline, probe.
    Sent(LogId, Micros),
    /// Probe at the next heartbeat's answer.
    Failed,
}

/// Entries that the shell reads for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PeerFetch {
    pub id: u64,
    pub epoch: u64,
    pub from: Index,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    /// The peer's log equals ours up to here, durably.
    pub matched: Index,
    /// The next entry to send.
    pub next: Index,
    pub stream: Stream,
    /// Names the stream; see the module.
    pub epoch: u64,
    /// `matched` when the epoch began: every message of the epoch was sent after the peer acknowledged it (RS7).
    pub epoch_matched: Index,
    /// (last index, bytes) of appends in flight.
    window: VecDeque<(Index, usize)>,
    window_bytes: usize,
    pub fetch: Option<PeerFetch>,
    /// An append is due even without entries (RP2).
    pub poked: bool,
    /// The commit index that the peer was told, as far as it has the entries (RP10).
    pub told_commit: Index,
    /// The newest read round that it confirmed.
    pub round: u64,
    /// When it last answered something sent in this term.
    pub contact: Option<Micros>,
    /// Its boot nonce, once known.
    pub boot: Option<u64>,
    /// It once acknowledged what it no longer has; it does not count any more (RS7).
    pub lost_data: bool,
}

impl Progress {
    /// A peer of a new leader, or a new peer: match 0, next last+1, probe (RP1).
    pub fn new(last: Index, epoch: u64) -> Progress {
        Progress {
            matched: 0,
            next: last + 1,
            stream: Stream::Probe { paused: false },
            epoch,
            epoch_matched: 0,
            window: VecDeque::new(),
            window_bytes: 0,
            fetch: None,
            poked: false,
            told_commit: 0,
            round: 0,
            contact: None,
            boot: None,
            lost_data: false,
        }
    }

    /// What counts towards a commit.
    pub fn counted_match(&self) -> Index {
        if self.lost_data { 0 } else { self.matched }
    }

    /// Whether it answered since `since`.
    pub fn is_active(&self, since: Micros) -> bool {
        !self.lost_data && self.contact.is_some_and(|at| at >= since)
    }

    pub fn is_replicating(&self) -> bool {
        self.stream == Stream::Replicate && !self.lost_data
    }

    /// Enters probe, in a new epoch.
    pub fn probe(&mut self, epoch: u64, next: Index, paused: bool) {
        self.leave_stream();
        self.epoch = epoch;
        self.epoch_matched = self.matched;
        self.next = next.max(self.matched + 1);
        self.stream = Stream::Probe { paused };
    }

    /// The peer's log joins ours at `matched`: entries flow.
    pub fn replicate(&mut self) {
        self.leave_stream();
        self.next = self.matched + 1;
        self.stream = Stream::Replicate;
    }

    /// Only a snapshot can help.
    pub fn want_snapshot(&mut self) {
        self.leave_stream();
        self.stream = Stream::Snapshot(Transfer::Wanted);
    }

    fn leave_stream(&mut self) {
        self.window.clear();
        self.window_bytes = 0;
        self.fetch = None;
        self.poked = false;
        // What was told beyond its log went with messages that it did not take.
        self.told_commit = self.told_commit.min(self.matched);
    }

    /// The peer acknowledged everything up to `index`. True if that is news.
    pub fn acknowledge(&mut self, index: Index) -> bool {
        let news = index > self.matched;
        if news {
            self.matched = index;
            self.next = self.next.max(index + 1);
        }
        news
    }

    /// Appends up to `index` arrived: their place in the window is free.
    pub fn free_window(&mut self, index: Index) {
        while self.window.front().is_some_and(|&(last, _)| last <= index) {
            if let Some((_, bytes)) = self.window.pop_front() {
                self.window_bytes -= bytes;
            }
        }
    }

    /// Whether nothing may be sent now. The append that fills the window may be larger than its rest.
    pub fn is_window_full(&self, messages_max: usize, bytes_max: usize) -> bool {
        self.window.len() >= messages_max || self.window_bytes >= bytes_max
    }

    /// An append with entries up to `last` is out.
    pub fn sent(&mut self, last: Index, bytes: usize) {
        self.window.push_back((last, bytes));
        self.window_bytes += bytes;
        self.next = last + 1;
    }

    /// The first index that must not be purged for this peer's sake (LG4), less one.
    pub fn needs_above(&self) -> Index {
        match self.stream {
            Stream::Snapshot(Transfer::Sending(id) | Transfer::Sent(id, _)) => self.matched.max(id.index),
            _ => self.matched,
        }
    }

    /// The structure's own invariants; the error names the broken one.
    pub fn check(&self, last: Index, messages_max: usize, bytes_max: usize) -> Result<(), String> {
        if self.matched >= self.next || self.next > last + 1 {
            return Err(format!(
                "match {} < next {} ≤ last {last} + 1 does not hold",
                self.matched, self.next
            ));
        }
        let newest = self.window.back().map_or(0, |&(_, bytes)| bytes);
        if self.window.len() > messages_max || (newest > 0 && self.window_bytes - newest >= bytes_max) {
            return Err(format!(
                "{} appends, {} bytes are in flight",
                self.window.len(),
                self.window_bytes
            ));
        }
        Ok(())
    }

    /// Appends and bytes in flight.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.window.len(), self.window_bytes)
    }
}
