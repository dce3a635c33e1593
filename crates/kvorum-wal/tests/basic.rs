//! What a log does when nothing fails.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use bytes::Bytes;
use kvorum_wal::{Base, Entry, HardState, Options, SimDisk, Space, VoteCopy, Wal, WalError, Write};

const DIR: &str = "/data/log";
const IDENTITY: &[u8] = b"cluster-member-incarnation";

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    Entry {
        index,
        term,
        kind: 0,
        data: Bytes::from(vec![index as u8; bytes]),
    }
}

fn append(from: u64, to: u64, term: u64, bytes: usize) -> Write {
    Write {
        entries: (from..=to).map(|i| entry(i, term, bytes)).collect(),
        ..Write::default()
    }
}

fn create(disk: &SimDisk) -> Wal<SimDisk> {
    Wal::create(disk.clone(), dir(), Options::small(), IDENTITY, &Write::default()).unwrap()
}

#[test]
fn what_is_appended_is_recovered_and_read() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    let vote = HardState { term: 2, vote: 7 };
    let write = Write {
        hard_state: Some(vote),
        commit_mark: 3,
        ..append(1, 10, 1, 100)
    };
    let appended = wal.append(&[write, append(11, 12, 2, 10)]).unwrap();
    assert_eq!((appended.batches, wal.stats().batch_syncs), (1, 2));
    let reader = wal.reader();
    assert_eq!(
        reader.read(3, 12, 1 << 20).unwrap(),
        [append(3, 10, 1, 100).entries, append(11, 12, 2, 10).entries].concat()
    );
    assert_eq!(reader.read(3, 12, 250).unwrap().len(), 2);
    assert_eq!(reader.read(3, 12, 1).unwrap().len(), 1);
    drop(wal);
    let (wal, recovered) = Wal::open(disk, dir(), Options::small(), IDENTITY).unwrap();
    assert_eq!(recovered.hard_state, vote);
    assert_eq!(recovered.commit_mark, 3);
    assert_eq!(recovered.last_index, 12);
    assert_eq!(recovered.entries.len(), 12);
    assert_eq!(recovered.report.vote_copy, VoteCopy::Agreed);
    assert_eq!(wal.reader().read(1, 12, 1 << 20).unwrap(), recovered.entries);
    assert_eq!(wal.space(), Space::Healthy);
}

#[test]
fn rotation_purge_and_recycling() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    let options = Options::small();
    for i in 1..=100 {
        let before = wal.stats().batch_syncs;
        wal.append(&[append(i, i, 1, 3000)]).unwrap();
        assert_eq!(wal.stats().batch_syncs, before + 1);
        if i % 20 == 0 {
            let base = Base {
                index: i - 5,
                term: 1,
                configuration: Bytes::from_static(b"abc"),
            };
            wal.purge(base).unwrap();
        }
    }
    let stats = wal.stats();
    assert!(stats.segments_recycled >= 5, "{stats:?}");
    assert!(disk.used() <= 8 * options.segment_bytes, "{}", disk.used());
    assert_eq!((stats.first_index, stats.last_index), (96, 100));
    assert!(matches!(
        wal.reader().read(95, 100, 1),
        Err(WalError::OutOfRange {
            first: 96,
            last: 100,
            ..
        })
    ));
    drop(wal);
    let (wal, recovered) = Wal::open(disk, dir(), options, IDENTITY).unwrap();
    assert_eq!(recovered.base.configuration, "abc");
    assert_eq!(recovered.entries, append(96, 100, 1, 3000).entries);
    assert_eq!(wal.reader().read(96, 100, 1 << 20).unwrap(), recovered.entries);
}

/// Readers on other threads see entries of the log as it was at some moment, while the writer appends, cuts, purges
/// and recycles under them.
#[test]
fn readers_beside_the_writer() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    let done = AtomicBool::new(false);
    // The data says what it belongs to; an entry is rewritten under a higher term only.
    let data =
        |index: u64, term: u64| Bytes::from([index.to_le_bytes(), term.to_le_bytes()].concat().repeat(40));
    std::thread::scope(|scope| {
        let read = |reader: kvorum_wal::WalReader<SimDisk>| {
            let (mut found, mut gone) = (0, 0);
            while !done.load(Ordering::Relaxed) || found < 100 {
                let (first, last) = reader.range();
                if last < first {
                    continue;
                }
                match reader.read(first, last, 5000) {
                    Ok(entries) => {
                        for (i, entry) in entries.iter().enumerate() {
                            assert_eq!(entry.index, first + i as u64);
                            assert_eq!(entry.data, data(entry.index, entry.term));
                        }
                        assert!(!entries.is_empty());
                        found += 1;
                    }
                    Err(WalError::OutOfRange { .. }) => gone += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            (found, gone)
        };
        let readers = [wal.reader(), wal.reader()].map(|reader| scope.spawn(move || read(reader)));
        let mut last = 0;
        for term in 1..=3000 {
            let from = last + 1 - u64::from(term % 3 == 0 && last > wal.stats().first_index);
            last = from + 3;
            let entry = |index| Entry {
                index,
                term,
                kind: 0,
                data: data(index, term),
            };
            let entries = (from..=last).map(entry).collect();
            wal.append(&[Write {
                truncate_from: Some(from),
                entries,
                ..Write::default()
            }])
            .unwrap();
            if term % 7 == 0 {
                wal.purge(Base {
                    index: last - 2,
                    term,
                    configuration: Bytes::new(),
                })
                .unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        let found: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        assert!(found.iter().all(|(found, _)| *found >= 100), "{found:?}");
    });
    assert!(wal.stats().segments_recycled > 100);
}
