//! How the program fails: one line that says what is wrong and what to do, and an exit code for scripts.

use std::fmt;
use std::io;
use std::process::ExitCode;

use kvorum_client::Error;

/// The documented exit codes, see `kvorum help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Refused or failed; nothing changed beyond what was reported.
    Error = 1,
    /// Arguments, configuration or input are malformed.
    Usage = 2,
    /// The key is not there.
    NotFound = 3,
    /// A write may or may not have been applied.
    Unknown = 4,
    /// Nobody answered in time; nothing changed.
    Unavailable = 5,
}

/// Text for the end of the help.
pub const HELP: &str = "Exit codes: 0 done; 1 refused or failed; 2 malformed arguments, configuration or input; \
    3 key not found; 4 outcome of a write unknown; 5 no server answered in time, nothing changed";

/// A failure on its way to the exit code. An empty message prints nothing.
#[derive(Clone, Debug)]
pub struct Failure {
    code: Code,
    message: String,
    /// What to do, in words that stand behind the message.
    advice: Option<String>,
    /// The exit code of a command that was run, which is passed on.
    of_command: Option<u8>,
}

impl Failure {
    /// A command that was run ended with this exit code, and said itself why.
    pub fn of_command(code: u8) -> Self {
        Failure {
            of_command: Some(code),
            ..Failure::error("")
        }
    }

    /// Refused or failed.
    pub fn error(message: impl Into<String>) -> Self {
        Failure {
            code: Code::Error,
            message: message.into(),
            advice: None,
            of_command: None,
        }
    }

    /// Malformed arguments, configuration or input.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure {
            code: Code::Usage,
            message: message.into(),
            advice: None,
            of_command: None,
        }
    }

    /// A failure of any kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure {
            code,
            message: message.into(),
            advice: None,
            of_command: None,
        }
    }

    /// Puts words before the message.
    pub fn context(mut self, words: &str) -> Self {
        self.message = format!("{words}: {}", self.message);
        self
    }

    /// The same with another exit code.
    pub fn with_code(self, code: Code) -> Self {
        Failure { code, ..self }
    }

    /// Says what to do, in place of what was said of that before.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Whether nobody answered, or not in time.
    pub fn is_silence(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::Unknown) && !self.message.is_empty()
    }

    /// Whether a write may have been applied.
    pub fn is_unknown(&self) -> bool {
        self.code == Code::Unknown
    }

    /// Prints the line and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("error: {self}");
        }
        ExitCode::from(self.of_command.unwrap_or(self.code as u8))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// The system's words without the number behind them.
pub fn os(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// What to do after a write whose fate is unknown.
pub const READ_BACK: &str = "read it back before writing again";

/// What stands behind a server's words, where these are etcd's and so cannot say more.
fn advice_on(words: &str) -> Option<&'static str> {
    const ADVICE: [(&str, &str); 12] = [
        (
            "request is too large",
            "the limit is the members' --request-bytes-max, 1.5MiB by default",
        ),
        (
            "received message larger than max",
            "the limit is the members' --request-bytes-max, 1.5MiB by default, and 512KiB for the envelope",
        ),
        (
            "too many operations in txn",
            "each list of a transaction takes at most 128 operations",
        ),
        (
            "database space exceeded",
            "a member's disk is full, `kvorum status` says whose: free some space there, and writing goes on",
        ),
        (
            "requested lease not found",
            "it ended, or never was: `kvorum lease list` shows those there are",
        ),
        (
            "user name is empty",
            "authentication is on: say who asks by --user NAME:PASSWORD",
        ),
        (
            "authentication is on; send a token",
            "say who asks by --user NAME:PASSWORD",
        ),
        (
            "invalid user ID or password",
            "there is no such user, or its password is another",
        ),
        (
            "permission denied",
            "`kvorum user get` and `kvorum role get` tell a user what it may; the user root may everything",
        ),
        (
            "invalid auth management",
            "while authentication is on, the user root and its role stay; and a permission's range ends after it begins",
        ),
        ("root user does not exist", "make it: `kvorum user add root`"),
        (
            "root user does not have root role",
            "give it: `kvorum user grant-role root root`",
        ),
    ];
    let found = ADVICE.iter().find(|(text, _)| words.contains(text));
    found.map(|(_, advice)| *advice)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Unknown { .. } => Failure::new(Code::Unknown, message).advise(READ_BACK),
            Error::Unavailable { .. } => Failure::new(Code::Unavailable, message)
                .advise("check --endpoints and that a majority of the members runs"),
            Error::Config(_) => Failure::usage(message),
            Error::Rejected {
                code: kvorum_client::Code::Unimplemented,
                ..
            } => match message.split_once(": this is a member's peer port") {
                Some((_, rest)) => {
                    Failure::error(format!("check --endpoints: this is a member's peer port{rest}"))
                }
                None => Failure::error(format!("the server does not offer this: {message}")),
            },
            Error::Rejected { .. } => match advice_on(&message) {
                Some(advice) => Failure::error(message).advise(advice),
                None => Failure::error(message),
            },
            Error::Compacted { .. } | Error::Protocol(_) => Failure::error(message),
        }
    }
}

/// Failures of reading and writing the standard streams. A reader that went away is no news.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::error(""),
            _ => Failure::error(format!("cannot write the output: {}", os(&error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: kvorum_client::Code, words: &str, expected: &str) {
        let message = words.to_owned();
        let failure = Failure::from(Error::Rejected { code, message });
        assert_eq!(failure.to_string(), expected);
    }

    #[test]
    fn fixed_words_are_kept_and_explained() {
        use kvorum_client::Code::{InvalidArgument, ResourceExhausted, Unimplemented};
        check(
            InvalidArgument,
            "etcdserver: request is too large",
            "etcdserver: request is too large; the limit is the members' --request-bytes-max, 1.5MiB by default",
        );
        check(
            ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
            "etcdserver: mvcc: database space exceeded; a member's disk is full, `kvorum status` says whose: free \
             some space there, and writing goes on",
        );
        check(
            InvalidArgument,
            "etcdserver: key is not provided",
            "etcdserver: key is not provided",
        );
        check(
            Unimplemented,
            "unknown service etcdserverpb.KV: this is a member's peer port; clients use another",
            "check --endpoints: this is a member's peer port; clients use another",
        );
        check(
            Unimplemented,
            "unknown service x",
            "the server does not offer this: unknown service x",
        );
    }
}
