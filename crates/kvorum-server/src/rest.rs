//! REST: `/kv` and `/raft/info` as "raft-kv" has them, `/health` and `/status` as the "Raft-Backed Distributed
//! Key-Value Store" has them, `/livez`, `/readyz` and `/version` as etcd has them, and `/metrics`.
//!
//! Keys and values are strings here: a value that is not UTF-8 is answered with 422. A failed write says in the
//! header `kvorum-outcome` what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use kvorum_model::{Command, DeleteRangeRequest, KeyRange, PutRequest, RangeRequest};
use kvorum_proto::{OUTCOME, Outcome, status_of};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::api::{Core, WIRE_OVERHEAD_BYTES};
use crate::console;
use crate::handle::{ReadError, WriteError};
use crate::names::{leader_name, other_names, state_name};
use crate::routes::{Answering, Rest, plain};
use crate::services::{Context, storage_version};

/// How long the probes of `/readyz` wait for a confirmation.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Clone, Debug)]
pub struct RestApi(Arc<Core>);

impl RestApi {
    /// The routes of this member.
    pub fn new(core: Core) -> Self {
        RestApi(Arc::new(core))
    }
}

impl Rest for RestApi {
    fn call(&self, request: Request<Incoming>) -> Answering {
        let core = self.0.clone();
        Box::pin(async move {
            core.metrics.rest_requests.add_one();
            route(&core, request).await.unwrap_or_else(error_response)
        })
    }
}

/// Why a request has no answer of its own.
enum Failed {
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
    fn mark(self, outcome: Outcome) -> Self {
        match self {
            Failed::Status(status) => Failed::Status(outcome.mark(status)),
            // Which is never read, so never applied.
            too_large => too_large,
        }
    }
}

type Answer = Result<Response<Body>, Failed>;

async fn route(core: &Core, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    if let Some(key) = path.strip_prefix("/kv/") {
        return match request.method() {
            &Method::GET | &Method::HEAD => get_key(core, &request, key).await,
            &Method::DELETE => delete_key(core, &request, key).await,
            _ => Ok(not_allowed("GET, HEAD, DELETE")),
        };
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    if let Some(answer) = console::answer(&core.handle, request.method(), &path, host) {
        return Ok(answer);
    }
    match path.as_str() {
        "/kv" => match request.method() {
            &Method::POST => set_key(core, request).await,
            _ => Ok(not_allowed("POST")),
        },
        "/raft/info" | "/health" | "/status" | "/version" | "/metrics" if !get => {
            Ok(not_allowed("GET, HEAD"))
        }
        "/raft/info" => Ok(json_response(StatusCode::OK, &raft_info(core))),
        "/health" => Ok(health(core)),
        "/status" => Ok(json_response(StatusCode::OK, &cluster_status(core))),
        "/version" => Ok(json_response(StatusCode::OK, &version(core))),
        "/metrics" => Ok(metrics(core)),
        _ => match probe_of(&path) {
            Some(_) if !get => Ok(not_allowed("GET, HEAD")),
            Some((probe, check)) => Ok(probe
                .answer(core, check, request.uri().query().unwrap_or(""))
                .await),
            None => Err(Status::not_found("Not Found").into()),
        },
    }
}

/// The key in a path: percent-decoded, slashes included.
fn key_of(path: &str) -> Result<String, Status> {
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
    let key = String::from_utf8(bytes).map_err(|_| bad())?;
    if key.is_empty() { Err(empty_key()) } else { Ok(key) }
}

fn empty_key() -> Status {
    Status::invalid_argument("empty key")
}

async fn get_key(core: &Core, request: &Request<Incoming>, path: &str) -> Answer {
    let context = Context::from_headers(request.headers(), &core.handle)?;
    let read = RangeRequest {
        range: KeyRange::point(key_of(path)?),
        ..RangeRequest::default()
    };
    read.validate(&core.handle.limits())
        .map_err(|error| status_of(&error))?;
    if !context.local {
        core.barrier(&context)
            .await
            .map_err(|error| read_status(core, error))?;
    }
    core.metrics.ranges.add_one();
    let found = core.reads.range(read).await?.seen.answer.kvs.pop();
    let value = found.ok_or_else(|| Status::not_found("not found"))?.value;
    let value = std::str::from_utf8(&value)
        .map_err(|_| Status::failed_precondition("the value is not UTF-8; read it through gRPC"))?;
    Ok(json_response(StatusCode::OK, &json!({ "value": value })))
}

/// The body of `POST /kv`, as protobuf's JSON has it: an empty string may be left out, and unknown fields are
/// ignored. Both at once is no message of any client, but a misspelt `value`.
#[derive(Deserialize)]
struct SetBody {
    key: Option<String>,
    value: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

impl SetBody {
    fn parse(body: &[u8]) -> Result<PutRequest, Status> {
        let body: SetBody = serde_json::from_slice(body).map_err(|error| {
            Status::invalid_argument(format!("the body is not JSON with key and value: {error}"))
        })?;
        let key = body.key.filter(|key| !key.is_empty()).ok_or_else(empty_key)?;
        let value = match (body.value, body.unknown.keys().next()) {
            (None, Some(unknown)) => {
                return Err(Status::invalid_argument(format!(
                    "there is no `value`, and `{unknown}` is unknown; write {{\"key\":…,\"value\":…}}"
                )));
            }
            (value, _) => value.unwrap_or_default(),
        };
        Ok(PutRequest {
            key: key.into(),
            value: value.into(),
            ..PutRequest::default()
        })
    }
}

async fn set_key(core: &Core, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let command = async {
        let context = Context::from_headers(&parts.headers, &core.handle)?;
        let body = whole_body(core, body, &context).await?;
        Ok((context, SetBody::parse(&body)?))
    };
    let (context, put) = command
        .await
        .map_err(|failed: Failed| failed.mark(Outcome::NotApplied))?;
    write(core, &context, Command::Put(put)).await
}

async fn delete_key(core: &Core, request: &Request<Incoming>, path: &str) -> Answer {
    let command = || {
        let context = Context::from_headers(request.headers(), &core.handle)?;
        Ok((
            context,
            DeleteRangeRequest {
                range: KeyRange::point(key_of(path)?),
                prev_kv: false,
            },
        ))
    };
    let (context, delete) = command().map_err(|status: Status| Outcome::NotApplied.mark(status))?;
    write(core, &context, Command::DeleteRange(delete)).await
}

async fn write(core: &Core, context: &Context, command: Command) -> Answer {
    let applied = core
        .write(context, command)
        .await
        .map_err(|error| write_status(core, error))?;
    applied.result.map_err(|error| kvorum_proto::refused(&error))?;
    Ok(json_response(StatusCode::OK, &json!({})))
}

/// The whole body, within the limits of size and time.
async fn whole_body(core: &Core, body: Incoming, context: &Context) -> Result<bytes::Bytes, Failed> {
    let bytes_max = core.handle.limits().request_bytes_max + WIRE_OVERHEAD_BYTES;
    let whole = Limited::new(body, bytes_max).collect();
    match tokio::time::timeout_at(context.deadline.into(), whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failed::BodyTooLarge(bytes_max)),
        Ok(Err(error)) => Err(Status::invalid_argument(format!("the body cannot be read: {error}")).into()),
        Err(_) => Err(Status::deadline_exceeded("the body did not arrive in time").into()),
    }
}

/// A write's failure in this surface's codes: a deadline is `DeadlineExceeded`. Where etcd's text names no limit,
/// this surface does.
fn write_status(core: &Core, error: WriteError) -> Status {
    match error {
        WriteError::TimedOut => error.outcome().mark(Status::deadline_exceeded(error.to_string())),
        WriteError::Refused(refusal) => {
            Outcome::of_error(&refusal).mark(Status::new(status_of(&refusal).code(), core.explain(&refusal)))
        }
        error => error.into(),
    }
}

/// A read's failure in this surface's codes: without a leader it is `Unavailable`, late `DeadlineExceeded`.
fn read_status(core: &Core, error: ReadError) -> Status {
    match error {
        ReadError::TimedOut if core.handle.leader() == 0 => ReadError::NoLeader.into(),
        ReadError::TimedOut => Status::deadline_exceeded(error.to_string()),
        error => error.into(),
    }
}

/// As protobuf's JSON: camelCase, 64-bit numbers as strings.
fn raft_info(core: &Core) -> serde_json::Value {
    let status = core.handle.status();
    json!({
        "term": status.term.to_string(),
        "commitIndex": status.commit.to_string(),
        "lastApplied": status.applied.to_string(),
        "lastLogIndex": status.last.index.to_string(),
        "lastLogTerm": status.last.term.to_string(),
        "state": state_name(&status),
    })
}

/// As `ClusterStatusResponse` in snake_case.
fn cluster_status(core: &Core) -> serde_json::Value {
    let status = core.handle.status();
    json!({
        "node_id": core.handle.identity().name,
        "state": state_name(&status),
        "current_term": status.term,
        "leader_id": leader_name(&status),
        "peers": other_names(&status),
        "commit_index": status.commit,
        "last_applied": status.applied,
    })
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

/// Both systems' fields. 200 while a local read can be served, whatever the quorum.
fn health(core: &Core) -> Response<Body> {
    let status = core.handle.status();
    let failure = local_read(core).err().map(|why| format!("RANGE ERROR:{why}"));
    let is_serving = failure.is_none();
    let trouble = failure
        .or_else(|| status.space_exhausted.then(|| "ALARM NOSPACE".to_owned()))
        .or_else(|| (status.leader == 0).then(|| "RAFT NO LEADER".to_owned()));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let body = json!({
        "status": if trouble.is_none() { "healthy" } else { "degraded" },
        "state": state_name(&status),
        "leader_id": leader_name(&status),
        "timestamp": now,
        "health": if trouble.is_none() { "true" } else { "false" },
        "reason": trouble.unwrap_or_default(),
    });
    json_response(
        if is_serving {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        &body,
    )
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
    core.handle
        .state()
        .range(&read, usize::MAX)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// etcd's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Livez,
    Readyz,
}

/// The probe, and the one check, that a path asks for.
fn probe_of(path: &str) -> Option<(Probe, Option<&str>)> {
    let (probe, rest) = match path.strip_prefix("/livez") {
        Some(rest) => (Probe::Livez, rest),
        None => (Probe::Readyz, path.strip_prefix("/readyz")?),
    };
    let check = match rest {
        "" | "/" => None,
        rest => Some(
            rest.strip_prefix('/')
                .filter(|check| probe.checks().contains(check))?,
        ),
    };
    Some((probe, check))
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

    fn name(self) -> &'static str {
        match self {
            Probe::Livez => "livez",
            Probe::Readyz => "readyz",
        }
    }

    /// `ok`, or 503 with a line for each check; `?verbose` shows the lines, `?exclude=NAME` skips a check.
    async fn answer(self, core: &Core, only: Option<&str>, query: &str) -> Response<Body> {
        let parameters: Vec<(&str, &str)> = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .collect();
        let is_excluded = |check: &str| parameters.contains(&("exclude", check));
        let is_verbose = parameters.iter().any(|(name, _)| *name == "verbose");
        let (mut lines, mut failed) = (String::new(), false);
        for check in self
            .checks()
            .iter()
            .filter(|check| only.is_none_or(|only| only == **check))
        {
            if is_excluded(check) {
                lines.push_str(&format!("[+]{check} excluded: ok\n"));
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
            (true, _) => plain(503, format!("{lines}{} check failed\n", self.name())),
            (false, true) => plain(200, format!("{lines}{} check passed\n", self.name())),
            (false, false) => plain(200, "ok\n"),
        }
    }
}

async fn perform(core: &Core, check: &str) -> Result<(), String> {
    let status = core.handle.status();
    match check {
        "serializable_read" => local_read(core),
        "linearizable_read" => {
            let deadline = core.handle.deadline(Some(PROBE_TIMEOUT));
            core.handle
                .read_barrier(deadline)
                .await
                .map_err(|error| error.to_string())
        }
        "data_corruption" => match status.divergence {
            Some((index, member)) => Err(format!(
                "the digest at index {index} differs from member {member:x}'s"
            )),
            None => Ok(()),
        },
        "non_learner" if status.configuration.is_voter(status.id) => Ok(()),
        "non_learner" => Err("this member is a learner".to_owned()),
        _ => unreachable!("the list of checks and this one are the same"),
    }
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(bytes::Bytes::from(body.to_string()))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let body = json!({ "code": Code::Unimplemented as i32, "message": "Method Not Allowed", "details": [] });
    let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &body);
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
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
    let body = json!({ "code": status.code() as i32, "message": status.message(), "details": [] });
    let mut response = json_response(http, &body);
    if let Some(outcome) = Outcome::of(&status) {
        response
            .headers_mut()
            .insert(OUTCOME, HeaderValue::from_static(outcome.as_str()));
    }
    response
}

/// grpc-gateway's map, but for `FailedPrecondition`, which is 422 here.
fn http_status(code: Code) -> StatusCode {
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
            assert_eq!(key_of(path).ok().as_deref(), expected, "{path}");
        };
        check("a", Some("a"));
        check("usr/bin/env", Some("usr/bin/env"));
        check("a%2Fb%20c", Some("a/b c"));
        check("%C3%A9", Some("é"));
        check("a+b", Some("a+b"));
        for bad in ["", "%", "%4", "%4g", "%ff", "a%C3"] {
            check(bad, None);
        }
    }

    #[test]
    fn probes_by_path() {
        let check = |path: &str, expected| assert_eq!(probe_of(path), expected, "{path}");
        check("/livez", Some((Probe::Livez, None)));
        check("/readyz/", Some((Probe::Readyz, None)));
        check("/readyz/non_learner", Some((Probe::Readyz, Some("non_learner"))));
        check("/livez/linearizable_read", None);
        check("/livezz", None);
        check("/x", None);
    }
}
