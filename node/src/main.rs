//! Spandrel's binary.

use std::process::ExitCode;
use std::sync::Arc;

use spandrel_node::program;
use spandrel_node::system_clock::SystemClock;

/// Its settings are compiled in by `.cargo/config.toml`; docs/decisions/0015-jemalloc.md has the measurements.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    program::run(Arc::new(SystemClock))
}
