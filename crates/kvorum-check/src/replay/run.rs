//! One pass over the revisions.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::possible::{Possible, STATES_MAX, States};
use super::{Change, violation};
use crate::history::{Brief, Event, Guard, KeyRange, Kv, Op, Pair, Record, Reply};
use crate::{Checker, Failure, History, Kind};

/// What somebody saw of a revision.
struct Seen<'a> {
    /// The key as it was put there; `None`: the revision deleted it.
    kv: Option<&'a Kv>,
    key: &'a Bytes,
    /// The operation whose answer shows it; `None`: a watcher or the final state.
    by: Option<usize>,
}

/// A replay on its way. Positions are those of the history's records.
pub(super) struct Run<'a> {
    history: &'a History,
    /// Acknowledged writes by revision.
    writers: BTreeMap<u64, usize>,
    /// Answers that changed nothing, by the revision that they were given at.
    judged: BTreeMap<u64, Vec<usize>>,
    /// By the revision that was seen.
    seen: BTreeMap<u64, Vec<Seen<'a>>>,
    end: Option<(u64, &'a [Kv])>,
    last: u64,
    /// Writes of unknown outcome in the order of their invocation.
    maybe: Vec<usize>,
    /// Those that have a gap, or are the only ones for one that is still to come.
    taken: BTreeSet<usize>,
    /// (revision, earliest completion of an answer that tells of this revision or a later one), ascending.
    told: Vec<(u64, u64)>,
    /// Values that some guard names: an unseen put of another one needs no name.
    guarded: BTreeSet<&'a Bytes>,
    keys: BTreeMap<Bytes, Possible>,
    hidden: Vec<u64>,
    log: BTreeMap<u64, Change>,
    /// Options to take at the first choice points; later ones take their first.
    plan: &'a [usize],
    /// (option taken, of how many), for each choice point met.
    options: Vec<(usize, usize)>,
}

impl<'a> Run<'a> {
    /// Collects the evidence and checks all that needs no state.
    pub(super) fn gather(
        history: &'a History,
        sightings: &'a [Event],
        end: Option<(u64, &'a [Kv])>,
        plan: &'a [usize],
    ) -> Result<Run<'a>, Failure> {
        let base = history.base();
        let mut run = Run {
            history,
            writers: BTreeMap::new(),
            judged: BTreeMap::new(),
            seen: BTreeMap::new(),
            end,
            last: base.revision,
            maybe: Vec::new(),
            taken: BTreeSet::new(),
            told: Vec::new(),
            guarded: BTreeSet::new(),
            keys: base
                .kvs
                .iter()
                .map(|kv| (kv.key.clone(), Possible::exactly(kv)))
                .collect(),
            hidden: Vec::new(),
            log: BTreeMap::new(),
            plan,
            options: Vec::new(),
        };
        for (at, record) in history.records().iter().enumerate() {
            run.gather_record(at, record)?;
        }
        for event in sightings.iter().filter(|event| event.revision() > base.revision) {
            let kv = if let Event::Put(kv) = event {
                Some(kv)
            } else {
                None
            };
            run.seen.entry(event.revision()).or_default().push(Seen {
                kv,
                key: event.key(),
                by: None,
            });
        }
        run.last = run.last.max(run.seen.keys().next_back().copied().unwrap_or(0));
        if let Some((revision, _)) = end {
            if revision < run.last {
                let message = format!(
                    "the final state is of revision {revision}, but {} was seen",
                    run.last
                );
                return Err(violation(
                    history,
                    message,
                    run.writers.values().next_back().copied().into_iter().collect(),
                ));
            }
            run.last = revision;
        }
        run.maybe.sort_by_key(|at| history.records()[*at].invoked);
        run.told.sort_unstable();
        let mut earliest = u64::MAX;
        for told in run.told.iter_mut().rev() {
            earliest = earliest.min(told.1);
            told.1 = earliest;
        }
        check_order(history)?;
        run.count_gaps()?;
        run.reserve()?;
        Ok(run)
    }

    fn gather_record(&mut self, at: usize, record: &'a Record) -> Result<(), Failure> {
        if let Op::Txn { guards, .. } = &record.op {
            self.guarded
                .extend(guards.iter().filter_map(|guard| guard.value.as_ref()));
        }
        if record.is_maybe_write() {
            self.maybe.push(at);
        }
        let Some((completed, reply)) = record.answer() else {
            return Ok(());
        };
        let revision = reply.revision();
        if revision == 0 {
            return Err(Failure::new(
                Checker::Replay,
                Kind::Malformed,
                "answer without a revision".to_string(),
            )
            .with_operations(self.history, vec![at]));
        }
        if record.changed_the_store() {
            if let Some(other) = self.writers.insert(revision, at) {
                let message = format!("two writes have revision {revision}");
                return Err(violation(self.history, message, vec![other, at]));
            }
        } else {
            self.judged.entry(revision).or_default().push(at);
        }
        for kv in reply.kvs() {
            if kv.mod_revision > revision {
                let message = format!(
                    "the answer is of revision {revision}, but shows {:?} = {}",
                    kv.key,
                    Brief(kv)
                );
                return Err(violation(self.history, message, vec![at]));
            }
            if kv.mod_revision > self.history.base().revision {
                let seen = Seen {
                    kv: Some(kv),
                    key: &kv.key,
                    by: Some(at),
                };
                self.seen.entry(kv.mod_revision).or_default().push(seen);
            }
        }
        self.last = self.last.max(revision);
        self.told.push((revision, completed));
        Ok(())
    }

    /// Before the loop over all revisions: a nonsensical revision must not make it endless.
    fn count_gaps(&self) -> Result<(), Failure> {
        let base = self.history.base().revision;
        let gaps = self.last - base - self.writers.len() as u64;
        if gaps <= self.maybe.len() as u64 {
            return Ok(());
        }
        let missing = (base + 1..=self.last).filter(|revision| !self.writers.contains_key(revision));
        let first: Vec<u64> = missing.take(5).collect();
        let after = self.writers.range(..first[0]).next_back().map(|(_, at)| *at);
        let before = self.writers.range(first[0]..).next().map(|(_, at)| *at);
        let message = format!(
            "{gaps} revisions have no acknowledged writer (the first: {first:?}), but only {} writes ended unknown",
            self.maybe.len()
        );
        Err(violation(
            self.history,
            message,
            after.into_iter().chain(before).collect(),
        ))
    }

    /// Takes the unknown writes that alone can have written a gap that was seen.
    fn reserve(&mut self) -> Result<(), Failure> {
        let gaps: Vec<u64> = self
            .seen
            .keys()
            .copied()
            .filter(|revision| !self.writers.contains_key(revision))
            .collect();
        for revision in gaps {
            match self.writers_of_seen(revision)[..] {
                [] => {
                    let seen = &self.seen[&revision];
                    let what = seen[0]
                        .kv
                        .map_or("a delete".to_string(), |kv| format!("a put of {:?}", kv.value));
                    let message = format!(
                        "revision {revision} was seen as {what}, but no write wrote that: none was acknowledged \
                         with this revision, none of unknown outcome was invoked in time"
                    );
                    let by = seen.iter().filter_map(|seen| seen.by).take(3).collect();
                    return Err(violation(self.history, message, by).on_key(seen[0].key));
                }
                [only] if !self.taken.insert(only) => {
                    let message =
                        format!("revision {revision} and an earlier one can only be the same write's");
                    return Err(violation(self.history, message, vec![only]));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The unknown writes that can have written all that was seen of a gap, by the order of invocation.
    fn writers_of_seen(&self, revision: u64) -> Vec<usize> {
        let fits = |at: &usize| {
            self.seen[&revision]
                .iter()
                .all(|seen| match (&self.history.records()[*at].op, seen.kv) {
                    (Op::Put { key, value }, Some(kv)) => *key == kv.key && *value == kv.value,
                    (Op::Txn { puts, .. }, Some(kv)) => {
                        puts.iter().any(|put| put.key == kv.key && put.value == kv.value)
                    }
                    (Op::Delete { key }, None) => key == seen.key,
                    _ => false,
                })
        };
        self.in_time(revision).iter().copied().filter(fits).collect()
    }

    /// The unknown writes invoked before anyone was told of a revision: the first ones of `maybe`.
    fn in_time(&self, revision: u64) -> &[usize] {
        let deadline = self.deadline(revision);
        let count = self
            .maybe
            .partition_point(|at| self.history.records()[*at].invoked <= deadline);
        &self.maybe[..count]
    }

    fn deadline(&self, revision: u64) -> u64 {
        let at = self.told.partition_point(|(told, _)| *told < revision);
        self.told.get(at).map_or(u64::MAX, |(_, earliest)| *earliest)
    }

    /// The choice points met, as (option taken, of how many).
    pub(super) fn options(&self) -> Vec<(usize, usize)> {
        self.options.clone()
    }

    pub(super) fn into_log(self) -> (u64, BTreeMap<u64, Change>) {
        (self.last, self.log)
    }

    pub(super) fn replay(&mut self) -> Result<(), Failure> {
        let base = self.history.base().revision;
        self.judge(base)?;
        for revision in base + 1..=self.last {
            let writer = match self.writers.get(&revision) {
                Some(&writer) => Some(writer),
                None if self.seen.contains_key(&revision) => Some(self.choose_writer(revision)?),
                None => None,
            };
            match writer {
                Some(writer) => self.apply(revision, writer)?,
                None => self.hide(revision)?,
            }
            self.judge(revision)?;
        }
        self.match_hidden()?;
        match self.end {
            Some((_, kvs)) => self.compare_all(None, kvs, &KeyRange::all()),
            None => Ok(()),
        }
    }

    fn choose_writer(&mut self, revision: u64) -> Result<usize, Failure> {
        let fitting = self.writers_of_seen(revision);
        let alone = fitting.len() == 1;
        // The latest first: one that was invoked early is of more use to a hidden gap.
        let able: Vec<usize> = fitting
            .iter()
            .rev()
            .copied()
            .filter(|at| (alone || !self.taken.contains(at)) && self.can_apply(*at))
            .collect();
        let point = self.options.len();
        let option = if able.len() > 1 {
            self.plan.get(point).copied().unwrap_or(0)
        } else {
            0
        };
        let Some(&writer) = able.get(option) else {
            let message = format!(
                "revision {revision} was seen, but the unknown writes of just that cannot have written it: another \
                 gap needs them, their guards did not hold, or nothing was there to delete"
            );
            return Err(violation(
                self.history,
                message,
                fitting.into_iter().take(4).collect(),
            ));
        };
        if able.len() > 1 {
            self.options.push((option, able.len()));
        }
        self.taken.insert(writer);
        Ok(writer)
    }

    fn can_apply(&self, at: usize) -> bool {
        match &self.history.records()[at].op {
            Op::Delete { key } => self.keys.get(key).is_some_and(Possible::may_be_present),
            Op::Txn { guards, .. } => guards.iter().all(|guard| match self.keys.get(&guard.key) {
                Some(possible) => possible.may_have(guard.value.as_ref()),
                None => guard.value.is_none(),
            }),
            _ => true,
        }
    }

    /// Applies a known writer of a revision and holds what was seen of that revision against it.
    fn apply(&mut self, revision: u64, writer: usize) -> Result<(), Failure> {
        let record = &self.history.records()[writer];
        let mut written: Vec<&Bytes> = Vec::new();
        match &record.op {
            Op::Put { key, value } => {
                possible(&mut self.keys, key).put(value, revision);
                written.push(key);
            }
            Op::Delete { key } => {
                if !possible(&mut self.keys, key).delete() {
                    let message = format!("revision {revision} deleted a key that was absent");
                    return Err(self.against(key, writer, message));
                }
                written.push(key);
            }
            Op::Txn { guards, puts } => {
                self.expect_guards(writer, guards)?;
                for Pair { key, value } in puts {
                    possible(&mut self.keys, key).put(value, revision);
                    written.push(key);
                }
            }
            Op::Get { .. } | Op::Range(_) => unreachable!("a read writes no revision"),
        }
        for seen in self.seen.remove(&revision).unwrap_or_default() {
            let possible = possible(&mut self.keys, seen.key);
            if !written.contains(&seen.key) || !possible.keep_exactly(seen.kv) {
                let must = possible.describe();
                let was = seen.kv.map_or("deleted".to_string(), |kv| Brief(kv).to_string());
                let message = format!("at revision {revision} the key was seen as {was}, but must be {must}");
                let shown_by = seen.by.into_iter().chain([writer]).collect();
                return Err(violation(self.history, message, shown_by).on_key(seen.key));
            }
        }
        let mut events = Vec::new();
        for key in written {
            let possible = possible(&mut self.keys, key);
            possible.writer = Some(writer);
            events.push(possible.expected(key));
        }
        self.log.insert(revision, Change::Known { writer, events });
        Ok(())
    }

    /// Adds what the unknown writes could have done at a revision of which nothing is known.
    fn hide(&mut self, revision: u64) -> Result<(), Failure> {
        let candidates: Vec<usize> = self
            .in_time(revision)
            .iter()
            .copied()
            .filter(|at| !self.taken.contains(at))
            .collect();
        let mut hidden_max: BTreeMap<&Bytes, u32> = BTreeMap::new();
        for at in &candidates {
            for (key, _) in writes(&self.history.records()[*at].op) {
                *hidden_max.entry(key).or_default() += 1;
            }
        }
        // Each candidate alone may have written this revision: all start from the states before it.
        let mut before: BTreeMap<&Bytes, States> = BTreeMap::new();
        // Unnamed values make most of them alike.
        let mut tried = BTreeSet::new();
        let able: Vec<usize> = candidates
            .iter()
            .copied()
            .filter(|at| self.can_apply(*at))
            .collect();
        for at in able {
            let record = &self.history.records()[at];
            let guards = if let Op::Txn { guards, .. } = &record.op {
                &guards[..]
            } else {
                &[]
            };
            for (key, value) in writes(&record.op) {
                let guard = guards.iter().find(|guard| guard.key == key);
                let named = value.filter(|value| self.guarded.contains(value));
                if !tried.insert((key, guard, value.is_some(), named)) {
                    continue;
                }
                let possible = possible(&mut self.keys, key);
                let before = before.entry(key).or_insert_with(|| possible.states.clone());
                match value {
                    Some(_) => possible.maybe_put(before, guard, named, revision, hidden_max[key]),
                    None => possible.maybe_delete(before, hidden_max[key]),
                }
            }
        }
        if let Some(key) = before
            .keys()
            .find(|key| self.keys[**key].states.len() > STATES_MAX)
        {
            let message = format!("more than {STATES_MAX} possible states at revision {revision}");
            return Err(Failure::new(Checker::Replay, Kind::Undecided, message).on_key(key));
        }
        self.hidden.push(revision);
        self.log.insert(revision, Change::Hidden { candidates });
        Ok(())
    }

    /// Every hidden gap needs an unknown write of its own. Those in time for one gap are so for all later
    /// ones: if any assignment exists, the one in the order of invocations does.
    fn match_hidden(&self) -> Result<(), Failure> {
        let mut free = self.maybe.iter().filter(|at| !self.taken.contains(at));
        for &revision in &self.hidden {
            let writer = free
                .next()
                .filter(|at| self.history.records()[**at].invoked <= self.deadline(revision));
            if writer.is_none() {
                let message = format!(
                    "nobody can have written revision {revision}: every write of unknown outcome that was invoked \
                     before it was told of has another revision"
                );
                let next = self.writers.range(revision..).next();
                return Err(violation(
                    self.history,
                    message,
                    next.map(|(_, at)| *at).into_iter().collect(),
                ));
            }
        }
        Ok(())
    }

    /// Holds the answers that were given at a revision, and changed nothing, against the states there.
    fn judge(&mut self, revision: u64) -> Result<(), Failure> {
        for at in self.judged.remove(&revision).unwrap_or_default() {
            let record = &self.history.records()[at];
            let Some((_, reply)) = record.answer() else {
                continue;
            };
            match (&record.op, reply) {
                (Op::Get { key }, Reply::Get { kv, .. }) => {
                    let possible = possible(&mut self.keys, key);
                    if !possible.keep_exactly(kv.as_ref()) {
                        return Err(self.against(key, at, "the answer is wrong".to_string()));
                    }
                }
                (Op::Range(range), Reply::Range { kvs, .. }) => self.compare_all(Some(at), kvs, range)?,
                (Op::Delete { key }, _) => {
                    if !possible(&mut self.keys, key).keep_having(None) {
                        return Err(self.against(key, at, "the key was there to delete".to_string()));
                    }
                }
                (Op::Txn { guards, .. }, Reply::Txn { succeeded: true, .. }) => {
                    self.expect_guards(at, guards)?
                }
                (Op::Txn { guards, .. }, _) => self.expect_failed_guard(at, guards)?,
                (Op::Put { .. } | Op::Get { .. } | Op::Range(_), _) => {
                    unreachable!(
                        "validated: the reply is of the operation's kind, and a put changes the store"
                    )
                }
            }
        }
        Ok(())
    }

    fn expect_guards(&mut self, at: usize, guards: &[Guard]) -> Result<(), Failure> {
        for Guard { key, value } in guards {
            if !possible(&mut self.keys, key).keep_having(value.as_ref()) {
                return Err(self.against(key, at, "succeeded though this guard did not hold".to_string()));
            }
        }
        Ok(())
    }

    fn expect_failed_guard(&mut self, at: usize, guards: &[Guard]) -> Result<(), Failure> {
        if let [Guard { key, value }] = guards {
            if !possible(&mut self.keys, key).keep_not_having(value.as_ref()) {
                return Err(self.against(key, at, "failed though its guard held".to_string()));
            }
            return Ok(());
        }
        for Guard { key, value } in guards {
            if possible(&mut self.keys, key).may_not_have(value.as_ref()) {
                return Ok(());
            }
        }
        Err(violation(
            self.history,
            "failed though all guards held".to_string(),
            vec![at],
        ))
    }

    /// Compares all keys of a range with what was found there, by an operation or at the end.
    fn compare_all(&mut self, by: Option<usize>, kvs: &[Kv], range: &KeyRange) -> Result<(), Failure> {
        let found: BTreeMap<&Bytes, &Kv> = kvs.iter().map(|kv| (&kv.key, kv)).collect();
        if found.len() < kvs.len() {
            let message = "a key was found twice in one state".to_string();
            return Err(Failure::new(Checker::Replay, Kind::Malformed, message));
        }
        for &key in found.keys() {
            possible(&mut self.keys, key);
        }
        let in_range = self
            .keys
            .range_mut::<Bytes, _>(&range.start..)
            .take_while(|(key, _)| range.contains(key));
        for (key, possible) in in_range {
            let found = found.get(key).copied();
            if !possible.keep_exactly(found) {
                let found = found.map_or("absent".to_string(), |kv| Brief(kv).to_string());
                let message = format!(
                    "found {found}, but must be {}; last written by",
                    possible.describe()
                );
                let shown = possible.writer.into_iter().chain(by).collect();
                return Err(violation(self.history, message, shown).on_key(key));
            }
        }
        Ok(())
    }

    /// A failure of an operation against the possible states of a key, with the key's last writer.
    fn against(&self, key: &Bytes, at: usize, problem: String) -> Failure {
        let possible = self.keys.get(key).cloned().unwrap_or_default();
        let message = format!("{problem}: the key must be {}", possible.describe());
        violation(
            self.history,
            message,
            possible.writer.into_iter().chain([at]).collect(),
        )
        .on_key(key)
    }
}

/// The possible states of a key, which is absent if it was never heard of.
fn possible<'k>(keys: &'k mut BTreeMap<Bytes, Possible>, key: &Bytes) -> &'k mut Possible {
    if !keys.contains_key(key) {
        keys.insert(key.clone(), Possible::default());
    }
    keys.get_mut(key).expect("inserted above")
}

/// What a write would do to which keys; `None`: delete it.
fn writes(op: &Op) -> Vec<(&Bytes, Option<&Bytes>)> {
    match op {
        Op::Put { key, value } => vec![(key, Some(value))],
        Op::Delete { key } => vec![(key, None)],
        Op::Txn { puts, .. } => puts.iter().map(|put| (&put.key, Some(&put.value))).collect(),
        Op::Get { .. } | Op::Range(_) => Vec::new(),
    }
}

/// Real time: an answer's revision is not smaller than any that was known before its operation was invoked,
/// and larger if the operation wrote.
fn check_order(history: &History) -> Result<(), Failure> {
    let records = history.records();
    let mut invocations: Vec<usize> = (0..records.len())
        .filter(|at| records[*at].answer().is_some())
        .collect();
    invocations.sort_by_key(|at| records[*at].invoked);
    let mut completions: Vec<(u64, u64, usize)> = Vec::new();
    for (at, record) in records.iter().enumerate() {
        completions.extend(
            record
                .answer()
                .map(|(completed, reply)| (completed, reply.revision(), at)),
        );
    }
    completions.sort_unstable();
    let mut completions = completions.into_iter().peekable();
    let mut floor = (history.base().revision, None);
    for at in invocations {
        while let Some((_, revision, by)) = completions.next_if(|(time, ..)| *time < records[at].invoked) {
            if revision > floor.0 {
                floor = (revision, Some(by));
            }
        }
        let (_, reply) = records[at].answer().expect("only answered ones were collected");
        let wrote = records[at].changed_the_store();
        if reply.revision() < floor.0 || (wrote && reply.revision() == floor.0) {
            let message = format!(
                "revision {} came after revision {} had been seen{}",
                reply.revision(),
                floor.0,
                if wrote { ", and is a write's" } else { "" },
            );
            return Err(violation(
                history,
                message,
                floor.1.into_iter().chain([at]).collect(),
            ));
        }
    }
    Ok(())
}
