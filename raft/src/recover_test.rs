//! A group whose majority is lost, from its directories.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use spandrel_model::ids::{Bucket, NodeId, ShardId, Term};
use spandrel_storage::disk::RealDisk;
use tempfile::TempDir;

use crate::recover::{LogEnd, RecoverError, RecoveredCluster, follow, recover, survey};
use crate::state::{HolderChange, HolderKey, NodeAddresses, NodeState, ShardRecord};
use crate::{ClusterSeed, Command, DirectoryIdentity, NoPeers, RaftOptions, Settings, Start};

const LOST_CLUSTER: u64 = 5;
const NEW_CLUSTER: u64 = 6;

fn seed() -> ClusterSeed {
    ClusterSeed {
        cluster_id: LOST_CLUSTER,
        routing_key: 77,
        shards: 4,
        replication: 2,
        retention_seconds: 604_800,
        policy_yaml: "policies: []".to_owned(),
    }
}

async fn open(dir: &Path, start: Start) -> Settings {
    let options = RaftOptions {
        disk: Arc::new(RealDisk),
        dir: dir.to_owned(),
        node: NodeId(1),
        start,
    };
    Settings::open(options, Arc::new(NoPeers)).await.unwrap()
}

fn record(primary: u64, isr: &[u64], filling: &[u64]) -> ShardRecord {
    let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
    ShardRecord {
        term: Term(1),
        primary: NodeId(primary),
        isr: ids(isr),
        filling: ids(filling),
        moving_to: None,
    }
}

fn lost(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

/// The directory of node 1 of three: shard 0 is on 1 and 2, shard 1 on 2 and 3, shard 2 on 2 alone while 1 fills, and
/// shard 3 on all.
async fn survivor() -> TempDir {
    let dir = TempDir::new().unwrap();
    let settings = open(dir.path(), Start::Found(seed())).await;
    for disk_id in 1..=3 {
        let admit = Command::AdmitNode {
            disk_id,
            addresses: NodeAddresses::default(),
            zone: String::new(),
        };
        settings.propose(admit).await.unwrap();
    }
    let records = vec![
        record(2, &[1, 2], &[]),
        record(2, &[2, 3], &[]),
        record(2, &[2], &[1]),
        record(1, &[1, 2, 3], &[]),
    ];
    settings
        .propose(Command::StartShards { records })
        .await
        .unwrap();
    let held = |shard, holders: &[u64]| HolderChange {
        bucket: Bucket(9),
        key: HolderKey {
            shard: ShardId(shard),
            term: Term(1),
        },
        expected: Vec::new(),
        holders: holders.iter().copied().map(NodeId).collect(),
    };
    let changes = vec![held(0, &[1, 2]), held(1, &[2, 3])];
    settings
        .propose(Command::SetHolders { changes })
        .await
        .unwrap();
    settings.shutdown().await;
    dir
}

fn recovered_without_2_and_3(dir: &Path) -> RecoveredCluster {
    let (recovered, losses) = recover(&RealDisk, dir, NEW_CLUSTER, &lost(&[2, 3])).unwrap();
    assert_eq!(losses.shards, [ShardId(1), ShardId(2)]);
    assert_eq!(losses.pieces, 1);
    recovered
}

#[tokio::test]
async fn the_survivor_goes_on_with_what_it_knows_as_another_cluster() {
    let dir = survivor().await;
    let before = survey(&RealDisk, dir.path()).unwrap();
    assert_eq!((before.node, before.state.nodes.len()), (NodeId(1), 3));
    let recovered = recovered_without_2_and_3(dir.path());
    assert_eq!(recovered.end, before.end);

    // when it starts again, as often as it will
    for proposed in 0..2 {
        let settings = open(dir.path(), Start::Found(seed())).await;
        let state = settings.state();
        assert_eq!(state.cluster_id, NEW_CLUSTER);
        assert_eq!(state.nodes.keys().copied().collect::<Vec<_>>(), [NodeId(1)]);
        assert_eq!((state.next_node, state.routing_key), (4, 77));
        assert!(
            state
                .nodes
                .values()
                .all(|node| node.state == NodeState::Down)
        );
        for shard in &state.shard_map {
            assert_eq!((shard.term, shard.primary), (Term(2), NodeId(1)));
            assert_eq!((&shard.isr[..], shard.filling.len()), (&[NodeId(1)][..], 0));
        }
        let held = |shard| {
            let key = HolderKey {
                shard: ShardId(shard),
                term: Term(1),
            };
            state.holders[&Bucket(9)][&key].clone()
        };
        // what only lost nodes held is still known to be missing
        assert_eq!(held(0), [NodeId(1)]);
        assert_eq!(held(1), [NodeId(2), NodeId(3)]);
        assert_eq!(settings.members().voters, lost(&[1]));
        // then it leads, and takes commands
        let command = Command::SetRetention {
            expected_seconds: 604_800 + proposed,
            seconds: 604_801 + proposed,
        };
        settings.propose(command).await.unwrap();
        settings.shutdown().await;
    }
    // and the log of the lost cluster is still there
    assert!(dir.path().join("raft.redb.of-0000000000000005").exists());
}

#[tokio::test]
async fn what_cannot_be_recovered_is_told_and_nothing_changes() {
    let dir = survivor().await;
    let tried = |nodes: &[u64]| recover(&RealDisk, dir.path(), NEW_CLUSTER, &lost(nodes));
    let own = tried(&[1, 2]).unwrap_err();
    assert!(matches!(own, RecoverError::OwnNode { node: 1 }), "{own}");
    let unknown = tried(&[2, 9]).unwrap_err().to_string();
    assert!(unknown.contains('9'), "{unknown}");
    let empty = TempDir::new().unwrap();
    let nothing = recover(&RealDisk, empty.path(), NEW_CLUSTER, &lost(&[2]));
    assert!(matches!(nothing, Err(RecoverError::Empty { .. })));
    let settings = open(dir.path(), Start::Found(seed())).await;
    assert_eq!(settings.state().cluster_id, LOST_CLUSTER);
    settings.shutdown().await;
}

fn copy_of(dir: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for file in std::fs::read_dir(dir).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

#[tokio::test]
async fn another_survivor_follows_unless_it_knows_more() {
    let first = survivor().await;
    let (second, third) = (copy_of(first.path()), copy_of(first.path()));
    let recovered = recovered_without_2_and_3(first.path());
    let text = recovered.to_string();
    assert_eq!(text.parse::<RecoveredCluster>().unwrap(), recovered);
    assert!("5-6-1-1".parse::<RecoveredCluster>().is_err());

    // a node whose log goes no further
    assert_eq!(
        follow(&RealDisk, second.path(), &recovered).unwrap(),
        NodeId(1)
    );
    // as often as it is said, also after a crash before the last step
    std::fs::remove_file(second.path().join("cluster.id")).unwrap();
    assert_eq!(
        follow(&RealDisk, second.path(), &recovered).unwrap(),
        NodeId(1)
    );
    let identity = DirectoryIdentity::read(&RealDisk, second.path()).unwrap();
    assert_eq!(identity.map(|known| known.cluster_id), Some(NEW_CLUSTER));
    let joining = Start::Join {
        cluster_id: NEW_CLUSTER,
    };
    let settings = open(second.path(), joining).await;
    assert!(!settings.state().is_seeded());
    settings.shutdown().await;

    // one whose log goes further, and one of another cluster
    let settings = open(third.path(), Start::Found(seed())).await;
    settings.shutdown().await;
    let ahead = follow(&RealDisk, third.path(), &recovered).unwrap_err();
    assert!(matches!(ahead, RecoverError::Ahead { .. }), "{ahead}");
    let end = LogEnd {
        term: u64::MAX,
        ..recovered.end
    };
    let foreign = RecoveredCluster {
        from: 7,
        end,
        ..recovered
    };
    let other = follow(&RealDisk, third.path(), &foreign).unwrap_err();
    assert!(
        matches!(other, RecoverError::OtherCluster { .. }),
        "{other}"
    );
    let identity = DirectoryIdentity::read(&RealDisk, third.path()).unwrap();
    assert_eq!(identity.map(|known| known.cluster_id), Some(LOST_CLUSTER));
}

/// The heir of a shard without an in-sync survivor went by turns, past the node that had held it last.
#[tokio::test]
async fn what_no_survivor_is_in_sync_of_goes_to_who_held_it_last() {
    let dir = survivor().await;
    let mut state = survey(&RealDisk, dir.path()).unwrap().state;
    for shard in [0, 1, 3] {
        state.shard_map[shard].isr = vec![NodeId(2)];
    }
    let (left, losses) = state.without(NEW_CLUSTER, &lost(&[2])).unwrap();
    let primaries: Vec<u64> = left.shard_map.iter().map(|shard| shard.primary.0).collect();
    // 0 and 1 as the holders say, 2 was filling, 3 is on record nowhere
    assert_eq!(primaries, [1, 3, 1, 1]);
    assert_eq!(losses.shards.len(), 4);
}
