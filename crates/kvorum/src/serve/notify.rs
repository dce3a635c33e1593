//! systemd's notification protocol (sd_notify(3)): datagrams to the socket that `NOTIFY_SOCKET` names.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use kvorum_server::Address;

/// How often a starting member is tried.
const TRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long it may take to answer one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends a state if somebody listens; a supervisor that does not is none of the member's trouble.
pub fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send_to(&path, state) {
        tracing::warn!("cannot notify systemd of {state}: {error}");
    }
}

fn send_to(path: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let socket = UnixDatagram::unbound()?;
    #[cfg(target_os = "linux")]
    if let Some(name) = path.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(state.as_bytes(), &address).map(drop);
    }
    socket.send_to(state.as_bytes(), path).map(drop)
}

/// Announces `READY=1` once the member serves clients: once `/livez` is answered.
pub fn ready_when_served(mut listeners: impl Iterator<Item = Address>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let Some(address) = listeners.find(|address| address.port != 0) else {
        return;
    };
    let watch = move || {
        while !matches!(is_live(&address), Ok(true)) {
            std::thread::sleep(TRY_INTERVAL);
        }
        send("READY=1");
    };
    if let Err(error) = std::thread::Builder::new().name("ready".into()).spawn(watch) {
        tracing::warn!("cannot watch for readiness: {error}");
    }
}

fn is_live(address: &Address) -> std::io::Result<bool> {
    let mut connection = TcpStream::connect((address.host.as_str(), address.port))?;
    connection.set_read_timeout(Some(TRY_TIMEOUT))?;
    connection.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    connection.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_alone_is_not_a_member_that_serves() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::new("127.0.0.1", listener.local_addr().unwrap().port());
        for (answer, live) in [
            ("HTTP/1.1 503 X\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", true),
        ] {
            let tried = std::thread::scope(|scope| {
                let tried = scope.spawn(|| is_live(&address));
                let (mut connection, _) = listener.accept().unwrap();
                connection.read_exact(&mut [0; 10]).unwrap();
                connection.write_all(answer.as_bytes()).unwrap();
                tried.join().unwrap()
            });
            assert_eq!(tried.unwrap(), live);
        }
        drop(listener);
        assert!(is_live(&address).is_err());
    }

    #[test]
    fn states_arrive_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send_to(path.as_os_str(), "READY=1").unwrap();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let name = format!("kvorum-test-{}", std::process::id());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
            let socket = UnixDatagram::bind_addr(&address).unwrap();
            send_to(std::ffi::OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap();
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"STOPPING=1");
        }
    }
}
