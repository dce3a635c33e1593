//! A full disk is reported, waited for, and loses nothing.

use std::fs;
use std::process::Command;
use std::time::Instant;

use super::*;

const DIR: &str = "KVORUM_LSM_TEST_SMALL_DISK";
const DISK_BYTES: u64 = 2 << 20;

/// Runs [`on_a_small_disk`] with a file system of its own, in a mount namespace that ends with it.
#[test]
fn a_full_disk_is_waited_for_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={DISK_BYTES} tmpfs \"${DIR}\" || exit 77
         exec \"$0\" --exact lsm::tests::space::on_a_small_disk --ignored --nocapture"
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(DIR, dir.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() == Some(77) || output.stdout.is_empty() => {
            eprintln!("not run: this machine allows no mount namespace");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "runs only as the child of the test above"]
fn on_a_small_disk() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let store = LsmStore::create(&dir.join("store"), small()).unwrap();
    let ballast = dir.join("ballast");
    fill(&store, 1..=100);
    store.flush().unwrap();

    // All but a little is taken: flushes fail in the middle of a table.
    fs::write(&ballast, vec![1; DISK_BYTES as usize]).unwrap_err();
    fs::File::options()
        .write(true)
        .open(&ballast)
        .unwrap()
        .set_len(fs::metadata(&ballast).unwrap().len() - 8192)
        .unwrap();
    let mut mark = 100;
    let mut refused = 0;
    while refused < 3 {
        match store.write(batch(mark + 1)) {
            Ok(()) => mark += 1,
            Err(error) => {
                assert_eq!(error, StoreError::NoSpace);
                refused += 1;
            }
        }
        match store.maintain() {
            Ok(()) => {}
            Err(error) => assert_eq!(error, StoreError::NoSpace),
        }
    }
    let writer = super::super::lock(&store.shared.writer);
    assert!(store.shared.unflushed_bytes(&writer) <= small().unflushed_bytes_max() + (8 << 10));
    drop(writer);
    assert_eq!(store.flush(), Err(StoreError::NoSpace));
    let flushed = store.flushed_mark();
    assert!(flushed < mark);
    let mut model = Model::new();
    replay(&mut model, 1..=mark);
    assert_eq!(all(&store).unwrap(), model, "reads go on");
    let tables = fs::read_dir(store.shared.home.tables()).unwrap().count();
    assert!(
        tables <= 1 + store.shared.tree.table_count(),
        "failed attempts leave no files"
    );

    fs::remove_file(&ballast).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // The flush begins again by itself.
    while store.flushed_mark() == flushed {
        assert!(Instant::now() < deadline, "the flush did not begin again");
        std::thread::sleep(Duration::from_millis(10));
    }
    store.flush().unwrap();
    fill(&store, mark + 1..=mark + 50);
    store.flush().unwrap();
    replay(&mut model, mark + 1..=mark + 50);
    drop(store);
    let store = LsmStore::open(&dir.join("store"), small()).unwrap();
    assert_eq!(all(&store).unwrap(), model);
    assert_eq!(super::mark(&store), mark + 50);
    // A full disk is no reason not to start.
    drop(store);
    fs::write(&ballast, vec![1; DISK_BYTES as usize]).unwrap_err();
    let store = LsmStore::open(&dir.join("store"), small()).unwrap();
    assert_eq!(all(&store).unwrap(), model);
}
