//! What users may do, decided by every replica alike when an entry is applied.

use kvorum_model::{Access, AuthCommand, Caller, Error, KeyRange, Permission, Reply, Secret, SessionRef};

use super::*;
use crate::auth::AuthChange;
use crate::snapshot::SnapshotSink;

fn by(index: u64, caller: Option<(&str, u64)>, command: Command) -> ApplyEntry {
    in_session(index, None, caller, command)
}

fn in_session(
    index: u64,
    session: Option<SessionRef>,
    caller: Option<(&str, u64)>,
    command: Command,
) -> ApplyEntry {
    let envelope = Envelope {
        time_ms: index,
        origin: Origin::default(),
        session,
        caller: caller.map(|(user, auth_revision)| Caller {
            user: user.to_owned(),
            auth_revision,
        }),
        command,
    };
    ApplyEntry {
        index,
        term: 1,
        payload: Payload::Command(envelope.encode()),
    }
}

fn auth(command: AuthCommand) -> Command {
    Command::Auth(command)
}

fn permission(access: Access) -> AuthCommand {
    AuthCommand::RoleGrantPermission {
        name: "r".to_owned(),
        permission: Permission {
            access,
            range: range(),
        },
    }
}

fn range() -> KeyRange {
    KeyRange::prefix(b"own/")
}

/// Seven entries after which `me` may write below `own/` at auth revision 7, and authentication is on.
fn setup() -> Vec<ApplyEntry> {
    let user = |name: &str| AuthCommand::UserAdd {
        name: name.to_owned(),
        password: Secret(Bytes::from_static(b"hash")),
        no_password: false,
    };
    let grant = |name: &str, role: &str| AuthCommand::UserGrantRole {
        name: name.to_owned(),
        role: role.to_owned(),
    };
    let commands = [
        user("root"),
        grant("root", "root"),
        user("me"),
        AuthCommand::RoleAdd { name: "r".to_owned() },
        grant("me", "r"),
        permission(Access::ReadWrite),
        AuthCommand::Enable,
    ];
    (1..)
        .zip(commands)
        .map(|(index, command)| by(index, None, auth(command)))
        .collect()
}

fn results(machine: &mut StateMachine<MemStore>, entries: &[ApplyEntry]) -> Vec<Result<Reply, Error>> {
    let outcome = machine.apply(entries).unwrap();
    outcome
        .replies
        .into_iter()
        .map(|applied| applied.result)
        .collect()
}

/// etcd #14571: whether a write is permitted must not depend on when a member looks. Proposed while it was permitted,
/// applied after the permission went: refused, by replicas that cut their batches differently, that restarted in
/// between, or that were sent a snapshot.
#[test]
fn a_permission_that_goes_between_proposal_and_apply_is_gone() {
    let revoke = AuthCommand::RoleRevokePermission {
        name: "r".to_owned(),
        range: range(),
    };
    let mut entries = setup();
    entries.extend([
        by(8, Some(("me", 7)), put("own/a", "1")),
        by(9, Some(("root", 7)), auth(revoke)),
        // Checked at revision 7, applied at 8.
        by(10, Some(("me", 7)), put("own/a", "2")),
        by(11, Some(("root", 7)), put("own/a", "2")),
        // Checked and applied at 8.
        by(12, Some(("me", 8)), put("own/a", "2")),
        by(13, None, put("own/a", "2")),
        by(14, Some(("root", 8)), put("own/a", "3")),
    ]);
    let mut whole = open(MemStore::new());
    let answers = results(&mut whole, &entries);
    assert!(answers[..9].iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(
        answers[9..13],
        [
            Err(Error::OldAuthRevision),
            Err(Error::OldAuthRevision),
            Err(Error::PermissionDenied),
            Err(Error::UserEmpty),
        ]
    );
    assert!(answers[13].is_ok());
    let value = whole.reader().view().get(b"own/a").unwrap().unwrap().value;
    assert_eq!(value, "3");

    let (mut one_by_one, mut one_by_one_answers) = (open(MemStore::new()), Vec::new());
    for (number, entry) in entries.iter().enumerate() {
        if number % 3 == 0 {
            // A restart, from what was flushed.
            one_by_one.store().flush_batches(usize::MAX);
            one_by_one = open(one_by_one.store().crash());
        }
        one_by_one_answers.extend(results(&mut one_by_one, std::slice::from_ref(entry)));
    }
    assert_eq!(one_by_one_answers, answers);
    assert_eq!(one_by_one.digest(), whole.digest());

    for cut in [7, 9, 12] {
        let mut sender = open(MemStore::new());
        results(&mut sender, &entries[..cut]);
        let (mut frames, mut sink) = (sender.snapshot(), SnapshotSink::new(MemStore::new()).unwrap());
        while let Some(frame) = frames.next_frame().unwrap() {
            sink.push(frame).unwrap();
        }
        let mut receiver = sink.finish(Options::default()).unwrap();
        assert_eq!(
            results(&mut receiver, &entries[cut..]),
            answers[cut..],
            "from {cut}"
        );
        assert_eq!(receiver.digest(), whole.digest(), "from {cut}");
    }
}

/// Views show users, roles and permissions as of the same entry as keys; the digest covers them.
#[test]
fn views_and_digests_cover_users() {
    let (mut machine, entries) = (open(MemStore::new()), setup());
    let before = machine.reader().view();
    results(&mut machine, &entries);
    assert!(!before.auth().is_enabled());
    let after = machine.reader().view().auth();
    assert_eq!((after.is_enabled(), after.revision()), (true, 7));
    let mut other = open(MemStore::new());
    let mut changed = setup();
    changed[5] = by(6, None, auth(permission(Access::Read)));
    results(&mut other, &changed);
    assert_ne!(machine.digest(), other.digest());
}

/// What members keep of tokens follows the order of entries.
#[test]
fn logins_reach_every_member_in_order() {
    let login = |index, auth_revision| {
        let command = AuthCommand::Authenticate {
            user: "me".to_owned(),
            token: Secret(Bytes::from_static(b"abc")),
            auth_revision,
        };
        by(index, None, auth(command))
    };
    let delete = AuthCommand::UserDelete {
        name: "me".to_owned(),
    };
    let mut entries = setup();
    entries.extend([
        login(8, 7),
        login(9, 6),
        by(10, Some(("root", 7)), auth(delete)),
        login(11, 8),
        // Not by just anybody.
        by(12, Some(("me", 8)), auth(AuthCommand::Disable)),
        by(13, None, auth(AuthCommand::Disable)),
        by(14, Some(("root", 8)), auth(AuthCommand::Disable)),
    ]);
    let outcome = open(MemStore::new()).apply(&entries).unwrap();
    let token = Secret(Bytes::from_static(b"abc.8"));
    let answers: Vec<_> = outcome.replies[7..]
        .iter()
        .map(|applied| &applied.result)
        .collect();
    assert_eq!(
        answers,
        [
            &Ok(Reply::Authenticated(token.clone())),
            &Err(Error::OldAuthRevision),
            &Ok(Reply::Done),
            &Err(Error::AuthenticationFailed),
            &Err(Error::UserNotFound),
            &Err(Error::UserEmpty),
            &Ok(Reply::Done),
        ]
    );
    let user = "me".to_owned();
    assert_eq!(
        outcome.auth,
        [
            AuthChange::Token {
                token,
                user: user.clone()
            },
            AuthChange::UserTokensEnd(user),
            AuthChange::AllTokensEnd,
        ]
    );
}

/// A session's outcomes are its user's; and what one user may not do is not done for the reason that a session knows
/// the request.
#[test]
fn a_session_is_its_users() {
    let mut entries = setup();
    let own = || put("own/a", "1");
    let session = Some(SessionRef { id: 8, seq: 1 });
    entries.extend([
        by(8, Some(("me", 7)), Command::Register),
        in_session(9, session, Some(("me", 7)), own()),
        in_session(10, session, Some(("root", 7)), own()),
        in_session(11, session, None, own()),
        in_session(12, session, Some(("me", 7)), own()),
    ]);
    let mut machine = open(MemStore::new());
    let answers = results(&mut machine, &entries);
    let expired = Err(Error::SessionExpired);
    assert_eq!(answers[7], Ok(Reply::Registered(8)));
    assert_eq!(answers[9..11], [expired.clone(), expired]);
    assert_eq!((&answers[11], machine.revision()), (&answers[8], 2));
}
