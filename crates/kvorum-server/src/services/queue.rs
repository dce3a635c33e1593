//! The recipe behind locks and elections: a queue of keys below a prefix, each attached to a lease; whose key is the
//! oldest has its turn. Key names and steps are those of etcd's own (`client/v3/concurrency`), so that etcd's
//! clients, which carry the recipe out themselves, stand in the same queues.
//!
//! Each step is a call of the KV service in the caller's name: with its metadata, so with its rights. A [`Place`]
//! that is dropped is withdrawn, in whatever step its caller went away.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kvorum_model::KeyRange;
use kvorum_mvcc::watch::{WatchOutput, WatchRequest};
use kvorum_proto::etcdserverpb as pb;
use kvorum_proto::mvccpb::KeyValue;
use kvorum_proto::{OUTCOME, status_of};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request::{SortOrder, SortTarget};
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Status};

use super::context::timeout_of;
use super::{Context, EtcdKv, EtcdLease, leaderless};
use crate::api::Core;
use crate::http::Phase;
use crate::watching::{StreamAnswers, StreamRequests, WatchHandle};

/// The lease that a caller without one is granted, in seconds.
const LEASE_TTL_S: i64 = 60;
/// How often the withdrawal of a caller that went away is tried while there is no leader, and the pause between.
const WITHDRAWALS_MAX: usize = 10;
const WITHDRAWAL_PAUSE: Duration = Duration::from_millis(200);
/// How long a caller is kept waiting for its withdrawal.
const WITHDRAWAL_PATIENCE: Duration = Duration::from_secs(1);

/// In whose name steps are taken.
#[derive(Clone)]
pub(super) struct Caller {
    metadata: MetadataMap,
    extensions: Extensions,
    /// Until when it waits; `None`: for as long as it takes.
    deadline: Option<Instant>,
    pub(super) require_leader: bool,
}

impl Caller {
    /// The caller of a request that takes several steps: its deadline is for all of them, and its name in a session
    /// would be one for all.
    pub(super) fn of<T>(request: &Request<T>) -> Caller {
        let mut metadata = request.metadata().clone();
        let timeout = timeout_of(metadata.as_ref());
        let require_leader = metadata.get("hasleader").is_some_and(|value| value == "true");
        metadata.remove("grpc-timeout");
        metadata.remove("kvorum-session");
        Caller {
            metadata,
            extensions: request.extensions().clone(),
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            require_leader,
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), message)
    }
}

/// A failed step as etcd's servers report it: they lose its code, but for what the caller itself ended.
pub(super) fn step_failed(status: Status) -> Status {
    let code = match status.code() {
        code @ (Code::Cancelled | Code::DeadlineExceeded) => code,
        _ => Code::Unknown,
    };
    let mut failed = Status::new(code, status.message());
    if let Some(outcome) = status.metadata().get(OUTCOME) {
        failed.metadata_mut().insert(OUTCOME, outcome.clone());
    }
    failed
}

/// `NAME/`, below which the queue of `NAME` is.
pub(super) fn prefix_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The key of a lease in a queue.
fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let lease = format!("{sign}{:x}", lease.unsigned_abs());
    [prefix, lease.as_bytes()].concat().into()
}

/// All keys below a prefix, which ends with `/`.
pub(super) fn below(prefix: &Bytes) -> KeyRange {
    let (last, rest) = prefix.split_last().expect("a prefix ends with a slash");
    KeyRange {
        key: prefix.clone(),
        end: [rest, &[last + 1]].concat().into(),
    }
}

/// The oldest key of a queue, or the youngest that is no younger than `revision_max`.
fn end_of_queue(prefix: &Bytes, youngest_until: Option<i64>) -> pb::RangeRequest {
    let KeyRange { key, end } = below(prefix);
    let order = match youngest_until {
        Some(_) => SortOrder::Descend,
        None => SortOrder::Ascend,
    };
    pb::RangeRequest {
        key,
        range_end: end,
        limit: 1,
        sort_order: order.into(),
        sort_target: SortTarget::Create.into(),
        max_create_revision: youngest_until.unwrap_or(0),
        ..pb::RangeRequest::default()
    }
}

/// That a key was created at this revision; at 0: that it is not there.
fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..pb::Compare::default()
    }
}

fn range_op(range: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(pb::request_op::Request::RequestRange(range)),
    }
}

/// The first record that an operation of a transaction found.
fn found(answer: &pb::TxnResponse, at: usize) -> Option<KeyValue> {
    match &answer.responses.get(at)?.response {
        Some(pb::response_op::Response::ResponseRange(range)) => range.kvs.first().cloned(),
        _ => None,
    }
}

fn revision_of(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// The queues of this member. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Queues {
    pub(super) core: Core,
    kv: EtcdKv,
    lease: EtcdLease,
    hub: WatchHandle,
}

impl Queues {
    pub(super) fn new(core: Core, hub: WatchHandle) -> Self {
        Queues {
            kv: EtcdKv::new(core.clone()),
            lease: EtcdLease::new(core.clone()),
            core,
            hub,
        }
    }

    /// Deletes a key as the KV service does.
    pub(super) async fn delete(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        self.kv.delete(request).await
    }

    pub(super) async fn get(
        &self,
        caller: &Caller,
        range: pb::RangeRequest,
    ) -> Result<pb::RangeResponse, Status> {
        Ok(self.kv.read(caller.request(range)).await?.into_inner())
    }

    /// The oldest key of a queue.
    pub(super) async fn first(&self, caller: &Caller, prefix: &Bytes) -> Result<pb::RangeResponse, Status> {
        self.get(caller, end_of_queue(prefix, None)).await
    }

    async fn txn(&self, caller: &Caller, txn: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        Ok(self.kv.transact(caller.request(txn)).await?.into_inner())
    }

    /// The caller's lease, or a new one.
    pub(super) async fn lease_or_new(&self, caller: &Caller, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let request = pb::LeaseGrantRequest {
            ttl: LEASE_TTL_S,
            id: 0,
        };
        Ok(self.lease.grant(caller.request(request)).await?.id)
    }

    /// Stands in line. Carried out to its end, whether or not the caller waits for it: the key of one that went away
    /// meanwhile is known, and withdrawn.
    pub(super) async fn join(
        &self,
        caller: &Caller,
        name: &[u8],
        lease: i64,
        value: Bytes,
    ) -> Result<Place, Status> {
        let (queues, own_caller, prefix) = (self.clone(), caller.clone(), prefix_of(name));
        let joining = tokio::spawn(async move {
            let lease = queues.lease_or_new(&own_caller, lease).await?;
            queues.stand(own_caller, prefix, lease, value).await
        });
        let joined = async {
            match joining.await {
                Ok(joined) => joined.map_err(step_failed),
                Err(_) => Err(Status::unavailable("etcdserver: server stopped")),
            }
        };
        // What is given up here ends by itself, and drops the place that comes of it.
        self.within(caller, joined).await
    }

    async fn stand(self, caller: Caller, prefix: Bytes, lease: i64, value: Bytes) -> Result<Place, Status> {
        let key = key_of(&prefix, lease);
        let put = pb::PutRequest {
            key: key.clone(),
            value,
            lease,
            ..pb::PutRequest::default()
        };
        let get = pb::RangeRequest {
            key: key.clone(),
            ..pb::RangeRequest::default()
        };
        let owner = || range_op(end_of_queue(&prefix, None));
        let put = pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(put)),
        };
        let txn = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put, owner()],
            failure: vec![range_op(get), owner()],
        };
        let answer = self.txn(&caller, txn).await?;
        let earlier = found(&answer, 0);
        let revision = earlier
            .as_ref()
            .map_or(revision_of(answer.header.as_ref()), |kv| kv.create_revision);
        let is_first = found(&answer, 1).is_none_or(|owner| owner.create_revision == revision);
        Ok(Place {
            queues: self,
            caller,
            prefix,
            key,
            lease,
            revision,
            header: answer.header,
            earlier,
            is_first,
            is_kept: false,
        })
    }

    /// Changes the value of the key that was created at this revision, and attaches it to the lease.
    pub(super) async fn proclaim(
        &self,
        request: Request<(pb::PutRequest, i64)>,
    ) -> Result<pb::TxnResponse, Status> {
        let (metadata, extensions, (put, revision)) = request.into_parts();
        let txn = pb::TxnRequest {
            compare: vec![created_at(&put.key, revision)],
            success: vec![pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(put)),
            }],
            failure: Vec::new(),
        };
        let request = Request::from_parts(metadata, extensions, txn);
        Ok(self.kv.transact(request).await?.into_inner())
    }

    /// Deletes the key if it is still the one that was created at this revision.
    pub(super) async fn resign(&self, request: Request<(Bytes, i64)>) -> Result<pb::TxnResponse, Status> {
        let (metadata, extensions, (key, revision)) = request.into_parts();
        let compare = vec![created_at(&key, revision)];
        let delete = pb::DeleteRangeRequest {
            key,
            ..pb::DeleteRangeRequest::default()
        };
        let txn = pb::TxnRequest {
            compare,
            success: vec![pb::RequestOp {
                request: Some(pb::request_op::Request::RequestDeleteRange(delete)),
            }],
            failure: Vec::new(),
        };
        let request = Request::from_parts(metadata, extensions, txn);
        Ok(self.kv.transact(request).await?.into_inner())
    }

    /// A watcher of a key, or of all keys below a prefix, from this revision on.
    pub(super) async fn watch(
        &self,
        caller: &Caller,
        range: KeyRange,
        start_revision: i64,
    ) -> Result<Watching, Status> {
        let context = Context::of(&caller.request(()), &self.core.handle)?;
        let passed = self.core.may_watch(&context, &range).await;
        let passed = passed.map_err(|error| step_failed(status_of(&error)))?;
        let (requests, answers) = self.hub.open();
        let request = WatchRequest {
            range,
            start_revision,
            ..WatchRequest::default()
        };
        requests.create(passed, request).await;
        Ok(Watching {
            _requests: requests,
            answers,
            waiting: Vec::new().into_iter(),
        })
    }

    /// Returns once the key was deleted, or its history with it.
    async fn deleted(&self, caller: &Caller, key: Bytes, from: i64) -> Result<(), Status> {
        let mut watching = self.watch(caller, KeyRange::point(key), from).await?;
        loop {
            match watching.next().await? {
                Some((_, events)) if events.iter().any(is_delete) => return Ok(()),
                Some(_) => {}
                // Compacted away: the queue is looked at again.
                None => return Ok(()),
            }
        }
    }

    /// Ends a wait that its caller, or this member, does not want any more.
    pub(super) async fn within<T>(
        &self,
        caller: &Caller,
        wait: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let mut phase = self.core.phase.clone();
        let late = async {
            match caller.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = wait => result,
            () = late => Err(Status::deadline_exceeded("context deadline exceeded")),
            _ = phase.wait_for(|phase| *phase > Phase::Serving) => {
                Err(Status::unavailable("etcdserver: server stopped"))
            }
            () = leaderless(&self.core), if caller.require_leader => {
                Err(Status::unavailable("etcdserver: no leader"))
            }
        }
    }
}

pub(super) fn is_delete(event: &kvorum_model::Event) -> bool {
    event.kind == kvorum_model::EventKind::Delete
}

/// What a watcher of one range is told.
pub(super) struct Watching {
    /// Keeps the stream's other half.
    _requests: StreamRequests,
    answers: StreamAnswers,
    waiting: std::vec::IntoIter<WatchOutput>,
}

impl Watching {
    /// The next changes, and the revision up to which they go; `None`: they are compacted away.
    pub(super) async fn next(&mut self) -> Result<Option<(i64, Vec<kvorum_model::Event>)>, Status> {
        loop {
            match self.waiting.next() {
                Some(WatchOutput::Events { revision, events, .. }) => return Ok(Some((revision, events))),
                Some(WatchOutput::Canceled { compact_revision, .. }) if compact_revision > 0 => {
                    return Ok(None);
                }
                Some(WatchOutput::Canceled { reason, .. }) => return Err(Status::unknown(reason)),
                Some(WatchOutput::Created { .. } | WatchOutput::Progress { .. }) => continue,
                None => {}
            }
            match std::future::poll_fn(|context| self.answers.poll(context)).await {
                Some(outputs) => self.waiting = outputs.into_iter(),
                None => return Err(Status::unavailable("etcdserver: server stopped")),
            }
        }
    }
}

/// A place in a queue. Dropped, it is given up, unless it was kept.
pub(super) struct Place {
    queues: Queues,
    caller: Caller,
    prefix: Bytes,
    pub(super) key: Bytes,
    pub(super) lease: i64,
    /// The revision that created the key.
    pub(super) revision: i64,
    /// Of the answer by which the caller came to stand here.
    pub(super) header: Option<pb::ResponseHeader>,
    /// The key as it was, if the lease stood here before.
    pub(super) earlier: Option<KeyValue>,
    /// Whether nobody stood before it then.
    pub(super) is_first: bool,
    is_kept: bool,
}

impl Place {
    /// Waits until nobody stands before it.
    pub(super) async fn turn(&self) -> Result<(), Status> {
        let wait = async {
            loop {
                // Nothing is older than the first revision.
                let before = end_of_queue(&self.prefix, Some((self.revision - 1).max(1)));
                let answer = self.queues.get(&self.caller, before).await.map_err(step_failed)?;
                let Some(last) = answer.kvs.into_iter().next() else {
                    return Ok(());
                };
                let seen = revision_of(answer.header.as_ref());
                self.queues.deleted(&self.caller, last.key, seen).await?;
            }
        };
        self.queues.within(&self.caller, wait).await
    }

    /// The key, if it is still this place's.
    pub(super) async fn still_there(&self) -> Result<(Option<pb::ResponseHeader>, bool), Status> {
        let get = pb::RangeRequest {
            key: self.key.clone(),
            ..pb::RangeRequest::default()
        };
        let answer = self.queues.get(&self.caller, get).await.map_err(step_failed)?;
        let is_there = answer
            .kvs
            .first()
            .is_some_and(|kv| kv.create_revision == self.revision);
        Ok((answer.header, is_there))
    }

    /// Stays, whatever becomes of the caller.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Changes the value.
    pub(super) async fn proclaim(&self, value: Bytes) -> Result<pb::TxnResponse, Status> {
        let put = pb::PutRequest {
            key: self.key.clone(),
            value,
            lease: self.lease,
            ..pb::PutRequest::default()
        };
        self.queues
            .proclaim(self.caller.request((put, self.revision)))
            .await
    }

    /// Gives it up. Waits a moment for that, so that a caller who hears of it finds the place gone.
    pub(super) async fn withdraw(mut self) {
        if let Some(withdrawn) = self.start_withdrawal() {
            // What takes longer goes on by itself.
            let _ = tokio::time::timeout(WITHDRAWAL_PATIENCE, withdrawn).await;
        }
    }

    fn start_withdrawal(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        if std::mem::replace(&mut self.is_kept, true) {
            return None;
        }
        // Without a runtime the process is ending: the lease will.
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let (queues, caller, key) = (self.queues.clone(), self.caller.clone(), self.key.clone());
        Some(runtime.spawn(withdraw(queues, caller, key, self.revision)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.start_withdrawal());
    }
}

/// Deletes the key of somebody who does not wait any more; again and again while there is no leader, because its
/// lease may live on.
async fn withdraw(queues: Queues, caller: Caller, key: Bytes, revision: i64) {
    for _ in 0..WITHDRAWALS_MAX {
        let Err(status) = queues.resign(caller.request((key.clone(), revision))).await else {
            return;
        };
        if !matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) {
            tracing::debug!("a place in a queue was not withdrawn: {}", status.message());
            return;
        }
        tokio::time::sleep(WITHDRAWAL_PAUSE).await;
    }
    tracing::warn!("a place in a queue is not withdrawn before its lease ends: there is no leader");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_etcds_clients() {
        let check = |lease: i64, expected: &str| assert_eq!(key_of(b"n/", lease), expected);
        check(0x0069_4d81, "n/694d81");
        check(1, "n/1");
        // As Go prints a negative number.
        check(-123, "n/-7b");
        assert_eq!(prefix_of(b""), "/");
        assert_eq!(below(&prefix_of(b"a")).end, "a0");
    }
}
