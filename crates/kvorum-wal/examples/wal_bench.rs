//! Measures the log on a real disk: `cargo run --release -p kvorum-wal --example wal_bench [DIR] [SECONDS]`.
//!
//! For each shape of batch: batches and entries a second, the latency of an append (write and sync), its CPU,
//! and that syncs equal batches. The directory (a fresh one under the given one) is removed at the end.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use kvorum_wal::{Base, Entry, Options, RealDisk, Wal, WalError, Write};

const IDENTITY: &[u8] = b"bench";

fn main() -> Result<(), WalError> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments
        .next()
        .map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let seconds = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(1.0);
    let dir = parent.join(format!("wal-bench-{}", std::process::id()));
    println!(
        "entries x bytes        batches/s  entries/s     MB/s   p50 us   p99 us  user us/entry  sys us/batch  syncs/batch"
    );
    for fill_bytes in [0, 1 << 20] {
        println!("fresh segments, zeros written {fill_bytes} bytes ahead:");
        for (entries, bytes) in [(1, 256), (16, 256), (256, 256), (1, 1 << 20)] {
            let options = Options {
                fill_bytes,
                ..Options::default()
            };
            measure(&dir, options, entries, bytes, seconds, false)?;
        }
    }
    println!("recycled segments (purged once a second-long run has used them):");
    for (entries, bytes) in [(1, 256), (16, 256), (256, 256), (1, 1 << 20)] {
        measure(
            &dir,
            Options {
                segment_bytes: 8 << 20,
                batch_bytes_max: 4 << 20,
                ..Options::default()
            },
            entries,
            bytes,
            seconds,
            true,
        )?;
    }
    recovery(&dir)?;
    Ok(())
}

fn write(from: u64, count: u64, data: &Bytes) -> Write {
    let entry = |index| Entry {
        index,
        term: 1,
        kind: 0,
        data: data.clone(),
    };
    Write {
        entries: (from..from + count).map(entry).collect(),
        ..Write::default()
    }
}

/// CPU time of this process in seconds: user, system.
fn cpu() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let seconds = |at: usize| {
        fields
            .get(at)
            .and_then(|ticks| ticks.parse::<f64>().ok())
            .unwrap_or(0.0)
            / 100.0
    };
    (seconds(11), seconds(12))
}

fn measure(
    dir: &Path,
    options: Options,
    count: u64,
    bytes: usize,
    seconds: f64,
    recycle: bool,
) -> Result<(), WalError> {
    let data = Bytes::from(vec![0x5a; bytes]);
    let segment_bytes = options.segment_bytes;
    let mut wal = Wal::create(RealDisk, dir, options, IDENTITY, &Write::default())?;
    let mut last = 0;
    let append = |wal: &mut Wal<RealDisk>, last: &mut u64| -> Result<(), WalError> {
        wal.append(&[write(*last + 1, count, &data)])?;
        *last += count;
        if recycle && wal.stats().segments > 2 {
            wal.purge(Base {
                index: *last,
                term: 1,
                configuration: Bytes::new(),
            })?;
        }
        Ok(())
    };
    if recycle {
        while wal.stats().segments_recycled < 5 {
            append(&mut wal, &mut last)?;
        }
    }
    let (start, start_cpu, before, first) = (Instant::now(), cpu(), wal.stats(), last);
    let mut latencies = Vec::new();
    // At most eight segments, so that a fast disk is not filled.
    while start.elapsed().as_secs_f64() < seconds && (recycle || wal.stats().log_bytes < 8 * segment_bytes) {
        let at = Instant::now();
        append(&mut wal, &mut last)?;
        latencies.push(at.elapsed());
    }
    let (elapsed, end_cpu, after) = (start.elapsed().as_secs_f64(), cpu(), wal.stats());
    latencies.sort();
    let percentile = |p: usize| latencies[(latencies.len() - 1) * p / 100].as_secs_f64() * 1e6;
    let entries = (last - first) as f64;
    println!(
        "{count:>7} x {bytes:<9} {:>12.0} {:>10.0} {:>8.1} {:>8.0} {:>8.0} {:>14.2} {:>13.1} {:>12.3}",
        latencies.len() as f64 / elapsed,
        entries / elapsed,
        entries * bytes as f64 / elapsed / 1e6,
        percentile(50),
        percentile(99),
        (end_cpu.0 - start_cpu.0) * 1e6 / entries,
        (end_cpu.1 - start_cpu.1) * 1e6 / latencies.len() as f64,
        (after.batch_syncs - before.batch_syncs) as f64 / (after.batches - before.batches) as f64,
    );
    drop(wal);
    std::fs::remove_dir_all(dir).map_err(|e| WalError::Invalid(format!("removing {}: {e}", dir.display())))
}

/// How long a restart takes with 256 MiB of log.
fn recovery(dir: &Path) -> Result<(), WalError> {
    let data = Bytes::from(vec![0x5a; 256]);
    let mut wal = Wal::create(RealDisk, dir, Options::default(), IDENTITY, &Write::default())?;
    let mut last = 0;
    while wal.stats().log_bytes < 256 << 20 {
        wal.append(&[write(last + 1, 256, &data)])?;
        last += 256;
    }
    drop(wal);
    let start = Instant::now();
    let (wal, recovered) = Wal::open(RealDisk, dir, Options::default(), IDENTITY)?;
    println!(
        "recovery: {} entries of 256 bytes in {} segments in {:.0} ms, {} of them returned",
        last,
        recovered.report.segments,
        start.elapsed().as_secs_f64() * 1e3,
        recovered.entries.len()
    );
    let (reader, start, mut next) = (wal.reader(), Instant::now(), 1);
    while next <= last {
        next += reader.read(next, last, 1 << 20)?.len() as u64;
    }
    println!(
        "reader: {:.0} entries/s from the page cache",
        last as f64 / start.elapsed().as_secs_f64()
    );
    drop(wal);
    std::fs::remove_dir_all(dir).map_err(|e| WalError::Invalid(format!("removing {}: {e}", dir.display())))
}
