//! Commits pages to their block, and keeps what search knows of a trace whole.
//!
//! Invariant: of all summaries of a trace in this node's blocks, that of the newest fragment covers every fragment of it
//! there. Search reads that one alone. It would not hold by itself: a replica that joined may write late spans of a trace
//! whose earlier ones come as a copy later, and a copy may be of either side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use spandrel_model::ids::{Bucket, ShardId, TraceId};
use spandrel_model::summary::TraceSummary;
use spandrel_storage::block::{BlockWrite, FragmentLocation};
use spandrel_storage::page::PageReader;
use xxhash_rust::xxh3::xxh3_64;

use super::gather::visit_hashes;
use crate::shared::{Shared, or_lost};

/// Where the spans of a write come from.
pub(crate) enum SpansFrom {
    /// This node's journal.
    Journal {
        /// Traces of which blocks have earlier spans.
        late: BTreeSet<TraceId>,
    },
    /// The block of another node.
    Node {
        /// Pages of the bucket that cannot be read: what comes takes the place of what was on them.
        unreadable: BTreeSet<u64>,
    },
}

/// Writes pages to their block, and shows their summaries to search.
pub(crate) fn commit_pages(
    shared: &Shared,
    mut write: BlockWrite,
    from: &SpansFrom,
) -> Result<(), String> {
    // So that the summaries of a bucket come in the order of their numbers: the pager and the copier both write.
    let _one = shared
        .block_writes
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let (blocks, bucket) = (&shared.blocks, write.bucket);
    // First: should the node stop in between, what was restated speaks of spans that are written again.
    for (bucket, restated) in unite(shared, &mut write, from)? {
        match blocks.restate(bucket, &write.tenant, &restated) {
            Ok(sequences) => show(shared, bucket, sequences.zip(restated)),
            // What the block says of the spans that it has stays as it is.
            Err(error) if error.is_damage() => {
                tracing::error!(bucket = bucket.0, %error, "summaries of a damaged block stay as they are");
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let committed = match from {
        SpansFrom::Node { unreadable } => blocks.commit_over(&write, unreadable),
        SpansFrom::Journal { .. } => blocks.commit(&write),
    };
    let sequences = committed.map_err(|error| error.to_string())?;
    let count = usize::try_from(sequences.end - sequences.start).unwrap_or(usize::MAX);
    if count == write.summaries.len() {
        show(shared, bucket, sequences.zip(write.summaries));
    } else {
        // A crash came between an earlier commit and its notice: the block knows which ones are new.
        let read = blocks.summaries(bucket, sequences.start.saturating_sub(1), count);
        let read = read.map_err(|error| error.to_string())?;
        show(shared, bucket, read.into_iter());
    }
    Ok(())
}

fn show(shared: &Shared, bucket: Bucket, written: impl Iterator<Item = (u64, TraceSummary)>) {
    let written = written.map(|(at, summary)| (at, Arc::new(summary)));
    shared.recent.add(bucket, written.collect());
}

/// Makes the summaries of a write those of all fragments of their traces. Returns, by bucket, the summaries of fragments
/// that are in blocks already and are newer than those of the write.
fn unite(
    shared: &Shared,
    write: &mut BlockWrite,
    from: &SpansFrom,
) -> Result<BTreeMap<Bucket, Vec<TraceSummary>>, String> {
    let mut traces: BTreeMap<(ShardId, TraceId), Vec<usize>> = BTreeMap::new();
    for (number, summary) in write.summaries.iter().enumerate() {
        let of_trace = traces.entry((summary.shard, summary.trace_id));
        of_trace.or_default().push(number);
    }
    let mut restated: BTreeMap<Bucket, Vec<TraceSummary>> = BTreeMap::new();
    for (key, numbers) in traces {
        // A whole trace is written to the bucket of its verdict, and copies of its late spans come no earlier.
        let oldest = match from {
            SpansFrom::Journal { late } if !late.contains(&key.1) => write.bucket,
            SpansFrom::Journal { .. } | SpansFrom::Node { .. } => Bucket(0),
        };
        let newer = unite_trace(shared, write, oldest, key, &numbers)?;
        if let Some(summary) = newer {
            restated.entry(summary.bucket).or_default().push(summary);
        }
    }
    Ok(restated)
}

/// [`unite`], of one trace, whose summaries in the write have these `numbers`.
fn unite_trace(
    shared: &Shared,
    write: &mut BlockWrite,
    oldest: Bucket,
    (shard, trace): (ShardId, TraceId),
    numbers: &[usize],
) -> Result<Option<TraceSummary>, String> {
    let own = numbers
        .iter()
        .filter_map(|&number| write.summaries.get(number));
    let own: Vec<&TraceSummary> = own.collect();
    let blocks = &shared.blocks;
    let others = blocks.fragments_since(oldest, &write.tenant, shard, trace);
    let mut others = or_lost(trace, others).map_err(|error| error.to_string())?;
    others.retain(|other| {
        let is_written = own.iter().any(|own| own.fragment == other.fragment);
        other.bucket != write.bucket || !is_written
    });
    if others.is_empty() && own.len() == 1 {
        return Ok(None);
    }
    let known = or_lost(trace, blocks.newest_summary(&others));
    let known = known.map_err(|error| error.to_string())?;
    let versions = known.iter().chain(own).cloned();
    let mut versions: Vec<TraceSummary> = versions.collect();
    versions.sort_by_key(|version| version.fragment.age());
    let counted = count_spans(shared, write, &others, (shard, trace))?;
    let Some(mut whole) = united(versions, counted) else {
        return Ok(None);
    };
    // Search finds by the start what it replaces.
    whole.start = known.as_ref().map_or(whole.start, |known| known.start);
    for &number in numbers {
        if let Some(summary) = write.summaries.get_mut(number) {
            *summary = TraceSummary {
                fragment: summary.fragment,
                bucket: summary.bucket,
                ..whole.clone()
            };
        }
    }
    let is_newest = |known: &TraceSummary| known.fragment.age() == whole.fragment.age();
    let is_restated = known.is_some_and(|known| is_newest(&known) && known != whole);
    Ok(is_restated.then_some(whole))
}

/// What the versions, oldest first, say together; `counted` are the spans of all: versions may have some in common.
fn united(versions: Vec<TraceSummary>, counted: u32) -> Option<TraceSummary> {
    let most = |count: fn(&TraceSummary) -> u32| versions.iter().map(count).max().unwrap_or(0);
    let (spans, errors) = (most(|one| one.span_count), most(|one| one.error_count));
    let mut whole = versions.into_iter().reduce(TraceSummary::merged)?;
    if counted != whole.span_count {
        // Which of the common ones are errors is not known: at least as many as the one says that has most.
        (whole.span_count, whole.error_count) = (counted.max(spans), errors);
    }
    Some(whole)
}

/// The distinct spans of a trace in its fragments and in the pages of a write.
fn count_spans(
    shared: &Shared,
    write: &BlockWrite,
    fragments: &[FragmentLocation],
    (shard, trace): (ShardId, TraceId),
) -> Result<u32, String> {
    let mut hashes = BTreeSet::new();
    visit_hashes(shared, fragments, &mut |hash| {
        hashes.insert(hash);
    })?;
    for page in &write.pages {
        let of_trace = page.fragments.iter();
        let mut of_trace = of_trace
            .filter(|fragment| fragment.head.shard == shard && fragment.head.trace_id == trace)
            .peekable();
        if of_trace.peek().is_none() {
            continue;
        }
        let mut reader = PageReader::open(&page.bytes).map_err(|error| error.to_string())?;
        for fragment in of_trace {
            let visited = reader.visit(fragment, &mut |span| {
                hashes.insert(xxh3_64(span.span));
            });
            visited.map_err(|error| error.to_string())?;
        }
    }
    Ok(u32::try_from(hashes.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails so
mod tests {
    use proptest::prelude::*;
    use spandrel_model::ids::{Lsn, TenantId, UnixNanos};
    use spandrel_model::summary::SummaryDecision;

    use super::*;

    fn version(fragment: u64, spans: u32, errors: u32) -> TraceSummary {
        TraceSummary {
            tenant: TenantId::default(),
            shard: ShardId(0),
            trace_id: TraceId([1; 16]),
            fragment: Lsn(fragment),
            bucket: Bucket(u32::try_from(fragment).unwrap()),
            start: UnixNanos(10 + fragment),
            earliest: UnixNanos(10 + fragment),
            end: UnixNanos(20 + fragment),
            root: None,
            span_count: spans,
            error_count: errors,
            classes: Vec::new(),
            attributes: Vec::new(),
            truncated: false,
            decision: SummaryDecision::default(),
        }
    }

    #[test]
    fn spans_that_versions_have_in_common_count_once() {
        let versions = || vec![version(1, 6, 1), version(2, 2, 1)];

        let apart = united(versions(), 8).unwrap();
        assert_eq!((apart.span_count, apart.error_count), (8, 2));
        let common = united(versions(), 6).unwrap();
        assert_eq!((common.span_count, common.error_count), (6, 1));
        // and: one of them speaks of spans that are not here yet
        let fewer = united(versions(), 4).unwrap();
        assert_eq!(fewer.span_count, 6);
    }

    proptest! {
        #[test]
        fn what_is_united_covers_each_version(
            versions in proptest::collection::vec((1..9_u64, 1..9_u32, 0..9_u32), 1..5),
            counted in 1..30_u32,
        ) {
            let versions = versions.into_iter();
            let versions = versions.map(|(fragment, spans, errors)| version(fragment, spans, errors.min(spans)));
            let versions: Vec<TraceSummary> = versions.collect();
            let whole = united(versions.clone(), counted).unwrap();
            prop_assert!(whole.earliest <= whole.start && whole.start <= whole.end);
            prop_assert!(whole.error_count <= whole.span_count);
            for version in versions {
                prop_assert!(whole.earliest <= version.earliest && version.end <= whole.end);
                prop_assert!(whole.span_count >= version.span_count);
                prop_assert!(whole.error_count >= version.error_count);
            }
        }
    }
}
