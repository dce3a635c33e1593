//! What a core starts from, and what it refuses to start from (rules RS, and the options).

use bytes::Bytes;
use kvorum_raft::*;

use crate::one::*;

#[track_caller]
fn refuses_to_start(restored: Restored, why: &str) {
    let error = Raft::new(options(), restored, 0).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn tm1_options_that_make_no_sense() {
    for (broken, why) in [
        (Options { id: 0, ..options() }, "reserved"),
        (
            Options {
                heartbeat_interval: 201 * MS,
                ..options()
            },
            "T_min / 5",
        ),
        (
            Options {
                heartbeat_interval: 0,
                ..options()
            },
            "heartbeat interval is 0",
        ),
        (
            Options {
                window_messages: 0,
                ..options()
            },
            "window",
        ),
        (
            Options {
                append_bytes_max: 0,
                ..options()
            },
            "append",
        ),
        (
            Options {
                append_entries_max: 0,
                ..options()
            },
            "append",
        ),
        (
            Options {
                apply_bytes_max: 0,
                ..options()
            },
            "applied",
        ),
        (
            Options {
                entry_bytes_max: 0,
                ..options()
            },
            "entry",
        ),
        (
            Options {
                election_timeout: Micros::MAX,
                ..options()
            },
            "too long",
        ),
    ] {
        let error = Raft::new(broken, Restored::default(), 0).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let untimed = Options {
        election_timeout: 0,
        heartbeat_interval: 0,
        ..options()
    };
    assert!(Raft::new(untimed, Restored::default(), 0).is_ok());
}

#[test]
fn rs1_a_restart_follows_nobody_and_forgets_its_candidacy() {
    let mut found = restored(&[2]);
    found.hard_state.vote = 1;
    let one = One::start(options(), found);
    assert_eq!((one.raft.role(), one.raft.leader()), (Role::Follower, 0));
}

#[test]
fn rs2_term_below_the_last_entry_is_corrupt() {
    let mut found = restored(&[3]);
    found.hard_state.term = 2;
    refuses_to_start(found, "its last entry has term 3");
}

#[test]
fn rs3_gap_above_the_base_is_corrupt() {
    let mut found = restored(&[1, 1, 1]);
    found.entries.drain(..2);
    refuses_to_start(found.clone(), "it starts at 3");
    found.base = meta(1, 1);
    found.applied = found.base.last;
    refuses_to_start(found, "it starts at 3");
}

#[test]
fn rs3_log_that_ends_before_the_snapshot_is_discarded() {
    let mut found = restored(&[1, 1]);
    (found.base, found.applied) = (meta(9, 1), meta(9, 1).last);
    let mut one = One::start(options(), found);
    assert_eq!(
        (one.raft.last(), one.raft.commit()),
        (LogId { term: 1, index: 9 }, 9)
    );
    // The reset is written with the first step: cut everything above, move the base.
    let out = one.step(Input::Tick);
    let Effect::Persist(write) = &out[0] else {
        panic!("{out:?}")
    };
    assert_eq!(
        (write.snapshot.as_ref().unwrap().last.index, write.truncate_from),
        (9, Some(10))
    );
}

#[test]
fn rs3_log_of_another_term_at_the_snapshot_is_discarded_same_term_keeps_the_suffix() {
    for (term, last) in [(2, LogId { term: 2, index: 3 }), (1, LogId { term: 1, index: 5 })] {
        let mut found = restored(&[1, 1, 1, 1]);
        found.hard_state.term = 2;
        (found.base, found.applied) = (meta(3, term), meta(3, term).last);
        let mut one = One::start(options(), found);
        assert_eq!(one.raft.last(), last);
        let out = one.step(Input::Tick);
        let Effect::Persist(write) = &out[0] else {
            panic!("{out:?}")
        };
        assert_eq!(write.truncate_from, (term == 2).then_some(4));
    }
}

#[test]
fn rs4_commit_and_applied_beyond_the_log_are_lost_data() {
    let mut found = restored(&[1]);
    found.commit_mark = 3;
    refuses_to_start(found, "the log ends at 2, but 3 was committed");
    let mut found = restored(&[1]);
    found.applied = LogId { term: 1, index: 3 };
    refuses_to_start(found, "the log ends at 2, but 3 was committed or applied");
    let mut found = restored(&[1]);
    found.applied = LogId { term: 2, index: 2 };
    refuses_to_start(found, "the state machine applied entry 2@2");
    let mut found = Restored {
        base: meta(5, 1),
        ..Restored::default()
    };
    found.hard_state.term = 1;
    refuses_to_start(found, "the state machine ends at 0, the log begins after 5");
}

#[test]
fn rs4_commit_is_the_highest_of_mark_base_and_applied() {
    let mut found = restored(&[1, 1, 1]);
    (found.commit_mark, found.applied) = (2, LogId { term: 1, index: 3 });
    let mut one = One::start(options(), found);
    assert_eq!(one.raft.commit(), 3);
    // Applying resumes behind what is flushed.
    assert_eq!(one.step(Input::Tick), []);
    assert_eq!(one.raft.applied(), 3);
}

#[test]
fn rs5_terms_and_configurations_of_entries_left_on_disk() {
    let joint = Configuration {
        outgoing: [1, 2, 3].into(),
        ..Configuration::of_voters([1, 2])
    };
    let restored = Restored {
        hard_state: HardState { term: 5, vote: 0 },
        base: meta(10, 2),
        entries: vec![entry(21, 4), entry(22, 5)],
        terms: vec![(11, 2), (14, 3), (18, 4)],
        configs: vec![(15, joint.clone())],
        commit_mark: 12,
        applied: meta(11, 2).last,
    };
    let mut one = One::start(options(), restored);
    let terms: Vec<_> = (9..=23).map(|index| one.raft.term_at(index)).collect();
    let expected = [0, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 0].map(|term| (term > 0).then_some(term));
    assert_eq!(terms, expected);
    assert_eq!((one.raft.latest_configuration(), one.raft.commit()), (&joint, 12));
    // Entry 12 is read for the state machine.
    let out = one.step(Input::Tick);
    assert_eq!(
        out,
        [Effect::Fetch {
            id: 1,
            from: 12,
            to: 12,
            bytes_max: 1 << 16
        }]
    );
    let out = one.step(Input::Fetched {
        id: 1,
        entries: vec![entry(12, 2)],
    });
    assert_eq!(out, [Effect::Apply(vec![entry(12, 2)])]);
}

#[test]
fn rs6_silence_ends_after_t_min_and_is_skipped_by_a_sole_voter_only() {
    let sole = Restored {
        hard_state: HardState { term: 1, vote: 0 },
        entries: vec![founders_entry([1])],
        ..Restored::default()
    };
    let mut one = One::start(options(), sole);
    one.step(Input::Tick);
    assert_eq!(one.raft.role(), Role::Candidate);

    // A voter that was not always alone may have promised something.
    let config = |index, voters: &[MemberId]| Entry {
        kind: EntryKind::Config,
        data: ConfigEntry {
            configuration: Configuration::of_voters(voters.iter().copied()),
            context: Bytes::new(),
        }
        .encode(),
        ..entry(index, 1)
    };
    let mut found = restored(&[]);
    found.entries.push(config(2, &[1]));
    let mut one = One::start(options(), found);
    one.step(Input::Tick);
    assert_eq!(one.raft.role(), Role::Follower);
    one.now = 999 * MS;
    let last = LogId { term: 9, index: 9 };
    let out = one.from(
        2,
        3,
        MessageBody::Vote {
            campaign: 1,
            last,
            forced: false,
        },
    );
    assert!(matches!(
        &out[..],
        [Effect::Send(Message {
            body: MessageBody::VoteReply { granted: false, .. },
            ..
        })]
    ));
    assert_eq!(one.raft.term(), 1);
    one.now = 1000 * MS;
    one.from(
        2,
        3,
        MessageBody::Vote {
            campaign: 1,
            last,
            forced: false,
        },
    );
    assert_eq!(one.raft.hard_state(), HardState { term: 3, vote: 2 });
}
