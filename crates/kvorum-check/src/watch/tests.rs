#![allow(clippy::unwrap_used)]

use super::*;
use crate::testkit::{Plan, Random, Run, key, simulate};
use crate::{Evidence, History, Replay};

fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        operations: 200,
        clients: 6,
        keys: 4,
        unknown_one_in: [0, 15][seed as usize % 2],
        values: 0,
        mixed: true,
    }
}

/// What a correct watcher gets, in messages of one or several revisions, with progress marks between them.
fn watcher(run: &Run, random: &mut Random) -> Watcher {
    let range = match random.below(3) {
        0 => KeyRange::all(),
        1 => KeyRange::single(key(random.below(4))),
        _ => KeyRange::between("k1", "k3"),
    };
    let start_revision = 2 + random.below(run.store.revision / 2);
    let mut watcher = Watcher::new(1, start_revision, range);
    let wanted: Vec<Event> = run
        .store
        .events
        .iter()
        .filter(|event| event.revision() >= start_revision && watcher.range.contains(event.key()))
        .cloned()
        .collect();
    let mut message = Vec::new();
    for revision in wanted.chunk_by(|one, other| one.revision() == other.revision()) {
        message.extend_from_slice(revision);
        if random.one_in(2) {
            let reached = revision[0].revision();
            watcher
                .received
                .push(Received::Events(std::mem::take(&mut message)));
            if random.one_in(3) {
                watcher.received.push(Received::Progress(reached));
            }
        }
    }
    if message.is_empty() {
        watcher.complete_to = Some(run.store.revision);
    }
    watcher
}

fn judge(history: &History, watcher: &Watcher, others: &[Event]) -> Result<(), Failure> {
    let sightings: Vec<Event> = watcher.events().chain(others).cloned().collect();
    check(&Replay::with_sightings(history, &sightings)?, watcher)
}

#[test]
fn correct_watchers_pass_and_broken_ones_are_flagged() {
    let mut broken = [0; 8];
    for seed in 0..1_000 {
        let run = simulate(plan(seed));
        let mut random = Random(seed);
        let good = watcher(&run, &mut random);
        judge(&run.history, &good, &[]).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        judge(&run.history, &good, &run.store.events).unwrap();

        let mut bad = good.clone();
        let kind = random.below(8) as usize;
        if !break_one(&mut bad, kind, &mut random) {
            continue;
        }
        assert!(
            judge(&run.history, &bad, &run.store.events).is_err(),
            "seed {seed}, kind {kind}: {bad:#?}"
        );
        broken[kind] += 1;
    }
    println!("{broken:?}");
    assert!(broken.iter().all(|count| *count >= 3), "{broken:?}");
}

/// `false` if there is nothing to break in this way.
fn break_one(watcher: &mut Watcher, kind: usize, random: &mut Random) -> bool {
    let messages: Vec<usize> = (0..watcher.received.len())
        .filter(|at| matches!(watcher.received[*at], Received::Events(_)))
        .collect();
    if messages.len() < 3 {
        return false;
    }
    let at = messages[random.below(messages.len() as u64 - 1) as usize];
    let next = *messages.iter().find(|next| **next > at).unwrap();
    let Received::Events(events) = watcher.received[at].clone() else {
        unreachable!("filtered above")
    };
    let several = |events: &[Event]| events.first().unwrap().revision() != events.last().unwrap().revision();
    let pair = events
        .windows(2)
        .position(|pair| pair[0].revision() == pair[1].revision());
    match kind {
        // A message lost, doubled, or out of order.
        0 => drop(watcher.received.remove(at)),
        1 => watcher.received.insert(next, Received::Events(events)),
        2 => watcher.received.swap(at, next),
        // A revision left out of a message, or split over two.
        3 if several(&events) => watcher.received[at] = Received::Events(events[1..].to_vec()),
        4 if pair.is_some() => {
            let (head, tail) = events.split_at(pair.unwrap() + 1);
            watcher.received[at] = Received::Events(tail.to_vec());
            watcher.received.insert(at, Received::Events(head.to_vec()));
        }
        // A mark before what it covers.
        5 => watcher
            .received
            .insert(at, Received::Progress(events[0].revision())),
        // Another key's event, or none at all.
        6 => {
            let foreign = Event::Delete {
                key: "zzz".into(),
                revision: events[0].revision(),
            };
            watcher.received[at] = Received::Events([vec![foreign], events[1..].to_vec()].concat());
        }
        7 => watcher.received[at] = Received::Events(vec![]),
        _ => return false,
    }
    true
}

#[test]
fn a_complete_watcher_has_seen_the_end() {
    let run = simulate(Plan {
        unknown_one_in: 0,
        ..plan(1)
    });
    let mut watcher = Watcher::new(1, 2, KeyRange::all());
    let last = run.store.revision - 3;
    let most = run
        .store
        .events
        .iter()
        .filter(|event| event.revision() <= last)
        .cloned()
        .collect();
    watcher.received = vec![Received::Events(most)];
    judge(&run.history, &watcher, &[]).unwrap();
    watcher.complete_to = Some(run.store.revision);
    assert!(
        judge(&run.history, &watcher, &[])
            .unwrap_err()
            .message
            .contains("never sent")
    );
}

#[test]
fn a_hidden_revision_counts_as_missed_if_it_must_lie_in_the_range() {
    let mut history = History::new();
    history.invoke(1, 1, Op::put("a", "1"));
    let id = history.invoke(2, 2, Op::put("b", "2"));
    history.complete(id, 3, crate::Outcome::Ok(crate::Reply::Put { revision: 3 }));
    let replay = Replay::new(&history).unwrap();
    let mut watcher = Watcher::new(1, 2, KeyRange::single("a"));
    watcher.complete_to = Some(3);
    assert!(check(&replay, &watcher).is_err());
    watcher.range = KeyRange::single("c");
    check(&replay, &watcher).unwrap();
}

#[test]
fn a_watcher_outside_of_the_replay_is_malformed() {
    let run = simulate(plan(3));
    let replay = Replay::new(&run.history).unwrap();
    let early = Watcher::new(1, 1, KeyRange::all());
    assert_eq!(check(&replay, &early).unwrap_err().kind, Kind::Malformed);
}

#[test]
fn all_evidence_is_judged_at_once() {
    for seed in 0..40 {
        let run = simulate(plan(seed));
        let watchers: Vec<Watcher> = (0..3).map(|n| watcher(&run, &mut Random(seed * 7 + n))).collect();
        let mut finals = [run.store.end(), run.store.end()];
        let evidence = Evidence {
            watchers: &watchers,
            finals: &finals.clone(),
            digests: &[(1, 9, 5), (2, 9, 5)],
            ..Evidence::new(&run.history)
        };
        evidence
            .check()
            .unwrap_or_else(|failures| panic!("seed {seed}: {failures:#?}"));
        finals[1].kvs.clear();
        let evidence = Evidence {
            finals: &finals,
            digests: &[(1, 9, 5), (2, 9, 6)],
            ..evidence
        };
        assert_eq!(evidence.check().unwrap_err().len(), 2, "seed {seed}");
    }
}
