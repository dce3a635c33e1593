//! From options to a running member, and to its end.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::callers;
use super::compactor;
use super::directory::{Directory, StartError};
use super::introduction;
use super::last_answers;
use super::listeners::Listeners;
use super::member::Member;
use super::node_options::drawn;
use super::replica_thread::End;
use crate::options::ServeOptions;

/// The version of etcd whose API is spoken.
pub const ETCD_VERSION: &str = "3.6.12";
/// Longest a stopping leader waits for its successor.
const HANDOVER: Duration = Duration::from_secs(2);

/// Why a member did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// An address cannot be listened on.
    #[error("{0}")]
    Listen(String),
    /// The cluster removed it.
    #[error("this member was removed from the cluster; its data directory is of no more use to it")]
    Removed,
    /// It stopped itself to keep its promises.
    #[error("this member stopped: {0}")]
    Fatal(String),
}

/// Runs a member until `stop` resolves, or until it must end.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub fn serve(
    mut options: ServeOptions,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    options.validate().map_err(StartError::other)?;
    let mut listeners = Listeners::open(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("peers")
        .enable_all()
        .build()
        .map_err(StartError::other)?;
    let (tell, mut stopped) = watch::channel(false);
    runtime.spawn(async move {
        stop.await;
        tell.send_replace(true);
    });
    if runtime.block_on(delay(options.start_delay, &stopped))? {
        return Ok(());
    }
    if introduction::is_needed(&options)? {
        match runtime.block_on(introduction::learn_names(&options, &listeners, &stopped)) {
            Err(ServeError::Start(StartError::Stopped)) => return Ok(()),
            learned => options.initial_cluster = learned?,
        }
    }
    let mut callers = Vec::new();
    if callers::are_awaited(&options)? {
        match runtime.block_on(callers::listen(&options, &listeners, &stopped)) {
            Err(ServeError::Start(StartError::Stopped)) => return Ok(()),
            heard => callers = heard?,
        }
    }
    let directory = match Directory::open(&options, &runtime, &stopped, callers) {
        Err(StartError::Stopped) => return Ok(()),
        directory => directory?,
    };
    let member = match Member::start(
        &options,
        &runtime,
        std::mem::take(&mut listeners.peers),
        directory,
    ) {
        Err(ServeError::Start(StartError::Stopped)) => return Ok(()),
        member => member?,
    };
    if options.serve_when_voter && !member.is_voter() {
        // Whoever asks meanwhile is refused, and does not wait.
        listeners.clients.clear();
        if runtime.block_on(member.wait_for_vote(&stopped)) {
            listeners.clients = Listeners::open_clients(&options)?;
        }
    }
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let core = member.core(&options);
    let server = member.open_client_port(&core, &options, listeners.clients, workers)?;
    if let Some(policy) = options.etcd.compaction {
        runtime.spawn(compactor::run(core, policy));
    }
    tracing::info!(
        name = options.name,
        member = %format_args!("{:016x}", member.handle.identity().member_id),
        clients = %options.client_urls().join(","),
        peers = %options.peer_address(),
        "listening"
    );
    let end = runtime.block_on(async {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => End::Stopped,
            end = member.ended() => end,
        }
    });
    let result = match end {
        End::Stopped => {
            tracing::info!("stopping: handing leadership over and draining");
            let deadline = Instant::now() + options.drain_timeout;
            member.hand_over(&runtime, HANDOVER.min(options.drain_timeout / 2));
            runtime.spawn(last_answers::give(
                deadline - last_answers::margin(options.drain_timeout),
                member.inbox.clone(),
                member.port.pending().clone(),
            ));
            server.drain(deadline.saturating_duration_since(Instant::now()));
            Ok(())
        }
        // Perhaps it was asked for here.
        End::Removed => {
            server.drain(HANDOVER.min(options.drain_timeout));
            Err(ServeError::Removed)
        }
        End::Stranger(why) => Err(ServeError::Start(StartError::Directory {
            dir: options.data_dir,
            why,
        })),
        End::Fatal(why) => Err(ServeError::Fatal(why)),
    };
    member.stop();
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Waits for a time drawn from [`at_least`, twice that); whether the stop came first.
async fn delay(at_least: Duration, stopped: &watch::Receiver<bool>) -> Result<bool, StartError> {
    if at_least.is_zero() {
        return Ok(false);
    }
    let drawn = drawn(at_least)?;
    tracing::info!("taking part in {drawn:?}");
    let mut stopped = stopped.clone();
    let stop = stopped.wait_for(|stopped| *stopped);
    Ok(tokio::time::timeout(drawn, stop).await.is_ok())
}
