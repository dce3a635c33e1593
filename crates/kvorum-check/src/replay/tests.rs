#![allow(clippy::unwrap_used)]

use super::*;
use crate::testkit::{Plan, Random, Run as Simulated, simulate};
use crate::{Base, Bytes, KeyRange, Op, Outcome, Record, Reply};

fn kv(value: &'static str, create_revision: u64, mod_revision: u64, version: u64) -> Kv {
    Kv {
        key: "k".into(),
        value: value.into(),
        create_revision,
        mod_revision,
        version,
    }
}

/// Builds a history line by line: times, operation, answer.
#[derive(Default)]
struct Script(History);

impl Script {
    fn ok(mut self, from: u64, to: u64, op: Op, reply: Reply) -> Script {
        self.0.push(Record {
            client: 1,
            invoked: from,
            completed: Some(to),
            op,
            outcome: Outcome::Ok(reply),
        });
        self
    }

    fn put(self, from: u64, to: u64, value: &'static str, revision: u64) -> Script {
        self.ok(from, to, Op::put("k", value), Reply::Put { revision })
    }

    fn get(self, from: u64, to: u64, revision: u64, kv: Option<Kv>) -> Script {
        self.ok(from, to, Op::get("k"), Reply::Get { revision, kv })
    }

    fn delete(self, from: u64, to: u64, revision: u64, deleted: bool) -> Script {
        self.ok(from, to, Op::delete("k"), Reply::Delete { revision, deleted })
    }

    fn cas(
        self,
        from: u64,
        to: u64,
        expected: &'static str,
        value: &'static str,
        reply: (u64, bool),
    ) -> Script {
        let (revision, succeeded) = reply;
        self.ok(
            from,
            to,
            Op::cas("k", Some(expected.into()), value),
            Reply::Txn { revision, succeeded },
        )
    }

    fn unknown(mut self, from: u64, op: Op) -> Script {
        self.0.invoke(2, from, op);
        self
    }

    #[track_caller]
    fn passes(&self) -> Replay<'_> {
        Replay::new(&self.0).unwrap_or_else(|failure| panic!("{failure}"))
    }

    #[track_caller]
    fn fails(&self, expected: &str) {
        let failure = Replay::new(&self.0).expect_err("must be flagged");
        assert!(failure.to_string().contains(expected), "{failure}");
    }
}

fn script() -> Script {
    Script::default()
}

#[test]
fn versions_and_revisions_follow_from_the_order() {
    let good = || script().put(1, 2, "a", 2).put(3, 4, "b", 3);
    good()
        .get(5, 6, 3, Some(kv("b", 2, 3, 2)))
        .delete(7, 8, 4, true)
        .get(9, 10, 4, None)
        .passes();
    good().get(5, 6, 3, Some(kv("b", 3, 3, 2))).fails("created 3");
    good().get(5, 6, 3, Some(kv("b", 2, 3, 1))).fails("version 1");
    good()
        .get(5, 6, 3, Some(kv("a", 2, 3, 2)))
        .fails("must be b\"b\"");
    good()
        .get(5, 6, 3, Some(kv("a", 2, 2, 1)))
        .fails("the answer is wrong");
    good().get(5, 6, 3, None).fails("the answer is wrong");
    good()
        .get(5, 6, 3, Some(kv("b", 2, 4, 2)))
        .fails("is of revision 3, but shows");
    good().delete(5, 6, 3, false).fails("the key was there to delete");
    let again = good().delete(5, 6, 4, true).put(7, 8, "c", 5);
    again.passes().check_final(5, &[kv("c", 5, 5, 1)]).unwrap();
}

#[test]
fn a_revision_has_one_writer() {
    script()
        .put(1, 9, "a", 2)
        .put(1, 9, "b", 2)
        .fails("two writes have revision 2");
    script()
        .put(1, 2, "a", 2)
        .put(3, 4, "b", 4)
        .fails("1 revisions have no acknowledged writer (the first: [3])");
    script()
        .put(1, 2, "a", u64::MAX)
        .fails("revisions have no acknowledged writer");
}

#[test]
fn real_time_is_respected() {
    script().put(1, 9, "a", 3).put(2, 8, "b", 2).passes();
    script()
        .put(1, 2, "a", 3)
        .put(3, 4, "b", 2)
        .fails("came after revision 3");
    script()
        .put(1, 2, "a", 2)
        .get(3, 4, 1, None)
        .fails("revision 1 came after revision 2");
    script()
        .put(1, 9, "a", 2)
        .get(2, 3, 2, Some(kv("a", 2, 2, 1)))
        .get(4, 5, 1, None)
        .fails("came after");
    // The answer of the read proves that revision 3 was written before the put was sent.
    script()
        .put(1, 20, "a", 2)
        .get(2, 3, 2, Some(kv("a", 2, 2, 1)))
        .put(4, 5, "b", 2)
        .fails("");
    script().get(1, 2, 0, None).fails("without a revision");
}

#[test]
fn guards_are_those_of_the_revision_before() {
    let start = || script().put(1, 2, "a", 2);
    start()
        .cas(3, 9, "a", "b", (3, true))
        .cas(3, 9, "a", "c", (3, false))
        .passes();
    start()
        .cas(3, 9, "a", "b", (3, true))
        .cas(3, 9, "a", "c", (2, false))
        .fails("failed though its guard held");
    start()
        .cas(3, 9, "a", "b", (3, true))
        .cas(3, 9, "a", "c", (4, true))
        .fails("guard did not hold");
}

#[test]
fn a_seen_gap_needs_an_unknown_write_of_just_that() {
    let seen = || script().put(1, 2, "a", 2).get(5, 6, 3, Some(kv("b", 2, 3, 2)));
    seen().unknown(3, Op::put("k", "b")).passes();
    seen().unknown(3, Op::put("k", "c")).fails("no write wrote that");
    seen().unknown(7, Op::put("k", "b")).fails("no write wrote that");
    seen().fails("no acknowledged writer");
    seen().unknown(3, Op::cas("k", Some("a".into()), "b")).passes();
    seen()
        .unknown(3, Op::cas("k", Some("x".into()), "b"))
        .fails("guards did not hold");
}

#[test]
fn an_unknown_write_fills_one_gap_only() {
    let twice = script()
        .get(1, 9, 2, Some(kv("b", 2, 2, 1)))
        .get(1, 9, 3, Some(kv("b", 2, 3, 2)));
    let once = twice.unknown(1, Op::put("k", "b"));
    once.fails("2 revisions have no acknowledged writer");
    once.unknown(1, Op::delete("k"))
        .fails("can only be the same write's");
    // Both gaps are hidden, and only one of the unknown writes was invoked before revision 3 was told of.
    let hidden = || script().unknown(1, Op::put("x", "1")).put(2, 5, "a", 4);
    hidden().unknown(3, Op::put("x", "2")).passes();
    hidden()
        .unknown(6, Op::put("x", "2"))
        .fails("nobody can have written revision 3");
}

#[test]
fn hidden_gaps_leave_several_possible_states() {
    let start = || script().put(1, 2, "a", 2).unknown(3, Op::delete("k"));
    start().get(4, 5, 2, Some(kv("a", 2, 2, 1))).passes();
    start().get(4, 5, 3, None).passes();
    start().get(4, 5, 2, None).fails("the answer is wrong");
    start()
        .get(4, 5, 3, None)
        .get(6, 7, 3, Some(kv("a", 2, 2, 1)))
        .fails("must be absent");
    start()
        .put(4, 5, "b", 4)
        .get(6, 7, 4, Some(kv("b", 4, 4, 1)))
        .passes();
    start()
        .put(4, 5, "b", 4)
        .get(6, 7, 4, Some(kv("b", 2, 4, 3)))
        .fails("must be");
    // An unseen put of another key leaves this one alone.
    let other = || script().put(1, 2, "a", 2).unknown(3, Op::put("x", "1"));
    other().get(4, 5, 3, Some(kv("a", 2, 2, 1))).passes();
    other().get(4, 5, 3, None).fails("the answer is wrong");
    // An unseen put between two writes shows in the version.
    let between = || {
        script()
            .put(1, 2, "a", 2)
            .unknown(3, Op::put("k", "b"))
            .put(4, 5, "c", 4)
    };
    between().get(6, 7, 4, Some(kv("c", 2, 4, 3))).passes();
}

#[test]
fn other_writers_are_tried_for_an_ambiguous_gap() {
    // Both unknown transactions put "b" at revision 4; if the first wrote it, a later guard could not hold.
    let ambiguous = script()
        .put(1, 2, "a", 2)
        .unknown(3, Op::cas("k", Some("a".into()), "b"))
        .unknown(3, Op::put("k", "b"))
        .get(4, 5, 3, Some(kv("b", 2, 3, 2)))
        .put(6, 7, "c", 4)
        .get(8, 9, 5, Some(kv("b", 2, 5, 4)));
    ambiguous.passes();
}

#[test]
fn the_final_state_holds_every_acknowledged_write() {
    let history = script().put(1, 2, "a", 2).put(3, 4, "b", 3);
    let replay = history.passes();
    replay.check_final(3, &[kv("b", 2, 3, 2)]).unwrap();
    let flagged = |revision: u64, kvs: &[Kv], expected: &str| {
        let failure = replay
            .check_final(revision, kvs)
            .expect_err("must be flagged")
            .to_string();
        assert!(failure.contains(expected), "{failure}");
    };
    flagged(3, &[], "found absent, but must be b\"b\"");
    flagged(3, &[kv("a", 2, 2, 1)], "must be b\"b\"");
    flagged(2, &[kv("a", 2, 2, 1)], "is of revision 2, but 3 was seen");
    flagged(4, &[kv("b", 2, 3, 2)], "no acknowledged writer");
    flagged(
        3,
        &[
            kv("b", 2, 3, 2),
            Kv {
                key: "x".into(),
                ..kv("b", 2, 3, 1)
            },
        ],
        "must be absent",
    );
    flagged(3, &[kv("b", 2, 3, 2), kv("b", 2, 3, 2)], "found twice");
    // What is only in the final state is evidence like any other.
    let history = script().put(1, 2, "a", 2).unknown(3, Op::put("k", "b"));
    history.passes().check_final(2, &[kv("a", 2, 2, 1)]).unwrap();
    history.passes().check_final(3, &[kv("b", 2, 3, 2)]).unwrap();
    history.passes().check_final(3, &[kv("b", 2, 3, 1)]).unwrap_err();
}

#[test]
fn a_replay_begins_at_its_base() {
    let base = Base {
        revision: 9,
        kvs: vec![kv("old", 3, 7, 4)],
    };
    let on = || Script(History::on(base.clone()));
    on().get(1, 2, 9, Some(kv("old", 3, 7, 4)))
        .put(3, 4, "a", 10)
        .passes();
    on().get(1, 2, 9, None).fails("the answer is wrong");
    on().put(1, 2, "a", 9).fails("came after revision 9");
    on().put(1, 2, "a", 10)
        .passes()
        .check_final(10, &[kv("a", 3, 10, 5)])
        .unwrap();
}

fn plan(seed: u64) -> Plan {
    let values = [0, 0, 4][seed as usize % 3];
    Plan {
        seed,
        operations: 300,
        clients: 2 + seed % 12,
        keys: 4,
        unknown_one_in: [0, 30, 8][seed as usize % 3],
        values,
        mixed: true,
    }
}

#[test]
fn simulated_histories_pass_with_any_share_of_the_evidence() {
    for seed in 0..300 {
        let Simulated { history, store } = simulate(plan(seed));
        for share in [0, 2, 1] {
            let mut random = Random(seed);
            let sightings: Vec<Event> = store
                .events
                .iter()
                .filter(|_| share > 0 && random.one_in(share))
                .cloned()
                .collect();
            let replay = Replay::with_sightings(&history, &sightings)
                .unwrap_or_else(|failure| panic!("seed {seed}, share {share}: {failure}"));
            let end = store.end();
            replay
                .check_final(end.revision, &end.kvs)
                .unwrap_or_else(|failure| panic!("seed {seed}, share {share}, end: {failure}"));
        }
    }
}

fn rebuilt(records: Vec<Record>) -> History {
    let mut history = History::new();
    records.into_iter().for_each(|record| {
        history.push(record);
    });
    history
}

/// Breaks one answer of a history without unknown writes, so that nothing can explain it.
fn break_one(records: &mut [Record], random: &mut Random) -> Option<&'static str> {
    let start = random.below(records.len() as u64) as usize;
    let at = (start..records.len())
        .chain(0..start)
        .find(|at| match &records[*at].outcome {
            Outcome::Ok(Reply::Get { kv, .. }) => kv.is_some(),
            Outcome::Ok(Reply::Range { kvs, .. }) => !kvs.is_empty(),
            _ => random.one_in(3),
        })?;
    let asked = records[at].op_key();
    let Outcome::Ok(reply) = &mut records[at].outcome else {
        return None;
    };
    Some(match reply {
        Reply::Get { kv: Some(kv), .. } => match random.below(4) {
            0 => {
                kv.value = Bytes::from_static(b"never written");
                "value"
            }
            1 => {
                kv.version += 1;
                "version"
            }
            2 => {
                kv.create_revision -= 1;
                "create revision"
            }
            _ => {
                kv.mod_revision -= 1;
                "mod revision"
            }
        },
        Reply::Range { kvs, .. } => {
            kvs.pop();
            "missing key"
        }
        Reply::Put { revision } => {
            *revision += 1;
            "shifted write"
        }
        Reply::Delete { deleted, .. } => {
            *deleted = !*deleted;
            "turned delete"
        }
        Reply::Txn { succeeded, .. } => {
            *succeeded = !*succeeded;
            "turned transaction"
        }
        Reply::Get { kv, revision } => {
            let (value, key) = ("never written".into(), asked?);
            *kv = Some(Kv {
                key,
                value,
                create_revision: *revision,
                mod_revision: *revision,
                version: 1,
            });
            "invented key"
        }
    })
}

impl Record {
    fn op_key(&self) -> Option<Bytes> {
        match &self.op {
            Op::Get { key } | Op::Put { key, .. } | Op::Delete { key } => Some(key.clone()),
            _ => None,
        }
    }
}

#[test]
fn broken_histories_are_flagged() {
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..600 {
        let mut records = simulate(Plan {
            unknown_one_in: 0,
            values: 0,
            ..plan(seed)
        })
        .history
        .records()
        .to_vec();
        if let Some(kind) = break_one(&mut records, &mut Random(seed)) {
            assert!(Replay::new(&rebuilt(records)).is_err(), "seed {seed}: {kind}");
            *kinds.entry(kind).or_default() += 1;
        }
    }
    println!("{kinds:?}");
    assert!(
        kinds.len() >= 8 && kinds.values().all(|count| *count >= 5),
        "{kinds:?}"
    );
}

/// Of the final state every acknowledged write can be missed, also among unknown ones.
#[test]
fn a_lost_key_is_flagged_at_the_end() {
    for seed in 0..100 {
        let Simulated { history, store } = simulate(Plan {
            unknown_one_in: 30,
            values: 0,
            ..plan(seed)
        });
        let mut end = store.end();
        let replay = Replay::with_sightings(&history, &store.events).unwrap();
        if let Some(lost) = end.kvs.pop() {
            let failure = replay.check_final(end.revision, &end.kvs).unwrap_err();
            assert_eq!(failure.key, Some(lost.key), "seed {seed}");
        }
    }
}

#[test]
fn ranges_are_snapshots() {
    let pair = |key: &'static str, revision| Kv {
        key: key.into(),
        ..kv("a", revision, revision, 1)
    };
    let both = || {
        script()
            .ok(1, 9, Op::put("k1", "a"), Reply::Put { revision: 2 })
            .ok(1, 9, Op::put("k2", "a"), Reply::Put { revision: 3 })
    };
    let range = |revision, kvs| {
        (
            Op::Range(KeyRange::between("k", "l")),
            Reply::Range { revision, kvs },
        )
    };
    let with = |(op, reply)| both().ok(2, 8, op, reply);
    with(range(3, vec![pair("k1", 2), pair("k2", 3)])).passes();
    with(range(2, vec![pair("k1", 2)])).passes();
    with(range(3, vec![pair("k2", 3)])).fails("found absent");
    with(range(2, vec![pair("k1", 2), pair("k2", 3)])).fails("is of revision 2, but shows");
}

/// Each key doubles the ways to assign the unknown writes; none of them explains the last read.
#[test]
fn too_many_ambiguous_gaps_are_undecided() {
    let ambiguous = |keys: u64| {
        let mut script = script();
        for number in 0..keys {
            let key = Bytes::from(format!("x{number}"));
            let revision = 2 + number;
            let (create_revision, mod_revision) = (revision, revision);
            let seen = Kv {
                key: key.clone(),
                value: "v".into(),
                create_revision,
                mod_revision,
                version: 1,
            };
            script = script
                .unknown(1, Op::put(key.clone(), "v"))
                .unknown(1, Op::put(key.clone(), "v"))
                .ok(
                    2,
                    100,
                    Op::get(key),
                    Reply::Get {
                        revision,
                        kv: Some(seen),
                    },
                );
        }
        let last = 1 + keys;
        Replay::new(&script.get(200, 201, last, Some(kv("a", 1, 1, 1))).0)
            .unwrap_err()
            .kind
    };
    assert_eq!(ambiguous(7), Kind::Violation);
    assert_eq!(ambiguous(8), Kind::Undecided);
}

#[test]
fn too_many_possible_states_are_undecided() {
    let hidden = |count: u64| {
        let mut script = script();
        for _ in 0..count {
            script = script.unknown(1, Op::put("k", "v")).unknown(1, Op::delete("k"));
        }
        let script = script.ok(
            2,
            3,
            Op::put("x", "1"),
            Reply::Put {
                revision: 2 * count + 2,
            },
        );
        Replay::new(&script.0)
            .map(|replay| replay.revision())
            .map_err(|failure| failure.kind)
    };
    assert_eq!(hidden(10), Ok(22));
    assert_eq!(hidden(200), Err(Kind::Undecided));
}
