//! Streams: requests out of a body or a websocket, answers as lines of JSON.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};

use super::codec::ByDescriptor;
use super::json::{self, Objects};
use super::{Gateway, Method, error_body, gateway_status, in_json, note_status};

/// Requests of a stream on their way to its service.
const REQUESTS_WAITING_MAX: usize = 4;

/// Where the requests of a stream come from.
pub(super) enum Source {
    /// The only one.
    One(DynamicMessage),
    /// A body.
    Body(Incoming),
    /// Pieces of text, each of which ends a line.
    Pieces(mpsc::Receiver<Bytes>),
}

/// The answers of a stream, as lines of JSON without their ends.
pub(super) struct Lines {
    answers: Streaming<DynamicMessage>,
    /// What is wrong with the requests; `None`: nothing any more.
    failed: Option<oneshot::Receiver<Status>>,
    is_over: bool,
}

impl Stream for Lines {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let failed = self.failed.as_mut().map(|failed| Pin::new(failed).poll(context));
        let next = match failed {
            Some(Poll::Ready(Ok(status))) => Some(Err(status)),
            failed => {
                if failed.is_some_and(|failed| failed.is_ready()) {
                    // There are no more requests, all of which were good; the answers go on.
                    self.failed = None;
                }
                match Pin::new(&mut self.answers).poll_next(context) {
                    Poll::Ready(next) => next,
                    Poll::Pending => return Poll::Pending,
                }
            }
        };
        let line = next.map(|answer| answer.map(|message| json::write(&message, "{\"result\":", "}")));
        self.is_over = !matches!(line, Some(Ok(_)));
        Poll::Ready(line)
    }
}

/// The last line of a stream that failed.
pub(super) fn error_line(status: &Status) -> Bytes {
    json!({ "error": error_body(status) }).to_string().into()
}

impl Gateway {
    /// Starts a stream; its first line is there when this returns, so that the status of the answer is known.
    pub(super) async fn stream(
        &self,
        method: &Method,
        metadata: MetadataMap,
        source: Source,
    ) -> Result<(Option<Bytes>, Lines), Status> {
        let (fail, failed) = oneshot::channel();
        let codec = ByDescriptor(method.descriptor.output());
        let mut client = self.client();
        let path = method.path.clone();
        let with =
            |metadata, message| tonic::Request::from_parts(metadata, tonic::Extensions::new(), message);
        let answers = match source {
            Source::One(message) => {
                client
                    .server_streaming(with(metadata, message), path, codec)
                    .await
            }
            source => {
                let (requests, receiver) = mpsc::channel(REQUESTS_WAITING_MAX);
                let (input, bytes_max) = (method.descriptor.input(), self.body_bytes_max());
                tokio::spawn(async move {
                    let read = read(source, &input, bytes_max, &requests);
                    tokio::select! {
                        result = read => if let Err(status) = result {
                            // The stream hears it, or is over.
                            let _ = fail.send(status);
                        },
                        () = requests.closed() => {}
                    }
                });
                let extensions = tonic::Extensions::new();
                let requests =
                    tonic::Request::from_parts(metadata, extensions, ReceiverStream::new(receiver));
                client.streaming(requests, path, codec).await
            }
        };
        let mut lines = Lines {
            answers: answers?.into_inner(),
            failed: Some(failed),
            is_over: false,
        };
        let first = lines.next().await.transpose()?;
        Ok((first, lines))
    }
}

/// Hands requests on until there are no more.
async fn read(
    source: Source,
    input: &MessageDescriptor,
    bytes_max: usize,
    requests: &mpsc::Sender<DynamicMessage>,
) -> Result<(), Status> {
    let mut objects = Objects::new(bytes_max);
    let mut source = source;
    while let Some(piece) = next_piece(&mut source).await? {
        objects.push(&piece);
        while let Some(object) = objects.next()? {
            if requests.send(json::read(input, &object)?).await.is_err() {
                return Ok(());
            }
        }
    }
    match objects.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid_argument("the body ends within a request")),
    }
}

async fn next_piece(source: &mut Source) -> Result<Option<Bytes>, Status> {
    match source {
        Source::One(_) => Ok(None),
        Source::Pieces(pieces) => Ok(pieces.recv().await),
        Source::Body(body) => loop {
            let broken = |error| Status::cancelled(format!("the body cannot be read: {error}"));
            let Some(frame) = body.frame().await.transpose().map_err(broken)? else {
                return Ok(None);
            };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        },
    }
}

/// The answer to whoever started a stream.
pub(super) fn respond(started: Result<(Option<Bytes>, Lines), Status>) -> Response<Body> {
    let (first, lines) = match started {
        Ok(started) => started,
        Err(status) => {
            let mut response = in_json(gateway_status(status.code()), with_end(error_line(&status)));
            note_status(&mut response, &status);
            return response;
        }
    };
    let lines = lines.map(|line| line.unwrap_or_else(|status| error_line(&status)));
    let all = tokio_stream::iter(first).chain(lines);
    let frames = all.map(|line| Ok::<_, Status>(Frame::data(with_end(line))));
    let mut response = in_json(StatusCode::OK, Bytes::new());
    *response.body_mut() = Body::new(StreamBody::new(frames));
    response
}

fn with_end(line: Bytes) -> Bytes {
    [line.as_ref(), b"\n"].concat().into()
}

/// Whether a stream ended because its client did not want it any more.
pub(super) fn is_of_client(status: &Status) -> bool {
    status.code() == Code::Cancelled
}
