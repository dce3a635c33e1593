//! Parts of a state that many states share: the value is kept once, its hash is computed once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A shared value with its hash, which stands for it: states are compared by hash, as the checker does.
#[derive(Clone, Debug)]
pub struct Shared<T> {
    hash: u64,
    value: Arc<T>,
}

impl<T: Hash> Shared<T> {
    pub fn new(value: T) -> Shared<T> {
        // Fixed keys: the same value has the same hash in every run.
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Shared {
            hash: hasher.finish(),
            value: Arc::new(value),
        }
    }
}

impl<T> Shared<T> {
    pub fn key(&self) -> u64 {
        self.hash
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Shared<T>) -> bool {
        self.hash == other.hash
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}
