//! Several whole nodes in one simulation: openraft, the links, journals and blocks as in production, over the network of
//! turmoil, with processes, disks and clocks of their own. Faults strike between two steps of a millisecond.
//!
//! Not simulated: threads.

mod compare;
mod cut;
mod fleet;
mod host;
mod kernel;
mod machine;
mod network;
mod plan;
mod player;
mod streams;
mod strikes;

use std::sync::Arc;

use spandrel_storage::disk::SimulatedDisk;

pub use self::cut::Cut;
use self::fleet::Fleet;
pub use self::plan::ClusterPlan;
use self::player::Player;
use crate::check::verdicts_follow_from_their_records;
use crate::life::data_dir;
use crate::panics;
use crate::random::{Stream, stream};
use crate::world::World;

/// Milliseconds of a step: what happens within one is at one time for the clocks of the nodes.
const TICK_MS: u64 = 1;

/// Runs a plan to its end, or to the first promise that is broken.
pub(crate) fn run(world: &Arc<World>, plan: ClusterPlan) {
    use rand::Rng;
    panics::note();
    let mut seeds = stream(plan.node.seed, Stream::Disk);
    let disks = (0..plan.places).map(|_| SimulatedDisk::new(seeds.next_u64()));
    let fleet = Arc::new(Fleet::new(Arc::clone(world), plan, disks.collect()));
    let mut player = Player::new(Arc::clone(&fleet), seeds.next_u64());
    player.play();
    // Nothing that ends with the simulation writes to a disk.
    let kept = player.end_all();
    if world.violation().is_some() {
        return;
    }
    let journals = fleet.disks.iter().map(|disk| {
        let journal = data_dir().join("journal");
        verdicts_follow_from_their_records(world, disk, &journal)
    });
    let recomputed = journals.collect::<Result<(), _>>();
    if let Err(found) = kept.and(recomputed) {
        world.violate(found);
    }
}
