//! Bytes of messages, configurations and snapshot metadata: versioned, little-endian.
//!
//! A message: version, kind, cluster, from, to, term, then the body's fields in the order of their
//! declaration. Integers are u64 unless said otherwise, booleans one byte (0 or 1), lists a u32 count and
//! their items. An entry: term, kind (u8), length (u32), data; its index follows from its place. Identifiers
//! in a set ascend. A newer version or an unknown kind is an error that says so.
//!
//! Decoders take untrusted bytes: they never panic, never allocate more than the input justifies, and
//! accept only the one encoding that the encoder writes. Entry data is a slice of the input, not a copy.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;

use crate::message::{AppendResult, Message, MessageBody, ReadId};
use crate::types::{ConfigEntry, Configuration, Entry, EntryKind, LogId, MemberId, SnapshotMeta};

const VERSION: u8 = 1;
/// Bytes of an encoded entry without its data.
const ENTRY_HEADER_BYTES: usize = 8 + 1 + 4;

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends too early.
    Truncated,
    /// Bytes are left over.
    TrailingBytes,
    /// Written by a newer version of kvorum (or damaged): this version byte.
    UnknownVersion(u8),
    /// An unknown kind of message, entry or answer.
    UnknownKind(u8),
    /// A field holds what no encoder writes.
    Invalid(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Truncated => write!(f, "the bytes end too early"),
            DecodeError::TrailingBytes => write!(f, "bytes are left over at the end"),
            DecodeError::UnknownVersion(version) => {
                write!(
                    f,
                    "format version {version} is not known here (this build reads {VERSION})"
                )
            }
            DecodeError::UnknownKind(kind) => write!(f, "unknown kind {kind}"),
            DecodeError::Invalid(what) => write!(f, "invalid {what}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Appends the message's bytes to `out`.
pub fn encode_message(message: &Message, out: &mut Vec<u8>) {
    let mut out = Writer(out);
    out.u8(VERSION);
    out.u8(kind_of(&message.body));
    out.u64(message.cluster);
    out.u64(message.from);
    out.u64(message.to);
    out.u64(message.term);
    encode_body(&message.body, &mut out);
}

/// Reads a message. Entries share `bytes`.
pub fn decode_message(bytes: Bytes) -> Result<Message, DecodeError> {
    let mut input = Reader::new(&bytes);
    input.version()?;
    let kind = input.u8()?;
    let (cluster, from, to, term) = (input.u64()?, input.u64()?, input.u64()?, input.u64()?);
    let body = decode_body(kind, &mut input)?;
    input.end()?;
    Ok(Message {
        cluster,
        from,
        to,
        term,
        body,
    })
}

fn kind_of(body: &MessageBody) -> u8 {
    match body {
        MessageBody::PreVote { .. } => 1,
        MessageBody::PreVoteReply { .. } => 2,
        MessageBody::Vote { .. } => 3,
        MessageBody::VoteReply { .. } => 4,
        MessageBody::Append { .. } => 5,
        MessageBody::AppendReply { .. } => 6,
        MessageBody::Heartbeat { .. } => 7,
        MessageBody::HeartbeatReply { .. } => 8,
        MessageBody::Commit { .. } => 9,
        MessageBody::Snapshot { .. } => 10,
        MessageBody::TimeoutNow { .. } => 11,
        MessageBody::ReadIndex { .. } => 12,
        MessageBody::ReadIndexReply { .. } => 13,
        MessageBody::HigherTerm => 14,
        MessageBody::Removed => 15,
    }
}

fn encode_body(body: &MessageBody, out: &mut Writer<'_>) {
    match body {
        MessageBody::PreVote { campaign, last } => {
            out.u64(*campaign);
            out.log_id(*last);
        }
        MessageBody::PreVoteReply {
            campaign,
            asked,
            granted,
        } => {
            out.u64(*campaign);
            out.u64(*asked);
            out.bool(*granted);
        }
        MessageBody::Vote {
            campaign,
            last,
            forced,
        } => {
            out.u64(*campaign);
            out.log_id(*last);
            out.bool(*forced);
        }
        MessageBody::VoteReply { campaign, granted } => {
            out.u64(*campaign);
            out.bool(*granted);
        }
        MessageBody::Append {
            epoch,
            round,
            prev,
            commit,
            entries,
        } => {
            out.u64(*epoch);
            out.u64(*round);
            out.log_id(*prev);
            out.u64(*commit);
            out.entries(prev.index, entries);
        }
        MessageBody::AppendReply {
            epoch,
            round,
            prev,
            result,
        } => {
            out.u64(*epoch);
            out.u64(*round);
            out.u64(*prev);
            match result {
                AppendResult::Matched(index) => {
                    out.u8(0);
                    out.u64(*index);
                }
                AppendResult::Refused { hint, last } => {
                    out.u8(1);
                    out.log_id(*hint);
                    out.u64(*last);
                }
            }
        }
        MessageBody::Heartbeat {
            epoch,
            round,
            commit,
            keep,
        } => {
            out.u64(*epoch);
            out.u64(*round);
            out.u64(*commit);
            out.u64(*keep);
        }
        MessageBody::HeartbeatReply {
            epoch,
            round,
            boot,
            installing,
        } => {
            out.u64(*epoch);
            out.u64(*round);
            out.u64(*boot);
            out.bool(*installing);
        }
        MessageBody::Commit { commit } => out.u64(*commit),
        MessageBody::Snapshot { epoch, round, meta } => {
            out.u64(*epoch);
            out.u64(*round);
            out.snapshot_meta(meta);
        }
        MessageBody::TimeoutNow { last } => out.log_id(*last),
        MessageBody::ReadIndex { read } => out.read_id(*read),
        MessageBody::ReadIndexReply { read, index, leader } => {
            out.read_id(*read);
            out.bool(index.is_some());
            out.u64(index.unwrap_or(0));
            out.u64(*leader);
        }
        MessageBody::HigherTerm | MessageBody::Removed => {}
    }
}

fn decode_body(kind: u8, input: &mut Reader<'_>) -> Result<MessageBody, DecodeError> {
    Ok(match kind {
        1 => MessageBody::PreVote {
            campaign: input.u64()?,
            last: input.log_id()?,
        },
        2 => MessageBody::PreVoteReply {
            campaign: input.u64()?,
            asked: input.u64()?,
            granted: input.bool()?,
        },
        3 => MessageBody::Vote {
            campaign: input.u64()?,
            last: input.log_id()?,
            forced: input.bool()?,
        },
        4 => MessageBody::VoteReply {
            campaign: input.u64()?,
            granted: input.bool()?,
        },
        5 => {
            let (epoch, round, prev, commit) = (input.u64()?, input.u64()?, input.log_id()?, input.u64()?);
            let entries = input.entries(prev)?;
            MessageBody::Append {
                epoch,
                round,
                prev,
                commit,
                entries,
            }
        }
        6 => {
            let (epoch, round, prev) = (input.u64()?, input.u64()?, input.u64()?);
            let result = match input.u8()? {
                0 => AppendResult::Matched(input.u64()?),
                1 => AppendResult::Refused {
                    hint: input.log_id()?,
                    last: input.u64()?,
                },
                other => return Err(DecodeError::UnknownKind(other)),
            };
            MessageBody::AppendReply {
                epoch,
                round,
                prev,
                result,
            }
        }
        7 => MessageBody::Heartbeat {
            epoch: input.u64()?,
            round: input.u64()?,
            commit: input.u64()?,
            keep: input.u64()?,
        },
        8 => MessageBody::HeartbeatReply {
            epoch: input.u64()?,
            round: input.u64()?,
            boot: input.u64()?,
            installing: input.bool()?,
        },
        9 => MessageBody::Commit { commit: input.u64()? },
        10 => MessageBody::Snapshot {
            epoch: input.u64()?,
            round: input.u64()?,
            meta: input.snapshot_meta()?,
        },
        11 => MessageBody::TimeoutNow {
            last: input.log_id()?,
        },
        12 => MessageBody::ReadIndex {
            read: input.read_id()?,
        },
        13 => {
            let read = input.read_id()?;
            let (known, index, leader) = (input.bool()?, input.u64()?, input.u64()?);
            if !known && index != 0 {
                return Err(DecodeError::Invalid("index of a refused read"));
            }
            MessageBody::ReadIndexReply {
                read,
                index: known.then_some(index),
                leader,
            }
        }
        14 => MessageBody::HigherTerm,
        15 => MessageBody::Removed,
        other => return Err(DecodeError::UnknownKind(other)),
    })
}

impl Configuration {
    /// Appends the configuration's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut out = Writer(out);
        out.u8(VERSION);
        out.configuration(self);
    }

    /// Reads a configuration that fills `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Configuration, DecodeError> {
        let mut input = Reader::over_slice(bytes);
        input.version()?;
        let configuration = input.configuration()?;
        input.end()?;
        Ok(configuration)
    }
}

impl ConfigEntry {
    /// The data of an entry of kind [`EntryKind::Config`].
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        let mut out = Writer(&mut bytes);
        out.u8(VERSION);
        out.configuration(&self.configuration);
        out.bytes(&self.context);
        bytes.into()
    }

    /// Reads the data of an entry of kind [`EntryKind::Config`]; the context shares it.
    pub fn decode(data: &Bytes) -> Result<ConfigEntry, DecodeError> {
        let mut input = Reader::new(data);
        input.version()?;
        let configuration = input.configuration()?;
        let context = input.bytes()?;
        input.end()?;
        Ok(ConfigEntry {
            configuration,
            context,
        })
    }
}

impl SnapshotMeta {
    /// Appends the metadata's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut out = Writer(out);
        out.u8(VERSION);
        out.snapshot_meta(self);
    }

    /// Reads metadata that fill `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotMeta, DecodeError> {
        let mut input = Reader::over_slice(bytes);
        input.version()?;
        let meta = input.snapshot_meta()?;
        input.end()?;
        Ok(meta)
    }
}

impl EntryKind {
    /// The kind that this byte stands for.
    pub fn from_u8(byte: u8) -> Option<EntryKind> {
        match byte {
            0 => Some(EntryKind::Command),
            1 => Some(EntryKind::Config),
            2 => Some(EntryKind::Noop),
            _ => None,
        }
    }
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    fn count(&mut self, value: usize) {
        let value = u32::try_from(value).expect("lists and data stay below 4 GiB by the limits of `Options`");
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn log_id(&mut self, id: LogId) {
        self.u64(id.term);
        self.u64(id.index);
    }

    fn read_id(&mut self, read: ReadId) {
        self.u64(read.member);
        self.u64(read.boot);
        self.u64(read.counter);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn entries(&mut self, prev: u64, entries: &[Entry]) {
        let size: usize = entries
            .iter()
            .map(|entry| ENTRY_HEADER_BYTES + entry.data.len())
            .sum();
        self.0.reserve(4 + size);
        self.count(entries.len());
        for (entry, index) in entries.iter().zip(prev + 1..) {
            assert_eq!(entry.index, index, "an append's entries are contiguous");
            self.u64(entry.term);
            self.u8(entry.kind as u8);
            self.bytes(&entry.data);
        }
    }

    fn members(&mut self, members: &BTreeSet<MemberId>) {
        self.count(members.len());
        for member in members {
            self.u64(*member);
        }
    }

    fn configuration(&mut self, configuration: &Configuration) {
        self.members(&configuration.voters);
        self.members(&configuration.outgoing);
        self.members(&configuration.learners);
        self.members(&configuration.learners_next);
        self.members(&configuration.removed);
    }

    fn snapshot_meta(&mut self, meta: &SnapshotMeta) {
        self.log_id(meta.last);
        self.configuration(&meta.configuration);
    }
}

/// A cursor over the input; `owner` lets data be sliced out of it without a copy.
struct Reader<'a> {
    owner: Option<&'a Bytes>,
    input: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a Bytes) -> Reader<'a> {
        Reader {
            owner: Some(bytes),
            input: bytes,
            at: 0,
        }
    }

    fn over_slice(bytes: &'a [u8]) -> Reader<'a> {
        Reader {
            owner: None,
            input: bytes,
            at: 0,
        }
    }

    fn left(&self) -> usize {
        self.input.len() - self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        if count > self.left() {
            return Err(DecodeError::Truncated);
        }
        let taken = &self.input[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.left() == 0 {
            Ok(())
        } else {
            Err(DecodeError::TrailingBytes)
        }
    }

    fn version(&mut self) -> Result<(), DecodeError> {
        match self.u8()? {
            VERSION => Ok(()),
            other => Err(DecodeError::UnknownVersion(other)),
        }
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid("boolean")),
        }
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        let bytes: [u8; 8] = self.take(8)?.try_into().expect("eight bytes were taken");
        Ok(u64::from_le_bytes(bytes))
    }

    /// A count of items of at least `item_bytes` each, checked against what is left of the input.
    fn count(&mut self, item_bytes: usize) -> Result<usize, DecodeError> {
        let bytes: [u8; 4] = self.take(4)?.try_into().expect("four bytes were taken");
        let count = u32::from_le_bytes(bytes) as usize;
        if count > self.left() / item_bytes {
            return Err(DecodeError::Truncated);
        }
        Ok(count)
    }

    fn log_id(&mut self) -> Result<LogId, DecodeError> {
        Ok(LogId {
            term: self.u64()?,
            index: self.u64()?,
        })
    }

    fn read_id(&mut self) -> Result<ReadId, DecodeError> {
        Ok(ReadId {
            member: self.u64()?,
            boot: self.u64()?,
            counter: self.u64()?,
        })
    }

    fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.count(1)?;
        let start = self.at;
        let taken = self.take(length)?;
        Ok(match self.owner {
            Some(owner) => owner.slice(start..start + length),
            None => Bytes::copy_from_slice(taken),
        })
    }

    fn entries(&mut self, prev: LogId) -> Result<Vec<Entry>, DecodeError> {
        let count = self.count(ENTRY_HEADER_BYTES)?;
        if prev.index.checked_add(count as u64).is_none() {
            return Err(DecodeError::Invalid("index"));
        }
        let mut entries = Vec::with_capacity(count);
        let mut at_least = prev.term;
        for offset in 1..=count as u64 {
            let term = self.u64()?;
            if term < at_least {
                return Err(DecodeError::Invalid("order of terms"));
            }
            at_least = term;
            let kind = self.u8()?;
            let kind = EntryKind::from_u8(kind).ok_or(DecodeError::UnknownKind(kind))?;
            let data = self.bytes()?;
            entries.push(Entry {
                term,
                index: prev.index + offset,
                kind,
                data,
            });
        }
        Ok(entries)
    }

    fn members(&mut self) -> Result<BTreeSet<MemberId>, DecodeError> {
        let count = self.count(8)?;
        let mut members = BTreeSet::new();
        let mut previous = 0;
        for _ in 0..count {
            let member = self.u64()?;
            if member <= previous {
                return Err(DecodeError::Invalid("order of members"));
            }
            previous = member;
            members.insert(member);
        }
        Ok(members)
    }

    fn configuration(&mut self) -> Result<Configuration, DecodeError> {
        Ok(Configuration {
            voters: self.members()?,
            outgoing: self.members()?,
            learners: self.members()?,
            learners_next: self.members()?,
            removed: self.members()?,
        })
    }

    fn snapshot_meta(&mut self) -> Result<SnapshotMeta, DecodeError> {
        Ok(SnapshotMeta {
            last: self.log_id()?,
            configuration: self.configuration()?,
        })
    }
}
