//! The names that etcd's official dashboards and alerts read: all are on the page of a member in an etcd's place, with
//! values that move.

use std::collections::BTreeMap;

use crate::cluster::{Cluster, Member, PATIENCE, turn};
use crate::http::request;
use crate::place::{Words, command, settings};
use crate::program::eventually;

const NAMES: &str = "etcd_server_has_leader etcd_server_is_leader etcd_server_is_learner \
    etcd_server_leader_changes_seen_total etcd_server_proposals_committed_total etcd_server_proposals_applied_total \
    etcd_server_proposals_failed_total etcd_server_proposals_pending etcd_server_quota_backend_bytes etcd_server_id \
    etcd_server_version etcd_server_health_success etcd_server_health_failures \
    etcd_server_heartbeat_send_failures_total etcd_server_slow_apply_total etcd_server_slow_read_indexes_total \
    etcd_server_read_indexes_failed_total etcd_server_apply_duration_seconds_bucket \
    etcd_server_request_duration_seconds_bucket etcd_server_client_requests_total \
    etcd_disk_wal_fsync_duration_seconds_bucket etcd_disk_backend_commit_duration_seconds_bucket \
    etcd_mvcc_db_total_size_in_bytes etcd_mvcc_db_total_size_in_use_in_bytes etcd_mvcc_put_total \
    etcd_mvcc_delete_total etcd_mvcc_range_total etcd_mvcc_txn_total \
    etcd_network_peer_round_trip_time_seconds_bucket etcd_network_peer_sent_bytes_total \
    etcd_network_peer_received_bytes_total etcd_network_peer_sent_failures_total \
    etcd_network_client_grpc_sent_bytes_total etcd_network_client_grpc_received_bytes_total \
    etcd_network_active_peers etcd_network_known_peers etcd_debugging_mvcc_keys_total etcd_debugging_mvcc_events_total \
    etcd_debugging_mvcc_pending_events_total etcd_debugging_mvcc_slow_watcher_total \
    etcd_debugging_mvcc_watcher_total etcd_debugging_mvcc_watch_stream_total etcd_debugging_mvcc_current_revision \
    etcd_debugging_mvcc_compact_revision etcd_debugging_lease_granted_total etcd_debugging_lease_revoked_total \
    etcd_debugging_lease_renewed_total etcd_debugging_lease_ttl_total_bucket etcd_cluster_version \
    grpc_server_started_total grpc_server_handled_total grpc_server_msg_sent_total grpc_server_msg_received_total \
    grpc_server_handling_seconds_bucket process_resident_memory_bytes os_fd_used os_fd_limit";

/// The samples of a member's page: name and labels, and the value.
async fn page(address: &str) -> BTreeMap<String, f64> {
    let (status, text) = request("GET", address, "/metrics", b"").await.unwrap();
    assert_eq!(status, 200);
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (sample, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            (
                sample.to_owned(),
                value.parse().unwrap_or_else(|_| panic!("{line}")),
            )
        })
        .collect()
}

/// The sum of all samples of a name with these labels among theirs.
fn sum(page: &BTreeMap<String, f64>, name: &str, labels: &str) -> f64 {
    page.iter()
        .filter(|(sample, _)| sample.split('{').next() == Some(name) && sample.contains(labels))
        .map(|(_, value)| value)
        .sum()
}

#[tokio::test]
async fn all_that_etcds_dashboards_read_is_there_and_true() {
    let (turn, dir) = (
        turn().await,
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
    );
    let mut members: Vec<Member> = (1..=3)
        .map(|n| Member::new(&format!("m{n}"), dir.path(), &[]))
        .collect();
    let founders: Vec<(String, String)> = members
        .iter()
        .map(|member| (member.name.clone(), member.peer.clone()))
        .collect();
    for member in &mut members {
        let more = [("metrics", "extensive"), ("quota-backend-bytes", "1073741824")];
        let start = settings(member, &founders, &more);
        member.start_as(command(dir.path(), Words::Flags, &start));
    }
    let mut cluster = Cluster::of(members, dir, turn);
    for member in &mut cluster.members {
        member.wait_for_status().await;
    }
    let leader = cluster.leader().await;
    let at = cluster.members[leader].client.clone();
    let client = cluster.members[leader].client();
    for n in 0..10 {
        client.put(format!("k{n}"), "v").await.unwrap();
        client.get(format!("k{n}")).await.unwrap();
    }
    assert_eq!(request("GET", &at, "/health", b"").await.unwrap().0, 200);
    let seen = eventually("both peers answered a heartbeat", PATIENCE, async || {
        let seen = page(&at).await;
        (sum(&seen, "etcd_network_peer_round_trip_time_seconds_count", "") >= 2.0).then_some(seen)
    })
    .await;
    let missing: Vec<&str> = NAMES
        .split_whitespace()
        .filter(|name| !seen.keys().any(|sample| sample.split('{').next() == Some(name)))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let value = |name: &str, labels: &str| sum(&seen, name, labels);
    for (name, labels, expected) in [
        ("etcd_server_has_leader", "", 1.0),
        ("etcd_server_is_leader", "", 1.0),
        ("etcd_server_is_learner", "", 0.0),
        ("etcd_server_quota_backend_bytes", "", 1_073_741_824.0),
        ("etcd_server_health_success", "", 1.0),
        ("etcd_server_health_failures", "", 0.0),
        ("etcd_mvcc_put_total", "", 10.0),
        ("etcd_debugging_mvcc_keys_total", "", 10.0),
        ("etcd_debugging_mvcc_current_revision", "", 11.0),
        ("etcd_network_known_peers", "", 2.0),
        ("etcd_network_active_peers", "", 2.0),
        ("etcd_cluster_version", "cluster_version=\"3.6\"", 1.0),
        (
            "grpc_server_msg_sent_total",
            "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\"",
            10.0,
        ),
        (
            "grpc_server_msg_received_total",
            "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\"",
            10.0,
        ),
        (
            "grpc_server_handling_seconds_count",
            "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\"",
            10.0,
        ),
        (
            "etcd_server_request_duration_seconds_count",
            "success=\"true\",type=\"Put\"",
            10.0,
        ),
    ] {
        assert_eq!(value(name, labels), expected, "{name}{{{labels}}}");
    }
    for name in [
        "etcd_server_client_requests_total",
        "etcd_server_apply_duration_seconds_count",
        "etcd_disk_backend_commit_duration_seconds_count",
        "etcd_network_peer_sent_bytes_total",
        "etcd_network_peer_received_bytes_total",
        "etcd_network_client_grpc_sent_bytes_total",
        "etcd_network_client_grpc_received_bytes_total",
    ] {
        assert!(value(name, "") > 0.0, "{name}");
    }
    // A peer that is gone is active no more, and what is for it fails.
    let gone = (leader + 1) % 3;
    cluster.members[gone].kill().await;
    eventually("its connections are gone", PATIENCE, async || {
        let seen = page(&at).await;
        let is_told = sum(&seen, "etcd_network_active_peers", "") == 1.0
            && sum(&seen, "etcd_network_known_peers", "") == 2.0
            && sum(&seen, "etcd_network_peer_sent_failures_total", "") > 0.0
            && sum(&seen, "etcd_server_heartbeat_send_failures_total", "") > 0.0;
        is_told.then_some(())
    })
    .await;
}
