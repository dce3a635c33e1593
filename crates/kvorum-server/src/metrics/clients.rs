//! What clients ask for, by the version that they say they have, and the bytes of their connections.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Counter, Exposition};

/// Versions that are told apart; what comes beyond them counts together: a client can say anything.
const VERSIONS_MAX: usize = 16;
/// Longest version that is taken for one.
const VERSION_BYTES_MAX: usize = 32;
const KINDS: [&str; 2] = ["unary", "stream"];

/// Requests of etcd's services by kind and client version. Counting takes no lock.
#[derive(Debug, Default)]
pub struct ClientRequests {
    versions: [(OnceLock<String>, [Counter; 2]); VERSIONS_MAX],
    others: [Counter; 2],
}

impl ClientRequests {
    /// Counts one; `version` is the client's metadata `client-api-version`.
    pub fn note(&self, version: Option<&str>, is_stream: bool) {
        self.of(version.unwrap_or("unknown"))[usize::from(is_stream)].add_one();
    }

    fn of(&self, version: &str) -> &[Counter; 2] {
        if version.len() > VERSION_BYTES_MAX {
            return &self.others;
        }
        let place =
            |(known, _): &&(OnceLock<String>, _)| *known.get_or_init(|| version.to_owned()) == version;
        self.versions
            .iter()
            .find(place)
            .map_or(&self.others, |(_, counts)| counts)
    }

    pub(super) fn render(&self, page: &mut Exposition) {
        let mut family = page.counter(
            "etcd_server_client_requests_total",
            "Requests of etcd's services, by client version.",
        );
        let known = self
            .versions
            .iter()
            .filter_map(|(version, counts)| Some((version.get()?.as_str(), counts)));
        for (version, counts) in known.chain([("other", &self.others)]) {
            for (kind, count) in KINDS.iter().zip(counts).filter(|(_, count)| count.get() > 0) {
                family.sample(&[("client_api_version", version), ("type", kind)], count.get());
            }
        }
    }
}

/// Bytes of the connections that speak gRPC.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// So many bytes came in.
    pub(crate) fn note_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many bytes went out.
    pub(crate) fn note_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Shows them.
    pub fn render(&self, page: &mut Exposition) {
        page.counter(
            "etcd_network_client_grpc_received_bytes_total",
            "Bytes that gRPC clients sent, HTTP/2 around them.",
        )
        .sample(&[], self.received.load(Ordering::Relaxed));
        page.counter(
            "etcd_network_client_grpc_sent_bytes_total",
            "Bytes sent to gRPC clients, HTTP/2 around them.",
        )
        .sample(&[], self.sent.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart_up_to_a_limit() {
        let requests = ClientRequests::default();
        requests.note(Some("3.6.0"), false);
        requests.note(Some("3.6.0"), true);
        requests.note(None, false);
        requests.note(Some(&"x".repeat(VERSION_BYTES_MAX + 1)), false);
        for n in 0..2 * VERSIONS_MAX {
            requests.note(Some(&format!("9.{n}")), false);
        }
        let mut page = Exposition::default();
        requests.render(&mut page);
        let text = page.into_text();
        let line = |version: &str, kind: &str, count: u64| {
            format!(
                "etcd_server_client_requests_total{{client_api_version=\"{version}\",type=\"{kind}\"}} {count}\n"
            )
        };
        assert!(
            text.contains(&line("3.6.0", "unary", 1)) && text.contains(&line("3.6.0", "stream", 1)),
            "{text}"
        );
        assert!(text.contains(&line("unknown", "unary", 1)), "{text}");
        // Two of sixteen places were taken; one version was too long.
        assert!(text.contains(&line("other", "unary", 2 * 16 - 14 + 1)), "{text}");
    }
}
