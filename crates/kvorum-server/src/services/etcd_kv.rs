//! etcd's KV service.

use std::time::Duration;

use kvorum_model::{self as model, Command, Reply};
use kvorum_mvcc::Applied;
use kvorum_proto::convert::{delete_response, put_response, range_response, txn_response};
use kvorum_proto::etcdserverpb::{self as pb, kv_server::Kv};
use kvorum_proto::{Outcome, Rejected, refused, status_of};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Context;
use crate::api::Core;
use crate::handle::WriteError;
use crate::metrics::Method;
use crate::reads::Answered;

/// Records in the first chunk of a stream.
const FIRST_CHUNK_RECORDS: usize = 10;
/// How often a caller that waits for physical removal looks.
const REMOVAL_POLL: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Clone, Debug)]
pub struct EtcdKv(Core);

impl EtcdKv {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        EtcdKv(core)
    }

    async fn write(&self, context: &Context, command: Command) -> Result<Applied, Status> {
        self.0.write(context, command).await.map_err(Status::from)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<pb::PutResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let applied = self
            .write(&context, Command::Put(request.into_inner().into()))
            .await?;
        let header = self.0.header_of(&applied);
        match applied.result {
            Ok(Reply::Put(answer)) => Ok(put_response(answer, header)),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn delete(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let applied = self
            .write(&context, Command::DeleteRange(request.into_inner().into()))
            .await?;
        let header = self.0.header_of(&applied);
        match applied.result {
            Ok(Reply::DeleteRange(answer)) => Ok(delete_response(answer, header)),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn read(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let request = request.into_inner();
        let is_local = request.serializable;
        if !is_local {
            self.0.refuse_as_learner()?;
        }
        let request = model::RangeRequest::try_from(request)?;
        request
            .validate(&self.0.handle.limits())
            .map_err(|error| status_of(&error))?;
        if !is_local {
            self.0.barrier(&context).await?;
        }
        self.0.metrics.ranges.add_one();
        let Answered { seen, held } = self.0.range(&context, request).await?;
        let mut response = Response::new(range_response(seen.answer, self.0.header(seen.revision)));
        response.extensions_mut().extend(held_extension(held));
        Ok(response)
    }

    pub(super) async fn transact(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let request = request.into_inner();
        let is_local = is_serializable(&request);
        let not_applied = |rejected: Rejected| Outcome::NotApplied.mark(rejected.into());
        let txn = model::TxnRequest::try_from(request).map_err(not_applied)?;
        if txn.is_read_only() {
            txn.validate(&self.0.handle.limits())
                .map_err(|error| status_of(&error))?;
            if !is_local {
                self.0.barrier(&context).await?;
            }
            self.0.metrics.txns.add_one();
            let Answered { seen, held } = self.0.read_txn(&context, txn).await?;
            let mut response = Response::new(txn_response(seen.answer, self.0.header(seen.revision)));
            response.extensions_mut().extend(held_extension(held));
            return Ok(response);
        }
        let applied = self.write(&context, Command::Txn(txn)).await?;
        let header = self.0.header_of(&applied);
        match applied.result {
            Ok(Reply::Txn(answer)) => Ok(Response::new(txn_response(answer, header))),
            other => Err(unexpected(other)),
        }
    }

    async fn compaction(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<pb::CompactionResponse, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let pb::CompactionRequest { revision, physical } = request.into_inner();
        let applied = self.write(&context, Command::Compact(revision)).await?;
        let header = self.0.header_of(&applied);
        match applied.result {
            Ok(Reply::Compact) => {}
            other => return Err(unexpected(other)),
        }
        let mut poll = tokio::time::interval(REMOVAL_POLL);
        while physical && self.0.handle.state().facts().removed < revision {
            poll.tick().await;
            if std::time::Instant::now() >= context.deadline {
                return Err(WriteError::TimedOut.into());
            }
        }
        Ok(pb::CompactionResponse { header: Some(header) })
    }

    /// Starts a stream; what it sends is produced by a task that ends with its receiver.
    async fn stream(&self, request: Request<pb::RangeRequest>) -> Result<Response<RangeStream>, Status> {
        let context = Context::of(&request, &self.0.handle)?;
        let request = request.into_inner();
        let is_local = request.serializable;
        if !is_local {
            self.0.refuse_as_learner()?;
        }
        let request = model::RangeRequest::try_from(request)?;
        request
            .validate(&self.0.handle.limits())
            .map_err(|error| status_of(&error))?;
        if !is_streamable(&request) {
            return Err(Status::unimplemented(
                "etcdserver: RangeStream neither sorts nor filters by revision",
            ));
        }
        if !is_local {
            self.0.barrier(&context).await?;
        }
        let (chunks, receiver) = tokio::sync::mpsc::channel(1);
        let core = self.0.clone();
        tokio::spawn(async move {
            let mut streaming = Streaming::new(core, context, request);
            loop {
                let chunk = streaming.next().await;
                streaming.core.metrics.message_out(Method::RangeStream);
                let is_last = streaming.is_over || chunk.is_err();
                let chunk = chunk.map(|answer| pb::RangeStreamResponse {
                    range_response: Some(answer),
                });
                if chunks.send(chunk).await.is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The way of a stream through its range: one page of the store at a time, all at one revision.
struct Streaming {
    core: Core,
    context: Context,
    request: model::RangeRequest,
    /// 0 until the first page pins it.
    revision: i64,
    /// Where the next page begins.
    rest: model::KeyRange,
    chunk_records: usize,
    sent: i64,
    is_over: bool,
}

impl Streaming {
    fn new(core: Core, context: Context, request: model::RangeRequest) -> Self {
        let (revision, rest) = (request.revision.max(0), request.range.clone());
        Streaming {
            core,
            context,
            request,
            revision,
            rest,
            chunk_records: FIRST_CHUNK_RECORDS,
            sent: 0,
            is_over: false,
        }
    }

    /// The next chunk; header, `more` and `count` are in the last.
    async fn next(&mut self) -> Result<pb::RangeResponse, Status> {
        let bytes_max = self.core.handle.limits().request_bytes_max;
        if self.request.count_only {
            return self.last(Vec::new(), false).await;
        }
        let left = match self.request.limit {
            ..=0 => usize::MAX,
            limit => usize::try_from(limit - self.sent).unwrap_or(usize::MAX),
        };
        let records_max = self.chunk_records.min(left);
        let seen = self
            .core
            .page(
                &self.context,
                self.rest.clone(),
                self.revision,
                (records_max, bytes_max),
            )
            .await?;
        if self.revision == 0 {
            self.revision = seen.revision;
        }
        let page = seen.answer;
        // Twice as many next time if these were far below the size that a chunk should have, half if above.
        let bytes: usize = page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        if bytes >= bytes_max {
            self.chunk_records = (self.chunk_records / 2).max(1);
        } else if bytes < bytes_max / 2 {
            self.chunk_records = self.chunk_records.saturating_mul(2);
        }
        self.sent += page.kvs.len() as i64;
        let mut kvs = page.kvs;
        if self.request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        match page.next {
            Some(next) if page_goes_on(self.request.limit, self.sent) => {
                // One key longer than a point: the rest of the range, whatever form its end has.
                self.rest.key = next;
                let kvs = kvs.into_iter().map(Into::into).collect();
                Ok(pb::RangeResponse {
                    kvs,
                    ..pb::RangeResponse::default()
                })
            }
            next => self.last(kvs, next.is_some()).await,
        }
    }

    async fn last(&mut self, kvs: Vec<model::KeyValue>, more: bool) -> Result<pb::RangeResponse, Status> {
        self.is_over = true;
        let count = match more || self.request.count_only {
            true => {
                self.core
                    .count(&self.context, self.request.range.clone(), self.revision)
                    .await?
            }
            false => self.sent,
        };
        let current = self.core.handle.state().facts().revision;
        let header = self.core.header(current);
        Ok(range_response(model::RangeResponse { kvs, more, count }, header))
    }
}

fn page_goes_on(limit: i64, sent: i64) -> bool {
    limit <= 0 || sent < limit
}

/// Whether a stream can answer it: in key order, without filters.
fn is_streamable(request: &model::RangeRequest) -> bool {
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    let natural = matches!(
        (request.sort_order, request.sort_target),
        (
            model::SortOrder::None | model::SortOrder::Ascend,
            model::SortTarget::Key
        )
    );
    natural && filters == [0; 4]
}

/// As etcd: a transaction of nothing but serializable reads is one.
fn is_serializable(txn: &pb::TxnRequest) -> bool {
    txn.success
        .iter()
        .chain(&txn.failure)
        .all(|op| match &op.request {
            Some(pb::request_op::Request::RequestRange(range)) => range.serializable,
            _ => false,
        })
}

/// A refusal by the state machine; or, as no version of it does, an answer to something else.
pub(crate) fn unexpected(result: Result<Reply, model::Error>) -> Status {
    match result {
        Err(error) => refused(&error),
        // A session keeps long answers as counts only.
        Ok(_) => Outcome::Unknown.mark(Status::internal("kvorum: the answer does not fit the request")),
    }
}

fn held_extension(held: Option<crate::budget::Held>) -> tonic::Extensions {
    let mut extensions = tonic::Extensions::new();
    if let Some(held) = held {
        extensions.insert(held);
    }
    extensions
}

type RangeStream = ReceiverStream<Result<pb::RangeStreamResponse, Status>>;

#[tonic::async_trait]
impl Kv for EtcdKv {
    type RangeStreamStream = RangeStream;

    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let started = self.0.metrics.begin(Method::Range);
        self.0
            .metrics
            .end(Method::Range, started, self.read(request).await)
    }

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<RangeStream>, Status> {
        let started = self.0.metrics.begin(Method::RangeStream);
        self.0
            .metrics
            .end(Method::RangeStream, started, self.stream(request).await)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let started = self.0.metrics.begin(Method::Put);
        self.0
            .metrics
            .end(Method::Put, started, self.put(request).await)
            .map(Response::new)
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let started = self.0.metrics.begin(Method::DeleteRange);
        self.0
            .metrics
            .end(Method::DeleteRange, started, self.delete(request).await)
            .map(Response::new)
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let started = self.0.metrics.begin(Method::Txn);
        self.0
            .metrics
            .end(Method::Txn, started, self.transact(request).await)
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let started = self.0.metrics.begin(Method::Compact);
        self.0
            .metrics
            .end(Method::Compact, started, self.compaction(request).await)
            .map(Response::new)
    }
}
