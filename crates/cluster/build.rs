//! Generates the cluster protocol from `proto/`.

use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.join("ikada/cluster/v1/cluster.proto").display());
    let files = protox::compile(["ikada/cluster/v1/cluster.proto"], [&root])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(files)?;
    Ok(())
}
