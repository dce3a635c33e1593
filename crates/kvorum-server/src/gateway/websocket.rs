//! Streams over a websocket: each message of the client is a request (or several), each answer a message of text.
//!
//! A token comes as `Sec-WebSocket-Protocol: Bearer, TOKEN`, because a page can set no other header. Pages of foreign
//! origins never get here: see [`crate::rest`].

use bytes::Bytes;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{
    CloseFrame, Message, Role, WebSocketConfig, frame::coding::CloseCode,
};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{MetadataMap, MetadataValue};

use super::json;
use super::stream::{Source, error_line, is_of_client};
use super::{BEARER, Gateway, Method};

/// A client that asks for a websocket.
pub(super) struct Upgrade {
    accept: HeaderValue,
    upgraded: OnUpgrade,
    token: Option<HeaderValue>,
}

impl Upgrade {
    /// Whether the request asks for one; `Err`: in a way that cannot be granted.
    pub(super) fn of(request: &mut Request<Incoming>) -> Option<Result<Upgrade, Status>> {
        if !asks_for_websocket(request.headers()) {
            return None;
        }
        let headers = request.headers();
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
        let is_known = headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_some_and(|version| version == "13");
        let (Some(key), true) = (key, is_known) else {
            let text = "a websocket needs Sec-WebSocket-Version 13 and a key";
            return Some(Err(Status::invalid_argument(text)));
        };
        let accept = derive_accept_key(key.as_bytes());
        let token = headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(token_of);
        Some(Ok(Upgrade {
            accept: accept.parse().expect("base64 is ASCII"),
            token,
            upgraded: hyper::upgrade::on(request),
        }))
    }

    /// Grants it.
    pub(super) fn answer(
        self,
        gateway: Gateway,
        method: Method,
        mut metadata: MetadataMap,
    ) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let mut set = |name: HeaderName, value| response.headers_mut().insert(name, value);
        set(CONNECTION, HeaderValue::from_static("Upgrade"));
        set(UPGRADE, HeaderValue::from_static("websocket"));
        set(SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(token) = self.token {
            set(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
            if let Ok(token) = MetadataValue::try_from(token.as_bytes()) {
                metadata.insert("authorization", token);
            }
        }
        let upgraded = self.upgraded;
        tokio::spawn(async move {
            // A client that is gone already needs nothing more.
            if let Ok(upgraded) = upgraded.await {
                let bytes_max = gateway.body_bytes_max();
                let config = WebSocketConfig::default()
                    .max_message_size(Some(bytes_max))
                    .max_frame_size(Some(bytes_max));
                let socket =
                    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config))
                        .await;
                converse(&gateway, &method, metadata, socket).await;
            }
        });
        response
    }
}

/// Whether the header asks for a websocket.
pub(crate) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let has = |name: HeaderName, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    has(CONNECTION, "upgrade") && has(UPGRADE, "websocket")
}

/// `TOKEN` of `Bearer, TOKEN`.
fn token_of(protocols: &HeaderValue) -> Option<HeaderValue> {
    let (first, token) = protocols.to_str().ok()?.split_once(',')?;
    if first.trim() != BEARER {
        return None;
    }
    token.trim().parse().ok()
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// One websocket, to its end. The call ends with it.
async fn converse(gateway: &Gateway, method: &Method, metadata: MetadataMap, socket: Socket) {
    let (to_client, mut from_client) = socket.split();
    let (pieces, source) = mpsc::channel(1);
    let listening = async {
        while let Some(Ok(message)) = from_client.next().await {
            let piece: Bytes = match message {
                Message::Text(text) => text.into(),
                Message::Binary(bytes) => bytes,
                Message::Close(_) => return,
                // Answered by the socket itself.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            if pieces.send(piece).await.is_err() {
                // Nobody wants more; the answers go on.
                std::future::pending::<()>().await;
            }
        }
    };
    let mut client = Client(to_client);
    let answering = async {
        if let Err(status) = client.answer(gateway, method, metadata, source).await
            && !is_of_client(&status)
        {
            client.send(error_line(&status)).await;
        }
        let close = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        // Whether the client hears it or not, it is over.
        let _ = client.0.send(Message::Close(Some(close))).await;
    };
    tokio::select! {
        () = listening => {}
        () = answering => {}
    }
}

/// The way to the client.
struct Client(SplitSink<Socket, Message>);

impl Client {
    /// Sends a line; whether the client takes more.
    async fn send(&mut self, line: Bytes) -> bool {
        let text = String::from_utf8(line.into()).expect("JSON is UTF-8");
        self.0.send(Message::text(text)).await.is_ok()
    }

    /// Sends each answer until there are no more, or the client takes no more.
    async fn answer(
        &mut self,
        gateway: &Gateway,
        method: &Method,
        metadata: MetadataMap,
        mut source: mpsc::Receiver<Bytes>,
    ) -> Result<(), Status> {
        let descriptor = &method.descriptor;
        let source = if descriptor.is_client_streaming() {
            Source::Pieces(source)
        } else {
            let Some(piece) = source.recv().await else {
                return Ok(());
            };
            let message = json::read(&descriptor.input(), &piece)?;
            if !descriptor.is_server_streaming() {
                let answer = gateway.unary(method, metadata, message).await?;
                self.send(json::write(answer.get_ref(), "", "")).await;
                return Ok(());
            }
            Source::One(message)
        };
        let (first, mut lines) = gateway.stream(method, metadata, source).await?;
        let mut next = first.map(Ok);
        while let Some(line) = next {
            if !self.send(line?).await {
                return Ok(());
            }
            next = lines.next().await;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_pages() {
        let check = |text: &str, expected: Option<&str>| {
            let found = token_of(&text.parse().unwrap());
            assert_eq!(
                found.as_ref().map(|token| token.to_str().unwrap()),
                expected,
                "{text}"
            );
        };
        check("Bearer, t.1", Some("t.1"));
        check("Bearer,t.1", Some("t.1"));
        check("Bearer", None);
        check("chat, t.1", None);
    }

    #[test]
    fn who_asks_for_a_websocket() {
        let check = |connection: &str, upgrade: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, connection.parse().unwrap());
            headers.insert(UPGRADE, upgrade.parse().unwrap());
            assert_eq!(asks_for_websocket(&headers), expected, "{connection} {upgrade}");
        };
        check("Upgrade", "websocket", true);
        check("keep-alive, upgrade", "WebSocket", true);
        check("close", "websocket", false);
        check("upgrade", "h2c", false);
    }
}
