//! What stands before the HTTP half of a client port in an etcd's place: the names that it answers to, and whether the
//! gateway is there.
//!
//! A page of anybody can give its own name the address of this server, and then call it as its own origin (DNS
//! rebinding, CVE-2018-5702). Where the names that it may be called by are listed, others are not answered.

use http::Request;
use http::header::HOST;
use hyper::body::Incoming;

use crate::routes::{Answering, Rest, plain};

/// Where etcd's gateway has its paths.
const GATEWAY: &str = "/v3/";

/// Another one's answers, to requests that may be made.
pub(crate) struct Guard<R> {
    inner: R,
    hosts: Vec<String>,
    gateway: bool,
}

impl<R> Guard<R> {
    /// `hosts` are the names that are answered to; none or `*` for all.
    pub(crate) fn new(inner: R, hosts: Vec<String>, gateway: bool) -> Self {
        Guard {
            inner,
            hosts,
            gateway,
        }
    }

    fn is_listed(&self, host: &str) -> bool {
        let is_it = |known: &String| known == "*" || known.eq_ignore_ascii_case(host);
        self.hosts.is_empty() || self.hosts.iter().any(is_it)
    }
}

impl<R: Rest> Rest for Guard<R> {
    fn call(&self, request: Request<Incoming>) -> Answering {
        let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = header.or(request.uri().authority().map(|authority| authority.as_str()));
        let host = without_port(host.unwrap_or_default());
        if !self.is_listed(host) {
            let text = misdirected(host);
            return Box::pin(async { plain(421, text) });
        }
        if !self.gateway && request.uri().path().starts_with(GATEWAY) {
            return Box::pin(async { plain(404, "404 page not found\n") });
        }
        self.inner.call(request)
    }
}

fn without_port(host: &str) -> &str {
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    bare.trim_start_matches('[').trim_end_matches(']')
}

/// In etcd's words.
fn misdirected(host: &str) -> String {
    format!(
        "\netcd received your request, but the Host header was unrecognized.\n\n\
         To fix this, choose one of the following options:\n\
         - Enable TLS, then any HTTPS request will be allowed.\n\
         - Add the hostname you want to use to the whitelist in settings.\n  \
         - e.g. etcd --host-whitelist {host:?}\n\n\
         This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_their_ports() {
        for (host, expected) in [
            ("a.example:2379", "a.example"),
            ("a.example", "a.example"),
            ("[::1]:2379", "::1"),
            ("[::1]", "::1"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), expected, "{host}");
        }
        let of = |hosts: &[&str]| Guard::new((), hosts.iter().map(|host| (*host).to_owned()).collect(), true);
        assert!(of(&[]).is_listed("x") && of(&["a", "*"]).is_listed("x"));
        assert!(of(&["a", "localhost"]).is_listed("LOCALHOST") && !of(&["a"]).is_listed("x"));
        assert!(!of(&["a"]).is_listed(""));
        assert!(misdirected("x").contains("--host-whitelist \"x\""));
    }
}
