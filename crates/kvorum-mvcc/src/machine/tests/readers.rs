//! Readers on other threads, with a cache so small that entries come and go all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvorum_model::{DeleteRangeRequest, KeyRange, RangeRequest, RequestOp, TxnRequest};

use super::*;
use crate::testing::Rng;

const KEYS: u64 = 24;

/// One transaction writes the same number to all keys, or deletes them all; so whatever a view shows of one key, it
/// must show of every other: by point get (from the cache or not), by range, and at its revision in history.
#[test]
fn a_view_is_one_state_whatever_the_cache_holds() {
    let options = Options {
        cache_bytes: 16 * 1_500,
        ..Options::default()
    };
    let mut machine = StateMachine::open(MemStore::new(), options).unwrap();
    let (done, checked) = (AtomicBool::new(false), AtomicU64::new(0));
    let reader = machine.reader();
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (reader, done, checked) = (reader.clone(), &done, &checked);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                while !done.load(Ordering::Relaxed) {
                    let view = reader.view();
                    let all = view
                        .range(&RangeRequest {
                            range: KeyRange::prefix(b""),
                            ..Default::default()
                        })
                        .unwrap();
                    let value = all.kvs.first().map(|kv| kv.value.clone());
                    assert!(all.count == 0 || all.count == KEYS as i64);
                    for _ in 0..20 {
                        let key = format!("{:02}", rng.below(KEYS));
                        let got = view.get(key.as_bytes()).unwrap().map(|kv| kv.value);
                        assert_eq!(got, value, "{key} at {}", view.revision());
                    }
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut index = 0;
        while index < 3_000 || checked.load(Ordering::Relaxed) < 300 {
            index += 1;
            let command = if index % 7 == 0 {
                Command::DeleteRange(DeleteRangeRequest {
                    range: KeyRange::prefix(b""),
                    prev_kv: false,
                })
            } else {
                let write = |n| {
                    let (key, value) = (format!("{n:02}").into(), format!("{index}").into());
                    RequestOp::Put(PutRequest {
                        key,
                        value,
                        ..PutRequest::default()
                    })
                };
                Command::Txn(TxnRequest {
                    success: (0..KEYS).map(write).collect(),
                    ..TxnRequest::default()
                })
            };
            machine.apply(&[entry(index, command)]).unwrap();
            if index % 100 == 0 {
                let compacted = machine.revision() - 5;
                index += 1;
                machine
                    .apply(&[entry(index, Command::Compact(compacted))])
                    .unwrap();
                machine.maintenance(index * 1000).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
