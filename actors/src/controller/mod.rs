//! What the leader of the settings does for the cluster: takes in new nodes, chooses voters, notices who is silent, and
//! gives the shards of a silent primary to another in-sync copy. And what every node does for itself: it tells the
//! links whom to be connected with, and registers again when the others took it for dead.
//!
//! [`duties`] is pure; the actor performs them. Every duty is compare-and-set where it lands: two nodes that both take
//! themselves for the leader do no harm.

mod actor;
mod duties;
#[cfg(test)]
mod duties_test;
mod failover;
mod leadership;

pub(crate) use actor::{Controller, ControllerArguments, peer_addresses};
pub use duties::{Duty, View, duties};
pub use failover::{failovers, waiting_shards};
