//! Making generations: the first one, and those that a snapshot fills.
//!
//! A snapshot is loaded into a store of its own, in a generation that `CURRENT` does not name. Until
//! [`Installer::commit`] returns, a crash leaves the old store untouched; once `CURRENT` is switched, the new one
//! is there whole. Nothing in between exists.

use std::fs;
use std::path::Path;

use super::fault::Fault;
use super::layout::{self, Current, Generation, InstallRecord};
use super::{LsmStore, Options, manifest};
use crate::store::{Store, StoreError};

/// Prepares a directory for its first store.
///
/// A crash while the first store was made leaves its generation without a `CURRENT`: nothing was ever written
/// to it, and it is removed. Any other generation without a `CURRENT` is data whose pointer was lost.
pub(super) fn prepare(dir: &Path) -> Result<(), Fault> {
    let fail = |error: std::io::Error| Fault::io(format_args!("making {}", dir.display()), &error);
    fs::create_dir_all(dir).map_err(fail)?;
    if Current::read(dir)?.is_some() {
        return Err(Fault::Invalid(format!(
            "there is a store in {} already",
            dir.display()
        )));
    }
    for number in layout::generations(dir)? {
        let generation = Generation::claim(dir, number)?;
        let untouched = number == 1 && manifest::has_no_tables(generation.path());
        if !untouched {
            return Err(Fault::Corrupt(format!(
                "{} has data but no CURRENT",
                dir.display()
            )));
        }
    }
    layout::remove_leftovers(dir, None)?;
    if let Some(parent) = dir.parent() {
        layout::sync_dir(if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        })
        .map_err(fail)?;
    }
    Ok(())
}

/// An empty store in a generation that `CURRENT` does not name yet.
pub(super) fn fresh_generation(dir: &Path, options: Options, number: u64) -> Result<LsmStore, Fault> {
    let home = Generation::claim(dir, number)?;
    fs::create_dir(home.path())
        .and_then(|()| layout::sync_dir(home.dir()))
        .map_err(|error| Fault::io(format_args!("making {}", home.path().display()), &error))?;
    LsmStore::start(home, options, None)
}

/// A snapshot on its way into the store's place.
///
/// Fill [`store`](Self::store) with [`Store::ingest`], end with one [`Store::write`] that carries the final mark,
/// then [`commit`](Self::commit). Dropping the installer instead removes what was loaded.
pub struct Installer {
    store: LsmStore,
}

impl Installer {
    /// Begins in the directory of a store, whether that is open or not. Leftovers of installations that were not
    /// committed are removed.
    pub fn begin(dir: &Path, options: Options) -> Result<Self, StoreError> {
        let Some(current) = Current::read(dir)? else {
            return Err(Fault::Invalid(format!("there is no store in {}", dir.display())).into());
        };
        layout::remove_leftovers(dir, Some(current.generation))?;
        // Above every generation that is still read, so that a number never names two of them.
        let newest = layout::generations(dir)?
            .into_iter()
            .fold(current.generation, u64::max);
        let store = fresh_generation(dir, options, newest + 1)?;
        Ok(Self { store })
    }

    /// The store to load.
    pub fn store(&self) -> &LsmStore {
        &self.store
    }

    /// The store to load, for a loader that owns it; [`LsmStore::make_current`] then takes the place of
    /// [`commit`](Self::commit).
    pub fn into_store(self) -> LsmStore {
        self.store
    }

    /// Makes what was loaded the current store, and returns that store: see [`LsmStore::make_current`].
    pub fn commit(self, record: InstallRecord) -> Result<LsmStore, StoreError> {
        self.store.make_current(record)?;
        Ok(self.store)
    }
}

impl LsmStore {
    /// Makes this store durable, and the one that its directory's `CURRENT` names. The record stays in `CURRENT`
    /// until [`LsmStore::clear_install_record`].
    ///
    /// The store that was current, if it is still open, stays readable through its views; its directory is
    /// removed when the last of them ends.
    pub fn make_current(&self, record: InstallRecord) -> Result<(), StoreError> {
        self.flush()?;
        let home = &self.shared.home;
        if Current::read(home.dir())?.is_none_or(|current| current.generation > home.number) {
            return Err(Fault::Invalid("a newer store has taken this one's place".into()).into());
        }
        let current = Current {
            generation: home.number,
            record: Some(record),
        };
        Ok(current.write(home.dir())?)
    }
}
