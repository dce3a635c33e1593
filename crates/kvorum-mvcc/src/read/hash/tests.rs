//! The hash against real etcds: what 3.4 answered to a random history (`testdata/hashkv.txt`, made by the script
//! beside it), and the values that etcd's own tests hold fast since 3.5 (`TestHashByRevValue` and
//! `TestHashByRevValueLastRevision` in its `server/storage/mvcc/hash_test.go`).

#![allow(clippy::unwrap_used)]

use kvorum_model::{Command, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};

use super::*;
use crate::machine::StateMachine;
use crate::machine::tests::{entry, open, put};
use crate::store::MemStore;

fn apply(machine: &mut StateMachine<MemStore>, command: Command) {
    let index = machine.applied().1 + 1;
    let outcome = machine.apply(&[entry(index, command)]).unwrap();
    assert!(outcome.replies[0].result.is_ok(), "{:?}", outcome.replies);
}

/// Whatever background removal has done so far, and however little is gathered at one time.
fn check(machine: &mut StateMachine<MemStore>, revision: Revision, expected: (u32, Revision, Revision)) {
    let (hash, compacted, hashed) = expected;
    let expected = KeyspaceHash {
        hash,
        compacted,
        revision: hashed,
    };
    for pieces_max in [PIECES_MAX, 1, 3] {
        let view = machine.reader().view();
        assert_eq!(
            view.hash_kv_with(revision, pieces_max),
            Ok(expected),
            "at {revision}"
        );
    }
}

fn remove_compacted(machine: &mut StateMachine<MemStore>, now_ms: &mut u64) {
    loop {
        *now_ms += 1000;
        if !machine.maintenance(*now_ms).unwrap().pending {
            return;
        }
    }
}

fn unhex(text: &str) -> Bytes {
    let digits = text.trim_matches('-');
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect::<Vec<_>>().into()
}

fn operation(line: &str) -> RequestOp {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["put", key, value] => RequestOp::Put(PutRequest {
            key: unhex(key),
            value: unhex(value),
            ..PutRequest::default()
        }),
        ["delete", key] => RequestOp::DeleteRange(DeleteRangeRequest {
            range: KeyRange::point(unhex(key)),
            prev_kv: false,
        }),
        ["delete", key, end] => RequestOp::DeleteRange(DeleteRangeRequest {
            range: KeyRange {
                key: unhex(key),
                end: unhex(end),
            },
            prev_kv: false,
        }),
        _ => panic!("{line}"),
    }
}

#[test]
fn a_random_history_hashes_as_in_etcd() {
    for remove in [false, true] {
        let (mut machine, mut now_ms, mut hashes) = (open(MemStore::new()), 0, 0);
        for line in include_str!("../../../testdata/hashkv.txt").lines().skip(1) {
            let (what, rest) = line.split_once(' ').unwrap();
            let command = match what {
                "hash" => {
                    let numbers: Vec<i64> = rest.split(' ').map(|word| word.parse().unwrap()).collect();
                    let hashed = if numbers[0] == 0 {
                        machine.revision()
                    } else {
                        numbers[0]
                    };
                    check(&mut machine, numbers[0], (numbers[1] as u32, numbers[2], hashed));
                    hashes += 1;
                    continue;
                }
                "compact" => Command::Compact(rest.parse().unwrap()),
                "txn" => Command::Txn(TxnRequest {
                    success: rest.split('|').map(operation).collect(),
                    ..TxnRequest::default()
                }),
                _ => match operation(line) {
                    RequestOp::Put(put) => Command::Put(put),
                    RequestOp::DeleteRange(delete) => Command::DeleteRange(delete),
                    _ => unreachable!(),
                },
            };
            apply(&mut machine, command);
            if remove {
                remove_compacted(&mut machine, &mut now_ms);
            }
        }
        assert!(hashes > 400);
    }
}

/// etcd's `testutil.PickKey`.
fn pick_key(i: i64) -> &'static str {
    match (i % 142, i % 71) {
        (30, _) => "zenek",
        (_, 30) => "xavery",
        _ => ["alice", "bob", "celine", "dominik", "eve", "frederica", "gorge"][(i % 7) as usize],
    }
}

/// etcd's tests write 72 keys, hash, compact at the hashed revision, and so on 18 times; then 1211 keys at once.
fn as_etcd_tests_do(at: impl Fn(Revision, i64) -> Revision, expected: &[(u32, Revision, Revision)]) {
    let mut machine = open(MemStore::new());
    let mut begin = 0;
    for &(hash, compacted, hashed) in expected {
        let count = if begin < 1210 { 71 } else { 1210 };
        for i in begin..=begin + count {
            apply(&mut machine, put(pick_key(i), &i.to_string()));
        }
        let revision = at(begin, count);
        check(&mut machine, revision, (hash, compacted, hashed));
        apply(&mut machine, Command::Compact(hashed));
        begin += 71;
    }
}

#[test]
fn etcds_own_values_between_two_compactions() {
    let expected = [
        (4082599214, -1, 35),
        (2279933401, 35, 106),
        (3284231217, 106, 177),
        (126286495, 177, 248),
        (900108730, 248, 319),
        (2475485232, 319, 390),
        (1226296507, 390, 461),
        (2503661030, 461, 532),
        (4155130747, 532, 603),
        (106915399, 603, 674),
        (406914006, 674, 745),
        (1882211381, 745, 816),
        (806177088, 816, 887),
        (664311366, 887, 958),
        (1496914449, 958, 1029),
        (2434525091, 1029, 1100),
        (3988652253, 1100, 1171),
        (1122462288, 1171, 1242),
        (724436716, 1242, 1883),
    ];
    as_etcd_tests_do(|begin, count| begin + count / 2, &expected);
}

#[test]
fn etcds_own_values_at_the_newest_revision() {
    let expected = [
        (1913897190, -1, 73),
        (224860069, 73, 145),
        (1565167519, 145, 217),
        (1566261620, 217, 289),
        (2037173024, 289, 361),
        (691659396, 361, 433),
        (2713730748, 433, 505),
        (3919322507, 505, 577),
        (769967540, 577, 649),
        (2909194793, 649, 721),
        (1576921157, 721, 793),
        (4067701532, 793, 865),
        (2226384237, 865, 937),
        (2923408134, 937, 1009),
        (2680329256, 1009, 1081),
        (1546717673, 1081, 1153),
        (2713657846, 1153, 1225),
        (1046575299, 1225, 1297),
        (2017735779, 1297, 2508),
    ];
    as_etcd_tests_do(|_, _| 0, &expected);
}

#[test]
fn revisions_that_cannot_be_hashed() {
    let mut machine = open(MemStore::new());
    for value in ["1", "2", "3"] {
        apply(&mut machine, put("k", value));
    }
    apply(&mut machine, Command::Compact(3));
    let view = machine.reader().view();
    assert_eq!(view.hash_kv(5), Err(Error::FutureRevision.into()));
    assert_eq!(view.hash_kv(2), Err(Error::Compacted.into()));
    // From 3.6 on the compacted revision itself can be hashed.
    assert_eq!(view.hash_kv(3).unwrap().revision, 3);
    assert_eq!(view.hash_kv(0).unwrap().revision, 4);
    // etcd takes any negative number and finds nothing.
    assert_eq!(view.hash_kv(-7).unwrap().hash, crc32c::crc32c(BUCKET));
}

/// etcd hashes a deletion at the compacted revision in no version, whether the version keeps it or not.
#[test]
fn a_deletion_at_the_compaction_is_not_hashed() {
    let mut machine = open(MemStore::new());
    apply(&mut machine, put("stays", "1"));
    apply(&mut machine, put("goes", "1"));
    let without = machine.reader().view();
    let delete = DeleteRangeRequest {
        range: KeyRange::point("goes"),
        prev_kv: false,
    };
    apply(&mut machine, Command::DeleteRange(delete));
    apply(&mut machine, Command::Compact(4));
    let hash = machine.reader().view().hash_kv(4).unwrap().hash;
    let expected = {
        let kv = without.get(b"stays").unwrap().unwrap();
        Marshalled::put((2, 0), &kv)
            .append_to(crc32c::crc32c(BUCKET), &kv.value)
            .0
    };
    assert_eq!(hash, expected);
}

#[test]
fn checksums_combine() {
    let bytes: Vec<u8> = (0..5000u32).map(|n| (n * n % 251) as u8).collect();
    for cut in [0, 1, 2, 63, 64, 1000, 4999, 5000] {
        let (first, second) = bytes.split_at(cut);
        let combined = combine(crc32c::crc32c(first), crc32c::crc32c(second), second.len() as u64);
        assert_eq!(combined, crc32c::crc32c(&bytes), "{cut}");
    }
}

/// Removal is each member's own affair, and no part of the hash.
#[test]
fn members_at_the_same_entry_have_the_same_hash_of_everything() {
    let run = |remove: bool| {
        let (mut machine, mut now_ms) = (open(MemStore::new()), 0);
        for value in ["1", "2", "3"] {
            apply(&mut machine, put("k", value));
        }
        apply(&mut machine, Command::Register);
        apply(&mut machine, Command::Compact(3));
        if remove {
            remove_compacted(&mut machine, &mut now_ms);
        }
        let before = machine.reader().view().hash().unwrap();
        apply(&mut machine, Command::Register);
        assert_ne!(machine.reader().view().hash().unwrap(), before);
        before
    };
    assert_eq!(run(false), run(true));
}
