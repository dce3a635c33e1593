//! `export`: all records as JSON lines, sorted by key, at one revision.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::path::Path;

use bytes::Bytes;
use clap::Args;
use kvorum_client::{Client, prefix_range};
use serde_json::json;

use super::new_file::NewFile;
use super::record::ExportLine;
use super::{ClientArgs, LONG_TIMEOUT, bytes, is_dash, revision_failure};
use crate::failure::Failure;

/// Arguments of `export`.
#[derive(Args)]
pub struct ExportArgs {
    /// Where to write; standard output if it is `-`. A file appears when it is complete
    #[arg(default_value = "-")]
    file: OsString,
    /// Only keys that start with this
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: OsString,
    /// As of this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    rev: i64,
    /// Ask only the server at hand, which may be behind
    #[arg(long)]
    serializable: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Prints or writes all records.
pub async fn run(args: ExportArgs) -> Result<(), Failure> {
    let client = args.client.client(LONG_TIMEOUT)?;
    let range = prefix_range(&bytes(args.prefix));
    if is_dash(&args.file) {
        let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
        write(&client, range, args.rev, args.serializable, &mut out).await?;
        return Ok(out.flush()?);
    }
    let path = Path::new(&args.file);
    let mut out = NewFile::at(path)?;
    let (records, revision) = write(&client, range, args.rev, args.serializable, &mut out).await?;
    out.commit()?;
    match args.client.json() {
        true => println!("{}", json!({"records": records, "revision": revision})),
        false => eprintln!("exported {records} records at revision {revision}"),
    }
    Ok(())
}

/// The records that were written, and their revision.
async fn write(
    client: &Client,
    range: (Bytes, Bytes),
    revision: i64,
    serializable: bool,
    out: &mut impl Write,
) -> Result<(u64, i64), Failure> {
    let mut export = client.export(range, revision, serializable);
    let mut records = 0;
    loop {
        let chunk = match export.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => return Err(revision_failure(client, revision, error).await),
        };
        for kv in &chunk {
            serde_json::to_writer(&mut *out, &ExportLine::new(&kv.key, &kv.value))
                .map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        }
        records += chunk.len() as u64;
    }
    Ok((records, export.revision()))
}
