//! In an etcd's place: `kvorum etcd`, and the program started under the name `etcd`.
//!
//! The command line, the environment and the file are etcd's ([`flags`], [`command_line`], [`config_file`]); they are
//! translated into kvorum's own settings ([`plan`], [`cluster`]). What etcd has no flags for can be said by the
//! variables `KVORUM_*` of `kvorum serve`; what etcd has a flag for stands above them.
//!
//! Exit codes are etcd's: 2 for flags that do not read, 1 for all else.

mod cluster;
mod command_line;
mod config_file;
mod flags;
mod help;
mod plan;
#[cfg(test)]
mod tests;
mod urls;
mod values;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use clap::Args;

use crate::config::{self, Flags, Settings, Sources, UsersWords};
use crate::failure::Failure;
use crate::serve::{self, Run};
use crate::start::{EnvFile, StoreFlags, Variables};
use command_line::{Asked, Mistake};
use plan::Plan;
use values::Values;

/// The name under which the program stands in an etcd's place.
pub const NAME: &str = "etcd";

/// Arguments of `etcd`: etcd's own.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub struct EtcdArgs {
    /// etcd's flags; `kvorum etcd --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    arguments: Vec<OsString>,
}

/// Runs a member by etcd's flags, or prints what is asked for.
///
/// # Errors
/// One line; a mistake in the flags themselves has exit code 2.
pub fn run(args: &EtcdArgs) -> Result<(), Failure> {
    let values = match command_line::read(&args.arguments).map_err(told)? {
        Asked::Help => {
            eprintln!("{}", help::USAGE);
            return print(&help::flags());
        }
        Asked::Member(values) if values.is_set("version") => return print(&help::version()),
        Asked::Member(values) => values,
    };
    let values = with_surroundings(values)?;
    let Plan {
        settings,
        warnings,
        notes,
        until_stdin_closes,
    } = plan::plan(values, base()?).map_err(Failure::error)?;
    settings
        .serve
        .validate()
        .map_err(|error| Failure::error(error.to_string()))?;
    serve::run_member(Run {
        words: UsersWords::default(),
        settings,
        warnings,
        notes,
        until_stdin_closes,
    })
}

fn told(mistake: Mistake) -> Failure {
    match mistake {
        Mistake::Syntax(why) => {
            // As etcd does: the usage stands behind the complaint.
            Failure::usage(format!("{why}\n{}", help::USAGE.trim_end()))
        }
        Mistake::Meaning(why) => Failure::error(why),
    }
}

/// The values that count: those of the file, if there is one, else the command line's and the environment's.
fn with_surroundings(mut values: Values) -> Result<Values, Failure> {
    let variable = std::env::var(command_line::variable("config-file")).unwrap_or_default();
    let path = match values.text("config-file") {
        "" => variable,
        path => path.to_owned(),
    };
    if path.is_empty() {
        command_line::read_environment(&mut values, std::env::vars_os()).map_err(told)?;
        return Ok(values);
    }
    let mut read = config_file::read(Path::new(&path)).map_err(Failure::error)?;
    read.notes.push(format!(
        "loaded server configuration, other configuration command line flags and environment variables will be \
         ignored if provided: {path}"
    ));
    // How the process is tied to the one that started it is no setting.
    if let Some(value) = values.take("until-stdin-closes") {
        read.put("until-stdin-closes", value);
    }
    Ok(read)
}

/// kvorum's own settings, from its variables.
fn base() -> Result<Settings, Failure> {
    let is_ours =
        |(name, _): &(OsString, OsString)| name.to_str().is_some_and(|name| name.starts_with("KVORUM_"));
    let variables = Variables::read(std::env::vars_os().filter(is_ours), EnvFile::None, Path::new(""))?;
    let config = config::Config::load(Sources {
        file: None,
        variables: &variables,
        flags: &Flags::default(),
        store_flags: &StoreFlags::default(),
        started_as: None,
    })?;
    Ok(config.settings)
}

fn print(text: &str) -> Result<(), Failure> {
    // A reader that went away is no news.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}
