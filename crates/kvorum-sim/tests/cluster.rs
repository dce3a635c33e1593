//! The simulated clusters of each CI run. `docs/testing.md` says how to run more, and how to replay one.
//!
//! Determinism comes first: every other test waits for it, because without it no seed means anything.
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use kvorum_sim::{Bug, Mark, Marks, Plan, Report, run, run_all};

/// A seed whose world has many members, snapshots and restarts.
const TWICE: u64 = 3;
const SEEDS: std::ops::RangeInclusive<u64> = 61..=100;
/// Worlds that a planted bug may take to show itself.
const BUG_WORLDS: u64 = 40;

fn traced(seed: u64) -> Report {
    run(&Plan {
        trace: true,
        ..Plan::new(seed)
    })
}

/// Runs one world twice, once for all tests.
fn determinism() -> &'static Result<(), String> {
    static RESULT: OnceLock<Result<(), String>> = OnceLock::new();
    RESULT.get_or_init(|| {
        let (one, two) = (traced(TWICE), traced(TWICE));
        let (left, right) = (one.text.unwrap(), two.text.unwrap());
        if let Some((at, (left, right))) = left
            .lines()
            .zip(right.lines())
            .enumerate()
            .find(|(_, (l, r))| l != r)
        {
            return Err(format!(
                "seed {TWICE} has two traces. They differ at line {}:\n{left}\n{right}",
                at + 1
            ));
        }
        if left != right || one.trace != two.trace {
            return Err(format!(
                "seed {TWICE} has two traces: {:?}, {:?}",
                one.trace, two.trace
            ));
        }
        if traced(TWICE + 1).trace == one.trace {
            return Err("two seeds have the same trace".into());
        }
        Ok(())
    })
}

fn require_determinism() {
    assert!(determinism().is_ok(), "see a_same_seed_same_trace");
}

#[test]
fn a_same_seed_same_trace() {
    determinism().as_ref().unwrap();
}

#[test]
fn b_forty_worlds_heal_and_every_mark_is_reached() {
    require_determinism();
    let reports = run_all(SEEDS.map(Plan::new).collect(), |report| {
        println!("{}", report.summary())
    });
    let failed: Vec<String> = reports
        .iter()
        .filter(|report| report.failure.is_some())
        .map(Report::summary)
        .collect();
    assert!(
        failed.is_empty(),
        "replay one with KVORUM_SIM_SEED=n:\n{}",
        failed.join("\n")
    );
    let mut marks = Marks::default();
    reports.iter().for_each(|report| marks.add(&report.marks));
    assert_eq!(
        marks.missing(),
        Vec::<Mark>::new(),
        "never reached in these worlds: {marks:?}"
    );
    let total: [u64; 3] = std::array::from_fn(|at| reports.iter().map(|report| report.operations[at]).sum());
    println!("operations answered, not applied, unknown: {total:?}; {marks:?}");
}

/// Each planted bug is found by one of the first worlds.
#[test]
fn c_planted_bugs_are_found() {
    require_determinism();
    for bug in Bug::ALL {
        let found = (1..=BUG_WORLDS).find_map(|seed| {
            let report = run(&Plan {
                bug: Some(bug),
                ..Plan::new(seed)
            });
            report.failure.map(|failure| (seed, failure))
        });
        let (seed, failure) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {BUG_WORLDS} worlds"));
        let line: String = failure
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(150)
            .collect();
        println!("{bug:?}: found by world {seed}: {line}");
    }
}
