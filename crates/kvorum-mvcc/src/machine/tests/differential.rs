//! Random commands: the machine against the model, against itself after crashes, and against a snapshot of itself.

use std::ops::Bound;

use kvorum_model::{Command, CommandLimits, Event, Reply, Revision};

use super::model::Model;
use super::{entry, open, open_with, random};
use crate::machine::{ApplyEntry, StateMachine};
use crate::read::{ReadError, Wanted};
use crate::snapshot::SnapshotSink;
use crate::state::REMOVAL_KEY;
use crate::store::{MemStore, Store, View};
use crate::testing::Rng;

struct Run {
    rng: Rng,
    model: Model,
    machine: StateMachine<MemStore>,
    log: Vec<ApplyEntry>,
    /// The digest after each entry at which a slice ended.
    digests: Vec<(u64, u128)>,
    now_ms: u64,
    cache_bytes: usize,
}

impl Run {
    fn new(seed: u64, cache_bytes: usize) -> Self {
        Run {
            rng: Rng::new(seed),
            model: Model::new(),
            machine: open_with(MemStore::new(), cache_bytes),
            log: Vec::new(),
            digests: Vec::new(),
            now_ms: 0,
            cache_bytes,
        }
    }

    /// A slice of random commands, whose replies and events must be the model's.
    fn apply_slice(&mut self) {
        let (mut entries, mut expected, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..1 + self.rng.below(6) {
            let index = (self.log.len() + entries.len()) as u64 + 1;
            let command = random::command(&mut self.rng, self.model.revision());
            if command.validate(&CommandLimits::default()).is_err() {
                continue;
            }
            let before = self.model.revision();
            let result = self.model.apply(&command);
            if self.model.revision() > before {
                events.push(self.model.events.last().unwrap().clone());
            }
            expected.push((index, self.model.revision(), result));
            entries.push(entry(index, command));
        }
        let outcome = self.machine.apply(&entries).unwrap();
        let replies: Vec<_> = outcome
            .replies
            .iter()
            .map(|reply| (reply.index, reply.revision, reply.result.clone()))
            .collect();
        assert_eq!(replies, expected);
        let got: Vec<Vec<Event>> = outcome
            .events
            .iter()
            .map(|revision| revision.events.to_vec())
            .collect();
        assert_eq!(got, events);
        self.log.extend(entries);
        self.digests.push((self.log.len() as u64, self.machine.digest()));
    }

    /// Reads at random revisions, and the whole history that is left.
    fn read(&mut self) {
        let view = self.machine.reader().view();
        assert_eq!(view.revision(), self.model.revision());
        assert_eq!(view.live_keys(), self.model.states.last().unwrap().len() as u64);
        let leases: Vec<_> = view.leases().unwrap();
        assert_eq!(leases, self.machine.leases());
        let ttls = leases.iter().map(|lease| (lease.id, lease.ttl_s));
        assert_eq!(
            ttls.collect::<std::collections::BTreeMap<_, _>>(),
            self.model.leases
        );
        for lease in &leases {
            assert_eq!(view.lease(lease.id), Ok(Some(*lease)));
            assert_eq!(view.lease_keys(lease.id).unwrap(), self.model.attached(lease.id));
        }
        for _ in 0..6 {
            let request = random::range_request(&mut self.rng, self.model.revision());
            match (view.range(&request), self.model.range(&request)) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{request:?}"),
                (Err(ReadError::Request(got)), Err(expected)) => assert_eq!(got, expected),
                (got, expected) => panic!("{request:?}: {got:?}, not {expected:?}"),
            }
        }
        if self.rng.below(4) == 0 {
            let changes_max = 1 + self.rng.below(20) as usize;
            self.read_history(changes_max);
        }
    }

    fn read_history(&mut self, changes_max: usize) {
        let view = self.machine.reader().view();
        let first = self.model.compacted.max(2);
        let mut from = first;
        let mut events = Vec::new();
        while from <= self.model.revision() {
            let page = view
                .history(from, changes_max, usize::MAX, |_, _, _| Wanted::WithPrevious)
                .unwrap();
            events.extend(page.events);
            assert!(page.through >= from);
            from = page.through + 1;
        }
        let mut expected: Vec<Event> = self.model.events[first as usize..].concat();
        for event in &mut expected {
            if event.kv.mod_revision <= self.model.compacted {
                event.prev_kv = None;
            }
        }
        assert_eq!(events, expected);
    }

    /// Loses what is not flushed and replays the log; everything must come again.
    fn crash(&mut self) {
        let store = self.machine.store();
        store.flush_batches(self.rng.below(4) as usize);
        self.machine = open_with(store.crash(), self.cache_bytes);
        let at = self.machine.applied().1;
        assert_eq!(self.machine.flushed(), at);
        if let Some((_, digest)) = self.digests.iter().find(|(index, _)| *index == at) {
            assert_eq!(self.machine.digest(), *digest);
        }
        let rest: Vec<ApplyEntry> = self.log[at as usize..].to_vec();
        let mut rest = rest.as_slice();
        while !rest.is_empty() {
            // In other slices than the first time.
            let (slice, tail) = rest.split_at(1 + self.rng.below(rest.len() as u64) as usize);
            self.machine.apply(slice).unwrap();
            rest = tail;
        }
        if let Some((_, digest)) = self.digests.last() {
            assert_eq!(self.machine.digest(), *digest, "the replay came to another state");
        }
    }

    /// The state goes into a snapshot and comes out of it.
    fn snapshot(&mut self) {
        let mut reader = self.machine.snapshot();
        let mut sink = SnapshotSink::new(MemStore::new()).unwrap();
        while let Some(frame) = reader.next_frame().unwrap() {
            sink.push(frame).unwrap();
        }
        let installed = sink.finish(Default::default()).unwrap();
        assert_eq!(installed.digest(), self.machine.digest());
        assert_eq!(stored(installed.store()), stored(self.machine.store()));
        let reader = self.machine.reader();
        self.machine.replace(installed);
        assert_eq!(reader.view().revision(), self.machine.revision());
    }

    fn step(&mut self) {
        self.apply_slice();
        self.read();
        match self.rng.below(30) {
            0..=6 => {
                self.now_ms += self.rng.below(30);
                self.machine.maintenance(self.now_ms).unwrap();
            }
            7..=8 => self.machine.store().flush().unwrap(),
            9..=10 => self.crash(),
            11 => self.snapshot(),
            _ => {}
        }
    }

    /// Removes all that is compacted; then only what can be read is left.
    fn finish(&mut self) {
        loop {
            self.now_ms += 1000;
            if !self.machine.maintenance(self.now_ms).unwrap().pending {
                break;
            }
        }
        self.read_history(7);
        let compacted = self.model.compacted;
        let view = self.machine.store().view();
        let of = |prefix: u8| {
            let bounds = (
                Bound::Included(vec![prefix].into()),
                Bound::Excluded(vec![prefix + 1].into()),
            );
            view.range(bounds.0, bounds.1).count()
        };
        let history: usize = self.model.events[compacted.max(0) as usize..]
            .iter()
            .map(Vec::len)
            .sum();
        assert_eq!(of(b'r'), history);
        assert_eq!(of(b'd'), self.retained(compacted));
    }

    /// Versions after `compacted`, the newest of each key at it, and deletions exactly at it.
    fn retained(&self, compacted: Revision) -> usize {
        let after: usize = self.model.events[compacted as usize + 1..]
            .iter()
            .map(Vec::len)
            .sum();
        let live = self.model.states[compacted as usize].len();
        let deleted = &self.model.events[compacted as usize];
        after
            + live
            + deleted
                .iter()
                .filter(|event| event.kind == kvorum_model::EventKind::Delete)
                .count()
    }
}

fn stored(store: &MemStore) -> Vec<(bytes::Bytes, bytes::Bytes)> {
    store
        .view()
        .range(Bound::Unbounded, Bound::Unbounded)
        .collect::<Result<_, _>>()
        .unwrap()
}

fn run(seed: u64, cache_bytes: usize) {
    let mut run = Run::new(seed, cache_bytes);
    for _ in 0..350 {
        run.step();
    }
    run.finish();
    assert!(run.model.revision() > 500 && run.model.compacted > 300);
}

#[test]
fn the_machine_is_the_model() {
    (0..6).for_each(|seed| run(seed, 16 * 3000));
}

/// No record is cached: the filter must know every key, and hints must lead to the newest version or nowhere.
#[test]
fn the_machine_without_a_cache_is_the_model() {
    (6..12).for_each(|seed| run(seed, 0));
}

/// More keys than the cache holds, created after the filter was complete: each is found again, and none twice.
#[test]
fn keys_written_after_the_warm_up_are_found() {
    let mut machine = open_with(MemStore::new(), 0);
    machine.maintenance(0).unwrap();
    let put = |n: u64| super::put(&format!("{}", n % 500), &format!("{n}"));
    for n in 0..1_500 {
        let applied = machine.apply(&[entry(n + 1, put(n))]).unwrap();
        let kv = &applied.events[0].events[0].kv;
        assert_eq!(kv.version as u64, n / 500 + 1, "key {} after {n} puts", n % 500);
    }
    let view = machine.reader().view();
    for n in 0..500 {
        let kv = view.get(format!("{n}").as_bytes()).unwrap().unwrap();
        assert_eq!(kv.value.as_ref(), format!("{}", 1_000 + n).as_bytes());
        assert_eq!(view.get(format!("missing {n}").as_bytes()), Ok(None));
    }
}

/// Every boundary that a flush can have, in a short run: the replay from it gives the same state and digest.
#[test]
fn a_crash_at_any_batch_replays_to_the_same_state() {
    let mut run = Run::new(99, 0);
    for step in 0..60 {
        run.apply_slice();
        if step % 7 == 0 {
            run.now_ms += 10;
            run.machine.maintenance(run.now_ms).unwrap();
        }
    }
    let batches = run.machine.store().unflushed_batches();
    assert!(batches > 60);
    for _ in 0..=batches {
        let mut after = open(run.machine.store().crash());
        let at = after.applied().1;
        if let Some((_, digest)) = run.digests.iter().find(|(index, _)| *index == at) {
            assert_eq!(after.digest(), *digest);
        }
        for entry in &run.log[at as usize..] {
            after.apply(std::slice::from_ref(entry)).unwrap();
        }
        assert_eq!(after.digest(), run.machine.digest());
        assert_eq!(readable(&after), readable(&run.machine));
        run.machine.store().flush_batches(1);
    }
}

/// All records but this member's own mark and what it has not removed yet.
fn readable(machine: &StateMachine<MemStore>) -> Vec<(bytes::Bytes, bytes::Bytes)> {
    let mut copy = open_copy(machine);
    let mut now_ms = 0;
    while copy.maintenance(now_ms).unwrap().pending {
        now_ms += 1000;
    }
    stored(copy.store())
        .into_iter()
        .filter(|(key, _)| *key != REMOVAL_KEY)
        .collect()
}

fn open_copy(machine: &StateMachine<MemStore>) -> StateMachine<MemStore> {
    let store = MemStore::new();
    store.ingest(stored(machine.store())).unwrap();
    open(store)
}

/// Commands that validation refuses do no harm if they are applied all the same: nothing, or a whole revision in
/// which no key occurs twice.
#[test]
fn invalid_commands_are_refused_as_a_whole() {
    let mut rng = Rng::new(5);
    let mut machine = open(MemStore::new());
    let mut refused = 0;
    for index in 1..4_000 {
        let command = random::command(&mut rng, machine.revision());
        if matches!(command, Command::Compact(_)) {
            machine.apply(&[entry(index, Command::Register)]).unwrap();
            continue;
        }
        let invalid = command.validate(&CommandLimits::default()).is_err();
        let before = stored(machine.store()).len();
        let outcome = machine.apply(&[entry(index, command)]).unwrap();
        if outcome.replies[0].result.is_err() {
            refused += usize::from(invalid);
            assert!(outcome.events.is_empty());
            assert!(
                stored(machine.store()).len() <= before + 2,
                "no more than state and sample"
            );
        }
        for revision in &outcome.events {
            let mut keys: Vec<_> = revision.events.iter().map(|event| event.kv.key.clone()).collect();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), revision.events.len());
        }
    }
    assert!(refused > 50, "{refused}");
}

/// A slice of entries is one batch; only a transaction that reads a revision of the same slice divides it.
#[test]
fn a_slice_is_one_batch() {
    let mut rng = Rng::new(6);
    let mut machine = open(MemStore::new());
    let mut index = 0;
    for _ in 0..200 {
        let before = machine.store().unflushed_batches();
        let entries: Vec<_> = (0..10)
            .map(|_| {
                index += 1;
                match random::command(&mut rng, 0) {
                    Command::Compact(_) => entry(index, Command::Register),
                    command => entry(index, command),
                }
            })
            .collect();
        let outcome = machine.apply(&entries).unwrap();
        assert_eq!(machine.store().unflushed_batches(), before + 1);
        assert!(
            outcome
                .replies
                .iter()
                .all(|reply| reply.result != Ok(Reply::Compact))
        );
    }
}
