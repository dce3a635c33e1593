#![allow(clippy::unwrap_used)]

use kvorum_model::{Compare, CompareResult, DeleteRangeRequest, RangeRequest};

use super::*;
use crate::store::{Batch, MemStore, Store};

/// A state, and everything that it wrote.
#[derive(Default)]
struct Auth {
    state: AuthState,
    writes: Vec<Write>,
    changes: Vec<AuthChange>,
}

fn range(key: &'static str, end: &'static str) -> KeyRange {
    KeyRange {
        key: Bytes::from_static(key.as_bytes()),
        end: Bytes::from_static(end.as_bytes()),
    }
}

fn secret(text: &'static str) -> Secret {
    Secret(Bytes::from_static(text.as_bytes()))
}

impl Auth {
    fn apply(&mut self, command: AuthCommand) -> Result<Reply, Error> {
        self.state.apply(command, 77, &mut self.writes, &mut self.changes)
    }

    #[track_caller]
    fn does(&mut self, command: AuthCommand) {
        let before = self.state.revision;
        self.apply(command).unwrap();
        assert_eq!(self.state.revision, before + 1, "a change is a revision");
    }

    /// A refusal, after which everything is as before.
    #[track_caller]
    fn refuses(&mut self, command: AuthCommand, expected: Error) {
        let (state, writes) = (self.state.clone(), self.writes.len());
        assert_eq!(self.apply(command), Err(expected));
        assert_eq!((&self.state, self.writes.len()), (&state, writes));
    }

    fn caller(&self, user: &str) -> Option<Caller> {
        Some(Caller {
            user: user.to_owned(),
            auth_revision: self.state.revision,
        })
    }

    /// With `root`, and `user` who may read [a, c) and write [b, d).
    fn enabled() -> Auth {
        let mut auth = Auth::default();
        auth.does(add("root"));
        auth.does(grant("root", "root"));
        auth.does(add("user"));
        auth.does(role("r"));
        auth.does(grant("user", "r"));
        auth.does(permit("r", Access::Read, "a", "c"));
        auth.does(permit("r", Access::Write, "b", "d"));
        auth.apply(AuthCommand::Enable).unwrap();
        auth
    }
}

fn add(name: &str) -> AuthCommand {
    AuthCommand::UserAdd {
        name: name.to_owned(),
        password: secret("hash"),
        no_password: false,
    }
}

fn role(name: &str) -> AuthCommand {
    AuthCommand::RoleAdd {
        name: name.to_owned(),
    }
}

fn grant(name: &str, role: &str) -> AuthCommand {
    AuthCommand::UserGrantRole {
        name: name.to_owned(),
        role: role.to_owned(),
    }
}

fn take(name: &str, role: &str) -> AuthCommand {
    AuthCommand::UserRevokeRole {
        name: name.to_owned(),
        role: role.to_owned(),
    }
}

fn permit(role: &str, access: Access, key: &'static str, end: &'static str) -> AuthCommand {
    AuthCommand::RoleGrantPermission {
        name: role.to_owned(),
        permission: Permission {
            access,
            range: range(key, end),
        },
    }
}

fn forbid(role: &str, key: &'static str, end: &'static str) -> AuthCommand {
    AuthCommand::RoleRevokePermission {
        name: role.to_owned(),
        range: range(key, end),
    }
}

#[test]
fn users_and_roles_come_and_go() {
    let mut auth = Auth::default();
    assert_eq!(auth.state.revision(), 1);
    auth.refuses(add(""), Error::UserEmpty);
    auth.refuses(role(""), Error::RoleEmpty);
    auth.does(add("u"));
    auth.does(role("r"));
    auth.refuses(add("u"), Error::UserExists);
    auth.refuses(role("r"), Error::RoleExists);
    auth.refuses(grant("x", "r"), Error::UserNotFound);
    auth.refuses(grant("u", "x"), Error::RoleNotFound);
    auth.does(grant("u", "r"));
    // One that it has already is no change, and no refusal.
    let before = auth.state.clone();
    assert_eq!(auth.apply(grant("u", "r")), Ok(Reply::Done));
    assert_eq!(auth.state, before);
    assert_eq!(auth.state.user("u").unwrap().collect::<Vec<_>>(), ["r"]);
    auth.refuses(take("x", "r"), Error::UserNotFound);
    auth.refuses(take("u", "x"), Error::RoleNotGranted);
    auth.does(take("u", "r"));
    auth.refuses(take("u", "r"), Error::RoleNotGranted);
    // A role that goes goes from its users, too.
    auth.does(grant("u", "r"));
    auth.does(AuthCommand::RoleDelete { name: "r".to_owned() });
    assert_eq!(auth.state.user("u").unwrap().count(), 0);
    auth.refuses(
        AuthCommand::RoleDelete { name: "r".to_owned() },
        Error::RoleNotFound,
    );
    auth.does(AuthCommand::UserDelete { name: "u".to_owned() });
    auth.refuses(
        AuthCommand::UserDelete { name: "u".to_owned() },
        Error::UserNotFound,
    );
    assert_eq!(auth.changes, [AuthChange::UserTokensEnd("u".to_owned())]);
}

#[test]
fn permissions_stand_by_range_and_in_order() {
    let mut auth = Auth::default();
    auth.refuses(permit("r", Access::Read, "a", ""), Error::RoleNotFound);
    auth.does(role("r"));
    // Of a range that has no keys, or none at all.
    for (key, end) in [("", ""), ("b", "a"), ("b", "b")] {
        auth.refuses(permit("r", Access::Read, key, end), Error::InvalidAuthManagement);
    }
    auth.does(permit("r", Access::Read, "b", "c"));
    auth.does(permit("r", Access::Read, "a", "\0"));
    auth.does(permit("r", Access::Read, "b", "d"));
    auth.does(permit("r", Access::Write, "b", "d"));
    let ends: Vec<_> = auth
        .state
        .role("r")
        .unwrap()
        .into_iter()
        .map(|permission| (permission.range.end, permission.access))
        .collect();
    let expected = [("\0", Access::Read), ("c", Access::Read), ("d", Access::Write)];
    let expected = expected.map(|(end, access)| (Bytes::from_static(end.as_bytes()), access));
    assert_eq!(ends, expected);
    auth.refuses(forbid("r", "a", ""), Error::PermissionNotGranted);
    auth.refuses(forbid("x", "a", ""), Error::RoleNotFound);
    auth.does(forbid("r", "a", "\0"));
    assert_eq!(auth.state.role("r").unwrap().len(), 2);
    assert_eq!(auth.state.role("x"), Err(Error::RoleNotFound));
}

/// Nobody can be locked out of administration.
#[test]
fn root_must_be_there_and_stays() {
    let mut auth = Auth::default();
    auth.refuses(AuthCommand::Enable, Error::RootUserNotFound);
    auth.does(add("root"));
    auth.refuses(AuthCommand::Enable, Error::RootRoleNotGranted);
    // The role need not exist to be granted.
    auth.does(grant("root", "root"));
    assert_eq!(auth.state.role("root"), Err(Error::RoleNotFound));
    let revision = auth.state.revision;
    auth.apply(AuthCommand::Enable).unwrap();
    auth.apply(AuthCommand::Enable).unwrap();
    assert_eq!(
        auth.state.revision, revision,
        "as in etcd, to enable is no revision"
    );
    assert!(auth.state.is_enabled());
    auth.does(role("root"));
    auth.does(permit("root", Access::Read, "a", ""));
    let all = auth.state.role("root").unwrap();
    assert_eq!((all.len(), all[0].access), (1, Access::ReadWrite));
    let name = || "root".to_owned();
    let kept = [
        AuthCommand::UserDelete { name: name() },
        AuthCommand::RoleDelete { name: name() },
        take("root", "root"),
    ];
    for command in kept.clone() {
        auth.refuses(command, Error::InvalidAuthManagement);
    }
    auth.does(AuthCommand::Disable);
    assert_eq!(auth.changes, [AuthChange::AllTokensEnd]);
    assert_eq!(auth.apply(AuthCommand::Disable), Ok(Reply::Done));
    auth.does(take("root", "root"));
    auth.does(AuthCommand::RoleDelete { name: name() });
    auth.does(AuthCommand::UserDelete { name: name() });
}

#[test]
fn tokens_are_for_those_who_showed_the_password_of_now() {
    let login = |user: &str, auth_revision| AuthCommand::Authenticate {
        user: user.to_owned(),
        token: secret("abc"),
        auth_revision,
    };
    let mut auth = Auth::default();
    auth.refuses(login("root", 1), Error::AuthNotEnabled);
    let mut auth = Auth::enabled();
    auth.does(AuthCommand::UserAdd {
        name: "cert".to_owned(),
        password: secret("ignored"),
        no_password: true,
    });
    let revision = auth.state.revision;
    auth.refuses(login("nobody", revision), Error::AuthenticationFailed);
    auth.refuses(login("cert", revision), Error::AuthenticationFailed);
    auth.refuses(login("user", revision - 1), Error::OldAuthRevision);
    assert_eq!(
        auth.apply(login("user", revision)),
        Ok(Reply::Authenticated(secret("abc.77")))
    );
    let change = |name: &str| AuthCommand::UserChangePassword {
        name: name.to_owned(),
        password: secret("other"),
    };
    auth.does(change("user"));
    assert_eq!(auth.state.password("user"), Ok(secret("other")));
    auth.refuses(change("nobody"), Error::UserNotFound);
    // A user without a password does not get one.
    auth.does(change("cert"));
    assert_eq!(auth.state.password("cert"), Err(Error::AuthenticationFailed));
    let user = "user".to_owned();
    let token = secret("abc.77");
    assert_eq!(
        auth.changes,
        [
            AuthChange::Token {
                token,
                user: user.clone()
            },
            AuthChange::UserTokensEnd(user),
            AuthChange::UserTokensEnd("cert".to_owned()),
        ]
    );
}

#[test]
fn who_asks_must_be_known_and_permitted() {
    let auth = Auth::enabled();
    let check = |caller: Option<Caller>, key, end, access, expected: Result<(), Error>| {
        assert_eq!(
            auth.state.check(caller.as_ref(), &range(key, end), access),
            expected,
            "{caller:?} {key} {end}"
        );
    };
    let (root, user) = (auth.caller("root"), auth.caller("user"));
    let denied = || Err(Error::PermissionDenied);
    check(None, "a", "", Access::Read, Err(Error::UserEmpty));
    check(auth.caller(""), "a", "", Access::Read, Err(Error::UserEmpty));
    check(auth.caller("gone"), "a", "", Access::Read, denied());
    check(root.clone(), "\0", "\0", Access::ReadWrite, Ok(()));
    check(user.clone(), "a", "c", Access::Read, Ok(()));
    check(user.clone(), "a", "", Access::Write, denied());
    check(user.clone(), "b", "", Access::Write, Ok(()));
    check(user.clone(), "a", "\0", Access::Read, denied());
    // At a revision that is no more, even root.
    let old = |caller: Option<Caller>| {
        caller.map(|caller| Caller {
            auth_revision: caller.auth_revision - 1,
            ..caller
        })
    };
    check(
        old(user.clone()),
        "a",
        "",
        Access::Read,
        Err(Error::OldAuthRevision),
    );
    check(
        old(root.clone()),
        "a",
        "",
        Access::Read,
        Err(Error::OldAuthRevision),
    );
    let admin = |caller: &Option<Caller>| auth.state.check_admin(caller.as_ref());
    assert_eq!(admin(&root), Ok(()));
    assert_eq!(admin(&old(root)), Ok(()), "as in etcd");
    assert_eq!(admin(&user), Err(Error::PermissionDenied));
    assert_eq!(admin(&auth.caller("gone")), Err(Error::UserNotFound));
    assert_eq!(admin(&None), Err(Error::UserEmpty));
    assert_eq!(AuthState::default().check_admin(None), Ok(()));
    assert_eq!(
        AuthState::default().check(None, &range("a", ""), Access::ReadWrite),
        Ok(())
    );
}

fn put(key: &'static str) -> PutRequest {
    PutRequest {
        key: Bytes::from_static(key.as_bytes()),
        ..PutRequest::default()
    }
}

fn delete(key: &'static str, end: &'static str, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest {
        range: range(key, end),
        prev_kv,
    }
}

/// Commands of `user`, who may read [a, c) and write [b, d). Lease 1 has no keys, 2 one that it may write, 3 one that
/// it may not.
#[test]
fn commands_are_checked_whole() {
    let auth = Auth::enabled();
    let lease_keys = |id: i64| {
        let key: &'static [u8] = match id {
            2 => b"c",
            3 => b"a",
            _ => return Ok(Vec::new()),
        };
        Ok::<_, Error>(vec![Bytes::from_static(key)])
    };
    let check_as = |caller: Option<Caller>, command: &Command| {
        auth.state.check_command(caller.as_ref(), command, lease_keys)
    };
    let check = |command: Command, expected: bool| {
        let denied = Err(Error::PermissionDenied);
        let answer = check_as(auth.caller("user"), &command);
        assert_eq!(answer, if expected { Ok(()) } else { denied }, "{command:?}");
        assert_eq!(check_as(auth.caller("root"), &command), Ok(()), "{command:?}");
        let nobody = check_as(None, &command);
        assert_eq!(nobody, Err(Error::UserEmpty), "{command:?}");
    };
    check(Command::Put(put("b")), true);
    check(Command::Put(put("a")), false);
    let with = |key, lease, prev_kv| PutRequest {
        lease,
        prev_kv,
        ..put(key)
    };
    check(Command::Put(with("b", 0, true)), true);
    check(Command::Put(with("c", 0, true)), false);
    check(Command::Put(with("b", 1, false)), true);
    check(Command::Put(with("b", 2, false)), true);
    check(Command::Put(with("b", 3, false)), false);
    check(Command::Put(with("b", 9, false)), true);
    check(Command::DeleteRange(delete("b", "d", false)), true);
    check(Command::DeleteRange(delete("b", "d", true)), false);
    check(Command::DeleteRange(delete("b", "c", true)), true);
    check(Command::DeleteRange(delete("b", "\0", false)), false);
    let txn = |compare: Option<KeyRange>, ops: Vec<RequestOp>| TxnRequest {
        compare: compare
            .map(|range| Compare {
                range,
                result: CompareResult::Equal,
                target: CompareTarget::Version(0),
            })
            .into_iter()
            .collect(),
        success: Vec::new(),
        failure: ops,
    };
    check(Command::Txn(txn(Some(range("a", "")), vec![])), true);
    check(Command::Txn(txn(Some(range("a", "\0")), vec![])), false);
    check(Command::Txn(txn(Some(range("c", "")), vec![])), false);
    let read = |key, end| {
        RequestOp::Range(RangeRequest {
            range: range(key, end),
            ..RangeRequest::default()
        })
    };
    for (op, expected) in [
        (read("a", "c"), true),
        (read("a", "d"), false),
        (RequestOp::Put(put("c")), true),
        (RequestOp::Put(put("a")), false),
        (RequestOp::Put(with("b", 3, false)), false),
        (RequestOp::DeleteRange(delete("c", "", true)), false),
    ] {
        check(Command::Txn(txn(None, vec![op.clone()])), expected);
        // However deep it stands.
        let nested = RequestOp::Txn(txn(None, vec![RequestOp::Txn(txn(None, vec![op]))]));
        check(Command::Txn(txn(None, vec![nested])), expected);
    }
    check(Command::LeaseGrant { id: 5, ttl_s: 5 }, true);
    check(Command::LeaseRevoke { id: 1, expiry: None }, true);
    check(Command::LeaseRevoke { id: 3, expiry: None }, false);
    check(Command::Auth(AuthCommand::Disable), false);
    check(Command::Auth(add("x")), false);
    // What is the cluster's own comes without a caller; a client's comes with one.
    for command in [
        Command::Compact(5),
        Command::RemoveMember(1),
        Command::ExpireSessions(vec![1]),
        Command::SetAlarm {
            alarm: kvorum_model::Alarm::NoSpace,
            member: 1,
            raised: false,
        },
    ] {
        assert_eq!(check_as(None, &command), Ok(()));
        assert_eq!(
            check_as(auth.caller("user"), &command),
            Err(Error::PermissionDenied)
        );
        assert_eq!(check_as(auth.caller("root"), &command), Ok(()));
    }
    let (term, granted) = (1, 1);
    let expiry = Some(kvorum_model::LeaseProof { term, granted });
    assert_eq!(check_as(None, &Command::LeaseRevoke { id: 3, expiry }), Ok(()));
}

#[test]
fn the_store_holds_everything() {
    let mut auth = Auth::enabled();
    auth.does(AuthCommand::UserAdd {
        name: "cért".to_owned(),
        password: Secret::default(),
        no_password: true,
    });
    auth.does(role("gone"));
    auth.does(AuthCommand::RoleDelete {
        name: "gone".to_owned(),
    });
    auth.does(permit("r", Access::ReadWrite, "x", "\0"));
    let store = MemStore::new();
    let writes = std::mem::take(&mut auth.writes);
    store.write(Batch { writes, mark: 1 }).unwrap();
    assert_eq!(AuthState::load(&store.view()).unwrap(), auth.state);
    assert_eq!(
        AuthState::load(&MemStore::new().view()).unwrap(),
        AuthState::default()
    );
}
