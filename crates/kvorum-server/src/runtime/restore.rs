//! A data directory from a saved snapshot: the first member of a new cluster, with the keys, history and sessions of
//! the old one, and none of its members.
//!
//! The directory is made beside its place and renamed when it is whole, so one that broke off is never started. The log
//! begins as every founder's does; the store carries an install record, so the member's first start resets the log
//! to the snapshot's last entry.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kvorum_model::Revision;
use kvorum_mvcc::lsm::{InstallRecord, Installer};
use kvorum_mvcc::{FRAME_HEADER_BYTES, LsmStore, SnapshotError, SnapshotSink, StoreError, frame_bytes};
use kvorum_raft::Configuration;
use kvorum_wal::disk::RealDisk;
use kvorum_wal::{Wal, WalError};
use sha2::{Digest, Sha256};

use super::directory::{self, StartError};
use super::identity::IdentityError;
use crate::options::ServeOptions;

/// Bytes of the hash that may follow the snapshot, and of the zeros between them at most.
const HASH_BYTES: usize = 32;
const PADDING_BYTES_MAX: usize = 511;

/// Why nothing was restored. One line each.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory cannot be made.
    #[error("data directory {dir}: {why}", dir = .dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The file cannot be read.
    #[error("the snapshot cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// It is damaged, or no snapshot.
    #[error("this is no whole snapshot: {0}; save it again")]
    Snapshot(#[from] SnapshotError),
    /// The hash behind it is another's.
    #[error("the snapshot and the hash at its end do not agree; save it again")]
    Hash,
    /// The store cannot be written.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The log cannot be written.
    #[error("{0}")]
    Log(#[from] WalError),
    /// The identity cannot be written.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// The options name no member.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The newest revision.
    pub revision: Revision,
    /// Keys that are there.
    pub keys: u64,
}

/// Fills `options.data_dir`, which must not exist, from a snapshot. Blocks.
///
/// # Errors
/// What is wrong, in one line; nothing is left then.
pub fn restore(options: &ServeOptions, snapshot: &mut impl Read) -> Result<Restored, RestoreError> {
    let place = &options.data_dir;
    let trouble = |why: String| RestoreError::Directory {
        dir: place.clone(),
        why,
    };
    if place.exists() {
        return Err(trouble("it is there already; choose another --data-dir".into()));
    }
    let parent = match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    let partial = parent.join(name);
    let made = std::fs::create_dir(&partial).and_then(|()| private(&partial));
    made.map_err(|error| trouble(format!("{} cannot be made: {error}", partial.display())))?;
    let result = fill(options, &partial, snapshot).and_then(|restored| {
        let moved = std::fs::rename(&partial, place).and_then(|()| std::fs::File::open(parent)?.sync_all());
        moved.map_err(|error| trouble(format!("it cannot be put in its place: {error}")))?;
        Ok(restored)
    });
    if result.is_err() {
        // Whoever tries again hears it if this failed.
        let _ = std::fs::remove_dir_all(&partial);
    }
    result
}

fn private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

fn fill(options: &ServeOptions, dir: &Path, snapshot: &mut impl Read) -> Result<Restored, RestoreError> {
    let identity = directory::found(options)?;
    let store_dir = dir.join("store");
    let store_options = kvorum_mvcc::lsm::Options::default();
    drop(LsmStore::create(&store_dir, store_options.clone())?);
    let store = Installer::begin(&store_dir, store_options)?.into_store();
    let sink = read_frames(SnapshotSink::new(store)?, snapshot)?;
    let mut machine = sink.finish(kvorum_mvcc::Options::default())?;
    let mut configuration = Vec::new();
    Configuration::of_voters([identity.member]).encode(&mut configuration);
    machine.found_anew(configuration.into())?;
    let (term, index) = machine.applied();
    machine.store().make_current(InstallRecord { index, term })?;
    let restored = Restored {
        revision: machine.revision(),
        keys: machine.reader().view().live_keys(),
    };
    drop(machine);

    let log_options = kvorum_wal::Options {
        segment_bytes: 32 << 20,
        ..kvorum_wal::Options::default()
    };
    let first = kvorum_node::recovery::founding_write(&identity.founders);
    let mut wal = Wal::create(
        RealDisk,
        &dir.join("log"),
        log_options,
        &identity.log_mark(),
        &first,
    )?;
    wal.prepare_next()?;
    wal.close()?;
    let identity = super::identity::Identity {
        started: true,
        ..identity
    };
    identity.store(&RealDisk, dir)?;
    Ok(restored)
}

/// All frames, and the zeros and the hash of it all that may follow them.
fn read_frames(
    mut sink: SnapshotSink<LsmStore>,
    snapshot: &mut impl Read,
) -> Result<SnapshotSink<LsmStore>, RestoreError> {
    let mut hash = Sha256::new();
    while !sink.is_complete() {
        let mut frame = vec![0; FRAME_HEADER_BYTES];
        read_whole(snapshot, &mut frame)?;
        let bytes = frame_bytes(&frame)?;
        frame.resize(bytes, 0);
        read_whole(snapshot, &mut frame[FRAME_HEADER_BYTES..])?;
        hash.update(&frame);
        sink.push(Bytes::from(frame))?;
    }
    let rest_bytes_max = PADDING_BYTES_MAX + HASH_BYTES;
    let mut rest = Vec::with_capacity(rest_bytes_max + 1);
    snapshot.take(rest_bytes_max as u64 + 1).read_to_end(&mut rest)?;
    if rest.is_empty() {
        return Ok(sink);
    }
    let (padding, digest) = rest
        .split_last_chunk::<HASH_BYTES>()
        .filter(|(padding, _)| padding.len() <= PADDING_BYTES_MAX)
        .ok_or(RestoreError::Hash)?;
    hash.update(padding);
    if digest[..] != hash.finalize()[..] {
        return Err(RestoreError::Hash);
    }
    Ok(sink)
}

fn read_whole(snapshot: &mut impl Read, into: &mut [u8]) -> Result<(), RestoreError> {
    snapshot.read_exact(into).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => RestoreError::Snapshot(SnapshotError::Incomplete),
        _ => RestoreError::Read(error),
    })
}
