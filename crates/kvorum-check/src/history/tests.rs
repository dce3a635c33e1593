#![allow(clippy::unwrap_used)]

use super::*;
use crate::testkit::{Plan, simulate};

fn round_trip(history: &History) -> (String, History) {
    let mut lines = Vec::new();
    history.write_json_lines(&mut lines).unwrap();
    (
        String::from_utf8(lines.clone()).unwrap(),
        History::read_json_lines(&lines[..]).unwrap(),
    )
}

#[test]
fn a_history_comes_back_from_its_lines() {
    let plan = Plan {
        seed: 1,
        operations: 300,
        clients: 5,
        keys: 3,
        unknown_one_in: 5,
        values: 0,
        mixed: true,
    };
    let mut history = simulate(plan).history;
    history.base = Base {
        revision: 7,
        kvs: vec![],
    };
    assert_eq!(round_trip(&history).1, history);
}

#[test]
fn bytes_are_text_where_they_can_be() {
    let mut history = History::new();
    history.invoke(1, 2, Op::put("clé", vec![0, 0xff]));
    history.invoke(1, 3, Op::cas(&b"\xfe"[..], None, "x"));
    history.invoke(1, 4, Op::Range(KeyRange::all()));
    let (lines, back) = round_trip(&history);
    assert_eq!(back, history);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(
        lines[1],
        r#"{"op":{"client":1,"invoked":2,"op":{"put":{"key":"clé","value":{"hex":"00ff"}}},"outcome":"unknown"}}"#
    );
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_broken_line_is_named() {
    let good = r#"{"op":{"client":1,"invoked":2,"op":{"get":{"key":"k"}},"outcome":"unknown"}}"#;
    for bad in [
        "{",
        r#"{"op":{}}"#,
        &good.replace("\"k\"", r#"{"hex":"0"}"#),
        &good.replace("\"k\"", r#"{"hex":"+1"}"#),
        &good[..good.len() - 9],
    ] {
        let error = History::read_json_lines(format!("{good}\n\n{bad}\n").as_bytes()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().starts_with("history, line 3: "), "{error}");
    }
}

#[test]
fn records_that_contradict_themselves_are_found() {
    let kv = |key: &'static str| {
        let (key, value) = (key.into(), "v".into());
        Kv {
            key,
            value,
            create_revision: 2,
            mod_revision: 2,
            version: 1,
        }
    };
    let txn = |guards: usize, puts: usize| Op::Txn {
        guards: vec![
            Guard {
                key: "k".into(),
                value: None
            };
            guards
        ],
        puts: vec![
            Pair {
                key: "k".into(),
                value: "v".into()
            };
            puts
        ],
    };
    let range = |kvs| Reply::Range { revision: 2, kvs };
    let answered = |succeeded| Reply::Txn {
        revision: 2,
        succeeded,
    };
    let cases = [
        (txn(2, 1), answered(true), "two guards on one key"),
        (txn(1, 2), answered(true), "two puts of one key"),
        (txn(0, 1), answered(false), "failed without a guard"),
        (
            Op::get("k"),
            Reply::Get {
                revision: 2,
                kv: Some(kv("l")),
            },
            "another key",
        ),
        (Op::get("k"), Reply::Put { revision: 2 }, "another kind"),
        (
            Op::Range(KeyRange::between("a", "b")),
            range(vec![kv("b")]),
            "outside of the range",
        ),
        (
            Op::Range(KeyRange::all()),
            range(vec![kv("b"), kv("b")]),
            "one key twice",
        ),
    ];
    for (op, reply, expected) in cases {
        let mut history = History::new();
        let id = history.invoke(1, 1, op);
        history.complete(id, 2, Outcome::Ok(reply));
        let failure = history.validate().unwrap_err();
        assert_eq!(
            (failure.checker, failure.kind),
            (Checker::History, Kind::Malformed)
        );
        assert!(failure.message.contains(expected), "{failure}");
    }
    let outcome = Outcome::Ok(Reply::Get {
        revision: 2,
        kv: None,
    });
    let record = Record {
        client: 1,
        invoked: 5,
        completed: Some(4),
        op: Op::get("k"),
        outcome,
    };
    for (completed, expected) in [(Some(4), "completed before"), (None, "without a completion time")] {
        let mut history = History::new();
        history.push(Record {
            completed,
            ..record.clone()
        });
        assert!(history.validate().unwrap_err().message.contains(expected));
    }
}

#[test]
#[should_panic(expected = "ends twice")]
fn an_operation_ends_once() {
    let mut history = History::new();
    let id = history.invoke(1, 1, Op::get("k"));
    history.complete(id, 2, Outcome::Unknown);
    history.complete(id, 3, Outcome::Unknown);
}

#[test]
fn a_range_knows_its_keys() {
    let single = KeyRange::single("k");
    assert!(single.contains(b"k") && !single.contains(b"k\0") && !single.contains(b"j"));
    let between = KeyRange::between("b", "d");
    assert!(between.contains(b"b") && between.contains(b"c\xff") && !between.contains(b"d"));
    assert!(KeyRange::all().contains(b"") && KeyRange::all().contains(b"\xff\xff"));
}
