//! Compiles what nodes tell each other as the crate's own build script does: its sources are included.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../proto");
    let files = std::fs::read_dir("../proto/spandrel/peer/v1")?
        .map(|file| file.map(|file| file.path()))
        .collect::<Result<Vec<_>, _>>()?;
    let files = protox::compile(files, ["../proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
