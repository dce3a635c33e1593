//! What went wrong in other logs, each as a test with its story.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{IDENTITY, create, dir, entries, entry, open, vote};
use kvorum_wal::disk::Fault;
use kvorum_wal::{Base, Options, RealDisk, SimDisk, VoteCopy, Wal, WalError, Write};

/// "After rotation the wrong file was synced": the batch that fills a segment and the one that begins the next are
/// both on disk when they are acknowledged.
#[test]
fn after_rotation_the_new_file_is_synced() {
    for batches in 1..40 {
        let disk = SimDisk::new(batches);
        let mut wal = create(&disk);
        for i in 1..=batches {
            wal.append(&[entries(i, i, 1, 5000)]).unwrap();
        }
        drop(wal);
        for seed in 0..8 {
            assert_eq!(open(&disk.fork().crash(seed)).unwrap().1.last_index, batches);
        }
    }
}

/// "Writing stopped past 256 MiB", on real files of the default size.
#[test]
fn writing_goes_on_past_256_mib() {
    let dir = std::env::temp_dir().join(format!("kvorum-wal-large-{}", std::process::id()));
    let options = Options::default();
    let mut wal = Wal::create(RealDisk, &dir, options.clone(), IDENTITY, &Write::default()).unwrap();
    let data = Bytes::from(vec![7; 1 << 20]);
    let mut last = 0;
    while wal.stats().log_bytes < (256 << 20) + (20 << 20) {
        let batch = (last + 1..last + 15).map(|index| kvorum_wal::Entry {
            data: data.clone(),
            ..entry(index, 1, 0)
        });
        wal.append(&[Write {
            entries: batch.collect(),
            ..Write::default()
        }])
        .unwrap();
        last += 14;
    }
    assert!(wal.stats().segments >= 5);
    drop(wal);
    let (wal, recovered) = Wal::open(RealDisk, &dir, options, IDENTITY).unwrap();
    assert_eq!(recovered.last_index, last);
    assert!(
        recovered
            .entries
            .iter()
            .map(|entry| entry.data.len())
            .sum::<usize>()
            <= 64 << 20
    );
    assert_eq!(recovered.terms, [(1, 1)]);
    assert_eq!(wal.reader().read(1, last, 5 << 20).unwrap().len(), 5);
    std::fs::remove_dir_all(dir).unwrap();
}

/// "No start after a full disk": what was claimed while there was space survives a crash, and a start needs no more.
/// (Restarts of a log that used up its spares: `a_full_disk_is_no_failure`.)
#[test]
fn a_start_on_a_full_disk() {
    let disk = SimDisk::new(1);
    drop(create(&disk));
    disk.set_capacity(Some(disk.used()));
    for seed in 0..30 {
        let disk = disk.fork().crash(seed);
        // Somebody else takes what was not durably claimed.
        disk.set_capacity(Some(disk.used()));
        let (mut wal, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.last_index, 0);
        // A segment is there for the start, and two more for what goes on.
        let mut last = 0;
        while wal.append(&[entries(last + 1, last + 1, 1, 4000)]).is_ok() {
            last += 1;
        }
        assert!(last >= 2 * 7, "seed {seed}: {last}");
        wal.append(&[vote(1, 1)])
            .map(|_| ())
            .or_else(|error| match error {
                WalError::NoSpace { .. } => Ok(()),
                error => Err(error),
            })
            .unwrap();
    }
}

/// "Votes were never synced": an acknowledged vote is durable in both copies at once.
#[test]
fn a_vote_is_durable_in_both_copies() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let mut wal = create(&disk);
        for term in 1..=4 {
            wal.append(&[vote(term, 1 + term % 3)]).unwrap();
            let (_, recovered) = open(&disk.fork().crash(seed)).unwrap();
            assert_eq!(recovered.hard_state.term, term);
            assert_eq!(recovered.hard_state.vote, 1 + term % 3);
            assert_eq!(recovered.report.vote_copy, VoteCopy::Agreed);
        }
    }
}

/// "A truncation in several steps that a crash cut in half": cut, replacement, vote and commit mark are one.
#[test]
fn a_truncation_is_one_step() {
    let (mut old, mut new) = (0, 0);
    for io in 1..=3 {
        for seed in 0..100 {
            let disk = SimDisk::new(1);
            let mut wal = create(&disk);
            wal.append(&[Write {
                commit_mark: 4,
                ..entries(1, 10, 1, 300)
            }])
            .unwrap();
            disk.fail_at(disk.ios() + io, Fault::Crash);
            let write = Write {
                truncate_from: Some(5),
                commit_mark: 5,
                hard_state: vote(2, 3).hard_state,
                ..entries(5, 7, 2, 900)
            };
            let _ = wal.append(&[write]);
            drop(wal);
            let (_, recovered) = open(&disk.crash(seed)).unwrap();
            let found = (
                recovered.last_index,
                recovered.commit_mark,
                recovered.hard_state.term,
            );
            match found {
                (10, 4, 0) => old += 1,
                (7, 5, 2) => new += 1,
                other => panic!("IO {io}, seed {seed}: {other:?}"),
            }
        }
    }
    assert!(old > 20 && new > 20, "{old} {new}");
}

/// "Memory exhausted": neither a start nor a read takes more than it was allowed, whatever the log holds.
#[test]
fn memory_is_bounded() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    for i in 0..200 {
        wal.append(&[entries(10 * i + 1, 10 * i + 10, 1 + i / 50, 500)])
            .unwrap();
    }
    drop(wal);
    let options = Options {
        recover_bytes_max: 20_000,
        ..Options::small()
    };
    let (wal, recovered) = Wal::open(disk, dir(), options, IDENTITY).unwrap();
    assert_eq!(recovered.entries.len(), 40);
    assert_eq!(recovered.terms, [(1, 1), (501, 2), (1001, 3), (1501, 4)]);
    assert_eq!(recovered.kinds_kept.len(), 1960 / 7);
    assert_eq!(wal.reader().read(1, 2000, 20_000).unwrap().len(), 40);
}

/// "A restart is a leak": restarts, with or without appends and purges, do not add up on the disk, and what is
/// recycled is whole.
#[test]
fn restarts_do_not_add_up() {
    let mut disk = SimDisk::new(1);
    drop(create(&disk));
    let segment = Options::small().segment_bytes;
    let mut last = 0;
    for restart in 0..60 {
        disk = if restart % 2 == 0 {
            disk.restart()
        } else {
            disk.crash(restart)
        };
        let (mut wal, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.last_index, last);
        if restart % 3 > 0 {
            wal.append(&[entries(last + 1, last + 1, 1, 8000)]).unwrap();
            last += 1;
        }
        if restart % 4 == 0 {
            wal.purge(Base {
                index: last,
                term: 1,
                configuration: Bytes::new(),
            })
            .unwrap();
        }
        wal.prepare_next().unwrap();
        assert!(disk.used() < 9 * segment, "restart {restart}: {}", disk.used());
        let files = kvorum_wal::Disk::list(&disk, dir()).unwrap();
        for file in files.iter().filter(|file| file.name.starts_with("spare")) {
            assert_eq!(file.bytes, segment, "restart {restart}: {files:?}");
        }
    }
}
