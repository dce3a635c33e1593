//! `watch`: prints changes as they happen, across lost connections, until it is interrupted.

use std::ffi::OsString;

use clap::Args;
use kvorum_client::proto::mvcc;
use kvorum_client::{WatchItem, WatchOptions};
use serde::Serialize;

use super::kv::RangeArgs;
use super::record::{ExportLine, Record};
use super::{ClientArgs, Output, TIMEOUT};
use crate::failure::Failure;

/// Arguments of `watch`.
#[derive(Args)]
pub struct WatchArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    range: RangeArgs,
    /// From this revision on, not from now on
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
    rev: Option<i64>,
    /// Also print the record before each change
    #[arg(long)]
    prev_kv: bool,
    /// End after so many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Put {
        #[serde(flatten)]
        record: Record<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prev_kv: Option<Record<'a>>,
    },
    Delete {
        #[serde(flatten)]
        key: KeyOnly<'a>,
        mod_revision: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        prev_kv: Option<Record<'a>>,
    },
}

#[derive(Serialize)]
struct KeyOnly<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
}

/// Prints changes.
pub async fn run(args: WatchArgs) -> Result<(), Failure> {
    let client = args.client.client(TIMEOUT)?;
    let (key, range_end) = args.range.resolve(args.key)?;
    let mut watcher = client.watch(WatchOptions {
        key,
        range_end,
        start_revision: args.rev.unwrap_or(0),
        prev_kv: args.prev_kv,
        progress_notify: true,
    });
    let mut out = Output::start();
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut interrupted = false;
    loop {
        match watcher.next().await? {
            WatchItem::Created { revision } if interrupted => {
                eprintln!("connected again, going on after revision {revision}");
                interrupted = false;
            }
            WatchItem::Created { .. } | WatchItem::Progress { .. } => {}
            WatchItem::Interrupted { reason } => {
                eprintln!("connection lost, trying again: {reason}");
                interrupted = true;
            }
            WatchItem::Events(events) => {
                for event in &events {
                    print(&mut out, event, args.client.json())?;
                    left -= 1;
                    if left == 0 {
                        return out.end();
                    }
                }
                out.flush()?;
            }
        }
    }
}

fn record_of(event: &mvcc::Event) -> Result<(&mvcc::KeyValue, bool), Failure> {
    let kv = event
        .kv
        .as_ref()
        .ok_or_else(|| Failure::error("unexpected answer: an event without a record"))?;
    Ok((kv, event.r#type() == mvcc::event::EventType::Delete))
}

/// An event on a line of JSON.
pub(super) fn print_json(out: &mut Output, event: &mvcc::Event) -> Result<(), Failure> {
    let (kv, deleted) = record_of(event)?;
    let prev_kv = event.prev_kv.as_ref().map(Record::from);
    out.json(&match deleted {
        false => Line::Put {
            record: Record::from(kv),
            prev_kv,
        },
        true => {
            let ExportLine { key, key_b64, .. } = ExportLine::new(&kv.key, b"");
            Line::Delete {
                key: KeyOnly { key, key_b64 },
                mod_revision: kv.mod_revision,
                prev_kv,
            }
        }
    })
}

fn print(out: &mut Output, event: &mvcc::Event, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(out, event);
    }
    let (kv, deleted) = record_of(event)?;
    let mut line = Vec::with_capacity(kv.key.len() + kv.value.len() + 8);
    line.extend_from_slice(if deleted { b"DELETE\t" } else { b"PUT\t" });
    line.extend_from_slice(&kv.key);
    if !deleted {
        line.push(b'\t');
        line.extend_from_slice(&kv.value);
    }
    out.line(&line)?;
    match &event.prev_kv {
        Some(prev) => out.line(&[b"PREV\t", prev.key.as_ref(), b"\t", prev.value.as_ref()].concat()),
        None => Ok(()),
    }
}
