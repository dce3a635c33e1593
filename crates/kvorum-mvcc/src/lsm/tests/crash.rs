//! A child process writes and is killed, or stopped and copied, at random moments.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::*;

const DIR: &str = "KVORUM_LSM_TEST_DIR";
const ROUNDS: &str = "KVORUM_LSM_KILL_ROUNDS";
/// A child that flushes nothing for so long never will.
const PATIENCE: Duration = Duration::from_secs(120);

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
    reader: Option<JoinHandle<()>>,
}

/// A test that failed leaves no child behind that writes into a directory which is gone.
impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
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
            reader: Some(reader),
        }
    }

    fn promised(&self) -> u64 {
        self.promised.load(Ordering::Acquire)
    }

    /// Lets it come to a flush behind `mark`, and then as much further as `more` takes it.
    fn run_beyond(&mut self, mark: u64, more: Duration) {
        let deadline = Instant::now() + PATIENCE;
        while self.promised() <= mark {
            assert!(Instant::now() < deadline, "nothing was flushed behind {mark}");
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the child ended by itself: {ended:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(more);
    }

    /// Stops it. On return none of its threads runs: a signal that is sent has not yet arrived, and a directory that
    /// changes while it is copied is no moment of the store.
    fn stop(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "the child ended by itself: {status:?}");
    }

    fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Kills it and returns what it was promised.
    fn kill(mut self) -> u64 {
        assert!(
            self.child.try_wait().unwrap().is_none(),
            "the child ended by itself"
        );
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.take().expect("joined once").join().unwrap();
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
        let mut child = Running::start(dir.path());
        child.run_beyond(last, Duration::from_millis(rng.below(300)));
        let promised = child.kill();
        let found = check_prefix(dir.path(), &mut model, last);
        assert!(found >= promised, "{promised} was promised, {found} is there");
        last = found;
    }
}

#[test]
fn a_copy_taken_at_any_moment_reopens_to_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    drop(LsmStore::create(dir.path(), small()).unwrap());
    let mut child = Running::start(dir.path());
    let mut rng = Rng::new(13);
    let mut model = Model::new();
    let mut last = 0;
    for _ in 0..25 {
        child.run_beyond(last, Duration::from_millis(rng.below(60)));
        let copy = tempfile::tempdir().unwrap();
        child.stop();
        let promised = child.promised();
        copy_dir(dir.path(), copy.path());
        child.go_on();
        let found = check_prefix(copy.path(), &mut model, last);
        assert!(found >= promised, "{promised} was promised, {found} is there");
        last = found;
    }
    child.kill();
}
