//! How long shards that are led here acknowledge nothing: while they move, or until the copies that they need are there.

use std::collections::BTreeMap;

use spandrel_model::ids::ShardId;
use tokio::time::Instant;

use crate::meters;

/// Why a shard acknowledges nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// It gives out no numbers: its last records go to a replica, or it is handed over.
    Held,
    /// A term has begun here, and not every in-sync copy is known to have what came before.
    NewTerm,
}

/// The pauses that last.
#[derive(Debug, Default)]
pub(super) struct Pauses(BTreeMap<ShardId, (Pause, Instant)>);

impl Pauses {
    /// A pause begins, unless the shard has one.
    pub(super) fn begin(&mut self, shard: ShardId, pause: Pause) {
        self.0
            .entry(shard)
            .or_insert_with(|| (pause, Instant::now()));
    }

    /// The shard's pause for this reason has ended, if it has one.
    pub(super) fn end(&mut self, shard: ShardId, pause: Pause) {
        if let Some((is, since)) = self.0.get(&shard)
            && *is == pause
        {
            let why = match pause {
                Pause::Held => "held",
                Pause::NewTerm => "new_term",
            };
            let pause = since.elapsed();
            tracing::debug!(shard = shard.0, why, ?pause, "a shard acknowledges again");
            meters::shard_paused(why, pause);
            self.0.remove(&shard);
        }
    }

    /// The shard is led here no more.
    pub(super) fn forget(&mut self, shard: ShardId) {
        self.0.remove(&shard);
    }
}
