//! What members say to each other: consensus messages, forwarded writes, questions about leases, and digests.
//!
//! One byte of version, one of kind, the IDs of sender and receiver, then the body; little-endian. A newer
//! version or kind is refused with a message that says so. Decoders take untrusted bytes.

use bytes::{Buf, Bytes};
use kvorum_raft::{Index, MemberId, Message, MessageBody, Micros, Term, Token};

use crate::interface::{LeaseAnswer, LeaseAsk};

const VERSION: u8 = 1;
const RAFT: u8 = 1;
const FORWARD: u8 = 2;
const FORWARD_ACCEPTED: u8 = 3;
const FORWARD_REFUSED: u8 = 4;
const DIGEST: u8 = 5;
const LEASE_CALLS: u8 = 6;
const LEASE_ANSWERS: u8 = 7;
const LEASE_REFUSED: u8 = 8;
const HEADER_BYTES: usize = 2 + 8 + 8;

/// A message between two members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage {
    /// The sender.
    pub from: MemberId,
    /// The receiver.
    pub to: MemberId,
    /// What it says.
    pub body: PeerBody,
}

/// What a peer message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerBody {
    /// A message of the consensus core.
    Raft(Message),
    /// Please append these commands (encoded envelopes, not yet stamped), in order, all or none.
    Forward {
        /// The sender's number for the batch; answered once.
        id: u64,
        /// The commands.
        commands: Vec<Bytes>,
    },
    /// They were appended from `first` on in `term`.
    ForwardAccepted {
        /// The batch.
        id: u64,
        /// The term of the entries.
        term: Term,
        /// The index of the first.
        first: Index,
    },
    /// They were not appended.
    ForwardRefused {
        /// The batch.
        id: u64,
        /// Why.
        why: Refusal,
    },
    /// The sender's chained digest after applying `index`.
    Digest {
        /// An agreed index.
        index: Index,
        /// The digest.
        digest: u128,
    },
    /// Questions about leases, to the leader.
    LeaseCalls {
        /// The sender's number for the message.
        id: u64,
        /// What, about which lease, and how many µs the caller still waits.
        calls: Vec<(LeaseAsk, i64, Micros)>,
    },
    /// Answers to some of the questions of a message.
    LeaseAnswers {
        /// The message.
        id: u64,
        /// The question's place in it, and the answer.
        answers: Vec<(u32, LeaseAnswer)>,
    },
    /// The receiver of a message does not answer what it has not answered yet: it does not lead, or too much waits.
    LeaseRefused {
        /// The message.
        id: u64,
    },
}

/// Why a forwarded batch was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The receiver does not lead, or hands leadership over: ask the new leader.
    NotLeader = 0,
    /// Too much waits at the leader.
    Overloaded = 1,
    /// One command is larger than the log takes.
    TooLarge = 2,
    /// The leader's disk is full.
    NoSpace = 3,
}

/// Which connection a message takes, so that none blocks another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Votes, heartbeats, reads: small and urgent.
    Control,
    /// Entries and forwarded writes.
    Bulk,
}

/// Why bytes are no peer message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than the form needs, or more.
    #[error("peer message is cut or has bytes beyond its end")]
    Length,
    /// A version or kind of a newer kvorum.
    #[error("peer message of version {version}, kind {kind} is newer than this kvorum: upgrade this member")]
    Newer {
        /// Its version.
        version: u8,
        /// Its kind.
        kind: u8,
    },
    /// The consensus message inside is malformed.
    #[error("malformed consensus message: {0}")]
    Raft(String),
}

impl PeerMessage {
    /// The sender's number for the batch, if it is a forward.
    pub fn forward(&self) -> Option<Token> {
        match self.body {
            PeerBody::Forward { id, .. } => Some(id),
            _ => None,
        }
    }

    /// The connection it takes.
    pub fn lane(&self) -> Lane {
        match &self.body {
            PeerBody::Raft(message) => match message.body {
                MessageBody::Append { .. } | MessageBody::AppendReply { .. } => Lane::Bulk,
                _ => Lane::Control,
            },
            PeerBody::Digest { .. }
            | PeerBody::LeaseCalls { .. }
            | PeerBody::LeaseAnswers { .. }
            | PeerBody::LeaseRefused { .. } => Lane::Control,
            _ => Lane::Bulk,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.size_hint());
        let kind = match &self.body {
            PeerBody::Raft(_) => RAFT,
            PeerBody::Forward { .. } => FORWARD,
            PeerBody::ForwardAccepted { .. } => FORWARD_ACCEPTED,
            PeerBody::ForwardRefused { .. } => FORWARD_REFUSED,
            PeerBody::Digest { .. } => DIGEST,
            PeerBody::LeaseCalls { .. } => LEASE_CALLS,
            PeerBody::LeaseAnswers { .. } => LEASE_ANSWERS,
            PeerBody::LeaseRefused { .. } => LEASE_REFUSED,
        };
        out.extend_from_slice(&[VERSION, kind]);
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.to.to_le_bytes());
        match &self.body {
            PeerBody::Raft(message) => kvorum_raft::encode_message(message, &mut out),
            PeerBody::Forward { id, commands } => {
                out.extend_from_slice(&id.to_le_bytes());
                for command in commands {
                    let length = u32::try_from(command.len()).expect("a command is limited far below 4 GiB");
                    out.extend_from_slice(&length.to_le_bytes());
                    out.extend_from_slice(command);
                }
            }
            PeerBody::ForwardAccepted { id, term, first } => {
                for number in [id, term, first] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            PeerBody::ForwardRefused { id, why } => {
                out.extend_from_slice(&id.to_le_bytes());
                out.push(*why as u8);
            }
            PeerBody::Digest { index, digest } => {
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&digest.to_le_bytes());
            }
            PeerBody::LeaseCalls { id, calls } => {
                out.extend_from_slice(&id.to_le_bytes());
                for (ask, lease, patience) in calls {
                    out.push(match ask {
                        LeaseAsk::KeepAlive => 0,
                        LeaseAsk::TimeToLive => 1,
                    });
                    out.extend_from_slice(&lease.to_le_bytes());
                    out.extend_from_slice(&patience.to_le_bytes());
                }
            }
            PeerBody::LeaseAnswers { id, answers } => {
                out.extend_from_slice(&id.to_le_bytes());
                for (place, answer) in answers {
                    out.extend_from_slice(&place.to_le_bytes());
                    out.extend_from_slice(&answer.ttl_s.to_le_bytes());
                    out.extend_from_slice(&answer.granted_s.to_le_bytes());
                }
            }
            PeerBody::LeaseRefused { id } => out.extend_from_slice(&id.to_le_bytes()),
        }
        out.into()
    }

    /// The message that `bytes` hold. Commands and entries share their buffer.
    pub fn decode(mut bytes: Bytes) -> Result<PeerMessage, WireError> {
        if bytes.len() < HEADER_BYTES {
            return Err(WireError::Length);
        }
        let (version, kind) = (bytes.get_u8(), bytes.get_u8());
        if version != VERSION {
            return Err(WireError::Newer { version, kind });
        }
        let (from, to) = (bytes.get_u64_le(), bytes.get_u64_le());
        let body = match kind {
            RAFT => {
                let message =
                    kvorum_raft::decode_message(bytes).map_err(|error| WireError::Raft(error.to_string()))?;
                return Ok(PeerMessage {
                    from,
                    to,
                    body: PeerBody::Raft(message),
                });
            }
            FORWARD => PeerBody::Forward {
                id: take_u64(&mut bytes)?,
                commands: take_commands(&mut bytes)?,
            },
            FORWARD_ACCEPTED => PeerBody::ForwardAccepted {
                id: take_u64(&mut bytes)?,
                term: take_u64(&mut bytes)?,
                first: take_u64(&mut bytes)?,
            },
            FORWARD_REFUSED => {
                let id = take_u64(&mut bytes)?;
                let why = match bytes.try_get_u8().map_err(|_| WireError::Length)? {
                    0 => Refusal::NotLeader,
                    1 => Refusal::Overloaded,
                    2 => Refusal::TooLarge,
                    3 => Refusal::NoSpace,
                    _ => return Err(WireError::Newer { version, kind }),
                };
                PeerBody::ForwardRefused { id, why }
            }
            DIGEST => PeerBody::Digest {
                index: take_u64(&mut bytes)?,
                digest: bytes.try_get_u128_le().map_err(|_| WireError::Length)?,
            },
            LEASE_CALLS => PeerBody::LeaseCalls {
                id: take_u64(&mut bytes)?,
                calls: take_lease_calls(&mut bytes, WireError::Newer { version, kind })?,
            },
            LEASE_ANSWERS => PeerBody::LeaseAnswers {
                id: take_u64(&mut bytes)?,
                answers: take_lease_answers(&mut bytes)?,
            },
            LEASE_REFUSED => PeerBody::LeaseRefused {
                id: take_u64(&mut bytes)?,
            },
            _ => return Err(WireError::Newer { version, kind }),
        };
        if bytes.is_empty() {
            Ok(PeerMessage { from, to, body })
        } else {
            Err(WireError::Length)
        }
    }

    fn size_hint(&self) -> usize {
        HEADER_BYTES
            + match &self.body {
                PeerBody::Raft(message) => match &message.body {
                    MessageBody::Append { entries, .. } => {
                        128 + entries.iter().map(|entry| entry.data.len() + 32).sum::<usize>()
                    }
                    _ => 128,
                },
                PeerBody::LeaseCalls { calls, .. } => 8 + calls.len() * 17,
                PeerBody::LeaseAnswers { answers, .. } => 8 + answers.len() * 20,
                PeerBody::Forward { commands, .. } => 8 + commands.iter().map(|c| c.len() + 4).sum::<usize>(),
                _ => 32,
            }
    }
}

fn take_u64(bytes: &mut Bytes) -> Result<u64, WireError> {
    bytes.try_get_u64_le().map_err(|_| WireError::Length)
}

fn take_i64(bytes: &mut Bytes) -> Result<i64, WireError> {
    bytes.try_get_i64_le().map_err(|_| WireError::Length)
}

fn take_lease_calls(bytes: &mut Bytes, newer: WireError) -> Result<Vec<(LeaseAsk, i64, Micros)>, WireError> {
    let mut calls = Vec::new();
    while !bytes.is_empty() {
        let ask = match bytes.get_u8() {
            0 => LeaseAsk::KeepAlive,
            1 => LeaseAsk::TimeToLive,
            _ => return Err(newer),
        };
        calls.push((ask, take_i64(bytes)?, take_u64(bytes)?));
    }
    Ok(calls)
}

fn take_lease_answers(bytes: &mut Bytes) -> Result<Vec<(u32, LeaseAnswer)>, WireError> {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let place = bytes.try_get_u32_le().map_err(|_| WireError::Length)?;
        let (ttl_s, granted_s) = (take_i64(bytes)?, take_i64(bytes)?);
        answers.push((place, LeaseAnswer { ttl_s, granted_s }));
    }
    Ok(answers)
}

fn take_commands(bytes: &mut Bytes) -> Result<Vec<Bytes>, WireError> {
    let mut commands = Vec::new();
    while !bytes.is_empty() {
        let length = bytes.try_get_u32_le().map_err(|_| WireError::Length)? as usize;
        if length > bytes.len() {
            return Err(WireError::Length);
        }
        commands.push(bytes.split_to(length));
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: PeerBody) {
        let message = PeerMessage {
            from: 3,
            to: u64::MAX,
            body,
        };
        let encoded = message.encode();
        assert_eq!(PeerMessage::decode(encoded.clone()), Ok(message));
        for cut in 0..encoded.len() {
            // A cut message is an error or, for a list of commands, a shorter list; never a panic.
            let _ = PeerMessage::decode(encoded.slice(..cut));
        }
        let mut newer = encoded.to_vec();
        newer[0] = 9;
        assert!(matches!(
            PeerMessage::decode(newer.into()),
            Err(WireError::Newer { version: 9, .. })
        ));
    }

    #[test]
    fn every_body_survives_the_wire() {
        check(PeerBody::Forward {
            id: 7,
            commands: vec![Bytes::from_static(b"one"), Bytes::new()],
        });
        check(PeerBody::ForwardAccepted {
            id: 7,
            term: 2,
            first: 99,
        });
        check(PeerBody::ForwardRefused {
            id: 7,
            why: Refusal::NoSpace,
        });
        check(PeerBody::Digest {
            index: 1024,
            digest: u128::MAX - 5,
        });
        check(PeerBody::LeaseCalls {
            id: 8,
            calls: vec![
                (LeaseAsk::KeepAlive, -1, 0),
                (LeaseAsk::TimeToLive, i64::MAX, Micros::MAX),
            ],
        });
        let answer = LeaseAnswer {
            ttl_s: -1,
            granted_s: 0,
        };
        check(PeerBody::LeaseAnswers {
            id: 8,
            answers: vec![(0, answer), (u32::MAX, LeaseAnswer::default())],
        });
        check(PeerBody::LeaseRefused { id: 8 });
    }

    #[test]
    fn a_command_longer_than_the_message_is_refused() {
        let message = PeerMessage {
            from: 1,
            to: 2,
            body: PeerBody::Forward {
                id: 1,
                commands: vec![Bytes::from_static(b"abc")],
            },
        };
        let mut bytes = message.encode().to_vec();
        bytes[HEADER_BYTES + 8] = 0xff;
        assert_eq!(PeerMessage::decode(bytes.into()), Err(WireError::Length));
    }
}
