//! The local state as the services read it, whatever store is below.

use kvorum_model::{Alarm, Error, KeyRange, RangeRequest, RangeResponse, Revision, TxnRequest, TxnResponse};
use std::sync::Arc;

use bytes::Bytes;
use kvorum_mvcc::{
    AuthState, ClusterState, KeyspaceHash, LeaseRecord, Page, ReadError, ReadView, Reader, SnapshotReader,
    Store, StoreError, View,
};

use kvorum_raft::Configuration;

/// Why the local state does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The request is wrong for this state.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The answer is larger than its reader allowed.
    #[error("kvorum: the answer is too large; use limit, or RangeStream")]
    TooLarge,
    /// The store failed, and with it this member.
    #[error("kvorum: the store cannot be read: {0}")]
    Failed(StoreError),
}

impl From<ReadError> for StateError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Request(error) => StateError::Refused(error),
            ReadError::Store(error) => StateError::Failed(error),
            ReadError::TooLarge { .. } => StateError::TooLarge,
        }
    }
}

/// An answer, with the newest revision of the view that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// The store's newest revision in that view, whatever revision was asked for.
    pub revision: Revision,
    /// The answer.
    pub answer: T,
}

/// What a view says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The newest revision.
    pub revision: Revision,
    /// History before this revision is gone.
    pub compacted: Revision,
    /// It is gone from the disk, too, up to here.
    pub removed: Revision,
    /// Live keys.
    pub keys: u64,
    /// The last applied index.
    pub applied: u64,
    /// The chained digest of everything up to it.
    pub digest: u128,
}

/// Yields a snapshot's frames, then nothing; `restart` begins again with the same bytes.
pub trait SnapshotFrames: Send {
    /// The next frame.
    fn next_frame(&mut self) -> Result<Option<Bytes>, StoreError>;
    /// Goes back to the first.
    fn restart(&mut self);
}

/// The state machine's state on this member. Each call sees one consistent view of its own; none is kept open
/// between calls. All but [`LocalState::facts`] may read from the disk.
pub trait LocalState: Send + Sync {
    /// What the newest view says about itself; cheap.
    fn facts(&self) -> Facts;

    /// A read of at most `bytes_max` bytes.
    fn range(&self, request: &RangeRequest, bytes_max: usize) -> Result<Seen<RangeResponse>, StateError>;

    /// A transaction that only reads.
    fn read_txn(&self, txn: &TxnRequest, bytes_max: usize) -> Result<Seen<TxnResponse>, StateError>;

    /// The first part of a range at a revision (0: the newest): at least one record if there is one.
    fn page(
        &self,
        range: &KeyRange,
        at: Revision,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Seen<Page>, StateError>;

    /// The keys of a lease, in order; `None`: there is no such lease.
    fn lease_keys(&self, id: i64) -> Result<Seen<Option<Vec<Bytes>>>, StateError>;

    /// All leases.
    fn leases(&self) -> Result<Seen<Vec<LeaseRecord>>, StateError>;
    /// The members, settings and alarms; cheap.
    fn cluster(&self) -> Arc<ClusterState>;

    /// Users, roles and permissions; cheap.
    fn auth(&self) -> Arc<AuthState>;

    /// Who votes and who listens (unless no entry has said so), and the members, both as of one applied entry.
    fn membership(&self) -> (Option<Configuration>, Arc<ClusterState>);

    /// etcd's hash of the keyspace up to a revision (0: the newest).
    fn hash_kv(&self, revision: Revision) -> Result<Seen<KeyspaceHash>, StateError>;

    /// A hash of everything that members have in common.
    fn hash(&self) -> Result<Seen<u32>, StateError>;

    /// A snapshot of the newest view, which it keeps open.
    fn snapshot(&self) -> Box<dyn SnapshotFrames>;
}

/// Asks a fresh view, and another one should the store have ended it early.
fn on_view<S: Store, T>(
    reader: &Reader<S>,
    ask: impl Fn(&ReadView<S>) -> Result<T, ReadError>,
) -> Result<Seen<T>, StateError> {
    let mut retries = 2;
    loop {
        let view = reader.view();
        match ask(&view) {
            Ok(answer) => {
                return Ok(Seen {
                    revision: view.revision(),
                    answer,
                });
            }
            Err(ReadError::Store(StoreError::ViewExpired)) if retries > 0 => retries -= 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// As [`on_view`], unless a corruption alarm stands.
fn on_sound_view<S: Store, T>(
    reader: &Reader<S>,
    ask: impl Fn(&ReadView<S>) -> Result<T, ReadError>,
) -> Result<Seen<T>, StateError> {
    on_view(reader, |view| match view.has_alarm(Alarm::Corrupt) {
        true => Err(Error::Corrupt.into()),
        false => ask(view),
    })
}

impl<S: Store> LocalState for Reader<S> {
    fn facts(&self) -> Facts {
        let view = self.view();
        Facts {
            revision: view.revision(),
            compacted: view.compacted(),
            removed: view.removed(),
            keys: view.live_keys(),
            applied: view.applied().1,
            digest: view.digest(),
        }
    }

    fn range(&self, request: &RangeRequest, bytes_max: usize) -> Result<Seen<RangeResponse>, StateError> {
        on_sound_view(self, |view| view.range_within(request, bytes_max))
    }

    fn read_txn(&self, txn: &TxnRequest, bytes_max: usize) -> Result<Seen<TxnResponse>, StateError> {
        on_sound_view(self, |view| view.txn(txn, bytes_max))
    }

    fn page(
        &self,
        range: &KeyRange,
        at: Revision,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Seen<Page>, StateError> {
        on_sound_view(self, |view| view.page(range, at, records_max, bytes_max))
    }

    fn lease_keys(&self, id: i64) -> Result<Seen<Option<Vec<Bytes>>>, StateError> {
        on_sound_view(self, |view| match view.lease(id)? {
            Some(_) => view.lease_keys(id).map(Some),
            None => Ok(None),
        })
    }

    fn leases(&self) -> Result<Seen<Vec<LeaseRecord>>, StateError> {
        on_sound_view(self, ReadView::leases)
    }

    fn cluster(&self) -> Arc<ClusterState> {
        self.view().cluster()
    }

    fn auth(&self) -> Arc<AuthState> {
        self.view().auth()
    }

    fn membership(&self) -> (Option<Configuration>, Arc<ClusterState>) {
        let view = self.view();
        (Configuration::decode(&view.configuration()).ok(), view.cluster())
    }

    fn hash_kv(&self, revision: Revision) -> Result<Seen<KeyspaceHash>, StateError> {
        on_view(self, |view| view.hash_kv(revision))
    }

    fn hash(&self) -> Result<Seen<u32>, StateError> {
        on_view(self, ReadView::hash)
    }

    fn snapshot(&self) -> Box<dyn SnapshotFrames> {
        Box::new(self.view().snapshot())
    }
}

impl<V: View> SnapshotFrames for SnapshotReader<V> {
    fn next_frame(&mut self) -> Result<Option<Bytes>, StoreError> {
        SnapshotReader::next_frame(self)
    }

    fn restart(&mut self) {
        SnapshotReader::restart(self);
    }
}
