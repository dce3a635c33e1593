//! `kv.KVStore` of the "Raft-Backed Distributed Key-Value Store", and its routes `/status` and `/batch`.
//!
//! Refusals by the store travel in the answer's `error`; transport, want of a quorum, and invalid arguments in
//! the gRPC status. Reads are linearizable unless the metadata `kvorum-consistency: local` asks otherwise.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use hyper::body::Incoming;
use kvorum_model::{
    Command, CommandLimits, DeleteRangeRequest, Error, ErrorKind, KeyRange, PutRequest, RangeRequest,
    RequestOp, TxnRequest,
};
use kvorum_proto::kv::{self as pb, kv_store_server::KvStore};
use kvorum_proto::{OUTCOME, Outcome, refused, status_of};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use super::check_key;
use crate::api::{Core, WIRE_OVERHEAD_BYTES};
use crate::handle::WriteError;
use crate::metrics::Method;
use crate::names::{leader_name, other_names, state_name};
use crate::rest::{Failed, body_within, json_response, write_status};
use crate::services::Context;

/// See the module.
#[derive(Clone, Debug)]
pub struct RaftKvStore(Core);

/// How a write of this surface ended without transport trouble: its log index, or a refusal by the store.
type Written = Result<u64, Error>;

impl RaftKvStore {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        RaftKvStore(core)
    }

    async fn write<T>(&self, request: &Request<T>, command: Command) -> Result<Written, Status> {
        let context = Context::of(request, &self.0.handle)?;
        let named = self.0.require_token(&context);
        named.map_err(|status| Outcome::NotApplied.mark(status))?;
        match self.0.write(&context, command).await {
            Ok(applied) => match applied.result {
                Ok(_) => Ok(Ok(applied.index)),
                Err(error) => self.by_kind(error),
            },
            Err(WriteError::Refused(error)) => self.by_kind(error),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a refusal is the caller's mistake, or the store's answer.
    fn by_kind(&self, error: Error) -> Result<Written, Status> {
        match error.kind() {
            ErrorKind::Invalid
            | ErrorKind::FailedPrecondition
            | ErrorKind::Denied
            | ErrorKind::Unauthenticated => {
                let status = Status::new(status_of(&error).code(), self.0.explain(&error));
                Err(Outcome::of_error(&error).mark(status))
            }
            ErrorKind::OutOfRange | ErrorKind::NotFound | ErrorKind::Exhausted | ErrorKind::DataLoss => {
                Ok(Err(error))
            }
        }
    }

    async fn read(&self, request: &Request<pb::GetRequest>) -> Result<pb::GetResponse, Status> {
        let context = Context::of(request, &self.0.handle)?;
        self.0.require_token(&context)?;
        check_key(&self.0, &request.get_ref().key)?;
        let range = KeyRange::point(request.get_ref().key.clone());
        let read = RangeRequest {
            range,
            ..RangeRequest::default()
        };
        read.validate(&self.0.handle.limits())
            .map_err(|error| status_of(&error))?;
        if !context.local {
            self.0.barrier(&context).await?;
        }
        self.0.metrics.ranges.add_one();
        let found = self.0.range(&context, read).await?.seen.answer.kvs.pop();
        Ok(pb::GetResponse {
            found: found.is_some(),
            value: found.map_or_else(Bytes::new, |kv| kv.value),
            error: String::new(),
        })
    }
}

/// The answer; beside a refusal stands what became of the write.
fn answer<T>(body: T, refusal: Option<&Error>) -> Response<T> {
    let mut response = Response::new(body);
    if let Some(error) = refusal {
        let outcome = MetadataValue::from_static(Outcome::of_error(error).as_str());
        response.metadata_mut().insert(OUTCOME, outcome);
    }
    response
}

fn cluster_status(core: &Core) -> pb::ClusterStatusResponse {
    let status = core.handle.status_after_answers();
    pb::ClusterStatusResponse {
        node_id: core.handle.identity().name.clone(),
        state: state_name(&status).to_owned(),
        current_term: status.term,
        leader_id: leader_name(&status, &core.handle.identity().founders),
        peers: other_names(&status, &core.handle.identity().founders),
        commit_index: status.commit,
        last_applied: status.applied,
    }
}

/// The same, if who asks is known.
async fn status_for(
    core: &Core,
    context: Result<Context, Status>,
) -> Result<pb::ClusterStatusResponse, Status> {
    let context = context?;
    core.require_token(&context)?;
    core.require_user(&context).await?;
    Ok(cluster_status(core))
}

/// `ClusterStatusResponse` in snake_case.
#[derive(Serialize)]
struct StatusBody {
    node_id: String,
    state: String,
    current_term: u64,
    leader_id: String,
    peers: Vec<String>,
    commit_index: u64,
    last_applied: u64,
}

/// `GET /status`.
pub(crate) async fn rest_status(
    core: &Core,
    request: &http::Request<Incoming>,
) -> Result<http::Response<Body>, Failed> {
    let context = Context::from_headers(request.headers(), &core.handle);
    let status = status_for(core, context).await?;
    let body = StatusBody {
        node_id: status.node_id,
        state: status.state,
        current_term: status.current_term,
        leader_id: status.leader_id,
        peers: status.peers,
        commit_index: status.commit_index,
        last_applied: status.last_applied,
    };
    Ok(json_response(http::StatusCode::OK, &body))
}

/// Most operations of one batch.
const BATCH_OPERATIONS_MAX: usize = 1000;

/// Base64 as in Go's and protobuf's JSON; its padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The body of `POST /batch`.
#[derive(Deserialize)]
#[serde(expecting = "an object with `operations`")]
struct BatchBody {
    operations: Vec<BatchOperation>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with type, key and value")]
struct BatchOperation {
    #[serde(rename = "type")]
    kind: String,
    key: String,
    #[serde(default)]
    value: Option<String>,
}

impl BatchOperation {
    fn decode(self) -> Result<(Bytes, RequestOp), String> {
        if self.key.is_empty() {
            return Err("empty key".to_owned());
        }
        let key = Bytes::from(self.key);
        let op = match self.kind.as_str() {
            "put" | "PUT" => {
                let value = BASE64.decode(self.value.unwrap_or_default());
                RequestOp::Put(PutRequest {
                    key: key.clone(),
                    value: value
                        .map_err(|error| format!("the value is not base64: {error}"))?
                        .into(),
                    ..PutRequest::default()
                })
            }
            "delete" | "DELETE" => RequestOp::DeleteRange(DeleteRangeRequest {
                range: KeyRange::point(key.clone()),
                prev_kv: false,
            }),
            kind => return Err(format!("type `{kind}` is neither `put` nor `delete`")),
        };
        Ok((key, op))
    }
}

/// The operations of a batch, one a key: a transaction writes no key twice, so of several the last one counts.
fn folded(body: &[u8]) -> Result<(usize, Vec<RequestOp>), Status> {
    let invalid = |text: String| Status::invalid_argument(text);
    let body: BatchBody = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the body is not JSON with operations: {error}")))?;
    let count = body.operations.len();
    if count > BATCH_OPERATIONS_MAX {
        return Err(invalid(format!(
            "a batch has at most {BATCH_OPERATIONS_MAX} operations; this one has {count}"
        )));
    }
    let mut last = BTreeMap::new();
    for (number, operation) in body.operations.into_iter().enumerate() {
        let (key, op) = operation
            .decode()
            .map_err(|why| invalid(format!("operation {number}: {why}")))?;
        last.insert(key, (number, op));
    }
    let mut ops: Vec<(usize, RequestOp)> = last.into_values().collect();
    ops.sort_unstable_by_key(|(number, _)| *number);
    Ok((count, ops.into_iter().map(|(_, op)| op).collect()))
}

/// `POST /batch`: all operations in one transaction, under one log index.
pub(crate) async fn rest_batch(
    core: &Core,
    request: http::Request<Incoming>,
) -> Result<http::Response<Body>, Failed> {
    let limits = CommandLimits {
        txn_ops_max: BATCH_OPERATIONS_MAX,
        ..core.handle.limits()
    };
    let (parts, body) = request.into_parts();
    let parsed = async {
        let context = Context::from_headers(&parts.headers, &core.handle)?;
        core.require_token(&context)?;
        // Base64 makes four bytes of three.
        let bytes_max = 2 * limits.request_bytes_max + WIRE_OVERHEAD_BYTES;
        let body = body_within(bytes_max, body, &context).await?;
        Ok((context, folded(&body)?))
    };
    let (context, (count, success)) = parsed
        .await
        .map_err(|failed: Failed| failed.mark(Outcome::NotApplied))?;
    let mut indices = Vec::new();
    if count > 0 {
        let txn = TxnRequest {
            success,
            ..TxnRequest::default()
        };
        let written = core.write_within(&limits, &context, Command::Txn(txn)).await;
        let applied = written.map_err(|error| write_status(core, error))?;
        applied.result.map_err(|error| refused(&error))?;
        indices = vec![applied.index; count];
    }
    Ok(json_response(
        http::StatusCode::OK,
        &json!({ "indices": indices }),
    ))
}

#[tonic::async_trait]
impl KvStore for RaftKvStore {
    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let started = self.0.metrics.begin(Method::KvPut);
        let message = request.get_ref();
        let command = Command::Put(PutRequest {
            key: message.key.clone().into(),
            value: message.value.clone(),
            ..PutRequest::default()
        });
        let written = self.write(&request, command).await;
        let written = self.0.metrics.end(Method::KvPut, started, written)?;
        let refusal = written.as_ref().err();
        let error = refusal.map(Error::to_string).unwrap_or_default();
        let index = *written.as_ref().unwrap_or(&0);
        Ok(answer(
            pb::PutResponse {
                success: written.is_ok(),
                error,
                index,
            },
            refusal,
        ))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        let started = self.0.metrics.begin(Method::KvGet);
        self.0
            .metrics
            .end(Method::KvGet, started, self.read(&request).await)
            .map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let started = self.0.metrics.begin(Method::KvDelete);
        let range = KeyRange::point(request.get_ref().key.clone());
        let command = Command::DeleteRange(DeleteRangeRequest {
            range,
            prev_kv: false,
        });
        let written = self.write(&request, command).await;
        let written = self.0.metrics.end(Method::KvDelete, started, written)?;
        let refusal = written.as_ref().err();
        let error = refusal.map(Error::to_string).unwrap_or_default();
        let index = *written.as_ref().unwrap_or(&0);
        Ok(answer(
            pb::DeleteResponse {
                success: written.is_ok(),
                error,
                index,
            },
            refusal,
        ))
    }

    async fn get_cluster_status(
        &self,
        request: Request<pb::ClusterStatusRequest>,
    ) -> Result<Response<pb::ClusterStatusResponse>, Status> {
        let started = self.0.metrics.begin(Method::KvStatus);
        let context = Context::of(&request, &self.0.handle);
        let answer = status_for(&self.0, context).await;
        self.0
            .metrics
            .end(Method::KvStatus, started, answer)
            .map(Response::new)
    }
}
