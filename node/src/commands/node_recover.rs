//! `spandrel node recover`: what is left of a cluster goes on without the majority that kept its settings.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, ensure};
use rand::Rng;
use spandrel_actors::membership::settings_dir;
use spandrel_model::ids::NodeId;
use spandrel_raft::{Losses, RecoveredCluster, Survey, follow, recover, survey};
use spandrel_storage::disk::RealDisk;

use crate::cli::RecoverArgs;
use crate::data_dir::TakenDirectory;
use crate::output::print;
use crate::waterfall::escape;

/// Changes a data directory that no process has, or tells what that would cost.
///
/// # Errors
/// When the directory is in use, has no settings, or does not fit; it is then as it was.
pub fn run(args: &RecoverArgs) -> anyhow::Result<()> {
    let shown = args.data_dir.display();
    ensure!(
        args.data_dir.is_dir(),
        "there is no data directory {shown}: name that of this node with --data-dir"
    );
    let _taken = TakenDirectory::take(&args.data_dir)?;
    let dir = settings_dir(&args.data_dir);
    if let Some(text) = &args.into {
        let recovered: RecoveredCluster = text.parse().map_err(anyhow::Error::msg)?;
        ensure!(
            args.i_accept_loss,
            "the directory leaves cluster {:016x} for good: add --i-accept-loss to do it",
            recovered.from
        );
        let node = follow(&RealDisk, &dir, &recovered)?;
        return Ok(print(&format!(
            "node {} belongs to cluster {:016x} now: start it with `spandrel node join ADDRESS --data-dir {shown}` and the \
             link address of a node there\n",
            node.0, recovered.cluster_id
        ))?);
    }
    let known = survey(&RealDisk, &dir)?;
    let lost: BTreeSet<NodeId> = args.lost.iter().copied().map(NodeId).collect();
    let mut out = describe(&known);
    if lost.is_empty() {
        out.push_str(
            "Stop all nodes that are left. On the one whose log goes furthest, name the others that are gone: \
             --lost ID,ID\n",
        );
        return Ok(print(&out)?);
    }
    if !args.i_accept_loss {
        let (_, losses) = known.state.without(known.state.cluster_id, &lost)?;
        tell(&mut out, &known, &losses);
        out.push_str(
            "Nothing was changed. Add --i-accept-loss to go on without the lost nodes; should one come back, it must be wiped.\n",
        );
        return Ok(print(&out)?);
    }
    #[allow(clippy::disallowed_methods)] // a command of the operator's, which no simulation runs
    let cluster_id = rand::rng().next_u64().max(1);
    let recovered = known.recovered_as(cluster_id);
    // Before anything changes: the others need it, and nothing else tells it.
    let _ = write!(
        out,
        "On each other node that is left, before this one starts:\n  \
         spandrel node recover --data-dir DIRECTORY --i-accept-loss --into {recovered}\n"
    );
    print(&out)?;
    let (_, losses) = recover(&RealDisk, &dir, cluster_id, &lost)
        .with_context(|| format!("the data directory {shown} was not recovered"))?;
    let mut out = String::new();
    tell(&mut out, &known, &losses);
    let _ = writeln!(
        out,
        "recovered   cluster {cluster_id:016x}, of node {} alone: start it with `spandrel node start --data-dir {shown}`",
        known.node.0
    );
    Ok(print(&out)?)
}

fn describe(known: &Survey) -> String {
    let mut out = String::new();
    let (state, end) = (&known.state, known.end);
    let _ = writeln!(
        out,
        "node        {} of cluster {:016x}",
        known.node.0, state.cluster_id
    );
    let _ = writeln!(
        out,
        "log         up to entry {} of term {} by node {}",
        end.index, end.term, end.leader
    );
    for (node, record) in &state.nodes {
        let link = escape(&record.addresses.link);
        let _ = writeln!(out, "            node {} at {link}", node.0);
    }
    out
}

fn tell(out: &mut String, known: &Survey, losses: &Losses) {
    let shards: Vec<String> = losses
        .shards
        .iter()
        .map(|shard| shard.0.to_string())
        .collect();
    let _ = writeln!(
        out,
        "shards      {} of {} have no copy that has all that was acknowledged{}{}",
        shards.len(),
        known.state.shard_map.len(),
        if shards.is_empty() { "" } else { ": " },
        shards.join(", ")
    );
    let _ = writeln!(
        out,
        "older data  {} pieces were on lost nodes alone\n            \
         as far as this log goes: what was agreed on after its end is not counted",
        losses.pieces
    );
}
