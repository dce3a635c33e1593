//! Entries, one after the other, into one batch.

use std::sync::Arc;

use bytes::Bytes;
use kvorum_model::{
    Alarm, Caller, Command, Envelope, Error, Origin, Reply, RequestOp, Revision, Setting, limits,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::core::Core;
use super::{Applied, ApplyEntry, ApplyOutcome, Fatal, Payload, StateMachine};
use crate::read::ReadError;
use crate::sessions::{Admission, Ran};
use crate::state::{CONFIGURATION_KEY, STATE_KEY};
use crate::store::{Batch, Store, StoreError, View};

/// Memory for digests that is kept from entry to entry.
const SCRATCH_BYTES_MAX: usize = 256 * 1024;

impl<S: Store> StateMachine<S> {
    /// Applies committed entries, which follow the last applied one, as one batch of the store: after a crash all of
    /// them are there or none. (Only a transaction that reads an older revision out of the same slice divides it,
    /// between two entries.)
    ///
    /// After an error this machine is of no more use; the process stops, or opens the store anew.
    pub fn apply(&mut self, entries: &[ApplyEntry]) -> Result<ApplyOutcome, Fatal> {
        if self.stopped {
            return Err(Fatal::Stopped);
        }
        self.stopped = true;
        let outcome = self.apply_all(entries)?;
        self.stopped = false;
        Ok(outcome)
    }

    fn apply_all(&mut self, entries: &[ApplyEntry]) -> Result<ApplyOutcome, Fatal> {
        // The one that was published may be old, and old views end.
        self.core.view = self.store.view();
        let mut replies = Vec::with_capacity(entries.len());
        self.core.writes.reserve(2 * entries.len() + 1);
        let cluster = Arc::clone(&self.core.cluster);
        for entry in entries {
            let applied = self.core.state.index;
            if entry.index != applied + 1 || entry.term < self.core.state.term {
                return Err(Fatal::Order {
                    applied,
                    got: entry.index,
                });
            }
            replies.extend(self.apply_entry(entry)?);
        }
        if entries.is_empty() {
            return Ok(ApplyOutcome::default());
        }
        self.write_batch()?;
        if !Arc::ptr_eq(&cluster, &self.core.cluster) {
            self.cluster_version += 1;
        }
        self.publish();
        Ok(ApplyOutcome {
            replies,
            events: std::mem::take(&mut self.core.events),
            leases: std::mem::take(&mut self.core.leases.changes),
            auth: std::mem::take(&mut self.core.auth_changes),
        })
    }

    fn apply_entry(&mut self, entry: &ApplyEntry) -> Result<Option<Applied>, Fatal> {
        let (index, term) = (entry.index, entry.term);
        let decode = |error| Fatal::Decode { index, error };
        let bytes = match &entry.payload {
            Payload::Noop => None,
            Payload::Command(bytes) => Some(bytes),
            Payload::Config { context, .. } => (!context.is_empty()).then_some(context),
        };
        let skip = self.options.skip.contains(&index);
        let envelope = match bytes {
            Some(bytes) if !skip => Some(Envelope::decode(bytes.clone()).map_err(decode)?),
            _ => None,
        };
        if envelope
            .as_ref()
            .is_some_and(|envelope| reads_above(&envelope.command, self.core.view_revision))
        {
            self.write_batch()?;
            self.core.view = self.store.view();
            self.core.view_revision = self.core.state.revision;
        }

        let core = &mut self.core;
        let first_write = core.writes.len();
        (core.state.index, core.state.term) = (index, term);
        if let Payload::Config { configuration, .. } = &entry.payload {
            // A copy: the entry's bytes are part of a larger batch.
            core.configuration = Bytes::copy_from_slice(configuration);
            core.writes
                .push((CONFIGURATION_KEY, Some(core.configuration.clone())));
        }
        let (origin, ran) = match (bytes, envelope) {
            (Some(bytes), Some(envelope)) => {
                let origin = envelope.origin;
                let request = Envelope::peek_command(bytes).map_err(decode)?;
                let ran = core.command(envelope, request).map_err(|error| match error {
                    CommandError::Store(error) => Fatal::Store(error),
                    CommandError::Decode(error) => decode(error),
                })?;
                (origin, ran)
            }
            (Some(bytes), None) => {
                let origin = Envelope::peek_origin(bytes).unwrap_or_default();
                (origin, core.ran(Err(Error::Skipped)))
            }
            (None, _) => (Origin::default(), core.ran(Ok(Reply::Done))),
        };
        core.digest(first_write, &ran.result);
        Ok(bytes.is_some().then_some(Applied {
            origin,
            index: ran.index,
            term,
            revision: ran.revision,
            result: ran.result,
        }))
    }

    /// Writes what has gathered, with the state that it leads to.
    fn write_batch(&mut self) -> Result<(), StoreError> {
        let core = &mut self.core;
        core.writes.push((STATE_KEY, Some(core.state.encode())));
        let writes = std::mem::take(&mut core.writes);
        self.store.write(Batch {
            writes,
            mark: core.state.index,
        })?;
        core.pending.clear();
        Ok(())
    }
}

/// Whether a transaction names a revision that the store's view may not hold yet.
fn reads_above(command: &Command, view_revision: Revision) -> bool {
    fn any(ops: &[RequestOp], view_revision: Revision) -> bool {
        ops.iter().any(|op| match op {
            RequestOp::Range(range) => range.revision > view_revision,
            RequestOp::Txn(txn) => any(&txn.success, view_revision) || any(&txn.failure, view_revision),
            RequestOp::Put(_) | RequestOp::DeleteRange(_) => false,
        })
    }
    match command {
        Command::Txn(txn) => any(&txn.success, view_revision) || any(&txn.failure, view_revision),
        _ => false,
    }
}

/// The user whose sessions a caller uses.
fn owner(caller: Option<&Caller>) -> &str {
    caller.map_or("", |caller| &caller.user)
}

/// Why a command cannot be applied at all.
enum CommandError {
    Store(StoreError),
    Decode(kvorum_model::DecodeError),
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        CommandError::Store(error)
    }
}

impl<V: View> Core<V> {
    /// Runs a command, of which `request` are the bytes, unless its session knows the outcome.
    fn command(&mut self, envelope: Envelope, request: &[u8]) -> Result<Ran, CommandError> {
        self.state.time_ms = self.state.time_ms.max(envelope.time_ms);
        let time_ms = self.state.time_ms;
        self.writes
            .extend(self.samples.note(time_ms, self.state.revision));
        let caller = envelope.caller.as_ref();
        let Some(session) = envelope.session else {
            let result = self.run(envelope.command, caller)?;
            return Ok(self.ran(result));
        };
        let request = xxh3_64(request);
        let admission = self
            .sessions
            .admit(session, owner(caller), request, time_ms, &mut self.writes);
        match admission.map_err(CommandError::Decode)? {
            Admission::Refused(error) => Ok(self.ran(Err(error))),
            Admission::Again(ran) => Ok(ran),
            Admission::Run => {
                let result = self.run(envelope.command, caller)?;
                let ran = self.ran(result);
                self.sessions
                    .keep(session, request, time_ms, &ran, &mut self.writes);
                Ok(ran)
            }
        }
    }

    /// What came of the present entry.
    fn ran(&self, result: Result<Reply, Error>) -> Ran {
        Ran {
            index: self.state.index,
            revision: self.state.revision,
            result,
        }
    }

    fn run(&mut self, command: Command, caller: Option<&Caller>) -> Result<Result<Reply, Error>, StoreError> {
        if let Some(error) = self.alarmed(&command) {
            return Ok(Err(error));
        }
        let lease_keys = |id| Ok(self.leases.keys(id));
        if let Err(error) = self.auth.check_command(caller, &command, lease_keys) {
            return Ok(Err(error));
        }
        let reply = match command {
            Command::Put(request) => self.put(request).map(Reply::Put),
            Command::DeleteRange(request) => self.delete_range(request).map(Reply::DeleteRange),
            Command::Txn(request) => self.txn(request).map(Reply::Txn),
            Command::Compact(revision) => self.compact(revision).map_err(ReadError::from),
            Command::Register => {
                let (id, time_ms) = (self.state.index, self.state.time_ms);
                self.sessions
                    .register(id, owner(caller), time_ms, &mut self.writes)
                    .map_err(ReadError::from)
            }
            Command::ExpireSessions(ids) => {
                self.sessions.expire(&ids, self.state.time_ms, &mut self.writes);
                Ok(Reply::Done)
            }
            Command::LeaseGrant { id, ttl_s } => self.grant_lease(id, ttl_s).map_err(ReadError::from),
            Command::LeaseRevoke { id, expiry } => self.revoke_lease(id, expiry),
            Command::LeaseCheckpoint { term, leases } => {
                let terms = (term, self.state.term);
                self.leases.checkpoint(terms, &leases, &mut self.writes);
                Ok(Reply::Done)
            }
            Command::Auth(command) => {
                let (index, changes) = (self.state.index, &mut self.auth_changes);
                Arc::make_mut(&mut self.auth)
                    .apply(command, index, &mut self.writes, changes)
                    .map_err(ReadError::from)
            }
            Command::SetAlarm {
                alarm,
                member,
                raised,
            } => {
                let mut cluster = (*self.cluster).clone();
                let before = cluster.set_alarm(alarm, member, raised, &mut self.writes);
                if before != raised {
                    self.cluster = Arc::new(cluster);
                }
                Ok(Reply::AlarmSet(before))
            }
            other => {
                self.administer(other);
                Ok(Reply::Done)
            }
        };
        match reply {
            Ok(reply) => Ok(Ok(reply)),
            Err(ReadError::Request(error)) => Ok(Err(error)),
            Err(ReadError::Store(error)) => Err(error),
            Err(ReadError::TooLarge { .. }) => unreachable!("applying sets no limit to an answer"),
        }
    }

    /// What the alarms that stand refuse, as in etcd.
    fn alarmed(&self, command: &Command) -> Option<Error> {
        let is_of_keys = |command: &Command| match command {
            Command::Put(_) | Command::DeleteRange(_) | Command::Txn(_) | Command::Compact(_) => true,
            other => other.needs_space(),
        };
        if self.cluster.alarms.is_empty() {
            None
        } else if self.cluster.has_alarm(Alarm::Corrupt) && is_of_keys(command) {
            Some(Error::Corrupt)
        } else {
            let full = self.cluster.has_alarm(Alarm::NoSpace) && command.needs_space();
            full.then_some(Error::NoSpace)
        }
    }

    fn compact(&mut self, revision: Revision) -> Result<Reply, Error> {
        if revision <= self.state.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.state.revision {
            return Err(Error::FutureRevision);
        }
        self.state.compacted = revision;
        self.writes.extend(self.samples.compacted(revision));
        Ok(Reply::Compact)
    }

    /// Membership and settings: what does not fit the state changes nothing.
    fn administer(&mut self, command: Command) {
        let before = Arc::clone(&self.cluster);
        let mut cluster = (*before).clone();
        administer(&mut cluster, command, &mut self.writes);
        if cluster != *before {
            self.cluster = Arc::new(cluster);
        }
    }

    /// Chains the entry that was just applied into the digest.
    fn digest(&mut self, first_write: usize, result: &Result<Reply, Error>) {
        let out = &mut self.scratch;
        out.clear();
        out.extend_from_slice(&self.state.digest.to_le_bytes());
        out.extend_from_slice(&self.state.index.to_le_bytes());
        out.extend_from_slice(&self.state.term.to_le_bytes());
        for (key, value) in &self.writes[first_write..] {
            out.extend_from_slice(&(key.len() as u64).to_le_bytes());
            out.extend_from_slice(key);
            match value {
                Some(value) => {
                    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
                    out.extend_from_slice(value);
                }
                None => out.extend_from_slice(&u64::MAX.to_le_bytes()),
            }
        }
        Reply::encode_result(result, out);
        self.state.digest = xxh3_128(out);
        if out.capacity() > SCRATCH_BYTES_MAX {
            *out = Vec::new();
        }
    }
}

fn administer(
    cluster: &mut crate::state::ClusterState,
    command: Command,
    writes: &mut Vec<(Bytes, Option<Bytes>)>,
) {
    match command {
        Command::ClusterInit {
            uuid,
            election_timeout_ms,
        } if cluster.uuid == 0 => {
            (cluster.uuid, cluster.election_timeout_ms) = (uuid, election_timeout_ms);
            writes.push(cluster.record());
        }
        Command::PublishMember(member) => cluster.publish_member(&member, writes),
        Command::AddMember(member) => cluster.add_member(&member, writes),
        Command::RemoveMember(id) => cluster.remove_member(id, writes),
        Command::MoveMember { id, peer_addresses } => cluster.move_member(id, peer_addresses, writes),
        Command::ClusterSetting(setting) => {
            match setting {
                Setting::KeyBytesMax(bytes) => {
                    cluster.settings.key_bytes_max = bytes.clamp(1, limits::KEY_BYTES_CEILING as u64);
                }
                Setting::HistoryMs(ms) => cluster.settings.history_ms = ms,
            }
            writes.push(cluster.record());
        }
        Command::Batch(commands) => {
            for command in commands {
                administer(cluster, command, writes);
            }
        }
        // A second ClusterInit changes nothing; a batch holds none of the others (the decoder sees to it).
        _ => {}
    }
}
