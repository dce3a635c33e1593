//! A member's data directory: whose it is, and what is in it.
//!
//! ```text
//! lock        held while a process has the directory
//! identity    who this member is (see `identity`)
//! log/        the Raft log and the vote (kvorum-wal)
//! store/      the state machine's LSM tree (kvorum-mvcc)
//! ```
//!
//! Log and store may lie elsewhere; the second copy of the vote lies beside the identity then.
//!
//! Bootstrap settings are used only while the log does not exist. A member whose log is gone, though its identity
//! says that there was one, has lost its data and does not start.

use std::path::{Path, PathBuf};

use kvorum_mvcc::{LsmStore, StoreError};
use kvorum_node::recovery::founding_write;
use kvorum_wal::disk::{LockError, RealDisk, RealLock};
use kvorum_wal::{Disk, Recovered, Wal, WalError};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::announcement::{self, Door};
use super::handshake::{Acquaintance, read_u128};
use super::identity::{Identity, IdentityError, hash_of_founders, id_of_founder};
use super::peers;
use super::space::Need;
use crate::options::ServeOptions;

/// Why a member does not start. One line each.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory cannot be used.
    #[error("data directory {dir}: {why}", dir = .dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Somebody else has it.
    #[error("data directory {dir} is in use by process {pid}: stop it, or use another --data-dir", dir = .dir.display())]
    InUse {
        /// Which.
        dir: PathBuf,
        /// The process.
        pid: u32,
    },
    /// Its disk is full.
    #[error(
        "not enough space in {dir}: this member needs {} free there to start; free some, or choose another \
         --data-dir, then start it again", mebibytes(*.bytes), dir = .dir.display()
    )]
    NoSpace {
        /// Where.
        dir: PathBuf,
        /// How much must be free.
        bytes: u64,
    },
    /// The peers refuse this member.
    #[error("the cluster refuses this member: {0}")]
    Refused(String),
    /// Nobody let it join in time.
    #[error(
        "could not join through {through} within {seconds} s: {last}; check that the member there runs, that the cluster has a majority, and --join-through (SERVICE_RAFT_JOIN_ADDR)"
    )]
    NotJoined {
        /// Whom it asked.
        through: String,
        /// How long it tried.
        seconds: f64,
        /// What was wrong last.
        last: String,
    },
    /// It was told to stop before it began.
    #[error("stopped before it took part")]
    Stopped,
    /// Anything else, in words of its own.
    #[error("{0}")]
    Other(String),
}

/// Whether a directory has the data of a member, so that nothing that founds or joins a cluster counts any more.
pub fn is_initialized(dir: &Path) -> bool {
    let identity = Identity::load(&RealDisk, dir);
    matches!(identity, Ok(Some(identity)) if identity.started)
}

/// As people count the space of disks, rounded up.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

impl StartError {
    pub(crate) fn other(error: impl std::fmt::Display) -> Self {
        StartError::Other(error.to_string())
    }
}

/// An open directory, locked.
pub(crate) struct Directory {
    pub(crate) disk: RealDisk,
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
    /// Whether this start made the log.
    begins: bool,
    log_dir: Option<PathBuf>,
    store_dir: Option<PathBuf>,
    _lock: RealLock,
}

impl Directory {
    /// Opens or makes the directory of the member that `options` describe; `callers` are peer addresses in a cluster
    /// that called this member.
    pub(crate) fn open(
        options: &ServeOptions,
        runtime: &tokio::runtime::Runtime,
        stopped: &watch::Receiver<bool>,
        callers: Vec<String>,
    ) -> Result<Directory, StartError> {
        let runtime = runtime.handle();
        let (disk, path) = (RealDisk, options.data_dir.clone());
        let trouble = |why: String| StartError::Directory {
            dir: path.clone(),
            why,
        };
        // Before anything is made or changed in what may be somebody else's.
        let is_known = ["lock", "identity"].iter().any(|own| path.join(own).exists());
        if !is_known && std::fs::read_dir(&path).is_ok() {
            refuse_strange_content(options, Some(&path)).map_err(trouble)?;
        }
        disk.create_dir(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                trouble("it may not be made by this user; choose another --data-dir, or change the owner of its parent".into())
            }
            std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
                trouble("a file is in its place; choose another --data-dir".into())
            }
            _ => trouble(format!("it cannot be made: {error}; choose another --data-dir")),
        })?;
        restrict(&path).map_err(|error| {
            trouble(format!(
                "{error}; make this user its owner, or choose another --data-dir"
            ))
        })?;
        let lock = disk.lock(&path.join("lock")).map_err(|error| match error {
            LockError::Held { pid } => StartError::InUse {
                dir: path.clone(),
                pid,
            },
            LockError::Io(error) => trouble(format!("cannot be locked: {error}; make this user its owner")),
        })?;
        let known = Identity::load(&disk, &path).map_err(|error| trouble(error.to_string()))?;
        let identity = match known {
            // A beginning that never came to a log does not stand in the way of joining.
            Some(known) if known.started || !(options.join || joins_by_itself(options)) => {
                let identity = recognise(known.clone(), options).map_err(trouble)?;
                if identity != known {
                    identity
                        .store(&disk, &path)
                        .map_err(|error| identity_trouble(&path, error))?;
                }
                identity
            }
            _ => {
                for used in [Some(&path), options.log_dir.as_ref(), options.store_dir.as_ref()] {
                    refuse_strange_content(options, used).map_err(trouble)?;
                }
                let identity = if options.join {
                    join(options, runtime)?
                } else if joins_by_itself(options) || !callers.is_empty() {
                    let doors = Door::all(options, callers);
                    runtime.block_on(announcement::join(options, incarnation()?, &doors, stopped))?
                } else if options.bootstrap {
                    found(options)?
                } else {
                    return Err(trouble(NEITHER.to_owned()));
                };
                identity
                    .store(&disk, &path)
                    .map_err(|error| identity_trouble(&path, error))?;
                identity
            }
        };
        if !identity.started && !identity.founders.is_empty() {
            ask_peers(options, &identity, runtime)?;
        }
        Ok(Directory {
            disk,
            path,
            identity,
            begins: false,
            log_dir: options.log_dir.clone(),
            store_dir: options.store_dir.clone(),
            _lock: lock,
        })
    }

    /// Opens the log, or makes it if this member begins.
    pub(crate) fn open_log(&mut self) -> Result<(Wal<RealDisk>, Recovered), StartError> {
        let dir = self.log_dir();
        let mark = self.identity.log_mark();
        let exists = Wal::exists(&self.disk, &dir).map_err(log_trouble)?;
        if !exists && self.identity.started {
            return Err(StartError::Directory {
                dir: self.path.clone(),
                why: format!(
                    "its log is gone; this member lost its data: {}",
                    replace_it(&self.identity.name)
                ),
            });
        }
        if !exists {
            let first = if self.identity.founders.is_empty() {
                kvorum_wal::Write::default()
            } else {
                founding_write(&self.identity.founders)
            };
            let mut wal =
                Wal::create(self.disk, &dir, self.log_options(), &mark, &first).map_err(log_trouble)?;
            wal.prepare_next().map_err(log_trouble)?;
            wal.close().map_err(log_trouble)?;
            self.begins = true;
        }
        if !self.identity.started {
            self.identity.started = true;
            self.store_identity()?;
        }
        Wal::open(self.disk, &dir, self.log_options(), &mark).map_err(log_trouble)
    }

    /// Opens the store, or makes it if the log still has everything.
    pub(crate) fn open_store(
        &self,
        recovered: &Recovered,
        options: &kvorum_mvcc::lsm::Options,
    ) -> Result<LsmStore, StartError> {
        let dir = self.store_dir();
        let trouble = |error| store_trouble(&dir, &self.identity.name, error);
        if LsmStore::exists(&dir).map_err(trouble)? {
            return LsmStore::open(&dir, options.clone()).map_err(trouble);
        }
        if recovered.base.index > 0 {
            return Err(StartError::Directory {
                dir: self.path.clone(),
                why: format!(
                    "its store is gone; this member lost its data: {}",
                    replace_it(&self.identity.name)
                ),
            });
        }
        if !self.begins {
            tracing::warn!(
                entries = recovered.last_index,
                "the store {} is missing; the log is complete, and the store is rebuilt from it",
                dir.display()
            );
        }
        LsmStore::create(&dir, options.clone()).map_err(trouble)
    }

    /// Where the log lies.
    pub(crate) fn log_dir(&self) -> PathBuf {
        self.log_dir.clone().unwrap_or_else(|| self.path.join("log"))
    }

    /// Where the store lies.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.store_dir.clone().unwrap_or_else(|| self.path.join("store"))
    }

    /// What log and store each want free when their disk is full.
    pub(crate) fn needs(&self, options: &ServeOptions) -> (Need, Need) {
        let log = Need {
            bytes: self.log_options().segment_bytes,
            dir: self.log_dir(),
        };
        let store = Need {
            bytes: options.memtable_bytes as u64,
            dir: self.store_dir(),
        };
        (log, store)
    }

    /// Segments of half the default size: a member claims four of them before its first write.
    fn log_options(&self) -> kvorum_wal::Options {
        kvorum_wal::Options {
            segment_bytes: 32 << 20,
            // Beside the identity, where the log has a place of its own.
            vote_dir: self.log_dir.is_some().then(|| self.path.clone()),
            ..kvorum_wal::Options::default()
        }
    }

    pub(crate) fn store_identity(&self) -> Result<(), StartError> {
        let stored = self.identity.store(&self.disk, &self.path);
        stored.map_err(|error| identity_trouble(&self.path, error))
    }
}

/// A log that does not open: the process ends, so that a full disk takes a start of its own when there is space.
fn log_trouble(error: WalError) -> StartError {
    match error {
        WalError::NoSpace { dir, bytes } => StartError::NoSpace {
            dir,
            bytes: bytes + SMALL_FILES_BYTES,
        },
        error => StartError::other(error),
    }
}

fn store_trouble(dir: &Path, name: &str, error: StoreError) -> StartError {
    match error {
        StoreError::Corrupt(what) => StartError::Directory {
            dir: dir.to_owned(),
            why: format!("the store is damaged: {what}; {}", replace_it(name)),
        },
        StoreError::NoSpace => StartError::NoSpace {
            dir: dir.to_owned(),
            bytes: SMALL_FILES_BYTES,
        },
        error => StartError::other(error),
    }
}

fn identity_trouble(dir: &Path, error: IdentityError) -> StartError {
    match error {
        IdentityError::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => StartError::NoSpace {
            dir: dir.to_owned(),
            bytes: SMALL_FILES_BYTES,
        },
        error => StartError::Directory {
            dir: dir.to_owned(),
            why: error.to_string(),
        },
    }
}

/// What all that is not the log's claimed space surely finds room in: identity, vote, an empty store.
const SMALL_FILES_BYTES: u64 = 1 << 20;

/// What to do about a member that cannot come back with its data.
fn replace_it(name: &str) -> String {
    format!("`kvorum member replace {name}`, then start it with an empty directory and --join")
}

/// The directory is its owner's alone.
fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_dir() {
        return Err(std::io::Error::other("it is a file"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// What is said of an empty directory to a member that may neither found nor join.
const NEITHER: &str = "it is empty, and this member was neither told to found a cluster (--bootstrap, \
     SERVICE_RAFT_LEADER=true) nor whom to join (--join-through, SERVICE_RAFT_JOIN_ADDR)";

/// Whether an empty directory means that this member announces itself to others.
fn joins_by_itself(options: &ServeOptions) -> bool {
    !options.join_through.is_empty()
}

/// A directory that is not ours is not filled; one that is missing is ours to make.
fn refuse_strange_content(options: &ServeOptions, path: Option<&PathBuf>) -> Result<(), String> {
    let Some(path) = path.filter(|path| path.exists()) else {
        return Ok(());
    };
    let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    // What a start that was cut off leaves behind, and directories of this member that lie in another.
    let is_own = |entry: &Path| {
        let name = entry.file_name().unwrap_or_default();
        let mut parts = [&options.log_dir, &options.store_dir].into_iter().flatten();
        // The last one is the file system's own.
        ["lock", "identity", "identity.tmp", "lost+found"]
            .iter()
            .any(|own| name == *own)
            || parts.any(|part| part.starts_with(entry))
    };
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        if !is_own(&entry) {
            let place = if *path == options.data_dir {
                "it".to_owned()
            } else {
                path.display().to_string()
            };
            let name = entry.file_name().unwrap_or_default();
            if ["log", "store", "vote"].iter().any(|part| name == *part) {
                return Err(format!(
                    "{place} holds `{}`, but the file `identity` is gone from {}: nobody can tell whose data it is; \
                     bring that file back, or {}",
                    name.display(),
                    options.data_dir.display(),
                    replace_it(&options.name)
                ));
            }
            if name == "member" && entry.is_dir() {
                return Err(format!(
                    "{place} holds `member`: the data of an etcd, which kvorum does not read; choose an empty \
                     --data-dir, and copy the keys over with `etcdctl make-mirror`"
                ));
            }
            return Err(format!(
                "{place} holds `{}` and no identity of a member; choose an empty --data-dir",
                name.display()
            ));
        }
    }
    Ok(())
}

/// The directory's identity stands above the settings; settings of another member are refused.
fn recognise(mut identity: Identity, options: &ServeOptions) -> Result<Identity, String> {
    if options.etcd.identity.is_some() && identity.started {
        // As in etcd: it may have another name from now on, and the token is of no use any more.
        tracing::info!("server has already been initialized: bootstrap settings are ignored");
        identity.name = options.name.clone();
        return Ok(identity);
    }
    if identity.name != options.name {
        return Err(format!(
            "it belongs to member `{}`, not `{}`; check --name and --data-dir",
            identity.name, options.name
        ));
    }
    if identity.token != options.cluster_token {
        return Err(format!(
            "it belongs to the cluster with token `{}`, not `{}`; check --cluster-token and --data-dir",
            identity.token, options.cluster_token
        ));
    }
    if identity.started {
        tracing::info!("the data directory has a member's data: bootstrap settings are ignored");
    }
    Ok(identity)
}

/// A number that no other directory has.
fn incarnation() -> Result<u128, StartError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| StartError::Other(format!("the system gives no randomness: {error}")))?;
    Ok(u128::from_le_bytes(bytes))
}

pub(super) fn found(options: &ServeOptions) -> Result<Identity, StartError> {
    let token = &options.cluster_token;
    let mut founders: Vec<u64> = options
        .founders()
        .iter()
        .map(|founder| id_of_founder(options, token, &founder.name))
        .collect();
    founders.sort_unstable();
    Ok(Identity {
        member: id_of_founder(options, token, &options.name),
        name: options.name.clone(),
        token: token.clone(),
        token_hash: hash_of_founders(options, token, &founders),
        cluster_uuid: 0,
        incarnation: incarnation()?,
        founders,
        started: false,
    })
}

/// The other founders' addresses.
fn others(options: &ServeOptions) -> Vec<String> {
    let founders = options.founders();
    founders
        .iter()
        .filter(|founder| founder.name != options.name)
        .flat_map(|founder| options.founder_addresses(founder))
        .collect()
}

/// Takes up the ID that was announced for this name.
fn join(options: &ServeOptions, runtime: &tokio::runtime::Handle) -> Result<Identity, StartError> {
    let mut last = Status::unavailable("no peer is listed in --initial-cluster");
    let own: Vec<String> = options.peer_addresses().iter().map(ToString::to_string).collect();
    for address in others(options) {
        let hello = Acquaintance::joiner_hello(&options.name, own.clone());
        match runtime.block_on(peers::ask(&address, hello)) {
            Ok(hello) => {
                let malformed = |status: Status| StartError::Refused(status.message().to_owned());
                return Ok(Identity {
                    member: hello.to_member_id,
                    name: options.name.clone(),
                    token: options.cluster_token.clone(),
                    token_hash: read_u128(&hello.token_hash).map_err(malformed)?,
                    cluster_uuid: read_u128(&hello.cluster_uuid).map_err(malformed)?,
                    incarnation: incarnation()?,
                    founders: Vec::new(),
                    started: false,
                });
            }
            Err(status) => last = status,
        }
    }
    Err(StartError::Refused(last.message().to_owned()))
}

/// A founder that begins asks whether the others have met it before: then it lost its data.
fn ask_peers(
    options: &ServeOptions,
    identity: &Identity,
    runtime: &tokio::runtime::Handle,
) -> Result<(), StartError> {
    let acquaintance = Acquaintance::new(identity.clone(), 0, kvorum_model::MemberRecord::default());
    let hello = acquaintance.hello(0);
    let asked = others(options).into_iter().map(|address| {
        let hello = hello.clone();
        runtime.spawn(async move { (peers::ask(&address, hello).await, address) })
    });
    for answer in asked.collect::<Vec<_>>() {
        let Ok((answer, address)) = runtime.block_on(answer) else {
            continue;
        };
        match answer {
            Ok(_) => {}
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::PermissionDenied) => {
                return Err(StartError::Refused(status.message().to_owned()));
            }
            Err(status) => tracing::debug!(address, "peer does not answer yet: {}", status.message()),
        }
    }
    Ok(())
}
