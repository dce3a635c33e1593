//! `snapshot save` and `restore`: a member's whole state in a file, and a new cluster of one from it.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use kvorum_server::ServeOptions;
use kvorum_server::runtime;

use super::new_file::NewFile;
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
    let mut out = NewFile::at(path)?;
    let bytes = client.snapshot(&mut out).await?;
    out.commit()?;
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
