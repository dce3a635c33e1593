//! Registers with only reads and writes of distinct values: Gibbons & Korach's zones, in O(n log n).
//!
//! A value's *cluster* is its write and all reads that saw it. In any linearization the clusters follow each
//! other whole (a value never comes back), so the question is whether they can be ordered. Cluster A must
//! come before B if some step of A ended before some step of B was called: `first_end(A) < last_call(B)`. That
//! relation has a cycle only if it has one of length two (follow a shortest cycle: without a chord its ends
//! would have to decrease all the way round). If `first_end < last_call` the cluster holds the register for
//! all of that *forward zone*; otherwise it may be shrunk to any moment of its *backward zone*. Two clusters
//! block each other exactly if two forward zones overlap, or a backward zone lies inside a forward one.

use super::Finding;
use super::register::{ABSENT, Register, Require};

#[derive(Clone, Copy)]
pub(super) struct Cluster {
    first_end: u64,
    last_call: u64,
    /// Positions in the history of the steps with the first end and the last call.
    shown_by: [Option<usize>; 2],
    value: u32,
    written: bool,
}

/// The clusters of a register; `None` if it is not of the kind that zones decide. The caller has seen to it
/// that every value read has a write that was invoked before the read ended.
pub(super) fn clusters(register: &Register) -> Option<Vec<Cluster>> {
    if !register.optional.is_empty() {
        return None;
    }
    let unused = Cluster {
        first_end: u64::MAX,
        last_call: 0,
        shown_by: [None; 2],
        value: 0,
        written: false,
    };
    let mut clusters = vec![unused; register.values.len()];
    clusters[register.initial as usize] = Cluster {
        first_end: 0,
        value: register.initial,
        written: true,
        ..unused
    };
    for step in &register.definite {
        let value = match (step.require, step.write) {
            (Require::Any, Some(value)) if value != ABSENT => value,
            (Require::Is(value), None) => value,
            _ => return None,
        };
        let cluster = &mut clusters[value as usize];
        if step.write.is_some() && std::mem::replace(&mut cluster.written, true) {
            return None;
        }
        cluster.value = value;
        if step.ret < cluster.first_end {
            cluster.first_end = step.ret;
            cluster.shown_by[0] = Some(step.position);
        }
        if step.call > cluster.last_call {
            cluster.last_call = step.call;
            cluster.shown_by[1] = Some(step.position);
        }
    }
    clusters.retain(|cluster| cluster.written);
    Some(clusters)
}

/// Whether the clusters can be ordered.
pub(super) fn decide(register: &Register, clusters: Vec<Cluster>) -> Result<(), Finding> {
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) = clusters
        .into_iter()
        .partition(|cluster| cluster.first_end < cluster.last_call);
    forward.sort_unstable_by_key(|cluster| (cluster.first_end, cluster.last_call));
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_call {
            return Err(conflict(register, &pair[0], &pair[1]));
        }
    }
    for inner in &backward {
        // Forward zones do not overlap: the last one that begins before also ends last.
        let after = forward.partition_point(|outer| outer.first_end < inner.last_call);
        if let Some(outer) = after.checked_sub(1).map(|at| &forward[at])
            && inner.first_end < outer.last_call
        {
            return Err(conflict(register, outer, inner));
        }
    }
    Ok(())
}

fn conflict(register: &Register, one: &Cluster, other: &Cluster) -> Finding {
    let message = format!(
        "{0} must come before {1}, and {1} before {0}, though each is written only once",
        register.name(one.value),
        register.name(other.value),
    );
    let mut operations: Vec<usize> = one.shown_by.into_iter().chain(other.shown_by).flatten().collect();
    operations.sort_unstable();
    operations.dedup();
    Finding::violation(message, operations)
}
