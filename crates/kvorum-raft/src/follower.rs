//! The follower's side of replication: appends, heartbeats, commit (RP4–RP7, LG1, LG2).

use crate::message::{AppendResult, MessageBody};
use crate::raft::Raft;
use crate::types::{Entry, Index, LogId, MemberId};

impl Raft {
    pub(crate) fn on_append(
        &mut self,
        from: MemberId,
        epoch: u64,
        prev: LogId,
        commit: Index,
        mut entries: Vec<Entry>,
    ) {
        if !is_well_formed(prev, &entries, self.hard_state.term) {
            return;
        }
        let mut end = LogId {
            index: prev.index + entries.len() as u64,
            ..prev
        };
        let mut before = prev;
        if prev.index < self.commit {
            // RP5: what is committed here is the same everywhere; go on behind it.
            let known = entries.len().min((self.commit - prev.index) as usize);
            entries.drain(..known);
            end.index = end.index.max(self.commit);
            before.index = self.commit;
        }
        if before.index == prev.index && self.log.term_at(prev.index) != Some(prev.term) {
            return self.refuse_append(from, epoch, prev);
        }
        self.take_entries(entries);
        if self.has_failed() {
            return;
        }
        let result = AppendResult::Matched(end.index);
        let round = self.round_heard;
        let body = MessageBody::AppendReply {
            epoch,
            round,
            prev: prev.index,
            result,
        };
        self.send_when_durable(from, body);
        self.raise_commit(commit.min(end.index));
    }

    fn refuse_append(&mut self, from: MemberId, epoch: u64, prev: LogId) {
        if prev.index == self.commit {
            let own = self.log.term_at(prev.index);
            return self.fail(format!(
                "entry {} of term {own:?} is committed here, {} at the leader",
                prev.index, prev.term
            ));
        }
        // While a snapshot is being installed there is nothing to say: it will answer.
        if self.installing.is_none() {
            let result = AppendResult::Refused {
                hint: self.log.highest_at_most(prev),
                last: self.log.last().index,
            };
            let round = self.round_heard;
            self.send(
                from,
                MessageBody::AppendReply {
                    epoch,
                    round,
                    prev: prev.index,
                    result,
                },
            );
        }
    }

    /// RP6: what fits changes nothing; the log is cut only where a term differs.
    fn take_entries(&mut self, mut entries: Vec<Entry>) {
        let fits = entries
            .iter()
            .take_while(|entry| self.log.term_at(entry.index) == Some(entry.term))
            .count();
        entries.drain(..fits);
        let Some(first) = entries.first() else { return };
        if first.index <= self.log.last().index {
            if first.index <= self.commit {
                return self.fail(format!(
                    "the leader would cut entry {}, {} is committed",
                    first.index, self.commit
                ));
            }
            self.log.truncate(first.index);
            self.writes.truncate(first.index);
        }
        match self.log.append(&entries) {
            Ok(()) => self.writes.entries(entries),
            Err(why) => self.fail(why),
        }
    }

    pub(crate) fn on_heartbeat(&mut self, from: MemberId, epoch: u64, commit: Index, keep: Index) {
        self.follow_commit(commit);
        self.keep_above = self.keep_above.max(keep);
        self.purge();
        let (round, boot) = (self.round_heard, self.options.boot);
        let installing = self.installing.is_some();
        self.send(
            from,
            MessageBody::HeartbeatReply {
                epoch,
                round,
                boot,
                installing,
            },
        );
    }

    /// The leader knows that this member acknowledged everything up to `commit`; if the log ends before, it
    /// lost that (the leader finds out by RS7).
    pub(crate) fn follow_commit(&mut self, commit: Index) {
        if commit <= self.log.last().index {
            self.raise_commit(commit);
        }
    }

    pub(crate) fn raise_commit(&mut self, commit: Index) {
        self.commit = self.commit.max(commit);
    }
}

/// Whether the entries follow `prev` and are of no later term than the sender's.
fn is_well_formed(prev: LogId, entries: &[Entry], term: u64) -> bool {
    let mut follows = prev;
    for entry in entries {
        if Some(entry.index) != follows.index.checked_add(1) || entry.term < follows.term {
            return false;
        }
        follows = LogId {
            term: entry.term,
            index: entry.index,
        };
    }
    follows.term <= term
}
