//! What must hold over all members and their whole history. Each check panics with the story.

use std::collections::BTreeMap;

use kvorum_raft::*;

use super::Node;
use super::disk::Disk;

#[derive(Default)]
pub struct Oracle {
    /// What was committed where, by whoever said so first.
    pub committed: BTreeMap<Index, Entry>,
    /// In which term it was committed: only leaders of later terms must have it.
    committed_in: BTreeMap<Index, Term>,
    /// Each member's log as it accepted it, durable or not, and what it has committed of it.
    accepted: BTreeMap<MemberId, Accepted>,
    leaders: BTreeMap<Term, MemberId>,
    votes: BTreeMap<(MemberId, Term), MemberId>,
    /// Token → the highest commit when the read arrived.
    pub reads: BTreeMap<Token, Index>,
    pub reads_ready: u64,
    /// Failures that a script expects.
    pub may_fail: bool,
    /// Receiver of a pre-vote, as it was.
    asked: Option<(MemberId, Box<Raft>)>,
    /// Data was lost on purpose: what members hold proves nothing any more.
    pub lossy: bool,
    steps: u64,
}

/// An ID that no member has.
const NOBODY: MemberId = MemberId::MAX;
/// How often it is checked that a step leaves nothing undone.
const SETTLED_ONE_IN: u64 = 4;

#[derive(Clone, Default)]
struct Accepted {
    log: Disk,
    commit: Index,
    leads: Option<Term>,
}

impl Oracle {
    pub fn highest_commit(&self) -> Index {
        self.committed.keys().next_back().copied().unwrap_or(0)
    }

    pub fn started(&mut self, id: MemberId, raft: &Raft, disk: &Disk) {
        let log = disk.clone();
        self.accepted.insert(
            id,
            Accepted {
                log,
                commit: raft.commit(),
                leads: None,
            },
        );
        assert_eq!(raft.role(), Role::Follower, "RS1");
        assert_eq!(raft.leader(), 0, "RS1");
    }

    pub fn before(&mut self, id: MemberId, raft: &Raft, input: &Input) {
        match input {
            Input::Message(Message {
                body: MessageBody::PreVote { .. },
                ..
            }) => {
                self.asked = Some((id, Box::new(raft.without_time())));
            }
            Input::Read { token } => {
                self.reads.insert(*token, self.highest_commit());
            }
            _ => {}
        }
    }

    pub fn wrote(&mut self, id: MemberId, write: &Persist, raft: &Raft) {
        let accepted = self.accepted.get_mut(&id).unwrap();
        if let Some(from) = write.truncate_from {
            let cuts = from <= accepted.log.last().index;
            assert!(
                !cuts || accepted.leads != Some(raft.term()),
                "leader {id} cut its own log"
            );
            assert!(
                write.snapshot.is_some() || from > accepted.commit,
                "{id} cut committed entries"
            );
        }
        // An install may have left the mirror with a log that ends below the new base.
        accepted.log.write(write);
    }

    pub fn sent(&mut self, message: &Message, disk: &Disk) {
        let Message {
            from, to, term, body, ..
        } = message;
        let story = || {
            format!(
                "{} is not true of the disk: {:?} {:?}",
                super::describe_message(message),
                disk.hard_state,
                disk.last()
            )
        };
        match body {
            MessageBody::Vote { last, .. } => {
                assert_eq!(
                    disk.hard_state,
                    HardState {
                        term: *term,
                        vote: *from
                    },
                    "{}",
                    story()
                );
                assert_eq!(disk.last(), *last, "{}", story());
                self.vote(*from, *term, *from);
            }
            MessageBody::VoteReply { granted: true, .. } => {
                assert_eq!(
                    disk.hard_state,
                    HardState {
                        term: *term,
                        vote: *to
                    },
                    "{}",
                    story()
                );
                self.vote(*from, *term, *to);
            }
            MessageBody::AppendReply {
                result: AppendResult::Matched(index),
                ..
            } => {
                assert!(
                    disk.hard_state.term >= *term && disk.last().index >= *index,
                    "{}",
                    story()
                );
                let leader = &self.accepted[to];
                if leader.leads == Some(*term) && !self.lossy {
                    for at in disk.base.last.index.max(leader.log.base.last.index) + 1..=*index {
                        assert_eq!(disk.entry(at), leader.log.entry(at), "{}", story());
                    }
                }
            }
            MessageBody::Append { entries, prev, .. } => {
                assert!(entries.iter().all(|entry| entry.index > prev.index));
                assert_eq!(
                    self.leaders.get(term),
                    Some(from),
                    "an append of no leader: {}",
                    story()
                );
            }
            _ => {}
        }
    }

    fn vote(&mut self, voter: MemberId, term: Term, candidate: MemberId) {
        let before = *self.votes.entry((voter, term)).or_insert(candidate);
        assert_eq!(before, candidate, "{voter} voted twice in term {term}");
    }

    /// After a step of `id`: everything that depends on more than one message.
    pub fn after(&mut self, id: MemberId, nodes: &BTreeMap<MemberId, Node>, now: Micros) {
        let node = &nodes[&id];
        let raft = node.raft.as_ref().unwrap();
        if let Some((asked, before)) = self.asked.take()
            && asked == id
        {
            assert!(
                *before == raft.without_time(),
                "EL1: a pre-vote changed its receiver"
            );
        }
        self.steps += 1;
        if self.steps.is_multiple_of(SETTLED_ONE_IN) {
            check_settled(id, raft, now);
        }
        self.check_leadership(id, raft);
        self.check_mirror(id, raft);
        self.check_commit(id, raft, nodes);
    }

    /// The mirror is the core's log.
    fn check_mirror(&mut self, id: MemberId, raft: &Raft) {
        if raft.failure().is_some() {
            return;
        }
        let accepted = &self.accepted[&id];
        if raft.last() != accepted.log.last() && !self.lossy {
            // Only before the first step after a restart in the middle of an install.
            assert!(
                raft.status().first > accepted.log.last().index,
                "{id}: {:?} {:?}",
                raft.last(),
                accepted.log.last()
            );
        }
    }

    fn check_leadership(&mut self, id: MemberId, raft: &Raft) {
        let leads = raft.is_leader().then_some(raft.term());
        let before = std::mem::replace(&mut self.accepted.get_mut(&id).unwrap().leads, leads);
        let Some(term) = leads.filter(|_| leads != before) else {
            return;
        };
        let other = *self.leaders.entry(term).or_insert(id);
        assert_eq!(other, id, "two leaders in term {term}");
        // Leader completeness.
        for (index, entry) in &self.committed {
            let committed_in = self.committed_in.get(index).copied().unwrap_or(0);
            if committed_in < term && !self.lossy {
                let own = raft.term_at(*index);
                let covered = *index < raft.status().first;
                assert!(
                    covered || own == Some(entry.term),
                    "leader {id} of term {term} lacks committed {index}@{}",
                    entry.term
                );
            }
        }
    }

    fn check_commit(&mut self, id: MemberId, raft: &Raft, nodes: &BTreeMap<MemberId, Node>) {
        let accepted = self.accepted.get_mut(&id).unwrap();
        let (from, to) = (accepted.commit + 1, raft.commit());
        if from > to || raft.failure().is_some() {
            return;
        }
        accepted.commit = to;
        let log = accepted.log.clone();
        if raft.is_leader() && !self.lossy {
            assert_eq!(
                raft.term_at(to),
                Some(raft.term()),
                "leader {id} committed an entry of an old term"
            );
            let configuration = raft.latest_configuration();
            let holds = |member: MemberId| {
                let Some(node) = nodes.get(&member) else {
                    return false;
                };
                let covered = node
                    .machine
                    .install_record
                    .as_ref()
                    .unwrap_or(&node.disk.base)
                    .last
                    .index;
                covered >= to || node.disk.term_at(to) == Some(raft.term())
            };
            assert!(
                is_quorum(configuration, holds),
                "{id} committed {to} without a durable quorum"
            );
        }
        for index in from..=to {
            let Some(entry) = log.entry(index) else {
                // Covered by an installed snapshot: `installed` has judged it.
                assert!(
                    index <= log.base.last.index.max(raft.status().first),
                    "{id} committed {index}, which it lacks"
                );
                continue;
            };
            self.committed_in.entry(index).or_insert(raft.term());
            let first = self.committed.entry(index).or_insert_with(|| entry.clone());
            assert_eq!(first, entry, "{id} committed another entry {index}");
        }
    }

    pub fn applied(&self, id: MemberId, entry: &Entry) {
        assert_eq!(
            self.committed.get(&entry.index),
            Some(entry),
            "{id} applied what is not committed"
        );
    }

    pub fn installed(&self, meta: &SnapshotMeta) {
        let committed = &self.committed[&meta.last.index];
        assert_eq!(committed.term, meta.last.term, "a snapshot of another history");
        let mut configs = self
            .committed
            .range(..=meta.last.index)
            .rev()
            .map(|(_, entry)| entry);
        let config = configs.find(|entry| entry.kind == EntryKind::Config).unwrap();
        let config = ConfigEntry::decode(&config.data).unwrap();
        assert_eq!(config.configuration, meta.configuration, "MB10");
    }

    pub fn read_ready(&mut self, token: Token, index: Index) {
        let at_least = self.reads.remove(&token).expect("a read is answered once");
        assert!(
            index >= at_least,
            "read {token} at {index} misses commit {at_least}"
        );
        self.reads_ready += 1;
    }

    pub fn read_dropped(&mut self, token: Token) {
        self.reads.remove(&token).expect("a read is answered once");
    }

    pub fn fatal(&self, id: MemberId, why: &str) {
        assert!(self.may_fail, "member {id} stopped: {why}");
    }
}

/// A step ends when nothing more follows from the state: another one that brings nothing does nothing.
fn check_settled(id: MemberId, raft: &Raft, now: Micros) {
    let mut again = raft.clone();
    let mut effects = Vec::new();
    again.step(now, Input::Unreachable(NOBODY), &mut effects);
    assert!(
        effects.is_empty() && (raft.failure().is_some() || again == *raft),
        "member {id} had not come to rest: {effects:?}"
    );
}

/// A majority of each half; counted here, not by the crate under test.
fn is_quorum(configuration: &Configuration, holds: impl Fn(MemberId) -> bool) -> bool {
    [&configuration.voters, &configuration.outgoing]
        .into_iter()
        .all(|half| {
            let count = half.iter().filter(|id| holds(**id)).count();
            half.is_empty() || 2 * count > half.len()
        })
}
