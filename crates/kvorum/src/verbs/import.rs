//! `import`: writes the records of a file of JSON lines, many at a time.
//!
//! Lines travel in batches, one transaction each, with several in flight under sessions. **No key is in flight
//! twice**, so that of two lines with one key the later wins. Writing a record again changes nothing of it, so
//! an import that failed is completed by running it again.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvorum_client::proto::etcd::{self, request_op};
use kvorum_client::{Client, Error};
use serde_json::json;
use tokio::task::JoinSet;

use super::record::parse_line;
use super::{ClientArgs, LONG_TIMEOUT, is_dash};
use crate::failure::{self, Code, Failure};

/// Longest line: the largest request with every byte escaped.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// UTF-8's mark at the head of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Bytes of keys and values beyond which a batch takes no more lines; well below the limit of a request.
const BATCH_BYTES: usize = 256 * 1024;
/// Smallest file that gets a progress bar.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Arguments of `import`.
#[derive(Args)]
pub struct ImportArgs {
    /// A file of lines {"key","value"} (`key_b64`, `value_b64` where not UTF-8); `-` for standard input
    file: OsString,
    /// Transactions in flight
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: u16,
    /// Records in one transaction, at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=128))]
    batch: u8,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Lines that are written together.
#[derive(Clone, Debug, Default)]
struct Batch {
    records: Vec<(u64, Bytes, Bytes)>,
    bytes: usize,
}

/// Writes a file's records.
pub async fn run(args: ImportArgs) -> Result<(), Failure> {
    let client = args.client.client(LONG_TIMEOUT)?;
    let (input, length): (Box<dyn Read>, Option<u64>) = if is_dash(&args.file) {
        (Box::new(io::stdin()), None)
    } else {
        let path = Path::new(&args.file);
        let cannot = |error: io::Error| {
            Failure::usage(format!("cannot read {}: {}", path.display(), failure::os(&error)))
        };
        let file = File::open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        if metadata.is_dir() {
            return Err(Failure::usage(format!(
                "cannot read {}: it is a directory",
                path.display()
            )));
        }
        (Box::new(file), metadata.is_file().then_some(metadata.len()))
    };
    let mut import = Import {
        client,
        in_flight_max: args.in_flight.into(),
        batch_max: args.batch.into(),
        running: JoinSet::new(),
        keys: HashSet::new(),
        records: 0,
        in_doubt: false,
        progress: progress(length),
    };
    let started = Instant::now();
    let outcome = import.run(Lines::new(input)).await;
    import.progress.finish_and_clear();
    let records = import.records;
    if let Err(failure) = outcome {
        // What is in flight may be written too; writing it again does no harm.
        let perhaps = match import.in_doubt {
            true => ", perhaps more",
            false => "",
        };
        let plural = if records == 1 { "" } else { "s" };
        return Err(failure.context(&format!(
            "import stopped, {records} record{plural} written{perhaps}"
        )));
    }
    let elapsed = started.elapsed();
    match args.client.json() {
        true => println!(
            "{}",
            json!({"records": records, "seconds": elapsed.as_secs_f64()})
        ),
        false => {
            eprintln!("imported {records} records in {}", seconds(elapsed));
        }
    }
    Ok(())
}

/// For people: `67 ms`, `5.1 s`, `213 s`.
fn seconds(elapsed: Duration) -> String {
    match elapsed.as_secs_f64() {
        short if short < 1.0 => format!("{} ms", elapsed.as_millis()),
        some if some < 100.0 => format!("{some:.1} s"),
        long => format!("{long:.0} s"),
    }
}

fn progress(length: Option<u64>) -> ProgressBar {
    match length {
        Some(length) if length >= PROGRESS_BYTES && io::stderr().is_terminal() => {
            let style = ProgressStyle::with_template(
                "{bar:40} {percent:>3}%  {bytes}/{total_bytes}  {msg}  {eta} left",
            )
            .expect("the template is well-formed");
            ProgressBar::new(length).with_style(style)
        }
        _ => ProgressBar::hidden(),
    }
}

/// Why a batch was not written, and how many of its records were all the same.
struct Stopped {
    failure: Failure,
    written: u64,
}

struct Import {
    client: Client,
    in_flight_max: usize,
    batch_max: usize,
    running: JoinSet<Result<Batch, Stopped>>,
    /// Keys of the batches in flight.
    keys: HashSet<Bytes>,
    /// Records written.
    records: u64,
    /// Whether a write was left before its end.
    in_doubt: bool,
    progress: ProgressBar,
}

impl Import {
    async fn run(&mut self, mut lines: Lines) -> Result<(), Failure> {
        let mut batch = Batch::default();
        let mut batched: HashSet<Bytes> = HashSet::new();
        let result = loop {
            let (number, key, value) = match lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            };
            self.progress.set_position(lines.position);
            let full = batch.records.len() >= self.batch_max || batch.bytes >= BATCH_BYTES;
            if full || batched.contains(&key) {
                self.send(std::mem::take(&mut batch)).await?;
                batched.clear();
            }
            if self.keys.contains(&key) {
                self.drain().await?;
            }
            batch.bytes += key.len() + value.len();
            batched.insert(key.clone());
            batch.records.push((number, key, value));
        };
        // What stands before a malformed line is written in any case.
        self.send(batch).await?;
        self.drain().await?;
        result
    }

    async fn send(&mut self, batch: Batch) -> Result<(), Failure> {
        if batch.records.is_empty() {
            return Ok(());
        }
        while self.running.len() >= self.in_flight_max {
            self.finish_one().await?;
        }
        self.keys
            .extend(batch.records.iter().map(|(_, key, _)| key.clone()));
        let client = self.client.clone();
        self.running
            .spawn(async move { write(&client, &batch).await.map(|()| batch) });
        Ok(())
    }

    async fn finish_one(&mut self) -> Result<(), Failure> {
        let Some(finished) = self.running.join_next().await else {
            return Ok(());
        };
        let finished = finished.map_err(|error| Failure::error(format!("a write ended badly: {error}")))?;
        let batch = match finished {
            Ok(batch) => batch,
            Err(Stopped { failure, written }) => {
                self.records += written;
                self.in_doubt = failure.is_unknown() || !self.running.is_empty();
                return Err(failure);
            }
        };
        self.records += batch.records.len() as u64;
        self.progress.set_message(format!("{} records", self.records));
        for (_, key, _) in &batch.records {
            self.keys.remove(key);
        }
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), Failure> {
        while !self.running.is_empty() {
            self.finish_one().await?;
        }
        Ok(())
    }
}

/// Writes a batch. One that is refused is written line by line, so that the offending line can be named.
async fn write(client: &Client, batch: &Batch) -> Result<(), Stopped> {
    let at = |written: usize, number: u64, error: Error| {
        let is_input =
            matches!(&error, Error::Rejected { code, .. } if *code == kvorum_client::Code::InvalidArgument);
        let failure = match is_input {
            true => Failure::from(error).with_code(Code::Usage),
            false => error.into(),
        };
        Stopped {
            failure: failure.context(&format!("line {number}")),
            written: written as u64,
        }
    };
    if batch.records.len() > 1 {
        let success = batch.records.iter().map(|(_, key, value)| etcd::RequestOp {
            request: Some(request_op::Request::RequestPut(put(key, value))),
        });
        let request = etcd::TxnRequest {
            success: success.collect(),
            ..Default::default()
        };
        match client.txn(request).await {
            Ok(_) => return Ok(()),
            Err(Error::Rejected { .. }) => {}
            Err(error) => return Err(at(0, batch.records[0].0, error)),
        }
    }
    for (written, (number, key, value)) in batch.records.iter().enumerate() {
        client
            .put_request(put(key, value))
            .await
            .map_err(|error| at(written, *number, error))?;
    }
    Ok(())
}

fn put(key: &Bytes, value: &Bytes) -> etcd::PutRequest {
    etcd::PutRequest {
        key: key.clone(),
        value: value.clone(),
        ..Default::default()
    }
}

/// The lines of the input, numbered from 1. Blank ones are passed over.
struct Lines {
    input: BufReader<Box<dyn Read>>,
    number: u64,
    /// Bytes read.
    position: u64,
    buffer: Vec<u8>,
}

impl Lines {
    fn new(input: Box<dyn Read>) -> Self {
        Lines {
            input: BufReader::with_capacity(1 << 18, input),
            number: 0,
            position: 0,
            buffer: Vec::new(),
        }
    }

    fn next(&mut self) -> Result<Option<(u64, Bytes, Bytes)>, Failure> {
        loop {
            self.buffer.clear();
            self.number += 1;
            let number = self.number;
            let read = (&mut self.input)
                .take(LINE_BYTES_MAX + 1)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|error| {
                    Failure::error(format!("line {number}: cannot read: {}", failure::os(&error)))
                })?;
            if read == 0 {
                return Ok(None);
            }
            self.position += read as u64;
            if read as u64 > LINE_BYTES_MAX {
                return Err(Failure::usage(format!(
                    "line {number}: longer than {LINE_BYTES_MAX} bytes"
                )));
            }
            let mut line = &self.buffer[..];
            if number == 1 {
                // Some editors put it before a file; it is no part of the first record.
                line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
            }
            let line = line.trim_ascii();
            if !line.is_empty() {
                let (key, value) =
                    parse_line(line).map_err(|what| Failure::usage(format!("line {number}: {what}")))?;
                return Ok(Some((number, key, value)));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_blank_ones_passed_over() {
        let text = "{\"key\":\"a\",\"value\":\"1\"}\n\n  \r\n{\"key\":\"b\",\"value\":\"2\"}";
        let mut lines = Lines::new(Box::new(text.as_bytes()));
        assert_eq!(lines.next().unwrap(), Some((1, "a".into(), "1".into())));
        assert_eq!(lines.next().unwrap(), Some((4, "b".into(), "2".into())));
        assert_eq!(lines.position, text.len() as u64);
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line_and_a_mistake_elsewhere() {
        let line = "\u{feff}{\"key\":\"a\",\"value\":\"1\"}\n";
        let mut lines = Lines::new(Box::new(std::io::Cursor::new(line.repeat(2))));
        assert_eq!(lines.next().unwrap(), Some((1, "a".into(), "1".into())));
        let error = lines.next().unwrap_err().to_string();
        assert!(error.starts_with("line 2: not a JSON object"), "{error}");
    }

    #[test]
    fn a_list_is_no_record() {
        let error = Lines::new(Box::new(&b"5\n"[..])).next().unwrap_err().to_string();
        assert!(error.contains("expected an object with key and value"), "{error}");
    }

    #[test]
    fn how_long_it_took() {
        let check = |ms: u64, expected: &str| assert_eq!(seconds(Duration::from_millis(ms)), expected);
        check(67, "67 ms");
        check(5_067, "5.1 s");
        check(213_400, "213 s");
    }

    #[test]
    fn a_malformed_line_is_named() {
        let mut lines = Lines::new(Box::new(
            &b"{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\"}\n"[..],
        ));
        lines.next().unwrap();
        let error = lines.next().unwrap_err().to_string();
        assert_eq!(error, "line 2: it has neither `value` nor `value_b64`");
        let endless = io::repeat(b'x').take(LINE_BYTES_MAX + 10);
        let error = Lines::new(Box::new(endless)).next().unwrap_err().to_string();
        assert!(error.contains("line 1: longer than"), "{error}");
    }
}
