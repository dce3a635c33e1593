//! The sockets of a member that starts: bound before its directory is touched, so that a taken port changes nothing.
//!
//! A peer address that is one of the client addresses is one socket: its connections carry both, told apart by the
//! service that a request names.

use std::net::TcpListener;

use super::serve::ServeError;
use crate::etcd_options::{Endpoint, Serves};
use crate::http;
use crate::options::ServeOptions;
use crate::sockets::Socket;

/// The bound sockets.
pub(crate) struct Listeners {
    /// For clients, in the order of the options; those that could be had of the optional ones at the end.
    pub(crate) clients: Vec<ClientListener>,
    /// For peers, if they have ports of their own.
    pub(crate) peers: Vec<TcpListener>,
}

/// One socket for clients.
pub(crate) struct ClientListener {
    pub(crate) socket: Socket,
    /// What is served on it.
    pub(crate) serves: Serves,
    /// Whether peers are served on it, too.
    pub(crate) is_shared: bool,
}

impl Listeners {
    /// Binds what the options ask for.
    ///
    /// # Errors
    /// The first address that cannot be had, in one line; an optional one is left out with a line in the log.
    pub(crate) fn open(options: &ServeOptions) -> Result<Listeners, ServeError> {
        let clients = Self::open_clients(options)?;
        let own = (!options.shares_peer_port()).then_some(&options.listen_peer);
        let peers = own.into_iter().chain(&options.etcd.listen_peer_also);
        let peers = peers.map(|address| http::listen("listen-peer", address).map_err(ServeError::Listen));
        Ok(Listeners {
            clients,
            peers: peers.collect::<Result<_, _>>()?,
        })
    }

    /// The socket on which peers are served, once more.
    pub(crate) fn peer_socket(&self) -> std::io::Result<TcpListener> {
        let shared = self.clients.iter().find(|client| client.is_shared);
        let shared = shared.and_then(|client| match &client.socket {
            Socket::Tcp(socket) => Some(socket),
            Socket::Unix(..) => None,
        });
        let socket = self.peers.first().or(shared);
        socket.expect("peers are served on one of them").try_clone()
    }

    /// Those for clients only.
    ///
    /// # Errors
    /// As [`Listeners::open`].
    pub(crate) fn open_clients(options: &ServeOptions) -> Result<Vec<ClientListener>, ServeError> {
        let mut clients = Vec::new();
        for address in &options.listen_client {
            clients.push(ClientListener {
                socket: http::listen("listen-client", address)
                    .map_err(ServeError::Listen)?
                    .into(),
                serves: Serves::All,
                is_shared: *address == options.listen_peer,
            });
        }
        for listener in &options.etcd.listeners {
            let option = match listener.serves {
                Serves::All | Serves::Grpc => "listen-client-urls",
                Serves::Http => "listen-client-http-urls",
                Serves::Metrics => "listen-metrics-urls",
            };
            let socket = match &listener.at {
                Endpoint::Tcp(address) => http::listen(option, address).map(Socket::from),
                Endpoint::Unix(path) => Socket::open_unix(option, path),
            };
            clients.push(ClientListener {
                socket: socket.map_err(ServeError::Listen)?,
                serves: listener.serves,
                is_shared: false,
            });
        }
        for address in &options.listen_client_optional {
            let mut own = options.listen_client.iter().chain([&options.listen_peer]);
            if own.any(|own| own.port == address.port) {
                tracing::info!(
                    "{address} is not opened a second time: this member serves on that port already"
                );
                continue;
            }
            match http::listen("listen-client-optional", address) {
                Ok(socket) => clients.push(ClientListener {
                    socket: socket.into(),
                    serves: Serves::All,
                    is_shared: false,
                }),
                Err(why) => tracing::warn!("{address} is left out: {why}"),
            }
        }
        Ok(clients)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::options::Address;

    #[test]
    fn what_is_taken_is_left_out_only_where_it_is_optional() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = Address::new("127.0.0.1", holder.local_addr().unwrap().port());
        let free = Address::new("127.0.0.1", 0);
        let options = ServeOptions {
            listen_client: vec![free.clone()],
            listen_peer: free.clone(),
            listen_client_optional: vec![taken.clone(), Address::new("127.0.0.2", 0)],
            ..ServeOptions::default()
        };
        let opened = Listeners::open(&options).map_err(|e| e.to_string()).unwrap();
        assert!(opened.peers.is_empty(), "one port for both");
        let shared: Vec<bool> = opened.clients.iter().map(|client| client.is_shared).collect();
        assert_eq!(
            shared,
            [true],
            "the second is the same port, and the first is taken"
        );
        let options = ServeOptions {
            listen_client: vec![taken],
            ..options
        };
        let refused = Listeners::open(&options).err().unwrap().to_string();
        assert!(refused.contains("in use by another process"), "{refused}");
    }
}
