//! The states that one key may be in, given what is known.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{Brief, Event, Guard, Kv};

/// States of one key kept apart. Only unseen writes multiply them: roughly the hidden gaps times the square
/// of the unknown writes of the key that may have filled one.
pub(super) const STATES_MAX: usize = 10_000;

/// What a key that exists may hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    /// `None`: a value that no answer showed and no guard names.
    pub(super) value: Option<Bytes>,
    pub(super) create_revision: u64,
    /// 0: a hidden gap, so that no answer can have shown this state.
    pub(super) mod_revision: u64,
    pub(super) version: u64,
}

impl Slot {
    fn is(&self, kv: &Kv) -> bool {
        self.value.as_ref() == Some(&kv.value)
            && self.create_revision == kv.create_revision
            && self.mod_revision == kv.mod_revision
            && self.version == kv.version
    }
}

/// States (`None`: absent), each with the least number of hidden writes of this key that lead to it.
pub(super) type States = BTreeMap<Option<Slot>, u32>;

/// The possible states of a key, at least one.
#[derive(Clone, Debug)]
pub(super) struct Possible {
    pub(super) states: States,
    /// Who wrote it last, for messages.
    pub(super) writer: Option<usize>,
}

impl Default for Possible {
    fn default() -> Possible {
        Possible {
            states: States::from([(None, 0)]),
            writer: None,
        }
    }
}

impl Possible {
    pub(super) fn exactly(kv: &Kv) -> Possible {
        let Kv {
            value,
            create_revision,
            mod_revision,
            version,
            ..
        } = kv.clone();
        let slot = Slot {
            value: Some(value),
            create_revision,
            mod_revision,
            version,
        };
        Possible {
            states: States::from([(Some(slot), 0)]),
            writer: None,
        }
    }

    pub(super) fn may_be_present(&self) -> bool {
        self.states.keys().any(Option::is_some)
    }

    pub(super) fn may_have(&self, value: Option<&Bytes>) -> bool {
        self.states.keys().any(|state| has(state, value))
    }

    pub(super) fn may_not_have(&self, value: Option<&Bytes>) -> bool {
        self.states.keys().any(|state| !has(state, value))
    }

    /// Keeps the states in which the key has this value (`None`: is absent). `false`: there are none, and
    /// nothing was changed; as with all `keep_…`.
    pub(super) fn keep_having(&mut self, value: Option<&Bytes>) -> bool {
        self.keep(|state| has(state, value))
    }

    pub(super) fn keep_not_having(&mut self, value: Option<&Bytes>) -> bool {
        self.keep(|state| !has(state, value))
    }

    pub(super) fn keep_exactly(&mut self, kv: Option<&Kv>) -> bool {
        self.keep(|state| match (state, kv) {
            (None, None) => true,
            (Some(slot), Some(kv)) => slot.is(kv),
            _ => false,
        })
    }

    fn keep(&mut self, wanted: impl Fn(&Option<Slot>) -> bool) -> bool {
        let some = self.states.keys().any(&wanted);
        if some {
            self.states.retain(|state, _| wanted(state));
        }
        some
    }

    pub(super) fn put(&mut self, value: &Bytes, revision: u64) {
        for (state, hidden) in std::mem::take(&mut self.states) {
            let slot = after_put(state.as_ref(), Some(value.clone()), revision, revision);
            self.add(Some(slot), hidden);
        }
    }

    fn add(&mut self, state: Option<Slot>, hidden: u32) {
        self.states
            .entry(state)
            .and_modify(|least| *least = hidden.min(*least))
            .or_insert(hidden);
    }

    /// Removes the key; `false` (and nothing was changed) if it is absent for certain.
    pub(super) fn delete(&mut self) -> bool {
        let present = self.may_be_present();
        if present {
            let present = self.states.iter().filter(|(state, _)| state.is_some());
            let least = present.map(|(_, hidden)| *hidden).min();
            self.states = least.map(|hidden| (None, hidden)).into_iter().collect();
        }
        present
    }

    /// What a hidden gap at `revision` may have put, if the key was in one of `before` and this guard held.
    /// At most `hidden_max` hidden gaps can have written this key so far.
    pub(super) fn maybe_put(
        &mut self,
        before: &States,
        guard: Option<&Guard>,
        value: Option<&Bytes>,
        revision: u64,
        hidden_max: u32,
    ) {
        for (state, hidden) in before.iter().filter(|(_, hidden)| **hidden < hidden_max) {
            if guard.is_none_or(|guard| has(state, guard.value.as_ref())) {
                self.add(
                    Some(after_put(state.as_ref(), value.cloned(), revision, 0)),
                    hidden + 1,
                );
            }
        }
    }

    /// What a hidden gap may have deleted.
    pub(super) fn maybe_delete(&mut self, before: &States, hidden_max: u32) {
        for (_, hidden) in before
            .iter()
            .filter(|(state, hidden)| state.is_some() && **hidden < hidden_max)
        {
            self.add(None, hidden + 1);
        }
    }

    pub(super) fn describe(&self) -> String {
        let shown: Vec<String> = self
            .states
            .keys()
            .take(4)
            .map(|state| match state {
                None => "absent".to_string(),
                Some(Slot {
                    value: Some(value),
                    create_revision,
                    mod_revision,
                    version,
                }) if *mod_revision > 0 => {
                    let kv = Kv {
                        key: Bytes::new(),
                        value: value.clone(),
                        create_revision: *create_revision,
                        mod_revision: *mod_revision,
                        version: *version,
                    };
                    Brief(&kv).to_string()
                }
                Some(_) => "something that an unknown write put and nobody saw".to_string(),
            })
            .collect();
        let more = if self.states.len() > shown.len() {
            " or others"
        } else {
            ""
        };
        shown.join(" or ") + more
    }

    /// The event of the put at `revision` that led here, or of a delete.
    pub(super) fn expected(&self, key: &Bytes) -> Expected {
        let value = self.states.keys().flatten().find_map(|slot| slot.value.clone());
        let numbers = self
            .states
            .keys()
            .flatten()
            .map(|slot| (slot.create_revision, slot.version))
            .collect();
        Expected {
            key: key.clone(),
            put: value.map(|value| (value, numbers)),
        }
    }
}

fn has(state: &Option<Slot>, value: Option<&Bytes>) -> bool {
    match (state, value) {
        (None, None) => true,
        (Some(slot), Some(value)) => slot.value.as_ref() == Some(value),
        _ => false,
    }
}

fn after_put(old: Option<&Slot>, value: Option<Bytes>, revision: u64, mod_revision: u64) -> Slot {
    Slot {
        value,
        create_revision: old.map_or(revision, |slot| slot.create_revision),
        mod_revision,
        version: old.map_or(1, |slot| slot.version + 1),
    }
}

/// An event as a watcher must see it: a put of the value with one of these (create revision, version), or a
/// delete.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) key: Bytes,
    put: Option<(Bytes, Vec<(u64, u64)>)>,
}

impl Expected {
    /// Whether an event of this revision is it.
    pub(crate) fn is(&self, event: &Event) -> bool {
        match (&self.put, event) {
            (Some((value, numbers)), Event::Put(kv)) => {
                self.key == kv.key
                    && *value == kv.value
                    && numbers.contains(&(kv.create_revision, kv.version))
            }
            (None, Event::Delete { key, .. }) => self.key == key,
            _ => false,
        }
    }
}
