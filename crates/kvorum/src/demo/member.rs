//! One member process of the demo.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::failure::{self, Failure};

/// How much of a log's end is searched for its last line.
const LOG_TAIL_BYTES: u64 = 4096;

/// A member: what it is called, where it is, and its process if it runs.
pub struct Member {
    /// `node-N`.
    pub name: String,
    /// Where clients connect.
    pub client: String,
    /// Where peers connect.
    pub peer: String,
    /// What it logs, as JSON lines would be for programs: as text.
    pub log: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Member {
    /// Member `n` of `count`, not started.
    pub fn new(n: u16, count: u16, base_port: u16, directory: &Path) -> Self {
        let name = |n: u16| format!("node-{n}");
        let peer = |n: u16| format!("127.0.0.1:{}", base_port + 100 + n);
        let client = format!("127.0.0.1:{}", base_port + n);
        let cluster: Vec<String> = (1..=count).map(|n| format!("{}={}", name(n), peer(n))).collect();
        let arguments = [
            "serve",
            "--until-stdin-closes",
            "--env-file=",
            "--name",
            &name(n),
            "--data-dir",
            &directory.join(name(n)).to_string_lossy(),
            "--initial-cluster",
            &cluster.join(","),
            "--cluster-token",
            "demo",
            "--listen-client",
            &client,
            "--listen-peer",
            &peer(n),
        ]
        .map(str::to_owned)
        .to_vec();
        let log = directory.join(format!("{}.log", name(n)));
        Member {
            name: name(n),
            client,
            peer: peer(n),
            log,
            arguments,
            process: None,
        }
    }

    /// Starts the process.
    pub fn start(&mut self) -> Result<(), Failure> {
        let cannot = |what: &str, error: &std::io::Error| {
            Failure::error(format!("cannot {what} for {}: {}", self.name, failure::os(error)))
        };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| cannot("write the log", &error))?;
        let program = std::env::current_exe().map_err(|error| cannot("find this program", &error))?;
        let mut command = Command::new(program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        // Settings of this shell are meant for other members.
        for (name, _) in std::env::vars_os() {
            if crate::start::is_ours(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        self.process = Some(
            command
                .spawn()
                .map_err(|error| cannot("start a process", &error))?,
        );
        Ok(())
    }

    /// Whether the process was started and has not been seen to end.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// If the process ended since the last look, and not by this demo: how, as the rest of a sentence.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.process.as_mut()?.try_wait().ok()??;
        self.process = None;
        Some(describe(status, &self.log))
    }

    /// Kills the process, as kill -9 does; whether it ran.
    pub async fn kill(&mut self) -> bool {
        let Some(mut process) = self.process.take() else {
            return false;
        };
        // The only failure is that it ended already.
        let _ = process.kill().await;
        true
    }

    /// Asks the process to stop.
    pub fn terminate(&self) {
        let pid = self
            .process
            .as_ref()
            .and_then(Child::id)
            .and_then(|pid| Pid::from_raw(pid as i32));
        if let Some(pid) = pid {
            // It may have ended in between: the wait sees that.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Asks the process to stop and waits; kills it if it takes longer.
    pub async fn stop(&mut self, at_most: Duration) {
        self.terminate();
        let Some(process) = &mut self.process else { return };
        if timeout(at_most, process.wait()).await.is_err() {
            self.kill().await;
        }
        self.process = None;
    }
}

/// How a process ended that the demo did not end. Its log has a reason only if it ended of its own accord.
fn describe(status: ExitStatus, log: &Path) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => "stopped in order: somebody asked it to".to_owned(),
        (Some(code), _) => match last_line(log) {
            Some(line) => format!("ended with exit code {code}: {line}"),
            None => format!("ended with exit code {code}; see {}", log.display()),
        },
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        _ => format!("ended; see {}", log.display()),
    }
}

/// The last line of a file that is not blank.
fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))
        .ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    tail.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_the_base() {
        let member = Member::new(2, 3, 7400, Path::new("/d"));
        assert_eq!(
            (member.client.as_str(), member.peer.as_str()),
            ("127.0.0.1:7402", "127.0.0.1:7502")
        );
        assert!(member.arguments.contains(&"/d/node-2".to_owned()));
        assert!(
            member
                .arguments
                .iter()
                .any(|a| a.ends_with("node-3=127.0.0.1:7503"))
        );
    }

    /// Once the demo gave as the reason of a kill -9 whatever the member had logged last.
    #[test]
    fn a_log_tells_why_only_of_those_that_ended_by_themselves() {
        use std::os::unix::process::ExitStatusExt;
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "ready\nerror: it broke\n").unwrap();
        let told = |wait_status| describe(ExitStatus::from_raw(wait_status), &log);
        assert_eq!(told(9), "was killed by signal 9");
        assert_eq!(told(0), "stopped in order: somebody asked it to");
        assert_eq!(told(1 << 8), "ended with exit code 1: error: it broke");
    }

    #[test]
    fn the_last_line_of_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(last_line(&path), None);
        std::fs::write(&path, "a\nerror: it broke\n\n").unwrap();
        assert_eq!(last_line(&path).unwrap(), "error: it broke");
    }
}
