//! Reads the spans of the traces of a paging job.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;
use spandrel_model::error::ErrorClass;
use spandrel_model::ids::{Lsn, ShardId, TraceId};
use spandrel_model::otlp::RawContext;
use spandrel_storage::block::FragmentLocation;
use spandrel_storage::journal::Frame;
use xxhash_rust::xxh3::xxh3_64;

use crate::arena::{SpanArena, SpanList};
use crate::assembler::{KeptTrace, ShippedTrace};
use crate::shared::{Shared, or_lost};

/// Bytes that the contexts of a job take, about.
const CONTEXT_BYTES: usize = 1 << 20;
/// Spans of a trace whose hashes are compared one by one.
const FEW_HASHES: usize = 16;

/// A trace of a job with the spans that were found.
pub(super) struct Gathered {
    pub(super) shard: ShardId,
    pub(super) kept: KeptTrace,
    /// Hashes of the spans that it has: a batch that was sent twice stands in the journal twice.
    hashes: Hashes,
    /// Sum of the hashes of its spans, modulo 2^64.
    pub(super) hash_sum: u64,
    pub(super) spans: SpanList,
}

impl Gathered {
    /// What followers are told of it beside its page.
    pub(super) fn shipped(&self) -> ShippedTrace {
        ShippedTrace {
            shard: self.shard,
            trace_id: self.kept.trace_id,
            fragment: self.kept.fragment,
            references: self.kept.references.clone(),
            spans: u32::try_from(self.spans.len()).unwrap_or(u32::MAX),
            hashes: self.hash_sum,
        }
    }
}

/// A set of hashes, small most of the time.
#[derive(Default)]
struct Hashes {
    few: SmallVec<[u64; FEW_HASHES]>,
    many: HashSet<u64, FixedState>,
}

impl Hashes {
    /// False when it is there already.
    fn insert(&mut self, hash: u64) -> bool {
        if self.few.contains(&hash) || self.many.contains(&hash) {
            return false;
        }
        if self.few.len() < FEW_HASHES {
            self.few.push(hash);
            return true;
        }
        self.many.insert(hash)
    }
}

/// Reads the spans of the traces, each frame once.
pub(super) fn gather(
    shared: &Shared,
    arena: &mut SpanArena,
    buffer: &mut Vec<u8>,
    kept: Vec<(ShardId, KeptTrace)>,
) -> Result<Vec<Gathered>, String> {
    let mut wanted: BTreeSet<(ShardId, Lsn)> = BTreeSet::new();
    let mut numbers: HashMap<(ShardId, TraceId), SmallVec<[u32; 1]>, FixedState> =
        HashMap::default();
    let mut gathered: Vec<Gathered> = Vec::with_capacity(kept.len());
    let bytes: u64 = kept.iter().map(|(_, kept)| kept.bytes).sum();
    arena.reserve(usize::try_from(bytes).unwrap_or(0) + CONTEXT_BYTES);
    for ((shard, kept), number) in kept.into_iter().zip(0u32..) {
        wanted.extend(kept.references.iter().map(|lsn| (shard, *lsn)));
        let same = numbers.entry((shard, kept.trace_id)).or_default();
        same.push(number);
        let mut hashes = Hashes::default();
        if kept.stored {
            stored_hashes(shared, shard, &kept, &mut hashes)?;
        }
        gathered.push(Gathered {
            shard,
            kept,
            hashes,
            hash_sum: 0,
            spans: SpanList::default(),
        });
    }
    let (mut frames, records) = (0u32, wanted.len());
    let mut gone: BTreeSet<(ShardId, Lsn)> = BTreeSet::new();
    while let Some(&(shard, lsn)) = wanted.first() {
        let Some(frame) = frame_of(shared, shard, lsn, std::mem::take(buffer))? else {
            gone.extend(wanted.take(&(shard, lsn)));
            continue;
        };
        frames += 1;
        for (number, head) in frame.records().iter().enumerate() {
            if !wanted.remove(&(head.shard, head.lsn)) {
                continue;
            }
            let Some(tenant) = frame.tenant(number) else {
                continue;
            };
            let mut collect = |context: &RawContext<'_>, trace_id, span: &[u8]| {
                for &at in numbers.get(&(head.shard, trace_id)).into_iter().flatten() {
                    let one: &mut Gathered = &mut gathered[at as usize];
                    let hash = xxh3_64(span);
                    if one.kept.tenant == *tenant && one.hashes.insert(hash) {
                        one.hash_sum = one.hash_sum.wrapping_add(hash);
                        arena.push(&mut one.spans, context, span);
                    }
                }
            };
            frame.visit_spans(number, &mut collect);
        }
        wanted.remove(&(shard, lsn));
        *buffer = frame.into_buffer();
    }
    tracing::debug!(traces = gathered.len(), records, frames, "spans gathered");
    report_lost(&gathered, &gone);
    Ok(gathered)
}

/// Reports traces with fewer spans than their verdict counted, of which a record is gone. A replica that has joined
/// lacks older records, and has others that repeat their spans: of those nothing is lost.
fn report_lost(gathered: &[Gathered], gone: &BTreeSet<(ShardId, Lsn)>) {
    if gone.is_empty() {
        return;
    }
    for one in gathered {
        let mut references = one.kept.references.iter();
        let lacks = references.any(|lsn| gone.contains(&(one.shard, *lsn)));
        let counted = usize::try_from(one.kept.record.span_count).unwrap_or(0);
        if lacks && !one.kept.stored && one.spans.len() < counted {
            tracing::error!(
                shard = one.shard.0,
                trace = %one.kept.trace_id,
                found = one.spans.len(),
                counted,
                "records of a kept trace are gone"
            );
        }
    }
}

/// The frame of a record, read into `buffer`; `None` when it is gone or damaged: the other frames' spans are stored all
/// the same.
fn frame_of(
    shared: &Shared,
    shard: ShardId,
    lsn: Lsn,
    buffer: Vec<u8>,
) -> Result<Option<Frame>, String> {
    let journal = &shared.journal;
    let located = journal.locate(shard, lsn);
    let Some(id) = located.map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    match journal.read(id, buffer) {
        Ok(frame) => Ok(Some(frame)),
        Err(error) if error.class() == ErrorClass::Corrupt => {
            shared.has_holes.store(true, Ordering::Relaxed);
            Ok(None)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The spans of a trace that are in blocks already: a late fragment stores none of them again.
fn stored_hashes(
    shared: &Shared,
    shard: ShardId,
    kept: &KeptTrace,
    hashes: &mut Hashes,
) -> Result<(), String> {
    let fragments = shared.blocks.fragments(&kept.tenant, shard, kept.trace_id);
    let fragments = or_lost(kept.trace_id, fragments).map_err(|error| error.to_string())?;
    visit_hashes(shared, &fragments, &mut |hash| {
        hashes.insert(hash);
    })
}

/// Calls `visit` with the hash of each span of the fragments.
pub(super) fn visit_hashes(
    shared: &Shared,
    fragments: &[FragmentLocation],
    visit: &mut dyn FnMut(u64),
) -> Result<(), String> {
    for location in fragments {
        let mut of_span = |_: &RawContext<'_>, _, span: &[u8]| visit(xxh3_64(span));
        let visited = shared.blocks.visit(location, &mut of_span);
        or_lost(location.trace_id, visited).map_err(|error| error.to_string())?;
    }
    Ok(())
}
