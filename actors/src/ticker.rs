//! The clock of the assemblers: one timer for all, because to wake a thread costs as much as most of their ticks.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::time::{MissedTickBehavior, interval};

use crate::assembler_message::AssemblerMessage;
use crate::limits::{ASSEMBLER_TICK_MS, ASSEMBLER_TICK_TURNS};

/// Lets every assembler look for what is due once in [`ASSEMBLER_TICK_MS`], in turns, until they stop.
pub(crate) async fn tick(shards: Arc<[ActorRef<AssemblerMessage>]>) {
    let tick = Duration::from_millis(ASSEMBLER_TICK_MS);
    let mut turns = interval(tick / u32::from(ASSEMBLER_TICK_TURNS));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in (0..ASSEMBLER_TICK_TURNS).cycle() {
        turns.tick().await;
        let shards = shards.iter().skip(usize::from(turn));
        for shard in shards.step_by(usize::from(ASSEMBLER_TICK_TURNS)) {
            if shard.cast(AssemblerMessage::Tick).is_err() {
                return;
            }
        }
    }
}
