//! Builds frames: copies span bytes once, interns resources and scopes over the whole frame, compresses once.

use std::collections::BTreeMap;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use spandrel_model::batch::{Context, Slice, SpanBatch};
use spandrel_model::ids::{Lsn, ShardId, TenantId, Term, TraceId};
use spandrel_model::verdict::VerdictRecord;
use zstd::bulk::Compressor;

use super::encoded::{EncodedFrame, VerdictKey};
use super::error::JournalError;
use super::record::{LsnRange, RecordKind};
use super::verdict_codec;
use super::wire::{put_difference, put_varint};
use crate::limits::MAX_FRAME_RAW_BYTES;

/// Most bytes that a row adds to its span: three varints of 32 bits and a trace id.
const MAX_ROW_OVERHEAD_BYTES: usize = 31;

/// Collects records and makes frames of them. Reuses its buffers and its compressor: keep one for a long time.
///
/// Invariants: `raw` holds the bodies of the records in the order of `directory`; `contexts` and `tenants` hold no
/// value twice.
pub struct FrameBuilder {
    compressor: Compressor<'static>,
    raw: Vec<u8>,
    directory: Vec<u8>,
    records: u64,
    kinds: u8,
    received_at: u64,
    tenants: Vec<TenantId>,
    contexts: Contexts,
    ranges: BTreeMap<ShardId, LsnRange>,
    verdicts: Vec<VerdictKey>,
}

impl FrameBuilder {
    /// A builder that compresses with this level of zstd: 1 by default, 1.2 to 1.3 us per span of 900 bytes.
    ///
    /// # Errors
    /// [`JournalError::Disk`] when zstd refuses the level or has no memory.
    pub fn new(level: i32) -> Result<Self, JournalError> {
        let compressor = Compressor::new(level).map_err(JournalError::io("start zstd"))?;
        Ok(Self {
            compressor,
            raw: Vec::new(),
            directory: Vec::new(),
            records: 0,
            kinds: 0,
            received_at: 0,
            tenants: Vec::new(),
            contexts: Contexts::default(),
            ranges: BTreeMap::new(),
            verdicts: Vec::new(),
        })
    }

    /// Adds the spans of `batch` that `spans` names by index (those of one shard). Unknown indexes are skipped. The
    /// request's buffer stays alive until [`Self::finish`].
    ///
    /// # Errors
    /// [`JournalError::TooLarge`] when the frame has no room; nothing is added then. Finish it and try again.
    pub fn push_spans(
        &mut self,
        shard: ShardId,
        term: Term,
        lsn: Lsn,
        batch: &SpanBatch,
        spans: &[u32],
    ) -> Result<(), JournalError> {
        self.push_spans_as(RecordKind::Spans, (shard, term, lsn), batch, spans)
    }

    /// Adds spans that the shard has already: as [`Self::push_spans`], but for the kind of the record.
    ///
    /// # Errors
    /// As [`Self::push_spans`].
    pub fn push_spans_again(
        &mut self,
        (shard, term, lsn): (ShardId, Term, Lsn),
        batch: &SpanBatch,
        spans: &[u32],
    ) -> Result<(), JournalError> {
        self.push_spans_as(RecordKind::SpansAgain, (shard, term, lsn), batch, spans)
    }

    fn push_spans_as(
        &mut self,
        kind: RecordKind,
        (shard, term, lsn): (ShardId, Term, Lsn),
        batch: &SpanBatch,
        spans: &[u32],
    ) -> Result<(), JournalError> {
        let chosen = || {
            let spans = spans.iter();
            spans.filter_map(|index| batch.spans.get(*index as usize))
        };
        let bytes = chosen().map(|span| span.span.len as usize + MAX_ROW_OVERHEAD_BYTES);
        self.check_room(bytes.sum::<usize>() + self.contexts.bound(batch))?;

        let start = self.raw.len();
        self.contexts.start_batch(&batch.buffer);
        let mut rows = 0_u64;
        for span in chosen() {
            let context = self.contexts.number(batch, &batch.context(span));
            put_varint(&mut self.raw, u64::from(context));
            put_row(&mut self.raw, span.trace_id, batch.bytes(span.span));
            rows += 1;
        }
        self.put_head(kind, shard, term, lsn, start);
        let tenant = self.tenant_number(&batch.tenant);
        put_varint(&mut self.directory, tenant);
        put_difference(&mut self.directory, self.received_at, batch.received_at.0);
        self.received_at = batch.received_at.0;
        put_varint(&mut self.directory, rows);
        Ok(())
    }

    /// Adds verdicts of one shard, in any order. Of two about one trace the later one of the slice is the newer.
    ///
    /// # Errors
    /// [`JournalError::TooLarge`] when the frame has no room; nothing is added then.
    pub fn push_verdicts(
        &mut self,
        shard: ShardId,
        term: Term,
        lsn: Lsn,
        verdicts: &[VerdictRecord],
    ) -> Result<(), JournalError> {
        self.push_verdicts_as(RecordKind::Verdicts, (shard, term, lsn), verdicts)
    }

    /// Adds verdicts that the shard has already: as [`Self::push_verdicts`], but for the kind of the record.
    ///
    /// # Errors
    /// As [`Self::push_verdicts`].
    pub fn push_verdicts_again(
        &mut self,
        (shard, term, lsn): (ShardId, Term, Lsn),
        verdicts: &[VerdictRecord],
    ) -> Result<(), JournalError> {
        self.push_verdicts_as(RecordKind::VerdictsAgain, (shard, term, lsn), verdicts)
    }

    fn push_verdicts_as(
        &mut self,
        kind: RecordKind,
        (shard, term, lsn): (ShardId, Term, Lsn),
        verdicts: &[VerdictRecord],
    ) -> Result<(), JournalError> {
        let bytes = verdicts.iter().map(verdict_bound);
        self.check_room(bytes.sum::<usize>())?;

        let mut sorted: Vec<&VerdictRecord> = verdicts.iter().collect();
        sorted.sort_by(|a, b| (&a.tenant, a.trace_id).cmp(&(&b.tenant, b.trace_id)));
        let start = self.raw.len();
        let mut groups = Vec::new();
        for group in sorted.chunk_by(|a, b| a.tenant == b.tenant) {
            verdict_codec::encode(group, &mut self.raw);
            if let Some(first) = group.first() {
                groups.push((self.tenant_number(&first.tenant), group.len() as u64));
            }
        }
        self.verdicts
            .extend(sorted.iter().map(|verdict| VerdictKey {
                shard,
                tenant: verdict.tenant.clone(),
                trace_id: verdict.trace_id,
            }));
        self.put_head(kind, shard, term, lsn, start);
        put_varint(&mut self.directory, groups.len() as u64);
        for (tenant, count) in groups {
            put_varint(&mut self.directory, tenant);
            put_varint(&mut self.directory, count);
        }
        Ok(())
    }

    /// Bytes so far, before compression: finish a frame at about 256 KiB.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.raw.len() + self.directory.len() + self.contexts.encoded.len()
    }

    /// True when nothing was added since the last frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// True when records of spans were added since the last frame.
    #[must_use]
    pub fn holds_spans(&self) -> bool {
        self.kinds & RecordKind::Spans.bit() != 0
    }

    /// Compresses what was added and starts anew.
    ///
    /// # Errors
    /// [`JournalError::Disk`] when zstd has no memory; what was added is lost then.
    pub fn finish(&mut self) -> Result<EncodedFrame, JournalError> {
        let tail_offset = self.raw.len();
        put_varint(&mut self.raw, self.tenants.len() as u64);
        for tenant in self.tenants.drain(..) {
            put_varint(&mut self.raw, tenant.as_str().len() as u64);
            self.raw.extend_from_slice(tenant.as_str().as_bytes());
        }
        self.contexts.drain_into(&mut self.raw);
        put_varint(&mut self.raw, self.records);
        self.raw.append(&mut self.directory);

        let ranges = std::mem::take(&mut self.ranges).into_values().collect();
        let verdicts = std::mem::take(&mut self.verdicts);
        let frame = EncodedFrame::compress(
            &mut self.compressor,
            &self.raw,
            tail_offset,
            self.kinds,
            ranges,
            verdicts,
        );
        self.raw.clear();
        self.records = 0;
        self.kinds = 0;
        self.received_at = 0;
        frame
    }

    fn check_room(&self, more: usize) -> Result<(), JournalError> {
        let bytes = self.raw_bytes().saturating_add(more);
        if bytes <= MAX_FRAME_RAW_BYTES {
            return Ok(());
        }
        Err(JournalError::TooLarge {
            what: "a frame",
            bytes,
            limit_bytes: MAX_FRAME_RAW_BYTES,
        })
    }

    fn put_head(&mut self, kind: RecordKind, shard: ShardId, term: Term, lsn: Lsn, start: usize) {
        self.directory.push(kind as u8);
        put_varint(&mut self.directory, u64::from(shard.0));
        put_varint(&mut self.directory, term.0);
        put_varint(&mut self.directory, lsn.0);
        put_varint(&mut self.directory, (self.raw.len() - start) as u64);
        self.records += 1;
        self.kinds |= kind.bit();
        let range = self.ranges.entry(shard).or_insert(LsnRange {
            shard,
            first: lsn,
            last: lsn,
        });
        range.first = range.first.min(lsn);
        range.last = range.last.max(lsn);
    }

    fn tenant_number(&mut self, tenant: &TenantId) -> u64 {
        // The tenant of the last record is the likeliest; a frame has few.
        let found = self.tenants.iter().rposition(|known| known == tenant);
        let number = found.unwrap_or_else(|| {
            self.tenants.push(tenant.clone());
            self.tenants.len() - 1
        });
        number as u64
    }
}

/// A row after its context: where in the span its trace id stands, plus one (0: it does not, and follows), the
/// span's length and the span.
fn put_row(raw: &mut Vec<u8>, trace_id: TraceId, span: &[u8]) {
    // Field 1 first, as every exporter writes it, puts the id at offset 2.
    let id_at = |at: usize| span.get(at..at + 16) == Some(&trace_id.0[..]);
    let found = match id_at(2) {
        true => Some(2),
        false => (0..span.len()).find(|at| id_at(*at)),
    };
    put_varint(raw, found.map_or(0, |at| at as u64 + 1));
    put_varint(raw, span.len() as u64);
    if found.is_none() {
        raw.extend_from_slice(&trace_id.0);
    }
    raw.extend_from_slice(span);
}

/// More than the record takes, its columns at their longest.
fn verdict_bound(verdict: &VerdictRecord) -> usize {
    const FIXED_BYTES: usize = 256;
    FIXED_BYTES + verdict.limiters.len() * 11 + verdict.references.len() * 10
}

/// The distinct contexts of a frame.
#[derive(Default)]
struct Contexts {
    /// As the frame stores them.
    encoded: Vec<u8>,
    /// Where in `encoded` each one starts; the next one's start is its end.
    starts: Vec<usize>,
    /// Hash of the encoded bytes to number. A collision makes a second entry under the next free hash.
    numbers: HashMap<u64, u32, FixedState>,
    /// The request whose contexts `known` are. Held, so that equal addresses mean equal bytes.
    buffer: Bytes,
    /// Numbers of the contexts of `buffer` met so far.
    known: HashMap<[u64; 4], u32, FixedState>,
    scratch: Vec<u8>,
}

fn parts(context: &Context) -> [Slice; 4] {
    [
        context.resource,
        context.resource_schema_url,
        context.scope,
        context.scope_schema_url,
    ]
}

impl Contexts {
    /// More bytes than the contexts of the batch can add.
    fn bound(&self, batch: &SpanBatch) -> usize {
        let same = self.is_same(&batch.buffer) && self.known.len() == batch.contexts.len();
        let contexts = batch.contexts.iter().filter(|_| !same);
        contexts
            .flat_map(parts)
            .map(|slice| slice.len as usize + 5)
            .sum()
    }

    fn is_same(&self, buffer: &Bytes) -> bool {
        self.buffer.as_ptr() == buffer.as_ptr() && self.buffer.len() == buffer.len()
    }

    fn start_batch(&mut self, buffer: &Bytes) {
        if !self.is_same(buffer) {
            self.buffer = buffer.clone();
            self.known.clear();
        }
    }

    fn number(&mut self, batch: &SpanBatch, context: &Context) -> u32 {
        let parts = parts(context);
        let key = parts.map(|slice| u64::from(slice.offset) << 32 | u64::from(slice.len));
        if let Some(number) = self.known.get(&key) {
            return *number;
        }
        self.scratch.clear();
        for slice in parts {
            let bytes = batch.bytes(slice);
            put_varint(&mut self.scratch, bytes.len() as u64);
            self.scratch.extend_from_slice(bytes);
        }
        let number = self.intern();
        self.known.insert(key, number);
        number
    }

    /// The number of the context in `scratch`.
    fn intern(&mut self) -> u32 {
        let mut hash = xxhash_rust::xxh3::xxh3_64(&self.scratch);
        while let Some(number) = self.numbers.get(&hash) {
            if self.encoded_context(*number) == self.scratch {
                return *number;
            }
            hash = hash.wrapping_add(1);
        }
        // A context takes at least one byte of a frame, which has fewer than 2^32.
        let number = u32::try_from(self.starts.len()).unwrap_or(u32::MAX);
        self.starts.push(self.encoded.len());
        self.encoded.extend_from_slice(&self.scratch);
        self.numbers.insert(hash, number);
        number
    }

    fn encoded_context(&self, number: u32) -> &[u8] {
        let number = number as usize;
        let start = self.starts.get(number).copied().unwrap_or_default();
        let end = self.starts.get(number + 1).copied();
        let end = end.unwrap_or(self.encoded.len());
        self.encoded.get(start..end).unwrap_or_default()
    }

    fn drain_into(&mut self, out: &mut Vec<u8>) {
        put_varint(out, self.starts.len() as u64);
        out.append(&mut self.encoded);
        self.starts.clear();
        self.numbers.clear();
        self.buffer = Bytes::new();
        self.known.clear();
    }
}
