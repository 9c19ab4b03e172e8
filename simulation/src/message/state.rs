//! The state of all shards, in the hash of the run: two runs of a seed that come to differ do so at the step at which
//! they first hold something else, whatever they tell.

use xxhash_rust::xxh3::Xxh3;

use super::node::{Process, Role, Side};
use super::world::World;

impl World {
    /// Takes note of what every process holds.
    pub(crate) fn note_state(&mut self) {
        let mut state = Xxh3::with_seed(self.hash);
        for node in &self.nodes {
            match &node.process {
                None => state.update(&[0]),
                Some(process) => note_process(&mut state, process),
            }
        }
        self.hash = state.digest();
    }
}

fn note_process(state: &mut Xxh3, process: &Process) {
    let waiting = [
        process.waiting.len(),
        process.queue.len(),
        process.calls.len(),
    ];
    put(state, &waiting.map(|count| count as u64));
    process.sides.iter().for_each(|side| note_side(state, side));
}

fn note_side(state: &mut Xxh3, side: &Side) {
    let role = match &side.role {
        Role::None => [0; 4],
        Role::Primary(primary) => [
            primary.term.0,
            primary.last.0,
            primary.local.0,
            primary.commit.0,
        ],
        Role::Follower(follower) => {
            let durable = follower.durable_up_to();
            [
                follower.term.0,
                follower.last.0,
                durable.0,
                follower.commit.0,
            ]
        }
    };
    put(state, &role);
    let shard = &side.state;
    put(
        state,
        &[
            shard.traces() as u64,
            shard.open_traces() as u64,
            shard.memory_bytes(),
        ],
    );
    put(state, &[shard.applied().0, shard.counted().0]);
}

fn put(state: &mut Xxh3, values: &[u64]) {
    values
        .iter()
        .for_each(|value| state.update(&value.to_le_bytes()));
}
