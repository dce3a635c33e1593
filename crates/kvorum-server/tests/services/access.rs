//! Who may call what: every gRPC method and every REST route, by everybody.
//!
//! The lists here are held against `proto/` and the description of the REST routes: a new method or route fails the
//! test until somebody has said who may call it.

use std::collections::{BTreeMap, BTreeSet};

use kvorum_proto::authpb::{Permission, permission::Type};
use kvorum_proto::etcdserverpb::auth_client::AuthClient;
use kvorum_proto::etcdserverpb::{self as pb, kv_client::KvClient};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::replica::{Server, Setting};
use crate::rest::send;

/// The callers: nobody, one whose token is not known, one without roles, one with a few keys, and root.
pub const CALLERS: [&str; 5] = ["nobody", "stranger", "idle", "user", "root"];
/// The only keys of `user`: it reads and writes those that begin with this.
const OWN: &str = "own/";

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// Everybody.
    All,
    /// Whoever is known.
    Known,
    /// Root.
    Admin,
    /// Who has the key: `user` and root.
    OfKey,
    /// Everybody gets a stream, and hears there whether it may; looked at elsewhere.
    Stream,
}

/// Each method, the kind of its callers, and a request.
fn methods() -> Vec<(&'static str, May, Vec<u8>)> {
    use May::*;
    use prost::Message;
    let key = || bytes::Bytes::from_static(b"own/key");
    let own_put = pb::PutRequest {
        key: key(),
        ..Default::default()
    };
    let none = Vec::new;
    let range = pb::RangeRequest {
        key: key(),
        ..Default::default()
    };
    let delete = pb::DeleteRangeRequest {
        key: key(),
        ..Default::default()
    };
    let txn = pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(own_put.clone())),
        }],
        ..Default::default()
    };
    let leader_key = kvorum_proto::v3electionpb::ResignRequest {
        leader: Some(kvorum_proto::v3electionpb::LeaderKey {
            name: "own/q".into(),
            key: "own/q/1".into(),
            rev: 1,
            lease: 1,
        }),
    };
    let leader_key = leader_key.encode_to_vec();
    let export = kvorum_proto::kvorum::v1::ExportRequest {
        key: key(),
        ..Default::default()
    };
    // What is asked of members is refused by this test's replica, or not understood, after it was permitted.
    vec![
        ("etcdserverpb.KV/Range", OfKey, range.encode_to_vec()),
        ("etcdserverpb.KV/RangeStream", OfKey, range.encode_to_vec()),
        ("etcdserverpb.KV/Put", OfKey, own_put.encode_to_vec()),
        ("etcdserverpb.KV/DeleteRange", OfKey, delete.encode_to_vec()),
        ("etcdserverpb.KV/Txn", OfKey, txn.encode_to_vec()),
        ("etcdserverpb.KV/Compact", Admin, none()),
        ("etcdserverpb.Watch/Watch", Stream, none()),
        ("etcdserverpb.Lease/LeaseGrant", Known, none()),
        ("etcdserverpb.Lease/LeaseRevoke", Known, none()),
        ("etcdserverpb.Lease/LeaseKeepAlive", Stream, none()),
        ("etcdserverpb.Lease/LeaseTimeToLive", Known, none()),
        ("etcdserverpb.Lease/LeaseLeases", Known, none()),
        ("etcdserverpb.Cluster/MemberAdd", Admin, member_add()),
        ("etcdserverpb.Cluster/MemberRemove", Admin, none()),
        ("etcdserverpb.Cluster/MemberUpdate", Admin, none()),
        ("etcdserverpb.Cluster/MemberList", Known, none()),
        ("etcdserverpb.Cluster/MemberPromote", Admin, none()),
        ("etcdserverpb.Maintenance/Alarm", Known, none()),
        ("etcdserverpb.Maintenance/Status", Known, none()),
        ("etcdserverpb.Maintenance/Defragment", Admin, none()),
        ("etcdserverpb.Maintenance/Hash", Admin, none()),
        ("etcdserverpb.Maintenance/HashKV", Admin, none()),
        ("etcdserverpb.Maintenance/Snapshot", Admin, none()),
        ("etcdserverpb.Maintenance/MoveLeader", Admin, none()),
        ("etcdserverpb.Maintenance/Downgrade", Admin, none()),
        ("etcdserverpb.Auth/AuthEnable", Admin, none()),
        // Root would turn it off; looked at elsewhere.
        ("etcdserverpb.Auth/AuthDisable", Stream, none()),
        ("etcdserverpb.Auth/AuthStatus", All, none()),
        ("etcdserverpb.Auth/Authenticate", All, none()),
        ("etcdserverpb.Auth/UserAdd", Admin, text(1, "new")),
        ("etcdserverpb.Auth/UserGet", Admin, none()),
        ("etcdserverpb.Auth/UserList", Admin, none()),
        ("etcdserverpb.Auth/UserDelete", Admin, none()),
        ("etcdserverpb.Auth/UserChangePassword", Admin, none()),
        ("etcdserverpb.Auth/UserGrantRole", Admin, none()),
        ("etcdserverpb.Auth/UserRevokeRole", Admin, none()),
        ("etcdserverpb.Auth/RoleAdd", Admin, none()),
        ("etcdserverpb.Auth/RoleGet", Admin, none()),
        ("etcdserverpb.Auth/RoleList", Admin, none()),
        ("etcdserverpb.Auth/RoleDelete", Admin, none()),
        ("etcdserverpb.Auth/RoleGrantPermission", Admin, none()),
        ("etcdserverpb.Auth/RoleRevokePermission", Admin, none()),
        // Who may stand in a queue waits there.
        ("v3lockpb.Lock/Lock", Stream, none()),
        ("v3lockpb.Lock/Unlock", OfKey, text(1, "own/q/1")),
        ("v3electionpb.Election/Campaign", Stream, none()),
        ("v3electionpb.Election/Proclaim", OfKey, leader_key.clone()),
        ("v3electionpb.Election/Leader", OfKey, text(1, "own/q")),
        ("v3electionpb.Election/Observe", Stream, none()),
        ("v3electionpb.Election/Resign", OfKey, leader_key),
        ("kvorum.v1.Kvorum/RegisterSession", Known, none()),
        ("kvorum.v1.Kvorum/Status", Known, none()),
        ("kvorum.v1.Kvorum/Members", Known, none()),
        ("kvorum.v1.Kvorum/MemberAdd", Admin, none()),
        ("kvorum.v1.Kvorum/MemberPromote", Admin, none()),
        ("kvorum.v1.Kvorum/MemberRemove", Admin, none()),
        ("kvorum.v1.Kvorum/MemberReplace", Admin, none()),
        ("kvorum.v1.Kvorum/Join", Admin, none()),
        ("kvorum.v1.Kvorum/TransferLeadership", Admin, none()),
        ("kvorum.v1.Kvorum/Export", OfKey, export.encode_to_vec()),
        ("kv.KVStore/Put", OfKey, text(1, "own/key")),
        ("kv.KVStore/Get", OfKey, text(1, "own/key")),
        ("kv.KVStore/Delete", OfKey, text(1, "own/key")),
        ("kv.KVStore/GetClusterStatus", Known, none()),
        ("kv_pb.KVService/Set", OfKey, text(1, "own/key")),
        ("kv_pb.KVService/Get", OfKey, text(1, "own/key")),
        ("kv_pb.KVService/Del", OfKey, text(1, "own/key")),
        ("raft_pb.RaftService/Info", Known, none()),
        ("grpc.health.v1.Health/Check", All, none()),
        ("grpc.health.v1.Health/Watch", All, none()),
    ]
}

fn member_add() -> Vec<u8> {
    text(1, "http://127.0.0.1:1")
}

/// A message with one text.
fn text(field: u8, text: &str) -> Vec<u8> {
    let mut message = vec![field << 3 | 2, text.len() as u8];
    message.extend_from_slice(text.as_bytes());
    message
}

/// Routes, who may call them, and a request: path and body.
fn rest_routes() -> Vec<(&'static str, &'static str, May, &'static str, &'static str)> {
    use May::*;
    let pair = r#"{"key":"own/key","value":"v"}"#;
    vec![
        ("GET", "/kv/{key}", OfKey, "/kv/own%2Fkey", ""),
        ("DELETE", "/kv/{key}", OfKey, "/kv/own%2Fkey", ""),
        ("POST", "/kv", OfKey, "/kv", pair),
        ("GET", "/raft/info", Known, "/raft/info", ""),
        ("GET", "/key/{id}", OfKey, "/key/own%2Fkey", ""),
        ("DELETE", "/key/{id}", OfKey, "/key/own%2Fkey", ""),
        ("POST", "/key", OfKey, "/key", pair),
        ("GET", "/hello", All, "/hello", ""),
        ("POST", "/register-follower", Admin, "/register-follower", "{}"),
        (
            "POST",
            "/batch",
            OfKey,
            "/batch",
            r#"{"operations":[{"type":"put","key":"own/key"}]}"#,
        ),
        ("GET", "/status", Known, "/status", ""),
        ("GET", "/health", All, "/health", ""),
        ("GET", "/livez", All, "/livez", ""),
        ("GET", "/livez/{check}", All, "/livez/serializable_read", ""),
        ("GET", "/readyz", All, "/readyz", ""),
        ("GET", "/readyz/{check}", All, "/readyz/serializable_read", ""),
        ("GET", "/version", All, "/version", ""),
        ("GET", "/metrics", All, "/metrics", ""),
        ("GET", "/openapi.json", All, "/openapi.json", ""),
        ("GET", "/debug/vars", All, "/debug/vars", ""),
        // The gateway's methods are those of the services; this is one of them, of own/key.
        (
            "POST",
            "/v3/{method}",
            OfKey,
            "/v3/kv/range",
            r#"{"key":"b3duL2tleQ=="}"#,
        ),
    ]
}

impl May {
    /// Whether this caller may.
    fn lets(self, caller: &str) -> bool {
        match self {
            May::All => true,
            May::Known => !matches!(caller, "nobody" | "stranger"),
            May::OfKey => matches!(caller, "user" | "root"),
            May::Admin => caller == "root",
            May::Stream => unreachable!("looked at elsewhere"),
        }
    }
}

/// A server with authentication on, and the token of each caller that has one.
pub struct Guarded {
    pub server: Server,
    tokens: BTreeMap<&'static str, String>,
}

impl Guarded {
    pub async fn start() -> Guarded {
        Guarded::with(Setting::default()).await
    }

    pub async fn with(setting: Setting) -> Guarded {
        let server = Server::with(setting);
        let mut client = AuthClient::new(server.channel().await);
        for name in ["root", "idle", "user"] {
            add_user(&mut client, name).await;
        }
        for role in ["root", "own"] {
            let name = role.to_owned();
            client.role_add(pb::AuthRoleAddRequest { name }).await.unwrap();
        }
        for (user, role) in [("root", "root"), ("user", "own")] {
            let (user, role) = (user.to_owned(), role.to_owned());
            let request = pb::AuthUserGrantRoleRequest { user, role };
            client.user_grant_role(request).await.unwrap();
        }
        let request = permission("own", Type::Readwrite, OWN, "own0");
        client.role_grant_permission(request).await.unwrap();
        client.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
        let mut tokens = BTreeMap::from([("stranger", "abcdefghijklmnop.1".to_owned())]);
        for name in ["root", "idle", "user"] {
            tokens.insert(name, log_in(&server, name).await.unwrap());
        }
        Guarded { server, tokens }
    }

    /// The caller's token as metadata.
    pub fn token(&self, caller: &str) -> Option<MetadataValue<Ascii>> {
        Some(self.tokens.get(caller)?.parse().unwrap())
    }

    pub fn request<T>(&self, caller: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = self.token(caller) {
            request.metadata_mut().insert("token", token);
        }
        request
    }

    pub async fn put(&self, caller: &str, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        let mut client = KvClient::new(self.server.channel().await);
        let answer = client.put(self.request(caller, request)).await;
        answer.map(|answer| answer.into_inner())
    }

    pub async fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.server.channel().await)
    }
}

pub async fn add_user(client: &mut AuthClient<Channel>, name: &str) {
    let request = pb::AuthUserAddRequest {
        name: name.to_owned(),
        password: format!("{name}'s"),
        ..Default::default()
    };
    client.user_add(request).await.unwrap();
}

pub fn permission(role: &str, kind: Type, key: &str, end: &str) -> pb::AuthRoleGrantPermissionRequest {
    pb::AuthRoleGrantPermissionRequest {
        name: role.to_owned(),
        perm: Some(Permission {
            perm_type: kind.into(),
            key: key.to_owned().into(),
            range_end: end.to_owned().into(),
        }),
    }
}

pub async fn log_in(server: &Server, name: &str) -> Result<String, Status> {
    let request = pb::AuthenticateRequest {
        name: name.to_owned(),
        password: format!("{name}'s"),
    };
    let mut client = AuthClient::new(server.channel().await);
    let answer = client.authenticate(request).await?;
    Ok(answer.into_inner().token)
}

/// Calls a method with bytes; whether it was refused for who asks.
async fn call(guarded: &Guarded, caller: &str, method: &str, message: &[u8]) -> Result<(), String> {
    let channel = guarded.server.channel().await;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = format!("/{method}").parse().unwrap();
    let request = guarded.request(caller, message.to_vec());
    let stream = client.server_streaming(request, path, Raw).await;
    let failed = match stream {
        Err(status) => Some(status),
        // Of a stream the first message, or its end.
        Ok(answer) => answer.into_inner().message().await.err(),
    };
    match failed {
        Some(status) if is_refusal(&status) => Err(format!("{status}")),
        _ => Ok(()),
    }
}

/// Whether it is about who asks.
fn is_refusal(status: &Status) -> bool {
    let joins_are_closed = status
        .message()
        .starts_with("kvorum: members do not announce themselves");
    // Locks and elections lose the code.
    let texts = [
        "etcdserver: user name is empty",
        "etcdserver: revision of auth store is old",
        "etcdserver: permission denied",
        "etcdserver: invalid auth token",
    ];
    let is_denial = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated);
    (is_denial && !joins_are_closed) || texts.contains(&status.message())
}

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(out, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes::Buf::remaining(from)];
        bytes::Buf::copy_to_slice(from, &mut item);
        Ok(Some(item))
    }
}

/// `package.Service/Method` of all services that clients can reach, as `proto/` has them.
fn declared() -> BTreeSet<String> {
    fn gather(dir: &std::path::Path, into: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                gather(&path, into);
                continue;
            }
            let (mut package, mut service) = (String::new(), String::new());
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                let words: Vec<&str> = line.trim().split([' ', ';', '(']).collect();
                match words.as_slice() {
                    ["package", name, ..] => package = (*name).to_owned(),
                    ["service", name, ..] => service = (*name).to_owned(),
                    ["rpc", name, ..] => {
                        into.insert(format!("{package}.{service}/{name}"));
                    }
                    _ => {}
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    gather(
        &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto"),
        &mut found,
    );
    // Members among themselves, on their own port.
    found.retain(|method| !method.starts_with("kvorum.v1.Peer/"));
    found
}

#[tokio::test]
async fn every_method_is_for_those_it_is_for() {
    let methods = methods();
    let listed: BTreeSet<String> = methods.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(listed, declared(), "say here who may call a new method");
    let guarded = Guarded::start().await;
    for (method, may, message) in &methods {
        if *may == May::Stream {
            continue;
        }
        for caller in CALLERS {
            let answer = call(&guarded, caller, method, message).await;
            assert_eq!(
                answer.is_ok(),
                may.lets(caller),
                "{method} by {caller}: {answer:?}"
            );
        }
    }
}

/// Those who may wait, so that only the others are asked for all three.
#[tokio::test]
async fn queues_are_for_those_who_have_their_keys() {
    let guarded = Guarded::start().await;
    let name = text(1, "own/q");
    for caller in ["nobody", "stranger", "idle"] {
        for method in [
            "v3lockpb.Lock/Lock",
            "v3electionpb.Election/Campaign",
            "v3electionpb.Election/Observe",
        ] {
            let answer = call(&guarded, caller, method, &name).await;
            assert!(answer.is_err(), "{method} by {caller}");
        }
    }
    call(&guarded, "user", "v3lockpb.Lock/Lock", &name).await.unwrap();
    let others = text(1, "other");
    let answer = call(&guarded, "user", "v3lockpb.Lock/Lock", &others).await;
    assert!(answer.is_err(), "a queue without a permission");
}

#[tokio::test]
async fn every_route_is_for_those_it_is_for() {
    let routes = rest_routes();
    let guarded = Guarded::start().await;
    let document = send(&guarded.server, "GET", "/openapi.json", "", b"")
        .await
        .json();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item
                .as_object()
                .unwrap()
                .keys()
                .filter(|name| *name != "parameters");
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let listed: BTreeSet<(String, String)> = routes
        .iter()
        .map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    assert_eq!(listed, described, "say here who may call a new route");
    for (method, _, may, path, body) in routes {
        for caller in CALLERS {
            let header = guarded.tokens.get(caller);
            let header = header.map(|token| format!("authorization: Bearer {token}\r\n"));
            let header = header.unwrap_or_default();
            let answer = send(&guarded.server, method, path, &header, body.as_bytes()).await;
            let expected = match (may.lets(caller), caller) {
                (true, _) => None,
                (false, "nobody" | "stranger") => Some(401),
                (false, _) => Some(403),
            };
            let refused = match answer.status {
                // Joins are closed here: root hears just that.
                403 if answer.body.contains("--open-join") => None,
                // As etcd's gateway says it.
                400 if answer.body.contains("etcdserver: user name is empty") => Some(401),
                status @ (401 | 403) => Some(status),
                _ => None,
            };
            assert_eq!(refused, expected, "{method} {path} by {caller}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn to_turn_it_off_is_for_root() {
    let guarded = Guarded::start().await;
    for caller in &CALLERS[..4] {
        let answer = call(&guarded, caller, "etcdserverpb.Auth/AuthDisable", b"").await;
        assert!(answer.is_err(), "{caller}");
    }
    call(&guarded, "root", "etcdserverpb.Auth/AuthDisable", b"")
        .await
        .unwrap();
    // And now everybody may do everything again; tokens that mean nothing disturb nobody.
    for caller in CALLERS {
        guarded
            .put(
                caller,
                pb::PutRequest {
                    key: "anything".into(),
                    ..Default::default()
                },
            )
            .await
            .unwrap();
    }
    let status = log_in(&guarded.server, "root").await.unwrap_err();
    assert_eq!(status.message(), "etcdserver: authentication is not enabled");
}
