//! The variables of a start: the environment, and below it one file of variables.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::{dist_kv, env_file};
use crate::config::Origin;
use crate::failure::{self, Failure};

/// The file that is read without being asked for.
const DEFAULT_FILE: &str = ".env";
/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which file of variables is read.
#[derive(Clone, Copy, Debug)]
pub enum EnvFile<'a> {
    /// `.env` in the working directory, if there is one, for the variables of dist-kv-store only: the file may
    /// belong to another program.
    Default,
    /// None.
    None,
    /// This one, for all variables.
    Given(&'a Path),
}

impl<'a> EnvFile<'a> {
    /// As the flag says; an empty one reads no file.
    pub fn of(flag: Option<&'a Path>) -> Self {
        match flag {
            None => EnvFile::Default,
            Some(path) if path.as_os_str().is_empty() => EnvFile::None,
            Some(path) => EnvFile::Given(path),
        }
    }
}

/// One variable.
#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    value: OsString,
    pub origin: Origin,
}

impl Variable {
    /// Its text.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&self) -> Result<&str, Failure> {
        let text = self.value.to_str();
        text.ok_or_else(|| Failure::usage(format!("{}: the value is not UTF-8", self.origin)))
    }

    /// Its bytes.
    pub fn raw(&self) -> &OsStr {
        &self.value
    }

    /// A complaint about it.
    pub fn malformed(&self, why: impl std::fmt::Display) -> Failure {
        Failure::usage(format!("{}: {why}", self.origin))
    }
}

/// All variables by name. Empty ones count as unset.
#[derive(Debug, Default)]
pub struct Variables {
    all: BTreeMap<String, Variable>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// What was strange but no error.
    pub warnings: Vec<String>,
}

impl Variables {
    /// Reads the file, then the environment over it. A default file is looked for in `directory`.
    ///
    /// # Errors
    /// A file that was asked for cannot be read, or has a malformed line.
    pub fn read(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        file: EnvFile<'_>,
        directory: &Path,
    ) -> Result<Variables, Failure> {
        let mut variables = Variables::default();
        match file {
            EnvFile::None => {}
            EnvFile::Given(path) => variables.read_file(path, true)?,
            EnvFile::Default => variables.read_default(&directory.join(DEFAULT_FILE)),
        }
        for (name, value) in environment {
            let Ok(name) = name.into_string() else { continue };
            if value.is_empty() {
                continue;
            }
            let origin = Origin::Environment(name.clone());
            let variable = Variable {
                name: name.clone(),
                value,
                origin,
            };
            variables.all.insert(name, variable);
        }
        Ok(variables)
    }

    /// Nobody asked for this file: what is wrong with it is a warning at most.
    fn read_default(&mut self, path: &Path) {
        if !path.exists() {
            return;
        }
        if let Err(failure) = self.read_file(path, false) {
            self.warnings.push(format!("{failure}; it is ignored"));
        }
    }

    fn read_file(&mut self, path: &Path, is_given: bool) -> Result<(), Failure> {
        let parsed = env_file::parse(&text_of(path)?);
        if let (true, Some(line)) = (is_given, parsed.malformed.first()) {
            return Err(Failure::usage(format!(
                "{}, line {line}: write NAME=value",
                path.display()
            )));
        }
        for (name, value, line) in parsed.variables {
            if value.is_empty() || !(is_given || dist_kv::owns(&name)) {
                continue;
            }
            self.file = Some(path.to_owned());
            let origin = Origin::EnvFile {
                path: path.to_owned(),
                line,
                name: name.clone(),
            };
            let variable = Variable {
                name: name.clone(),
                value: value.into(),
                origin,
            };
            self.all.insert(name, variable);
        }
        Ok(())
    }

    /// The variable of this name, if it is set.
    pub fn get(&self, name: &str) -> Option<&Variable> {
        self.all.get(name)
    }

    /// The first of these that is set.
    pub fn first_of(&self, names: &[&str]) -> Option<&Variable> {
        names.iter().find_map(|name| self.get(name))
    }

    /// All whose names begin with one of these.
    pub fn beginning(&self, prefixes: &'static [&'static str]) -> impl Iterator<Item = &Variable> {
        let begins = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        self.all.values().filter(move |variable| begins(&variable.name))
    }

    /// A warning for each variable that begins like a family's and is none of its; but those that Kubernetes sets
    /// for a service that is called so.
    pub fn unknown(&self, prefixes: &'static [&'static str], known: &[&str]) -> Vec<String> {
        self.beginning(prefixes)
            .filter(|variable| !known.contains(&variable.name.as_str()))
            .filter(|variable| !is_injected(&variable.name, &variable.value.to_string_lossy()))
            .map(|variable| format!("{} is unknown and ignored", variable.origin))
            .collect()
    }
}

/// Whether Kubernetes sets this variable for some service.
fn is_injected(name: &str, value: &str) -> bool {
    let is_url = value.starts_with("tcp://") || value.starts_with("udp://");
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && is_url)
        || name.contains("_TCP")
        || name.contains("_UDP")
}

fn text_of(path: &Path) -> Result<String, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::usage(format!(
            "cannot read {}: {}; check --env-file",
            path.display(),
            failure::os(&error)
        ))
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(Failure::usage(format!(
            "{} is too large for a file of variables",
            path.display()
        )));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn the_environment_stands_above_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.env");
        std::fs::write(&file, "A=file\nB=file\nC=\n").unwrap();
        let environment = environment(&[("A", "real"), ("B", ""), ("D", "real")]);
        let variables = Variables::read(environment, EnvFile::Given(&file), dir.path()).unwrap();
        let shown = |name: &str| {
            variables
                .get(name)
                .map(|v| (v.text().unwrap(), v.origin.to_string()))
        };
        assert_eq!(shown("A").unwrap(), ("real", "environment A".to_owned()));
        let (value, origin) = shown("B").unwrap();
        assert!(
            value == "file" && origin.ends_with("my.env, line 2 (B)"),
            "{origin}"
        );
        assert!(shown("C").is_none());
        assert_eq!(variables.file.as_deref(), Some(file.as_path()));
    }

    #[test]
    fn the_default_file_gives_the_variables_of_one_system_only() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Variables::read([], EnvFile::Default, dir.path()).unwrap();
        assert!(read().file.is_none());
        let text = "RAFT_ID=1\nSERVICE_RAFT_NODE_ID=node1\nnonsense\nSERVER_ADDRESS=a:1\nPATH=x\n";
        std::fs::write(dir.path().join(".env"), text).unwrap();
        let variables = read();
        assert!(variables.get("RAFT_ID").is_none() && variables.get("PATH").is_none());
        assert!(variables.get("SERVICE_RAFT_NODE_ID").is_some() && variables.get("SERVER_ADDRESS").is_some());
        assert!(variables.file.is_some() && variables.warnings.is_empty());
        std::fs::write(dir.path().join(".env"), b"A=\xff").unwrap();
        assert!(read().warnings[0].contains(".env"), "{:?}", read().warnings);
        let none = Variables::read([], EnvFile::of(Some(Path::new(""))), dir.path()).unwrap();
        assert!(none.warnings.is_empty());
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_good() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.env");
        let read = || {
            Variables::read([], EnvFile::Given(&file), dir.path())
                .unwrap_err()
                .to_string()
        };
        assert!(
            read().contains("cannot read") && read().contains("--env-file"),
            "{}",
            read()
        );
        std::fs::write(&file, "A=1\nnonsense\n").unwrap();
        assert!(read().contains("x.env, line 2"), "{}", read());
    }

    #[test]
    fn strangers_are_named_and_kubernetes_is_not() {
        let environment = environment(&[
            ("RAFT_ID", "1"),
            ("RAFT_IDD", "1"),
            ("RAFT_KV_SERVICE_SERVICE_HOST", "10.0.0.1"),
            ("RAFT_KV_SERVICE_SERVICE_PORT_HTTP", "9090"),
            ("RAFT_KV_SERVICE_PORT", "tcp://10.0.0.1:9090"),
            ("RAFT_KV_SERVICE_PORT_9090_TCP_ADDR", "10.0.0.1"),
        ]);
        let variables = Variables::read(environment, EnvFile::None, Path::new(".")).unwrap();
        let unknown = variables.unknown(&["RAFT_"], &["RAFT_ID"]);
        assert_eq!(unknown, ["environment RAFT_IDD is unknown and ignored"]);
    }
}
