//! Draws transactions.

use bytes::Bytes;
use kvorum_client::proto::etcd::compare::TargetUnion;
use kvorum_client::proto::etcd::request_op::Request as Op;
use kvorum_client::proto::etcd::{self, RequestOp, TxnRequest};

use super::Draw;
use crate::intended;

/// Deepest nesting that is drawn.
const DEPTH_MAX: usize = 3;

impl Draw {
    /// A transaction that both servers must answer alike.
    pub(super) fn txn(&mut self) -> TxnRequest {
        loop {
            let txn = if self.once_in(100) {
                self.long_txn()
            } else {
                self.txn_at(0)
            };
            if !intended::differs(&txn) {
                return txn;
            }
        }
    }

    fn txn_at(&mut self, depth: usize) -> TxnRequest {
        TxnRequest {
            compare: (0..self.rng.usize(..4)).map(|_| self.compare()).collect(),
            success: (0..self.rng.usize(..4)).map(|_| self.op(depth)).collect(),
            failure: (0..self.rng.usize(..4)).map(|_| self.op(depth)).collect(),
        }
    }

    /// One at, or beyond, the limit of operations.
    fn long_txn(&mut self) -> TxnRequest {
        let count = [128, 129][self.rng.usize(..2)];
        let mut txn = TxnRequest::default();
        if self.percent(50) {
            txn.compare = (0..count).map(|_| self.compare()).collect();
        } else {
            let range = self.range();
            txn.success = vec![op(Op::RequestRange(range)); count];
        }
        if self.percent(50) {
            // What is nested has what is left.
            let nested = self.txn_at(DEPTH_MAX);
            txn.failure.push(op(Op::RequestTxn(nested)));
        }
        txn
    }

    fn op(&mut self, depth: usize) -> RequestOp {
        match self.rng.u32(..100) {
            0 => RequestOp { request: None },
            1..=34 => {
                let mut range = self.range();
                // A transaction with a read that fails has no effect; most should have one.
                if self.percent(85) {
                    range.revision = 0;
                }
                op(Op::RequestRange(range))
            }
            35..=69 => {
                let mut put = self.put();
                if self.percent(80) {
                    // Seldom written by another operation of the same transaction.
                    put.key = format!("t/{}", self.rng.u32(..40)).into();
                }
                op(Op::RequestPut(put))
            }
            70..=84 => {
                let delete = self.delete();
                op(Op::RequestDeleteRange(delete))
            }
            _ if depth < DEPTH_MAX => {
                let nested = self.txn_at(depth + 1);
                op(Op::RequestTxn(nested))
            }
            _ => {
                let range = self.range();
                op(Op::RequestRange(range))
            }
        }
    }

    fn compare(&mut self) -> etcd::Compare {
        let (key, range_end) = self.keys();
        let range_end = if self.percent(60) { Bytes::new() } else { range_end };
        let target = self.rng.i32(0..5);
        // Sometimes the operand is that of another target, or there is none.
        let operand = if self.once_in(30) {
            self.rng.i32(0..6)
        } else {
            target
        };
        let small = self.rng.i64(-1..4);
        let target_union = match operand {
            0 => Some(TargetUnion::Version(small)),
            1 => Some(TargetUnion::CreateRevision(self.compared())),
            2 => Some(TargetUnion::ModRevision(self.compared())),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(small)),
            _ => None,
        };
        etcd::Compare {
            result: self.rng.i32(0..4),
            target,
            key,
            range_end,
            target_union,
        }
    }

    /// A revision to compare with.
    fn compared(&mut self) -> i64 {
        if self.percent(30) { 0 } else { self.past() }
    }
}

fn op(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}
