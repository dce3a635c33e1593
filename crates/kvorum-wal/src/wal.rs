//! The log itself: group commit, rotation, purge, claiming ahead.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::WalError;
use crate::batch::{Batch, Place, write_bytes};
use crate::disk::{Disk, DiskFile, ListedFile, LockError, write_all_at};
use crate::format::{
    HEAD_RECORD_BYTES, IDENTITY_BYTES_MAX, PAGE_BYTES, Record, base_record_bytes, frame_span,
};
use crate::index::Index;
use crate::reader::{SharedIndex, WalReader};
use crate::recovery::{Found, recover};
use crate::segments::{Active, SegmentFile, Spares, segment_number};
use crate::state::LogState;
use crate::types::{Appended, Base, HardState, Options, Recovered, Space, Stats, VoteCopy, Write};
use crate::vote::VoteFile;

/// The log of one member, open for writing. One thread writes; see [`Wal::reader`] for the others.
///
/// Invariants: everything in `state` and in the index is durable. A batch is written only when the one before
/// it is durable. After `failed` is set nothing is written. One spare is never used by appending: recovery
/// needs it.
#[derive(Debug)]
pub struct Wal<D: Disk> {
    disk: D,
    dir: PathBuf,
    options: Options,
    identity: Vec<u8>,
    /// Held, not read.
    _lock: D::Lock,
    index: SharedIndex<D::File>,
    state: LogState,
    current: Active<D::File>,
    /// Where the log ended before the current segment: segment and offset.
    before: (u64, u64),
    /// The next segment, with its header durable and under its name.
    prepared: Option<Active<D::File>>,
    spares: Spares,
    vote: VoteFile,
    batch: Batch,
    next_number: u64,
    next_batch: u64,
    space: Space,
    failed: Option<WalError>,
    stats: Stats,
}

impl<D: Disk> Wal<D> {
    /// Whether the directory holds a log (whose creation was completed).
    pub fn exists(disk: &D, dir: &Path) -> Result<bool, WalError> {
        match disk.list(dir) {
            Ok(files) => Ok(has_segments(&files)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(WalError::io("reading", dir, &e)),
        }
    }

    /// Makes a log in a directory without one (made if missing), with an initial write. Durable on return; after a
    /// crash before that there is either no log, or this one.
    ///
    /// `identity` names cluster, member and incarnation in at most 64 bytes; every open checks it.
    ///
    /// # Errors
    /// `Exists`, `InUse`, `NoSpace`, `Io`, `Invalid`.
    pub fn create(
        disk: D,
        dir: &Path,
        options: Options,
        identity: &[u8],
        initial: &Write,
    ) -> Result<Wal<D>, WalError> {
        options.check()?;
        check_identity(identity)?;
        disk.create_dir(dir)
            .map_err(|e| WalError::io("making", dir, &e))?;
        crate::disk::sync_parent(&disk, dir).map_err(|e| WalError::io("syncing the parent of", dir, &e))?;
        let lock = lock(&disk, dir)?;
        let files = disk.list(dir).map_err(|e| WalError::io("reading", dir, &e))?;
        if has_segments(&files) {
            return Err(WalError::Exists { dir: dir.to_owned() });
        }
        let vote = VoteFile::new(options.vote_dir.as_deref().unwrap_or(dir));
        vote.check_unused(&disk, identity, initial.hard_state.unwrap_or_default())?;
        let mut spares = Spares::new(dir, options.segment_bytes);
        spares.adopt(&disk, &files)?;
        spares.claim_all(&disk, options.spare_segments_min + 2)?;
        let (spare, current) = spares.take(&disk, 1, identity)?;
        let mut wal = Wal {
            index: Arc::new(RwLock::new(Index::new())),
            state: LogState::default(),
            before: (0, 0),
            prepared: None,
            vote,
            batch: Batch::default(),
            next_number: 2,
            next_batch: 1,
            space: Space::Healthy,
            failed: None,
            stats: Stats::default(),
            dir: dir.to_owned(),
            identity: identity.to_vec(),
            _lock: lock,
            disk,
            options,
            current,
            spares,
        };
        wal.plan(std::slice::from_ref(initial))?;
        // The segment gets its name last: a file with a segment's name means a log.
        wal.commit(write_bytes(initial), |batch| batch.write(initial))?;
        wal.persist_vote()?;
        wal.claim_vote()?;
        wal.spares.install(&wal.disk, &spare, &wal.current)?;
        Ok(wal)
    }

    /// Opens the log in a directory after a stop or crash. On return everything recovered is durable, whatever
    /// the page cache held.
    ///
    /// # Errors
    /// `Missing`, `InUse`, `WrongIdentity`, `Newer`, `Corrupt` (nothing was changed), `NoSpace` (nothing was lost:
    /// try again with more space), `Io`, `Invalid`.
    pub fn open(
        disk: D,
        dir: &Path,
        options: Options,
        identity: &[u8],
    ) -> Result<(Wal<D>, Recovered), WalError> {
        options.check()?;
        check_identity(identity)?;
        if !Self::exists(&disk, dir)? {
            return Err(WalError::Missing { dir: dir.to_owned() });
        }
        let lock = lock(&disk, dir)?;
        // What is read of the directory may not be durable yet; from here on it is.
        disk.sync_dir(dir).map_err(|e| WalError::io("syncing", dir, &e))?;
        let files = disk.list(dir).map_err(|e| WalError::io("reading", dir, &e))?;
        let found = recover(&disk, dir, &files, identity, options.recover_bytes_max)?;
        let mut vote = VoteFile::new(options.vote_dir.as_deref().unwrap_or(dir));
        let vote_found = vote.read(&disk, identity)?;
        let vote_copy = vote.compare(found.hard_state_after_tail(), &vote_found)?;

        // Before anything else takes the space; a full disk shows below, where the segments are claimed.
        vote.claim(&disk)?;
        let mut spares = Spares::new(dir, options.segment_bytes);
        spares.adopt(&disk, &files)?;
        let give_back = |segments: &[Arc<SegmentFile<D::File>>]| give_back_list(segments, &options);
        spares.give_back(&disk, &give_back(&found.unused), options.spare_segments_max)?;
        let tail_bytes = found.tail_bytes();
        claim_for_recovery(&disk, &mut spares, &options, &found, tail_bytes)?;
        let (spare, current) = spares.take(&disk, found.next_number, identity)?;
        spares.install(&disk, &spare, &current)?;

        let Found {
            state,
            index,
            collected,
            tail,
            tail_commit_mark,
            batch,
            end,
            last,
            superseded,
            ..
        } = found;
        let mut report = found.report;
        report.vote_copy = vote_copy;
        let mut wal = Wal {
            index: Arc::new(RwLock::new(index)),
            state,
            before: end,
            prepared: None,
            vote,
            batch: Batch::default(),
            next_number: found.next_number + 1,
            next_batch: batch + 1,
            space: Space::Healthy,
            failed: None,
            stats: Stats::default(),
            dir: dir.to_owned(),
            identity: identity.to_vec(),
            _lock: lock,
            disk,
            options,
            current,
            spares,
        };
        wal.commit(tail_bytes, |batch| {
            tail.iter().for_each(|record| batch.record(record));
            batch.state.mark_commit(tail_commit_mark);
        })?;
        if vote_copy != VoteCopy::Agreed {
            wal.claim_vote()?;
            wal.persist_vote()?;
        }
        wal.clean_up(&last.0, end, &superseded)?;
        let mut recovered = collected.finish(&wal.state);
        recovered.report = report;
        wal.stats = Stats::default();
        Ok((wal, recovered))
    }

    /// Makes all writes durable, in order, with one sync, and returns. A new vote is durable in both copies then.
    ///
    /// What is larger than `batch_bytes_max` together is split between writes, with a sync for each part.
    ///
    /// # Errors
    /// `Invalid` and `NoSpace`: nothing was written. `Io`: latched; the writes may or may not be found by the next
    /// open, a prefix of them in any case.
    pub fn append(&mut self, writes: &[Write]) -> Result<Appended, WalError> {
        self.check()?;
        let groups = self.plan(writes)?;
        let votes = writes.iter().any(|write| write.hard_state.is_some());
        self.reserve(&groups, votes).map_err(|e| self.latch(e))?;
        let mut appended = Appended {
            batch: self.next_batch - 1,
            ..Appended::default()
        };
        let mut rest = writes;
        for (count, payload_bytes) in groups {
            let (group, later) = rest.split_at(count);
            rest = later;
            let bytes = self
                .commit_writes(group, payload_bytes)
                .map_err(|e| self.latch(e))?;
            appended.batches += 1;
            appended.batch += 1;
            appended.bytes += bytes;
        }
        // All that was asked for is durable; what fails from here on fails the next call.
        if let Err(error) = self.after_append(writes) {
            self.latch(error);
        }
        Ok(appended)
    }

    /// A handle for reading entries, on any thread.
    pub fn reader(&self) -> WalReader<D> {
        WalReader {
            index: self.index.clone(),
        }
    }

    /// Moves the log's base forward to `to`, an entry of the log whose configuration the caller knows, and turns
    /// segments that hold nothing above it into spares. A base at or behind the present one does nothing.
    ///
    /// A full disk is no error: a purge that frees a segment may use the space that is kept for recovery, and one
    /// that would free nothing is left out if it has no space; the base then stays where it is.
    ///
    /// # Errors
    /// `Invalid`: nothing was written. `Io`: latched.
    pub fn purge(&mut self, to: Base) -> Result<(), WalError> {
        self.check()?;
        if to.index <= self.state.base.index {
            return Ok(());
        }
        self.check_base(&to)?;
        self.state.clone().purge(&to).map_err(WalError::Invalid)?;
        let payload_bytes = base_record_bytes(&to);
        match self.reserve(&[(1, payload_bytes)], false) {
            Err(WalError::NoSpace { .. }) if self.ready() > 0 && self.purge_frees(to.index) => {}
            Err(WalError::NoSpace { .. }) => return Ok(()),
            result => result.map_err(|e| self.latch(e))?,
        }
        let record = Record::Purge(to);
        self.commit(payload_bytes, |batch| batch.record(&record))
            .and_then(|_| self.drop_purged())
            .and_then(|()| self.claim_ahead_again())
            .map_err(|e| self.latch(e))
    }

    /// Whether the space for the next segments is claimed. Never latched.
    pub fn space(&self) -> Space {
        self.space
    }

    /// Tries to claim what is missing, after [`Space::Exhausted`] and perhaps some freeing.
    pub fn retry_claim(&mut self) -> Result<Space, WalError> {
        self.check()?;
        self.claim_ahead_again().map_err(|e| self.latch(e))?;
        Ok(self.space)
    }

    /// Claims and prepares what appending will need next: to be called when there is nothing to write. Otherwise
    /// `append` does it when a segment is half full. A full disk is no error here: see [`Wal::space`].
    pub fn prepare_next(&mut self) -> Result<(), WalError> {
        self.check()?;
        self.claim_ahead().map_err(|e| self.latch(e))
    }

    /// Counters and extent.
    pub fn stats(&self) -> Stats {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let (segments, log_bytes) = index.extent();
        Stats {
            other_syncs: self.stats.other_syncs + self.spares.syncs,
            bytes_written: self.stats.bytes_written + self.spares.bytes_written,
            segments,
            spare_segments: self.ready() as u64,
            segments_recycled: self.spares.recycled,
            first_index: self.state.base.index + 1,
            last_index: self.state.last_index,
            log_bytes,
            ..self.stats
        }
    }

    /// Ends a clean stop: one more, empty batch proves the last one durable, so that damage to any batch of this
    /// log will be told from a torn tail.
    pub fn close(mut self) -> Result<(), WalError> {
        self.check()?;
        if self.current.offset + frame_span(0) > self.current.segment.header.bytes {
            return Ok(());
        }
        self.commit(0, |_| {}).map(|_| ())
    }
}

fn has_segments(files: &[ListedFile]) -> bool {
    files.iter().any(|file| segment_number(&file.name).is_some())
}

fn check_identity(identity: &[u8]) -> Result<(), WalError> {
    if identity.len() > IDENTITY_BYTES_MAX {
        let why = format!(
            "an identity of {} bytes, at most {IDENTITY_BYTES_MAX}",
            identity.len()
        );
        return Err(WalError::Invalid(why));
    }
    Ok(())
}

fn lock<D: Disk>(disk: &D, dir: &Path) -> Result<D::Lock, WalError> {
    let path = dir.join("lock");
    disk.lock(&path).map_err(|error| match error {
        LockError::Held { pid } => WalError::InUse {
            dir: dir.to_owned(),
            pid,
        },
        LockError::Io(e) => WalError::io("locking", &path, &e),
    })
}

/// Segments as `Spares::give_back` takes them: only files of the present segment size can be spares.
fn give_back_list<F: DiskFile>(segments: &[Arc<SegmentFile<F>>], options: &Options) -> Vec<(PathBuf, bool)> {
    let reusable = |s: &SegmentFile<F>| s.file.size().is_ok_and(|bytes| bytes == options.segment_bytes);
    segments
        .iter()
        .map(|segment| (segment.path.clone(), reusable(segment)))
        .collect()
}

/// Sees to it that recovery has a segment to write the tail into, on a full disk too: then the unused end of the
/// last segment is given up for one of a smaller size.
fn claim_for_recovery<D: Disk>(
    disk: &D,
    spares: &mut Spares,
    options: &Options,
    found: &Found<D::File>,
    tail_bytes: usize,
) -> Result<(), WalError> {
    let configuration = found.configuration_bytes_max();
    if configuration > options.configuration_bytes_max {
        let why = format!("configuration_bytes_max must be at least {configuration}, as in this log");
        return Err(WalError::Invalid(why));
    }
    let head = HEAD_RECORD_BYTES + configuration;
    let needed = PAGE_BYTES + frame_span(tail_bytes + head);
    if needed > options.segment_bytes {
        let why = format!("segment_bytes must be at least {needed} to hold the log's last batch");
        return Err(WalError::Invalid(why));
    }
    if spares.len() > 0 {
        return Ok(());
    }
    match spares.claim(disk, options.segment_bytes) {
        Err(WalError::NoSpace { .. }) => {}
        result => return result,
    }
    let (segment, valid_to) = &found.last;
    segment.shorten(*valid_to)?;
    let mut bytes = options.segment_bytes;
    loop {
        bytes = (bytes / 2 / PAGE_BYTES * PAGE_BYTES).max(needed);
        match spares.claim(disk, bytes) {
            Err(WalError::NoSpace { .. }) if bytes > needed => {}
            result => return result,
        }
    }
}

impl<D: Disk> Wal<D> {
    fn check(&self) -> Result<(), WalError> {
        match &self.failed {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// Remembers the first error that leaves the disk in doubt.
    fn latch(&mut self, error: WalError) -> WalError {
        if matches!(error, WalError::Io { .. }) {
            self.failed.get_or_insert_with(|| error.clone());
        }
        error
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index<D::File>> {
        // A reader that panicked changed nothing.
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_base(&self, base: &Base) -> Result<(), WalError> {
        let (bytes, max) = (base.configuration.len(), self.options.configuration_bytes_max);
        if bytes > max {
            return Err(WalError::Invalid(format!(
                "a configuration of {bytes} bytes, at most {max}"
            )));
        }
        Ok(())
    }

    /// Checks the writes, before anything is written, and divides them into batches: (writes, payload bytes).
    fn plan(&self, writes: &[Write]) -> Result<Vec<(usize, usize)>, WalError> {
        let mut state = self.state.clone();
        let mut groups: Vec<(usize, usize)> = Vec::new();
        for write in writes {
            if let Some(base) = &write.reset {
                self.check_base(base)?;
            }
            state.write(write).map_err(WalError::Invalid)?;
            let (bytes, max) = (write_bytes(write), self.options.batch_bytes_max);
            if bytes > max {
                let why = format!("a write of {bytes} bytes, at most {max}: divide its entries");
                return Err(WalError::Invalid(why));
            }
            match groups.last_mut() {
                Some((count, sum)) if *sum + bytes <= max => {
                    *count += 1;
                    *sum += bytes;
                }
                _ => groups.push((1, bytes)),
            }
        }
        Ok(groups)
    }

    /// Makes sure that the batches fit into claimed space, all of them, leaving recovery its segment.
    fn reserve(&mut self, groups: &[(usize, usize)], votes: bool) -> Result<(), WalError> {
        // At most one configuration is restated, and none is larger than the limit.
        let head = HEAD_RECORD_BYTES + self.options.configuration_bytes_max;
        let (mut offset, mut end, mut rotations) =
            (self.current.offset, self.current.segment.header.bytes, 0);
        for (_, payload_bytes) in groups {
            if offset + frame_span(*payload_bytes) > end {
                rotations += 1;
                (offset, end) = (
                    PAGE_BYTES + frame_span(payload_bytes + head),
                    self.options.segment_bytes,
                );
            } else {
                offset += frame_span(*payload_bytes);
            }
        }
        while rotations > 0 && self.ready() <= rotations {
            self.claim_spare()?;
        }
        if votes {
            self.claim_vote()?;
        }
        Ok(())
    }

    fn ready(&self) -> usize {
        self.spares.len() + usize::from(self.prepared.is_some())
    }

    fn claim_spare(&mut self) -> Result<(), WalError> {
        let result = self.spares.claim(&self.disk, self.options.segment_bytes);
        if matches!(result, Err(WalError::NoSpace { .. })) {
            self.space = Space::Exhausted;
        }
        result
    }

    fn claim_vote(&mut self) -> Result<(), WalError> {
        if self.vote.claim(&self.disk)?.is_none() {
            self.space = Space::Exhausted;
            return Err(WalError::NoSpace {
                dir: self.dir.clone(),
                bytes: PAGE_BYTES,
            });
        }
        Ok(())
    }

    /// Claims ahead, unless the disk was full the last time.
    fn claim_ahead(&mut self) -> Result<(), WalError> {
        if self.space == Space::Exhausted {
            return Ok(());
        }
        // The vote's space first, it is small; then the next segment, and the spares.
        let mut claim = || {
            self.claim_vote()?;
            while self.ready() < self.options.spare_segments_min + 1 {
                self.claim_spare()?;
            }
            Ok(())
        };
        match claim() {
            Err(WalError::NoSpace { .. }) => {}
            result => result?,
        }
        if self.prepared.is_none() && self.spares.len() > 0 {
            self.prepared = Some(self.prepare()?);
        }
        Ok(())
    }

    fn claim_ahead_again(&mut self) -> Result<(), WalError> {
        self.space = Space::Healthy;
        self.claim_ahead()
    }

    fn prepare(&mut self) -> Result<Active<D::File>, WalError> {
        let (spare, active) = self.spares.take(&self.disk, self.next_number, &self.identity)?;
        self.next_number += 1;
        self.spares.install(&self.disk, &spare, &active)?;
        Ok(active)
    }

    fn rotate(&mut self) -> Result<(), WalError> {
        let next = match self.prepared.take() {
            Some(prepared) => prepared,
            None => self.prepare()?,
        };
        self.before = (self.current.segment.header.number, self.current.offset);
        self.current = next;
        Ok(())
    }

    /// Writes one batch and syncs it; then it is in the state and in the index. Returns its bytes.
    fn commit(&mut self, payload_bytes: usize, fill: impl FnOnce(&mut Batch)) -> Result<u64, WalError> {
        if self.current.offset + frame_span(payload_bytes) > self.current.segment.header.bytes {
            self.rotate()?;
        }
        let Active {
            segment,
            offset,
            filled_to,
        } = &mut self.current;
        let place = Place {
            segment: segment.header.number,
            generation: segment.header.generation,
            checksum_seed: segment.checksum_seed,
            offset: *offset,
        };
        let first = *offset == PAGE_BYTES;
        self.batch.begin(place, &self.state);
        if first {
            self.batch.head();
        }
        fill(&mut self.batch);
        let (previous, durable_to) = if first { self.before } else { (0, *offset) };
        self.batch.finish(self.next_batch, durable_to, previous);
        let buffer = &mut self.batch.buffer;
        let span = buffer.len() as u64;
        assert!(
            *offset + span <= segment.header.bytes,
            "a batch fits into its segment"
        );
        if *filled_to < *offset + span {
            // Zeros ahead, in the same write: the syncs to come need not change the file's extents.
            let ahead = (*offset + span).next_multiple_of(self.options.fill_bytes.max(PAGE_BYTES));
            *filled_to = ahead.min(segment.header.bytes);
            buffer.resize((*filled_to - *offset) as usize, 0);
        }
        write_all_at(&segment.file, buffer, *offset)
            .map_err(|e| WalError::io("writing", &segment.path, &e))?;
        segment
            .file
            .sync_data()
            .map_err(|e| WalError::io("syncing", &segment.path, &e))?;

        *offset += span;
        self.next_batch += 1;
        self.stats.batches += 1;
        self.stats.batch_syncs += 1;
        self.stats.frame_bytes += span;
        self.stats.bytes_written += self.batch.buffer.len() as u64;
        std::mem::swap(&mut self.state, &mut self.batch.state);
        let mut index = self.index_mut();
        index.keep(self.current.segment.clone(), self.current.offset);
        index.apply(&self.batch.changes);
        Ok(span)
    }

    fn commit_writes(&mut self, writes: &[Write], payload_bytes: usize) -> Result<u64, WalError> {
        let before = self.state.hard_state;
        let bytes = self.commit(payload_bytes, |batch| {
            writes.iter().for_each(|write| batch.write(write))
        })?;
        self.stats.entries += writes.iter().map(|write| write.entries.len() as u64).sum::<u64>();
        if self.state.hard_state != before {
            self.persist_vote()?;
        }
        Ok(bytes)
    }

    fn persist_vote(&mut self) -> Result<(), WalError> {
        let hard_state: HardState = self.state.hard_state;
        self.vote.replace(&self.disk, hard_state, &self.identity)?;
        self.stats.other_syncs += 2;
        self.stats.bytes_written += crate::format::VOTE_BYTES as u64;
        Ok(())
    }

    fn after_append(&mut self, writes: &[Write]) -> Result<(), WalError> {
        if writes.iter().any(|write| write.reset.is_some()) {
            self.drop_purged()?;
            self.claim_ahead_again()?;
        }
        if self.current.offset >= self.current.segment.header.bytes / 2 {
            self.claim_ahead()?;
        }
        Ok(())
    }

    /// Whether a purge to this index would give a segment back.
    fn purge_frees(&self, index: u64) -> bool {
        let current = self.current.segment.header.number;
        self.index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .purge_drops(index, current)
    }

    /// Gives back the segments that no entry of the log is in, nor in any older one.
    fn drop_purged(&mut self) -> Result<(), WalError> {
        let dropped = self.index_mut().drop_purged(self.current.segment.header.number);
        let files = give_back_list(&dropped, &self.options);
        self.spares
            .give_back(&self.disk, &files, self.options.spare_segments_max)
    }

    /// After recovery: cuts what does not exist off the segment that was last, gives back the segments that are not
    /// needed, and claims ahead.
    fn clean_up(
        &mut self,
        last: &SegmentFile<D::File>,
        end: (u64, u64),
        superseded: &[Arc<SegmentFile<D::File>>],
    ) -> Result<(), WalError> {
        if last.header.number == end.0 {
            last.shorten(end.1)?;
        }
        let files = give_back_list(superseded, &self.options);
        self.spares
            .give_back(&self.disk, &files, self.options.spare_segments_max)?;
        self.drop_purged()?;
        self.claim_ahead()
    }
}

impl<F> Found<F> {
    fn hard_state_after_tail(&self) -> HardState {
        let newest = self.tail.iter().rev().find_map(|record| match record {
            Record::HardState(hard_state) => Some(*hard_state),
            _ => None,
        });
        newest.unwrap_or(self.state.hard_state)
    }

    fn configuration_bytes_max(&self) -> usize {
        let of = |record: &Record| match record {
            Record::Reset(base) | Record::Purge(base) => base.configuration.len(),
            _ => 0,
        };
        let tail = self.tail.iter().map(of).max().unwrap_or(0);
        tail.max(self.state.base.configuration.len())
    }

    fn tail_bytes(&self) -> usize {
        let bytes = |record: &Record| match record {
            Record::Head(_) => 0,
            Record::HardState(_) => crate::format::HARD_STATE_RECORD_BYTES,
            Record::Reset(base) | Record::Purge(base) => base_record_bytes(base),
            Record::Truncate(_) => crate::format::TRUNCATE_RECORD_BYTES,
            Record::Entry(entry) => crate::format::entry_record_bytes(entry),
        };
        self.tail.iter().map(bytes).sum()
    }
}
