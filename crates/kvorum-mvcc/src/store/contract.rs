//! What every engine must do, as tests: call [`run`] from the engine's own tests.
//!
//! The differential part runs random batches against a `BTreeMap` and compares point gets with range gets of the
//! same key, over open views, flushes, maintenance and crashes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::{Batch, Store, StoreError, View};
use crate::testing::Rng;

/// How the suite makes and breaks stores of one engine.
pub(crate) trait Harness {
    /// The engine.
    type Store: Store;
    /// A new, empty store in a place of its own.
    fn fresh(&mut self) -> Self::Store;
    /// Loses what was not flushed, as a crash would, and opens what is left. An engine that cannot lose writes at
    /// will may keep more than was flushed, but only whole batches.
    fn crash(&mut self, store: Self::Store) -> Self::Store;
}

type Model = BTreeMap<Bytes, Bytes>;

/// Runs the whole suite; `steps` sizes its random part (2,000 take about a second in memory).
pub(crate) fn run<H: Harness>(mut harness: H, seed: u64, steps: usize) {
    batches_are_ordered(&mut harness);
    views_are_frozen(&mut harness);
    ranges_have_every_bound(&mut harness);
    ingest_fills_a_new_store(&mut harness);
    differential(&mut harness, seed, steps);
}

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(store: &impl Store, mark: u64, records: &[(&str, Option<&str>)]) {
    let writes = records
        .iter()
        .map(|(name, value)| (key(name), value.map(key)))
        .collect();
    store.write(Batch { writes, mark }).unwrap();
}

fn batches_are_ordered(harness: &mut impl Harness) {
    let store = harness.fresh();
    assert_eq!(store.flushed_mark(), 0);
    assert_eq!(store.get(b"a").unwrap(), None);
    put(
        &store,
        1,
        &[
            ("a", Some("1")),
            ("a", None),
            ("b", None),
            ("b", Some("2")),
            ("e", Some("")),
        ],
    );
    assert_eq!(
        store.get(b"a").unwrap(),
        None,
        "the later write of a batch counts"
    );
    assert_eq!(store.get(b"b").unwrap(), Some(key("2")));
    assert_eq!(
        store.get(b"e").unwrap(),
        Some(Bytes::new()),
        "an empty value is a value"
    );
    put(&store, 5, &[]);
    store.flush().unwrap();
    assert_eq!(store.flushed_mark(), 5, "an empty batch moves the mark");
    let store = harness.crash(store);
    assert_eq!(store.flushed_mark(), 5);
    assert_eq!(store.get(b"b").unwrap(), Some(key("2")));
    put(&store, 5, &[("b", None)]);
    assert_eq!(store.get(b"b").unwrap(), None, "two batches may have one mark");
}

fn views_are_frozen(harness: &mut impl Harness) {
    let store = harness.fresh();
    put(&store, 1, &[("a", Some("1")), ("b", Some("1"))]);
    let first = store.view();
    put(&store, 2, &[("a", None), ("b", Some("2")), ("c", Some("2"))]);
    store.maintain().unwrap();
    store.flush().unwrap();
    let second = first.clone();
    drop(first);
    assert_eq!(second.get(b"a").unwrap(), Some(key("1")));
    assert_eq!(all(&second), model(&[("a", "1"), ("b", "1")]));
    assert_eq!(all(&store.view()), model(&[("b", "2"), ("c", "2")]));
}

fn ranges_have_every_bound(harness: &mut impl Harness) {
    let store = harness.fresh();
    let names: Vec<String> = (0..300).map(|n| format!("{n:03}")).collect();
    for (n, name) in names.iter().enumerate() {
        put(&store, n as u64 + 1, &[(name, Some("x"))]);
    }
    let view = store.view();
    let bounds = |n: &str| [Bound::Included(key(n)), Bound::Excluded(key(n)), Bound::Unbounded];
    for from in bounds("100") {
        for to in bounds("200")
            .into_iter()
            .chain(bounds("100"))
            .chain(bounds("050"))
        {
            let expected: Vec<&String> = names
                .iter()
                .filter(|name| match &from {
                    Bound::Included(start) => name.as_bytes() >= start.as_ref(),
                    Bound::Excluded(start) => name.as_bytes() > start.as_ref(),
                    Bound::Unbounded => true,
                })
                .filter(|name| match &to {
                    Bound::Included(end) => name.as_bytes() <= end.as_ref(),
                    Bound::Excluded(end) => name.as_bytes() < end.as_ref(),
                    Bound::Unbounded => true,
                })
                .collect();
            let names_of = |records: Vec<(Bytes, Bytes)>| -> Vec<String> {
                records
                    .into_iter()
                    .map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
                    .collect()
            };
            let forward: Result<Vec<_>, StoreError> = view.range(from.clone(), to.clone()).collect();
            assert_eq!(
                names_of(forward.unwrap()),
                expected.iter().map(|n| n.to_string()).collect::<Vec<_>>()
            );
            let backward: Result<Vec<_>, StoreError> = view.range(from.clone(), to.clone()).rev().collect();
            let mut backward = names_of(backward.unwrap());
            backward.reverse();
            assert_eq!(
                backward,
                expected.iter().map(|n| n.to_string()).collect::<Vec<_>>()
            );
        }
    }
    // From both ends in turn, each record comes once.
    let mut iter = view.range(Bound::Unbounded, Bound::Unbounded);
    let mut seen = Vec::new();
    loop {
        let Some(front) = iter.next() else { break };
        seen.push(front.unwrap().0);
        let Some(back) = iter.next_back() else { break };
        seen.push(back.unwrap().0);
    }
    seen.sort();
    assert_eq!(seen, names.iter().map(|name| key(name)).collect::<Vec<_>>());
}

fn ingest_fills_a_new_store(harness: &mut impl Harness) {
    let store = harness.fresh();
    let mut expected = Model::new();
    for chunk in 0..4 {
        let records: Vec<_> = (0..500)
            .map(|n| (key(&format!("{chunk}/{n:04}")), key(&format!("value {n}"))))
            .collect();
        expected.extend(records.iter().cloned());
        store.ingest(records).unwrap();
    }
    store
        .write(Batch {
            writes: Vec::new(),
            mark: 77,
        })
        .unwrap();
    store.flush().unwrap();
    assert_eq!(store.flushed_mark(), 77);
    assert_eq!(all(&store.view()), expected);
    let store = harness.crash(store);
    assert_eq!(store.flushed_mark(), 77);
    assert_eq!(all(&store.view()), expected);
    put(&store, 78, &[("0/0000", None)]);
    expected.remove(&key("0/0000"));
    assert_eq!(all(&store.view()), expected);
}

fn model(records: &[(&str, &str)]) -> Model {
    records
        .iter()
        .map(|(name, value)| (key(name), key(value)))
        .collect()
}

fn all(view: &impl View) -> Model {
    view.range(Bound::Unbounded, Bound::Unbounded)
        .collect::<Result<_, _>>()
        .unwrap()
}

/// Few keys, so that they are overwritten and deleted often; some share prefixes, some contain zeros.
fn random_key(rng: &mut Rng) -> Bytes {
    let mut name = vec![b"dr"[rng.below(2) as usize]];
    for _ in 0..1 + rng.below(3) {
        name.push([0, 1, b'a', b'b', 0xff][rng.below(5) as usize]);
    }
    name.into()
}

fn random_batch(rng: &mut Rng, mark: u64) -> Batch {
    let mut batch = Batch {
        writes: Vec::new(),
        mark,
    };
    for _ in 0..rng.below(6) {
        let value = match rng.below(4) {
            0 => None,
            _ => {
                let length = if rng.below(50) == 0 { 20_000 } else { rng.below(40) };
                Some(Bytes::from(vec![rng.below(256) as u8; length as usize]))
            }
        };
        batch.writes.push((random_key(rng), value));
    }
    batch
}

fn replay(model: &mut Model, batch: &Batch) {
    for (name, value) in &batch.writes {
        match value {
            Some(value) => model.insert(name.clone(), value.clone()),
            None => model.remove(name),
        };
    }
}

/// Compares a view with the model: the whole, and one key by point get and by range get.
fn compare(view: &impl View, expected: &Model, rng: &mut Rng) {
    for _ in 0..3 {
        let name = random_key(rng);
        let point = view.get(&name).unwrap();
        let range = view
            .range(Bound::Included(name.clone()), Bound::Included(name.clone()))
            .next()
            .map(|record| record.unwrap().1);
        assert_eq!(point, range, "point get and range get of {name:?}");
        assert_eq!(point.as_ref(), expected.get(&name), "{name:?}");
    }
    if rng.below(8) == 0 {
        assert_eq!(&all(view), expected);
    }
}

fn differential<H: Harness>(harness: &mut H, seed: u64, steps: usize) {
    let mut rng = Rng::new(seed);
    let mut store = harness.fresh();
    // The model after each batch since the last flush that is known: a crash leaves one of them.
    let mut states: Vec<(u64, Model)> = vec![(0, Model::new())];
    let mut views: Vec<(<H::Store as Store>::View, Model)> = Vec::new();
    for mark in 1..=steps as u64 {
        let batch = random_batch(&mut rng, mark);
        let mut state = states.last().expect("it begins with the empty state").1.clone();
        replay(&mut state, &batch);
        for (name, _) in batch.writes.iter().take(1) {
            assert_eq!(
                store.get(name).unwrap().as_ref(),
                states.last().and_then(|(_, m)| m.get(name))
            );
        }
        store.write(batch).unwrap();
        states.push((mark, state.clone()));
        compare(&store.view(), &state, &mut rng);
        match rng.below(40) {
            0 => {
                store.flush().unwrap();
                assert_eq!(store.flushed_mark(), mark);
            }
            1..=8 => store.maintain().unwrap(),
            9 => {
                views.clear();
                let promised = store.flushed_mark();
                store = harness.crash(store);
                let left = store.flushed_mark();
                assert!(left >= promised, "{promised} was promised to survive, {left} did");
                let at = states
                    .iter()
                    .position(|(mark, _)| *mark == left)
                    .expect("a whole batch");
                states.truncate(at + 1);
                states.drain(..at);
                assert_eq!(all(&store.view()), states[0].1);
            }
            10..=14 => views.push((store.view(), state)),
            15..=18 if !views.is_empty() => {
                views.swap_remove(rng.below(views.len() as u64) as usize);
            }
            _ => {}
        }
        for (view, expected) in &views {
            compare(view, expected, &mut rng);
        }
        let promised = store.flushed_mark();
        states.retain(|(mark, _)| *mark >= promised);
        assert!(
            states.iter().any(|(mark, _)| *mark == promised),
            "the flushed mark is a batch's mark"
        );
    }
}
