//! What a core refuses, and whom it hands over to, when it has too much in hand.

use kvorum_raft::*;

use crate::one::*;

#[test]
fn fl2_reads_are_bounded() {
    let mut one = One::start(options(), restored(&[]));
    for token in 0..READS_MAX as u64 {
        assert_eq!(one.step(Input::Read { token }), []);
    }
    assert_eq!(
        one.step(Input::Read { token: 1 << 40 }),
        [Effect::ReadDropped { token: 1 << 40 }]
    );
}

#[test]
fn fl3_a_leader_whose_state_machine_or_disk_is_far_behind_refuses() {
    let limited = Options {
        uncommitted_bytes_max: 1000,
        ..options()
    };
    let mut one = One::leader(limited.clone());
    let refused = |out: &[Effect]| {
        out.iter().any(|effect| {
            matches!(
                effect,
                Effect::Refused {
                    why: RefuseReason::Overloaded,
                    ..
                }
            )
        })
    };
    // Committed by 2 and itself, but never applied.
    let mut last = 2;
    while !refused(&one.propose(1, 200)) {
        last += 1;
        assert!(last < 10, "nothing stops it");
        one.persist();
        one.matched(last);
    }
    assert_eq!(one.raft.commit(), last);
    one.step(Input::Applied(last));
    assert!(!refused(&one.propose(1, 200)));
}

#[test]
fn fl3_a_leader_whose_disk_stalls_hands_over() {
    let mut one = One::leader(options());
    let beat = |one: &mut One, ms: u64| {
        for _ in 0..ms / 100 {
            one.now += 100 * MS;
            one.step(Input::Tick);
            for peer in [2, 3] {
                let body = MessageBody::HeartbeatReply {
                    epoch: 0,
                    round: 0,
                    boot: 1,
                    installing: false,
                };
                one.from(peer, 2, body);
            }
        }
    };
    let result = AppendResult::Matched(2);
    one.from(
        2,
        2,
        MessageBody::AppendReply {
            epoch: 1,
            round: 0,
            prev: 1,
            result,
        },
    );
    one.from(
        3,
        2,
        MessageBody::AppendReply {
            epoch: 2,
            round: 0,
            prev: 1,
            result,
        },
    );
    one.propose(1, 1);
    one.matched(3);
    beat(&mut one, 1900);
    assert_eq!(one.raft.status().transfer, None);
    beat(&mut one, 200);
    assert_eq!(one.raft.status().transfer, Some(2));
}

#[test]
fn lg6_uncommitted_bytes_are_counted_anew_at_election() {
    let limited = Options {
        uncommitted_bytes_max: 300,
        ..options()
    };
    let mut found = restored(&[1, 1, 1, 1]);
    found.hard_state.term = 1;
    let mut one = One::start(limited, found);
    one.now = 1000 * MS;
    let mut out = Vec::new();
    one.raft.campaign_now(one.now, &mut out);
    let Some(Effect::Send(Message {
        body: MessageBody::PreVote { campaign, .. },
        ..
    })) = out.first()
    else {
        panic!("{out:?}");
    };
    let campaign = *campaign;
    one.from(
        2,
        1,
        MessageBody::PreVoteReply {
            campaign,
            asked: 2,
            granted: true,
        },
    );
    one.persist();
    one.from(
        2,
        2,
        MessageBody::VoteReply {
            campaign: campaign + 1,
            granted: true,
        },
    );
    assert!(one.raft.is_leader());
    // The founders' entry, four of 36 bytes, and the empty one of 32.
    assert!(one.raft.status().uncommitted_bytes > 4 * 36 + 32);
    assert!(one.propose(1, 100).contains(&Effect::Refused {
        token: 1,
        why: RefuseReason::Overloaded
    }));
    one.persist();
    one.matched(6);
    assert_eq!(one.raft.status().uncommitted_bytes, 0);
}
