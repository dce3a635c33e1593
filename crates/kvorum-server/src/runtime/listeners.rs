//! The sockets of a member that starts: bound before its directory is touched, so that a taken port changes nothing.
//!
//! A peer address that is one of the client addresses is one socket: its connections carry both, told apart by the
//! service that a request names.

use std::net::TcpListener;

use super::serve::ServeError;
use crate::http;
use crate::options::ServeOptions;

/// The bound sockets.
pub(crate) struct Listeners {
    /// For clients, in the order of the options; those that could be had of the optional ones at the end.
    pub(crate) clients: Vec<ClientListener>,
    /// For peers, if they have a port of their own.
    pub(crate) peers: Option<TcpListener>,
}

/// One socket for clients.
pub(crate) struct ClientListener {
    pub(crate) socket: TcpListener,
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
        let peers = match options.shares_peer_port() {
            true => None,
            false => Some(http::listen("listen-peer", &options.listen_peer).map_err(ServeError::Listen)?),
        };
        Ok(Listeners { clients, peers })
    }

    /// The socket on which peers are served, once more.
    pub(crate) fn peer_socket(&self) -> std::io::Result<TcpListener> {
        let shared = self.clients.iter().find(|client| client.is_shared);
        let socket = self.peers.as_ref().or(shared.map(|client| &client.socket));
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
                socket: http::listen("listen-client", address).map_err(ServeError::Listen)?,
                is_shared: *address == options.listen_peer,
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
                    socket,
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
        assert!(opened.peers.is_none(), "one port for both");
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
