//! The state machine: committed entries in, one store batch, replies and events out.
//!
//! Invariants:
//! - Entries are applied in index order, each once; term, index, revision, configuration and digest stand in the
//!   same batch as what they describe. After a crash the machine opens at a whole batch and takes the entries
//!   after it again.
//! - Everything in the store but the removal mark and the removed history is a function of the applied entries.
//! - A reader never sees part of a batch.
//! - After a [`Fatal`] error nothing more is applied.

mod apply;
mod core;
mod removal;
#[cfg(test)]
pub(crate) mod tests;
mod txn;
mod warmup;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kvorum_model::{DecodeError, Error, Event, Origin, Reply, Revision};

use self::core::Core;
use crate::auth::{AuthChange, AuthState};
use crate::cache::HeadCache;
use crate::leases::{LeaseChange, LeaseRecord, Leases};
use crate::read::{Published, Reader, Shared};
use crate::samples::Samples;
use crate::sessions::Sessions;
use crate::snapshot::SnapshotReader;
use crate::state::{CONFIGURATION_KEY, ClusterState, FORMAT, SAMPLES_KEY, STATE_KEY, State, StateError};
use crate::store::{Batch, Store, StoreError, View};
use removal::Removal;
use warmup::Warmup;

/// Sessions that [`StateMachine::expired_sessions`] names at once.
const EXPIRE_SESSIONS_MAX: usize = 1024;
/// How long the published view may stay the same while nothing is applied, in ms.
const VIEW_RENEW_MS: u64 = 1000;

/// Settings of one state machine. They influence nothing that is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Memory for the newest records of recently used keys, in bytes.
    pub cache_bytes: usize,
    /// Memory for hints where the newest records of other keys stand, in bytes; 24 a key.
    pub hint_bytes: usize,
    /// Most history records that are removed per second after a compaction.
    pub removals_per_second: u64,
    /// Indexes of commands to skip, given by the operator on all members alike, because applying them stops every
    /// node. Each is answered with [`Error::Skipped`].
    pub skip: BTreeSet<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: 64 << 20,
            hint_bytes: 32 << 20,
            removals_per_second: 100_000,
            skip: BTreeSet::new(),
        }
    }
}

/// One committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyEntry {
    /// Its index in the log: one more than that of the entry before.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// What it is.
    pub payload: Payload,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// An encoded [`kvorum_model::Envelope`].
    Command(Bytes),
    /// A change of membership.
    Config {
        /// The configuration that holds from here on; kept as it is, and never looked into.
        configuration: Bytes,
        /// An encoded [`kvorum_model::Envelope`] that is applied with it, or nothing.
        context: Bytes,
    },
    /// Nothing but its index.
    Noop,
}

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Who waits for it.
    pub origin: Origin,
    /// The entry that took effect: the one that it answers, or, for the retry of a session's request, that of its
    /// first run.
    pub index: u64,
    /// The term of the entry that it answers.
    pub term: u64,
    /// The revision for the answer's header: after this entry, or, for the retry of a session's request, after its
    /// first run.
    pub revision: Revision,
    /// The outcome; the same on every replica.
    pub result: Result<Reply, Error>,
}

/// All changes of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    /// The revision.
    pub revision: Revision,
    /// Its changes in order, each with the record before it where there was one.
    pub events: Arc<[Event]>,
}

/// What applying a slice of entries gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyOutcome {
    /// An answer for each command, and for each membership change with a context; in index order.
    pub replies: Vec<Applied>,
    /// The revisions that were made, in order.
    pub events: Vec<RevisionEvents>,
    /// What became of leases, in order.
    pub leases: Vec<LeaseChange>,
    /// What became of tokens, in order.
    pub auth: Vec<AuthChange>,
}

/// Why this member must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A committed entry cannot be read by this version.
    #[error("entry {index} cannot be applied: {error} (if it stops every member: --skip-entry {index})")]
    Decode {
        /// Its index.
        index: u64,
        /// Why.
        error: DecodeError,
    },
    /// The caller left entries out, or brought some twice.
    #[error("entry {got} was to be applied after entry {applied}")]
    Order {
        /// The last applied index.
        applied: u64,
        /// The index that came.
        got: u64,
    },
    /// An error before this one left the machine unusable.
    #[error("the state machine has stopped after an error")]
    Stopped,
}

/// Why a store cannot be opened as a state machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another version wrote it.
    #[error("the store has format {found}; this version reads format {known}")]
    Format {
        /// What it is.
        found: u16,
        /// What this version knows.
        known: u16,
    },
}

impl From<StateError> for OpenError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Format(found) => OpenError::Format { found, known: FORMAT },
            StateError::Store(error) => OpenError::Store(error),
        }
    }
}

/// What [`StateMachine::maintenance`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// History records removed in this step.
    pub removed: usize,
    /// Whether there is more to do: call again soon.
    pub pending: bool,
}

/// The replicated state machine on a store. See the module's documentation for its invariants.
pub struct StateMachine<S: Store> {
    store: S,
    core: Core<S::View>,
    shared: Arc<Shared<S::View>>,
    removal: Removal,
    warmup: Warmup,
    options: Options,
    cluster_version: u64,
    stopped: bool,
    /// When the published view was last renewed, on `maintenance`'s clock; `None`: since its last call.
    renewed_ms: Option<u64>,
}

impl<S: Store> std::fmt::Debug for StateMachine<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateMachine")
            .field("state", &self.core.state)
            .field("stopped", &self.stopped)
            .finish()
    }
}

impl<S: Store> StateMachine<S> {
    /// Opens what the store holds; an empty store is the state before the first entry. Apply the log's entries
    /// after [`StateMachine::applied`] next.
    pub fn open(store: S, options: Options) -> Result<Self, OpenError> {
        let view = store.view();
        let state = match view.get(&STATE_KEY)? {
            Some(record) => State::decode(&record)?,
            None => State::default(),
        };
        let configuration = view.get(&CONFIGURATION_KEY)?.unwrap_or_default();
        let cluster = Arc::new(ClusterState::load(&view)?);
        let auth = Arc::new(AuthState::load(&view)?);
        let samples = match view.get(&SAMPLES_KEY)? {
            Some(record) => Samples::decode(&record)?,
            None => Samples::default(),
        };
        let sessions = Sessions::load(&view)?;
        let leases = Leases::load(&view)?;
        let removal = Removal::load(&view)?;
        let shared = Arc::new(Shared {
            published: Mutex::new(Arc::new(Published {
                view: view.clone(),
                state: state.clone(),
                configuration: configuration.clone(),
                cluster: Arc::clone(&cluster),
                auth: Arc::clone(&auth),
                removed: removal.removed(),
                filter: None,
            })),
            cache: HeadCache::new(options.cache_bytes, options.hint_bytes),
        });
        let core = Core {
            view_revision: state.revision,
            view,
            state,
            configuration,
            cluster,
            auth,
            samples,
            sessions,
            leases,
            ..Core::new(Arc::clone(&shared))
        };
        Ok(StateMachine {
            store,
            core,
            shared,
            removal,
            warmup: Warmup::default(),
            options,
            cluster_version: 0,
            stopped: false,
            renewed_ms: None,
        })
    }

    /// Term and index of the last applied entry; zeros before the first.
    pub fn applied(&self) -> (u64, u64) {
        (self.core.state.term, self.core.state.index)
    }

    /// The highest applied index that a crash would leave.
    pub fn flushed(&self) -> u64 {
        self.store.flushed_mark()
    }

    /// The current revision; 1 for the empty keyspace.
    pub fn revision(&self) -> Revision {
        self.core.state.revision
    }

    /// The last compaction; 0 for none.
    pub fn compacted(&self) -> Revision {
        self.core.state.compacted
    }

    /// The latest time of an applied entry, in ms.
    pub fn time_ms(&self) -> u64 {
        self.core.state.time_ms
    }

    /// The configuration's bytes as the last [`Payload::Config`] brought them; empty before the first.
    pub fn configuration(&self) -> Bytes {
        self.core.configuration.clone()
    }

    /// The members and settings.
    pub fn cluster(&self) -> Arc<ClusterState> {
        Arc::clone(&self.core.cluster)
    }

    /// Grows whenever [`StateMachine::cluster`] changes.
    pub fn cluster_version(&self) -> u64 {
        self.cluster_version
    }

    /// The chained digest of all applied entries: over index, term, store writes in order and outcome of each. Two
    /// replicas that applied the same entries have the same, or one of them is broken.
    pub fn digest(&self) -> u128 {
        self.core.state.digest
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.core.sessions.len()
    }

    /// All leases, by ID.
    pub fn leases(&self) -> Vec<LeaseRecord> {
        self.core.leases.records()
    }

    /// A handle for readers; it stays valid when [`StateMachine::replace`] puts another state in.
    pub fn reader(&self) -> Reader<S> {
        Reader::new(Arc::clone(&self.shared))
    }

    /// The store, for its flush and its figures.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Sessions that [`kvorum_model::Command::ExpireSessions`] would remove at `time_ms`, at most a thousand or so
    /// at once; in ascending order.
    pub fn expired_sessions(&self, time_ms: u64) -> Vec<u64> {
        self.core.sessions.idle(time_ms, EXPIRE_SESSIONS_MAX)
    }

    /// To which revision history may be compacted at `time_ms`, if that is more than it is: everything older than
    /// the cluster's `HistoryMs`. `None` also if history is to be kept for ever.
    pub fn compaction_target(&self, time_ms: u64) -> Option<Revision> {
        let keep_ms = self.core.cluster.settings.history_ms;
        if keep_ms == 0 {
            return None;
        }
        let target = self.core.samples.at(time_ms.checked_sub(keep_ms)?)?;
        (target > self.core.state.compacted).then_some(target)
    }

    /// A snapshot of the state as applied; to be read on any thread while entries are applied here.
    pub fn snapshot(&self) -> SnapshotReader<S::View> {
        SnapshotReader::new(&self.shared.published())
    }

    /// Puts the state that was opened from an installed snapshot in the place of this one. Readers keep their
    /// handles; views that are open stay as they are.
    ///
    /// # Panics
    /// If `with` is behind this state: a snapshot that is not newer must not be installed.
    pub fn replace(&mut self, with: StateMachine<S>) {
        assert!(
            with.core.state.index >= self.core.state.index,
            "a snapshot at entry {} would take the place of the state at entry {}",
            with.core.state.index,
            self.core.state.index,
        );
        self.shared.cache.clear(with.core.state.revision);
        self.core = Core {
            shared: Arc::clone(&self.shared),
            ..with.core
        };
        self.store = with.store;
        (self.removal, self.warmup) = (with.removal, with.warmup);
        self.stopped = with.stopped;
        self.cluster_version += 1;
        self.publish();
    }

    /// Housekeeping between batches: lets the store flush and hold back, removes compacted history within the rate
    /// limit, gathers what makes look-ups fast, and renews the readers' view. `now_ms` is any monotonic clock; what it does influences no digest and
    /// no answer. An error of [`StoreError::NoSpace`] is not fatal: call again later.
    pub fn maintenance(&mut self, now_ms: u64) -> Result<Maintenance, StoreError> {
        self.store.maintain()?;
        let records_max = self.removal.allowance(now_ms, self.options.removals_per_second);
        let compacted = self.core.state.compacted;
        let mut removed = 0;
        let view = self.store.view();
        self.warmup.step(&mut self.core, &view)?;
        if let Some(mut step) = self.removal.step(&view, compacted, records_max)? {
            let writes = std::mem::take(&mut step.writes);
            self.store.write(Batch {
                writes,
                mark: self.core.state.index,
            })?;
            removed = self.removal.done(step);
        }
        let due = self
            .renewed_ms
            .is_some_and(|at| now_ms.saturating_sub(at) >= VIEW_RENEW_MS);
        if removed > 0 || due {
            self.publish();
        }
        if self.renewed_ms.is_none() || removed > 0 || due {
            self.renewed_ms = Some(now_ms);
        }
        let pending = self.removal.is_pending(compacted) || self.warmup.is_pending(&self.core);
        Ok(Maintenance { removed, pending })
    }

    /// Makes this state the beginning of another cluster, of these members: keys, history and sessions stay, and who
    /// the members were is forgotten, with their alarms. Nobody reads it meanwhile.
    pub fn found_anew(&mut self, configuration: Bytes) -> Result<(), StoreError> {
        let mut writes = self.core.cluster.forget();
        self.core.cluster = Arc::new(ClusterState {
            next_member: self.core.cluster.next_member,
            settings: self.core.cluster.settings,
            ..ClusterState::default()
        });
        writes.push(self.core.cluster.record());
        writes.push((CONFIGURATION_KEY, Some(configuration.clone())));
        self.core.configuration = configuration;
        self.store.write(Batch {
            writes,
            mark: self.core.state.index,
        })?;
        self.cluster_version += 1;
        self.publish();
        Ok(())
    }

    /// One step of removal whatever the rate limit says; whether there is more to remove.
    pub fn remove_now(&mut self) -> Result<bool, StoreError> {
        let compacted = self.core.state.compacted;
        let view = self.store.view();
        if let Some(mut step) = self
            .removal
            .step(&view, compacted, removal::STEP_RECORDS_MAX as usize)?
        {
            let writes = std::mem::take(&mut step.writes);
            self.store.write(Batch {
                writes,
                mark: self.core.state.index,
            })?;
            self.removal.done(step);
            self.publish();
        }
        Ok(self.removal.is_pending(compacted))
    }

    /// Shows readers the state as it stands.
    fn publish(&mut self) {
        self.core.view = self.store.view();
        self.core.view_revision = self.core.state.revision;
        self.renewed_ms = None;
        self.shared.publish(Published {
            view: self.core.view.clone(),
            state: self.core.state.clone(),
            configuration: self.core.configuration.clone(),
            cluster: Arc::clone(&self.core.cluster),
            auth: Arc::clone(&self.core.auth),
            removed: self.removal.removed(),
            filter: self.core.filter.clone(),
        });
    }
}
