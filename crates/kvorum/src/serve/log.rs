//! The member's log: lines for people, or one JSON object each for programs, on standard error, standard output or
//! in files.
//!
//! JSON has etcd's form: `level`, `ts`, `caller`, `msg`, then the fields of the event; supervisors wait for its messages.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, LogOptions, LogOutput};
use crate::failure::{self, Failure};

/// Starts the log.
///
/// # Errors
/// A file cannot be opened.
pub fn start(options: &LogOptions) -> Result<(), Failure> {
    let outputs = Outputs(
        options
            .outputs
            .iter()
            .map(Output::open)
            .collect::<Result<_, _>>()?,
    );
    let is_terminal = options.outputs == [LogOutput::Stderr] && io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_max_level(options.level)
        .with_writer(outputs);
    match options.format {
        LogFormat::Json => builder.event_format(Json).init(),
        LogFormat::Text => builder.with_ansi(is_terminal).init(),
    }
    Ok(())
}

/// Where lines go. Cheap to clone.
#[derive(Clone, Debug)]
enum Output {
    Stderr,
    Stdout,
    File(Arc<File>),
}

impl Output {
    fn open(output: &LogOutput) -> Result<Output, Failure> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|error| {
                Failure::error(format!(
                    "cannot open the log {}: {}",
                    path.display(),
                    failure::os(&error)
                ))
            })
        };
        Ok(match output {
            LogOutput::Stderr => Output::Stderr,
            LogOutput::Stdout => Output::Stdout,
            LogOutput::File(path) => Output::File(Arc::new(open(path)?)),
        })
    }

    fn write_all(&self, line: &[u8]) -> io::Result<()> {
        match self {
            Output::Stderr => io::stderr().write_all(line),
            Output::Stdout => io::stdout().write_all(line),
            Output::File(file) => (&**file).write_all(line),
        }
    }
}

/// All outputs; each line goes to each of them in one write.
#[derive(Clone, Debug)]
struct Outputs(Vec<Output>);

impl Write for &Outputs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut result = Ok(line.len());
        for output in &self.0 {
            // What one of them refuses the others still get.
            if let Err(error) = output.write_all(line) {
                result = Err(error);
            }
        }
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = &'a Outputs;

    fn make_writer(&'a self) -> &'a Outputs {
        self
    }
}

/// One JSON object a line.
#[derive(Clone, Copy, Debug)]
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        writeln!(writer, "{}", line(event.metadata(), time, fields))
    }
}

/// serde_json's map would sort the keys: the four that all lines have come first.
fn line(metadata: &Metadata<'_>, time: String, fields: Fields) -> String {
    let head = [
        ("level", metadata.level().as_str().to_ascii_lowercase()),
        ("ts", time),
        ("caller", caller(metadata)),
        ("msg", fields.message),
    ];
    let head = head.map(|(key, value)| format!("{}:{}", Value::from(key), Value::from(value)));
    let rest = Value::Object(fields.rest).to_string();
    match rest.strip_prefix("{}") {
        Some(_) => format!("{{{}}}", head.join(",")),
        None => format!("{{{},{}", head.join(","), &rest[1..]),
    }
}

/// The last two parts of the path, as zap has it.
fn caller(metadata: &Metadata<'_>) -> String {
    let file = metadata.file().unwrap_or("unknown");
    let short = file
        .rmatch_indices('/')
        .nth(1)
        .map_or(file, |(at, _)| &file[at + 1..]);
    format!("{short}:{}", metadata.line().unwrap_or(0))
}

/// What an event says.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    rest: Map<String, Value>,
}

impl Fields {
    fn note(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or(value.to_string(), str::to_owned),
            // The four keys of every line are taken.
            name @ ("level" | "ts" | "caller" | "msg") => drop(self.rest.insert(format!("{name}_"), value)),
            name => drop(self.rest.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.note(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.note(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.note(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.note(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.note(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Read;

    fn written(run: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let both = [
            LogOutput::File(path.clone()),
            LogOutput::File(dir.path().join("b.log")),
        ];
        let outputs = Outputs(both.iter().map(|output| Output::open(output).unwrap()).collect());
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_writer(outputs)
            .event_format(Json)
            .finish();
        tracing::subscriber::with_default(subscriber, run);
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, std::fs::read_to_string(dir.path().join("b.log")).unwrap());
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn each_line_is_one_object_of_etcds_form() {
        let lines = written(|| {
            tracing::info!(name = "n\n1", "local-member-id" = %"8e9e", term = 7, level = "x", "ready \"here\"");
            tracing::warn!("second");
            tracing::debug!("below the level");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        let first: Value = serde_json::from_str(&lines[0]).unwrap();
        assert!(
            lines[0].starts_with("{\"level\":\"info\",\"ts\":\"20"),
            "{}",
            lines[0]
        );
        assert_eq!(first["msg"], "ready \"here\"");
        assert_eq!(
            (first["name"].as_str().unwrap(), first["term"].as_i64().unwrap()),
            ("n\n1", 7)
        );
        assert_eq!(
            (first["local-member-id"].as_str(), first["level_"].as_str()),
            (Some("8e9e"), Some("x"))
        );
        let caller = first["caller"].as_str().unwrap();
        assert!(caller.starts_with("serve/log.rs:"), "{caller}");
        let ts = first["ts"].as_str().unwrap();
        assert!(ts.len() == 27 && ts.ends_with('Z'), "{ts}");
        let second: Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!(
            (second["level"].as_str(), second["msg"].as_str()),
            (Some("warn"), Some("second"))
        );
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_named() {
        let options = LogOptions {
            outputs: vec![LogOutput::File("/nowhere/kvorum.log".into())],
            ..LogOptions::default()
        };
        let refused = start(&options).unwrap_err().to_string();
        assert!(refused.contains("/nowhere/kvorum.log"), "{refused}");
    }
}
