//! Users and passwords on the command line: `NAME:PASSWORD`, or `NAME` and the password from standard input, which a
//! terminal does not show.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};

use kvorum_client::Credentials;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure::{Failure, os};

/// A user as it is given; a password is not shown, and asked for once. Clones share what was answered.
#[derive(Clone)]
pub struct UserArg {
    name: String,
    password: Arc<OnceLock<String>>,
}

impl fmt::Debug for UserArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserArg({:?})", self.name)
    }
}

/// `NAME` or `NAME:PASSWORD`.
pub fn parse_user(text: &str) -> Result<UserArg, String> {
    let (name, password) = match text.split_once(':') {
        Some((name, password)) => (name, Some(password.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("the name of the user is empty; write NAME:PASSWORD".to_owned());
    }
    Ok(UserArg {
        name: name.to_owned(),
        password: Arc::new(password.map(OnceLock::from).unwrap_or_default()),
    })
}

impl UserArg {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The password; read from standard input if it was not given.
    pub fn password(&self) -> Result<String, Failure> {
        if let Some(password) = self.password.get() {
            return Ok(password.clone());
        }
        let password = read_password(&format!("Password of {}: ", self.name))?;
        Ok(self.password.get_or_init(|| password).clone())
    }

    /// Both.
    pub fn credentials(&self) -> Result<Credentials, Failure> {
        Ok(Credentials {
            user: self.name.clone(),
            password: self.password()?,
        })
    }
}

/// One line of standard input.
fn read_password(prompt: &str) -> Result<String, Failure> {
    let hidden = io::stdin().is_terminal().then(|| {
        eprint!("{prompt}");
        // A prompt that cannot be written is missed by nobody.
        let _ = io::stderr().flush();
        Hidden::start()
    });
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    if hidden.is_some() {
        eprintln!();
    }
    match read {
        Ok(0) => Err(Failure::usage(
            "a password is needed: write NAME:PASSWORD, or give it on standard input",
        )),
        Ok(_) => Ok(line.trim_end_matches(['\n', '\r']).to_owned()),
        Err(error) => Err(Failure::usage(format!(
            "the password cannot be read: {}",
            os(&error)
        ))),
    }
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Hidden(Option<Termios>);

impl Hidden {
    fn start() -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut without_echo = before.clone();
            without_echo.local_modes.remove(LocalModes::ECHO);
            // At worst the password is seen.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &without_echo);
        }
        Hidden(before)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn users_with_passwords() {
        let check = |text: &str, user: &str, password: &str| {
            let credentials = parse_user(text).unwrap().credentials().unwrap();
            assert_eq!((&*credentials.user, &*credentials.password), (user, password));
        };
        check("root:secret", "root", "secret");
        check("me:a:b", "me", "a:b");
        check("me:", "me", "");
        assert_eq!(parse_user("me").unwrap().name(), "me");
        assert!(parse_user("").is_err() && parse_user(":secret").is_err());
        assert!(!format!("{:?}", parse_user("me:secret")).contains("secret"));
    }
}
