//! What stops a core: contradictions from its peers, its disk or its shell; and that nothing follows.

use kvorum_raft::*;

use crate::one::*;

fn fatal(effects: &[Effect]) -> &str {
    match effects {
        [Effect::Fatal(why)] => why,
        other => panic!("expected nothing but Fatal: {other:?}"),
    }
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
