//! Spandrel under real faults: real processes, real kills, and an oracle for the promises.
//!
//! A test starts nodes with [`node_process`], sends them what [`workload`] makes, notes in [`history`] what was
//! acknowledged, breaks something, and asks [`oracle`] which promise the answers break. The first two touch the
//! machine; the last two are pure, so that the simulation uses them as they are.
//!
//! A node may have a disk ([`small_disk`]) and a clock ([`shift_file`]) of its own, to be struck there.
//!
//! Of several nodes, [`cluster_process`] makes a cluster, [`load`] is its clients, [`link_proxy`] cuts nodes off, and
//! [`examination`] asks every node.
//!
//! The program of this crate (`main.rs`) lets faults follow one another on a cluster under load; [`attempts`] is what its
//! clients met.
//!
//! Not verified here: anything that needs the disk to lose or tear writes (the simulation does that).

pub mod attempts;
pub mod cluster_process;
pub mod examination;
pub mod history;
pub mod http;
pub mod limits;
pub mod link_proxy;
pub mod load;
pub mod node_process;
pub mod observe;
pub mod oracle;
pub mod ports;
pub mod shift_file;
pub mod small_disk;
pub mod workload;
