//! Histories for the tests: a simulated store with concurrent clients, some of whose writes end unknown.

use std::collections::BTreeMap;

use crate::{Bytes, Event, FinalState, Guard, History, KeyRange, Kv, Op, OpId, Outcome, Pair, Reply};

/// Deterministic draws (SplitMix64, Steele et al. 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// A correct store: what the checkers are held against.
pub(crate) struct Store {
    pub(crate) revision: u64,
    pub(crate) kvs: BTreeMap<Bytes, Kv>,
    pub(crate) events: Vec<Event>,
}

impl Store {
    pub(crate) fn new() -> Store {
        Store {
            revision: 1,
            kvs: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    fn put(&mut self, key: &Bytes, value: &Bytes) {
        let old = self.kvs.get(key);
        let kv = Kv {
            key: key.clone(),
            value: value.clone(),
            create_revision: old.map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
            version: old.map_or(1, |kv| kv.version + 1),
        };
        self.events.push(Event::Put(kv.clone()));
        self.kvs.insert(key.clone(), kv);
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Reply {
        match op {
            Op::Put { key, value } => {
                self.revision += 1;
                self.put(key, value);
                Reply::Put {
                    revision: self.revision,
                }
            }
            Op::Delete { key } => {
                let deleted = self.kvs.remove(key).is_some();
                if deleted {
                    self.revision += 1;
                    self.events.push(Event::Delete {
                        key: key.clone(),
                        revision: self.revision,
                    });
                }
                Reply::Delete {
                    revision: self.revision,
                    deleted,
                }
            }
            Op::Get { key } => Reply::Get {
                revision: self.revision,
                kv: self.kvs.get(key).cloned(),
            },
            Op::Txn { guards, puts } => {
                let holds =
                    |guard: &Guard| self.kvs.get(&guard.key).map(|kv| &kv.value) == guard.value.as_ref();
                let succeeded = guards.iter().all(holds);
                if succeeded && !puts.is_empty() {
                    self.revision += 1;
                    puts.iter().for_each(|put| self.put(&put.key, &put.value));
                }
                Reply::Txn {
                    revision: self.revision,
                    succeeded,
                }
            }
            Op::Range(range) => {
                let kvs = self
                    .kvs
                    .values()
                    .filter(|kv| range.contains(&kv.key))
                    .cloned()
                    .collect();
                Reply::Range {
                    revision: self.revision,
                    kvs,
                }
            }
        }
    }

    pub(crate) fn end(&self) -> FinalState {
        FinalState {
            member: 1,
            revision: self.revision,
            kvs: self.kvs.values().cloned().collect(),
        }
    }
}

/// What to simulate.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) operations: usize,
    pub(crate) clients: u64,
    pub(crate) keys: u64,
    /// One write in this many ends unknown; of those, half take effect. 0: none.
    pub(crate) unknown_one_in: u64,
    /// Values are drawn from so many; 0: every one is new.
    pub(crate) values: u64,
    /// Also deletes, transactions and ranges, not only puts and gets.
    pub(crate) mixed: bool,
}

/// A history that a correct store produced.
pub(crate) struct Run {
    pub(crate) history: History,
    pub(crate) store: Store,
}

enum Stage {
    Idle,
    Sent(OpId, Op),
    Applied(OpId, Reply),
}

pub(crate) fn key(number: u64) -> Bytes {
    format!("k{number}").into()
}

/// Clients send, the store applies and answers, one such thing a tick, in random order.
pub(crate) fn simulate(plan: Plan) -> Run {
    let mut random = Random(plan.seed);
    let mut history = History::new();
    let mut store = Store::new();
    let mut stages: Vec<Stage> = (0..plan.clients).map(|_| Stage::Idle).collect();
    let mut lost: Vec<Op> = Vec::new();
    let mut now = 0;
    let mut fresh = 0;
    while history.records().len() < plan.operations
        || stages.iter().any(|stage| !matches!(stage, Stage::Idle))
    {
        now += 1;
        if !lost.is_empty() && random.one_in(plan.clients * 4) {
            let op = lost.swap_remove(random.below(lost.len() as u64) as usize);
            store.apply(&op);
        }
        let client = random.below(plan.clients);
        let stage = &mut stages[client as usize];
        *stage = match std::mem::replace(stage, Stage::Idle) {
            Stage::Idle if history.records().len() >= plan.operations => Stage::Idle,
            Stage::Idle => {
                let op = draw_op(&mut random, &plan, &store, &mut fresh);
                Stage::Sent(history.invoke(client, now, op.clone()), op)
            }
            Stage::Sent(id, op)
                if plan.unknown_one_in > 0 && op.is_write() && random.one_in(plan.unknown_one_in) =>
            {
                if random.one_in(2) {
                    lost.push(op);
                }
                if random.one_in(2) {
                    history.complete(id, now, Outcome::Unknown);
                }
                Stage::Idle
            }
            Stage::Sent(id, op) => Stage::Applied(id, store.apply(&op)),
            Stage::Applied(id, reply) => {
                history.complete(id, now, Outcome::Ok(reply));
                Stage::Idle
            }
        };
    }
    Run { history, store }
}

fn draw_op(random: &mut Random, plan: &Plan, store: &Store, fresh: &mut u64) -> Op {
    let mut value = |random: &mut Random| -> Bytes {
        *fresh += 1;
        format!(
            "v{}",
            if plan.values == 0 {
                *fresh
            } else {
                random.below(plan.values)
            }
        )
        .into()
    };
    let key = key(random.below(plan.keys));
    if !plan.mixed {
        return if random.one_in(2) {
            Op::get(key)
        } else {
            Op::put(key, value(random))
        };
    }
    // Guards guess the present value, and are often wrong by the time they are judged.
    let guess = |key: &Bytes| store.kvs.get(key).map(|kv| kv.value.clone());
    match random.below(20) {
        0..=6 => Op::get(key),
        7..=11 => Op::put(key, value(random)),
        12..=13 => Op::delete(key),
        14..=17 => {
            let expected = guess(&key);
            Op::cas(key, expected, value(random))
        }
        18 => Op::Range(KeyRange::between("k1", "k3")),
        _ => {
            let other = Bytes::from_static(b"other");
            let guards = vec![
                Guard {
                    value: guess(&key),
                    key: key.clone(),
                },
                Guard {
                    value: guess(&other),
                    key: other.clone(),
                },
            ];
            let mut pair = |key: Bytes| Pair {
                key,
                value: value(random),
            };
            Op::Txn {
                guards,
                puts: vec![pair(key), pair(other)],
            }
        }
    }
}
