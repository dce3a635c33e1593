//! `bench watch`: many watchers, and puts at a fixed rate that they are to see.
//!
//! An open loop: a put is due at its time, whatever became of those before, and an event's latency counts from when
//! its put was due. Every watcher must be told of every put of its keys, once, in the order of revisions, with the
//! value that was written; one that misses an event until the run is over makes it fail.

use std::time::{Duration, Instant};

use serde_json::json;

use super::http2::{Connection, Handler};
use super::load::{Figures, PUT, WATCH};
use super::message::{
    Field, Fields, VALUE_HEAD, header_revision, is_value, push_key, push_put, push_varint, put_length,
    varint_field,
};
use super::report::{Errors, Measuring, Report};
use super::{BenchArgs, DRAIN_TIMEOUT, POLL_MAX, await_answers, open};
use crate::failure::{self, Failure};

/// How long all watchers may take to be there.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What a stream or call is for.
enum Call {
    /// A connection's watchers: those with this number and every `connections`th from there.
    Watchers { first: usize },
    /// The put of this number.
    Put(usize),
}

#[derive(Default)]
struct Watcher {
    there: bool,
    events: u64,
    last_revision: i64,
}

/// What is to happen, and what happened.
struct Fan {
    connections: usize,
    watchers: Vec<Watcher>,
    /// Each watcher has a key of its own.
    distinct: bool,
    key_size: usize,
    value_size: usize,
    /// When each put was due.
    due: Vec<Instant>,
    /// For each key, how many puts were acknowledged.
    written: Vec<u64>,
    /// Puts from this one on are counted, up to `counted_end`.
    counted_from: usize,
    counted_end: usize,
    puts_under_way: usize,
    puts: Figures,
    events: Figures,
    now: Instant,
    errors: Errors,
}

impl Fan {
    fn keys(&self) -> usize {
        self.written.len()
    }

    fn is_counted(&self, put: usize) -> bool {
        (self.counted_from..self.counted_end).contains(&put)
    }

    /// `WatchResponse` on a connection's stream.
    fn on_watch(&mut self, first: usize, message: &[u8]) -> Result<(), String> {
        let id =
            usize::try_from(varint_field(message, 2)?).map_err(|_| "a watcher was refused".to_owned())?;
        if varint_field(message, 4)? != 0 {
            return Err(format!("watcher {id} was cancelled"));
        }
        let number = first + id.saturating_sub(1) * self.connections;
        if id == 0 || number >= self.watchers.len() {
            return Err(format!("an answer for watcher {id}, which was never asked for"));
        }
        if varint_field(message, 3)? != 0 {
            self.watchers[number].there = true;
        }
        for (field_number, field) in Fields(message) {
            if let (11, Field::Bytes(event)) = (field_number, field?) {
                self.on_event(number, event)?;
            }
        }
        Ok(())
    }

    fn on_event(&mut self, number: usize, event: &[u8]) -> Result<(), String> {
        let (mut value, mut revision) = (&[][..], 0);
        for (field_number, field) in Fields(event) {
            let (2, Field::Bytes(record)) = (field_number, field?) else {
                continue;
            };
            for (field_number, field) in Fields(record) {
                match (field_number, field?) {
                    (3, Field::Varint(number)) => revision = number as i64,
                    (5, Field::Bytes(bytes)) => value = bytes,
                    _ => {}
                }
            }
        }
        let key = if self.distinct { number } else { 0 };
        if !is_value(value, key as u64, self.value_size) {
            return Err("an event with a value that was never written to its key".to_owned());
        }
        let put = u64::from_le_bytes(value[8..VALUE_HEAD].try_into().expect("eight bytes")) as usize;
        let Some(due) = self.due.get(put).copied() else {
            return Err(format!("an event of put {put}, which was not made"));
        };
        let watcher = &mut self.watchers[number];
        if revision <= watcher.last_revision {
            return Err(format!(
                "an event of revision {revision} after one of {}",
                watcher.last_revision
            ));
        }
        watcher.last_revision = revision;
        watcher.events += 1;
        if self.is_counted(put) {
            self.events.record(self.now.saturating_duration_since(due));
        }
        Ok(())
    }

    /// Notes the watchers that were not told of all puts to their key.
    fn check_complete(&mut self) {
        let missed: u64 = (0..self.watchers.len()).map(|number| self.missed(number)).sum();
        if missed > 0 {
            self.errors.note(format!("{missed} events did not arrive"));
        }
    }

    fn missed(&self, number: usize) -> u64 {
        let key = if self.distinct { number } else { 0 };
        self.written[key].saturating_sub(self.watchers[number].events)
    }

    fn is_complete(&self) -> bool {
        self.puts_under_way == 0 && (0..self.watchers.len()).all(|number| self.missed(number) == 0)
    }
}

impl Handler<Call> for Fan {
    fn message(&mut self, call: &mut Call, message: &[u8]) {
        let checked = match *call {
            Call::Watchers { first } => self.on_watch(first, message),
            Call::Put(_) => header_revision(message).map(|_| ()),
        };
        if let Err(text) = checked {
            self.errors.note(text);
        }
    }

    fn end(&mut self, call: Call, outcome: Result<(), String>) {
        match call {
            Call::Watchers { .. } => {
                let why = outcome.err().unwrap_or_else(|| "no reason was given".to_owned());
                self.errors.note(format!("a watch stream ended: {why}"));
            }
            Call::Put(put) => {
                self.puts_under_way -= 1;
                match outcome {
                    Ok(()) => {
                        let key = put % self.keys();
                        self.written[key] += 1;
                        if self.is_counted(put) {
                            let due = self.due[put];
                            self.puts.record(self.now.saturating_duration_since(due));
                        }
                    }
                    Err(text) => self.errors.note(format!("a put: {text}")),
                }
            }
        }
    }
}

/// The connections: first those with watchers, then one to each server for the puts.
struct Driver {
    connections: Vec<Connection<Call>>,
    fan: Fan,
    in_flight_max: usize,
}

impl Driver {
    /// Sends, waits until something comes or for this long, and handles it.
    fn turn(&mut self, at_most: Duration) -> Result<(), Failure> {
        let lost = |error: std::io::Error| {
            Failure::error(format!(
                "a connection is lost, and with it the run: {}",
                failure::os(&error)
            ))
        };
        for connection in &mut self.connections {
            connection.flush().map_err(lost)?;
        }
        let readable = await_answers(self.connections.iter(), at_most);
        for (connection, readable) in self.connections.iter_mut().zip(readable) {
            if readable {
                self.fan.now = Instant::now();
                connection.receive(&mut self.fan).map_err(lost)?;
            }
        }
        Ok(())
    }

    fn start_watchers(&mut self) -> Result<(), Failure> {
        let (watchers, connections) = (self.fan.watchers.len(), self.fan.connections);
        for first in 0..connections {
            let connection = &mut self.connections[first];
            let stream = connection.open_stream(WATCH, Call::Watchers { first });
            for (id, number) in (first..watchers).step_by(connections).enumerate() {
                let key = if self.fan.distinct { number } else { 0 };
                let request = watch_request(key as u64, 1, self.fan.key_size, id as u64 + 1);
                connection.send(stream, request.len(), |out| out.extend_from_slice(&request));
            }
        }
        let end = Instant::now() + START_TIMEOUT;
        while self.fan.watchers.iter().any(|watcher| !watcher.there) && self.fan.errors.is_empty() {
            if Instant::now() > end {
                return Err(Failure::error("not all watchers were there in time"));
            }
            self.turn(POLL_MAX)?;
        }
        Ok(())
    }

    /// Puts at their times, until `end`.
    fn run(&mut self, start: Instant, rate: u32, end: Instant) -> Result<(), Failure> {
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            let next = loop {
                let next = start + Duration::from_secs(1) * self.fan.due.len() as u32 / rate;
                if next > now || self.fan.puts_under_way >= self.in_flight_max {
                    break next;
                }
                self.put(next);
            };
            self.turn(next.min(end).saturating_duration_since(now).min(POLL_MAX))?;
        }
    }

    fn put(&mut self, due: Instant) {
        let put = self.fan.due.len();
        let (key, key_size, value_size) = (put % self.fan.keys(), self.fan.key_size, self.fan.value_size);
        self.fan.due.push(due);
        self.fan.puts_under_way += 1;
        let writers = self.connections.len() - self.fan.connections;
        let connection = &mut self.connections[self.fan.connections + put % writers];
        let length = put_length(key_size, value_size);
        connection.call(PUT, Call::Put(put), length, |out| {
            push_put(out, key as u64, put as u64, key_size, value_size);
        });
    }
}

/// `WatchRequest { create_request }` for `keys` keys from this one on.
fn watch_request(key: u64, keys: u64, key_size: usize, id: u64) -> Vec<u8> {
    let mut create = Vec::new();
    for (tag, key) in [(0x0a, key), (0x12, key + keys)] {
        create.push(tag);
        push_varint(&mut create, key_size as u64);
        push_key(&mut create, key, key_size);
    }
    create.push(0x38);
    push_varint(&mut create, id);
    let mut request = vec![0x0a];
    push_varint(&mut request, create.len() as u64);
    request.extend_from_slice(&create);
    request
}

/// Runs `bench watch`.
///
/// # Errors
/// The servers cannot be reached; a connection is lost; an event is wrong or does not arrive.
pub fn run(args: &BenchArgs, token: Option<&str>) -> Result<(), Failure> {
    let watchers = args.watchers as usize;
    let connections = usize::from(args.connections).min(watchers);
    let endpoint = |n: usize| args.endpoints[n % args.endpoints.len()].trim();
    let mut stalled = Vec::new();
    for n in 0..usize::from(args.stalled) {
        stalled.push(stalled_watcher(endpoint(n), token, args)?);
    }
    let opened = (0..connections).chain(0..args.endpoints.len());
    let mut driver = Driver {
        connections: opened
            .map(|n| open(endpoint(n), token))
            .collect::<Result<_, _>>()?,
        in_flight_max: args.in_flight as usize,
        fan: Fan {
            connections,
            watchers: (0..watchers).map(|_| Watcher::default()).collect(),
            distinct: args.distinct,
            key_size: args.key_size.into(),
            value_size: args.value_size,
            due: Vec::new(),
            written: vec![0; if args.distinct { watchers } else { 1 }],
            counted_from: usize::MAX,
            counted_end: usize::MAX,
            puts_under_way: 0,
            puts: Figures::new(),
            events: Figures::new(),
            now: Instant::now(),
            errors: Errors::default(),
        },
    };
    driver.start_watchers()?;
    let start = Instant::now();
    let begin = start + args.warmup;
    driver.run(start, args.rate, begin)?;
    driver.fan.counted_from = driver.fan.due.len();
    let measuring = Measuring::start(&args.pids);
    driver.run(start, args.rate, begin + Duration::from_secs(args.seconds))?;
    driver.fan.counted_end = driver.fan.due.len();
    let measured = measuring.end();
    let end = Instant::now() + DRAIN_TIMEOUT;
    while !driver.fan.is_complete() && Instant::now() < end {
        driver.turn(POLL_MAX)?;
    }
    drop(stalled);
    let mut fan = driver.fan;
    fan.check_complete();
    Report {
        setting: json!({
            "mode": "watch",
            "endpoints": args.endpoints,
            "connections": connections,
            "watchers": watchers,
            "rate": args.rate,
            "distinct": args.distinct,
            "stalled": args.stalled,
            "key_size": args.key_size,
            "value_size": args.value_size,
        }),
        kinds: vec![("put", &fan.puts), ("event", &fan.events)],
        in_each: None,
        ops: fan.events.done,
        errors: &fan.errors,
        measured: &measured,
    }
    .print(args.json)
}

/// A watcher of all keys on a connection that nobody reads.
fn stalled_watcher(
    endpoint: &str,
    token: Option<&str>,
    args: &BenchArgs,
) -> Result<Connection<Call>, Failure> {
    let mut connection = open(endpoint, token)?;
    let stream = connection.open_stream(WATCH, Call::Watchers { first: 0 });
    let request = watch_request(0, u64::from(args.watchers), args.key_size.into(), 1);
    connection.send(stream, request.len(), |out| out.extend_from_slice(&request));
    connection
        .flush()
        .map_err(|error| Failure::error(format!("cannot send to {endpoint}: {}", failure::os(&error))))?;
    Ok(connection)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::message::{delimited, push_value};
    use super::*;

    fn fan() -> Fan {
        let now = Instant::now();
        Fan {
            connections: 2,
            watchers: (0..3).map(|_| Watcher::default()).collect(),
            distinct: true,
            key_size: 32,
            value_size: 40,
            due: vec![now; 9],
            written: vec![0; 3],
            counted_from: 0,
            counted_end: usize::MAX,
            puts_under_way: 0,
            puts: Figures::new(),
            events: Figures::new(),
            now,
            errors: Errors::default(),
        }
    }

    /// What a stream is sent for its watcher `id` when `put` wrote `key` at `revision`.
    fn event(id: u8, key: u64, put: u64, revision: u8) -> Vec<u8> {
        let mut value = Vec::new();
        push_value(&mut value, key, put, 40);
        let record = [vec![0x18, revision], delimited(5, &value)].concat();
        [vec![0x10, id], delimited(11, &delimited(2, &record))].concat()
    }

    #[test]
    fn events_are_those_that_were_written_and_in_order() {
        let mut fan = fan();
        // The second watcher of the first connection is number 2.
        fan.on_watch(0, &[0x10, 2, 0x18, 1]).unwrap();
        assert!(fan.watchers[2].there);
        fan.on_watch(0, &event(2, 2, 5, 7)).unwrap();
        assert_eq!((fan.watchers[2].events, fan.events.done), (1, 1));
        let mut refuse = |message: &[u8], expected: &str| {
            let error = fan.on_watch(0, message).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refuse(&event(2, 2, 8, 7), "after one of 7");
        refuse(&event(2, 1, 8, 9), "never written");
        refuse(&event(2, 2, 9, 9), "not made");
        refuse(&event(3, 2, 8, 9), "never asked for");
        refuse(&[0x10, 2, 0x20, 1], "cancelled");
    }

    #[test]
    fn an_event_that_does_not_arrive_fails_the_run() {
        let mut fan = fan();
        fan.written = vec![0, 0, 2];
        fan.on_watch(0, &event(2, 2, 5, 7)).unwrap();
        assert!(!fan.is_complete());
        fan.check_complete();
        assert_eq!(
            fan.errors.texts().collect::<Vec<_>>(),
            ["1 events did not arrive"]
        );
    }

    #[test]
    fn a_watch_request_names_its_keys_and_its_id() {
        let request = watch_request(5, 1, 20, 3);
        let mut expected = vec![0x0a, 46, 0x0a, 20];
        push_key(&mut expected, 5, 20);
        expected.extend_from_slice(&[0x12, 20]);
        push_key(&mut expected, 6, 20);
        expected.extend_from_slice(&[0x38, 3]);
        assert_eq!(request, expected);
    }
}
