//! Where the cluster is reached: parsed endpoints, one connection to each, and which one is preferred now.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint as Transport};

use crate::error::Error;

/// Longest a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection with calls on it that says nothing for so long is probed (etcd allows no less).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer to the probe may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes that a server may send ahead in one stream, and on one connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// One server.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// `host:port`, as people wrote it.
    pub(crate) name: String,
    transport: Transport,
    channel: Mutex<Option<Channel>>,
}

impl Endpoint {
    fn parse(text: &str) -> Result<Self, Error> {
        let malformed = |why: &str| {
            Error::Config(format!(
                "endpoint `{text}` {why}; write host:port, for example 127.0.0.1:2379"
            ))
        };
        let name = match text.split_once("://") {
            None => text,
            Some(("http", rest)) => rest.trim_end_matches('/'),
            Some(("https", _)) => return Err(malformed("asks for TLS, which is not supported yet")),
            Some(_) => return Err(malformed("has an unknown scheme")),
        };
        let port = name
            .rsplit_once(':')
            .and_then(|(host, port)| (!host.is_empty()).then_some(port));
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err(malformed("has no host and port"));
        }
        let transport = Transport::from_shared(format!("http://{name}"))
            .map_err(|_| malformed("is not an address"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Ok(Endpoint {
            name: name.to_owned(),
            transport,
            channel: Mutex::new(None),
        })
    }

    /// The connection, made if there is none; callers at the same time share the attempt.
    pub(crate) async fn channel(&self, at_most: Duration) -> Result<Channel, String> {
        let connect = async {
            let mut slot = self.channel.lock().await;
            if let Some(channel) = &*slot {
                return Ok(channel.clone());
            }
            let channel = self.transport.connect().await?;
            *slot = Some(channel.clone());
            Ok::<_, tonic::transport::Error>(channel)
        };
        match tokio::time::timeout(at_most, connect).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(why)) => Err(format!("cannot connect to {}: {}", self.name, deepest(&why))),
            Err(_) => Err(format!("cannot connect to {}: no answer", self.name)),
        }
    }

    /// Forgets the connection, so that the next call makes a new one.
    pub(crate) async fn disconnect(&self) {
        *self.channel.lock().await = None;
    }
}

/// The last of an error's causes, which names what the system said.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

/// All servers, one of which is preferred until it fails.
#[derive(Debug)]
pub(crate) struct Endpoints {
    all: Vec<Endpoint>,
    preferred: AtomicUsize,
}

impl Endpoints {
    pub(crate) fn parse(texts: &[String]) -> Result<Self, Error> {
        if texts.is_empty() {
            return Err(Error::Config("no endpoint is given; write host:port".into()));
        }
        let all = texts
            .iter()
            .map(|text| Endpoint::parse(text.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Endpoints {
            all,
            preferred: AtomicUsize::new(0),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.all.iter().map(|endpoint| endpoint.name.clone()).collect()
    }

    /// The preferred one, with its position for [`Endpoints::failed`].
    pub(crate) fn preferred(&self) -> (usize, &Endpoint) {
        let at = self.preferred.load(Ordering::Relaxed);
        (at, &self.all[at % self.all.len()])
    }

    /// The one at `position` failed: the next is preferred, unless somebody moved on already.
    pub(crate) fn failed(&self, position: usize) {
        let next = position.wrapping_add(1);
        // Losing the race means that another call made the same move.
        let _ = self
            .preferred
            .compare_exchange(position, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_parse() {
        let parse = |text: &str| Endpoints::parse(&[text.to_owned()]).map(|e| e.names()[0].clone());
        assert_eq!(parse("127.0.0.1:2379").unwrap(), "127.0.0.1:2379");
        assert_eq!(parse("http://node-1:2379/").unwrap(), "node-1:2379");
        assert_eq!(parse("[::1]:2379").unwrap(), "[::1]:2379");
        for bad in [
            "",
            "host",
            ":2379",
            "host:0",
            "host:99999",
            "https://h:1",
            "ftp://h:1",
            "a b:1",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("write host:port"), "{bad}: {error}");
        }
        assert!(Endpoints::parse(&[]).is_err());
    }

    #[test]
    fn a_failure_moves_on_once() {
        let endpoints = Endpoints::parse(&["a:1".into(), "b:1".into()]).unwrap();
        let (at, first) = endpoints.preferred();
        assert_eq!(first.name, "a:1");
        endpoints.failed(at);
        endpoints.failed(at);
        let (at, second) = endpoints.preferred();
        assert_eq!(second.name, "b:1");
        endpoints.failed(at);
        assert_eq!(endpoints.preferred().1.name, "a:1");
    }
}
