//! What times alone say about values that are written once: Gibbons & Korach's zones, in O(n log n).
//!
//! The *cluster* of a value with one writer is that write and all steps that require the value. In any
//! linearization the register holds the value from the first of them to the last and never again; so of two
//! clusters one comes whole before the other (a guarded write that ends one and begins the other stands
//! between). Every other step that says what the state is or becomes is a cluster of its own: it cannot lie
//! within another's.
//!
//! Cluster A must come before B if some step of A ended before some step of B was called: `first_end(A) <
//! last_call(B)`. Two that must each come before the other contradict each other. If `first_end < last_call`
//! the cluster holds the register for all of that *forward zone*; otherwise `last_call..=first_end` is its
//! *backward zone*. Two clusters contradict each other exactly if two forward zones overlap, or a backward
//! zone lies inside a forward one. No register with such a pair is linearizable.
//!
//! With only reads and unguarded writes of distinct values the converse holds as well: the relation has a
//! cycle only if it has one of length two (follow a shortest one: without a chord its ends would have to
//! decrease all the way round), so that without a contradiction the clusters can be ordered.

use super::Finding;
use super::register::{ABSENT, Register, Require, Step};

#[derive(Clone, Copy)]
struct Cluster {
    first_end: u64,
    last_call: u64,
    /// Positions in the history of the steps with the first end and the last call.
    shown_by: [Option<usize>; 2],
    value: u32,
}

impl Cluster {
    fn new(value: u32) -> Cluster {
        Cluster {
            first_end: u64::MAX,
            last_call: 0,
            shown_by: [None; 2],
            value,
        }
    }

    fn add(&mut self, step: &Step) {
        if step.ret < self.first_end {
            self.first_end = step.ret;
            self.shown_by[0] = Some(step.position);
        }
        if step.call > self.last_call {
            self.last_call = step.call;
            self.shown_by[1] = Some(step.position);
        }
    }
}

/// Whether zones decide a register: it has only reads and unguarded writes of distinct values.
pub(super) fn are_exact(register: &Register) -> bool {
    let writers = writers(register);
    register.optional.is_empty()
        && register
            .definite
            .iter()
            .all(|step| match (step.require, step.write) {
                (Require::Any, Some(value)) => value != ABSENT && writers[value as usize] == 1,
                (Require::Is(_), None) => true,
                _ => false,
            })
}

/// How many steps may write each value; the beginning counts as one.
fn writers(register: &Register) -> Vec<u32> {
    let mut writers = vec![0; register.values.len()];
    writers[register.initial as usize] += 1;
    for write in register
        .definite
        .iter()
        .chain(&register.optional)
        .filter_map(|step| step.write)
    {
        writers[write as usize] += 1;
    }
    writers
}

/// Fails if two clusters contradict each other. The caller has seen to it that every value that a step
/// requires has a write that was invoked before the step ended.
pub(super) fn check(register: &Register) -> Result<(), Finding> {
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) = clusters(register)
        .into_iter()
        .partition(|cluster| cluster.first_end < cluster.last_call);
    forward.sort_unstable_by_key(|cluster| (cluster.first_end, cluster.last_call));
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_call {
            return Err(contradiction(register, &pair[0], &pair[1]));
        }
    }
    for inner in &backward {
        // Forward zones do not overlap: the last one that begins before also ends last.
        let after = forward.partition_point(|outer| outer.first_end < inner.last_call);
        if let Some(outer) = after.checked_sub(1).map(|at| &forward[at])
            && inner.first_end < outer.last_call
        {
            return Err(contradiction(register, outer, inner));
        }
    }
    Ok(())
}

fn clusters(register: &Register) -> Vec<Cluster> {
    let writers = writers(register);
    let mut of_value: Vec<Cluster> = (0..)
        .zip(&writers)
        .map(|(value, _)| Cluster::new(value))
        .collect();
    of_value[register.initial as usize].first_end = 0;
    let mut alone = Vec::new();
    for step in &register.definite {
        let required = if let Require::Is(value) = step.require {
            Some(value)
        } else {
            None
        };
        for value in required.into_iter().chain(step.write) {
            if writers[value as usize] == 1 {
                of_value[value as usize].add(step);
            } else {
                let mut cluster = Cluster::new(value);
                cluster.add(step);
                alone.push(cluster);
            }
        }
    }
    of_value.retain(|cluster| writers[cluster.value as usize] == 1);
    of_value.extend(alone);
    of_value
}

fn contradiction(register: &Register, one: &Cluster, other: &Cluster) -> Finding {
    let message = format!(
        "{0} must come before {1}, and {1} before {0}, and what is written once does not come back",
        register.name(one.value),
        register.name(other.value),
    );
    let mut operations: Vec<usize> = one.shown_by.into_iter().chain(other.shown_by).flatten().collect();
    operations.sort_unstable();
    operations.dedup();
    Finding::violation(message, operations)
}
