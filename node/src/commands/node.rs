//! `spandrel node`.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use spandrel_actors::Clock;
use spandrel_actors::membership::NodeStart;
use spandrel_api::dto::StatusResponse;

use super::{config, connect, node_join, node_recover, node_start, nodes, print_json};
use crate::cli::NodeCommand;
use crate::output::{period, second};
use crate::waterfall::escape;

/// Runs one of the node commands.
///
/// # Errors
/// What went wrong and what to try next.
pub async fn run(command: NodeCommand, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let (watch, args) = match command {
        NodeCommand::Start(args) => {
            return node_start::run(config::options(*args)?, NodeStart::Found, clock).await;
        }
        NodeCommand::Join(args) => return node_join::run(*args, clock).await,
        NodeCommand::Leave { client } => return nodes::leave(&client).await,
        NodeCommand::Remove {
            node,
            i_accept_loss,
            client,
        } => return nodes::remove(node, i_accept_loss, &client).await,
        NodeCommand::Recover(args) => return node_recover::run(&args),
        NodeCommand::Repair { client } => return nodes::repair(&client).await,
        NodeCommand::Status { watch, client } => (watch, client),
    };
    let client = connect(&args).await?;
    loop {
        let (cluster, status) = (client.cluster().await?, client.status().await?);
        if args.json {
            print_json(&serde_json::json!({"cluster": cluster, "node": status}))?;
        } else {
            let shown = nodes::render(&cluster);
            crate::output::print(&format!("{shown}\n{}", render(&status)))?;
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn render(status: &StatusResponse) -> String {
    let mut out = String::new();
    let ready = if status.ready {
        "ready".to_owned()
    } else {
        format!("not ready: {}", escape(&status.not_ready_because))
    };
    let _ = writeln!(
        out,
        "node        {} of cluster {}, version {}",
        status.node,
        escape(&status.cluster),
        status.version
    );
    let _ = writeln!(
        out,
        "state       {ready}, {} shards, pressure {} of 4",
        status.shards, status.pressure
    );
    let _ = writeln!(
        out,
        "credit      {} of {}",
        size(status.credit_used_bytes),
        size(status.credit_capacity_bytes)
    );
    let _ = writeln!(
        out,
        "traces      {} open, {} kept and not in a block yet",
        status.open_traces, status.unpaged_traces
    );
    let _ = writeln!(
        out,
        "disk        journal {}, blocks {}, index {}",
        size(status.journal_bytes),
        size(status.block_bytes),
        size(status.index_bytes)
    );
    let (uncompared, differing) = (status.uncompared_buckets, status.differing_buckets);
    if (uncompared, differing) != (0, 0) {
        let _ = writeln!(
            out,
            "copies      {uncompared} buckets are still to be compared with other nodes, {differing} could not be or lack something"
        );
    }
    let _ = writeln!(out, "journal     since {}", second(status.journal_since.0));
    let _ = writeln!(
        out,
        "index       up to {}",
        second(status.index_watermark.0)
    );
    let _ = writeln!(
        out,
        "retention   {}",
        period(status.retention_seconds.saturating_mul(1_000))
    );
    let _ = writeln!(out, "policy      version {}", status.policy_version);
    for policy in &status.policies {
        let _ = writeln!(out, "            {}", escape(policy));
    }
    out
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!(
            "{}.{} {unit}",
            bytes >> shift,
            (bytes >> (shift - 10) & 1_023) * 10 / 1_024
        ),
        None => format!("{bytes} B"),
    }
}
