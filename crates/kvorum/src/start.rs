//! How the program is started by people who never typed `serve`: under the names, with the flags, the variables and
//! the `.env` files of the three systems that kvorum replaces.
//!
//! Each system is a *family* of words. A family's words are translated into kvorum's own settings
//! ([`crate::config`]), each with its origin; nothing behind the configuration knows that there are families. At
//! most one family holds in one start.

mod arguments;
mod dist_kv;
mod env_file;
mod host;
mod raft_kv;
mod raft_kv_store;
mod variables;

pub use arguments::arguments;
pub use raft_kv_store::StoreFlags;
pub use variables::{EnvFile, Variables};

use crate::config::{Assignment, Flags, Origin};
use crate::failure::Failure;
use host::Host;
use variables::Variable;

/// The programs that kvorum replaces, by the names under which it is started in their place.
pub const REPLACED: [&str; 2] = ["raft-kv-store", "raft-kv"];

/// What a family says, by the place that it has among the other sources.
#[derive(Debug, Default)]
pub struct Words {
    /// The family's defaults, where they differ from kvorum's: above kvorum's own, below everything else.
    pub defaults: Vec<Assignment>,
    /// From variables: above the file, below `KVORUM_*`.
    pub variables: Vec<Assignment>,
    /// From flags: above everything but kvorum's own flags.
    pub flags: Vec<Assignment>,
    /// Our own flags whose meaning these words change: they are part of `flags` already.
    pub consumed: Vec<&'static str>,
    /// What the user calls an address of a setting that holds several: setting, address, flag or variable.
    pub called: Vec<(&'static str, String, &'static str)>,
    /// What was strange but no error, one line each.
    pub warnings: Vec<String>,
    /// What the log says about the start, one line each.
    pub notes: Vec<String>,
}

impl Words {
    fn default_of(&mut self, family: &'static str, key: &'static str, value: impl Into<String>) {
        self.defaults.push(Assignment {
            key,
            value: value.into(),
            origin: Origin::Family(family),
        });
    }

    fn variable(&mut self, key: &'static str, value: impl Into<String>, from: &Variable) {
        self.variables.push(Assignment {
            key,
            value: value.into(),
            origin: from.origin.clone(),
        });
    }

    fn flag(&mut self, flag: &'static str, key: &'static str, value: impl Into<String>) {
        self.flags.push(Assignment {
            key,
            value: value.into(),
            origin: Origin::Flag(flag),
        });
    }
}

/// Translates the family that holds, if any does.
///
/// # Errors
/// Words of two families, or a malformed one; one line, exit code 2.
pub fn translate(
    variables: &Variables,
    flags: &StoreFlags,
    native: &Flags,
    started_as: Option<&str>,
) -> Result<Words, Failure> {
    let raft_kv = variables.first_of(&raft_kv::VARIABLES);
    let dist_kv = variables.first_of(&dist_kv::VARIABLES);
    let mut found: Vec<(String, &str)> = Vec::new();
    let named = |variable: &Variable| variable.origin.to_string();
    found.extend(raft_kv.map(|variable| (named(variable), raft_kv::FAMILY)));
    found.extend(dist_kv.map(|variable| (named(variable), dist_kv::FAMILY)));
    found.extend(
        flags
            .first()
            .map(|flag| (format!("flag --{flag}"), raft_kv_store::FAMILY)),
    );
    if let [(one, first), (other, second), ..] = found.as_slice() {
        let how = match &variables.file {
            Some(file) => format!(" (--env-file= leaves {} out)", file.display()),
            None => String::new(),
        };
        return Err(Failure::usage(format!(
            "{one} belongs to {first}, {other} to {second}: set the words of one system only{how}"
        )));
    }
    match found.first() {
        Some((_, raft_kv::FAMILY)) => raft_kv::translate(variables),
        Some((_, dist_kv::FAMILY)) => dist_kv::translate(variables),
        None if started_as.is_none() => Ok(Words::default()),
        _ => {
            let mut words = raft_kv_store::translate(flags, native, &Host::of_this_machine())?;
            // Those of raft-kv are none here, which is refused above; what is left is misspelt.
            words
                .warnings
                .extend(variables.unknown(&["RAFT_", "BADGER_"], &raft_kv::VARIABLES));
            Ok(words)
        }
    }
}

/// Whether a variable is set, in the environment or in a `.env` that is read without being asked for.
pub fn is_set(name: &str) -> bool {
    let variables = Variables::read(std::env::vars_os(), EnvFile::Default, std::path::Path::new(""));
    variables.is_ok_and(|variables| variables.get(name).is_some())
}

/// Whether a variable could be a setting of a member.
pub fn is_ours(name: &str) -> bool {
    ["KVORUM_", "RAFT_", "BADGER_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || dist_kv::owns(name)
}
