//! Pages of other origins (the Fetch standard's CORS protocol), for the routes that the console and the page of
//! "raft-kv" call on every member. Pages of the cluster's own members may, others only if the server is told so.
//!
//! A browser sends simple writes of any page without asking first. So a write that names another origin than this
//! server's and an allowed one is refused, on every route.

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

/// Whose page a request comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// No page's, or one of this server.
    Own,
    /// An allowed page's; its answers carry this.
    Allowed(HeaderValue),
    /// Any other page's.
    Foreign,
}

/// Whose page a request comes from. `host` is what the client calls this server, `allowed` the origins of its
/// options, `members` the client URLs of the cluster.
pub(super) fn caller<'a>(
    headers: &HeaderMap,
    host: Option<&str>,
    allowed: &[String],
    members: impl IntoIterator<Item = &'a str>,
) -> Caller {
    let Some(origin) = headers.get(ORIGIN) else {
        return Caller::Own;
    };
    let text = origin.to_str().unwrap_or_default();
    let of_origin = text.split_once("://").map(|(_, authority)| authority);
    if of_origin.is_some() && of_origin == host {
        return Caller::Own;
    }
    if allowed.iter().any(|entry| entry == "*") {
        return Caller::Allowed(HeaderValue::from_static("*"));
    }
    let is_member = |url: &str| one_spelling(url.trim_end_matches('/')) == one_spelling(text);
    match allowed.iter().any(|entry| entry == text) || members.into_iter().any(is_member) {
        true => Caller::Allowed(origin.clone()),
        false => Caller::Foreign,
    }
}

/// An origin with one name for this machine.
fn one_spelling(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    for name in ["localhost", "[::1]"] {
        if let Some((scheme, port)) = origin.split_once(&format!("://{name}:")) {
            return format!("{scheme}://127.0.0.1:{port}");
        }
    }
    origin
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whose_page_calls() {
        let check = |origin: Option<&str>, allowed: &[&str], expected: Caller| {
            let mut headers = HeaderMap::new();
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            let allowed: Vec<String> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
            let members = ["http://127.0.0.1:7401", "http://127.0.0.1:7402/"];
            let found = caller(&headers, Some("127.0.0.1:7401"), &allowed, members);
            assert_eq!(found, expected, "{origin:?}");
        };
        let as_given = |origin: &'static str| Caller::Allowed(HeaderValue::from_static(origin));
        check(None, &[], Caller::Own);
        check(Some("http://127.0.0.1:7401"), &[], Caller::Own);
        check(
            Some("http://127.0.0.1:7402"),
            &[],
            as_given("http://127.0.0.1:7402"),
        );
        check(
            Some("http://localhost:7402"),
            &[],
            as_given("http://localhost:7402"),
        );
        for foreign in [
            "http://evil.example",
            "null",
            "",
            "http://127.0.0.1:7403",
            "http://127.0.0.1",
        ] {
            check(Some(foreign), &["http://a.example"], Caller::Foreign);
            check(Some(foreign), &["*"], as_given("*"));
        }
        check(
            Some("http://a.example"),
            &["http://a.example"],
            as_given("http://a.example"),
        );
    }
}
