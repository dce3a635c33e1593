//! `auth`, `user` and `role`: who may do what.

use std::ffi::OsString;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use kvorum_client::proto::auth::{Permission, UserAddOptions, permission::Type};
use kvorum_client::proto::etcd;
use kvorum_client::{Client, permission, prefix_range};
use serde_json::{Value, json};

use super::password::{UserArg, parse_user};
use super::record::{ExportLine, revision};
use super::{ClientArgs, Output, TIMEOUT, bytes, key};
use crate::failure::Failure;

/// Arguments of `auth`.
#[derive(Args)]
pub struct AuthArgs {
    #[command(subcommand)]
    action: AuthAction,
}

#[derive(Subcommand)]
enum AuthAction {
    /// From now on who asks must be known; needs a user `root` with the role `root`
    Enable {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// From now on everybody may do everything again
    Disable {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show whether authentication is on
    Status {
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Arguments of `user`.
#[derive(Args)]
pub struct UserArgs {
    #[command(subcommand)]
    action: UserAction,
}

#[derive(Subcommand)]
enum UserAction {
    /// Add a user
    Add {
        /// Its name and password; without a password it is read from standard input
        #[arg(value_name = "NAME[:PASSWORD]", value_parser = parse_user)]
        name: UserArg,
        /// It gets no password and cannot log in with one
        #[arg(long)]
        no_password: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Delete a user
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give a user another password
    Passwd {
        /// Its name and password; without a password it is read from standard input
        #[arg(value_name = "NAME[:PASSWORD]", value_parser = parse_user)]
        name: UserArg,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the roles of a user
    Get {
        /// Its name
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the users
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give a user a role
    GrantRole {
        /// The user
        name: String,
        /// The role; `root` may do everything
        role: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take a role from a user
    RevokeRole {
        /// The user
        name: String,
        /// The role
        role: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Arguments of `role`.
#[derive(Args)]
pub struct RoleArgs {
    #[command(subcommand)]
    action: RoleAction,
}

/// Which keys a permission is for.
#[derive(Args)]
struct RangeArgs {
    /// The key, or the first one
    key: OsString,
    /// The key after the last one
    end: Option<OsString>,
    /// All keys that begin with KEY; with an empty one, all keys
    #[arg(long, conflicts_with_all = ["end", "from_key"])]
    prefix: bool,
    /// All keys from KEY on
    #[arg(long, conflicts_with = "end")]
    from_key: bool,
}

impl RangeArgs {
    fn range(self) -> Result<(Bytes, Bytes), Failure> {
        if self.prefix {
            return Ok(prefix_range(&bytes(self.key)));
        }
        let end = match (self.from_key, self.end) {
            (true, _) => Bytes::from_static(&[0]),
            (false, end) => end.map(bytes).unwrap_or_default(),
        };
        Ok((key(self.key)?, end))
    }
}

/// What a permission allows.
#[derive(Clone, Copy, ValueEnum)]
enum Access {
    /// To read
    Read,
    /// To write and to delete
    Write,
    /// Both
    Readwrite,
}

#[derive(Subcommand)]
enum RoleAction {
    /// Add a role, without permissions
    Add {
        /// Its name
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Delete a role; its users lose it
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the permissions of a role
    Get {
        /// Its name
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the roles
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give a role access to keys
    GrantPermission {
        /// The role
        name: String,
        /// To do what
        access: Access,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take the permission for exactly these keys from a role
    RevokePermission {
        /// The role
        name: String,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
}

impl AuthArgs {
    /// How to reach the cluster.
    pub fn client(&self) -> &ClientArgs {
        match &self.action {
            AuthAction::Enable { client }
            | AuthAction::Disable { client }
            | AuthAction::Status { client } => client,
        }
    }
}

impl UserArgs {
    /// How to reach the cluster.
    pub fn client(&self) -> &ClientArgs {
        match &self.action {
            UserAction::Add { client, .. }
            | UserAction::Delete { client, .. }
            | UserAction::Passwd { client, .. }
            | UserAction::Get { client, .. }
            | UserAction::List { client }
            | UserAction::GrantRole { client, .. }
            | UserAction::RevokeRole { client, .. } => client,
        }
    }
}

impl RoleArgs {
    /// How to reach the cluster.
    pub fn client(&self) -> &ClientArgs {
        match &self.action {
            RoleAction::Add { client, .. }
            | RoleAction::Delete { client, .. }
            | RoleAction::Get { client, .. }
            | RoleAction::List { client }
            | RoleAction::GrantPermission { client, .. }
            | RoleAction::RevokePermission { client, .. } => client,
        }
    }
}

/// Prints that a change was made.
fn done(json: bool, header: Option<&etcd::ResponseHeader>) -> Result<(), Failure> {
    let mut out = Output::start();
    match json {
        true => out.json(&json!({"revision": revision(header)}))?,
        false => out.line(b"OK")?,
    }
    out.end()
}

/// Prints names, one a line.
fn names(
    json: bool,
    header: Option<&etcd::ResponseHeader>,
    what: &str,
    names: &[String],
) -> Result<(), Failure> {
    let mut out = Output::start();
    match json {
        true => out.json(&json!({"revision": revision(header), what: names}))?,
        false => names.iter().try_for_each(|name| out.line(name.as_bytes()))?,
    }
    out.end()
}

/// Carries an `auth` command out.
pub async fn auth(args: AuthArgs) -> Result<(), Failure> {
    let json = args.client().json();
    let client = args.client().client(TIMEOUT)?;
    match args.action {
        AuthAction::Enable { .. } => {
            let answer = client.auth_enable(etcd::AuthEnableRequest {}).await?;
            done(json, answer.header.as_ref())
        }
        AuthAction::Disable { .. } => {
            let answer = client.auth_disable(etcd::AuthDisableRequest {}).await?;
            done(json, answer.header.as_ref())
        }
        AuthAction::Status { .. } => {
            let answer = client.auth_status(etcd::AuthStatusRequest {}).await?;
            let (enabled, auth_revision) = (answer.enabled, answer.auth_revision);
            let mut out = Output::start();
            match json {
                true => out.json(&json!({"enabled": enabled, "auth_revision": auth_revision}))?,
                false => {
                    let state = if enabled { "on" } else { "off" };
                    out.line(format!("authentication is {state}, at revision {auth_revision}").as_bytes())?;
                }
            }
            out.end()
        }
    }
}

/// Carries a `user` command out.
pub async fn user(args: UserArgs) -> Result<(), Failure> {
    let json = args.client().json();
    let client = args.client().client(TIMEOUT)?;
    let header = match args.action {
        UserAction::Add {
            name, no_password, ..
        } => {
            let request = etcd::AuthUserAddRequest {
                name: name.name().to_owned(),
                password: if no_password {
                    String::new()
                } else {
                    new_password(&name)?
                },
                options: Some(UserAddOptions { no_password }),
                ..Default::default()
            };
            client.user_add(request).await?.header
        }
        UserAction::Delete { name, .. } => {
            client
                .user_delete(etcd::AuthUserDeleteRequest { name })
                .await?
                .header
        }
        UserAction::Passwd { name, .. } => {
            let request = etcd::AuthUserChangePasswordRequest {
                name: name.name().to_owned(),
                password: new_password(&name)?,
                ..Default::default()
            };
            client.user_change_password(request).await?.header
        }
        UserAction::Get { name, .. } => {
            let answer = client.user_get(etcd::AuthUserGetRequest { name }).await?;
            return names(json, answer.header.as_ref(), "roles", &answer.roles);
        }
        UserAction::List { .. } => {
            let answer = client.user_list(etcd::AuthUserListRequest {}).await?;
            return names(json, answer.header.as_ref(), "users", &answer.users);
        }
        UserAction::GrantRole { name: user, role, .. } => {
            let request = etcd::AuthUserGrantRoleRequest { user, role };
            client.user_grant_role(request).await?.header
        }
        UserAction::RevokeRole { name, role, .. } => {
            let request = etcd::AuthUserRevokeRoleRequest { name, role };
            client.user_revoke_role(request).await?.header
        }
    };
    done(json, header.as_ref())
}

/// An empty one lets everybody in who knows the name.
fn new_password(user: &UserArg) -> Result<String, Failure> {
    let password = user.password()?;
    match password.is_empty() {
        true => Err(Failure::usage(
            "the password is empty; give one, or --no-password",
        )),
        false => Ok(password),
    }
}

/// Carries a `role` command out.
pub async fn role(args: RoleArgs) -> Result<(), Failure> {
    let json = args.client().json();
    let client = args.client().client(TIMEOUT)?;
    let header = match args.action {
        RoleAction::Add { name, .. } => client.role_add(etcd::AuthRoleAddRequest { name }).await?.header,
        RoleAction::Delete { name: role, .. } => {
            client
                .role_delete(etcd::AuthRoleDeleteRequest { role })
                .await?
                .header
        }
        RoleAction::Get { name, .. } => return permissions(&client, json, name).await,
        RoleAction::List { .. } => {
            let answer = client.role_list(etcd::AuthRoleListRequest {}).await?;
            return names(json, answer.header.as_ref(), "roles", &answer.roles);
        }
        RoleAction::GrantPermission {
            name, access, range, ..
        } => {
            let access = match access {
                Access::Read => Type::Read,
                Access::Write => Type::Write,
                Access::Readwrite => Type::Readwrite,
            };
            let (key, end) = range.range()?;
            let perm = Some(permission(access, key, end));
            let request = etcd::AuthRoleGrantPermissionRequest { name, perm };
            client.role_grant_permission(request).await?.header
        }
        RoleAction::RevokePermission {
            name: role, range, ..
        } => {
            let (key, range_end) = range.range()?;
            let request = etcd::AuthRoleRevokePermissionRequest { role, key, range_end };
            client.role_revoke_permission(request).await?.header
        }
    };
    done(json, header.as_ref())
}

async fn permissions(client: &Client, json: bool, role: String) -> Result<(), Failure> {
    let answer = client.role_get(etcd::AuthRoleGetRequest { role }).await?;
    let mut out = Output::start();
    match json {
        true => {
            let permissions: Vec<Value> = answer.perm.iter().map(in_json).collect();
            out.json(&json!({"revision": revision(answer.header.as_ref()), "permissions": permissions}))?;
        }
        false => {
            for permission in &answer.perm {
                let access = access_name(permission);
                out.pair(access.as_bytes(), &shown(permission))?;
            }
        }
    }
    out.end()
}

fn access_name(permission: &Permission) -> &'static str {
    match permission.perm_type() {
        Type::Read => "read",
        Type::Write => "write",
        Type::Readwrite => "readwrite",
    }
}

/// `KEY`, `[KEY, END)` or `[KEY, ∞)`.
fn shown(permission: &Permission) -> Vec<u8> {
    match &*permission.range_end {
        [] => permission.key.to_vec(),
        [0] => [b"[", &*permission.key, ", ∞)".as_bytes()].concat(),
        end => [b"[", &*permission.key, b", ", end, b")"].concat(),
    }
}

fn in_json(permission: &Permission) -> Value {
    let mut line = json!({"access": access_name(permission)});
    for (name, bytes) in [("key", &permission.key), ("range_end", &permission.range_end)] {
        let ExportLine { key, key_b64, .. } = ExportLine::new(bytes, b"");
        match key {
            Some("") if name == "range_end" => {}
            Some(text) => line[name] = json!(text),
            None => line[format!("{name}_b64")] = json!(key_b64),
        }
    }
    line
}
