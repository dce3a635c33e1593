//! The program under test: how it is run, and how long one waits for what it does.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// Longest that a command which should end may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The program under test.
pub fn binary() -> PathBuf {
    std::env::var_os("KVORUM_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_kvorum").into(), PathBuf::from)
}

/// A command of the program, without the settings of this shell, that ends with its handle.
pub fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    clean(&mut command);
    command
}

/// Keeps the settings of this shell from a command.
pub fn clean(command: &mut Command) {
    const PREFIXES: [&str; 7] = [
        "KVORUM_", "RAFT_", "BADGER_", "SERVER_", "SERVICE_", "ROUTER_", "ETCD_",
    ];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "LOG_LEVEL" || PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The command, ended, whatever became of it.
    pub async fn of(mut command: Command) -> Ran {
        let output = timeout(COMMAND_TIMEOUT, command.output())
            .await
            .unwrap_or_else(|_| panic!("{command:?} does not end"))
            .unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The one line that says what is wrong.
    #[track_caller]
    pub fn error(&self) -> &str {
        let errors: Vec<&str> = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        let [error] = errors.as_slice() else {
            panic!("not one line of error: {self:?}")
        };
        assert_eq!(self.stderr.lines().last(), Some(*error), "words after the error");
        error
    }

    /// The command failed with this code, and its line of error holds all of `words`.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let error = self.error();
        for word in words {
            assert!(error.contains(word), "`{word}` is missing: {error}");
        }
    }
}

/// Runs the program; it must succeed. Gives what it printed.
pub async fn run(args: &[&str]) -> String {
    let ran = Ran::of(command(args)).await;
    assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    ran.stdout
}

/// Runs the program, which may fail.
pub async fn try_run(args: &[&str]) -> Ran {
    Ran::of(command(args)).await
}

/// Looks until there is something to see, for `at_most`.
pub async fn eventually<T>(what: &str, at_most: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + at_most;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {at_most:?}: {what}");
        sleep(LOOK_INTERVAL).await;
    }
}

/// A port that nobody listens on, below the range from which systems take ports for outgoing connections: a
/// member that restarts finds it free.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(97) % u32::from(COUNT);
    for _ in 0..COUNT {
        let offset = (start + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).expect("below COUNT");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}
