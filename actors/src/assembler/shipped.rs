//! Kept traces of pages that another replica has built.

use std::sync::Arc;

use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId};
use spandrel_model::verdict::VerdictRecord;

use super::entry::{Entry, Phase};
use super::paging::KeptTrace;
use super::state::ShardState;

/// A trace as the page of another replica has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShippedTrace {
    /// Its shard.
    pub shard: ShardId,
    /// The trace.
    pub trace_id: TraceId,
    /// The fragment covers every record of the trace up to this one.
    pub fragment: Lsn,
    /// Records that hold its spans, ascending.
    pub references: Vec<Lsn>,
    /// Its spans in the page.
    pub spans: u32,
    /// Sum of the hashes (XXH3) of their bytes, modulo 2^64.
    pub hashes: u64,
}

/// Why a trace of another replica's page is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Differs {
    /// No such trace is held here: its page is there, or it was kept before this node joined.
    Absent,
    /// It is not known here that it is kept.
    NotKept,
    /// A page of it is being written, or another part of it is in a block.
    Paged,
    /// Its spans came in other records.
    Records,
    /// Its spans are others.
    Spans,
}

impl Differs {
    /// The word for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::NotKept => "not_kept",
            Self::Paged => "paged",
            Self::Records => "records",
            Self::Spans => "spans",
        }
    }
}

/// The shard does not know yet that the records up to a fragment count: it will soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind;

impl ShardState {
    /// Takes out the traces that have the same spans here as in the page of another replica: those come from the same
    /// records, and those of the entry are of the same bytes; of each other one, why not. They stay searchable until
    /// [`Self::paged`].
    ///
    /// # Errors
    /// [`Behind`]; nothing is taken then.
    pub fn collect_shipped(
        &mut self,
        tenant: &TenantId,
        wanted: &[ShippedTrace],
        policy_name: &dyn Fn(&VerdictRecord) -> Arc<str>,
    ) -> Result<Vec<Result<KeptTrace, Differs>>, Behind> {
        if wanted.iter().any(|trace| trace.fragment > self.applied) {
            return Err(Behind);
        }
        let taken = wanted.iter().map(|trace| {
            let slot = self.find(tenant, trace.trace_id).ok_or(Differs::Absent)?;
            let entry = self.slots[slot as usize].as_ref();
            if let Err(differs) = self.is_same(entry.ok_or(Differs::Absent)?, trace) {
                self.build_here(slot);
                return Err(differs);
            }
            let taken = self.take_kept(slot, trace.fragment, policy_name);
            taken.ok_or(Differs::NotKept)
        });
        Ok(taken.collect())
    }

    /// The primary does not ship it a second time.
    fn build_here(&mut self, slot: u32) {
        let entry = self.slots[slot as usize].as_mut();
        if let Some(Phase::Kept(kept)) = entry.map(|entry| &mut entry.phase) {
            kept.own = true;
        }
    }

    fn is_same(&self, entry: &Entry, shipped: &ShippedTrace) -> Result<(), Differs> {
        let Phase::Kept(kept) = &entry.phase else {
            return Err(Differs::NotKept);
        };
        if kept.paging || kept.stored || entry.partial {
            return Err(Differs::Paged);
        }
        if kept.at > self.counted {
            return Err(Differs::NotKept);
        }
        // Of one that has got more since, it cannot be told which spans are those of the page.
        if entry.references.as_slice() != shipped.references {
            return Err(Differs::Records);
        }
        let hashes = entry.rows.iter().map(|row| row.hash());
        let sum = hashes.fold(0u64, u64::wrapping_add);
        let is_same = (entry.span_count(), sum) == (shipped.spans, shipped.hashes);
        is_same.then_some(()).ok_or(Differs::Spans)
    }
}

#[cfg(test)]
mod tests {
    use spandrel_model::ids::UnixNanos;
    use spandrel_model::policy::KEEP_ALL_POLICY;

    use super::super::paging::PagingScope;
    use super::super::world::{Sent, World, span};
    use super::*;

    const END: UnixNanos = UnixNanos(u64::MAX);
    /// What a primary pages.
    const LED: PagingScope = PagingScope {
        all: true,
        followed: true,
    };
    const FOLLOWED: PagingScope = PagingScope {
        followed: false,
        ..LED
    };

    fn name(_: &VerdictRecord) -> Arc<str> {
        "all".into()
    }

    /// A replica to which two records of a trace and its verdict have come.
    fn replica(second: &Sent) -> World {
        let mut world = World::new(KEEP_ALL_POLICY);
        world.send(1, &[span(1, 0)]);
        world.commit();
        world.send(1, std::slice::from_ref(second));
        world
    }

    fn collect(
        world: &mut World,
        told: &ShippedTrace,
    ) -> Result<Result<KeptTrace, Differs>, Behind> {
        let (tenant, told) = (TenantId::default(), std::slice::from_ref(told));
        let taken = world.step(|state, _, _| state.collect_shipped(&tenant, told, &name));
        taken.map(|mut taken| taken.remove(0))
    }

    /// What a primary with these records tells.
    fn told(primary: &mut World) -> ShippedTrace {
        let taken = primary.step(|state, _, _| state.collect_kept(END, LED, &name));
        let batch = primary.batch(1, &[span(1, 0), span(2, 1)]);
        let hashes = batch.spans.iter();
        ShippedTrace {
            shard: ShardId(0),
            trace_id: taken[0].trace_id,
            fragment: taken[0].fragment,
            references: taken[0].references.clone(),
            spans: 2,
            hashes: hashes.fold(0, |sum, span| sum.wrapping_add(span.hash)),
        }
    }

    #[test]
    fn a_page_with_the_same_spans_is_taken() {
        let told = told(&mut replica(&span(2, 1)));
        let mut follower = replica(&span(2, 1));
        let taken = collect(&mut follower, &told).unwrap().unwrap();
        assert_eq!(taken.fragment, told.fragment);
        let summary = taken.summary.as_ref().unwrap();
        assert_eq!((summary.span_count, summary.fragment), (2, told.fragment));
        // It is on its way: nobody else takes it, until it is given back.
        assert_eq!(collect(&mut follower, &told).unwrap(), Err(Differs::Paged));
        let paged = [taken.paged()];
        follower.step(|state, _, _| state.paging_failed(&paged));
        assert!(collect(&mut follower, &told).unwrap().is_ok());
        follower.step(|state, _, _| state.paged(&paged));
        assert_eq!(follower.state.traces(), 0);
    }

    #[test]
    fn a_page_with_other_spans_is_not() {
        let told = told(&mut replica(&span(2, 1)));
        let other = Sent {
            duration_ms: 11,
            ..span(2, 1)
        };
        assert_eq!(
            collect(&mut replica(&other), &told).unwrap(),
            Err(Differs::Spans)
        );
        let mut follower = replica(&span(2, 1));
        let waits = |world: &World| world.state.kept_backlog(u64::MAX, FOLLOWED).0.len();
        assert_eq!(waits(&follower), 0, "its page comes from the primary");
        let fewer = ShippedTrace {
            references: told.references[..1].to_vec(),
            ..told.clone()
        };
        let damaged = ShippedTrace {
            spans: 1,
            ..told.clone()
        };
        for (wrong, why) in [(fewer, Differs::Records), (damaged, Differs::Spans)] {
            assert_eq!(collect(&mut follower, &wrong).unwrap(), Err(why));
        }
        assert_eq!(waits(&follower), 1, "its page is built here");
        assert!(collect(&mut follower, &told).unwrap().is_ok());
    }

    #[test]
    fn a_follower_that_has_not_come_that_far_takes_nothing_yet() {
        let told = told(&mut replica(&span(2, 1)));
        let mut follower = World::new(KEEP_ALL_POLICY);
        follower.send(1, &[span(1, 0)]);
        follower.commit();
        assert_eq!(collect(&mut follower, &told), Err(Behind));
    }

    #[test]
    fn a_trace_that_has_got_more_since_is_built_here() {
        let told = told(&mut replica(&span(2, 1)));
        let mut follower = replica(&span(2, 1));
        follower.send(1, &[span(3, 1)]);
        let taken = collect(&mut follower, &told).unwrap();
        assert_eq!(taken, Err(Differs::Records));
        let built = follower.step(|state, _, _| state.collect_kept(END, FOLLOWED, &name));
        assert_eq!(built[0].references, [Lsn(1), Lsn(3), Lsn(4)]);
        assert_eq!(built[0].summary.as_ref().unwrap().span_count, 3);
    }
}
