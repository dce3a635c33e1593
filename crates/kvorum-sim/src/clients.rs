//! Clients: each does one operation after the other, waits only so long, and says in the history what it was told.
//!
//! Half of them use sessions: they send a request again, on another member, until they know what became of it. The
//! others retry only what certainly was not applied. Every value is written once, so that an answer tells which
//! write it saw.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum_check::{Guard, History, KeyRange as CheckedRange, Kv, Op, OpId, Outcome, Pair, Reply as Told};
use kvorum_model::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, Error, KeyRange, KeyValue,
    PutRequest, RangeRequest, RangeResponse, Reply, RequestOp, Revision, SessionRef, TxnRequest,
};
use kvorum_node::{LeaseAnswer, LeaseAsk};
use kvorum_raft::{MemberId, Micros};

use crate::bugs::Bug;
use crate::env::{Env, Event};
use crate::marks::Mark;

/// What a client sends.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// A command for the log.
    Write {
        command: Command,
        session: Option<SessionRef>,
        patience: Micros,
    },
    /// A question about a lease.
    Lease {
        ask: LeaseAsk,
        lease: i64,
        patience: Micros,
    },
    /// A linearizable read.
    Read { request: RangeRequest, patience: Micros },
}

/// What it is told.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The command was applied, with this outcome.
    Applied {
        revision: Revision,
        result: Result<Reply, Error>,
    },
    /// The read's answer.
    Read {
        revision: Revision,
        response: RangeResponse,
    },
    /// The answer about a lease.
    Lease(LeaseAnswer),
    /// It failed, and took and will take no effect.
    NotApplied,
    /// Nobody knows.
    Unknown,
}

/// The nth key of a world.
pub(crate) fn key(number: u64) -> Bytes {
    format!("k{number:03}").into()
}

/// A record as the checkers take it.
pub(crate) fn checked_kv(kv: &KeyValue) -> Kv {
    Kv {
        key: kv.key.clone(),
        value: kv.value.clone(),
        create_revision: kv.create_revision as u64,
        mod_revision: kv.mod_revision as u64,
        version: kv.version as u64,
    }
}

/// What a client is at.
#[derive(Clone, Debug)]
enum Goal {
    /// An operation of the history.
    Operation(Op, OpId),
    /// To get a session.
    Register,
    /// To have history compacted.
    Compact(Revision),
}

#[derive(Clone, Debug)]
struct Work {
    goal: Goal,
    /// The request's number in the client's session.
    session_seq: Option<u64>,
    /// An earlier try may have taken effect, or may yet.
    maybe: bool,
    tries: u32,
    give_up_at: Micros,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    id: usize,
    uses_sessions: bool,
    session: Option<(u64, u64)>,
    work: Option<Work>,
    /// Numbers the requests sent: answers to others come too late.
    attempt: u64,
    values: u64,
    /// What it saw last of each key, to guess for compare-and-set.
    seen: BTreeMap<Bytes, Option<Bytes>>,
    revision: Revision,
    /// It asks this member and no other.
    only: Option<MemberId>,
    /// It begins nothing new.
    pub stopping: bool,
}

impl Client {
    pub(crate) fn new(id: usize) -> Client {
        Client {
            id,
            only: None,
            uses_sessions: id.is_multiple_of(2),
            session: None,
            work: None,
            attempt: 0,
            values: 0,
            seen: BTreeMap::new(),
            revision: 0,
            stopping: false,
        }
    }

    /// A client that asks one member, and only what [`Client::perform`] says.
    pub(crate) fn of(id: usize, member: MemberId) -> Client {
        Client {
            only: Some(member),
            uses_sessions: false,
            stopping: true,
            ..Client::new(id)
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.work.is_none()
    }

    /// Begins the next operation.
    pub(crate) fn turn(&mut self, env: &mut Env, history: &mut History, members: &[MemberId]) {
        if self.stopping || self.work.is_some() {
            return;
        }
        let goal = if self.uses_sessions && self.session.is_none() {
            Goal::Register
        } else if env.random.one_in(200) && self.revision > 30 {
            Goal::Compact(self.revision - env.random.below(30) as Revision)
        } else {
            let op = self.draw(env);
            let id = history.invoke(self.id as u64, env.events, op.clone());
            Goal::Operation(op, id)
        };
        self.begin(env, goal, members);
    }

    /// Does this next, for the end of a run; its place in the history is returned.
    pub(crate) fn perform(&mut self, env: &mut Env, history: &mut History, op: Op) -> OpId {
        let id = history.invoke(self.id as u64, env.events, op.clone());
        self.begin(env, Goal::Operation(op, id), &[]);
        id
    }

    fn begin(&mut self, env: &mut Env, goal: Goal, members: &[MemberId]) {
        let is_write = matches!(&goal, Goal::Operation(op, _) if op.is_write());
        let session_seq = match &mut self.session {
            Some((_, next)) if is_write => {
                *next += 1;
                Some(*next - 1)
            }
            _ => None,
        };
        let give_up_at = env.now + 20 * env.profile.election_timeout;
        self.work = Some(Work {
            goal,
            session_seq,
            maybe: false,
            tries: 0,
            give_up_at,
        });
        self.send(env, members);
    }

    /// Sends the request, again or for the first time.
    fn send(&mut self, env: &mut Env, members: &[MemberId]) {
        let Some(work) = &mut self.work else { return };
        work.tries += 1;
        self.attempt += 1;
        let patience = env.profile.election_timeout * env.random.between(1, 6);
        let session = self
            .session
            .zip(work.session_seq)
            .map(|((id, _), seq)| SessionRef { id, seq });
        let session = session.filter(|_| work.tries == 1 || !env.has_bug(Bug::RetryWithoutSession));
        let request = match &work.goal {
            Goal::Register => Request::Write {
                command: Command::Register,
                session: None,
                patience,
            },
            Goal::Compact(to) => Request::Write {
                command: Command::Compact(*to),
                session: None,
                patience,
            },
            Goal::Operation(op, _) => request_of(op, session, patience),
        };
        let members = self.only.as_ref().map_or(members, std::slice::from_ref);
        env.ask(self.id, self.attempt, members, patience, request);
    }

    /// An answer came.
    pub(crate) fn answer(
        &mut self,
        env: &mut Env,
        history: &mut History,
        members: &[MemberId],
        attempt: u64,
        answer: Answer,
    ) {
        let Some(work) = self.work.as_mut().filter(|_| attempt == self.attempt) else {
            return;
        };
        match answer {
            Answer::Applied {
                result: Err(Error::SessionExpired),
                ..
            } => {
                // What became of the request is not known; the next one gets another session.
                self.session = None;
                work.maybe = true;
                self.finish(env, history, None);
            }
            Answer::Applied { revision, result } => {
                let told = Some((revision, result));
                self.finish(
                    env,
                    history,
                    told.map(|(revision, result)| Ended::Applied(revision, result)),
                );
            }
            Answer::Read { revision, response } => {
                self.finish(env, history, Some(Ended::Read(revision, response)));
            }
            Answer::NotApplied | Answer::Lease(_) => self.failed(env, history, members),
            Answer::Unknown => {
                work.maybe = true;
                env.reach(Mark::WriteUnknown);
                self.failed(env, history, members);
            }
        }
    }

    /// It waited long enough.
    pub(crate) fn timeout(
        &mut self,
        env: &mut Env,
        history: &mut History,
        members: &[MemberId],
        attempt: u64,
    ) {
        let Some(work) = self.work.as_mut().filter(|_| attempt == self.attempt) else {
            return;
        };
        work.maybe = true;
        self.failed(env, history, members);
    }

    /// Tries again, if that is safe and worth it.
    fn failed(&mut self, env: &mut Env, history: &mut History, members: &[MemberId]) {
        let Some(work) = &self.work else { return };
        let is_read = matches!(&work.goal, Goal::Operation(op, _) if !op.is_write());
        let may_retry = !work.maybe || is_read || work.session_seq.is_some();
        if may_retry && env.now < work.give_up_at {
            self.send(env, members);
        } else {
            self.finish(env, history, None);
        }
    }

    fn finish(&mut self, env: &mut Env, history: &mut History, ended: Option<Ended>) {
        let Some(work) = self.work.take() else { return };
        self.attempt += 1;
        let pause = 20 + env.random.about(env.profile.think);
        env.schedule(pause, Event::Turn { client: self.id });
        match (work.goal, ended) {
            (Goal::Register, Some(Ended::Applied(_, Ok(Reply::Registered(id))))) => {
                self.session = Some((id, 1))
            }
            (Goal::Register | Goal::Compact(_), _) => {}
            (Goal::Operation(op, id), Some(ended)) => {
                let outcome = match self.told(&op, ended) {
                    Ok(reply) => Outcome::Ok(reply),
                    Err(why) => {
                        env.fail(format!("client {} asked {op:?} and was told {why}", self.id));
                        Outcome::Unknown
                    }
                };
                history.complete(id, env.events, outcome);
            }
            (Goal::Operation(op, id), None) => {
                let unknown = op.is_write() && work.maybe;
                history.complete(
                    id,
                    env.events,
                    if unknown {
                        Outcome::Unknown
                    } else {
                        Outcome::NotApplied
                    },
                );
            }
        }
    }

    /// The answer as the history has it; remembers what it shows.
    fn told(&mut self, op: &Op, ended: Ended) -> Result<Told, String> {
        self.revision = self.revision.max(match &ended {
            Ended::Applied(revision, _) | Ended::Read(revision, _) => *revision,
        });
        match (op, ended) {
            (Op::Put { key, value }, Ended::Applied(revision, Ok(Reply::Put(_)))) => {
                self.seen.insert(key.clone(), Some(value.clone()));
                Ok(Told::Put {
                    revision: revision as u64,
                })
            }
            (Op::Delete { key }, Ended::Applied(revision, Ok(Reply::DeleteRange(reply)))) => {
                self.seen.insert(key.clone(), None);
                Ok(Told::Delete {
                    revision: revision as u64,
                    deleted: reply.deleted == 1,
                })
            }
            (Op::Txn { puts, .. }, Ended::Applied(revision, Ok(Reply::Txn(reply)))) => {
                if reply.succeeded {
                    self.seen.extend(
                        puts.iter()
                            .map(|pair| (pair.key.clone(), Some(pair.value.clone()))),
                    );
                }
                Ok(Told::Txn {
                    revision: revision as u64,
                    succeeded: reply.succeeded,
                })
            }
            (Op::Get { key }, Ended::Read(revision, response)) => {
                let kv = response.kvs.first().map(checked_kv);
                self.seen
                    .insert(key.clone(), kv.as_ref().map(|kv| kv.value.clone()));
                Ok(Told::Get {
                    revision: revision as u64,
                    kv,
                })
            }
            (Op::Range(_), Ended::Read(revision, response)) => {
                let kvs = response.kvs.iter().map(checked_kv).collect();
                Ok(Told::Range {
                    revision: revision as u64,
                    kvs,
                })
            }
            (_, ended) => Err(format!("{ended:?}")),
        }
    }

    fn value(&mut self, env: &mut Env) -> Bytes {
        self.values += 1;
        let mut value = format!("{}.{}.", self.id, self.values);
        let padding = env.random.below(env.profile.value_bytes_max);
        value.extend(std::iter::repeat_n('x', padding as usize));
        value.into()
    }

    fn draw(&mut self, env: &mut Env) -> Op {
        let keys = env.profile.keys;
        // Half of the operations meet on the first two keys.
        let number = if env.random.one_in(2) {
            env.random.below(2)
        } else {
            env.random.below(keys)
        };
        let name = key(number);
        let guess = |seen: &BTreeMap<Bytes, Option<Bytes>>, key: &Bytes| seen.get(key).cloned().flatten();
        match env.random.below(20) {
            0..=6 => Op::get(name),
            7..=11 => Op::put(name, self.value(env)),
            12..=13 => Op::delete(name),
            14..=16 => {
                let expected = guess(&self.seen, &name);
                let value = self.value(env);
                Op::cas(name, expected, value)
            }
            17 => Op::Range(CheckedRange::between(name, key(keys))),
            18 => {
                let other = key((number + 1) % keys);
                let puts = [name, other].map(|key| Pair {
                    key,
                    value: self.value(env),
                });
                Op::Txn {
                    guards: Vec::new(),
                    puts: puts.into(),
                }
            }
            _ => {
                let other = key((number + 1) % keys);
                let guards = [&name, &other].map(|key| Guard {
                    key: key.clone(),
                    value: guess(&self.seen, key),
                });
                let puts = [name, other].map(|key| Pair {
                    key,
                    value: self.value(env),
                });
                Op::Txn {
                    guards: guards.into(),
                    puts: puts.into(),
                }
            }
        }
    }
}

/// How a request ended with an answer.
#[derive(Debug)]
enum Ended {
    Applied(Revision, Result<Reply, Error>),
    Read(Revision, RangeResponse),
}

fn request_of(op: &Op, session: Option<SessionRef>, patience: Micros) -> Request {
    let put = |key: &Bytes, value: &Bytes| PutRequest {
        key: key.clone(),
        value: value.clone(),
        ..Default::default()
    };
    let write = |command| Request::Write {
        command,
        session,
        patience,
    };
    let read = |range| Request::Read {
        request: RangeRequest {
            range,
            ..Default::default()
        },
        patience,
    };
    match op {
        Op::Put { key, value } => write(Command::Put(put(key, value))),
        Op::Delete { key } => {
            let range = KeyRange::point(key.clone());
            write(Command::DeleteRange(DeleteRangeRequest {
                range,
                prev_kv: false,
            }))
        }
        Op::Txn { guards, puts } => write(Command::Txn(TxnRequest {
            compare: guards.iter().map(compare_of).collect(),
            success: puts
                .iter()
                .map(|pair| RequestOp::Put(put(&pair.key, &pair.value)))
                .collect(),
            failure: Vec::new(),
        })),
        Op::Get { key } => read(KeyRange::point(key.clone())),
        Op::Range(CheckedRange {
            start,
            end: Some(end),
        }) => read(KeyRange {
            key: start.clone(),
            end: end.clone(),
        }),
        Op::Range(_) => read(KeyRange::prefix(b"")),
    }
}

fn compare_of(guard: &Guard) -> Compare {
    let target = match &guard.value {
        Some(value) => CompareTarget::Value(value.clone()),
        None => CompareTarget::Create(0),
    };
    Compare {
        range: KeyRange::point(guard.key.clone()),
        result: CompareResult::Equal,
        target,
    }
}
