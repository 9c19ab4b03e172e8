//! Commands about nodes.

use spandrel_model::ids::{NodeId, ShardId};

use super::{in_range, too_many, unchanged};
use crate::limits::{MAX_ADDRESS_BYTES, MAX_EARLIER_LIVES, MAX_NODES};
use crate::state::{
    Applied, ClusterState, Conflict, NodeAddresses, NodeLife, NodeRecord, NodeRegistration,
    NodeState,
};

impl ClusterState {
    pub(super) fn admit_node(
        &mut self,
        disk_id: u64,
        addresses: &NodeAddresses,
        zone: &str,
    ) -> Result<Applied, Conflict> {
        check_place(addresses, zone)?;
        let known = self.nodes.iter().find(|(_, node)| node.disk_id == disk_id);
        if let Some((id, _)) = known {
            return Ok(Applied::Node(*id));
        }
        let id = NodeId(self.next_node);
        let record = NodeRecord {
            addresses: addresses.clone(),
            zone: zone.to_owned(),
            incarnation: 0,
            disk_id,
            boot: 0,
            state: NodeState::Down,
        };
        self.add_node(id, record)?;
        Ok(Applied::Node(id))
    }

    pub(super) fn register_node(
        &mut self,
        new: &NodeRegistration,
        life: Option<&NodeLife>,
    ) -> Result<Applied, Conflict> {
        check_place(&new.addresses, &new.zone)?;
        life.map_or(Ok(()), check_life)?;
        let known_life = self.lives.get(&new.node).copied();
        let applied = if self.nodes.contains_key(&new.node) {
            self.register_known(new, known_life, life)?
        } else {
            self.register_unknown(new)?
        };
        if let Some(life) = life {
            self.lives.insert(new.node, life.life);
        }
        Ok(applied)
    }

    fn register_known(
        &mut self,
        new: &NodeRegistration,
        known_life: Option<u64>,
        life: Option<&NodeLife>,
    ) -> Result<Applied, Conflict> {
        let Some(known) = self.nodes.get_mut(&new.node) else {
            return Err(Conflict::UnknownNode { node: new.node });
        };
        if known.disk_id != new.disk_id || new.boot < known.boot {
            return Err(Conflict::WipedNode {
                node: new.node,
                disk_id: new.disk_id,
                boot: new.boot,
                known_disk_id: known.disk_id,
                known_boot: known.boot,
            });
        }
        not_an_image(new.node, known_life, life)?;
        let same_life = life.is_none_or(|life| known_life == Some(life.life));
        let is_repeated = new.boot == known.boot && known.incarnation > 0 && same_life;
        if is_repeated && known.state != NodeState::Down {
            // The same start said twice: the answer to the first was lost.
            return Ok(Applied::Incarnation(known.incarnation));
        }
        // A node that was cut off, was set down, and is back without having stopped, begins a new life too: what it
        // sent before was sent by one that had no say any more.
        known.boot = new.boot;
        known.incarnation = known.incarnation.saturating_add(1);
        known.addresses = new.addresses.clone();
        known.zone = new.zone.clone();
        // A node that was told to leave goes on leaving. The version before lives were told forgot that, and programs of
        // it in this cluster still do: for its registrations all must come to the same state.
        let goes_on = self.leaving.remove(&new.node) && life.is_some();
        if known.state == NodeState::Down {
            known.state = if goes_on {
                NodeState::Draining
            } else {
                NodeState::Up
            };
        }
        Ok(Applied::Incarnation(known.incarnation))
    }

    /// The founder registers itself without having been admitted. Ids below `next_node` belonged to others.
    fn register_unknown(&mut self, new: &NodeRegistration) -> Result<Applied, Conflict> {
        if new.node.0 < self.next_node {
            return Err(Conflict::UnknownNode { node: new.node });
        }
        let record = NodeRecord {
            addresses: new.addresses.clone(),
            zone: new.zone.clone(),
            incarnation: 1,
            disk_id: new.disk_id,
            boot: new.boot,
            state: NodeState::Up,
        };
        self.add_node(new.node, record)?;
        Ok(Applied::Incarnation(1))
    }

    pub(super) fn renew_life(
        &mut self,
        node: NodeId,
        life: &NodeLife,
    ) -> Result<Applied, Conflict> {
        check_life(life)?;
        if !self.nodes.contains_key(&node) {
            return Err(Conflict::UnknownNode { node });
        }
        not_an_image(node, self.lives.get(&node).copied(), Some(life))?;
        self.lives.insert(node, life.life);
        Ok(Applied::Done)
    }

    fn add_node(&mut self, id: NodeId, record: NodeRecord) -> Result<(), Conflict> {
        if self.nodes.len() >= MAX_NODES {
            return Err(too_many("nodes", MAX_NODES));
        }
        let Some(next) = id.0.checked_add(1) else {
            return Err(Conflict::invalid("node", "the last id cannot be used"));
        };
        self.next_node = next;
        self.nodes.insert(id, record);
        Ok(())
    }

    pub(super) fn set_node_state(
        &mut self,
        node: NodeId,
        expected_incarnation: u64,
        expected: NodeState,
        state: NodeState,
    ) -> Result<Applied, Conflict> {
        let Some(known) = self.nodes.get_mut(&node) else {
            return Err(Conflict::UnknownNode { node });
        };
        unchanged("incarnation", expected_incarnation, known.incarnation)?;
        if known.state != expected {
            return Err(Conflict::NodeStateChanged {
                node,
                expected,
                actual: known.state,
            });
        }
        known.state = state;
        match (expected, state) {
            (NodeState::Draining, NodeState::Down) => self.leaving.insert(node),
            (NodeState::Down, NodeState::Down) => false,
            _ => self.leaving.remove(&node),
        };
        Ok(Applied::Done)
    }

    pub(super) fn remove_node(
        &mut self,
        node: NodeId,
        expected_incarnation: u64,
    ) -> Result<Applied, Conflict> {
        let Some(known) = self.nodes.get(&node) else {
            return Err(Conflict::UnknownNode { node });
        };
        unchanged("incarnation", expected_incarnation, known.incarnation)?;
        let owned = (0..).zip(&self.shard_map);
        for (shard, record) in owned {
            if record.nodes().any(|named| named == node) {
                return Err(Conflict::NodeInUse {
                    node,
                    shard: ShardId(shard),
                });
            }
        }
        self.nodes.remove(&node);
        self.lives.remove(&node);
        self.leaving.remove(&node);
        Ok(Applied::Done)
    }
}

fn check_place(addresses: &NodeAddresses, zone: &str) -> Result<(), Conflict> {
    let fields = [
        ("link address", addresses.link.as_str()),
        ("http address", addresses.http.as_str()),
        ("grpc address", addresses.grpc.as_str()),
        ("zone", zone),
    ];
    for (field, text) in fields {
        in_range(
            field,
            " bytes",
            (0, MAX_ADDRESS_BYTES as u64),
            text.len() as u64,
        )?;
    }
    Ok(())
}

fn check_life(life: &NodeLife) -> Result<(), Conflict> {
    let told = life.earlier.len() as u64;
    in_range("earlier lives", "", (0, MAX_EARLIER_LIVES as u64), told)
}

/// Refuses who does not know the last life that the cluster knows of a node.
fn not_an_image(
    node: NodeId,
    known_life: Option<u64>,
    life: Option<&NodeLife>,
) -> Result<(), Conflict> {
    let continues = |known_life| life.is_some_and(|life| life.continues(known_life));
    match known_life.filter(|known_life| !continues(*known_life)) {
        Some(known_life) => Err(Conflict::ImageOfNode { node, known_life }),
        None => Ok(()),
    }
}
