//! Linearizability by trying every order of every choice of optional steps: no cleverness to get wrong.

use crate::linear::register::{Register, Step};
use crate::testkit::Random;
use crate::{Bytes, History, Kv, Outcome, Reply};

pub(super) fn linearizable(register: &Register) -> bool {
    let steps: Vec<(Step, bool)> = register
        .definite
        .iter()
        .map(|step| (*step, true))
        .chain(register.optional.iter().map(|step| (*step, false)))
        .collect();
    assert!(steps.len() <= 10, "too many orders");
    extend(&steps, &mut vec![false; steps.len()], register.initial)
}

fn extend(steps: &[(Step, bool)], placed: &mut [bool], state: u32) -> bool {
    let open: Vec<usize> = (0..steps.len()).filter(|at| !placed[*at]).collect();
    if open.iter().all(|at| !steps[*at].1) {
        return true;
    }
    open.iter().any(|&at| {
        let step = &steps[at].0;
        let preceded = open.iter().any(|other| steps[*other].0.ret < step.call);
        if preceded || !step.require.holds(state) {
            return false;
        }
        placed[at] = true;
        let found = extend(steps, placed, step.write.unwrap_or(state));
        placed[at] = false;
        found
    })
}

/// Changes a few answers, which may or may not leave the history linearizable.
pub(super) fn disturb(history: &History, random: &mut Random) -> History {
    let mut records = history.records().to_vec();
    let values: Vec<Option<Kv>> = records
        .iter()
        .filter_map(|record| match &record.outcome {
            Outcome::Ok(Reply::Get { kv, .. }) => Some(kv.clone()),
            _ => match &record.op {
                crate::Op::Put { key, value } => Some(Some(Kv {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: 0,
                    mod_revision: 0,
                    version: 0,
                })),
                _ => None,
            },
        })
        .collect();
    for _ in 0..1 + random.below(5) {
        let at = random.below(records.len() as u64) as usize;
        let key: Option<Bytes> = match &records[at].op {
            crate::Op::Get { key } => Some(key.clone()),
            _ => None,
        };
        match &mut records[at].outcome {
            Outcome::Ok(Reply::Get { kv, .. }) if !values.is_empty() => {
                let other = random.pick(&values).clone();
                if other
                    .as_ref()
                    .is_none_or(|other| Some(&other.key) == key.as_ref())
                {
                    *kv = other;
                }
            }
            Outcome::Ok(Reply::Delete { deleted, .. }) => *deleted = !*deleted,
            Outcome::Ok(Reply::Txn { succeeded, .. }) => *succeeded = !*succeeded,
            outcome @ Outcome::Unknown if random.one_in(2) => *outcome = Outcome::NotApplied,
            _ => {}
        }
    }
    let mut disturbed = History::on(history.base().clone());
    records.into_iter().for_each(|record| {
        disturbed.push(record);
    });
    disturbed
}
