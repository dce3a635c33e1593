//! The search for one order of a register's steps (Wing & Gong 1993, Lowe 2017).
//!
//! Depth first: a step may come next if no other step that is still to be placed ended before its call and
//! the state meets its requirement. Steps to be placed form a linked list in the order of their calls, so
//! that the candidates are its first few. A configuration (state, placed steps, used optional steps) that
//! was reached before is not entered again. There the placed steps are the first unplaced one and a bit set
//! of the window behind it; at a quiescent point the window is empty and only the state and the used optional
//! steps remain, so that what comes after is searched once for each of those, not once for each order of
//! what was before: the history is split there without further ado.
//!
//! What is not tried, and why no linearization is lost:
//! - *Reads first.* A candidate without a write whose requirement is met is placed at once: putting it first
//!   in any linearization of the rest keeps that one valid.
//! - *Equals in order of their ends.* Of candidates with the same requirement and write only the one that
//!   ends first is tried: two equals that stand the other way round may be swapped.
//! - *Optional steps by class.* Those with the same requirement and write are taken in the order of their
//!   calls, so a configuration only counts them; and one that used as many of every class as another or
//!   more, all else equal, can do nothing that the other cannot (it is dominated).
//! - *Optional steps when needed.* One is tried only if some step that could come right after it requires
//!   what it writes, and not what is there already: in a linearization with as few optional steps as possible
//!   each one is followed by such a step, or it could be left out.
//! - *Last writers.* A value that steps to be placed still require is not overwritten if no step that is left
//!   could write it again. With distinct values this settles nearly everything.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;

use super::register::{NEVER, Register, Require, Step, Value};
use super::{Finding, Limits};
use crate::Kind;

/// Operations shown of the longest order found, and of those that cannot follow it.
const SHOWN_MAX: usize = 10;

/// Operations shown that wait for a value which is about to be lost.
const WAITING_SHOWN_MAX: usize = 3;

/// Optional steps with the same requirement and write.
struct Class {
    require: Require<Value>,
    write: Value,
    /// (call, position), sorted.
    steps: Vec<(u64, usize)>,
}

#[derive(Clone, Copy)]
enum Choice {
    Definite(usize),
    Optional(usize),
}

/// A choice that was made, and the state before it.
type Move = (Choice, Value);

struct Frame {
    moves: usize,
    choices: Vec<Choice>,
    next: usize,
}

/// (class, how many of it are used), ascending, without zeros.
type Used = Box<[(usize, u32)]>;

/// Whether `one` used at most as many of every class as `other`.
fn at_most(one: &[(usize, u32)], other: &[(usize, u32)]) -> bool {
    let mut other = other.iter();
    one.len() <= other.len()
        && one.iter().all(|(class, used)| {
            other
                .find(|(at, _)| at >= class)
                .is_some_and(|(at, of)| at == class && used <= of)
        })
}

#[derive(PartialEq, Eq, Hash)]
struct Configuration {
    first_unplaced: u32,
    state: Value,
    window: Box<[u64]>,
}

/// Where the search got furthest.
#[derive(Default)]
struct Deepest {
    placed: usize,
    state: Value,
    last: Vec<usize>,
    stuck: Vec<Step>,
    /// Steps that still need the state, if nothing left can write it again.
    waiting: Vec<usize>,
}

/// Invariants: `next`/`previous` link the unplaced definite steps in the order of their calls, with
/// `definite.len()` as both ends; `bits` holds exactly the placed ones; `demand[v]` counts unplaced definite
/// steps that require v, `supply[v]` unplaced definite and unused optional ones that write v; undoing the
/// moves from last to first restores the beginning.
struct Search {
    definite: Vec<Step>,
    classes: Vec<Class>,
    next: Vec<usize>,
    previous: Vec<usize>,
    bits: Vec<u64>,
    highest_placed: Vec<usize>,
    state: Value,
    /// How many of each class are used, where any are.
    used: BTreeMap<usize, u32>,
    demand: Vec<u32>,
    supply: Vec<u32>,
    moves: Vec<Move>,
    placed: usize,
    seen: HashMap<Configuration, Vec<Used>, BuildHasherDefault<DefaultHasher>>,
    seen_bytes: usize,
    /// Steps tried, and remembered configurations looked at.
    work: u64,
    deepest: Deepest,
}

/// Decides a register whose values are folded.
pub(super) fn decide(register: &Register, limits: &Limits) -> Result<(), Finding> {
    let mut search = Search::new(register);
    let mut frames: Vec<Frame> = Vec::new();
    loop {
        search.place_reads();
        if search.placed == search.definite.len() {
            return Ok(());
        }
        if search.enter() {
            let choices = search.choices();
            if choices.is_empty() {
                search.note_if_deepest();
            }
            frames.push(Frame {
                moves: search.moves.len(),
                choices,
                next: 0,
            });
        }
        // Back to the newest frame that has a choice left, and take it.
        loop {
            let Some(frame) = frames.last_mut() else {
                return Err(search.explain(register));
            };
            search.undo_to(frame.moves);
            if let Some(&choice) = frame.choices.get(frame.next) {
                frame.next += 1;
                search.apply(choice);
                break;
            }
            frames.pop();
        }
        if search.work > limits.steps_max || search.seen_bytes > limits.memory_bytes_max {
            let mut finding = search.explain(register);
            finding.kind = Kind::Undecided;
            finding.message = format!(
                "gave up after {} steps with {} MiB of states; so far: {}",
                search.work,
                search.seen_bytes >> 20,
                finding.message
            );
            return Err(finding);
        }
    }
}

impl Search {
    fn new(register: &Register) -> Search {
        let mut definite = register.definite.clone();
        definite.sort_by_key(|step| (step.call, step.ret, step.position));
        let mut classes: Vec<Class> = Vec::new();
        let mut optional = register.optional.clone();
        let same = |step: &Step| (step.require, step.write);
        optional.sort_by_key(|step| (same(step), step.call, step.position));
        for group in optional.chunk_by(|one, other| same(one) == same(other)) {
            let write = group[0].write.expect("an optional step writes");
            let steps = group.iter().map(|step| (step.call, step.position)).collect();
            classes.push(Class {
                require: group[0].require,
                write,
                steps,
            });
        }
        let count = definite.len();
        // One more value than interned: the folded one.
        let mut search = Search {
            next: (0..=count)
                .map(|at| if at == count { 0 } else { at + 1 })
                .collect(),
            previous: (0..=count)
                .map(|at| if at == 0 { count } else { at - 1 })
                .collect(),
            bits: vec![0; count.div_ceil(64)],
            highest_placed: Vec::new(),
            state: register.initial,
            used: BTreeMap::new(),
            demand: vec![0; register.values.len() + 1],
            supply: vec![0; register.values.len() + 1],
            moves: Vec::new(),
            placed: 0,
            seen: HashMap::default(),
            seen_bytes: 0,
            work: 0,
            deepest: Deepest::default(),
            definite,
            classes,
        };
        for step in search.definite.iter().chain(&optional) {
            if let Some(write) = step.write {
                search.supply[write as usize] += 1;
            }
        }
        for step in &search.definite {
            if let Require::Is(value) = step.require {
                search.demand[value as usize] += 1;
            }
        }
        search
    }

    fn end(&self) -> usize {
        self.definite.len()
    }

    /// The unplaced definite steps that no other unplaced one precedes, and the first end among them.
    fn candidates(&self) -> (Vec<usize>, u64) {
        let mut candidates = Vec::new();
        let mut first_end = NEVER;
        let mut at = self.next[self.end()];
        // Sorted by call: what is called after the first end so far is no candidate, nor is anything behind.
        while at != self.end() && self.definite[at].call <= first_end {
            first_end = first_end.min(self.definite[at].ret);
            candidates.push(at);
            at = self.next[at];
        }
        (candidates, first_end)
    }

    fn place_reads(&mut self) {
        loop {
            let (candidates, _) = self.candidates();
            let before = self.placed;
            for at in candidates {
                let step = &self.definite[at];
                if step.write.is_none() && step.require.holds(self.state) {
                    self.apply(Choice::Definite(at));
                }
            }
            if self.placed == before {
                return;
            }
        }
    }

    /// Whether this configuration is new and not dominated by one that was entered before.
    fn enter(&mut self) -> bool {
        let first = self.next[self.end()];
        let words = first / 64
            ..self
                .highest_placed
                .last()
                .map_or(first / 64, |highest| highest / 64 + 1);
        let window: Box<[u64]> = self.bits.get(words).unwrap_or(&[]).into();
        let first_unplaced = u32::try_from(first).expect("fewer than 2^32 steps");
        let window_bytes = window.len() * 8;
        let configuration = Configuration {
            first_unplaced,
            state: self.state,
            window,
        };
        let entered = self.seen.entry(configuration).or_default();
        let now: Used = self.used.iter().map(|(class, used)| (*class, *used)).collect();
        self.work += 1 + entered.len() as u64;
        if entered.iter().any(|used| at_most(used, &now)) {
            return false;
        }
        // Roughly: the entry with its allocations, the first time; the counts each time.
        let entry_bytes = if entered.is_empty() { 112 + window_bytes } else { 0 };
        self.seen_bytes += entry_bytes + 16 + size_of_val(&now[..]);
        entered.retain(|used| !at_most(&now, used));
        entered.push(now);
        true
    }

    /// The writes worth trying next: definite ones in the order of their ends, then optional ones.
    fn choices(&self) -> Vec<Choice> {
        let (candidates, first_end) = self.candidates();
        let mut writes: Vec<(usize, &Step)> = candidates
            .iter()
            .map(|at| (*at, &self.definite[*at]))
            .filter(|(_, step)| {
                let owed = u32::from(step.require == Require::Is(self.state));
                step.write
                    .is_some_and(|write| self.may_write(step.require, write, owed))
            })
            .collect();
        writes.sort_by_key(|(_, step)| (step.ret, step.call));
        let mut tried = Vec::new();
        writes.retain(|(_, step)| {
            let kind = (step.require, step.write);
            let new = !tried.contains(&kind);
            tried.push(kind);
            new
        });
        let mut choices: Vec<Choice> = writes.into_iter().map(|(at, _)| Choice::Definite(at)).collect();
        let available = |at: usize, class: &Class| {
            let next = class.steps.get(self.used_of(at) as usize);
            next.is_some_and(|(call, _)| *call <= first_end)
        };
        let required = |require: Require<Value>, value| require.holds(value) && !require.holds(self.state);
        for (at, class) in self.classes.iter().enumerate() {
            let may = class.write != self.state && self.may_write(class.require, class.write, 0);
            if may
                && available(at, class)
                && (candidates
                    .iter()
                    .any(|at| required(self.definite[*at].require, class.write))
                    || (0..).zip(&self.classes).any(|(next, then)| {
                        then.require == Require::Is(class.write) && available(next, then)
                    }))
            {
                choices.push(Choice::Optional(at));
            }
        }
        choices
    }

    fn used_of(&self, class: usize) -> u32 {
        self.used.get(&class).copied().unwrap_or(0)
    }

    /// Whether a step may come now: its requirement is met, and it does not overwrite the last chance to see
    /// the present value. `owed` is 1 for a step that is itself counted in the present value's demand.
    fn may_write(&self, require: Require<Value>, write: Value, owed: u32) -> bool {
        let present = self.state as usize;
        let last_chance = self.supply[present] == 0 && self.demand[present] > owed;
        require.holds(self.state) && (write == self.state || !last_chance)
    }

    fn apply(&mut self, choice: Choice) {
        self.moves.push((choice, self.state));
        match choice {
            Choice::Definite(at) => {
                let step = self.definite[at];
                let (previous, next) = (self.previous[at], self.next[at]);
                self.next[previous] = next;
                self.previous[next] = previous;
                self.bits[at / 64] |= 1 << (at % 64);
                let highest = self.highest_placed.last().map_or(at, |highest| at.max(*highest));
                self.highest_placed.push(highest);
                self.placed += 1;
                if let Require::Is(value) = step.require {
                    self.demand[value as usize] -= 1;
                }
                if let Some(write) = step.write {
                    self.supply[write as usize] -= 1;
                    self.state = write;
                }
            }
            Choice::Optional(class) => {
                *self.used.entry(class).or_insert(0) += 1;
                self.state = self.classes[class].write;
                self.supply[self.state as usize] -= 1;
            }
        }
    }

    fn undo_to(&mut self, moves: usize) {
        while self.moves.len() > moves {
            let (choice, state) = self.moves.pop().expect("longer than `moves`");
            match choice {
                Choice::Definite(at) => {
                    let step = self.definite[at];
                    let (previous, next) = (self.previous[at], self.next[at]);
                    self.next[previous] = at;
                    self.previous[next] = at;
                    self.bits[at / 64] &= !(1 << (at % 64));
                    self.highest_placed.pop();
                    self.placed -= 1;
                    if let Require::Is(value) = step.require {
                        self.demand[value as usize] += 1;
                    }
                    if let Some(write) = step.write {
                        self.supply[write as usize] += 1;
                    }
                }
                Choice::Optional(class) => {
                    let used = self.used.get_mut(&class).expect("the move used one");
                    *used -= 1;
                    if *used == 0 {
                        self.used.remove(&class);
                    }
                    self.supply[self.classes[class].write as usize] += 1;
                }
            }
            self.state = state;
        }
    }

    fn note_if_deepest(&mut self) {
        if self.placed < self.deepest.placed || (self.placed == self.deepest.placed && self.placed > 0) {
            return;
        }
        let last = self
            .moves
            .iter()
            .rev()
            .take(SHOWN_MAX)
            .rev()
            .map(|(choice, _)| match *choice {
                Choice::Definite(at) => self.definite[at].position,
                Choice::Optional(class) => self.classes[class].steps[self.used_of(class) as usize - 1].1,
            });
        let stuck = self
            .candidates()
            .0
            .into_iter()
            .map(|at| self.definite[at])
            .collect();
        let mut waiting = Vec::new();
        let mut at = self.next[self.end()];
        while self.supply[self.state as usize] == 0 && at != self.end() && waiting.len() < WAITING_SHOWN_MAX {
            if self.definite[at].require == Require::Is(self.state) {
                waiting.push(self.definite[at].position);
            }
            at = self.next[at];
        }
        let last = last.collect();
        self.deepest = Deepest {
            placed: self.placed,
            state: self.state,
            last,
            stuck,
            waiting,
        };
    }

    fn explain(&self, register: &Register) -> Finding {
        let Deepest {
            placed,
            state,
            last,
            stuck,
            waiting,
        } = &self.deepest;
        let mut message = format!(
            "no order explains the answers. The longest found places {placed} of {} operations, the last ones \
             being {}; then the state is {}, and of those that must come next",
            self.definite.len(),
            list(last.iter()),
            register.name(*state),
        );
        let mut shown: Vec<&Step> = stuck.iter().collect();
        shown.sort_by_key(|step| step.ret);
        shown.truncate(SHOWN_MAX);
        for step in &shown {
            let why = match step.require {
                require if require.holds(*state) => {
                    let state = register.name(*state);
                    let others = waiting.iter().filter(|waiting| **waiting != step.position);
                    format!("would end {state}, which {} still need", list(others))
                }
                Require::Is(value) => format!("needs {}", register.name(value)),
                Require::Not(_) | Require::Any => "needs another state".to_string(),
            };
            message.push_str(&format!("; #{} {why}", step.position));
        }
        let mut operations = last.clone();
        for position in shown
            .iter()
            .map(|step| step.position)
            .chain(waiting.iter().copied())
        {
            if !operations.contains(&position) {
                operations.push(position);
            }
        }
        Finding::violation(message, operations)
    }
}

fn list<'a>(positions: impl Iterator<Item = &'a usize>) -> String {
    let names: Vec<String> = positions.map(|position| format!("#{position}")).collect();
    if names.is_empty() {
        "none".to_string()
    } else {
        names.join(" ")
    }
}
