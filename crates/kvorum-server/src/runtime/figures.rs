//! Figures that the member's threads keep, shown on the metrics page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use kvorum_node::{PeerBody, PeerMessage};
use kvorum_raft::MessageBody;
use kvorum_wal::Stats;

use crate::metrics::{Exposition, Histogram, Metrics};

/// What the log's thread counts.
#[derive(Debug, Default)]
pub(crate) struct LogFigures {
    /// How long each batch took to be durable: one observation for each batch, which is one fsync.
    pub(crate) batches: Histogram,
    bytes: AtomicU64,
    syncs: AtomicU64,
}

impl LogFigures {
    pub(crate) fn note_stats(&self, stats: &Stats) {
        self.bytes.store(stats.bytes_written, Ordering::Relaxed);
        self.syncs
            .store(stats.batch_syncs + stats.other_syncs, Ordering::Relaxed);
    }

    fn show(&self, page: &mut Exposition) {
        page.histogram(
            "etcd_disk_wal_fsync_duration_seconds",
            "Writing and syncing one batch of the log.",
        )
        .histogram(&[], &self.batches);
        page.counter(
            "kvorum_log_fsyncs_total",
            "Syncs of the log, those of votes and claimed space among them.",
        )
        .sample(&[], self.syncs.load(Ordering::Relaxed));
        page.counter("etcd_disk_wal_write_bytes_total", "Bytes written to the log.")
            .sample(&[], self.bytes.load(Ordering::Relaxed));
    }

    /// Figures that show on this page.
    pub(crate) fn on(metrics: &Metrics) -> Arc<LogFigures> {
        let figures = Arc::new(LogFigures::default());
        let shown = figures.clone();
        metrics.source(move |page| shown.show(page));
        figures
    }
}

/// Counts a message exchanged with a peer.
pub(crate) fn note_message(metrics: &Metrics, message: &PeerMessage) {
    let PeerBody::Raft(message) = &message.body else {
        return;
    };
    match &message.body {
        MessageBody::Append { .. } => metrics.append_entries.add_one(),
        MessageBody::Vote { .. } | MessageBody::PreVote { .. } => metrics.request_votes.add_one(),
        MessageBody::Heartbeat { .. } => {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs());
            metrics.last_heartbeat.store(now, Ordering::Relaxed);
        }
        _ => {}
    }
}
