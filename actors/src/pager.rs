//! The pager: turns kept traces into pages of block files. It walks the journal's frames, each once a job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use smallvec::SmallVec;
use spandrel_model::error::ErrorClass;
use spandrel_model::ids::{Bucket, Lsn, ShardId, TraceId, UnixNanos};
use spandrel_model::otlp::{RawContext, TracesDataWriter};
use spandrel_model::summary::TraceSummary;
use spandrel_storage::block::BlockWrite;
use spandrel_storage::journal::Frame;
use spandrel_storage::page::{EncodedPage, FragmentHead, PageBuilder, PageSpan};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use crate::arena::{SpanArena, SpanList};
use crate::assembler::{KeptTrace, PagedTrace};
use crate::assembler_actor::AssemblerMessage;
use crate::facts::{TraceSpans, alone};
use crate::limits::{PAGE_MAX_AGE_MS, PAGE_MAX_RECORDS, PAGE_SPANS, PAGING_SHARE_256};
use crate::meters::Stage;
use crate::shared::{Gauges, Shared};

/// Milliseconds between two looks at what waits.
const PAGER_TICK_MS: u64 = 250;
/// Spans of a trace whose hashes are compared one by one.
const FEW_HASHES: usize = 16;

pub(crate) enum PagerMessage {
    Tick,
    /// Page everything that is kept, then answer.
    Flush(oneshot::Sender<Result<(), String>>),
}

impl ractor::Message for PagerMessage {}

/// The actor.
pub(crate) struct Pager;

pub(crate) struct PagerArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Vec<ActorRef<AssemblerMessage>>,
    /// Half of the recovery window: no kept trace may wait longer for its page.
    pub(crate) max_age_ms: u64,
}

pub(crate) struct PagerState {
    shared: Arc<Shared>,
    shards: Vec<ActorRef<AssemblerMessage>>,
    max_age_ms: u64,
    buffers: Buffers,
}

impl Actor for Pager {
    type Msg = PagerMessage;
    type State = PagerState;
    type Arguments = PagerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<PagerMessage>,
        arguments: PagerArguments,
    ) -> Result<PagerState, ActorProcessingErr> {
        myself.send_after(Duration::from_millis(PAGER_TICK_MS), || PagerMessage::Tick);
        Ok(PagerState {
            shared: arguments.shared,
            shards: arguments.shards,
            max_age_ms: arguments.max_age_ms,
            buffers: Buffers::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<PagerMessage>,
        message: PagerMessage,
        state: &mut PagerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PagerMessage::Tick => {
                if state.is_due() {
                    // Under pressure traces that still wait for spans are written too: the rest comes as a fragment.
                    let all = state.shared.pressure() >= 2;
                    state
                        .run(state.budget(), all)
                        .await
                        .unwrap_or_else(|error| {
                            tracing::error!(
                                error,
                                "pages not written, their traces wait in the journal"
                            );
                            0
                        });
                }
                myself.send_after(Duration::from_millis(PAGER_TICK_MS), || PagerMessage::Tick);
            }
            PagerMessage::Flush(reply) => {
                let result = loop {
                    match state.run(state.budget(), true).await {
                        Ok(0) => break Ok(()),
                        Ok(_) => {}
                        Err(error) => break Err(error),
                    }
                };
                let _ = reply.send(result);
            }
        }
        Ok(())
    }
}

impl PagerState {
    /// Span bytes that one job may hold.
    fn budget(&self) -> u64 {
        self.shared.pool.capacity() * PAGING_SHARE_256 / 256
    }

    fn is_due(&self) -> bool {
        let gauges = &self.shared.gauges;
        let full = Gauges::total(&gauges.pageable_bytes) >= self.budget();
        let records = gauges.pageable_records.iter();
        let records = records.map(|records| records.load(Ordering::Relaxed)).max();
        let behind = records.is_some_and(|records| records >= PAGE_MAX_RECORDS);
        let waited = self.shared.env.now().since(gauges.oldest());
        let max_age = self.max_age_ms.min(PAGE_MAX_AGE_MS) * UnixNanos::PER_MILLI;
        let pressed = self.shared.pressure() >= 1 && Gauges::total(&gauges.unpaged_traces) > 0;
        full || behind || waited >= max_age || pressed
    }

    /// Writes pages of what is ready (`all`: of everything kept), about `budget` bytes of spans at a time; returns
    /// the traces.
    async fn run(&mut self, budget: u64, all: bool) -> Result<usize, String> {
        let Some(until) = self.cut(budget, all).await else {
            return Ok(0);
        };
        let mut kept: Vec<(ShardId, KeptTrace)> = Vec::new();
        for (shard, taken) in self
            .ask(|reply| AssemblerMessage::CollectKept(until, all, reply))
            .await
        {
            kept.extend(taken.into_iter().map(|trace| (shard, trace)));
        }
        if kept.is_empty() {
            return Ok(0);
        }
        let mut keys: BTreeMap<ShardId, Vec<PagedTrace>> = BTreeMap::new();
        for (shard, trace) in &kept {
            keys.entry(*shard).or_default().push(trace.paged());
        }
        let (count, shared) = (kept.len(), Arc::clone(&self.shared));
        let mut buffers = std::mem::take(&mut self.buffers);
        let job = move || {
            let result = write_pages(&shared, &mut buffers, kept);
            (result, buffers)
        };
        let (result, buffers) = self.shared.block(Stage::Page, job).await;
        self.buffers = buffers;
        for (shard, keys) in keys {
            let message = match &result {
                Ok(()) => AssemblerMessage::Paged(keys),
                Err(_) => AssemblerMessage::PagingFailed(keys),
            };
            let _ = self.shards[usize::from(shard.0)].cast(message);
        }
        result.map(|()| count)
    }

    /// The moment up to which the traces that wait have about `budget` bytes of spans. All shards cut at one moment,
    /// so that a job reads a run of frames of which the next job needs next to nothing.
    async fn cut(&self, budget: u64, all: bool) -> Option<UnixNanos> {
        // Shards are about equally busy; one that lists less than it has ends the job early.
        let share = 4 * budget / self.shards.len().max(1) as u64;
        let mut waiting: Vec<(UnixNanos, u64)> = Vec::new();
        let mut until = UnixNanos(u64::MAX);
        for (_, (backlog, more)) in self
            .ask(|reply| AssemblerMessage::KeptBacklog(share, all, reply))
            .await
        {
            if let (Some((last, _)), true) = (backlog.last(), more) {
                until = until.min(*last);
            }
            waiting.extend(backlog);
        }
        waiting.sort_unstable();
        let mut bytes = 0;
        let mut within = waiting.iter().take_while(|(_, of_one)| {
            let take = bytes < budget;
            bytes += of_one;
            take
        });
        let first = within.next()?.0;
        let last = within.last().map_or(first, |(at, _)| *at);
        Some(last.min(until))
    }

    /// Asks every shard; those that are stopping do not answer.
    async fn ask<T>(
        &self,
        message: impl Fn(oneshot::Sender<T>) -> AssemblerMessage,
    ) -> Vec<(ShardId, T)> {
        let mut asked = Vec::with_capacity(self.shards.len());
        for (number, shard) in (0u16..).zip(&self.shards) {
            let (reply, answer) = oneshot::channel();
            if shard.cast(message(reply)).is_ok() {
                asked.push((ShardId(number), answer));
            }
        }
        let mut answers = Vec::with_capacity(asked.len());
        for (shard, answer) in asked {
            answers.extend(answer.await.ok().map(|answer| (shard, answer)));
        }
        answers
    }
}

/// Memory that one job leaves to the next: allocated anew, its pages would be faulted in again (measured: a sixth of
/// the time of a job).
#[derive(Default)]
struct Buffers {
    arena: SpanArena,
    builder: PageBuilder,
    frame: Vec<u8>,
    /// The bucket whose attribute values the builder counts.
    counted: Bucket,
}

/// A trace of a job with the spans that were found.
struct Gathered {
    shard: ShardId,
    kept: KeptTrace,
    /// Hashes of the spans that it has: a batch that was sent twice stands in the journal twice.
    hashes: Hashes,
    spans: SpanList,
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

fn write_pages(
    shared: &Shared,
    buffers: &mut Buffers,
    kept: Vec<(ShardId, KeptTrace)>,
) -> Result<(), String> {
    let Buffers {
        arena,
        builder,
        frame,
        counted,
    } = buffers;
    arena.clear();
    let mut traces = gather(shared, arena, frame, kept)?;
    traces.sort_by(|a, b| {
        let key = |one: &Gathered| (one.kept.bucket, one.shard, one.kept.trace_id);
        (&a.kept.tenant, key(a)).cmp(&(&b.kept.tenant, key(b)))
    });
    let same_file = |a: &Gathered, b: &Gathered| {
        a.kept.tenant == b.kept.tenant && a.kept.bucket == b.kept.bucket
    };
    for group in traces.chunk_by_mut(same_file) {
        write_group(shared, arena, builder, group)?;
    }
    let newest = traces.last().map_or(*counted, |one| one.kept.bucket);
    crate::meters::attributes(builder.cardinality());
    if newest > *counted {
        // The figures are of the bucket that is being written.
        builder.cardinality().clear();
        *counted = newest;
    }
    Ok(())
}

/// Reads the spans of the traces, each frame once.
fn gather(
    shared: &Shared,
    arena: &mut SpanArena,
    buffer: &mut Vec<u8>,
    kept: Vec<(ShardId, KeptTrace)>,
) -> Result<Vec<Gathered>, String> {
    let mut wanted: BTreeSet<(ShardId, Lsn)> = BTreeSet::new();
    let mut numbers: HashMap<(ShardId, TraceId), SmallVec<[u32; 1]>, FixedState> =
        HashMap::default();
    let mut gathered: Vec<Gathered> = Vec::with_capacity(kept.len());
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
            spans: SpanList::default(),
        });
    }
    let (mut frames, records) = (0u32, wanted.len());
    while let Some(&(shard, lsn)) = wanted.first() {
        let Some(frame) = frame_of(shared, shard, lsn, std::mem::take(buffer))? else {
            wanted.remove(&(shard, lsn));
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
                    if one.kept.tenant == *tenant && one.hashes.insert(xxh3_64(span)) {
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
    Ok(gathered)
}

/// The frame of a record, read into `buffer`; `None` when it is gone or damaged, which was reported where it was found:
/// the other frames' spans are stored all the same.
fn frame_of(
    shared: &Shared,
    shard: ShardId,
    lsn: Lsn,
    buffer: Vec<u8>,
) -> Result<Option<Frame>, String> {
    let journal = &shared.journal;
    let located = journal.locate(shard, lsn);
    let Some(id) = located.map_err(|error| error.to_string())? else {
        tracing::error!(
            shard = shard.0,
            lsn = lsn.0,
            "a kept trace's record is gone"
        );
        return Ok(None);
    };
    match journal.read(id, buffer) {
        Ok(frame) => Ok(Some(frame)),
        Err(error) if error.class() == ErrorClass::Corrupt => Ok(None),
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
    let blocks = &shared.blocks;
    let fragments = blocks.fragments(&kept.tenant, shard, kept.trace_id);
    for location in fragments.map_err(|error| error.to_string())? {
        let mut nowhere = TracesDataWriter::new();
        let mut note = |_, hash| {
            hashes.insert(hash);
            true
        };
        blocks
            .read(&location, &mut nowhere, &mut note)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Writes the pages of traces of one tenant and bucket.
fn write_group(
    shared: &Shared,
    arena: &SpanArena,
    builder: &mut PageBuilder,
    group: &mut [Gathered],
) -> Result<(), String> {
    let Some(first) = group.first() else {
        return Ok(());
    };
    let (tenant, bucket) = (first.kept.tenant.clone(), first.kept.bucket);
    let mut pages: Vec<EncodedPage> = Vec::new();
    let mut summaries: Vec<TraceSummary> = Vec::with_capacity(group.len());
    for one in group {
        if one.spans.is_empty() {
            continue;
        }
        let head = FragmentHead {
            shard: one.shard,
            trace_id: one.kept.trace_id,
            fragment: one.kept.fragment,
            received_at: one.kept.record.decided_at,
        };
        let spans = arena.iter(&one.spans);
        let spans: Vec<PageSpan<'_>> = spans
            .map(|(context, span)| PageSpan { context, span })
            .collect();
        builder
            .push(head, &spans)
            .map_err(|error| error.to_string())?;
        summaries.extend(summarise(shared, arena, one)?);
        if builder.span_count() as usize >= PAGE_SPANS {
            pages.extend(builder.finish().map_err(|error| error.to_string())?);
        }
    }
    pages.extend(builder.finish().map_err(|error| error.to_string())?);
    if pages.is_empty() {
        return Ok(());
    }
    let write = BlockWrite {
        bucket,
        tenant,
        pages,
        summaries,
    };
    let blocks = &shared.blocks;
    let sequences = blocks.commit(&write).map_err(|error| error.to_string())?;
    let count = usize::try_from(sequences.end - sequences.start).unwrap_or(usize::MAX);
    let written: Vec<(u64, TraceSummary)> = if count == write.summaries.len() {
        sequences.zip(write.summaries).collect()
    } else {
        // A crash came between an earlier commit and its notice: the block knows which ones are new.
        let read = blocks.summaries(bucket, sequences.start.saturating_sub(1), count);
        read.map_err(|error| error.to_string())?
    };
    let shared_out = written
        .into_iter()
        .map(|(at, summary)| (at, Arc::new(summary)));
    shared.recent.add(bucket, shared_out.collect());
    Ok(())
}

/// The summary of a fragment: cumulative over the trace.
fn summarise(
    shared: &Shared,
    arena: &SpanArena,
    one: &mut Gathered,
) -> Result<Option<TraceSummary>, String> {
    if let Some(summary) = one.kept.summary.take() {
        return Ok(Some(summary));
    }
    let epoch = shared.epoch();
    let mut copy = TraceSpans::default();
    let spans = arena.iter(&one.spans);
    spans.for_each(|(context, span)| copy.push(&context, span));
    let tenant = &one.kept.tenant;
    let Some(batch) = copy.scan(tenant, one.kept.record.decided_at, &epoch) else {
        return Ok(None);
    };
    let state = alone(shared, &batch, &epoch);
    let record = &one.kept.record;
    let name = shared.policy_name(record);
    let Some(mut summary) = state.only_summary(one.kept.fragment, one.kept.start, record, name)
    else {
        return Ok(None);
    };
    summary.bucket = one.kept.bucket;
    let earlier = if one.kept.stored {
        let found = shared
            .blocks
            .summary_of(tenant, one.shard, one.kept.trace_id);
        found.map_err(|error| error.to_string())?
    } else {
        None
    };
    Ok(Some(match earlier {
        Some(earlier) => merge(earlier, summary),
        None => summary,
    }))
}

/// The summary of a trace after a late fragment. The start stays, because search sorts by it.
fn merge(earlier: TraceSummary, late: TraceSummary) -> TraceSummary {
    let mut merged = TraceSummary {
        start: earlier.start,
        earliest: earlier.earliest.min(late.earliest),
        end: earlier.end.max(late.end),
        root: earlier.root.or(late.root),
        span_count: earlier.span_count.saturating_add(late.span_count),
        error_count: earlier.error_count.saturating_add(late.error_count),
        classes: earlier.classes,
        attributes: earlier.attributes,
        truncated: earlier.truncated || late.truncated,
        decision: earlier.decision,
        ..late
    };
    merged.classes.extend(late.classes);
    merged.attributes.extend(late.attributes);
    merged.tidy();
    merged
}
