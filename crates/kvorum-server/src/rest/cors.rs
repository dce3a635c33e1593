//! Pages of other origins (the Fetch standard's CORS protocol), for the routes of "raft-kv": its page calls every
//! member. Off unless the server is told whose pages may.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tonic::body::Body;

use super::table;

/// What a page may send beside what every page may.
const HEADERS: &str = "content-type, kvorum-session, kvorum-consistency, grpc-timeout";
/// For how long a browser need not ask again, in seconds.
const MAX_AGE: &str = "600";

/// What an answer to this request must carry, if its origin is one of `allowed`.
pub(super) fn allowed_origin(allowed: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    if allowed.iter().any(|entry| entry == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    let is_listed = allowed.iter().any(|entry| entry.as_bytes() == origin.as_bytes());
    is_listed.then(|| origin.clone())
}

/// Whether a browser asks what it may send.
pub(super) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight for `path`, without the origin.
pub(super) fn preflight(path: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let methods = HeaderValue::from_str(&table::methods(path)).expect("method names are tokens");
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    response
}

/// Lets pages of this origin read the answer, the outcome of a failed write included.
pub(super) fn allow(response: &mut Response<Body>, origin: HeaderValue) {
    let headers = response.headers_mut();
    if origin != "*" {
        headers.insert(VARY, HeaderValue::from_static("origin"));
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    let outcome = HeaderValue::from_static(kvorum_proto::OUTCOME);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, outcome);
}
