//! Who the client says it is: a token for its name and password, asked for when it is needed, and again when a server
//! does not take it any more.

use std::fmt;
use std::time::Duration;

use tokio::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::Client;
use crate::proto::etcd;
use crate::proto::etcd::auth_client::AuthClient;

/// The metadata that carries the token.
const TOKEN_METADATA: &str = "token";

/// A user and its password; neither is shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

type Token = MetadataValue<Ascii>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Login {
    credentials: Credentials,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
enum State {
    LoggedOut,
    /// Authentication was off when a token was asked for: there is none.
    Needless,
    LoggedIn(Token),
}

impl Login {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Login {
            credentials,
            state: Mutex::new(State::LoggedOut),
        }
    }

    /// The token, if one is needed. One call asks for it; the others wait.
    async fn token(&self, channel: Channel, patience: Duration) -> Result<Option<Token>, Status> {
        let mut state = self.state.lock().await;
        match &*state {
            State::LoggedIn(token) => return Ok(Some(token.clone())),
            State::Needless => return Ok(None),
            State::LoggedOut => {}
        }
        let Credentials { user, password } = self.credentials.clone();
        let name = user;
        let mut request = Request::new(etcd::AuthenticateRequest { name, password });
        request.set_timeout(patience);
        match AuthClient::new(channel).authenticate(request).await {
            Ok(answer) => {
                let token = Token::try_from(answer.into_inner().token);
                let mut token = token.map_err(|_| Status::internal("the server's token is no metadata"))?;
                token.set_sensitive(true);
                *state = State::LoggedIn(token.clone());
                Ok(Some(token))
            }
            // Authentication is off, or the server has none.
            Err(status) if is_off(&status) => {
                *state = State::Needless;
                Ok(None)
            }
            Err(status) => Err(status),
        }
    }

    async fn forget(&self) {
        *self.state.lock().await = State::LoggedOut;
    }
}

fn is_off(status: &Status) -> bool {
    let off = status.message().contains("authentication is not enabled");
    status.code() == Code::Unimplemented || (status.code() == Code::FailedPrecondition && off)
}

/// Why a server wants another login, in its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relogin {
    /// It does not know the token, or wants one: the request was not looked at.
    Unknown,
    /// Users, roles or permissions changed between the check and the deed.
    Outdated,
}

impl Relogin {
    /// Whether a refusal's text says so.
    pub(crate) fn of(text: &str) -> Option<Relogin> {
        let is = |words| text.contains(words);
        if is("etcdserver: invalid auth token") || is("etcdserver: user name is empty") {
            Some(Relogin::Unknown)
        } else if is("etcdserver: revision of auth store is old") {
            Some(Relogin::Outdated)
        } else if is("kvorum: authentication is on") {
            Some(Relogin::Unknown)
        } else {
            None
        }
    }
}

impl Client {
    /// Names the caller in a request; logs in if that is needed.
    ///
    /// # Errors
    /// The server does not let it in, or cannot tell.
    pub(crate) async fn sign<T>(
        &self,
        channel: &Channel,
        patience: Duration,
        request: &mut Request<T>,
    ) -> Result<(), Status> {
        if let Some(login) = &self.inner.login
            && let Some(token) = login.token(channel.clone(), patience).await?
        {
            request.metadata_mut().insert(TOKEN_METADATA, token);
        }
        Ok(())
    }

    /// What to do about a refusal in these words, if another login may help.
    pub(crate) async fn relogin(&self, text: &str) -> Option<Relogin> {
        let login = self.inner.login.as_ref()?;
        let why = Relogin::of(text)?;
        login.forget().await;
        Some(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let credentials = Credentials {
            user: "me".to_owned(),
            password: "secret".to_owned(),
        };
        let login = Login::new(credentials.clone());
        assert!(!format!("{credentials:?} {login:?}").contains("secret"));
    }
}
