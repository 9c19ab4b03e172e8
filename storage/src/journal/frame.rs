//! A decoded frame.

use bytes::Bytes;
use spandrel_model::batch::Slice;
use spandrel_model::ids::{Lsn, ShardId, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::otlp::RawContext;
use spandrel_model::verdict::VerdictRecord;

use super::encoded::{self, VerdictKey};
use super::error::{InvalidFrame, JournalError};
use super::record::{LsnRange, RecordHead, RecordKind};
use super::verdict_codec;
use super::wire::Reader;

/// Fewest bytes of a row: three varints.
const MIN_ROW_BYTES: usize = 3;
/// Fewest bytes of a directory entry: five of the head, one of its content.
const MIN_ENTRY_BYTES: usize = 6;
/// Bytes of a trace id.
const TRACE_ID_BYTES: u32 = 16;

/// A frame, decompressed and checked through: what follows cannot fail for its spans.
///
/// Invariants: every slice lies inside `raw`; `heads` and `bodies` are equally long; every row's context is an index
/// of `contexts`.
#[derive(Debug)]
pub struct Frame {
    pub(super) raw: Bytes,
    pub(super) contexts: Vec<[Slice; 4]>,
    pub(super) heads: Vec<RecordHead>,
    pub(super) bodies: Vec<Body>,
    pub(super) rows: Vec<Row>,
}

#[derive(Debug)]
pub(super) enum Body {
    Spans {
        tenant: TenantId,
        received_at: UnixNanos,
        rows: std::ops::Range<usize>,
    },
    Verdicts {
        groups: Vec<(TenantId, usize)>,
        bytes: Slice,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) context: u32,
    /// Where in `raw` its trace id stands: inside the span or right before it.
    pub(super) trace_at: u32,
    pub(super) span: Slice,
}

impl Frame {
    /// Decodes a frame's bytes.
    ///
    /// # Errors
    /// [`InvalidFrame`] when they are no intact frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidFrame> {
        Self::decode_into(bytes, Vec::new())
    }

    /// Decodes a frame's bytes into a buffer, whose content is lost and whose memory is used.
    ///
    /// # Errors
    /// [`InvalidFrame`] when they are no intact frame.
    pub fn decode_into(bytes: &[u8], buffer: Vec<u8>) -> Result<Self, InvalidFrame> {
        let opened = encoded::open(bytes, buffer)?;
        Decoder::run(opened).ok_or(InvalidFrame {
            reason: "its content does not follow the format",
        })
    }

    /// The memory of the frame, for the next one; a new buffer when somebody holds a part of it.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        let unique = self.raw.try_into_mut();
        unique.map(Vec::from).unwrap_or_default()
    }

    /// The records, in the order in which they were added.
    #[must_use]
    pub fn records(&self) -> &[RecordHead] {
        &self.heads
    }

    /// The index of a record.
    #[must_use]
    pub fn find(&self, shard: ShardId, lsn: Lsn) -> Option<usize> {
        let mut heads = self.heads.iter();
        heads.position(|head| head.shard == shard && head.lsn == lsn)
    }

    /// Whose spans a record holds; `None` for records of other kinds.
    #[must_use]
    pub fn tenant(&self, record: usize) -> Option<&TenantId> {
        match self.bodies.get(record)? {
            Body::Spans { tenant, .. } => Some(tenant),
            Body::Verdicts { .. } => None,
        }
    }

    /// When the spans of a record were received; `None` for records of other kinds.
    #[must_use]
    pub fn received_at(&self, record: usize) -> Option<UnixNanos> {
        match self.bodies.get(record)? {
            Body::Spans { received_at, .. } => Some(*received_at),
            Body::Verdicts { .. } => None,
        }
    }

    /// Spans of a record; 0 for records of other kinds.
    #[must_use]
    pub fn span_count(&self, record: usize) -> usize {
        self.rows(record).len()
    }

    /// Shows every span of a record with its context and trace id.
    pub fn visit_spans(
        &self,
        record: usize,
        visit: &mut dyn FnMut(&RawContext<'_>, TraceId, &[u8]),
    ) {
        for row in self.rows(record) {
            let parts = self.contexts.get(row.context as usize);
            let [resource, resource_schema_url, scope, scope_schema_url] =
                parts.copied().unwrap_or_default();
            let context = RawContext {
                resource: resource.of(&self.raw),
                resource_schema_url: resource_schema_url.of(&self.raw),
                scope: scope.of(&self.raw),
                scope_schema_url: scope_schema_url.of(&self.raw),
            };
            visit(&context, self.trace_id(row), row.span.of(&self.raw));
        }
    }

    /// The verdicts of a record, sorted by tenant and trace id.
    ///
    /// # Errors
    /// [`JournalError::NoSuchRecord`] when the record holds no verdicts, [`JournalError::Invalid`] when they do not
    /// follow the format.
    pub fn verdicts(&self, record: usize) -> Result<Vec<VerdictRecord>, JournalError> {
        let Some(Body::Verdicts { groups, bytes }) = self.bodies.get(record) else {
            return Err(JournalError::NoSuchRecord {
                wanted: "verdicts",
                record,
            });
        };
        Ok(self.decode_verdicts(groups, *bytes)?)
    }

    fn decode_verdicts(
        &self,
        groups: &[(TenantId, usize)],
        bytes: Slice,
    ) -> Result<Vec<VerdictRecord>, InvalidFrame> {
        let mut reader = Reader::new(bytes.of(&self.raw));
        let mut verdicts = Vec::new();
        for (tenant, count) in groups {
            let group = verdict_codec::decode(&mut reader, tenant, *count);
            verdicts.append(&mut group.ok_or(InvalidFrame {
                reason: "its verdicts do not follow the format",
            })?);
        }
        Ok(verdicts)
    }

    /// The verdict at `index` among all of the frame, and its shard.
    pub(crate) fn verdict_at(
        &self,
        mut index: usize,
    ) -> Result<Option<(RecordHead, VerdictRecord)>, InvalidFrame> {
        for (head, body) in self.heads.iter().zip(&self.bodies) {
            let Body::Verdicts { groups, bytes } = body else {
                continue;
            };
            let count = groups.iter().map(|(_, count)| count).sum();
            if index < count {
                let verdicts = self.decode_verdicts(groups, *bytes)?;
                let verdict = verdicts.into_iter().nth(index);
                return Ok(verdict.map(|verdict| (*head, verdict)));
            }
            index -= count;
        }
        Ok(None)
    }

    /// The traces that the frame's verdicts are about, in the order of [`Self::verdict_at`].
    pub(crate) fn verdict_keys(&self) -> Result<Vec<VerdictKey>, InvalidFrame> {
        let mut keys = Vec::new();
        for (head, body) in self.heads.iter().zip(&self.bodies) {
            let Body::Verdicts { groups, bytes } = body else {
                continue;
            };
            let verdicts = self.decode_verdicts(groups, *bytes)?;
            keys.extend(verdicts.into_iter().map(|verdict| VerdictKey {
                shard: head.shard,
                tenant: verdict.tenant,
                trace_id: verdict.trace_id,
            }));
        }
        Ok(keys)
    }

    /// The records of each shard, by shard.
    pub(crate) fn ranges(&self) -> Vec<LsnRange> {
        let mut ranges = std::collections::BTreeMap::new();
        for head in &self.heads {
            let range = ranges.entry(head.shard).or_insert(LsnRange {
                shard: head.shard,
                first: head.lsn,
                last: head.lsn,
            });
            range.first = range.first.min(head.lsn);
            range.last = range.last.max(head.lsn);
        }
        ranges.into_values().collect()
    }

    /// The kinds of its records, a bit each.
    pub(crate) fn kinds(&self) -> u8 {
        self.heads
            .iter()
            .fold(0, |kinds, head| kinds | head.kind.bit())
    }

    /// Bytes before compression.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.raw.len()
    }

    /// Bytes of memory, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.raw.len()
            + self.rows.len() * size_of::<Row>()
            + self.contexts.len() * size_of::<[Slice; 4]>()
            + self.heads.len() * (size_of::<RecordHead>() + size_of::<Body>())
    }

    pub(super) fn rows(&self, record: usize) -> &[Row] {
        match self.bodies.get(record) {
            Some(Body::Spans { rows, .. }) => self.rows.get(rows.clone()).unwrap_or_default(),
            _ => &[],
        }
    }

    pub(super) fn trace_id(&self, row: &Row) -> TraceId {
        let id = Slice {
            offset: row.trace_at,
            len: TRACE_ID_BYTES,
        };
        TraceId(id.of(&self.raw).try_into().unwrap_or_default())
    }
}

/// Reads the tables of a frame and walks its rows. `None` anywhere: the bytes do not follow the format.
struct Decoder {
    frame: Frame,
    tenants: Vec<TenantId>,
    /// End of the bodies read so far.
    body_end: usize,
    tail_offset: usize,
    received_at: u64,
    kinds: u8,
}

impl Decoder {
    fn run(opened: encoded::Opened) -> Option<Frame> {
        let raw = Bytes::from(opened.raw);
        let tail = raw.get(opened.tail_offset..)?.to_vec();
        let mut decoder = Self {
            frame: Frame {
                raw,
                contexts: Vec::new(),
                heads: Vec::new(),
                bodies: Vec::new(),
                rows: Vec::new(),
            },
            tenants: Vec::new(),
            body_end: 0,
            tail_offset: opened.tail_offset,
            received_at: 0,
            kinds: 0,
        };
        let mut reader = Reader::new(&tail);
        decoder.read_tenants(&mut reader)?;
        decoder.read_contexts(&mut reader)?;
        for _ in 0..reader.count(MIN_ENTRY_BYTES)? {
            decoder.read_record(&mut reader)?;
        }
        let whole = reader.remaining() == 0
            && decoder.body_end == decoder.tail_offset
            && decoder.kinds == opened.kinds;
        whole.then_some(decoder.frame)
    }

    fn read_tenants(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        for _ in 0..reader.count(2)? {
            let len = reader.count(1)?;
            let name = std::str::from_utf8(reader.take(len)?).ok()?;
            self.tenants.push(name.parse().ok()?);
        }
        Some(())
    }

    fn read_contexts(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        for _ in 0..reader.count(4)? {
            let mut parts = [Slice::default(); 4];
            for part in &mut parts {
                let len = reader.count(1)?;
                *part = slice(self.tail_offset + reader.position(), len)?;
                reader.take(len)?;
            }
            self.frame.contexts.push(parts);
        }
        Some(())
    }

    fn read_record(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let kind = RecordKind::from_number(reader.byte()?)?;
        self.frame.heads.push(RecordHead {
            kind,
            shard: ShardId(u16::try_from(reader.varint()?).ok()?),
            term: Term(reader.varint()?),
            lsn: Lsn(reader.varint()?),
        });
        self.kinds |= kind.bit();
        let len = usize::try_from(reader.varint()?).ok()?;
        let start = self.body_end;
        self.body_end = start.checked_add(len)?;
        if self.body_end > self.tail_offset {
            return None;
        }
        let body = match kind {
            RecordKind::Spans | RecordKind::SpansAgain => self.read_spans(reader, start)?,
            RecordKind::Verdicts | RecordKind::VerdictsAgain => {
                self.read_verdicts(reader, start)?
            }
            RecordKind::Page => return None,
        };
        self.frame.bodies.push(body);
        Some(())
    }

    fn read_spans(&mut self, reader: &mut Reader<'_>, start: usize) -> Option<Body> {
        let tenant = self.read_tenant(reader)?;
        self.received_at = reader.difference(self.received_at)?;
        let count = usize::try_from(reader.varint()?).ok()?;
        let raw = self.frame.raw.clone();
        let mut body = Reader::new(raw.get(start..self.body_end)?);
        if count.checked_mul(MIN_ROW_BYTES)? > body.remaining() {
            return None;
        }
        let first = self.frame.rows.len();
        for _ in 0..count {
            let row = self.read_row(&mut body, start)?;
            self.frame.rows.push(row);
        }
        (body.remaining() == 0).then_some(Body::Spans {
            tenant,
            received_at: UnixNanos(self.received_at),
            rows: first..self.frame.rows.len(),
        })
    }

    fn read_row(&self, body: &mut Reader<'_>, start: usize) -> Option<Row> {
        let context = body.varint_u32()?;
        self.frame.contexts.get(context as usize)?;
        let id_place = body.varint_u32()?;
        let len = usize::try_from(body.varint()?).ok()?;
        let before = u32::try_from(start + body.position()).ok()?;
        let trace_at = match id_place.checked_sub(1) {
            None => {
                body.array::<16>()?;
                before
            }
            Some(at) if at as usize + 16 <= len => before.checked_add(at)?,
            Some(_) => return None,
        };
        let span = slice(start + body.position(), len)?;
        body.take(len)?;
        Some(Row {
            context,
            trace_at,
            span,
        })
    }

    fn read_verdicts(&mut self, reader: &mut Reader<'_>, start: usize) -> Option<Body> {
        let mut groups = Vec::new();
        for _ in 0..reader.count(2)? {
            let tenant = self.read_tenant(reader)?;
            groups.push((tenant, usize::try_from(reader.varint()?).ok()?));
        }
        let total = groups
            .iter()
            .try_fold(0_usize, |sum, (_, count)| sum.checked_add(*count))?;
        // More verdicts than bytes is a lie that must not reach an allocation.
        (total <= self.body_end - start).then_some(Body::Verdicts {
            groups,
            bytes: slice(start, self.body_end - start)?,
        })
    }

    fn read_tenant(&self, reader: &mut Reader<'_>) -> Option<TenantId> {
        let number = usize::try_from(reader.varint()?).ok()?;
        self.tenants.get(number).cloned()
    }
}

fn slice(offset: usize, len: usize) -> Option<Slice> {
    Some(Slice {
        offset: u32::try_from(offset).ok()?,
        len: u32::try_from(len).ok()?,
    })
}
