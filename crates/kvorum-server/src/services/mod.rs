//! The native services: etcd's API, `kvorum.v1`, and gRPC's health service.
//!
//! They parse, ask the replica or the local state, and answer. Nothing here holds state of the store.

mod auth;
mod cluster;
mod context;
mod election;
mod etcd_kv;
mod etcd_lease;
mod etcd_watch;
mod health;
pub(crate) mod kvorum_v1;
mod lock;
mod maintenance;
mod queue;
mod snapshot;

pub use auth::AuthService;
pub use cluster::ClusterService;
pub(crate) use context::Context;
pub use election::ElectionService;
pub use etcd_kv::EtcdKv;
pub(crate) use etcd_kv::unexpected;
pub use etcd_lease::EtcdLease;
pub(crate) use etcd_watch::leaderless;
pub use etcd_watch::{EtcdWatch, WatchStream};
pub use health::HealthService;
pub use kvorum_v1::KvorumService;
pub use lock::LockService;
pub use maintenance::MaintenanceService;
pub(crate) use maintenance::{alarm_name, storage_version};
