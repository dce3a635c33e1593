//! Unary requests of any service, sent to a server, and its answers in a form that can be compared.

use std::time::Duration;

use kvorum_client::proto::etcd;
use tonic::transport::Channel;
use tonic::{Code, Status};

mod ties;

/// Longest that an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// One row a request: variant, client and method, and the messages of request and answer.
macro_rules! calls {
    ($($name:ident = $module:ident::$client:ident.$method:ident($request:ident) -> $response:ident;)*) => {
        /// A request.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request {
            $($name(etcd::$request),)*
            /// One message on a stream of its own.
            LeaseKeepAlive(etcd::LeaseKeepAliveRequest),
        }

        /// What came back.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Answer {
            $($name(etcd::$response),)*
            LeaseKeepAlive(etcd::LeaseKeepAliveResponse),
            Refused(Code, String),
        }

        impl Request {
            async fn send(self, channel: Channel, token: Option<&str>) -> Result<Answer, Status> {
                match self {
                    $(Request::$name(message) => {
                        let mut client = etcd::$module::$client::new(channel)
                            .max_decoding_message_size(64 << 20);
                        let answer = client.$method(with_token(message, token)).await?;
                        Ok(Answer::$name(answer.into_inner()))
                    })*
                    Request::LeaseKeepAlive(message) => keep_alive(channel, message, token).await,
                }
            }
        }

        impl Answer {
            /// The header, if it carries one.
            pub fn header(&mut self) -> Option<&mut etcd::ResponseHeader> {
                match self {
                    $(Answer::$name(answer) => answer.header.as_mut(),)*
                    Answer::LeaseKeepAlive(answer) => answer.header.as_mut(),
                    Answer::Refused(..) => None,
                }
            }
        }
    };
}

calls! {
    Range = kv_client::KvClient.range(RangeRequest) -> RangeResponse;
    Put = kv_client::KvClient.put(PutRequest) -> PutResponse;
    DeleteRange = kv_client::KvClient.delete_range(DeleteRangeRequest) -> DeleteRangeResponse;
    Txn = kv_client::KvClient.txn(TxnRequest) -> TxnResponse;
    Compact = kv_client::KvClient.compact(CompactionRequest) -> CompactionResponse;
    LeaseGrant = lease_client::LeaseClient.lease_grant(LeaseGrantRequest) -> LeaseGrantResponse;
    LeaseRevoke = lease_client::LeaseClient.lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse;
    LeaseTimeToLive = lease_client::LeaseClient.lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse;
    LeaseLeases = lease_client::LeaseClient.lease_leases(LeaseLeasesRequest) -> LeaseLeasesResponse;
    MemberList = cluster_client::ClusterClient.member_list(MemberListRequest) -> MemberListResponse;
    Alarm = maintenance_client::MaintenanceClient.alarm(AlarmRequest) -> AlarmResponse;
    Status = maintenance_client::MaintenanceClient.status(StatusRequest) -> StatusResponse;
    Defragment = maintenance_client::MaintenanceClient.defragment(DefragmentRequest) -> DefragmentResponse;
    AuthEnable = auth_client::AuthClient.auth_enable(AuthEnableRequest) -> AuthEnableResponse;
    AuthDisable = auth_client::AuthClient.auth_disable(AuthDisableRequest) -> AuthDisableResponse;
    AuthStatus = auth_client::AuthClient.auth_status(AuthStatusRequest) -> AuthStatusResponse;
    Authenticate = auth_client::AuthClient.authenticate(AuthenticateRequest) -> AuthenticateResponse;
    UserAdd = auth_client::AuthClient.user_add(AuthUserAddRequest) -> AuthUserAddResponse;
    UserGet = auth_client::AuthClient.user_get(AuthUserGetRequest) -> AuthUserGetResponse;
    UserList = auth_client::AuthClient.user_list(AuthUserListRequest) -> AuthUserListResponse;
    UserDelete = auth_client::AuthClient.user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
    UserChangePassword = auth_client::AuthClient.user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
    UserGrantRole = auth_client::AuthClient.user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
    UserRevokeRole = auth_client::AuthClient.user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
    RoleAdd = auth_client::AuthClient.role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
    RoleGet = auth_client::AuthClient.role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
    RoleList = auth_client::AuthClient.role_list(AuthRoleListRequest) -> AuthRoleListResponse;
    RoleDelete = auth_client::AuthClient.role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
    RoleGrantPermission = auth_client::AuthClient.role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
    RoleRevokePermission = auth_client::AuthClient.role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
    HashKv = maintenance_client::MaintenanceClient.hash_kv(HashKvRequest) -> HashKvResponse;
}

fn with_token<T>(message: T, token: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        request
            .metadata_mut()
            .insert("token", token.parse().expect("tokens are of ASCII letters"));
    }
    request
}

async fn keep_alive(
    channel: Channel,
    message: etcd::LeaseKeepAliveRequest,
    token: Option<&str>,
) -> Result<Answer, Status> {
    let mut client = etcd::lease_client::LeaseClient::new(channel);
    let messages = tokio_stream::iter([message]);
    let mut answers = client
        .lease_keep_alive(with_token(messages, token))
        .await?
        .into_inner();
    match answers.message().await? {
        Some(answer) => Ok(Answer::LeaseKeepAlive(answer)),
        None => Err(Status::unknown("the stream ended without an answer")),
    }
}

/// One server, the reference or a cluster of kvorum: a channel to each member, and who they are.
pub struct Server {
    pub name: &'static str,
    channels: Vec<Channel>,
    cluster_id: u64,
    members: Vec<u64>,
}

impl Server {
    /// Connects to the members at these addresses.
    pub async fn connect(name: &'static str, addresses: &[&str]) -> Server {
        let mut channels = Vec::new();
        for address in addresses {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
            channels.push(endpoint.connect().await.unwrap());
        }
        let mut server = Server {
            name,
            channels,
            cluster_id: 0,
            members: Vec::new(),
        };
        let request = Request::MemberList(etcd::MemberListRequest { linearizable: true });
        let Ok(Answer::MemberList(list)) = request.send(server.channel(0), None).await else {
            panic!("{name} does not list its members");
        };
        server.cluster_id = list.header.unwrap().cluster_id;
        server.members = list.members.iter().map(|member| member.id).collect();
        assert!(server.cluster_id != 0 && !server.members.contains(&0));
        server
    }

    /// The way to a member; any number names one.
    pub fn channel(&self, member: usize) -> Channel {
        self.channels[member % self.channels.len()].clone()
    }

    /// Sends a request to a member; the answer has what is compared by shape only replaced by 1 where its shape is
    /// right.
    pub async fn call(&self, member: usize, request: Request, token: Option<&str>) -> Answer {
        let asked = request.clone();
        let sent = request.send(self.channel(member), token);
        let Ok(result) = tokio::time::timeout(ANSWER_TIMEOUT, sent).await else {
            panic!("no answer from {}: {asked:?}", self.name);
        };
        match result {
            Ok(mut answer) => {
                self.level(&mut answer);
                ties::level(&asked, &mut answer);
                answer
            }
            Err(status) => Answer::Refused(status.code(), status.message().to_owned()),
        }
    }

    /// A token for a user, as the server gives it.
    pub async fn log_in(&self, member: usize, name: &str, password: &str) -> Option<String> {
        let (name, password) = (name.to_owned(), password.to_owned());
        let request = Request::Authenticate(etcd::AuthenticateRequest { name, password });
        match request.send(self.channel(member), None).await {
            Ok(Answer::Authenticate(answer)) => Some(answer.token),
            _ => None,
        }
    }

    /// The parts of an answer that are a server's own: 1 if right.
    fn level(&self, answer: &mut Answer) {
        if let Some(header) = answer.header() {
            self.level_header(header);
        }
        match answer {
            Answer::MemberList(list) => {
                // Names, addresses and number of members are the set-up's.
                let complete = list
                    .members
                    .iter()
                    .all(|member| !member.name.is_empty() && !member.client_ur_ls.is_empty());
                assert!(complete, "{}: {list:?}", self.name);
                list.members.clear();
            }
            Answer::Status(status) => {
                for id in [&mut status.leader, &mut status.raft_term, &mut status.raft_index] {
                    *id = u64::from(*id > 0);
                }
                status.raft_applied_index = u64::from(status.raft_applied_index > 0);
                for size in [&mut status.db_size, &mut status.db_size_in_use] {
                    *size = i64::from(*size > 0);
                }
                // The quota is a setting, the version that of the build.
                status.db_size_quota = 0;
                status.version.clear();
            }
            Answer::LeaseTimeToLive(lease) => {
                // Time passes between the two servers.
                let is_right = (lease.granted_ttl - 60..=lease.granted_ttl).contains(&lease.ttl);
                lease.ttl = if lease.ttl > 0 {
                    i64::from(is_right)
                } else {
                    lease.ttl
                };
                // etcd's come in no order.
                lease.keys.sort();
                level_revision(&mut lease.header);
            }
            Answer::LeaseKeepAlive(lease) => level_revision(&mut lease.header),
            // Each server draws its own; who wants it takes it before.
            Answer::Authenticate(answer) => answer.token = shape_of(&answer.token),
            // Ordered by when they end, which renewals a moment apart decide.
            Answer::LeaseLeases(list) => list.leases.sort_by_key(|lease| lease.id),
            _ => {}
        }
    }

    /// A header of this server's.
    pub fn level_header(&self, header: &mut etcd::ResponseHeader) {
        header.cluster_id = u64::from(header.cluster_id == self.cluster_id);
        header.member_id = u64::from(self.members.contains(&header.member_id));
        header.raft_term = u64::from(header.raft_term > 0);
    }
}

/// How a token looks: sixteen letters, a dot, and a number.
fn shape_of(token: &str) -> String {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match token.split_once('.') {
        Some((letters, index)) if letters.bytes().all(|byte| byte.is_ascii_alphabetic()) && digits(index) => {
            format!("{}.#", letters.len())
        }
        _ => token.to_owned(),
    }
}

/// The header of an answer by the leader is as old as the member that was asked.
fn level_revision(header: &mut Option<etcd::ResponseHeader>) {
    if let Some(header) = header {
        header.revision = i64::from(header.revision > 0);
    }
}
