#![allow(clippy::unwrap_used)]

use super::*;
use crate::Kv;
use crate::testkit::{Plan, Random, key, simulate};

mod brute;

fn kv(key: &'static str, value: &'static str) -> Kv {
    Kv {
        key: key.into(),
        value: value.into(),
        create_revision: 0,
        mod_revision: 0,
        version: 0,
    }
}

/// Builds a history line by line: times, operation, outcome.
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

    fn put(self, from: u64, to: u64, value: &'static str) -> Script {
        self.ok(from, to, Op::put("k", value), Reply::Put { revision: 0 })
    }

    fn get(self, from: u64, to: u64, value: Option<&'static str>) -> Script {
        let kv = value.map(|value| kv("k", value));
        self.ok(from, to, Op::get("k"), Reply::Get { revision: 0, kv })
    }

    fn delete(self, from: u64, to: u64, deleted: bool) -> Script {
        self.ok(from, to, Op::delete("k"), Reply::Delete { revision: 0, deleted })
    }

    fn cas(
        self,
        from: u64,
        to: u64,
        expected: Option<&'static str>,
        value: &'static str,
        ok: bool,
    ) -> Script {
        let op = Op::cas("k", expected.map(Bytes::from), value);
        self.ok(
            from,
            to,
            op,
            Reply::Txn {
                revision: 0,
                succeeded: ok,
            },
        )
    }

    fn lost(mut self, from: u64, op: Op, outcome: Outcome) -> Script {
        let completed = (outcome == Outcome::NotApplied).then_some(from + 1);
        self.0.push(Record {
            client: 2,
            invoked: from,
            completed,
            op,
            outcome,
        });
        self
    }

    fn unknown(self, from: u64, op: Op) -> Script {
        self.lost(from, op, Outcome::Unknown)
    }

    #[track_caller]
    fn passes(self) {
        check(&self.0, &Limits::default()).unwrap_or_else(|failure| panic!("{failure}"));
        for (_, register) in project(&self.0) {
            assert!(decide(register, &Limits::default(), Decider::Search).is_ok());
        }
    }

    #[track_caller]
    fn fails(self, expected: &str) {
        let failure = check(&self.0, &Limits::default()).expect_err("must be flagged");
        assert_eq!(failure.kind, Kind::Violation);
        assert!(failure.to_string().contains(expected), "{failure}");
        let search = |(_, register)| decide(register, &Limits::default(), Decider::Search).is_err();
        assert!(project(&self.0).into_iter().any(search));
    }
}

fn script() -> Script {
    Script::default()
}

#[test]
fn concurrent_reads_may_see_either_side_of_a_put() {
    script()
        .put(1, 2, "a")
        .put(3, 9, "b")
        .get(4, 5, Some("a"))
        .get(4, 8, Some("b"))
        .passes();
    script().get(1, 2, None).put(2, 3, "a").passes();
}

#[test]
fn a_stale_read_is_flagged() {
    script()
        .put(1, 2, "a")
        .put(3, 4, "b")
        .get(5, 6, Some("a"))
        .fails("#2 saw b\"a\" after #1 had left b\"b\"");
    script().put(1, 2, "a").get(3, 4, None).fails("absent");
}

#[test]
fn two_reads_may_not_see_two_puts_in_both_orders() {
    let both = || script().put(1, 20, "a").put(1, 20, "b");
    both().get(2, 3, Some("a")).get(4, 5, Some("b")).passes();
    both()
        .get(2, 3, Some("a"))
        .get(4, 5, Some("b"))
        .get(6, 7, Some("a"))
        .fails("must come before");
}

#[test]
fn a_value_that_nobody_wrote_is_flagged() {
    script()
        .put(1, 2, "a")
        .get(3, 4, Some("x"))
        .fails("no write that may have taken effect");
    script()
        .get(1, 2, Some("a"))
        .put(3, 4, "a")
        .fails("before any write of it was invoked");
    script()
        .lost(1, Op::put("k", "a"), Outcome::NotApplied)
        .get(3, 4, Some("a"))
        .fails("\"a\" was seen");
}

#[test]
fn a_lost_update_is_flagged() {
    let start = || script().put(1, 2, "a");
    start()
        .cas(3, 9, Some("a"), "b", true)
        .cas(3, 9, Some("a"), "c", false)
        .passes();
    start()
        .cas(3, 9, Some("a"), "b", true)
        .cas(3, 9, Some("a"), "c", true)
        .fails("#1 would end b\"a\", which #2 still need");
    script()
        .cas(1, 9, None, "b", true)
        .cas(1, 9, None, "c", true)
        .fails("#0 would end absent, which #1 still need");
}

#[test]
fn a_guard_that_fails_though_it_held_throughout_is_flagged() {
    script()
        .put(1, 2, "a")
        .cas(3, 4, Some("a"), "b", false)
        .fails("needs another state");
}

#[test]
fn a_resurrected_delete_is_flagged() {
    let deleted = || script().put(1, 2, "a").delete(3, 4, true);
    deleted().get(5, 6, None).passes();
    deleted()
        .get(5, 6, Some("a"))
        .fails("#2 saw b\"a\" after #1 had left absent");
    script()
        .put(1, 2, "a")
        .delete(3, 4, false)
        .fails("#1 saw absent after #0 had left b\"a\"");
    script().delete(3, 4, true).fails("needs another state");
}

#[test]
fn an_unknown_write_may_be_seen_late_or_never_but_once() {
    let start = || script().put(1, 2, "a").unknown(3, Op::put("k", "b"));
    start().get(50, 51, Some("a")).passes();
    start().get(50, 51, Some("a")).get(52, 53, Some("b")).passes();
    start().get(50, 51, Some("b")).get(52, 53, Some("a")).fails("");
    start()
        .get(50, 51, Some("b"))
        .put(60, 61, "c")
        .get(62, 63, Some("b"))
        .fails("");
    start().put(60, 61, "c").get(62, 63, Some("b")).passes();
    script()
        .get(1, 2, Some("b"))
        .unknown(3, Op::put("k", "b"))
        .fails("before any write");
}

#[test]
fn an_unknown_delete_explains_one_absence() {
    let start = || script().put(1, 2, "a").unknown(3, Op::delete("k"));
    start().get(4, 5, None).passes();
    start().get(4, 5, Some("a")).get(6, 7, None).passes();
    start()
        .get(4, 5, None)
        .put(6, 7, "b")
        .get(8, 9, Some("b"))
        .passes();
    start()
        .get(4, 5, None)
        .put(6, 7, "b")
        .get(8, 9, None)
        .fails("#3 would end absent, which #4 still need");
}

#[test]
fn an_unknown_write_that_nobody_saw_may_explain_a_failed_guard() {
    let start = || script().put(1, 2, "a").unknown(3, Op::put("k", "b"));
    start().cas(4, 5, Some("a"), "c", false).passes();
    start()
        .cas(4, 5, Some("a"), "c", false)
        .get(6, 7, Some("a"))
        .fails("");
    script().unknown(3, Op::put("k", "b")).delete(4, 5, true).passes();
}

#[test]
fn an_unknown_guarded_write_needs_its_guard() {
    let cas = || Op::cas("k", Some("a".into()), "b");
    script()
        .put(1, 2, "a")
        .unknown(3, cas())
        .get(4, 5, Some("b"))
        .passes();
    script()
        .put(1, 2, "x")
        .unknown(3, cas())
        .get(4, 5, Some("b"))
        .fails("\"a\" was seen");
    script()
        .put(1, 2, "a")
        .put(3, 4, "x")
        .unknown(5, cas())
        .get(6, 7, Some("b"))
        .fails("");
}

#[test]
fn the_base_is_what_reads_see_first() {
    let base = crate::Base {
        revision: 9,
        kvs: vec![kv("k", "old")],
    };
    let on = || Script(History::on(base.clone()));
    on().get(1, 2, Some("old"))
        .put(3, 4, "a")
        .get(5, 6, Some("a"))
        .passes();
    on().get(1, 2, None).fails("absent was seen");
    on().put(3, 4, "a").get(5, 6, Some("old")).fails("");
}

#[test]
fn a_history_that_contradicts_itself_is_malformed() {
    let history = script().ok(1, 2, Op::get("k"), Reply::Put { revision: 1 }).0;
    assert_eq!(
        check(&history, &Limits::default()).unwrap_err().kind,
        Kind::Malformed
    );
}

#[test]
fn a_search_beyond_its_bounds_is_undecided() {
    let run = simulate(plan(1, 2_000, true));
    for limits in [
        Limits {
            steps_max: 10,
            ..Limits::default()
        },
        Limits {
            memory_bytes_max: 1_000,
            ..Limits::default()
        },
    ] {
        assert_eq!(check(&run.history, &limits).unwrap_err().kind, Kind::Undecided);
    }
}

fn plan(seed: u64, operations: usize, mixed: bool) -> Plan {
    Plan {
        seed,
        operations,
        clients: 12,
        keys: 3,
        unknown_one_in: 40,
        values: 0,
        mixed,
    }
}

#[test]
fn simulated_histories_pass() {
    for seed in 0..200 {
        let values = [0, 0, 3, 12][seed as usize % 4];
        let clients = 2 + seed % 15;
        let run = simulate(Plan {
            values,
            clients,
            ..plan(seed, 300, seed % 3 > 0)
        });
        check(&run.history, &Limits::default()).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
}

/// On small histories, good and bad, all deciders agree with trying every order.
#[test]
fn the_deciders_agree_with_brute_force() {
    let (mut good, mut bad, mut zoned) = (0, 0, 0);
    for seed in 0..12_000 {
        let mut random = Random(seed);
        let plan = Plan {
            seed,
            operations: 3 + random.below(6) as usize,
            clients: 2 + random.below(4),
            keys: 1,
            unknown_one_in: [0, 2, 4][random.below(3) as usize],
            values: random.below(4),
            mixed: !random.one_in(3),
        };
        let mut history = simulate(plan).history;
        if !random.one_in(6) {
            history = brute::disturb(&history, &mut random);
        }
        for (_, register) in project(&history) {
            let expected = brute::linearizable(&register);
            let fast = decide(register.clone(), &Limits::default(), Decider::Fastest).is_ok();
            let searched = decide(register.clone(), &Limits::default(), Decider::Search).is_ok();
            assert_eq!(
                (fast, searched),
                (expected, expected),
                "seed {seed}: {:#?}",
                history.records()
            );
            *(if expected { &mut good } else { &mut bad }) += 1;
            let mut register = register;
            zoned += usize::from(
                register.promote().is_ok() && {
                    register.drop_useless();
                    zones::are_exact(&register)
                },
            );
        }
    }
    println!("{good} linearizable, {bad} not, {zoned} by zones");
    assert!(
        good > 1_000 && bad > 1_000 && zoned > 500,
        "{good} good, {bad} bad, {zoned} by zones"
    );
}

#[test]
fn both_deciders_agree_on_larger_registers() {
    let mut bad = 0;
    for seed in 0..150 {
        let run = simulate(Plan {
            unknown_one_in: 15,
            ..plan(seed, 120, false)
        });
        let history = brute::disturb(&run.history, &mut Random(seed));
        for (_, register) in project(&history) {
            let fast = decide(register.clone(), &Limits::default(), Decider::Fastest).is_ok();
            assert_eq!(
                fast,
                decide(register, &Limits::default(), Decider::Search).is_ok(),
                "seed {seed}"
            );
            bad += usize::from(!fast);
        }
    }
    assert!(bad > 30, "{bad}");
}

/// Tens of thousands of operations, hundreds of them unknown, few keys: good, and with one stale read at the
/// very end. The bound on the steps stands for the time: a million take about a second.
#[test]
fn large_histories_are_decided_in_few_steps() {
    let limits = Limits {
        steps_max: 1_000_000,
        ..Limits::default()
    };
    for (mixed, clients, keys, unknown_one_in) in [
        (false, 64, 3, 60),
        (true, 16, 3, 60),
        (true, 64, 3, 60),
        (true, 16, 1, 60),
        (true, 8, 3, 10),
    ] {
        let shape = Plan {
            clients,
            keys,
            unknown_one_in,
            ..plan(7, 40_000, mixed)
        };
        let mut history = simulate(shape).history;
        let unknown = history.records().iter().filter(|record| record.is_maybe_write());
        assert!(unknown.count() > 200);
        check(&history, &limits).unwrap_or_else(|failure| panic!("{failure}"));

        let old = history.records()[..10_000]
            .iter()
            .rev()
            .find_map(|record| match record.answer()?.1 {
                Reply::Get { kv: Some(kv), .. } if kv.key == key(0) => Some(kv.clone()),
                _ => None,
            });
        let completions = history.records().iter().filter_map(|record| record.completed);
        let end = completions.max().unwrap();
        let id = history.invoke(99, end + 1, Op::get(key(0)));
        history.complete(id, end + 2, Outcome::Ok(Reply::Get { revision: 0, kv: old }));
        let failure = check(&history, &limits).unwrap_err();
        assert_eq!(failure.kind, Kind::Violation, "{failure}");
        assert_eq!(failure.key, Some(key(0)));
    }
}

/// A history that was right before one answer in it was changed such that nothing can explain it any more.
/// Every value is written once, and all writes named here were acknowledged.
fn broken(history: &History, kind: usize, random: &mut Random) -> Option<History> {
    let mut records = history.records().to_vec();
    let done = |at: usize| records[at].completed.filter(|_| records[at].changed_the_store());
    // Two changes of one key, the second one invoked after the first was over.
    let puts: Vec<usize> = (0..records.len())
        .filter(|at| matches!(records[*at].op, Op::Put { .. }) && done(*at).is_some())
        .collect();
    let first = *random.pick(&puts);
    let Op::Put { key, value } = records[first].op.clone() else {
        return None;
    };
    let same_key = |op: &Op| matches!(op, Op::Put { key: k, .. } | Op::Delete { key: k } if *k == key);
    let over = records[first].completed.unwrap();
    let second = (first..records.len())
        .find(|at| done(*at).is_some() && same_key(&records[*at].op) && records[*at].invoked > over)?;
    let newer = match records[second].op.clone() {
        Op::Put { value, .. } => Some(value),
        _ => None,
    };
    let after = records[second].completed.unwrap() + 1;
    let now = records
        .iter()
        .filter_map(|record| record.completed)
        .max()
        .unwrap()
        + 1;
    let mut add = |invoked: u64, completed: u64, op: Op, reply: Reply| {
        let outcome = Outcome::Ok(reply);
        records.push(Record {
            client: 99,
            invoked,
            completed: Some(completed),
            op,
            outcome,
        });
    };
    let get = || Op::get(key.clone());
    let saw = |value: &Bytes| Reply::Get {
        revision: 0,
        kv: Some(Kv {
            key: key.clone(),
            value: value.clone(),
            ..kv("", "")
        }),
    };
    match (kind, newer) {
        // A stale read: it began when the second write was over. A deleted value that comes back.
        (0, Some(_)) | (1, None) => add(after, now, get(), saw(&value)),
        // A value that nobody wrote.
        (2, _) => add(1, now, get(), saw(&"never written".into())),
        // A lost update: two guarded writes both replaced the same value.
        (3, _) => {
            for new in ["one", "other"] {
                let cas = Op::cas(key.clone(), Some(value.clone()), new);
                add(
                    1,
                    now,
                    cas,
                    Reply::Txn {
                        revision: 0,
                        succeeded: true,
                    },
                );
            }
        }
        // Two reads, one after the other, that saw the two writes in the other order.
        (4, Some(newer)) => {
            add(1, now, get(), saw(&newer));
            add(now + 1, now + 2, get(), saw(&value));
        }
        // A write that somebody saw was reported as not applied.
        (5, _) => {
            add(1, now, get(), saw(&value));
            records[first].outcome = Outcome::NotApplied;
        }
        _ => return None,
    }
    let mut broken = History::new();
    for record in records {
        broken.push(record);
    }
    Some(broken)
}

#[test]
fn broken_histories_are_flagged() {
    let mut flagged = [0; 6];
    for seed in 0..900 {
        let clients = 2 + seed % 11;
        let run = simulate(Plan {
            clients,
            ..plan(seed, 150, true)
        });
        let kind = seed as usize % 6;
        if let Some(history) = broken(&run.history, kind, &mut Random(seed)) {
            let failure = check(&history, &Limits::default()).expect_err("must be flagged");
            assert_eq!(failure.kind, Kind::Violation, "seed {seed}: {failure}");
            assert!(!failure.operations.is_empty() && failure.operations.len() < 30);
            let search = |(_, register)| decide(register, &Limits::default(), Decider::Search).is_err();
            assert!(project(&history).into_iter().any(search), "seed {seed}");
            flagged[kind] += 1;
        }
    }
    println!("{flagged:?}");
    assert!(flagged.iter().all(|count| *count >= 10), "{flagged:?}");
}

#[test]
fn a_transaction_counts_on_each_of_its_keys() {
    let guard = |key: &'static str, value: Option<&'static str>| Guard {
        key: key.into(),
        value: value.map(Bytes::from),
    };
    let txn = |one, two, succeeded| {
        let op = Op::Txn {
            guards: vec![guard("k", one), guard("l", two)],
            puts: vec![Pair {
                key: "k".into(),
                value: "new".into(),
            }],
        };
        script().put(1, 2, "a").ok(
            3,
            4,
            op,
            Reply::Txn {
                revision: 0,
                succeeded,
            },
        )
    };
    txn(Some("a"), None, true).get(5, 6, Some("new")).passes();
    txn(Some("a"), None, true).get(5, 6, Some("a")).fails("b\"a\"");
    txn(Some("b"), None, true).fails("b\"b\" was seen");
    txn(Some("a"), Some("x"), true).fails("key b\"l\"");
    // Which of several guards failed is not known.
    txn(Some("a"), Some("x"), false).get(5, 6, Some("a")).passes();
    txn(Some("a"), Some("x"), false)
        .get(5, 6, Some("new"))
        .fails("b\"new\" was seen");
}
