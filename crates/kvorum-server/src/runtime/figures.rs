//! Figures of the log's thread, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use kvorum_wal::Stats;

/// Upper bounds of the fsync histogram's buckets, in µs; etcd's `wal_fsync_duration_seconds` has the same.
pub const SYNC_BUCKETS_US: [u64; 14] =
    [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000, 1_024_000, 2_048_000, 4_096_000, 8_192_000];

/// Counters that the log's thread raises and the metrics page reads.
#[derive(Debug, Default)]
pub struct LogFigures {
    /// Batches written, each with its one fsync of the log.
    pub batches: AtomicU64,
    /// Time they took in all, in µs.
    pub sync_micros: AtomicU64,
    /// Batches by duration: up to each of [`SYNC_BUCKETS_US`], and above the last.
    pub sync_buckets: [AtomicU64; SYNC_BUCKETS_US.len() + 1],
    /// Bytes written.
    pub bytes: AtomicU64,
    /// fsyncs in all, those of votes and of claimed segments among them.
    pub syncs: AtomicU64,
}

impl LogFigures {
    pub(crate) fn note_sync(&self, micros: u64) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.sync_micros.fetch_add(micros, Ordering::Relaxed);
        let bucket = SYNC_BUCKETS_US.iter().position(|&bound| micros <= bound).unwrap_or(SYNC_BUCKETS_US.len());
        self.sync_buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_stats(&self, stats: &Stats) {
        self.bytes.store(stats.bytes_written, Ordering::Relaxed);
        self.syncs.store(stats.batch_syncs + stats.other_syncs, Ordering::Relaxed);
    }
}
