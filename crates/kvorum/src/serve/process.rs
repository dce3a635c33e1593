//! What surrounds a member's process: the limit of open files, and the ways in which it is told to stop.

use std::future::Future;
use std::io::Read;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::notify;
use crate::failure::{self, Failure};

/// Open files that a member needs beside its client connections: log, store, peers, with room.
const FILES_BESIDE_CONNECTIONS: u64 = 1024;
/// How much longer than its drain a member may take to end before the process is ended under it.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Raises the soft limit of open files to the hard one; warns if that is still low.
pub fn raise_open_files(connections_max: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit.current = limit.maximum,
            Err(error) => tracing::warn!("cannot raise the limit of open files: {error}"),
        }
    }
    let wanted = connections_max as u64 + FILES_BESIDE_CONNECTIONS;
    match limit.current {
        Some(files) if files < wanted => tracing::warn!(
            "the limit of open files is {files}, below the {wanted} that connections-max = {connections_max} may \
             need; raise it (ulimit -n, LimitNOFILE=) or lower connections-max"
        ),
        _ => {}
    }
}

/// The request to stop, from wherever it comes first.
pub struct Stop(watch::Sender<bool>);

impl Stop {
    /// No request yet.
    pub fn new() -> Self {
        Stop(watch::Sender::new(false))
    }

    /// Ends when a stop is requested.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut receiver = self.0.subscribe();
        async move {
            // A sender that is gone can request nothing any more.
            if receiver.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The first SIGTERM or SIGINT requests the stop, the second ends the process at once.
    pub fn on_signals(&self) -> Result<(), Failure> {
        let cannot = |error: std::io::Error| {
            Failure::error(format!("cannot listen for signals: {}", failure::os(&error)))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(cannot)?;
        let (mut terminate, mut interrupt) = {
            let _context = runtime.enter();
            (
                signal(SignalKind::terminate()).map_err(cannot)?,
                signal(SignalKind::interrupt()).map_err(cannot)?,
            )
        };
        let sender = self.0.clone();
        let listen = move || {
            runtime.block_on(async move {
                let mut next = async || {
                    tokio::select! {
                        _ = terminate.recv() => SignalKind::terminate(),
                        _ = interrupt.recv() => SignalKind::interrupt(),
                    }
                };
                next().await;
                notify::send("STOPPING=1");
                tracing::info!("stopping; a second signal ends the process at once");
                sender.send_replace(true);
                let second = next().await;
                std::process::exit(128 + second.as_raw_value());
            });
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(listen)
            .map(drop)
            .map_err(cannot)
    }

    /// The end of standard input requests the stop; the process ends even if the member does not.
    pub fn on_stdin_closed(&self, drain_timeout: Duration) {
        let sender = self.0.clone();
        let watch = move || {
            let mut buffer = [0; 256];
            while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
            tracing::info!("stopping: standard input was closed");
            sender.send_replace(true);
            std::thread::sleep(drain_timeout + STOP_MARGIN);
            std::process::exit(1);
        };
        if let Err(error) = std::thread::Builder::new().name("stdin".into()).spawn(watch) {
            tracing::warn!("cannot watch standard input: {error}");
        }
    }
}
