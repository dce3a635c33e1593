//! Renewals of leases, and questions how long they live: asked on any member, answered by the leader.
//!
//! A renewal writes nothing. The leader answers it after a read index is confirmed and applied (all that wait share
//! one confirmation), from its own deadlines ([`Lessor`]). A member that does not lead hands its callers' questions
//! to the leader; they change nothing that could not be asked twice, so whatever is lost on the way, or refused, is
//! asked again until the callers' deadlines.

use std::collections::BTreeMap;

use kvorum_model::{Command, LeaseRemainder};
use kvorum_mvcc::{LeaseChange, LeaseRecord};
use kvorum_raft::{Index, MemberId, Micros, Token};

use crate::interface::{ApplyReport, Effect, LeaseAnswer, LeaseAsk, LeaseCall, ReadFailure};
use crate::lessor::{Lessor, Renewal};
use crate::node::{Context, Node};
use crate::wire::PeerBody;

/// Questions in one message between members.
const CALLS_MAX: usize = 1024;

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
enum Asker {
    /// A caller of this member.
    Here(u64),
    /// A caller of another member: its message's number, and the place in it.
    Peer(MemberId, u64, u32),
}

#[derive(Clone, Copy, Debug)]
struct Question {
    asker: Asker,
    lease: i64,
    ask: LeaseAsk,
    deadline: Micros,
}

/// Own callers' questions at the leader.
#[derive(Debug)]
struct Forwarded {
    leader: MemberId,
    sent_at: Micros,
    questions: BTreeMap<u32, Question>,
}

/// The leases, and the questions between their callers and their answers: each is in exactly one place.
#[derive(Debug, Default)]
pub(crate) struct LeaseRoom {
    pub(crate) lessor: Lessor,
    /// Nobody to ask yet, or asked in vain.
    held: Vec<Question>,
    /// Asked for confirmation here, by token.
    asked: BTreeMap<Token, (Micros, Vec<Question>)>,
    /// Confirmed here; waiting until this index is applied.
    confirmed: BTreeMap<Index, Vec<Question>>,
    /// Renewals that wait for their lease's end, or for a checkpoint to be cleared.
    waiting: BTreeMap<i64, Vec<Question>>,
    /// At the leader, by message.
    forwarded: BTreeMap<u64, Forwarded>,
}

/// Answers of one step.
#[derive(Default)]
struct Answers {
    here: Vec<(u64, Result<LeaseAnswer, ReadFailure>)>,
    peers: BTreeMap<(MemberId, u64), Vec<(u32, LeaseAnswer)>>,
}

impl Answers {
    fn give(&mut self, asker: Asker, answer: LeaseAnswer) {
        match asker {
            Asker::Here(id) => self.here.push((id, Ok(answer))),
            Asker::Peer(member, id, place) => {
                self.peers.entry((member, id)).or_default().push((place, answer));
            }
        }
    }

    fn send(self, context: &mut Context<'_>) {
        if !self.here.is_empty() {
            context.out.push(Effect::LeasesDone(self.here));
        }
        for ((member, id), answers) in self.peers {
            context.send(member, PeerBody::LeaseAnswers { id, answers });
        }
    }
}

impl LeaseRoom {
    pub(crate) fn new(checkpoint_interval: Micros, records: &[LeaseRecord]) -> LeaseRoom {
        let mut room = LeaseRoom {
            lessor: Lessor::new(checkpoint_interval),
            ..LeaseRoom::default()
        };
        room.lessor.reset(records);
        room
    }

    /// Whether a confirmation with this token is for leases.
    pub(crate) fn asked(&self, token: Token) -> bool {
        self.asked.contains_key(&token)
    }

    /// Questions that are not answered by this member's own lessor.
    fn outstanding(&self) -> usize {
        self.held.len()
            + self
                .asked
                .values()
                .map(|(_, questions)| questions.len())
                .sum::<usize>()
            + self.confirmed.values().map(Vec::len).sum::<usize>()
            + self.waiting.values().map(Vec::len).sum::<usize>()
            + self
                .forwarded
                .values()
                .map(|sent| sent.questions.len())
                .sum::<usize>()
    }

    /// All questions that wait for this member as the leader, or for the one before, are to be asked anew.
    fn take_back(&mut self) {
        let asked = std::mem::take(&mut self.asked).into_values();
        self.held.extend(asked.flat_map(|(_, questions)| questions));
        let confirmed = std::mem::take(&mut self.confirmed).into_values();
        self.held.extend(confirmed.flatten());
        self.held
            .extend(std::mem::take(&mut self.waiting).into_values().flatten());
        let forwarded = std::mem::take(&mut self.forwarded).into_values();
        self.held
            .extend(forwarded.flat_map(|sent| sent.questions.into_values()));
    }

    /// Takes back the questions in lost messages.
    fn take_back_forwarded(&mut self, lost: impl Fn(&Forwarded) -> bool) {
        for (_, sent) in self.forwarded.extract_if(.., |_, sent| lost(sent)) {
            self.held.extend(sent.questions.into_values());
        }
    }

    /// Removes the questions whose callers stopped waiting; the own callers among them.
    fn expire(&mut self, now: Micros) -> Vec<u64> {
        let mut late = Vec::new();
        let mut sift = |questions: &mut Vec<Question>| {
            questions.retain(|question| {
                let keep = question.deadline > now;
                if !keep && let Asker::Here(id) = question.asker {
                    late.push(id);
                }
                keep
            });
        };
        sift(&mut self.held);
        self.waiting.values_mut().for_each(&mut sift);
        self.confirmed.values_mut().for_each(&mut sift);
        self.waiting.retain(|_, questions| !questions.is_empty());
        for sent in self.forwarded.values_mut() {
            for (_, question) in sent
                .questions
                .extract_if(.., |_, question| question.deadline <= now)
            {
                if let Asker::Here(id) = question.asker {
                    late.push(id);
                }
            }
        }
        self.forwarded.retain(|_, sent| !sent.questions.is_empty());
        late
    }
}

impl Node {
    /// Local callers' questions.
    pub(crate) fn lease_calls(&mut self, context: &mut Context<'_>, mut calls: Vec<LeaseCall>) {
        let room = self
            .options
            .held_requests_max
            .saturating_sub(self.leases.outstanding());
        let excess = calls.split_off(room.min(calls.len()));
        fail(
            context,
            excess.iter().map(|call| call.id).collect(),
            ReadFailure::Overloaded,
        );
        self.leases.held.extend(calls.into_iter().map(|call| Question {
            asker: Asker::Here(call.id),
            lease: call.lease,
            ask: call.ask,
            deadline: call.deadline,
        }));
        self.ask_leases(context);
    }

    /// Another member's callers' questions: the lease, what, and how long the caller still waits.
    pub(crate) fn lease_calls_heard(
        &mut self,
        context: &mut Context<'_>,
        from: MemberId,
        id: u64,
        calls: &[(LeaseAsk, i64, Micros)],
    ) {
        let is_full = self.leases.outstanding() + calls.len() > 2 * self.options.held_requests_max;
        if !self.raft.is_leader() || is_full {
            return context.send(from, PeerBody::LeaseRefused { id });
        }
        let now = context.now;
        let questions = (0..).zip(calls).map(|(place, &(ask, lease, patience))| Question {
            asker: Asker::Peer(from, id, place),
            lease,
            ask,
            deadline: now.saturating_add(patience),
        });
        self.leases.held.extend(questions);
        self.ask_leases(context);
    }

    /// Asks for everything that is held: the core for confirmation here, or the leader.
    pub(crate) fn ask_leases(&mut self, context: &mut Context<'_>) {
        let leader = self.raft.leader();
        if self.leases.held.is_empty() || leader == 0 {
            return;
        }
        if self.raft.is_leader() {
            let token = self.next_token();
            let questions = std::mem::take(&mut self.leases.held);
            self.leases.asked.insert(token, (context.now, questions));
            return self.step_raft(context, kvorum_raft::Input::Read { token });
        }
        let held = std::mem::take(&mut self.leases.held);
        let (own, theirs): (Vec<_>, Vec<_>) = held
            .into_iter()
            .partition(|question| matches!(question.asker, Asker::Here(_)));
        self.refuse_leases(context, theirs);
        for part in own.chunks(CALLS_MAX) {
            let id = self.next_token();
            let calls = part
                .iter()
                .map(|question| {
                    let patience = question.deadline.saturating_sub(context.now);
                    (question.ask, question.lease, patience)
                })
                .collect();
            let sent = Forwarded {
                leader,
                sent_at: context.now,
                questions: (0..).zip(part.iter().copied()).collect(),
            };
            self.leases.forwarded.insert(id, sent);
            context.send(leader, PeerBody::LeaseCalls { id, calls });
        }
    }

    /// Tells members that this one cannot answer them.
    fn refuse_leases(&mut self, context: &mut Context<'_>, questions: Vec<Question>) {
        let messages: std::collections::BTreeSet<(MemberId, u64)> = questions
            .iter()
            .filter_map(|question| match question.asker {
                Asker::Peer(member, id, _) => Some((member, id)),
                Asker::Here(_) => None,
            })
            .collect();
        for (member, id) in messages {
            context.send(member, PeerBody::LeaseRefused { id });
        }
    }

    /// The leader's answers to some questions of a message.
    pub(crate) fn lease_answers_heard(
        &mut self,
        context: &mut Context<'_>,
        id: u64,
        answers: Vec<(u32, LeaseAnswer)>,
    ) {
        let Some(sent) = self.leases.forwarded.get_mut(&id) else {
            return;
        };
        let mut done = Answers::default();
        for (place, answer) in answers {
            if let Some(question) = sent.questions.remove(&place) {
                done.give(question.asker, answer);
            }
        }
        if sent.questions.is_empty() {
            self.leases.forwarded.remove(&id);
        }
        done.send(context);
    }

    /// The receiver cannot answer a message: asked again with the next sweep, or when another leader is known.
    pub(crate) fn lease_calls_refused(&mut self, id: u64) {
        if let Some(sent) = self.leases.forwarded.remove(&id) {
            self.leases.held.extend(sent.questions.into_values());
        }
    }

    /// The connection to a member broke.
    pub(crate) fn lease_calls_lost(&mut self, member: MemberId) {
        self.leases.take_back_forwarded(|sent| sent.leader == member);
    }

    /// The core confirmed questions.
    pub(crate) fn leases_confirmed(&mut self, context: &mut Context<'_>, token: Token, index: Index) {
        let Some((_, questions)) = self.leases.asked.remove(&token) else {
            return;
        };
        if index <= self.applied {
            self.answer_leases(context, questions);
        } else {
            self.leases.confirmed.entry(index).or_default().extend(questions);
        }
    }

    /// The core dropped questions; they are asked again at the next sweep.
    pub(crate) fn leases_dropped(&mut self, token: Token) {
        if let Some((_, questions)) = self.leases.asked.remove(&token) {
            self.leases.held.extend(questions);
        }
    }

    /// Whether this member has the deadlines.
    fn is_primary(&self) -> bool {
        self.raft.is_leader() && self.leases.lessor.primary_in() == self.raft.term()
    }

    fn answer_leases(&mut self, context: &mut Context<'_>, questions: Vec<Question>) {
        if !self.is_primary() {
            return self.leases.held.extend(questions);
        }
        let (now, patience) = (context.now, 2 * self.options.raft.election_timeout);
        let (mut answers, mut clears) = (Answers::default(), Vec::new());
        for question in questions {
            let (lease, lessor) = (question.lease, &mut self.leases.lessor);
            let answer = match question.ask {
                LeaseAsk::TimeToLive => match lessor.remaining(now, lease) {
                    Some((ttl_s, granted_s)) => LeaseAnswer { ttl_s, granted_s },
                    None => LeaseAnswer {
                        ttl_s: -1,
                        granted_s: 0,
                    },
                },
                LeaseAsk::KeepAlive => match lessor.renew(now, lease, patience) {
                    Renewal::Renewed(ttl_s) => LeaseAnswer {
                        ttl_s,
                        granted_s: ttl_s,
                    },
                    Renewal::Missing => LeaseAnswer::default(),
                    Renewal::Ending => {
                        self.leases.waiting.entry(lease).or_default().push(question);
                        continue;
                    }
                    Renewal::Clear(clear) => {
                        clears.extend(clear);
                        self.leases.waiting.entry(lease).or_default().push(question);
                        continue;
                    }
                },
            };
            answers.give(question.asker, answer);
        }
        answers.send(context);
        self.propose_checkpoint(context, clears);
    }

    /// Something was applied: the lessor follows it before anybody is answered from it.
    pub(crate) fn follow_leases(&mut self, context: &Context<'_>, report: &ApplyReport) {
        if let Some(all) = &report.all_leases {
            self.leases.lessor.reset(all);
        }
        for change in &report.leases {
            self.leases.lessor.applied(context.now, change);
        }
    }

    /// Answers what waited for what was applied, and proposes what is due.
    pub(crate) fn settle_leases(&mut self, context: &mut Context<'_>, changes: &[LeaseChange]) {
        self.take_over_leases(context);
        let later = self.leases.confirmed.split_off(&(self.applied + 1));
        let confirmed = std::mem::replace(&mut self.leases.confirmed, later);
        let mut again: Vec<Question> = confirmed.into_values().flatten().collect();
        for change in changes {
            if let LeaseChange::Checkpointed { id, .. } | LeaseChange::Revoked(id) = change {
                again.extend(self.leases.waiting.remove(id).unwrap_or_default());
            }
        }
        if !again.is_empty() {
            self.answer_leases(context, again);
        }
        self.propose_lease_ends(context);
    }

    /// Starts the deadlines once an entry of this leader's own term is applied: then it has seen whatever an earlier
    /// leader could have promised.
    fn take_over_leases(&mut self, context: &mut Context<'_>) {
        let term = self.raft.term();
        if self.raft.is_leader() && !self.is_primary() && self.raft.term_at(self.applied) == Some(term) {
            self.leases.lessor.promote(context.now, term);
        }
    }

    /// Another leader, or none: everything is asked anew.
    pub(crate) fn leases_follow_role(&mut self, context: &mut Context<'_>) {
        if !self.is_primary() {
            self.leases.lessor.demote();
        }
        self.leases.take_back();
        if !self.raft.is_leader() {
            let held = std::mem::take(&mut self.leases.held);
            let (own, theirs): (Vec<_>, Vec<_>) = held
                .into_iter()
                .partition(|question| matches!(question.asker, Asker::Here(_)));
            self.leases.held = own;
            self.refuse_leases(context, theirs);
        }
        self.take_over_leases(context);
        self.ask_leases(context);
    }

    /// From time to time: ends waits that are over, asks again what got no answer, proposes what is due.
    pub(crate) fn refresh_leases(&mut self, context: &mut Context<'_>) {
        let (now, timeout) = (context.now, self.options.raft.election_timeout);
        self.leases
            .take_back_forwarded(|sent| sent.sent_at + 2 * timeout < now);
        let lost = self
            .leases
            .asked
            .extract_if(.., |_, (at, _)| *at + timeout / 2 < now);
        let lost: Vec<Question> = lost.flat_map(|(_, (_, questions))| questions).collect();
        self.leases.held.extend(lost);
        // A proposal that renewals wait for may be lost.
        let waiting = std::mem::take(&mut self.leases.waiting);
        if !waiting.is_empty() {
            self.answer_leases(context, waiting.into_values().flatten().collect());
        }
        let late = self.leases.expire(now);
        fail(context, late, ReadFailure::TimedOut);
        self.ask_leases(context);
        self.propose_lease_ends(context);
    }

    /// Proposes the ends of leases that are due, and what remains of others.
    pub(crate) fn propose_lease_ends(&mut self, context: &mut Context<'_>) {
        if !self.is_primary() || self.is_transferring() {
            return;
        }
        let due = self.leases.lessor.due(context.now);
        let ends = due.ends.into_iter().map(|(id, proof)| Command::LeaseRevoke {
            id,
            expiry: Some(proof),
        });
        self.propose_internal(context, ends.collect());
        self.propose_checkpoint(context, due.checkpoints);
    }

    fn propose_checkpoint(&mut self, context: &mut Context<'_>, leases: Vec<LeaseRemainder>) {
        if !leases.is_empty() && self.is_primary() && !self.is_transferring() {
            let term = self.raft.term();
            self.propose_internal(context, vec![Command::LeaseCheckpoint { term, leases }]);
        }
    }
}

fn fail(context: &mut Context<'_>, ids: Vec<u64>, why: ReadFailure) {
    if !ids.is_empty() {
        let done = ids.into_iter().map(|id| (id, Err(why)));
        context.out.push(Effect::LeasesDone(done.collect()));
    }
}
