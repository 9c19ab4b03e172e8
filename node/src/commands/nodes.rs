//! `spandrel node leave`, `remove`, and the table of `node status`.

use std::fmt::Write;
use std::time::Duration;

use spandrel_api::dto::{ClusterNode, ClusterResponse};

use super::{connect, print_json};
use crate::cli::ClientArgs;
use crate::output::{print, table};
use crate::waterfall::escape;

/// Time between two looks at how far a node that leaves is.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);
/// A leader of which nothing was heard for so long leads nobody: a majority would have chosen another one, and the node
/// that is asked, when it has no vote, does not know.
const LEADER_SILENT_MS: u64 = 3_000;
/// Shards without enough copies that are named.
const SHOWN_SHARDS: usize = 16;

/// Lets the node that is asked hand over its shards, and waits until it holds none and nobody needs its older data.
///
/// # Errors
/// What went wrong and what to try next.
pub async fn leave(args: &ClientArgs) -> anyhow::Result<()> {
    let client = connect(args).await?;
    client.leave_node().await?;
    let mut shown = None;
    loop {
        let view = client.cluster().await?;
        let Some(node) = view.nodes.iter().find(|node| node.node == view.asked) else {
            anyhow::bail!("node {} was removed meanwhile", escape(&view.asked));
        };
        let left = (
            node.primary_shards,
            node.in_sync_shards,
            node.filling_shards,
            node.needed_copies,
        );
        if left == (0, 0, 0, 0) {
            if args.json {
                return print_json(node);
            }
            return Ok(print(&farewell(&node.node))?);
        }
        if !args.json && shown != Some(left) {
            print(&progress(node))?;
            shown = Some(left);
        }
        tokio::time::sleep(PROGRESS_PAUSE).await;
    }
}

/// Takes a node out of the cluster.
///
/// # Errors
/// What went wrong and what to try next.
pub async fn remove(node: u64, accept_loss: bool, args: &ClientArgs) -> anyhow::Result<()> {
    let client = connect(args).await?;
    client.remove_node(node, accept_loss).await?;
    if args.json {
        return print_json(&serde_json::json!({"removed": node.to_string()}));
    }
    Ok(print(&format!(
        "node {node} is no member any more; its id is not given again\n"
    ))?)
}

/// Lets all nodes that can be reached look at once for what they are to copy, and compare what they hold with each other.
/// Waits until there are enough copies, and until the node that was asked has compared everything.
///
/// # Errors
/// What went wrong and what to try next.
pub async fn repair(args: &ClientArgs) -> anyhow::Result<()> {
    let client = connect(args).await?;
    client.repair_node().await?;
    let mut shown = None;
    loop {
        let view = client.cluster().await?;
        let status = client.status().await?;
        let left = (view.lacking_copies, status.uncompared_buckets);
        if left == (0, 0) {
            let differing = status.differing_buckets;
            anyhow::ensure!(
                differing == 0,
                "{differing} buckets could not be compared, or lack something that no other node has: the node's log says why"
            );
            if args.json {
                return print_json(&view);
            }
            let done =
                "all older data has its copies, and this node has what the others have of it\n";
            return Ok(print(done)?);
        }
        if !args.json && shown != Some(left) {
            print(&format!(
                "{} pieces of older data have fewer than {} copies; this node has {} buckets left to compare\n",
                view.lacking_copies, view.effective_replication, status.uncompared_buckets
            ))?;
            shown = Some(left);
        }
        tokio::time::sleep(PROGRESS_PAUSE).await;
    }
}

fn farewell(node: &str) -> String {
    let node = escape(node);
    format!(
        "node {node} holds no shard any more: stop it, then `spandrel node remove {node}` at another node\n"
    )
}

fn progress(node: &ClusterNode) -> String {
    format!(
        "node {} still leads {} shards, has {} copies, and fills {}; {} pieces of its older data are not copied yet\n",
        escape(&node.node),
        node.primary_shards,
        node.in_sync_shards,
        node.filling_shards,
        node.needed_copies
    )
}

/// The table of nodes, and what the shards lack.
#[must_use]
pub fn render(view: &ClusterResponse) -> String {
    let head = [
        "node", "state", "role", "zone", "link", "version", "boot", "heard", "primary", "in sync",
        "filling",
    ];
    let row = |node: &ClusterNode| {
        let is_asked = node.node == view.asked;
        let heard = match node.silent_ms {
            _ if is_asked => "here".to_owned(),
            Some(silent_ms) => format!("{silent_ms} ms ago"),
            None => "never".to_owned(),
        };
        vec![
            node.node.clone(),
            node.state.clone(),
            node.role.clone(),
            node.zone.clone(),
            node.link_address.clone(),
            node.version.clone().unwrap_or_else(|| "?".to_owned()),
            node.boot.to_string(),
            heard,
            node.primary_shards.to_string(),
            node.in_sync_shards.to_string(),
            node.filling_shards.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = view.nodes.iter().map(row).collect();
    let mut out = table(&head, &rows);
    if view.leader.is_none() {
        let _ = writeln!(
            out,
            "NO LEADER   settings cannot be changed and no shard fails over until a majority of the voters is back"
        );
    }
    let leader = view.nodes.iter().find(|node| node.role == "leader");
    if let Some((node, silent_ms)) = leader.and_then(|node| Some((node, node.silent_ms?)))
        && node.node != view.asked
        && silent_ms >= LEADER_SILENT_MS
    {
        let _ = writeln!(
            out,
            "LEADER SILENT for {silent_ms} ms: without a majority of the voters nothing below is kept up to date, settings cannot be changed and no shard fails over"
        );
    }
    out.push_str(&lacking(view));
    out
}

/// What the shards lack, a line each.
fn lacking(view: &ClusterResponse) -> String {
    let wanted = view.effective_replication;
    let older = match view.lacking_copies {
        0 => String::new(),
        some => format!(
            "OLDER DATA  {some} pieces have fewer than {wanted} copies, they are being made\n"
        ),
    };
    if view.lacking.is_empty() {
        let enough = format!("copies      all {} shards have {wanted}\n", view.shards);
        return enough + &older;
    }
    let numbers = |waits: bool| {
        let some = view.lacking.iter().filter(|one| (one.copies == 0) == waits);
        let all: Vec<String> = some.map(|one| one.shard.to_string()).collect();
        let more = match all.len() {
            ..=SHOWN_SHARDS => String::new(),
            count => format!(" and {} more", count - SHOWN_SHARDS),
        };
        let first: Vec<String> = all.iter().take(SHOWN_SHARDS).cloned().collect();
        (all.len(), first.join(", ") + &more)
    };
    let mut out = String::new();
    let (waiting, named) = numbers(true);
    if waiting > 0 {
        let _ = writeln!(
            out,
            "WAITING     {waiting} shards take no spans, every node with a full copy of them is down: {named}"
        );
    }
    let (few, named) = numbers(false);
    if few > 0 {
        let _ = writeln!(
            out,
            "FEW COPIES  {few} shards have fewer than {wanted} full copies: {named}"
        );
    }
    out + &older
}

#[cfg(test)]
mod tests {
    use spandrel_api::dto::LackingShard;

    use super::*;

    fn node(node: u64, role: &str) -> ClusterNode {
        ClusterNode {
            node: node.to_string(),
            state: "up".to_owned(),
            role: role.to_owned(),
            zone: "a".to_owned(),
            link_address: format!("10.0.0.{node}:7200"),
            http_address: String::new(),
            grpc_address: String::new(),
            version: (node == 1).then(|| "0.1.0".to_owned()),
            boot: 2,
            silent_ms: (node != 1).then_some(40),
            primary_shards: 3,
            in_sync_shards: 4,
            filling_shards: 0,
            needed_copies: 0,
        }
    }

    fn view() -> ClusterResponse {
        ClusterResponse {
            cluster: "ab".to_owned(),
            asked: "1".to_owned(),
            leader: Some("2".to_owned()),
            epoch: 9,
            shards: 64,
            replication: 3,
            effective_replication: 2,
            nodes: vec![node(1, "voter"), node(2, "leader")],
            lacking: Vec::new(),
            lacking_copies: 0,
        }
    }

    #[test]
    fn the_table_shows_who_is_in_and_that_all_is_well() {
        let shown = render(&view());
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 4, "{shown}");
        assert!(
            lines[1].contains("here") && lines[1].contains("0.1.0"),
            "{shown}"
        );
        assert!(
            lines[2].contains("leader") && lines[2].contains("40 ms ago"),
            "{shown}"
        );
        assert!(lines[2].contains('?'), "{shown}");
        assert_eq!(lines[3], "copies      all 64 shards have 2");
    }

    /// In a cluster of two the one without a vote went on showing the dead leader as leader, and all well.
    #[test]
    fn a_leader_that_is_not_heard_is_said_to_be_silent() {
        let mut view = view();
        view.nodes[1].silent_ms = Some(LEADER_SILENT_MS);
        assert!(render(&view).contains("LEADER SILENT for 3000 ms"));
        view.asked = "2".to_owned();
        assert!(!render(&view).contains("SILENT"));
    }

    #[test]
    fn what_lacks_is_named_and_not_endlessly() {
        let mut view = view();
        view.leader = None;
        view.lacking = (0..40)
            .map(|shard| LackingShard {
                shard,
                copies: u32::from(shard != 7),
            })
            .collect();
        let shown = render(&view);
        assert!(shown.contains("NO LEADER"), "{shown}");
        assert!(shown.contains("WAITING     1 shards"), "{shown}");
        assert!(shown.contains("39 shards have fewer than 2"), "{shown}");
        assert!(shown.contains("and 23 more"), "{shown}");
    }

    #[test]
    fn a_node_that_leaves_says_what_is_left_and_what_comes_next() {
        assert!(progress(&node(3, "voter")).contains("leads 3 shards"));
        assert!(farewell("3").contains("spandrel node remove 3"));
    }
}
