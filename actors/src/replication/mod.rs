//! Copies of shards: the primary numbers records and sends its frames to the followers; a record counts when every copy
//! has it.
//!
//! The cores are pure and of one shard: [`PrimaryShard`] and [`FollowerShard`]. The writer (`writer/`) holds them,
//! because it gives out the numbers and owns the journal. Around them: a feeder for each follower node sends frames
//! in order, an attachment brings a follower level, `intake` takes what primaries elsewhere send, `refill` sends a
//! shard's open state again for a replica that joins and `decided` finds what was decided lately, the keeper proposes changes of the shard map ([`wishes`]). What
//! may happen in which state is told in `docs/replication.md`. The cores are public for the simulation, which runs them
//! without the rest.

mod attach;
mod decided;
mod feeder;
mod follower;
mod holders;
mod intake;
mod keeper;
mod pressure;
mod primary;
mod proposals;
mod recall;
mod refill;
mod wishes;

pub(crate) use attach::{Attachment, Level, attach};
pub(crate) use decided::DecidedLately;
pub(crate) use feeder::{Feed, Feeder, FeederArguments, FeederMessage};
pub use follower::{FollowerShard, Offer};
pub(crate) use intake::{BeginShard, Begun, Intake, growth};
pub use keeper::ShardProgress;
pub(crate) use keeper::{Keeper, KeeperArguments};
pub(crate) use pressure::{FollowerPressure, FollowerState};
pub use primary::{Copy, CopyPhase, Due, LiveSet, PrimaryShard};
pub(crate) use recall::recall;
pub(crate) use refill::{Again, refill};
pub use wishes::{Wish, wishes};
