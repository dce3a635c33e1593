//! Listening sockets and accepted connections, of TCP and of the file system, behind one type each.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// A bound socket that does not accept yet.
#[derive(Debug)]
pub enum Socket {
    /// A TCP port.
    Tcp(StdTcpListener),
    /// A socket in the file system.
    Unix(StdUnixListener, SocketFile),
}

/// The name of a socket in the file system; it goes with the socket.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it: it is gone then, as it should be.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl From<StdTcpListener> for Socket {
    fn from(listener: StdTcpListener) -> Self {
        Socket::Tcp(listener)
    }
}

impl Socket {
    /// Opens a socket in the file system. What is left there of a process that died, or of anybody else, is replaced,
    /// as etcd does it.
    ///
    /// # Errors
    /// One line that names the path and says what to do.
    pub fn open_unix(option: &str, path: &Path) -> Result<Socket, String> {
        let fail = |error: io::Error| {
            let path = path.display();
            format!(
                "{option} unix://{path} cannot be opened: {error}; choose a path below 100 bytes in a directory of \
                 this user"
            )
        };
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => return Err(fail(io::Error::other("it is a directory"))),
            Ok(_) => std::fs::remove_file(path).map_err(fail)?,
            Err(_) => {}
        }
        let listener = StdUnixListener::bind(path).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Socket::Unix(listener, SocketFile(path.to_owned())))
    }

    /// Its port and address; `None` of one in the file system.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Socket::Tcp(listener) => listener.local_addr().map(Some),
            Socket::Unix(..) => Ok(None),
        }
    }

    /// Hands it to the runtime of this thread.
    pub(crate) fn into_acceptor(self) -> io::Result<Acceptor> {
        Ok(match self {
            Socket::Tcp(listener) => Acceptor::Tcp(TcpListener::from_std(listener)?),
            Socket::Unix(listener, file) => Acceptor::Unix(UnixListener::from_std(listener)?, file),
        })
    }
}

/// A socket that accepts.
pub(crate) enum Acceptor {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[allow(dead_code, reason = "kept until the socket goes")] SocketFile,
    ),
}

impl Acceptor {
    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Acceptor::Tcp(listener) => listener.accept().await?.0.into_std().map(Accepted::Tcp),
            Acceptor::Unix(listener, _) => listener.accept().await?.0.into_std().map(Accepted::Unix),
        }
    }
}

/// A connection on its way to the runtime of its thread.
pub(crate) enum Accepted {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

impl Accepted {
    /// Hands it to the runtime of this thread.
    pub(crate) fn into_connection(self) -> io::Result<Connection> {
        Ok(match self {
            Accepted::Tcp(stream) => {
                stream.set_nodelay(true)?;
                Connection::Tcp(TcpStream::from_std(stream)?)
            }
            Accepted::Unix(stream) => Connection::Unix(UnixStream::from_std(stream)?),
        })
    }
}

/// A connection with a client.
pub(crate) enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Connection::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Connection::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Connection::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Connection::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Connection::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Connection::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Connection::Tcp(stream) => stream.is_write_vectored(),
            Connection::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Connection::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Connection::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Connection::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Connection::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_replaces_what_lies_there_and_leaves_nothing() {
        let dir = std::env::temp_dir().join(format!("kvorum-sockets-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.sock");
        std::fs::write(&path, "left behind").unwrap();
        let socket = Socket::open_unix("listen-client-urls", &path).unwrap();
        assert_eq!(socket.address().unwrap(), None);
        StdUnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
        let refused = Socket::open_unix("listen-client-urls", &dir).unwrap_err();
        assert!(
            refused.contains("it is a directory") && refused.contains("listen-client-urls unix://"),
            "{refused}"
        );
        let long = dir.join("x".repeat(120));
        assert!(
            Socket::open_unix("o", &long)
                .unwrap_err()
                .contains("below 100 bytes")
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
