//! Users, roles and permissions: etcd's Auth service.

use tonic::transport::Channel;

use crate::proto::etcd::auth_client::AuthClient;
use crate::proto::{auth, etcd};
use crate::{Client, Error};

fn service(channel: Channel) -> AuthClient<Channel> {
    AuthClient::new(channel)
}

/// A change: sent once, for it knows no sessions.
macro_rules! changes {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $answer:ty;)*) => {
        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// As of a write without a session: a lost answer is [`Error::Unknown`]; look at what there is.
                pub async fn $name(&self, request: $request) -> Result<$answer, Error> {
                    self.admin(request, |channel, request| async move { service(channel).$name(request).await })
                        .await
                }
            )*
        }
    };
}

/// A question: asked again until it is answered.
macro_rules! questions {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $answer:ty;)*) => {
        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// See [`Error`].
                pub async fn $name(&self, request: $request) -> Result<$answer, Error> {
                    self.read(request, |channel, request| async move { service(channel).$name(request).await })
                        .await
                }
            )*
        }
    };
}

changes! {
    /// Turns authentication on: from now on who asks must be known.
    auth_enable(etcd::AuthEnableRequest) -> etcd::AuthEnableResponse;
    /// Turns authentication off: everybody may do everything again.
    auth_disable(etcd::AuthDisableRequest) -> etcd::AuthDisableResponse;
    /// Adds a user.
    user_add(etcd::AuthUserAddRequest) -> etcd::AuthUserAddResponse;
    /// Deletes a user.
    user_delete(etcd::AuthUserDeleteRequest) -> etcd::AuthUserDeleteResponse;
    /// Gives a user another password.
    user_change_password(etcd::AuthUserChangePasswordRequest) -> etcd::AuthUserChangePasswordResponse;
    /// Gives a user a role.
    user_grant_role(etcd::AuthUserGrantRoleRequest) -> etcd::AuthUserGrantRoleResponse;
    /// Takes a role from a user.
    user_revoke_role(etcd::AuthUserRevokeRoleRequest) -> etcd::AuthUserRevokeRoleResponse;
    /// Adds a role.
    role_add(etcd::AuthRoleAddRequest) -> etcd::AuthRoleAddResponse;
    /// Deletes a role.
    role_delete(etcd::AuthRoleDeleteRequest) -> etcd::AuthRoleDeleteResponse;
    /// Gives a role a permission.
    role_grant_permission(etcd::AuthRoleGrantPermissionRequest) -> etcd::AuthRoleGrantPermissionResponse;
    /// Takes a permission from a role.
    role_revoke_permission(etcd::AuthRoleRevokePermissionRequest) -> etcd::AuthRoleRevokePermissionResponse;
}

questions! {
    /// Whether authentication is on.
    auth_status(etcd::AuthStatusRequest) -> etcd::AuthStatusResponse;
    /// The roles of a user.
    user_get(etcd::AuthUserGetRequest) -> etcd::AuthUserGetResponse;
    /// All users.
    user_list(etcd::AuthUserListRequest) -> etcd::AuthUserListResponse;
    /// The permissions of a role.
    role_get(etcd::AuthRoleGetRequest) -> etcd::AuthRoleGetResponse;
    /// All roles.
    role_list(etcd::AuthRoleListRequest) -> etcd::AuthRoleListResponse;
}

/// Access to `[key, range_end)` in etcd's convention, as [`Client::role_grant_permission`] takes it.
pub fn permission(
    access: auth::permission::Type,
    key: impl Into<bytes::Bytes>,
    range_end: impl Into<bytes::Bytes>,
) -> auth::Permission {
    auth::Permission {
        perm_type: access.into(),
        key: key.into(),
        range_end: range_end.into(),
    }
}
