//! Compiles `proto/` with a protobuf compiler written in Rust: no `protoc` is needed to build.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 10] = [
    "mvccpb/kv.proto",
    "authpb/auth.proto",
    "etcdserverpb/rpc.proto",
    "v3lockpb/lock.proto",
    "v3electionpb/election.proto",
    "kv/kv.proto",
    "kv_pb/kv.proto",
    "raft_pb/raft.proto",
    "kvorum/v1/kvorum.proto",
    "grpc/health/v1/health.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    // What programs need to know of the messages at run time: without the comments.
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_transport(false)
        // `Bytes` fields are slices of the buffer that the request arrived in: nothing is copied.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
