//! Runs simulated worlds; see `docs/testing.md`.
//!
//! `KVORUM_SIM_SEED=n`: one world, its trace on standard output. Otherwise `KVORUM_SIM_SEEDS` worlds (20) from
//! `KVORUM_SIM_FIRST` on (1), each with `KVORUM_SIM_MINUTES` (1) of faults and up to `KVORUM_SIM_FOUNDERS_MAX` (5)
//! founders, on all processors. `KVORUM_SIM_BUG=name` plants a bug.

use std::process::ExitCode;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

fn main() -> ExitCode {
    let minutes = number("KVORUM_SIM_MINUTES", 1);
    let founders = 3..=number("KVORUM_SIM_FOUNDERS_MAX", 5);
    let bug = std::env::var("KVORUM_SIM_BUG").ok().map(|name| {
        let named = |bug: &kvorum_sim::Bug| format!("{bug:?}") == name;
        kvorum_sim::Bug::ALL
            .into_iter()
            .find(named)
            .unwrap_or_else(|| panic!("there is no bug {name}"))
    });
    let plan = |seed| kvorum_sim::Plan {
        bug,
        duration: minutes * 60_000_000,
        founders: founders.clone(),
        ..kvorum_sim::Plan::new(seed)
    };
    if std::env::var("KVORUM_SIM_SEED").is_ok() {
        let seed = number("KVORUM_SIM_SEED", 0);
        let report = kvorum_sim::run(&kvorum_sim::Plan {
            trace: true,
            ..plan(seed)
        });
        print!("{}", report.text.as_deref().unwrap_or_default());
        println!("{}", report.summary());
        return if report.failure.is_some() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    let first = number("KVORUM_SIM_FIRST", 1);
    let seeds = first..first + number("KVORUM_SIM_SEEDS", 20);
    let reports = kvorum_sim::run_all(seeds.map(plan).collect(), |report| {
        println!("{}", report.summary())
    });
    let mut marks = kvorum_sim::Marks::default();
    reports.iter().for_each(|report| marks.add(&report.marks));
    for &mark in kvorum_sim::Mark::ALL {
        println!("{:>8} {mark:?}", marks.count(mark));
    }
    let failed: Vec<u64> = reports
        .iter()
        .filter(|report| report.failure.is_some())
        .map(|report| report.seed)
        .collect();
    println!("{} worlds, failed: {failed:?}", reports.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
