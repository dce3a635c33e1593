#![allow(clippy::unwrap_used)]

use super::*;
use crate::auth::{Access, AuthCommand, Caller, Permission, Secret};
use crate::command::{Alarm, LeaseProof, LeaseRemainder, MemberRecord, Setting};
use crate::types::*;

/// splitmix64
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    fn number(&mut self) -> i64 {
        [0, 1, -1, i64::MAX, i64::MIN, 77][self.below(6) as usize]
    }

    fn bytes(&mut self) -> Bytes {
        (0..self.below(5))
            .map(|_| self.below(256) as u8)
            .collect::<Vec<u8>>()
            .into()
    }

    fn text(&mut self) -> String {
        ["", "n1", "ü", "127.0.0.1:2380"][self.below(4) as usize].to_string()
    }

    fn many<T>(&mut self, mut each: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(3)).map(|_| each(self)).collect()
    }

    fn key_range(&mut self) -> KeyRange {
        KeyRange {
            key: self.bytes(),
            end: self.bytes(),
        }
    }

    fn put(&mut self) -> PutRequest {
        PutRequest {
            key: self.bytes(),
            value: self.bytes(),
            lease: self.number(),
            prev_kv: self.flip(),
            ignore_value: self.flip(),
            ignore_lease: self.flip(),
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            range: self.key_range(),
            prev_kv: self.flip(),
        }
    }

    fn range(&mut self) -> RangeRequest {
        let targets = [
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ];
        RangeRequest {
            range: self.key_range(),
            limit: self.number(),
            revision: self.number(),
            sort_order: [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][self.below(3) as usize],
            sort_target: targets[self.below(5) as usize],
            keys_only: self.flip(),
            count_only: self.flip(),
            min_mod_revision: self.number(),
            max_mod_revision: self.number(),
            min_create_revision: self.number(),
            max_create_revision: self.number(),
        }
    }

    fn compare(&mut self) -> Compare {
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ];
        let target = match self.below(6) {
            0 => CompareTarget::Version(self.number()),
            1 => CompareTarget::Create(self.number()),
            2 => CompareTarget::Mod(self.number()),
            3 => CompareTarget::Value(self.bytes()),
            4 => CompareTarget::LiveKeys(self.number()),
            _ => CompareTarget::Lease(self.number()),
        };
        Compare {
            range: self.key_range(),
            result: results[self.below(4) as usize],
            target,
        }
    }

    fn op(&mut self, depth: u64) -> RequestOp {
        match self.below(if depth < 4 { 4 } else { 3 }) {
            0 => RequestOp::Range(self.range()),
            1 => RequestOp::Put(self.put()),
            2 => RequestOp::DeleteRange(self.delete()),
            _ => RequestOp::Txn(self.txn(depth + 1)),
        }
    }

    fn txn(&mut self, depth: u64) -> TxnRequest {
        TxnRequest {
            compare: self.many(Rng::compare),
            success: self.many(|rng| rng.op(depth)),
            failure: self.many(|rng| rng.op(depth)),
        }
    }

    fn member(&mut self) -> MemberRecord {
        MemberRecord {
            id: self.number() as u64,
            name: self.text(),
            peer_addresses: self.many(Rng::text),
            client_urls: self.many(Rng::text),
            incarnation: u128::from(self.number() as u64) << 60,
            feature_level: self.below(9) as u32,
            promote_when_ready: self.flip(),
        }
    }

    fn administration(&mut self) -> Command {
        match self.below(5) {
            0 => Command::PublishMember(self.member()),
            1 => Command::AddMember(self.member()),
            2 => Command::RemoveMember(self.number() as u64),
            3 => Command::ClusterSetting(Setting::KeyBytesMax(self.number() as u64)),
            _ => Command::ClusterSetting(Setting::HistoryMs(self.number() as u64)),
        }
    }

    fn command(&mut self) -> Command {
        match self.below(15) {
            0 => Command::Put(self.put()),
            1 => Command::DeleteRange(self.delete()),
            2 => Command::Txn(self.txn(1)),
            3 => Command::Compact(self.number()),
            4 => Command::Register,
            5 => Command::ExpireSessions(self.many(|rng| rng.number() as u64)),
            6 => Command::ClusterInit {
                uuid: u128::MAX - u128::from(self.below(9)),
                election_timeout_ms: self.below(1000),
            },
            7 => Command::Batch(self.many(Rng::administration)),
            8 => Command::LeaseGrant {
                id: self.number(),
                ttl_s: self.number(),
            },
            9 => Command::LeaseRevoke {
                id: self.number(),
                expiry: self.flip().then(|| LeaseProof {
                    term: self.below(9),
                    granted: self.number() as u64,
                }),
            },
            10 => Command::LeaseCheckpoint {
                term: self.below(9),
                leases: self.many(|rng| LeaseRemainder {
                    id: rng.number(),
                    granted: rng.below(99),
                    remaining_s: rng.number(),
                }),
            },
            11 => Command::SetAlarm {
                alarm: if self.flip() {
                    Alarm::NoSpace
                } else {
                    Alarm::Corrupt
                },
                member: self.number() as u64,
                raised: self.flip(),
            },
            12 => Command::MoveMember {
                id: self.number() as u64,
                peer_addresses: self.many(Rng::text),
            },
            13 => Command::Auth(self.auth()),
            _ => self.administration(),
        }
    }

    fn auth(&mut self) -> AuthCommand {
        let (name, role) = (self.text(), self.text());
        let secret = Secret(self.bytes());
        match self.below(12) {
            0 => AuthCommand::Enable,
            1 => AuthCommand::Disable,
            2 => AuthCommand::Authenticate {
                user: name,
                token: secret,
                auth_revision: self.number() as u64,
            },
            3 => AuthCommand::UserAdd {
                name,
                password: secret,
                no_password: self.flip(),
            },
            4 => AuthCommand::UserDelete { name },
            5 => AuthCommand::UserChangePassword {
                name,
                password: secret,
            },
            6 => AuthCommand::UserGrantRole { name, role },
            7 => AuthCommand::UserRevokeRole { name, role },
            8 => AuthCommand::RoleAdd { name },
            9 => AuthCommand::RoleDelete { name },
            10 => AuthCommand::RoleGrantPermission {
                name,
                permission: Permission {
                    access: [Access::Read, Access::Write, Access::ReadWrite][self.below(3) as usize],
                    range: self.key_range(),
                },
            },
            _ => AuthCommand::RoleRevokePermission {
                name,
                range: self.key_range(),
            },
        }
    }

    fn envelope(&mut self) -> Envelope {
        Envelope {
            time_ms: self.number() as u64,
            origin: Origin {
                member: self.number() as u64,
                boot: self.number() as u64,
                seq: self.below(99),
            },
            session: self.flip().then(|| SessionRef {
                id: self.number() as u64,
                seq: self.below(9),
            }),
            caller: self.flip().then(|| Caller {
                user: self.text(),
                auth_revision: self.number() as u64,
            }),
            command: self.command(),
        }
    }

    fn kv(&mut self) -> KeyValue {
        KeyValue {
            key: self.bytes(),
            create_revision: self.number(),
            mod_revision: self.number(),
            version: self.number(),
            value: self.bytes(),
            lease: self.number(),
        }
    }

    fn response(&mut self, depth: u64) -> ResponseOp {
        match self.below(if depth < 4 { 4 } else { 3 }) {
            0 => ResponseOp::Range(RangeResponse {
                kvs: self.many(Rng::kv),
                more: self.flip(),
                count: self.number(),
            }),
            1 => ResponseOp::Put(self.put_response()),
            2 => ResponseOp::DeleteRange(self.delete_response()),
            _ => ResponseOp::Txn(self.txn_response(depth + 1)),
        }
    }

    fn put_response(&mut self) -> PutResponse {
        PutResponse {
            prev_kv: self.flip().then(|| self.kv()),
        }
    }

    fn delete_response(&mut self) -> DeleteRangeResponse {
        DeleteRangeResponse {
            deleted: self.number(),
            prev_kvs: self.many(Rng::kv),
        }
    }

    fn txn_response(&mut self, depth: u64) -> TxnResponse {
        TxnResponse {
            succeeded: self.flip(),
            responses: self.many(|rng| rng.response(depth)),
        }
    }

    fn result(&mut self) -> Result<Reply, Error> {
        match self.below(10) {
            0 => Ok(Reply::Put(self.put_response())),
            1 => Ok(Reply::DeleteRange(self.delete_response())),
            2 => Ok(Reply::Txn(self.txn_response(1))),
            3 => Ok(Reply::Compact),
            4 => Ok(Reply::Registered(self.number() as u64)),
            5 => Ok(Reply::Done),
            6 => Ok(Reply::LeaseGranted {
                id: self.number(),
                ttl_s: self.number(),
            }),
            7 => Ok(Reply::LeaseRevoked),
            8 => Err(Error::KeyTooLarge {
                bytes: 9,
                max: self.below(9),
            }),
            _ => {
                let errors = [
                    Error::EmptyKey,
                    Error::KeyNotFound,
                    Error::ValueProvided,
                    Error::LeaseProvided,
                    Error::TooManyOps,
                    Error::DuplicateKey,
                    Error::RequestTooLarge,
                    Error::InvalidSortOption,
                    Error::Compacted,
                    Error::FutureRevision,
                    Error::LeaseNotFound,
                    Error::SessionExpired,
                    Error::SessionMismatch,
                    Error::TooManySessions,
                    Error::NoSpace,
                    Error::Skipped,
                    Error::LeaseExists,
                    Error::LeaseTtlTooLarge,
                    Error::Corrupt,
                    Error::NameTooLarge { bytes: 9, max: 8 },
                    Error::UserEmpty,
                    Error::RoleEmpty,
                    Error::AuthenticationFailed,
                    Error::PermissionNotGiven,
                    Error::InvalidAuthManagement,
                    Error::OldAuthRevision,
                    Error::RootUserNotFound,
                    Error::RootRoleNotGranted,
                    Error::UserExists,
                    Error::UserNotFound,
                    Error::RoleExists,
                    Error::RoleNotFound,
                    Error::RoleNotGranted,
                    Error::PermissionNotGranted,
                    Error::AuthNotEnabled,
                    Error::PermissionDenied,
                    Error::InvalidToken,
                ];
                Err(errors[self.below(errors.len() as u64) as usize].clone())
            }
        }
    }
}

fn put(key: &str, value: &str) -> Envelope {
    let request = PutRequest {
        key: key.to_string().into(),
        value: value.to_string().into(),
        ..PutRequest::default()
    };
    Envelope {
        time_ms: 1,
        origin: Origin {
            member: 2,
            boot: 3,
            seq: 4,
        },
        session: None,
        caller: None,
        command: Command::Put(request),
    }
}

#[test]
fn the_bytes_of_a_put_are_those_of_the_document() {
    let mut envelope = put("k", "vv");
    let golden = "01 00 0000 0100000000000000 0200000000000000 0300000000000000 0400000000000000 \
                  01 00 01000000 6b 02000000 7676";
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&envelope.encode()), golden.replace(' ', ""));
    envelope.session = Some(SessionRef { id: 5, seq: 6 });
    let golden = "01 01 0000 0100000000000000 0200000000000000 0300000000000000 0400000000000000 \
                  0500000000000000 0600000000000000 01 00 01000000 6b 02000000 7676";
    assert_eq!(hex(&envelope.encode()), golden.replace(' ', ""));
    envelope.caller = Some(Caller {
        user: "me".to_owned(),
        auth_revision: 7,
    });
    let golden = "01 03 0000 0100000000000000 0200000000000000 0300000000000000 0400000000000000 \
                  0500000000000000 0600000000000000 0700000000000000 02000000 6d65 \
                  01 00 01000000 6b 02000000 7676";
    assert_eq!(hex(&envelope.encode()), golden.replace(' ', ""));
}

#[test]
fn secrets_are_not_shown() {
    let command = AuthCommand::UserAdd {
        name: "me".to_owned(),
        password: Secret(Bytes::from_static(b"hash")),
        no_password: false,
    };
    let shown = format!(
        "{command:?} {:?}",
        Reply::Authenticated(Secret(Bytes::from_static(b"hash")))
    );
    assert!(
        shown.contains("me") && !shown.contains("hash") && !shown.contains("104"),
        "{shown}"
    );
}

#[test]
fn what_is_encoded_decodes_and_has_one_encoding() {
    let mut rng = Rng(1);
    for _ in 0..5_000 {
        let envelope = rng.envelope();
        let bytes = envelope.encode();
        assert_eq!(bytes.len(), envelope.encoded_len());
        assert_eq!(Envelope::decode(bytes.clone()).unwrap(), envelope);
        assert_eq!(Envelope::peek_origin(&bytes).unwrap(), envelope.origin);
        assert_eq!(Envelope::peek_time(&bytes).unwrap(), envelope.time_ms);
        assert_eq!(
            Command::decode(envelope.command.encode()).unwrap(),
            envelope.command
        );
        let body = envelope.command.encode();
        assert_eq!(Envelope::peek_command(&bytes).unwrap(), &body[1..]);

        let result = rng.result();
        let mut out = Vec::new();
        Reply::encode_result(&result, &mut out);
        assert_eq!(out.len(), Reply::encoded_len(&result));
        assert_eq!(Reply::decode_result(out.into()).unwrap(), result);
    }
}

#[test]
fn stamping_changes_the_time_and_nothing_else() {
    let envelope = put("k", "v");
    let mut bytes = envelope.encode().to_vec();
    Envelope::stamp(&mut bytes, 99);
    assert_eq!(
        Envelope::decode(bytes.into()).unwrap(),
        Envelope {
            time_ms: 99,
            ..envelope
        }
    );
}

#[test]
fn keys_and_values_share_the_entrys_memory() {
    let bytes = put("key", "value").encode();
    let Command::Put(request) = Envelope::decode(bytes.clone()).unwrap().command else {
        panic!("a put")
    };
    assert!(bytes.as_ptr_range().contains(&request.key.as_ptr()));
    assert!(bytes.as_ptr_range().contains(&request.value.as_ptr()));
}

/// Cut or damaged bytes give an error, or another entry with exactly these bytes; never a panic.
#[test]
fn damaged_entries_are_refused_or_canonical() {
    let mut rng = Rng(2);
    for _ in 0..400 {
        let bytes = rng.envelope().encode();
        for cut in 0..bytes.len() {
            assert!(Envelope::decode(bytes.slice(..cut)).is_err());
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << rng.below(8);
            let damaged = Bytes::from(damaged);
            if let Ok(envelope) = Envelope::decode(damaged.clone()) {
                assert_eq!(envelope.encode(), damaged);
            }
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Envelope::decode(longer.into()).is_err());

        let mut reply = Vec::new();
        Reply::encode_result(&rng.result(), &mut reply);
        for at in 0..reply.len() {
            let mut damaged = reply.clone();
            damaged[at] = damaged[at].wrapping_add(1 + rng.below(255) as u8);
            let _ = Reply::decode_result(damaged.into());
            assert!(Reply::decode_result(Bytes::copy_from_slice(&reply[..at])).is_err());
        }
    }
}

#[test]
fn what_a_newer_version_writes_is_named() {
    let bytes = put("k", "v").encode();
    let with = |at: usize, value: u8| {
        let mut changed = bytes.to_vec();
        changed[at] = value;
        Envelope::decode(changed.into()).unwrap_err()
    };
    let newer = |what, value| DecodeError::Newer { what, value };
    assert_eq!(with(0, 2), newer("entry format", 2));
    assert_eq!(with(1, 4), newer("entry flags", 4));
    assert_eq!(with(2, 1), newer("reserved header field", 1));
    assert_eq!(with(36, 200), newer("command", 200));
    assert_eq!(with(37, 0x80), newer("put flags", 0x80));
    assert!(newer("command", 200).to_string().contains("newer format"));
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| {
        let mut txn = TxnRequest::default();
        for _ in 1..depth {
            txn = TxnRequest {
                success: vec![RequestOp::Txn(txn)],
                ..TxnRequest::default()
            };
        }
        Command::Txn(txn)
    };
    assert!(Command::decode(nested(limits::TXN_DEPTH_MAX).encode()).is_ok());
    let deeper = Command::decode(nested(limits::TXN_DEPTH_MAX + 1).encode());
    assert!(matches!(deeper, Err(DecodeError::Malformed { .. })));
    assert!(Command::decode(nested(5_000).encode()).is_err());
}

/// A count that promises more than the bytes can hold allocates nothing.
#[test]
fn counts_are_held_against_the_length() {
    let mut bytes = Command::ExpireSessions(vec![1, 2]).encode().to_vec();
    bytes[2..6].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        Command::decode(bytes.into()),
        Err(DecodeError::Truncated { .. })
    ));
    let mut bytes = put("k", "v").encode().to_vec();
    bytes[38..42].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        Envelope::decode(bytes.into()),
        Err(DecodeError::Truncated { .. })
    ));
}

#[test]
fn a_batch_holds_no_writes() {
    let batch = Command::Batch(vec![Command::Register]);
    assert!(matches!(
        Command::decode(batch.encode()),
        Err(DecodeError::Malformed { .. })
    ));
    let batch = Command::Batch(vec![Command::Batch(vec![])]);
    assert!(Command::decode(batch.encode()).is_err());
}
