//! Consistent reads: which batches are visible, who reads them, and for how long.
//!
//! After each batch the applier publishes a read number with the [`Shape`] that belongs to it; the two change
//! together under one lock. All views taken between two publications share one [`ViewState`], so that a view
//! costs a lock and a reference count, and a batch that nobody read costs no bookkeeping at all.
//!
//! A view that has been superseded holds memory and dead files. It is tracked from then on, and after
//! [`Options::view_age_max`](super::Options::view_age_max) it is ended: what it held is let go, and its next
//! read gets an error. The store never lets go of anything under a view that it has not ended. What the last
//! holder of a superseded state lets go is freed by the [`Graveyard`].

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lsm_tree::SeqNo;

use super::MARK_KEY;
use super::fault::{Fault, guarded};
use super::graveyard::Graveyard;
use super::layout::Generation;
use super::shape::{Pairs, Shape};
use crate::store::{StoreError, StoreItem, StoreIter, View};

/// What all views of one published state share.
pub(super) struct ViewState {
    number: SeqNo,
    /// Empty once the view was ended.
    shape: RwLock<Option<Arc<Shape>>>,
    graveyard: Arc<Graveyard>,
    /// Keeps the directory for as long as something reads it; let go after the shape.
    home: Arc<Generation>,
}

impl ViewState {
    fn shape(&self) -> Result<Arc<Shape>, Fault> {
        self.shape
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or(Fault::Expired)
    }

    fn ended(&self) -> bool {
        self.shape
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    }

    /// Lets go of what the view holds.
    fn end(&self) {
        let shape = self.shape.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(shape) = shape {
            self.let_go(shape);
        }
    }

    /// The last holder of a shape has it freed elsewhere; for all others it costs nothing.
    fn let_go(&self, shape: Arc<Shape>) {
        if let Some(last) = Arc::into_inner(shape) {
            // The directory stays until it is freed: freeing it removes files.
            self.graveyard.bury((last, self.home.clone()));
        }
    }
}

impl Drop for ViewState {
    fn drop(&mut self) {
        self.end();
    }
}

/// The published state, and the earlier ones that are still read.
pub(super) struct Published {
    inner: Mutex<Inner>,
}

struct Inner {
    current: Arc<ViewState>,
    /// By the time since which they are no longer current, oldest first.
    superseded: VecDeque<(Instant, Weak<ViewState>)>,
    /// The length at which dead entries are next searched for.
    sweep_at: usize,
}

const SWEEP_MIN: usize = 64;

impl Published {
    pub(super) fn new(number: SeqNo, shape: Shape, home: Arc<Generation>, graveyard: Arc<Graveyard>) -> Self {
        let current = Arc::new(ViewState {
            number,
            shape: RwLock::new(Some(Arc::new(shape))),
            graveyard,
            home,
        });
        Self {
            inner: Mutex::new(Inner {
                current,
                superseded: VecDeque::new(),
                sweep_at: SWEEP_MIN,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every batch below `number` visible to views taken from now on.
    pub(super) fn advance(&self, number: SeqNo) {
        let mut inner = self.lock();
        assert!(number >= inner.current.number, "the read number never goes back");
        inner.replace(number, None);
    }

    /// Views taken from now on read from `shape`.
    pub(super) fn reshape(&self, shape: Shape) {
        let mut inner = self.lock();
        let number = inner.current.number;
        let old = inner.replace(number, Some(Arc::new(shape)));
        drop(inner);
        // The last reference to a shape may remove files: not under the lock that every read takes.
        drop(old);
    }

    /// The read number: below it, all batches are whole and visible.
    pub(super) fn number(&self) -> SeqNo {
        self.lock().current.number
    }

    pub(super) fn current(&self) -> Arc<ViewState> {
        self.lock().current.clone()
    }

    /// Bytes in memtables and tables.
    pub(super) fn bytes(&self) -> u64 {
        let shape = self.lock().current.shape();
        shape.expect("the current state is never ended").bytes()
    }

    /// The newest value of a key.
    pub(super) fn get_newest(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.current().shape()?.get(key, SeqNo::MAX)
    }

    /// Ends the views that were superseded more than `age_max` ago.
    pub(super) fn end_old(&self, age_max: Duration) {
        let mut inner = self.lock();
        while let Some((since, view)) = inner.superseded.front() {
            match view.upgrade() {
                None => {}
                Some(_) if since.elapsed() <= age_max => break,
                Some(view) => view.end(),
            }
            inner.superseded.pop_front();
        }
    }

    /// How many superseded states are still read.
    #[cfg(test)]
    pub(super) fn superseded(&self) -> usize {
        self.lock()
            .superseded
            .iter()
            .filter(|(_, view)| view.strong_count() > 0)
            .count()
    }
}

impl Inner {
    /// Returns the shape that was replaced, for the caller to drop outside the lock.
    fn replace(&mut self, number: SeqNo, shape: Option<Arc<Shape>>) -> Option<Arc<Shape>> {
        if let Some(current) = Arc::get_mut(&mut self.current) {
            current.number = number;
            let held = current.shape.get_mut().unwrap_or_else(PoisonError::into_inner);
            return shape.and_then(|shape| held.replace(shape));
        }
        let shape = shape
            .or_else(|| {
                self.current
                    .shape
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone()
            })
            .expect("the current state is never ended");
        let next = Arc::new(ViewState {
            number,
            shape: RwLock::new(Some(shape)),
            graveyard: self.current.graveyard.clone(),
            home: self.current.home.clone(),
        });
        let old = std::mem::replace(&mut self.current, next);
        self.superseded.push_back((Instant::now(), Arc::downgrade(&old)));
        if self.superseded.len() >= self.sweep_at {
            self.superseded.retain(|(_, view)| view.strong_count() > 0);
            self.sweep_at = (2 * self.superseded.len()).max(SWEEP_MIN);
        }
        None
    }
}

/// A consistent view of an [`LsmStore`](super::LsmStore) as of the last whole batch.
#[derive(Clone)]
pub struct LsmView {
    state: Arc<ViewState>,
}

impl LsmView {
    pub(super) fn new(state: Arc<ViewState>) -> Self {
        Self { state }
    }
}

impl View for LsmView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if key.is_empty() || key >= MARK_KEY {
            return Ok(None);
        }
        Ok(self.state.shape()?.get(key, self.state.number)?)
    }

    fn range(&self, from: Bound<Bytes>, to: Bound<Bytes>) -> StoreIter<'_> {
        let Some((from, to)) = clamp(from, to) else {
            return Box::new(std::iter::empty());
        };
        let opened = self.state.shape().and_then(|shape| {
            let pairs = shape.range(from, to, self.state.number)?;
            Ok((pairs, shape))
        });
        match opened {
            Ok(opened) => Box::new(LsmRange {
                opened: Some(opened),
                state: self.state.clone(),
            }),
            Err(fault) => Box::new(std::iter::once(Err(fault.into()))),
        }
    }
}

/// Pairs of a view in key order, from both ends. After an error it ends.
struct LsmRange {
    /// The shape outlives the pairs, which hold parts of it: so that closing a range frees nothing large but through it.
    opened: Option<(Pairs, Arc<Shape>)>,
    state: Arc<ViewState>,
}

impl LsmRange {
    fn step(
        &mut self,
        take: impl FnOnce(&mut Pairs) -> Option<lsm_tree::Result<lsm_tree::InternalValue>>,
    ) -> Option<StoreItem> {
        let (pairs, _) = self.opened.as_mut()?;
        let step = if self.state.ended() {
            Err(Fault::Expired)
        } else {
            guarded("reading a range", || take(pairs).transpose())
        };
        match step {
            Ok(Some(item)) => Some(Ok((item.key.user_key.into(), item.value.into()))),
            Ok(None) => {
                self.close();
                None
            }
            Err(fault) => {
                self.close();
                Some(Err(fault.into()))
            }
        }
    }

    fn close(&mut self) {
        if let Some((pairs, shape)) = self.opened.take() {
            drop(pairs);
            self.state.let_go(shape);
        }
    }
}

impl Drop for LsmRange {
    fn drop(&mut self) {
        self.close();
    }
}

impl Iterator for LsmRange {
    type Item = StoreItem;

    fn next(&mut self) -> Option<StoreItem> {
        self.step(|pairs| pairs.next())
    }
}

impl DoubleEndedIterator for LsmRange {
    fn next_back(&mut self) -> Option<StoreItem> {
        self.step(|pairs| pairs.next_back())
    }
}

/// A range without the store's own key, which is the greatest; `None` if nothing can be in it.
fn clamp(from: Bound<Bytes>, to: Bound<Bytes>) -> Option<(Bound<Bytes>, Bound<Bytes>)> {
    use Bound::{Excluded, Included, Unbounded};
    let to = match to {
        Included(key) if key < MARK_KEY => Included(key),
        Excluded(key) if key <= MARK_KEY => Excluded(key),
        _ => Excluded(Bytes::from_static(MARK_KEY)),
    };
    let empty = match (&from, &to) {
        (Unbounded, _) | (_, Unbounded) => false,
        (Included(from), Included(to)) => from > to,
        (Included(from) | Excluded(from), Included(to) | Excluded(to)) => from >= to,
    };
    (!empty).then_some((from, to))
}
