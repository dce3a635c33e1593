//! The console by itself: serves the page at the root of its own port, and passes the page's calls on to the members,
//! which need not allow calls from another origin for it.
//!
//! It calls only members: those it was started with and those that they name. It answers only pages of its own: a
//! page of someone else that a browser on this machine shows can neither read nor write through it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;

use super::{CONFIG, PATH, Shown, config, file};
use crate::http::{HttpLimits, HttpServer, Phase};
use crate::rest::{host_name, is_of_this_machine};
use crate::routes::{Answering, Rest, RoutesBuilder, plain};

/// How long a member may take for the list of members.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a member may take for a call of the page. The page gives up earlier.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest body in either direction, in bytes: a value and its frame.
const BODY_MAX: usize = 4 << 20;
/// Where members are called through this server.
const VIA: &str = "/via/";
/// Where the page gets a token for a user and a password.
const LOGIN: &str = "/v3/auth/authenticate";

/// The server of the page. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ui(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `host:port` of the members that it was started with.
    endpoints: Vec<String>,
    /// Those, and the ones that they named.
    known: Mutex<BTreeSet<String>>,
    /// Of the endpoints that are not as members name them: whose they are.
    names: Mutex<BTreeMap<String, String>>,
    /// Whether the members named by members are shown too.
    discover: bool,
}

impl Ui {
    /// Serves a page for the members at `endpoints` (`host:port`) and, with `discover`, those that they name.
    pub fn new(endpoints: Vec<String>, discover: bool) -> Self {
        let known = Mutex::new(endpoints.iter().cloned().collect());
        Ui(Arc::new(Shared {
            endpoints,
            known,
            names: Mutex::default(),
            discover,
        }))
    }
}

impl Ui {
    /// Starts to serve on a socket (see [`http::listen`](crate::http::listen)), until the answer is dropped.
    ///
    /// # Errors
    /// The system has no threads or file descriptors left.
    pub fn start(self, listener: std::net::TcpListener) -> std::io::Result<HttpServer> {
        let routes = RoutesBuilder::default().rest(|_| self).build();
        let (phase, _) = watch::channel(Phase::Serving);
        HttpServer::start(
            vec![(listener, routes)],
            HttpLimits::default(),
            1,
            phase,
            |_| async {},
        )
    }
}

impl Rest for Ui {
    fn call(&self, request: Request<Incoming>) -> Answering {
        let shared = self.0.clone();
        Box::pin(async move { shared.answer(request).await })
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if let Err(why) = is_own_page(request.headers()) {
            return plain(403, why);
        }
        let path = request.uri().path().to_owned();
        if let Some(rest) = path.strip_prefix(VIA) {
            return self.pass_on(rest, request).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(405, "only GET is served here\n");
        }
        match path.strip_prefix('/').unwrap_or_default() {
            CONFIG => config(&self.members().await),
            path => file(path).unwrap_or_else(|| plain(404, "no such file of the console\n")),
        }
    }

    /// The members to show: as the first one that answers lists them, else those it was started with.
    async fn members(&self) -> Vec<Shown> {
        let mut members = Vec::new();
        for endpoint in self.endpoints.iter().filter(|_| self.discover) {
            if let Ok(listed) = list(endpoint).await {
                members = listed;
                break;
            }
        }
        if !members.is_empty() {
            self.learn_names(&members).await;
        }
        merge(
            &mut members,
            &self.endpoints,
            &self.names.lock().expect("no panic while held"),
        );
        let mut known = self.known.lock().expect("no panic while held");
        for member in &mut members {
            member.base = format!("{VIA}{}", member.address);
            known.insert(member.address.clone());
        }
        members
    }

    /// Asks the endpoints that no member names whose they are, unless they have said so already.
    async fn learn_names(&self, members: &[Shown]) {
        let unknown = {
            let names = self.names.lock().expect("no panic while held");
            let is_listed = |endpoint: &String| members.iter().any(|member| member.address == *endpoint);
            let mut unknown = self.endpoints.clone();
            unknown.retain(|endpoint| !is_listed(endpoint) && !names.contains_key(endpoint));
            unknown
        };
        let mut asked = JoinSet::new();
        for endpoint in unknown {
            asked.spawn(async move { (name_of(&endpoint).await, endpoint) });
        }
        for (name, endpoint) in asked.join_all().await {
            if let Ok(name) = name {
                let mut names = self.names.lock().expect("no panic while held");
                names.insert(endpoint, name);
            }
        }
    }

    /// `rest` is `host:port/path`.
    async fn pass_on(&self, rest: &str, request: Request<Incoming>) -> Response<Body> {
        let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let is_known = self.known.lock().expect("no panic while held").contains(address);
        if !is_known {
            return plain(
                403,
                format!("{address} is none of the members; start `kvorum ui` with it in --endpoints\n"),
            );
        }
        let is_called = matches!(path, "/raft/info" | "/status" | "/kv" | LOGIN) || path.starts_with("/kv/");
        if !is_called {
            return plain(404, "the console does not call this path\n");
        }
        let (parts, body) = request.into_parts();
        let Ok(body) = Limited::new(body, BODY_MAX).collect().await else {
            return plain(
                413,
                format!("the body is larger than {BODY_MAX} bytes, or broke off\n"),
            );
        };
        let mut call = Request::builder().method(parts.method).uri(path);
        // What the body is, and who asks.
        for name in [CONTENT_TYPE, AUTHORIZATION] {
            if let Some(value) = parts.headers.get(&name) {
                call = call.header(name, value);
            }
        }
        let called = tokio::time::timeout(CALL_TIMEOUT, ask(address, call, body.to_bytes())).await;
        match called {
            Ok(Ok((status, headers, body))) => {
                let mut response = Response::new(Body::new(Full::new(body)));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                response
            }
            Ok(Err(why)) => unreachable_member(&why),
            Err(_) => unreachable_member("it did not answer in time"),
        }
    }
}

fn unreachable_member(why: &str) -> Response<Body> {
    let body = serde_json::json!({ "code": 14, "message": why, "details": [] }).to_string();
    let mut response = plain(502, body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Whether a page of this server asks, or no page at all. A host name that is not of this machine is how a foreign
/// page would get around the browser's rules (DNS rebinding), so that only addresses and `localhost` are served.
fn is_own_page(headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(HOST).unwrap_or_default();
    if !is_of_this_machine(host_name(host)) {
        return Err("open the console by an IP address or as localhost\n");
    }
    match text(ORIGIN) {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => {
            Err("a page of another origin may not call through the console\n")
        }
        _ => Ok(()),
    }
}

/// Adds the endpoints to the members that are listed. Where an endpoint's member is listed under another address, the
/// endpoint takes its place: whoever gave it can reach it.
fn merge(members: &mut Vec<Shown>, endpoints: &[String], names: &BTreeMap<String, String>) {
    let mut placed = BTreeSet::new();
    for endpoint in endpoints {
        let name = names.get(endpoint);
        if let Some(member) = members.iter().find(|member| member.address == *endpoint) {
            placed.insert(member.name.clone());
        } else if let Some(member) = members.iter_mut().find(|member| name == Some(&member.name)) {
            if placed.insert(member.name.clone()) {
                member.address.clone_from(endpoint);
            }
        } else {
            members.push(Shown {
                name: name.unwrap_or(endpoint).clone(),
                address: endpoint.clone(),
                base: String::new(),
            });
        }
    }
}

/// What the member at this endpoint calls itself.
async fn name_of(endpoint: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Status {
        node_id: String,
    }
    let asked = tokio::time::timeout(LIST_TIMEOUT, ask(endpoint, Request::get("/status"), Bytes::new()));
    let (_, _, body) = asked.await.map_err(|_| "no answer in time".to_owned())??;
    let status: Status = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    Ok(status.node_id)
}

/// The members as one of them lists them.
async fn list(endpoint: &str) -> Result<Vec<Shown>, String> {
    #[derive(Deserialize)]
    struct Listed {
        members: Vec<Shown>,
    }
    let call = Request::get(format!("{PATH}{CONFIG}"));
    let asked = tokio::time::timeout(LIST_TIMEOUT, ask(endpoint, call, Bytes::new()));
    let (status, _, body) = asked.await.map_err(|_| "no answer in time".to_owned())??;
    if status != StatusCode::OK {
        return Err(format!("it answered {status}"));
    }
    let listed: Listed = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    Ok(listed.members)
}

type Answer = (StatusCode, HeaderMap, Bytes);

/// One call to a member on a connection of its own.
async fn ask(address: &str, call: http::request::Builder, body: Bytes) -> Result<Answer, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.kind().to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = call
        .header(HOST, address)
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    // The connection ends when its one request is answered, or when this future is dropped.
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, BODY_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        let mut headers = HeaderMap::new();
        for name in [
            CONTENT_TYPE,
            kvorum_proto::OUTCOME.parse().expect("a header's name"),
        ] {
            if let Some(value) = parts.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        Ok((parts.status, headers, body.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            // What was read before the end may still be an answer.
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Once, members whose HTTP port was given, and whose list names their gRPC ports, were shown twice.
    #[test]
    fn a_member_is_shown_once_under_whatever_address_it_was_given() {
        let listed = |number: u16| Shown {
            name: number.to_string(),
            address: format!("10.0.0.{number}:8000"),
            base: String::new(),
        };
        let endpoints = ["h:7001", "10.0.0.2:8000", "h:7002", "h:7003", "h:7009"].map(str::to_owned);
        let names = [("h:7001", "1"), ("h:7002", "2"), ("h:7003", "7")];
        let names = names.map(|(endpoint, name)| (endpoint.to_owned(), name.to_owned()));
        let mut members = vec![listed(1), listed(2), listed(3)];
        merge(&mut members, &endpoints, &names.into());
        let shown: Vec<(&str, &str)> = members
            .iter()
            .map(|member| (member.name.as_str(), member.address.as_str()))
            .collect();
        let expected = [
            ("1", "h:7001"),
            ("2", "10.0.0.2:8000"),
            ("3", "10.0.0.3:8000"),
            ("7", "h:7003"),
            ("h:7009", "h:7009"),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn only_its_own_pages_are_served() {
        let asked = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            is_own_page(&headers).is_ok()
        };
        for host in [
            "127.0.0.1:3000",
            "localhost:3000",
            "localhost",
            "[::1]:3000",
            "10.0.0.5:80",
        ] {
            assert!(asked(host, None), "{host}");
            assert!(asked(host, Some(&format!("http://{host}"))), "{host}");
            assert!(!asked(host, Some("http://evil.example")), "{host}");
            assert!(!asked(host, Some("null")), "{host}");
        }
        for host in ["evil.example:3000", "127.0.0.1.evil.example", ""] {
            assert!(!asked(host, None), "{host}");
        }
    }
}
