//! `put`, `get`, `del`, `ls`.

use std::ffi::OsString;
use std::io::Read;

use bytes::Bytes;
use clap::Args;
use kvorum_client::proto::etcd;
use kvorum_client::proto::mvcc::KeyValue;
use kvorum_client::{Client, prefix_range};
use serde_json::json;

use super::lease::parse_id;
use super::record::{Record, records, revision};
use super::{ClientArgs, Format, Output, TIMEOUT, bytes, key, revision_failure};
use crate::failure::{Code, Failure};

/// Largest value that is read from standard input: a little over what any server takes.
const STDIN_BYTES_MAX: u64 = 64 << 20;
/// Records asked for at a time where a whole range is printed.
const PAGE_RECORDS: i64 = 1000;

/// Arguments of `put`.
#[derive(Args)]
pub struct PutArgs {
    /// The key; any bytes
    key: OsString,
    /// The value; read from standard input if it is not given
    value: Option<OsString>,
    /// Attach the key to this lease (hexadecimal, as `lease grant` prints it): it goes when the lease ends
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    lease: Option<i64>,
    /// Print the record that is replaced
    #[arg(long)]
    prev_kv: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Which keys.
#[derive(Clone, Debug, Args)]
pub struct RangeArgs {
    /// Every key that starts with KEY
    #[arg(long, conflicts_with_all = ["from_key", "range_end"])]
    prefix: bool,
    /// Every key from KEY on
    #[arg(long, conflicts_with = "range_end")]
    from_key: bool,
    /// Every key from KEY on and before this one
    #[arg(long, value_name = "KEY")]
    range_end: Option<OsString>,
}

impl RangeArgs {
    /// Whether it is more than the one key.
    pub fn is_range(&self) -> bool {
        self.prefix || self.from_key || self.range_end.is_some()
    }

    /// `key` and `range_end` in etcd's convention; an empty key is legal where the range is open.
    pub fn resolve(&self, argument: OsString) -> Result<(Bytes, Bytes), Failure> {
        const ZERO: Bytes = Bytes::from_static(&[0]);
        if self.prefix {
            return Ok(prefix_range(&bytes(argument)));
        }
        if self.from_key {
            let from = bytes(argument);
            return Ok((if from.is_empty() { ZERO } else { from }, ZERO));
        }
        let start = key(argument)?;
        let end = self.range_end.clone().map_or(Bytes::new(), bytes);
        if self.range_end.is_some() && end <= start {
            return Err(Failure::usage("--range-end must sort after the key"));
        }
        Ok((start, end))
    }
}

/// Arguments of `get`.
#[derive(Args)]
pub struct GetArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    range: RangeArgs,
    /// As of this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    rev: i64,
    /// At most so many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    /// Print only how many keys there are
    #[arg(long)]
    count: bool,
    /// Ask only the server at hand, which may be behind
    #[arg(long)]
    serializable: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `del`.
#[derive(Args)]
pub struct DelArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    range: RangeArgs,
    /// Print the records that are deleted
    #[arg(long)]
    prev_kv: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `ls`.
#[derive(Args)]
pub struct LsArgs {
    /// Only keys that start with this
    #[arg(default_value = "")]
    prefix: OsString,
    /// At most so many keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    /// Ask only the server at hand, which may be behind
    #[arg(long)]
    serializable: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Writes a key.
pub async fn put(args: PutArgs) -> Result<(), Failure> {
    let client = args.client.client(TIMEOUT)?;
    let key = key(args.key)?;
    let value = match args.value {
        Some(value) => bytes(value),
        None => stdin_value()?,
    };
    let request = etcd::PutRequest {
        key,
        value,
        lease: args.lease.unwrap_or(0),
        prev_kv: args.prev_kv,
        ..Default::default()
    };
    let answer = client.put_request(request).await?;
    let mut out = Output::start();
    if args.client.json() {
        let prev_kv = answer.prev_kv.as_ref().map(Record::from);
        let mut line = json!({"revision": revision(answer.header.as_ref())});
        if args.prev_kv {
            line["prev_kv"] = json!(prev_kv);
        }
        out.json(&line)?;
    } else {
        out.line(b"OK")?;
        if let Some(prev) = &answer.prev_kv {
            out.line(&prev.value)?;
        }
    }
    out.end()
}

fn stdin_value() -> Result<Bytes, Failure> {
    let mut value = Vec::new();
    let mut input = std::io::stdin().lock().take(STDIN_BYTES_MAX + 1);
    input
        .read_to_end(&mut value)
        .map_err(|error| Failure::error(format!("cannot read the value: {}", crate::failure::os(&error))))?;
    if value.len() as u64 > STDIN_BYTES_MAX {
        return Err(Failure::usage(
            "the value on standard input is longer than any server takes",
        ));
    }
    Ok(value.into())
}

/// Reads a key or a range.
pub async fn get(args: GetArgs) -> Result<(), Failure> {
    let client = args.client.any_client(TIMEOUT)?;
    let is_range = args.range.is_range();
    let shown = args.key.to_string_lossy().into_owned();
    let (key, range_end) = args.range.resolve(args.key)?;
    let request = etcd::RangeRequest {
        key,
        range_end,
        revision: args.rev,
        count_only: args.count,
        serializable: args.serializable,
        ..Default::default()
    };
    let mut out = Output::start();
    let asked = request.revision;
    let read = async |request| match client.range(request).await {
        Ok(answer) => Ok(answer),
        Err(error) => Err(revision_failure(&client, asked, error).await),
    };
    if args.count {
        let answer = read(request).await?;
        match args.client.json() {
            true => {
                out.json(&json!({"revision": revision(answer.header.as_ref()), "count": answer.count}))?
            }
            false => out.line(answer.count.to_string().as_bytes())?,
        }
        return out.end();
    }
    if is_range {
        print_pages(
            &client,
            request,
            args.limit,
            args.client.json(),
            &mut out,
            |out, kv| match args.client.raw() {
                true => out.ended(&kv.key).and_then(|()| out.ended(&kv.value)),
                false => out.pair(&kv.key, &kv.value),
            },
        )
        .await?;
        return out.end();
    }
    let answer = read(request).await?;
    if args.client.json() {
        let revision = revision(answer.header.as_ref());
        out.json(&json!({"revision": revision, "count": answer.count, "kvs": records(&answer.kvs)}))?;
    }
    let Some(kv) = answer.kvs.first() else {
        out.end()?;
        return Err(Failure::new(Code::NotFound, format!("key `{shown}` not found")));
    };
    match args.client.output {
        Format::Json => {}
        Format::Raw => std::io::Write::write_all(&mut out, &kv.value)?,
        Format::Text => out.line(&kv.value)?,
    }
    out.end()
}

/// Lists keys.
pub async fn ls(args: LsArgs) -> Result<(), Failure> {
    let client = args.client.any_client(TIMEOUT)?;
    let (key, range_end) = prefix_range(&bytes(args.prefix));
    let request = etcd::RangeRequest {
        key,
        range_end,
        keys_only: true,
        serializable: args.serializable,
        ..Default::default()
    };
    let mut out = Output::start();
    print_pages(
        &client,
        request,
        args.limit,
        args.client.json(),
        &mut out,
        |out, kv| match args.client.raw() {
            true => out.ended(&kv.key),
            false => out.line(&kv.key),
        },
    )
    .await?;
    out.end()
}

/// A part of a range.
pub(super) struct Page<'a> {
    /// In the first part: the revision of all, and how many records the range has.
    pub(super) first_of: Option<(i64, i64)>,
    pub(super) kvs: &'a [KeyValue],
}

/// Reads a range page by page at one revision, so that its size does not matter.
pub(super) async fn pages(
    client: &Client,
    mut request: etcd::RangeRequest,
    limit: Option<i64>,
    mut take: impl FnMut(Page<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut left = limit.unwrap_or(i64::MAX);
    let mut is_first = true;
    loop {
        request.limit = left.min(PAGE_RECORDS);
        let asked = request.revision;
        let answer = match client.range(request.clone()).await {
            Ok(answer) => answer,
            Err(error) => return Err(revision_failure(client, asked, error).await),
        };
        let revision = revision(answer.header.as_ref());
        if request.revision == 0 {
            request.revision = revision;
        }
        take(Page {
            first_of: is_first.then_some((revision, answer.count)),
            kvs: &answer.kvs,
        })?;
        is_first = false;
        left -= answer.kvs.len() as i64;
        match answer.kvs.last() {
            Some(last) if answer.more && left > 0 => {
                request.key = [last.key.as_ref(), &[0]].concat().into();
            }
            _ => return Ok(()),
        }
    }
}

/// Prints a range. In JSON, one object: its records come as they are read.
async fn print_pages(
    client: &Client,
    request: etcd::RangeRequest,
    limit: Option<i64>,
    json: bool,
    out: &mut Output,
    print: impl Fn(&mut Output, &KeyValue) -> Result<(), Failure>,
) -> Result<(), Failure> {
    use std::io::Write;
    let (keys_only, mut is_first) = (request.keys_only, true);
    pages(client, request, limit, |page| {
        if let (true, Some((revision, count))) = (json, page.first_of) {
            write!(out, "{{\"revision\":{revision},\"count\":{count},\"kvs\":[")?;
        }
        for kv in page.kvs {
            if json {
                out.write_all(if is_first { b"\n" } else { b",\n" })?;
                let record = if keys_only {
                    Record::without_value(kv)
                } else {
                    Record::from(kv)
                };
                serde_json::to_writer(&mut *out, &record).map_err(std::io::Error::from)?;
            } else {
                print(out, kv)?;
            }
            is_first = false;
        }
        Ok(())
    })
    .await?;
    if json {
        out.line(b"]}")?;
    }
    Ok(())
}

/// Deletes a key or a range.
pub async fn del(args: DelArgs) -> Result<(), Failure> {
    let client = args.client.client(TIMEOUT)?;
    let (key, range_end) = args.range.resolve(args.key)?;
    let answer = client
        .delete(etcd::DeleteRangeRequest {
            key,
            range_end,
            prev_kv: args.prev_kv,
        })
        .await?;
    let mut out = Output::start();
    if args.client.json() {
        let mut line = json!({"revision": revision(answer.header.as_ref()), "deleted": answer.deleted});
        if args.prev_kv {
            line["prev_kvs"] = json!(records(&answer.prev_kvs));
        }
        out.json(&line)?;
    } else {
        out.line(answer.deleted.to_string().as_bytes())?;
        for kv in &answer.prev_kvs {
            out.pair(&kv.key, &kv.value)?;
        }
    }
    out.end()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn range(prefix: bool, from_key: bool, end: Option<&str>) -> RangeArgs {
        RangeArgs {
            prefix,
            from_key,
            range_end: end.map(OsString::from),
        }
    }

    #[test]
    fn ranges_resolve_to_etcds_convention() {
        let check = |args: RangeArgs, key: &str, expected: (&[u8], &[u8])| {
            let (k, e) = args.resolve(key.into()).unwrap();
            assert_eq!((k.as_ref(), e.as_ref()), expected);
        };
        check(range(false, false, None), "k", (b"k", b""));
        check(range(true, false, None), "k", (b"k", b"l"));
        check(range(true, false, None), "", (&[0], &[0]));
        check(range(false, true, None), "k", (b"k", &[0]));
        check(range(false, true, None), "", (&[0], &[0]));
        check(range(false, false, Some("m")), "k", (b"k", b"m"));
        assert!(range(false, false, None).resolve("".into()).is_err());
        assert!(range(false, false, Some("a")).resolve("k".into()).is_err());
        assert_eq!(
            prefix_range(b"a\xff"),
            (Bytes::from_static(b"a\xff"), Bytes::from_static(b"b"))
        );
        assert_eq!(
            prefix_range(b"\xff"),
            (Bytes::from_static(b"\xff"), Bytes::from_static(&[0]))
        );
    }
}
