//! Generates the peer protocol from `proto/`.

use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.join("ikada/peer/v1/peer.proto").display());
    let files = protox::compile(["ikada/peer/v1/peer.proto"], [&root])?;
    // Payloads are slices of the message they came in.
    tonic_prost_build::configure()
        .bytes(".")
        .build_transport(false)
        .skip_debug([".ikada.peer.v1.Entry", ".ikada.peer.v1.SnapshotRecords", ".ikada.peer.v1.ProposeRequest"])
        .compile_fds(files)?;
    Ok(())
}
