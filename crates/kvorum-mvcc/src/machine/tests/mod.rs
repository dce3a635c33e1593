//! The state machine against a model, against crashes, and rule by rule.

#![allow(clippy::unwrap_used)]

mod auth;
mod differential;
pub(crate) mod model;
pub(crate) mod random;
mod readers;
mod rules;
mod sessions;

use bytes::Bytes;
use kvorum_model::{Command, Envelope, Origin, PutRequest, SessionRef};

use super::{Applied, ApplyEntry, Options, Payload, StateMachine};
use crate::store::MemStore;

/// An entry of a member for which nobody waits.
pub(crate) fn entry(index: u64, command: Command) -> ApplyEntry {
    timed(index, index * 1000, None, command)
}

fn timed(index: u64, time_ms: u64, session: Option<SessionRef>, command: Command) -> ApplyEntry {
    let origin = Origin {
        member: 7,
        boot: 8,
        seq: 1000 + index,
    };
    let envelope = Envelope {
        time_ms,
        origin,
        session,
        caller: None,
        command,
    };
    ApplyEntry {
        index,
        term: 1 + index / 50,
        payload: Payload::Command(envelope.encode()),
    }
}

pub(crate) fn put(key: &str, value: &str) -> Command {
    let (key, value) = (
        Bytes::copy_from_slice(key.as_bytes()),
        Bytes::copy_from_slice(value.as_bytes()),
    );
    Command::Put(PutRequest {
        key,
        value,
        ..PutRequest::default()
    })
}

pub(crate) fn open(store: MemStore) -> StateMachine<MemStore> {
    open_with(store, 16 * 3000)
}

/// With so much memory for records; with none, every look-up goes by filter, hint or search.
fn open_with(store: MemStore, cache_bytes: usize) -> StateMachine<MemStore> {
    let options = Options {
        cache_bytes,
        hint_bytes: 16 * 200,
        ..Options::default()
    };
    StateMachine::open(store, options).unwrap()
}

/// Applies one command as the next entry.
fn apply(machine: &mut StateMachine<MemStore>, command: Command) -> Applied {
    let index = machine.applied().1 + 1;
    machine
        .apply(&[entry(index, command)])
        .unwrap()
        .replies
        .pop()
        .unwrap()
}
