//! Leases on a real cluster: through every member, at the command line, across the loss of the leader, and to their
//! end.

use std::time::Duration;

use kvorum_client::proto::etcd::{self, lease_client::LeaseClient};
use kvorum_client::{Code, Error};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::cluster::{Cluster, PATIENCE, client};
use crate::program::{eventually, run, try_run};

fn put(key: &str, lease: i64) -> etcd::PutRequest {
    etcd::PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        lease,
        ..Default::default()
    }
}

fn check_refused<T: std::fmt::Debug>(result: Result<T, Error>, expected: Code, text: &str) {
    match result {
        Err(Error::Rejected { code, message, .. }) => assert_eq!((code, message.as_str()), (expected, text)),
        other => panic!("{other:?} is not {text}"),
    }
}

#[tokio::test]
async fn keys_live_as_long_as_their_lease_is_renewed() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let of = |at: usize| client(&cluster.endpoints((leader + at) % 3)[..1]);
    let (first, second) = (of(1), of(2));

    // What each member is told, every member knows.
    let granted = first.lease_grant(600, 77).await.unwrap();
    assert_eq!((granted.id, granted.ttl), (77, 600));
    check_refused(
        second.lease_grant(600, 77).await,
        Code::FailedPrecondition,
        "etcdserver: lease already exists",
    );
    check_refused(
        second.lease_grant(9_000_000_001, 0).await,
        Code::OutOfRange,
        "etcdserver: too large lease TTL",
    );
    check_refused(
        second.put_request(put("k", 78)).await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    for key in ["b", "a", "c"] {
        second.put_request(put(key, 77)).await.unwrap();
    }
    second.put_request(put("c", 0)).await.unwrap();
    for at in 0..3 {
        let asked = of(at);
        let lives = asked.lease_time_to_live(77, true).await.unwrap();
        assert!((590..=600).contains(&lives.ttl), "{lives:?}");
        assert_eq!(
            (lives.granted_ttl, lives.keys),
            (600, vec!["a".into(), "b".into()])
        );
        assert_eq!(asked.lease_keep_alive(77).await.unwrap().ttl, 600);
        assert_eq!(asked.lease_keep_alive(78).await.unwrap().ttl, 0);
        assert_eq!(asked.lease_time_to_live(78, true).await.unwrap().ttl, -1);
    }

    // One revision for all keys of a lease, none for a lease without keys.
    let before = second.get("a").await.unwrap().unwrap().mod_revision;
    let revoked = second.lease_revoke(77).await.unwrap().header.unwrap().revision;
    assert_eq!(revoked, before + 3, "put of c, put of c, and the end");
    assert_eq!(first.get("a").await.unwrap(), None);
    assert!(first.get("c").await.unwrap().is_some());
    let empty = first.lease_grant(1, 0).await.unwrap();
    assert!(empty.id > 0 && empty.ttl >= 2, "{empty:?}");
    let ended = first.lease_revoke(empty.id).await.unwrap();
    assert_eq!(ended.header.unwrap().revision, revoked);
    check_refused(
        first.lease_revoke(77).await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );

    survives_its_leader(&mut cluster, leader).await;
    cluster.check_agreement().await;
}

/// A lease that is renewed outlives the leader that granted it; one that is not ends, and its keys with it.
async fn survives_its_leader(cluster: &mut Cluster, leader: usize) {
    let all = client(&cluster.endpoints((leader + 1) % 3));
    let (kept, left) = (
        all.lease_grant(3, 1).await.unwrap(),
        all.lease_grant(3, 2).await.unwrap(),
    );
    all.put_request(put("kept", kept.id)).await.unwrap();
    all.put_request(put("left", left.id)).await.unwrap();
    cluster.members[leader].kill().await;
    let deadline = Instant::now() + PATIENCE;
    while all.get("left").await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "a lease does not end");
        assert!(
            all.lease_keep_alive(kept.id).await.unwrap().ttl > 0,
            "a renewed lease ended"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(all.get("kept").await.unwrap().is_some());
    assert_eq!(all.lease_keep_alive(left.id).await.unwrap().ttl, 0);
    cluster.members[leader].start();
    cluster.members[leader].wait_for_status().await;
}

#[tokio::test]
async fn leases_at_the_command_line() {
    let cluster = Cluster::start(1, &[]).await;
    let endpoint = cluster.members[0].client.clone();
    let at = ["--endpoints", endpoint.as_str()];
    let call = async |args: &[&str]| run(&[args, &at].concat()).await;
    assert_eq!(
        call(&["lease", "grant", "60", "--id", "7b"]).await,
        "000000000000007b\t60s\n"
    );
    call(&["put", "k", "v", "--lease", "7b"]).await;
    assert_eq!(call(&["lease", "list"]).await, "000000000000007b\n");
    assert_eq!(
        call(&["lease", "keep-alive", "7b", "--once"]).await,
        "000000000000007b\t60s\n"
    );
    let shown = call(&["lease", "ttl", "7b", "--keys"]).await;
    assert!(
        shown.starts_with("000000000000007b\t") && shown.ends_with("s of 60s\nk\n"),
        "{shown}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&call(&["lease", "ttl", "7b", "--keys", "-o", "json"]).await).unwrap();
    assert_eq!(
        (&json["granted_ttl"], &json["keys"][0]["key"]),
        (&60.into(), &"k".into())
    );
    call(&["lease", "revoke", "7b"]).await;
    assert_eq!(call(&["get", "k", "--prefix"]).await, "");
    for args in [
        ["lease", "revoke", "7b"],
        ["lease", "ttl", "7b"],
        ["lease", "keep-alive", "7b"],
    ] {
        try_run(&[&args[..], &at].concat()).await.failed(1, &["lease"]);
    }
    eventually("a lease ends by itself", PATIENCE, async || {
        if call(&["lease", "list"]).await.is_empty() {
            call(&["lease", "grant", "2", "--id", "c"]).await;
            call(&["put", "short", "v", "--lease", "c"]).await;
        }
        let metrics = crate::http::request("GET", &endpoint, "/metrics", b"")
            .await
            .unwrap()
            .1;
        let revoked = metrics
            .lines()
            .find_map(|line| line.strip_prefix("etcd_debugging_lease_revoked_total "))
            .and_then(|count| count.parse::<u64>().ok());
        (revoked >= Some(2)).then_some(())
    })
    .await;
}

/// Once, the renewals of one stream were made one after the other, and what waited meanwhile, thousands of small frames,
/// was taken for an attack: the connection was closed with all that was on it. A client of so many leases renews them
/// all at once, again and again, and so lost them.
#[tokio::test]
async fn one_client_renews_thousands_of_leases_at_once() {
    const RENEWALS: i64 = 16_000;
    const FIRST: i64 = 1 << 62;
    let mut cluster = Cluster::start(3, &[]).await;
    let follower = (cluster.leader().await + 1) % 3;
    let follower = &cluster.members[follower];
    follower.client().lease_grant(600, FIRST).await.unwrap();
    // One message, one frame: what waits in a channel of one place is sent as it comes.
    let (renewals, burst) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for n in 0..RENEWALS {
            let id = FIRST + n % 2;
            renewals.send(etcd::LeaseKeepAliveRequest { id }).await.unwrap();
        }
    });
    let address = Channel::from_shared(format!("http://{}", follower.client)).unwrap();
    let mut lease = LeaseClient::new(address.connect().await.unwrap());
    let answers = lease.lease_keep_alive(ReceiverStream::new(burst)).await;
    let mut answers = answers.unwrap().into_inner();
    for n in 0..RENEWALS {
        let answer = answers.message().await.unwrap().unwrap();
        // The second lease was never granted.
        let expected = (FIRST + n % 2, if n % 2 == 0 { 600 } else { 0 });
        assert_eq!((answer.id, answer.ttl), expected, "answer {n}");
    }
    assert!(
        answers.message().await.unwrap().is_none(),
        "each was answered once"
    );
}
