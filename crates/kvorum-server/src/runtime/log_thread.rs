//! The log writer's thread, and the log reader's.
//!
//! The writer takes everything that waits and writes it as one batch with one fsync; what arrives meanwhile
//! forms the next batch. A full disk is no failure: the batch is tried again until space is back, and the
//! replica is told, so that it refuses what needs space. Any other error ends the process.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kvorum_node::{Input, LogDriver, LogReader};
use kvorum_raft::{Persist, SnapshotMeta};
use kvorum_wal::{Disk, Space, WalError};

use super::figures::LogFigures;
use super::peers::Inbox;
use super::space::{Part, SpaceWatch};

/// Between two tries to write to a full disk.
const SPACE_RETRY: Duration = Duration::from_millis(250);
/// Most writes in one batch.
const WRITES_MAX: usize = 1024;

/// Work for the log writer.
#[derive(Debug)]
pub(crate) enum LogWork {
    Persist(Persist),
    Purge(SnapshotMeta),
    Stop,
}

/// Work for the log reader.
#[derive(Debug)]
pub(crate) struct FetchWork {
    pub(crate) id: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes_max: usize,
}

/// Runs the writer until it is told to stop, or fails.
///
/// # Errors
/// What broke the log; the replica was told.
pub(crate) fn run_writer<D: Disk>(
    mut log: LogDriver<D>,
    work: &Receiver<LogWork>,
    inbox: &Inbox,
    space: &SpaceWatch,
    figures: &Arc<LogFigures>,
) -> Result<(), WalError> {
    let mut exhausted = false;
    loop {
        let Ok(first) = work.recv() else { return Ok(()) };
        let mut waiting = vec![first];
        waiting.extend(work.try_iter().take(WRITES_MAX));
        let mut persists = VecDeque::new();
        for item in waiting {
            match item {
                LogWork::Persist(persist) => persists.push_back(persist),
                LogWork::Purge(base) => {
                    write(&mut log, &mut persists, inbox, space, &mut exhausted, figures)?;
                    fatal_to_replica(log.purge(&base), inbox)?;
                }
                LogWork::Stop => {
                    write(&mut log, &mut persists, inbox, space, &mut exhausted, figures)?;
                    return log.close();
                }
            }
        }
        write(&mut log, &mut persists, inbox, space, &mut exhausted, figures)?;
        figures.note_stats(&log.wal().stats());
        // Claiming space ahead failed: what is claimed still serves, but nothing that needs space is accepted.
        while exhausted != (log.wal().space() == Space::Exhausted) {
            exhausted = !exhausted;
            space.tell(Part::Log, exhausted);
        }
        if !exhausted {
            // Between two batches: the space of the next segment is claimed here, not inside an append.
            fatal_to_replica(log.wal().prepare_next(), inbox)?;
        }
        // Until there is space again, however much work comes in between: to wait for work alone would be to wait for
        // what is refused meanwhile.
        let mut try_at = Instant::now() + SPACE_RETRY;
        while exhausted
            && let Some(next) = retry_claim(&mut log, work, inbox, space, &mut exhausted, &mut try_at)?
        {
            match next {
                LogWork::Persist(persist) => write(
                    &mut log,
                    &mut [persist].into(),
                    inbox,
                    space,
                    &mut exhausted,
                    figures,
                )?,
                LogWork::Purge(base) => fatal_to_replica(log.purge(&base), inbox)?,
                LogWork::Stop => return log.close(),
            }
        }
    }
}

/// Tries to claim space, from `try_at` on, until it works or there is work to do; work does not put a try off.
fn retry_claim<D: Disk>(
    log: &mut LogDriver<D>,
    work: &Receiver<LogWork>,
    inbox: &Inbox,
    space: &SpaceWatch,
    exhausted: &mut bool,
    try_at: &mut Instant,
) -> Result<Option<LogWork>, WalError> {
    loop {
        let left = try_at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            match work.recv_timeout(left) {
                Ok(next) => return Ok(Some(next)),
                Err(RecvTimeoutError::Disconnected) => return Ok(Some(LogWork::Stop)),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        *try_at = Instant::now() + SPACE_RETRY;
        if fatal_to_replica(log.wal().retry_claim(), inbox)? == Space::Healthy {
            *exhausted = false;
            space.tell(Part::Log, false);
            return Ok(None);
        }
    }
}

fn write<D: Disk>(
    log: &mut LogDriver<D>,
    persists: &mut VecDeque<Persist>,
    inbox: &Inbox,
    space: &SpaceWatch,
    exhausted: &mut bool,
    figures: &LogFigures,
) -> Result<(), WalError> {
    if persists.is_empty() {
        return Ok(());
    }
    let started = Instant::now();
    loop {
        match log.write(persists) {
            Ok(seq) => {
                figures.batches.observe(started.elapsed());
                inbox(Input::Persisted(seq));
                return Ok(());
            }
            Err(WalError::NoSpace { .. }) => {
                if !*exhausted {
                    *exhausted = true;
                    space.tell(Part::Log, true);
                }
                std::thread::park_timeout(SPACE_RETRY);
            }
            Err(error) => return fatal_to_replica(Err(error), inbox),
        }
    }
}

fn fatal_to_replica<T>(result: Result<T, WalError>, inbox: &Inbox) -> Result<T, WalError> {
    if result.is_err() {
        inbox(Input::PersistFailed);
    }
    result
}

/// Runs the reader until its work ends.
pub(crate) fn run_reader<D: Disk>(log: &LogReader<D>, work: &Receiver<FetchWork>, inbox: &Inbox) {
    while let Ok(FetchWork {
        id,
        from,
        to,
        bytes_max,
    }) = work.recv()
    {
        let entries = log.fetch(from, to, bytes_max).unwrap_or_else(|error| {
            // Whether anybody still wants them, the core knows: it stops if they count.
            tracing::warn!(
                "entries {from} to {to} cannot be read from the log; perhaps a snapshot took their place: {error}"
            );
            Vec::new()
        });
        inbox(Input::Fetched { id, entries });
    }
}
