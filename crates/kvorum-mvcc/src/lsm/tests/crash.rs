//! A child process writes and is killed, or stopped and copied, at random moments.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;

const DIR: &str = "KVORUM_LSM_TEST_DIR";
const ROUNDS: &str = "KVORUM_LSM_KILL_ROUNDS";

/// The child: writes batch after batch until it is killed, and says what it was promised to be durable.
#[test]
#[ignore = "runs only as the child of the tests below"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = LsmStore::open(Path::new(&dir), small()).unwrap();
    let mut said = 0;
    let mut out = std::io::stdout().lock();
    for mark in mark(&store) + 1.. {
        store.write(batch(mark)).unwrap();
        store.maintain().unwrap();
        if mark % 1_000 == 0 {
            store.flush().unwrap();
        }
        if store.flushed_mark() != said {
            said = store.flushed_mark();
            writeln!(out, "\nflushed {said}").unwrap();
            out.flush().unwrap();
        }
    }
}

struct Running {
    child: Child,
    /// The highest mark that the child was promised.
    promised: Arc<AtomicU64>,
    reader: JoinHandle<()>,
}

impl Running {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lsm::tests::crash::child", "--ignored", "--nocapture"])
            .env(DIR, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let promised = Arc::new(AtomicU64::new(0));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let shared = promised.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(mark) = line.strip_prefix("flushed ") {
                    shared.store(mark.parse().unwrap(), Ordering::Release);
                }
            }
        });
        Self {
            child,
            promised,
            reader,
        }
    }

    fn promised(&self) -> u64 {
        self.promised.load(Ordering::Acquire)
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .arg(signal)
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Kills it and returns what it was promised.
    fn kill(mut self) -> u64 {
        assert!(
            self.child.try_wait().unwrap().is_none(),
            "the child ended by itself"
        );
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.join().unwrap();
        self.promised.load(Ordering::Acquire)
    }
}

/// Opens a directory and compares it with the batches up to its mark; `model` holds those up to `before`.
fn check_prefix(dir: &Path, model: &mut Model, before: u64) -> u64 {
    let store = LsmStore::open(dir, small()).unwrap();
    let found = mark(&store);
    assert_eq!(store.flushed_mark(), found);
    assert!(found >= before, "went back from {before} to {found}");
    replay(model, before + 1..=found);
    assert_eq!(&all(&store).unwrap(), model);
    store.scrub(|_| ()).unwrap();
    found
}

#[test]
fn a_killed_store_reopens_to_a_prefix() {
    let rounds = std::env::var(ROUNDS).map_or(10, |rounds| rounds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    drop(LsmStore::create(dir.path(), small()).unwrap());
    let mut rng = Rng::new(11);
    let mut model = Model::new();
    let mut last = 0;
    for _ in 0..rounds {
        let child = Running::start(dir.path());
        std::thread::sleep(Duration::from_millis(20 + rng.below(300)));
        let promised = child.kill();
        let found = check_prefix(dir.path(), &mut model, last);
        assert!(found >= promised, "{promised} was promised, {found} is there");
        last = found;
    }
    assert!(last > 0, "no child ever flushed");
}

#[test]
fn a_copy_taken_at_any_moment_reopens_to_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    drop(LsmStore::create(dir.path(), small()).unwrap());
    let child = Running::start(dir.path());
    let mut rng = Rng::new(13);
    let mut model = Model::new();
    let mut last = 0;
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(5 + rng.below(60)));
        let copy = tempfile::tempdir().unwrap();
        child.signal("-STOP");
        let promised = child.promised();
        copy_dir(dir.path(), copy.path());
        child.signal("-CONT");
        let found = check_prefix(copy.path(), &mut model, last);
        assert!(found >= promised, "{promised} was promised, {found} is there");
        last = found;
    }
    child.kill();
    assert!(last > 0, "the child never flushed");
}
