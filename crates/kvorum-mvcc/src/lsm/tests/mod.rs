//! The store against its contract, concurrent readers, kills, copies, damage, full disks and old views.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod install;
mod space;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lsm_tree::AbstractTree;
use tempfile::TempDir;

use super::{L0_RUNS_MAX, LsmStore, MARK_KEY, Options, SEALED_MAX};
use crate::store::contract::{self, Harness};
use crate::store::{Batch, Store, StoreError, View};
use crate::testing::Rng;

pub(super) type Model = BTreeMap<Bytes, Bytes>;

/// Memtables so small that a short test flushes and compacts all the time.
pub(super) fn small() -> Options {
    Options {
        memtable_bytes: 16 << 10,
        cache_bytes: 1 << 20,
        ..Options::default()
    }
}

pub(super) fn all(store: &LsmStore) -> Result<Model, StoreError> {
    store.view().range(Bound::Unbounded, Bound::Unbounded).collect()
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("d/{n:05}"))
}

/// The batch that belongs to a mark: some puts and deletes among 3,000 keys.
pub(super) fn batch(mark: u64) -> Batch {
    let mut rng = Rng::new(mark);
    let mut writes = Vec::new();
    for _ in 0..1 + rng.below(8) {
        let value = (rng.below(4) > 0).then(|| Bytes::from(vec![rng.next() as u8; rng.below(300) as usize]));
        writes.push((key(rng.below(3_000)), value));
    }
    Batch { writes, mark }
}

pub(super) fn replay(model: &mut Model, marks: std::ops::RangeInclusive<u64>) {
    for mark in marks {
        for (key, value) in batch(mark).writes {
            match value {
                Some(value) => model.insert(key, value),
                None => model.remove(&key),
            };
        }
    }
}

/// Writes the batches of these marks, with maintenance after each.
pub(super) fn fill(store: &LsmStore, marks: std::ops::RangeInclusive<u64>) {
    for mark in marks {
        store.write(batch(mark)).unwrap();
        store.maintain().unwrap();
    }
}

/// The mark up to which the store holds batches.
pub(super) fn mark(store: &LsmStore) -> u64 {
    store
        .get(MARK_KEY)
        .unwrap()
        .map_or(0, |bytes| u64::from_le_bytes(bytes[..].try_into().unwrap()))
}

struct OnDisk(Vec<TempDir>);

impl Harness for OnDisk {
    type Store = LsmStore;

    fn fresh(&mut self) -> LsmStore {
        self.0.push(tempfile::tempdir().unwrap());
        LsmStore::create(self.0.last().unwrap().path(), small()).unwrap()
    }

    fn crash(&mut self, store: LsmStore) -> LsmStore {
        let dir = store.shared.home.dir().to_owned();
        drop(store);
        LsmStore::open(&dir, small()).unwrap()
    }
}

#[test]
fn contract() {
    for seed in 0..2 {
        contract::run(OnDisk(Vec::new()), seed, 1_000);
    }
}

#[test]
fn flushes_and_compactions_change_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LsmStore::create(dir.path(), small()).unwrap();
    let mut model = Model::new();
    let mut rng = Rng::new(7);
    for round in 0..12u64 {
        let marks = round * 400 + 1..=round * 400 + 400;
        fill(&store, marks.clone());
        replay(&mut model, marks.clone());
        if rng.below(3) == 0 {
            store.flush().unwrap();
            assert_eq!(store.flushed_mark(), *marks.end());
        }
        if rng.below(4) == 0 {
            store.flush().unwrap();
            drop(store);
            store = LsmStore::open(dir.path(), small()).unwrap();
            assert_eq!(store.flushed_mark(), *marks.end());
        }
        assert_eq!(all(&store).unwrap(), model);
        let backward: Result<Model, _> = store
            .view()
            .range(Bound::Unbounded, Bound::Unbounded)
            .rev()
            .collect();
        assert_eq!(backward.unwrap(), model);
        let view = store.view();
        for n in (0..3_000).step_by(7) {
            let expected = model.get(&key(n));
            assert_eq!(store.get(&key(n)).unwrap().as_ref(), expected);
            assert_eq!(view.get(&key(n)).unwrap().as_ref(), expected);
        }
    }
    let version = store.shared.tree.current_version();
    assert!(
        version.iter_levels().skip(1).any(|level| level.table_count() > 0),
        "nothing was compacted"
    );
    assert!(store.disk_bytes() > 0);
}

/// Three members apply the same writes. When they sealed at the same size they flushed, all three, in the same moment,
/// and no majority was quick: writes stood for up to a tenth of a second.
#[test]
fn members_do_not_flush_in_the_same_moment() {
    let sizes = |member: u64| {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            stagger: Some(member),
            ..small()
        };
        let store = LsmStore::create(dir.path(), options).unwrap();
        let sizes = (1..=8).map(|mark| {
            fill(&store, mark..=mark);
            store.flush().unwrap();
            super::lock(&store.shared.writer).seal_bytes
        });
        sizes.collect::<Vec<u64>>()
    };
    let members: Vec<_> = (1..=3).map(sizes).collect();
    let most = small().memtable_bytes;
    for sizes in &members {
        assert!(
            sizes.iter().all(|&size| 3 * most / 4 <= size && size <= most),
            "{sizes:?}"
        );
    }
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        let mut pairs = members[one].iter().zip(&members[other]);
        assert!(pairs.any(|(a, b)| a.abs_diff(*b) > most / 16), "{members:?}");
    }
}

/// Money moves between accounts; every reader sees the same total, by ranges and by point gets.
#[test]
fn readers_see_whole_batches_while_tables_change() {
    const ACCOUNTS: u64 = 64;
    const TOTAL: u64 = ACCOUNTS * 1_000;
    let dir = tempfile::tempdir().unwrap();
    let store = LsmStore::create(dir.path(), small()).unwrap();
    let put = |account: u64, balance: u64| {
        // The padding makes memtables fill up.
        let mut value = balance.to_le_bytes().to_vec();
        value.resize(200, 0);
        (key(account), Some(Bytes::from(value)))
    };
    let balance = |value: &[u8]| u64::from_le_bytes(value[..8].try_into().unwrap());
    let mut balances = vec![1_000u64; ACCOUNTS as usize];
    store
        .write(Batch {
            writes: (0..ACCOUNTS).map(|a| put(a, 1_000)).collect(),
            mark: 1,
        })
        .unwrap();

    let done = AtomicBool::new(false);
    let checks = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (store, done) = (&store, &done);
                scope.spawn(move || {
                    let mut checks = 0u64;
                    while !done.load(Ordering::Relaxed) {
                        let view = store.view();
                        let mut sum = 0;
                        if reader == 0 {
                            for pair in view.range(Bound::Unbounded, Bound::Unbounded) {
                                sum += balance(&pair.unwrap().1);
                            }
                        } else {
                            for account in 0..ACCOUNTS {
                                sum += balance(&view.get(&key(account)).unwrap().expect("never deleted"));
                            }
                        }
                        assert_eq!(sum, TOTAL);
                        checks += 1;
                    }
                    checks
                })
            })
            .collect();
        let mut rng = Rng::new(3);
        for mark in 2..6_000 {
            let (from, to) = (rng.below(ACCOUNTS) as usize, rng.below(ACCOUNTS) as usize);
            let amount = rng.below(balances[from] + 1);
            balances[from] -= amount;
            balances[to] += amount;
            let writes = vec![put(from as u64, balances[from]), put(to as u64, balances[to])];
            store.write(Batch { writes, mark }).unwrap();
            store.maintain().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .collect::<Vec<u64>>()
    });
    assert!(checks.iter().all(|&checks| checks > 10), "{checks:?}");
    assert_eq!(store.shared.published.superseded(), 0, "no view is left");
}

#[test]
fn an_old_view_is_ended_with_an_error_and_a_young_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        view_age_max: Duration::ZERO,
        ..Options::default()
    };
    let store = LsmStore::create(dir.path(), options).unwrap();
    fill(&store, 1..=50);
    let view = store.view();
    std::thread::sleep(Duration::from_millis(5));
    store.maintain().unwrap();
    let mut range = view.range(Bound::Unbounded, Bound::Unbounded);
    assert!(
        range.next().unwrap().is_ok(),
        "a view that is still the newest has no age"
    );

    fill(&store, 51..=51);
    std::thread::sleep(Duration::from_millis(5));
    store.maintain().unwrap();
    assert_eq!(view.get(b"d/00001"), Err(StoreError::ViewExpired));
    assert_eq!(range.next(), Some(Err(StoreError::ViewExpired)));
    assert_eq!(range.next(), None);
    let opened = view.range(Bound::Unbounded, Bound::Unbounded).next();
    assert_eq!(opened, Some(Err(StoreError::ViewExpired)));
    let mut model = Model::new();
    replay(&mut model, 1..=51);
    assert_eq!(all(&store).unwrap(), model);
}

#[test]
fn a_long_view_holds_what_it_reads_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = LsmStore::create(dir.path(), small()).unwrap();
    fill(&store, 1..=500);
    let view = store.view();
    let mut model = Model::new();
    replay(&mut model, 1..=500);
    fill(&store, 501..=2_500);
    store.flush().unwrap();
    let found: Result<Model, _> = view.range(Bound::Unbounded, Bound::Unbounded).collect();
    assert_eq!(found.unwrap(), model);
    assert!(store.shared.published.superseded() >= 1);
    // The tree's own list of past states would hold every memtable since; a merge that is just ending has one.
    assert!(store.shared.tree.version_free_list_len() <= 1);
    assert!(store.shared.tree.version_memtable_size_sum() < 2 * small().memtable_bytes);
}

#[test]
fn the_applier_waits_for_flush_and_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        memtable_bytes: 4 << 10,
        ..small()
    };
    let store = LsmStore::create(dir.path(), options.clone()).unwrap();
    let mut runs = 0;
    for mark in 1..=600 {
        fill(&store, mark..=mark);
        runs = runs.max(store.shared.tree.l0_run_count());
        let writer = super::lock(&store.shared.writer);
        assert!(store.shared.unflushed_bytes(&writer) <= options.unflushed_bytes_max());
    }
    // A rotation may be let through while the flushes before it are still on their way to level 0.
    assert!(runs <= L0_RUNS_MAX + SEALED_MAX, "{runs} runs");
    assert!(runs > 1, "the test never had two runs");
}

#[test]
fn a_start_catches_up_with_many_short_lives() {
    let dir = tempfile::tempdir().unwrap();
    drop(LsmStore::create(dir.path(), small()).unwrap());
    for mark in 1..=30 {
        let store = LsmStore::open(dir.path(), small()).unwrap();
        fill(&store, mark..=mark);
        store.flush().unwrap();
    }
    let store = LsmStore::open(dir.path(), small()).unwrap();
    assert!(store.shared.tree.l0_run_count() < L0_RUNS_MAX);
    let mut model = Model::new();
    replay(&mut model, 1..=30);
    assert_eq!(all(&store).unwrap(), model);
}

#[test]
fn keys_at_the_limits() {
    let dir = tempfile::tempdir().unwrap();
    let store = LsmStore::create(dir.path(), small()).unwrap();
    let keys = [
        vec![0],
        vec![0, 0],
        vec![0xff],
        vec![0xff, 0xfe, 0xff],
        vec![b'k'; 65_535],
    ];
    let writes = keys
        .iter()
        .map(|key| (Bytes::from(key.clone()), Some(Bytes::from_static(b"v"))))
        .collect();
    store.write(Batch { writes, mark: 9 }).unwrap();
    for _ in 0..2 {
        let mut sorted: Vec<Vec<u8>> = keys.to_vec();
        sorted.sort();
        let found = all(&store).unwrap();
        assert_eq!(found.keys().map(|key| key.to_vec()).collect::<Vec<_>>(), sorted);
        assert_eq!(
            store.view().get(MARK_KEY),
            Ok(None),
            "the mark is the store's own"
        );
        store.flush().unwrap();
    }
    for bad in [Vec::new(), vec![b'k'; 65_536], MARK_KEY.to_vec()] {
        let batch = Batch {
            writes: vec![(bad.into(), None)],
            mark: 10,
        };
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| store.write(batch)));
        assert!(refused.is_err(), "a key beyond the limits breaks the contract");
    }
    assert_eq!(mark(&store), 9, "a refused batch left nothing");
}

#[test]
fn one_store_of_a_directory_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let missing = LsmStore::open(dir.path(), small()).err().unwrap();
    assert!(
        matches!(&missing, StoreError::Io(text) if text.contains("there is no store in")),
        "{missing}"
    );
    let store = LsmStore::create(dir.path(), small()).unwrap();
    assert!(LsmStore::exists(dir.path()).unwrap());
    for second in [
        LsmStore::open(dir.path(), small()),
        LsmStore::create(dir.path(), small()),
    ] {
        assert!(matches!(second.err().unwrap(), StoreError::Io(_)));
    }
    fill(&store, 1..=1);
    store.flush().unwrap();
    drop(store);
    assert_eq!(mark(&LsmStore::open(dir.path(), small()).unwrap()), 1);
}

/// Copies a store's directory, file by file.
pub(super) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
