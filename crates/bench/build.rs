//! Compiles the part of etcd's interface that the benchmark speaks.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "../../proto/etcd/kv.proto";
    println!("cargo:rerun-if-changed={proto}");
    let files = protox::compile([proto], ["../../proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
