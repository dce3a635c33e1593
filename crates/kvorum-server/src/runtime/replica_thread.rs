//! The replica's thread: feeds the event loop and carries its effects out. It never blocks on anything but its
//! mailbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

use kvorum_mvcc::ClusterState;
use kvorum_node::{Effect, Input, LeaseCall, Node, NodeStatus, Proposal, ReadRequest};
use kvorum_raft::{Message, Micros};

use crate::mailbox::{Batch, Mailbox};
use crate::pending::Pending;

use super::apply_thread::ApplyWork;
use super::clock;
use super::log_thread::{FetchWork, LogWork};
use super::peers::PeerNet;

/// How often the status is published when nothing of note happens.
const STATUS_INTERVAL: Micros = 50_000;

/// Why the replica's thread ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// The member was removed from the cluster.
    Removed,
    /// The other members are of another cluster than this member's data; the reason.
    Stranger(String),
    /// An invariant broke, or disk or store failed.
    Fatal(String),
}

/// Told of the members and settings when they change.
pub(crate) type OnCluster = Box<dyn Fn(&Arc<ClusterState>) + Send>;

/// Where the replica's effects go.
pub(crate) struct Outlets {
    pub(crate) pending: Arc<Pending>,
    pub(crate) log: Sender<LogWork>,
    pub(crate) fetch: Sender<FetchWork>,
    pub(crate) apply: Sender<ApplyWork>,
    pub(crate) peers: PeerNet,
    pub(crate) send_snapshot: Box<dyn Fn(Message) + Send>,
    pub(crate) cluster_changed: OnCluster,
    pub(crate) publish: Box<dyn Fn(NodeStatus) + Send>,
}

/// Runs the event loop until it ends; `stop` is looked at after each wake.
pub(crate) fn run(mut node: Node, mailbox: &Mailbox<Input>, outlets: &Outlets, stop: &AtomicBool) -> End {
    let (mut batch, mut effects) = (Batch::default(), Vec::new());
    let (mut publish_at, mut published) = (0, None);
    loop {
        let (now, instant) = (clock::now(), Instant::now());
        let wake = node.next_deadline().min(publish_at);
        mailbox.take(&mut batch, clock::wake_at(now, wake, instant));
        if stop.load(Ordering::Acquire) {
            return End::Stopped;
        }
        feed(&mut node, &mut batch, &mut effects);
        for effect in effects.drain(..) {
            if let Some(end) = carry_out(effect, outlets) {
                (outlets.publish)(node.status());
                return end;
            }
        }
        let (now, noted) = (
            clock::now(),
            Some((
                node.leader(),
                node.is_leader(),
                node.raft().term(),
                is_voter(&node),
            )),
        );
        if now >= publish_at || noted != published {
            (publish_at, published) = (now + STATUS_INTERVAL, noted);
            (outlets.publish)(node.status());
        }
    }
}

/// Who does not vote refuses requests: that it does, or not any more, counts at once.
fn is_voter(node: &Node) -> bool {
    node.raft().latest_configuration().is_voter(node.id())
}

/// Everything that arrived, the shell's own inputs first: what they free, the requests can use at once.
fn feed(node: &mut Node, batch: &mut Batch<Input>, effects: &mut Vec<Effect>) {
    let (now, instant) = (clock::now(), Instant::now());
    for input in batch.others.drain(..) {
        node.step(now, input, effects);
    }
    if !batch.reads.is_empty() {
        let reads = batch.reads.drain(..);
        let reads = reads.map(|read| ReadRequest {
            id: read.id,
            deadline: clock::deadline(now, read.deadline, instant),
        });
        node.step(now, Input::Read(reads.collect()), effects);
    }
    if !batch.leases.is_empty() {
        let leases = batch.leases.drain(..).map(|lease| LeaseCall {
            id: lease.id,
            lease: lease.lease,
            ask: lease.ask,
            deadline: clock::deadline(now, lease.deadline, instant),
        });
        node.step(now, Input::Leases(leases.collect()), effects);
    }
    if !batch.writes.is_empty() {
        let writes = batch.writes.drain(..).map(|write| Proposal {
            seq: write.seq,
            command: write.command,
            deadline: clock::deadline(now, write.deadline, instant),
        });
        node.step(now, Input::Propose(writes.collect()), effects);
    }
    for admin in batch.admin.drain(..) {
        let deadline = clock::deadline(now, admin.deadline, instant);
        node.step(
            now,
            Input::Admin {
                id: admin.id,
                request: admin.request,
                deadline,
            },
            effects,
        );
    }
    if now >= node.next_deadline() {
        node.step(now, Input::Tick, effects);
    }
}

/// A thread that is gone has said why before it went; its replica hears of it by itself.
fn carry_out(effect: Effect, outlets: &Outlets) -> Option<End> {
    match effect {
        Effect::Persist(persist) => drop(outlets.log.send(LogWork::Persist(persist))),
        Effect::Purge(base) => drop(outlets.log.send(LogWork::Purge(base))),
        Effect::Fetch {
            id,
            from,
            to,
            bytes_max,
        } => {
            drop(outlets.fetch.send(FetchWork {
                id,
                from,
                to,
                bytes_max,
            }));
        }
        Effect::Send(message) => outlets.peers.send(message),
        Effect::Apply(entries) => drop(outlets.apply.send(ApplyWork::Apply(entries))),
        Effect::BuildSnapshot { peer, at_least } => {
            drop(outlets.apply.send(ApplyWork::BuildSnapshot { peer, at_least }));
        }
        Effect::SendSnapshot(message) => (outlets.send_snapshot)(message),
        Effect::Install { staged, meta } => drop(outlets.apply.send(ApplyWork::Install { staged, meta })),
        Effect::InstallSettled(last) => drop(outlets.apply.send(ApplyWork::InstallSettled(last))),
        Effect::DropStaged(staged) => drop(outlets.apply.send(ApplyWork::DropStaged(staged))),
        Effect::Housekeep { time_ms } => drop(outlets.apply.send(ApplyWork::Housekeep { time_ms })),
        Effect::WritesFailed { seqs, why } => outlets.pending.fail_writes(&seqs, why.into()),
        Effect::ReadsReady(ids) => outlets.pending.reads_ready(&ids),
        Effect::ReadsFailed { ids, why } => outlets.pending.fail_reads(&ids, why.into()),
        Effect::LeasesDone(done) => outlets.pending.leases_done(done),
        Effect::AdminDone { id, result } => outlets.pending.admin_done(id, result),
        Effect::ClusterChanged(cluster) => (outlets.cluster_changed)(&cluster),
        Effect::PeerLostData(peer) => {
            tracing::error!(
                peer = %format_args!("{peer:016x}"),
                "a member no longer has what it acknowledged; replace it: `kvorum member replace`"
            );
        }
        Effect::Removed => return Some(End::Removed),
        Effect::Fatal(why) => return Some(End::Fatal(why)),
    }
    None
}
