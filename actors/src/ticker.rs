//! The clock of the assemblers: one timer for all, because to wake a thread costs as much as most of their ticks.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::time::{MissedTickBehavior, interval};

use crate::assembler_message::AssemblerMessage;
use crate::limits::{ASSEMBLER_TICK_MS, ASSEMBLER_TICK_TURNS};

/// Lets every assembler look for what is due once in [`ASSEMBLER_TICK_MS`], in turns, until they stop.
pub(crate) async fn tick(shards: Arc<[ActorRef<AssemblerMessage>]>) {
    let mut turns = interval(Duration::from_millis(
        ASSEMBLER_TICK_MS / ASSEMBLER_TICK_TURNS,
    ));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in (0..ASSEMBLER_TICK_TURNS as usize).cycle() {
        turns.tick().await;
        for shard in shards
            .iter()
            .skip(turn)
            .step_by(ASSEMBLER_TICK_TURNS as usize)
        {
            if shard.cast(AssemblerMessage::Tick).is_err() {
                return;
            }
        }
    }
}
