//! Adding to a bucket's index: new segments, superseded versions, merging, and the manifest last.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spandrel_model::ids::{Bucket, TenantId, TraceId, UnixNanos};
use spandrel_model::summary::TraceSummary;

use super::build::{Built, build, merge};
use super::error::{Fault, IndexError};
use super::limits::{MAX_MERGE_BYTES, MAX_SMALL_SEGMENTS, SMALL_SEGMENT_DOCUMENTS};
use super::manifest::{Manifest, SegmentEntry};
use super::segment::OpenSegment;
use super::store::{IndexStore, Writer, lock};
use super::terms::TenantTerms;

/// What [`IndexStore::add`] was given.
pub(super) struct Addition<'a> {
    pub(super) summaries: &'a [TraceSummary],
    pub(super) indexed_keys: &'a [String],
    pub(super) up_to_sequence: u64,
}

impl IndexStore {
    /// Writes new segments and the manifest that names them. `written` collects the numbers of the files, for the
    /// caller to remove should this fail.
    pub(super) fn write(
        &self,
        writer: &mut Writer,
        mut manifest: Manifest,
        addition: &Addition<'_>,
        written: &mut Vec<u64>,
    ) -> Result<(), Fault> {
        let bucket = manifest.bucket;
        let before: BTreeSet<u64> = manifest.segments.iter().map(|s| s.number).collect();
        let fresh = self.supersede(&mut manifest, addition.summaries)?;
        let mut keys = addition.indexed_keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        let mut rest = fresh.as_slice();
        while let (Some(first), Some(last)) = (rest.first(), rest.last()) {
            let at_most = rest.len().min(self.options.max_segment_documents.max(1));
            let chunk = rest.get(..at_most).unwrap_or(rest);
            let (built, taken) = build(&self.schema, chunk).map_err(IndexError::build(bucket))?;
            let span = Span {
                first_sequence: manifest.checkpoint + 1,
                last_sequence: addition.up_to_sequence,
                min_start: chunk.get(taken - 1).unwrap_or(last).start.0,
                max_start: first.start.0,
            };
            let entry = self.store(writer, bucket, &built, span, keys.clone(), written)?;
            manifest.segments.push(entry);
            rest = rest.get(taken..).unwrap_or_default();
        }
        self.merge_small(writer, &mut manifest, written)?;
        manifest.checkpoint = addition.up_to_sequence;
        let path = self.manifest_path(bucket);
        let stored = self.disk.write_atomically(&path, &manifest.encode());
        stored.map_err(IndexError::io("write", &path))?;
        let after: BTreeSet<u64> = manifest.segments.iter().map(|s| s.number).collect();
        lock(&self.manifests).insert(bucket, Arc::new(manifest));
        let gone = before.iter().chain(written.iter()).copied();
        let gone = gone.filter(|number| !after.contains(number));
        if let Err(error) = self.remove_segments(bucket, gone) {
            // The addition stands; what is left over is removed at the next start.
            tracing::warn!(%error, bucket = bucket.0, "merged segment not removed");
        }
        Ok(())
    }

    /// The newest version of each trace that is newer than what the index has, newest start first; marks the
    /// versions in the index that they replace.
    fn supersede<'a>(
        &self,
        manifest: &mut Manifest,
        summaries: &'a [TraceSummary],
    ) -> Result<Vec<&'a TraceSummary>, Fault> {
        let mut newest: BTreeMap<(TraceId, &TenantId), &TraceSummary> = BTreeMap::new();
        for summary in summaries {
            let known = newest
                .entry((summary.trace_id, &summary.tenant))
                .or_insert(summary);
            // Of two of one fragment the later one restates the other.
            if known.fragment.age() <= summary.fragment.age() {
                *known = summary;
            }
        }
        // The map is in the order of trace ids, which a stable sort keeps among equal starts.
        let mut fresh: Vec<_> = newest.into_values().collect();
        fresh.sort_by_key(|summary| Reverse(summary.start));
        let mut outdated = BTreeSet::new();
        let bucket = manifest.bucket;
        for entry in &mut manifest.segments {
            let newest_first = fresh.first().map(|summary| summary.start.0);
            let oldest_last = fresh.last().map(|summary| summary.start.0);
            let apart = newest_first.is_none_or(|start| start < entry.min_start)
                || oldest_last.is_none_or(|start| start > entry.max_start);
            if !apart {
                let segment = self.segment(bucket, entry)?;
                mark_superseded(&segment, &mut entry.stale, &fresh, &mut outdated)?;
            }
        }
        fresh.retain(|summary| !outdated.contains(&(summary.trace_id, &summary.tenant)));
        Ok(fresh)
    }

    /// Merges the small segments when there are too many of them.
    fn merge_small(
        &self,
        writer: &mut Writer,
        manifest: &mut Manifest,
        written: &mut Vec<u64>,
    ) -> Result<(), Fault> {
        let bucket = manifest.bucket;
        let is_dead = |entry: &SegmentEntry| entry.stale.len() as u64 >= u64::from(entry.documents);
        manifest.segments.retain(|entry| !is_dead(entry));
        let small = |entry: &&SegmentEntry| entry.documents < SMALL_SEGMENT_DOCUMENTS;
        let mut chosen: Vec<SegmentEntry> =
            manifest.segments.iter().filter(small).cloned().collect();
        if chosen.len() <= MAX_SMALL_SEGMENTS {
            return Ok(());
        }
        chosen.sort_by_key(|entry| (entry.bytes, entry.number));
        let mut bytes = 0;
        chosen.retain(|entry| {
            bytes += entry.bytes;
            bytes <= MAX_MERGE_BYTES
        });
        let Some((first, others)) = chosen.split_first() else {
            return Ok(());
        };
        if others.is_empty() {
            return Ok(());
        }
        let mut span = Span::of(first);
        let mut keys = first.keys.clone();
        for other in others {
            span = span.and(Span::of(other));
            // A key that one part does not name cannot narrow down the whole.
            keys.retain(|key| other.keys.binary_search(key).is_ok());
        }
        let mut open = Vec::with_capacity(chosen.len());
        for entry in &chosen {
            open.push(self.segment(bucket, entry)?);
        }
        let sources: Vec<(&OpenSegment, &[u32])> = open
            .iter()
            .zip(&chosen)
            .map(|(open, entry)| (&**open, entry.stale.as_slice()))
            .collect();
        let built = merge(&sources).map_err(IndexError::build(bucket))?;
        let merged = self.store(writer, bucket, &built, span, keys, written)?;
        let numbers: BTreeSet<u64> = chosen.iter().map(|entry| entry.number).collect();
        manifest
            .segments
            .retain(|entry| !numbers.contains(&entry.number));
        manifest.segments.push(merged);
        Ok(())
    }

    /// Writes a segment's file, durably, and describes it.
    fn store(
        &self,
        writer: &mut Writer,
        bucket: Bucket,
        built: &Built,
        span: Span,
        keys: Vec<String>,
        written: &mut Vec<u64>,
    ) -> Result<SegmentEntry, Fault> {
        let number = writer.next_number;
        writer.next_number += 1;
        written.push(number);
        let path = self.segment_path(bucket, number);
        let stored = self.disk.write_atomically(&path, &built.blob);
        stored.map_err(IndexError::io("write", &path))?;
        Ok(SegmentEntry {
            number,
            first_sequence: span.first_sequence,
            last_sequence: span.last_sequence,
            documents: built.documents,
            bytes: built.blob.len() as u64,
            hash: built.hash,
            min_start: span.min_start,
            max_start: span.max_start,
            keys,
            stale: Vec::new(),
        })
    }
}

/// What a segment reaches over: sequences and starts, both ends included.
#[derive(Clone, Copy)]
struct Span {
    first_sequence: u64,
    last_sequence: u64,
    min_start: u64,
    max_start: u64,
}

impl Span {
    fn of(entry: &SegmentEntry) -> Self {
        Self {
            first_sequence: entry.first_sequence,
            last_sequence: entry.last_sequence,
            min_start: entry.min_start,
            max_start: entry.max_start,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            first_sequence: self.first_sequence.min(other.first_sequence),
            last_sequence: self.last_sequence.max(other.last_sequence),
            min_start: self.min_start.min(other.min_start),
            max_start: self.max_start.max(other.max_start),
        }
    }
}

/// Finds the versions of `fresh` traces in a segment: older ones become stale, and a fresh one that is not newer is
/// named in `outdated`. Both sides are ordered by start, so one pass finds them; equal starts are compared run
/// against run, so that many of them cost no square.
fn mark_superseded<'a>(
    segment: &OpenSegment,
    stale: &mut Vec<u32>,
    fresh: &[&'a TraceSummary],
    outdated: &mut BTreeSet<(TraceId, &'a TenantId)>,
) -> Result<(), Fault> {
    let mut document = 0;
    for run in fresh.chunk_by(|a, b| a.start == b.start) {
        let start = run.first().map_or(UnixNanos(0), |summary| summary.start);
        document = segment.first_at_or_before(start, document);
        while document < segment.documents() && segment.start(document) == start {
            let trace_id = segment.trace_id(document);
            let from = run.partition_point(|summary| summary.trace_id < trace_id);
            let same = run.get(from..).unwrap_or_default().iter();
            for summary in same.take_while(|summary| summary.trace_id == trace_id) {
                let tenant = TenantTerms::of(&summary.tenant).document();
                if !segment.holds(document, tenant)? {
                    continue;
                }
                if let Err(place) = stale.binary_search(&document) {
                    if segment.fragment(document).age() <= summary.fragment.age() {
                        stale.insert(place, document);
                    } else {
                        outdated.insert((summary.trace_id, &summary.tenant));
                    }
                }
            }
            document += 1;
        }
    }
    Ok(())
}
