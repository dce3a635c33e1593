//! Watches that go on where they were: after a lost connection the watcher is created anew, perhaps on another
//! member, from the revision after the last one that was delivered. Nothing is skipped and nothing repeated.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Streaming};

use crate::call::Backoff;
use crate::error::{Error, Verdict, describe, judge, rejected};
use crate::proto::{etcd, mvcc};
use crate::{Client, MESSAGE_BYTES_MAX};

/// Most logins in a row that do not help.
const LOGINS_MAX: usize = 3;

/// What to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// First key.
    pub key: Bytes,
    /// Empty: the one key; otherwise as in etcd's ranges (see [`crate::prefix_range`]).
    pub range_end: Bytes,
    /// From this revision on; 0: from now on.
    pub start_revision: i64,
    /// Give the record before each event.
    pub prev_kv: bool,
    /// Ask for a [`WatchItem::Progress`] now and then.
    pub progress_notify: bool,
}

/// What a watcher reports.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// The watcher stands at a server; everything after `revision` will be seen.
    Created {
        /// The revision before the first that can come.
        revision: i64,
    },
    /// Changes in revision order, all of a revision together.
    Events(Vec<mvcc::Event>),
    /// Everything up to this revision was delivered.
    Progress {
        /// That revision.
        revision: i64,
    },
    /// The connection was lost; the watcher is being created anew. Comes once for each loss.
    Interrupted {
        /// What was seen, in one line.
        reason: String,
    },
}

/// One watcher. It lives as long as this value.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    options: WatchOptions,
    /// The first revision not yet delivered; 0 until a server has said where now is.
    next_revision: i64,
    stream: Option<Stream>,
    backoff: Backoff,
    /// Whether the present loss was reported.
    reported: bool,
    /// Logins since a server took the watcher.
    logins: usize,
}

#[derive(Debug)]
struct Stream {
    answers: Streaming<etcd::WatchResponse>,
    /// Keeps the request side open.
    requests: mpsc::Sender<etcd::WatchRequest>,
    position: usize,
}

impl Client {
    /// A watcher; it connects when it is asked for its first item.
    pub fn watch(&self, options: WatchOptions) -> Watcher {
        Watcher {
            client: self.clone(),
            next_revision: options.start_revision,
            options,
            stream: None,
            backoff: Backoff::new(),
            reported: false,
            logins: 0,
        }
    }
}

impl Watcher {
    /// The next thing to know; waits for it, across lost connections, without a deadline.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::Compacted`] if the history to resume from is gone, [`Error::Rejected`] if the server refuses the
    /// watcher; after either, the watcher is over.
    pub async fn next(&mut self) -> Result<WatchItem, Error> {
        loop {
            let Some(stream) = &mut self.stream else {
                match self.open().await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(Loss::Final(error)) => return Err(error),
                    Err(Loss::Passing(reason)) if !self.reported => {
                        self.reported = true;
                        return Ok(WatchItem::Interrupted { reason });
                    }
                    Err(Loss::Passing(_)) => tokio::time::sleep(self.backoff.next()).await,
                }
                continue;
            };
            let position = stream.position;
            let loss = match stream.answers.message().await {
                // Nothing is lost and the server is well: it only wants another token.
                Ok(Some(answer)) if self.wants_login(&answer).await => {
                    self.stream = None;
                    continue;
                }
                Ok(Some(answer)) => match self.take(answer) {
                    Ok(Some(item)) => return Ok(item),
                    Ok(None) => continue,
                    Err(loss) => loss,
                },
                Ok(None) => Loss::Passing("the server ended the stream".to_owned()),
                Err(status) => Loss::of(&status),
            };
            self.stream = None;
            self.client.inner.endpoints.failed(position);
            match loss {
                Loss::Final(error) => return Err(error),
                Loss::Passing(reason) => {
                    self.reported = true;
                    return Ok(WatchItem::Interrupted { reason });
                }
            }
        }
    }

    /// Asks how far the watcher is: a [`WatchItem::Progress`] follows, unless it is behind or not connected at the
    /// moment.
    pub fn request_progress(&self) {
        let progress = etcd::watch_request::RequestUnion::ProgressRequest(etcd::WatchProgressRequest {});
        let request = etcd::WatchRequest {
            request_union: Some(progress),
        };
        if let Some(stream) = &self.stream {
            // One that still waits to be sent is as good.
            let _ = stream.requests.try_send(request);
        }
    }

    async fn open(&self) -> Result<Stream, Loss> {
        let inner = &self.client.inner;
        let (position, endpoint) = inner.endpoints.preferred();
        let failed = |reason: String| {
            inner.endpoints.failed(position);
            Loss::Passing(reason)
        };
        let channel = endpoint.channel(inner.attempt_timeout).await.map_err(failed)?;
        let create = etcd::WatchCreateRequest {
            key: self.options.key.clone(),
            range_end: self.options.range_end.clone(),
            start_revision: self.next_revision,
            progress_notify: self.options.progress_notify,
            prev_kv: self.options.prev_kv,
            ..Default::default()
        };
        let create = etcd::watch_request::RequestUnion::CreateRequest(create);
        let (requests, receiver) = mpsc::channel(1);
        let create = etcd::WatchRequest {
            request_union: Some(create),
        };
        requests.try_send(create).expect("the channel is new and empty");
        let mut request = Request::new(ReceiverStream::new(receiver));
        // A member without a leader ends the stream instead of keeping silent.
        request
            .metadata_mut()
            .insert("hasleader", AsciiMetadataValue::from_static("true"));
        let signed = self
            .client
            .sign(&channel, inner.attempt_timeout, &mut request)
            .await;
        signed.map_err(|status| Loss::of(&status))?;
        let mut client =
            etcd::watch_client::WatchClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answers = match tokio::time::timeout(inner.attempt_timeout, client.watch(request)).await {
            Ok(Ok(answers)) => answers.into_inner(),
            Ok(Err(status)) => {
                if std::error::Error::source(&status).is_some() {
                    endpoint.disconnect().await;
                }
                return Err(match Loss::of(&status) {
                    Loss::Passing(reason) => failed(format!("{}: {reason}", endpoint.name)),
                    refused => refused,
                });
            }
            Err(_) => return Err(failed(format!("{} did not answer", endpoint.name))),
        };
        Ok(Stream {
            answers,
            requests,
            position,
        })
    }

    /// Whether the watcher was refused for the want of another login, and may be created once more.
    async fn wants_login(&mut self, answer: &etcd::WatchResponse) -> bool {
        let wants = answer.canceled && self.logins < LOGINS_MAX;
        let wants = wants && self.client.relogin(&answer.cancel_reason).await.is_some();
        self.logins += usize::from(wants);
        wants
    }

    fn take(&mut self, answer: etcd::WatchResponse) -> Result<Option<WatchItem>, Loss> {
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        if answer.canceled {
            if answer.compact_revision > 0 {
                let compact_revision = answer.compact_revision;
                return Err(Loss::Final(Error::Compacted { compact_revision }));
            }
            if answer.cancel_reason.contains("no leader") {
                return Err(Loss::Passing(answer.cancel_reason));
            }
            let message = match answer.cancel_reason.as_str() {
                "" => "the server cancelled the watch".to_owned(),
                reason => reason.to_owned(),
            };
            return Err(Loss::Final(Error::Rejected {
                code: tonic::Code::Cancelled,
                message,
            }));
        }
        if answer.created {
            self.backoff = Backoff::new();
            (self.reported, self.logins) = (false, 0);
            if self.next_revision == 0 {
                self.next_revision = revision + 1;
            }
            return Ok(Some(WatchItem::Created {
                revision: self.next_revision - 1,
            }));
        }
        if let Some(last) = answer.events.last() {
            let Some(kv) = &last.kv else {
                return Err(Loss::Final(Error::Protocol(
                    "an event without a record".to_owned(),
                )));
            };
            self.next_revision = kv.mod_revision + 1;
            return Ok(Some(WatchItem::Events(answer.events)));
        }
        // A notification of progress: nothing at or below its revision is still to come.
        self.next_revision = self.next_revision.max(revision + 1);
        Ok(Some(WatchItem::Progress { revision }))
    }
}

/// Why a stream is over.
enum Loss {
    Final(Error),
    Passing(String),
}

impl Loss {
    fn of(status: &tonic::Status) -> Loss {
        match judge(status) {
            Verdict::Refused | Verdict::Unimplemented => Loss::Final(rejected(status)),
            _ => Loss::Passing(describe(status)),
        }
    }
}
