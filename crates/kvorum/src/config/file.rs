//! The TOML file: flat, its keys are the flags' names. Every complaint names the line.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::settings::{self, Kind};
use super::{Assignment, Origin};
use crate::failure::Failure;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads and checks a file's keys; the values are parsed by the settings.
pub(super) fn read(path: &Path) -> Result<Vec<Assignment>, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::usage(format!(
            "cannot read {}: {}; check --config",
            path.display(),
            crate::failure::os(&error)
        ))
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(Failure::usage(format!(
            "{} is too large for a configuration file",
            path.display()
        )));
    }
    parse(path, &std::fs::read_to_string(path).map_err(unreadable)?)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Assignment>, Failure> {
    let line = |offset: usize| 1 + text.bytes().take(offset).filter(|b| *b == b'\n').count();
    let complain = |offset: usize, what: String| {
        Failure::usage(format!("{}, line {}: {what}", path.display(), line(offset)))
    };
    let table = DeTable::parse(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        complain(error.span().map_or(0, |span| span.start), message)
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut assignments = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let offset = key.span().start;
        let name: &str = key.get_ref();
        let setting = settings::find(name).ok_or_else(|| {
            complain(
                offset,
                format!("unknown key `{name}`; `kvorum config` lists the known ones"),
            )
        })?;
        let value = scalar(value.get_ref()).or_else(|| match (setting.kind, value.get_ref()) {
            (Kind::List, DeValue::Array(items)) => items
                .iter()
                .map(|item| scalar(item.get_ref()))
                .collect::<Option<Vec<_>>>()
                .map(|all| all.join(",")),
            _ => None,
        });
        let value = value.ok_or_else(|| {
            let takes = if setting.kind == Kind::List {
                "a list of strings"
            } else {
                "one value"
            };
            complain(offset, format!("{name} takes {takes}"))
        })?;
        assignments.push(Assignment {
            key: setting.key,
            value,
            origin: Origin::File {
                path: path.to_owned(),
                line: line(offset),
            },
        });
    }
    Ok(assignments)
}

/// A string, a boolean or a whole number as the settings' parsers take it.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Integer(value) => i64::from_str_radix(value.as_str(), value.radix())
            .ok()
            .map(|n| n.to_string()),
        _ => None,
    }
}
