//! Random requests over few keys, so that they meet.

use bytes::Bytes;
use kvorum_model::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyRange, PutRequest, RangeRequest,
    RequestOp, Revision, SortOrder, SortTarget, TxnRequest,
};

use crate::testing::Rng;

const KEYS: [&[u8]; 9] = [
    b"a",
    b"a\0",
    b"a\0\xff",
    b"a\x01",
    b"ab",
    b"b",
    b"\xff",
    b"\xff\xff",
    b"\0",
];

pub(crate) fn key(rng: &mut Rng) -> Bytes {
    Bytes::from_static(KEYS[rng.below(KEYS.len() as u64) as usize])
}

pub(crate) fn range(rng: &mut Rng) -> KeyRange {
    let end = match rng.below(6) {
        0..=2 => Bytes::new(),
        3 => Bytes::from_static(&[0]),
        _ => key(rng),
    };
    KeyRange { key: key(rng), end }
}

fn revision(rng: &mut Rng, current: Revision) -> Revision {
    match rng.below(6) {
        0 => current,
        1 => current - rng.below(40) as Revision,
        2 => current + 1,
        _ => 0,
    }
}

pub(crate) fn range_request(rng: &mut Rng, current: Revision) -> RangeRequest {
    let mut request = RangeRequest {
        range: range(rng),
        ..RangeRequest::default()
    };
    if rng.below(4) == 0 {
        request.range = KeyRange::prefix(b"");
    }
    request.revision = revision(rng, current).max(0);
    if rng.below(3) == 0 {
        request.limit = rng.below(5) as i64;
    }
    if rng.below(4) == 0 {
        request.sort_order = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][rng.below(3) as usize];
        let targets = [
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ];
        request.sort_target = targets[rng.below(5) as usize];
    }
    if rng.below(6) == 0 {
        for filter in [
            &mut request.min_mod_revision,
            &mut request.max_mod_revision,
            &mut request.min_create_revision,
            &mut request.max_create_revision,
        ] {
            if rng.below(3) == 0 {
                *filter = (current - rng.below(20) as Revision).max(0);
            }
        }
    }
    request.keys_only = rng.below(6) == 0;
    request.count_only = rng.below(8) == 0;
    request
}

/// Some are there, some are not.
fn lease(rng: &mut Rng) -> i64 {
    [7, 8, 9, -1, i64::MAX][rng.below(5) as usize]
}

fn put(rng: &mut Rng) -> PutRequest {
    let mut put = PutRequest {
        key: key(rng),
        prev_kv: rng.below(3) == 0,
        ..PutRequest::default()
    };
    match rng.below(10) {
        0 => put.ignore_value = true,
        1 => put.ignore_lease = true,
        _ => {}
    }
    if !put.ignore_value {
        put.value = vec![b'0' + rng.below(10) as u8; rng.below(4) as usize].into();
    }
    if !put.ignore_lease && rng.below(3) == 0 {
        put.lease = lease(rng);
    }
    put
}

fn delete(rng: &mut Rng) -> DeleteRangeRequest {
    DeleteRangeRequest {
        range: range(rng),
        prev_kv: rng.below(2) == 0,
    }
}

fn compare(rng: &mut Rng, current: Revision) -> Compare {
    let results = [
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
    ];
    let near = current - rng.below(10) as Revision;
    let target = match rng.below(6) {
        0 => CompareTarget::Version(rng.below(4) as i64),
        1 => CompareTarget::Create(if rng.below(2) == 0 { 0 } else { near }),
        2 => CompareTarget::Mod(near),
        3 => CompareTarget::Value(vec![b'0' + rng.below(10) as u8; rng.below(3) as usize].into()),
        4 => CompareTarget::LiveKeys(rng.below(40) as i64),
        _ => CompareTarget::Lease([0, 1, 7, 8][rng.below(4) as usize]),
    };
    Compare {
        range: range(rng),
        result: results[rng.below(4) as usize],
        target,
    }
}

fn ops(rng: &mut Rng, current: Revision, depth: u64) -> Vec<RequestOp> {
    (0..rng.below(4))
        .map(|_| match rng.below(8) {
            0..=2 => RequestOp::Put(put(rng)),
            3 => RequestOp::DeleteRange(delete(rng)),
            4 if depth < 3 => RequestOp::Txn(txn(rng, current, depth + 1)),
            _ => RequestOp::Range(range_request(rng, current)),
        })
        .collect()
}

fn txn(rng: &mut Rng, current: Revision, depth: u64) -> TxnRequest {
    TxnRequest {
        compare: (0..rng.below(3)).map(|_| compare(rng, current)).collect(),
        success: ops(rng, current, depth),
        failure: ops(rng, current, depth),
    }
}

/// A command that is valid, or not.
pub(crate) fn command(rng: &mut Rng, current: Revision) -> Command {
    match rng.below(24) {
        0..=8 => Command::Put(put(rng)),
        9..=11 => Command::DeleteRange(delete(rng)),
        12 => Command::Compact(current - rng.below(30) as Revision + 2),
        13..=15 => Command::LeaseGrant {
            id: lease(rng),
            ttl_s: rng.below(9) as i64 - 2,
        },
        16 => Command::LeaseRevoke {
            id: lease(rng),
            expiry: None,
        },
        _ => Command::Txn(txn(rng, current, 1)),
    }
}
