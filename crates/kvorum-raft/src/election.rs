//! Terms, votes and who leads (EL1–EL13, RS6, SM1).
//!
//! Also the door for every message: cluster, membership and term are judged here before anything else.

use std::collections::BTreeSet;

use crate::leader::Leader;
use crate::message::{Message, MessageBody};
use crate::raft::{Raft, State};
use crate::types::{HardState, LogId, MemberId, Term};
use crate::writes::Promise;

/// One try to be elected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Campaign {
    /// Its number: answers name it (EL3).
    number: u64,
    granted: BTreeSet<MemberId>,
    refused: BTreeSet<MemberId>,
}

impl Campaign {
    fn new(number: u64) -> Campaign {
        Campaign {
            number,
            granted: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }
}

impl Raft {
    /// The door.
    pub(crate) fn receive(&mut self, message: Message) {
        let me = self.options.id;
        if message.cluster != self.options.cluster
            || message.to != me
            || message.from == me
            || message.from == 0
        {
            return;
        }
        if message.body == MessageBody::Removed {
            return self.on_removed(message.from);
        }
        let current = message.term == self.hard_state.term && message.body.is_from_leader();
        if self.committed_configuration().removed.contains(&message.from)
            && !(current && self.leader == message.from)
        {
            return self.send(message.from, MessageBody::Removed);
        }
        let passes = match message.term.cmp(&self.hard_state.term) {
            std::cmp::Ordering::Greater => self.judge_higher_term(&message),
            std::cmp::Ordering::Less => self.judge_lower_term(&message),
            std::cmp::Ordering::Equal => true,
        };
        if passes && !self.has_failed() {
            self.dispatch(message);
        }
    }

    /// A message of a higher term: adopt it, unless it only asks (EL1, EL5). True if there is more to do.
    fn judge_higher_term(&mut self, message: &Message) -> bool {
        match message.body {
            MessageBody::PreVote { .. } => true,
            MessageBody::PreVoteReply { granted: true, .. } => false,
            MessageBody::Vote { campaign, forced, .. } => {
                if self.refuses_elections(message.from, forced) {
                    self.send(
                        message.from,
                        MessageBody::VoteReply {
                            campaign,
                            granted: false,
                        },
                    );
                    return false;
                }
                self.become_follower(message.term, 0);
                true
            }
            ref body if body.is_from_leader() => {
                self.become_follower(message.term, message.from);
                true
            }
            _ if self.knows(message.from) => {
                self.become_follower(message.term, 0);
                true
            }
            _ => false,
        }
    }

    /// A message of a lower term: tell the sender, if it can use that (EL2, EL6). True if there is more to do.
    fn judge_lower_term(&mut self, message: &Message) -> bool {
        match message.body {
            // Answers to a pre-vote come from members of any lower term, too.
            MessageBody::PreVote { .. } | MessageBody::PreVoteReply { .. } => return true,
            MessageBody::Vote { campaign, .. } => {
                self.send(
                    message.from,
                    MessageBody::VoteReply {
                        campaign,
                        granted: false,
                    },
                );
            }
            MessageBody::Append { .. }
            | MessageBody::Heartbeat { .. }
            | MessageBody::Snapshot { .. }
            | MessageBody::ReadIndex { .. } => self.send(message.from, MessageBody::HigherTerm),
            _ => {}
        }
        false
    }

    fn dispatch(&mut self, message: Message) {
        let Message { from, term, body, .. } = message;
        if body.is_from_leader() && !self.accept_leader(from) {
            return;
        }
        match body {
            MessageBody::PreVote { campaign, last } => self.on_pre_vote(from, term + 1, campaign, last),
            MessageBody::PreVoteReply {
                campaign,
                asked,
                granted,
            } => {
                self.on_pre_vote_reply(from, campaign, asked, granted);
            }
            MessageBody::Vote {
                campaign,
                last,
                forced,
            } => self.on_vote(from, campaign, last, forced),
            MessageBody::VoteReply { campaign, granted } => self.on_vote_reply(from, campaign, granted),
            MessageBody::Append {
                epoch,
                round,
                prev,
                commit,
                entries,
            } => {
                self.hear_round(round);
                self.on_append(from, epoch, prev, commit, entries);
            }
            MessageBody::AppendReply {
                epoch,
                round,
                prev,
                result,
            } => {
                self.on_append_reply(from, epoch, round, prev, result);
            }
            MessageBody::Heartbeat {
                epoch,
                round,
                commit,
                keep,
            } => {
                self.hear_round(round);
                self.on_heartbeat(from, epoch, commit, keep);
            }
            MessageBody::HeartbeatReply {
                epoch,
                round,
                boot,
                installing,
            } => {
                self.on_heartbeat_reply(from, epoch, round, boot, installing);
            }
            MessageBody::Commit { commit } => self.follow_commit(commit),
            MessageBody::Snapshot { epoch, round, meta } => {
                self.hear_round(round);
                self.on_snapshot(from, epoch, meta);
            }
            MessageBody::TimeoutNow { last } => self.on_timeout_now(last),
            MessageBody::ReadIndex { read } => self.on_read_index(from, read),
            MessageBody::ReadIndexReply { read, index, .. } => self.on_read_index_reply(read, index),
            MessageBody::HigherTerm | MessageBody::Removed => {}
        }
    }

    pub(crate) fn send(&mut self, to: MemberId, body: MessageBody) {
        self.outbox.send(to, self.hard_state.term, body);
    }

    /// Sends once everything written so far is durable.
    pub(crate) fn send_when_durable(&mut self, to: MemberId, body: MessageBody) {
        let message = self.outbox.message(to, self.hard_state.term, body);
        self.writes.hold(Promise::Send(message));
    }

    /// Whether `id` is in a configuration that this member has.
    fn knows(&self, id: MemberId) -> bool {
        self.log
            .configurations()
            .any(|(_, configuration)| configuration.contains(id))
    }

    /// The sender leads this term. False if that cannot be: then the core stops.
    fn accept_leader(&mut self, from: MemberId) -> bool {
        if self.is_leader() || (self.leader != 0 && self.leader != from) {
            let (term, leader) = (self.hard_state.term, self.leader);
            self.fail(format!("two leaders in term {term}: {leader} and {from}"));
            return false;
        }
        if matches!(self.state, State::Follower) {
            self.leader = from;
        } else {
            self.become_follower(self.hard_state.term, from);
        }
        self.clock.heard(from);
        true
    }

    fn hear_round(&mut self, round: u64) {
        self.round_heard = self.round_heard.max(round);
    }

    /// EL5 and RS6: whether this member neither votes nor pre-votes for `asker` now.
    fn refuses_elections(&self, asker: MemberId, forced: bool) -> bool {
        if forced {
            return false;
        }
        let leads = match &self.state {
            State::Leader(leader) => leader.has_live_quorum(self, self.clock.t_min),
            _ => false,
        };
        leads || self.clock.is_silent() || self.clock.is_promised_to_other(asker)
    }

    fn on_pre_vote(&mut self, from: MemberId, asked: Term, campaign: u64, last: LogId) {
        let granted =
            asked > self.hard_state.term && last >= self.log.last() && !self.refuses_elections(from, false);
        self.send(
            from,
            MessageBody::PreVoteReply {
                campaign,
                asked,
                granted,
            },
        );
    }

    fn on_vote(&mut self, from: MemberId, campaign: u64, last: LogId, forced: bool) {
        let vote = self.hard_state.vote;
        let free = vote == from || (vote == 0 && self.leader == 0 && !self.is_leader());
        let granted = free && last >= self.log.last() && !self.refuses_elections(from, forced);
        if !granted {
            return self.send(from, MessageBody::VoteReply { campaign, granted });
        }
        if vote == 0 {
            self.hard_state.vote = from;
            self.writes.hard_state(self.hard_state);
        }
        self.become_follower(self.hard_state.term, 0);
        self.clock.restart_timeout();
        self.send_when_durable(from, MessageBody::VoteReply { campaign, granted });
    }

    fn on_pre_vote_reply(&mut self, from: MemberId, number: u64, asked: Term, granted: bool) {
        let next = self.hard_state.term + 1;
        if let State::PreCandidate(campaign) = &mut self.state
            && campaign.number == number
            && asked == next
        {
            if granted {
                campaign.granted.insert(from)
            } else {
                campaign.refused.insert(from)
            };
            self.tally();
        }
    }

    fn on_vote_reply(&mut self, from: MemberId, number: u64, granted: bool) {
        if let State::Candidate(campaign) = &mut self.state
            && campaign.number == number
        {
            if granted {
                campaign.granted.insert(from)
            } else {
                campaign.refused.insert(from)
            };
            self.tally();
        }
    }

    /// The own vote is durable: now it counts.
    pub(crate) fn on_own_vote(&mut self, term: Term, number: u64) {
        let me = self.options.id;
        if let State::Candidate(campaign) = &mut self.state
            && self.hard_state.term == term
            && campaign.number == number
        {
            campaign.granted.insert(me);
            self.tally();
        }
    }

    /// Counts what the voters of the own configuration said; others are ignored (EL11).
    fn tally(&mut self) {
        let (State::PreCandidate(campaign) | State::Candidate(campaign)) = &self.state else {
            return;
        };
        let configuration = self.log.configuration();
        if configuration.has_quorum(|id| campaign.granted.contains(&id)) {
            if matches!(self.state, State::PreCandidate(_)) {
                self.become_candidate(false);
            } else {
                self.become_leader();
            }
        } else if !configuration.can_reach_quorum(|id| campaign.refused.contains(&id)) {
            self.become_follower(self.hard_state.term, 0);
        }
    }

    /// EL10.
    pub(crate) fn may_campaign(&self) -> bool {
        let me = self.options.id;
        let voter = self.log.configuration().is_voter(me)
            || (self.log.configuration_index() > self.commit
                && self
                    .log
                    .previous_configuration()
                    .is_some_and(|previous| previous.is_voter(me)));
        voter && !self.removed && self.installing.is_none()
    }

    pub(crate) fn tick_election(&mut self) {
        if self.clock.now < self.clock.election_at || self.clock.is_silent() {
            return;
        }
        if self.may_campaign() {
            self.campaign(false);
        } else {
            self.leader = 0;
            self.forget_forwarded_try();
            self.clock.redraw();
        }
    }

    pub(crate) fn campaign(&mut self, forced: bool) {
        let alone = self.log.configuration().is_sole_voter(self.options.id);
        if self.options.pre_vote && !forced && !alone {
            self.become_pre_candidate();
        } else {
            self.become_candidate(forced);
        }
    }

    fn become_pre_candidate(&mut self) {
        let mut campaign = self.new_campaign();
        let (number, last) = (campaign.number, self.log.last());
        for peer in self.ask_voters(&mut campaign) {
            self.send(
                peer,
                MessageBody::PreVote {
                    campaign: number,
                    last,
                },
            );
        }
        self.state = State::PreCandidate(campaign);
        self.tally();
    }

    fn become_candidate(&mut self, forced: bool) {
        let mut campaign = self.new_campaign();
        let (number, last, me) = (campaign.number, self.log.last(), self.options.id);
        self.set_term(self.hard_state.term + 1, me);
        for peer in self.ask_voters(&mut campaign) {
            self.send_when_durable(
                peer,
                MessageBody::Vote {
                    campaign: number,
                    last,
                    forced,
                },
            );
        }
        if campaign.granted.remove(&me) {
            self.writes.hold(Promise::OwnVote {
                term: self.hard_state.term,
                campaign: number,
            });
        }
        self.state = State::Candidate(campaign);
    }

    /// What every campaign starts with: the leader is forgotten (EL4), the timeout drawn anew (EL9).
    fn new_campaign(&mut self) -> Campaign {
        self.drop_reads();
        self.leader = 0;
        self.campaign = self.campaign.wrapping_add(1);
        self.clock.redraw();
        Campaign::new(self.campaign)
    }

    /// The voters to ask; this member counts itself only where it is one (EL10).
    fn ask_voters(&self, campaign: &mut Campaign) -> Vec<MemberId> {
        let me = self.options.id;
        let configuration = self.log.configuration();
        if configuration.is_voter(me) {
            campaign.granted.insert(me);
        }
        let voters: BTreeSet<_> = configuration
            .voters
            .union(&configuration.outgoing)
            .copied()
            .collect();
        voters.into_iter().filter(|&id| id != me).collect()
    }

    /// Follows `leader` (0: nobody yet) in `term`, which is the current one or a higher one.
    pub(crate) fn become_follower(&mut self, term: Term, leader: MemberId) {
        let new_term = term > self.hard_state.term;
        let was_follower = matches!(self.state, State::Follower);
        if new_term || !was_follower {
            self.drop_reads();
        }
        if let State::Leader(former) = std::mem::replace(&mut self.state, State::Follower) {
            self.end_leadership(*former);
        }
        if new_term {
            self.set_term(term, 0);
        } else if !was_follower {
            self.writes.drop_campaign();
        }
        if !was_follower {
            self.clock.redraw();
        }
        if new_term || leader != 0 || !was_follower {
            self.leader = leader;
        }
    }

    fn set_term(&mut self, term: Term, vote: MemberId) {
        self.hard_state = HardState { term, vote };
        self.writes.hard_state(self.hard_state);
        self.writes.drop_before(term);
        self.round_heard = 0;
        self.leader = 0;
    }

    fn become_leader(&mut self) {
        self.drop_reads();
        self.leader = self.options.id;
        let mut leader = Box::new(Leader::new(self));
        if let State::Candidate(campaign) = &self.state {
            leader.count_votes_as_contact(&campaign.granted, self.clock.now);
        }
        self.clock.redraw();
        self.state = State::Leader(leader);
        self.append_noop();
    }
}
