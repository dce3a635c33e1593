//! `demo`: a cluster of real member processes on loopback, to write to, read from, and kill.
//!
//! Each member is this program again with `serve`, in a process group of its own (so that Ctrl-C reaches only the
//! demo, which then stops them in order), with its standard input on a pipe: when the demo dies, however it
//! dies, the pipe closes and the members stop. Only a directory that the demo made is deleted.

mod member;
mod screen;

use std::ffi::OsStr;
use std::fs;
use std::io::IsTerminal;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use kvorum_client::proto::v1::{Role, StatusResponse};
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use self::member::Member;
use self::screen::{Line, Screen};
use crate::failure::{self, Failure};
use crate::verbs::status;

/// How often the members are asked how they are.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// How long one may take to answer.
const STATUS_TIMEOUT: Duration = Duration::from_millis(400);
/// How long the first leader may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest that members may take to stop before they are killed: their own drain, and some.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// Arguments of `demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// How many members
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    members: u16,
    /// Clients are served on this port +1, +2, ...; peers on +101, +102, ...
    #[arg(long, value_name = "PORT", default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1..=65000))]
    base_port: u16,
    /// Where the members keep their data, each in a directory of its name; kept at the end [default: a new
    /// temporary directory, which is deleted]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// No prompt: run until a signal
    #[arg(long)]
    no_prompt: bool,
}

/// Runs the demo.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    check_ports(&args)?;
    let directory = Directory::open(args.data_dir.clone())?;
    let members = (1..=args.members).map(|n| Member::new(n, args.members, args.base_port, &directory.path));
    let mut demo = Demo {
        members: members.collect(),
        leader: None,
        revision: None,
        screen: Screen::new(),
    };
    let outcome = demo.run(&args, &directory, &mut signals).await;
    demo.stop(&mut signals).await;
    directory.remove()?;
    outcome
}

/// Fails early, and with the port's number, where a member would fail with a log line.
fn check_ports(args: &DemoArgs) -> Result<(), Failure> {
    for n in 1..=args.members {
        for port in [args.base_port + n, args.base_port + 100 + n] {
            if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                let what = failure::os(&error);
                return Err(Failure::error(format!(
                    "cannot use port {port}: {what}; stop what uses it, or choose another --base-port"
                )));
            }
        }
    }
    Ok(())
}

/// Where the data is.
struct Directory {
    path: PathBuf,
    /// Set if the demo made it, and so deletes it.
    made: Option<TempDir>,
}

impl Directory {
    fn open(given: Option<PathBuf>) -> Result<Self, Failure> {
        let Some(path) = given else {
            let made = tempfile::Builder::new()
                .prefix("kvorum-demo-")
                .tempdir()
                .map_err(|error| {
                    Failure::error(format!(
                        "cannot make a temporary directory: {}; give one with --data-dir",
                        failure::os(&error)
                    ))
                })?;
            return Ok(Directory {
                path: made.path().to_owned(),
                made: Some(made),
            });
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| {
                let what = failure::os(&error);
                Failure::error(format!(
                    "cannot make {}: {what}; give another --data-dir",
                    path.display()
                ))
            })?;
        Ok(Directory { path, made: None })
    }

    fn remove(self) -> Result<(), Failure> {
        let Some(made) = self.made else { return Ok(()) };
        made.close().map_err(|error| {
            Failure::error(format!(
                "cannot delete {}: {}",
                self.path.display(),
                failure::os(&error)
            ))
        })
    }
}

/// What ends a demo from outside.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::error(format!("cannot listen for signals: {}", failure::os(&error)))
            })
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// What a person types.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Status,
    Kill(u16),
    Restart(u16),
    Quit,
    Help,
    Nothing,
}

impl Command {
    fn parse(line: &str, members: u16) -> Result<Command, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |word: &str| match word.strip_prefix("node-").unwrap_or(word).parse::<u16>() {
            Ok(n) if (1..=members).contains(&n) => Ok(n),
            _ => Err(format!("there is no member {word}; they are 1 to {members}")),
        };
        match words.as_slice() {
            [] => Ok(Command::Nothing),
            ["status" | "s"] => Ok(Command::Status),
            ["kill", n] => Ok(Command::Kill(number(n)?)),
            ["restart", n] => Ok(Command::Restart(number(n)?)),
            ["quit" | "exit" | "q"] => Ok(Command::Quit),
            ["help" | "?"] => Ok(Command::Help),
            ["kill" | "restart"] => Err(format!("{} which member? 1 to {members}", words[0])),
            _ => Err(format!(
                "unknown command `{}`; there are status, kill N, restart N, quit",
                words.join(" ")
            )),
        }
    }
}

const HELP: &str = "status       show how the members are\n\
                    kill N       kill -9 member N\n\
                    restart N    start member N, stopping it first if it runs\n\
                    quit         stop all members and end";

struct Demo {
    members: Vec<Member>,
    /// Name of the leader that was announced, and its term.
    leader: Option<(String, u64)>,
    /// The revision seen last, and when.
    revision: Option<(i64, Instant)>,
    screen: Screen,
}

impl Demo {
    async fn run(
        &mut self,
        args: &DemoArgs,
        directory: &Directory,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        for member in &mut self.members {
            member.start()?;
        }
        tokio::select! {
            started = self.wait_for_leader() => started?,
            () = signals.next() => return Ok(()),
        }
        self.introduce(args, directory);
        let mut typed = match args.no_prompt {
            true => None,
            false => Some(read_lines()?),
        };
        self.screen.set_prompt(typed.is_some());
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let line = async {
                match &mut typed {
                    Some(lines) => lines.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = signals.next() => return Ok(()),
                _ = ticks.tick() => self.refresh().await,
                line = line => {
                    self.screen.entered(line.as_deref().unwrap_or_default());
                    let Some(line) = line else { return Ok(()) };
                    if !self.obey(&line).await? {
                        return Ok(());
                    }
                    self.refresh().await;
                }
            }
        }
    }

    /// Carries a command out; whether to go on.
    async fn obey(&mut self, line: &str) -> Result<bool, Failure> {
        let count = self.members.len() as u16;
        match Command::parse(line, count) {
            Err(complaint) => self.screen.say(&complaint),
            Ok(Command::Nothing) => {}
            Ok(Command::Help) => self.screen.say(HELP),
            Ok(Command::Quit) => return Ok(false),
            Ok(Command::Status) => {
                let endpoints = self.members.iter().map(|member| member.client.clone()).collect();
                let answers = status::ask(endpoints, None, STATUS_TIMEOUT).await?;
                self.screen.say(status::table(&answers).trim_end());
            }
            Ok(Command::Kill(n)) => {
                let member = &mut self.members[usize::from(n - 1)];
                let text = match member.kill().await {
                    true => format!("{} killed; `restart {n}` brings it back", member.name),
                    false => format!("{} does not run", member.name),
                };
                self.screen.say(&text);
            }
            Ok(Command::Restart(n)) => {
                let member = &mut self.members[usize::from(n - 1)];
                member.stop(STOP_TIMEOUT).await;
                let text = match member.start() {
                    Ok(()) => format!("{} started", member.name),
                    Err(failure) => failure.to_string(),
                };
                self.screen.say(&text);
            }
        }
        Ok(true)
    }

    async fn wait_for_leader(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            for member in &mut self.members {
                if let Some(end) = member.ended() {
                    return Err(Failure::error(format!("{} {end}", member.name)));
                }
            }
            let statuses = self.ask().await;
            let all_up = statuses.iter().all(Option::is_some);
            let led = statuses.iter().flatten().find(|s| s.role() == Role::Leader);
            if let (true, Some(leader)) = (all_up, led) {
                self.leader = Some((leader.name.clone(), leader.term));
                return Ok(());
            }
            if Instant::now() >= deadline {
                let logs: Vec<String> = self.members.iter().map(|m| m.log.display().to_string()).collect();
                return Err(Failure::error(format!(
                    "no leader within {START_TIMEOUT:?}; the members' logs are {}",
                    logs.join(", ")
                )));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn introduce(&mut self, args: &DemoArgs, directory: &Directory) {
        let program = invocation();
        let fate = if directory.made.is_some() {
            "deleted at the end"
        } else {
            "kept"
        };
        let mut text = format!(
            "{} members, data in {} ({fate})\n\n",
            self.members.len(),
            directory.path.display()
        );
        let leader = self.leader.as_ref().map_or("", |(name, _)| name);
        for member in &self.members {
            let mark = if member.name == leader { "  leader" } else { "" };
            text.push_str(&format!(
                "  {}  clients {}  peers {}{mark}\n",
                member.name, member.client, member.peer
            ));
        }
        let endpoint = |n: usize| &self.members[n % self.members.len()].client;
        text.push_str(&format!(
            "\nTry in another terminal:\n  \
             {program} put greeting hello --endpoints {}\n  \
             {program} get greeting --endpoints {}\n  \
             curl -s http://{}/status\n",
            endpoint(0),
            endpoint(1),
            endpoint(2),
        ));
        text.push_str(match args.no_prompt {
            true => "\nRuns until it gets a signal (Ctrl-C).\n",
            false => "\nCommands here: status, kill 2, restart 2, quit (or Ctrl-C).\n",
        });
        self.screen.say(&text);
    }

    /// How the members are; those whose process is known to be gone are not waited for.
    async fn ask(&self) -> Vec<Option<StatusResponse>> {
        let running = self.members.iter().filter(|member| member.is_running());
        let endpoints = running.map(|member| member.client.clone()).collect();
        let answers = status::ask(endpoints, None, STATUS_TIMEOUT)
            .await
            .unwrap_or_default();
        let mut answers = answers.into_iter();
        self.members
            .iter()
            .map(|member| match member.is_running() {
                true => answers.next()?.status.ok(),
                false => None,
            })
            .collect()
    }

    /// Looks at all members, tells what changed, and renews the status line.
    async fn refresh(&mut self) {
        for (position, member) in self.members.iter_mut().enumerate() {
            if let Some(end) = member.ended() {
                let number = position + 1;
                self.screen.event(&format!(
                    "{} {end}; `restart {number}` brings it back",
                    member.name
                ));
            }
        }
        let statuses = self.ask().await;
        let running = self.members.iter().filter(|member| member.is_running()).count();
        let majority = 2 * running > self.members.len();
        let newest = statuses
            .iter()
            .flatten()
            .max_by_key(|s| (s.term, s.role() == Role::Leader));
        let leader = newest
            .filter(|s| s.role() == Role::Leader && majority)
            .map(|s| (s.name.clone(), s.term));
        if leader != self.leader {
            match &leader {
                Some((name, term)) => self.screen.event(&format!("{name} leads (term {term})")),
                None if majority => self.screen.event("no leader"),
                None => self.screen.event("no leader: a majority of the members must run"),
            }
            self.leader = leader;
        }
        let revision = statuses.iter().flatten().map(|s| s.revision).max();
        let now = Instant::now();
        let rate = match (self.revision, revision) {
            (Some((before, then)), Some(revision)) if revision > before => {
                (revision - before) as f64 / (now - then).as_secs_f64()
            }
            _ => 0.0,
        };
        self.revision = revision.map(|revision| (revision, now));
        let mut line = Line::default();
        for (member, status) in self.members.iter().zip(&statuses) {
            line.member(&member.name, member.is_running(), majority, status.as_ref());
        }
        if let Some(newest) = newest {
            line.cluster(newest.term, revision.unwrap_or(0), rate);
        }
        self.screen.status(line);
    }

    /// Stops all members; a signal meanwhile kills them.
    async fn stop(&mut self, signals: &mut Signals) {
        self.screen.end();
        if self.members.iter().any(Member::is_running) {
            eprintln!("stopping the members");
        }
        for member in &self.members {
            member.terminate();
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        for member in &mut self.members {
            tokio::select! {
                () = member.stop(deadline.saturating_duration_since(Instant::now())) => {}
                () = signals.next() => {}
            }
            member.kill().await;
        }
    }
}

/// How this program is called, as one can type it here.
fn invocation() -> String {
    let Ok(program) = std::env::current_exe() else {
        return "kvorum".to_owned();
    };
    let here = std::env::current_dir().unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    typed(&program, &here, &path)
}

/// The program's name if that finds it, else its path from here, else its path.
fn typed(program: &Path, here: &Path, path: &OsStr) -> String {
    let name = program.file_name().unwrap_or_default();
    let found = std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    let same = |file: PathBuf| file.canonicalize().ok() == program.canonicalize().ok();
    if found.is_some_and(same) {
        return name.display().to_string();
    }
    let typed = match program.strip_prefix(here) {
        Ok(relative) => format!("./{}", relative.display()),
        Err(_) => program.display().to_string(),
    };
    match typed.contains(|c: char| c.is_whitespace() || "'\"\\$&;()<>|*?".contains(c)) {
        true => format!("'{}'", typed.replace('\'', "'\\''")),
        false => typed,
    }
}

/// The lines of standard input, read by a thread of their own.
fn read_lines() -> Result<mpsc::Receiver<String>, Failure> {
    let (sender, receiver) = mpsc::channel(1);
    let read = move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("prompt".into())
        .spawn(read)
        .map_err(|error| Failure::error(format!("cannot read commands: {}", failure::os(&error))))?;
    Ok(receiver)
}

/// Whether lines can be rewritten in place.
fn is_screen() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// After `cargo run` in another directory, nothing called `kvorum` need be on the path.
    #[test]
    fn the_program_is_named_so_that_the_shell_finds_it() {
        let home = tempfile::tempdir().unwrap();
        let (bin, other) = (home.path().join("bin"), home.path().join("other"));
        for dir in [&bin, &other] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("kvorum"), "").unwrap();
        }
        let program = bin.join("kvorum");
        let check = |here: &Path, path: &[&Path], expected: &str| {
            let path = std::env::join_paths(path).unwrap();
            assert_eq!(typed(&program, here, &path), expected);
        };
        let absolute = program.display().to_string();
        check(home.path(), &[], "./bin/kvorum");
        check(&other, &[], &absolute);
        check(&other, &[&bin], "kvorum");
        check(&other, &[&other, &bin], &absolute);
        let spaced = typed(Path::new("/a b/it's/kvorum"), &other, OsStr::new(""));
        assert_eq!(spaced, r"'/a b/it'\''s/kvorum'");
    }

    #[test]
    fn commands_parse() {
        assert_eq!(Command::parse(" kill 2 ", 3), Ok(Command::Kill(2)));
        assert_eq!(Command::parse("restart node-3", 3), Ok(Command::Restart(3)));
        assert_eq!(Command::parse("", 3), Ok(Command::Nothing));
        assert_eq!(Command::parse("quit", 3), Ok(Command::Quit));
        for (bad, expected) in [
            ("kill 4", "1 to 3"),
            ("kill 0", "1 to 3"),
            ("kill", "which member"),
            ("x", "unknown"),
        ] {
            let error = Command::parse(bad, 3).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_a_directory_of_its_own_is_deleted() {
        let given = tempfile::tempdir().unwrap();
        let kept = Directory::open(Some(given.path().join("data"))).unwrap();
        let path = kept.path.clone();
        kept.remove().unwrap();
        assert!(path.is_dir());
        let made = Directory::open(None).unwrap();
        let path = made.path.clone();
        fs::write(path.join("x"), "y").unwrap();
        made.remove().unwrap();
        assert!(!path.exists());
    }
}
