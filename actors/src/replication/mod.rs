//! Copies of shards: the primary numbers records and sends its frames to the followers; a record counts when every copy
//! has it.
//!
//! The cores are pure and of one shard: [`PrimaryShard`] and [`FollowerShard`]. The writer (`writer/`) holds them,
//! because it gives out the numbers and owns the journal. Around them: a [`Feeder`] for each follower node sends frames
//! in order, an attachment brings a follower level, [`intake`] takes what primaries elsewhere send, [`refill`] sends a
//! shard's open state again for a replica that joins, the [`Keeper`] proposes changes of the shard map. What may happen
//! in which state is told in `docs/replication.md`.

mod attach;
mod feeder;
mod follower;
mod holders;
mod intake;
mod keeper;
#[cfg(test)]
mod model_test;
mod pressure;
mod primary;
mod proposals;
mod recall;
mod refill;
mod wishes;

pub(crate) use attach::{Attachment, Level, attach};
pub(crate) use feeder::{Feed, Feeder, FeederArguments, FeederMessage};
pub(crate) use follower::{FollowerShard, Offer};
pub(crate) use intake::{BeginShard, Begun, Intake, growth};
pub(crate) use keeper::{Keeper, KeeperArguments, ShardProgress};
pub(crate) use pressure::FollowerPressure;
#[cfg(test)]
pub(crate) use primary::Due;
pub(crate) use primary::{Copy, CopyPhase, LiveSet, PrimaryShard};
pub(crate) use recall::recall;
pub(crate) use refill::{Again, refill};
