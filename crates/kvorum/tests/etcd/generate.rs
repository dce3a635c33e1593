//! Draws requests: mostly sensible ones over few keys, so that they meet each other, and now and then each kind of
//! nonsense that a client can send.
//!
//! What is drawn depends on the seed and on what the reference answered, on nothing else.

mod txn;

use bytes::Bytes;
use fastrand::Rng;
use kvorum_client::proto::etcd::watch_request::RequestUnion;
use kvorum_client::proto::etcd::{self, RangeRequest};

use crate::call::Request;
use crate::unsupported::{Service, is_supported};

/// Streams of watches that a sequence has open, one to each member.
pub const STREAMS: usize = 3;

/// The next thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Send a request to a member.
    Call { member: usize, request: Request },
    /// Create a watcher on a stream.
    Watch {
        stream: usize,
        request: etcd::WatchCreateRequest,
    },
    /// Cancel a watcher of a stream, or an ID that may not be one.
    Cancel { stream: usize, watch_id: i64 },
    /// Watch, on a stream of its own, from a revision that is compacted.
    WatchCompacted {
        member: usize,
        request: etcd::WatchCreateRequest,
    },
    /// End a stream and open another.
    Reopen { stream: usize },
    /// Compare all that was watched.
    Settle,
}

/// The state of the drawing.
pub struct Draw {
    rng: Rng,
    /// The current revision.
    pub revision: i64,
    /// The last compaction.
    pub compacted: i64,
}

/// Leases that are granted again and again.
const LEASES: i64 = 5;
/// A time to live that does not end within a test, in seconds.
const LONG_TTL_S: i64 = 100_000;

impl Draw {
    /// From a seed, on an empty server.
    pub fn new(seed: u64) -> Draw {
        Draw {
            rng: Rng::with_seed(seed),
            revision: 1,
            compacted: 0,
        }
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        match self.rng.u32(..1000) {
            0..=17 => self.watch(),
            18..=20 => self.watch_compacted(),
            21..=24 => Step::Cancel {
                stream: self.stream(),
                watch_id: self.rng.i64(-1..8),
            },
            25 => Step::Reopen {
                stream: self.stream(),
            },
            26..=29 => Step::Settle,
            _ => Step::Call {
                member: self.rng.usize(..STREAMS),
                request: self.request(),
            },
        }
    }

    fn request(&mut self) -> Request {
        match self.rng.u32(..1000) {
            0..=329 => Request::Range(self.range()),
            330..=619 => Request::Put(self.put()),
            620..=719 => Request::DeleteRange(self.delete()),
            720..=723 => Request::Compact(self.compaction()),
            724..=743 if is_supported(Service::Lease) => self.lease(),
            744..=747 => self.maintenance(),
            _ => Request::Txn(self.txn()),
        }
    }

    /// True once in so many times.
    fn once_in(&mut self, times: u32) -> bool {
        self.rng.u32(..times) == 0
    }

    fn percent(&mut self, percent: u32) -> bool {
        self.rng.u32(..100) < percent
    }

    fn stream(&mut self) -> usize {
        self.rng.usize(..STREAMS)
    }

    /// A key; now and then none.
    fn key(&mut self) -> Bytes {
        if self.once_in(200) {
            Bytes::new()
        } else {
            self.some_key()
        }
    }

    fn some_key(&mut self) -> Bytes {
        const KEYS: [&[u8]; 20] = [
            b"a",
            b"aa",
            b"ab",
            b"b",
            b"ba",
            b"c",
            b"k/0",
            b"k/1",
            b"k/2",
            b"k/3",
            b"k/4",
            b"k/5",
            b"k/6",
            b"k/7",
            b"\0",
            b"\0\0",
            b"a\0",
            b"\xff",
            b"\xff\xff",
            b"z",
        ];
        if self.percent(90) {
            return Bytes::from_static(KEYS[self.rng.usize(..KEYS.len())]);
        }
        let length = self.rng.usize(1..4);
        (0..length)
            .map(|_| [0, b'a', b'k', 0xff][self.rng.usize(..4)])
            .collect()
    }

    /// The end of a range that begins at `key`; mostly none.
    fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.rng.u32(..100) {
            0..=44 => Bytes::new(),
            45..=54 => Bytes::from_static(b"\0"),
            55..=74 => prefix_end(key),
            75..=84 => [key, &b"\0"[..]].concat().into(),
            _ => self.some_key(),
        }
    }

    /// Key and end; now and then all keys.
    fn keys(&mut self) -> (Bytes, Bytes) {
        if self.percent(8) {
            return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        }
        let key = self.key();
        let end = self.range_end(&key);
        (key, end)
    }

    fn value(&mut self) -> Bytes {
        match self.rng.u32(..100) {
            0..=9 => Bytes::new(),
            10..=11 => vec![self.rng.u8(..); self.rng.usize(..4096)].into(),
            12..=29 => Bytes::from_static([&b"x"[..], b"y", b"xx"][self.rng.usize(..3)]),
            _ => self.rng.u32(..).to_string().into(),
        }
    }

    /// A revision to look at: mostly 0, else around what there is.
    fn at(&mut self) -> i64 {
        match self.rng.u32(..100) {
            0..=54 => 0,
            55..=79 => self.past(),
            80..=84 => self.compacted,
            85..=87 => self.compacted - 1,
            88..=93 => self.revision,
            94..=95 => self.revision + self.rng.i64(1..4),
            96..=97 => self.rng.i64(-3..0),
            98 => i64::MIN,
            _ => i64::MAX,
        }
    }

    /// A revision that can be read.
    fn past(&mut self) -> i64 {
        let oldest = self.compacted.max(self.revision - 200).max(1);
        self.rng.i64(oldest..=self.revision)
    }

    /// A bound of a filter; mostly none.
    fn bound(&mut self) -> i64 {
        match self.rng.u32(..100) {
            0..=69 => 0,
            70..=97 => self.past(),
            98 => -1,
            _ => self.revision + 1,
        }
    }

    fn range(&mut self) -> RangeRequest {
        let (key, range_end) = self.keys();
        let mut request = RangeRequest {
            key,
            range_end,
            revision: self.at(),
            serializable: self.percent(25),
            keys_only: self.percent(15),
            count_only: self.percent(8),
            ..Default::default()
        };
        request.limit = match self.rng.u32(..100) {
            0..=49 => 0,
            50..=89 => self.rng.i64(1..6),
            90..=95 => 1000,
            96..=97 => -1,
            98 => i64::MAX,
            _ => i64::MIN,
        };
        if self.percent(40) {
            request.sort_order = self.rng.i32(0..3);
            request.sort_target = self.rng.i32(0..5);
        }
        if self.once_in(100) {
            request.sort_order = [3, -1, 1 << 20][self.rng.usize(..3)];
        }
        if self.once_in(100) {
            request.sort_target = [5, -1][self.rng.usize(..2)];
        }
        if self.percent(20) {
            request.min_mod_revision = self.bound();
            request.max_mod_revision = self.bound();
            request.min_create_revision = self.bound();
            request.max_create_revision = self.bound();
        }
        request
    }

    fn put(&mut self) -> etcd::PutRequest {
        let mut request = etcd::PutRequest {
            key: self.key(),
            value: self.value(),
            lease: self.attached(),
            prev_kv: self.percent(40),
            ..Default::default()
        };
        if self.percent(8) {
            request.ignore_value = true;
            if self.percent(90) {
                request.value = Bytes::new();
            }
        }
        if self.percent(8) {
            request.ignore_lease = true;
            if self.percent(80) {
                request.lease = 0;
            }
        }
        request
    }

    /// The lease of a put: mostly none, else one that may be there or one that never is.
    fn attached(&mut self) -> i64 {
        match self.rng.u32(..100) {
            0..=1 => [-1, 999, i64::MAX, i64::MIN][self.rng.usize(..4)],
            2..=19 if is_supported(Service::Lease) => self.rng.i64(1..=LEASES),
            _ => 0,
        }
    }

    fn delete(&mut self) -> etcd::DeleteRangeRequest {
        let (key, mut range_end) = self.keys();
        // All keys are seldom deleted: there would be nothing to look at.
        if range_end.as_ref() == b"\0" && self.percent(80) {
            range_end = Bytes::new();
        }
        etcd::DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.percent(40),
        }
    }

    fn compaction(&mut self) -> etcd::CompactionRequest {
        let revision = match self.rng.u32(..10) {
            0 => self.compacted,
            1 => self.revision + 1,
            2 => self.rng.i64(-2..2),
            3 => self.revision,
            _ => self.past(),
        };
        etcd::CompactionRequest {
            // Before the first one, 0 is a difference that is meant.
            revision: if revision == 0 && self.compacted == 0 {
                1
            } else {
                revision
            },
            physical: self.percent(50),
        }
    }

    fn lease(&mut self) -> Request {
        let id = match self.rng.u32(..20) {
            0 => 999,
            1 => -1,
            _ => self.rng.i64(1..=LEASES),
        };
        match self.rng.u32(..10) {
            0..=3 => Request::LeaseGrant(etcd::LeaseGrantRequest {
                ttl: match self.rng.u32(..20) {
                    0 => 9_000_000_001,
                    1 => i64::MAX,
                    _ => LONG_TTL_S + self.rng.i64(0..100),
                },
                id,
            }),
            4..=5 => Request::LeaseRevoke(etcd::LeaseRevokeRequest { id }),
            6 => Request::LeaseKeepAlive(etcd::LeaseKeepAliveRequest { id }),
            7..=8 => Request::LeaseTimeToLive(etcd::LeaseTimeToLiveRequest {
                id,
                keys: self.percent(70),
            }),
            _ => Request::LeaseLeases(etcd::LeaseLeasesRequest {}),
        }
    }

    fn maintenance(&mut self) -> Request {
        match self.rng.u32(..6) {
            1 => Request::Alarm(etcd::AlarmRequest::default()),
            2 => Request::MemberList(etcd::MemberListRequest {
                linearizable: self.percent(50),
            }),
            3 if is_supported(Service::HashKv) => {
                // At and below the last compaction etcd answers with what it kept from before that.
                let revision = Some(self.at()).filter(|at| *at > self.compacted).unwrap_or(0);
                Request::HashKv(etcd::HashKvRequest { revision })
            }
            4 if is_supported(Service::Defragment) => Request::Defragment(etcd::DefragmentRequest {}),
            _ => Request::Status(etcd::StatusRequest {}),
        }
    }

    fn watch(&mut self) -> Step {
        let mut request = self.watcher();
        request.start_revision = match self.rng.u32(..100) {
            0..=34 => 0,
            35..=84 => self.past().max(self.compacted),
            85..=94 => self.revision + self.rng.i64(1..10),
            _ => [-1, i64::MIN][self.rng.usize(..2)],
        };
        // Not -1, see `intended`.
        request.watch_id = match self.rng.u32(..10) {
            0..=6 => 0,
            7 => [-2, i64::MAX][self.rng.usize(..2)],
            _ => self.rng.i64(1..8),
        };
        Step::Watch {
            stream: self.stream(),
            request,
        }
    }

    fn watch_compacted(&mut self) -> Step {
        if self.compacted < 2 {
            return Step::Settle;
        }
        let mut request = self.watcher();
        request.start_revision = self.rng.i64(1..self.compacted);
        Step::WatchCompacted {
            member: self.rng.usize(..STREAMS),
            request,
        }
    }

    fn watcher(&mut self) -> etcd::WatchCreateRequest {
        let (key, range_end) = self.keys();
        let mut request = etcd::WatchCreateRequest {
            key,
            range_end,
            prev_kv: self.percent(50),
            progress_notify: self.percent(20),
            fragment: self.percent(20),
            ..Default::default()
        };
        if self.percent(30) {
            // 2 is no filter that there is.
            request.filters = (0..self.rng.usize(1..3)).map(|_| self.rng.i32(0..3)).collect();
        }
        request
    }
}

/// The end of the range of all keys that begin with this.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let kept = prefix
        .iter()
        .rposition(|byte| *byte < 0xff)
        .map_or(0, |at| at + 1);
    let mut end = prefix[..kept].to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end.into()
}

/// Whether a member may answer it from what it has itself: only the one that took the last write is asked.
pub fn is_local(request: &Request) -> bool {
    use etcd::request_op::Request as Op;
    match request {
        Request::Range(range) => range.serializable,
        Request::Txn(txn) => txn
            .success
            .iter()
            .chain(&txn.failure)
            .all(|op| matches!(&op.request, Some(Op::RequestRange(range)) if range.serializable)),
        Request::LeaseLeases(_) | Request::HashKv(_) | Request::Alarm(_) | Request::Status(_) => true,
        Request::MemberList(list) => !list.linearizable,
        _ => false,
    }
}

/// A request on a stream of watches.
pub fn watch_request(union: RequestUnion) -> etcd::WatchRequest {
    etcd::WatchRequest {
        request_union: Some(union),
    }
}

#[test]
fn a_seed_draws_the_same_steps_again() {
    let draw = |seed| {
        let mut draw = Draw::new(seed);
        let mut steps = Vec::new();
        for _ in 0..2000 {
            steps.push(format!("{:?}", draw.step()));
            draw.revision += 1;
        }
        steps
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
}
