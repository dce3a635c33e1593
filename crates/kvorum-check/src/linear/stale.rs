//! The plain case of a stale read, whoever wrote the value how often: every write of it was over before
//! another step began that leaves no room for it, and that one was over before the read began.
//!
//! Necessary for linearizability, not sufficient; O(n log n). It spares the search the long way through all
//! orders that do not matter, and gives the shortest explanation.

use super::Finding;
use super::register::{Register, Require, Step, Value};

/// The state that a step leaves, if it says so.
fn left_by(step: &Step) -> Option<Value> {
    match (step.write, step.require) {
        (Some(value), _) | (None, Require::Is(value)) => Some(value),
        _ => None,
    }
}

/// Fails if some step requires a value that cannot have been there any more.
pub(super) fn check(register: &Register) -> Result<(), Finding> {
    // For each value the latest end of the writes called so far.
    let mut writes: Vec<Vec<(u64, u64)>> = vec![Vec::new(); register.values.len()];
    writes[register.initial as usize].push((0, 0));
    for step in register.definite.iter().chain(&register.optional) {
        if let Some(value) = step.write {
            writes[value as usize].push((step.call, step.ret));
        }
    }
    for writes in &mut writes {
        writes.sort_unstable();
        let mut latest = 0;
        for (_, ret) in writes {
            latest = latest.max(*ret);
            *ret = latest;
        }
    }
    let mut ended: Vec<(&Step, Value)> = register
        .definite
        .iter()
        .filter_map(|step| Some((step, left_by(step)?)))
        .collect();
    ended.sort_by_key(|(step, _)| step.ret);
    let mut ended = ended.into_iter().peekable();
    let mut readers: Vec<(&Step, Value)> = Vec::new();
    for step in &register.definite {
        if let Require::Is(value) = step.require {
            readers.push((step, value));
        }
    }
    readers.sort_by_key(|(step, _)| step.call);
    // Of the steps over before the reader was called, the last called, and the last called of those that leave
    // another value than that one.
    let mut last: [Option<(&Step, Value)>; 2] = [None; 2];
    for (reader, value) in readers {
        while let Some(step) = ended.next_if(|(step, _)| step.ret < reader.call) {
            last = push(last, step);
        }
        let Some((between, left)) = last.into_iter().flatten().find(|(_, left)| *left != value) else {
            continue;
        };
        let writes = &writes[value as usize];
        let called = writes.partition_point(|(call, _)| *call <= reader.ret);
        if called.checked_sub(1).is_none_or(|at| writes[at].1 < between.call) {
            let message = format!(
                "#{} saw {} after #{} had left {}, and no write of it can lie between",
                reader.position,
                register.name(value),
                between.position,
                register.name(left),
            );
            return Err(Finding::violation(
                message,
                vec![between.position, reader.position],
            ));
        }
    }
    Ok(())
}

/// Keeps the last called step, and the last called of those that leave another value.
fn push<'a>(last: [Option<(&'a Step, Value)>; 2], new: (&'a Step, Value)) -> [Option<(&'a Step, Value)>; 2] {
    let later = |old: Option<(&Step, Value)>| old.is_none_or(|(step, _)| step.call < new.0.call);
    match last {
        [first, second] if first.is_some_and(|(_, value)| value == new.1) => {
            [if later(first) { Some(new) } else { first }, second]
        }
        [first, _] if later(first) => [Some(new), first],
        [first, second] => [first, if later(second) { Some(new) } else { second }],
    }
}
