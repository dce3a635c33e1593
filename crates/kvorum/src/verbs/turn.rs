//! `lock` and `elect`: waiting for one's turn, and keeping it for as long as this process, or the command that it
//! runs, lives.
//!
//! The turn hangs on a lease, which is renewed three times in each TTL and ended on the way out, however the command
//! ends; if this process is killed, the lease runs out. A lease that cannot be renewed is taken for lost when its
//! last renewal is a TTL ago: the command that runs under the lock is stopped then.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use kvorum_client::Client;
use kvorum_client::proto::mvcc::KeyValue;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::record::{ExportLine, Record, revision};
use super::{ClientArgs, Output, TIMEOUT, bytes};
use crate::failure::{self, Code, Failure};

/// How long a command that is told to stop may take.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `lock`.
#[derive(Args)]
pub struct LockArgs {
    /// The lock's name
    name: OsString,
    /// Run this while the lock is held; its exit code is passed on. Without it the lock is held until interrupted
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// The lock is lost if it cannot be renewed for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(i64).range(1..=86_400))]
    ttl: i64,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `elect`.
#[derive(Args)]
pub struct ElectArgs {
    /// The election's name
    name: OsString,
    /// What to say as the leader
    #[arg(required_unless_present = "listen", conflicts_with = "listen")]
    value: Option<OsString>,
    /// Print who leads, and what they say, until interrupted
    #[arg(short, long)]
    listen: bool,
    /// The leadership is lost if it cannot be renewed for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(i64).range(1..=86_400))]
    ttl: i64,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A lease that is renewed while its owner waits.
struct Lease {
    client: Client,
    id: i64,
    ttl: Duration,
    /// When the last renewal that succeeded was sent.
    renewed: Instant,
}

impl Lease {
    async fn grant(client: &Client, ttl_s: i64) -> Result<Lease, Failure> {
        let renewed = Instant::now();
        let granted = client.lease_grant(ttl_s, 0).await?;
        Ok(Lease {
            client: client.clone(),
            id: granted.id,
            ttl: Duration::from_secs(u64::try_from(granted.ttl).unwrap_or(0)),
            renewed,
        })
    }

    /// Renews it until it is lost.
    async fn lost(&mut self) {
        loop {
            sleep(self.ttl / 3).await;
            let (sent, lives_until) = (Instant::now(), self.renewed + self.ttl);
            match tokio::time::timeout_at(lives_until, self.client.lease_keep_alive(self.id)).await {
                Ok(Ok(answer)) if answer.ttl > 0 => self.renewed = sent,
                Ok(Ok(_)) | Err(_) => return,
                // Tried again until its time is over.
                Ok(Err(_)) if Instant::now() < lives_until => {}
                Ok(Err(_)) => return,
            }
        }
    }

    /// What comes of `work`, unless the lease ends first.
    async fn during<T>(
        &mut self,
        lost: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            result = work => result,
            () = self.lost() => Err(Failure::error(lost)),
        }
    }

    /// Ends it, and everything that hangs on it.
    async fn end(self) -> Result<(), Failure> {
        match self.client.lease_revoke(self.id).await {
            Ok(_) => Ok(()),
            Err(error) if error.to_string().contains("lease not found") => Ok(()),
            Err(error) => Err(Failure::from(error).context("the lease could not be ended, it will run out")),
        }
    }
}

/// The wish of somebody that this process ends. From the start on, so that none is missed.
struct Interruption([SignalStream; 2]);

impl Interruption {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::error(format!("cannot listen for signals: {}", failure::os(&error)))
            })
        };
        Ok(Interruption([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
        ]))
    }

    async fn wait(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// Takes a lock, and holds it.
pub async fn lock(args: LockArgs) -> Result<(), Failure> {
    let client = args.client.client(TIMEOUT)?;
    let json = args.client.json();
    let name = bytes(args.name);
    let mut interruption = Interruption::listen()?;
    let mut lease = Lease::grant(&client, args.ttl).await?;
    let id = lease.id;
    let waiting = async {
        tokio::select! {
            held = client.lock(name, id) => Ok(Some(held?)),
            () = interruption.wait() => Ok(None),
        }
    };
    let result = match lease
        .during("the lease ended before the lock was held", waiting)
        .await
    {
        Ok(None) => Err(Failure::new(Code::Error, "interrupted before the lock was held")),
        Ok(Some(held)) => {
            let revision = revision(held.header.as_ref());
            match args.command.is_empty() {
                true => hold(&mut lease, interruption, &held.key, revision, json).await,
                false => run(&mut lease, interruption, &args.command, &held.key, revision).await,
            }
        }
        Err(failure) => Err(failure),
    };
    let ended = lease.end().await;
    result.and(ended)
}

/// Prints the lock's key and waits for the interruption.
async fn hold(
    lease: &mut Lease,
    mut interruption: Interruption,
    key: &[u8],
    revision: i64,
    json: bool,
) -> Result<(), Failure> {
    let mut out = Output::start();
    if json {
        let ExportLine { key, key_b64, .. } = ExportLine::new(key, b"");
        let mut line = json!({"revision": revision, "lease": format!("{:016x}", lease.id)});
        match key {
            Some(key) => line["key"] = json!(key),
            None => line["key_b64"] = json!(key_b64),
        }
        out.json(&line)?;
    } else {
        out.line(key)?;
    }
    out.end()?;
    let interrupted = async {
        interruption.wait().await;
        Ok(())
    };
    lease
        .during("the lock is lost: its lease could not be renewed", interrupted)
        .await
}

/// Runs a command under the lock.
async fn run(
    lease: &mut Lease,
    mut interruption: Interruption,
    words: &[OsString],
    key: &[u8],
    revision: i64,
) -> Result<(), Failure> {
    let program = &words[0];
    let mut command = Command::new(program);
    let (key, revision) = (std::ffi::OsStr::from_bytes(key), revision.to_string());
    command.args(&words[1..]);
    // The second pair is what etcdctl sets.
    for (prefix, of_revision) in [("KVORUM", "REVISION"), ("ETCD", "REV")] {
        command.env(format!("{prefix}_LOCK_KEY"), key);
        command.env(format!("{prefix}_LOCK_{of_revision}"), &revision);
    }
    let mut child = command.spawn().map_err(|error| {
        let program = program.to_string_lossy();
        Failure::error(format!("cannot run {program}: {}", failure::os(&error)))
    })?;
    let failed =
        |error: std::io::Error| Failure::error(format!("cannot wait for it: {}", failure::os(&error)));
    let pid = child.id();
    let ended = async {
        tokio::select! {
            status = child.wait() => return status,
            () = interruption.wait() => {}
        }
        // A terminal tells both; whoever tells only this process means the command.
        tell(pid, Signal::TERM);
        child.wait().await
    };
    let ended = tokio::select! {
        ended = ended => Some(ended.map_err(failed)?),
        () = lease.lost() => None,
    };
    let Some(status) = ended else {
        stop(&mut child).await;
        return Err(Failure::error(
            "the lock is lost, its lease could not be renewed; the command was stopped",
        ));
    };
    match exit_code(status) {
        0 => Ok(()),
        code => Err(Failure::of_command(code)),
    }
}

/// As shells count it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

fn tell(pid: Option<u32>, signal: Signal) {
    let pid = pid
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // One that ended meanwhile needs no telling.
        let _ = kill_process(pid, signal);
    }
}

async fn stop(child: &mut Child) {
    tell(child.id(), Signal::TERM);
    if timeout(STOP_PATIENCE, child.wait()).await.is_err() {
        // It ended, or does now.
        let _ = child.kill().await;
    }
}

/// Stands in an election, or follows it.
pub async fn elect(args: ElectArgs) -> Result<(), Failure> {
    let client = args.client.client(TIMEOUT)?;
    let json = args.client.json();
    let name = bytes(args.name);
    let Some(value) = args.value.map(bytes) else {
        return listen(&client, name, json).await;
    };
    let mut interruption = Interruption::listen()?;
    let mut lease = Lease::grant(&client, args.ttl).await?;
    let id = lease.id;
    let leading = async {
        let won = tokio::select! {
            won = client.campaign(name, id, value.clone()) => won?,
            () = interruption.wait() => return Ok(()),
        };
        let leader = won.leader.unwrap_or_default();
        let record = client.get(leader.key).await?;
        let record = record.ok_or_else(|| Failure::error("the leadership is lost: its key is gone"))?;
        print(&record, json)?;
        interruption.wait().await;
        Ok(())
    };
    let result = lease
        .during("the leadership is lost: its lease could not be renewed", leading)
        .await;
    let ended = lease.end().await;
    result.and(ended)
}

async fn listen(client: &Client, name: bytes::Bytes, json: bool) -> Result<(), Failure> {
    let mut observer = client.observe(name);
    let mut interruption = Interruption::listen()?;
    loop {
        tokio::select! {
            answer = observer.next() => {
                if let Some(record) = answer?.kv {
                    print(&record, json)?;
                }
            }
            () = interruption.wait() => return Ok(()),
        }
    }
}

fn print(record: &KeyValue, json: bool) -> Result<(), Failure> {
    let mut out = Output::start();
    match json {
        true => out.json(&Record::from(record))?,
        false => out.pair(&record.key, &record.value)?,
    }
    out.end()
}
