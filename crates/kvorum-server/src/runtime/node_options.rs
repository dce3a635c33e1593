//! What the user set, in the words of the replica and of its consensus core; and the randomness both are given.

use std::time::Duration;

use kvorum_model::MemberRecord;

use super::directory::StartError;
use super::identity::Identity;
use crate::options::ServeOptions;

/// The newest feature level that this version can run.
const FEATURE_LEVEL: u32 = 1;
/// How often what remains of a long lease is written down, in µs (etcd's default).
const LEASE_CHECKPOINT_INTERVAL: u64 = 300_000_000;
const MIB: usize = 1024 * 1024;

pub(super) fn node_options(
    options: &ServeOptions,
    identity: &Identity,
    boot: u64,
) -> Result<kvorum_node::Options, StartError> {
    let raft = kvorum_raft::Options {
        id: identity.member,
        cluster: identity.cluster_id(),
        boot,
        seed: random()? as u64,
        election_timeout: options.election_timeout.as_micros() as u64,
        heartbeat_interval: options.heartbeat_interval.as_micros() as u64,
        pre_vote: options.etcd.pre_vote,
        lease_reads: options.lease_reads,
        append_bytes_max: MIB,
        append_entries_max: options.append_entries_max,
        check_quorum: drawn(options.check_quorum)?.as_micros() as u64,
        window_messages: 64,
        window_bytes: 8 * MIB,
        uncommitted_bytes_max: 64 * MIB,
        cache_bytes_max: 64 * MIB,
        apply_bytes_max: 4 * MIB,
        entry_bytes_max: options.request_bytes_max + 64 * 1024,
        promote_lag_bytes: MIB as u64,
        retain_bytes_max: options.log_bytes_max as u64,
    };
    let record = MemberRecord {
        id: identity.member,
        name: identity.name.clone(),
        peer_addresses: options.peer_addresses().iter().map(ToString::to_string).collect(),
        client_urls: options.client_urls(),
        incarnation: identity.incarnation,
        feature_level: FEATURE_LEVEL,
        promote_when_ready: false,
    };
    Ok(kvorum_node::Options {
        raft,
        record,
        fresh_uuid: random()?.max(1),
        held_requests_max: options.requests_max,
        forward_bytes_max: MIB,
        batch_bytes_max: 4 * MIB,
        log_writes_open_max: 2,
        lease_checkpoint_interval: LEASE_CHECKPOINT_INTERVAL,
        keeps_addresses: options.etcd.identity.is_some(),
        compacts_by_age: options.etcd.compaction.is_none(),
        history_ms: u64::try_from(options.history.as_millis()).unwrap_or(u64::MAX),
    })
}

/// A time drawn from [`at_least`, twice that).
pub(super) fn drawn(at_least: Duration) -> Result<Duration, StartError> {
    let micros = at_least.as_micros().max(1);
    Ok(at_least + Duration::from_micros((random()? % micros) as u64))
}

pub(super) fn random() -> Result<u128, StartError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| StartError::Other(format!("the system gives no randomness: {error}")))?;
    Ok(u128::from_le_bytes(bytes))
}
