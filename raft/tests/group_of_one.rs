//! A group of one: what a single node's settings promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spandrel_model::ids::NodeId;
use spandrel_raft::{
    Applied, ClusterSeed, Command, Conflict, DirectoryIdentity, NoPeers, OpenError, ProposeError,
    RaftOptions, Settings, Start,
};
use spandrel_storage::disk::{RealDisk, SimulatedDisk};
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
    assert_eq!(
        (state.cluster_id, state.shards, state.policy.version),
        (5, 64, 1)
    );
    let response = settings.propose(retention(604_800, 86_400)).await.unwrap();
    assert_eq!(response.applied, Applied::Done);
    assert_eq!(settings.state().retention_seconds, 86_400);
    settings.shutdown().await;
    drop(settings);

    // and its directory says whose it is
    let identity = DirectoryIdentity::read(&RealDisk, dir.path()).unwrap();
    let (cluster_id, node) = (5, NodeId(1));
    assert_eq!(identity, Some(DirectoryIdentity { cluster_id, node }));
    let empty = TempDir::new().unwrap();
    let identity = DirectoryIdentity::read(&RealDisk, empty.path()).unwrap();
    assert_eq!(identity, None);

    // when it is opened again with another seed
    let settings = open(dir.path(), 6).await;

    // then the state is the old one, and takes changes
    assert!(!settings.created());
    assert_eq!(settings.cluster_id(), 5);
    assert_eq!(
        settings.linearizable().await.unwrap().retention_seconds,
        86_400
    );
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
    let ProposeError::Conflict(Conflict::Changed {
        expected: 1,
        actual: 2,
        ..
    }) = second
    else {
        panic!("{second:?}");
    };
    assert_eq!(settings.state().policy.yaml, "a");
    settings.shutdown().await;
}

/// Opens, founds and closes a directory.
async fn used_directory(cluster_id: u64) -> TempDir {
    let dir = TempDir::new().unwrap();
    open(dir.path(), cluster_id).await.shutdown().await;
    dir
}

#[tokio::test(start_paused = true)]
async fn a_directory_of_another_cluster_or_node_is_refused() {
    let dir = used_directory(5).await;

    let joined = try_open(dir.path(), Start::Join { cluster_id: 9 }).await;
    assert!(matches!(
        joined.unwrap_err(),
        OpenError::Foreign {
            what: "cluster",
            expected: 9,
            found: 5,
            ..
        }
    ));

    let mut other_node = options(dir.path(), Start::Join { cluster_id: 5 });
    other_node.node = NodeId(2);
    let opened = Settings::open(other_node, Arc::new(NoPeers)).await;
    assert!(matches!(
        opened.unwrap_err(),
        OpenError::Foreign {
            what: "node",
            expected: 2,
            found: 1,
            ..
        }
    ));

    // the right ones open
    let joined = try_open(dir.path(), Start::Join { cluster_id: 5 })
        .await
        .unwrap();
    assert!(!joined.created());
    joined.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_log_of_another_cluster_is_refused() {
    let (dir, other) = (used_directory(5).await, used_directory(6).await);
    std::fs::copy(other.path().join("raft.redb"), dir.path().join("raft.redb")).unwrap();
    let error = try_open(dir.path(), Start::Found(seed(5)))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("raft.redb"), "{error}");
    assert!(matches!(
        error,
        OpenError::Foreign {
            expected: 5,
            found: 6,
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_lost_log_is_an_error_and_a_lost_identity_file_is_not() {
    let dir = used_directory(5).await;
    // the identity file alone can be written again
    std::fs::remove_file(dir.path().join("cluster.id")).unwrap();
    open(dir.path(), 6).await.shutdown().await;
    assert!(dir.path().join("cluster.id").exists());
    // a log without its votes cannot
    std::fs::remove_file(dir.path().join("raft.redb")).unwrap();
    let error = try_open(dir.path(), Start::Found(seed(5)))
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::LogMissing { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_bad_seed_is_refused_and_leaves_no_directory() {
    let dir = TempDir::new().unwrap();
    let bad = ClusterSeed {
        shards: 63,
        ..seed(5)
    };
    let error = try_open(dir.path(), Start::Found(bad)).await.unwrap_err();
    assert!(
        error.to_string().contains("shards must be a power of two"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_log_is_an_error_that_names_the_file() {
    let dir = used_directory(5).await;
    let path = dir.path().join("raft.redb");
    let whole = std::fs::read(&path).unwrap();

    // damage to a value that is surely in use
    let text = b"policies: []";
    let mut damaged = whole.clone();
    for position in 0..whole.len() - text.len() {
        if &whole[position..position + text.len()] == text {
            damaged[position] ^= 1;
        }
    }
    assert_ne!(damaged, whole);
    std::fs::write(&path, &damaged).unwrap();
    let error = try_open(dir.path(), Start::Found(seed(5)))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, OpenError::Store(store) if store.corrupt),
        "{error:?}"
    );
    assert!(error.to_string().contains("raft.redb"), "{error}");

    // damage anywhere: an error that names the file, or nothing of use was hit
    let mut errors = 0;
    for step in 0..48 {
        let mut damaged = whole.clone();
        let position = step * whole.len() / 48 + step;
        for byte in damaged.iter_mut().skip(position).take(64) {
            *byte ^= 0x5a;
        }
        std::fs::write(&path, &damaged).unwrap();
        match try_open(dir.path(), Start::Found(seed(5))).await {
            Ok(settings) => settings.shutdown().await,
            Err(error) => {
                errors += 1;
                assert!(error.to_string().contains("raft.redb"), "{error}");
            }
        }
    }
    assert!(errors > 0);

    // a file that was cut, and an empty one
    for length in [whole.len() / 2, 100, 0] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = try_open(dir.path(), Start::Found(seed(5)))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("raft.redb"), "{error}");
    }
}

/// A node whose settings could not be written any more went on without them: it led shards, and nobody noticed.
#[tokio::test(start_paused = true)]
async fn settings_that_cannot_be_written_say_so_and_those_that_are_shut_down_do_not() {
    let open = |disk: &SimulatedDisk| {
        let options = RaftOptions {
            disk: Arc::new(disk.clone()),
            ..options(Path::new("/raft"), Start::Found(seed(5)))
        };
        Settings::open(options, Arc::new(NoPeers))
    };
    let patience = Duration::from_secs(5);
    let disk = SimulatedDisk::new(1);
    let settings = open(&disk).await.unwrap();
    assert!(
        tokio::time::timeout(patience, settings.stopped())
            .await
            .is_err()
    );

    disk.fail_sync(1);
    let refused = settings.propose(retention(604_800, 7_200)).await;
    assert!(refused.is_err());
    let reason = tokio::time::timeout(patience, settings.stopped()).await;
    assert!(reason.unwrap().unwrap().contains("raft.redb"));
    settings.shutdown().await;

    let settings = open(&SimulatedDisk::new(2)).await.unwrap();
    settings.shutdown().await;
    let reason = tokio::time::timeout(patience, settings.stopped()).await;
    assert_eq!(reason, Ok(None));
}
