//! etcd's Watch service: requests go to the hub, its outputs come back as responses.
//!
//! A stream ends when its client goes, when this member stops, or, if the client asked for it (`hasleader`),
//! when no leader was known for three election timeouts.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use kvorum_model::{Error, KeyRange};
use kvorum_mvcc::watch::{WatchOutput, WatchRequest};
use kvorum_proto::etcdserverpb::watch_create_request::FilterType;
use kvorum_proto::etcdserverpb::watch_request::RequestUnion;
use kvorum_proto::etcdserverpb::{self as pb, watch_server::Watch};
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use crate::api::Core;
use crate::http::Phase;
use crate::metrics::Method;
use crate::watching::{StreamAnswers, StreamRequests, WatchHandle};

/// A stream that asked for a leader is ended after so many election timeouts without one.
const LEADERLESS_ELECTION_TIMEOUTS: u32 = 3;

/// See the module.
#[derive(Clone, Debug)]
pub struct EtcdWatch {
    core: Core,
    hub: WatchHandle,
}

impl EtcdWatch {
    /// The service of this member.
    pub fn new(core: Core, hub: WatchHandle) -> Self {
        EtcdWatch { core, hub }
    }
}

#[tonic::async_trait]
impl Watch for EtcdWatch {
    type WatchStream = WatchStream;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<WatchStream>, Status> {
        let started = self.core.metrics.begin(Method::Watch);
        let context = Context::of(&request, &self.core.handle);
        let context = self.core.metrics.end(Method::Watch, started, context)?;
        let (requests, answers) = self.hub.open();
        let (end, ended) = oneshot::channel();
        let core = self.core.clone();
        tokio::spawn(listen(core, context, request.into_inner(), requests, end));
        Ok(Response::new(WatchStream {
            core: self.core.clone(),
            answers,
            ended: Some(ended),
            waiting: Vec::new().into_iter(),
        }))
    }
}

/// Hands the client's requests on until the stream ends; says why, if it is not the client's doing.
async fn listen(
    core: Core,
    context: Context,
    mut client: Streaming<pb::WatchRequest>,
    requests: StreamRequests,
    mut end: oneshot::Sender<Status>,
) {
    let mut phase = core.phase.clone();
    let reason = {
        let asked = async {
            while let Ok(Some(request)) = client.message().await {
                core.metrics.message_in(Method::Watch);
                forward(&core, &context, request, &requests).await;
            }
            // The client has no more wishes, and keeps its watchers.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = asked => return,
            () = end.closed() => return,
            _ = phase.wait_for(|phase| *phase > Phase::Serving) => "etcdserver: server stopped",
            () = leaderless(&core), if context.require_leader => "etcdserver: no leader",
        }
    };
    // The stream is gone, or hears it.
    let _ = end.send(Status::unavailable(reason));
}

/// Returns once no leader was known for too long.
pub(crate) async fn leaderless(core: &Core) {
    let election_timeout = match core.handle.status().cluster.election_timeout_ms {
        0 => crate::ServeOptions::default().election_timeout,
        ms => Duration::from_millis(ms),
    };
    let mut clock = tokio::time::interval(election_timeout / 2);
    let mut since = None;
    loop {
        clock.tick().await;
        if core.handle.leader() != 0 {
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed()
            >= election_timeout * LEADERLESS_ELECTION_TIMEOUTS
        {
            return;
        }
    }
}

async fn forward(core: &Core, context: &Context, request: pb::WatchRequest, requests: &StreamRequests) {
    match request.request_union {
        Some(RequestUnion::CreateRequest(create)) => {
            let leaves_out = |kind: FilterType| create.filters.contains(&kind.into());
            let request = WatchRequest {
                no_put: leaves_out(FilterType::Noput),
                no_delete: leaves_out(FilterType::Nodelete),
                range: KeyRange {
                    key: create.key,
                    end: create.range_end,
                },
                start_revision: create.start_revision,
                watch_id: create.watch_id,
                prev_kv: create.prev_kv,
                progress_notify: create.progress_notify,
                fragment: create.fragment,
            };
            let permitted = match core.refused_anyway(&request) {
                Some(passed) => Ok(passed),
                None => core.may_watch(context, &request.range).await,
            };
            match permitted {
                Ok(passed) => requests.create(passed, request).await,
                Err(error) => requests.refuse(reason(&error)).await,
            }
        }
        Some(RequestUnion::CancelRequest(cancel)) => requests.cancel(cancel.watch_id).await,
        Some(RequestUnion::ProgressRequest(_)) => requests.progress().await,
        // As in etcd a request without content is passed over.
        None => {}
    }
}

/// A refusal as Go's gRPC prints it: what etcd's clients find in the answer.
fn reason(error: &Error) -> String {
    let status = kvorum_proto::status_of(error);
    format!(
        "rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    )
}

/// The responses of one stream.
#[derive(Debug)]
pub struct WatchStream {
    core: Core,
    answers: StreamAnswers,
    /// Why it ends, once it does; `None` after its end.
    ended: Option<oneshot::Receiver<Status>>,
    waiting: std::vec::IntoIter<WatchOutput>,
}

impl Stream for WatchStream {
    type Item = Result<pb::WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(output) = self.waiting.next() {
                self.core.metrics.message_out(Method::Watch);
                return Poll::Ready(Some(Ok(response(&self.core, output))));
            }
            let Some(ended) = &mut self.ended else {
                return Poll::Ready(None);
            };
            if let Poll::Ready(reason) = Pin::new(ended).poll(context) {
                self.ended = None;
                return Poll::Ready(reason.ok().map(Err));
            }
            match self.answers.poll(context) {
                Poll::Ready(Some(outputs)) => self.waiting = outputs.into_iter(),
                Poll::Ready(None) => {
                    self.ended = None;
                    return Poll::Ready(Some(Err(Status::unavailable("etcdserver: server stopped"))));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn response(core: &Core, output: WatchOutput) -> pb::WatchResponse {
    let with_header = |revision| pb::WatchResponse {
        header: Some(core.header(revision)),
        ..Default::default()
    };
    match output {
        WatchOutput::Created { watch_id, revision } => pb::WatchResponse {
            watch_id,
            created: true,
            ..with_header(revision)
        },
        WatchOutput::Canceled {
            watch_id,
            revision,
            created,
            reason,
            compact_revision,
        } => pb::WatchResponse {
            watch_id,
            created,
            canceled: true,
            cancel_reason: reason.into_owned(),
            compact_revision,
            ..with_header(revision)
        },
        WatchOutput::Events {
            watch_id,
            revision,
            events,
            fragment,
        } => {
            core.metrics.events.add(events.len() as u64);
            let events = events.into_iter().map(Into::into).collect();
            pb::WatchResponse {
                watch_id,
                fragment,
                events,
                ..with_header(revision)
            }
        }
        WatchOutput::Progress { watch_id, revision } => pb::WatchResponse {
            watch_id,
            ..with_header(revision)
        },
    }
}
