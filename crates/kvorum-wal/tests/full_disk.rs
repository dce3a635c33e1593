//! A full disk: noticed while claiming, never latched, never in the way of votes, purges and restarts.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{IDENTITY, create, dir, entries, open, vote};
use kvorum_wal::{Base, Disk, Options, SimDisk, Space, Wal, WalError, Write};

/// Fills a log on a disk of limited size until appending is refused; returns the last index.
fn fill(wal: &mut Wal<SimDisk>, mut last: u64) -> u64 {
    loop {
        match wal.append(&[entries(last + 1, last + 1, 1, 3000)]) {
            Ok(_) => last += 1,
            Err(error) => {
                assert!(matches!(error, WalError::NoSpace { .. }), "{error}");
                return last;
            }
        }
    }
}

/// A full disk is noticed while claiming, does not latch, leaves votes and restarts working, and ends by itself.
#[test]
fn a_full_disk_is_no_failure() {
    let options = Options {
        segment_bytes: 512 << 10,
        ..Options::small()
    };
    let open = |disk: &SimDisk| Wal::open(disk.clone(), dir(), options.clone(), IDENTITY);
    let disk = SimDisk::new(1);
    let mut wal = Wal::create(disk.clone(), dir(), options.clone(), IDENTITY, &Write::default()).unwrap();
    disk.set_capacity(Some(disk.used() + options.segment_bytes));
    let mut alarm = 0;
    while wal.space() == Space::Healthy {
        alarm += 1;
        wal.append(&[entries(alarm, alarm, 1, 3000)]).unwrap();
    }
    let last = fill(&mut wal, alarm);
    // Half a segment, and the one of the two spares that is not recovery's.
    let left = (last - alarm) * 4096;
    assert!(
        left * 5 > options.segment_bytes * 7,
        "{left} bytes are left at the alarm"
    );
    let ios = disk.ios();
    assert!(matches!(
        wal.append(&[entries(last + 1, last + 1, 1, 3000)]),
        Err(WalError::NoSpace { .. })
    ));
    assert!(disk.ios() > ios, "each call tries to claim");

    // Restarts, with and without power cuts, lose nothing and leave space for the next restart, and for votes.
    drop(wal);
    let mut disk = disk;
    for restart in 0..20 {
        disk = if restart % 2 == 0 {
            disk.restart()
        } else {
            disk.crash(restart)
        };
        let (mut wal, recovered) = open(&disk).unwrap_or_else(|error| panic!("restart {restart}: {error}"));
        assert_eq!(recovered.last_index, last, "restart {restart}");
        wal.append(&[vote(restart + 2, 3)])
            .unwrap_or_else(|error| panic!("vote {restart}: {error}"));
        assert_eq!(wal.space(), Space::Exhausted);
        assert_eq!(wal.retry_claim().unwrap(), Space::Exhausted);
    }

    // Purging frees segments; nothing else has to happen.
    let (mut wal, _) = open(&disk).unwrap();
    wal.purge(Base {
        index: last,
        term: 1,
        configuration: Bytes::new(),
    })
    .unwrap();
    assert_eq!(wal.space(), Space::Healthy);
    wal.append(&[entries(last + 1, last + 2, 1, 3000)]).unwrap();

    // So does more space.
    fill(&mut wal, last + 2);
    assert_eq!(wal.space(), Space::Exhausted);
    disk.set_capacity(None);
    assert_eq!(wal.retry_claim().unwrap(), Space::Healthy);
    let last = wal.stats().last_index;
    wal.append(&[entries(last + 1, last + 1, 1, 3000)]).unwrap();
}

/// Purging works where appending does not any more, at whatever place of a segment that is.
#[test]
fn a_purge_needs_no_free_space() {
    for bytes in (500..7000).step_by(450) {
        let disk = SimDisk::new(1);
        let mut wal = create(&disk);
        disk.set_capacity(Some(disk.used()));
        let mut last = 0;
        while wal.append(&[entries(last + 1, last + 1, 1, bytes)]).is_ok() {
            last += 1;
        }
        // The base moves on entry by entry; none of the purges fails.
        for index in 1..=last {
            wal.purge(Base {
                index,
                term: 1,
                configuration: Bytes::from(vec![1; 900]),
            })
            .unwrap();
        }
        assert_eq!(wal.stats().first_index, last + 1);
        assert_eq!(wal.space(), Space::Healthy);
        wal.append(&[entries(last + 1, last + 1, 1, bytes)]).unwrap();
        drop(wal);
        assert_eq!(open(&disk.crash(1)).unwrap().1.last_index, last + 1);
    }
}

#[test]
fn creation_on_a_full_disk_leaves_no_log() {
    let disk = SimDisk::new(1);
    disk.set_capacity(Some(2 * Options::small().segment_bytes));
    let result = Wal::create(disk.clone(), dir(), Options::small(), IDENTITY, &Write::default());
    let needed = 4 * Options::small().segment_bytes;
    assert!(
        matches!(result, Err(WalError::NoSpace { bytes, .. }) if bytes == needed),
        "all that a beginning needs is told, not the piece that was missed"
    );
    assert!(!Wal::exists(&disk, dir()).unwrap());
    let kept: Vec<_> = disk.list(dir()).unwrap();
    assert!(
        !kept.iter().any(|file| file.name.starts_with("spare")),
        "space is given back to the others on a full disk: {kept:?}"
    );
    disk.set_capacity(None);
    create(&disk);
    assert!(Wal::exists(&disk, dir()).unwrap());
}
