//! All records of a range in key order, at one revision, with bounded memory. A lost connection is taken up at
//! the next key of the same revision; a server without `kvorum.v1` is read in pages instead.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::{Instant, timeout};
use tonic::{Code, Request, Streaming};

use crate::call::Backoff;
use crate::error::{Error, Verdict, describe, judge, rejected};
use crate::proto::{etcd, mvcc, v1};
use crate::{Client, kvorum};

/// Records of one page, where pages are read.
const PAGE_RECORDS: i64 = 1000;

/// An export under way.
#[derive(Debug)]
pub struct Export {
    client: Client,
    /// What remains: from the key after the last one delivered.
    key: Bytes,
    range_end: Bytes,
    /// 0 until the first answer pins it.
    revision: i64,
    serializable: bool,
    source: Source,
    /// Records received in this stream, to be compared with its total.
    in_stream: u64,
    failing_since: Option<Instant>,
    backoff: Backoff,
}

#[derive(Debug)]
enum Source {
    Closed,
    Stream(Box<Streaming<v1::ExportResponse>>),
    Pages,
    Done,
}

impl Client {
    /// Reads `[key, range_end)` in etcd's convention at `revision` (0: the newest) chunk by chunk.
    pub fn export(&self, range: (Bytes, Bytes), revision: i64, serializable: bool) -> Export {
        Export {
            client: self.clone(),
            key: range.0,
            range_end: range.1,
            revision,
            serializable,
            source: Source::Closed,
            in_stream: 0,
            failing_since: None,
            backoff: Backoff::new(),
        }
    }
}

impl Export {
    /// The revision of the export; 0 before the first chunk.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The next records in key order; `None` at the end, which only a complete export reaches.
    ///
    /// # Errors
    /// See [`Error`]; among them [`Error::Compacted`]-like refusals if history went while it ran.
    pub async fn next(&mut self) -> Result<Option<Vec<mvcc::KeyValue>>, Error> {
        loop {
            let step = match &mut self.source {
                Source::Done => return Ok(None),
                Source::Closed => self.open().await,
                Source::Pages => self.page().await,
                Source::Stream(stream) => match stream.message().await {
                    Ok(Some(answer)) => self.take(answer),
                    Ok(None) => Err(Cut::Lost("the stream ended early".to_owned())),
                    Err(status) => Err(cut(&self.client, &status).await),
                },
            };
            match step {
                Ok(records) if records.is_empty() => {}
                Ok(records) => {
                    self.failing_since = None;
                    return Ok(Some(records));
                }
                Err(Cut::Refused(error)) => return Err(error),
                Err(Cut::Lost(message)) => {
                    self.source = Source::Closed;
                    let since = *self.failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.client.inner.timeout {
                        return Err(Error::Unavailable { message });
                    }
                    tokio::time::sleep(self.backoff.next()).await;
                }
            }
        }
    }

    async fn open(&mut self) -> Result<Vec<mvcc::KeyValue>, Cut> {
        let inner = &self.client.inner;
        let (position, endpoint) = inner.endpoints.preferred();
        let lost = |message: String| {
            inner.endpoints.failed(position);
            Cut::Lost(message)
        };
        let channel = endpoint.channel(inner.attempt_timeout).await.map_err(lost)?;
        let request = v1::ExportRequest {
            key: self.key.clone(),
            range_end: self.range_end.clone(),
            revision: self.revision,
            serializable: self.serializable,
        };
        let mut request = Request::new(request);
        let signed = self
            .client
            .sign(&channel, inner.attempt_timeout, &mut request)
            .await;
        signed.map_err(|status| Cut::of(&status))?;
        let mut client = kvorum(channel);
        match timeout(inner.timeout, client.export(request)).await {
            Ok(Ok(stream)) => {
                self.in_stream = 0;
                self.source = Source::Stream(Box::new(stream.into_inner()));
                Ok(Vec::new())
            }
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                self.source = Source::Pages;
                Ok(Vec::new())
            }
            Ok(Err(status)) => {
                if std::error::Error::source(&status).is_some() {
                    endpoint.disconnect().await;
                }
                Err(match cut(&self.client, &status).await {
                    Cut::Lost(message) => lost(format!("{}: {message}", endpoint.name)),
                    refused => refused,
                })
            }
            Err(_) => Err(lost(format!("{} did not answer", endpoint.name))),
        }
    }

    fn take(&mut self, answer: v1::ExportResponse) -> Result<Vec<mvcc::KeyValue>, Cut> {
        if self.revision > 0 && answer.revision != self.revision {
            let message = format!(
                "an export at revision {} turned to {}",
                self.revision, answer.revision
            );
            return Err(Cut::Refused(Error::Protocol(message)));
        }
        self.revision = answer.revision;
        self.in_stream += answer.kvs.len() as u64;
        self.advance(&answer.kvs)?;
        if let Some(total) = answer.total {
            if total != self.in_stream {
                return Err(Cut::Refused(Error::Protocol(format!(
                    "an export of {total} records brought {}",
                    self.in_stream
                ))));
            }
            self.source = Source::Done;
        }
        Ok(answer.kvs)
    }

    async fn page(&mut self) -> Result<Vec<mvcc::KeyValue>, Cut> {
        let request = etcd::RangeRequest {
            key: self.key.clone(),
            range_end: self.range_end.clone(),
            revision: self.revision,
            limit: PAGE_RECORDS,
            serializable: self.serializable,
            ..Default::default()
        };
        let answer = self.client.range(request).await.map_err(Cut::Refused)?;
        if self.revision == 0 {
            self.revision = answer.header.as_ref().map_or(0, |header| header.revision);
        }
        self.advance(&answer.kvs)?;
        if !answer.more {
            self.source = Source::Done;
        }
        Ok(answer.kvs)
    }

    /// Moves the rest of the range behind the last of these records.
    fn advance(&mut self, records: &[mvcc::KeyValue]) -> Result<(), Cut> {
        let Some(last) = records.last() else { return Ok(()) };
        let ordered = records.windows(2).all(|pair| pair[0].key < pair[1].key);
        if !ordered || records[0].key < self.key {
            return Err(Cut::Refused(Error::Protocol(
                "an export is not in key order".to_owned(),
            )));
        }
        let mut next = BytesMut::with_capacity(last.key.len() + 1);
        next.put_slice(&last.key);
        next.put_u8(0);
        self.key = next.freeze();
        Ok(())
    }
}

/// Why a step brought nothing.
enum Cut {
    Refused(Error),
    Lost(String),
}

/// What a failure means; a client that was forgotten logs in again.
async fn cut(client: &Client, status: &tonic::Status) -> Cut {
    match client.relogin(status.message()).await {
        Some(_) => Cut::Lost(describe(status)),
        None => Cut::of(status),
    }
}

impl Cut {
    fn of(status: &tonic::Status) -> Cut {
        match judge(status) {
            Verdict::Refused | Verdict::Unimplemented => Cut::Refused(rejected(status)),
            _ => Cut::Lost(describe(status)),
        }
    }
}
