//! etcd's Auth service: users, roles and permissions, and tokens for those who show a password.
//!
//! Changes go through the log, questions are answered after a read barrier. A password is hashed here and never leaves
//! this member; its hash is in the log. Who did what is in the log for people (`auth:`), without passwords and tokens.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kvorum_model::{Access, AuthCommand, Command, Error, KeyRange, Permission, Reply, Secret};
use kvorum_mvcc::AuthState;
use kvorum_proto::authpb::{self, permission::Type};
use kvorum_proto::etcdserverpb::{self as pb, auth_server::Auth};
use kvorum_proto::{Outcome, refused, status_of};
use std::sync::Arc;
use tonic::{Request, Response, Status};

use super::Context;
use crate::api::Core;
use crate::metrics::Method;

/// Letters of a token before the index of its entry, as in etcd: some 91 bits.
const TOKEN_LETTERS: usize = 16;

/// See the module.
#[derive(Clone, Debug)]
pub struct AuthService(Core);

impl AuthService {
    /// The service of this member.
    pub fn new(core: Core) -> Self {
        AuthService(core)
    }

    /// Makes a change; the header of the answer.
    async fn change<T>(
        &self,
        request: &Request<T>,
        command: AuthCommand,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        let context = Context::of(request, &self.0.handle)?;
        let by = match self.0.caller(&context).await {
            Ok(caller) => caller.map_or_else(|| "nobody (authentication is off)".to_owned(), |by| by.user),
            Err(error) => return Err(refused(&error)),
        };
        let shown = format!("{command:?}");
        let applied = self.0.write(&context, Command::Auth(command)).await?;
        match &applied.result {
            Ok(_) => tracing::info!(%by, change = %shown, "auth: changed"),
            Err(error) => tracing::warn!(%by, change = %shown, %error, "auth: refused"),
        }
        match applied.result {
            Ok(Reply::Done) => Ok(Some(self.0.header_of(&applied))),
            other => Err(super::unexpected(other)),
        }
    }

    /// The state after everything that was acknowledged before the question, and the header of the answer.
    async fn ask<T>(
        &self,
        request: &Request<T>,
    ) -> Result<(Context, Arc<AuthState>, Option<pb::ResponseHeader>), Status> {
        let context = Context::of(request, &self.0.handle)?;
        self.0.barrier(&context).await?;
        let state = self.0.handle.state();
        let header = self.0.header(state.facts().revision);
        Ok((context, state.auth(), Some(header)))
    }

    /// The same, for administrators.
    async fn ask_as_admin<T>(
        &self,
        request: &Request<T>,
    ) -> Result<(Arc<AuthState>, Option<pb::ResponseHeader>), Status> {
        let (context, auth, header) = self.ask(request).await?;
        self.0.require_admin(&context).await?;
        Ok((auth, header))
    }

    /// The same, for those who may see what `is_own` says is theirs, and for administrators.
    async fn ask_about_own<T>(
        &self,
        request: &Request<T>,
        is_own: impl FnOnce(&AuthState, &str) -> bool,
    ) -> Result<(Arc<AuthState>, Option<pb::ResponseHeader>), Status> {
        let (context, auth, header) = self.ask(request).await?;
        let caller = self.0.caller(&context).await.map_err(|error| status_of(&error))?;
        let own = caller.as_ref().is_some_and(|caller| is_own(&auth, &caller.user));
        if !own {
            auth.check_admin(caller.as_ref())
                .map_err(|error| status_of(&error))?;
        }
        Ok((auth, header))
    }

    async fn log_in(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<pb::AuthenticateResponse, Status> {
        let mut context = Context::of(&request, &self.0.handle)?;
        // A token is not for those who ask with one; nor is it one of the outcomes that a session keeps.
        (context.token, context.session) = (None, None);
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        self.0.barrier(&context).await?;
        loop {
            let auth = self.0.handle.state().auth();
            let hash = match auth.password(&name) {
                Ok(hash) => Some(hash),
                Err(Error::AuthenticationFailed) => None,
                Err(error) => return Err(refused(&error)),
            };
            if !self.0.handle.passwords().fits(password.clone(), hash).await? {
                tracing::warn!(user = %name, "auth: a login failed");
                return Err(refused(&Error::AuthenticationFailed));
            }
            let command = Command::Auth(AuthCommand::Authenticate {
                user: name.clone(),
                token: random_letters()?,
                auth_revision: auth.revision(),
            });
            let applied = self.0.write(&context, command).await?;
            let header = Some(self.0.header_of(&applied));
            match applied.result {
                Ok(Reply::Authenticated(token)) => {
                    tracing::info!(user = %name, "auth: logged in");
                    let token = String::from_utf8(token.0.into());
                    let token = token.map_err(|_| Status::internal("kvorum: a token that is no text"))?;
                    return Ok(pb::AuthenticateResponse { header, token });
                }
                // The password may be another one by now.
                Err(Error::OldAuthRevision) if std::time::Instant::now() < context.deadline => {}
                other => return Err(super::unexpected(other)),
            }
        }
    }

    async fn add_user(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<pb::AuthUserAddResponse, Status> {
        self.check_first(&request).await?;
        let message = request.get_ref();
        let no_password = message.options.is_some_and(|options| options.no_password);
        let password = match no_password {
            true => Secret::default(),
            // As in etcd a hash of the client's own counts only where a password is changed.
            false => self.0.handle.passwords().hash(message.password.clone()).await?,
        };
        let command = AuthCommand::UserAdd {
            name: message.name.clone(),
            password,
            no_password,
        };
        let header = self.change(&request, command).await?;
        Ok(pb::AuthUserAddResponse { header })
    }

    async fn change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<pb::AuthUserChangePasswordResponse, Status> {
        self.check_first(&request).await?;
        let message = request.get_ref();
        let password = match message.password.is_empty() {
            false => self.0.handle.passwords().hash(message.password.clone()).await?,
            true => {
                let hash = BASE64.decode(&message.hashed_password).map_err(|_| {
                    let text = "kvorum: hashedPassword is not base64";
                    Outcome::NotApplied.mark(Status::invalid_argument(text))
                })?;
                Secret(hash.into())
            }
        };
        let command = AuthCommand::UserChangePassword {
            name: message.name.clone(),
            password,
        };
        let header = self.change(&request, command).await?;
        Ok(pb::AuthUserChangePasswordResponse { header })
    }

    /// Hashes are dear: nobody else makes this member compute some.
    async fn check_first<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let context = Context::of(request, &self.0.handle)?;
        let permitted = self.0.require_admin(&context).await;
        permitted.map_err(|status| Outcome::NotApplied.mark(status))
    }

    async fn grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<pb::AuthRoleGrantPermissionResponse, Status> {
        self.check_first(&request).await?;
        let message = request.get_ref();
        let permission = message.perm.clone();
        let permission = permission.ok_or_else(|| refused(&Error::PermissionNotGiven))?;
        let command = AuthCommand::RoleGrantPermission {
            name: message.name.clone(),
            permission: Permission {
                access: match Type::try_from(permission.perm_type) {
                    Ok(Type::Read) => Access::Read,
                    Ok(Type::Write) => Access::Write,
                    Ok(Type::Readwrite) => Access::ReadWrite,
                    Err(_) => {
                        let text = "kvorum: unknown permission type";
                        return Err(Outcome::NotApplied.mark(Status::invalid_argument(text)));
                    }
                },
                range: KeyRange {
                    key: permission.key,
                    end: permission.range_end,
                },
            },
        };
        let header = self.change(&request, command).await?;
        Ok(pb::AuthRoleGrantPermissionResponse { header })
    }

    async fn get_role(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<pb::AuthRoleGetResponse, Status> {
        let role = &request.get_ref().role;
        let (auth, header) = self
            .ask_about_own(&request, |auth, user| auth.has_role(user, role))
            .await?;
        let permissions = auth.role(role).map_err(|error| status_of(&error))?;
        let perm = permissions.into_iter().map(|permission| authpb::Permission {
            perm_type: match permission.access {
                Access::Read => Type::Read,
                Access::Write => Type::Write,
                Access::ReadWrite => Type::Readwrite,
            }
            .into(),
            key: permission.range.key,
            range_end: permission.range.end,
        });
        Ok(pb::AuthRoleGetResponse {
            header,
            perm: perm.collect(),
        })
    }

    async fn get_user(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<pb::AuthUserGetResponse, Status> {
        let name = &request.get_ref().name;
        let (auth, header) = self.ask_about_own(&request, |_, user| user == name).await?;
        let roles = auth.user(name).map_err(|error| status_of(&error))?;
        Ok(pb::AuthUserGetResponse {
            header,
            roles: roles.map(str::to_owned).collect(),
        })
    }
}

/// Letters that nobody guesses.
fn random_letters() -> Result<Secret, Status> {
    const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut letters = Vec::with_capacity(TOKEN_LETTERS);
    while letters.len() < TOKEN_LETTERS {
        let mut bytes = [0; TOKEN_LETTERS];
        getrandom::fill(&mut bytes)
            .map_err(|error| Status::internal(format!("kvorum: the system has no randomness: {error}")))?;
        // Each letter as often as the others: the bytes above the last whole round are left out.
        let fair = bytes.into_iter().filter(|byte| *byte < 4 * LETTERS.len() as u8);
        let left = TOKEN_LETTERS - letters.len();
        letters.extend(fair.map(|byte| LETTERS[byte as usize % LETTERS.len()]).take(left));
    }
    Ok(Secret(letters.into()))
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let call = async {
            let header = self.change(&request, AuthCommand::Enable).await?;
            Ok(pb::AuthEnableResponse { header })
        };
        self.0.counted(Method::AuthEnable, call).await
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let call = async {
            let header = self.change(&request, AuthCommand::Disable).await?;
            Ok(pb::AuthDisableResponse { header })
        };
        self.0.counted(Method::AuthDisable, call).await
    }

    /// Whoever asks may know, as in etcd 3.7: it tells whether there is a login.
    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let call = async {
            let (_, auth, header) = self.ask(&request).await?;
            Ok(pb::AuthStatusResponse {
                header,
                enabled: auth.is_enabled(),
                auth_revision: auth.revision(),
            })
        };
        self.0.counted(Method::AuthStatus, call).await
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        self.0.counted(Method::Authenticate, self.log_in(request)).await
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        self.0.counted(Method::UserAdd, self.add_user(request)).await
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        self.0.counted(Method::UserGet, self.get_user(request)).await
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let call = async {
            let (auth, header) = self.ask_as_admin(&request).await?;
            let users = auth.users().map(str::to_owned).collect();
            Ok(pb::AuthUserListResponse { header, users })
        };
        self.0.counted(Method::UserList, call).await
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let name = request.get_ref().name.clone();
        let call = async {
            let header = self.change(&request, AuthCommand::UserDelete { name }).await?;
            Ok(pb::AuthUserDeleteResponse { header })
        };
        self.0.counted(Method::UserDelete, call).await
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        self.0
            .counted(Method::UserChangePassword, self.change_password(request))
            .await
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let pb::AuthUserGrantRoleRequest { user: name, role } = request.get_ref().clone();
        let call = async {
            let command = AuthCommand::UserGrantRole { name, role };
            let header = self.change(&request, command).await?;
            Ok(pb::AuthUserGrantRoleResponse { header })
        };
        self.0.counted(Method::UserGrantRole, call).await
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let pb::AuthUserRevokeRoleRequest { name, role } = request.get_ref().clone();
        let call = async {
            let command = AuthCommand::UserRevokeRole { name, role };
            let header = self.change(&request, command).await?;
            Ok(pb::AuthUserRevokeRoleResponse { header })
        };
        self.0.counted(Method::UserRevokeRole, call).await
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let name = request.get_ref().name.clone();
        let call = async {
            let header = self.change(&request, AuthCommand::RoleAdd { name }).await?;
            Ok(pb::AuthRoleAddResponse { header })
        };
        self.0.counted(Method::RoleAdd, call).await
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        self.0.counted(Method::RoleGet, self.get_role(request)).await
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let call = async {
            let (auth, header) = self.ask_as_admin(&request).await?;
            let roles = auth.roles().map(str::to_owned).collect();
            Ok(pb::AuthRoleListResponse { header, roles })
        };
        self.0.counted(Method::RoleList, call).await
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let name = request.get_ref().role.clone();
        let call = async {
            let header = self.change(&request, AuthCommand::RoleDelete { name }).await?;
            Ok(pb::AuthRoleDeleteResponse { header })
        };
        self.0.counted(Method::RoleDelete, call).await
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        self.0
            .counted(Method::RoleGrantPermission, self.grant_permission(request))
            .await
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let pb::AuthRoleRevokePermissionRequest {
            role: name,
            key,
            range_end: end,
        } = request.get_ref().clone();
        let call = async {
            let range = KeyRange { key, end };
            let command = AuthCommand::RoleRevokePermission { name, range };
            let header = self.change(&request, command).await?;
            Ok(pb::AuthRoleRevokePermissionResponse { header })
        };
        self.0.counted(Method::RoleRevokePermission, call).await
    }
}
