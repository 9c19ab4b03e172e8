//! Keeps one session with one node: dials, waits for its end, dials again.

use std::sync::Arc;
use std::time::Duration;

use spandrel_model::ids::NodeId;
use tokio::time::{Instant, sleep};

use super::LinkClass;
use super::core::Core;
use super::directory::Dial;
use super::hello::Purpose;
use crate::limits::{LINK_REDIAL_MAX_MS, LINK_REDIAL_MIN_MS, LINK_YIELD_MS};

/// See the module. Ends when the node is no peer any more.
pub(crate) async fn keep_connected(core: Arc<Core>, node: NodeId, class: LinkClass) {
    let shortest = Duration::from_millis(LINK_REDIAL_MIN_MS);
    let longest = Duration::from_millis(LINK_REDIAL_MAX_MS);
    let mut changes = core.switchboard.changes();
    let mut pause = shortest;
    loop {
        changes.mark_unchanged();
        let next = core.switchboard.directory().next_dial(node, class);
        let mut address = match next {
            Dial::End => return,
            Dial::Wait => {
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Dial::Now { address, yielding } => (!yielding).then_some(address),
        };
        if address.is_none() {
            sleep(Duration::from_millis(LINK_YIELD_MS)).await;
            let next = core.switchboard.directory().next_dial(node, class);
            if let Dial::Now { address: again, .. } = next {
                address = Some(again);
            }
        }
        let Some(address) = address else { continue };
        let began = Instant::now();
        match core
            .open(&address, Some(node), Purpose::Member(class))
            .await
        {
            Ok(session) => {
                drop(session);
                wait_for_end(&core, node, class, &mut changes).await;
                if began.elapsed() > longest {
                    pause = shortest;
                }
            }
            Err(error) => {
                tracing::debug!(node = node.0, ?class, address, %error, "a node is not reached");
                let reason = error.to_string();
                core.switchboard.directory().failed(node, reason);
            }
        }
        sleep(core.jittered(pause)).await;
        pause = (pause * 2).min(longest);
    }
}

async fn wait_for_end(
    core: &Core,
    node: NodeId,
    class: LinkClass,
    changes: &mut tokio::sync::watch::Receiver<()>,
) {
    loop {
        changes.mark_unchanged();
        if core.switchboard.route(node, class).is_err() || changes.changed().await.is_err() {
            return;
        }
    }
}
