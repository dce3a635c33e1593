//! Users, roles and permissions: replicated state, and the one place that knows what a user may do.
//!
//! Every replica holds the same, and decides about each applied command from it alone; the members' services decide
//! with the same functions about what they read, and about what they propose. The rules are etcd's (`auth/store.go`,
//! `apply/apply_auth.go`).
//!
//! ```text
//! a s        → u8 flags (1 on), u64 revision
//! a u | name → u8 flags (1 without a password), bytes hash, list of text (roles)
//! a r | name → list of permissions: u8 access, bytes key, bytes end
//! ```
//!
//! Invariants: `grants` of a user is the union of its roles' permissions; a role that a user has exists, but for
//! `root`; permissions of a role ascend by key, and no two are for one range.

mod grants;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kvorum_model::{
    Access, AuthCommand, Caller, Command, CompareTarget, Error, KeyRange, Permission, PutRequest, ROOT_ROLE,
    ROOT_USER, Reply, RequestOp, Secret, TxnRequest,
};

use crate::layout::{AUTH, corrupt};
use crate::state::{Fields, prefixed};
use crate::store::{StoreError, View};
use grants::Grants;

const STATE_KEY: Bytes = Bytes::from_static(&[AUTH, b's']);
const USER: u8 = b'u';
const ROLE: u8 = b'r';

type Write = (Bytes, Option<Bytes>);

/// What an entry did to the tokens that members keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthChange {
    /// Somebody logged in.
    Token {
        /// The token.
        token: Secret,
        /// Who.
        user: String,
    },
    /// A user went, or has another password.
    UserTokensEnd(String),
    /// Authentication was turned off.
    AllTokensEnd,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct User {
    password: Secret,
    no_password: bool,
    roles: BTreeSet<String>,
    grants: Grants,
}

impl User {
    fn is_root(&self) -> bool {
        self.roles.contains(ROOT_ROLE)
    }
}

/// See the module. Cheap to clone but for the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthState {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, Arc<User>>,
    roles: BTreeMap<String, Arc<Vec<Permission>>>,
}

impl Default for AuthState {
    fn default() -> Self {
        AuthState {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

/// What the state says to those who ask.
impl AuthState {
    /// Whether who asks must be known.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Grows with each change of users, roles and permissions; 1 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All users, in order.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The roles of a user, in order.
    pub fn user(&self, name: &str) -> Result<impl Iterator<Item = &str>, Error> {
        let user = self.users.get(name).ok_or(Error::UserNotFound)?;
        Ok(user.roles.iter().map(String::as_str))
    }

    /// All roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// The permissions of a role, by key. Those of `root` are for everything, whatever it was granted.
    pub fn role(&self, name: &str) -> Result<Vec<Permission>, Error> {
        let permissions = self.roles.get(name).ok_or(Error::RoleNotFound)?;
        if name == ROOT_ROLE {
            let range = KeyRange {
                key: Bytes::new(),
                end: Bytes::from_static(&[0]),
            };
            let access = Access::ReadWrite;
            return Ok(vec![Permission { access, range }]);
        }
        Ok((**permissions).clone())
    }

    /// Whether a user has a role.
    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user).is_some_and(|user| user.roles.contains(role))
    }

    /// The hash of a user's password.
    ///
    /// # Errors
    /// Nobody can log in, or this user cannot.
    pub fn password(&self, user: &str) -> Result<Secret, Error> {
        if !self.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = self.users.get(user).filter(|user| !user.no_password);
        Ok(user.ok_or(Error::AuthenticationFailed)?.password.clone())
    }

    /// Whether the caller may access every key of a range.
    pub fn check(&self, caller: Option<&Caller>, range: &KeyRange, access: Access) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        let caller = named(caller)?;
        if caller.auth_revision < self.revision {
            return Err(Error::OldAuthRevision);
        }
        let user = self.users.get(&caller.user).ok_or(Error::PermissionDenied)?;
        match user.is_root() || user.grants.allow(range, access) {
            true => Ok(()),
            false => Err(Error::PermissionDenied),
        }
    }

    /// Whether the caller may do what only administrators may.
    pub fn check_admin(&self, caller: Option<&Caller>) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        let user = self.users.get(&named(caller)?.user).ok_or(Error::UserNotFound)?;
        match user.is_root() {
            true => Ok(()),
            false => Err(Error::PermissionDenied),
        }
    }

    /// Whether somebody is named as the caller.
    pub fn check_known(&self, caller: Option<&Caller>) -> Result<(), Error> {
        match self.enabled {
            true => named(caller).map(drop),
            false => Ok(()),
        }
    }

    /// Whether the caller may apply a command. One that names no caller is the cluster's own where clients have no
    /// such command or their callers are known before it is proposed; `lease_keys` are the keys of a lease.
    pub fn check_command<E: From<Error>>(
        &self,
        caller: Option<&Caller>,
        command: &Command,
        lease_keys: impl Fn(i64) -> Result<Vec<Bytes>, E>,
    ) -> Result<(), E> {
        if !self.enabled {
            return Ok(());
        }
        match command {
            Command::Put(put) => self.check_put(caller, put, &lease_keys),
            Command::DeleteRange(delete) => {
                self.check(caller, &delete.range, Access::Write)?;
                if delete.prev_kv {
                    self.check(caller, &delete.range, Access::Read)?;
                }
                Ok(())
            }
            Command::Txn(txn) => self.check_txn(caller, txn, &lease_keys),
            Command::LeaseGrant { .. } => Ok(self.check_known(caller)?),
            Command::LeaseRevoke { id, expiry: None } => {
                self.check_known(caller)?;
                self.check_lease(caller, *id, &lease_keys)
            }
            // What `password` says of the user is asked when it is applied.
            Command::Auth(AuthCommand::Authenticate { .. }) => Ok(()),
            Command::Auth(_) => Ok(self.check_admin(caller)?),
            Command::Register => Ok(()),
            _ if caller.is_some() => Ok(self.check_admin(caller)?),
            _ => Ok(()),
        }
    }

    /// Whether the caller may run a transaction, whichever way it goes: all that it compares must be readable, and all
    /// its operations permitted, at any depth. (How many keys the store has is no key's content.)
    pub fn check_txn<E: From<Error>>(
        &self,
        caller: Option<&Caller>,
        txn: &TxnRequest,
        lease_keys: &impl Fn(i64) -> Result<Vec<Bytes>, E>,
    ) -> Result<(), E> {
        for compare in &txn.compare {
            if !matches!(compare.target, CompareTarget::LiveKeys(_)) {
                self.check(caller, &compare.range, Access::Read)?;
            }
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                RequestOp::Range(range) => self.check(caller, &range.range, Access::Read)?,
                RequestOp::Put(put) => self.check_put(caller, put, lease_keys)?,
                RequestOp::DeleteRange(delete) => {
                    if delete.prev_kv {
                        self.check(caller, &delete.range, Access::Read)?;
                    }
                    self.check(caller, &delete.range, Access::Write)?;
                }
                RequestOp::Txn(nested) => self.check_txn(caller, nested, lease_keys)?,
            }
        }
        Ok(())
    }

    fn check_put<E: From<Error>>(
        &self,
        caller: Option<&Caller>,
        put: &PutRequest,
        lease_keys: &impl Fn(i64) -> Result<Vec<Bytes>, E>,
    ) -> Result<(), E> {
        let range = KeyRange::point(put.key.clone());
        self.check(caller, &range, Access::Write)?;
        // Who may not end a lease must not make it take one more key along.
        if put.lease != 0 {
            self.check_lease(caller, put.lease, lease_keys)?;
        }
        if put.prev_kv {
            self.check(caller, &range, Access::Read)?;
        }
        Ok(())
    }

    fn check_lease<E: From<Error>>(
        &self,
        caller: Option<&Caller>,
        id: i64,
        lease_keys: &impl Fn(i64) -> Result<Vec<Bytes>, E>,
    ) -> Result<(), E> {
        self.check_keys(caller, Access::Write, || lease_keys(id))
    }

    /// Whether the caller may access each of these keys. An administrator may at any revision; then they are not
    /// asked for.
    pub fn check_keys<E: From<Error>>(
        &self,
        caller: Option<&Caller>,
        access: Access,
        keys: impl FnOnce() -> Result<Vec<Bytes>, E>,
    ) -> Result<(), E> {
        if self.check_admin(caller).is_ok() {
            return Ok(());
        }
        for key in keys()? {
            self.check(caller, &KeyRange::point(key), access)?;
        }
        Ok(())
    }
}

fn named(caller: Option<&Caller>) -> Result<&Caller, Error> {
    caller
        .filter(|caller| !caller.user.is_empty() && caller.auth_revision > 0)
        .ok_or(Error::UserEmpty)
}

/// What applied commands do to the state.
impl AuthState {
    /// Applies a change by the entry at `index`; whether the caller may was checked before. A refusal changes nothing.
    pub(crate) fn apply(
        &mut self,
        command: AuthCommand,
        index: u64,
        writes: &mut Vec<Write>,
        changes: &mut Vec<AuthChange>,
    ) -> Result<Reply, Error> {
        use AuthCommand::*;
        match command {
            Enable => self.enable(writes)?,
            Disable if self.enabled => {
                self.enabled = false;
                self.next_revision(writes);
                changes.push(AuthChange::AllTokensEnd);
            }
            Disable => {}
            Authenticate {
                user,
                token,
                auth_revision,
            } => {
                self.password(&user)?;
                if auth_revision != self.revision {
                    return Err(Error::OldAuthRevision);
                }
                let token = Secret([&token.0, format!(".{index}").as_bytes()].concat().into());
                changes.push(AuthChange::Token {
                    token: token.clone(),
                    user,
                });
                return Ok(Reply::Authenticated(token));
            }
            UserAdd {
                name,
                password,
                no_password,
            } => self.add_user(name, password, no_password, writes)?,
            UserDelete { name } => {
                self.delete_user(&name, writes)?;
                changes.push(AuthChange::UserTokensEnd(name));
            }
            UserChangePassword { name, password } => {
                self.change_user(&name, writes, |user| {
                    user.password = match user.no_password {
                        true => Secret::default(),
                        false => password,
                    };
                    Ok(())
                })?;
                changes.push(AuthChange::UserTokensEnd(name));
            }
            UserGrantRole { name, role } => self.grant_role(&name, role, writes)?,
            UserRevokeRole { name, role } => self.revoke_role(&name, &role, writes)?,
            RoleAdd { name } => self.add_role(name, writes)?,
            RoleDelete { name } => self.delete_role(&name, writes)?,
            RoleGrantPermission { name, permission } => self.grant_permission(&name, permission, writes)?,
            RoleRevokePermission { name, range } => self.revoke_permission(&name, &range, writes)?,
        }
        Ok(Reply::Done)
    }

    /// Makes no new revision, as in etcd.
    fn enable(&mut self, writes: &mut Vec<Write>) -> Result<(), Error> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT_USER).ok_or(Error::RootUserNotFound)?;
        if !root.is_root() {
            return Err(Error::RootRoleNotGranted);
        }
        self.enabled = true;
        writes.push(self.record());
        Ok(())
    }

    fn next_revision(&mut self, writes: &mut Vec<Write>) {
        self.revision += 1;
        writes.push(self.record());
    }

    fn add_user(
        &mut self,
        name: String,
        password: Secret,
        no_password: bool,
        writes: &mut Vec<Write>,
    ) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(&name) {
            return Err(Error::UserExists);
        }
        let password = match no_password {
            true => Secret::default(),
            false => password,
        };
        let user = User {
            password,
            no_password,
            ..User::default()
        };
        writes.push(user_record(&name, &user));
        self.users.insert(name, Arc::new(user));
        self.next_revision(writes);
        Ok(())
    }

    fn delete_user(&mut self, name: &str, writes: &mut Vec<Write>) -> Result<(), Error> {
        if self.enabled && name == ROOT_USER {
            return Err(Error::InvalidAuthManagement);
        }
        self.users.remove(name).ok_or(Error::UserNotFound)?;
        writes.push((name_key(USER, name), None));
        self.next_revision(writes);
        Ok(())
    }

    /// Changes a user, unless `change` refuses.
    fn change_user(
        &mut self,
        name: &str,
        writes: &mut Vec<Write>,
        change: impl FnOnce(&mut User) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let known = self.users.get(name).ok_or(Error::UserNotFound)?;
        let mut user = User::clone(known);
        change(&mut user)?;
        self.put_user(name, user, writes);
        self.next_revision(writes);
        Ok(())
    }

    fn put_user(&mut self, name: &str, mut user: User, writes: &mut Vec<Write>) {
        user.grants = self.grants_of(&user.roles);
        writes.push(user_record(name, &user));
        self.users.insert(name.to_owned(), Arc::new(user));
    }

    fn grants_of(&self, roles: &BTreeSet<String>) -> Grants {
        let permissions = roles.iter().filter_map(|role| self.roles.get(role));
        Grants::of(permissions.flat_map(|permissions| permissions.iter()))
    }

    /// One that the user has already is no change.
    fn grant_role(&mut self, name: &str, role: String, writes: &mut Vec<Write>) -> Result<(), Error> {
        let user = self.users.get(name).ok_or(Error::UserNotFound)?;
        if role != ROOT_ROLE && !self.roles.contains_key(&role) {
            return Err(Error::RoleNotFound);
        }
        if user.roles.contains(&role) {
            return Ok(());
        }
        self.change_user(name, writes, |user| {
            user.roles.insert(role);
            Ok(())
        })
    }

    fn revoke_role(&mut self, name: &str, role: &str, writes: &mut Vec<Write>) -> Result<(), Error> {
        if self.enabled && name == ROOT_USER && role == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        self.change_user(name, writes, |user| match user.roles.remove(role) {
            true => Ok(()),
            false => Err(Error::RoleNotGranted),
        })
    }

    fn add_role(&mut self, name: String, writes: &mut Vec<Write>) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.roles.contains_key(&name) {
            return Err(Error::RoleExists);
        }
        self.put_role(&name, Vec::new(), writes);
        self.next_revision(writes);
        Ok(())
    }

    fn delete_role(&mut self, name: &str, writes: &mut Vec<Write>) -> Result<(), Error> {
        if self.enabled && name == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(Error::RoleNotFound)?;
        writes.push((name_key(ROLE, name), None));
        for (user_name, mut user) in self.users_with(name) {
            user.roles.remove(name);
            self.put_user(&user_name, user, writes);
        }
        self.next_revision(writes);
        Ok(())
    }

    fn users_with(&self, role: &str) -> Vec<(String, User)> {
        let has = |(_, user): &(&String, &Arc<User>)| user.roles.contains(role);
        let with = self.users.iter().filter(has);
        with.map(|(name, user)| (name.clone(), User::clone(user)))
            .collect()
    }

    fn put_role(&mut self, name: &str, permissions: Vec<Permission>, writes: &mut Vec<Write>) {
        writes.push(role_record(name, &permissions));
        self.roles.insert(name.to_owned(), Arc::new(permissions));
        for (user, known) in self.users_with(name) {
            let grants = self.grants_of(&known.roles);
            self.users.insert(user, Arc::new(User { grants, ..known }));
        }
    }

    fn grant_permission(
        &mut self,
        name: &str,
        permission: Permission,
        writes: &mut Vec<Write>,
    ) -> Result<(), Error> {
        let KeyRange { key, end } = &permission.range;
        if key.is_empty() || !(end.is_empty() || key < end || permission.range.is_from_key()) {
            return Err(Error::InvalidAuthManagement);
        }
        let known = self.roles.get(name).ok_or(Error::RoleNotFound)?;
        let mut permissions = Vec::clone(known);
        match permissions
            .iter_mut()
            .find(|known| known.range == permission.range)
        {
            Some(known) => known.access = permission.access,
            None => {
                let at = permissions.partition_point(|known| known.range.key <= permission.range.key);
                permissions.insert(at, permission);
            }
        }
        self.put_role(name, permissions, writes);
        self.next_revision(writes);
        Ok(())
    }

    fn revoke_permission(
        &mut self,
        name: &str,
        range: &KeyRange,
        writes: &mut Vec<Write>,
    ) -> Result<(), Error> {
        let known = self.roles.get(name).ok_or(Error::RoleNotFound)?;
        let mut permissions = Vec::clone(known);
        permissions.retain(|permission| permission.range != *range);
        if permissions.len() == known.len() {
            return Err(Error::PermissionNotGranted);
        }
        self.put_role(name, permissions, writes);
        self.next_revision(writes);
        Ok(())
    }
}

/// The state in the store.
impl AuthState {
    fn record(&self) -> Write {
        let mut out = vec![u8::from(self.enabled)];
        out.extend_from_slice(&self.revision.to_le_bytes());
        (STATE_KEY, Some(out.into()))
    }

    /// Reads what the store holds.
    pub(crate) fn load(view: &impl View) -> Result<AuthState, StoreError> {
        let mut auth = AuthState::default();
        if let Some(record) = view.get(&STATE_KEY)? {
            let mut fields = Fields(&record);
            auth.enabled = flag(fields.u8()?)?;
            auth.revision = fields.u64()?;
            fields.end()?;
        }
        for item in prefixed(view, &[AUTH, ROLE]) {
            let (key, record) = item?;
            let permissions = read_role(&record)?;
            auth.roles.insert(name_of(&key)?, Arc::new(permissions));
        }
        for item in prefixed(view, &[AUTH, USER]) {
            let (key, record) = item?;
            let user = read_user(&record)?;
            let grants = auth.grants_of(&user.roles);
            auth.users
                .insert(name_of(&key)?, Arc::new(User { grants, ..user }));
        }
        Ok(auth)
    }
}

fn flag(byte: u8) -> Result<bool, StoreError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(corrupt("flags of an auth record")),
    }
}

fn name_key(kind: u8, name: &str) -> Bytes {
    [&[AUTH, kind], name.as_bytes()].concat().into()
}

fn name_of(key: &[u8]) -> Result<String, StoreError> {
    String::from_utf8(key[2..].to_vec()).map_err(|_| corrupt("a name is not UTF-8"))
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("requests, and with them names and lists, are limited to MiB");
    out.extend_from_slice(&count.to_le_bytes());
}

fn user_record(name: &str, user: &User) -> Write {
    let mut out = vec![u8::from(user.no_password)];
    put_bytes(&mut out, &user.password.0);
    put_count(&mut out, user.roles.len());
    for role in &user.roles {
        put_bytes(&mut out, role.as_bytes());
    }
    (name_key(USER, name), Some(out.into()))
}

fn read_user(record: &[u8]) -> Result<User, StoreError> {
    let mut fields = Fields(record);
    let no_password = flag(fields.u8()?)?;
    let password = Secret(fields.bytes()?);
    let mut roles = BTreeSet::new();
    for _ in 0..fields.u32()? {
        roles.insert(fields.text()?);
    }
    fields.end()?;
    Ok(User {
        password,
        no_password,
        roles,
        grants: Grants::default(),
    })
}

fn role_record(name: &str, permissions: &[Permission]) -> Write {
    let mut out = Vec::new();
    put_count(&mut out, permissions.len());
    for permission in permissions {
        out.push(match permission.access {
            Access::Read => 1,
            Access::Write => 2,
            Access::ReadWrite => 3,
        });
        put_bytes(&mut out, &permission.range.key);
        put_bytes(&mut out, &permission.range.end);
    }
    (name_key(ROLE, name), Some(out.into()))
}

fn read_role(record: &[u8]) -> Result<Vec<Permission>, StoreError> {
    let mut fields = Fields(record);
    let mut permissions = Vec::new();
    for _ in 0..fields.u32()? {
        let access = match fields.u8()? {
            1 => Access::Read,
            2 => Access::Write,
            3 => Access::ReadWrite,
            _ => return Err(corrupt("a permission's kind")),
        };
        let range = KeyRange {
            key: fields.bytes()?,
            end: fields.bytes()?,
        };
        permissions.push(Permission { access, range });
    }
    fields.end()?;
    Ok(permissions)
}
