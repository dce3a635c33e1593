//! Corners that no cluster is needed for: what a core starts from, what stops it, its limits, its clock.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use kvorum_raft::*;

const MS: Micros = 1000;

fn options() -> Options {
    Options {
        id: 1,
        cluster: 7,
        boot: 1,
        seed: 1,
        election_timeout: 1000 * MS,
        heartbeat_interval: 100 * MS,
        pre_vote: true,
        lease_reads: false,
        append_bytes_max: 1 << 16,
        append_entries_max: usize::MAX,
        check_quorum: 0,
        window_messages: 16,
        window_bytes: 1 << 20,
        uncommitted_bytes_max: 1 << 20,
        cache_bytes_max: 1 << 20,
        apply_bytes_max: 1 << 16,
        entry_bytes_max: 1 << 16,
        promote_lag_bytes: 0,
        retain_bytes_max: 0,
    }
}

fn entry(index: Index, term: Term) -> Entry {
    Entry {
        term,
        index,
        kind: EntryKind::Command,
        data: Bytes::from_static(b"data"),
    }
}

/// Founders' log of three, then entries of these terms; the current term is the last one's.
fn restored(terms: &[Term]) -> Restored {
    let mut entries = vec![founders_entry([1, 2, 3])];
    entries.extend(terms.iter().zip(2..).map(|(&term, index)| entry(index, term)));
    let term = entries.last().unwrap().term;
    Restored {
        hard_state: HardState { term, vote: 0 },
        entries,
        ..Restored::default()
    }
}

fn meta(index: Index, term: Term) -> SnapshotMeta {
    SnapshotMeta {
        last: LogId { term, index },
        configuration: Configuration::of_voters([1, 2, 3]),
    }
}

/// A core under test with its effects at hand.
struct One {
    raft: Raft,
    now: Micros,
}

impl One {
    fn start(options: Options, restored: Restored) -> One {
        One {
            raft: Raft::new(options, restored, 0).unwrap(),
            now: 0,
        }
    }

    /// A leader of three whose empty entry is committed and applied.
    fn leader(options: Options) -> One {
        let mut one = One::start(options, restored(&[]));
        one.now = 1000 * MS;
        let mut out = Vec::new();
        one.raft.campaign_now(one.now, &mut out);
        let campaign = out.iter().find_map(|effect| match effect {
            Effect::Send(Message {
                body: MessageBody::PreVote { campaign, .. },
                ..
            }) => Some(*campaign),
            _ => None,
        });
        let campaign = campaign.unwrap();
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
        one.persist();
        one.matched(2);
        one.step(Input::Applied(2));
        assert!(one.raft.is_leader() && one.raft.applied() == 2);
        one
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.raft.step(self.now, input, &mut out);
        out
    }

    fn from(&mut self, from: MemberId, term: Term, body: MessageBody) -> Vec<Effect> {
        self.step(Input::Message(Message {
            cluster: 7,
            from,
            to: 1,
            term,
            body,
        }))
    }

    fn append(&mut self, term: Term, prev: LogId, entries: Vec<Entry>) -> Vec<Effect> {
        self.from(
            2,
            term,
            MessageBody::Append {
                epoch: 1,
                round: 0,
                prev,
                commit: 0,
                entries,
            },
        )
    }

    /// Member 2 acknowledges up to `index`.
    fn matched(&mut self, index: Index) -> Vec<Effect> {
        let (term, result) = (self.raft.term(), AppendResult::Matched(index));
        self.from(
            2,
            term,
            MessageBody::AppendReply {
                epoch: 0,
                round: 0,
                prev: 0,
                result,
            },
        )
    }

    fn persist(&mut self) -> Vec<Effect> {
        let issued = self.raft.status().writes.0;
        self.step(Input::Persisted(issued))
    }

    fn propose(&mut self, token: Token, bytes: usize) -> Vec<Effect> {
        self.step(Input::Propose {
            token,
            commands: vec![vec![0; bytes].into()],
        })
    }
}

fn fatal(effects: &[Effect]) -> &str {
    match effects {
        [Effect::Fatal(why)] => why,
        other => panic!("expected nothing but Fatal: {other:?}"),
    }
}

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

#[test]
fn lg1_a_cut_at_or_below_the_commit_is_fatal() {
    let mut found = restored(&[1, 1]);
    found.commit_mark = 2;
    let mut one = One::start(options(), found.clone());
    let out = one.append(3, LogId { term: 1, index: 1 }, vec![entry(2, 3)]);
    // What is committed here is skipped, not compared (RP5); an append that ends there cuts nothing.
    assert!(!out.iter().any(|effect| matches!(effect, Effect::Fatal(_))));
    let mut one = One::start(options(), found);
    let out = one.append(3, LogId { term: 2, index: 2 }, vec![entry(3, 3)]);
    assert!(fatal(&out).contains("entry 2 of term Some(1) is committed here"));
}

#[test]
fn two_leaders_in_a_term_are_fatal() {
    let mut one = One::start(options(), restored(&[]));
    one.append(3, LogId { term: 1, index: 1 }, Vec::new());
    let heartbeat = MessageBody::Heartbeat {
        epoch: 1,
        round: 1,
        commit: 0,
        keep: 0,
    };
    assert!(fatal(&one.from(3, 3, heartbeat.clone())).contains("two leaders in term 3: 2 and 3"));
    let mut one = One::leader(options());
    assert!(fatal(&one.from(3, 2, heartbeat)).contains("two leaders in term 2: 1 and 3"));
}

#[test]
fn a_write_never_issued_and_an_entry_never_handed_out_are_fatal() {
    let mut one = One::leader(options());
    let issued = one.raft.status().writes.0;
    assert!(fatal(&one.step(Input::Persisted(issued + 1))).contains("never") || one.raft.failure().is_some());
    let mut one = One::leader(options());
    fatal(&one.step(Input::Applied(3)));
}

#[test]
fn nothing_follows_a_failure() {
    let mut one = One::leader(options());
    one.propose(1, 1);
    assert_eq!(fatal(&one.step(Input::PersistFailed)), "the disk failed");
    assert_eq!(one.step(Input::PersistFailed), []);
    assert_eq!(one.persist(), []);
    one.now += 10_000 * MS;
    assert_eq!(one.step(Input::Tick), []);
    assert_eq!(
        one.propose(2, 1),
        [Effect::Refused {
            token: 2,
            why: RefuseReason::Stopped
        }]
    );
    assert_eq!(
        one.step(Input::Read { token: 3 }),
        [Effect::ReadDropped { token: 3 }]
    );
}

#[test]
fn rp9_a_failed_or_wrong_local_read_is_fatal_and_a_stale_one_is_ignored() {
    let small = Options {
        cache_bytes_max: 0,
        window_messages: 1,
        append_bytes_max: 1,
        ..options()
    };
    let lagging = |one: &mut One| {
        for token in 1..4 {
            one.propose(token, 1);
            one.persist();
            one.matched(2 + token);
        }
        // Member 3 acknowledges only the first entries; what follows is not in memory any more.
        let result = AppendResult::Refused {
            hint: LogId { term: 1, index: 1 },
            last: 1,
        };
        let status = one.raft.status();
        let body = MessageBody::AppendReply {
            epoch: 2,
            round: 0,
            prev: 1,
            result,
        };
        one.from(3, status.hard_state.term, body);
        let result = AppendResult::Matched(2);
        let body = MessageBody::AppendReply {
            epoch: 2,
            round: 0,
            prev: 1,
            result,
        };
        let out = one.from(3, status.hard_state.term, body);
        out.iter().find_map(|effect| match *effect {
            Effect::Fetch { id, from, .. } => Some((id, from)),
            _ => None,
        })
    };
    let mut one = One::leader(small.clone());
    let (id, from) = lagging(&mut one).unwrap();
    assert_eq!(from, 3);
    assert!(
        fatal(&one.step(Input::Fetched {
            id,
            entries: Vec::new()
        }))
        .contains("could not be read from entry 3")
    );
    let mut one = One::leader(small.clone());
    let (id, _) = lagging(&mut one).unwrap();
    assert!(
        fatal(&one.step(Input::Fetched {
            id,
            entries: vec![entry(3, 1)]
        }))
        .contains("3@1 was read where")
    );
    let mut one = One::leader(small);
    let (id, _) = lagging(&mut one).unwrap();
    assert_eq!(
        one.step(Input::Fetched {
            id: id + 1,
            entries: Vec::new()
        }),
        []
    );
    let out = one.step(Input::Fetched {
        id,
        entries: vec![entry(3, 2)],
    });
    assert!(
        matches!(
            &out[..],
            [Effect::Send(Message {
                to: 3,
                body: MessageBody::Append { .. },
                ..
            })]
        ),
        "{out:?}"
    );
}

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
