//! A replica's options, as its tests have them.

use kvorum_model::MemberRecord;
use kvorum_node::Options;

/// Member `record.id` of cluster 7; elections after one to two seconds, heartbeats every 100 ms.
pub fn options(record: MemberRecord) -> Options {
    Options {
        raft: kvorum_raft::Options {
            id: record.id,
            cluster: 7,
            boot: 3,
            seed: 1,
            election_timeout: 1_000_000,
            heartbeat_interval: 100_000,
            pre_vote: true,
            lease_reads: false,
            append_bytes_max: 1 << 16,
            append_entries_max: usize::MAX,
            check_quorum: 0,
            window_messages: 16,
            window_bytes: 1 << 20,
            uncommitted_bytes_max: 1 << 20,
            cache_bytes_max: 1 << 20,
            apply_bytes_max: 1 << 16,
            entry_bytes_max: 1 << 16,
            promote_lag_bytes: 0,
            retain_bytes_max: 0,
        },
        record,
        fresh_uuid: 9,
        held_requests_max: 8,
        forward_bytes_max: 1 << 20,
        batch_bytes_max: 1 << 20,
        log_writes_open_max: 2,
        lease_checkpoint_interval: 300_000_000,
        keeps_addresses: false,
        compacts_by_age: true,
        history_ms: kvorum_mvcc::HISTORY_MS,
    }
}
