//! REST of "dist-kv-store": `/key`, `/hello`, `/register-follower`.
//!
//! Plain text; errors end with a newline, as that system's do, successes do not. The limits of key, value and
//! number of keys are this surface's own. The number is a guard in the replicated command: whatever is created at
//! the same time, no key passes it. Without a leader everything that needs one is 503.

use bytes::Bytes;
use http::header::X_CONTENT_TYPE_OPTIONS;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use kvorum_model::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, Error, KeyRange, PutRequest,
    RangeRequest, Reply, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use kvorum_proto::kvorum::v1::JoinRequest;
use kvorum_proto::{OUTCOME, Outcome};
use serde_json::Value;
use tonic::body::Body;
use tonic::{Code, Status};

use super::NOT_UTF8;
use crate::api::Core;
use crate::handle::WriteError;
use crate::rest::{Failed, decode_key, http_status, read_status, whole_body, write_status};
use crate::routes::plain;
use crate::services::Context;

/// That system's word for the want of a leader.
const NO_LEADER: &str = "Leader not ready yet!! please try later";
const KEY_TOO_LONG: &str = "key size exceeded";
const VALUE_TOO_LONG: &str = "value size exceeded";

/// Why a request fails: a status, a line of text, and what became of a write.
pub(crate) struct Failure {
    status: u16,
    text: String,
    outcome: Option<Outcome>,
}

type Answer = Result<Response<Body>, Failure>;

fn failure(status: u16, text: impl Into<String>) -> Failure {
    let text = text.into();
    Failure {
        status,
        text,
        outcome: None,
    }
}

impl Failure {
    /// The answer to a client.
    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = plain(self.status, format!("{}\n", self.text));
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(outcome) = self.outcome {
            headers.insert(OUTCOME, HeaderValue::from_static(outcome.as_str()));
        }
        response
    }

    fn not_applied(self) -> Failure {
        let outcome = Some(Outcome::NotApplied);
        Failure { outcome, ..self }
    }
}

/// The answer to a path that nothing is behind, as Go's HTTP server gives it.
pub(crate) fn no_such_page() -> Response<Body> {
    failure(404, "404 page not found").into_response()
}

/// In the codes of the other REST routes.
impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let text = match status.code() {
            Code::Unavailable if status.message() == WriteError::NoLeader.to_string() => NO_LEADER,
            _ => status.message(),
        };
        Failure {
            status: http_status(status.code()).as_u16(),
            text: text.to_owned(),
            outcome: Outcome::of(&status),
        }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Failure {
        match failed {
            Failed::Status(status) => status.into(),
            // No value that is allowed is so long.
            Failed::BodyTooLarge(_) => failure(400, VALUE_TOO_LONG),
        }
    }
}

/// What the state machine, or the check before it, says to a key or a value.
fn refused(error: &Error) -> Failure {
    let known = match error {
        Error::KeyTooLarge { .. } => failure(400, KEY_TOO_LONG),
        Error::RequestTooLarge => failure(400, VALUE_TOO_LONG),
        error => kvorum_proto::status_of(error).into(),
    };
    Failure {
        outcome: Some(Outcome::of_error(error)),
        ..known
    }
}

/// The strings of a JSON object under these names, as Go reads them: whatever the case of the names, and what is
/// missing or null is empty.
fn strings<const N: usize>(body: &[u8], names: [&str; N]) -> Option<[String; N]> {
    let object: serde_json::Map<String, Value> = serde_json::from_slice(body).ok()?;
    let mut found = [const { String::new() }; N];
    for (name, value) in object {
        let Some(at) = names.iter().position(|known| known.eq_ignore_ascii_case(&name)) else {
            continue;
        };
        match value {
            Value::String(text) => found[at] = text,
            Value::Null => {}
            _ => return None,
        }
    }
    Some(found)
}

/// `POST /key`.
pub(crate) async fn create(core: &Core, request: Request<Incoming>) -> Answer {
    let (context, put) = create_request(core, request)
        .await
        .map_err(Failure::not_applied)?;
    let keys_max = i64::try_from(core.surfaces.keys_max).unwrap_or(i64::MAX);
    let txn = create_txn(put, keys_max);
    match written(core, &context, Command::Txn(txn)).await? {
        Reply::Txn(reply) => match created(&reply) {
            Created::New => Ok(plain(201, "key created successfully!")),
            Created::Exists => Err(failure(409, "key already exists").not_applied()),
            Created::Full => Err(failure(400, "max keys exceeded").not_applied()),
        },
        _ => Err(unfit()),
    }
}

async fn create_request(core: &Core, request: Request<Incoming>) -> Result<(Context, PutRequest), Failure> {
    let (parts, body) = request.into_parts();
    let context = Context::from_headers(&parts.headers, &core.handle)?;
    core.require_token(&context)?;
    let body = whole_body(core, body, &context).await?;
    let [key, value] =
        strings(&body, ["key", "value"]).ok_or_else(|| failure(400, "Unable to decode body"))?;
    if key.is_empty() {
        return Err(failure(400, "empty key"));
    }
    if key.len() > core.surfaces.key_bytes_max {
        return Err(failure(400, KEY_TOO_LONG));
    }
    if value.len() > core.surfaces.value_bytes_max {
        return Err(failure(400, VALUE_TOO_LONG));
    }
    let put = PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    };
    Ok((context, put))
}

/// Writes if the key is not there (that first), and fewer than `keys_max` are.
fn create_txn(put: PutRequest, keys_max: i64) -> TxnRequest {
    let is_new = Compare {
        range: KeyRange::point(put.key.clone()),
        result: CompareResult::Equal,
        target: CompareTarget::Create(0),
    };
    let has_room = Compare {
        range: KeyRange::prefix(b""),
        result: CompareResult::Less,
        target: CompareTarget::LiveKeys(keys_max),
    };
    let write = TxnRequest {
        compare: vec![has_room],
        success: vec![RequestOp::Put(put)],
        failure: Vec::new(),
    };
    TxnRequest {
        compare: vec![is_new],
        success: vec![RequestOp::Txn(write)],
        failure: Vec::new(),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Created {
    New,
    Exists,
    Full,
}

fn created(reply: &TxnResponse) -> Created {
    match reply.responses.first() {
        _ if !reply.succeeded => Created::Exists,
        Some(ResponseOp::Txn(write)) if write.succeeded => Created::New,
        _ => Created::Full,
    }
}

/// `GET /key/{id}`.
pub(crate) async fn get(core: &Core, request: &Request<Incoming>, id: &str) -> Answer {
    let context = Context::from_headers(request.headers(), &core.handle)?;
    core.require_token(&context)?;
    let key = decode_key(id)?;
    if key.len() > core.surfaces.key_bytes_max {
        return Err(failure(400, KEY_TOO_LONG));
    }
    if key.is_empty() {
        return Err(not_found());
    }
    let read = RangeRequest {
        range: KeyRange::point(key.clone()),
        ..RangeRequest::default()
    };
    read.validate(&core.handle.limits()).map_err(|error| Failure {
        outcome: None,
        ..refused(&error)
    })?;
    if !context.local {
        let confirmed = core.barrier(&context).await;
        confirmed.map_err(|error| read_status(core, error))?;
    }
    core.metrics.ranges.add_one();
    let found = core.range(&context, read).await?.seen.answer.kvs.pop();
    let value = found.ok_or_else(not_found)?.value;
    let value = std::str::from_utf8(&value).map_err(|_| failure(422, NOT_UTF8))?;
    let quoted = |text: &str| Value::from(text).to_string();
    Ok(plain(200, format!("{{ {} : {} }}", quoted(&key), quoted(value))))
}

/// `DELETE /key/{id}`.
pub(crate) async fn delete(core: &Core, request: &Request<Incoming>, id: &str) -> Answer {
    let context = Context::from_headers(request.headers(), &core.handle);
    let context = context.map_err(|status| Failure::from(status).not_applied())?;
    let named = core.require_token(&context);
    named.map_err(|status| Failure::from(status).not_applied())?;
    let key = decode_key(id).map_err(|status| Failure::from(status).not_applied())?;
    // No such key can be there.
    if key.is_empty() || key.len() > core.handle.limits().key_bytes_max {
        return Err(not_found().not_applied());
    }
    let command = Command::DeleteRange(DeleteRangeRequest {
        range: KeyRange::point(key),
        prev_kv: false,
    });
    match written(core, &context, command).await? {
        Reply::DeleteRange(reply) if reply.deleted > 0 => Ok(plain(200, "key deleted successfully")),
        Reply::DeleteRange(_) => Err(not_found().not_applied()),
        _ => Err(unfit()),
    }
}

/// `GET /hello`.
pub(crate) fn hello() -> Response<Body> {
    plain(200, "world!")
}

/// `POST /register-follower`: a new learner, promoted when in sync; a known one is left as it is, or replaced if
/// `incarnation` shows that it comes back without its data. (kvorum's own members join by
/// `kvorum.v1.Kvorum/Join`, which tells them more than a word.)
pub(crate) async fn register(core: &Core, request: Request<Incoming>) -> Answer {
    let announced = async {
        let (parts, body) = request.into_parts();
        let context = Context::from_headers(&parts.headers, &core.handle)?;
        core.require_token(&context)?;
        core.require_admin(&context).await?;
        let body = whole_body(core, body, &context).await?;
        let unreadable = || failure(400, "unable to decode body");
        let [name, address, incarnation] =
            strings(&body, ["follower_id", "follower_addr", "incarnation"]).ok_or_else(unreadable)?;
        let request = JoinRequest {
            name,
            peer_addresses: vec![address],
            incarnation: decode_incarnation(&incarnation).ok_or_else(unreadable)?,
        };
        Ok((context, request))
    };
    let (context, request) = announced.await.map_err(Failure::not_applied)?;
    crate::joining::join(core, request, context.deadline).await?;
    Ok(plain(200, "registered"))
}

/// 32 hexadecimal digits, or none.
fn decode_incarnation(text: &str) -> Option<Bytes> {
    let is_legal = matches!(text.len(), 0 | 32) && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    match text {
        "" => Some(Bytes::new()),
        _ if !is_legal => None,
        _ => Some(u128::from_str_radix(text, 16).ok()?.to_be_bytes().to_vec().into()),
    }
}

async fn written(core: &Core, context: &Context, command: Command) -> Result<Reply, Failure> {
    match core.write(context, command).await {
        Ok(applied) => applied.result.map_err(|error| refused(&error)),
        Err(WriteError::Refused(error)) => Err(refused(&error)),
        Err(error) => Err(write_status(core, error).into()),
    }
}

fn not_found() -> Failure {
    failure(404, "key not found")
}

/// The state machine answered with what belongs to another command: a fault of this program.
fn unfit() -> Failure {
    Failure {
        outcome: Some(Outcome::Unknown),
        ..failure(500, "the answer does not fit the request")
    }
}
