//! What is asked, and whether what is answered can be true.
//!
//! A value is made from its key and a sequence number, both of which stand in it, so that every value read can
//! be checked in full without remembering what was written. A put must get a revision that no other put got and
//! that is above every revision acknowledged before it was sent; a linearizable get must not return a record older
//! than the newest one acknowledged for its key before it was sent.

use std::collections::BTreeMap;
use std::time::Instant;

use hdrhistogram::Histogram;

use super::http2::{Connection, Handler};

/// The methods called, by their numbers below.
pub const PATHS: [&str; 3] = [
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Txn",
];
const PUT: usize = 0;
const RANGE: usize = 1;
const TXN: usize = 2;

/// Bytes of a value that hold its key's number and its sequence number.
pub const VALUE_HEAD: usize = 16;
/// Revisions by which one answer may be ahead of the first: beyond, it is not believed.
const REVISIONS_MAX: u64 = 1 << 36;
/// Different error texts that are kept.
const ERROR_TEXTS_MAX: usize = 16;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Keys that there are.
    pub key_space: u64,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Share of gets, 0 to 100.
    pub read_percent: u8,
    /// One key after another, instead of at random.
    pub sequential: bool,
    /// Local reads.
    pub serializable: bool,
    /// Puts of one transaction, of keys in a row; 0: single puts.
    pub txn_puts: u64,
}

/// One call under way.
#[derive(Debug)]
pub struct Call {
    put: bool,
    key: u64,
    /// How many keys it writes, from `key` on.
    keys: u64,
    sent: Instant,
    /// The least revision that the answer may have.
    floor: i64,
    complaint: Option<String>,
}

impl Call {
    /// A read that nobody checks.
    pub fn probe(now: Instant) -> Self {
        Call {
            put: false,
            key: 0,
            keys: 0,
            sent: now,
            floor: 0,
            complaint: None,
        }
    }
}

/// Figures of one kind of operation.
pub struct Figures {
    /// Operations that were answered rightly.
    pub done: u64,
    /// Their latencies in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Figures {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are legal");
        Figures { done: 0, latency }
    }
}

/// Makes calls and checks their answers.
pub struct Load {
    plan: Plan,
    random: fastrand::Rng,
    sequence: u64,
    /// Keys that the filling has not written yet start here.
    fill_next: u64,
    /// When answers now arrive.
    pub now: Instant,
    /// Highest revision acknowledged.
    acknowledged: i64,
    /// For each key, the highest revision acknowledged for it.
    floors: Vec<i64>,
    base_revision: i64,
    /// One bit for each revision above the base that some put got.
    seen: Vec<u64>,
    /// Whether answers count.
    pub counting: bool,
    pub puts: Figures,
    pub gets: Figures,
    /// Calls that failed or were answered wrongly, counted or not.
    pub errors: u64,
    /// What was wrong, and how often.
    pub error_texts: BTreeMap<String, u64>,
    /// Calls under way.
    pub in_flight: u64,
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The bytes of a value behind its head.
fn fill(key: u64, sequence: u64) -> impl Iterator<Item = [u8; 8]> {
    let mut state = key.rotate_left(32) ^ sequence;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(state).to_le_bytes()
    })
}

fn push_value(out: &mut Vec<u8>, key: u64, sequence: u64, size: usize) {
    let end = out.len() + size;
    out.extend_from_slice(&key.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    let mut fill = fill(key, sequence);
    while out.len() < end {
        out.extend_from_slice(&fill.next().expect("it is endless"));
    }
    out.truncate(end);
}

/// Whether a value is one that was made for this key.
fn is_value(value: &[u8], key: u64, size: usize) -> bool {
    let Some((head, rest)) = value.split_at_checked(VALUE_HEAD) else {
        return false;
    };
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    value.len() == size
        && number(0) == key
        && rest
            .chunks(8)
            .zip(fill(key, number(8)))
            .all(|(found, made)| found == &made[..found.len()])
}

const KEY_PREFIX: &[u8] = b"bench/";
/// Shortest key: the prefix and as many digits as any number of keys takes.
pub const KEY_SIZE_MIN: usize = 20;

fn push_key(out: &mut Vec<u8>, key: u64, size: usize) {
    let start = out.len();
    out.extend_from_slice(KEY_PREFIX);
    out.resize(start + size, b'0');
    let mut rest = key;
    for digit in out[start + KEY_PREFIX.len()..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// A `PutRequest`.
fn push_put(out: &mut Vec<u8>, plan: &Plan, key: u64, sequence: u64) {
    out.push(0x0a);
    push_varint(out, plan.key_size as u64);
    push_key(out, key, plan.key_size);
    out.push(0x12);
    push_varint(out, plan.value_size as u64);
    push_value(out, key, sequence, plan.value_size);
}

fn varint_length(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Load {
    /// Nothing asked yet; the store is at `base_revision`.
    pub fn new(plan: Plan, base_revision: i64, seed: u64, now: Instant) -> Self {
        Load {
            random: fastrand::Rng::with_seed(seed),
            // So that values of different runs differ.
            sequence: seed << 32,
            fill_next: 0,
            now,
            acknowledged: base_revision,
            floors: vec![0; usize::try_from(plan.key_space).expect("the key space was checked")],
            base_revision,
            seen: Vec::new(),
            counting: false,
            puts: Figures::new(),
            gets: Figures::new(),
            errors: 0,
            error_texts: BTreeMap::new(),
            in_flight: 0,
            plan,
        }
    }

    /// Starts one call of the plan's mix.
    pub fn issue(&mut self, connection: &mut Connection<Call>) {
        let key = match self.plan.sequential {
            true => {
                self.fill_next = (self.fill_next + 1) % self.plan.key_space;
                self.fill_next
            }
            false => self.random.u64(..self.plan.key_space),
        };
        match self.plan.read_percent {
            0 if self.plan.txn_puts > 0 => self.txn(connection, key),
            0 => self.put(connection, key),
            100 => self.get(connection, key),
            percent if self.random.u8(..100) < percent => self.get(connection, key),
            _ => self.put(connection, key),
        }
    }

    /// Starts the put of the next key that is to be filled; false if there is none.
    pub fn issue_fill(&mut self, connection: &mut Connection<Call>) -> bool {
        if self.fill_next >= self.plan.key_space {
            return false;
        }
        self.put(connection, self.fill_next);
        self.fill_next += 1;
        true
    }

    /// Bytes of a `PutRequest`.
    fn put_length(&self) -> usize {
        let (key_size, value_size) = (self.plan.key_size, self.plan.value_size);
        let sizes = varint_length(key_size as u64) + varint_length(value_size as u64);
        2 + sizes + key_size + value_size
    }

    /// A call that writes keys from this one on.
    fn write(&mut self, key: u64, keys: u64) -> Call {
        self.in_flight += 1;
        Call {
            put: true,
            key,
            keys,
            sent: self.now,
            floor: self.acknowledged + 1,
            complaint: None,
        }
    }

    fn put(&mut self, connection: &mut Connection<Call>, key: u64) {
        self.sequence += 1;
        let (length, call) = (self.put_length(), self.write(key, 1));
        connection.call(PUT, call, length, |out| {
            push_put(out, &self.plan, key, self.sequence)
        });
    }

    /// `TxnRequest { success: [RequestOp { request_put }, …] }`
    fn txn(&mut self, connection: &mut Connection<Call>, key: u64) {
        let puts = self.plan.txn_puts;
        let (put_length, call) = (self.put_length(), self.write(key, puts));
        let op_length = 1 + varint_length(put_length as u64) + put_length;
        let length = puts as usize * (1 + varint_length(op_length as u64) + op_length);
        connection.call(TXN, call, length, |out| {
            for n in 0..puts {
                self.sequence += 1;
                for bytes in [op_length, put_length] {
                    out.push(0x12);
                    push_varint(out, bytes as u64);
                }
                push_put(out, &self.plan, (key + n) % self.plan.key_space, self.sequence);
            }
        });
    }

    fn get(&mut self, connection: &mut Connection<Call>, key: u64) {
        self.in_flight += 1;
        let (key_size, serializable) = (self.plan.key_size, self.plan.serializable);
        let length = 1 + varint_length(key_size as u64) + key_size + if serializable { 2 } else { 0 };
        let floor = if serializable {
            0
        } else {
            self.floors[key as usize]
        };
        let call = Call {
            put: false,
            key,
            keys: 1,
            sent: self.now,
            floor,
            complaint: None,
        };
        connection.call(RANGE, call, length, |out| {
            out.push(0x0a);
            push_varint(out, key_size as u64);
            push_key(out, key, key_size);
            if serializable {
                out.extend_from_slice(&[0x38, 1]);
            }
        });
    }

    fn check_put(&mut self, call: &Call, message: &[u8]) -> Result<(), String> {
        let revision = header_revision(message)?;
        if revision < call.floor {
            return Err(format!(
                "a put got revision {revision} after {} was acknowledged",
                call.floor - 1
            ));
        }
        let ahead = u64::try_from(revision - self.base_revision - 1).unwrap_or(u64::MAX);
        if ahead > REVISIONS_MAX {
            return Err(format!(
                "a put got revision {revision}, far ahead of {}",
                self.base_revision
            ));
        }
        let (word, bit) = ((ahead / 64) as usize, 1u64 << (ahead % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            return Err(format!("two puts got revision {revision}"));
        }
        self.seen[word] |= bit;
        self.acknowledged = self.acknowledged.max(revision);
        for key in call.key..call.key + call.keys {
            let floor = &mut self.floors[(key % self.plan.key_space) as usize];
            *floor = (*floor).max(revision);
        }
        Ok(())
    }

    /// A transaction that cannot fail must have written.
    fn check_txn(&mut self, call: &Call, message: &[u8]) -> Result<(), String> {
        match varint_field(message, 2)? {
            1 => self.check_put(call, message),
            _ => Err("a transaction without conditions did not succeed".to_owned()),
        }
    }

    fn check_get(&self, call: &Call, message: &[u8]) -> Result<(), String> {
        let (mut records, mut revision) = (0, 0);
        for (number, field) in Fields(message) {
            match (number, field?) {
                (1, Field::Bytes(header)) => revision = varint_field(header, 3)?,
                (2, Field::Bytes(record)) => {
                    records += 1;
                    self.check_record(call, record)?;
                }
                _ => {}
            }
        }
        match records {
            1 if revision > 0 => Ok(()),
            1 => Err("a get was answered without a revision".to_owned()),
            0 => Err("a get found no record of a key that was written".to_owned()),
            _ => Err("a get of one key found several records".to_owned()),
        }
    }

    fn check_record(&self, call: &Call, record: &[u8]) -> Result<(), String> {
        let (mut key, mut value, mut mod_revision) = (&[][..], &[][..], 0);
        for (number, field) in Fields(record) {
            match (number, field?) {
                (1, Field::Bytes(bytes)) => key = bytes,
                (5, Field::Bytes(bytes)) => value = bytes,
                (3, Field::Varint(number)) => mod_revision = number as i64,
                _ => {}
            }
        }
        let mut expected = Vec::with_capacity(self.plan.key_size);
        push_key(&mut expected, call.key, self.plan.key_size);
        if key != expected {
            return Err("a get returned another key".to_owned());
        }
        if !is_value(value, call.key, self.plan.value_size) {
            return Err("a get returned a value that was never written to its key".to_owned());
        }
        if mod_revision < call.floor {
            return Err(format!(
                "a stale read: a get returned revision {mod_revision} of a key whose revision {} was acknowledged \
                 before",
                call.floor
            ));
        }
        Ok(())
    }

    /// Notes an error that belongs to no call.
    pub fn fail(&mut self, text: String) {
        self.errors += 1;
        if self.error_texts.len() < ERROR_TEXTS_MAX || self.error_texts.contains_key(&text) {
            *self.error_texts.entry(text).or_default() += 1;
        }
    }
}

impl Handler<Call> for Load {
    fn message(&mut self, call: &mut Call, message: &[u8]) {
        let checked = match call.put {
            true if self.plan.txn_puts > 0 && call.keys == self.plan.txn_puts => {
                self.check_txn(call, message)
            }
            true => self.check_put(call, message),
            false => self.check_get(call, message),
        };
        call.complaint = checked.err();
    }

    fn end(&mut self, call: Call, outcome: Result<(), String>) {
        self.in_flight -= 1;
        match outcome.and_then(|()| call.complaint.map_or(Ok(()), Err)) {
            Ok(()) if self.counting => {
                let figures = if call.put { &mut self.puts } else { &mut self.gets };
                figures.done += 1;
                let nanos = self.now.saturating_duration_since(call.sent).as_nanos();
                figures
                    .latency
                    .saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX).max(1));
            }
            Ok(()) => {}
            Err(text) => self.fail(text),
        }
    }
}

/// The revision in the header of any answer.
pub fn header_revision(message: &[u8]) -> Result<i64, String> {
    for (number, field) in Fields(message) {
        if let (1, Field::Bytes(header)) = (number, field?) {
            return varint_field(header, 3);
        }
    }
    Err("an answer without a header".to_owned())
}

fn varint_field(message: &[u8], wanted: u64) -> Result<i64, String> {
    for (number, field) in Fields(message) {
        match field? {
            Field::Varint(value) if number == wanted => return Ok(value as i64),
            _ => {}
        }
    }
    Ok(0)
}

enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of a fixed size; none that matters here.
    Fixed,
}

/// The fields of a protobuf message. Ends after the first malformed one.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Result<Field<'a>, String>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        let (number, field) = field.map_or((0, Err("a malformed answer".to_owned())), |(n, field)| {
            (n, Ok(field))
        });
        Some((number, field))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, field))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (at, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at).min(63);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(serializable: bool) -> Load {
        let plan = Plan {
            key_space: 10,
            key_size: 32,
            value_size: 50,
            read_percent: 50,
            sequential: false,
            serializable,
            txn_puts: 0,
        };
        Load::new(plan, 100, 7, Instant::now())
    }

    fn call(put: bool, key: u64, floor: i64) -> Call {
        Call {
            put,
            key,
            keys: 1,
            sent: Instant::now(),
            floor,
            complaint: None,
        }
    }

    fn delimited(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        push_varint(&mut out, bytes.len() as u64);
        out.extend_from_slice(bytes);
        out
    }

    fn header(revision: u64) -> Vec<u8> {
        let mut header = vec![0x08, 0x01, 0x18];
        push_varint(&mut header, revision);
        delimited(1, &header)
    }

    fn answer(key: u64, value_of: u64, mod_revision: u64) -> Vec<u8> {
        let (mut k, mut v) = (Vec::new(), Vec::new());
        push_key(&mut k, key, 32);
        push_value(&mut v, value_of, 3, 50);
        let mut record = delimited(1, &k);
        record.push(0x18);
        push_varint(&mut record, mod_revision);
        record.extend(delimited(5, &v));
        let mut message = header(mod_revision + 5);
        message.extend(delimited(2, &record));
        message
    }

    #[test]
    fn keys_and_values_are_made_and_recognised() {
        let mut key = Vec::new();
        push_key(&mut key, 1234, 32);
        assert_eq!(key, b"bench/00000000000000000000001234");
        for size in [16, 17, 24, 50, 256] {
            let mut value = Vec::new();
            push_value(&mut value, 5, 9, size);
            assert!(is_value(&value, 5, size));
            assert!(!is_value(&value, 6, size));
            assert!(!is_value(&value, 5, size + 1));
            if size > VALUE_HEAD {
                *value.last_mut().unwrap() ^= 1;
                assert!(!is_value(&value, 5, size));
            }
        }
        for (value, length) in [
            (0, 1),
            (127, 1),
            (128, 2),
            (16_383, 2),
            (16_384, 3),
            (u64::MAX, 10),
        ] {
            let mut out = Vec::new();
            push_varint(&mut out, value);
            assert_eq!((varint_length(value), out.len()), (length, length));
        }
    }

    #[test]
    fn puts_must_get_new_and_rising_revisions() {
        let mut load = load(false);
        load.check_put(&call(true, 1, 101), &header(103)).unwrap();
        load.check_put(&call(true, 2, 101), &header(102)).unwrap();
        let twice = load.check_put(&call(true, 3, 101), &header(103)).unwrap_err();
        assert!(twice.contains("two puts got revision 103"), "{twice}");
        let late = load.check_put(&call(true, 3, 104), &header(101)).unwrap_err();
        assert!(late.contains("after 103 was acknowledged"), "{late}");
        assert!(
            load.check_put(&call(true, 3, 101), &header(1 << 60))
                .unwrap_err()
                .contains("far ahead")
        );
        assert!(
            load.check_put(&call(true, 3, 101), b"")
                .unwrap_err()
                .contains("without a header")
        );
        assert!(
            load.check_put(&call(true, 3, 101), &[0x0a, 0x7f])
                .unwrap_err()
                .contains("malformed")
        );
        assert_eq!((load.acknowledged, load.floors[1]), (103, 103));
    }

    #[test]
    fn a_transaction_must_have_written_all_its_keys() {
        let mut load = load(false);
        load.plan.txn_puts = 4;
        let txn = Call {
            keys: 4,
            ..call(true, 8, 101)
        };
        let failed = load.check_txn(&txn, &header(105)).unwrap_err();
        assert!(failed.contains("did not succeed"), "{failed}");
        let succeeded = [header(105), vec![0x10, 1]].concat();
        load.check_txn(&txn, &succeeded).unwrap();
        let written: Vec<usize> = (0..10).filter(|key| load.floors[*key] == 105).collect();
        assert_eq!(written, [0, 1, 8, 9]);
    }

    #[test]
    fn gets_must_return_what_was_written_and_nothing_stale() {
        let load = load(false);
        load.check_get(&call(false, 4, 110), &answer(4, 4, 110)).unwrap();
        let check = |message: &[u8], expected: &str| {
            let error = load.check_get(&call(false, 4, 110), message).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(&answer(4, 4, 109), "a stale read");
        check(&answer(5, 5, 110), "another key");
        check(&answer(4, 5, 110), "never written");
        check(&header(120), "no record");
        check(&[0x12, 0x7f, 0], "malformed");
        let twice = [answer(4, 4, 110), delimited(2, b"")].concat();
        check(&twice, "another key");
    }
}
