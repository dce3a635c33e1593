use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kvorum_proto::etcdserverpb::kv_client::KvClient;
use kvorum_server::http::{HttpLimits, listen};
use kvorum_server::options::Address;

use crate::etcd_kv::{get, put};
use crate::replica::{Server, Setting, Trouble};

/// One request over HTTP/2 without TLS; its header and trailers together.
pub async fn over_http2(server: &Server, request: Request<Full<Bytes>>) -> (u16, HeaderMap, Bytes) {
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    let mut headers = parts.headers;
    headers.extend(body.trailers().cloned().unwrap_or_default());
    (parts.status.as_u16(), headers, body.to_bytes())
}

/// One gRPC request whose frame is given as it is; the answer's header and trailers.
pub async fn grpc_raw(server: &Server, path: &str, body: Vec<u8>) -> HeaderMap {
    grpc_with(server, path, &[], body).await
}

pub async fn grpc_with(server: &Server, path: &str, metadata: &[(&str, &str)], body: Vec<u8>) -> HeaderMap {
    let mut request = Request::post(format!("http://{}{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in metadata {
        request = request.header(*name, *value);
    }
    over_http2(server, request.body(Full::from(body)).unwrap())
        .await
        .1
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Whatever comes until the other side closes.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "the server does not close: {error}"
        );
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn quick(change: impl FnOnce(&mut HttpLimits)) -> Server {
    let mut limits = HttpLimits {
        header_timeout: Duration::from_millis(200),
        ..HttpLimits::default()
    };
    change(&mut limits);
    Server::with(Setting {
        limits,
        ..Setting::default()
    })
}

#[test]
fn a_port_in_use_is_told_in_one_line() {
    let server = Server::start();
    let address = Address::new("127.0.0.1", server.address.port());
    let error = listen("listen-client", &address).unwrap_err();
    let port = server.address.port();
    let expected = format!(
        "listen-client 127.0.0.1:{port} is in use by another process; stop it, or choose another port with --listen-client"
    );
    assert_eq!(error, expected);
    let error = listen("listen-client", &Address::new("192.0.2.1", 1)).unwrap_err();
    assert!(error.contains("not an address of this machine"), "{error}");
}

#[test]
fn who_sends_no_header_in_time_is_closed() {
    let server = quick(|_| {});
    for start in [
        "",
        "G",
        "GET /version HTTP/1.1\r\nhost: x\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM",
    ] {
        let mut stream = connect(&server);
        stream.write_all(start.as_bytes()).unwrap();
        let started = Instant::now();
        let answer = rest(&mut stream);
        assert!(!answer.contains("200 OK"), "{answer}");
        assert!(started.elapsed() < Duration::from_secs(10), "after {start:?}");
    }
}

#[test]
fn a_header_may_come_in_pieces() {
    let server = Server::start();
    let mut stream = connect(&server);
    // `P` could begin the preface of HTTP/2 as well.
    for piece in [
        "P",
        "OST /kv HTTP/1.1\r\nhost: x\r\nconnection: close\r\n",
        "content-length: 2\r\n\r\n",
        "{}",
    ] {
        stream.write_all(piece.as_bytes()).unwrap();
        stream.flush().unwrap();
    }
    let answer = rest(&mut stream);
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("empty key"),
        "{answer}"
    );
}

#[test]
fn a_silent_peer_is_pinged_and_closed() {
    let server = quick(|limits| {
        (limits.ping_interval, limits.ping_timeout) =
            (Duration::from_millis(100), Duration::from_millis(100));
    });
    let mut stream = connect(&server);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    let started = Instant::now();
    rest(&mut stream);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn one_connection_more_than_allowed_is_closed() {
    let server = quick(|limits| {
        (limits.connections_max, limits.header_timeout) = (2, Duration::from_secs(60));
    });
    let request = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut open: Vec<TcpStream> = (0..2).map(|_| connect(&server)).collect();
    for stream in &mut open {
        stream.write_all(request).unwrap();
        assert!(stream.read(&mut [0; 512]).unwrap() > 0);
    }
    assert_eq!(rest(&mut connect(&server)), "");
    drop(open.pop());
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut stream = connect(&server);
        stream
            .write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .unwrap();
        if rest(&mut stream).contains("200 OK") {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the place of a closed connection is never free"
        );
    }
}

#[tokio::test]
async fn headers_have_a_limit() {
    let server = quick(|_| {});
    let long = "x".repeat(17 * 1024);
    let mut stream = connect(&server);
    write!(stream, "GET /version HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n").unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    let request = |bytes: usize| {
        let uri = format!("http://{}/version", server.address);
        Request::get(uri)
            .header("x", "x".repeat(bytes))
            .body(Full::default())
            .unwrap()
    };
    assert_eq!(over_http2(&server, request(1024)).await.0, 200);
    assert_eq!(over_http2(&server, request(17 * 1024)).await.0, 431);
}

#[tokio::test]
async fn one_port_serves_rest_over_both_versions() {
    let server = Server::start();
    let request = Request::get(format!("http://{}/version", server.address))
        .body(Full::default())
        .unwrap();
    let (status, headers, body) = over_http2(&server, request).await;
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (200, "application/json")
    );
    assert!(
        std::str::from_utf8(&body)
            .unwrap()
            .contains("\"etcdserver\":\"3.6.12\"")
    );
    let mut stream = connect(&server);
    // Kept alive between two requests, and two at once.
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    assert_eq!(rest(&mut stream).matches("200 OK").count(), 3);
}

#[tokio::test]
async fn streams_of_a_connection_have_a_limit() {
    let limits = HttpLimits {
        streams_max: 2,
        ..HttpLimits::default()
    };
    let server = Server::with(Setting {
        limits,
        workers: 1,
        ..Setting::default()
    });
    let kv = KvClient::new(server.channel().await);
    server.set(|b| b.writes = Some(Trouble::Silence));
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let mut kv = kv.clone();
            tokio::spawn(async move { kv.put(put(format!("k{n}"), "")).await })
        })
        .collect();
    while server.handle.pending().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // A second connection has its own streams; its answer comes after the others had their chance.
    let mut other = KvClient::new(server.channel().await);
    other.range(get("a")).await.unwrap();
    assert_eq!(server.handle.pending().len(), 2);
    tasks.into_iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn a_drain_lets_requests_finish_and_takes_no_new_ones() {
    let mut server = Server::with(Setting {
        request_timeout: Duration::from_secs(2),
        ..Setting::default()
    });
    let kv = KvClient::new(server.channel().await);
    let mut idle = connect(&server);
    server.set(|b| b.writes = Some(Trouble::Silence));
    let mut first = kv.clone();
    let under_way = tokio::spawn(async move { first.put(put("a", "1")).await });
    while server.handle.pending().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let http = server.http.take().unwrap();
    let draining = tokio::task::spawn_blocking(move || http.drain(Duration::from_secs(20)));
    assert_eq!(rest(&mut idle), "");
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(server.address).is_ok() {
        assert!(Instant::now() < deadline, "new connections are still taken");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let status = under_way.await.unwrap().unwrap_err();
    assert_eq!(status.message(), "etcdserver: request timed out");
    drop(kv);
    draining.await.unwrap();
}

#[tokio::test]
async fn a_drain_ends_when_its_time_is_over() {
    let mut server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    server.set(|b| b.writes = Some(Trouble::Silence));
    let under_way = tokio::spawn(async move { kv.put(put("a", "1")).await });
    while server.handle.pending().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let http = server.http.take().unwrap();
    let started = Instant::now();
    tokio::task::spawn_blocking(move || http.drain(Duration::from_millis(100)))
        .await
        .unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(under_way.await.unwrap().is_err());
}

/// `etcdctl` 3.4 names an endpoint that is written `http://host:port` as the authority of `endpoint status` and of three
/// other commands: the stream was refused as malformed.
#[test]
fn an_authority_that_is_a_url_is_served() {
    let server = Server::start();
    let mut stream = connect(&server);
    let authority = format!("http://{}", server.address);
    let path = "/version";
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    // GET, http, the path, and the authority as a name of HPACK's static table with a value as it is.
    let mut headers = vec![0x82, 0x86, 0x44, length(path)];
    headers.extend_from_slice(path.as_bytes());
    headers.extend_from_slice(&[0x41, length(&authority)]);
    headers.extend_from_slice(authority.as_bytes());
    let head = [0, 0, u8::try_from(headers.len()).unwrap(), 1, 0x5, 0, 0, 0, 1];
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    stream.write_all(&head).unwrap();
    stream.write_all(&headers).unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
        stream.read_exact(&mut payload).unwrap();
        let (kind, stream_id) = (head[3], head[8]);
        assert_ne!(kind, 3, "the stream is refused: {payload:?}");
        if (kind, stream_id) == (1, 1) {
            assert_eq!(payload[0], 0x88, "status 200");
            return;
        }
    }
}
