//! A snapshot saved from a cluster becomes a new cluster of one, with the keys and history and without the members.

use kvorum_client::proto::etcd;

use crate::cluster::{Cluster, Member, PATIENCE, client};
use crate::program::{eventually, run};

#[tokio::test]
async fn a_saved_snapshot_becomes_a_new_cluster() {
    let cluster = Cluster::start(3, &[]).await;
    let old = client(&cluster.endpoints(0));
    for n in 0..50 {
        old.put(format!("k{n}"), vec![b'v'; 3000]).await.unwrap();
    }
    let changed = old.put("k0", "new").await.unwrap().header.unwrap().revision;
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("saved");
    let (file_arg, endpoints) = (file.to_str().unwrap(), cluster.endpoints(0).join(","));
    run(&["snapshot", "save", file_arg, "--endpoints", &endpoints]).await;

    let mut member = Member::new("anew", place.path(), &[]);
    let dir = member.data_dir.to_str().unwrap().to_owned();
    let restore = ["restore", file_arg, "--data-dir", &dir, "--name", "anew"];

    // A damaged file leaves nothing behind.
    let whole = std::fs::read(&file).unwrap();
    for damaged in [
        whole[..whole.len() / 2].to_vec(),
        [&whole[..], b"x"].concat(),
        b"no".to_vec(),
    ] {
        std::fs::write(&file, damaged).unwrap();
        crate::program::try_run(&restore)
            .await
            .failed(1, &["save it again"]);
        assert!(!member.data_dir.exists());
    }
    std::fs::write(&file, &whole).unwrap();
    run(&restore).await;
    crate::program::try_run(&restore)
        .await
        .failed(1, &["is there already"]);

    member.start();
    let status = eventually("it leads alone", PATIENCE, async || {
        let status = member.status().await?;
        (status.leader_id == status.member_id && status.members.len() == 1).then_some(status)
    })
    .await;
    assert_eq!((status.revision, status.keys), (changed, 50));
    let uuid = cluster.members[0].status().await.unwrap().cluster_uuid;
    assert_ne!(status.cluster_uuid, uuid, "it is another cluster");
    let anew = member.client();
    let before = etcd::RangeRequest {
        key: "k0".into(),
        revision: changed - 1,
        ..Default::default()
    };
    assert_eq!(anew.range(before).await.unwrap().kvs[0].value.len(), 3000);
    anew.put("after", "restore").await.unwrap();

    // Once more, now from its own log.
    member.kill().await;
    member.start();
    member.wait_for_status().await;
    let found = member.client().get("after").await.unwrap().unwrap();
    assert_eq!(&found.value[..], b"restore");
}
