//! Compiles the `.proto` files of what nodes tell each other with protox: no `protoc` is needed to build.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "proto/spandrel/peer/v1/copies.proto",
        "proto/spandrel/peer/v1/inventory.proto",
        "proto/spandrel/peer/v1/membership.proto",
        "proto/spandrel/peer/v1/pages.proto",
        "proto/spandrel/peer/v1/query.proto",
        "proto/spandrel/peer/v1/shards.proto",
    ];
    let files = protox::compile(files, ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
