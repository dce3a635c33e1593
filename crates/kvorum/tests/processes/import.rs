//! A file of real data is imported while the leader dies; every member then exports exactly that file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::cluster::{Cluster, PATIENCE};
use crate::program::{command, eventually, run};

const LINES: usize = 30_000;

/// Paths below /usr with their sizes and times, in no order of keys; made up ones where there are too few.
fn real_data() -> BTreeMap<String, String> {
    let mut records = BTreeMap::new();
    let mut pending = vec![PathBuf::from("/usr")];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let (Some(key), Ok(metadata)) = (path.to_str(), path.symlink_metadata()) else {
                continue;
            };
            if records.len() == LINES {
                return records;
            }
            let value = format!("{} {}", metadata.size(), metadata.mtime());
            records.insert(key.to_owned(), value);
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    for n in records.len()..LINES {
        records.insert(format!("/made/up/{n}"), format!("{n} \"quoted\" ü\n"));
    }
    records
}

/// Writes them in an order that is not theirs.
fn write_file(path: &Path, records: &BTreeMap<String, String>) {
    let mut lines: Vec<String> = records
        .iter()
        .map(|(key, value)| json!({"key": key, "value": value}).to_string())
        .collect();
    fastrand::Rng::with_seed(7).shuffle(&mut lines);
    fs::write(path, lines.join("\n")).unwrap();
}

#[tokio::test]
async fn an_import_survives_the_death_of_the_leader() {
    let records = real_data();
    assert_eq!(records.len(), LINES);
    let mut cluster = Cluster::start(3, &[]).await;
    let file = cluster.dir.path().join("import.jsonl");
    write_file(&file, &records);
    let endpoints = cluster.endpoints(0).join(",");
    let leader = cluster.leader().await;
    // Small batches: there must be a middle.
    let mut import = command(["import", "--batch", "4", "--endpoints", &endpoints])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("a third is imported", PATIENCE, async || {
        let status = cluster.members[leader].status().await?;
        (status.keys as usize > LINES / 3).then_some(())
    })
    .await;
    cluster.members[leader].kill().await;
    assert!(
        import.try_wait().unwrap().is_none(),
        "the import was over too early"
    );
    let ended = tokio::time::timeout(PATIENCE, import.wait_with_output()).await;
    let ended = ended.expect("the import ends").unwrap();
    assert!(ended.status.success(), "{ended:?}");
    cluster.members[leader].start();
    cluster.members[leader].wait_for_status().await;
    cluster.check_agreement().await;

    for member in &cluster.members {
        let exported = run(&["export", "--serializable", "--endpoints", &member.client]).await;
        let exported: Vec<(String, String)> = exported.lines().map(parse).collect();
        // The map's order is the order of keys.
        assert!(
            exported.iter().map(|(key, value)| (key, value)).eq(&records),
            "the export of {} is not the file",
            member.name
        );
    }
}

fn parse(line: &str) -> (String, String) {
    let line: Value = serde_json::from_str(line).unwrap();
    let text = |name: &str| line[name].as_str().unwrap().to_owned();
    (text("key"), text("value"))
}
