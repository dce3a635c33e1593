//! Users, roles, permissions, and the commands that change them; in the terms of etcd's Auth service.

use std::fmt;

use bytes::Bytes;

use crate::types::KeyRange;

/// The user without whom authentication cannot be turned on.
pub const ROOT_USER: &str = "root";
/// The role whose users may do everything.
pub const ROOT_ROLE: &str = "root";

/// Bytes that are not shown: the hash of a password, a token.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Secret(pub Bytes);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Who asks, as the member that took the request knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The user; empty: nobody.
    pub user: String,
    /// The revision of users, roles and permissions at which the request was checked: at a later one it is refused.
    pub auth_revision: u64,
}

/// What a permission allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// To read.
    Read,
    /// To write and to delete, without seeing what was there.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// Whether it allows what `wanted` stands for.
    pub fn allows(self, wanted: Access) -> bool {
        self == Access::ReadWrite || self == wanted
    }
}

/// Access to a range of keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    /// To do what.
    pub access: Access,
    /// With which keys.
    pub range: KeyRange,
}

/// A change of users, roles and permissions. Each that changes something makes the next auth revision, but for
/// turning authentication on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AuthCommand {
    /// From now on who asks must be known, and may do what is permitted.
    Enable,
    /// From now on everybody may do everything again; tokens end.
    Disable,
    /// Somebody showed the right password: all members learn of a token.
    Authenticate {
        /// Who.
        user: String,
        /// The token but for its end, which is the index of this entry.
        token: Secret,
        /// The revision at which the password was looked at; at a later one nothing happens.
        auth_revision: u64,
    },
    /// A new user.
    UserAdd {
        /// Its name, not empty.
        name: String,
        /// The hash of its password; nothing fits an empty one.
        password: Secret,
        /// It has none and never gets one: it can only be known otherwise than by a password.
        no_password: bool,
    },
    /// A user and its tokens go.
    UserDelete {
        /// Its name.
        name: String,
    },
    /// A user has another password; its tokens end.
    UserChangePassword {
        /// Its name.
        name: String,
        /// As in [`AuthCommand::UserAdd`].
        password: Secret,
    },
    /// A user gets a role.
    UserGrantRole {
        /// The user.
        name: String,
        /// The role; it must exist, unless it is [`ROOT_ROLE`].
        role: String,
    },
    /// A user loses a role.
    UserRevokeRole {
        /// The user.
        name: String,
        /// The role.
        role: String,
    },
    /// A new role, without permissions.
    RoleAdd {
        /// Its name, not empty.
        name: String,
    },
    /// A role goes; its users lose it.
    RoleDelete {
        /// Its name.
        name: String,
    },
    /// A role gets a permission, in the place of one for the same range.
    RoleGrantPermission {
        /// The role.
        name: String,
        /// The permission.
        permission: Permission,
    },
    /// A role loses the permission for exactly this range.
    RoleRevokePermission {
        /// The role.
        name: String,
        /// The range.
        range: KeyRange,
    },
}
