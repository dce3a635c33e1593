//! The command line: what there is, and how a mistake in it is told.

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::failure::{self, Code, Failure};
use crate::verbs::ClientArgs;
use crate::{bench, demo, etcd, serve, verbs};

#[derive(Parser)]
#[command(
    name = "kvorum",
    version,
    about = "A replicated key-value store: linearizable, crash-safe, speaking etcd's v3 API",
    after_help = failure::HELP,
    max_term_width = 110
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the program can do.
#[derive(Subcommand)]
pub enum Command {
    /// Run a member
    Serve(serve::ServeArgs),
    /// Run a member in an etcd's place: by etcd's own flags, variables and file
    Etcd(etcd::EtcdArgs),
    /// Run a cluster of real member processes on this machine, to try it out
    Demo(demo::DemoArgs),
    /// Print the effective configuration of `serve`, and where each value comes from
    Config(serve::ConfigArgs),
    /// Measure a cluster over unary etcd gRPC; answers are checked
    Bench(bench::BenchArgs),
    /// Write a key
    Put(verbs::kv::PutArgs),
    /// Read a key or a range
    Get(verbs::kv::GetArgs),
    /// Delete a key or a range
    Del(verbs::kv::DelArgs),
    /// List keys
    Ls(verbs::kv::LsArgs),
    /// Show keys as a tree of paths
    Tree(verbs::tree::TreeArgs),
    /// Print what a key was, at each revision that is still there
    History(verbs::history::HistoryArgs),
    /// Run a transaction that is read from standard input
    Txn(verbs::txn::TxnArgs),
    /// Print changes as they happen; resumes after lost connections
    Watch(verbs::watch::WatchArgs),
    /// Grant, renew, show, list and revoke leases: keys that live as long as somebody renews them
    Lease(verbs::lease::LeaseArgs),
    /// Hold a lock, while a command runs or until interrupted
    Lock(verbs::turn::LockArgs),
    /// Stand in an election and lead until interrupted, or follow it
    Elect(verbs::turn::ElectArgs),
    /// Show how the members are
    Status(verbs::status::StatusArgs),
    /// Write the records of a file of JSON lines
    Import(verbs::import::ImportArgs),
    /// Print all records as JSON lines, sorted by key
    Export(verbs::export::ExportArgs),
    /// Forget history up to a revision
    Compact(verbs::upkeep::CompactArgs),
    /// List and disarm alarms
    Alarm(verbs::upkeep::AlarmArgs),
    /// Save a member's state to a file, for `restore`
    Snapshot(verbs::snapshot::SnapshotArgs),
    /// Make a data directory for a new cluster of one from a saved snapshot
    Restore(verbs::snapshot::RestoreArgs),
    /// Write random pairs to the leader
    Send(verbs::send::SendArgs),
    /// List, add, promote, remove and replace members
    Member(verbs::member::MemberArgs),
    /// Turn authentication on and off, or show how it is
    Auth(verbs::auth::AuthArgs),
    /// Add, list, change and delete users, and their roles
    User(verbs::auth::UserArgs),
    /// Add, list, change and delete roles, and their permissions
    Role(verbs::auth::RoleArgs),
    /// Serve the web console, for members that run anywhere
    Ui(verbs::ui::UiArgs),
}

/// Parses argv. Help and version are printed here.
///
/// # Errors
/// The exit code: of success after help, of a usage error after its one line on stderr.
pub fn parse(args: Vec<OsString>) -> Result<Command, ExitCode> {
    let error = match Cli::try_parse_from(&args) {
        Ok(cli) => return Ok(cli.command),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader of the help that went away is no news.
            let _ = error.print();
            Err(ExitCode::SUCCESS)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Err(ExitCode::from(Code::Usage as u8))
        }
        _ => Err(Failure::usage(one_line(&error.render().to_string(), &args)).report()),
    }
}

/// The words of a command line that name a command: what help is asked for.
fn named_command(args: &[OsString]) -> String {
    let mut words = vec!["kvorum"];
    let mut command = &Cli::command();
    for word in args.iter().skip(1).filter_map(|arg| arg.to_str()) {
        let Some(found) = command.find_subcommand(word) else {
            break;
        };
        words.push(found.get_name());
        command = found;
    }
    words.join(" ")
}

/// What clap says over several lines, in one: the complaint, the tips, and whose help to read.
fn one_line(rendered: &str, args: &[OsString]) -> String {
    let text = rendered.strip_prefix("error: ").unwrap_or(rendered);
    let complaint: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    let mut line = tips.fold(complaint.join(" "), |line, tip| format!("{line}; {tip}"));
    line.push_str(&format!("; see `{} --help`", named_command(args)));
    line
}

/// Carries a command out.
///
/// # Errors
/// What it failed with.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Etcd(args) => etcd::run(&args),
        Command::Config(args) => serve::print_config(&args),
        Command::Bench(args) => bench::run(args),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Put(args) => client(args.client.clone(), verbs::kv::put(args)),
        Command::Get(args) => client(args.client.clone(), verbs::kv::get(args)),
        Command::Del(args) => client(args.client.clone(), verbs::kv::del(args)),
        Command::Ls(args) => client(args.client.clone(), verbs::kv::ls(args)),
        Command::Tree(args) => client(args.client.clone(), verbs::tree::run(args)),
        Command::History(args) => client(args.client.clone(), verbs::history::run(args)),
        Command::Txn(args) => client(args.client.clone(), verbs::txn::run(args)),
        Command::Watch(args) => client(args.client.clone(), verbs::watch::run(args)),
        Command::Lease(args) => client(args.client().clone(), verbs::lease::run(args)),
        Command::Lock(args) => client(args.client.clone(), verbs::turn::lock(args)),
        Command::Elect(args) => client(args.client.clone(), verbs::turn::elect(args)),
        Command::Status(args) => block_on(verbs::status::run(args)),
        Command::Import(args) => client(args.client.clone(), verbs::import::run(args)),
        Command::Export(args) => client(args.client.clone(), verbs::export::run(args)),
        Command::Compact(args) => client(args.client.clone(), verbs::upkeep::compact(args)),
        Command::Alarm(args) => client(args.client().clone(), verbs::upkeep::alarm(args)),
        Command::Snapshot(args) => client(args.client().clone(), verbs::snapshot::save(args)),
        Command::Restore(args) => verbs::snapshot::restore(args),
        Command::Send(args) => client(args.client.clone(), verbs::send::run(args)),
        Command::Member(args) => client(args.client().clone(), verbs::member::run(args)),
        Command::Auth(args) => client(args.client().clone(), verbs::auth::auth(args)),
        Command::User(args) => client(args.client().clone(), verbs::auth::user(args)),
        Command::Role(args) => client(args.client().clone(), verbs::auth::role(args)),
        Command::Ui(args) => block_on(verbs::ui::run(args)),
    }
}

/// Runs a client command.
fn client(args: ClientArgs, command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    block_on(verbs::explained(args, command))
}

/// Runs a client on this thread alone.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("cannot start: {}", failure::os(&error))))?;
    let outcome = runtime.block_on(work);
    // A thread that still waits for standard input must not hold the process up.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[track_caller]
    fn check(args: &[&str], expected: &str) {
        let words: Vec<OsString> = args.iter().map(OsString::from).collect();
        let error = Cli::try_parse_from(args).err();
        let error = error.map(|e| one_line(&e.render().to_string(), &words));
        let error = error.unwrap_or_else(|| panic!("{args:?} was taken"));
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn mistakes_take_one_line() {
        check(
            &["kvorum", "put", "k", "v", "--bogus"],
            "unexpected argument '--bogus' found",
        );
        check(&["kvorum", "put", "k", "v", "--bogus"], "see `kvorum put --help`");
        check(
            &["kvorum", "serve", "--nam", "x"],
            "a similar argument exists: '--name'",
        );
        check(&["kvorum", "get"], "<KEY>");
        check(&["kvorum", "put", "k", "--lease", "x"], "see `kvorum put --help`");
        check(
            &["kvorum", "member", "add", "n"],
            "see `kvorum member add --help`",
        );
        check(&["kvorum", "frobnicate"], "unrecognized subcommand 'frobnicate'");
        check(&["kvorum", "get", "k", "--timeout", "5"], "`5` is not a duration");
    }
}
