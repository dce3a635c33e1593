//! Where the peers are: what this member was told when it started, and what the cluster's records say since.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvorum_mvcc::ClusterState;

use super::directory::Directory;
use super::ending::Ending;
use super::handshake::Acquaintance;
use super::identity::{Identity, id_of_founder};
use super::peers::PeerNet;
use super::replica_thread::{End, OnCluster};
use crate::options::ServeOptions;

/// Keeps addresses and identity up to date when the cluster's records change.
pub(super) fn cluster_watcher(
    options: ServeOptions,
    directory: Directory,
    acquaintance: Arc<Acquaintance>,
    net: PeerNet,
    ending: Ending,
) -> OnCluster {
    let directory = Mutex::new(directory);
    Box::new(move |cluster| {
        let mut directory = directory.lock().expect("no panic while held");
        if let Some(identity) = acquaintance.learn(cluster) {
            directory.identity = identity;
            if let Err(error) = directory.store_identity() {
                ending.tell(End::Fatal(error.to_string()));
            }
        }
        net.set_peers(peers(&options, &directory.identity, cluster), &cluster.removed);
    })
}

/// The peers: where this member was told to look for them, then where they say they are.
pub(super) fn peers(
    options: &ServeOptions,
    identity: &Identity,
    cluster: &ClusterState,
) -> BTreeMap<u64, Vec<String>> {
    let mut peers = BTreeMap::new();
    for founder in options.founders() {
        let id = id_of_founder(options, &identity.token, &founder.name);
        if identity.founders.contains(&id) && id != identity.member && !cluster.removed.contains(&id) {
            peers.insert(id, options.founder_addresses(&founder));
        }
    }
    for (id, told) in PeerNet::peers_of(cluster, identity.member) {
        let known = peers.entry(id).or_default();
        let news: Vec<String> = told
            .into_iter()
            .filter(|address| !known.contains(address))
            .collect();
        known.extend(news);
    }
    peers
}
