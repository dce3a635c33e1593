//! Gathering the keys of the store into the filter, and hints where they stand, in bounded steps: after a start, and
//! whenever the keys have outgrown the filter. Nothing waits for it; without it look-ups search.

use std::ops::Bound;
use std::sync::Arc;

use super::core::Core;
use crate::cache::{Hint, KeyFilter, hash_of};
use crate::layout::{DATA, after, raw_key, record_sub, split_data_key};
use crate::store::{StoreError, View};

/// Records that one step walks over: well below a millisecond.
const STEP_RECORDS: usize = 256;

/// Where the walk is. The filter that it fills is the core's `next_filter`, which the applier adds to as well: so no
/// key is missed, whether it is written before or behind the walk.
#[derive(Debug, Default)]
pub(super) struct Warmup {
    /// Where the next step begins in the store.
    from: Vec<u8>,
}

impl Warmup {
    /// Whether there is something to do.
    pub fn is_pending<V>(&self, core: &Core<V>) -> bool {
        core.next_filter.is_some() || core.filter.as_ref().is_none_or(|filter| filter.is_overfull())
    }

    /// One step on a view of the newest state. When the last one is done, the new filter takes the old one's place.
    pub fn step<V: View>(&mut self, core: &mut Core<V>, view: &V) -> Result<(), StoreError> {
        if !self.is_pending(core) {
            return Ok(());
        }
        let filter = core.next_filter.get_or_insert_with(|| {
            self.from = vec![DATA];
            let known = core.filter.as_ref().map_or(0, |filter| filter.added());
            KeyFilter::new(2 * known.max(core.state.live_keys as usize))
        });
        let end = Bound::Excluded(vec![DATA + 1].into());
        let from = Bound::Included(self.from.clone().into());
        for (records, item) in view.range(from, end).enumerate() {
            if records == STEP_RECORDS {
                return Ok(());
            }
            let (key, record) = item?;
            let (prefix, main) = split_data_key(&key)?;
            let next = after(prefix.to_vec());
            if next == self.from {
                continue;
            }
            self.from = next;
            let hash = hash_of(&raw_key(&key)?);
            filter.add(hash);
            let hint = Hint {
                main,
                sub: record_sub(&record)?,
            };
            core.shared.cache.offer_hint(hash, hint, core.state.revision);
        }
        core.filter = core.next_filter.take().map(Arc::new);
        Ok(())
    }
}
