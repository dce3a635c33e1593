//! Transactions, as etcd runs them (`apply/txn.go`): compares and checks on the state before, recursively; then the
//! operations in order, each seeing the writes before it; then all writes as one revision, or none.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use kvorum_model::{
    Error, KeyRange, KeyValue, PutRequest, RangeRequest, RequestOp, ResponseOp, Revision, TxnRequest,
    TxnResponse,
};

use super::core::{Core, Planned, check_key, plan_delete, plan_put};
use crate::cache::Head;
use crate::read::{Found, ReadError, Source, answer_range, check_revision_in_txn, holds};
use crate::store::{StoreError, View};

impl<V: View> Core<V> {
    /// Applies a transaction.
    pub(super) fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, ReadError> {
        let mut path = Vec::new();
        self.choose(&request, &mut path)?;
        self.check(&request, &mut path.iter().copied())?;
        let mut run = Run {
            core: self,
            own: BTreeMap::new(),
            planned: Vec::new(),
        };
        let response = run.txn(request, &mut path.iter().copied())?;
        let planned = run.planned;
        self.write_all(planned);
        Ok(response)
    }

    /// Which list runs, of the transaction and of those nested in the lists that run, in order.
    fn choose(&self, request: &TxnRequest, path: &mut Vec<bool>) -> Result<(), ReadError> {
        let mut succeeded = true;
        for compare in &request.compare {
            succeeded = succeeded && holds(self, compare)?;
        }
        path.push(succeeded);
        for op in chosen(request, succeeded) {
            if let RequestOp::Txn(nested) = op {
                self.choose(nested, path)?;
            }
        }
        Ok(())
    }

    /// What would fail, before anything is written.
    fn check(&self, request: &TxnRequest, path: &mut impl Iterator<Item = bool>) -> Result<(), ReadError> {
        for op in chosen(request, next(path)) {
            match op {
                RequestOp::Range(range) => self.check_range(range)?,
                RequestOp::Put(put) => self.check_put(put)?,
                RequestOp::DeleteRange(_) => {}
                RequestOp::Txn(nested) => self.check(nested, path)?,
            }
        }
        Ok(())
    }

    fn check_range(&self, request: &RangeRequest) -> Result<(), Error> {
        check_revision_in_txn(request.revision, self.state.revision, self.state.compacted)
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), ReadError> {
        check_key(&request.key)?;
        // In a transaction etcd looks for the key first, in a single put for the lease.
        if (request.ignore_value || request.ignore_lease) && self.point(&request.key, None)?.is_none() {
            return Err(Error::KeyNotFound.into());
        }
        Ok(self.check_lease(request.lease)?)
    }
}

fn chosen(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded {
        &request.success
    } else {
        &request.failure
    }
}

fn next(path: &mut impl Iterator<Item = bool>) -> bool {
    path.next()
        .expect("a choice was made for each transaction that runs")
}

/// A transaction under way: nothing of it is in the state yet.
struct Run<'a, V> {
    core: &'a Core<V>,
    /// The newest state of the keys that it changed.
    own: BTreeMap<Bytes, Option<KeyValue>>,
    planned: Vec<Planned>,
}

impl<V: View> Run<'_, V> {
    fn txn(
        &mut self,
        request: TxnRequest,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnResponse, ReadError> {
        let succeeded = next(path);
        let ops = if succeeded {
            request.success
        } else {
            request.failure
        };
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            responses.push(match op {
                RequestOp::Range(range) => ResponseOp::Range(answer_range(self, &range, usize::MAX)?),
                RequestOp::Put(put) => {
                    let old = self.core.head(&put.key)?;
                    let (planned, response) = plan_put(put, old)?;
                    self.plan(planned)?;
                    ResponseOp::Put(response)
                }
                RequestOp::DeleteRange(delete) => {
                    let (planned, response) = plan_delete(self, &delete)?;
                    for change in planned {
                        self.plan(change)?;
                    }
                    ResponseOp::DeleteRange(response)
                }
                RequestOp::Txn(nested) => ResponseOp::Txn(self.txn(nested, path)?),
            });
        }
        Ok(TxnResponse { succeeded, responses })
    }

    /// Takes a change in. Validation has refused transactions that write a key twice; should one come all the same,
    /// it is refused here, on every replica alike, and nothing of it is written.
    fn plan(&mut self, change: Planned) -> Result<(), Error> {
        let now = change.put.as_ref().map(|kv| {
            let main = self.core.state.revision + 1;
            let create_revision = if kv.create_revision == 0 {
                main
            } else {
                kv.create_revision
            };
            KeyValue {
                mod_revision: main,
                create_revision,
                ..kv.clone()
            }
        });
        if self.own.insert(change.key.clone(), now).is_some() {
            return Err(Error::DuplicateKey);
        }
        // What a deletion found is its own record already; the state keeps the older one.
        debug_assert!(matches!(&change.old, Head::Live(_)) || change.put.is_some());
        self.planned.push(change);
        Ok(())
    }
}

impl<V: View> Source for Run<'_, V> {
    /// For the check of revisions: etcd takes the state before the transaction.
    fn revision(&self) -> Revision {
        self.core.state.revision
    }

    fn compacted(&self) -> Revision {
        self.core.state.compacted
    }

    fn live_keys(&self) -> u64 {
        self.core.state.live_keys
    }

    fn point(&self, key: &Bytes, at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        match (at, self.own.get(key)) {
            (None, Some(own)) => Ok(own.clone()),
            (at, _) => self.core.point(key, at),
        }
    }

    fn each(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        visit: &mut dyn FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        match at {
            None => self
                .core
                .merge(range, self.core.overlay(Some(&self.own), range), visit),
            Some(at) => self.core.each_at(range, at, visit),
        }
    }
}
