//! Snapshots as intents, on both sides, and what the log may forget (SN1–SN4, LG3, LG4).
//!
//! The core never sees a snapshot's bytes: it asks for one, names it, and reacts when the shell says that it
//! was built, sent or installed.

use crate::interface::Effect;
use crate::message::{AppendResult, MessageBody};
use crate::progress::{Stream, Transfer};
use crate::raft::Raft;
use crate::types::{Index, LogId, MemberId, SnapshotMeta, Term};
use crate::writes::Promise;

/// The snapshot that the shell makes this member's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Installing {
    pub meta: SnapshotMeta,
    /// Who waits for the answer, in which term and stream.
    from: MemberId,
    term: Term,
    epoch: u64,
}

impl Raft {
    // The sender.

    /// The log no longer reaches back to what the peer needs.
    pub(crate) fn want_snapshot(&mut self, id: MemberId) {
        if let Some(peer) = self.peer_mut(id) {
            peer.want_snapshot();
        }
    }

    /// Asks for a snapshot for an active peer that needs one.
    pub(crate) fn ask_for_snapshot(&mut self, id: MemberId) {
        let since = self.active_since();
        let at_least = self.log.base().index.max(self.member_since(id));
        let Some(peer) = self.peer_mut(id) else { return };
        if peer.stream == Stream::Snapshot(Transfer::Wanted) && peer.is_active(since) {
            peer.stream = Stream::Snapshot(Transfer::Building);
            self.outbox.push(Effect::NeedSnapshot { peer: id, at_least });
        }
    }

    /// The index from which on every configuration contains `id`: an older snapshot would not know it.
    fn member_since(&self, id: MemberId) -> Index {
        let configurations = self.log.configurations().rev();
        let with = configurations.take_while(|(_, configuration)| configuration.contains(id));
        with.last().map_or(0, |&(index, _)| index)
    }

    pub(crate) fn on_snapshot_built(&mut self, id: MemberId, meta: SnapshotMeta) {
        let at_least = self.log.base().index.max(self.member_since(id));
        let handed = self.handed;
        let known = self.log.term_at(meta.last.index);
        let right = known == Some(meta.last.term)
            && *self.log.configuration_at(meta.last.index) == meta.configuration
            && meta.last.index <= handed;
        let term = self.hard_state.term;
        let Some(leader) = self.as_leader_mut() else {
            return;
        };
        let round = leader.reads.round();
        let Some(peer) = leader.peers.get_mut(&id) else {
            return;
        };
        if peer.stream != Stream::Snapshot(Transfer::Building) {
            return;
        }
        if meta.last.index < at_least {
            peer.stream = Stream::Snapshot(Transfer::Wanted);
            return;
        }
        if !right {
            let LogId { term, index } = meta.last;
            return self.fail(format!(
                "the snapshot at {index}@{term} or its configuration is not this log's"
            ));
        }
        peer.stream = Stream::Snapshot(Transfer::Sending(meta.last));
        let body = MessageBody::Snapshot {
            epoch: peer.epoch,
            round,
            meta,
        };
        let message = self.outbox.message(id, term, body);
        self.outbox.push(Effect::SendSnapshot(message));
    }

    pub(crate) fn on_snapshot_sent(&mut self, id: MemberId, ok: bool) {
        let deadline = self.clock.now + self.clock.t_max();
        let Some(peer) = self.peer_mut(id) else { return };
        if let Stream::Snapshot(transfer) = &mut peer.stream {
            *transfer = match *transfer {
                Transfer::Sending(id) if ok => Transfer::Sent(id, deadline),
                Transfer::Sending(_) | Transfer::Building if !ok => Transfer::Failed,
                ref other => other.clone(),
            };
        }
    }

    // The receiver.

    pub(crate) fn on_snapshot(&mut self, from: MemberId, epoch: u64, meta: SnapshotMeta) {
        let (me, last) = (self.options.id, meta.last);
        if last.index <= self.commit {
            if self.log.term_at(last.index).is_some_and(|term| term != last.term) {
                return self.fail(format!(
                    "a snapshot ends with {}@{}, another entry is committed",
                    last.index, last.term
                ));
            }
            return self.acknowledge_snapshot(from, epoch, last.index, self.commit);
        }
        if meta.configuration.removed.contains(&me) {
            self.removed = true;
            return;
        }
        if !meta.configuration.contains(me) {
            return;
        }
        if self.log.has(last) {
            // The log has all of it: nothing to install (LG3).
            self.raise_commit(last.index);
            return self.acknowledge_snapshot(from, epoch, last.index, last.index);
        }
        let term = self.hard_state.term;
        match &mut self.installing {
            Some(installing) if installing.meta.last.index > last.index => {}
            Some(installing) if installing.meta == meta => {
                (installing.from, installing.term, installing.epoch) = (from, term, epoch);
            }
            _ => {
                self.pause_applying();
                self.installing = Some(Installing {
                    meta: meta.clone(),
                    from,
                    term,
                    epoch,
                });
                // The term must be durable before the snapshot is: a crash after the install would leave a
                // state of a later term than the log's, which looks corrupt (RS2).
                self.writes.hold(Promise::Install(last));
            }
        }
    }

    /// Everything that was written when the snapshot came is durable: it may become the state.
    pub(crate) fn install(&mut self, last: LogId) {
        if let Some(installing) = self.installing.as_ref().filter(|it| it.meta.last == last) {
            self.outbox.push(Effect::Install(installing.meta.clone()));
        }
    }

    fn acknowledge_snapshot(&mut self, to: MemberId, epoch: u64, prev: Index, matched: Index) {
        let (round, result) = (self.round_heard, AppendResult::Matched(matched));
        self.send_when_durable(
            to,
            MessageBody::AppendReply {
                epoch,
                round,
                prev,
                result,
            },
        );
    }

    /// The state machine is the snapshot: the log follows, in one write, then the answer (SN3).
    pub(crate) fn on_snapshot_installed(&mut self, meta: SnapshotMeta) {
        let done = self
            .installing
            .take_if(|installing| installing.meta.last.index <= meta.last.index);
        if meta.last.index <= self.applied {
            return;
        }
        let continues = self.log.has(meta.last);
        if continues {
            self.log.rebase(&meta);
        } else {
            if meta.last.index <= self.commit {
                return self.fail(format!(
                    "the installed snapshot's end {} is not the committed entry",
                    meta.last.index
                ));
            }
            self.log.reset(&meta);
        }
        self.writes.snapshot(&meta, !continues);
        self.raise_commit(meta.last.index);
        self.restart_applying(meta.last.index);
        self.flushed = self.flushed.max(meta.last.index);
        if let Some(installing) = done
            && installing.meta.last == meta.last
            && installing.term == self.hard_state.term
        {
            self.acknowledge_snapshot(
                installing.from,
                installing.epoch,
                meta.last.index,
                meta.last.index,
            );
        }
    }

    // What the log may forget.

    pub(crate) fn on_flushed(&mut self, index: Index) {
        self.flushed = self.flushed.max(index.min(self.handed));
        self.purge();
    }

    /// Since when a peer must have answered to count as active.
    pub(crate) fn active_since(&self) -> u64 {
        self.clock.now.saturating_sub(self.clock.t_max())
    }

    /// What no live peer or running transfer needs any more; none if nobody is live.
    pub(crate) fn needed_above(&self) -> Option<Index> {
        let leader = self.as_leader()?;
        if leader.peers.is_empty() {
            return Some(self.log.last().index);
        }
        let since = self.active_since();
        let active = leader.peers.values().filter(|peer| peer.is_active(since));
        active.map(|peer| peer.needs_above()).min()
    }

    /// LG4: the flushed part of the log goes, but for what live peers need within the byte limit.
    pub(crate) fn purge(&mut self) {
        let needed = if self.is_leader() {
            self.needed_above().unwrap_or(0)
        } else {
            self.keep_above
        };
        let beyond_limit = self.log.index_with_at_most_above(self.options.retain_bytes_max);
        let fetched = self.as_leader().and_then(|leader| {
            leader
                .peers
                .values()
                .filter_map(|peer| peer.fetch)
                .map(|fetch| fetch.from)
                .min()
        });
        let reading = fetched
            .into_iter()
            .chain(self.apply_fetch_from())
            .min()
            .unwrap_or(Index::MAX);
        let to = needed
            .max(beyond_limit)
            .min(self.flushed)
            .min(self.applied)
            .min(reading - 1);
        if to <= self.log.base().index || self.installing.is_some() {
            return;
        }
        self.log.compact(to);
        let configuration = self.log.configuration_at(to).clone();
        self.outbox.push(Effect::Purge(SnapshotMeta {
            last: self.log.base(),
            configuration,
        }));
    }
}
