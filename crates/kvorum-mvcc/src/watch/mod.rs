//! What watch streams are told of events.

use kvorum_model::Event;

/// What an event weighs in a buffer.
pub(crate) fn event_bytes(event: &Event) -> usize {
    let prev = event
        .prev_kv
        .as_ref()
        .map_or(0, |kv| kv.key.len() + kv.value.len() + 40);
    event.kv.key.len() + event.kv.value.len() + 50 + prev
}
