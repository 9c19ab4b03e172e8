//! A group of one: what a single node's settings promise.

use std::path::Path;
use std::sync::Arc;

use spandrel_model::ids::NodeId;
use spandrel_raft::{
    Applied, ClusterSeed, Command, Conflict, NoPeers, OpenError, ProposeError, RaftOptions,
    Settings, Start,
};
use spandrel_storage::disk::RealDisk;
use tempfile::TempDir;

fn seed(cluster_id: u64) -> ClusterSeed {
    ClusterSeed {
        cluster_id,
        routing_key: 77,
        shards: 64,
        replication: 3,
        retention_seconds: 604_800,
        policy_yaml: "policies: []".to_owned(),
    }
}

fn options(dir: &Path, start: Start) -> RaftOptions {
    RaftOptions {
        disk: Arc::new(RealDisk),
        dir: dir.to_owned(),
        node: NodeId(1),
        start,
    }
}

async fn try_open(dir: &Path, start: Start) -> Result<Settings, OpenError> {
    Settings::open(options(dir, start), Arc::new(NoPeers)).await
}

async fn open(dir: &Path, cluster_id: u64) -> Settings {
    try_open(dir, Start::Found(seed(cluster_id))).await.unwrap()
}

fn retention(expected_seconds: u64, seconds: u64) -> Command {
    Command::SetRetention {
        expected_seconds,
        seconds,
    }
}

#[tokio::test(start_paused = true)]
async fn settings_survive_a_restart_and_the_second_seed_is_ignored() {
    let dir = TempDir::new().unwrap();
    // given a founded cluster with one change
    let settings = open(dir.path(), 5).await;
    assert!(settings.created());
    let state = settings.state();
    assert_eq!((state.cluster_id, state.shards, state.policy.version), (5, 64, 1));
    let response = settings.propose(retention(604_800, 86_400)).await.unwrap();
    assert_eq!(response.applied, Applied::Done);
    assert_eq!(settings.state().retention_seconds, 86_400);
    settings.shutdown().await;
    drop(settings);

    // when it is opened again with another seed
    let settings = open(dir.path(), 6).await;

    // then the state is the old one, and takes changes
    assert!(!settings.created());
    assert_eq!(settings.cluster_id(), 5);
    assert_eq!(settings.linearizable().await.unwrap().retention_seconds, 86_400);
    settings.propose(retention(86_400, 7_200)).await.unwrap();
    assert_eq!(settings.leader(), Some(NodeId(1)));
    settings.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_second_of_two_changes_gets_a_conflict() {
    let dir = TempDir::new().unwrap();
    let settings = open(dir.path(), 5).await;
    let apply = |yaml: &str| Command::ApplyPolicy {
        expected_version: 1,
        yaml: yaml.to_owned(),
    };
    let first = settings.propose(apply("a")).await.unwrap();
    assert_eq!(first.applied, Applied::Version(2));
    let second = settings.propose(apply("b")).await.unwrap_err();
    let ProposeError::Conflict(Conflict::Changed { expected: 1, actual: 2, .. }) = second else {
        panic!("{second:?}");
    };
    assert_eq!(settings.state().policy.yaml, "a");
    settings.shutdown().await;
}
