//! A model of the log, random traces, and the check of what a recovery found.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::Path;

use bytes::Bytes;
use kvorum_wal::{Base, Entry, HardState, Options, Recovered, RecoveryReport, SimDisk, Wal, WalError, Write};

pub const IDENTITY: &[u8] = b"cluster-member-incarnation";

pub fn dir() -> &'static Path {
    Path::new("/data/log")
}

pub fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    Entry {
        index,
        term,
        kind: u8::from(index.is_multiple_of(7)),
        data: Bytes::from(vec![(index ^ term) as u8; bytes]),
    }
}

pub fn entries(from: u64, to: u64, term: u64, bytes: usize) -> Write {
    Write {
        entries: (from..=to).map(|i| entry(i, term, bytes)).collect(),
        ..Write::default()
    }
}

pub fn vote(term: u64, vote: u64) -> Write {
    Write {
        hard_state: Some(HardState { term, vote }),
        ..Write::default()
    }
}

pub fn create(disk: &SimDisk) -> Wal<SimDisk> {
    Wal::create(disk.clone(), dir(), Options::small(), IDENTITY, &Write::default()).unwrap()
}

/// Opens a log, asking for a part of its entries only.
pub fn open(disk: &SimDisk) -> Result<(Wal<SimDisk>, Recovered), WalError> {
    let options = Options {
        recover_bytes_max: 2000,
        ..Options::small()
    };
    Wal::open(disk.clone(), dir(), options, IDENTITY)
}

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub hard_state: HardState,
    pub base: Base,
    pub entries: Vec<Entry>,
    pub commit_mark: u64,
}

impl Model {
    pub fn last_index(&self) -> u64 {
        self.base.index + self.entries.len() as u64
    }

    pub fn write(&mut self, write: &Write) {
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
        if let Some(base) = &write.reset {
            self.base = base.clone();
            self.entries.clear();
        }
        if let Some(from) = write.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        self.entries.extend(write.entries.iter().cloned());
        self.commit_mark = self.commit_mark.max(write.commit_mark);
    }

    pub fn purge(&mut self, base: &Base) {
        if base.index > self.base.index {
            self.base = base.clone();
            self.entries.retain(|entry| entry.index > base.index);
        }
    }
}

/// A recovery, completed with the entries that it left on disk, as a model.
pub fn as_model(wal: &Wal<SimDisk>, recovered: &Recovered) -> Model {
    let base = recovered.base.index;
    let all = if recovered.last_index > base {
        wal.reader()
            .read(base + 1, recovered.last_index, usize::MAX)
            .unwrap()
    } else {
        Vec::new()
    };
    assert!(
        all.ends_with(&recovered.entries),
        "what was recovered is what can be read"
    );
    let left_out = &all[..all.len() - recovered.entries.len()];
    for (i, entry) in left_out.iter().enumerate() {
        let run = recovered
            .terms
            .iter()
            .rev()
            .find(|(first, _)| *first <= entry.index);
        assert_eq!(run.unwrap().1, entry.term, "the terms of what was left out");
        assert!(i > 0 || recovered.terms[0].0 == entry.index);
    }
    assert!(!left_out.is_empty() || recovered.terms.is_empty());
    let configurations: Vec<Entry> = left_out.iter().filter(|entry| entry.kind == 1).cloned().collect();
    assert_eq!(configurations, recovered.kinds_kept);
    Model {
        hard_state: recovered.hard_state,
        base: recovered.base.clone(),
        entries: all,
        commit_mark: recovered.commit_mark,
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Append(Vec<Write>),
    Purge(Base),
    PrepareNext,
    Reopen,
    Close,
}

/// A random trace; every operation fits to the ones before it.
pub fn trace(seed: u64, length: usize) -> Vec<Op> {
    let mut random = Random(seed);
    let mut model = Model::default();
    let mut ops = Vec::new();
    // Some traces have tiny batches, some large ones, which rotate often.
    let bytes_max = [40, 800, 3500][random.below(3) as usize];
    while ops.len() < length {
        ops.push(match random.below(24) {
            0 | 1 if model.last_index() > model.base.index => {
                let index = model.base.index + 1 + random.below(model.entries.len() as u64);
                let term = model.entries[(index - model.base.index - 1) as usize].term;
                let base = Base {
                    index,
                    term,
                    configuration: configuration(&mut random),
                };
                model.purge(&base);
                Op::Purge(base)
            }
            2 => Op::PrepareNext,
            3 => Op::Reopen,
            4 => Op::Close,
            _ => {
                let mut writes = Vec::new();
                for _ in 0..1 + random.below(3) {
                    let write = random_write(&mut random, &model, bytes_max);
                    model.write(&write);
                    writes.push(write);
                }
                Op::Append(writes)
            }
        });
    }
    ops
}

fn configuration(random: &mut Random) -> Bytes {
    Bytes::from(vec![random.next() as u8; random.below(200) as usize])
}

fn random_write(random: &mut Random, model: &Model, bytes_max: u64) -> Write {
    let mut write = Write::default();
    let HardState { term, vote } = model.hard_state;
    match random.below(8) {
        0 => {
            write.hard_state = Some(HardState {
                term: term + 1,
                vote: random.below(4),
            })
        }
        1 if vote == 0 => {
            write.hard_state = Some(HardState {
                term,
                vote: 1 + random.below(3),
            })
        }
        _ => {}
    }
    let term = write.hard_state.map_or(term, |state| state.term);
    let mut last = model.last_index();
    match random.below(20) {
        0 => {
            let index = model.base.index + 1 + random.below(model.entries.len() as u64 + 10);
            write.reset = Some(Base {
                index,
                term,
                configuration: configuration(random),
            });
            last = index;
        }
        1..4 if last > model.base.index => {
            let from = last + 1 - random.below(model.entries.len().min(5) as u64 + 1);
            write.truncate_from = Some(from);
            last = from - 1;
        }
        _ => {}
    }
    for index in last + 1..last + 1 + random.below(4).min(8000 / (bytes_max + 50)) {
        write
            .entries
            .push(entry(index, term, random.below(bytes_max) as usize));
    }
    write.commit_mark = model.commit_mark + random.below(2);
    write
}

/// A run of a trace. `states[..=acknowledged]` were acknowledged; what comes after was asked for.
pub struct Run {
    pub wal: Option<Wal<SimDisk>>,
    pub states: Vec<Model>,
    pub acknowledged: usize,
    pub created: bool,
    pub error: Option<WalError>,
}

impl Run {
    fn note(&mut self, change: impl FnOnce(&mut Model)) {
        let mut next = self.states.last().unwrap().clone();
        change(&mut next);
        self.states.push(next);
    }

    fn step(&mut self, disk: &SimDisk, op: &Op) -> Result<(), WalError> {
        match op {
            Op::Append(writes) => {
                writes
                    .iter()
                    .for_each(|write| self.note(|model| model.write(write)));
                self.wal.as_mut().unwrap().append(writes)?;
            }
            Op::Purge(base) => {
                self.note(|model| model.purge(base));
                self.wal.as_mut().unwrap().purge(base.clone())?;
            }
            Op::PrepareNext => self.wal.as_mut().unwrap().prepare_next()?,
            Op::Reopen | Op::Close => {
                let wal = self.wal.take().unwrap();
                if matches!(op, Op::Close) {
                    wal.close()?;
                } else {
                    drop(wal);
                }
                let (wal, recovered) = open(disk)?;
                assert_eq!(as_model(&wal, &recovered), *self.states.last().unwrap());
                self.wal = Some(wal);
            }
        }
        self.acknowledged = self.states.len() - 1;
        Ok(())
    }
}

/// Runs a trace until an operation fails or the trace ends.
pub fn run(disk: &SimDisk, ops: &[Op]) -> Run {
    let mut run = Run {
        wal: None,
        states: vec![Model::default()],
        acknowledged: 0,
        created: false,
        error: None,
    };
    match Wal::create(disk.clone(), dir(), Options::small(), IDENTITY, &Write::default()) {
        Ok(wal) => run.wal = Some(wal),
        Err(error) => {
            run.error = Some(error);
            return run;
        }
    }
    run.created = true;
    for op in ops {
        if let Err(error) = run.step(disk, op) {
            run.error = Some(error);
            break;
        }
    }
    run
}

impl Run {
    /// Opens the log after a crash, checks that it holds all that was acknowledged and no more than was asked for,
    /// and returns what it holds. `None`: there is no log, and none was acknowledged.
    pub fn check(
        &self,
        disk: &SimDisk,
        what: &dyn Fn() -> String,
    ) -> Option<(Wal<SimDisk>, Model, RecoveryReport)> {
        if !Wal::exists(disk, dir()).unwrap() {
            assert!(!self.created, "{}: the log is gone", what());
            return None;
        }
        let (wal, recovered) = open(disk).unwrap_or_else(|error| panic!("{}: {error}", what()));
        let model = as_model(&wal, &recovered);
        let allowed = &self.states[self.acknowledged..];
        if !allowed.contains(&model) {
            let known = self.states.iter().position(|state| *state == model);
            panic!(
                "{}: recovered state {known:?}, acknowledged {}, asked for {}; {model:?}; {:?}",
                what(),
                self.acknowledged,
                self.states.len() - 1,
                recovered.report
            );
        }
        Some((wal, model, recovered.report))
    }
}
