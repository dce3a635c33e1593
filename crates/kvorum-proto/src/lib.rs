//! The wire: messages and services generated from `proto/`, and the conversions between them and the model.
//!
//! The conversions are the validation boundary: what the model has no words for (unknown enum values, an
//! operation without content) is refused in [`convert`], the rest by the model's own `validate`, and what needs
//! the store (revisions, leases, sessions) by the state machine.
//!
//! Nothing here panics on any input: messages are decoded by prost, which bounds its recursion.

pub mod convert;
mod status;

pub use status::{OUTCOME, Outcome, Rejected, refused, status_of};

/// Every message and service as a `google.protobuf.FileDescriptorSet`, encoded.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Generated code: etcd's names and comments, not ours.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
/// Permissions and options of users, as etcd's Auth service has them.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod authpb {
    tonic::include_proto!("authpb");
}
/// etcd's v3 API.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
/// etcd's lock service.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
/// etcd's election service.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
/// The `KVStore` service of the "Raft-Backed Distributed Key-Value Store".
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod kv {
    tonic::include_proto!("kv");
}
/// The key-value service of "raft-kv".
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod kv_pb {
    tonic::include_proto!("kv_pb");
}
/// What "raft-kv" tells of a member.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod raft_pb {
    tonic::include_proto!("raft_pb");
}
/// kvorum's own services.
pub mod kvorum {
    /// Version 1.
    #[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("kvorum.v1");
    }
}
/// gRPC's health service.
pub mod grpc_health {
    /// Version 1.
    #[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("grpc.health.v1");
    }
}
