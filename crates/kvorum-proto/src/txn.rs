//! No key is written twice in one transaction, and no put lies in a deleted range, at any depth.
//!
//! The rule is etcd's (`duplicate key given in txn request`), because a store that keeps one record per key and
//! revision has no place for a second one. `then` and `else` of one nested transaction exclude each other, so
//! they may repeat keys; two deletions may overlap. Where etcd's own check depends on the order of siblings (a
//! nested put beside a later sibling's nested deletion passes there), this one does not.
//!
//! Cost: O(n log n) in the operations for each level of nesting, whatever the ranges look like.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvorum_model::{Error, KeyRange, RequestOp, TxnRequest};

/// Checks the whole transaction.
pub fn check_duplicates(txn: &TxnRequest) -> Result<(), Error> {
    Writes::of(&txn.success)?;
    Writes::of(&txn.failure)?;
    Ok(())
}

/// What a list of operations may write.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Intervals,
}

impl Writes {
    /// What `ops` may write, if no two of them collide.
    fn of(ops: &[RequestOp]) -> Result<Writes, Error> {
        let mut all = Writes::default();
        for op in ops {
            let one = match op {
                RequestOp::Range(_) => continue,
                RequestOp::Put(put) => Writes {
                    puts: BTreeSet::from([put.key.clone()]),
                    deletes: Intervals::default(),
                },
                RequestOp::DeleteRange(delete) => {
                    let mut deletes = Intervals::default();
                    deletes.insert(&delete.range);
                    Writes {
                        puts: BTreeSet::new(),
                        deletes,
                    }
                }
                RequestOp::Txn(txn) => {
                    let mut either = Writes::of(&txn.success)?;
                    either.absorb(Writes::of(&txn.failure)?);
                    either
                }
            };
            if all.collides(&one) {
                return Err(Error::DuplicateKey);
            }
            all.absorb(one);
        }
        Ok(all)
    }

    /// Whether both together would write a key twice.
    fn collides(&self, other: &Writes) -> bool {
        other
            .puts
            .iter()
            .any(|key| self.puts.contains(key) || self.deletes.contains(key))
            || other.deletes.0.iter().any(|(start, end)| match end {
                Some(end) => self.puts.range(start.clone()..end.clone()).next().is_some(),
                None => self.puts.range(start.clone()..).next().is_some(),
            })
    }

    fn absorb(&mut self, other: Writes) {
        self.puts.extend(other.puts);
        for (start, end) in other.deletes.0 {
            self.deletes.insert_interval(start, end);
        }
    }
}

/// Disjoint half-open intervals of keys: start → end, `None` for no end. Invariant: neighbours do not touch.
#[derive(Default)]
struct Intervals(BTreeMap<Bytes, Option<Bytes>>);

impl Intervals {
    fn insert(&mut self, range: &KeyRange) {
        let end = if range.is_point() {
            let mut next = Vec::with_capacity(range.key.len() + 1);
            next.extend_from_slice(&range.key);
            next.push(0);
            Some(Bytes::from(next))
        } else if range.is_from_key() {
            None
        } else if range.end <= range.key {
            return;
        } else {
            Some(range.end.clone())
        };
        self.insert_interval(range.key.clone(), end);
    }

    fn insert_interval(&mut self, mut start: Bytes, mut end: Option<Bytes>) {
        if let Some((before, before_end)) = self.0.range(..=start.clone()).next_back()
            && before_end.as_ref().is_none_or(|e| *e >= start)
        {
            start = before.clone();
        }
        // Everything that starts within the new interval melts into it.
        while let Some((next, next_end)) = self.0.range(start.clone()..).next() {
            if end.as_ref().is_some_and(|e| next > e) {
                break;
            }
            let (next, next_end) = (next.clone(), next_end.clone());
            self.0.remove(&next);
            end = match (end, next_end) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &Bytes) -> bool {
        let before = self.0.range(..=key.clone()).next_back();
        before.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use kvorum_model::{DeleteRangeRequest, PutRequest};

    fn put(key: &str) -> RequestOp {
        RequestOp::Put(PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..Default::default()
        })
    }
    fn delete(key: &str, end: &str) -> RequestOp {
        let range = KeyRange {
            key: Bytes::copy_from_slice(key.as_bytes()),
            end: Bytes::copy_from_slice(end.as_bytes()),
        };
        RequestOp::DeleteRange(DeleteRangeRequest {
            range,
            prev_kv: false,
        })
    }
    fn nest(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp::Txn(TxnRequest {
            compare: vec![],
            success,
            failure,
        })
    }
    fn check(ops: Vec<RequestOp>, allowed: bool) {
        let expected = if allowed { Ok(()) } else { Err(Error::DuplicateKey) };
        let mirrored = TxnRequest {
            failure: ops.clone(),
            ..Default::default()
        };
        assert_eq!(
            check_duplicates(&TxnRequest {
                success: ops,
                ..Default::default()
            }),
            expected
        );
        assert_eq!(check_duplicates(&mirrored), expected);
    }

    #[test]
    fn a_key_is_put_once() {
        check(vec![put("a"), put("b")], true);
        check(vec![put("a"), put("a")], false);
        check(vec![put("a"), nest(vec![put("a")], vec![])], false);
        check(
            vec![nest(vec![put("a")], vec![]), nest(vec![], vec![put("a")])],
            false,
        );
        check(
            vec![nest(vec![nest(vec![put("a")], vec![])], vec![]), put("a")],
            false,
        );
    }

    #[test]
    fn then_and_else_exclude_each_other() {
        check(vec![nest(vec![put("a")], vec![put("a")])], true);
        check(vec![nest(vec![put("a")], vec![delete("a", "")])], true);
        check(vec![nest(vec![put("a")], vec![put("a")]), put("a")], false);
    }

    #[test]
    fn no_put_in_a_deleted_range() {
        check(vec![put("b"), delete("a", "c")], false);
        check(vec![delete("a", "c"), put("b")], false);
        check(vec![delete("a", "c"), put("c")], true);
        check(vec![delete("b", ""), put("b")], false);
        check(vec![delete("b", ""), put("b\0")], true);
        check(vec![delete("b", "\0"), put("zz")], false);
        check(vec![delete("b", "\0"), put("a")], true);
        check(vec![delete("c", "a"), put("b")], true);
        check(
            vec![nest(vec![put("b")], vec![]), nest(vec![delete("a", "c")], vec![])],
            false,
        );
        check(
            vec![nest(vec![delete("a", "c")], vec![]), nest(vec![put("b")], vec![])],
            false,
        );
    }

    #[test]
    fn deletions_may_overlap() {
        check(
            vec![delete("a", "c"), delete("b", "d"), delete("a", ""), put("d")],
            true,
        );
        check(
            vec![delete("a", "c"), delete("e", "g"), delete("b", "f"), put("d")],
            false,
        );
        check(vec![delete("e", "g"), delete("a", "c"), put("d")], true);
        check(vec![delete("a", "c"), delete("c", "\0"), put("x")], false);
    }

    /// Against the definition: compare all pairs of writes that can run together.
    #[test]
    fn equals_the_quadratic_definition() {
        let mut state = 7u64;
        let mut draw = |n: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let keys = [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n",
        ];
        let mut collisions = 0;
        for _ in 0..4000 {
            let ops: Vec<RequestOp> = (0..1 + draw(5))
                .map(|_| match draw(3) {
                    0 => {
                        let (a, b) = (draw(14) as usize, draw(14) as usize);
                        delete(keys[a], if draw(3) == 0 { "" } else { keys[b] })
                    }
                    _ => put(keys[draw(14) as usize]),
                })
                .collect();
            let brute = ops.iter().enumerate().any(|(i, x)| {
                ops.iter().enumerate().any(|(j, y)| match (x, y) {
                    (RequestOp::Put(a), RequestOp::Put(b)) => i != j && a.key == b.key,
                    (RequestOp::Put(a), RequestOp::DeleteRange(d)) => d.range.contains(&a.key),
                    _ => false,
                })
            });
            collisions += usize::from(brute);
            check(ops, !brute);
        }
        assert!(
            (500..3500).contains(&collisions),
            "the draw is lopsided: {collisions}"
        );
    }
}
