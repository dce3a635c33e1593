//! The client's promises, against a server that answers as told and remembers what it was asked.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvorum_client::proto::etcd::{self, kv_server, watch_server};
use kvorum_client::proto::mvcc;
use kvorum_client::proto::v1::{self, kvorum_server};
use kvorum_client::{Client, Error, Options, WatchItem, WatchOptions, prefix_range};
use kvorum_proto::Outcome;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the server was asked, and what it is to answer.
#[derive(Default)]
struct Script {
    /// Failures of the next puts; none left: success.
    puts: VecDeque<Status>,
    /// `kvorum-session` and key of each put that arrived.
    seen: Vec<(Option<String>, String)>,
    /// Sequences under way, for each session, and the widest distance from the oldest to the newest.
    under_way: BTreeMap<u64, BTreeSet<u64>>,
    widest: u64,
    /// How long each put takes.
    delay: Duration,
    sessions: u64,
    no_sessions: bool,
    /// Answers of the next watch streams, each of which then ends.
    watches: VecDeque<Vec<etcd::WatchResponse>>,
    watch_starts: Vec<i64>,
    /// Answers of the next exports.
    exports: VecDeque<Vec<v1::ExportResponse>>,
    export_requests: Vec<v1::ExportRequest>,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Script>>);

impl Server {
    async fn start(script: Script) -> (Self, String) {
        let server = Server(Arc::new(Mutex::new(script)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = tonic::transport::Server::builder()
            .add_service(kv_server::KvServer::new(server.clone()))
            .add_service(watch_server::WatchServer::new(server.clone()))
            .add_service(kvorum_server::KvorumServer::new(server.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        (server, address)
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }
}

fn header(revision: i64) -> Option<etcd::ResponseHeader> {
    Some(etcd::ResponseHeader {
        revision,
        ..Default::default()
    })
}

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl kv_server::Kv for Server {
    type RangeStreamStream = Answers<etcd::RangeStreamResponse>;

    async fn put(&self, request: Request<etcd::PutRequest>) -> Result<Response<etcd::PutResponse>, Status> {
        let session = request
            .metadata()
            .get("kvorum-session")
            .map(|v| v.to_str().unwrap().to_owned());
        let key = String::from_utf8(request.into_inner().key.to_vec()).unwrap();
        let name = session.as_deref().and_then(|s| s.split_once('-'));
        let name: Option<(u64, u64)> = name.map(|(id, seq)| (id.parse().unwrap(), seq.parse().unwrap()));
        let (failure, delay) = {
            let mut script = self.script();
            script.seen.push((session, key));
            if let Some((id, seq)) = name {
                let under_way = script.under_way.entry(id).or_default();
                under_way.insert(seq);
                let width = under_way.last().unwrap() - under_way.first().unwrap();
                script.widest = script.widest.max(width);
            }
            (script.puts.pop_front(), script.delay)
        };
        tokio::time::sleep(delay).await;
        if let Some((id, seq)) = name {
            self.script().under_way.get_mut(&id).unwrap().remove(&seq);
        }
        match failure {
            Some(status) => Err(status),
            None => Ok(Response::new(etcd::PutResponse {
                header: header(7),
                prev_kv: None,
            })),
        }
    }

    async fn range(&self, _: Request<etcd::RangeRequest>) -> Result<Response<etcd::RangeResponse>, Status> {
        no()
    }
    async fn range_stream(
        &self,
        _: Request<etcd::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        no()
    }
    async fn delete_range(
        &self,
        _: Request<etcd::DeleteRangeRequest>,
    ) -> Result<Response<etcd::DeleteRangeResponse>, Status> {
        no()
    }
    async fn txn(&self, _: Request<etcd::TxnRequest>) -> Result<Response<etcd::TxnResponse>, Status> {
        no()
    }
    async fn compact(
        &self,
        _: Request<etcd::CompactionRequest>,
    ) -> Result<Response<etcd::CompactionResponse>, Status> {
        no()
    }
}

#[tonic::async_trait]
impl watch_server::Watch for Server {
    type WatchStream = Answers<etcd::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<etcd::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let first = request.into_inner().next().await.unwrap()?;
        let Some(etcd::watch_request::RequestUnion::CreateRequest(create)) = first.request_union else {
            return Err(Status::invalid_argument("the first request creates"));
        };
        let mut script = self.script();
        script.watch_starts.push(create.start_revision);
        match script.watches.pop_front() {
            Some(answers) => Ok(Response::new(Box::pin(tokio_stream::iter(
                answers.into_iter().map(Ok),
            )))),
            None => Ok(Response::new(Box::pin(tokio_stream::pending()))),
        }
    }
}

#[tonic::async_trait]
impl kvorum_server::Kvorum for Server {
    type ExportStream = Answers<v1::ExportResponse>;

    async fn register_session(
        &self,
        _: Request<v1::RegisterSessionRequest>,
    ) -> Result<Response<v1::RegisterSessionResponse>, Status> {
        let mut script = self.script();
        if script.no_sessions {
            return no();
        }
        script.sessions += 1;
        Ok(Response::new(v1::RegisterSessionResponse {
            session_id: script.sessions,
        }))
    }

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let mut script = self.script();
        script.export_requests.push(request.into_inner());
        let answers = script.exports.pop_front().unwrap();
        Ok(Response::new(Box::pin(tokio_stream::iter(
            answers.into_iter().map(Ok),
        ))))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        no()
    }
    async fn members(&self, _: Request<v1::MembersRequest>) -> Result<Response<v1::MembersResponse>, Status> {
        no()
    }
    async fn member_add(
        &self,
        _: Request<v1::MemberAddRequest>,
    ) -> Result<Response<v1::MemberAddResponse>, Status> {
        no()
    }
    async fn member_promote(
        &self,
        _: Request<v1::MemberPromoteRequest>,
    ) -> Result<Response<v1::MemberPromoteResponse>, Status> {
        no()
    }
    async fn member_remove(
        &self,
        _: Request<v1::MemberRemoveRequest>,
    ) -> Result<Response<v1::MemberRemoveResponse>, Status> {
        no()
    }
    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        no()
    }
    async fn member_replace(
        &self,
        _: Request<v1::MemberReplaceRequest>,
    ) -> Result<Response<v1::MemberReplaceResponse>, Status> {
        no()
    }
    async fn transfer_leadership(
        &self,
        _: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        no()
    }
}

fn client(endpoints: &[&str], timeout: Duration) -> Client {
    let endpoints = endpoints.iter().map(ToString::to_string).collect();
    Client::new(Options {
        endpoints,
        timeout,
        ..Options::default()
    })
    .unwrap()
}

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);

fn unknown() -> Status {
    Outcome::Unknown.mark(Status::unavailable("etcdserver: request timed out"))
}

fn not_applied() -> Status {
    Outcome::NotApplied.mark(Status::unavailable("etcdserver: no leader"))
}

fn expired() -> Status {
    Outcome::Unknown.mark(Status::failed_precondition(
        "kvorum: session expired; outcome unknown",
    ))
}

fn sessions(server: &Server) -> Vec<String> {
    server
        .script()
        .seen
        .iter()
        .map(|(session, _)| session.clone().unwrap_or_default())
        .collect()
}

#[tokio::test]
async fn a_write_of_unknown_outcome_is_sent_again_under_its_number() {
    let (server, address) = Server::start(Script {
        puts: [unknown(), unknown()].into(),
        ..Default::default()
    })
    .await;
    let client = client(&[&address], LONG);
    client.put("a", "1").await.unwrap();
    client.put("b", "2").await.unwrap();
    assert_eq!(sessions(&server), ["1-1", "1-1", "1-1", "1-2"]);
}

#[tokio::test]
async fn without_sessions_a_doubtful_write_is_sent_once_and_says_so() {
    let (server, address) = Server::start(Script {
        puts: [unknown()].into(),
        no_sessions: true,
        ..Default::default()
    })
    .await;
    let client = client(&[&address], LONG);
    assert!(client.put("a", "1").await.unwrap_err().is_unknown());
    assert_eq!(sessions(&server), [""]);
    // What certainly did not happen may be sent again.
    server.script().puts = [not_applied()].into();
    client.put("b", "1").await.unwrap();
    assert_eq!(sessions(&server).len(), 3);
}

#[tokio::test]
async fn other_endpoints_take_over() {
    let (first, a) = Server::start(Script {
        puts: [not_applied()].into(),
        ..Default::default()
    })
    .await;
    let (second, b) = Server::start(Script {
        sessions: 100,
        ..Default::default()
    })
    .await;
    let client = client(&["127.0.0.1:1", &a, &b], LONG);
    client.put("a", "1").await.unwrap();
    assert_eq!(sessions(&first), ["1-1"]);
    assert_eq!(sessions(&second), ["1-1"]);
}

#[tokio::test]
async fn an_expired_session_is_renewed_unless_the_write_may_have_happened() {
    let (server, address) = Server::start(Script {
        puts: [expired()].into(),
        ..Default::default()
    })
    .await;
    let client = client(&[&address], LONG);
    client.put("a", "1").await.unwrap();
    assert_eq!(sessions(&server), ["1-1", "2-1"]);
    server.script().puts = [unknown(), expired()].into();
    let error = client.put("b", "1").await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    // The number that was given up blocks its session: the next write goes under another one.
    client.put("c", "1").await.unwrap();
    assert_eq!(sessions(&server)[2..], ["2-2", "2-2", "3-1"]);
}

#[tokio::test]
async fn the_deadline_ends_a_call_with_what_is_known() {
    let (server, address) = Server::start(Script::default()).await;
    let client = client(&[&address], SHORT);
    server.script().puts = std::iter::repeat_with(not_applied).take(1000).collect();
    match client.put("a", "1").await.unwrap_err() {
        Error::Unavailable { message } => assert!(message.contains("no leader"), "{message}"),
        other => panic!("{other:?}"),
    }
    // One attempt in doubt makes the whole call doubtful.
    server.script().puts = std::iter::once(unknown())
        .chain(std::iter::repeat_with(not_applied).take(1000))
        .collect();
    assert!(client.put("b", "1").await.unwrap_err().is_unknown());
    server.script().puts = [Status::invalid_argument("etcdserver: request is too large")].into();
    match client.put("c", "1").await.unwrap_err() {
        Error::Rejected { code, .. } => assert_eq!(code, Code::InvalidArgument),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn many_writes_in_flight_stay_in_the_windows_of_their_sessions() {
    let delay = Duration::from_millis(20);
    let (server, address) = Server::start(Script {
        delay,
        ..Default::default()
    })
    .await;
    let client = client(&[&address], LONG);
    let writes: Vec<_> = (0..500)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move { client.put(format!("k{i}"), "v").await })
        })
        .collect();
    for write in writes {
        write.await.unwrap().unwrap();
    }
    let script = server.script();
    assert_eq!(script.seen.len(), 500);
    assert!(script.widest < 64, "{}", script.widest);
    // The first session is full before anything is answered; later ones, on a slow machine, have room again soon.
    assert!((2..=16).contains(&script.sessions), "{}", script.sessions);
}

fn event(key: &'static str, revision: i64) -> mvcc::Event {
    let kv = mvcc::KeyValue {
        key: key.into(),
        mod_revision: revision,
        ..Default::default()
    };
    mvcc::Event {
        kv: Some(kv),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_watch_resumes_after_the_last_revision_delivered() {
    let created = |revision| etcd::WatchResponse {
        header: header(revision),
        created: true,
        ..Default::default()
    };
    let events = |revision| etcd::WatchResponse {
        header: header(revision),
        events: vec![event("a", revision)],
        ..Default::default()
    };
    let progress = |revision| etcd::WatchResponse {
        header: header(revision),
        ..Default::default()
    };
    let compacted = etcd::WatchResponse {
        canceled: true,
        compact_revision: 30,
        ..Default::default()
    };
    let watches = [
        vec![created(5)],
        vec![created(9), events(7), progress(9)],
        vec![created(12), compacted],
    ];
    let (server, address) = Server::start(Script {
        watches: watches.into(),
        ..Default::default()
    })
    .await;
    let mut watcher = client(&[&address], LONG).watch(WatchOptions {
        key: "a".into(),
        ..Default::default()
    });
    let mut seen = Vec::new();
    let end = loop {
        match watcher.next().await {
            Ok(WatchItem::Created { revision }) => seen.push(format!("created {revision}")),
            Ok(WatchItem::Events(events)) => {
                seen.extend(
                    events
                        .iter()
                        .map(|event| format!("event {}", event.kv.as_ref().unwrap().mod_revision)),
                );
            }
            Ok(WatchItem::Progress { revision }) => seen.push(format!("progress {revision}")),
            Ok(WatchItem::Interrupted { .. }) => seen.push("interrupted".to_owned()),
            Err(error) => break error,
        }
    };
    assert!(matches!(end, Error::Compacted { compact_revision: 30 }), "{end}");
    let expected = [
        "created 5",
        "interrupted",
        "created 5",
        "event 7",
        "progress 9",
        "interrupted",
        "created 9",
    ];
    assert_eq!(seen, expected);
    assert_eq!(server.script().watch_starts, [0, 6, 10]);
}

fn chunk(revision: i64, keys: &[&'static str], total: Option<u64>) -> v1::ExportResponse {
    let kvs = keys
        .iter()
        .map(|key| mvcc::KeyValue {
            key: (*key).into(),
            ..Default::default()
        })
        .collect();
    v1::ExportResponse { revision, kvs, total }
}

#[tokio::test]
async fn an_export_that_was_cut_goes_on_at_its_revision() {
    let exports = [
        vec![chunk(40, &["a", "b"], None), chunk(40, &["c"], None)],
        vec![chunk(40, &["d"], None), chunk(40, &["e"], Some(2))],
    ];
    let (server, address) = Server::start(Script {
        exports: exports.into(),
        ..Default::default()
    })
    .await;
    let mut export = client(&[&address], LONG).export(prefix_range(b""), 0, false);
    let mut keys = Vec::new();
    while let Some(records) = export.next().await.unwrap() {
        keys.extend(
            records
                .into_iter()
                .map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()),
        );
    }
    assert_eq!(keys, ["a", "b", "c", "d", "e"]);
    let script = server.script();
    assert_eq!(script.export_requests[1].key, "c\0");
    assert_eq!(script.export_requests[1].revision, 40);
}

#[tokio::test]
async fn an_export_that_lost_records_is_not_complete() {
    let exports = [vec![chunk(40, &["a"], Some(2))]];
    let (_server, address) = Server::start(Script {
        exports: exports.into(),
        ..Default::default()
    })
    .await;
    let mut export = client(&[&address], LONG).export(prefix_range(b""), 0, false);
    assert!(matches!(export.next().await, Err(Error::Protocol(_))));
}
