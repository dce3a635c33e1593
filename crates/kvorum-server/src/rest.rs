//! REST: the routes of the replaced systems (see [`crate::compat`]), `/livez`, `/readyz` and `/version` as etcd has
//! them, `/health` with both sides' fields, `/metrics`, and a description of it all.
//!
//! [`table`] has every route. A failed write says in the header `kvorum-outcome` what became of it.

mod cors;
mod table;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use kvorum_model::{Alarm, Error, KeyRange, RangeRequest};
use kvorum_proto::{OUTCOME, Outcome, status_of};
use kvorum_raft::Role;
use serde::Serialize;
use serde_json::json;
use tonic::body::Body;
use tonic::{Code, Status};

use self::cors::Caller;
pub(crate) use self::cors::{host_name, is_of_this_machine};
use self::table::{Endpoint, Found};
use crate::api::{Core, WIRE_OVERHEAD_BYTES};
use crate::compat::{dist_kv, raft_kv, raft_kv_store};
use crate::console;
use crate::gateway::{Gateway, asks_for_websocket};
use crate::handle::{ReadError, WriteError};
use crate::local::StateError;
use crate::names::{leader_name, state_name};
use crate::routes::{Answering, Rest, Services, plain};
use crate::services::{Context, alarm_name, storage_version};

/// How long the probes of `/readyz` wait for a confirmation.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Clone, Debug)]
pub struct RestApi(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    core: Core,
    gateway: Gateway,
}

impl RestApi {
    /// The routes of this member, whose gRPC services the JSON gateway calls.
    pub fn new(core: Core, services: Services) -> Self {
        let gateway = Gateway::new(core.clone(), services);
        RestApi(Arc::new(Inner { core, gateway }))
    }
}

impl Rest for RestApi {
    fn call(&self, request: Request<Incoming>) -> Answering {
        let inner = self.0.clone();
        Box::pin(async move {
            let method = request.method().clone();
            inner.core.metrics.rest(&method, route(&inner, request)).await
        })
    }
}

/// Every REST route for people and their tools (OpenAPI 3).
pub(crate) const OPENAPI: &str = include_str!("rest/openapi.json");

/// Why a request has no answer of its own.
pub(crate) enum Failed {
    Status(Status),
    /// The body is over this limit.
    BodyTooLarge(usize),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Failed::Status(status)
    }
}

impl Failed {
    /// Adds what became of the write.
    pub(crate) fn mark(self, outcome: Outcome) -> Self {
        match self {
            Failed::Status(status) => Failed::Status(outcome.mark(status)),
            // Which is never read, so never applied.
            too_large => too_large,
        }
    }
}

async fn route(inner: &Inner, request: Request<Incoming>) -> Response<Body> {
    let core = &inner.core;
    let path = request.uri().path().to_owned();
    let (endpoint, parameter) = match table::find(request.method().as_str(), &path) {
        Found::Endpoint(endpoint, parameter) => (endpoint, Some(parameter)),
        Found::OtherMethods(endpoint) => (endpoint, None),
        Found::Nothing => return page(core, &request, &path),
    };
    let in_its_form = |failed: Failed| match endpoint.answers_in_text() {
        true => dist_kv::Failure::from(failed).into_response(),
        false => error_response(failed),
    };
    let caller = {
        let status = core.handle.status();
        let members = status.cluster.members.values();
        let urls = members.flat_map(|record| record.client_urls.iter().map(String::as_str));
        cors::caller(request.headers(), host(&request), &core.surfaces.cors, urls)
    };
    // A websocket is opened by a GET, and writes.
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        && !asks_for_websocket(request.headers());
    if caller == Caller::Foreign && !is_safe {
        let text = "a page of another origin may not write here; --cors ORIGIN of the member allows one";
        return in_its_form(Outcome::NotApplied.mark(Status::permission_denied(text)).into());
    }
    if !is_safe && !is_plain(request.headers()) {
        let text = "no Content-Encoding is understood here; send the body as it is";
        let refused = Outcome::NotApplied.mark(Status::invalid_argument(text));
        let mut response = in_its_form(refused.into());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let origin = match caller {
        Caller::Allowed(origin) if endpoint.is_for_pages() => Some(origin),
        _ => None,
    };
    let mut response = match parameter {
        _ if origin.is_some() && cors::is_preflight(&request) => cors::preflight(&path),
        // Which takes a websocket's GET, too.
        _ if endpoint == Endpoint::Gateway => inner.gateway.answer(&path, request).await,
        Some(parameter) => answer(core, endpoint, parameter, request).await,
        None => {
            let in_text = core.surfaces.errors_as_text || endpoint.answers_in_text() || endpoint.is_of_etcd();
            not_allowed(&table::methods(&path), in_text)
        }
    };
    if let Some(origin) = origin {
        cors::allow(&mut response, origin);
    }
    response
}

/// Whether the body is as it stands, neither compressed nor encoded otherwise.
fn is_plain(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).into_iter();
    encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// What the client calls this server.
fn host(request: &Request<Incoming>) -> Option<&str> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| request.uri().authority().map(|authority| authority.as_str()))
}

/// What is no API: the console, or nothing.
fn page(core: &Core, request: &Request<Incoming>, path: &str) -> Response<Body> {
    console::answer(&core.handle, request.method(), path, host(request)).unwrap_or_else(|| {
        match core.surfaces.errors_as_text {
            true => dist_kv::no_such_page(),
            false => error_response(Status::not_found("Not Found").into()),
        }
    })
}

async fn answer(
    core: &Core,
    endpoint: Endpoint,
    parameter: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let in_json = |answer: Result<Response<Body>, Failed>| answer.unwrap_or_else(error_response);
    let in_text = |answer: Result<Response<Body>, dist_kv::Failure>| {
        answer.unwrap_or_else(dist_kv::Failure::into_response)
    };
    let query = request.uri().query().unwrap_or("").to_owned();
    match endpoint {
        Endpoint::KvGet => in_json(raft_kv::rest_get(core, &request, parameter).await),
        Endpoint::KvSet => in_json(raft_kv::rest_set(core, request).await),
        Endpoint::KvDelete => in_json(raft_kv::rest_delete(core, &request, parameter).await),
        Endpoint::RaftInfo => in_json(raft_kv::rest_info(core, &request).await),
        Endpoint::KeyCreate => in_text(dist_kv::create(core, request).await),
        Endpoint::KeyGet => in_text(dist_kv::get(core, &request, parameter).await),
        Endpoint::KeyDelete => in_text(dist_kv::delete(core, &request, parameter).await),
        Endpoint::Hello => dist_kv::hello(),
        Endpoint::RegisterFollower => in_text(dist_kv::register(core, request).await),
        Endpoint::Batch => in_json(raft_kv_store::rest_batch(core, request).await),
        Endpoint::Status => in_json(raft_kv_store::rest_status(core, &request).await),
        Endpoint::Health => health(core, &query).await,
        // A slash with nothing behind it names no check.
        Endpoint::Livez | Endpoint::Readyz if request.uri().path().ends_with('/') => dist_kv::no_such_page(),
        Endpoint::Livez => Probe::Livez.answer(core, parameter, &query).await,
        Endpoint::Readyz => Probe::Readyz.answer(core, parameter, &query).await,
        Endpoint::Version => json_response(StatusCode::OK, &version(core)),
        Endpoint::Metrics => metrics(core),
        Endpoint::DebugVars => json_response(StatusCode::OK, &debug_vars(core)),
        Endpoint::OpenApi => in_json_text(OPENAPI),
        Endpoint::Gateway => unreachable!("the gateway was asked"),
    }
}

/// A key in a path: percent-decoded, slashes included.
pub(crate) fn decode_key(path: &str) -> Result<String, Status> {
    let bad = || Status::invalid_argument("the key in the path is not percent-encoded UTF-8");
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |at: usize| rest.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let (high, low) = (digit(0).ok_or_else(bad)?, digit(1).ok_or_else(bad)?);
        bytes.push((high * 16 + low) as u8);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// The whole body, within the limits of size and time.
pub(crate) async fn whole_body(
    core: &Core,
    body: Incoming,
    context: &Context,
) -> Result<bytes::Bytes, Failed> {
    let bytes_max = core.handle.limits().request_bytes_max + WIRE_OVERHEAD_BYTES;
    body_within(bytes_max, body, context).await
}

/// The whole body, within a limit of its own.
pub(crate) async fn body_within(
    bytes_max: usize,
    body: Incoming,
    context: &Context,
) -> Result<bytes::Bytes, Failed> {
    // One that says beforehand that it is too large is not read: nor does a client that asks get its leave to send it.
    if http_body::Body::size_hint(&body).lower() > bytes_max as u64 {
        return Err(Failed::BodyTooLarge(bytes_max));
    }
    let whole = Limited::new(body, bytes_max).collect();
    match tokio::time::timeout_at(context.deadline.into(), whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failed::BodyTooLarge(bytes_max)),
        Ok(Err(error)) => Err(Status::invalid_argument(format!("the body cannot be read: {error}")).into()),
        Err(_) => Err(Status::deadline_exceeded("the body did not arrive in time").into()),
    }
}

/// A write's failure in the replaced systems' codes: without a leader it is `Unavailable`, late `DeadlineExceeded`.
/// Where etcd's text names no limit, these surfaces do.
pub(crate) fn write_status(core: &Core, error: WriteError) -> Status {
    match error {
        WriteError::TimedOut if core.handle.leader() == 0 => {
            error.outcome().mark(Status::unavailable(error.to_string()))
        }
        WriteError::TimedOut => error.outcome().mark(Status::deadline_exceeded(error.to_string())),
        WriteError::Refused(refusal) => {
            Outcome::of_error(&refusal).mark(Status::new(status_of(&refusal).code(), core.explain(&refusal)))
        }
        error => error.into(),
    }
}

/// A read's failure in the replaced systems' codes: without a leader it is `Unavailable`, late `DeadlineExceeded`.
pub(crate) fn read_status(core: &Core, error: ReadError) -> Status {
    match error {
        ReadError::TimedOut if core.handle.leader() == 0 => ReadError::NoLeader.into(),
        ReadError::TimedOut => Status::deadline_exceeded(error.to_string()),
        error => error.into(),
    }
}

fn version(core: &Core) -> serde_json::Value {
    let storage = storage_version(core.etcd_version);
    json!({
        "etcdserver": core.etcd_version,
        "etcdcluster": storage,
        "storage": storage,
        "kvorum": env!("CARGO_PKG_VERSION"),
    })
}

/// The fields of the "Raft-Backed Distributed Key-Value Store", and etcd's.
#[derive(Serialize)]
struct HealthBody {
    status: &'static str,
    state: &'static str,
    leader_id: String,
    timestamp: String,
    health: &'static str,
    reason: String,
}

/// 200 while a local read can be served, whatever the quorum; where etcd's meaning is asked for, while a
/// linearizable one can, and no alarm is up. Of the query etcd's `exclude=ALARM` and `serializable=true` count.
async fn health(core: &Core, query: &str) -> Response<Body> {
    let query = parameters(query);
    let is_local = query.iter().find(|(name, _)| *name == "serializable") == Some(&("serializable", "true"));
    let status = core.handle.status();
    let mut alarms = core.alarms().into_iter().map(|(alarm, _)| alarm_name(alarm));
    let alarm = alarms.find(|name| !query.contains(&("exclude", name)));
    let local = local_read(core);
    let mut serves = local.is_ok();
    let mut trouble = alarm
        .map(|name| format!("ALARM {name}"))
        .or_else(|| (status.leader == 0 && !is_local).then(|| "RAFT NO LEADER".to_owned()))
        .or_else(|| local.err().map(|why| format!("RANGE ERROR:{why}")));
    if core.surfaces.health_as_etcd {
        if trouble.is_none() && !is_local {
            let confirmed = linearizable_read(core).await;
            trouble = confirmed.err().map(|why| format!("RANGE ERROR:{why}"));
        }
        serves = trouble.is_none();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let is_healthy = trouble.is_none();
    match serves {
        true => core.metrics.health_successes.add_one(),
        false => core.metrics.health_failures.add_one(),
    }
    let body = HealthBody {
        status: if is_healthy { "healthy" } else { "degraded" },
        state: state_name(&status),
        leader_id: leader_name(&status, &core.handle.identity().founders),
        timestamp: rfc_3339(now.map_or(0, |since| since.as_secs())),
        health: if is_healthy { "true" } else { "false" },
        reason: trouble.unwrap_or_default(),
    };
    let code = if serves {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json_response(code, &body)
}

/// A Unix time as RFC 3339 has it, in UTC.
fn rfc_3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin on the first of March here, so that a leap day ends one (Howard Hinnant, civil_from_days).
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Of what Go's programs tell of themselves, the part that is about the member: etcd's `raft.status`.
fn debug_vars(core: &Core) -> serde_json::Value {
    let status = core.handle.status();
    let hex = |id: u64| format!("{id:x}");
    let state = match status.role {
        Role::Leader => "StateLeader",
        Role::Follower => "StateFollower",
        Role::Candidate => "StateCandidate",
        Role::PreCandidate => "StatePreCandidate",
    };
    json!({
        "cmdline": [env!("CARGO_PKG_NAME").split('-').next()],
        "raft.status": {
            "id": hex(status.id),
            "term": status.term,
            "commit": status.commit,
            "lead": hex(status.leader),
            "raftState": state,
            "applied": status.applied,
            "leadtransferee": hex(status.transferring_to),
        },
    })
}

fn metrics(core: &Core) -> Response<Body> {
    let mut response = plain(200, core.metrics.render(&core.handle, core.etcd_version));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// One key of this member's own state, as a sign of life.
fn local_read(core: &Core) -> Result<(), String> {
    let read = RangeRequest {
        range: KeyRange::point("health"),
        ..RangeRequest::default()
    };
    match core.handle.state().range(&read, usize::MAX) {
        // The store can be read; that nobody may is the alarm's matter, which is asked for by itself.
        Ok(_) | Err(StateError::Refused(Error::Corrupt)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Names and values of a query.
fn parameters(query: &str) -> Vec<(&str, &str)> {
    let pairs = query.split('&');
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect()
}

/// etcd's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Livez,
    Readyz,
}

impl Probe {
    /// What it looks at. `/livez` never depends on the quorum.
    fn checks(self) -> &'static [&'static str] {
        match self {
            Probe::Livez => &["serializable_read"],
            Probe::Readyz => &[
                "data_corruption",
                "serializable_read",
                "linearizable_read",
                "non_learner",
            ],
        }
    }

    /// `ok`, or 503 with a line for each check; `?verbose` shows the lines, `?exclude=NAME` leaves a check out.
    /// `only` names one check; empty, all are done.
    async fn answer(self, core: &Core, only: &str, query: &str) -> Response<Body> {
        if !only.is_empty() && !self.checks().contains(&only) {
            return dist_kv::no_such_page();
        }
        let parameters = parameters(query);
        let is_excluded = |check: &str| parameters.contains(&("exclude", check));
        let is_verbose = parameters.iter().any(|(name, _)| *name == "verbose");
        let (mut lines, mut failed) = (String::new(), false);
        for check in self
            .checks()
            .iter()
            .filter(|check| only.is_empty() || only == **check)
        {
            if only.is_empty() && is_excluded(check) {
                continue;
            }
            match perform(core, check).await {
                Ok(()) => lines.push_str(&format!("[+]{check} ok\n")),
                Err(why) => {
                    failed = true;
                    lines.push_str(&format!("[-]{check} failed: {why}\n"));
                }
            }
        }
        match (failed, is_verbose) {
            (true, _) => plain(503, format!("{lines}\n")),
            (false, true) => plain(200, format!("{lines}ok\n")),
            (false, false) => plain(200, "ok\n"),
        }
    }
}

/// Whether a quorum confirms a read in time.
async fn linearizable_read(core: &Core) -> Result<(), String> {
    let deadline = core.handle.deadline(Some(PROBE_TIMEOUT));
    let confirmed = core.handle.read_barrier(deadline).await;
    confirmed.map_err(|error| error.to_string())
}

async fn perform(core: &Core, check: &str) -> Result<(), String> {
    let status = core.handle.status();
    match check {
        "serializable_read" => local_read(core),
        "linearizable_read" => linearizable_read(core).await,
        "data_corruption" if core.alarms().iter().any(|(alarm, _)| *alarm == Alarm::Corrupt) => {
            Err("alarm activated: CORRUPT".to_owned())
        }
        "data_corruption" => match status.divergence {
            Some((index, member)) => Err(format!(
                "the digest at index {index} differs from member {member:x}'s"
            )),
            None => Ok(()),
        },
        "non_learner" if status.configuration.is_voter(status.id) => Ok(()),
        "non_learner" => Err("not supported for learner".to_owned()),
        _ => unreachable!("the list of checks and this one are the same"),
    }
}

pub(crate) fn json_response(status: StatusCode, body: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_string(body).expect("bodies are structs of numbers and strings");
    let mut response = in_json_text(text);
    *response.status_mut() = status;
    response
}

fn in_json_text(text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(text.into())));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// gRPC's code and text, as its JSON gateways write them.
#[derive(Serialize)]
struct ErrorBody<'a> {
    code: i32,
    message: &'a str,
    details: [(); 0],
}

impl ErrorBody<'_> {
    fn of(status: &Status) -> ErrorBody<'_> {
        ErrorBody {
            code: status.code() as i32,
            message: status.message(),
            details: [],
        }
    }
}

fn not_allowed(allowed: &str, in_text: bool) -> Response<Body> {
    let status = Status::unimplemented("Method Not Allowed");
    let mut response = match in_text {
        true => dist_kv::Failure::from(status).into_response(),
        false => error_response(status.into()),
    };
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(
        ALLOW,
        HeaderValue::from_str(allowed).expect("method names are tokens"),
    );
    response
}

/// `{"code","message","details"}` under the HTTP status that belongs to the code.
fn error_response(failed: Failed) -> Response<Body> {
    let (status, http) = match failed {
        Failed::Status(status) => {
            let http = http_status(status.code());
            (status, http)
        }
        Failed::BodyTooLarge(bytes_max) => {
            let text = format!("the body is larger than {bytes_max} bytes, what --request-bytes-max allows");
            let status = Outcome::NotApplied.mark(Status::resource_exhausted(text));
            (status, StatusCode::PAYLOAD_TOO_LARGE)
        }
    };
    let mut response = json_response(http, &ErrorBody::of(&status));
    if let Some(outcome) = Outcome::of(&status) {
        response
            .headers_mut()
            .insert(OUTCOME, HeaderValue::from_static(outcome.as_str()));
    }
    response
}

/// grpc-gateway's map, but for `FailedPrecondition`, which is 422 here.
pub(crate) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::FailedPrecondition => StatusCode::UNPROCESSABLE_ENTITY,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_paths() {
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(decode_key(path).ok().as_deref(), expected, "{path}");
        };
        check("", Some(""));
        check("a", Some("a"));
        check("usr/bin/env", Some("usr/bin/env"));
        check("a%2Fb%20c", Some("a/b c"));
        check("%C3%A9", Some("é"));
        check("a+b", Some("a+b"));
        for bad in ["%", "%4", "%4g", "%ff", "a%C3"] {
            check(bad, None);
        }
    }

    #[test]
    fn times_for_people() {
        let check = |seconds: u64, expected: &str| assert_eq!(rfc_3339(seconds), expected);
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(1_709_251_199, "2024-02-29T23:59:59Z");
        check(1_709_251_200, "2024-03-01T00:00:00Z");
        check(1_767_225_599, "2025-12-31T23:59:59Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
    }
}
