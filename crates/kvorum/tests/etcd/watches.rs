//! One stream of watches on one server: what each watcher was told, in a form that can be compared.
//!
//! Servers may put events into messages as they like, within the promises that are checked here: revisions come in
//! order, whole, and not before `created`.

use std::collections::BTreeMap;
use std::time::Duration;

use kvorum_client::proto::etcd::watch_request::RequestUnion;
use kvorum_client::proto::etcd::{self, WatchResponse};
use kvorum_client::proto::mvcc::Event;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::call::Server;
use crate::generate::watch_request;

/// Longest that a message may take.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often one asks for progress: the reference drops a question that it cannot answer at once.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// What a watcher was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Headers are levelled as in all answers.
    Created(etcd::ResponseHeader),
    Event(Event),
    Canceled {
        header: etcd::ResponseHeader,
        created: bool,
        reason: String,
        compact_revision: i64,
    },
}

/// A stream.
pub struct Stream {
    requests: mpsc::Sender<etcd::WatchRequest>,
    responses: mpsc::UnboundedReceiver<Result<WatchResponse, Status>>,
    /// What the watchers were told since the last look, by ID; -1: those that were refused.
    pub told: BTreeMap<i64, Vec<Told>>,
    /// The last revision of each watcher's events, and whether the rest of it is to follow.
    last: BTreeMap<i64, (i64, bool)>,
    /// The revision of the last progress message.
    progress: i64,
}

impl Stream {
    /// Opens a stream to a member. The reference says nothing before the first request.
    pub fn open(server: &Server, member: usize) -> Stream {
        let (requests, receiver) = mpsc::channel(16);
        let (sender, responses) = mpsc::unbounded_channel();
        let mut client = etcd::watch_client::WatchClient::new(server.channel(member));
        tokio::spawn(async move {
            let mut stream = match client.watch(ReceiverStream::new(receiver)).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return drop(sender.send(Err(status))),
            };
            while let Some(response) = stream.message().await.transpose() {
                if sender.send(response).is_err() {
                    return;
                }
            }
        });
        Stream {
            requests,
            responses,
            told: BTreeMap::new(),
            last: BTreeMap::new(),
            progress: 0,
        }
    }

    /// Creates a watcher and waits for the answer: its ID, or `None` if it was refused.
    pub async fn create(&mut self, server: &Server, request: etcd::WatchCreateRequest) -> Option<i64> {
        self.send(RequestUnion::CreateRequest(request)).await;
        loop {
            let response = self.receive(server).await;
            if response.created {
                return (!response.canceled).then_some(response.watch_id);
            }
        }
    }

    /// Asks for a watcher's end, without waiting for it.
    pub async fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id }))
            .await;
    }

    /// Waits for a watcher's cancellation.
    pub async fn canceled(&mut self, server: &Server, watch_id: i64) {
        loop {
            let response = self.receive(server).await;
            if response.canceled && response.watch_id == watch_id {
                return;
            }
        }
    }

    /// Waits until all watchers, of which there must be one, have all up to a revision.
    pub async fn settle(&mut self, server: &Server, revision: i64) {
        let deadline = Instant::now() + MESSAGE_TIMEOUT;
        self.progress = 0;
        while self.progress < revision {
            assert!(
                Instant::now() < deadline,
                "{} does not say that its watchers are at {revision}",
                server.name
            );
            self.send(RequestUnion::ProgressRequest(etcd::WatchProgressRequest {}))
                .await;
            let ask_again = Instant::now() + ASK_INTERVAL;
            while self.progress < revision {
                match timeout_at(ask_again, self.responses.recv()).await {
                    Ok(response) => {
                        self.note(server, response.expect("the stream goes on").unwrap());
                    }
                    Err(_) => break,
                }
            }
        }
    }

    async fn send(&self, union: RequestUnion) {
        self.requests.send(watch_request(union)).await.unwrap();
    }

    async fn receive(&mut self, server: &Server) -> WatchResponse {
        let message = timeout(MESSAGE_TIMEOUT, self.responses.recv()).await;
        let Ok(message) = message else {
            panic!("no message on a stream of watches from {}", server.name)
        };
        let response = message.expect("the stream goes on").unwrap();
        self.note(server, response.clone());
        response
    }

    /// Takes a response in, and checks what holds for it by itself.
    fn note(&mut self, server: &Server, response: WatchResponse) {
        let name = server.name;
        let mut header = response.header.expect("there is a header");
        let at = header.revision;
        server.level_header(&mut header);
        let id = response.watch_id;
        if response.canceled {
            self.last.remove(&id);
            self.told.entry(id).or_default().push(Told::Canceled {
                header,
                created: response.created,
                reason: response.cancel_reason,
                compact_revision: response.compact_revision,
            });
            return;
        }
        if response.created {
            assert!(
                !self.last.contains_key(&id),
                "{name}: watcher {id} is created twice"
            );
            self.last.insert(id, (0, false));
            self.told.entry(id).or_default().push(Told::Created(header));
            return;
        }
        let Some(first) = response.events.first() else {
            assert!(
                id == -1 || self.last.contains_key(&id),
                "{name}: progress of no watcher"
            );
            self.progress = at;
            return;
        };
        let Some((last, goes_on)) = self.last.get_mut(&id) else {
            panic!("{name}: events of watcher {id}, which there is not");
        };
        let of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        assert!(
            of(first) > *last || (*goes_on && of(first) == *last),
            "{name}: revision {} of watcher {id} is divided, or comes again after {last}",
            of(first)
        );
        for event in response.events {
            assert!(of(&event) >= *last, "{name}: revisions of watcher {id} go back");
            assert!(of(&event) <= at, "{name}: an event is newer than its header");
            *last = of(&event);
            self.told.entry(id).or_default().push(Told::Event(event));
        }
        *goes_on = response.fragment;
    }
}
