//! What a request says about itself beside its message: deadline, session, consistency, wish for a leader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use kvorum_model::SessionRef;
use kvorum_proto::Outcome;
use tonic::{Request, Status};

use crate::handle::{ReadError, ReplicaHandle, WriteError};

/// See the module.
#[derive(Clone)]
pub(crate) struct Context {
    /// When the answer must be there.
    pub deadline: Instant,
    /// The request's name in a session.
    pub session: Option<SessionRef>,
    /// The caller asked for this member's own state, on a surface where that is asked for by metadata.
    pub local: bool,
    /// The caller wants an error rather than to wait for a leader.
    pub require_leader: bool,
    /// What shows who asks; not shown.
    pub token: Option<Arc<str>>,
}

impl Context {
    /// From a gRPC request.
    pub(crate) fn of<T>(request: &Request<T>, handle: &ReplicaHandle) -> Result<Context, Status> {
        Context::from_headers(request.metadata().as_ref(), handle)
    }

    /// From the header of a REST request.
    pub(crate) fn from_headers(headers: &HeaderMap, handle: &ReplicaHandle) -> Result<Context, Status> {
        let wanted = timeout_of(headers);
        let session = match headers.get("kvorum-session") {
            Some(session) => Some(parse_session(session.as_bytes()).ok_or_else(bad_session)?),
            None => None,
        };
        let local = match headers.get("kvorum-consistency").map(|value| value.as_bytes()) {
            None | Some(b"linearizable") => false,
            Some(b"local") => true,
            Some(_) => {
                return Err(Status::invalid_argument(
                    "kvorum: kvorum-consistency is `local` or `linearizable`",
                ));
            }
        };
        let require_leader = headers
            .get("hasleader")
            .is_some_and(|value| value.as_bytes() == b"true");
        Ok(Context {
            deadline: handle.deadline(wanted),
            session,
            local,
            require_leader,
            token: token(headers),
        })
    }

    /// Refuses a write of a caller that does not want to wait for a leader.
    pub(crate) fn check_leader_for_write(&self, handle: &ReplicaHandle) -> Result<(), WriteError> {
        if self.require_leader && handle.leader() == 0 {
            Err(WriteError::NoLeader)
        } else {
            Ok(())
        }
    }

    /// Waits until a view of the state serves this read.
    pub(crate) async fn barrier(&self, handle: &ReplicaHandle) -> Result<(), ReadError> {
        self.check_leader_for_read(handle)?;
        handle.read_barrier(self.deadline).await
    }

    /// Refuses a read of a caller that does not want to wait for a leader.
    pub(crate) fn check_leader_for_read(&self, handle: &ReplicaHandle) -> Result<(), ReadError> {
        if self.require_leader && handle.leader() == 0 {
            Err(ReadError::NoLeader)
        } else {
            Ok(())
        }
    }
}

/// The token of `token` or else `authorization`, without its `Bearer`. One that is no text is none of ours.
fn token(headers: &HeaderMap) -> Option<Arc<str>> {
    let value = headers.get("token").or_else(|| headers.get("authorization"))?;
    let value = value.to_str().unwrap_or_default();
    Some(value.strip_prefix("Bearer ").unwrap_or(value).into())
}

fn bad_session() -> Status {
    let status =
        Status::invalid_argument("kvorum: kvorum-session is `<id>-<sequence>`, both decimal, from 1 on");
    Outcome::NotApplied.mark(status)
}

/// `<id>-<seq>`.
fn parse_session(text: &[u8]) -> Option<SessionRef> {
    let (id, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
    let number = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| plain && *number > 0)
    };
    Some(SessionRef {
        id: number(id)?,
        seq: number(seq)?,
    })
}

/// How long the caller waits for its answer, if it says so.
pub(crate) fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    parse_timeout(headers.get("grpc-timeout")?.as_bytes())
}

/// gRPC's `grpc-timeout`: at most eight digits and a unit. A malformed one counts as none.
fn parse_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let check = |text: &str, expected: Option<Duration>| {
            assert_eq!(parse_timeout(text.as_bytes()), expected, "{text}");
        };
        check("5S", Some(Duration::from_secs(5)));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        check("250m", Some(Duration::from_millis(250)));
        check("1u", Some(Duration::from_micros(1)));
        check("0n", Some(Duration::ZERO));
        for bad in ["", "S", "5", "123456789S", "-1S", "5s", "5 S"] {
            check(bad, None);
        }
    }

    #[test]
    fn tokens() {
        let check = |headers: &[(&'static str, &str)], expected: Option<&str>| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            assert_eq!(token(&map).as_deref(), expected, "{headers:?}");
        };
        check(&[], None);
        check(&[("token", "a.1")], Some("a.1"));
        check(&[("authorization", "a.1")], Some("a.1"));
        check(&[("authorization", "Bearer a.1")], Some("a.1"));
        check(&[("token", "Bearer a.1")], Some("a.1"));
        check(&[("authorization", "b.2"), ("token", "a.1")], Some("a.1"));
        check(&[("token", "a.1"), ("token", "b.2")], Some("a.1"));
        check(&[("token", "ü")], Some(""));
    }

    #[test]
    fn sessions() {
        let check = |text: &str, expected: Option<(u64, u64)>| {
            let expected = expected.map(|(id, seq)| SessionRef { id, seq });
            assert_eq!(parse_session(text.as_bytes()), expected, "{text}");
        };
        check("7-1", Some((7, 1)));
        check("18446744073709551615-2", Some((u64::MAX, 2)));
        for bad in [
            "",
            "7",
            "7-",
            "-7",
            "7-0",
            "0-1",
            "7-1-1",
            "7-+1",
            "18446744073709551616-1",
            "x-1",
            "7 - 1",
        ] {
            check(bad, None);
        }
    }
}
