//! Pages of other origins (the Fetch standard's CORS protocol), for the routes that the console and the page of
//! "raft-kv" call on every member. Pages of the cluster's own members may, others only if the server is told so.
//!
//! A browser sends simple writes of any page without asking first. So a write that names another origin than this
//! server's and an allowed one is refused, on every route. Nor does it help a page to have its own host name point
//! here (DNS rebinding), so that the browser takes this server for the page's: only addresses, `localhost` and the
//! names under which members tell clients to find them count as this server's.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tonic::body::Body;

use super::table;

/// What a page may send beside what every page may.
const HEADERS: &str = "content-type, authorization, kvorum-session, kvorum-consistency, grpc-timeout";
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
    members: impl IntoIterator<Item = &'a str, IntoIter: Clone>,
) -> Caller {
    let Some(origin) = headers.get(ORIGIN) else {
        return Caller::Own;
    };
    let text = origin.to_str().unwrap_or_default();
    let of_origin = text.split_once("://").map(|(_, authority)| authority);
    let mut urls = members.into_iter();
    if let Some(name) = of_origin
        .filter(|authority| Some(*authority) == host)
        .map(host_name)
        && (is_of_this_machine(name)
            || urls
                .clone()
                .any(|url| host_of_url(url).eq_ignore_ascii_case(name)))
    {
        return Caller::Own;
    }
    if allowed.iter().any(|entry| entry == "*") {
        return Caller::Allowed(HeaderValue::from_static("*"));
    }
    let is_member = |url: &str| one_spelling(url.trim_end_matches('/')) == one_spelling(text);
    match allowed.iter().any(|entry| entry == text) || urls.any(is_member) {
        true => Caller::Allowed(origin.clone()),
        false => Caller::Foreign,
    }
}

/// `host:port` or `host` without the port.
pub(crate) fn host_name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    }
}

/// Whether a host is named in a way that nobody else's DNS can point here: by its address, or as `localhost`.
pub(crate) fn is_of_this_machine(name: &str) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok()
}

/// The host of `http://host:port/`.
fn host_of_url(url: &str) -> &str {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    host_name(authority.split('/').next().unwrap_or_default())
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

    /// The attacker's page is loaded from evil.example, whose address then becomes this server's: to the browser
    /// its calls are of one origin, and need no one's leave.
    #[test]
    fn a_name_that_points_here_is_not_ours() {
        let check = |authority: &str, allowed: &[&str], expected: Caller| {
            let mut headers = HeaderMap::new();
            let origin: HeaderValue = format!("http://{authority}").parse().unwrap();
            headers.insert(ORIGIN, origin.clone());
            let allowed: Vec<String> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
            let members = ["http://127.0.0.1:7401", "http://Kv.example:7402/"];
            let found = caller(&headers, Some(authority), &allowed, members);
            assert_eq!(found, expected, "{authority}");
        };
        for own in [
            "127.0.0.1:7401",
            "10.1.2.3:80",
            "10.1.2.3",
            "[::1]:7401",
            "[fd00::1]",
            "localhost:7401",
            "localhost",
            "kv.example:7402",
            "kv.example",
        ] {
            check(own, &[], Caller::Own);
        }
        for foreign in [
            "evil.example:7401",
            "evil.example",
            "127.0.0.1.evil.example:7401",
            "localhost.evil.example:7401",
            "kv.example.evil.example:7402",
            "",
        ] {
            check(foreign, &["http://a.example"], Caller::Foreign);
        }
        let listed = Caller::Allowed(HeaderValue::from_static("http://proxy.example"));
        check("proxy.example", &["http://proxy.example"], listed);
    }
}
