//! Reads of the local state from an asynchronous task: short ones at once, those that may walk far on a thread
//! that may block; answers within the [`Budget`].

use std::sync::Arc;

use bytes::Bytes;
use kvorum_model::{
    KeyRange, KeyValue, RangeRequest, RangeResponse, ResponseOp, Revision, TxnRequest, TxnResponse,
};
use kvorum_mvcc::{LeaseRecord, Page};
use tonic::Status;

use crate::budget::{Budget, Held};
use crate::handle::ReplicaHandle;
use crate::local::{LocalState, Seen, StateError};

/// Up to so many keys a walk over all of them is short.
const SHORT_WALK_KEYS: u64 = 1024;
/// An answer of so many bytes needs no reservation.
const SMALL_ANSWER_BYTES: usize = 1024 * 1024;

/// See the module.
#[derive(Clone, Debug)]
pub struct Reads {
    handle: ReplicaHandle,
    budget: Budget,
}

/// An answer, and the memory that it holds.
pub(crate) struct Answered<T> {
    pub seen: Seen<T>,
    pub held: Option<Held>,
}

impl Reads {
    /// Reads of this replica, with answers within `budget`.
    pub fn new(handle: ReplicaHandle, budget: Budget) -> Self {
        Reads { handle, budget }
    }

    /// A range.
    pub(super) async fn range(&self, request: RangeRequest) -> Result<Answered<RangeResponse>, Status> {
        let state = self.handle.state().clone();
        let is_short = request.range.is_point() || state.facts().keys <= SHORT_WALK_KEYS;
        let read = move |state: &dyn LocalState, bytes_max| state.range(&request, bytes_max);
        self.within_budget(state, is_short, read, range_bytes).await
    }

    /// A transaction that only reads.
    pub(super) async fn txn(&self, txn: TxnRequest) -> Result<Answered<TxnResponse>, Status> {
        let state = self.handle.state().clone();
        let is_short = state.facts().keys <= SHORT_WALK_KEYS || touches_only_points(&txn);
        let read = move |state: &dyn LocalState, bytes_max| state.read_txn(&txn, bytes_max);
        self.within_budget(state, is_short, read, txn_bytes).await
    }

    /// A part of a range, on a thread that may block.
    pub(super) async fn page(
        &self,
        range: KeyRange,
        at: Revision,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Seen<Page>, Status> {
        let state = self.handle.state().clone();
        blocking(move || state.page(&range, at, records_max, bytes_max))
            .await?
            .map_err(state_status)
    }

    /// The keys of a lease; `None`: there is no such lease.
    pub(super) async fn lease_keys(&self, id: i64) -> Result<Seen<Option<Vec<Bytes>>>, Status> {
        let state = self.handle.state().clone();
        blocking(move || state.lease_keys(id))
            .await?
            .map_err(state_status)
    }

    /// All leases.
    pub(super) async fn leases(&self) -> Result<Seen<Vec<LeaseRecord>>, Status> {
        let state = self.handle.state().clone();
        blocking(move || state.leases()).await?.map_err(state_status)
    }

    /// How many keys a range has at a revision.
    pub(super) async fn count(&self, range: KeyRange, at: Revision) -> Result<i64, Status> {
        let state = self.handle.state().clone();
        let request = RangeRequest {
            range,
            revision: at,
            count_only: true,
            ..RangeRequest::default()
        };
        let seen = blocking(move || state.range(&request, usize::MAX)).await?;
        Ok(seen.map_err(state_status)?.answer.count)
    }

    /// Tries with what needs no reservation; then, on a thread that may block, with reservations that grow.
    async fn within_budget<T: Send + 'static>(
        &self,
        state: Arc<dyn LocalState>,
        is_short: bool,
        read: impl Fn(&dyn LocalState, usize) -> Result<Seen<T>, StateError> + Send + 'static,
        bytes_of: fn(&T) -> usize,
    ) -> Result<Answered<T>, Status> {
        if is_short {
            match read(&*state, SMALL_ANSWER_BYTES) {
                Err(StateError::TooLarge) => {}
                result => {
                    return result
                        .map(|seen| Answered { seen, held: None })
                        .map_err(state_status);
                }
            }
        }
        let budget = self.budget.clone();
        let read_large = move || {
            match read(&*state, SMALL_ANSWER_BYTES) {
                Err(StateError::TooLarge) => {}
                result => return result.map(|seen| Answered { seen, held: None }),
            }
            let mut allowed = SMALL_ANSWER_BYTES;
            loop {
                // Each step reads four times as far: all steps together at most a third more than the last.
                let next = allowed.saturating_mul(4).min(budget.free());
                let reserved = (next > allowed).then(|| budget.reserve(next)).flatten();
                let mut reserved = reserved.ok_or(StateError::TooLarge)?;
                allowed = next;
                match read(&*state, allowed) {
                    Err(StateError::TooLarge) => {}
                    Ok(seen) => {
                        reserved.shrink(bytes_of(&seen.answer));
                        return Ok(Answered {
                            seen,
                            held: Some(Held::new(reserved)),
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        blocking(read_large).await?.map_err(state_status)
    }
}

/// Runs what may block on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let stopped = |_| Status::unavailable("etcdserver: server stopped");
    tokio::task::spawn_blocking(work).await.map_err(stopped)
}

/// The status of a read that the local state did not answer.
pub(crate) fn state_status(error: StateError) -> Status {
    match error {
        StateError::Refused(error) => kvorum_proto::status_of(&error),
        StateError::TooLarge => Status::resource_exhausted(
            "kvorum: too many bytes in unary answers; set a limit, or use RangeStream",
        ),
        StateError::Failed(_) => Status::unavailable(error.to_string()),
    }
}

fn touches_only_points(txn: &TxnRequest) -> bool {
    let is_point = |op: &kvorum_model::RequestOp| match op {
        kvorum_model::RequestOp::Range(request) => request.range.is_point(),
        _ => false,
    };
    txn.compare.iter().all(|compare| compare.range.is_point())
        && txn.success.iter().chain(&txn.failure).all(is_point)
}

fn kv_bytes(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + size_of::<KeyValue>()
}

fn range_bytes(answer: &RangeResponse) -> usize {
    answer.kvs.iter().map(kv_bytes).sum()
}

fn txn_bytes(answer: &TxnResponse) -> usize {
    let bytes = |response: &ResponseOp| match response {
        ResponseOp::Range(answer) => range_bytes(answer),
        _ => 0,
    };
    answer.responses.iter().map(bytes).sum()
}
