//! The whole production composition of nodes, deterministic: one seed gives the workload, the faults and every random
//! number, so that a failure is replayed by its number.
//!
//! What is simulated: time, randomness, the disk, processes, and in [`ClusterPlan`]s the network; what may go wrong with
//! them is in [`FaultKind`]. What is not: threads (blocking work runs inline) and real sockets.
//!
//! Architecture invariant: nothing here is linked into a production binary, because `overrides` replaces two
//! functions of the C library.

#[cfg(not(any(tokio_unstable, doc)))]
compile_error!(
    "the simulation seeds tokio's random numbers: build with --cfg tokio_unstable (.cargo/config.toml sets it; a \
     RUSTFLAGS variable replaces that)"
);

pub mod bank;
pub mod check;
mod client;
mod clock;
mod cluster;
mod counters;
mod disk;
mod events;
mod faults;
mod fewer;
mod life;
mod limits;
pub mod message;
mod model;
mod operators;
#[allow(unsafe_code)] // the only unsafe code of the workspace; each block carries its proof
mod overrides;
mod panics;
mod plan;
mod random;
mod run;
mod shrink;
mod soak;
mod workload;
mod world;

pub use cluster::{ClusterPlan, Cut};
pub use faults::{Cause, FaultKind, Fired, Setting};
pub use plan::{Canary, Plan, Size};
pub use run::{Outcome, run_cluster, run_seed};
pub use shrink::{BROKEN, Shrinking};
pub use soak::Soak;
