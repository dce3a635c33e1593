//! The JSON gateway, `POST /v3/…`: etcd's gRPC services for those who speak only HTTP and JSON.
//!
//! A request becomes a gRPC request to this member's own services, with the caller's metadata, and its answer becomes
//! JSON again, both by the messages' descriptors: whatever a service checks, it checks here, and a service that is
//! added to the table needs no code. What the wire looks like is etcd 3.6's (grpc-gateway 2): see [`json`] for
//! messages; streams are lines of `{"result":…}`, at their end perhaps `{"error":…}`; requests of a stream are objects
//! one after the other, in a body or as messages of a websocket.
//!
//! Survives: bodies that are no JSON, too large, too deep, or cut off; clients that go away, whose call goes with them.

mod codec;
mod json;
mod stream;
mod table;
mod websocket;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use kvorum_proto::{OUTCOME, Outcome};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use serde_json::json;
use tonic::body::Body;
use tonic::metadata::{AsciiMetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use self::codec::{ByDescriptor, Within};
use self::table::TABLE;
use crate::api::{Core, WIRE_OVERHEAD_BYTES};
use crate::budget::{Held, hold};
use crate::rest::{Failed, body_within, http_status};
use crate::routes::Services;
use crate::services::Context;

pub(crate) use self::websocket::asks_for_websocket;

/// Where it is.
const PREFIX: &str = "/v3/";
/// The name in `Sec-WebSocket-Protocol` before a token.
const BEARER: &str = "Bearer";

/// One method, as the gateway calls it.
#[derive(Clone)]
struct Method {
    path: PathAndQuery,
    descriptor: MethodDescriptor,
    /// Its refusals say that nothing was applied.
    is_write: bool,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    core: Core,
    services: Services,
    /// By what follows `/v3/`.
    methods: HashMap<&'static str, Method>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway to these services.
    pub fn new(core: Core, services: Services) -> Self {
        let pool = DescriptorPool::decode(kvorum_proto::DESCRIPTORS).expect("the build wrote it");
        let method = |service: &str, method: &str| Method {
            path: format!("/{service}/{method}")
                .parse()
                .expect("names are path segments"),
            descriptor: pool
                .get_service_by_name(service)
                .and_then(|service| service.methods().find(|found| found.name() == method))
                .expect("the table has methods of the proto files"),
            is_write: services.is_write(service, method),
        };
        let methods = TABLE
            .iter()
            .map(|(path, service, name)| (*path, method(service, name)))
            .collect();
        Gateway(Arc::new(Inner {
            core,
            services,
            methods,
        }))
    }

    /// Answers a request to a path below `/v3/`.
    pub(crate) async fn answer(&self, path: &str, mut request: Request<Incoming>) -> Response<Body> {
        let method = path
            .strip_prefix(PREFIX)
            .and_then(|path| self.0.methods.get(path));
        let Some(method) = method else {
            return refusal(Status::not_found("Not Found"));
        };
        let upgrade = websocket::Upgrade::of(&mut request);
        if upgrade.is_none() && request.method() != HttpMethod::POST {
            return refusal(Status::unimplemented("Method Not Allowed"));
        }
        let not_applied = |status| match method.is_write {
            true => Outcome::NotApplied.mark(status),
            false => status,
        };
        let metadata = match metadata_of(request.headers()) {
            Ok(metadata) => metadata,
            Err(status) => return refusal(not_applied(status)),
        };
        if let Some(upgrade) = upgrade {
            return match upgrade {
                Ok(upgrade) => upgrade.answer(self.clone(), method.clone(), metadata),
                Err(status) => refusal(not_applied(status)),
            };
        }
        match self.call(method, metadata, request).await {
            Ok(response) => response,
            Err(Failed::BodyTooLarge(bytes_max)) => {
                let text = format!("the body is larger than {bytes_max} bytes");
                let mut response = refusal(not_applied(Status::resource_exhausted(text)));
                *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                response
            }
            Err(Failed::Status(status)) => refusal(status),
        }
    }

    async fn call(
        &self,
        method: &Method,
        metadata: MetadataMap,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failed> {
        let (head, body) = request.into_parts();
        if method.descriptor.is_client_streaming() {
            let requests = stream::Source::Body(body);
            return Ok(stream::respond(self.stream(method, metadata, requests).await));
        }
        let context = Context::from_headers(&head.headers, &self.0.core.handle)?;
        let body = body_within(self.body_bytes_max(), body, &context).await;
        let refused = |failed: Failed| match method.is_write {
            true => failed.mark(Outcome::NotApplied),
            false => failed,
        };
        let body = body.map_err(refused)?;
        let message =
            json::read(&method.descriptor.input(), &body).map_err(|status| refused(status.into()))?;
        if method.descriptor.is_server_streaming() {
            let requests = stream::Source::One(message);
            return Ok(stream::respond(self.stream(method, metadata, requests).await));
        }
        // The text is as long as the message that was made of it.
        drop(body);
        let mut answer = self.unary(method, metadata, message).await?;
        let held = answer.extensions_mut().remove::<Held>();
        let text = json::write(answer.get_ref(), "", "");
        let mut response = in_json(StatusCode::OK, bytes::Bytes::new());
        *response.body_mut() = Body::new(Pieces(text));
        if let Some(held) = held {
            response.extensions_mut().insert(held);
        }
        Ok(hold(response))
    }

    async fn unary(
        &self,
        method: &Method,
        metadata: MetadataMap,
        message: prost_reflect::DynamicMessage,
    ) -> Result<tonic::Response<prost_reflect::DynamicMessage>, Status> {
        let request = tonic::Request::from_parts(metadata, tonic::Extensions::new(), message);
        let codec = ByDescriptor(method.descriptor.output());
        self.client().unary(request, method.path.clone(), codec).await
    }

    /// A client of this member's services, which bound the size of what they are sent.
    fn client(&self) -> tonic::client::Grpc<Within> {
        tonic::client::Grpc::new(Within(self.0.services.clone())).max_decoding_message_size(usize::MAX)
    }

    /// Bytes of JSON that a message of the largest size may take: base64 adds a third, names and spaces the rest.
    fn body_bytes_max(&self) -> usize {
        2 * (self.0.core.handle.limits().request_bytes_max + WIRE_OVERHEAD_BYTES)
    }
}

/// Bytes of a body that the connection takes over at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// A body in pieces, so that what is held for a large one is held until the client took the most of it.
struct Pieces(bytes::Bytes);

impl http_body::Body for Pieces {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let length = self.0.len().min(PIECE_BYTES);
        let piece = self.0.split_to(length);
        Poll::Ready((length > 0).then_some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// What the services are told of the caller. `Authorization` is a token, with or without `Bearer`; headers called
/// `Grpc-Metadata-…` are handed on without that.
fn metadata_of(headers: &HeaderMap) -> Result<MetadataMap, Status> {
    const HANDED_ON: [&str; 4] = [
        "grpc-timeout",
        "hasleader",
        "kvorum-session",
        "kvorum-consistency",
    ];
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let name = match name.as_str().strip_prefix("grpc-metadata-") {
            Some(name) if !name.starts_with("grpc-") && !name.ends_with("-bin") => name,
            None if HANDED_ON.contains(&name.as_str()) => name.as_str(),
            _ => continue,
        };
        let name = AsciiMetadataKey::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, MetadataValue::try_from(value.as_bytes())) {
            metadata.append(name, value);
        }
    }
    if let Some(token) = headers.get(AUTHORIZATION) {
        let bad = || Status::invalid_argument("the Authorization header is not ASCII");
        let token = bare_token(token.to_str().map_err(|_| bad())?);
        metadata.insert(
            "authorization",
            MetadataValue::try_from(token).map_err(|_| bad())?,
        );
    }
    Ok(metadata)
}

fn bare_token(text: &str) -> &str {
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(BEARER) => token.trim(),
        _ => text,
    }
}

/// etcd's body of an error: its gateway's of today, and `error` for the clients of its gateway before 3.6.
fn error_body(status: &Status) -> serde_json::Value {
    json!({
        "error": status.message(),
        "code": status.code() as i32,
        "message": status.message(),
        "details": [],
    })
}

/// grpc-gateway's map.
fn gateway_status(code: Code) -> StatusCode {
    match code {
        Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::Cancelled => StatusCode::from_u16(499).expect("three digits"),
        code => http_status(code),
    }
}

fn refusal(status: Status) -> Response<Body> {
    let mut response = in_json(
        gateway_status(status.code()),
        error_body(&status).to_string().into(),
    );
    note_status(&mut response, &status);
    response
}

/// What of a status stands in the header.
fn note_status(response: &mut Response<Body>, status: &Status) {
    let headers = response.headers_mut();
    if let Some(outcome) = Outcome::of(status) {
        headers.insert(OUTCOME, HeaderValue::from_static(outcome.as_str()));
    }
    if status.code() == Code::Unauthenticated
        && let Ok(message) = HeaderValue::from_str(status.message())
    {
        headers.insert(WWW_AUTHENTICATE, message);
    }
}

fn in_json(status: StatusCode, text: bytes::Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_method() {
        let pool = DescriptorPool::decode(kvorum_proto::DESCRIPTORS).unwrap();
        for (path, service, method) in TABLE {
            let service = pool.get_service_by_name(service).expect(path);
            assert!(service.methods().any(|found| found.name() == *method), "{path}");
        }
    }

    #[test]
    fn callers_metadata() {
        let check = |name: &'static str, value: &str, expected: Option<(&str, &str)>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            let metadata = metadata_of(&headers).unwrap();
            let pairs: Vec<_> = metadata
                .as_ref()
                .iter()
                .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
                .collect();
            assert_eq!(pairs, expected.into_iter().collect::<Vec<_>>(), "{name}: {value}");
        };
        check("authorization", "t.1", Some(("authorization", "t.1")));
        check("authorization", "Bearer t.1", Some(("authorization", "t.1")));
        check("authorization", "bearer  t.1 ", Some(("authorization", "t.1")));
        check("grpc-metadata-token", "t.1", Some(("token", "t.1")));
        check("grpc-metadata-grpc-timeout", "1S", None);
        check("grpc-timeout", "1S", Some(("grpc-timeout", "1S")));
        check("kvorum-session", "1-1", Some(("kvorum-session", "1-1")));
        check("cookie", "token=t.1", None);
        check("user-agent", "curl", None);
    }

    #[test]
    fn codes_become_grpc_gateways_status() {
        for (code, expected) in [
            (Code::InvalidArgument, 400),
            (Code::FailedPrecondition, 400),
            (Code::OutOfRange, 400),
            (Code::Unauthenticated, 401),
            (Code::PermissionDenied, 403),
            (Code::NotFound, 404),
            (Code::ResourceExhausted, 429),
            (Code::Cancelled, 499),
            (Code::Unknown, 500),
            (Code::DataLoss, 500),
            (Code::Unimplemented, 501),
            (Code::Unavailable, 503),
            (Code::DeadlineExceeded, 504),
        ] {
            assert_eq!(gateway_status(code).as_u16(), expected, "{code:?}");
        }
    }
}
