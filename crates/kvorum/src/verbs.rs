//! The client commands, and what they share: how to reach the cluster, and how to print.

pub mod auth;
pub mod export;
pub mod history;
pub mod import;
pub mod kv;
pub mod lease;
pub mod member;
mod new_file;
pub mod password;
pub mod record;
pub mod send;
pub mod snapshot;
pub mod status;
pub mod tree;
pub mod turn;
pub mod txn;
pub mod ui;
pub mod upkeep;
pub mod watch;

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io::{self, BufWriter, Stdout, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use kvorum_client::{Client, Credentials, Error, Options};
use serde::Serialize;

use self::password::{UserArg, parse_user};
use crate::failure::{Failure, READ_BACK};
use crate::units::{format_duration, parse_duration};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON value, or one a line where there are many
    Json,
    /// Bytes as they are, of `get` and `ls`: one value with nothing behind it; of many, a zero byte behind each key and value
    Raw,
}

/// Why a command does not print [`Format::Raw`].
pub fn raw_refused() -> Failure {
    Failure::usage("-o raw prints keys and values: it is for `get` and `ls`")
}

/// How to reach the cluster, and how to print.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Client options")]
pub struct ClientArgs {
    /// Servers, with commas between; the next is tried when one fails
    #[arg(
        long,
        env = "KVORUM_ENDPOINTS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    pub endpoints: Vec<String>,
    /// Longest time that an operation may take; until then it is tried again, refused connections included
    /// [default: 10s; import, export and member 60s; status 2s for each server]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Who asks, where authentication is on; without a password it is read from standard input
    #[arg(
        id = "caller",
        long = "user",
        env = "KVORUM_USER",
        hide_env_values = true,
        value_name = "NAME[:PASSWORD]",
        value_parser = parse_user
    )]
    pub user: Option<UserArg>,
    /// How results are printed
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

impl ClientArgs {
    /// A client with the command's default timeout, for a command that prints lines.
    pub fn client(&self, timeout: Duration) -> Result<Client, Failure> {
        if self.raw() {
            return Err(raw_refused());
        }
        self.any_client(timeout)
    }

    /// The same, for a command that prints in every format.
    pub fn any_client(&self, timeout: Duration) -> Result<Client, Failure> {
        let timeout = self.timeout.unwrap_or(timeout);
        if timeout < Duration::from_millis(1) {
            let given = format_duration(timeout);
            return Err(Failure::usage(format!(
                "--timeout {given} is too short; give at least 1ms"
            )));
        }
        let endpoints = self
            .endpoints
            .iter()
            .filter(|text| !text.trim().is_empty())
            .cloned()
            .collect();
        let client = Client::new(Options {
            endpoints,
            timeout,
            credentials: self.credentials()?,
            ..Options::default()
        })?;
        tokio::spawn(tell_why_it_waits(client.clone(), timeout));
        Ok(client)
    }

    /// Who asks, if it was said.
    pub fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        self.user.as_ref().map(UserArg::credentials).transpose()
    }

    /// Whether to print JSON.
    pub fn json(&self) -> bool {
        self.output == Format::Json
    }

    /// Whether to print bytes as they are.
    pub fn raw(&self) -> bool {
        self.output == Format::Raw
    }
}

/// Says on standard error, once for each time that nobody answers for long, what is tried and until when. Ends with
/// the command.
async fn tell_why_it_waits(client: Client, timeout: Duration) {
    let mut told = None;
    loop {
        tokio::time::sleep(PATIENCE / 10).await;
        match client.trouble() {
            None => told = None,
            Some(trouble) if told != Some(trouble.since) && trouble.since.elapsed() >= PATIENCE => {
                told = Some(trouble.since);
                let timeout = format_duration(timeout);
                eprintln!("no answer yet: {}; trying for {timeout} in all", trouble.message);
            }
            Some(_) => {}
        }
    }
}

/// Carries a client command out. If nobody answered it in time, asks the servers how they are: those that are there
/// know better than a timeout what is wrong.
pub async fn explained(
    client: ClientArgs,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let Err(failure) = command.await else {
        return Ok(());
    };
    if !failure.is_silence() {
        return Err(failure);
    }
    let credentials = client.credentials()?;
    let answers = status::ask(client.endpoints, credentials, DIAGNOSIS_TIMEOUT).await;
    let Some(why) = answers.ok().and_then(|answers| status::diagnosis(&answers)) else {
        return Err(failure);
    };
    let read_back = failure.is_unknown().then_some(READ_BACK);
    let advice: Vec<&str> = [why.as_str()].into_iter().chain(read_back).collect();
    Err(failure.advise(advice.join("; ")))
}

/// How long nobody may answer before a person is told.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long servers may take to say what is wrong with them.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_millis(500);

/// Explains why a revision that was asked for cannot be read.
pub async fn revision_failure(client: &Client, revision: i64, error: Error) -> Failure {
    let out_of_range = matches!(
        &error,
        Error::Rejected {
            code: kvorum_client::Code::OutOfRange,
            ..
        }
    );
    if !out_of_range || revision <= 0 {
        return error.into();
    }
    match client.status().await {
        Ok(status) if revision > status.revision => Failure::error(format!(
            "revision {revision} is in the future: the newest is {}",
            status.revision
        )),
        Ok(status) if revision < status.compact_revision => Failure::error(format!(
            "revision {revision} is compacted: revisions {} to {} can be read",
            status.compact_revision, status.revision
        )),
        _ => error.into(),
    }
}

/// The usual timeout of one operation.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of one operation in a long run, which should outlast an election or two.
pub const LONG_TIMEOUT: Duration = Duration::from_secs(60);

/// An argument's bytes, whatever they are.
pub fn bytes(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

/// A key from the command line.
pub fn key(argument: OsString) -> Result<Bytes, Failure> {
    if argument.is_empty() {
        return Err(Failure::usage("the key is empty; give at least one byte"));
    }
    Ok(bytes(argument))
}

/// Standard output, buffered. To be flushed by [`Output::end`], which reports what went wrong.
pub struct Output(BufWriter<Stdout>);

impl Output {
    /// Starts printing.
    pub fn start() -> Self {
        Output(BufWriter::with_capacity(64 * 1024, io::stdout()))
    }

    /// One JSON value on one line.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.0, value).map_err(io::Error::from)?;
        Ok(self.0.write_all(b"\n")?)
    }

    /// These bytes and a newline.
    pub fn line(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes)?;
        Ok(self.0.write_all(b"\n")?)
    }

    /// These bytes and a zero byte.
    pub fn ended(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes)?;
        Ok(self.0.write_all(b"\0")?)
    }

    /// A key and a value on one line, with a tab between.
    pub fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.0.write_all(key)?;
        self.0.write_all(b"\t")?;
        self.line(value)
    }

    /// Everything printed so far leaves.
    pub fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.0.flush()?)
    }

    /// Ends printing.
    pub fn end(mut self) -> Result<(), Failure> {
        self.flush()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whether a path argument means a standard stream.
pub fn is_dash(path: &OsStr) -> bool {
    path.as_bytes() == b"-"
}
