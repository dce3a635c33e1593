//! systemd's notification protocol (sd_notify(3)): datagrams to the socket that `NOTIFY_SOCKET` names.

use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use kvorum_server::Address;

/// How often a starting member is tried.
const TRY_INTERVAL: Duration = Duration::from_millis(50);

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

/// Announces `READY=1` once the client port takes connections.
pub fn ready_when_served(listeners: &[Address]) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let Some(address) = listeners.iter().find(|address| address.port != 0).cloned() else {
        return;
    };
    let watch = move || {
        while TcpStream::connect((address.host.as_str(), address.port)).is_err() {
            std::thread::sleep(TRY_INTERVAL);
        }
        send("READY=1");
    };
    if let Err(error) = std::thread::Builder::new().name("ready".into()).spawn(watch) {
        tracing::warn!("cannot watch for readiness: {error}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
