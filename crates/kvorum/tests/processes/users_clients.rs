//! Authentication as programs meet it: the Rust client whose token ends, and strangers at the peer port.

use std::time::Duration;

use kvorum_client::proto::etcd;
use kvorum_client::proto::v1::peer_client::PeerClient;
use kvorum_client::proto::v1::{
    Hello, JoinRequest, MemberSelector, PeerChangeRequest, PeerJoinRequest, peer_change_request::Change,
};
use kvorum_client::{Client, Code, Credentials, Error, Options, WatchItem, WatchOptions, prefix_range};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, PATIENCE};
use crate::http::request;
use crate::program::{Ran, command, eventually, run, try_run};

const ROOT: (&str, &str) = ("root", "secret");
const USER: (&str, &str) = ("user", "own");
/// How long tokens live where they are to expire.
const TTL: Duration = Duration::from_secs(1);

/// A client that is this user.
fn client_as(endpoints: &[&str], (user, password): (&str, &str)) -> Client {
    let credentials = Credentials {
        user: user.to_owned(),
        password: password.to_owned(),
    };
    Client::new(Options {
        endpoints: endpoints.iter().map(|text| (*text).to_owned()).collect(),
        timeout: Duration::from_secs(30),
        credentials: Some(credentials),
        ..Options::default()
    })
    .unwrap()
}

/// `user` may do what it likes below `own/`, and authentication is on.
async fn turn_on(endpoints: &[&str]) {
    let all = endpoints.join(",");
    for args in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "user:own"],
        &["role", "add", "owner"],
        &[
            "role",
            "grant-permission",
            "owner",
            "readwrite",
            "own/",
            "--prefix",
        ],
        &["user", "grant-role", "user", "owner"],
        &["auth", "enable"],
    ] {
        run(&[args, &["--endpoints", &all]].concat()).await;
    }
}

/// How often somebody logged in at a member, or tried to.
async fn logins(address: &str) -> u64 {
    let (status, metrics) = request("GET", address, "/metrics", b"").await.unwrap();
    assert_eq!(status, 200);
    let started = "grpc_server_started_total{";
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with(started) && line.contains("\"Authenticate\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64);
    counts.sum()
}

/// A token ends before the program that holds it: with its time, with the user's password, with the member that gave it
/// out. The client logs in again and repeats the call, whatever kind of call it is; its user notices nothing.
#[tokio::test]
async fn the_client_logs_in_again_when_its_token_ended() {
    let ttl = format!("{}s", TTL.as_secs());
    let mut cluster = Cluster::start(1, &["--auth-token-ttl", &ttl, "--bcrypt-cost", "4"]).await;
    let address = cluster.members[0].client.clone();
    turn_on(&[&address]).await;
    let user = client_as(&[&address], USER);
    let below_own = || {
        let (key, range_end) = prefix_range(b"own/");
        user.watch(WatchOptions {
            key,
            range_end,
            ..WatchOptions::default()
        })
    };
    let mut watch = below_own();
    assert!(matches!(watch.next().await.unwrap(), WatchItem::Created { .. }));
    user.put("own/a", "0").await.unwrap();
    let mut before = logins(&address).await;
    assert!(before > 0, "the client logged in");

    // With its time, which nothing but time brings about.
    tokio::time::sleep(2 * TTL).await;
    user.put("own/a", "1").await.unwrap();
    let mut logged_in = async |times: u64| {
        let now = logins(&address).await;
        assert_eq!(now - before, times);
        before = now;
    };
    logged_in(1).await;
    // Nothing ended: nothing is asked for again.
    user.put("own/a", "2").await.unwrap();
    assert_eq!(&user.get("own/a").await.unwrap().unwrap().value[..], b"2");
    logged_in(0).await;

    // With the password that it was given for, though it is the same one again. (Root is another client each time, and
    // logs in itself.)
    let renew = async || {
        let change = etcd::AuthUserChangePasswordRequest {
            name: USER.0.to_owned(),
            password: USER.1.to_owned(),
            ..Default::default()
        };
        let root = client_as(&[&address], ROOT);
        root.user_change_password(change).await.unwrap();
    };
    renew().await;
    assert_eq!(&user.get("own/a").await.unwrap().unwrap().value[..], b"2");
    logged_in(2).await;
    renew().await;
    user.put("own/b", "1").await.unwrap();
    logged_in(2).await;
    renew().await;
    let chunk = user.export(prefix_range(b"own/"), 0, false).next().await.unwrap();
    assert_eq!(chunk.unwrap().len(), 2);
    logged_in(2).await;
    renew().await;
    let mut late = below_own();
    assert!(matches!(late.next().await.unwrap(), WatchItem::Created { .. }));
    logged_in(2).await;

    // With the member that knew it; the watch finds its way back by itself.
    cluster.members[0].kill().await;
    cluster.members[0].start();
    user.put("own/a", "3").await.unwrap();
    eventually("the watch has seen all", PATIENCE, async || {
        match watch.next().await.unwrap() {
            WatchItem::Events(events) => {
                let values = events.iter().filter_map(|event| event.kv.as_ref());
                values.last().filter(|kv| &kv.value[..] == b"3").map(drop)
            }
            _ => None,
        }
    })
    .await;

    // What another login does not mend is said, and not tried for long.
    let wrong = client_as(&[&address], (USER.0, "wrong"));
    let refused = wrong.put("own/a", "4").await;
    assert!(
        matches!(&refused, Err(Error::Rejected { message, .. }) if message.contains("authentication failed")),
        "{refused:?}"
    );
}

/// What a stranger says at a peer port.
#[derive(Clone, Copy, Debug)]
enum Says {
    /// That it is no member yet.
    Nobody,
    /// That it is a member, with an ID of its own making; the cluster's UUID is no secret.
    Member,
}

struct Stranger {
    calls: PeerClient<Channel>,
    cluster_uuid: Vec<u8>,
}

impl Stranger {
    async fn at(address: &str, cluster_uuid: &[u8]) -> Stranger {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Stranger {
            calls: PeerClient::new(endpoint.connect().await.unwrap()),
            cluster_uuid: cluster_uuid.to_vec(),
        }
    }

    fn hello(&self, says: Says) -> Option<Hello> {
        let nobody = Hello {
            version: 1,
            name: "stranger".to_owned(),
            ..Hello::default()
        };
        Some(match says {
            Says::Nobody => nobody,
            Says::Member => Hello {
                cluster_uuid: self.cluster_uuid.clone().into(),
                member_id: 4711,
                incarnation: vec![7; 16].into(),
                ..nobody
            },
        })
    }

    async fn joins(&mut self, says: Says) -> Result<(), Status> {
        let request = PeerJoinRequest {
            hello: self.hello(says),
            request: Some(announcement("stranger")),
        };
        self.calls.join(request).await.map(drop)
    }

    async fn removes(&mut self, says: Says, member: u64) -> Result<(), Status> {
        let request = PeerChangeRequest {
            hello: self.hello(says),
            change: Some(Change::Remove(member)),
            timeout_ms: 2000,
            ..PeerChangeRequest::default()
        };
        self.calls.change(request).await.map(drop)
    }
}

/// Of a member that nobody will ever start.
fn announcement(name: &str) -> JoinRequest {
    JoinRequest {
        name: name.to_owned(),
        peer_addresses: vec!["127.0.0.1:1".to_owned()],
        ..JoinRequest::default()
    }
}

fn is_denied(answer: &Result<(), Status>, words: &str) {
    let status = answer.as_ref().unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains(words), "{status:?}");
}

/// `--open-join` lets newcomers announce themselves, at the peer port too, where nobody has a name. With authentication
/// on that would be a way past it, so there it is for members alone, who hand on what root asked them for; and to call
/// oneself a member is not enough, with authentication or without.
#[tokio::test]
async fn the_peer_port_takes_no_announcements_from_strangers_where_rights_count() {
    let mut cluster = Cluster::start(3, &["--open-join", "--bcrypt-cost", "4"]).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let status = eventually("the cluster has its UUID", PATIENCE, async || {
        let status = cluster.members[leader].status().await?;
        (status.cluster_uuid.len() == 16).then_some(status)
    })
    .await;
    let victim = cluster.members[follower].status().await.unwrap().member_id;
    let at = async |member: usize| Stranger::at(&cluster.members[member].peer, &status.cluster_uuid).await;

    // Without authentication who has a name of its own may announce itself. That it is none of the members it says it
    // is changes nothing: what members hand on is not for it.
    at(leader).await.joins(Says::Nobody).await.unwrap();
    is_denied(
        &at(leader).await.removes(Says::Nobody, victim).await,
        "only members",
    );
    is_denied(
        &at(leader).await.removes(Says::Member, victim).await,
        "only members",
    );
    let root = cluster.members[leader].client();
    let added = root.members().await.unwrap().members;
    let added = added.iter().find(|member| member.name == "stranger").unwrap().id;
    let selector = MemberSelector {
        id: added,
        ..MemberSelector::default()
    };
    root.member_remove(selector).await.unwrap();

    turn_on(&cluster.endpoints(0)).await;
    for member in [leader, follower] {
        for says in [Says::Nobody, Says::Member] {
            is_denied(&at(member).await.joins(says).await, "authentication is on");
            is_denied(&at(member).await.removes(says, victim).await, "only members");
        }
    }
    // Nor at the client port, but by root, whose word a follower hands on to the leader's peer port.
    let body = br#"{"follower_id":"stranger","follower_addr":"127.0.0.1:1"}"#;
    let answer = request(
        "POST",
        &cluster.members[follower].client,
        "/register-follower",
        body,
    )
    .await;
    assert_eq!(answer.unwrap().0, 401);
    let address = cluster.members[follower].client.as_str();
    let refused = client_as(&[address], USER).join(announcement("newcomer")).await;
    assert!(
        matches!(
            &refused,
            Err(Error::Rejected {
                code: Code::PermissionDenied,
                ..
            })
        ),
        "{refused:?}"
    );
    let joined = client_as(&[address], ROOT)
        .join(announcement("newcomer"))
        .await
        .unwrap();
    assert_eq!(joined.members.len(), 4, "{joined:?}");
}

/// The bench logs in once and measures as that user, in every mode; a user who may use what is below `bench/` is enough.
#[tokio::test]
async fn the_bench_measures_as_a_user() {
    let cluster = Cluster::start(1, &["--bcrypt-cost", "4"]).await;
    let address = cluster.members[0].client.clone();
    let grant = [
        "role",
        "grant-permission",
        "bench",
        "readwrite",
        "bench/",
        "--prefix",
    ];
    for args in [
        &["role", "add", "bench"][..],
        &grant,
        &["user", "add", "meter:m"],
        &["user", "grant-role", "meter", "bench"],
    ] {
        run(&[args, &["--endpoints", &address]].concat()).await;
    }
    let bench = |mode| {
        let mut args = vec![
            "bench",
            mode,
            "--endpoints",
            &address,
            "--seconds",
            "1",
            "--warmup",
            "1ms",
            "--json",
        ];
        args.extend([
            "--key-space",
            "200",
            "--range-keys",
            "20",
            "--in-flight",
            "8",
            "--connections",
            "2",
        ]);
        args.extend(["--watchers", "4", "--rate", "20"]);
        args
    };
    // Named where nobody has to log in: that is no failure, as with the other commands.
    run(&[&bench("put")[..], &["--user", "meter:m"]].concat()).await;
    turn_on(&[&address]).await;
    for mode in ["put", "get", "mixed", "txn", "range", "lease"] {
        run(&[&bench(mode)[..], &["--user", "meter:m"]].concat()).await;
    }
    // From the environment, as the other commands have it too.
    let mut by_environment = command(bench("watch"));
    by_environment.env("KVORUM_USER", "meter:m");
    let watched = Ran::of(by_environment).await;
    assert_eq!(watched.code, Some(0), "{watched:?}");
    for (user, words) in [
        (None, "user name is empty"),
        (Some("meter:wrong"), "authentication failed"),
        (Some("user:own"), "permission denied"),
    ] {
        let mut args = bench("put");
        args.extend(user.iter().flat_map(|user| ["--user", user]));
        try_run(&args).await.failed(1, &[words]);
    }
}
