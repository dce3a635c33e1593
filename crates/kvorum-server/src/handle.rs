//! What the services know of the replica: how to write, how to read, how it is.
//!
//! The other end, [`ReplicaPort`], is driven by the replica's threads. Nothing here blocks, and nothing here
//! decides: what a request means is the state machine's matter, when it counts is the replica's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use kvorum_model::{Caller, Command, CommandLimits, Envelope, Error, Origin, SessionRef};
use kvorum_mvcc::{Applied, AuthChange};
use kvorum_node::{
    AdminError, AdminReply, AdminRequest, LeaseAnswer, LeaseAsk, NodeStatus, ReadFailure, WriteFailure,
};
use kvorum_proto::{Outcome, status_of};
use kvorum_raft::LogId;
use tonic::Status;

use crate::access::passwords::Passwords;
use crate::access::tokens::Tokens;
use crate::local::LocalState;
use crate::mailbox::{Admin, Full, Lease, Mailbox, Read, Submit, Write};
use crate::options::AuthOptions;
use crate::pending::{Answer, Kind, Pending, Refusal};

/// Why a write brought no answer of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Refused before it was appended, for what it is or for want of space.
    Refused(Error),
    /// No leader was known until the deadline.
    NoLeader,
    /// Too much waits here or at the leader.
    Overloaded,
    /// Another entry took its place in the log.
    LeaderChanged,
    /// This member stops, and did not take it.
    Stopped,
    /// This member stopped with it under way.
    StoppedInFlight,
    /// It was handed to a leader that was lost.
    LeaderLost,
    /// Its deadline passed.
    TimedOut,
}

impl WriteError {
    /// What became of the write.
    pub fn outcome(&self) -> Outcome {
        use WriteError::*;
        match self {
            Refused(error) => Outcome::of_error(error),
            NoLeader | Overloaded | LeaderChanged | Stopped => Outcome::NotApplied,
            StoppedInFlight | LeaderLost | TimedOut => Outcome::Unknown,
        }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use WriteError::*;
        f.write_str(match self {
            Refused(error) => return error.fmt(f),
            NoLeader => "etcdserver: no leader",
            Overloaded => "etcdserver: too many requests",
            LeaderChanged => "etcdserver: leader changed",
            Stopped | StoppedInFlight => "etcdserver: server stopped",
            LeaderLost => "etcdserver: request timed out, possibly due to previous leader failure",
            TimedOut => "etcdserver: request timed out",
        })
    }
}

impl std::error::Error for WriteError {}

impl From<WriteFailure> for WriteError {
    fn from(failure: WriteFailure) -> Self {
        match failure {
            WriteFailure::NoLeader => WriteError::NoLeader,
            WriteFailure::Overloaded => WriteError::Overloaded,
            WriteFailure::TooLarge => WriteError::Refused(Error::RequestTooLarge),
            WriteFailure::NoSpace => WriteError::Refused(Error::NoSpace),
            WriteFailure::Superseded => WriteError::LeaderChanged,
            WriteFailure::Stopping => WriteError::Stopped,
            WriteFailure::LeaderLost => WriteError::LeaderLost,
        }
    }
}

/// With etcd's code and text, and the outcome as a trailer.
impl From<WriteError> for Status {
    fn from(error: WriteError) -> Status {
        let status = match &error {
            WriteError::Refused(refusal) => status_of(refusal),
            WriteError::Overloaded => Status::resource_exhausted(error.to_string()),
            _ => Status::unavailable(error.to_string()),
        };
        error.outcome().mark(status)
    }
}

/// Why a linearizable read could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// No leader is known, and the caller does not want to wait for one.
    NoLeader,
    /// No leader confirmed until the deadline.
    TimedOut,
    /// Too many wait.
    Overloaded,
    /// This member stops.
    Stopped,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReadError::NoLeader => "etcdserver: no leader",
            ReadError::TimedOut => "etcdserver: request timed out",
            ReadError::Overloaded => "etcdserver: too many requests",
            ReadError::Stopped => "etcdserver: server stopped",
        })
    }
}

impl std::error::Error for ReadError {}

impl From<ReadFailure> for ReadError {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::TimedOut => ReadError::TimedOut,
            ReadFailure::Overloaded => ReadError::Overloaded,
            ReadFailure::Stopping => ReadError::Stopped,
        }
    }
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Status {
        match error {
            ReadError::Overloaded => Status::resource_exhausted(error.to_string()),
            _ => Status::unavailable(error.to_string()),
        }
    }
}

/// Who this member is, as every answer says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, as etcd's clients see it.
    pub cluster_id: u64,
    /// This member.
    pub member_id: u64,
    /// A number that differs at each start of it.
    pub boot: u64,
    /// Its name.
    pub name: String,
    /// The founders' names by ID, as this start was told them: they stand in for what a member has not said itself.
    pub founders: BTreeMap<u64, String>,
}

/// Figures of the store that no view knows; published by the thread that applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreFigures {
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Open sessions.
    pub sessions: u64,
}

/// Sizes of a handle.
#[derive(Clone, Copy, Debug)]
pub struct HandleOptions {
    /// Workers whose tasks use it; each runs [`Pending::dispatch`] for its own shard.
    pub shards: usize,
    /// Most requests that wait for the replica at one time.
    pub requests_max: usize,
    /// Largest command, encoded, in bytes.
    pub request_bytes_max: usize,
    /// Most operations in one list of a transaction.
    pub txn_ops_max: usize,
    /// Longest a request waits if its caller sets no shorter deadline.
    pub request_timeout: Duration,
    /// Of logging in.
    pub auth: AuthOptions,
}

/// The services' side. Cheap to clone.
#[derive(Clone)]
pub struct ReplicaHandle(Arc<Shared>);

struct Shared {
    identity: Identity,
    options: HandleOptions,
    submit: Arc<dyn Submit>,
    pending: Arc<Pending>,
    node: RwLock<Arc<NodeStatus>>,
    figures: RwLock<StoreFigures>,
    state: Arc<dyn LocalState>,
    tokens: Tokens,
    passwords: Passwords,
    // Copies of what each request needs of the above, without a lock.
    term: AtomicU64,
    leader: AtomicU64,
    is_learner: AtomicBool,
    key_bytes_max: AtomicU64,
    /// Of the last entry whose writer was answered here: index and term.
    answered: (AtomicU64, AtomicU64),
}

/// The replica's side: where its threads put answers and what they publish.
#[derive(Clone)]
pub struct ReplicaPort(Arc<Shared>);

/// A handle and its other end.
///
/// `mailbox` carries the callers' requests to the replica; `node`, `figures` and `state` are what recovery found.
pub fn replica_handle<X: Send + 'static>(
    identity: Identity,
    options: HandleOptions,
    mailbox: Arc<Mailbox<X>>,
    node: NodeStatus,
    figures: StoreFigures,
    state: Arc<dyn LocalState>,
) -> (ReplicaHandle, ReplicaPort) {
    let shared = Arc::new(Shared {
        identity,
        options,
        submit: mailbox,
        pending: Arc::new(Pending::new(options.shards, options.requests_max)),
        term: AtomicU64::new(node.term),
        leader: AtomicU64::new(node.leader),
        is_learner: AtomicBool::new(node.is_learner()),
        key_bytes_max: AtomicU64::new(node.cluster.settings.key_bytes_max),
        node: RwLock::new(Arc::new(node)),
        figures: RwLock::new(figures),
        tokens: Tokens::new(options.auth.token_ttl),
        passwords: Passwords::new(options.auth.bcrypt_cost),
        state,
        answered: <(AtomicU64, AtomicU64)>::default(),
    });
    (ReplicaHandle(shared.clone()), ReplicaPort(shared))
}

impl ReplicaPort {
    /// Where answers go.
    pub fn pending(&self) -> &Arc<Pending> {
        &self.0.pending
    }

    /// What applied entries did to tokens; before their callers hear of it.
    pub fn note_auth(&self, changes: Vec<AuthChange>) {
        if !changes.is_empty() {
            self.0.tokens.note(changes);
        }
    }

    /// The state was replaced by a snapshot: nobody knows what became of users in between.
    pub fn forget_tokens(&self) {
        self.0.tokens.clear();
    }

    /// Answers those of these writes that were made by callers of this member since its start.
    pub fn complete(&self, applied: Vec<Applied>) {
        let Identity { member_id, boot, .. } = self.0.identity;
        // Of a retry the index is an older one.
        let index = applied.iter().map(|applied| applied.index).max();
        let term = applied.last().map(|applied| applied.term);
        self.0.answered.0.fetch_max(index.unwrap_or(0), Ordering::Relaxed);
        self.0.answered.1.fetch_max(term.unwrap_or(0), Ordering::Relaxed);
        let ours = |applied: &Applied| applied.origin.member == member_id && applied.origin.boot == boot;
        self.0.pending.complete(applied.into_iter().filter(ours));
    }

    /// The replica changed its state, or some time passed.
    pub fn publish_node(&self, status: NodeStatus) {
        self.0.term.store(status.term, Ordering::Relaxed);
        self.0.leader.store(status.leader, Ordering::Relaxed);
        self.0.is_learner.store(status.is_learner(), Ordering::Relaxed);
        self.0
            .key_bytes_max
            .store(status.cluster.settings.key_bytes_max, Ordering::Relaxed);
        *self.0.node.write().expect("no holder of the lock panics") = Arc::new(status);
    }

    /// The store changed, or some time passed.
    pub fn publish_figures(&self, figures: StoreFigures) {
        *self.0.figures.write().expect("no holder of the lock panics") = figures;
    }
}

impl ReplicaHandle {
    /// Who this member is.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The waits of this member's callers.
    pub fn pending(&self) -> &Arc<Pending> {
        &self.0.pending
    }

    /// The replica as it last published itself.
    pub fn status(&self) -> Arc<NodeStatus> {
        self.0.node.read().expect("no holder of the lock panics").clone()
    }

    /// [`Self::status`], and whatever was answered here before this call is in its log, committed and applied. The
    /// replica publishes itself from time to time only.
    pub fn status_after_answers(&self) -> Arc<NodeStatus> {
        let mut status = self.status();
        let (index, term) = &self.0.answered;
        let (index, term) = (index.load(Ordering::Relaxed), term.load(Ordering::Relaxed));
        if index > status.applied {
            let status = Arc::make_mut(&mut status);
            status.applied = index;
            status.commit = status.commit.max(index);
            if index > status.last.index {
                status.last = LogId { term, index };
            }
            status.term = status.term.max(term);
        }
        status
    }

    /// The store's figures as last published.
    pub fn figures(&self) -> StoreFigures {
        *self.0.figures.read().expect("no holder of the lock panics")
    }

    /// The local state, to be read as it is. For a linearizable read take it after [`Self::read_barrier`].
    pub fn state(&self) -> &Arc<dyn LocalState> {
        &self.0.state
    }

    /// Who logged in.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// What hashes passwords.
    pub(crate) fn passwords(&self) -> &Passwords {
        &self.0.passwords
    }

    /// The term as last published.
    pub fn term(&self) -> u64 {
        self.0.term.load(Ordering::Relaxed)
    }

    /// The leader as last published, or 0.
    pub fn leader(&self) -> u64 {
        self.0.leader.load(Ordering::Relaxed)
    }

    /// Whether this member is a learner, as last published.
    pub fn is_learner(&self) -> bool {
        self.0.is_learner.load(Ordering::Relaxed)
    }

    /// What requests are held against.
    pub fn limits(&self) -> CommandLimits {
        CommandLimits {
            key_bytes_max: self.0.key_bytes_max.load(Ordering::Relaxed) as usize,
            request_bytes_max: self.0.options.request_bytes_max,
            txn_ops_max: self.0.options.txn_ops_max,
            ..CommandLimits::default()
        }
    }

    /// When a request that comes now must be answered; `wanted` is its caller's own limit.
    pub fn deadline(&self, wanted: Option<Duration>) -> Instant {
        let limit = self.0.options.request_timeout;
        Instant::now() + wanted.map_or(limit, |wanted| wanted.min(limit))
    }

    /// Writes, and waits until this member has applied it. Without a caller it is the cluster's own.
    ///
    /// # Errors
    /// Nothing is known of the effect of a write whose error has an unknown [`WriteError::outcome`]. Dropping
    /// the future does not withdraw the write.
    pub async fn write(
        &self,
        command: Command,
        caller: Option<Caller>,
        session: Option<SessionRef>,
        deadline: Instant,
    ) -> Result<Applied, WriteError> {
        self.write_within(&self.limits(), command, caller, session, deadline)
            .await
    }

    /// [`Self::write`] with limits of the caller's own.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_within(
        &self,
        limits: &CommandLimits,
        command: Command,
        caller: Option<Caller>,
        session: Option<SessionRef>,
        deadline: Instant,
    ) -> Result<Applied, WriteError> {
        command.validate(limits).map_err(WriteError::Refused)?;
        let wait = self
            .0
            .pending
            .register(Kind::Write, deadline)
            .map_err(|refusal| match refusal {
                Refusal::Full => WriteError::Overloaded,
                Refusal::Closed => WriteError::Stopped,
            })?;
        let Identity {
            member_id: member,
            boot,
            ..
        } = self.0.identity;
        let origin = Origin {
            member,
            boot,
            seq: wait.id(),
        };
        let command = Envelope {
            time_ms: 0,
            origin,
            session,
            caller,
            command,
        }
        .encode();
        let write = Write {
            seq: wait.id(),
            command,
            deadline: earlier(deadline),
        };
        self.0
            .submit
            .write(write)
            .map_err(|Full| WriteError::Overloaded)?;
        match wait.await {
            Answer::Write(result) => result,
            _ => unreachable!("a write's number was answered as something else"),
        }
    }

    /// Returns when a view of [`Self::state`] taken afterwards shows every write that was acknowledged anywhere
    /// before the call.
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), ReadError> {
        let wait = self
            .0
            .pending
            .register(Kind::Read, deadline)
            .map_err(|refusal| match refusal {
                Refusal::Full => ReadError::Overloaded,
                Refusal::Closed => ReadError::Stopped,
            })?;
        let read = Read {
            id: wait.id(),
            deadline: earlier(deadline),
        };
        self.0.submit.read(read).map_err(|Full| ReadError::Overloaded)?;
        match wait.await {
            Answer::Read(result) => result,
            _ => unreachable!("a read's number was answered as something else"),
        }
    }

    /// Renews a lease, or asks how long it lives. Both may be repeated at will.
    pub async fn ask_lease(
        &self,
        ask: LeaseAsk,
        lease: i64,
        deadline: Instant,
    ) -> Result<LeaseAnswer, ReadError> {
        let wait = self
            .0
            .pending
            .register(Kind::Lease, deadline)
            .map_err(|refusal| match refusal {
                Refusal::Full => ReadError::Overloaded,
                Refusal::Closed => ReadError::Stopped,
            })?;
        let question = Lease {
            id: wait.id(),
            lease,
            ask,
            deadline: earlier(deadline),
        };
        self.0
            .submit
            .lease(question)
            .map_err(|Full| ReadError::Overloaded)?;
        match wait.await {
            Answer::Lease(result) => result,
            _ => unreachable!("a question's number was answered as something else"),
        }
    }

    /// Changes the membership, or moves leadership. Only the leader does.
    pub async fn admin(&self, request: AdminRequest, deadline: Instant) -> Result<AdminReply, AdminError> {
        let wait = self
            .0
            .pending
            .register(Kind::Admin, deadline)
            .map_err(|_| AdminError::Busy)?;
        let admin = Admin {
            id: wait.id(),
            request,
            deadline: earlier(deadline),
        };
        self.0.submit.admin(admin).map_err(|Full| AdminError::Busy)?;
        match wait.await {
            Answer::Admin(result) => result,
            _ => unreachable!("an administrator's number was answered as something else"),
        }
    }
}

/// The replica gives up a little before its caller does: it alone knows what became of the request.
fn earlier(deadline: Instant) -> Instant {
    let margin = deadline.saturating_duration_since(Instant::now()) / 10;
    deadline
        .checked_sub(margin.min(Duration::from_millis(100)))
        .unwrap_or(deadline)
}

impl fmt::Debug for ReplicaHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReplicaHandle").field(&self.0.identity).finish()
    }
}

impl fmt::Debug for ReplicaPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReplicaPort").field(&self.0.identity).finish()
    }
}
