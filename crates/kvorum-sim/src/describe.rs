//! Messages, inputs and effects in a few words, for the trace.

use std::fmt::{self, Display, Formatter};

use kvorum_node::{Effect, Input, PeerBody, PeerMessage};
use kvorum_raft::{Entry, Message, MessageBody, Persist};

/// Shows a value for the trace.
pub(crate) struct Brief<'a, T>(pub &'a T);

fn span(f: &mut Formatter<'_>, entries: &[Entry]) -> fmt::Result {
    match (entries.first(), entries.last()) {
        (Some(first), Some(last)) => {
            write!(f, "{}@{}..={}@{}", first.index, first.term, last.index, last.term)
        }
        _ => write!(f, "-"),
    }
}

impl Display for Brief<'_, Message> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "t{} ", self.0.term)?;
        match &self.0.body {
            MessageBody::Append {
                epoch,
                round,
                prev,
                commit,
                entries,
            } => {
                write!(f, "append e{epoch} r{round} after {}@{} ", prev.index, prev.term)?;
                span(f, entries)?;
                write!(f, " commit {commit}")
            }
            MessageBody::Snapshot { epoch, meta, .. } => {
                write!(f, "snapshot e{epoch} {}@{}", meta.last.index, meta.last.term)
            }
            other => write!(f, "{other:?}"),
        }
    }
}

impl Display for Brief<'_, PeerMessage> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}→{} ", self.0.from, self.0.to)?;
        match &self.0.body {
            PeerBody::Raft(message) => Brief(message).fmt(f),
            PeerBody::Forward { id, commands } => write!(f, "forward #{id} of {}", commands.len()),
            PeerBody::ForwardAccepted { id, term, first } => {
                write!(f, "forward #{id} is in the log at {first}@{term}")
            }
            PeerBody::ForwardRefused { id, why } => write!(f, "forward #{id} refused: {why:?}"),
            PeerBody::LeaseCalls { id, calls } => write!(f, "lease calls #{id} {calls:?}"),
            PeerBody::LeaseAnswers { id, answers } => write!(f, "lease answers #{id} {answers:?}"),
            PeerBody::LeaseRefused { id } => write!(f, "lease calls #{id} refused"),
            PeerBody::Digest { index, digest } => write!(f, "digest {digest:032x} at {index}"),
        }
    }
}

impl Display for Brief<'_, Persist> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Persist {
            seq,
            hard_state,
            snapshot,
            truncate_from,
            entries,
            commit_mark,
        } = self.0;
        write!(f, "persist #{seq} ")?;
        span(f, entries)?;
        if let Some(hard_state) = hard_state {
            write!(f, " term {} vote {}", hard_state.term, hard_state.vote)?;
        }
        if let Some(meta) = snapshot {
            write!(f, " snapshot {}@{}", meta.last.index, meta.last.term)?;
        }
        if let Some(from) = truncate_from {
            write!(f, " cut from {from}")?;
        }
        write!(f, " mark {commit_mark}")
    }
}

impl Display for Brief<'_, Input> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Input::Peer(message) => Brief(message).fmt(f),
            Input::Fetched { id, entries } => {
                write!(f, "fetched #{id} ")?;
                span(f, entries)
            }
            Input::Applied(report) => {
                let (applied, flushed) = (report.applied, report.flushed);
                write!(
                    f,
                    "applied {}@{} flushed {flushed} revision {}",
                    applied.index, applied.term, report.revision
                )
            }
            Input::Installed { meta, .. } => write!(f, "installed {}@{}", meta.last.index, meta.last.term),
            Input::SnapshotReceived { staged, message, .. } => {
                write!(f, "received #{staged} {}", Brief(message))
            }
            Input::SnapshotBuilt { peer, meta } => {
                write!(
                    f,
                    "snapshot for {peer} built at {}@{}",
                    meta.last.index, meta.last.term
                )
            }
            Input::Propose(proposals) => {
                write!(f, "propose")?;
                proposals
                    .iter()
                    .try_for_each(|proposal| write!(f, " {}", proposal.seq))
            }
            Input::Read(reads) => {
                write!(f, "read")?;
                reads.iter().try_for_each(|read| write!(f, " {}", read.id))
            }
            other => write!(f, "{other:?}"),
        }
    }
}

impl Display for Brief<'_, Effect> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Effect::Persist(persist) => Brief(persist).fmt(f),
            Effect::Send(message) => write!(f, "send {}", Brief(message)),
            Effect::Apply(entries) => {
                write!(f, "apply ")?;
                span(f, entries)
            }
            Effect::Purge(meta) => write!(f, "purge to {}@{}", meta.last.index, meta.last.term),
            Effect::Install { staged, meta } => {
                write!(f, "install #{staged} {}@{}", meta.last.index, meta.last.term)
            }
            Effect::SendSnapshot(message) => write!(f, "stream to {}: {}", message.to, Brief(message)),
            Effect::ClusterChanged(cluster) => {
                write!(f, "cluster:")?;
                cluster.members.keys().try_for_each(|id| write!(f, " {id}"))
            }
            other => write!(f, "{other:?}"),
        }
    }
}
