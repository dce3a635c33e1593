//! What becomes of a write that a follower forwards: once, and again only if it was certainly not appended.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use kvorum_model::MemberRecord;
use kvorum_mvcc::ClusterState;
use kvorum_node::{ApplyReport, Effect, Input, Node, PeerBody, PeerMessage, Proposal, WriteFailure};
use kvorum_raft::{MemberId, Message, MessageBody, Micros, Raft, Restored, Term, Token, founders_entry};

use crate::common::options;

const ME: MemberId = 1;

/// A follower, and the time.
struct Follower {
    node: Node,
    now: Micros,
}

impl Follower {
    fn new() -> Follower {
        let mut restored = Restored {
            entries: vec![founders_entry([1, 2, 3])],
            ..Restored::default()
        };
        restored.hard_state.term = 1;
        let options = options(MemberRecord {
            id: ME,
            ..MemberRecord::default()
        });
        let raft = Raft::new(options.raft.clone(), restored, 0).unwrap();
        let cluster = Arc::new(ClusterState::default());
        let node = Node::new(options, raft, ApplyReport::default(), cluster, 0, 0);
        let mut follower = Follower { node, now: 0 };
        follower.hear(2, 2);
        follower
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.node.step(self.now, input, &mut effects);
        effects
    }

    /// A heartbeat of this leader.
    fn hear(&mut self, leader: MemberId, term: Term) -> Vec<Effect> {
        let message = Message {
            cluster: 7,
            from: leader,
            to: ME,
            term,
            body: MessageBody::Heartbeat {
                epoch: 1,
                round: 0,
                commit: 0,
                keep: 0,
            },
        };
        let effects = self.step(Input::Peer(PeerMessage {
            from: leader,
            to: ME,
            body: PeerBody::Raft(message),
        }));
        assert_eq!(self.node.leader(), leader);
        effects
    }

    fn propose(&mut self, seq: u64) -> Vec<Effect> {
        self.step(Input::Propose(vec![Proposal {
            seq,
            command: Bytes::from(format!("command {seq}")),
            deadline: self.now + 5_000_000,
        }]))
    }

    fn pass(&mut self, time: Micros) -> Vec<Effect> {
        self.now += time;
        self.step(Input::Tick)
    }
}

/// The forwards among the effects: to whom, under which number, the first command.
fn forwards(effects: &[Effect]) -> Vec<(MemberId, Token, Bytes)> {
    let forward = |effect: &Effect| match effect {
        Effect::Send(PeerMessage {
            to,
            body: PeerBody::Forward { id, commands },
            ..
        }) => Some((*to, *id, commands[0].clone())),
        _ => None,
    };
    effects.iter().filter_map(forward).collect()
}

fn failures(effects: &[Effect]) -> Vec<(u64, WriteFailure)> {
    let failed = |effect: &Effect| match effect {
        Effect::WritesFailed { seqs, why } => Some((seqs[0], *why)),
        _ => None,
    };
    effects.iter().filter_map(failed).collect()
}

fn unreachable(peer: MemberId, handed: Token, unsent: &[Token]) -> Input {
    Input::Unreachable {
        peer,
        handed,
        unsent: unsent.to_vec(),
    }
}

/// Once, a write that came to a follower after its leader had been killed and before the follower knew was answered
/// with "unknown" at once, although there was no connection on which it could have been sent.
#[test]
fn a_write_that_never_left_is_held_until_there_is_another_leader() {
    let mut follower = Follower::new();
    let [(2, id, command)] = &forwards(&follower.propose(7))[..] else {
        panic!("not forwarded")
    };
    let effects = follower.step(unreachable(2, 0, &[*id]));
    assert_eq!((forwards(&effects), failures(&effects)), (vec![], vec![]), "held");

    // The follower still believes in its leader: it tries again from time to time.
    let effects = follower.pass(60_000);
    let [(2, again, same)] = &forwards(&effects)[..] else {
        panic!("not tried again: {effects:?}")
    };
    assert!(again > id && same == command);
    let effects = follower.step(unreachable(2, 0, &[*again]));
    assert_eq!(failures(&effects), [], "held again");

    let effects = follower.hear(3, 3);
    let [(3, _, same)] = &forwards(&effects)[..] else {
        panic!("not for the new leader: {effects:?}")
    };
    assert_eq!(same, command);
}

#[test]
fn a_write_that_never_left_until_its_deadline_was_not_applied() {
    let mut follower = Follower::new();
    let mut sent = forwards(&follower.propose(7));
    for _ in 0..200 {
        let ids: Vec<Token> = sent.iter().map(|(_, id, _)| *id).collect();
        let mut effects = follower.step(unreachable(2, 0, &ids));
        effects.extend(follower.hear(2, 2));
        effects.extend(follower.pass(50_000));
        match failures(&effects)[..] {
            [] => sent = forwards(&effects),
            [(7, why)] => {
                assert!(!why.is_unknown(), "{why:?}");
                assert!((5_000_000..5_200_000).contains(&follower.now), "{}", follower.now);
                return;
            }
            _ => panic!("{effects:?}"),
        }
    }
    panic!("never answered");
}

#[test]
fn what_was_handed_to_a_broken_connection_is_unknown_and_what_was_not_is_not() {
    let mut follower = Follower::new();
    let handed = forwards(&follower.propose(7))[0].1;
    let queued = forwards(&follower.propose(8))[0].1;
    let effects = follower.step(unreachable(2, handed, &[]));
    assert_eq!(failures(&effects), [(7, WriteFailure::LeaderLost)]);

    // Told late, or twice, changes nothing; the other one is still this leader's to answer.
    let effects = follower.step(unreachable(2, handed, &[handed]));
    assert_eq!((forwards(&effects), failures(&effects)), (vec![], vec![]));
    let effects = follower.step(unreachable(3, queued, &[]));
    assert_eq!(failures(&effects), [], "it was not sent to that member");
    let effects = follower.step(unreachable(2, queued, &[]));
    assert_eq!(failures(&effects), [(8, WriteFailure::LeaderLost)]);
}

#[test]
fn what_is_held_when_the_member_stops_was_not_applied() {
    let mut follower = Follower::new();
    let [(_, id, _)] = forwards(&follower.propose(7))[..] else {
        panic!("not forwarded")
    };
    follower.propose(8);
    follower.step(unreachable(2, 0, &[id]));
    let effects = follower.step(Input::Stopping);
    assert_eq!(
        failures(&effects),
        [(7, WriteFailure::Stopping)],
        "8 is on its way"
    );
    assert!(!WriteFailure::Stopping.is_unknown());
}

/// The other lane, or messages of the core, say nothing of forwards.
#[test]
fn a_connection_without_forwards_that_breaks_touches_none() {
    let mut follower = Follower::new();
    follower.propose(7);
    let effects = follower.step(unreachable(2, 0, &[]));
    assert_eq!((forwards(&effects), failures(&effects)), (vec![], vec![]));
}
