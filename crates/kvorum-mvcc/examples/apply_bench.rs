//! Measures the state machine: puts applied in batches on the store on disk or in memory, then reads.
//!
//! ```text
//! cargo run --release -p kvorum-mvcc --example apply_bench -- [lsm|mem] [PUTS] [KEYS] [BATCH]
//! ```
//! The CPU figures are of the whole process, without the encoding of entries: decoding, apply, events, digest, store,
//! flush, and the compaction that ran until the last flush was done. Answers are checked.

#![allow(clippy::disallowed_methods)]

use std::time::Instant;

use bytes::Bytes;
use kvorum_model::{Command, Envelope, KeyRange, Origin, PutRequest, RangeRequest};
use kvorum_mvcc::{ApplyEntry, LsmStore, MemStore, Options, Payload, StateMachine, Store};

const VALUE_BYTES: usize = 256;
const READS: u64 = 200_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let engine = args.next().unwrap_or_else(|| "lsm".to_string());
    let mut number = |default: u64| args.next().map_or(Ok(default), |text| text.parse());
    let (puts, keys, batch) = (number(1_000_000)?, number(100_000)?, number(100)?);
    println!(
        "{engine}: {puts} puts of 32-byte keys (of {keys}) and {VALUE_BYTES}-byte values, batches of {batch}"
    );
    match engine.as_str() {
        "mem" => run(MemStore::new(), puts, keys, batch),
        "lsm" => {
            let temporary = tempfile::tempdir()?;
            run(
                LsmStore::create(
                    &temporary.path().join("store"),
                    kvorum_mvcc::lsm::Options::default(),
                )?,
                puts,
                keys,
                batch,
            )
        }
        other => Err(format!("{other}: neither lsm nor mem").into()),
    }
}

/// The key of a put: every key once in a scattered order, then again.
fn key(n: u64, keys: u64) -> Bytes {
    let scattered = (n % keys).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("bench/{scattered:020}/{:05}", n % keys % 100_000).into()
}

fn entry(index: u64, keys: u64) -> ApplyEntry {
    let value = Bytes::from(vec![index as u8; VALUE_BYTES]);
    let command = Command::Put(PutRequest {
        key: key(index, keys),
        value,
        ..PutRequest::default()
    });
    let origin = Origin {
        member: 1,
        boot: 1,
        seq: index,
    };
    let envelope = Envelope {
        time_ms: index / 30,
        origin,
        session: None,
        caller: None,
        command,
    };
    ApplyEntry {
        index,
        term: 1,
        payload: Payload::Command(envelope.encode()),
    }
}

fn run<S: Store>(store: S, puts: u64, keys: u64, batch: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut machine = StateMachine::open(store, Options::default())?;
    let (mut seconds, mut encoding) = (0.0, 0.0);
    let process_begin = cpu_seconds("/proc/self/stat");
    let mut index = 0;
    while index < puts {
        // A part at a time, so that the encoded entries do not fill the memory. The store works on in its own threads
        // meanwhile: only what this thread spends on encoding is left out.
        let encoding_begin = cpu_seconds("/proc/thread-self/stat");
        let mut next = || {
            index += 1;
            entry(index, keys)
        };
        let batches: Vec<Vec<ApplyEntry>> = (0..100).map(|_| (0..batch).map(|_| next()).collect()).collect();
        encoding += cpu_seconds("/proc/thread-self/stat") - encoding_begin;
        let begin = Instant::now();
        for entries in &batches {
            let outcome = machine.apply(entries)?;
            assert!(outcome.replies.iter().all(|reply| reply.result.is_ok()));
            machine.maintenance(index / 30)?;
        }
        seconds += begin.elapsed().as_secs_f64();
    }
    let begin = Instant::now();
    machine.store().flush()?;
    seconds += begin.elapsed().as_secs_f64();
    report(
        "puts, flushed",
        index,
        seconds,
        cpu_seconds("/proc/self/stat") - process_begin - encoding,
    );
    assert_eq!(machine.revision() as u64, index + 1);

    let view = machine.reader().view();
    let (begin, cpu_begin) = (Instant::now(), cpu_seconds("/proc/self/stat"));
    for n in 0..READS {
        let n = n.wrapping_mul(0x9e37_79b9) % keys.min(index) + 1;
        let found = view.get(&key(n, keys))?.ok_or("a key is missing")?;
        assert_eq!(found.value.len(), VALUE_BYTES);
    }
    report(
        "point gets",
        READS,
        begin.elapsed().as_secs_f64(),
        cpu_seconds("/proc/self/stat") - cpu_begin,
    );

    let (begin, cpu_begin) = (Instant::now(), cpu_seconds("/proc/self/stat"));
    let request = RangeRequest {
        range: KeyRange::prefix(b"bench/"),
        count_only: true,
        ..RangeRequest::default()
    };
    let count = view.range(&request)?.count as u64;
    assert_eq!(count, keys.min(index));
    report(
        "keys counted",
        count,
        begin.elapsed().as_secs_f64(),
        cpu_seconds("/proc/self/stat") - cpu_begin,
    );
    Ok(())
}

fn report(what: &str, count: u64, seconds: f64, cpu: f64) {
    let rate = count as f64 / seconds;
    println!(
        "  {what}: {rate:.0}/s, {:.2} us CPU each",
        cpu * 1e6 / count as f64
    );
}

/// User and system time of a process or thread, from its `stat`.
fn cpu_seconds(stat: &str) -> f64 {
    let stat = std::fs::read_to_string(stat).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}
