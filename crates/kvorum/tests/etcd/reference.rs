//! The reference server as a process.
//!
//! It ends with its standard input, so with the test, however that ends.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::program::{eventually, free_port};

/// How long it may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running reference server of one member, and the directory of its data, which is deleted with it.
pub struct Reference {
    /// `host:port` for clients.
    pub client: String,
    process: Child,
    _dir: TempDir,
}

impl Reference {
    /// Starts it with etcd's flags `more`.
    pub async fn start(more: &[&str]) -> Reference {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (client, peer) = (free_port(), free_port());
        let mut command = Command::new(tool("etcd-ref"));
        command
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .arg(format!("--client-port={client}"))
            .arg(format!("--peer-port={peer}"))
            .args(["--unsafe-no-fsync", "--until-stdin-closes"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let process = command.spawn().unwrap();
        let mut reference = Reference {
            client: format!("127.0.0.1:{client}"),
            process,
            _dir: dir,
        };
        eventually("the reference serves", PATIENCE, async || {
            if let Some(status) = reference.process.try_wait().unwrap() {
                panic!("the reference ended: {status}");
            }
            tokio::net::TcpStream::connect(&reference.client).await.ok()
        })
        .await;
        reference
    }
}

/// A program that `tools/etcd-ref/build` made.
pub fn tool(name: &str) -> PathBuf {
    let bin = std::env::var_os("ETCD_REF_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin"),
        PathBuf::from,
    );
    let path = bin.join(name);
    assert!(
        path.is_file(),
        "{} is not there; tools/etcd-ref/build makes it",
        path.display()
    );
    path
}
