//! Linearizability, judged by times and answers alone: revisions are ignored, so that a wrong one cannot
//! hide a wrong answer.
//!
//! **Partition.** Linearizability is local (Herlihy & Wing, *Linearizability: a correctness condition for
//! concurrent objects*, 1990), so each key is judged as a register of its own. A transaction over several
//! keys is projected onto each of them: that its keys change at one moment is left to [`crate::replay`], as
//! are range reads and a transaction that failed with several guards (nothing is known about any one key).
//!
//! **Registers.** Every operation on a register is a step: a requirement on the state (any, is v, is not
//! v) and an optional write. A write of unknown outcome is an *optional* step without an end. Values are
//! interned, and all that nothing asks about become one (`Register::fold_unseen`). If a value was seen and
//! exactly one optional step could have written it, that step did happen, before the first one that saw it
//! ended: it becomes definite, with that end (`Register::promote`). An optional step that could explain
//! nothing is dropped.
//!
//! **Deciders.** Two necessary conditions are judged first, in O(n log n): `stale.rs` and `zones.rs` (after
//! Gibbons & Korach, *Testing shared memories*, 1997). A register with only reads and writes of distinct
//! values is decided by them. Every other one goes to a search (`search.rs`; Wing & Gong, *Testing and
//! verifying concurrent objects*, 1993, with the memoisation of Lowe, *Testing for linearizability*, 2017),
//! bounded by [`Limits`]; there it is said which branches are not worth taking, and why.
//!
//! **Write every value only once** where the test can: then tens of thousands of operations with a tenth of
//! the writes unknown are a matter of milliseconds. With few values written again and again, many clients on
//! one key and many unknown writes the search can run into its bounds.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{Guard, Op, Outcome, Pair, Record, Reply};
use crate::{Checker, Failure, History, Kind};

mod register;
mod search;
mod stale;
mod zones;

use register::{Register, Require};

/// Bounds of the search, for each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps tried, each with the remembered configurations that it was compared with.
    pub steps_max: u64,
    /// Bytes of remembered states, roughly.
    pub memory_bytes_max: usize,
}

impl Default for Limits {
    /// 20 million steps (tens of seconds) and 512 MiB.
    fn default() -> Limits {
        Limits {
            steps_max: 20_000_000,
            memory_bytes_max: 512 << 20,
        }
    }
}

/// Checks that every key of the history behaves like a linearizable register.
///
/// # Errors
/// A violation or an undecided search of the smallest such key (a violation goes first), with the operations
/// around it; or a malformed history.
pub fn check(history: &History, limits: &Limits) -> Result<(), Failure> {
    history.validate()?;
    let mut undecided = None;
    for (key, register) in project(history) {
        if let Err(failure) = decide(register, limits, Decider::Fastest).map_err(|f| f.on(&key, history)) {
            match failure.kind {
                Kind::Undecided => undecided = undecided.or(Some(failure)),
                _ => return Err(failure),
            }
        }
    }
    undecided.map_or(Ok(()), Err)
}

/// What is wrong with a register; operations are positions in the history.
struct Finding {
    kind: Kind,
    message: String,
    operations: Vec<usize>,
}

impl Finding {
    fn violation(message: String, operations: Vec<usize>) -> Finding {
        Finding {
            kind: Kind::Violation,
            message,
            operations,
        }
    }

    fn on(self, key: &Bytes, history: &History) -> Failure {
        Failure::new(Checker::Linear, self.kind, self.message)
            .on_key(key)
            .with_operations(history, self.operations)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Decider {
    Fastest,
    #[cfg(test)]
    Search,
}

fn decide(mut register: Register, limits: &Limits, decider: Decider) -> Result<(), Finding> {
    register.promote()?;
    register.drop_useless();
    if decider == Decider::Fastest {
        stale::check(&register)?;
        zones::check(&register)?;
        if zones::are_exact(&register) {
            return Ok(());
        }
    }
    register.fold_unseen();
    search::decide(&register, limits)
}

/// One register for each key that a single-key operation or a transaction names.
fn project(history: &History) -> BTreeMap<Bytes, Register> {
    let mut registers: BTreeMap<Bytes, Register> = BTreeMap::new();
    let initial: BTreeMap<&Bytes, &Bytes> =
        history.base().kvs.iter().map(|kv| (&kv.key, &kv.value)).collect();
    for (position, record) in history.records().iter().enumerate() {
        if record.outcome == Outcome::NotApplied {
            continue;
        }
        let mut on = |key: &Bytes, require: Require<Option<&Bytes>>, write: Option<Option<&Bytes>>| {
            if !registers.contains_key(key) {
                registers.insert(key.clone(), Register::new(initial.get(key).copied()));
            }
            let register = registers.get_mut(key).expect("inserted above");
            register.add(position, record, require, write);
        };
        project_record(record, &mut on);
    }
    registers
}

type OnKey<'a, 'b> = dyn FnMut(&'b Bytes, Require<Option<&'b Bytes>>, Option<Option<&'b Bytes>>) + 'a;

fn project_record<'b>(record: &'b Record, on: &mut OnKey<'_, 'b>) {
    let reply = record.answer().map(|(_, reply)| reply);
    match (&record.op, reply) {
        (Op::Put { key, value }, _) => on(key, Require::Any, Some(Some(value))),
        (Op::Delete { key }, Some(Reply::Delete { deleted: true, .. })) => {
            on(key, Require::Not(None), Some(None));
        }
        (Op::Delete { key }, Some(_)) => on(key, Require::Is(None), None),
        (Op::Delete { key }, None) => on(key, Require::Any, Some(None)),
        (Op::Get { key }, Some(Reply::Get { kv, .. })) => {
            on(key, Require::Is(kv.as_ref().map(|kv| &kv.value)), None);
        }
        (Op::Txn { guards, .. }, Some(Reply::Txn { succeeded: false, .. })) => {
            if let [Guard { key, value }] = &guards[..] {
                on(key, Require::Not(value.as_ref()), None);
            }
        }
        (Op::Txn { guards, puts }, answer) => {
            for Pair { key, value } in puts {
                let guard = guards.iter().find(|guard| guard.key == key);
                let require = guard.map_or(Require::Any, |guard| Require::Is(guard.value.as_ref()));
                on(key, require, Some(Some(value)));
            }
            let only_guarded = |guard: &&Guard| puts.iter().all(|put| put.key != guard.key);
            if answer.is_some() {
                for Guard { key, value } in guards.iter().filter(only_guarded) {
                    on(key, Require::Is(value.as_ref()), None);
                }
            }
        }
        (Op::Get { .. } | Op::Range(_), _) => {}
    }
}

#[cfg(test)]
mod tests;
