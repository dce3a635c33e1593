//! Changes of users, roles and permissions.

use super::DecodeError;
use super::primitive::{Reader, Sink};
use super::request::{key_range, read_key_range};
use crate::auth::{Access, AuthCommand, Permission, Secret};

const ENABLE: u8 = 1;
const DISABLE: u8 = 2;
const AUTHENTICATE: u8 = 3;
const USER_ADD: u8 = 4;
const USER_DELETE: u8 = 5;
const USER_CHANGE_PASSWORD: u8 = 6;
const USER_GRANT_ROLE: u8 = 7;
const USER_REVOKE_ROLE: u8 = 8;
const ROLE_ADD: u8 = 9;
const ROLE_DELETE: u8 = 10;
const ROLE_GRANT_PERMISSION: u8 = 11;
const ROLE_REVOKE_PERMISSION: u8 = 12;

fn texts(out: &mut impl Sink, tag: u8, texts: &[&str]) {
    out.u8(tag);
    for text in texts {
        out.bytes(text.as_bytes());
    }
}

pub(super) fn command(out: &mut impl Sink, command: &AuthCommand) {
    match command {
        AuthCommand::Enable => out.u8(ENABLE),
        AuthCommand::Disable => out.u8(DISABLE),
        AuthCommand::Authenticate {
            user,
            token,
            auth_revision,
        } => {
            texts(out, AUTHENTICATE, &[user]);
            out.bytes(&token.0);
            out.u64(*auth_revision);
        }
        AuthCommand::UserAdd {
            name,
            password,
            no_password,
        } => {
            texts(out, USER_ADD, &[name]);
            out.bytes(&password.0);
            out.u8((*no_password).into());
        }
        AuthCommand::UserDelete { name } => texts(out, USER_DELETE, &[name]),
        AuthCommand::UserChangePassword { name, password } => {
            texts(out, USER_CHANGE_PASSWORD, &[name]);
            out.bytes(&password.0);
        }
        AuthCommand::UserGrantRole { name, role } => texts(out, USER_GRANT_ROLE, &[name, role]),
        AuthCommand::UserRevokeRole { name, role } => texts(out, USER_REVOKE_ROLE, &[name, role]),
        AuthCommand::RoleAdd { name } => texts(out, ROLE_ADD, &[name]),
        AuthCommand::RoleDelete { name } => texts(out, ROLE_DELETE, &[name]),
        AuthCommand::RoleGrantPermission { name, permission } => {
            texts(out, ROLE_GRANT_PERMISSION, &[name]);
            self::permission(out, permission);
        }
        AuthCommand::RoleRevokePermission { name, range } => {
            texts(out, ROLE_REVOKE_PERMISSION, &[name]);
            key_range(out, range);
        }
    }
}

pub(super) fn read_command(reader: &mut Reader) -> Result<AuthCommand, DecodeError> {
    let (user, role) = ("a user's name", "a role's name");
    let secret = |reader: &mut Reader| Ok(Secret(reader.bytes("a secret")?));
    Ok(match reader.u8("the auth command")? {
        ENABLE => AuthCommand::Enable,
        DISABLE => AuthCommand::Disable,
        AUTHENTICATE => AuthCommand::Authenticate {
            user: reader.string(user)?,
            token: secret(reader)?,
            auth_revision: reader.u64("a revision")?,
        },
        USER_ADD => AuthCommand::UserAdd {
            name: reader.string(user)?,
            password: secret(reader)?,
            no_password: reader.flags(1, "user flags")? != 0,
        },
        USER_DELETE => AuthCommand::UserDelete {
            name: reader.string(user)?,
        },
        USER_CHANGE_PASSWORD => AuthCommand::UserChangePassword {
            name: reader.string(user)?,
            password: secret(reader)?,
        },
        USER_GRANT_ROLE => AuthCommand::UserGrantRole {
            name: reader.string(user)?,
            role: reader.string(role)?,
        },
        USER_REVOKE_ROLE => AuthCommand::UserRevokeRole {
            name: reader.string(user)?,
            role: reader.string(role)?,
        },
        ROLE_ADD => AuthCommand::RoleAdd {
            name: reader.string(role)?,
        },
        ROLE_DELETE => AuthCommand::RoleDelete {
            name: reader.string(role)?,
        },
        ROLE_GRANT_PERMISSION => AuthCommand::RoleGrantPermission {
            name: reader.string(role)?,
            permission: read_permission(reader)?,
        },
        ROLE_REVOKE_PERMISSION => AuthCommand::RoleRevokePermission {
            name: reader.string(role)?,
            range: read_key_range(reader)?,
        },
        0 => return Err(reader.malformed("auth command 0")),
        tag => {
            return Err(DecodeError::Newer {
                what: "auth command",
                value: tag.into(),
            });
        }
    })
}

fn permission(out: &mut impl Sink, permission: &Permission) {
    out.u8(match permission.access {
        Access::Read => 1,
        Access::Write => 2,
        Access::ReadWrite => 3,
    });
    key_range(out, &permission.range);
}

fn read_permission(reader: &mut Reader) -> Result<Permission, DecodeError> {
    let access = match reader.u8("a permission")? {
        0 => return Err(reader.malformed("permission 0")),
        1 => Access::Read,
        2 => Access::Write,
        3 => Access::ReadWrite,
        tag => {
            return Err(DecodeError::Newer {
                what: "permission",
                value: tag.into(),
            });
        }
    };
    Ok(Permission {
        access,
        range: read_key_range(reader)?,
    })
}
