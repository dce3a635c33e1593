//! What people get wrong: one line that says what is wrong and what to do, an exit code that tells scripts,
//! and nothing changed.

use std::fs;

use kvorum_client::{Code, Error};

use crate::cluster::{Cluster, Member, PATIENCE};
use crate::http::request;
use crate::program::{Ran, command, eventually, free_port, run, try_run};

/// Malformed arguments, configuration or input.
const USAGE: i32 = 2;
/// Refused or failed.
const FAILED: i32 = 1;
/// No server answered.
const UNAVAILABLE: i32 = 5;

const KEY_BYTES_MAX: usize = 4096;
const REQUEST_BYTES_MAX: usize = 3 << 19;

#[tokio::test]
async fn mistakes_at_the_command_line() {
    let ran = try_run(&["put", "k", "v", "--bogus"]).await;
    ran.failed(USAGE, &["--bogus", "see `kvorum put --help`"]);
    let ran = try_run(&["frobnicate"]).await;
    ran.failed(USAGE, &["frobnicate", "--help"]);
    let ran = try_run(&["put", "", "v"]).await;
    ran.failed(USAGE, &["key is empty", "at least one byte"]);
    let ran = try_run(&["serve", "--listen-client", "nonsense"]).await;
    ran.failed(USAGE, &["listen-client", "nonsense"]);
    let ran = try_run(&["ui", "--listen", "0.0.0.0:0"]).await;
    ran.failed(USAGE, &["0.0.0.0:0", "without encryption", "--allow-plaintext"]);
    let nobody = format!("127.0.0.1:{}", free_port());
    let ran = try_run(&["get", "k", "--endpoints", &nobody, "--timeout", "500ms"]).await;
    ran.failed(UNAVAILABLE, &[&nobody, "check --endpoints"]);
    let ran = try_run(&["put", "k", "v", "--endpoints", &nobody, "--timeout", "500ms"]).await;
    ran.failed(UNAVAILABLE, &[&nobody, "check --endpoints"]);
    let ran = try_run(&["get", "k", "--endpoints", &nobody, "--timeout", "1500ms"]).await;
    ran.failed(UNAVAILABLE, &[&nobody]);
    let told =
        format!("no answer yet: cannot connect to {nobody}: connection refused; trying for 1s500ms in all");
    assert_eq!(ran.stderr.matches(&told).count(), 1, "{}", ran.stderr);
    let ran = try_run(&["import", "/nowhere.jsonl", "--endpoints", &nobody]).await;
    ran.failed(USAGE, &["/nowhere.jsonl", "no such file"]);
}

#[tokio::test]
async fn requests_that_no_member_takes() {
    let cluster = Cluster::start(1, &[]).await;
    let member = &cluster.members[0];
    let client = member.client();
    let before = member.status().await.unwrap().revision;
    let rejected = async |key: Vec<u8>, value: Vec<u8>, words: &str| match client.put(key, value).await {
        Err(Error::Rejected { code, message }) => {
            assert!(message.contains(words), "{message}");
            assert_eq!(code, Code::InvalidArgument, "{message}");
        }
        other => panic!("{words}: {other:?}"),
    };
    rejected(vec![], vec![1], "key is not provided").await;
    rejected(vec![b'k'; KEY_BYTES_MAX + 1], vec![1], "limit of 4096").await;
    rejected(
        b"k".to_vec(),
        vec![0; REQUEST_BYTES_MAX + 1],
        "request is too large",
    )
    .await;
    client
        .put(vec![b'k'; KEY_BYTES_MAX], vec![0; 1 << 20])
        .await
        .unwrap();

    let key = "k".repeat(KEY_BYTES_MAX + 1);
    let ran = try_run(&["put", &key, "v", "--endpoints", &member.client]).await;
    ran.failed(FAILED, &["limit of 4096"]);

    let file = cluster.dir.path().join("large");
    fs::write(&file, vec![b'v'; REQUEST_BYTES_MAX + 1]).unwrap();
    let mut put = command(["put", "k", "--endpoints", &member.client]);
    put.stdin(fs::File::open(&file).unwrap());
    let ran = Ran::of(put).await;
    ran.failed(FAILED, &["request is too large", "--request-bytes-max", "1.5MiB"]);

    let post = async |body: &[u8]| request("POST", &member.client, "/kv", body).await.unwrap();
    let (status, answer) = post(br#"{"key":"","value":"v"}"#).await;
    assert_eq!((status, answer.contains("empty key")), (400, true), "{answer}");
    let (status, answer) = post(b"{\"key\":\"\xff\",\"value\":\"v\"}").await;
    assert_eq!((status, answer.contains("unicode")), (400, true), "{answer}");
    let (status, answer) = post(b"{\"key\"").await;
    assert_eq!((status, answer.contains("not JSON")), (400, true), "{answer}");
    let large = format!(r#"{{"key":"k","value":"{}"}}"#, "v".repeat(REQUEST_BYTES_MAX + 1));
    let (status, answer) = post(large.as_bytes()).await;
    let limit = format!("the limit is {REQUEST_BYTES_MAX} bytes (--request-bytes-max)");
    assert_eq!((status, answer.contains(&limit)), (400, true), "{answer}");
    let (status, answer) = request("GET", &member.client, "/kv/%ff", b"").await.unwrap();
    assert_eq!((status, answer.contains("UTF-8")), (400, true), "{answer}");

    let after = member.status().await.unwrap().revision;
    assert_eq!(after, before + 1, "only the one good write was applied");
}

#[tokio::test]
async fn what_etcds_words_leave_open() {
    let cluster = Cluster::start(1, &[]).await;
    let member = &cluster.members[0];
    let client = member.client();
    for value in ["1", "2", "3"] {
        client.put("k", value).await.unwrap();
    }
    client.compact(3, true).await.unwrap();
    let get = async |revision: &str, endpoint: &str| {
        try_run(&["get", "k", "--rev", revision, "--endpoints", endpoint]).await
    };
    get("99", &member.client)
        .await
        .failed(FAILED, &["revision 99 is in the future: the newest is 4"]);
    get("2", &member.client)
        .await
        .failed(FAILED, &["revision 2 is compacted: revisions 3 to 4 can be read"]);
    let words = "this is a member's peer port; clients use its client port (--listen-client)";
    get("0", &member.peer)
        .await
        .failed(FAILED, &["check --endpoints", words]);
    let ran = try_run(&["put", "k", "v", "--endpoints", &member.peer]).await;
    ran.failed(FAILED, &["check --endpoints", words]);
    let ran = try_run(&["status", "--endpoints", &member.peer]).await;
    ran.failed(UNAVAILABLE, &["no server says how it is"]);
    assert_eq!(ran.stdout.matches(words).count(), 1, "{}", ran.stdout);
}

/// A member that is alone answers nothing but local reads. Once a caller learnt no more than that its time was over.
#[tokio::test]
async fn a_member_that_is_cut_off_says_so() {
    let mut cluster = Cluster::start(2, &[]).await;
    cluster.members[1].kill().await;
    let alone = &cluster.members[0].client;
    for arguments in [&["get", "k"][..], &["put", "k", "v"]] {
        let more = ["--endpoints", alone, "--timeout", "5s"];
        let ran = try_run(&[arguments, &more].concat()).await;
        let words = format!("n1 ({alone}) is cut off from the majority of the members");
        ran.failed(UNAVAILABLE, &[&words, "start those that are down"]);
    }
    let log = fs::read_to_string(&cluster.members[0].log).unwrap();
    assert_eq!(log.matches("ready to serve client requests").count(), 1, "{log}");
    assert_eq!(log.matches("no leader is known").count(), 1, "{log}");
    // Alone from its start, it listens, and does not say more.
    cluster.members[0].kill().await;
    fs::remove_file(&cluster.members[0].log).unwrap();
    cluster.members[0].start();
    cluster.members[0].wait_for_status().await;
    let log = eventually("it says that it listens", PATIENCE, async || {
        let log = fs::read_to_string(&cluster.members[0].log).unwrap();
        log.contains("listening").then_some(log)
    })
    .await;
    assert!(!log.contains("ready to serve"), "{log}");
}

#[tokio::test]
async fn a_malformed_file_is_named_by_its_line() {
    let cluster = Cluster::start(1, &[]).await;
    let endpoint = &cluster.members[0].client;
    let file = cluster.dir.path().join("bad.jsonl");
    let path = file.to_str().unwrap();
    let good = br#"{"key":"good","value":"1"}"#;
    let long = format!(r#"{{"key":"{}","value":"1"}}"#, "k".repeat(KEY_BYTES_MAX + 1));
    let cases: [(&[u8], &str); 6] = [
        (b"not json", "line 3"),
        (br#"{"key":"k"}"#, "line 3: it has neither `value`"),
        (br#"{"key":"","value":"1"}"#, "line 3"),
        (b"{\"key\":\"\xff\",\"value\":\"1\"}", "line 3"),
        (br#"{"key":"k","value_b64":"*"}"#, "line 3"),
        (long.as_bytes(), "line 3"),
    ];
    for (bad, words) in cases {
        fs::write(&file, [good, &b"\n\n"[..], bad, b"\n"].concat()).unwrap();
        let ran = try_run(&["import", path, "--endpoints", endpoint]).await;
        ran.failed(USAGE, &["import stopped, 1 record written: line 3", words]);
    }
    let kept = run(&["get", "good", "--endpoints", endpoint]).await;
    assert!(
        kept.contains('1'),
        "what stands before the bad line is written: {kept}"
    );
}

#[tokio::test]
async fn a_member_that_cannot_have_what_it_asks_for() {
    let mut cluster = Cluster::start(1, &[]).await;
    let path = cluster.dir.path().to_owned();
    cluster.members[0].client().put("k", "v").await.unwrap();

    // Ports.
    let running = &cluster.members[0];
    for flag in ["--listen-client", "--listen-peer"] {
        let mut newcomer = Member::new("newcomer", &path, &[]);
        match flag {
            "--listen-client" => newcomer.client.clone_from(&running.client),
            _ => newcomer.peer.clone_from(&running.peer),
        }
        let ran = newcomer.refused(&[]).await;
        ran.failed(
            FAILED,
            &["in use by another process", "choose another port", flag],
        );
        assert!(!newcomer.data_dir.exists(), "it left a directory behind");
    }

    // Directories.
    let mut second = Member::new(&running.name, &path, &[]);
    let pid = running.pid().to_string();
    second
        .refused(&[])
        .await
        .failed(FAILED, &["in use by process", &pid, "another --data-dir"]);
    cluster.members[0].kill().await;
    second.name = "other".into();
    second
        .refused(&[])
        .await
        .failed(FAILED, &["belongs to member `n1`, not `other`", "--data-dir"]);
    second.name = "n1".into();
    second
        .refused(&["--cluster-token", "other"])
        .await
        .failed(FAILED, &["token `kvorum`, not `other`", "--data-dir"]);
    second.name = "strange".into();
    second.data_dir = path.join("strange");
    fs::create_dir(&second.data_dir).unwrap();
    fs::write(second.data_dir.join("letter.txt"), "dear diary").unwrap();
    second
        .refused(&[])
        .await
        .failed(FAILED, &["letter.txt", "choose an empty --data-dir"]);
    second.data_dir = path.join("file");
    fs::write(&second.data_dir, "a file").unwrap();
    second
        .refused(&[])
        .await
        .failed(FAILED, &["file is in its place", "another --data-dir"]);
    forbidden_directory(&mut second, &path).await;

    // None of it harmed the member.
    cluster.members[0].start();
    cluster.members[0].wait_for_status().await;
    cluster.leader().await;
    let found = cluster.members[0].client().get("k").await.unwrap().unwrap();
    assert_eq!(&found.value[..], b"v");
}

/// A directory in which this user may not write. Root may everywhere, so under root there is nothing to see.
async fn forbidden_directory(member: &mut Member, path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let parent = path.join("forbidden");
    fs::create_dir(&parent).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o500)).unwrap();
    member.data_dir = parent.join("data");
    if fs::create_dir(parent.join("probe")).is_ok() {
        eprintln!("skipped: this user may write in a directory of mode 0500");
    } else {
        member
            .refused(&[])
            .await
            .failed(FAILED, &["forbidden", "another --data-dir"]);
    }
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o700)).unwrap();
}
