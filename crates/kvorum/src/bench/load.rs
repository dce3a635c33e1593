//! What is asked, and whether what is answered can be true.
//!
//! A value is made from its key and a sequence number, both of which stand in it, so that every value read can
//! be checked in full without remembering what was written. A put must get a revision that no other put got and
//! that is above every revision acknowledged before it was sent; a linearizable get must not return a record older
//! than the newest one acknowledged for its key before it was sent. No lease is granted twice, and one that is kept
//! alive has its whole time again.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::http2::{Connection, Handler};
use super::message::{
    Field, Fields, header_revision, is_value, push_key, push_put, push_varint, put_length, varint_field,
    varint_length,
};
use super::report::Errors;

/// The methods called, by their numbers below.
pub const PATHS: [&str; 7] = [
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Auth/Authenticate",
];
pub const PUT: usize = 0;
pub const RANGE: usize = 1;
const TXN: usize = 2;
const LEASE_GRANT: usize = 3;
const LEASE_KEEP_ALIVE: usize = 4;
pub const WATCH: usize = 5;
pub const AUTHENTICATE: usize = 6;

/// Revisions by which one answer may be ahead of the first: beyond, it is not believed.
const REVISIONS_MAX: u64 = 1 << 36;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Put,
    /// A transaction of puts
    Txn,
    /// A read of keys in a row
    Range,
    LeaseGrant,
    LeaseKeepAlive,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What goes through the log.
    pub write: Kind,
    /// What does not.
    pub read: Kind,
    /// Share of reads, 0 to 100.
    pub read_percent: u8,
    /// Keys in a row that one call writes.
    pub keys_written: u64,
    /// Keys in a row that one call reads.
    pub keys_read: u64,
    /// Keys that there are.
    pub key_space: u64,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// One key after another, instead of at random.
    pub sequential: bool,
    /// Local reads.
    pub serializable: bool,
    /// Time of the leases that are granted, in seconds.
    pub lease_ttl_s: u64,
}

/// One call under way.
#[derive(Debug)]
pub struct Call {
    kind: Kind,
    /// The first key's number; of a keep-alive, the lease.
    key: u64,
    /// How many keys it writes or reads, from `key` on.
    keys: u64,
    sent: Instant,
    /// The least revision that the answer may have.
    floor: i64,
    complaint: Option<String>,
}

/// Figures of one kind of operation.
pub struct Figures {
    /// Operations that were answered rightly.
    pub done: u64,
    /// Their latencies in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Figures {
    pub fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are legal");
        Figures { done: 0, latency }
    }

    /// Counts an operation that took this long.
    pub fn record(&mut self, latency: Duration) {
        self.done += 1;
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(nanos.max(1));
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
    /// The leases that were granted.
    leases: Vec<u64>,
    /// One bit for each revision above the base that some put got.
    seen: Vec<u64>,
    /// Whether answers count.
    pub counting: bool,
    pub writes: Figures,
    pub reads: Figures,
    /// Calls that failed or were answered wrongly, counted or not.
    pub errors: Errors,
    /// Calls under way.
    pub in_flight: u64,
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
            leases: Vec::new(),
            seen: Vec::new(),
            counting: false,
            writes: Figures::new(),
            reads: Figures::new(),
            errors: Errors::default(),
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
        let kind = match self.plan.read_percent {
            0 => self.plan.write,
            percent if percent == 100 || self.random.u8(..100) < percent => self.plan.read,
            _ => self.plan.write,
        };
        match kind {
            Kind::Put => self.put(connection, key),
            Kind::Txn => self.txn(connection, key),
            Kind::Range => self.range(connection, key),
            Kind::LeaseKeepAlive if !self.leases.is_empty() => self.lease_keep_alive(connection),
            Kind::LeaseGrant | Kind::LeaseKeepAlive => self.lease_grant(connection),
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
        put_length(self.plan.key_size, self.plan.value_size)
    }

    /// A call that begins now.
    fn begin(&mut self, kind: Kind, key: u64, keys: u64, floor: i64) -> Call {
        self.in_flight += 1;
        Call {
            kind,
            key,
            keys,
            sent: self.now,
            floor,
            complaint: None,
        }
    }

    fn put(&mut self, connection: &mut Connection<Call>, key: u64) {
        self.sequence += 1;
        let length = self.put_length();
        let call = self.begin(Kind::Put, key, 1, self.acknowledged + 1);
        connection.call(PUT, call, length, |out| {
            push_put(out, key, self.sequence, self.plan.key_size, self.plan.value_size)
        });
    }

    /// `TxnRequest { success: [RequestOp { request_put }, …] }`
    fn txn(&mut self, connection: &mut Connection<Call>, key: u64) {
        let puts = self.plan.keys_written;
        let put_length = self.put_length();
        let call = self.begin(Kind::Txn, key, puts, self.acknowledged + 1);
        let op_length = 1 + varint_length(put_length as u64) + put_length;
        let length = puts as usize * (1 + varint_length(op_length as u64) + op_length);
        connection.call(TXN, call, length, |out| {
            for n in 0..puts {
                self.sequence += 1;
                for bytes in [op_length, put_length] {
                    out.push(0x12);
                    push_varint(out, bytes as u64);
                }
                let key = (key + n) % self.plan.key_space;
                push_put(out, key, self.sequence, self.plan.key_size, self.plan.value_size);
            }
        });
    }

    /// `RangeRequest` of one key, or of several in a row that there are.
    fn range(&mut self, connection: &mut Connection<Call>, key: u64) {
        let keys = self.plan.keys_read;
        let key = key.min(self.plan.key_space - keys);
        let (key_size, serializable) = (self.plan.key_size, self.plan.serializable);
        let key_length = 1 + varint_length(key_size as u64) + key_size;
        let length = key_length * if keys > 1 { 2 } else { 1 } + if serializable { 2 } else { 0 };
        let floor = if serializable {
            0
        } else {
            let floors = &self.floors[key as usize..(key + keys) as usize];
            floors.iter().copied().max().unwrap_or(0)
        };
        let call = self.begin(Kind::Range, key, keys, floor);
        connection.call(RANGE, call, length, |out| {
            let mut push_field = |tag, key| {
                out.push(tag);
                push_varint(out, key_size as u64);
                push_key(out, key, key_size);
            };
            push_field(0x0a, key);
            if keys > 1 {
                push_field(0x12, key + keys);
            }
            if serializable {
                out.extend_from_slice(&[0x38, 1]);
            }
        });
    }

    /// `LeaseGrantRequest { TTL }`; the server chooses the ID.
    fn lease_grant(&mut self, connection: &mut Connection<Call>) {
        let ttl_s = self.plan.lease_ttl_s;
        let call = self.begin(Kind::LeaseGrant, 0, 0, 0);
        connection.call(LEASE_GRANT, call, 1 + varint_length(ttl_s), |out| {
            out.push(0x08);
            push_varint(out, ttl_s);
        });
    }

    /// `LeaseKeepAliveRequest { ID }` of any lease granted, on a stream of its own.
    fn lease_keep_alive(&mut self, connection: &mut Connection<Call>) {
        let lease = self.leases[self.random.usize(..self.leases.len())];
        let call = self.begin(Kind::LeaseKeepAlive, lease, 0, 0);
        connection.call(LEASE_KEEP_ALIVE, call, 1 + varint_length(lease), |out| {
            out.push(0x08);
            push_varint(out, lease);
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

    fn check_range(&self, call: &Call, message: &[u8]) -> Result<(), String> {
        let (mut records, mut revision) = (0, 0);
        for (number, field) in Fields(message) {
            match (number, field?) {
                (1, Field::Bytes(header)) => revision = varint_field(header, 3)?,
                (2, Field::Bytes(record)) => {
                    self.check_record(call, call.key + records, record)?;
                    records += 1;
                }
                _ => {}
            }
        }
        match records {
            0 => Err("a get found no record of a key that was written".to_owned()),
            records if records < call.keys => Err(format!("a range found {records} of {} keys", call.keys)),
            _ if revision <= 0 => Err("a get was answered without a revision".to_owned()),
            _ if revision < call.floor => Err(format!(
                "a stale read: a range at revision {revision} after {} was acknowledged for one of its keys",
                call.floor
            )),
            _ => Ok(()),
        }
    }

    fn check_lease_grant(&mut self, message: &[u8]) -> Result<(), String> {
        let (lease, ttl) = (varint_field(message, 2)?, varint_field(message, 3)?);
        if lease <= 0 || (ttl as u64) < self.plan.lease_ttl_s {
            return Err(format!(
                "lease {lease} was granted for {ttl} s instead of {} s",
                self.plan.lease_ttl_s
            ));
        }
        self.leases.push(lease as u64);
        Ok(())
    }

    fn check_lease_keep_alive(&self, call: &Call, message: &[u8]) -> Result<(), String> {
        let (lease, ttl) = (varint_field(message, 2)?, varint_field(message, 3)?);
        if lease as u64 != call.key || (ttl as u64) < self.plan.lease_ttl_s {
            return Err(format!(
                "lease {} was kept alive, and the answer is of lease {lease} with {ttl} s of {} s",
                call.key, self.plan.lease_ttl_s
            ));
        }
        Ok(())
    }

    fn check_record(&self, call: &Call, number: u64, record: &[u8]) -> Result<(), String> {
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
        push_key(&mut expected, number, self.plan.key_size);
        if key != expected {
            return Err("a get returned another key".to_owned());
        }
        if !is_value(value, number, self.plan.value_size) {
            return Err("a get returned a value that was never written to its key".to_owned());
        }
        if call.keys == 1 && mod_revision < call.floor {
            return Err(format!(
                "a stale read: a get returned revision {mod_revision} of a key whose revision {} was acknowledged \
                 before",
                call.floor
            ));
        }
        Ok(())
    }
}

impl Handler<Call> for Load {
    fn message(&mut self, call: &mut Call, message: &[u8]) {
        let checked = match call.kind {
            Kind::Put => self.check_put(call, message),
            Kind::Txn => self.check_txn(call, message),
            Kind::Range => self.check_range(call, message),
            Kind::LeaseGrant => self.check_lease_grant(message),
            Kind::LeaseKeepAlive => self.check_lease_keep_alive(call, message),
        };
        call.complaint = checked.err();
    }

    fn end(&mut self, call: Call, outcome: Result<(), String>) {
        self.in_flight -= 1;
        match outcome.and_then(|()| call.complaint.map_or(Ok(()), Err)) {
            Ok(()) if self.counting => {
                let figures = match call.kind {
                    Kind::Put | Kind::Txn | Kind::LeaseGrant => &mut self.writes,
                    Kind::Range | Kind::LeaseKeepAlive => &mut self.reads,
                };
                figures.record(self.now.saturating_duration_since(call.sent));
            }
            Ok(()) => {}
            Err(text) => self.errors.note(text),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::message::{delimited, push_value};
    use super::*;

    fn load(serializable: bool) -> Load {
        let plan = Plan {
            write: Kind::Put,
            read: Kind::Range,
            read_percent: 50,
            keys_written: 1,
            keys_read: 1,
            key_space: 10,
            key_size: 32,
            value_size: 50,
            sequential: false,
            serializable,
            lease_ttl_s: 100,
        };
        Load::new(plan, 100, 7, Instant::now())
    }

    fn call(kind: Kind, key: u64, floor: i64) -> Call {
        Call {
            kind,
            key,
            keys: 1,
            sent: Instant::now(),
            floor,
            complaint: None,
        }
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
    fn puts_must_get_new_and_rising_revisions() {
        let mut load = load(false);
        load.check_put(&call(Kind::Put, 1, 101), &header(103)).unwrap();
        load.check_put(&call(Kind::Put, 2, 101), &header(102)).unwrap();
        let twice = load
            .check_put(&call(Kind::Put, 3, 101), &header(103))
            .unwrap_err();
        assert!(twice.contains("two puts got revision 103"), "{twice}");
        let late = load
            .check_put(&call(Kind::Put, 3, 104), &header(101))
            .unwrap_err();
        assert!(late.contains("after 103 was acknowledged"), "{late}");
        assert!(
            load.check_put(&call(Kind::Put, 3, 101), &header(1 << 60))
                .unwrap_err()
                .contains("far ahead")
        );
        assert!(
            load.check_put(&call(Kind::Put, 3, 101), b"")
                .unwrap_err()
                .contains("without a header")
        );
        assert!(
            load.check_put(&call(Kind::Put, 3, 101), &[0x0a, 0x7f])
                .unwrap_err()
                .contains("malformed")
        );
        assert_eq!((load.acknowledged, load.floors[1]), (103, 103));
    }

    #[test]
    fn a_transaction_must_have_written_all_its_keys() {
        let mut load = load(false);
        let txn = Call {
            keys: 4,
            ..call(Kind::Put, 8, 101)
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
        load.check_range(&call(Kind::Range, 4, 110), &answer(4, 4, 110))
            .unwrap();
        let check = |message: &[u8], expected: &str| {
            let error = load.check_range(&call(Kind::Range, 4, 110), message).unwrap_err();
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

    #[test]
    fn ranges_must_return_all_their_keys_of_one_fresh_revision() {
        let load = load(false);
        let three = Call {
            keys: 3,
            ..call(Kind::Range, 4, 110)
        };
        let record = |key, revision| answer(key, key, revision);
        let whole = [record(4, 90), record(5, 100), record(6, 110)].concat();
        load.check_range(&three, &whole).unwrap();
        let check = |message: &[u8], expected: &str| {
            let error = load.check_range(&three, message).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(&[record(4, 110), record(5, 110)].concat(), "found 2 of 3 keys");
        check(&[record(4, 110), record(6, 110)].concat(), "another key");
        check(
            &[record(4, 90), record(5, 90), record(6, 90)].concat(),
            "a stale read",
        );
    }

    #[test]
    fn leases_must_be_granted_and_kept_alive_for_their_whole_time() {
        let mut load = load(false);
        let lease = |id: u8, ttl: u8| [header(7), vec![0x10, id, 0x18, ttl]].concat();
        load.check_lease_grant(&lease(9, 100)).unwrap();
        assert_eq!(load.leases, [9]);
        for (id, ttl) in [(0, 100), (9, 5)] {
            assert!(load.check_lease_grant(&lease(id, ttl)).is_err());
        }
        let call = call(Kind::LeaseKeepAlive, 9, 0);
        load.check_lease_keep_alive(&call, &lease(9, 100)).unwrap();
        for (id, ttl) in [(8, 100), (9, 0)] {
            assert!(load.check_lease_keep_alive(&call, &lease(id, ttl)).is_err());
        }
    }
}
