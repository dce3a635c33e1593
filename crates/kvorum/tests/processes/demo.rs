//! The demo: three members by one command, gone without a trace, whatever ends it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use crate::cluster::{PATIENCE, turn};
use crate::http::request;
use crate::program::{command, eventually, free_port};

/// Longest that the demo's members may take to go after it.
const GONE: Duration = Duration::from_secs(20);

struct Demo {
    process: Child,
    base_port: u16,
    /// Where its temporary directory is made.
    _tmp: TempDir,
    data: PathBuf,
}

impl Demo {
    /// A demo that has introduced itself.
    async fn start() -> Demo {
        let tmp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let base_port = free_port();
        let mut process = command(["demo", "--no-prompt", "--base-port", &base_port.to_string()])
            .env("TMPDIR", tmp.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut told = String::new();
        let introduction = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                told.push_str(&line);
                told.push('\n');
                if line.contains("Runs until") {
                    return;
                }
            }
            panic!("the demo ended: {told}");
        };
        timeout(PATIENCE, introduction).await.expect("the demo starts");
        // What it prints from now on is read, so that it never waits.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        assert!(told.contains("leader"), "{told}");
        for (n, peer) in [(1, 101), (2, 102), (3, 103)] {
            assert!(told.contains(&format!("127.0.0.1:{}", base_port + n)), "{told}");
            assert!(
                told.contains(&format!("127.0.0.1:{}", base_port + peer)),
                "{told}"
            );
        }
        let mut made = std::fs::read_dir(tmp.path()).unwrap();
        let data = made.next().expect("it made a directory").unwrap().path();
        assert!(told.contains(data.to_str().unwrap()), "{told}");
        Demo {
            process,
            base_port,
            _tmp: tmp,
            data,
        }
    }

    fn member(&self, n: u16) -> String {
        format!("127.0.0.1:{}", self.base_port + n)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.process.id().expect("it runs");
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    /// Waits until nobody listens on the members' ports.
    async fn members_are_gone(&self) {
        for n in 1..=3 {
            let address = self.member(n);
            let what = format!("{address} is closed");
            eventually(&what, GONE, async || {
                tokio::net::TcpStream::connect(&address)
                    .await
                    .is_err()
                    .then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn the_demo_serves_and_leaves_no_trace() {
    let _turn = turn().await;
    let mut demo = Demo::start().await;
    let body = br#"{"key":"hello","value":"world"}"#;
    let (status, answer) = request("POST", &demo.member(1), "/kv", body).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = request("GET", &demo.member(2), "/kv/hello", b"").await.unwrap();
    assert_eq!((status, answer.contains("world")), (200, true), "{answer}");
    demo.signal(Signal::INT);
    let ended = timeout(GONE, demo.process.wait())
        .await
        .expect("the demo ends")
        .unwrap();
    assert_eq!(ended.code(), Some(0));
    demo.members_are_gone().await;
    assert!(!demo.data.exists(), "the demo's directory is still there");
}

#[tokio::test]
async fn the_members_of_a_killed_demo_end() {
    let _turn = turn().await;
    let mut demo = Demo::start().await;
    demo.process.kill().await.unwrap();
    demo.members_are_gone().await;
    // Their directories are given back too: the last thing that a member does.
    for n in 1..=3 {
        let lock = demo.data.join(format!("node-{n}")).join("lock");
        eventually("the member's directory is unlocked", GONE, async || {
            let file = std::fs::File::open(&lock).unwrap();
            file.try_lock().is_ok().then_some(())
        })
        .await;
    }
}
