//! What nodes hold is compared, and what one of them lacks it gets from another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use spandrel_model::ids::{Bucket, NodeId, SpanId, TenantId, UnixNanos};
use spandrel_model::search::{SearchFilter, TagCondition};
use spandrel_storage::block::{BlockOptions, BlockStore, Inventory, PagePlace, Wanted};
use spandrel_storage::disk::{Disk, SimulatedDisk};
use support::members::{Cluster, stop_all};
use support::{TestNode, pass, span};

const TRACES: std::ops::Range<u8> = 1..40;
/// The node whose block loses something, on a disk of its own.
const VICTIM: u64 = 2;
const BUCKET_S: u64 = 600;
/// Seconds after the end of a bucket at which no page is expected for it any more, and some.
const SEALED_S: u64 = 640;

fn path(cluster: &Cluster, bucket: Bucket) -> PathBuf {
    let name = format!("bucket-{}.block", bucket.0);
    cluster.data_dir(VICTIM).join("blocks").join(name)
}

/// Opens the blocks of the node that is stopped.
fn blocks(cluster: &Cluster, boot: u64) -> BlockStore {
    let disk = Arc::new(cluster.disks[&VICTIM].clone());
    let dir = cluster.data_dir(VICTIM).join("blocks");
    let options = BlockOptions {
        boot,
        ..BlockOptions::default()
    };
    BlockStore::open(disk, &dir, options).unwrap()
}

fn count(blocks: &BlockStore, bucket: Bucket) -> Inventory {
    let (mut inventory, mut after) = (Inventory::default(), PagePlace::default());
    while let Some(next) = blocks.count_spans(bucket, after, &mut inventory).unwrap() {
        after = next;
    }
    inventory
}

/// Three nodes with the same kept traces in a closed bucket; then the second one is stopped, something happens to its
/// block, and it is started again. What it `knows` that it cannot read it asks another for.
async fn mended(
    knows: bool,
    happens: impl FnOnce(&Cluster, Bucket),
    lacks_at_first: impl FnOnce(usize) -> bool,
) {
    let mut cluster = Cluster::new();
    cluster.bucket_nanos = BUCKET_S * UnixNanos::PER_SECOND;
    cluster.disks.insert(VICTIM, SimulatedDisk::new(VICTIM));
    let [first, second, third] = cluster.three().await;
    let testing = |node| TestNode {
        node,
        clock: Arc::clone(&cluster.clock),
    };
    let tenant = TenantId::default();
    let [first, third] = [testing(first), testing(third)];
    for trace in TRACES {
        first
            .send(&tenant, &[span(trace, 1, 0), span(trace, 2, 1)])
            .await;
    }
    pass(60).await;
    let second = testing(second);
    for node in [&first, &second, &third] {
        node.flush().await;
    }
    pass(BUCKET_S + SEALED_S).await;
    assert_eq!(second.node.admin().status().await.uncompared_buckets, 0);
    let bucket = Bucket(u32::try_from(1_800_000_000 / BUCKET_S).unwrap());
    second.node.stop().await;
    // What the process still has open is closed with it.
    let disk = &cluster.disks[&VICTIM];
    disk.restore(&disk.image());
    happens(&cluster, bucket);
    let second = testing(cluster.restart(VICTIM).await);
    let found = all_alone(&second, &tenant).await;
    assert!(lacks_at_first(found), "{found} traces");
    if knows {
        by_others(&second, &tenant).await;
    }

    // It counts what it has some seconds later, and gets what the others have.
    pass(60).await;
    assert_eq!(all_alone(&second, &tenant).await, TRACES.len());
    let status = second.node.admin().status().await;
    assert_eq!(
        (status.uncompared_buckets, status.differing_buckets),
        (0, 0)
    );
    let alone = second.node.query_alone();
    let found = alone.search(second.request(&tenant, SearchFilter::default()));
    let found = found.await.unwrap();
    assert!(found.receipt.complete, "{:?}", found.receipt);
    assert_eq!(found.traces.len(), TRACES.len());
    assert!(found.traces.iter().all(|found| found.span_count == 2));
    // It stays so, also when the bucket has been closed again and somebody asks.
    pass(60).await;
    second.node.admin().repair().await.unwrap();
    assert!(second.node.admin().status().await.uncompared_buckets > 0);
    pass(30).await;
    assert_eq!(second.node.admin().status().await.uncompared_buckets, 0);
    second.node.stop().await;
    disk.restore(&disk.image());
    let inventory = count(&blocks(&cluster, 90), bucket);
    assert_eq!(
        (inventory.spans_read, inventory.damaged.len()),
        (2 * TRACES.len() as u64, 0)
    );
    stop_all([first.node, third.node]).await;
}

/// The node answers whatever it cannot read itself.
async fn by_others(node: &TestNode, tenant: &TenantId) {
    let tag = TagCondition {
        key: "shop.note".to_owned(),
        value: "plain".to_owned(),
    };
    let by_columns = SearchFilter {
        tags: vec![tag],
        ..SearchFilter::default()
    };
    let alone = node.node.query_alone();
    let alone = alone.search(node.request(tenant, by_columns.clone()));
    assert!(!alone.await.unwrap().receipt.complete);
    for filter in [SearchFilter::default(), by_columns] {
        assert_eq!(node.search(tenant, filter).await.len(), TRACES.len());
    }
    for trace in TRACES {
        assert_eq!(node.spans(tenant, trace).await.len(), 2, "trace {trace}");
    }
}

/// The traces that a node has whole.
async fn all_alone(node: &TestNode, tenant: &TenantId) -> usize {
    let both: BTreeSet<SpanId> = [1, 2].map(|id| SpanId([id; 8])).into();
    let mut whole = 0;
    for trace in TRACES {
        let answer = node.try_spans_alone(tenant, trace).await;
        whole += usize::from(answer.as_ref() == Some(&both));
    }
    whole
}

/// Puts a block of the wanted fragments, as copies of node `from`, in the place of the victim's.
fn write_anew(cluster: &Cluster, bucket: Bucket, wanted: Wanted<'_>, from: NodeId) {
    let before = blocks(cluster, 80);
    let (mut copies, mut after) = (Vec::new(), PagePlace::default());
    loop {
        let part = before.export(bucket, wanted, from, after).unwrap();
        copies.extend(part.write);
        match part.next {
            Some(next) => after = next,
            None => break,
        }
    }
    drop(before);
    let path = path(cluster, bucket);
    cluster.disks[&VICTIM].remove(&path).unwrap();
    let anew = blocks(cluster, 81);
    for write in copies {
        anew.commit(&write).unwrap();
    }
    anew.seal(bucket).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_lost_some_traces_gets_them_from_another() {
    let loses = |cluster: &Cluster, bucket| {
        write_anew(cluster, bucket, &|head| head.shard.0 < 2, NodeId(VICTIM));
    };
    mended(false, loses, |found| found > 0 && found < TRACES.len()).await;
}

/// Lets a byte rot whose change a reader of pages notices, and the database does not.
fn rot(cluster: &Cluster, bucket: Bucket) {
    let (disk, path) = (&cluster.disks[&VICTIM], path(cluster, bucket));
    let len = disk.len_of(&path).unwrap();
    let before = disk.image();
    let damages = |at: &u64| {
        disk.restore(&before);
        assert!(disk.flip(&path, *at, 1));
        let rotten = disk.image();
        let blocks = blocks(cluster, 82);
        let is_open = blocks.unopenable().is_empty();
        let (mut inventory, first) = (Inventory::default(), PagePlace::default());
        let counted = blocks.count_spans(bucket, first, &mut inventory);
        drop(blocks);
        disk.restore(&rotten);
        is_open && counted.is_ok() && !inventory.damaged.is_empty()
    };
    let found = (4_096..len).step_by(97).find(damages);
    assert!(found.is_some(), "nothing in {len} bytes is a page");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_has_rotted_is_replaced() {
    mended(true, rot, |found| found < TRACES.len()).await;
}

/// What came from other nodes comes under the same numbers again.
#[tokio::test(start_paused = true)]
async fn a_page_of_copies_that_has_rotted_is_replaced() {
    let rots = |cluster: &Cluster, bucket: Bucket| {
        // As the first node would give them: it has built the pages, and they have its numbers.
        write_anew(cluster, bucket, &|_| true, NodeId(1));
        rot(cluster, bucket);
    };
    mended(true, rots, |found| found < TRACES.len()).await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_gone_is_made_anew() {
    let goes = |cluster: &Cluster, bucket: Bucket| {
        cluster.disks[&VICTIM]
            .remove(&path(cluster, bucket))
            .unwrap();
    };
    mended(false, goes, |found| found == 0).await;
}
