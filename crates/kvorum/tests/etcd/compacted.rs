//! What is asked of compacted history: watches that begin in it, the record before an event, and HashKV.

use kvorum_client::proto::etcd;
use tonic::Code;

use crate::call::{Answer, Request, Server};
use crate::cluster::Cluster;
use crate::reference::Reference;
use crate::watches::{Stream, Told};

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// kvorum and the reference, on which a key has changed at the revisions 2 to 6, and 2 and 3 are compacted.
async fn compacted_at_4(cluster: &Cluster, reference: &Reference) -> [Server; 2] {
    let servers = [
        Server::connect("kvorum", &cluster.endpoints(0)).await,
        Server::connect("the reference", &[&reference.client]).await,
    ];
    for server in &servers {
        for value in ["2", "3", "4", "5", "6"] {
            let put = etcd::PutRequest {
                key: "k".into(),
                value: value.into(),
                ..Default::default()
            };
            server.call(0, Request::Put(put), None).await;
        }
        compact(server, 4).await;
    }
    servers
}

async fn compact(server: &Server, revision: i64) {
    let request = etcd::CompactionRequest {
        revision,
        physical: true,
    };
    let answer = server.call(0, Request::Compact(request), None).await;
    assert!(
        matches!(answer, Answer::Compact(_)),
        "{}: {answer:?}",
        server.name
    );
}

/// A watch of the key from a revision on, on a stream of its own.
async fn watch(server: &Server, start_revision: i64) -> Stream {
    let mut stream = Stream::open(server, 0);
    let request = etcd::WatchCreateRequest {
        key: "k".into(),
        start_revision,
        prev_kv: true,
        watch_id: 7,
        ..Default::default()
    };
    assert_eq!(stream.create(server, request).await, Some(7));
    stream
}

/// At the compacted revision itself there are events, and the record before one is gone: kvorum once gave it, as
/// long as it lay in memory.
#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn an_event_at_the_compacted_revision_comes_without_the_record_before() {
    let (cluster, reference) = (Cluster::start(1, &[]).await, Reference::start(&[]).await);
    let mut all = Vec::new();
    for server in &compacted_at_4(&cluster, &reference).await {
        let mut stream = watch(server, 4).await;
        stream.settle(server, 6).await;
        let told = stream.told.remove(&7).unwrap();
        let before: Vec<Option<String>> = told
            .iter()
            .filter_map(|told| match told {
                Told::Event(event) => Some(&event.prev_kv),
                _ => None,
            })
            .map(|prev| {
                let prev = prev.as_ref()?;
                Some(String::from_utf8_lossy(&prev.value).into_owned())
            })
            .collect();
        let expected = [None, Some("4".to_owned()), Some("5".to_owned())];
        assert_eq!(before, expected, "{}", server.name);
        all.push(told);
    }
    assert_eq!(all[0], all[1]);
}

/// The answer says where one may begin, and nothing else: kvorum once gave a reason and its own revision, too.
#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn a_watch_below_the_compaction_is_canceled_without_reason_or_revision() {
    let (cluster, reference) = (Cluster::start(1, &[]).await, Reference::start(&[]).await);
    let mut all = Vec::new();
    for server in &compacted_at_4(&cluster, &reference).await {
        let mut stream = watch(server, 3).await;
        stream.canceled(server, 7).await;
        let told = stream.told.remove(&7).unwrap();
        let Some(Told::Canceled {
            header,
            created: false,
            reason,
            compact_revision: 4,
        }) = told.last()
        else {
            panic!("{}: {told:?}", server.name)
        };
        assert_eq!((header.revision, reason.as_str()), (0, ""), "{}", server.name);
        all.push(told);
    }
    assert_eq!(all[0], all[1]);
}

/// Meant to differ (`docs/api.md`): what the reference answers at a compacted revision is the hash that it took while
/// it compacted there, of the state before. Above it both are the same.
#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn hashes_at_compacted_revisions_are_of_what_is_left() {
    let (cluster, reference) = (Cluster::start(1, &[]).await, Reference::start(&[]).await);
    let [ours, theirs] = compacted_at_4(&cluster, &reference).await;
    let hash = async |server: &Server, revision| {
        let request = Request::HashKv(etcd::HashKvRequest { revision });
        match server.call(0, request, None).await {
            Answer::HashKv(answer) => Ok((answer.hash, answer.compact_revision, answer.hash_revision)),
            Answer::Refused(code, text) => Err((code, text)),
            other => panic!("{}: {other:?}", server.name),
        }
    };
    for revision in [5, 6, 0] {
        assert_eq!(
            hash(&ours, revision).await,
            hash(&theirs, revision).await,
            "{revision}"
        );
    }
    let (left, before) = (hash(&ours, 4).await.unwrap(), hash(&theirs, 4).await.unwrap());
    assert_eq!((left.1, before.1), (4, -1));
    assert_ne!(left.0, before.0);
    for server in [&ours, &theirs] {
        compact(server, 5).await;
    }
    assert_eq!(hash(&theirs, 4).await, Ok(before), "it is kept");
    assert_eq!(
        hash(&ours, 4).await,
        Err((Code::OutOfRange, COMPACTED.to_owned()))
    );
    assert_eq!(hash(&ours, 6).await, hash(&theirs, 6).await);
}
