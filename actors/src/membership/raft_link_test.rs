//! The settings' group over Hubs: it forms, survives a partition of its leader, and the leader follows afterwards.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spandrel_model::ids::NodeId;
use spandrel_raft::{ClusterSeed, Command, RaftOptions, Settings, Start};
use spandrel_storage::disk::SimulatedDisk;

use super::raft_link::{RaftHandler, RaftLink};
use crate::link::testing::{
    CLUSTER, Flow, MemoryNetwork, TestNode, host, introduce, until_connected,
};
use crate::link::{Link, PeerHandler, PeerService};

/// A member whose calls are answered by its settings.
struct Member {
    node: TestNode,
    settings: Settings,
}

async fn open(node: &TestNode, id: u64, start: Start) -> Settings {
    let options = RaftOptions {
        disk: Arc::new(SimulatedDisk::new(id)),
        dir: Path::new("/raft").to_owned(),
        node: NodeId(id),
        start,
    };
    let link: Arc<dyn Link> = node.hub.clone();
    let transport = Arc::new(RaftLink(link));
    Settings::open(options, transport).await.unwrap()
}

impl Member {
    /// Answers what comes in, in a task.
    fn serve(mut node: TestNode, settings: Settings) -> Self {
        let (_, nothing) = tokio::sync::mpsc::unbounded_channel();
        let mut calls = std::mem::replace(&mut node.calls, nothing);
        let handler = RaftHandler::new(settings.clone());
        tokio::spawn(async move {
            while let Some(call) = calls.recv().await {
                assert_eq!(call.service, PeerService::Raft);
                handler.deliver(call);
            }
        });
        Self { node, settings }
    }

    async fn sees_retention(&self, seconds: u64) {
        let mut states = self.settings.watch();
        let seen = states.wait_for(|state| state.retention_seconds == seconds);
        let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
        seen.expect("the change does not arrive").unwrap();
    }
}

fn retention(expected_seconds: u64, seconds: u64) -> Command {
    Command::SetRetention {
        expected_seconds,
        seconds,
    }
}

#[tokio::test(start_paused = true)]
async fn the_settings_group_lives_on_the_links() {
    let network = Arc::new(MemoryNetwork::default());
    let seed = ClusterSeed {
        cluster_id: CLUSTER,
        routing_key: 77,
        shards: 64,
        replication: 3,
        retention_seconds: 604_800,
        policy_yaml: "policies: []".to_owned(),
    };
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(TestNode::start(&network, id, 1).await);
    }
    let named: Vec<_> = (1..).zip(&nodes).collect();
    introduce(&named);
    until_connected(&named).await;
    let mut members = Vec::new();
    for (id, node) in (1..).zip(nodes) {
        let start = match id {
            1 => Start::Found(seed.clone()),
            _ => Start::Join {
                cluster_id: CLUSTER,
            },
        };
        let settings = open(&node, id, start).await;
        members.push(Member::serve(node, settings));
    }
    let leader = &members[0].settings;
    for id in [2, 3] {
        leader.add_learner(NodeId(id)).await.unwrap();
    }
    let voters = BTreeSet::from([1, 2, 3].map(NodeId));
    leader.set_voters(voters).await.unwrap();

    // A follower's proposal goes through the leader to all.
    members[2]
        .settings
        .propose(retention(604_800, 86_400))
        .await
        .unwrap();
    for member in &members {
        member.sees_retention(86_400).await;
    }

    // Cut off, the leader is replaced; back again, it follows.
    for id in [2, 3] {
        network.set_flow(&host(1), &host(id), Flow::Stalled);
    }
    members[1].settings.leader_changed(Some(NodeId(1))).await;
    members[1]
        .settings
        .propose(retention(86_400, 7_200))
        .await
        .unwrap();
    members[2].sees_retention(7_200).await;
    for id in [2, 3] {
        network.set_flow(&host(1), &host(id), Flow::Open);
    }
    members[0].sees_retention(7_200).await;
    for member in members {
        member.settings.shutdown().await;
        member.node.hub.stop().await;
    }
}
