//! `kv_pb.KVService` and `raft_pb.RaftService` of "raft-kv", and its REST gateway: `/kv` and `/raft/info`.
//!
//! Keys and values are strings: a value that is not UTF-8 is `FailedPrecondition`, 422 over REST. A late answer is
//! `DeadlineExceeded`, the want of a leader `Unavailable`. What that system refused on a follower is forwarded.

use std::collections::BTreeMap;

use http::{Request as HttpRequest, Response as HttpResponse, StatusCode};
use hyper::body::Incoming;
use kvorum_model::{Command, DeleteRangeRequest, KeyRange, PutRequest, RangeRequest};
use kvorum_proto::kv_pb::{self as pb, kv_service_server::KvService};
use kvorum_proto::raft_pb::{InfoRequest, InfoResponse, raft_service_server::RaftService};
use kvorum_proto::{Outcome, refused, status_of};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::body::Body;
use tonic::{Request, Response, Status};

use super::{NOT_UTF8, check_key};
use crate::api::Core;
use crate::metrics::Method;
use crate::names::state_name;
use crate::rest::{Failed, decode_key, json_response, read_status, whole_body, write_status};
use crate::services::Context;

fn empty_key() -> Status {
    Status::invalid_argument("empty key")
}

async fn get(core: &Core, context: &Context, key: String) -> Result<String, Status> {
    core.require_token(context)?;
    if key.is_empty() {
        return Err(empty_key());
    }
    check_key(core, &key)?;
    let read = RangeRequest {
        range: KeyRange::point(key),
        ..RangeRequest::default()
    };
    let valid = read.validate(&core.handle.limits());
    valid.map_err(|error| status_of(&error))?;
    if !context.local {
        let confirmed = core.barrier(context).await;
        confirmed.map_err(|error| read_status(core, error))?;
    }
    core.metrics.ranges.add_one();
    let found = core.range(context, read).await?.seen.answer.kvs.pop();
    let value = found.ok_or_else(|| Status::not_found("not found"))?.value;
    String::from_utf8(value.into()).map_err(|_| Status::failed_precondition(NOT_UTF8))
}

async fn set(core: &Core, context: &Context, key: String, value: String) -> Result<(), Status> {
    if key.is_empty() {
        return Err(Outcome::NotApplied.mark(empty_key()));
    }
    let put = PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    };
    write(core, context, Command::Put(put)).await
}

async fn delete(core: &Core, context: &Context, key: String) -> Result<(), Status> {
    if key.is_empty() {
        return Err(Outcome::NotApplied.mark(empty_key()));
    }
    check_key(core, &key).map_err(|status| Outcome::NotApplied.mark(status))?;
    let delete = DeleteRangeRequest {
        range: KeyRange::point(key),
        prev_kv: false,
    };
    write(core, context, Command::DeleteRange(delete)).await
}

async fn write(core: &Core, context: &Context, command: Command) -> Result<(), Status> {
    let named = core.require_token(context);
    named.map_err(|status| Outcome::NotApplied.mark(status))?;
    let written = core.write(context, command).await;
    let applied = written.map_err(|error| write_status(core, error))?;
    applied.result.map(drop).map_err(|error| refused(&error))
}

fn info(core: &Core) -> InfoResponse {
    let status = core.handle.status_after_answers();
    InfoResponse {
        term: status.term,
        commit_index: status.commit,
        last_applied: status.applied,
        last_log_index: status.last.index,
        last_log_term: status.last.term,
        state: state_name(&status).to_owned(),
    }
}

/// The same, if who asks is known.
async fn info_for(core: &Core, context: Result<Context, Status>) -> Result<InfoResponse, Status> {
    let context = context?;
    core.require_token(&context)?;
    core.require_user(&context).await?;
    Ok(info(core))
}

/// The gRPC services.
#[derive(Clone, Debug)]
pub struct RaftKv(Core);

impl RaftKv {
    /// The services of this member.
    pub fn new(core: Core) -> Self {
        RaftKv(core)
    }
}

#[tonic::async_trait]
impl KvService for RaftKv {
    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        let core = &self.0;
        let started = core.metrics.begin(Method::RaftKvGet);
        let call = async {
            let context = Context::of(&request, &core.handle)?;
            let value = get(core, &context, request.into_inner().key).await?;
            Ok(Response::new(pb::GetResponse { value }))
        };
        core.metrics.end(Method::RaftKvGet, started, call.await)
    }

    async fn set(&self, request: Request<pb::SetRequest>) -> Result<Response<pb::SetResponse>, Status> {
        let core = &self.0;
        let started = core.metrics.begin(Method::RaftKvSet);
        let call = async {
            let context = Context::of(&request, &core.handle)?;
            let pb::SetRequest { key, value } = request.into_inner();
            set(core, &context, key, value).await?;
            Ok(Response::new(pb::SetResponse {}))
        };
        core.metrics.end(Method::RaftKvSet, started, call.await)
    }

    async fn del(&self, request: Request<pb::DelRequest>) -> Result<Response<pb::DelResponse>, Status> {
        let core = &self.0;
        let started = core.metrics.begin(Method::RaftKvDel);
        let call = async {
            let context = Context::of(&request, &core.handle)?;
            delete(core, &context, request.into_inner().key).await?;
            Ok(Response::new(pb::DelResponse {}))
        };
        core.metrics.end(Method::RaftKvDel, started, call.await)
    }
}

#[tonic::async_trait]
impl RaftService for RaftKv {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let metrics = &self.0.metrics;
        let started = metrics.begin(Method::RaftKvInfo);
        let info = info_for(&self.0, Context::of(&request, &self.0.handle)).await;
        metrics.end(Method::RaftKvInfo, started, info.map(Response::new))
    }
}

type Answer = Result<HttpResponse<Body>, Failed>;

/// `GET /kv/{key}`.
pub(crate) async fn rest_get(core: &Core, request: &HttpRequest<Incoming>, key: &str) -> Answer {
    let context = Context::from_headers(request.headers(), &core.handle)?;
    let value = get(core, &context, decode_key(key)?).await?;
    Ok(json_response(StatusCode::OK, &json!({ "value": value })))
}

/// The body of `POST /kv`, as protobuf's JSON has it: an empty string may be left out, and unknown fields are
/// ignored. Both at once is no message of any client, but a misspelt `value`.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct SetBody {
    key: Option<String>,
    value: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

impl SetBody {
    /// Key and value; the key may not be empty.
    fn parse(body: &[u8]) -> Result<(String, String), Status> {
        let body: SetBody = serde_json::from_slice(body).map_err(|error| {
            Status::invalid_argument(format!("the body is not JSON with key and value: {error}"))
        })?;
        let key = body.key.filter(|key| !key.is_empty()).ok_or_else(empty_key)?;
        match (body.value, body.unknown.keys().next()) {
            (None, Some(unknown)) => Err(Status::invalid_argument(format!(
                "there is no `value`, and `{unknown}` is unknown; write {{\"key\":…,\"value\":…}}"
            ))),
            (value, _) => Ok((key, value.unwrap_or_default())),
        }
    }
}

/// `POST /kv`.
pub(crate) async fn rest_set(core: &Core, request: HttpRequest<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let parsed = async {
        let context = Context::from_headers(&parts.headers, &core.handle)?;
        let body = whole_body(core, body, &context).await?;
        Ok((context, SetBody::parse(&body)?))
    };
    let (context, (key, value)) = parsed
        .await
        .map_err(|failed: Failed| failed.mark(Outcome::NotApplied))?;
    set(core, &context, key, value).await?;
    Ok(json_response(StatusCode::OK, &json!({})))
}

/// `DELETE /kv/{key}`.
pub(crate) async fn rest_delete(core: &Core, request: &HttpRequest<Incoming>, key: &str) -> Answer {
    let parsed = || {
        Ok((
            Context::from_headers(request.headers(), &core.handle)?,
            decode_key(key)?,
        ))
    };
    let (context, key) = parsed().map_err(|status: Status| Outcome::NotApplied.mark(status))?;
    delete(core, &context, key).await?;
    Ok(json_response(StatusCode::OK, &json!({})))
}

/// `InfoResponse` as protobuf's JSON: camelCase, 64-bit numbers as strings.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InfoBody {
    term: String,
    commit_index: String,
    last_applied: String,
    last_log_index: String,
    last_log_term: String,
    state: String,
}

/// `GET /raft/info`.
pub(crate) async fn rest_info(core: &Core, request: &HttpRequest<Incoming>) -> Answer {
    let context = Context::from_headers(request.headers(), &core.handle);
    let info = info_for(core, context).await?;
    let body = InfoBody {
        term: info.term.to_string(),
        commit_index: info.commit_index.to_string(),
        last_applied: info.last_applied.to_string(),
        last_log_index: info.last_log_index.to_string(),
        last_log_term: info.last_log_term.to_string(),
        state: info.state,
    };
    Ok(json_response(StatusCode::OK, &body))
}
