//! Opens a page and reads from it only what is asked for.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use spandrel_model::ids::{Lsn, ShardId, SpanId, TraceId, UnixNanos};

use super::builder::{FragmentHead, PlacedFragment};
use super::context::ContextHash;
use super::error::{PageError, corrupt};
use super::field::{self, FIRST_ATTRIBUTE, Step, ValueKind};
use super::layout::{Head, PREFIX_BYTES};
use super::limits::MAX_HEAD_RAW_BYTES;
use super::shapes::Shapes;
use super::values::{Values, read_indexes};
use super::wire::{Wire, unzigzag};

/// Where the bytes of a page come from.
pub trait PageBytes {
    /// The `len` bytes from `offset`; blocks.
    ///
    /// # Errors
    /// [`PageError::Corrupt`] when the page is shorter, [`PageError::Source`] when it cannot be read.
    fn read(&self, offset: usize, len: usize) -> Result<Bytes, PageError>;

    /// A part of the page that was unpacked before, if somebody keeps such parts.
    fn cached(&self, part: PagePart) -> Option<Unpacked> {
        let _ = part;
        None
    }

    /// Offers an unpacked part to whom keeps such parts.
    fn keep(&self, part: PagePart, unpacked: &Unpacked) {
        let _ = (part, unpacked);
    }
}

/// A part of a page that is unpacked as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PagePart {
    /// The directory.
    Head,
    /// A group of columns.
    Group(u32),
}

/// A part of a page, verified and decompressed.
#[derive(Debug, Clone)]
pub struct Unpacked(Part);

#[derive(Debug, Clone)]
enum Part {
    Head(Arc<Head>),
    Group(Bytes),
}

impl Unpacked {
    /// Bytes of memory, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        match &self.0 {
            Part::Head(head) => head.memory_bytes(),
            Part::Group(raw) => raw.len(),
        }
    }
}

impl PageBytes for Bytes {
    fn read(&self, offset: usize, len: usize) -> Result<Bytes, PageError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(self.slice(offset..end)),
            _ => Err(corrupt("length")),
        }
    }
}

/// A column of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttributeColumnView<'a> {
    /// The key; need not be UTF-8.
    pub key: &'a [u8],
    /// The type of its values.
    pub kind: ValueKind,
    pub(super) step: Step,
}

/// A page being read. Column groups are fetched, verified and decompressed when first needed, and kept.
pub struct PageReader<'a> {
    source: &'a dyn PageBytes,
    pub(super) head: Arc<Head>,
    groups: Vec<Option<Bytes>>,
    fetched_bytes: usize,
    rows: Option<Rows>,
    times: Option<Times>,
}

/// Shape and context of each row.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) shapes: Shapes,
    pub(super) row_shapes: Vec<u32>,
    pub(super) row_contexts: Vec<u32>,
    pub(super) contexts: Vec<ContextHash>,
}

/// Start and end of each row.
#[derive(Debug)]
pub(super) struct Times {
    pub(super) starts: Vec<u64>,
    pub(super) ends: Vec<u64>,
}

impl std::fmt::Debug for PageReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageReader")
            .field("counts", &self.head.counts)
            .finish_non_exhaustive()
    }
}

impl<'a> PageReader<'a> {
    /// Reads the directory.
    ///
    /// # Errors
    /// When its bytes are corrupt or cannot be read.
    pub fn open(source: &'a dyn PageBytes) -> Result<Self, PageError> {
        let (head, fetched_bytes) = match source.cached(PagePart::Head) {
            Some(Unpacked(Part::Head(head))) => (head, 0),
            _ => Self::read_head(source)?,
        };
        Ok(Self {
            source,
            groups: vec![None; head.groups.len()],
            head,
            fetched_bytes,
            rows: None,
            times: None,
        })
    }

    fn read_head(source: &dyn PageBytes) -> Result<(Arc<Head>, usize), PageError> {
        let prefix = source.read(0, PREFIX_BYTES)?;
        let len = Head::stored_len(&prefix)?;
        if len > PREFIX_BYTES + MAX_HEAD_RAW_BYTES {
            return Err(corrupt("length of the head"));
        }
        let head = Arc::new(Head::read(&source.read(0, len)?)?);
        source.keep(PagePart::Head, &Unpacked(Part::Head(Arc::clone(&head))));
        Ok((head, len))
    }

    /// Number of spans.
    #[must_use]
    pub fn span_count(&self) -> u32 {
        self.head.counts.spans
    }

    /// Earliest and latest start of the spans.
    #[must_use]
    pub fn starts(&self) -> (UnixNanos, UnixNanos) {
        let counts = &self.head.counts;
        (UnixNanos(counts.min_start), UnixNanos(counts.max_start))
    }

    /// Stored bytes fetched so far.
    #[must_use]
    pub fn fetched_bytes(&self) -> usize {
        self.fetched_bytes
    }

    /// The columns of attributes. Needs only the directory.
    pub fn attribute_columns(&self) -> impl Iterator<Item = AttributeColumnView<'_>> {
        let columns = self.head.attributes.iter();
        columns
            .zip(FIRST_ATTRIBUTE..)
            .map(|(column, step)| AttributeColumnView {
                key: &column.key,
                kind: column.kind,
                step,
            })
    }

    /// The fragments, in order.
    ///
    /// # Errors
    /// When their bytes are corrupt or cannot be read.
    pub fn fragments(&mut self) -> Result<Vec<PlacedFragment>, PageError> {
        let column = self.column(field::FRAGMENTS)?;
        let counts = self.head.counts;
        parse_fragments(&column, counts.fragments, counts.spans).ok_or_else(|| corrupt("fragments"))
    }

    /// The resources and scopes that spans of the page have.
    ///
    /// # Errors
    /// When their bytes are corrupt or cannot be read.
    pub fn contexts(&mut self) -> Result<&[ContextHash], PageError> {
        Ok(&self.rows()?.contexts)
    }

    /// As [`Self::contexts`], without the rows that have them.
    pub(super) fn context_hashes(&mut self) -> Result<Vec<ContextHash>, PageError> {
        let hashes = self.column(field::CONTEXT_HASHES)?;
        let (hashes, rest) = hashes.as_chunks::<16>();
        match rest.is_empty() {
            true => Ok(hashes.iter().map(|&hash| ContextHash(hash)).collect()),
            false => Err(corrupt("context hashes")),
        }
    }

    /// The resources and scopes of the spans of a fragment, each once.
    ///
    /// # Errors
    /// When their bytes are corrupt or cannot be read.
    pub fn contexts_of(
        &mut self,
        fragment: &PlacedFragment,
    ) -> Result<BTreeSet<ContextHash>, PageError> {
        let first = fragment.first_row as usize;
        let page = self.rows()?;
        let numbers = first
            .checked_add(fragment.rows as usize)
            .and_then(|end| page.row_contexts.get(first..end))
            .ok_or_else(|| corrupt("rows of a fragment"))?;
        let hashes = numbers
            .iter()
            .map(|&number| page.contexts.get(number as usize).copied());
        hashes
            .collect::<Option<_>>()
            .ok_or_else(|| corrupt("context of a span"))
    }

    /// The ids of the spans in `rows`; zero where a span has none.
    ///
    /// # Errors
    /// When their bytes are corrupt or cannot be read.
    pub fn span_ids(&mut self, rows: &[u32]) -> Result<Vec<SpanId>, PageError> {
        let column = self.column(field::SPAN_ID)?;
        let (ids, _) = column.as_chunks::<8>();
        rows.iter()
            .map(|&row| ids.get(row as usize).map(|&id| SpanId(id)))
            .collect::<Option<_>>()
            .ok_or_else(|| corrupt("span ids"))
    }

    /// The raw bytes of a step's column.
    pub(super) fn column(&mut self, step: Step) -> Result<Bytes, PageError> {
        let place = self
            .head
            .place(step)
            .ok_or_else(|| corrupt("missing column"))?;
        let group = match self.groups.get(place.group) {
            Some(Some(group)) => group.clone(),
            _ => self.open_group(place.group)?,
        };
        match place.offset.checked_add(place.len) {
            Some(end) if end <= group.len() => Ok(group.slice(place.offset..end)),
            _ => Err(corrupt("place of a column")),
        }
    }

    fn open_group(&mut self, number: usize) -> Result<Bytes, PageError> {
        let group = *self
            .head
            .groups
            .get(number)
            .ok_or_else(|| corrupt("number of a group"))?;
        let part = PagePart::Group(u32::try_from(number).unwrap_or(u32::MAX));
        let raw = match self.source.cached(part) {
            Some(Unpacked(Part::Group(raw))) => raw,
            _ => {
                let stored = self.source.read(group.offset, group.stored_len)?;
                self.fetched_bytes += stored.len();
                let raw = group.open(&stored)?;
                self.source.keep(part, &Unpacked(Part::Group(raw.clone())));
                raw
            }
        };
        if let Some(slot) = self.groups.get_mut(number) {
            *slot = Some(raw.clone());
        }
        Ok(raw)
    }

    /// The values of a step's column, of which the rows have `count`.
    pub(super) fn values(&mut self, step: Step, count: usize) -> Result<Values, PageError> {
        let column = self.column(step)?;
        Values::read(&column, count).ok_or_else(|| corrupt("values column"))
    }

    /// Shapes and contexts of the rows.
    pub(super) fn rows(&mut self) -> Result<&Rows, PageError> {
        if self.rows.is_none() {
            self.rows = Some(self.read_rows()?);
        }
        self.rows.as_ref().ok_or_else(|| corrupt("rows"))
    }

    fn read_rows(&mut self) -> Result<Rows, PageError> {
        let shapes = Shapes::read(&self.column(field::SHAPES)?).ok_or_else(|| corrupt("shapes"))?;
        let contexts = self.context_hashes()?;
        Ok(Rows {
            row_shapes: self.index_column(field::SHAPE, shapes.len())?,
            row_contexts: self.index_column(field::CONTEXT, contexts.len())?,
            shapes,
            contexts,
        })
    }

    fn index_column(&mut self, step: Step, distinct: usize) -> Result<Vec<u32>, PageError> {
        let count = self.head.counts.spans as usize;
        let column = self.column(step)?;
        let indexes = column
            .split_first()
            .and_then(|(&mode, indexes)| read_indexes(mode, indexes, count, distinct));
        indexes.ok_or_else(|| corrupt("indexes of rows"))
    }

    /// Starts and ends of the rows.
    pub(super) fn times(&mut self) -> Result<&Times, PageError> {
        if self.times.is_none() {
            let fragments = self.fragments()?;
            let (starts, durations) = (self.column(field::START)?, self.column(field::END)?);
            let times = parse_times(&starts, &durations, &fragments, self.head.counts.min_start);
            self.times = Some(times.ok_or_else(|| corrupt("times"))?);
        }
        self.times.as_ref().ok_or_else(|| corrupt("times"))
    }
}

fn undelta(before: u64, wire: &mut Wire<'_>) -> Option<u64> {
    let delta = unzigzag(wire.minimal_varint()?);
    Some(before.wrapping_add(delta.cast_unsigned()))
}

fn parse_fragments(column: &[u8], count: u32, spans: u32) -> Option<Vec<PlacedFragment>> {
    let mut wire = Wire::new(column);
    let mut fragments = Vec::with_capacity((count as usize).min(column.len()));
    let (mut shard, mut lsn, mut received_at, mut row) = (0u16, 0u64, 0u64, 0u32);
    for _ in 0..count {
        let step = u16::try_from(wire.minimal_varint()?).ok()?;
        shard = shard.wrapping_add(step);
        let trace_id = TraceId(wire.array()?);
        lsn = undelta(lsn, &mut wire)?;
        received_at = undelta(received_at, &mut wire)?;
        let rows = u32::try_from(wire.minimal_varint()?).ok()?;
        fragments.push(PlacedFragment {
            head: FragmentHead {
                shard: ShardId(shard),
                trace_id,
                fragment: Lsn(lsn),
                received_at: UnixNanos(received_at),
            },
            first_row: row,
            rows,
        });
        row = row.checked_add(rows)?;
    }
    (wire.is_empty() && row == spans).then_some(fragments)
}

fn parse_times(
    starts: &[u8],
    durations: &[u8],
    fragments: &[PlacedFragment],
    min_start: u64,
) -> Option<Times> {
    let (mut start_wire, mut duration_wire) = (Wire::new(starts), Wire::new(durations));
    let mut times = Times {
        starts: Vec::new(),
        ends: Vec::new(),
    };
    for fragment in fragments {
        let mut start = min_start;
        for _ in 0..fragment.rows {
            start = undelta(start, &mut start_wire)?;
            times.starts.push(start);
            times.ends.push(undelta(start, &mut duration_wire)?);
        }
    }
    (start_wire.is_empty() && duration_wire.is_empty()).then_some(times)
}
