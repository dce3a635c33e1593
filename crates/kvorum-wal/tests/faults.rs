//! Failed writes and syncs, damaged bytes, foreign directories, wrong calls.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{IDENTITY, Model, Random, as_model, create, dir, entries, entry, open, run, trace, vote};
use kvorum_wal::disk::Fault;
use kvorum_wal::{
    Base, Disk, DiskFile, Entry, HardState, Options, RealDisk, SimDisk, VoteCopy, Wal, WalError, Write,
    replace_file_durably,
};

/// Every IO of a few traces fails in every way. What fails latches; the process starts again and sees what the
/// page cache holds; what it recovered then survives a power cut.
#[test]
fn every_io_fails_in_every_way() {
    let mut latched = 0;
    for seed in 1..=25 {
        let ops = trace(seed, 12);
        let disk = SimDisk::new(seed);
        assert_eq!(run(&disk, &ops).error, None);
        for io in 1..=disk.ios() {
            for fault in [Fault::Eio, Fault::LoseSync, Fault::ShortWrite, Fault::NoSpace] {
                let what = || format!("trace {seed}, IO {io}, {fault:?}");
                let disk = SimDisk::new(seed);
                disk.fail_at(io, fault);
                let mut run = run(&disk, &ops);
                assert!(
                    fault != Fault::ShortWrite || run.error.is_none(),
                    "{}: {:?}",
                    what(),
                    run.error
                );
                if let (Some(wal), Some(error @ WalError::Io { .. })) = (&mut run.wal, &run.error) {
                    stays_failed(wal, &disk, error);
                    latched += 1;
                }
                let disk = disk.restart();
                let Some((wal, model, _)) = run.check(&disk, &what) else {
                    continue;
                };
                drop(wal);
                let disk = disk.crash(io);
                let (wal, recovered) = open(&disk).unwrap();
                assert_eq!(
                    as_model(&wal, &recovered),
                    model,
                    "{}: recovered, then lost",
                    what()
                );
            }
        }
    }
    assert!(latched > 100, "{latched}");
}

fn stays_failed(wal: &mut Wal<SimDisk>, disk: &SimDisk, error: &WalError) {
    let ios = disk.ios();
    assert_eq!(wal.append(&[Write::default()]).as_ref(), Err(error));
    assert_eq!(
        wal.purge(Base {
            index: 1,
            ..Base::default()
        })
        .as_ref(),
        Err(error)
    );
    assert_eq!(wal.prepare_next().as_ref(), Err(error));
    assert_eq!(wal.retry_claim().as_ref(), Err(error));
    assert_eq!(disk.ios(), ios, "nothing is tried after a failure");
}

/// After a failed sync the page cache holds what the disk does not. The process that starts again finds the batch,
/// may promise it, and must not lose it in a power cut afterwards.
#[test]
fn recovery_rewrites_the_unproved_tail_before_use() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let mut wal = create(&disk);
        wal.append(&[entries(1, 3, 1, 700)]).unwrap();
        disk.fail_at(disk.ios() + 2, Fault::LoseSync);
        assert!(matches!(
            wal.append(&[entries(4, 6, 1, 700)]),
            Err(WalError::Io { .. })
        ));
        drop(wal);
        let disk = disk.restart();
        let (_, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.last_index, 6, "the page cache still has the batch");
        let disk = disk.crash(seed);
        assert_eq!(
            open(&disk).unwrap().1.last_index,
            6,
            "and now the disk has it, too"
        );
    }
}

/// A read error in recovery is an error, never a torn tail.
#[test]
fn a_read_error_is_no_torn_tail() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    wal.append(&[entries(1, 5, 1, 500)]).unwrap();
    drop(wal);
    let reads = disk.reads();
    open(&disk.fork()).unwrap();
    for read in 1.. {
        let disk = disk.fork();
        disk.fail_read_at(reads + read);
        match open(&disk) {
            Err(error) => assert!(matches!(error, WalError::Io { .. }), "{error}"),
            Ok((_, recovered)) => {
                assert_eq!(recovered.last_index, 5);
                assert!(read > 4, "there are reads");
                break;
            }
        }
        assert_eq!(open(&disk.restart()).unwrap().1.last_index, 5, "nothing was cut");
    }
}

/// A log over several segments, with purged, cut and live entries, and what it holds.
fn rich_log(seed: u64, closed: bool) -> (SimDisk, Model, Model) {
    let disk = SimDisk::new(seed);
    let mut wal = create(&disk);
    let mut model = Model::default();
    let mut before = Model::default();
    let mut write = |wal: &mut Wal<SimDisk>, write: Write| {
        before = model.clone();
        model.write(&write);
        wal.append(&[write]).unwrap();
    };
    write(&mut wal, vote(1, 2));
    for i in 0..10 {
        write(&mut wal, entries(3 * i + 1, 3 * i + 3, 1, 900));
    }
    write(
        &mut wal,
        Write {
            truncate_from: Some(28),
            ..entries(28, 33, 2, 300)
        },
    );
    let base = Base {
        index: 12,
        term: 1,
        configuration: Bytes::from_static(b"configuration"),
    };
    wal.purge(base.clone()).unwrap();
    let purged = |model: &mut Model| model.purge(&base);
    for i in 34..44 {
        write(
            &mut wal,
            Write {
                commit_mark: i - 1,
                ..entries(i, i, 2, 2000)
            },
        );
    }
    purged(&mut model);
    purged(&mut before);
    if closed {
        wal.close().unwrap();
    }
    (disk, model, before)
}

/// One flipped bit in each sector of each segment: never a wrong state. Corruption is reported, except (the stated
/// limit) in the very last batch of a log that was not closed: that looks like a torn tail.
#[test]
fn bit_rot_is_reported_and_never_cut() {
    for closed in [false, true] {
        let (disk, model, before) = rich_log(3, closed);
        let (wal, recovered) = open(&disk.fork()).unwrap();
        assert_eq!(as_model(&wal, &recovered), model);
        let (mut reported, mut harmless, mut limit) = (0, 0, 0);
        for file in disk
            .list(dir())
            .unwrap()
            .iter()
            .filter(|file| file.name.ends_with(".log"))
        {
            let path = dir().join(&file.name);
            let mut random = Random(7);
            for sector in 0..file.bytes / 512 {
                let disk = disk.fork();
                // The first bytes of a sector are where the headers are.
                let offset = sector * 512 + [random.below(64), random.below(512)][(sector % 2) as usize];
                assert!(disk.rot(&path, offset, 1 << random.below(8)));
                match open(&disk) {
                    Err(WalError::Corrupt { .. }) => {
                        reported += 1;
                        let again = open(&disk.restart()).map(|_| ());
                        assert!(matches!(again, Err(WalError::Corrupt { .. })), "the report stays");
                    }
                    Ok((wal, recovered)) => match as_model(&wal, &recovered) {
                        found if found == model => harmless += 1,
                        found if found == before && !closed => limit += 1,
                        found => panic!("{} at {offset}: {found:?}", file.name),
                    },
                    Err(error) => panic!("{} at {offset}: {error}", file.name),
                }
            }
        }
        // 2000 bytes of the last batch are at most 5 sectors.
        assert!(
            reported > 40 && harmless > 40 && limit <= 5,
            "{reported} {harmless} {limit}"
        );
    }
}

/// Readers verify what they read, and name the place.
#[test]
fn a_reader_reports_bit_rot() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    wal.append(&[entries(1, 10, 1, 100)]).unwrap();
    let file = disk
        .list(dir())
        .unwrap()
        .into_iter()
        .find(|file| file.name.ends_with(".log"))
        .unwrap();
    let reader = wal.reader();
    assert_eq!(reader.read(1, 10, 1000).unwrap().len(), 10);
    disk.rot(&dir().join(&file.name), 2 * 4096 + 64 + 5 * 128 + 40, 4);
    assert_eq!(reader.read(1, 5, 1000).unwrap().len(), 5);
    let error = reader.read(4, 8, 1000).unwrap_err();
    assert!(matches!(error, WalError::Corrupt { offset: 8896, .. }), "{error}");
}

/// Whether the first sector of the frame at an offset survived.
fn has_frame_header(disk: &SimDisk, segment: u64, offset: u64) -> bool {
    let content = disk.content(&dir().join(format!("{segment:016x}.log"))).unwrap();
    content[offset as usize..].starts_with(b"KVFR")
}

/// Rot in the second-to-last batch, then a power cut that tears the last one: the torn frame's header still proves
/// that the batch before it was durable.
#[test]
fn a_torn_successor_proves_its_predecessor() {
    let mut reported = 0;
    for seed in 0..40 {
        let disk = SimDisk::new(1);
        let mut wal = create(&disk);
        wal.append(&[entries(1, 3, 1, 700)]).unwrap();
        disk.fail_at(disk.ios() + 1, Fault::Crash);
        wal.append(&[entries(4, 9, 1, 700)]).unwrap_err();
        drop(wal);
        let disk = disk.crash(seed);
        disk.rot(&dir().join("0000000000000001.log"), 2 * 4096 + 200, 1);
        let proof = has_frame_header(&disk, 1, 3 * 4096);
        match open(&disk) {
            Err(WalError::Corrupt { .. }) if proof => reported += 1,
            Ok((_, recovered)) if !proof => assert_eq!(recovered.last_index, 0, "the stated limit"),
            result => panic!("proof: {proof}, {:?}", result.map(|(_, recovered)| recovered)),
        }
    }
    assert!(reported > 5, "{reported}");
}

/// The same over the boundary of two segments: the first frame of the new one is torn, and names the old one's end.
#[test]
fn a_torn_first_frame_proves_the_segment_before() {
    let mut reported = 0;
    for seed in 0..40 {
        let disk = SimDisk::new(1);
        let mut wal = create(&disk);
        wal.prepare_next().unwrap();
        let mut last = 0;
        while wal.stats().log_bytes + 8192 <= Options::small().segment_bytes {
            last += 1;
            wal.append(&[entries(last, last, 1, 4000)]).unwrap();
        }
        let last_frame = wal.stats().log_bytes - 4096;
        disk.fail_at(disk.ios() + 1, Fault::Crash);
        wal.append(&[entries(last + 1, last + 2, 1, 3900)]).unwrap_err();
        drop(wal);
        let disk = disk.crash(seed);
        disk.rot(&dir().join("0000000000000001.log"), last_frame + 200, 1);
        let proof = has_frame_header(&disk, 2, 4096);
        match open(&disk) {
            Err(WalError::Corrupt {
                segment: 1, offset, ..
            }) if proof => {
                assert_eq!(offset, last_frame);
                reported += 1;
            }
            Ok((_, recovered)) if !proof => assert_eq!(recovered.last_index, last - 1, "the stated limit"),
            result => panic!("proof: {proof}, {:?}", result.map(|(_, recovered)| recovered)),
        }
    }
    assert!(reported > 5, "{reported}");
}

/// Over two boundaries: the segment in the middle holds one batch, which rots, so no frame of it is left; the torn first
/// frame of the next one still names it.
#[test]
fn a_torn_first_frame_proves_a_segment_of_one_frame() {
    let options = Options {
        segment_bytes: 16 << 10,
        ..Options::small()
    };
    let mut reported = 0;
    for seed in 0..40 {
        let disk = SimDisk::new(1);
        let mut wal = Wal::create(disk.clone(), dir(), options.clone(), IDENTITY, &Write::default()).unwrap();
        wal.append(&[entries(1, 1, 1, 8000)]).unwrap();
        wal.append(&[entries(2, 2, 1, 8000)]).unwrap();
        wal.prepare_next().unwrap();
        disk.fail_at(disk.ios() + 1, Fault::Crash);
        wal.append(&[entries(3, 3, 1, 8000)]).unwrap_err();
        let middle = wal.stats().segments;
        drop(wal);
        let disk = disk.crash(seed);
        disk.rot(&dir().join(format!("{middle:016x}.log")), 4096 + 40, 1);
        let proof = has_frame_header(&disk, middle + 1, 4096);
        match Wal::open(disk, dir(), options.clone(), IDENTITY) {
            Err(WalError::Corrupt { .. }) if proof => reported += 1,
            Ok((_, recovered)) if !proof => assert_eq!(recovered.last_index, 1, "the stated limit"),
            result => panic!("proof: {proof}, {:?}", result.map(|(_, recovered)| recovered)),
        }
    }
    assert!(reported > 5, "{reported}");
}

/// Somebody stores pages of the log itself as a value. In the torn tail they are no proof that it was durable.
#[test]
fn a_stored_copy_of_a_frame_proves_nothing() {
    let mut torn = 0;
    for seed in 0..200 {
        let disk = SimDisk::new(1);
        let mut wal = create(&disk);
        let mut last = 0;
        while wal.stats().segments < 2 {
            last += 1;
            wal.append(&[entries(last, last, 1, 4000)]).unwrap();
        }
        wal.append(&[entries(last + 1, last + 1, 1, 10)]).unwrap();
        let names = disk.list(dir()).unwrap().into_iter().map(|file| file.name);
        let name = names
            .filter(|name| name.ends_with(".log"))
            .find(|name| !name.ends_with("1.log"))
            .unwrap();
        let log = disk.content(&dir().join(name)).unwrap();
        // The value begins so that the copies are where frames could begin.
        let offset = 4096 * 64 + 64 + 28_usize;
        let mut value = vec![0; offset.next_multiple_of(4096) - offset];
        let first = &log[4096..];
        let second = first[4096..]
            .chunks(4096)
            .find(|page| page.starts_with(b"KVFR"))
            .unwrap();
        value.extend_from_slice(&first[..4096]);
        value.extend_from_slice(&second[..64]);
        let copies = Entry {
            index: last + 2,
            term: 1,
            kind: 0,
            data: value.into(),
        };
        disk.fail_at(disk.ios() + 1, Fault::Crash);
        wal.append(&[Write {
            entries: vec![copies],
            ..Write::default()
        }])
        .unwrap_err();
        drop(wal);
        let (_, recovered) = open(&disk.crash(seed)).unwrap();
        torn += u64::from(recovered.last_index == last + 1);
    }
    assert!(torn > 20, "{torn}");
}

/// Every use of a segment file has a generation of its own, recycled or not.
#[test]
fn generations_are_never_repeated() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    let mut generations = std::collections::BTreeMap::new();
    for i in 1..=60 {
        wal.append(&[entries(i, i, 1, 7000)]).unwrap();
        wal.purge(Base {
            index: i,
            term: 1,
            configuration: Bytes::new(),
        })
        .unwrap();
        for file in disk
            .list(dir())
            .unwrap()
            .iter()
            .filter(|file| file.name.ends_with(".log"))
        {
            let header = disk.content(&dir().join(&file.name)).unwrap();
            let generation = u64::from_le_bytes(header[24..32].try_into().unwrap());
            assert_eq!(
                *generations.entry(file.name.clone()).or_insert(generation),
                generation
            );
        }
    }
    let distinct: std::collections::BTreeSet<u64> = generations.values().copied().collect();
    assert!(
        distinct.len() > 10 && distinct.len() == generations.len(),
        "{generations:?}"
    );
    assert!(wal.stats().segments_recycled > 5);
}

/// Scrubbing finds damage at rest while the log is open.
#[test]
fn scrubbing_finds_rot() {
    let (disk, model, _) = rich_log(5, false);
    let (wal, _) = open(&disk).unwrap();
    let reader = wal.reader();
    let scrub = || -> Result<u64, WalError> {
        let (mut after, mut segments) = (0, 0);
        while let Some(segment) = reader.scrub(after)? {
            (after, segments) = (segment, segments + 1);
        }
        Ok(segments)
    };
    assert_eq!(scrub().unwrap(), wal.stats().segments);
    assert!(wal.stats().segments > 2 && !model.entries.is_empty());
    let names = disk.list(dir()).unwrap().into_iter().map(|file| file.name);
    let oldest = names.filter(|name| name.ends_with(".log")).min().unwrap();
    for offset in [20, 4096 + 30, 4096 + 100] {
        disk.rot(&dir().join(&oldest), offset, 1);
        let error = scrub().unwrap_err();
        assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
        disk.rot(&dir().join(&oldest), offset, 1);
    }
    scrub().unwrap();
}

/// Whatever is in the files, opening them ends with a result, and a log that opens is readable.
#[test]
fn garbage_is_never_a_panic() {
    let (disk, _, _) = rich_log(5, true);
    let files = disk.list(dir()).unwrap();
    let mut random = Random(3);
    let mut opened = 0;
    for _ in 0..2000 {
        let disk = disk.fork();
        let file = &files[random.below(files.len() as u64) as usize];
        let path = dir().join(&file.name);
        match random.below(4) {
            0 => disk
                .open(&path)
                .unwrap()
                .set_size(random.below(file.bytes + 5000))
                .unwrap(),
            1 => {
                // One page over another: a valid frame in a wrong place.
                let content = disk.content(&path).unwrap();
                let pages = (file.bytes / 4096).max(1);
                let (from, to) = (random.below(pages) as usize * 4096, random.below(pages) * 4096);
                let page = &content[from.min(content.len())..(from + 4096).min(content.len())];
                disk.open(&path).unwrap().write_at(page, to).unwrap();
            }
            _ => {
                let length = random.below(300) as usize;
                let garbage: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                let offset = random.below(file.bytes.max(1)) / [1, 4096][random.below(2) as usize] * 7
                    % file.bytes.max(1);
                disk.open(&path).unwrap().write_at(&garbage, offset).unwrap();
            }
        }
        if let Ok((wal, recovered)) = open(&disk) {
            as_model(&wal, &recovered);
            opened += 1;
        }
    }
    assert!((200..1800).contains(&opened), "{opened}");
}

fn vote_file(disk: &SimDisk) -> Vec<u8> {
    disk.content(&dir().join("vote")).unwrap()
}

/// The second copy may lie elsewhere: it is written there and counts there, at creation as at recovery.
#[test]
fn the_vote_in_a_directory_of_its_own() {
    let elsewhere = std::path::PathBuf::from("/data/state");
    let options = Options {
        vote_dir: Some(elsewhere.clone()),
        ..Options::small()
    };
    let disk = SimDisk::new(1);
    disk.create_dir(&elsewhere).unwrap();
    let mut wal = Wal::create(disk.clone(), dir(), options.clone(), IDENTITY, &Write::default()).unwrap();
    wal.append(&[vote(5, 2)]).unwrap();
    drop(wal);
    assert!(disk.content(&dir().join("vote")).is_none());
    assert!(disk.content(&elsewhere.join("vote")).is_some());
    disk.remove(&elsewhere.join("vote")).unwrap();
    let (wal, recovered) = Wal::open(disk.clone(), dir(), options.clone(), IDENTITY).unwrap();
    assert_eq!(recovered.report.vote_copy, VoteCopy::Missing);
    assert_eq!((recovered.hard_state.term, recovered.hard_state.vote), (5, 2));
    drop(wal);
    let (_, recovered) = Wal::open(disk, dir(), options, IDENTITY).unwrap();
    assert_eq!(recovered.report.vote_copy, VoteCopy::Agreed);
}

/// The two copies of term and vote: which wins, and what is corruption.
#[test]
fn the_copies_of_the_vote() {
    let with = |term, candidate| {
        let disk = SimDisk::new(1);
        let mut wal = create(&disk);
        wal.append(&[vote(term, candidate)]).unwrap();
        disk
    };
    let log = with(5, 2);
    let check = |file: Vec<u8>, expected: Result<(HardState, VoteCopy), ()>| {
        let disk = log.fork();
        replace_file_durably(&disk, &dir().join("vote"), &file).unwrap();
        match (open(&disk), expected) {
            (Ok((_, recovered)), Ok(expected)) => {
                assert_eq!((recovered.hard_state, recovered.report.vote_copy), expected);
                // Repaired in both copies.
                let (_, again) = open(&disk.crash(1)).unwrap();
                assert_eq!(
                    (again.hard_state, again.report.vote_copy),
                    (expected.0, VoteCopy::Agreed)
                );
            }
            (Err(WalError::Corrupt { .. }), Err(())) => {}
            (found, _) => panic!(
                "{:?} instead of {expected:?}",
                found.map(|(_, recovered)| recovered)
            ),
        }
    };
    let state = |term, vote| HardState { term, vote };
    check(vote_file(&log), Ok((state(5, 2), VoteCopy::Agreed)));
    check(vote_file(&with(4, 3)), Ok((state(5, 2), VoteCopy::Behind)));
    check(vote_file(&with(5, 0)), Ok((state(5, 2), VoteCopy::Behind)));
    check(vote_file(&with(6, 0)), Err(()));
    check(vote_file(&with(6, 3)), Err(()));
    check(vote_file(&with(5, 3)), Err(()));
    check(vec![0; 256], Ok((state(5, 2), VoteCopy::Bad)));
    check(Vec::new(), Ok((state(5, 2), VoteCopy::Bad)));
    let log = with(5, 0);
    let disk = log.fork();
    replace_file_durably(&disk, &dir().join("vote"), &vote_file(&with(5, 3))).unwrap();
    assert!(
        matches!(open(&disk), Err(WalError::Corrupt { .. })),
        "a vote that the log does not have"
    );
    let disk = log.fork();
    disk.remove(&dir().join("vote")).unwrap();
    assert_eq!(open(&disk).unwrap().1.report.vote_copy, VoteCopy::Missing);
}

/// Rot in the last batch looks torn (the stated limit), but not where a vote was in it: the vote file was written
/// after that batch was durable, and proves it. The member used to start with the file's vote and without the entries
/// that it had acknowledged in the same batch; a candidate that lacked them could have had its next vote.
#[test]
fn a_vote_file_ahead_of_the_log_proves_that_the_log_lost_its_end() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    wal.append(&[vote(3, 9)]).unwrap();
    drop(wal);
    let segment = dir().join("0000000000000001.log");
    assert!(disk.rot(&segment, 2 * 4096 + 70, 1));
    let (log_before, vote_before) = (disk.content(&segment), vote_file(&disk));
    match open(&disk) {
        Err(WalError::Corrupt { file, why, .. }) => {
            assert_eq!(file, dir().join("vote"));
            assert!(why.contains("term 3 and vote 9"), "{why}");
        }
        other => panic!("{:?}", other.map(|(_, recovered)| recovered)),
    }
    assert_eq!(disk.content(&segment), log_before, "corruption is never cut");
    assert_eq!(vote_file(&disk), vote_before);
}

#[test]
fn other_directories_and_newer_versions_are_refused() {
    let disk = SimDisk::new(1);
    drop(create(&disk));
    let other = |disk: &SimDisk| Wal::open(disk.clone(), dir(), Options::small(), b"another cluster").err();
    assert!(matches!(other(&disk), Some(WalError::WrongIdentity { .. })));
    assert!(matches!(
        Wal::create(disk.clone(), dir(), Options::small(), IDENTITY, &Write::default()),
        Err(WalError::Exists { .. })
    ));
    for name in ["0000000000000001.log", "vote"] {
        let disk = disk.fork();
        let path = dir().join(name);
        let mut bytes = disk.content(&path).unwrap();
        bytes[8] = 2;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..256]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        replace_file_durably(&disk, &path, &bytes).unwrap();
        let error = open(&disk).unwrap_err();
        assert!(
            matches!(
                error,
                WalError::Newer {
                    found: 2,
                    known: 1,
                    ..
                }
            ),
            "{error}"
        );
    }
    assert!(matches!(
        Wal::open(disk.clone(), &dir().join("elsewhere"), Options::small(), IDENTITY),
        Err(WalError::Missing { .. })
    ));
    // A vote without its log is no empty directory: the member might vote twice.
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[vote(4, 1)]).unwrap();
    drop(wal);
    for file in disk.list(dir()).unwrap() {
        if file.name.ends_with(".log") {
            disk.remove(&dir().join(file.name)).unwrap();
        }
    }
    let error = Wal::create(disk, dir(), Options::small(), IDENTITY, &Write::default()).unwrap_err();
    assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
}

#[test]
fn a_missing_segment_is_corruption() {
    let (disk, _, _) = rich_log(1, true);
    let segments: Vec<_> = disk
        .list(dir())
        .unwrap()
        .into_iter()
        .filter(|f| f.name.ends_with(".log"))
        .collect();
    let used = segments.len() - usize::from(segments.last().unwrap().name.ends_with("prepared"));
    for segment in &segments[..used - 2] {
        let disk = disk.fork();
        disk.remove(&dir().join(&segment.name)).unwrap();
        let error = open(&disk).map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, WalError::Corrupt { file, .. } if file.ends_with(&segment.name)),
            "{error}"
        );
    }
}

#[test]
fn one_process_at_a_time() {
    let disk = SimDisk::new(1);
    let wal = create(&disk);
    assert!(matches!(open(&disk), Err(WalError::InUse { .. })));
    drop(wal);
    open(&disk).unwrap();

    let dir = std::env::temp_dir().join(format!("kvorum-wal-lock-{}", std::process::id()));
    let options = Options::small();
    let wal = Wal::create(RealDisk, &dir, options.clone(), IDENTITY, &Write::default()).unwrap();
    let error = Wal::open(RealDisk, &dir, options.clone(), IDENTITY)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        error,
        WalError::InUse {
            dir: dir.clone(),
            pid: std::process::id()
        }
    );
    drop(wal);
    Wal::open(RealDisk, &dir, options, IDENTITY).unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

/// Calls that make no sense change nothing.
#[test]
fn invalid_calls_are_refused() {
    let disk = SimDisk::new(1);
    let mut wal = create(&disk);
    wal.append(&[entries(1, 5, 1, 10)]).unwrap();
    wal.purge(Base {
        index: 2,
        term: 1,
        configuration: Bytes::new(),
    })
    .unwrap();
    let ios = disk.ios();
    let large = Base {
        index: 3,
        term: 1,
        configuration: Bytes::from(vec![0; 1025]),
    };
    for write in [
        entries(7, 7, 1, 10),
        entries(5, 5, 1, 10),
        Write {
            truncate_from: Some(2),
            ..Write::default()
        },
        Write {
            entries: vec![entry(6, 1, 1), entry(8, 1, 1)],
            ..Write::default()
        },
        Write {
            reset: Some(large.clone()),
            ..Write::default()
        },
        entries(6, 6, 1, Options::small().batch_bytes_max),
    ] {
        // Not even the valid write before it is written.
        let result = wal.append(&[
            entries(6, 6, 1, 1),
            Write {
                truncate_from: Some(6),
                ..Write::default()
            },
            write,
        ]);
        assert!(matches!(result, Err(WalError::Invalid(_))), "{result:?}");
    }
    assert!(matches!(wal.purge(large), Err(WalError::Invalid(_))));
    assert!(matches!(
        wal.purge(Base {
            index: 6,
            ..Base::default()
        }),
        Err(WalError::Invalid(_))
    ));
    assert_eq!(disk.ios(), ios);
    // At the limit it works.
    let fits = Options::small().batch_bytes_max - 28;
    wal.append(&[entries(6, 6, 1, fits)]).unwrap();
    assert_eq!(wal.reader().read(6, 6, 1).unwrap()[0].data.len(), fits);
    let long = [0; 65];
    assert!(matches!(
        Wal::open(disk, dir(), Options::small(), &long),
        Err(WalError::Invalid(_))
    ));
}
