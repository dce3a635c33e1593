use std::time::Duration;

use kvorum_mvcc::watch::HubOptions;
use kvorum_proto::etcdserverpb::watch_request::RequestUnion;
use kvorum_proto::etcdserverpb::{self as pb, kv_client::KvClient, watch_client::WatchClient};
use kvorum_proto::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::etcd_kv::put;
use crate::replica::{Server, Setting};

/// A stream under test.
pub struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Watching {
    pub async fn open(server: &Server, metadata: &[(&'static str, &str)]) -> Watching {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        for (name, value) in metadata {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        let mut client = WatchClient::new(server.channel().await).max_decoding_message_size(usize::MAX);
        let answers = client.watch(request).await.unwrap().into_inner();
        Watching { requests, answers }
    }

    async fn send(&self, request: RequestUnion) {
        self.requests
            .send(pb::WatchRequest {
                request_union: Some(request),
            })
            .await
            .unwrap();
    }

    pub async fn create(&self, change: impl FnOnce(&mut pb::WatchCreateRequest)) {
        let mut create = pb::WatchCreateRequest {
            key: "a".into(),
            range_end: "z".into(),
            ..Default::default()
        };
        change(&mut create);
        self.send(RequestUnion::CreateRequest(create)).await;
    }

    pub async fn next(&mut self) -> pb::WatchResponse {
        self.try_next().await.unwrap()
    }

    async fn try_next(&mut self) -> Result<pb::WatchResponse, Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.answers.message());
        next.await
            .expect("an answer comes in time")
            .map(|answer| answer.expect("the stream goes on"))
    }

    /// The created answer of a watcher that starts now.
    async fn created(&mut self) -> i64 {
        let answer = self.next().await;
        assert!(answer.created && !answer.canceled, "{answer:?}");
        answer.watch_id
    }

    /// Events until so many are there, as (kind, key, value, revision).
    async fn events(&mut self, count: usize) -> Vec<(EventType, String, String, i64)> {
        let mut events = Vec::new();
        while events.len() < count {
            let answer = self.next().await;
            assert!(!answer.canceled, "{answer:?}");
            for event in answer.events {
                let kv = event.kv.clone().unwrap();
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                events.push((event.r#type(), text(&kv.key), text(&kv.value), kv.mod_revision));
            }
        }
        events
    }
}

async fn kv(server: &Server) -> KvClient<tonic::transport::Channel> {
    KvClient::new(server.channel().await)
}

#[tokio::test]
async fn changes_come_in_order_as_they_happen() {
    let server = Server::start();
    let mut kv = kv(&server).await;
    kv.put(put("a", "0")).await.unwrap();
    let mut watching = Watching::open(&server, &[]).await;
    watching.create(|_| {}).await;
    let created = watching.next().await;
    assert_eq!(
        (
            created.created,
            created.watch_id,
            created.header.unwrap().revision
        ),
        (true, 0, 2)
    );
    kv.put(put("a", "1")).await.unwrap();
    kv.put(put("z", "outside")).await.unwrap();
    kv.put(put("b", "2")).await.unwrap();
    let delete = pb::DeleteRangeRequest {
        key: "a".into(),
        range_end: "c".into(),
        ..Default::default()
    };
    kv.delete_range(delete).await.unwrap();
    let (p, d) = (EventType::Put, EventType::Delete);
    let expected = [
        (p, "a", "1", 3),
        (p, "b", "2", 5),
        (d, "a", "", 6),
        (d, "b", "", 6),
    ];
    let expected = expected.map(|(kind, key, value, at)| (kind, key.to_owned(), value.to_owned(), at));
    assert_eq!(watching.events(4).await, expected);
}

#[tokio::test]
async fn history_is_replayed_from_a_revision_with_filters_and_previous_records() {
    let server = Server::start();
    let mut kv = kv(&server).await;
    for value in ["1", "2", "3"] {
        kv.put(put("a", value)).await.unwrap();
    }
    kv.delete_range(pb::DeleteRangeRequest {
        key: "a".into(),
        ..Default::default()
    })
    .await
    .unwrap();
    let mut watching = Watching::open(&server, &[]).await;
    watching
        .create(|create| (create.start_revision, create.prev_kv) = (3, true))
        .await;
    watching.created().await;
    let answer = watching.next().await;
    let previous: Vec<_> = answer
        .events
        .iter()
        .map(|event| event.prev_kv.clone().unwrap().value)
        .collect();
    assert_eq!(previous, ["1", "2", "3"]);
    watching
        .create(|create| (create.start_revision, create.filters) = (2, vec![0]))
        .await;
    assert_eq!(watching.created().await, 1);
    assert_eq!(watching.events(1).await[0].0, EventType::Delete);
}

#[tokio::test]
async fn refusals_and_cancellations() {
    let server = Server::start();
    let mut kv = kv(&server).await;
    for n in 0..5 {
        kv.put(put("a", n.to_string())).await.unwrap();
    }
    kv.compact(pb::CompactionRequest {
        revision: 5,
        physical: false,
    })
    .await
    .unwrap();
    let mut watching = Watching::open(&server, &[]).await;

    watching.create(|create| create.range_end = "A".into()).await;
    let answer = watching.next().await;
    assert_eq!(
        (answer.created, answer.canceled, answer.watch_id),
        (true, true, -1)
    );
    assert_eq!(answer.cancel_reason, "mvcc: watcher range is empty");

    watching.create(|create| create.watch_id = 5).await;
    assert_eq!(watching.created().await, 5);
    watching.create(|create| create.watch_id = 5).await;
    let answer = watching.next().await;
    assert_eq!(
        answer.cancel_reason,
        "mvcc: duplicate watch ID provided on the WatchStream"
    );

    watching.create(|create| create.start_revision = 2).await;
    let id = watching.created().await;
    let answer = watching.next().await;
    assert_eq!(
        (answer.watch_id, answer.canceled, answer.compact_revision),
        (id, true, 5)
    );

    watching
        .send(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 5,
        }))
        .await;
    let answer = watching.next().await;
    assert_eq!((answer.watch_id, answer.canceled), (5, true));
    // Of an unknown one nothing is said: the next answer is the next creation's.
    watching
        .send(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 99,
        }))
        .await;
    watching.create(|create| create.watch_id = 6).await;
    assert_eq!(watching.created().await, 6);
}

#[tokio::test]
async fn progress_is_told_when_asked_and_at_the_interval() {
    let server = Server::with(Setting {
        progress_interval: Duration::from_millis(50),
        ..Setting::default()
    });
    let mut kv = kv(&server).await;
    let mut watching = Watching::open(&server, &[]).await;
    watching.create(|_| {}).await;
    watching.created().await;
    kv.put(put("zz", "elsewhere")).await.unwrap();
    watching
        .send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
        .await;
    let answer = watching.next().await;
    assert_eq!(
        (
            answer.watch_id,
            answer.header.unwrap().revision,
            answer.events.len()
        ),
        (-1, 2, 0)
    );
    watching.create(|create| create.progress_notify = true).await;
    let id = watching.created().await;
    for _ in 0..2 {
        let answer = watching.next().await;
        assert_eq!(
            (
                answer.watch_id,
                answer.header.unwrap().revision,
                answer.events.len()
            ),
            (id, 2, 0)
        );
    }
}

#[tokio::test]
async fn a_reader_that_lags_gets_everything_later() {
    let hub = HubOptions {
        ring_bytes: 100_000,
        stream_bytes_max: 50_000,
        ..HubOptions::default()
    };
    let server = Server::with(Setting {
        hub,
        ..Setting::default()
    });
    let mut kv = kv(&server).await;
    let mut watching = Watching::open(&server, &[]).await;
    watching.create(|_| {}).await;
    watching.created().await;
    // Far more than ring, stream, and the connection's windows hold.
    let count = 2000;
    for n in 0..count {
        kv.put(put("a", vec![b'x'; 5000])).await.unwrap();
        assert!(n < count);
    }
    let events = watching.events(count).await;
    let revisions: Vec<i64> = events.iter().map(|event| event.3).collect();
    assert_eq!(revisions, (2..2 + count as i64).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_asks_without_reading_is_not_read_any_further() {
    let hub = HubOptions {
        stream_bytes_max: 2_000,
        ..HubOptions::default()
    };
    let server = Server::with(Setting {
        hub,
        ..Setting::default()
    });
    let watching = Watching::open(&server, &[]).await;
    // Each creation is answered; nobody reads the answers. The connection's buffers take some of it.
    let mut sent = 0;
    let create = || pb::WatchCreateRequest {
        key: "a".into(),
        ..Default::default()
    };
    loop {
        let request = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create())),
        };
        match tokio::time::timeout(Duration::from_secs(1), watching.requests.send(request)).await {
            Ok(sent_one) => sent_one.unwrap(),
            Err(_) => break,
        }
        sent += 1;
        assert!(sent < 3_000_000, "requests are taken without end");
    }
    assert!(sent > 100);
}

#[tokio::test]
async fn watchers_go_with_their_stream() {
    let server = Server::start();
    let metric = |name: &str| {
        let name = name.to_owned();
        let server = &server;
        async move {
            let page = crate::rest::get(server, "/metrics").await.body;
            let line = page
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")))
                .unwrap()
                .to_owned();
            line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
        }
    };
    let mut watching = Watching::open(&server, &[]).await;
    watching.create(|_| {}).await;
    watching.create(|_| {}).await;
    watching.created().await;
    watching.created().await;
    while metric("etcd_debugging_mvcc_watcher_total").await != 2 {}
    assert_eq!(metric("etcd_debugging_mvcc_watch_stream_total").await, 1);
    drop(watching);
    while metric("etcd_debugging_mvcc_watcher_total").await != 0 {}
    assert_eq!(metric("etcd_debugging_mvcc_watch_stream_total").await, 0);
}

#[tokio::test]
async fn a_stream_that_requires_a_leader_ends_without_one() {
    let server = Server::start();
    let mut patient = Watching::open(&server, &[]).await;
    let mut strict = Watching::open(&server, &[("hasleader", "true")]).await;
    for watching in [&mut patient, &mut strict] {
        watching.create(|_| {}).await;
        watching.created().await;
    }
    let leaderless = |status: &mut kvorum_node::NodeStatus| {
        status.leader = 0;
    };
    server.publish(leaderless);
    let status = strict.try_next().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
    kv(&server).await.put(put("a", "1")).await.unwrap();
    assert_eq!(patient.events(1).await[0].1, "a");
}

#[tokio::test]
async fn a_drain_ends_streams_with_a_word() {
    let mut server = Server::start();
    let mut watching = Watching::open(&server, &[]).await;
    watching.create(|_| {}).await;
    watching.created().await;
    let http = server.http.take().unwrap();
    let draining = tokio::task::spawn_blocking(move || http.drain(Duration::from_secs(20)));
    let status = watching.try_next().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "etcdserver: server stopped")
    );
    drop(watching);
    draining.await.unwrap();
}
