//! The leader's side of replication: what goes to a peer, and what its answers mean (RP1–RP5, RP9, RP10).

use crate::interface::Effect;
use crate::message::{AppendResult, MessageBody};
use crate::progress::{PeerFetch, Progress, Stream, Transfer};
use crate::raft::{Raft, State};
use crate::types::{Entry, Index, LogId, MemberId};

impl Raft {
    /// Sends each peer what its stream allows.
    pub(crate) fn feed_peers(&mut self) {
        let Some(leader) = self.as_leader() else { return };
        let peers: Vec<MemberId> = if leader.peers.values().any(|peer| self.has_work(peer)) {
            leader.peers.keys().copied().collect()
        } else {
            return;
        };
        for id in peers {
            self.feed(id);
        }
    }

    fn has_work(&self, peer: &Progress) -> bool {
        if peer.lost_data {
            return false;
        }
        let sends = match peer.stream {
            Stream::Probe { paused } => !paused,
            Stream::Replicate => peer.poked || peer.next <= self.log.last().index,
            Stream::Snapshot(ref transfer) => *transfer == Transfer::Wanted,
        };
        sends || self.commit.min(peer.matched) > peer.told_commit
    }

    fn feed(&mut self, id: MemberId) {
        let Some(peer) = self.as_leader().and_then(|leader| leader.peers.get(&id)) else {
            return;
        };
        if peer.lost_data {
            return;
        }
        match peer.stream {
            Stream::Probe { paused: false } => self.feed_probe(id),
            Stream::Replicate => self.feed_window(id),
            _ => {}
        }
        self.ask_for_snapshot(id);
        self.tell_commit(id);
    }

    /// One append, with what is at hand; a probe reads nothing from the disk.
    fn feed_probe(&mut self, id: MemberId) {
        let bytes_max = self.options.append_bytes_max;
        let Some(peer) = self.peer_mut(id) else { return };
        let next = peer.next;
        let to = self.append_end(next);
        let entries = self.log.read(next, to, bytes_max).unwrap_or_default();
        if self.send_append(id, entries)
            && let Some(peer) = self.peer_mut(id)
        {
            peer.stream = Stream::Probe { paused: true };
        }
    }

    /// As many appends as the window takes; an empty one if one is due and nothing else goes (RP2).
    fn feed_window(&mut self, id: MemberId) {
        let last = self.log.last().index;
        let (messages_max, window_max) = (self.options.window_messages, self.options.window_bytes);
        let bytes_max = self.options.append_bytes_max;
        while let Some(peer) = self.peer_mut(id) {
            let (next, epoch) = (peer.next, peer.epoch);
            if next > last || peer.fetch.is_some() || peer.is_window_full(messages_max, window_max) {
                break;
            }
            if self.log.term_at(next - 1).is_none() {
                return self.want_snapshot(id);
            }
            let to = self.append_end(next);
            match self.log.read(next, to, bytes_max) {
                Some(entries) => self.send_in_window(id, entries),
                None => {
                    let fetch = PeerFetch {
                        id: self.next_fetch(),
                        epoch,
                        from: next,
                    };
                    if let Some(peer) = self.peer_mut(id) {
                        peer.fetch = Some(fetch);
                    }
                    // What is not cached is durable; what is not durable cannot be read back.
                    let to = to.min(self.writes.persisted());
                    self.outbox.push(Effect::Fetch {
                        id: fetch.id,
                        from: next,
                        to,
                        bytes_max,
                    });
                }
            }
        }
        if self
            .peer_mut(id)
            .is_some_and(|peer| peer.poked && peer.matched < last)
        {
            self.send_append(id, Vec::new());
        }
        if let Some(peer) = self.peer_mut(id) {
            peer.poked = false;
        }
    }

    /// The last entry of an append that begins with `next`, as far as their number goes.
    fn append_end(&self, next: Index) -> Index {
        let entries_max = self.options.append_entries_max as Index;
        self.log.last().index.min(next.saturating_add(entries_max - 1))
    }

    fn send_in_window(&mut self, id: MemberId, entries: Vec<Entry>) {
        let bytes = entries.iter().map(crate::log::entry_bytes).sum();
        let Some(last) = entries.last().map(|entry| entry.index) else {
            return;
        };
        if self.send_append(id, entries)
            && let Some(peer) = self.peer_mut(id)
        {
            peer.poked = false;
            peer.sent(last, bytes);
        }
    }

    /// Sends an append from `next` on. False if the log does not reach back there: then a snapshot is wanted.
    fn send_append(&mut self, id: MemberId, entries: Vec<Entry>) -> bool {
        let State::Leader(leader) = &mut self.state else {
            return false;
        };
        let round = leader.reads.round();
        let Some(peer) = leader.peers.get_mut(&id) else {
            return false;
        };
        let prev = peer.next - 1;
        let Some(term) = self.log.term_at(prev) else {
            self.want_snapshot(id);
            return false;
        };
        // RP9, in release builds, too.
        let mut follows = LogId { term, index: prev };
        for entry in &entries {
            if entry.index != follows.index + 1 || entry.term < follows.term {
                self.fail(format!(
                    "an append after {prev}@{term} would hold {}@{}",
                    entry.index, entry.term
                ));
                return false;
            }
            follows = LogId {
                term: entry.term,
                index: entry.index,
            };
        }
        peer.told_commit = peer.told_commit.max(self.commit.min(follows.index));
        let prev = LogId { term, index: prev };
        let body = MessageBody::Append {
            epoch: peer.epoch,
            round,
            prev,
            commit: self.commit,
            entries,
        };
        self.outbox.send(id, self.hard_state.term, body);
        true
    }

    /// RP10: a newer commit index goes at once to whoever has the entries.
    fn tell_commit(&mut self, id: MemberId) {
        let commit = self.commit;
        let Some(peer) = self.peer_mut(id) else { return };
        let commit = commit.min(peer.matched);
        if commit > peer.told_commit {
            peer.told_commit = commit;
            self.send(id, MessageBody::Commit { commit });
        }
    }

    pub(crate) fn peer_mut(&mut self, id: MemberId) -> Option<&mut Progress> {
        self.as_leader_mut()?.peers.get_mut(&id)
    }

    /// The peer answered something sent in this term.
    fn hear_peer(&mut self, id: MemberId, round: u64) {
        let now = self.clock.now;
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        let newest = leader.reads.round();
        if let Some(peer) = leader.peers.get_mut(&id) {
            peer.contact = Some(now);
            if round <= newest {
                peer.round = peer.round.max(round);
            }
        }
    }

    pub(crate) fn on_append_reply(
        &mut self,
        from: MemberId,
        epoch: u64,
        round: u64,
        prev: Index,
        result: AppendResult,
    ) {
        self.hear_peer(from, round);
        match result {
            AppendResult::Matched(matched) => self.on_matched(from, epoch, matched),
            AppendResult::Refused { hint, last } => self.on_refused(from, epoch, prev, hint, last),
        }
    }

    fn on_matched(&mut self, from: MemberId, epoch: u64, matched: Index) {
        let (base, last) = (self.log.base().index, self.log.last().index);
        let Some(peer) = self.peer_mut(from) else { return };
        if peer.lost_data {
            return;
        }
        if matched > last {
            return self.fail(format!(
                "member {from} has acknowledged {matched}, this leader's log ends at {last}"
            ));
        }
        peer.acknowledge(matched);
        let current = epoch == peer.epoch;
        match peer.stream {
            Stream::Probe { .. } if current => peer.replicate(),
            // Whatever its index: the log continues there (SN1).
            Stream::Snapshot(_) if matched >= base => peer.replicate(),
            Stream::Replicate if current => peer.free_window(matched),
            _ => {}
        }
        self.rule_out_timeout_now(from);
    }

    fn on_refused(&mut self, from: MemberId, epoch: u64, prev: Index, hint: LogId, last: Index) {
        let resume = self.log.highest_at_most(hint).index + 1;
        let fresh = self.epoch + 1;
        let Some(peer) = self.peer_mut(from) else { return };
        if epoch != peer.epoch || peer.lost_data {
            return;
        }
        // RS7: everything in this epoch was sent after the peer had acknowledged `epoch_matched`.
        if peer.epoch_matched > 0 && (prev <= peer.epoch_matched || last < peer.epoch_matched) {
            peer.lost_data = true;
            peer.probe(fresh, peer.next, true);
            self.epoch = fresh;
            return self.outbox.push(Effect::PeerLostData(from));
        }
        let next = resume.min(prev).max(peer.matched + 1);
        match peer.stream {
            Stream::Replicate if prev > peer.matched => {
                peer.probe(fresh, next, false);
                self.epoch = fresh;
            }
            Stream::Probe { .. } if prev == peer.next - 1 => {
                peer.next = next;
                peer.stream = Stream::Probe { paused: false };
            }
            _ => {}
        }
    }

    pub(crate) fn on_heartbeat_reply(
        &mut self,
        from: MemberId,
        epoch: u64,
        round: u64,
        boot: u64,
        installing: bool,
    ) {
        self.hear_peer(from, round);
        let (now, t_max) = (self.clock.now, self.clock.t_max());
        let (base, last) = (self.log.base().index, self.log.last().index);
        let fresh = self.epoch + 1;
        let Some(peer) = self.peer_mut(from) else { return };
        if peer.lost_data {
            return;
        }
        let restarted = peer.boot.replace(boot).is_some_and(|before| before != boot);
        if let Stream::Snapshot(transfer) = &mut peer.stream {
            match transfer {
                Transfer::Sent(_, deadline) if installing => *deadline = now + t_max,
                Transfer::Sent(_, deadline) if now >= *deadline => *transfer = Transfer::Failed,
                _ => {}
            }
            if restarted {
                *transfer = Transfer::Failed;
            }
            if *transfer == Transfer::Failed {
                let next = if peer.matched >= base {
                    peer.matched + 1
                } else {
                    last + 1
                };
                peer.probe(fresh, next, false);
                self.epoch = fresh;
            }
        } else if restarted {
            let next = peer.matched + 1;
            peer.probe(fresh, next, false);
            self.epoch = fresh;
        } else if epoch == peer.epoch {
            match &mut peer.stream {
                Stream::Probe { paused } => *paused = false,
                _ => peer.poked = peer.matched < last,
            }
        }
        self.repeat_timeout_now(from);
    }

    /// The connection broke: what was in flight may be lost.
    pub(crate) fn on_unreachable(&mut self, id: MemberId) {
        let fresh = self.epoch + 1;
        if let Some(peer) = self.peer_mut(id)
            && peer.stream == Stream::Replicate
        {
            let next = peer.matched + 1;
            peer.probe(fresh, next, true);
            self.epoch = fresh;
        }
    }

    /// Entries read for a peer; used only if its stream still stands where it stood (RP9).
    pub(crate) fn on_fetched_for_peer(&mut self, id: u64, entries: Vec<Entry>) {
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        let found = leader
            .peers
            .iter_mut()
            .find(|(_, peer)| peer.fetch.is_some_and(|fetch| fetch.id == id));
        let Some((&peer_id, peer)) = found else { return };
        let Some(fetch) = peer.fetch.take() else { return };
        let stands = peer.stream == Stream::Replicate && peer.epoch == fetch.epoch && peer.next == fetch.from;
        if self.check_fetched(fetch.from, &entries) && stands {
            self.send_in_window(peer_id, entries);
        }
    }
}
