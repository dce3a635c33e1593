//! What is exchanged with each peer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{Counter, Exposition, Histogram};

/// Figures of one peer.
#[derive(Debug, Default)]
pub struct PeerFigures {
    /// Bytes of messages, as encoded.
    pub sent_bytes: Counter,
    /// See `sent_bytes`.
    pub received_bytes: Counter,
    /// Messages that could not be handed to a connection.
    pub send_failures: Counter,
    /// Connections to it that are open.
    pub open: AtomicUsize,
    round_trips: Histogram,
    /// When the heartbeat was sent that the next answer is taken for.
    asked: Mutex<Option<Instant>>,
}

impl PeerFigures {
    /// A heartbeat goes out.
    #[allow(clippy::disallowed_methods)] // figures are for people: nothing replicated depends on them
    pub fn heartbeat_sent(&self) {
        let mut asked = self.asked.lock().expect("no holder of the lock panics");
        asked.get_or_insert_with(Instant::now);
    }

    /// A heartbeat was answered.
    pub fn heartbeat_answered(&self) {
        let asked = self.asked.lock().expect("no holder of the lock panics").take();
        if let Some(asked) = asked {
            self.round_trips.observe(asked.elapsed());
        }
    }

    /// A connection ended: what was asked on it is not answered any more.
    pub fn forget_heartbeat(&self) {
        *self.asked.lock().expect("no holder of the lock panics") = None;
    }
}

/// Figures of all peers.
#[derive(Debug, Default)]
pub struct Peers(Mutex<BTreeMap<u64, Arc<PeerFigures>>>);

impl Peers {
    /// Those of one peer; new ones the first time.
    pub fn of(&self, peer: u64) -> Arc<PeerFigures> {
        let mut all = self.0.lock().expect("no holder of the lock panics");
        all.entry(peer).or_default().clone()
    }

    /// Members that are gone are shown no more.
    pub fn keep(&self, is_peer: impl Fn(u64) -> bool) {
        let mut all = self.0.lock().expect("no holder of the lock panics");
        all.retain(|peer, _| is_peer(*peer));
    }

    /// `own` is this member's ID.
    pub(super) fn render(&self, page: &mut Exposition, own: u64) {
        let all = self.0.lock().expect("no holder of the lock panics").clone();
        let (own, ids): (String, Vec<String>) = (
            format!("{own:x}"),
            all.keys().map(|id| format!("{id:x}")).collect(),
        );
        let peers = || ids.iter().map(String::as_str).zip(all.values());
        let mut family = page.gauge(
            "etcd_network_known_peers",
            "Peers that this member knows; always 1.",
        );
        for (id, _) in peers() {
            family.sample(&[("Local", &own), ("Remote", id)], 1);
        }
        let mut family = page.gauge(
            "etcd_network_active_peers",
            "Whether a connection to a peer is open.",
        );
        for (id, figures) in peers() {
            let is_open = figures.open.load(Ordering::Relaxed) > 0;
            family.sample(&[("Local", &own), ("Remote", id)], u64::from(is_open));
        }
        type Value = fn(&PeerFigures) -> u64;
        let counters: [(&'static str, &str, &str, Value); 3] = [
            (
                "etcd_network_peer_sent_bytes_total",
                "Bytes of messages sent to a peer.",
                "To",
                |figures| figures.sent_bytes.get(),
            ),
            (
                "etcd_network_peer_received_bytes_total",
                "Bytes of messages received from a peer.",
                "From",
                |figures| figures.received_bytes.get(),
            ),
            (
                "etcd_network_peer_sent_failures_total",
                "Messages that could not be handed to a connection.",
                "To",
                |figures| figures.send_failures.get(),
            ),
        ];
        for (name, help, label, value) in counters {
            let mut family = page.counter(name, help);
            for (id, figures) in peers() {
                family.sample(&[(label, id)], value(figures));
            }
        }
        let mut family = page.histogram(
            "etcd_network_peer_round_trip_time_seconds",
            "From a heartbeat of this member, as the leader, to its answer.",
        );
        for (id, figures) in peers() {
            family.histogram(&[("To", id)], &figures.round_trips);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_that_of_the_heartbeat_that_waits() {
        let peers = Peers::default();
        let figures = peers.of(0xa1);
        figures.heartbeat_answered();
        figures.heartbeat_sent();
        figures.heartbeat_sent();
        figures.heartbeat_answered();
        figures.heartbeat_answered();
        figures.heartbeat_sent();
        figures.forget_heartbeat();
        figures.heartbeat_answered();
        figures.sent_bytes.add(7);
        let mut page = Exposition::default();
        peers.render(&mut page, 0xb2);
        let text = page.into_text();
        for line in [
            "etcd_network_peer_round_trip_time_seconds_count{To=\"a1\"} 1",
            "etcd_network_peer_sent_bytes_total{To=\"a1\"} 7",
            "etcd_network_active_peers{Local=\"b2\",Remote=\"a1\"} 0",
            "etcd_network_known_peers{Local=\"b2\",Remote=\"a1\"} 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}: {text}");
        }
        peers.keep(|peer| peer != 0xa1);
        let mut page = Exposition::default();
        peers.render(&mut page, 0xb2);
        assert!(!page.into_text().contains("a1"));
    }
}
