//! Flipped bits, lost files and files from the past are reported, never served.

use std::fs;
use std::path::PathBuf;

use super::*;

/// A closed store with tables in several levels and both kinds of entries.
fn sample(dir: &Path) -> Model {
    let store = LsmStore::create(dir, small()).unwrap();
    fill(&store, 1..=700);
    store.flush().unwrap();
    let mut model = Model::new();
    replay(&mut model, 1..=700);
    assert_eq!(all(&store).unwrap(), model);
    model
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found.sort();
    found
}

/// Everything that a reader could ask, and the scrub.
fn read_everything(dir: &Path) -> Result<Model, StoreError> {
    let store = LsmStore::open(dir, small())?;
    let found = all(&store)?;
    for n in (0..3_000).step_by(50) {
        assert_eq!(
            store.get(&key(n))?.as_ref(),
            found.get(&key(n)),
            "point get and range disagree"
        );
    }
    store.scrub(|_| ())?;
    Ok(found)
}

#[test]
fn a_flipped_bit_anywhere_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let model = sample(dir.path());
    assert_eq!(read_everything(dir.path()).unwrap(), model);
    let mut rng = Rng::new(5);
    let names: Vec<PathBuf> = files(dir.path())
        .iter()
        .map(|path| path.strip_prefix(dir.path()).unwrap().to_owned())
        .collect();
    assert!(
        names
            .iter()
            .any(|name| name.to_string_lossy().contains("tables/"))
    );
    for name in names {
        for _ in 0..16 {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(dir.path(), copy.path());
            let path = copy.path().join(&name);
            let mut bytes = fs::read(&path).unwrap();
            let bit = rng.below(bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            match read_everything(copy.path()) {
                Err(StoreError::Corrupt(_)) => {}
                // A format number that has become greater reads as that of a newer version.
                Err(StoreError::Io(text)) if text.contains("newer version") => {}
                other => panic!(
                    "{} bit {bit}: {:?}",
                    name.display(),
                    other.map(|found| found == model)
                ),
            }
        }
    }
}

#[test]
fn a_lost_or_short_file_is_reported_before_anything_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    for path in files(dir.path()) {
        let name = path.strip_prefix(dir.path()).unwrap();
        for shorten in [false, true] {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(dir.path(), copy.path());
            let path = copy.path().join(name);
            if shorten {
                let length = fs::metadata(&path).unwrap().len();
                fs::File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(length / 2)
                    .unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            let before = files(copy.path());
            let error = LsmStore::open(copy.path(), small())
                .err()
                .expect("damage is found at start");
            assert!(
                matches!(error, StoreError::Corrupt(_)),
                "{}: {error}",
                name.display()
            );
            assert_eq!(
                files(copy.path()),
                before,
                "nothing is removed from a damaged store"
            );
        }
    }
}

/// A disk that lost the newest rename shows the tree's pointer of an earlier moment, whole and with a right
/// checksum. The tree would open it and delete the newer tables.
#[test]
fn a_pointer_from_the_past_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = LsmStore::create(dir.path(), small()).unwrap();
    fill(&store, 1..=300);
    store.flush().unwrap();
    let past = tempfile::tempdir().unwrap();
    let tree = store.shared.home.tree();
    drop(store);
    copy_dir(&tree, past.path());

    let store = LsmStore::open(dir.path(), small()).unwrap();
    fill(&store, 301..=2_000);
    store.flush().unwrap();
    drop(store);
    for entry in fs::read_dir(past.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), tree.join(entry.file_name())).unwrap();
        }
    }
    let before = files(dir.path());
    let error = LsmStore::open(dir.path(), small())
        .err()
        .expect("it is older than the manifest");
    assert!(
        matches!(&error, StoreError::Corrupt(text) if text.contains("MANIFEST at")),
        "{error}"
    );
    assert_eq!(files(dir.path()), before);
}

/// The other way round: the manifest did not follow the tree for longer than a crash can explain.
#[test]
fn a_manifest_from_the_past_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = LsmStore::create(dir.path(), small()).unwrap();
    let manifest = dir.path().join("g-1/MANIFEST");
    let past = fs::read(&manifest).unwrap();
    for mark in 1..=3 {
        fill(&store, mark..=mark);
        store.flush().unwrap();
    }
    drop(store);
    fs::write(&manifest, past).unwrap();
    let error = LsmStore::open(dir.path(), small())
        .err()
        .expect("the tree is three changes ahead");
    assert!(
        matches!(&error, StoreError::Corrupt(text) if text.contains("MANIFEST at")),
        "{error}"
    );
}

#[test]
fn a_data_directory_without_its_pointer_is_not_taken_for_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    for attempt in [
        LsmStore::open(dir.path(), small()),
        LsmStore::create(dir.path(), small()),
    ] {
        assert!(matches!(attempt.err().unwrap(), StoreError::Corrupt(_)));
    }
    assert!(dir.path().join("g-1/MANIFEST").exists());
}

#[test]
fn damage_met_by_the_scrub_ends_the_store() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let store = LsmStore::open(dir.path(), small()).unwrap();
    store.scrub(|_| ()).unwrap();
    let table = files(&store.shared.home.tables()).remove(0);
    let mut bytes = fs::read(&table).unwrap();
    bytes[100] ^= 1;
    fs::write(&table, bytes).unwrap();
    assert!(matches!(store.scrub(|_| ()), Err(StoreError::Corrupt(_))));
    assert!(matches!(store.write(batch(701)), Err(StoreError::Corrupt(_))));
    assert!(matches!(store.maintain(), Err(StoreError::Corrupt(_))));
    assert!(matches!(store.flush(), Err(StoreError::Corrupt(_))));
}
