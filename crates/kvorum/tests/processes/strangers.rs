//! A directory that belongs to another cluster of the same names, addresses and token.

use std::fs;

use crate::cluster::Cluster;

/// Somebody brings the directory of another installation back from a backup, say.
#[tokio::test]
async fn a_directory_of_another_cluster_ends_its_member_and_no_other() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.members[0].client().put("of", "the first").await.unwrap();
    cluster.converge().await;
    // All of them first: a founder that comes back empty is no founder to those of before.
    for member in &mut cluster.members {
        member.kill().await;
        fs::rename(&member.data_dir, member.data_dir.with_extension("first")).unwrap();
    }
    for member in &mut cluster.members {
        member.start();
    }
    for member in &mut cluster.members {
        member.wait_for_status().await;
    }
    cluster.leader().await;
    cluster.members[0].client().put("of", "the second").await.unwrap();
    cluster.converge().await;

    let stranger = &mut cluster.members[2];
    stranger.kill().await;
    fs::rename(&stranger.data_dir, stranger.data_dir.with_extension("second")).unwrap();
    fs::rename(stranger.data_dir.with_extension("first"), &stranger.data_dir).unwrap();
    let words = ["n3", "belongs to cluster", "check --data-dir"];
    stranger.refused(&[]).await.failed(1, &words);

    // Those whom the stranger called on did not notice, and its own place takes it.
    let stranger = &mut cluster.members[2];
    fs::remove_dir_all(&stranger.data_dir).unwrap();
    fs::rename(stranger.data_dir.with_extension("second"), &stranger.data_dir).unwrap();
    stranger.start();
    stranger.wait_for_status().await;
    cluster.check_agreement().await;
    let seen = cluster.members[2].client().get("of").await.unwrap().unwrap();
    assert_eq!(&seen.value[..], b"the second");
}
