//! `serve` and `config`: the merged configuration, the process around a member (log, open files, signals,
//! systemd), and its end.
//!
//! The first SIGTERM or SIGINT stops the member gracefully; a second one ends the process at once.

mod log;
mod notify;
mod process;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::{Config, Flags, Settings, Sources, UsersWords};
use crate::failure::Failure;
use crate::start::{EnvFile, StoreFlags, Variables};
use crate::verbs::Output;

/// Arguments of `serve`: one flag for each setting.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Stop when standard input closes: how `demo` takes its members along when it dies
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Arguments of `config`: those of `serve`, and how to print.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = crate::verbs::Format::Text)]
    output: crate::verbs::Format,
}

#[derive(Args)]
struct SourceArgs {
    /// A TOML file; its keys are the names of the flags
    #[arg(long, env = "KVORUM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// A file of variables, below the environment; without it `.env` is read for SERVER_*, ROUTER_* and SERVICE_*,
    /// with an empty name nothing is
    // As text of the system: for a path clap refuses the empty one.
    #[arg(long, value_name = "FILE")]
    env_file: Option<OsString>,
    /// The replaced program under whose name this one was started
    #[arg(long, hide = true)]
    started_as: Option<String>,
    #[command(flatten)]
    store_flags: StoreFlags,
    #[command(flatten)]
    flags: Flags,
}

impl SourceArgs {
    fn load(&self) -> Result<Config, Failure> {
        let file = EnvFile::of(self.env_file.as_deref().map(Path::new));
        let variables = Variables::read(std::env::vars_os(), file, Path::new(""))?;
        Config::load(Sources {
            file: self.config.as_deref(),
            variables: &variables,
            flags: &self.flags,
            store_flags: &self.store_flags,
            started_as: self.started_as.as_deref(),
        })
    }
}

/// Prints the effective configuration.
pub fn print_config(args: &ConfigArgs) -> Result<(), Failure> {
    let config = args.source.load()?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    for note in &config.notes {
        eprintln!("note: {note}");
    }
    let mut out = Output::start();
    match args.output {
        crate::verbs::Format::Text => config.print_toml(&mut out)?,
        crate::verbs::Format::Json => config.print_json(&mut out)?,
        crate::verbs::Format::Raw => return Err(crate::verbs::raw_refused()),
    }
    out.end()
}

/// Runs a member until it is told to stop.
pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let Config {
        settings,
        warnings,
        notes,
        words,
    } = args.source.load()?;
    run_member(Run {
        words,
        settings,
        warnings,
        notes,
        until_stdin_closes: args.until_stdin_closes,
    })
}

/// A member that is to be run.
pub struct Run {
    pub settings: Settings,
    /// What was strange but no error, one line each.
    pub warnings: Vec<String>,
    /// What is worth a line in the log.
    pub notes: Vec<String>,
    /// What the user calls our settings.
    pub words: UsersWords,
    /// It ends with its standard input.
    pub until_stdin_closes: bool,
}

/// Runs a member until it is told to stop.
pub fn run_member(run: Run) -> Result<(), Failure> {
    log::start(&run.settings.log)?;
    for warning in &run.warnings {
        tracing::warn!("{warning}");
    }
    for note in &run.notes {
        tracing::info!("{note}");
    }
    let mut options = run.settings.serve;
    // Deleted when this function returns.
    let temporary = run.settings.in_memory.then(tempfile::tempdir).transpose();
    let temporary = temporary.map_err(|error| {
        Failure::error(format!(
            "cannot make a temporary directory: {}",
            crate::failure::os(&error)
        ))
    })?;
    if let Some(directory) = &temporary {
        options.data_dir = directory.path().join("data");
    }
    process::raise_open_files(options.connections_max);
    let stop = process::Stop::new();
    stop.on_signals()?;
    if run.until_stdin_closes {
        stop.on_stdin_closed(options.drain_timeout);
    }
    notify::ready_when_served(options.probe_addresses());
    let stopped = kvorum_server::runtime::serve(options, stop.requested());
    stopped.map_err(|error| Failure::error(run.words.put_into(&error.to_string())))
}
