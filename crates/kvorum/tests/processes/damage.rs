//! Disks that rot and disks that fill up: nothing acknowledged is lost, and a person is told what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kvorum_client::proto::etcd::DeleteRangeRequest;
use kvorum_client::{Client, Error, Options};
use tokio::process::Command;

use crate::cluster::{Cluster, Member, PATIENCE, turn};
use crate::program::{Ran, eventually};

/// The files of a directory with their content.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

#[tokio::test]
async fn a_rotten_log_record_stops_the_member_and_is_not_cut() {
    let mut cluster = Cluster::start(1, &[]).await;
    let client = cluster.members[0].client();
    for n in 0..50 {
        client
            .put(format!("key-{n:02}"), format!("value-number-{n:02}"))
            .await
            .unwrap();
    }
    cluster.members[0].kill().await;
    let log = cluster.members[0].data_dir.join("log");
    let (path, mut bytes) = content(&log)
        .into_iter()
        .find(|(_, bytes)| bytes.windows(15).any(|window| window == b"value-number-20"))
        .expect("the record is in the log");
    let at = bytes
        .windows(15)
        .position(|window| window == b"value-number-20")
        .unwrap();
    bytes[at] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    let before = content(&log);

    let refused = cluster.members[0].refused(&[]).await;
    refused.failed(1, &["corrupt", "replace"]);
    for (path, bytes) in before {
        let name = path.file_name().unwrap().to_owned();
        if name == "lock" {
            continue;
        }
        assert!(fs::read(&path).unwrap() == bytes, "{name:?} was changed");
    }

    // The bit set right, all is well again: nothing had been thrown away.
    bytes[at] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    cluster.members[0].start();
    cluster.members[0].wait_for_status().await;
    // Answered once everything that was acknowledged is applied again.
    cluster.members[0].client().get("any").await.unwrap();
    assert_eq!(cluster.members[0].local_records("key-").await.len(), 50);
}

/// A program with its arguments in a mount namespace of its own, where `dir` is a small file system in memory: the
/// mount goes with the process, and is reached from outside through `/proc/PID/root`.
fn on_small_disk(dir: &Path, mebibytes: u32, program: &std::process::Command) -> Command {
    let mount = format!("mount -t tmpfs -o size={mebibytes}m tmpfs \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["sh", "-c", &mount]).arg(dir);
    command.arg(program.get_program()).args(program.get_args());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Makes the directory, and says whether this machine lets us mount there.
async fn can_mount(dir: &Path) -> bool {
    fs::create_dir_all(dir).unwrap();
    let probe = on_small_disk(dir, 1, &std::process::Command::new("true"))
        .output()
        .await;
    match probe {
        Ok(output) if output.status.success() => true,
        other => {
            eprintln!("skipped: no file system can be mounted here: {other:?}");
            false
        }
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_space() {
    let _turn = turn().await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut member = Member::new(
        "n1",
        dir.path(),
        &["--memtable-bytes", "1MiB", "--log-bytes-max", "2MiB"],
    );
    if !can_mount(&member.data_dir).await {
        return;
    }
    member.start_as(on_small_disk(&member.data_dir, 256, member.command(&[]).as_std()));
    member.wait_for_status().await;
    let client = Client::new(Options {
        endpoints: vec![member.client.clone()],
        timeout: Duration::from_secs(5),
        ..Options::default()
    })
    .unwrap();
    client.put("before", "1").await.unwrap();
    let filler = PathBuf::from(format!(
        "/proc/{}/root{}/filler",
        member.pid(),
        member.data_dir.display()
    ));
    fill_up(&filler);

    // Claimed space serves for a while; then writes are refused, and nothing else is.
    let value = vec![b'v'; 64 * 1024];
    let mut acknowledged = 0;
    let refusal = loop {
        match client.put(format!("key-{acknowledged:05}"), value.clone()).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 16_384, "a gigabyte went onto a full disk");
    };
    match &refusal {
        Error::Rejected { message, .. } => assert!(message.contains("space"), "{message}"),
        other => panic!("a full disk is told otherwise: {other:?}"),
    }
    assert!(member.is_running());
    assert_eq!(&client.get("before").await.unwrap().unwrap().value[..], b"1");
    // Whoever makes room begins with a session of their own, which used to be refused.
    let request = DeleteRangeRequest {
        key: "before".into(),
        ..DeleteRangeRequest::default()
    };
    assert_eq!(member.client().delete(request).await.unwrap().deleted, 1);
    eventually("the status tells of the full disk", PATIENCE, async || {
        let status = member.status().await?;
        status
            .errors
            .iter()
            .any(|error| error.contains("disk is full"))
            .then_some(())
    })
    .await;

    fs::remove_file(&filler).unwrap();
    eventually("writes are taken again", PATIENCE, async || {
        client.put("after", "1").await.is_ok().then_some(())
    })
    .await;
    let records = member.local_records("key-").await;
    assert!(
        records.len() >= acknowledged,
        "{} of {acknowledged} are left",
        records.len()
    );
    assert!(records[..acknowledged].iter().all(|kv| kv.value == value));
    member.kill().await;
}

#[tokio::test]
async fn a_disk_that_is_too_small_to_begin_on() {
    let _turn = turn().await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let member = Member::new("n1", dir.path(), &[]);
    if !can_mount(&member.data_dir).await {
        return;
    }
    let ran = Ran::of(on_small_disk(&member.data_dir, 8, member.command(&[]).as_std())).await;
    let words = ["not enough space in", "needs 129 MiB free", "then start it again"];
    ran.failed(1, &words);
    // As much as it says is enough.
    let mut member = Member::new("n2", dir.path(), &[]);
    fs::create_dir(&member.data_dir).unwrap();
    member.start_as(on_small_disk(&member.data_dir, 129, member.command(&[]).as_std()));
    member.wait_for_status().await;
    member.kill().await;
}

/// Started with a full disk, a member serves what it has, refuses writes, and goes on when there is space.
#[tokio::test]
async fn a_full_disk_does_not_keep_a_member_from_starting() {
    let _turn = turn().await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut member = Member::new("n1", dir.path(), &[]);
    if !can_mount(&member.data_dir).await {
        return;
    }
    // A shell that starts the member again in the same file system when it is killed.
    let serve = member.command(&[]);
    let mut twice = std::process::Command::new("sh");
    twice.args(["-c", "\"$@\"; exec \"$@\"", "sh"]);
    twice
        .arg(serve.as_std().get_program())
        .args(serve.as_std().get_args());
    member.start_as(on_small_disk(&member.data_dir, 256, &twice));
    member.wait_for_status().await;
    let client = member.client();
    client.put("before", "1").await.unwrap();
    let root = format!("/proc/{}/root{}", member.pid(), member.data_dir.display());
    let filler = PathBuf::from(&root).join("filler");
    fill_up(&filler);
    let holder = || fs::read_to_string(Path::new(&root).join("lock")).unwrap();
    let first = holder();
    let pid = rustix::process::Pid::from_raw(first.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("the member is started again", PATIENCE, async || {
        (holder() != first).then_some(())
    })
    .await;
    member.wait_for_status().await;

    assert_eq!(&client.get("before").await.unwrap().unwrap().value[..], b"1");
    eventually("writes are refused", PATIENCE, async || {
        match client.put("full", "1").await {
            Err(Error::Rejected { message, .. }) if message.contains("space") => Some(()),
            _ => None,
        }
    })
    .await;
    fs::remove_file(&filler).unwrap();
    eventually("writes are taken again", PATIENCE, async || {
        client.put("after", "1").await.is_ok().then_some(())
    })
    .await;
    let log = fs::read_to_string(&member.log).unwrap();
    assert!(
        log.contains("disk is full: ")
            && log.contains(" MiB must be free in ")
            && log.contains("has space again"),
        "{log}"
    );
    member.kill().await;
}

/// What is damaged is named with its path, and what to do; nothing is changed, and put back it serves.
#[tokio::test]
async fn damage_beside_the_log_is_named_with_what_to_do() {
    let mut cluster = Cluster::start(1, &[]).await;
    let member = &mut cluster.members[0];
    member.client().put("key-1", "1").await.unwrap();
    member.kill().await;
    let remedy = ["kvorum member replace n1", "empty directory and --join"];

    let store = member.data_dir.join("store");
    let shown = store.display().to_string();
    for file in ["CURRENT", "g-1/MANIFEST"] {
        let path = store.join(file);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, b"x").unwrap();
        let refused = member.refused(&[]).await;
        let name = path.file_name().unwrap().to_str().unwrap();
        refused.failed(1, &[&shown, "damaged", name, remedy[0], remedy[1]]);
        fs::write(&path, whole).unwrap();
    }

    let identity = member.data_dir.join("identity");
    let whole = fs::read(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    let refused = member.refused(&[]).await;
    refused.failed(1, &["`identity` is gone", remedy[0], remedy[1]]);
    fs::write(&identity, whole).unwrap();

    fs::remove_file(member.data_dir.join("log/vote")).unwrap();
    member.start();
    member.wait_for_status().await;
    let log = fs::read_to_string(&member.log).unwrap();
    assert!(log.contains("copy of the vote") && log.contains("WARN"), "{log}");
    let kept = member.client().get("key-1").await.unwrap().unwrap();
    assert_eq!(&kept.value[..], b"1");
}

/// Somebody's directory that is named by mistake is left as it is: no file is made, no right changed.
#[tokio::test]
async fn a_directory_of_somebody_else_is_not_touched() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let member = Member::new("n1", dir.path(), &[]);
    fs::create_dir(&member.data_dir).unwrap();
    fs::write(member.data_dir.join("notes.txt"), "mine").unwrap();
    fs::set_permissions(&member.data_dir, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = member.refused(&[]).await;
    refused.failed(1, &["holds `notes.txt`", "empty --data-dir"]);
    assert_eq!(fs::read_dir(&member.data_dir).unwrap().count(), 1);
    let mode = fs::metadata(&member.data_dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

/// Once the rebuilding was done in silence, and nobody learnt that a directory had gone.
#[tokio::test]
async fn a_store_that_is_gone_is_rebuilt_from_a_complete_log_and_the_log_says_so() {
    let mut cluster = Cluster::start(1, &[]).await;
    let member = &mut cluster.members[0];
    for n in 0..20 {
        member.client().put(format!("key-{n:02}"), "1").await.unwrap();
    }
    let told = |member: &Member| {
        fs::read_to_string(&member.log)
            .unwrap()
            .contains("is rebuilt from it")
    };
    assert!(!told(member), "a new member has no store to miss");
    member.kill().await;
    fs::remove_dir_all(member.data_dir.join("store")).unwrap();
    member.start();
    member.wait_for_status().await;
    member.client().get("any").await.unwrap();
    assert_eq!(member.local_records("key-").await.len(), 20);
    assert!(told(member));
}

/// Takes all space that is left.
fn fill_up(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut size = zeros.len();
    while size > 0 {
        match file.write_all(&zeros[..size]) {
            Ok(()) => {}
            Err(_) => size /= 2,
        }
    }
}
