//! Walking over the versions in a store view.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use kvorum_model::{KeyRange, KeyValue, Revision};

use crate::cache::{Hint, KeyFilter};
use crate::layout::{
    after, data_bounds, data_key, data_prefix, is_live, read_record, record_sub, split_data_key,
};
use crate::store::{StoreError, StoreIter, View};

/// Versions of one key that are walked over before the rest of them is jumped over. A jump opens the range anew, which
/// costs as much as about this many steps (measured: 70 us against 0.75 us): at worst, twice the better of the two.
const STEPS_BEFORE_SEEK: usize = 96;

/// A live record; decoded only if somebody wants to see it.
pub(crate) enum Found {
    /// As the store holds it.
    Stored { key: Bytes, record: Bytes },
    /// From memory.
    Known(KeyValue),
}

impl Found {
    pub fn into_kv(self) -> Result<KeyValue, StoreError> {
        match self {
            Found::Known(kv) => Ok(kv),
            Found::Stored { key, record } => read_record(&key, &record)?
                .ok_or_else(|| crate::layout::corrupt("a deletion passed for a record")),
        }
    }
}

/// A state of the keyspace: a published view, or the one inside a transaction.
pub(crate) trait Source {
    /// The current revision.
    fn revision(&self) -> Revision;
    /// The last compaction.
    fn compacted(&self) -> Revision;
    /// How many keys live.
    fn live_keys(&self) -> u64;
    /// One key, now or at an older revision.
    fn point(&self, key: &Bytes, at: Option<Revision>) -> Result<Option<KeyValue>, StoreError>;
    /// All keys of a range in order, now or at an older revision, until `visit` breaks off.
    fn each(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        visit: &mut dyn FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError>;
}

/// One key at a revision: the version's key and record in the store, live or not.
pub(crate) fn point_at(
    view: &impl View,
    key: &[u8],
    at: Revision,
) -> Result<Option<(Bytes, Bytes)>, StoreError> {
    let to = after(data_prefix(key));
    view.range(Bound::Included(data_key(key, at)), Bound::Excluded(to.into()))
        .next()
        .transpose()
}

/// The newest version of a key in a view, as [`point_at`] finds it; without a search if the filter has not seen the
/// key's hash, or if the hint is right.
pub(crate) fn newest(
    view: &impl View,
    key: &[u8],
    hash: u64,
    filter: Option<&KeyFilter>,
    hint: Option<Hint>,
) -> Result<Option<(Bytes, Bytes)>, StoreError> {
    if filter.is_some_and(|filter| !filter.may_contain(hash)) {
        return Ok(None);
    }
    if let Some(hint) = hint {
        let stored = data_key(key, hint.main);
        if let Some(record) = view.get(&stored)?
            && record_sub(&record)? == hint.sub
        {
            return Ok(Some((stored, record)));
        }
    }
    point_at(view, key, Revision::MAX)
}

/// All live keys of a range at a revision.
pub(crate) fn scan_at<'a, V: View>(view: &'a V, range: &KeyRange, at: Revision) -> RawScan<'a, V> {
    let bounds = data_bounds(range);
    let (iter, to) = match bounds {
        Some((from, to)) => (view.range(from, to.clone()), to),
        None => (Box::new(std::iter::empty()) as StoreIter<'a>, Bound::Unbounded),
    };
    RawScan {
        view,
        iter,
        to,
        at,
        key: Vec::new(),
        answered: false,
        steps: 0,
    }
}

/// Yields the newest version at or before `at` of each key, if it is live.
pub(crate) struct RawScan<'a, V> {
    view: &'a V,
    iter: StoreIter<'a>,
    to: Bound<Bytes>,
    at: Revision,
    /// The prefix of the key that is being walked over.
    key: Vec<u8>,
    /// Whether its version at `at` was found.
    answered: bool,
    /// Its versions walked over in vain.
    steps: usize,
}

impl<V: View> RawScan<'_, V> {
    fn step(&mut self) -> Result<Option<Found>, StoreError> {
        while let Some(item) = self.iter.next() {
            let (key, record) = item?;
            let (prefix, main) = split_data_key(&key)?;
            if prefix != self.key {
                self.key.clear();
                self.key.extend_from_slice(prefix);
                (self.answered, self.steps) = (false, 0);
            }
            if self.answered || main > self.at {
                self.steps += 1;
                if self.steps > STEPS_BEFORE_SEEK {
                    self.jump();
                }
                continue;
            }
            self.answered = true;
            if is_live(&record)? {
                return Ok(Some(Found::Stored { key, record }));
            }
        }
        Ok(None)
    }

    /// Over the versions that are too new, or past the key.
    fn jump(&mut self) {
        self.steps = 0;
        let from = if self.answered {
            after(self.key.clone())
        } else {
            let mut version = self.key.clone();
            version.extend_from_slice(&(!(self.at as u64)).to_be_bytes());
            version
        };
        self.iter = self.view.range(Bound::Included(from.into()), self.to.clone());
    }
}

impl<V: View> Iterator for RawScan<'_, V> {
    type Item = Result<Found, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// Records of a range in key order, at one revision, with bounded memory; see
/// [`ReadView::scan`](crate::ReadView::scan).
pub struct Scan<'a, V>(pub(super) RawScan<'a, V>);

impl<V: View> Iterator for Scan<'_, V> {
    type Item = Result<KeyValue, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(Found::into_kv))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cache::hash_of;
    use crate::layout::write_put;
    use crate::store::{Batch, MemStore, Store};

    fn put(key: &str, main: Revision, sub: u32) -> Vec<(Bytes, Option<Bytes>)> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let kv = KeyValue {
            key,
            mod_revision: main,
            version: 1,
            ..KeyValue::default()
        };
        let (stored, record) = write_put(&kv, sub, 0).data;
        vec![(stored, Some(record))]
    }

    /// Two keys share a hash and a revision, and the hint is the other one's: it must not lead to an old version.
    #[test]
    fn a_hint_of_another_key_is_seen_through() {
        let store = MemStore::new();
        let writes = [put("a", 5, 0), put("b", 5, 1), put("a", 9, 0)].concat();
        store.write(Batch { writes, mark: 1 }).unwrap();
        let view = store.view();
        let newest_of = |filter: Option<&KeyFilter>, hint| {
            let found = newest(&view, b"a", hash_of(b"a"), filter, hint).unwrap();
            found.map(|(stored, _)| split_data_key(&stored).unwrap().1)
        };
        for (main, sub) in [(5, 1), (9, 7), (9, 0), (3, 0)] {
            assert_eq!(newest_of(None, Some(Hint { main, sub })), Some(9));
        }
        assert_eq!(newest_of(None, None), Some(9));
        let filter = KeyFilter::new(0);
        assert_eq!(newest_of(Some(&filter), None), None);
        filter.add(hash_of(b"a"));
        assert_eq!(newest_of(Some(&filter), None), Some(9));
    }
}
