//! Compiles the .proto files without a protoc: protox parses them, tonic-prost-build writes the Rust code.

use prost::Message;
use std::path::PathBuf;

const FILES: [&str; 8] = [
    "pinfold/api/v1/sandbox.proto",
    "pinfold/api/v1/process.proto",
    "pinfold/api/v1/file.proto",
    "pinfold/api/v1/node.proto",
    "pinfold/api/v1/snapshot.proto",
    "pinfold/api/v1/template.proto",
    "pinfold/guest/v1/guest.proto",
    "pinfold/node/v1/session.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=pinfold");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // served by gRPC server reflection
    std::fs::write(out.join("pinfold.fds"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
