//! What a plan costs: the leader makes one each time a node comes or goes.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::num::NonZeroU8;

use criterion::{Criterion, criterion_group, criterion_main};
use spandrel_actors::placement::{PlacementNode, plan};
use spandrel_model::ids::NodeId;

fn placement(criterion: &mut Criterion) {
    let nodes: Vec<PlacementNode> = (1..=50)
        .map(|id| PlacementNode {
            id: NodeId(id),
            weight: NonZeroU8::new(1).unwrap(),
            zone: format!("zone {}", id % 3),
        })
        .collect();
    for shards in [256, 1024] {
        criterion.bench_function(
            &format!("plan 50 nodes, {shards} shards, 3 copies"),
            |bencher| {
                bencher.iter(|| plan(black_box(&nodes), shards, 3, 7));
            },
        );
    }
}

criterion_group!(benches, placement);
criterion_main!(benches);
