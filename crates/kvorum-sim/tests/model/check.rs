//! Runs a model: to the end of its space, up to a number of states, or until a planted bug is found.

use std::time::{Duration, SystemTime};

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::model::{Action, Checked, State};
use crate::suite::{Plant, Suite};

/// The larger bounds are searched for so many states; `KVORUM_MODEL_STATES` names another number.
const SEARCH_STATES: usize = 10_000;

fn checked(suite: &Suite) -> Checked {
    Checked {
        suite: suite.clone(),
        sometimes: Vec::new(),
    }
}

/// Examples that a model must reach.
#[macro_export]
macro_rules! reaches {
    ($($name:literal: $condition:expr,)*) => {
        vec![$(stateright::Property::<$crate::model::Checked>::sometimes($name, |_, state: &$crate::model::State| {
            let reached: fn(&$crate::model::State) -> bool = $condition;
            reached(state)
        }),)*]
    };
}

/// The whole space: no rule is ever broken, every example is reached, nothing is left to visit.
pub fn closes(suite: &Suite, sometimes: Vec<Property<Checked>>) {
    let names: Vec<_> = sometimes.iter().map(|property| property.name).collect();
    let model = Checked {
        suite: suite.clone(),
        sometimes,
    };
    let started = now();
    let mut builder = model.checker().finish_when(HasDiscoveries::AnyFailures);
    if let Ok(n) = std::env::var("TRY") {
        builder = builder.target_state_count(n.parse().unwrap());
    }
    let checker = builder.spawn_bfs().join();
    report(suite, "closed", &checker, started);
    refuse_failures(&checker);
    assert!(checker.is_done(), "{}: states are left to visit", suite.name);
    for name in names {
        assert!(checker.discovery(name).is_some(), "{}: never: {name}", suite.name);
    }
}

/// A bounded search: as many states of a larger space as asked for.
pub fn holds_in_a_bounded_search(suite: &Suite) {
    let states = std::env::var("KVORUM_MODEL_STATES").map_or(SEARCH_STATES, |states| {
        states.parse().expect("KVORUM_MODEL_STATES is a number")
    });
    let started = now();
    let builder = checked(suite).checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = builder.target_state_count(states).spawn_bfs().join();
    report(suite, "bounded search", &checker, started);
    refuse_failures(&checker);
}

/// The suite with a bug planted in the shell: it must find one of these rules broken.
pub fn finds(suite: &Suite, plant: Plant, rules: &[&str]) {
    let suite = Suite {
        plant: Some(plant),
        ..suite.clone()
    };
    let started = now();
    let builder = checked(&suite).checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = builder.spawn_bfs().join();
    report(&suite, &format!("{plant:?}"), &checker, started);
    let found: Vec<_> = checker.discoveries().into_keys().collect();
    assert!(
        found.iter().any(|name| rules.contains(name)),
        "{} does not find {plant:?}: {found:?}",
        suite.name
    );
}

#[allow(clippy::disallowed_methods)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn report(suite: &Suite, what: &str, checker: &impl Checker<Checked>, started: SystemTime) {
    let took = now().duration_since(started).unwrap_or(Duration::ZERO);
    println!(
        "{}, {what}: {} states, {} unique, depth {}, {:.1} s",
        suite.name,
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        took.as_secs_f64()
    );
}

/// Panics with the shortest way to a broken rule.
fn refuse_failures(checker: &impl Checker<Checked>) {
    let properties = checker.model().properties();
    for property in properties {
        if !property.expectation.discovery_is_failure() {
            continue;
        }
        if let Some(path) = checker.discovery(property.name) {
            for (state, action) in path.into_vec() {
                println!("{}", describe(&state, action));
            }
            panic!("{}: not so: {}", checker.model().suite.name, property.name);
        }
    }
}

fn describe(state: &State, action: Option<Action>) -> String {
    let members = state.members.iter().map(|member| {
        let (raft, disk) = (&member.raft, &member.disk);
        let (term, last, commit) = (raft.term(), raft.last(), raft.commit());
        format!(
            "[{:?} {term} last {}@{} commit {commit}, disk {} for {} last {}@{}{}]",
            raft.role(),
            last.index,
            last.term,
            disk.hard_state.term,
            disk.hard_state.vote,
            disk.last().index,
            disk.last().term,
            raft.failure()
                .map_or(String::new(), |why| format!(" FATAL {why}")),
        )
    });
    let members: Vec<_> = members.collect();
    let next = match action {
        Some(Action::Deliver(at)) => format!("deliver {:?}", state.network[at].message),
        Some(Action::Duplicate(at)) => format!("deliver, and again later, {:?}", state.network[at].message),
        Some(other) => format!("{other:?}"),
        None => format!("broken: {:?}", state.broken),
    };
    format!("{} at {}\n{next}", members.join(" "), state.now)
}
