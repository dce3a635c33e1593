//! Snapshots take the store's place whole or not at all.

use super::*;
use crate::lsm::{InstallRecord, Installer};

fn records(n: u64) -> Vec<(Bytes, Bytes)> {
    (0..n)
        .map(|n| (key(n), Bytes::from(format!("snapshot {n}"))))
        .collect()
}

fn load(installer: &Installer, records: &[(Bytes, Bytes)], mark: u64) {
    for chunk in records.chunks(100) {
        installer.store().ingest(chunk.to_vec()).unwrap();
    }
    installer
        .store()
        .write(Batch {
            writes: Vec::new(),
            mark,
        })
        .unwrap();
}

fn generations(dir: &Path) -> Vec<u64> {
    crate::lsm::layout::generations(dir).unwrap()
}

#[test]
fn an_installed_snapshot_replaces_the_store_and_old_views_stay() {
    let dir = tempfile::tempdir().unwrap();
    let old = LsmStore::create(dir.path(), small()).unwrap();
    fill(&old, 1..=500);
    old.flush().unwrap();
    let view = old.view();
    let mut model = Model::new();
    replay(&mut model, 1..=500);

    let installer = Installer::begin(dir.path(), small()).unwrap();
    load(&installer, &records(2_000), 9_000);
    assert_eq!(
        old.install_record(),
        Ok(None),
        "nothing has changed before the commit"
    );
    let record = InstallRecord {
        index: 9_000,
        term: 4,
    };
    let new = installer.commit(record).unwrap();
    assert_eq!(new.install_record(), Ok(Some(record)));
    assert_eq!((mark(&new), new.flushed_mark()), (9_000, 9_000));
    assert_eq!(all(&new).unwrap(), records(2_000).into_iter().collect());
    assert!(old.install_record().is_err(), "another store is current");
    assert!(
        old.make_current(record).is_err(),
        "the old store does not come back"
    );

    drop(old);
    let found: Result<Model, _> = view.range(Bound::Unbounded, Bound::Unbounded).collect();
    assert_eq!(found.unwrap(), model);
    assert_eq!(generations(dir.path()), [1, 2]);
    drop(view);
    assert_eq!(generations(dir.path()), [2], "the last reader has ended");

    drop(new);
    let new = LsmStore::open(dir.path(), small()).unwrap();
    assert_eq!(
        new.install_record(),
        Ok(Some(record)),
        "the record survives a restart"
    );
    let other = InstallRecord {
        index: 8_000,
        term: 4,
    };
    new.clear_install_record(other).unwrap();
    assert_eq!(
        new.install_record(),
        Ok(Some(record)),
        "the log was reset to an earlier install, not to this one"
    );
    new.clear_install_record(record).unwrap();
    drop(new);
    let new = LsmStore::open(dir.path(), small()).unwrap();
    assert_eq!(new.install_record(), Ok(None));
    assert_eq!(all(&new).unwrap(), records(2_000).into_iter().collect());
}

#[test]
fn an_installation_that_is_given_up_leaves_the_store_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = LsmStore::create(dir.path(), small()).unwrap();
    fill(&store, 1..=20);
    store.flush().unwrap();
    let installer = Installer::begin(dir.path(), small()).unwrap();
    load(&installer, &records(50), 9_000);
    drop(installer);
    assert_eq!(generations(dir.path()), [1]);
    assert_eq!(mark(&store), 20);
}

/// A crash before the pointer is switched leaves a generation that nothing names.
#[test]
fn an_installation_that_a_crash_cut_is_removed_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let store = LsmStore::create(dir.path(), small()).unwrap();
    fill(&store, 1..=20);
    store.flush().unwrap();
    let installer = Installer::begin(dir.path(), small()).unwrap();
    load(&installer, &records(3_000), 9_000);
    installer.store().flush().unwrap();
    copy_dir(dir.path(), crashed.path());
    assert_eq!(generations(crashed.path()), [1, 2]);

    let store = LsmStore::open(crashed.path(), small()).unwrap();
    assert_eq!(generations(crashed.path()), [1]);
    assert_eq!((mark(&store), store.install_record()), (20, Ok(None)));
}

#[test]
fn a_first_store_that_a_crash_cut_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    drop(LsmStore::create(dir.path(), small()).unwrap());
    std::fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let store = LsmStore::create(dir.path(), small()).unwrap();
    assert_eq!(mark(&store), 0);
    let nowhere = tempfile::tempdir().unwrap();
    assert!(Installer::begin(nowhere.path(), small()).is_err());
}
