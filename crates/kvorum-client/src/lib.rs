//! The Rust client of kvorum: etcd's v3 gRPC, and `kvorum.v1` for what etcd has no words for.
//!
//! A [`Client`] knows several endpoints and moves to the next when one fails. Reads are repeated until the
//! deadline; writes are repeated under a session, so that a retry takes effect once (see [`Options::sessions`]).
//! A write whose fate nobody told ends as [`Error::Unknown`], never as plain failure. Watches resume where they
//! were after a reconnect, exports continue at the same revision.
//!
//! Against a server without `kvorum.v1` (etcd itself) writes go out once, without a session.

mod auth;
mod call;
mod endpoint;
mod error;
mod export;
mod lease;
mod login;
mod maintenance;
mod queue;
mod session;
mod snapshot;
mod watch;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::transport::Channel;

pub use auth::permission;
use endpoint::Endpoints;
pub use error::Error;
pub use export::Export;
pub use login::Credentials;
use login::Login;
use proto::etcd::kv_client::KvClient;
use proto::v1::kvorum_client::KvorumClient;
use proto::{etcd, v1};
pub use queue::Observer;
use session::Sessions;
pub use tonic::Code;
pub use watch::{WatchItem, WatchOptions, Watcher};

/// The messages of the protocols, as generated.
pub mod proto {
    pub use kvorum_proto::authpb as auth;
    pub use kvorum_proto::etcdserverpb as etcd;
    pub use kvorum_proto::kvorum::v1;
    pub use kvorum_proto::mvccpb as mvcc;
    pub use kvorum_proto::v3electionpb as election;
    pub use kvorum_proto::v3lockpb as lock;
}

/// Largest answer that is taken, in bytes: what a server may have in memory for unary answers, and headers.
const MESSAGE_BYTES_MAX: usize = 513 << 20;

/// How a [`Client`] behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Servers as `host:port` or `http://host:port`; tried in this order.
    pub endpoints: Vec<String>,
    /// Longest a call takes, all attempts together.
    pub timeout: Duration,
    /// Longest one attempt takes where another may follow.
    pub attempt_timeout: Duration,
    /// Send writes under sessions, so that they can be retried.
    pub sessions: bool,
    /// Who the client is, where authentication is on.
    pub credentials: Option<Credentials>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            endpoints: vec!["127.0.0.1:2379".to_owned()],
            timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            sessions: true,
            credentials: None,
        }
    }
}

/// Why a call that is still being tried has no answer yet; see [`Client::trouble`].
#[derive(Clone, Debug)]
pub struct Trouble {
    /// When the first of the calls that wait began.
    pub since: Instant,
    /// What the last attempt ended with, and where. One line.
    pub message: String,
}

/// A handle on a cluster; cheap to clone, and clones share connections and sessions.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoints: Endpoints,
    timeout: Duration,
    attempt_timeout: Duration,
    use_sessions: bool,
    sessions: Arc<Sessions>,
    login: Option<Login>,
    trouble: Mutex<Option<Trouble>>,
}

/// The `key` and `range_end` of a prefix in etcd's convention; of all keys if it is empty.
pub fn prefix_range(prefix: &[u8]) -> (Bytes, Bytes) {
    if prefix.is_empty() {
        return (Bytes::from_static(&[0]), Bytes::from_static(&[0]));
    }
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return (Bytes::copy_from_slice(prefix), end.into());
        }
    }
    (Bytes::copy_from_slice(prefix), Bytes::from_static(&[0]))
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn kvorum(channel: Channel) -> KvorumClient<Channel> {
    KvorumClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

impl Client {
    /// A client; connections are made when they are needed.
    ///
    /// # Errors
    /// [`Error::Config`] if an endpoint is malformed or none is given.
    pub fn new(options: Options) -> Result<Self, Error> {
        Ok(Client {
            inner: Arc::new(Inner {
                endpoints: Endpoints::parse(&options.endpoints)?,
                timeout: options.timeout,
                attempt_timeout: options.attempt_timeout.min(options.timeout),
                use_sessions: options.sessions,
                sessions: Arc::default(),
                login: options.credentials.map(Login::new),
                trouble: Mutex::default(),
            }),
        })
    }

    /// The endpoints as `host:port`.
    pub fn endpoints(&self) -> Vec<String> {
        self.inner.endpoints.names()
    }

    /// What attempts fail with while calls are tried again; `None` once a server answered. For programs that tell
    /// people why they wait.
    pub fn trouble(&self) -> Option<Trouble> {
        // Whoever panicked changed nothing by halves.
        let trouble = self.inner.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }

    /// An attempt of a call that began at `since` ended: with this message, or with a server's answer.
    fn note_attempt(&self, since: Instant, message: Option<&str>) {
        let mut trouble = self.inner.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        *trouble = message.map(|message| Trouble {
            since: trouble.as_ref().map_or(since, |trouble| trouble.since),
            message: message.to_owned(),
        });
    }

    /// Writes one key.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<etcd::PutResponse, Error> {
        let request = etcd::PutRequest {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        };
        self.put_request(request).await
    }

    /// Writes one key, with everything that a put can say.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn put_request(&self, request: etcd::PutRequest) -> Result<etcd::PutResponse, Error> {
        self.write(request, |channel, request| async move {
            kv(channel).put(request).await
        })
        .await
    }

    /// Reads one key, linearizably.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<proto::mvcc::KeyValue>, Error> {
        let request = etcd::RangeRequest {
            key: key.into(),
            ..Default::default()
        };
        Ok(self.range(request).await?.kvs.into_iter().next())
    }

    /// Reads a range.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn range(&self, request: etcd::RangeRequest) -> Result<etcd::RangeResponse, Error> {
        self.read(request, |channel, request| async move {
            kv(channel).range(request).await
        })
        .await
    }

    /// Deletes one key or a range.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn delete(
        &self,
        request: etcd::DeleteRangeRequest,
    ) -> Result<etcd::DeleteRangeResponse, Error> {
        self.write(request, |channel, request| async move {
            kv(channel).delete_range(request).await
        })
        .await
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn txn(&self, request: etcd::TxnRequest) -> Result<etcd::TxnResponse, Error> {
        self.write(request, |channel, request| async move {
            kv(channel).txn(request).await
        })
        .await
    }

    /// Forgets history up to `revision`; with `physical`, answers when the space is free.
    ///
    /// # Errors
    /// As of every write: see [`Error`].
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<etcd::CompactionResponse, Error> {
        let request = etcd::CompactionRequest { revision, physical };
        self.write(request, |channel, request| async move {
            kv(channel).compact(request).await
        })
        .await
    }

    /// How the member at the first endpoint that answers is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<v1::StatusResponse, Error> {
        let request = v1::StatusRequest {};
        self.read(request, |channel, request| async move {
            kvorum(channel).status(request).await
        })
        .await
    }

    /// The members, read linearizably.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members(&self) -> Result<v1::MembersResponse, Error> {
        let request = v1::MembersRequest { linearizable: true };
        self.read(request, |channel, request| async move {
            kvorum(channel).members(request).await
        })
        .await
    }

    /// Announces a new member that is about to start. To repeat it changes nothing, so it is repeated until the
    /// deadline while there is no leader.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Rejected`] with `PermissionDenied` where members may not announce themselves, with
    /// `AlreadyExists` where the name belongs to a member that runs.
    pub async fn join(&self, request: v1::JoinRequest) -> Result<v1::JoinResponse, Error> {
        self.read(request, |channel, request| async move {
            kvorum(channel).join(request).await
        })
        .await
    }

    /// Adds a learner.
    ///
    /// # Errors
    /// As of a write without a session: a lost answer is [`Error::Unknown`]; look at [`Client::members`].
    pub async fn member_add(&self, request: v1::MemberAddRequest) -> Result<v1::MemberAddResponse, Error> {
        self.admin(request, |channel, request| async move {
            kvorum(channel).member_add(request).await
        })
        .await
    }

    /// Makes a learner that caught up a voter.
    ///
    /// # Errors
    /// As [`Client::member_add`].
    pub async fn member_promote(
        &self,
        member: v1::MemberSelector,
    ) -> Result<v1::MemberPromoteResponse, Error> {
        let request = v1::MemberPromoteRequest { member: Some(member) };
        self.admin(request, |channel, request| async move {
            kvorum(channel).member_promote(request).await
        })
        .await
    }

    /// Removes a member for good.
    ///
    /// # Errors
    /// As [`Client::member_add`].
    pub async fn member_remove(&self, member: v1::MemberSelector) -> Result<v1::MemberRemoveResponse, Error> {
        let request = v1::MemberRemoveRequest { member: Some(member) };
        self.admin(request, |channel, request| async move {
            kvorum(channel).member_remove(request).await
        })
        .await
    }

    /// Replaces a member that lost its data by a new one, in one change.
    ///
    /// # Errors
    /// As [`Client::member_add`].
    pub async fn member_replace(
        &self,
        request: v1::MemberReplaceRequest,
    ) -> Result<v1::MemberReplaceResponse, Error> {
        self.admin(request, |channel, request| async move {
            kvorum(channel).member_replace(request).await
        })
        .await
    }

    /// Hands leadership to a member, or to the fittest one.
    ///
    /// # Errors
    /// As [`Client::member_add`].
    pub async fn transfer_leadership(
        &self,
        to: Option<v1::MemberSelector>,
    ) -> Result<v1::TransferLeadershipResponse, Error> {
        let request = v1::TransferLeadershipRequest { to };
        self.admin(request, |channel, request| async move {
            kvorum(channel).transfer_leadership(request).await
        })
        .await
    }
}
