//! Clients that write and read while members die, and write down what they asked and were told.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use kvorum_check::{Guard, History, Kv, Op, OpId, Outcome, Pair, Reply};
use kvorum_client::proto::{etcd, mvcc};
use kvorum_client::{Client, Error};
use tokio::task::{JoinSet, LocalSet};

use crate::cluster::{Cluster, PATIENCE, client};
use crate::program::eventually;

/// Clients at work.
const CLIENTS: u64 = 6;
/// Keys that all of them share.
const SHARED_KEYS: u64 = 24;

/// What the clients share. They run on one thread, so a counter is their clock: what it says came before did.
#[derive(Default)]
struct Book {
    history: RefCell<History>,
    now: Cell<u64>,
    acknowledged: Cell<u64>,
    stop: Cell<bool>,
}

impl Book {
    fn tick(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    fn invoke(&self, client: u64, op: Op) -> OpId {
        let now = self.tick();
        self.history.borrow_mut().invoke(client, now, op)
    }

    fn complete(&self, id: OpId, answer: Result<Reply, Error>) {
        let now = self.tick();
        let outcome = match answer {
            Ok(reply) => {
                self.acknowledged.set(self.acknowledged.get() + 1);
                Outcome::Ok(reply)
            }
            Err(Error::Unknown { .. }) => Outcome::Unknown,
            Err(Error::Unavailable { .. }) => Outcome::NotApplied,
            Err(error) => panic!("no member may answer this: {error}"),
        };
        self.history.borrow_mut().complete(id, now, outcome);
    }
}

/// The clients, at work until [`Load::end`].
pub struct Load {
    book: Rc<Book>,
    clients: JoinSet<()>,
}

impl Load {
    /// Sends the clients to work. To be called within a [`LocalSet`].
    pub fn start(cluster: &Cluster, seed: u64) -> Load {
        let book = Rc::new(Book::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let worker = Worker {
                number,
                random: fastrand::Rng::with_seed(seed ^ (number << 32)),
                client: client(&cluster.endpoints(number as usize)),
                book: book.clone(),
            };
            clients.spawn_local(worker.work());
        }
        Load { book, clients }
    }

    /// Waits until `count` more operations were answered.
    pub async fn answers(&self, count: u64) {
        let goal = self.book.acknowledged.get() + count;
        let what = format!("{count} operations are answered");
        eventually(&what, PATIENCE, async || {
            (self.book.acknowledged.get() >= goal).then_some(())
        })
        .await;
    }

    /// Ends the work and gives what happened.
    pub async fn end(mut self) -> History {
        self.book.stop.set(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        self.book.history.take()
    }
}

/// Runs a test's future where [`Load`] can.
pub async fn with_local_tasks(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

struct Worker {
    number: u64,
    random: fastrand::Rng,
    client: Client,
    book: Rc<Book>,
}

impl Worker {
    async fn work(mut self) {
        let mut serial = 0;
        while !self.book.stop.get() {
            serial += 1;
            // Each value is written once, so that a read tells which write it saw.
            let value = format!("{}-{serial}", self.number);
            let key = match self.random.u64(..4) {
                // A key of its own for good: what was acknowledged must be there in the end.
                0 => format!("own/{value}"),
                _ => format!("shared/{:02}", self.random.u64(..SHARED_KEYS)),
            };
            match self.random.u64(..10) {
                _ if key.starts_with("own") => self.put(&key, &value).await,
                0..4 => self.put(&key, &value).await,
                4..8 => drop(self.get(&key).await),
                8 => self.delete(&key).await,
                _ => self.swap(&key, &value).await,
            }
        }
    }

    async fn put(&self, key: &str, value: &str) {
        let id = self
            .book
            .invoke(self.number, Op::put(key.to_owned(), value.to_owned()));
        let answer = self.client.put(key.to_owned(), value.to_owned()).await;
        let reply = answer.map(|answer| Reply::Put {
            revision: revision(answer.header),
        });
        self.book.complete(id, reply);
    }

    /// The value found; none if there is none, or no answer.
    async fn get(&self, key: &str) -> Option<bytes::Bytes> {
        let op = Op::Get {
            key: key.to_owned().into(),
        };
        let id = self.book.invoke(self.number, op);
        let request = etcd::RangeRequest {
            key: key.to_owned().into(),
            ..Default::default()
        };
        let answer = self.client.range(request).await;
        let reply = answer.map(|answer| Reply::Get {
            revision: revision(answer.header),
            kv: answer.kvs.into_iter().next().map(to_kv),
        });
        let found = match &reply {
            Ok(Reply::Get { kv: Some(kv), .. }) => Some(kv.value.clone()),
            _ => None,
        };
        self.book.complete(id, reply);
        found
    }

    async fn delete(&self, key: &str) {
        let op = Op::Delete {
            key: key.to_owned().into(),
        };
        let id = self.book.invoke(self.number, op);
        let request = etcd::DeleteRangeRequest {
            key: key.to_owned().into(),
            ..Default::default()
        };
        let answer = self.client.delete(request).await;
        let reply = answer.map(|answer| Reply::Delete {
            revision: revision(answer.header),
            deleted: answer.deleted > 0,
        });
        self.book.complete(id, reply);
    }

    /// Writes the value if the key still has the one just read.
    async fn swap(&self, key: &str, value: &str) {
        use etcd::compare::{CompareResult, CompareTarget, TargetUnion};
        let Some(old) = self.get(key).await else { return };
        let op = Op::Txn {
            guards: vec![Guard {
                key: key.to_owned().into(),
                value: Some(old.clone()),
            }],
            puts: vec![Pair {
                key: key.to_owned().into(),
                value: value.to_owned().into(),
            }],
        };
        let id = self.book.invoke(self.number, op);
        let put = etcd::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        let request = etcd::TxnRequest {
            compare: vec![etcd::Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Value.into(),
                key: key.to_owned().into(),
                target_union: Some(TargetUnion::Value(old)),
                ..Default::default()
            }],
            success: vec![etcd::RequestOp {
                request: Some(etcd::request_op::Request::RequestPut(put)),
            }],
            failure: Vec::new(),
        };
        let answer = self.client.txn(request).await;
        let reply = answer.map(|answer| Reply::Txn {
            revision: revision(answer.header),
            succeeded: answer.succeeded,
        });
        self.book.complete(id, reply);
    }
}

fn revision(header: Option<etcd::ResponseHeader>) -> u64 {
    let revision = header.expect("every answer has a header").revision;
    u64::try_from(revision).expect("revisions are positive")
}

/// As the checkers take it.
pub fn to_kv(kv: mvcc::KeyValue) -> Kv {
    let number = |n: i64| u64::try_from(n).expect("revisions and versions are positive");
    Kv {
        create_revision: number(kv.create_revision),
        mod_revision: number(kv.mod_revision),
        version: number(kv.version),
        key: kv.key,
        value: kv.value,
    }
}
