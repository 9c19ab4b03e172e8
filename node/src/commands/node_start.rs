//! `spandrel node start`: composes the server.

use crate::config::NodeStartOptions;

/// Runs a node until it is told to stop.
///
/// # Errors
/// When the node cannot start.
pub async fn run(options: NodeStartOptions) -> anyhow::Result<()> {
    anyhow::bail!(
        "this build has no server for {}",
        options.data_dir.display()
    )
}
