//! The assembler of a shard: collects the spans of each trace as facts, decides, and holds what is kept until its
//! page is durable. The state is pure; the actor around it performs the effects.

mod collect;
mod decide;
mod entry;
mod late_again;
mod late_keeps;
mod paging;
mod replicas;
mod shipped;
mod state;
mod symbols;
mod view;

pub use decide::Promotion;
pub use paging::{KeptTrace, PagedTrace, PagingBacklog, PagingScope};
pub use replicas::HeldTrace;
pub use shipped::{Behind, Differs, ShippedTrace};
pub use state::{
    Applied, Decided, Earlier, Effects, Prior, Recall, ShardOptions, ShardState, Step,
};
pub use view::{
    Depth, EntryView, HitLimits, LiveNames, MemoryHit, MemoryHits, ShardSearch, UnverifiedTrace,
};

#[cfg(test)]
mod regressions_test;
#[cfg(test)]
mod state_test;
#[cfg(test)]
mod world;
