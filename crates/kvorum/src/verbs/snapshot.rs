//! `snapshot save` and `restore`: a member's whole state in a file, and a new cluster of one from it.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use kvorum_server::ServeOptions;
use kvorum_server::runtime;

use super::{ClientArgs, LONG_TIMEOUT};
use crate::failure::{self, Failure};

/// Arguments of `snapshot`.
#[derive(Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Save the state of the server at hand
    Save(SaveArgs),
}

#[derive(Args)]
struct SaveArgs {
    /// Where to; the file appears when it is complete
    file: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

impl SnapshotArgs {
    /// How to reach the cluster.
    pub fn client(&self) -> &ClientArgs {
        let Action::Save(args) = &self.action;
        &args.client
    }
}

/// Arguments of `restore`.
#[derive(Args)]
pub struct RestoreArgs {
    /// What `snapshot save` wrote
    file: PathBuf,
    /// The directory to make; it must not exist
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The name of the new cluster's first member
    #[arg(long, default_value = "node-1")]
    name: String,
    /// The new cluster's token, if `serve` is to be given one
    #[arg(long, default_value = "kvorum")]
    cluster_token: String,
}

/// Saves a snapshot.
pub async fn save(args: SnapshotArgs) -> Result<(), Failure> {
    let Action::Save(args) = args.action;
    let client = args.client.client(LONG_TIMEOUT)?;
    let path = &args.file;
    let cannot = |error: std::io::Error| {
        Failure::error(format!(
            "cannot write {}: {}",
            path.display(),
            failure::os(&error)
        ))
    };
    // Written beside its place and renamed: a file of this name is a complete snapshot.
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let partial = tempfile::Builder::new()
        .prefix(".kvorum-snapshot-")
        .tempfile_in(dir)
        .map_err(cannot)?;
    let mut out = BufWriter::with_capacity(1 << 20, partial);
    let bytes = client.snapshot(&mut out).await?;
    let partial = out.into_inner().map_err(|error| cannot(error.into_error()))?;
    partial.as_file().sync_all().map_err(cannot)?;
    partial.persist(path).map_err(|error| cannot(error.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(cannot)?;
    match args.client.json() {
        true => println!("{}", serde_json::json!({ "bytes": bytes })),
        false => eprintln!("saved {bytes} bytes to {}", path.display()),
    }
    Ok(())
}

/// Makes a data directory.
pub fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let options = ServeOptions {
        name: args.name,
        data_dir: args.data_dir,
        cluster_token: args.cluster_token,
        ..ServeOptions::default()
    };
    options
        .validate()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let file = File::open(&args.file).map_err(|error| {
        Failure::error(format!(
            "cannot read {}: {}",
            args.file.display(),
            failure::os(&error)
        ))
    })?;
    let mut snapshot = BufReader::with_capacity(1 << 20, file);
    let restored =
        runtime::restore(&options, &mut snapshot).map_err(|error| Failure::error(error.to_string()))?;
    eprintln!(
        "restored {} keys at revision {}; start it with `kvorum serve --name {} --data-dir {}`",
        restored.keys,
        restored.revision,
        options.name,
        options.data_dir.display()
    );
    Ok(())
}
