//! How a node with a new directory begins.

use crate::membership::JoinSecret;

/// What a node with an empty directory does. With a used directory it is the node that it was, and only what the
/// directory says is compared with this.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NodeStart {
    /// It founds a cluster, from the seed in the options.
    #[default]
    Found,
    /// It joins one.
    Join {
        /// Link addresses of members (`host:port`): they are asked in turn.
        addresses: Vec<String>,
        /// The token, where one is required.
        token: Option<JoinSecret>,
        /// The number of shards that the operator expects; `None`: that of the cluster.
        expected_shards: Option<u16>,
    },
}
