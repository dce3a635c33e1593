//! Measures the store on disk: puts with a second small write each, exact gets, seeks and scans, answers checked.
//!
//! ```text
//! cargo run --release -p kvorum-mvcc --example lsm_bench -- [DIR] [PUTS]
//! ```
//! `DIR` must be on a real file system and must not hold a store; without it a temporary directory is used.
//! The CPU figures are of the whole process: flush and compaction included, and so is making the input.

#![allow(clippy::disallowed_methods)]

use std::ops::Bound;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use kvorum_mvcc::lsm::Options;
use kvorum_mvcc::{Batch, LsmStore, Store, View};

const BATCH: u64 = 100;
const VALUE_BYTES: usize = 280;
const READS: u64 = 200_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let temporary = tempfile::tempdir()?;
    let dir = args
        .next()
        .map_or_else(|| temporary.path().join("store"), PathBuf::from);
    let puts: u64 = args.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let options = Options {
        compress: std::env::var_os("NO_COMPRESSION").is_none(),
        ..Options::default()
    };
    println!("{puts} puts of 40-byte keys and {VALUE_BYTES}-byte values, batches of {BATCH}, {options:?}");

    let store = LsmStore::create(&dir, options.clone())?;
    let meter = Meter::start();
    let (mut write_us, mut maintain_us) = (Vec::new(), Vec::new());
    for batch in 0..puts / BATCH {
        let writes = writes(batch, puts);
        let begin = Instant::now();
        store.write(Batch {
            writes,
            mark: batch + 1,
        })?;
        write_us.push(begin.elapsed().as_micros());
        store.maintain()?;
        maintain_us.push(begin.elapsed().as_micros() - write_us[write_us.len() - 1]);
    }
    meter.report("puts, flush and compaction behind them", puts);
    for (what, mut times) in [("write", write_us), ("maintain", maintain_us)] {
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "    {what} of a batch: p50 {}, p99 {}, p99.9 {}, max {} us",
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
    let meter = Meter::start();
    store.flush()?;
    meter.report("last flush (per put)", puts);
    let meter = Meter::start();
    settle(&store);
    meter.report("compaction left over (per put)", puts);
    println!(
        "    {} MiB on disk, {} MiB RSS",
        store.disk_bytes() >> 20,
        rss_mib()
    );

    let meter = Meter::start();
    let mut view = store.view();
    for read in 0..READS {
        if read % BATCH == 0 {
            view = store.view();
        }
        let n = scatter(read, puts);
        let found = view.get(&key(n))?.ok_or("a key is missing")?;
        assert!(found == value(n), "a wrong value");
    }
    meter.report("exact gets", READS);

    let meter = Meter::start();
    for read in 0..READS {
        if read % BATCH == 0 {
            view = store.view();
        }
        let n = scatter(read, puts);
        let (found, _) = view
            .range(Bound::Included(key(n)), Bound::Unbounded)
            .next()
            .ok_or("missing")??;
        assert!(found == key(n), "a wrong key");
    }
    meter.report("seeks without an end", READS);

    let meter = Meter::start();
    for read in 0..READS {
        if read % BATCH == 0 {
            view = store.view();
        }
        // The state machine's: the first record of a key, with the key's own end.
        let from = key(scatter(read, puts));
        let mut end = from.to_vec();
        end.push(0xff);
        let (found, _) = view
            .range(Bound::Included(from.clone()), Bound::Excluded(end.into()))
            .next()
            .ok_or("missing")??;
        assert!(found == from, "a wrong key");
    }
    meter.report("seeks within a key", READS);

    let meter = Meter::start();
    let scans = READS / 50;
    for read in 0..scans {
        let from = Bound::Included(key(scatter(read, puts)));
        for pair in store.view().range(from, Bound::Unbounded).take(100) {
            pair?;
        }
    }
    meter.report("scans of 100 keys", scans);

    let meter = Meter::start();
    for read in 0..READS {
        let mut absent = key(scatter(read, puts)).to_vec();
        absent[39] = b'!';
        assert!(view.get(&absent)?.is_none(), "a key that was never written");
    }
    meter.report("gets of absent keys", READS);

    let meter = Meter::start();
    drop((view, store));
    meter.report("close", 1);
    let meter = Meter::start();
    let store = LsmStore::open(&dir, options)?;
    meter.report("open", 1);
    assert!(store.flushed_mark() == puts / BATCH, "the store ends elsewhere");
    let meter = Meter::start();
    let bytes = store.scrub(|_| ())?;
    meter.report("scrub (per MiB)", (bytes >> 20).max(1));
    Ok(())
}

/// Waits until the files stop changing.
fn settle(store: &LsmStore) {
    let mut last = (0, 0);
    let mut same = 0;
    while same < 10 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = (store.disk_bytes(), cpu_ms() / 40);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
}

/// Every put of a batch is a record and a small second write, as the state machine makes them.
fn writes(batch: u64, puts: u64) -> Vec<(Bytes, Option<Bytes>)> {
    let mut writes = Vec::with_capacity(2 * BATCH as usize);
    for n in batch * BATCH..(batch + 1) * BATCH {
        let scattered = scatter(n, puts);
        let mut index = vec![b'r'];
        index.extend_from_slice(&(batch + 1).to_be_bytes());
        index.extend_from_slice(&(n as u32).to_be_bytes());
        let record = key(scattered);
        writes.push((index.into(), Some(record.slice(1..))));
        writes.push((record, Some(value(scattered))));
    }
    writes
}

/// Visits every number below `count` in an order without pattern, if `count` shares no factor with the multiplier
/// (any product of twos and fives does not).
fn scatter(n: u64, count: u64) -> u64 {
    (u128::from(n) * 11_400_714_819_323_198_549 % u128::from(count)) as u64
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("d/registry/pods/default/{n:016}"))
}

fn value(n: u64) -> Bytes {
    let mut value = Vec::with_capacity(VALUE_BYTES);
    let mut state = n;
    while value.len() < VALUE_BYTES / 2 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        value.extend_from_slice(&state.to_le_bytes());
    }
    // Half of it can be compressed.
    value.resize(VALUE_BYTES, b'x');
    value.into()
}

struct Meter {
    begin: Instant,
    cpu_ms: u64,
}

impl Meter {
    fn start() -> Self {
        Self {
            begin: Instant::now(),
            cpu_ms: cpu_ms(),
        }
    }

    fn report(self, what: &str, count: u64) {
        let seconds = self.begin.elapsed().as_secs_f64();
        let cpu_us = (cpu_ms() - self.cpu_ms) as f64 * 1e3 / count as f64;
        println!(
            "{what}: {seconds:.2} s, {:.0}/s, {cpu_us:.2} us CPU each",
            count as f64 / seconds
        );
    }
}

/// User and system time of the process, from `/proc` (in steps of 10 ms).
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |n: usize| {
        fields
            .get(n)
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    };
    (ticks(11) + ticks(12)) * 10
}

fn rss_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages / 256
}
