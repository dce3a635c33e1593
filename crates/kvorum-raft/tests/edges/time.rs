//! The clock: one that goes back, and cores that have none.

use kvorum_raft::*;

use crate::one::*;

#[test]
fn tm1_time_that_goes_back_ends_the_lease_for_the_term() {
    let lease = Options {
        lease_reads: true,
        ..options()
    };
    let run = |back: Micros| {
        let mut one = One::leader(lease.clone());
        one.now += 100 * MS;
        one.step(Input::Tick);
        one.from(
            2,
            2,
            MessageBody::HeartbeatReply {
                epoch: 1,
                round: 1,
                boot: 1,
                installing: false,
            },
        );
        one.now -= back;
        one.step(Input::Read { token: 1 })
            .contains(&Effect::ReadReady { token: 1, index: 2 })
    };
    assert!(run(0));
    assert!(!run(1));
}

/// With both timeouts 0 and a constant clock no part of the state is about time: a model checker's states are
/// the cores themselves.
#[test]
fn untimed_cores_do_not_depend_on_time() {
    let untimed = Options {
        election_timeout: 0,
        heartbeat_interval: 0,
        ..options()
    };
    let mut one = One::start(untimed, restored(&[]));
    let mut out = Vec::new();
    one.raft.campaign_now(0, &mut out);
    one.from(
        2,
        1,
        MessageBody::PreVoteReply {
            campaign: (1 << 32) + 1,
            asked: 2,
            granted: true,
        },
    );
    one.persist();
    assert_eq!(one.raft.role(), Role::Candidate);
    let without = one.raft.without_time();
    assert_eq!(without.without_time(), without);
    one.from(
        2,
        2,
        MessageBody::VoteReply {
            campaign: (1 << 32) + 2,
            granted: true,
        },
    );
    one.persist();
    assert!(one.raft.is_leader());
    // Nobody is bound to a leader heard just now: every vote can be asked for at any moment.
    let last = LogId { term: 2, index: 2 };
    one.from(
        3,
        3,
        MessageBody::Vote {
            campaign: 1,
            last,
            forced: false,
        },
    );
    assert_eq!(one.raft.hard_state(), HardState { term: 3, vote: 3 });
}
