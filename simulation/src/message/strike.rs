//! Faults as they strike.

use std::sync::Arc;

use spandrel_actors::assembler::Promotion;
use spandrel_model::ids::{NodeId, TenantId};
use spandrel_raft::state::NodeState;

use super::fault::FaultKind;
use super::log::ShardLog;
use super::world::{Event, Link, MS, World};

/// Most nodes that there ever are.
const MOST_NODES: usize = 7;

impl World {
    pub(crate) fn strike(&mut self, number: usize) {
        let fault = self.plan.faults[number];
        let (node, other) = (
            fault.node % self.nodes.len(),
            fault.other % self.nodes.len(),
        );
        self.tell(|| format!("fault: {fault:?}"));
        let until = self.now + fault.for_ms * MS;
        let lasts = fault.for_ms * MS;
        let runs = self.nodes[node].process.is_some();
        let has_struck = match fault.kind {
            FaultKind::Crash => {
                self.crash(node);
                self.after(lasts, Event::Restart(node));
                runs
            }
            FaultKind::PowerLoss => {
                for at in 0..self.nodes.len() {
                    self.crash(at);
                    self.soon(0, lasts, Event::Restart(at));
                }
                true
            }
            FaultKind::FailedSync => {
                self.nodes[node].fails_sync = runs;
                runs
            }
            FaultKind::LostDisk => self.lose_disk(node),
            FaultKind::Pause => {
                self.nodes[node].paused_until = until;
                runs
            }
            FaultKind::SlowDisk => {
                self.nodes[node].slow_disk_until = until;
                runs
            }
            FaultKind::Loss => self.between(node, other, &|link| link.lossy_until = until),
            FaultKind::Duplicates => self.between(node, other, &|link| link.doubling_until = until),
            FaultKind::Reorder => self.between(node, other, &|link| link.reordering_until = until),
            FaultKind::SlowLink => self.between(node, other, &|link| link.slow_until = until),
            FaultKind::TwoWayCut => self.between(node, other, &|link| link.cut_until = until),
            FaultKind::OneWayCut => {
                let link = self.links.entry((node, other)).or_default();
                link.cut_until = until;
                node != other
            }
            FaultKind::Isolation => {
                for at in 0..self.nodes.len() {
                    self.between(node, at, &|link| link.cut_until = until);
                }
                self.nodes[node].settings_cut_until = until;
                true
            }
            FaultKind::SettingsCut => {
                self.nodes[node].settings_cut_until = until;
                true
            }
            FaultKind::LateMaps => {
                self.nodes[node].late_maps_until = until;
                true
            }
            FaultKind::LostProposals => {
                self.nodes[node].lost_proposals_until = until;
                true
            }
            FaultKind::FalseAlarm => {
                let id = self.nodes[node].id;
                self.set_node(id, NodeState::Down);
                runs
            }
            FaultKind::Moves => {
                self.turn += 1 + other;
                true
            }
            FaultKind::Replication => self.change_replication(other),
            FaultKind::Join => {
                let has_room = self.nodes.len() < MOST_NODES;
                if has_room {
                    self.join();
                }
                has_room
            }
            FaultKind::Drain => {
                let id = self.nodes[node].id;
                self.set_node(id, NodeState::Draining);
                runs
            }
            FaultKind::FullDisk => {
                let id = self.nodes[node].id;
                self.set_node(id, NodeState::Full);
                runs
            }
            FaultKind::Pressure => {
                self.nodes[node].no_memory_until = until;
                runs
            }
            FaultKind::Promote => self.promote(number),
        };
        *self.struck.entry(fault.kind).or_default() += u64::from(has_struck);
    }

    fn between(&mut self, node: usize, other: usize, change: &dyn Fn(&mut Link)) -> bool {
        if node == other {
            return false;
        }
        for direction in [(node, other), (other, node)] {
            change(self.links.entry(direction).or_default());
        }
        true
    }

    /// Only where each of its shards has another copy that is whole.
    fn lose_disk(&mut self, node: usize) -> bool {
        let id = self.nodes[node].id;
        let has_other = |isr: &[NodeId]| {
            let others = isr.iter().filter(|other| **other != id);
            let mut others = others.filter_map(|other| self.nodes.iter().find(|n| n.id == *other));
            others.any(|other| !other.is_gone)
        };
        let state = Arc::clone(self.newest());
        let mut shards = state.shard_map.iter();
        let is_spare = shards.all(|record| !record.isr.contains(&id) || has_other(&record.isr));
        if !is_spare || self.nodes[node].is_gone || self.nodes.len() >= MOST_NODES {
            return false;
        }
        self.crash(node);
        self.note_lost_blocks(node);
        self.nodes[node].is_gone = true;
        for log in &mut self.nodes[node].disk {
            *log = ShardLog::default();
        }
        self.soon(10 * MS, 200 * MS, Event::Join);
        true
    }

    fn change_replication(&mut self, by: usize) -> bool {
        let before = self.newest().replication;
        // One to three.
        let wanted = 1 + u8::try_from((usize::from(before) + by) % 3).unwrap_or(0);
        self.change(|state| state.replication = wanted);
        wanted != before
    }

    /// Asks the primary of some trace's shard to keep it.
    fn promote(&mut self, number: usize) -> bool {
        let Some(client) = self.clients.get(number * 7 % self.clients.len().max(1)) else {
            return false;
        };
        let (shard, trace_id) = (client.shard, client.trace_id);
        let primary = self.newest().shard_map[shard].primary;
        let Some(node) = self.nodes.iter().position(|node| node.id == primary) else {
            return false;
        };
        let tenant = TenantId::default();
        let record = self.nodes[node].disk[shard].verdict(trace_id).cloned();
        let promoted = self.step(node, shard, |state, step, effects| {
            match (state.promote(&tenant, trace_id, step, effects), record) {
                (Promotion::Absent, Some(record)) => state.promote_dropped(record, step, effects),
                (promotion, _) => promotion,
            }
        });
        self.perform(node, shard);
        promoted == Some(Promotion::Decided)
    }
}
