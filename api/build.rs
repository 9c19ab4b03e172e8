//! Compiles the `.proto` files with protox: no `protoc` is needed to build.

use std::path::PathBuf;

#[allow(clippy::disallowed_methods)] // cargo tells build scripts so where to write
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/spandrel/v1/query.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .bytes(".")
        .file_descriptor_set_path(out.join("spandrel.v1.bin"))
        .skip_protoc_run()
        .compile_fds(files.clone())?;
    std::fs::write(
        out.join("spandrel.v1.bin"),
        protox::prost::Message::encode_to_vec(&files),
    )?;
    Ok(())
}
