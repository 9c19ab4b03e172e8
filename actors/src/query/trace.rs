//! One trace by id, as one node knows it: from its shard, from blocks, from the journal of what was dropped.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{Bucket, Lsn, TenantId, TraceId, UnixNanos};
use spandrel_model::ports::{DecisionView, TraceAbsence};
use spandrel_model::search::{MissingPart, TraceState};
use spandrel_model::summary::TraceSummary;
use spandrel_model::verdict::{CERTAIN, Trigger, Verdict, VerdictRecord};
use spandrel_storage::block::FragmentLocation;

use super::reader::{TraceParts, distinct_spans, holds};
use super::{QueryPort, block_error, storage_error, stored_decision};
use crate::assembler::{Depth, EntryView, Promotion};
use crate::assembler_message::AssemblerMessage;
use crate::limits::PRESSURE_RETRY_MS;
use crate::meters::Stage;
use crate::shared::Shared;

/// Records of an answer that are read before it begins, so that it can say whether it is complete.
const CHECKED_RECORDS: usize = 64;
/// Tries of a promotion while the trace's verdict is on its way to the journal.
const PROMOTION_TRIES: usize = 50;

/// What one node knows of a trace.
#[derive(Debug)]
pub(crate) enum TracePart {
    Found(FoundPart),
    Absent(TraceAbsence),
}

/// What one node has of a trace.
#[derive(Debug)]
pub(crate) struct FoundPart {
    pub(crate) state: TraceState,
    /// What cannot be read.
    pub(crate) missing: Vec<MissingPart>,
    /// `None` while open.
    pub(crate) decision: Option<DecisionView>,
    pub(crate) span_count: u32,
    /// Where its spans are, and the probability with which they are to be rendered.
    pub(crate) parts: TraceParts,
}

/// What the stores know of a trace that its shard does not say.
struct Stored {
    fragments: Vec<FragmentLocation>,
    summary: Option<TraceSummary>,
    verdict: Option<VerdictRecord>,
    /// Buckets whose blocks do not open: nobody knows what of the trace is in them.
    unopenable: Vec<Bucket>,
}

impl QueryPort {
    /// Looks a trace up.
    pub(crate) async fn look_up(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
        depth: Depth,
    ) -> Result<TracePart, PortError> {
        let shard = self.shared.shard(tenant, trace_id);
        let owner = tenant.clone();
        // The shard first: an entry that has left it has its fragment in a block by then.
        let ask = |reply| AssemblerMessage::View(owner, trace_id, depth, reply);
        let (view, in_effect) = self.ask(shard, ask).await?;
        let (shared, owner) = (Arc::clone(&self.shared), tenant.clone());
        let decided = view.as_ref().is_some_and(|view| !view.unconfirmed);
        let look = move || stored(&shared, &owner, trace_id, decided, in_effect);
        let stored = self.shared.block(Stage::Query, look).await?;
        self.answer(tenant, trace_id, view, stored).await
    }

    async fn answer(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
        view: Option<EntryView>,
        stored: Stored,
    ) -> Result<TracePart, PortError> {
        let record = view
            .as_ref()
            .and_then(|view| view.record.clone())
            .or(stored.verdict);
        let live = view.as_ref().map(|view| view.state);
        let dropped = record
            .as_ref()
            .filter(|record| record.verdict == Verdict::Drop);
        let state = match (live, &dropped) {
            // Also when spans that came after the journal forgot the keep are decided anew.
            _ if !stored.fragments.is_empty() => TraceState::Kept,
            (Some(TraceState::Open), Some(_)) => TraceState::Dropped,
            (Some(state), _) => state,
            (None, Some(_)) => TraceState::Dropped,
            (None, None) if !stored.unopenable.is_empty() => {
                let message = format!("blocks of {} buckets do not open", stored.unopenable.len());
                return Err(PortError::new(
                    ErrorClass::Corrupt,
                    "block_damaged",
                    message,
                ));
            }
            (None, None) => {
                let retained_since = self.shared.journal.covered_since();
                return Ok(TracePart::Absent(TraceAbsence::Unknown { retained_since }));
            }
        };
        let seen = view.as_ref().map(|view| view.span_count);
        let mut references: Vec<Lsn> = view.map(|view| view.references).unwrap_or_default();
        if let Some(record) = dropped {
            references.extend(record.references.iter().copied());
        }
        // A drop that was kept after all: its records are in a block by now, or nodes that joined since lack them.
        let again = record.as_ref().filter(|record| {
            let of_drop = matches!(record.trigger, Trigger::LateSpan | Trigger::Promoted);
            record.verdict == Verdict::Keep && of_drop
        });
        let optional = again.into_iter().flat_map(|record| &record.references);
        references.sort_unstable();
        let is_known = |lsn: &Lsn| references.binary_search(lsn).is_ok();
        let optional: BTreeSet<Lsn> = optional.copied().filter(|lsn| !is_known(lsn)).collect();
        references.extend(&optional);
        references.sort_unstable();
        references.dedup();
        let kept_before = dropped.is_some() && state == TraceState::Kept;
        let record = record.filter(|_| !kept_before);
        let decision = match (&record, &stored.summary) {
            (Some(record), _) if state != TraceState::Open => Some(self.decision(record)),
            (_, Some(summary)) if state == TraceState::Kept => {
                Some(stored_decision(&summary.decision))
            }
            _ => None,
        };
        let kept_with = match (&record, &stored.summary) {
            (Some(record), _) => record.probability,
            (None, Some(summary)) => summary.decision.probability,
            (None, None) => CERTAIN,
        };
        let parts = TraceParts {
            tenant: tenant.clone(),
            shard: self.shared.shard(tenant, trace_id),
            trace_id,
            references: references.into(),
            fragments: stored.fragments.into(),
            probability: if state == TraceState::Kept {
                kept_with
            } else {
                CERTAIN
            },
        };
        let counted = record.as_ref().map(|record| record.span_count);
        let expected = match (seen, &record) {
            (Some(seen), _) => Some((Lsn(u64::MAX), counted.unwrap_or(0).max(seen))),
            (None, Some(record)) => Some((record.input_lsn, record.span_count)),
            (None, None) => None,
        };
        let (parts, mut missing) = self.check(parts, optional, expected).await;
        if !stored.unopenable.is_empty() && state == TraceState::Kept {
            missing.push(self.unopenable(&parts, &stored.unopenable));
        }
        if state == TraceState::Dropped && parts.references.is_empty() {
            let absence = match decision {
                Some(decision) => TraceAbsence::Dropped(decision),
                None => TraceAbsence::Unknown {
                    retained_since: self.shared.journal.covered_since(),
                },
            };
            return Ok(TracePart::Absent(absence));
        }
        let span_count = stored.summary.map(|summary| summary.span_count).into_iter();
        let span_count = span_count
            .chain(record.map(|record| record.span_count))
            .chain(seen)
            .max();
        Ok(TracePart::Found(FoundPart {
            state,
            missing,
            decision,
            span_count: span_count.unwrap_or_default(),
            parts,
        }))
    }

    /// What blocks that do not open may hold of a trace.
    fn unopenable(&self, parts: &TraceParts, buckets: &[Bucket]) -> MissingPart {
        let (first, last) = (buckets.iter().min(), buckets.iter().max());
        let starts = |bucket: u64| UnixNanos(bucket.saturating_mul(self.shared.bucket_nanos));
        MissingPart {
            node: self.shared.node,
            shards: vec![parts.shard],
            from: starts(first.map_or(0, |bucket| bucket.0.into())),
            to: starts(last.map_or(0, |bucket| u64::from(bucket.0) + 1)),
            reason: format!("blocks of {} buckets do not open", buckets.len()),
        }
    }

    /// Takes out the records that cannot be read and names them as missing, but for the optional ones, unless the others hold as many spans as are
    /// expected in the records up to a number: a replica that has joined lacks older records and has others that repeat
    /// their spans (docs/decisions/0012-a-replica-that-joins-is-sent-records-again.md).
    async fn check(
        &self,
        mut parts: TraceParts,
        optional: BTreeSet<Lsn>,
        expected: Option<(Lsn, u32)>,
    ) -> (TraceParts, Vec<MissingPart>) {
        let (shared, has_peers) = (
            Arc::clone(&self.shared),
            self.cluster.borrow().nodes.len() > 1,
        );
        let check = move || {
            let before = parts.references.len();
            let mut checked = 0;
            // Records of before this node joined the shard are for their holders to give, who are asked too.
            let never_here =
                |lsn: Lsn| has_peers && matches!(shared.journal.locate(parts.shard, lsn), Ok(None));
            let all = std::mem::take(&mut parts.references);
            let (held, gone): (VecDeque<Lsn>, VecDeque<Lsn>) = all.into_iter().partition(|lsn| {
                checked += 1;
                checked > CHECKED_RECORDS || holds(&shared, &parts, *lsn)
            });
            parts.references = held;
            let lost = gone.into_iter();
            let lost = lost.filter(|lsn| !optional.contains(lsn) && !never_here(*lsn));
            let lost = lost.count();
            let is_whole = || {
                expected.is_some_and(|(last, spans)| {
                    let found = distinct_spans(&shared, &parts, last);
                    u32::try_from(found).unwrap_or(u32::MAX) >= spans
                })
            };
            let missing = (lost > 0 && !is_whole()).then(|| MissingPart {
                node: shared.node,
                shards: vec![parts.shard],
                from: shared.journal.covered_since(),
                to: shared.env.now(),
                reason: format!("{lost} of the trace's {before} journal records cannot be read"),
            });
            (parts, missing.into_iter().collect())
        };
        self.shared.block(Stage::Query, check).await
    }

    /// Keeps a trace that is open or was dropped.
    pub(crate) async fn keep(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<DecisionView, PortError> {
        let shard = self.shared.shard(tenant, trace_id);
        let mut earlier = None;
        for _ in 0..PROMOTION_TRIES {
            let (owner, known) = (tenant.clone(), earlier.take());
            let promotion = self
                .ask(shard, |reply| {
                    AssemblerMessage::Promote(owner, trace_id, known, reply)
                })
                .await?;
            match promotion {
                Promotion::AlreadyKept(record) => return Ok(self.decision(&record)),
                Promotion::Decided | Promotion::Busy => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                Promotion::Absent => {
                    let (journal, owner) = (Arc::clone(&self.shared.journal), tenant.clone());
                    let look = move || journal.verdict(shard, &owner, trace_id);
                    let found = self
                        .shared
                        .block(Stage::Query, look)
                        .await
                        .map_err(storage_error)?;
                    match found {
                        Some(record) if self.recoverable(&record).await => earlier = Some(record),
                        Some(record) if record.verdict == Verdict::Keep => {
                            return Ok(self.decision(&record));
                        }
                        _ => {
                            let message = "the journal does not hold the trace any more";
                            return Err(PortError::new(ErrorClass::NotFound, "unknown", message)
                                .with_tenant(tenant));
                        }
                    }
                }
            }
        }
        let message = "the trace's verdict is not durable yet";
        Err(PortError::unavailable("busy", message, PRESSURE_RETRY_MS))
    }

    async fn recoverable(&self, record: &VerdictRecord) -> bool {
        if record.verdict == Verdict::Keep {
            return false;
        }
        let parts = TraceParts {
            tenant: record.tenant.clone(),
            shard: self.shared.shard(&record.tenant, record.trace_id),
            trace_id: record.trace_id,
            references: record.references.iter().copied().collect(),
            fragments: VecDeque::new(),
            probability: CERTAIN,
        };
        let checked = self.check(parts, BTreeSet::new(), None).await;
        !checked.0.references.is_empty()
    }
}

fn stored(
    shared: &Shared,
    tenant: &TenantId,
    trace_id: TraceId,
    decided: bool,
    in_effect: Lsn,
) -> Result<Stored, PortError> {
    let shard = shared.shard(tenant, trace_id);
    let fragments = shared
        .blocks
        .fragments(tenant, shard, trace_id)
        .map_err(block_error)?;
    let summary = shared
        .blocks
        .newest_summary(&fragments)
        .map_err(block_error)?;
    let asks = !decided && shared.journal.maybe_decided(shard, tenant, trace_id);
    let verdict = if asks {
        shared
            .journal
            .verdict_up_to(shard, tenant, trace_id, in_effect)
            .map_err(storage_error)?
    } else {
        None
    };
    Ok(Stored {
        fragments,
        summary,
        verdict,
        unopenable: shared.blocks.unopenable(),
    })
}
