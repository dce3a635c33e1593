//! Sessions: a retried request takes effect once (thesis §6.3).
//!
//! Per session the outcomes of the last [`limits::SESSION_WINDOW`] sequences are kept, in memory and in the store,
//! each with a hash of its request. Everything follows from applied entries: limits, times and removals are the
//! same on every replica, and after a restart.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kvorum_model::{DecodeError, Error, Reply, ResponseOp, Revision, SessionRef, TxnResponse, limits};

use crate::layout::{SESSION, corrupt, session_key, session_reply_key};
use crate::state::{Fields, prefixed};
use crate::store::{StoreError, View};

/// What a kept outcome takes beside its bytes.
const KEPT_BYTES: usize = 64;
/// Bytes before the outcome in its record: hash, index, revision, time.
const KEPT_HEADER_BYTES: usize = 32;

type Write = (Bytes, Option<Bytes>);

/// All sessions. Invariant: `bytes` is the sum over kept outcomes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    sessions: BTreeMap<u64, Session>,
    bytes: usize,
}

/// Invariants: `kept` ascends strictly by sequence; all are above `highest - SESSION_WINDOW`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Session {
    /// Whose it is; empty: of those whom nobody knows.
    user: Box<str>,
    used_ms: u64,
    highest: u64,
    kept: VecDeque<Kept>,
}

#[derive(Debug, PartialEq, Eq)]
struct Kept {
    seq: u64,
    request: u64,
    index: u64,
    revision: Revision,
    time_ms: u64,
    /// As `Reply::encode_result` writes it.
    outcome: Bytes,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// The index of the entry that ran it,
    pub index: u64,
    /// the revision after it,
    pub revision: Revision,
    /// and the outcome.
    pub result: Result<Reply, Error>,
}

/// What a session says to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Run it, then [`Sessions::keep`] the outcome.
    Run,
    /// It ran before: this came of it.
    Again(Ran),
    /// Neither: never run it.
    Refused(Error),
}

impl Session {
    fn position(&self, seq: u64) -> Result<usize, usize> {
        self.kept.binary_search_by_key(&seq, |kept| kept.seq)
    }

    /// Whether a sequence is so old that its outcome may have been dropped.
    fn is_below_window(&self, seq: u64) -> bool {
        seq == 0 || seq.saturating_add(limits::SESSION_WINDOW) <= self.highest
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        KEPT_BYTES + self.outcome.len()
    }

    fn record(&self) -> Bytes {
        let mut out = Vec::with_capacity(KEPT_HEADER_BYTES + self.outcome.len());
        out.extend_from_slice(&self.request.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.outcome);
        out.into()
    }
}

impl Sessions {
    /// Opens a session under the index of its entry.
    pub fn register(
        &mut self,
        id: u64,
        user: &str,
        time_ms: u64,
        writes: &mut Vec<Write>,
    ) -> Result<Reply, Error> {
        if self.sessions.len() >= limits::SESSIONS_MAX || self.bytes >= limits::SESSIONS_BYTES_MAX {
            return Err(Error::TooManySessions);
        }
        self.sessions.insert(
            id,
            Session {
                user: user.into(),
                used_ms: time_ms,
                ..Session::default()
            },
        );
        writes.push((
            session_key(id),
            Some([&time_ms.to_le_bytes(), user.as_bytes()].concat().into()),
        ));
        Ok(Reply::Registered(id))
    }

    /// Decides about a request, of which `request` is a hash. A retry counts as a use of the session. Another user's
    /// session is as good as none: the outcomes that it keeps are not everybody's to see.
    pub fn admit(
        &mut self,
        session: SessionRef,
        user: &str,
        request: u64,
        time_ms: u64,
        writes: &mut Vec<Write>,
    ) -> Result<Admission, DecodeError> {
        let known = self.sessions.get_mut(&session.id);
        let Some(known) = known.filter(|known| *known.user == *user) else {
            return Ok(Admission::Refused(Error::SessionExpired));
        };
        match known.position(session.seq) {
            Ok(at) if known.kept[at].request != request => Ok(Admission::Refused(Error::SessionMismatch)),
            Ok(at) => {
                let kept = &mut known.kept[at];
                kept.time_ms = time_ms;
                known.used_ms = time_ms;
                writes.push((session_reply_key(session.id, session.seq), Some(kept.record())));
                Ok(Admission::Again(Ran {
                    index: kept.index,
                    revision: kept.revision,
                    result: Reply::decode_result(kept.outcome.clone())?,
                }))
            }
            Err(_) if known.is_below_window(session.seq) => Ok(Admission::Refused(Error::SessionExpired)),
            Err(_) => Ok(Admission::Run),
        }
    }

    /// Keeps the outcome of a request that [`Sessions::admit`] let run.
    pub fn keep(
        &mut self,
        session: SessionRef,
        request: u64,
        time_ms: u64,
        ran: &Ran,
        writes: &mut Vec<Write>,
    ) {
        let outcome = shorten(&ran.result, self.bytes >= limits::SESSIONS_BYTES_MAX);
        let kept = Kept {
            seq: session.seq,
            request,
            index: ran.index,
            revision: ran.revision,
            time_ms,
            outcome,
        };
        // The request itself may have removed the session.
        let Some(known) = self.sessions.get_mut(&session.id) else {
            return;
        };
        let at = known
            .position(session.seq)
            .expect_err("an admitted request has no outcome yet");
        writes.push((session_reply_key(session.id, session.seq), Some(kept.record())));
        self.bytes += kept.bytes();
        known.kept.insert(at, kept);
        known.highest = known.highest.max(session.seq);
        known.used_ms = time_ms;
        while let Some(oldest) = known.kept.front()
            && known.is_below_window(oldest.seq)
        {
            writes.push((session_reply_key(session.id, oldest.seq), None));
            self.bytes -= oldest.bytes();
            known.kept.pop_front();
        }
    }

    /// Removes those of `ids` that are unused for long enough at `time_ms`.
    pub fn expire(&mut self, ids: &[u64], time_ms: u64, writes: &mut Vec<Write>) {
        for id in ids {
            if !self
                .sessions
                .get(id)
                .is_some_and(|session| is_idle(session, time_ms))
            {
                continue;
            }
            let session = self.sessions.remove(id).expect("it was just found");
            writes.push((session_key(*id), None));
            for kept in session.kept {
                self.bytes -= kept.bytes();
                writes.push((session_reply_key(*id, kept.seq), None));
            }
        }
    }

    /// Up to `count` sessions that [`Sessions::expire`] would remove at `time_ms`.
    pub fn idle(&self, time_ms: u64, count: usize) -> Vec<u64> {
        let idle = self
            .sessions
            .iter()
            .filter(|(_, session)| is_idle(session, time_ms));
        idle.map(|(id, _)| *id).take(count).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes of kept outcomes.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads what the store holds.
    pub fn load(view: &impl View) -> Result<Sessions, StoreError> {
        let mut sessions = Sessions::default();
        for item in prefixed(view, &[SESSION]) {
            let (key, record) = item?;
            sessions.load_record(&key, record)?;
        }
        Ok(sessions)
    }

    fn load_record(&mut self, key: &[u8], record: Bytes) -> Result<(), StoreError> {
        let number = |at: usize| u64::from_be_bytes(key[at..at + 8].try_into().expect("eight bytes"));
        let mut fields = Fields(&record);
        match key.len() {
            9 => {
                let used_ms = fields.u64()?;
                let user = String::from_utf8(fields.0.to_vec());
                let user = user.map_err(|_| corrupt("a session's user is not UTF-8"))?.into();
                self.sessions.insert(
                    number(1),
                    Session {
                        user,
                        used_ms,
                        ..Session::default()
                    },
                );
            }
            17 => {
                let (id, seq) = (number(1), number(9));
                let session = self
                    .sessions
                    .get_mut(&id)
                    .ok_or_else(|| corrupt("an outcome without its session"))?;
                let kept = Kept {
                    seq,
                    request: fields.u64()?,
                    index: fields.u64()?,
                    revision: fields.u64()? as Revision,
                    time_ms: fields.u64()?,
                    outcome: record.slice(KEPT_HEADER_BYTES..),
                };
                session.highest = seq;
                session.used_ms = session.used_ms.max(kept.time_ms);
                self.bytes += kept.bytes();
                session.kept.push_back(kept);
            }
            _ => return Err(corrupt("a session's key has another length")),
        }
        Ok(())
    }
}

fn is_idle(session: &Session, time_ms: u64) -> bool {
    time_ms >= session.used_ms.saturating_add(limits::SESSION_IDLE_MS)
}

/// The outcome as it is kept: whole if it is small, else without records, else (and where space is `scarce`) without
/// the answers to single operations.
fn shorten(result: &Result<Reply, Error>, scarce: bool) -> Bytes {
    let encode = |result: &Result<Reply, Error>| {
        let mut out = Vec::with_capacity(Reply::encoded_len(result));
        Reply::encode_result(result, &mut out);
        Bytes::from(out)
    };
    let fits = |result: &Result<Reply, Error>| Reply::encoded_len(result) <= limits::SESSION_REPLY_BYTES_MAX;
    if !scarce && fits(result) {
        return encode(result);
    }
    let counts = result.clone().map(without_records);
    if !scarce && fits(&counts) {
        return encode(&counts);
    }
    encode(&counts.map(|reply| match reply {
        Reply::Txn(txn) => Reply::Txn(TxnResponse {
            succeeded: txn.succeeded,
            responses: Vec::new(),
        }),
        other => other,
    }))
}

fn without_records(reply: Reply) -> Reply {
    match reply {
        Reply::Put(mut put) => {
            put.prev_kv = None;
            Reply::Put(put)
        }
        Reply::DeleteRange(mut delete) => {
            delete.prev_kvs = Vec::new();
            Reply::DeleteRange(delete)
        }
        Reply::Txn(txn) => Reply::Txn(txn_without_records(txn)),
        other => other,
    }
}

fn txn_without_records(mut txn: TxnResponse) -> TxnResponse {
    for response in &mut txn.responses {
        match response {
            ResponseOp::Range(range) => range.kvs = Vec::new(),
            ResponseOp::Put(put) => put.prev_kv = None,
            ResponseOp::DeleteRange(delete) => delete.prev_kvs = Vec::new(),
            ResponseOp::Txn(nested) => *nested = txn_without_records(std::mem::take(nested)),
        }
    }
    txn
}
