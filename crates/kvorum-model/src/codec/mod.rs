//! The bytes of an entry, drawn in `docs/design/entry-format.md`: one encoding for log, wire and apply.
//!
//! Integers are little-endian and of fixed width; byte strings carry a `u32` length. The encoding is canonical:
//! what decodes encodes to the same bytes again, so that two requests are the same iff their bytes are.
//!
//! Decoding copies no key and no value (they are slices of the input), never panics, bounds recursion by
//! [`limits::TXN_DEPTH_MAX`], and allocates no more than a small multiple of the input's length.

mod auth;
mod primitive;
mod reply;
mod request;

use bytes::Bytes;

use crate::auth::Caller;
use crate::command::{Command, Envelope, Origin, Reply, SessionRef};
use crate::error::Error;
use crate::limits;
use primitive::{Counter, Reader, Sink};

/// The format version that this code writes.
const VERSION: u8 = 1;
/// Bytes before the optional parts.
const HEADER_BYTES: usize = 36;
const TIME_AT: usize = 4;
const ORIGIN_AT: usize = 12;
/// A [`SessionRef`] follows the header.
const FLAG_SESSION: u8 = 1;
const SESSION_BYTES: usize = 16;
/// A [`Caller`] follows that.
const FLAG_CALLER: u8 = 2;
/// A caller without its name: revision and length.
const CALLER_BYTES: usize = 12;

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A newer version of kvorum wrote it. Upgrade this member.
    #[error("newer format: {what} {value} is not known to this version")]
    Newer {
        /// What is not known: a version, a flag, a command.
        what: &'static str,
        /// Its number.
        value: u64,
    },
    /// It ends in the middle of something.
    #[error("entry ends at byte {at}, within {what}")]
    Truncated {
        /// The length of the input.
        at: usize,
        /// What was being read.
        what: &'static str,
    },
    /// No version writes this.
    #[error("malformed entry at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
}

impl Envelope {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.encode_into(&mut out);
        out.into()
    }

    /// Appends the entry's bytes.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let session = if self.session.is_some() { FLAG_SESSION } else { 0 };
        let caller = if self.caller.is_some() { FLAG_CALLER } else { 0 };
        out.put(&[VERSION, session | caller, 0, 0]);
        out.u64(self.time_ms);
        out.u64(self.origin.member);
        out.u64(self.origin.boot);
        out.u64(self.origin.seq);
        if let Some(session) = self.session {
            out.u64(session.id);
            out.u64(session.seq);
        }
        if let Some(caller) = &self.caller {
            out.u64(caller.auth_revision);
            out.bytes(caller.user.as_bytes());
        }
        request::command(out, &self.command);
    }

    /// How many bytes [`Envelope::encode`] makes.
    pub fn encoded_len(&self) -> usize {
        let caller = self.caller.as_ref();
        HEADER_BYTES
            + self.session.map_or(0, |_| SESSION_BYTES)
            + caller.map_or(0, |caller| CALLER_BYTES + caller.user.len())
            + self.command.encoded_len()
    }

    /// Reads an entry; keys and values share `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Envelope, DecodeError> {
        let flags = checked_flags(&bytes)?;
        let (time_ms, origin) = (u64_at(&bytes, TIME_AT), origin_at(&bytes));
        let mut reader = Reader::new(bytes, HEADER_BYTES);
        let mut session = None;
        if flags & FLAG_SESSION != 0 {
            let (id, seq) = (reader.u64("the session")?, reader.u64("the session")?);
            session = Some(SessionRef { id, seq });
        }
        let mut caller = None;
        if flags & FLAG_CALLER != 0 {
            let (auth_revision, user) = (reader.u64("the caller")?, reader.string("the caller")?);
            caller = Some(Caller { user, auth_revision });
        }
        let command = request::read_command(&mut reader)?;
        reader.finish()?;
        Ok(Envelope {
            time_ms,
            origin,
            session,
            caller,
            command,
        })
    }

    /// Writes the leader's time into an encoded entry.
    ///
    /// # Panics
    /// If `encoded` is shorter than an entry's header.
    pub fn stamp(encoded: &mut [u8], time_ms: u64) {
        encoded[TIME_AT..TIME_AT + 8].copy_from_slice(&time_ms.to_le_bytes());
    }

    /// The time in an encoded entry, without decoding the rest.
    pub fn peek_time(encoded: &[u8]) -> Result<u64, DecodeError> {
        body_at(encoded)?;
        Ok(u64_at(encoded, TIME_AT))
    }

    /// The origin in an encoded entry, without decoding the rest.
    pub fn peek_origin(encoded: &[u8]) -> Result<Origin, DecodeError> {
        body_at(encoded)?;
        Ok(origin_at(encoded))
    }

    /// The encoded command in an encoded entry: equal for equal requests, whoever sent them and when.
    pub fn peek_command(encoded: &[u8]) -> Result<&[u8], DecodeError> {
        Ok(&encoded[body_at(encoded)?..])
    }
}

/// The offset of the command, after the header was checked. On success the input holds everything before it.
fn body_at(encoded: &[u8]) -> Result<usize, DecodeError> {
    let flags = checked_flags(encoded)?;
    let mut at = HEADER_BYTES;
    let truncated = |what| DecodeError::Truncated {
        at: encoded.len(),
        what,
    };
    if flags & FLAG_SESSION != 0 {
        at += SESSION_BYTES;
    }
    if flags & FLAG_CALLER != 0 {
        let length = encoded.get(at + 8..at + CALLER_BYTES);
        let length = length.ok_or_else(|| truncated("the caller"))?;
        let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
        at += CALLER_BYTES + length as usize;
    }
    if encoded.len() < at {
        return Err(truncated("what stands before the command"));
    }
    Ok(at)
}

/// Checks the header; its flags. On success the input holds the header.
fn checked_flags(encoded: &[u8]) -> Result<u8, DecodeError> {
    let truncated = DecodeError::Truncated {
        at: encoded.len(),
        what: "the header",
    };
    let version = *encoded.first().ok_or(truncated)?;
    match version {
        0 => {
            return Err(DecodeError::Malformed {
                at: 0,
                what: "format version 0",
            });
        }
        VERSION => {}
        newer => {
            return Err(DecodeError::Newer {
                what: "entry format",
                value: newer.into(),
            });
        }
    }
    if encoded.len() < HEADER_BYTES {
        return Err(truncated);
    }
    let flags = encoded[1];
    if flags & !(FLAG_SESSION | FLAG_CALLER) != 0 {
        return Err(DecodeError::Newer {
            what: "entry flags",
            value: flags.into(),
        });
    }
    let reserved = u16::from_le_bytes([encoded[2], encoded[3]]);
    if reserved != 0 {
        return Err(DecodeError::Newer {
            what: "reserved header field",
            value: reserved.into(),
        });
    }
    Ok(flags)
}

fn origin_at(encoded: &[u8]) -> Origin {
    Origin {
        member: u64_at(encoded, ORIGIN_AT),
        boot: u64_at(encoded, ORIGIN_AT + 8),
        seq: u64_at(encoded, ORIGIN_AT + 16),
    }
}

/// A `u64` whose place `body_at` has checked.
fn u64_at(encoded: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(encoded[at..at + 8].try_into().expect("eight bytes"))
}

impl Command {
    /// A version byte and the command: the context of a membership change.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(1 + self.encoded_len());
        out.u8(VERSION);
        request::command(&mut out, self);
        out.into()
    }

    /// Reads what [`Command::encode`] wrote.
    pub fn decode(bytes: Bytes) -> Result<Command, DecodeError> {
        let mut reader = Reader::new(bytes, 0);
        reader.version(VERSION, "command format")?;
        let command = request::read_command(&mut reader)?;
        reader.finish()?;
        Ok(command)
    }

    /// How many bytes the command takes in an entry.
    pub fn encoded_len(&self) -> usize {
        let mut counter = Counter(0);
        request::command(&mut counter, self);
        counter.0
    }
}

impl Reply {
    /// Appends a version byte and the outcome of a command.
    pub fn encode_result(result: &Result<Reply, Error>, out: &mut Vec<u8>) {
        out.u8(VERSION);
        reply::result(out, result);
    }

    /// Reads what [`Reply::encode_result`] wrote.
    pub fn decode_result(bytes: Bytes) -> Result<Result<Reply, Error>, DecodeError> {
        let mut reader = Reader::new(bytes, 0);
        reader.version(VERSION, "reply format")?;
        let result = reply::read_result(&mut reader)?;
        reader.finish()?;
        Ok(result)
    }

    /// How many bytes [`Reply::encode_result`] appends.
    pub fn encoded_len(result: &Result<Reply, Error>) -> usize {
        let mut counter = Counter(0);
        reply::result(&mut counter, result);
        1 + counter.0
    }
}

#[cfg(test)]
mod tests;
