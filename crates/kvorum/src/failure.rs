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
}

impl Failure {
    /// Refused or failed.
    pub fn error(message: impl Into<String>) -> Self {
        Failure {
            code: Code::Error,
            message: message.into(),
        }
    }

    /// Malformed arguments, configuration or input.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure {
            code: Code::Usage,
            message: message.into(),
        }
    }

    /// A failure of any kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure {
            code,
            message: message.into(),
        }
    }

    /// Puts words before the message.
    pub fn context(mut self, words: &str) -> Self {
        self.message = format!("{words}: {}", self.message);
        self
    }

    /// Prints the line and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("error: {}", self.message);
        }
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The system's words without the number behind them.
pub fn os(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Unknown { .. } => Failure::new(
                Code::Unknown,
                format!("{message}; read it back before writing again"),
            ),
            Error::Unavailable { .. } => Failure::new(
                Code::Unavailable,
                format!("{message}; check --endpoints and that a majority of the members runs"),
            ),
            Error::Config(_) => Failure::usage(message),
            Error::Rejected {
                code: kvorum_client::Code::Unimplemented,
                ..
            } => Failure::error(format!("the server does not offer this: {message}")),
            Error::Rejected { .. } | Error::Compacted { .. } | Error::Protocol(_) => Failure::error(message),
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
