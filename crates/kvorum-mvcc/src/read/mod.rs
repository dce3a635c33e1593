//! Reading the keyspace: views of published revisions, and what they answer.

mod answer;
mod hash;
mod scan;
mod view;

use kvorum_model::{Error, KeyRange, KeyValue, Revision, limits};

pub(crate) use answer::{answer_range, holds};
pub use hash::KeyspaceHash;
pub use scan::Scan;
pub(crate) use scan::{Found, Source, newest, point_at, scan_at};
pub use view::{HistoryPage, Page, ReadView, Reader, Wanted};
pub(crate) use view::{Published, Shared};

use crate::store::StoreError;

/// Why a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The request is refused, as it would be on every replica.
    #[error(transparent)]
    Request(#[from] Error),
    /// The store failed; `ViewExpired` asks for a new view, anything else stops this member.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The answer is larger than its reader allowed.
    #[error("kvorum: the answer is larger than {bytes_max} bytes; use limit, or RangeStream")]
    TooLarge {
        /// What the reader allowed.
        bytes_max: usize,
    },
}

/// Refuses bounds that no key can reach and that the store could not look up.
pub(crate) fn check_bounds(range: &KeyRange) -> Result<(), Error> {
    let max = limits::KEY_BYTES_CEILING + 1;
    for bound in [&range.key, &range.end] {
        if bound.len() > max {
            return Err(Error::KeyTooLarge {
                bytes: bound.len() as u64,
                max: max as u64,
            });
        }
    }
    if range.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    Ok(())
}

/// What a record weighs in an answer.
pub(crate) fn kv_bytes(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + 40
}

/// The revision to read at: `None` for the newest.
pub(crate) fn check_revision(
    asked: Revision,
    current: Revision,
    compacted: Revision,
) -> Result<Option<Revision>, Error> {
    match asked {
        ..=0 => Ok(None),
        asked if asked > current => Err(Error::FutureRevision),
        asked if asked < compacted => Err(Error::Compacted),
        asked => Ok(Some(asked)),
    }
}

/// What is wrong with the revision of a range in a transaction. Unlike one outside, where any negative number stands
/// for the newest, etcd holds it against its last compaction, which is -1 as long as there was none.
pub(crate) fn check_revision_in_txn(
    asked: Revision,
    current: Revision,
    compacted: Revision,
) -> Result<(), Error> {
    let oldest = if compacted == 0 { -1 } else { 0 };
    if asked < oldest {
        return Err(Error::Compacted);
    }
    check_revision(asked, current, compacted).map(|_| ())
}
