//! Sessions: once, within the window, and at every limit and one beyond.

use kvorum_model::{DeleteRangeRequest, Error, KeyRange, Reply, limits};

use super::*;
use crate::store::Store;

const WINDOW: u64 = limits::SESSION_WINDOW;

struct Client {
    machine: StateMachine<MemStore>,
    session: u64,
    now_ms: u64,
}

impl Client {
    fn new() -> Self {
        let mut client = Client {
            machine: open(MemStore::new()),
            session: 0,
            now_ms: 1000,
        };
        client.session = client.register().unwrap();
        client
    }

    fn send(&mut self, session: Option<SessionRef>, command: Command) -> Applied {
        let index = self.machine.applied().1 + 1;
        self.machine
            .apply(&[timed(index, self.now_ms, session, command)])
            .unwrap()
            .replies
            .pop()
            .unwrap()
    }

    fn register(&mut self) -> Result<u64, Error> {
        match self.send(None, Command::Register).result? {
            Reply::Registered(id) => Ok(id),
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, seq: u64, command: Command) -> Applied {
        self.send(
            Some(SessionRef {
                id: self.session,
                seq,
            }),
            command,
        )
    }

    fn crash(&mut self) {
        self.machine.store().flush().unwrap();
        let before = self.machine.digest();
        let sessions = std::mem::take(&mut self.machine.core.sessions);
        self.machine = open(self.machine.store().crash());
        assert_eq!(
            self.machine.core.sessions, sessions,
            "sessions are found again as they were"
        );
        assert_eq!(self.machine.digest(), before);
    }
}

#[test]
fn a_retry_takes_effect_once() {
    let mut client = Client::new();
    let first = client.write(1, put("a", "1"));
    assert_eq!(client.write(2, put("a", "2")).revision, 3);
    client.crash();
    let again = client.write(1, put("a", "1"));
    assert_eq!(
        (again.result, again.index, again.revision),
        (first.result, first.index, first.revision),
        "also after a restart"
    );
    assert_eq!(client.machine.revision(), 3);
    assert_eq!(client.write(1, put("a", "9")).result, Err(Error::SessionMismatch));
    assert_eq!(client.machine.revision(), 3);
}

#[test]
fn refusals_are_kept_like_replies() {
    let mut client = Client::new();
    let refused = PutRequest {
        key: "a".into(),
        ignore_value: true,
        ..PutRequest::default()
    };
    assert_eq!(
        client.write(1, Command::Put(refused.clone())).result,
        Err(Error::KeyNotFound)
    );
    client.send(None, put("a", "1"));
    assert_eq!(
        client.write(1, Command::Put(refused)).result,
        Err(Error::KeyNotFound)
    );
}

#[test]
fn the_window_is_64_sequences() {
    let mut client = Client::new();
    client.write(1, put("a", "1"));
    client.write(WINDOW, put("b", "1"));
    assert_eq!(
        client.write(1, put("a", "1")).revision,
        2,
        "the oldest of the window is kept"
    );
    client.write(WINDOW + 1, put("c", "1"));
    assert_eq!(client.write(1, put("a", "1")).result, Err(Error::SessionExpired));
    // One that was never sent, within the window, is new; below it, it may have been.
    assert!(client.write(2, put("d", "1")).result.is_ok());
    client.write(3 * WINDOW, put("e", "1"));
    client.crash();
    assert_eq!(
        client.write(2 * WINDOW, put("f", "1")).result,
        Err(Error::SessionExpired)
    );
    assert!(client.write(2 * WINDOW + 1, put("f", "1")).result.is_ok());
    assert_eq!(client.write(0, put("g", "1")).result, Err(Error::SessionExpired));
}

#[test]
fn an_unknown_session_executes_nothing() {
    let mut client = Client::new();
    client.session += 1;
    let revision = client.machine.revision();
    assert_eq!(client.write(1, put("a", "1")).result, Err(Error::SessionExpired));
    assert_eq!(client.machine.revision(), revision);
}

#[test]
fn an_idle_session_is_removed_by_the_log_only() {
    let mut client = Client::new();
    client.write(1, put("a", "1"));
    let session = client.session;
    let idle_at = client.now_ms + limits::SESSION_IDLE_MS;
    assert_eq!(client.machine.expired_sessions(idle_at - 1), Vec::<u64>::new());
    assert_eq!(client.machine.expired_sessions(idle_at), [session]);
    // A command that comes too early, after a late use, changes nothing.
    client.now_ms = idle_at - 1;
    client.write(1, put("a", "1"));
    client.crash();
    client.now_ms = idle_at + 5;
    client.send(None, Command::ExpireSessions(vec![session]));
    assert_eq!(
        client.write(1, put("a", "1")).result,
        Ok(Reply::Put(Default::default())),
        "a retry is a use"
    );
    client.now_ms += limits::SESSION_IDLE_MS;
    assert_eq!(client.machine.expired_sessions(client.now_ms), [session]);
    client.send(None, Command::ExpireSessions(vec![session, 99]));
    assert_eq!(client.machine.sessions(), 0);
    assert_eq!(client.write(2, put("a", "2")).result, Err(Error::SessionExpired));
    assert_eq!(
        crate::state::prefixed(&client.machine.store().view(), b"s").count(),
        0
    );
}

#[test]
fn long_replies_are_kept_as_counts() {
    let mut client = Client::new();
    client.send(None, put("a", &"x".repeat(2_000)));
    client.send(None, put("b", "y"));
    let delete = |key: &str| {
        Command::DeleteRange(DeleteRangeRequest {
            range: KeyRange::point(key.to_string()),
            prev_kv: true,
        })
    };
    for (seq, key) in [(1, "a"), (2, "b")] {
        let Ok(Reply::DeleteRange(reply)) = client.write(seq, delete(key)).result else {
            panic!("a reply")
        };
        assert_eq!((reply.deleted, reply.prev_kvs.len()), (1, 1));
    }
    let Ok(Reply::DeleteRange(long)) = client.write(1, delete("a")).result else {
        panic!("a reply")
    };
    assert_eq!((long.deleted, long.prev_kvs.len()), (1, 0));
    let Ok(Reply::DeleteRange(short)) = client.write(2, delete("b")).result else {
        panic!("a reply")
    };
    assert_eq!((short.deleted, short.prev_kvs.len()), (1, 1));
}

#[test]
fn sessions_are_limited_in_number() {
    let mut client = Client::new();
    let first = client.session;
    let registers: Vec<_> = (2..=limits::SESSIONS_MAX as u64)
        .map(|index| timed(index, 1000, None, Command::Register))
        .collect();
    let replies = client.machine.apply(&registers).unwrap().replies;
    assert!(replies.iter().all(|reply| reply.result.is_ok()));
    assert_eq!(client.register(), Err(Error::TooManySessions));
    client.now_ms += limits::SESSION_IDLE_MS;
    client.send(None, Command::ExpireSessions(vec![first]));
    assert!(client.register().is_ok());
    assert_eq!(client.register(), Err(Error::TooManySessions));
}

#[test]
fn sessions_are_limited_in_bytes() {
    let mut client = Client::new();
    let value = "x".repeat(800);
    client.send(None, put("a", &value));
    let with_prev = Command::Put(PutRequest {
        key: "a".into(),
        value: value.into(),
        prev_kv: true,
        ..PutRequest::default()
    });
    let mut sessions = 1;
    // A full window of replies of about 950 bytes: 61 kB a session.
    while client.machine.core.sessions.bytes() < limits::SESSIONS_BYTES_MAX {
        client.session = client.register().unwrap();
        sessions += 1;
        let first = client.machine.applied().1;
        let entries: Vec<_> = (1..=WINDOW)
            .map(|seq| {
                let session = SessionRef {
                    id: client.session,
                    seq,
                };
                timed(first + seq, 1000, Some(session), with_prev.clone())
            })
            .collect();
        client.machine.apply(&entries).unwrap();
    }
    assert!(sessions > 1_000, "{sessions}");
    assert_eq!(client.register(), Err(Error::TooManySessions));
    // Writes of open sessions go on; their outcomes are kept as short as they can be.
    assert!(client.write(WINDOW + 1, with_prev.clone()).result.is_ok());
    assert_eq!(
        client.write(WINDOW + 1, with_prev).result,
        Ok(Reply::Put(Default::default()))
    );
    for seq in WINDOW + 2..2 * WINDOW {
        let short = Command::Put(PutRequest {
            key: "a".into(),
            ..PutRequest::default()
        });
        client.write(seq, short).result.unwrap();
    }
    assert!(
        client.register().is_ok(),
        "the window moved on, so there is room again"
    );
}
