//! Bytes of messages: every body there and back, and nothing but errors from anything else.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;
use kvorum_raft::*;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // Small, middle and huge numbers alike.
        self.0 >> (self.0 % 64)
    }

    fn log_id(&mut self) -> LogId {
        LogId {
            term: self.next() >> 1,
            index: self.next() >> 1,
        }
    }

    fn bytes(&mut self) -> Bytes {
        (0..self.next() % 20)
            .map(|_| self.next() as u8)
            .collect::<Vec<u8>>()
            .into()
    }

    fn members(&mut self) -> BTreeSet<MemberId> {
        (0..self.next() % 4).map(|_| self.next().max(1)).collect()
    }

    fn configuration(&mut self) -> Configuration {
        Configuration {
            voters: self.members(),
            outgoing: self.members(),
            learners: self.members(),
            learners_next: self.members(),
            removed: self.members(),
        }
    }

    fn entries(&mut self, prev: LogId) -> Vec<Entry> {
        let mut term = prev.term;
        let count = self.next() % 5;
        let entry = |index| {
            term += self.next() % 3;
            let kind = EntryKind::from_u8((self.next() % 3) as u8).unwrap();
            Entry {
                term,
                index,
                kind,
                data: self.bytes(),
            }
        };
        (prev.index + 1..=prev.index + count).map(entry).collect()
    }

    fn body(&mut self, kind: u64) -> MessageBody {
        let read = ReadId {
            member: self.next(),
            boot: self.next(),
            counter: self.next(),
        };
        let (epoch, round, campaign) = (self.next(), self.next(), self.next());
        let (flag, number, last) = (self.next().is_multiple_of(2), self.next(), self.log_id());
        match kind {
            0 => MessageBody::PreVote { campaign, last },
            1 => MessageBody::PreVoteReply {
                campaign,
                asked: number,
                granted: flag,
            },
            2 => MessageBody::Vote {
                campaign,
                last,
                forced: flag,
            },
            3 => MessageBody::VoteReply {
                campaign,
                granted: flag,
            },
            4 => MessageBody::Append {
                epoch,
                round,
                prev: last,
                commit: number,
                entries: self.entries(last),
            },
            5 => {
                let result = match flag {
                    true => AppendResult::Matched(number),
                    false => AppendResult::Refused {
                        hint: last,
                        last: number,
                    },
                };
                MessageBody::AppendReply {
                    epoch,
                    round,
                    prev: self.next(),
                    result,
                }
            }
            6 => MessageBody::Heartbeat {
                epoch,
                round,
                commit: number,
                keep: self.next(),
            },
            7 => MessageBody::HeartbeatReply {
                epoch,
                round,
                boot: number,
                installing: flag,
            },
            8 => MessageBody::Commit { commit: number },
            9 => {
                let meta = SnapshotMeta {
                    last,
                    configuration: self.configuration(),
                };
                MessageBody::Snapshot { epoch, round, meta }
            }
            10 => MessageBody::TimeoutNow { last },
            11 => MessageBody::ReadIndex { read },
            12 => MessageBody::ReadIndexReply {
                read,
                index: flag.then_some(number),
                leader: self.next(),
            },
            13 => MessageBody::HigherTerm,
            _ => MessageBody::Removed,
        }
    }

    fn message(&mut self, kind: u64) -> Message {
        let body = self.body(kind);
        Message {
            cluster: self.next(),
            from: self.next(),
            to: self.next(),
            term: self.next(),
            body,
        }
    }
}

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_message(message, &mut bytes);
    bytes
}

#[test]
fn every_message_comes_back() {
    let mut random = Random(1);
    for round in 0..15_000 {
        let message = random.message(round % 15);
        assert_eq!(decode_message(encode(&message).into()), Ok(message));
    }
}

#[test]
fn entries_share_the_input() {
    let data = Bytes::from_static(b"a value that is not copied");
    let entries = vec![Entry {
        term: 1,
        index: 2,
        kind: EntryKind::Command,
        data,
    }];
    let prev = LogId { term: 1, index: 1 };
    let body = MessageBody::Append {
        epoch: 1,
        round: 1,
        prev,
        commit: 0,
        entries,
    };
    let bytes = Bytes::from(encode(&Message {
        cluster: 1,
        from: 1,
        to: 2,
        term: 1,
        body,
    }));
    let range = bytes.as_ptr() as usize..bytes.as_ptr() as usize + bytes.len();
    let MessageBody::Append { entries, .. } = decode_message(bytes.clone()).unwrap().body else {
        panic!()
    };
    assert!(range.contains(&(entries[0].data.as_ptr() as usize)));
}

/// Cut anywhere: an error. Extended: an error. A bit changed: an error, or another message whose only
/// encoding these bytes are.
#[test]
fn damaged_messages_never_panic_and_have_one_encoding() {
    let mut random = Random(2);
    for round in 0..1500 {
        let bytes = encode(&random.message(round % 15));
        for end in 0..bytes.len() {
            assert!(decode_message(Bytes::copy_from_slice(&bytes[..end])).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(decode_message(longer.into()), Err(DecodeError::TrailingBytes));
        for _ in 0..40 {
            let mut damaged = bytes.clone();
            let at = random.next() as usize % damaged.len();
            damaged[at] ^= 1 << (random.next() % 8);
            if let Ok(message) = decode_message(damaged.clone().into()) {
                assert_eq!(encode(&message), damaged);
            }
        }
    }
}

#[test]
fn noise_never_panics() {
    let mut random = Random(3);
    for round in 0..100_000 {
        let mut noise: Vec<u8> = (0..random.next() % 120).map(|_| random.next() as u8).collect();
        if round % 2 == 0 && noise.len() > 2 {
            (noise[0], noise[1]) = (1, noise[1] % 16);
        }
        let _ = decode_message(noise.clone().into());
        let _ = Configuration::decode(&noise);
        let _ = SnapshotMeta::decode(&noise);
        let _ = ConfigEntry::decode(&noise.into());
    }
}

/// A count is checked against what is left before anything is allocated for it.
#[test]
fn huge_counts_are_truncated_input() {
    let prev = LogId::default();
    let body = MessageBody::Append {
        epoch: 1,
        round: 1,
        prev,
        commit: 0,
        entries: Vec::new(),
    };
    let mut bytes = encode(&Message {
        cluster: 1,
        from: 1,
        to: 2,
        term: 1,
        body,
    });
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode_message(bytes.into()), Err(DecodeError::Truncated));
    assert_eq!(
        Configuration::decode(&[1, 255, 255, 255, 255]),
        Err(DecodeError::Truncated)
    );
}

#[test]
fn newer_versions_and_kinds_are_named() {
    let message = Message {
        cluster: 1,
        from: 1,
        to: 2,
        term: 1,
        body: MessageBody::HigherTerm,
    };
    let mut bytes = encode(&message);
    bytes[1] = 99;
    assert_eq!(
        decode_message(bytes.clone().into()),
        Err(DecodeError::UnknownKind(99))
    );
    bytes[0] = 2;
    assert_eq!(decode_message(bytes.into()), Err(DecodeError::UnknownVersion(2)));
}

#[test]
fn configurations_come_back_and_are_canonical() {
    let mut random = Random(4);
    for _ in 0..2000 {
        let configuration = random.configuration();
        let mut bytes = Vec::new();
        configuration.encode(&mut bytes);
        assert_eq!(Configuration::decode(&bytes), Ok(configuration.clone()));

        let meta = SnapshotMeta {
            last: random.log_id(),
            configuration: configuration.clone(),
        };
        let mut bytes = Vec::new();
        meta.encode(&mut bytes);
        assert_eq!(SnapshotMeta::decode(&bytes), Ok(meta));

        let entry = ConfigEntry {
            configuration,
            context: random.bytes(),
        };
        assert_eq!(ConfigEntry::decode(&entry.encode()), Ok(entry));
    }
    // Voters 2, 1: not ascending. Voter 0: nobody.
    for ids in [[2u64, 1], [1, 1], [0, 1]] {
        let mut bytes = vec![1, 2, 0, 0, 0];
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend([0; 16]);
        assert_eq!(
            Configuration::decode(&bytes),
            Err(DecodeError::Invalid("order of members"))
        );
    }
}
