//! One key's operations as steps of a register, and what can be simplified before any search.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Finding;
use crate::history::{Outcome, Record};

/// An interned value: [`ABSENT`], or a place in [`Register::values`].
pub(super) type Value = u32;

/// The key does not exist.
pub(super) const ABSENT: Value = 0;

/// End of a step that has none.
pub(super) const NEVER: u64 = u64::MAX;

/// What a step asks of the state before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Require<V> {
    Any,
    Is(V),
    Not(V),
}

impl<V: PartialEq> Require<V> {
    pub(super) fn holds(&self, state: V) -> bool {
        match self {
            Require::Any => true,
            Require::Is(value) => *value == state,
            Require::Not(value) => *value != state,
        }
    }
}

impl<V> Require<V> {
    fn map<W>(self, f: impl FnOnce(V) -> W) -> Require<W> {
        match self {
            Require::Any => Require::Any,
            Require::Is(value) => Require::Is(f(value)),
            Require::Not(value) => Require::Not(f(value)),
        }
    }
}

/// One operation on the register, taking effect at one moment in `call..=ret`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) call: u64,
    pub(super) ret: u64,
    pub(super) require: Require<Value>,
    pub(super) write: Option<Value>,
    /// Position in the history.
    pub(super) position: usize,
}

/// A key's steps. Times are those of the history, moved up by one: 0 is before everything.
#[derive(Clone, Debug)]
pub(super) struct Register {
    pub(super) initial: Value,
    /// Steps that took effect.
    pub(super) definite: Vec<Step>,
    /// Steps that may have taken effect, once, at any time after their call.
    pub(super) optional: Vec<Step>,
    /// The interned values; place 0 is [`ABSENT`]'s.
    pub(super) values: Vec<Bytes>,
    interned: BTreeMap<Bytes, Value>,
}

impl Register {
    pub(super) fn new(initial: Option<&Bytes>) -> Register {
        let mut register = Register {
            initial: ABSENT,
            definite: Vec::new(),
            optional: Vec::new(),
            values: vec![Bytes::new()],
            interned: BTreeMap::new(),
        };
        register.initial = register.intern(initial);
        register
    }

    fn intern(&mut self, value: Option<&Bytes>) -> Value {
        let Some(value) = value else { return ABSENT };
        if let Some(&known) = self.interned.get(value) {
            return known;
        }
        let new = Value::try_from(self.values.len()).expect("fewer than 2^32 values in a history");
        self.values.push(value.clone());
        self.interned.insert(value.clone(), new);
        new
    }

    /// Adds an operation that was not refused.
    pub(super) fn add(
        &mut self,
        position: usize,
        record: &Record,
        require: Require<Option<&Bytes>>,
        write: Option<Option<&Bytes>>,
    ) {
        let require = require.map(|value| self.intern(value));
        let write = write.map(|value| self.intern(value));
        // One below the end of time, so that an answered step never looks like an optional one.
        let moved = |time: u64| time.saturating_add(1).min(NEVER - 1);
        let call = moved(record.invoked);
        if record.outcome == Outcome::Unknown {
            if write.is_some_and(|write| require != Require::Is(write)) {
                self.optional.push(Step {
                    call,
                    ret: NEVER,
                    require,
                    write,
                    position,
                });
            }
        } else {
            let ret = moved(
                record
                    .completed
                    .expect("validated: an answer has a completion time"),
            );
            self.definite.push(Step {
                call,
                ret,
                require,
                write,
                position,
            });
        }
    }

    pub(super) fn name(&self, value: Value) -> String {
        match value {
            ABSENT => "absent".to_string(),
            value => match self.values.get(value as usize) {
                Some(value) => format!("{value:?}"),
                None => "a value that nobody asks about".to_string(),
            },
        }
    }

    /// Finds values that were seen before anyone could have written them, and makes those optional steps
    /// definite that alone can explain a value that was seen.
    ///
    /// The step that sees a value takes effect before it ends, and the one that wrote it before that: so the
    /// new end loses no order. A promoted step with a guard has itself seen a value: hence the worklist.
    pub(super) fn promote(&mut self) -> Result<(), Finding> {
        /// Where a value comes from.
        #[derive(Clone, Default)]
        struct Source {
            first_call: Option<u64>,
            writers: usize,
            optional: Option<usize>,
        }
        let mut sources = vec![Source::default(); self.values.len()];
        sources[self.initial as usize] = Source {
            first_call: Some(0),
            writers: 1,
            optional: None,
        };
        let optional = self
            .optional
            .iter()
            .enumerate()
            .map(|(at, step)| (Some(at), step));
        for (at, step) in self.definite.iter().map(|step| (None, step)).chain(optional) {
            if let Some(write) = step.write {
                let source = &mut sources[write as usize];
                source.first_call = Some(source.first_call.map_or(step.call, |call| call.min(step.call)));
                source.writers += 1;
                source.optional = at;
            }
        }
        let mut promoted: BTreeMap<usize, u64> = BTreeMap::new();
        let mut work: Vec<(Value, u64, usize)> = Vec::new();
        let needs = |step: &Step, ret: u64| match step.require {
            Require::Is(value) => Some((value, ret, step.position)),
            _ => None,
        };
        work.extend(self.definite.iter().filter_map(|step| needs(step, step.ret)));
        while let Some((value, ret, position)) = work.pop() {
            let source = &sources[value as usize];
            if source.first_call.is_none_or(|call| call > ret) {
                return Err(self.out_of_nowhere(value, position));
            }
            let (1, Some(at)) = (source.writers, source.optional) else {
                continue;
            };
            let end = promoted.entry(at).or_insert(NEVER);
            if ret < *end {
                *end = ret;
                work.extend(needs(&self.optional[at], ret));
            }
        }
        let mut at = 0;
        let definite = &mut self.definite;
        self.optional.retain(|step| {
            let end = promoted.get(&at);
            definite.extend(end.map(|&ret| Step { ret, ..*step }));
            at += 1;
            end.is_none()
        });
        Ok(())
    }

    fn out_of_nowhere(&self, value: Value, position: usize) -> Finding {
        let steps = self.definite.iter().chain(&self.optional);
        let writers: Vec<usize> = steps
            .filter(|step| step.write == Some(value))
            .map(|step| step.position)
            .collect();
        let name = self.name(value);
        let problem = if writers.is_empty() {
            format!("{name} was seen, but no write that may have taken effect wrote it")
        } else {
            format!("{name} was seen before any write of it was invoked")
        };
        let mut operations = vec![position];
        operations.extend(writers.iter().filter(|writer| **writer != position).take(4));
        Finding::violation(problem, operations)
    }

    /// Drops optional steps whose value nothing requires and which could not make any "is not" true.
    pub(super) fn drop_useless(&mut self) {
        let (asked, refused) = self.requirements();
        self.optional.retain(|step| {
            let write = step.write.expect("an optional step writes");
            asked[write as usize] || refused.iter().any(|value| *value != write)
        });
    }

    /// Makes one value of all those that no requirement names: nothing can tell them apart.
    pub(super) fn fold_unseen(&mut self) {
        let (mut named, refused) = self.requirements();
        refused.iter().for_each(|value| named[*value as usize] = true);
        named[ABSENT as usize] = true;
        let other = Value::try_from(self.values.len()).expect("fewer than 2^32 values in a history");
        let fold = |value: &mut Value| {
            if !named[*value as usize] {
                *value = other;
            }
        };
        let steps = self.definite.iter_mut().chain(&mut self.optional);
        steps.filter_map(|step| step.write.as_mut()).for_each(fold);
        fold(&mut self.initial);
    }

    /// Which values are required, and the distinct ones that some step requires the state not to be.
    fn requirements(&self) -> (Vec<bool>, Vec<Value>) {
        let mut asked = vec![false; self.values.len()];
        let mut refused = Vec::new();
        for step in self.definite.iter().chain(&self.optional) {
            match step.require {
                Require::Is(value) => asked[value as usize] = true,
                Require::Not(value) => refused.push(value),
                Require::Any => {}
            }
        }
        refused.sort_unstable();
        refused.dedup();
        (asked, refused)
    }
}
