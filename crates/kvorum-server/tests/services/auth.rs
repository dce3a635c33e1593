//! Users, roles, permissions and tokens over the wire.

use std::collections::VecDeque;
use std::time::Duration;

use kvorum_model::{AuthCommand, Caller, Command, Envelope, Origin};
use kvorum_proto::Outcome;
use kvorum_proto::authpb::permission::Type;
use kvorum_proto::etcdserverpb::auth_client::AuthClient;
use kvorum_proto::etcdserverpb::{self as pb, kv_client::KvClient, lease_client::LeaseClient};
use kvorum_proto::kvorum::v1::{RegisterSessionRequest, kvorum_client::KvorumClient};
use kvorum_server::options::{AuthOptions, BCRYPT_COST_MIN};
use tonic::{Code, Request, Status};

use crate::access::{Guarded, add_user, log_in, permission};
use crate::etcd_watch::Watching;
use crate::replica::{OTHER, Server, Setting};

#[track_caller]
fn check<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

fn read(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..Default::default()
    }
}

/// The way that operators go, with etcd's answers.
#[tokio::test]
async fn authentication_is_turned_on_step_by_step() {
    let server = Server::start();
    let mut client = AuthClient::new(server.channel().await);
    let status = client.auth_status(pb::AuthStatusRequest {}).await.unwrap();
    assert!(!status.get_ref().enabled);
    assert_eq!(status.get_ref().auth_revision, 1);
    let enable = pb::AuthEnableRequest {};
    check(
        client.auth_enable(enable).await,
        Code::FailedPrecondition,
        "etcdserver: root user does not exist",
    );
    check(
        log_in(&server, "root").await,
        Code::FailedPrecondition,
        "etcdserver: authentication is not enabled",
    );
    add_user(&mut client, "root").await;
    check(
        client.auth_enable(enable).await,
        Code::FailedPrecondition,
        "etcdserver: root user does not have root role",
    );
    let grant = pb::AuthUserGrantRoleRequest {
        user: "root".to_owned(),
        role: "root".to_owned(),
    };
    let granted = client.user_grant_role(grant).await.unwrap().into_inner();
    assert!(granted.header.unwrap().member_id != 0);
    client.auth_enable(enable).await.unwrap();
    let status = client.auth_status(pb::AuthStatusRequest {}).await.unwrap();
    assert!(status.get_ref().enabled);
    assert_eq!(status.get_ref().auth_revision, 3, "to enable is no revision");
    let refused = KvClient::new(server.channel().await).put(put("a")).await;
    let status = refused.unwrap_err();
    assert_eq!(Outcome::of(&status), Some(Outcome::NotApplied));
    check::<()>(
        Err(status),
        Code::InvalidArgument,
        "etcdserver: user name is empty",
    );
    let request = pb::AuthenticateRequest {
        name: "root".to_owned(),
        password: "wrong".to_owned(),
    };
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    check(client.authenticate(request).await, Code::InvalidArgument, failed);
    check(log_in(&server, "unknown").await, Code::InvalidArgument, failed);
    let token = log_in(&server, "root").await.unwrap();
    let (letters, index) = token.split_once('.').unwrap();
    assert!(
        letters.len() == 16 && index.parse::<u64>().unwrap() > 0,
        "{token}"
    );
    for (name, value) in [
        ("token", token.clone()),
        ("authorization", token.clone()),
        ("authorization", format!("Bearer {token}")),
    ] {
        let mut request = Request::new(put("a"));
        request.metadata_mut().insert(name, value.parse().unwrap());
        KvClient::new(server.channel().await).put(request).await.unwrap();
    }
    // One that a member further on may have given out, too.
    for unknown in ["nonsense", "abcdefghijklmnop.1", "abcdefghijklmnop.999999"] {
        let mut request = Request::new(put("a"));
        request.metadata_mut().insert("token", unknown.parse().unwrap());
        let answer = KvClient::new(server.channel().await).put(request).await;
        check(answer, Code::Unauthenticated, "etcdserver: invalid auth token");
    }
}

#[tokio::test]
async fn keys_are_for_those_who_may() {
    let guarded = Guarded::start().await;
    let denied = |answer: Result<_, Status>| {
        check::<()>(answer, Code::PermissionDenied, "etcdserver: permission denied");
    };
    let mut kv = KvClient::new(guarded.server.channel().await);
    let mut range = async |caller: &str, request| {
        let answer = kv.range(guarded.request(caller, request)).await;
        answer.map(|answer| answer.into_inner().count)
    };
    guarded.put("user", put("own/a")).await.unwrap();
    guarded.put("root", put("other")).await.unwrap();
    assert_eq!(range("user", read("own/", "own0")).await.unwrap(), 1);
    let local = |request| pb::RangeRequest {
        serializable: true,
        ..request
    };
    denied(range("user", read("own/", "\0")).await.map(drop));
    denied(range("user", read("\0", "\0")).await.map(drop));
    denied(range("user", local(read("other", ""))).await.map(drop));
    assert_eq!(range("root", local(read("\0", "\0"))).await.unwrap(), 2);
    // At once with the next change, without a new token.
    let mut auth = guarded.auth().await;
    let request = permission("own", Type::Read, "other", "");
    auth.role_grant_permission(guarded.request("root", request))
        .await
        .unwrap();
    assert_eq!(range("user", read("other", "")).await.unwrap(), 1);
    denied(guarded.put("user", put("other")).await.map(drop));
    let revoke = pb::AuthRoleRevokePermissionRequest {
        role: "own".to_owned(),
        key: "other".into(),
        range_end: Default::default(),
    };
    auth.role_revoke_permission(guarded.request("root", revoke))
        .await
        .unwrap();
    denied(range("user", read("other", "")).await.map(drop));
    // Compares are reads, at any depth; operations of the list that does not run count as well.
    let compare = pb::Compare {
        key: "other".into(),
        target_union: Some(pb::compare::TargetUnion::Version(0)),
        ..Default::default()
    };
    let nested = |txn| pb::TxnRequest {
        failure: vec![pb::RequestOp {
            request: Some(pb::request_op::Request::RequestTxn(txn)),
        }],
        ..Default::default()
    };
    let with_compare = pb::TxnRequest {
        compare: vec![compare],
        ..Default::default()
    };
    for txn in [with_compare.clone(), nested(with_compare)] {
        let mut kv = KvClient::new(guarded.server.channel().await);
        kv.txn(guarded.request("root", txn.clone())).await.unwrap();
        denied(kv.txn(guarded.request("user", txn)).await.map(drop));
    }
}

#[tokio::test]
async fn users_may_see_themselves() {
    let guarded = Guarded::start().await;
    let mut auth = guarded.auth().await;
    let user = |name: &str| pb::AuthUserGetRequest {
        name: name.to_owned(),
    };
    let role = |role: &str| pb::AuthRoleGetRequest {
        role: role.to_owned(),
    };
    let own = auth
        .user_get(guarded.request("user", user("user")))
        .await
        .unwrap();
    assert_eq!(own.into_inner().roles, ["own"]);
    let own = auth.role_get(guarded.request("user", role("own"))).await.unwrap();
    assert_eq!(own.into_inner().perm.len(), 1);
    let denied = "etcdserver: permission denied";
    let others = auth.user_get(guarded.request("user", user("root"))).await;
    check(others, Code::PermissionDenied, denied);
    let others = auth.role_get(guarded.request("user", role("root"))).await;
    check(others, Code::PermissionDenied, denied);
    let roots = auth
        .user_get(guarded.request("root", user("user")))
        .await
        .unwrap();
    assert_eq!(roots.into_inner().roles, ["own"]);
    let missing = auth.user_get(guarded.request("root", user("x"))).await;
    check(
        missing,
        Code::FailedPrecondition,
        "etcdserver: user name not found",
    );
    let missing = auth.role_get(guarded.request("root", role("x"))).await;
    check(
        missing,
        Code::FailedPrecondition,
        "etcdserver: role name not found",
    );
    let all = auth
        .role_get(guarded.request("root", role("root")))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (&*all.perm[0].key, &*all.perm[0].range_end),
        (&b""[..], &b"\0"[..])
    );
    let users = auth
        .user_list(guarded.request("root", pb::AuthUserListRequest {}))
        .await;
    assert_eq!(users.unwrap().into_inner().users, ["idle", "root", "user"]);
    let roles = auth
        .role_list(guarded.request("root", pb::AuthRoleListRequest {}))
        .await;
    assert_eq!(roles.unwrap().into_inner().roles, ["own", "root"]);
}

/// A watch that is not permitted is refused on its stream, which goes on.
#[tokio::test]
async fn watches_are_refused_one_by_one() {
    let guarded = Guarded::start().await;
    let token = guarded.token("user").unwrap();
    let mut stream = Watching::open(&guarded.server, &[("token", token.to_str().unwrap())]).await;
    let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    for (key, end) in [("a", ""), ("own/", "\0"), ("", "\0"), ("", "")] {
        stream
            .create(|create| (create.key, create.range_end) = (key.into(), end.into()))
            .await;
        let answer = stream.next().await;
        assert!(answer.created && answer.canceled, "{answer:?}");
        assert_eq!((answer.watch_id, answer.cancel_reason.as_str()), (-1, denied));
    }
    let own = |create: &mut pb::WatchCreateRequest| {
        (create.key, create.range_end) = ("own/".into(), "own0".into());
    };
    stream.create(own).await;
    let answer = stream.next().await;
    assert!(answer.created && !answer.canceled, "{answer:?}");
    guarded.put("root", put("own/a")).await.unwrap();
    assert_eq!(stream.next().await.events.len(), 1);
    for (token, reason) in [
        (
            "unknown.1",
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
        ),
        (
            "",
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
        ),
    ] {
        let metadata: &[_] = match token {
            "" => &[],
            token => &[("token", token)],
        };
        let mut stream = Watching::open(&guarded.server, metadata).await;
        stream.create(own).await;
        assert_eq!(stream.next().await.cancel_reason, reason);
    }
}

/// Who may not write all keys of a lease may neither end nor renew it, nor give it another key.
#[tokio::test]
async fn leases_are_for_those_who_have_their_keys() {
    let guarded = Guarded::start().await;
    let mut lease = LeaseClient::new(guarded.server.channel().await);
    let grant = |id| pb::LeaseGrantRequest { ttl: 100, id };
    let with_lease = |key: &str, lease| pb::PutRequest { lease, ..put(key) };
    for id in [1, 2] {
        lease
            .lease_grant(guarded.request("idle", grant(id)))
            .await
            .unwrap();
    }
    guarded.put("root", with_lease("other", 1)).await.unwrap();
    guarded.put("user", with_lease("own/a", 2)).await.unwrap();
    let denied = "etcdserver: permission denied";
    let onto_others = guarded.put("user", with_lease("own/b", 1)).await;
    check(onto_others, Code::PermissionDenied, denied);
    let time = |id, keys| pb::LeaseTimeToLiveRequest { id, keys };
    let told = lease
        .lease_time_to_live(guarded.request("user", time(1, false)))
        .await;
    assert_eq!(told.unwrap().into_inner().granted_ttl, 100);
    let told = lease
        .lease_time_to_live(guarded.request("user", time(1, true)))
        .await;
    check(told, Code::PermissionDenied, denied);
    let told = lease
        .lease_time_to_live(guarded.request("user", time(2, true)))
        .await;
    assert_eq!(told.unwrap().into_inner().keys.len(), 1);
    let missing = lease
        .lease_time_to_live(guarded.request("idle", time(9, true)))
        .await;
    assert_eq!(missing.unwrap().into_inner().ttl, -1);
    let list = pb::LeaseLeasesRequest {};
    let listed = lease.lease_leases(guarded.request("user", list)).await;
    check(listed, Code::PermissionDenied, denied);
    let listed = lease.lease_leases(guarded.request("root", list)).await;
    assert_eq!(listed.unwrap().into_inner().leases.len(), 2);
    let mut renew = async |caller: &str, id| {
        let asked = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
        let stream = lease.lease_keep_alive(guarded.request(caller, asked)).await;
        stream
            .unwrap()
            .into_inner()
            .message()
            .await
            .map(|answer| answer.unwrap().ttl)
    };
    assert_eq!(renew("user", 2).await.unwrap(), 100);
    assert_eq!(renew("root", 1).await.unwrap(), 100);
    assert_eq!(renew("idle", 9).await.unwrap(), 0);
    check(renew("user", 1).await, Code::PermissionDenied, denied);
    check(
        renew("nobody", 2).await,
        Code::InvalidArgument,
        "etcdserver: user name is empty",
    );
    let revoke = |id| pb::LeaseRevokeRequest { id };
    let revoked = lease.lease_revoke(guarded.request("user", revoke(1))).await;
    check(revoked, Code::PermissionDenied, denied);
    lease
        .lease_revoke(guarded.request("user", revoke(2)))
        .await
        .unwrap();
    lease
        .lease_revoke(guarded.request("root", revoke(1)))
        .await
        .unwrap();
}

#[tokio::test]
async fn tokens_end() {
    let setting = Setting {
        auth: AuthOptions {
            token_ttl: Duration::from_millis(300),
            bcrypt_cost: BCRYPT_COST_MIN,
        },
        ..Setting::default()
    };
    let guarded = Guarded::with(setting).await;
    let invalid = "etcdserver: invalid auth token";
    tokio::time::sleep(Duration::from_millis(600)).await;
    let late = guarded.put("user", put("own/a")).await;
    check(late, Code::Unauthenticated, invalid);

    let guarded = Guarded::start().await;
    let mut auth = guarded.auth().await;
    let change = |name: &str, password: &str, hashed: &str| pb::AuthUserChangePasswordRequest {
        name: name.to_owned(),
        password: password.to_owned(),
        hashed_password: hashed.to_owned(),
    };
    guarded.put("user", put("own/a")).await.unwrap();
    // With another password; the others' tokens stay.
    auth.user_change_password(guarded.request("root", change("user", "new", "")))
        .await
        .unwrap();
    let late = guarded.put("user", put("own/a")).await;
    check(late, Code::Unauthenticated, invalid);
    guarded.put("root", put("own/a")).await.unwrap();
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    check(
        log_in(&guarded.server, "user").await,
        Code::InvalidArgument,
        failed,
    );
    // A hash instead of a password: that of `allmine`, by Go.
    let hash = "JDJhJDEwJFhhampRdk5odnZSdDVHU2VGazF4RmV5cVJyc3hraEJrVWlRZWcwZHQud1UxcUQ0YUZEY2dh";
    auth.user_change_password(guarded.request("root", change("user", "", hash)))
        .await
        .unwrap();
    let request = pb::AuthenticateRequest {
        name: "user".to_owned(),
        password: "allmine".to_owned(),
    };
    auth.authenticate(request).await.unwrap();
    let nonsense = auth
        .user_change_password(guarded.request("root", change("user", "", "?")))
        .await;
    assert_eq!(nonsense.unwrap_err().code(), Code::InvalidArgument);
    // With its user.
    let name = "idle".to_owned();
    let delete = pb::AuthUserDeleteRequest { name };
    auth.user_delete(guarded.request("root", delete)).await.unwrap();
    let late = guarded.put("idle", put("own/a")).await;
    check(late, Code::Unauthenticated, invalid);
}

/// What a session keeps of one user's request is not for another to see.
#[tokio::test]
async fn sessions_belong_to_their_users() {
    let guarded = Guarded::start().await;
    let mut kvorum = KvorumClient::new(guarded.server.channel().await);
    let registered = kvorum
        .register_session(guarded.request("user", RegisterSessionRequest {}))
        .await;
    let session = registered.unwrap().into_inner().session_id;
    let in_session = |caller: &str| {
        let mut request = guarded.request(caller, put("own/a"));
        let name = format!("{session}-1").parse().unwrap();
        request.metadata_mut().insert("kvorum-session", name);
        request
    };
    let mut kv = KvClient::new(guarded.server.channel().await);
    let first = kv.put(in_session("user")).await.unwrap().into_inner();
    let again = kv.put(in_session("user")).await.unwrap().into_inner();
    assert_eq!(first, again, "it took effect once");
    check(
        kv.put(in_session("root")).await,
        Code::FailedPrecondition,
        "kvorum: session expired; outcome unknown",
    );
}

/// A change of users, roles or permissions as it reaches this member from another one.
fn by_root(command: AuthCommand) -> Envelope {
    Envelope {
        time_ms: 0,
        origin: Origin {
            member: OTHER,
            boot: 1,
            seq: 1,
        },
        session: None,
        caller: Some(Caller {
            user: "root".to_owned(),
            auth_revision: 1,
        }),
        command: Command::Auth(command),
    }
}

fn new_role(name: &str) -> Envelope {
    by_root(AuthCommand::RoleAdd {
        name: name.to_owned(),
    })
}

const OLD: &str = "etcdserver: revision of auth store is old";

/// A write was checked here, and another member's change of roles came before it into the log: what it was checked
/// against is not what holds. Nothing was applied, so this member looks again, and once more.
#[tokio::test]
async fn a_write_that_a_change_of_roles_overtook_is_checked_and_tried_once_more() {
    let guarded = Guarded::start().await;
    let overtake = |changes: &[&[Envelope]]| {
        let ahead = changes.iter().map(|changes| changes.to_vec()).collect();
        guarded.server.set(|behaviour| behaviour.ahead = ahead);
    };
    overtake(&[&[new_role("a")]]);
    let before = guarded.put("root", put("own/a")).await.unwrap().header.unwrap();
    overtake(&[&[new_role("b")]]);
    let after = guarded.put("user", put("own/a")).await.unwrap().header.unwrap();
    assert_eq!(after.revision, before.revision + 1, "it took effect once");
    // Overtaken a second time, the caller hears of it, and knows that nothing was applied.
    overtake(&[&[new_role("c")], &[new_role("d")]]);
    let refused = guarded.put("user", put("own/a")).await.unwrap_err();
    assert_eq!(Outcome::of(&refused), Some(Outcome::NotApplied));
    check::<()>(Err(refused), Code::InvalidArgument, OLD);
    // What a session was told stays: under the same number nothing else can come of it.
    let mut kvorum = KvorumClient::new(guarded.server.channel().await);
    let registered = kvorum
        .register_session(guarded.request("user", RegisterSessionRequest {}))
        .await;
    let session = registered.unwrap().into_inner().session_id;
    overtake(&[&[new_role("e")]]);
    let mut kv = KvClient::new(guarded.server.channel().await);
    for number in [1, 1, 2] {
        let mut request = guarded.request("user", put("own/a"));
        let name = format!("{session}-{number}").parse().unwrap();
        request.metadata_mut().insert("kvorum-session", name);
        let answer = kv.put(request).await;
        match number {
            1 => check(answer, Code::InvalidArgument, OLD),
            _ => assert_eq!(
                answer.unwrap().into_inner().header.unwrap().revision,
                after.revision + 1
            ),
        }
    }
}

/// The second look is a whole one: what the change took away is gone.
#[tokio::test]
async fn a_write_that_its_users_loss_overtook_is_refused() {
    let guarded = Guarded::start().await;
    let before = guarded.put("user", put("own/a")).await.unwrap().header.unwrap();
    let lost = by_root(AuthCommand::UserRevokeRole {
        name: "user".to_owned(),
        role: "own".to_owned(),
    });
    guarded
        .server
        .set(|behaviour| behaviour.ahead = [vec![lost]].into());
    let denied = "etcdserver: permission denied";
    check(
        guarded.put("user", put("own/a")).await,
        Code::PermissionDenied,
        denied,
    );
    let after = guarded.put("root", put("own/a")).await.unwrap().header.unwrap();
    assert_eq!(after.revision, before.revision + 1, "nothing was applied");
}

/// Authentication was turned on elsewhere, and the caller logged in there, before this member heard of either: its
/// write carries nobody's name, is refused when it is applied, and then goes on under the name that it always had.
#[tokio::test]
async fn a_write_that_authentication_overtook_is_tried_as_who_sent_it() {
    let server = Server::start();
    let mut auth = AuthClient::new(server.channel().await);
    add_user(&mut auth, "root").await;
    let grant = pb::AuthUserGrantRoleRequest {
        user: "root".to_owned(),
        role: "root".to_owned(),
    };
    auth.user_grant_role(grant).await.unwrap();
    let revision = auth
        .auth_status(pb::AuthStatusRequest {})
        .await
        .unwrap()
        .into_inner()
        .auth_revision;
    let turned_on = || {
        let login = by_root(AuthCommand::Authenticate {
            user: "root".to_owned(),
            token: kvorum_model::Secret(b"abcdefghijklmnop".to_vec().into()),
            auth_revision: revision,
        });
        VecDeque::from([vec![by_root(AuthCommand::Enable), login]])
    };
    let token = format!("abcdefghijklmnop.{}", server.handle.state().facts().applied + 2);
    server.set(|behaviour| behaviour.ahead = turned_on());
    let mut request = Request::new(put("a"));
    request.metadata_mut().insert("token", token.parse().unwrap());
    let mut kv = KvClient::new(server.channel().await);
    kv.put(request).await.unwrap();
    // And who had no token has none now.
    let mut request = Request::new(pb::AuthDisableRequest {});
    request.metadata_mut().insert("token", token.parse().unwrap());
    auth.auth_disable(request).await.unwrap();
    server.set(|behaviour| behaviour.ahead = [vec![by_root(AuthCommand::Enable)]].into());
    let nobody = kv.put(put("a")).await;
    check(nobody, Code::InvalidArgument, "etcdserver: user name is empty");
}
