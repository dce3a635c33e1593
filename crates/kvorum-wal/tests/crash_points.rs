//! A crash after every single IO of short random traces, and again in the middle of the recovery.
//!
//! `KVORUM_CRASH_POINTS` sets how many crash points are tried (40,000 by default).
#![allow(clippy::unwrap_used)]

mod common;

use common::{Random, Run, as_model, dir, entries, open, run, trace};
use kvorum_wal::disk::Fault;
use kvorum_wal::{SimDisk, Wal, WalError};

const CRASH_SEEDS: u64 = 5;

#[test]
fn every_io_of_short_traces() {
    let wanted: u64 = std::env::var("KVORUM_CRASH_POINTS").map_or(40_000, |n| n.parse().unwrap());
    let (mut points, mut seed, mut torn) = (0, 0, 0);
    while points < wanted {
        seed += 1;
        let ops = trace(seed, 12);
        let disk = SimDisk::new(seed);
        let whole = run(&disk, &ops);
        assert_eq!(whole.error, None, "trace {seed}");
        for io in 1..=disk.ios() {
            let disk = SimDisk::new(seed);
            disk.fail_at(io, Fault::Crash);
            let run = run(&disk, &ops);
            for crash in 0..CRASH_SEEDS {
                let what = format!("trace {seed}, IO {io}, crash {crash}");
                let mut random = Random(io * 1000 + crash);
                // In one of five only the process dies, and the power goes later.
                let crashed = match crash {
                    0 => disk.fork().restart(),
                    _ => disk.fork().crash(random.next()),
                };
                let (recovery_ios, was_torn) = recover_and_go_on(&run, &crashed.fork(), &mut random, &what);
                recover_twice(&run, &crashed, &mut random, recovery_ios, &what);
                torn += was_torn;
                points += 2;
            }
        }
    }
    assert!(
        torn > points / 500,
        "only {torn} torn tails at {points} crash points"
    );
    println!("{points} crash points in {seed} traces, {torn} torn tails");
}

/// Recovers, crashes at once, finds the same, and goes on. Returns the recovery's IOs, and whether it cut a tail.
fn recover_and_go_on(run: &Run, disk: &SimDisk, random: &mut Random, what: &str) -> (u64, u64) {
    let ios = disk.ios();
    let Some((wal, model, report)) = run.check(disk, &|| what.to_owned()) else {
        return (1, 0);
    };
    let recovery_ios = disk.ios() - ios;
    drop(wal);
    let disk = disk.crash(random.next());
    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(
        as_model(&wal, &recovered),
        model,
        "{what}: what a recovery returned is durable"
    );
    let (from, to) = (model.last_index() + 1, model.last_index() + 2);
    wal.append(&[entries(from, to, 1000, 100)]).unwrap();
    drop(wal);
    let disk = disk.crash(random.next());
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.last_index, to, "{what}: appended after the recovery");
    (recovery_ios, u64::from(report.torn_tail.is_some()))
}

/// Crashes at some IO of the recovery, and recovers from that.
fn recover_twice(run: &Run, disk: &SimDisk, random: &mut Random, recovery_ios: u64, what: &str) {
    if !Wal::exists(disk, dir()).unwrap() {
        return;
    }
    disk.fail_at(disk.ios() + 1 + random.below(recovery_ios), Fault::Crash);
    match open(disk) {
        Err(WalError::Io { .. }) => {}
        other => panic!(
            "{what}: a recovery that the power left ended with {:?}",
            other.err()
        ),
    }
    let disk = disk.crash(random.next());
    run.check(&disk, &|| format!("{what}, second recovery")).unwrap();
}
