//! `history`: what a key was, at each revision that is still there.

use std::ffi::OsString;

use clap::Args;
use kvorum_client::proto::etcd::RangeRequest;
use kvorum_client::proto::mvcc::Event;
use kvorum_client::proto::mvcc::event::EventType;
use kvorum_client::{Client, Error, WatchItem, WatchOptions};

use super::record::revision;
use super::watch::print_json;
use super::{ClientArgs, Output, TIMEOUT, key};
use crate::failure::{Code, Failure};

/// Arguments of `history`.
#[derive(Args)]
pub struct HistoryArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Prints the history of a key, the oldest revision first.
pub async fn run(args: HistoryArgs) -> Result<(), Failure> {
    let client = args.client.client(TIMEOUT)?;
    let shown = args.key.to_string_lossy().into_owned();
    let read = RangeRequest {
        key: key(args.key)?,
        ..Default::default()
    };
    let now = revision(client.range(read.clone()).await?.header.as_ref());
    let mut out = Output::start();
    let mut is_known = false;
    let mut print = |events: &[Event]| {
        for event in events {
            is_known = true;
            match args.client.json() {
                true => print_json(&mut out, event)?,
                false => print_line(&mut out, event)?,
            }
        }
        Ok::<_, Failure>(())
    };
    // Each attempt may find that more was compacted meanwhile, before anything was printed of it.
    let mut compacted = 0;
    while let Err(error) = events(&client, &read, compacted, now, &mut print).await? {
        compacted = error;
    }
    out.end()?;
    match is_known {
        true => Ok(()),
        false => Err(Failure::new(
            Code::NotFound,
            format!("key `{shown}` has no history: it never was, or what it was is compacted"),
        )),
    }
}

/// Gives all events from after `compacted` until `now`, and before them the record as of that compaction; or else the
/// revision that is compacted really.
async fn events(
    client: &Client,
    read: &RangeRequest,
    compacted: i64,
    now: i64,
    print: &mut impl FnMut(&[Event]) -> Result<(), Failure>,
) -> Result<Result<(), i64>, Failure> {
    let mut watcher = client.watch(WatchOptions {
        key: read.key.clone(),
        start_revision: compacted + 1,
        ..Default::default()
    });
    let mut oldest = match compacted {
        0 => None,
        revision => {
            let read = RangeRequest {
                revision,
                ..read.clone()
            };
            client.range(read).await?.kvs.into_iter().next()
        }
    };
    loop {
        match watcher.next().await {
            Ok(WatchItem::Created { .. }) => watcher.request_progress(),
            Ok(WatchItem::Interrupted { .. }) => {}
            Ok(WatchItem::Progress { revision }) if revision < now => watcher.request_progress(),
            Ok(WatchItem::Progress { .. }) => break,
            Ok(WatchItem::Events(mut events)) => {
                print(&as_event(oldest.take()))?;
                events.retain(|event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision <= now));
                print(&events)?;
            }
            Err(Error::Compacted { compact_revision }) if compact_revision > compacted => {
                return Ok(Err(compact_revision));
            }
            Err(error) => return Err(error.into()),
        }
    }
    print(&as_event(oldest))?;
    Ok(Ok(()))
}

/// The event that a record came from.
fn as_event(record: Option<kvorum_client::proto::mvcc::KeyValue>) -> Vec<Event> {
    let event = |kv| Event {
        r#type: EventType::Put.into(),
        kv: Some(kv),
        prev_kv: None,
    };
    record.map(event).into_iter().collect()
}

/// Revision, what happened, and the value.
fn print_line(out: &mut Output, event: &Event) -> Result<(), Failure> {
    let kv = event.kv.clone().unwrap_or_default();
    match event.r#type() {
        EventType::Put => out.line(&[format!("{}\tPUT\t", kv.mod_revision).as_bytes(), &kv.value].concat()),
        EventType::Delete => out.line(format!("{}\tDELETE", kv.mod_revision).as_bytes()),
    }
}
