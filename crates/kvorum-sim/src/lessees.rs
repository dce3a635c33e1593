//! Holders of leases: each is granted one, puts a key under it, renews it for a while, and lets it run out.
//!
//! What must hold: a lease does not end before its holder's last answer said, counted from when that request was sent
//! (less what the leader's clock may be fast); and in a healed world each ends. Keys under leases are written by their
//! holder alone, once, and deleted by the end of the lease alone: so the history gets each such deletion from the
//! first member that applies it.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum_check::{History, Op, OpId, Outcome, Record, Reply as Told};
use kvorum_model::{Command, EventKind, PutRequest, Reply, Revision};
use kvorum_mvcc::{LeaseChange, RevisionEvents};
use kvorum_node::{LeaseAnswer, LeaseAsk};
use kvorum_raft::{MemberId, Micros};

use crate::clients::{Answer, Request};
use crate::env::{Env, Event};
use crate::marks::Mark;

/// Holders' numbers among the clients begin here.
pub(crate) const FIRST: usize = 1 << 20;
const SECOND: Micros = 1_000_000;
/// Clients in the history that stand for the ends of leases begin here.
const ENDS: u64 = 1 << 32;

/// What all members and holders know of leases together.
#[derive(Debug, Default)]
pub(crate) struct LeaseTruth {
    /// When each lease was first seen to end.
    ended: BTreeMap<i64, Micros>,
    /// Until when each was promised to live.
    promised: BTreeMap<i64, Micros>,
    /// When the put of a key under a lease began, in events.
    begun: BTreeMap<Bytes, u64>,
    /// Deletions that members applied, and that the history does not have yet.
    deleted: Vec<(Bytes, Revision)>,
}

impl LeaseTruth {
    /// A member applied these.
    pub(crate) fn applied(
        &mut self,
        now: Micros,
        changes: &[LeaseChange],
        events: &[RevisionEvents],
    ) -> Result<(), String> {
        for change in changes {
            if let LeaseChange::Revoked(id) = change {
                self.ended.entry(*id).or_insert(now);
                self.check(*id)?;
            }
        }
        for revision in events {
            for event in revision.events.iter() {
                if event.kind == EventKind::Delete && self.begun.contains_key(&event.kv.key) {
                    self.deleted.push((event.kv.key.clone(), revision.revision));
                }
            }
        }
        Ok(())
    }

    /// A holder was told so.
    fn promise(&mut self, id: i64, until: Micros) -> Result<(), String> {
        let promised = self.promised.entry(id).or_default();
        *promised = (*promised).max(until);
        self.check(id)
    }

    fn check(&self, id: i64) -> Result<(), String> {
        match (self.ended.get(&id), self.promised.get(&id)) {
            (Some(ended), Some(promised)) if ended < promised => Err(format!(
                "lease {id} ended at {ended} µs, it was promised until {promised} µs"
            )),
            _ => Ok(()),
        }
    }

    /// Completes the history by what members deleted; whether there was something.
    pub(crate) fn tell(&mut self, now: u64, history: &mut History) -> bool {
        let mut told_any = false;
        for (key, revision) in std::mem::take(&mut self.deleted) {
            // The first member that applied it counts.
            let Some(invoked) = self.begun.remove(&key) else {
                continue;
            };
            let told = Told::Delete {
                revision: revision as u64,
                deleted: true,
            };
            history.push(Record {
                client: ENDS + self.begun.len() as u64 + ENDS * revision as u64,
                invoked,
                completed: Some(now),
                op: Op::delete(key),
                outcome: Outcome::Ok(told),
            });
            told_any = true;
        }
        told_any
    }
}

/// What a holder is at.
#[derive(Debug)]
enum Step {
    /// Nothing, or it lets its lease run out.
    Idle,
    Granting,
    Putting(OpId),
    Renewing,
}

/// One holder.
#[derive(Debug)]
pub(crate) struct Lessee {
    number: usize,
    step: Step,
    leases: i64,
    ttl_s: i64,
    /// Renewals to come.
    renewals: u64,
    attempt: u64,
    sent_at: Micros,
    /// It is granted no further lease.
    pub(crate) stopping: bool,
}

impl Lessee {
    pub(crate) fn new(number: usize) -> Lessee {
        Lessee {
            number,
            step: Step::Idle,
            leases: 0,
            ttl_s: 0,
            renewals: 0,
            attempt: 0,
            sent_at: 0,
            stopping: false,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }

    fn lease(&self) -> i64 {
        (self.number as i64 + 1) * 1_000_000 + self.leases
    }

    fn client(&self) -> usize {
        FIRST + self.number
    }

    /// Begins what is next.
    pub(crate) fn turn(&mut self, env: &mut Env, members: &[MemberId]) {
        if !self.is_idle() {
            return;
        }
        if self.renewals > 0 && !self.stopping {
            self.renewals -= 1;
            self.step = Step::Renewing;
            let patience = env.profile.election_timeout * env.random.between(1, 6);
            let lease = self.lease();
            return self.send(
                env,
                members,
                patience,
                Request::Lease {
                    ask: LeaseAsk::KeepAlive,
                    lease,
                    patience,
                },
            );
        }
        if self.stopping {
            return;
        }
        self.leases += 1;
        self.ttl_s = env.random.between(1, 6) as i64;
        self.renewals = env.random.below(12);
        self.step = Step::Granting;
        let (id, ttl_s) = (self.lease(), self.ttl_s);
        self.write(env, members, Command::LeaseGrant { id, ttl_s });
    }

    fn write(&mut self, env: &mut Env, members: &[MemberId], command: Command) {
        let patience = env.profile.election_timeout * env.random.between(2, 6);
        let request = Request::Write {
            command,
            session: None,
            patience,
        };
        self.send(env, members, patience, request);
    }

    fn send(&mut self, env: &mut Env, members: &[MemberId], patience: Micros, request: Request) {
        self.attempt += 1;
        self.sent_at = env.now;
        env.ask(self.client(), self.attempt, members, patience, request);
    }

    /// An answer came, or will not any more (`None`).
    pub(crate) fn answer(
        &mut self,
        env: &mut Env,
        history: &mut History,
        members: &[MemberId],
        attempt: u64,
        answer: Option<Answer>,
    ) {
        if attempt != self.attempt {
            return;
        }
        self.attempt += 1;
        match (std::mem::replace(&mut self.step, Step::Idle), answer) {
            (
                Step::Granting,
                Some(Answer::Applied {
                    result: Ok(Reply::LeaseGranted { ttl_s, .. }),
                    ..
                }),
            ) => {
                self.ttl_s = ttl_s;
                self.promised(env, ttl_s);
                return self.put(env, history, members);
            }
            (Step::Granting, _) => self.renewals = 0,
            (Step::Putting(op), Some(Answer::Applied { revision, result })) => {
                let outcome = match result {
                    Ok(Reply::Put(_)) => Outcome::Ok(Told::Put {
                        revision: revision as u64,
                    }),
                    // The lease is gone.
                    _ => Outcome::NotApplied,
                };
                history.complete(op, env.events, outcome);
            }
            (Step::Putting(op), Some(Answer::NotApplied)) => {
                history.complete(op, env.events, Outcome::NotApplied);
            }
            (Step::Putting(op), _) => history.complete(op, env.events, Outcome::Unknown),
            (Step::Renewing, Some(Answer::Lease(LeaseAnswer { ttl_s, .. }))) => {
                if ttl_s > 0 {
                    env.reach(Mark::LeaseRenewed);
                    self.promised(env, ttl_s);
                } else {
                    self.renewals = 0;
                }
            }
            (Step::Renewing | Step::Idle, _) => {}
        }
        self.rest(env);
    }

    fn put(&mut self, env: &mut Env, history: &mut History, members: &[MemberId]) {
        let lease = self.lease();
        let key = Bytes::from(format!("l{lease}"));
        let value = Bytes::from(format!("of {lease}"));
        env.leases.begun.insert(key.clone(), env.events);
        let op = Op::put(key.clone(), value.clone());
        let op = history.invoke(self.client() as u64, env.events, op);
        self.step = Step::Putting(op);
        let request = PutRequest {
            key,
            value,
            lease,
            ..PutRequest::default()
        };
        self.write(env, members, Command::Put(request));
    }

    /// Clocks run wrong by up to the profile's drift.
    fn promised(&mut self, env: &mut Env, ttl_s: i64) {
        let ttl = ttl_s as Micros * SECOND;
        let fast = ttl * env.profile.drift_ppm / SECOND + 2;
        let check = env.leases.promise(self.lease(), self.sent_at + ttl - fast);
        env.must(check);
    }

    /// Until the next renewal, or until the lease has run out.
    fn rest(&mut self, env: &mut Env) {
        let ttl = self.ttl_s as Micros * SECOND;
        let pause = match self.renewals {
            0 => ttl + env.random.below(2 * SECOND),
            _ => env.random.between(ttl / 10, ttl),
        };
        env.schedule(
            pause,
            Event::Turn {
                client: self.client(),
            },
        );
    }
}
