//! Whether a node hears from the majority of the settings' group: otherwise the others may have changed the map.

use std::collections::BTreeSet;
use std::time::Duration;

use spandrel_model::ids::NodeId;
use tokio::time::Instant;

use crate::limits::CONTACT_MS;
use crate::link::Peers;

/// What a node knows of the group and of its links.
pub(crate) struct Hearing<'a> {
    pub(crate) me: NodeId,
    /// The leader, as far as the node knows: one that was cut off takes itself for it.
    pub(crate) leader: Option<NodeId>,
    pub(crate) voters: &'a BTreeSet<NodeId>,
    pub(crate) peers: &'a Peers,
}

/// True while nobody else can have declared this node dead: it has heard the leader lately, or leads and has heard a
/// majority.
pub(crate) fn has_contact(hearing: &Hearing<'_>, now: Instant) -> bool {
    let limit = Duration::from_millis(CONTACT_MS);
    let is_heard = |node: &NodeId| {
        let peer = hearing.peers.get(node);
        *node == hearing.me || peer.is_some_and(|peer| now - peer.last_heard <= limit)
    };
    match hearing.leader {
        None => false,
        Some(leader) if leader != hearing.me => is_heard(&leader),
        Some(_) => {
            let heard = hearing
                .voters
                .iter()
                .filter(|voter| is_heard(voter))
                .count();
            2 * heard > hearing.voters.len()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::link::Reachability;

    #[tokio::test(start_paused = true)]
    async fn a_leader_needs_a_majority_and_everybody_else_the_leader() {
        let now = Instant::now() + Duration::from_secs(10);
        let voters: BTreeSet<NodeId> = (1..=5).map(NodeId).collect();
        let heard = |silent: [u64; 4]| -> Peers {
            let peers = (2..).map(NodeId).zip(silent);
            let peers = peers.map(|(node, ms)| {
                let last_heard = now - Duration::from_millis(ms);
                let peer = Reachability {
                    connected: true,
                    last_heard,
                    boot: 1,
                };
                (node, peer)
            });
            Arc::new(peers.collect())
        };
        let has = |leader: Option<u64>, silent| {
            let peers = heard(silent);
            let hearing = Hearing {
                me: NodeId(1),
                leader: leader.map(NodeId),
                voters: &voters,
                peers: &peers,
            };
            has_contact(&hearing, now)
        };
        let (lately, long) = (CONTACT_MS, CONTACT_MS + 1);
        assert!(has(Some(1), [lately, lately, long, long]));
        assert!(!has(Some(1), [lately, long, long, long]), "two of five");
        assert!(has(Some(2), [lately, long, long, long]));
        assert!(!has(Some(2), [long, 0, 0, 0]), "the leader is silent");
        assert!(!has(None, [0, 0, 0, 0]));
        assert!(!has(Some(9), [0, 0, 0, 0]), "no link to it yet");
    }
}
