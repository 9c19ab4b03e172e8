//! Turns rows of span messages into columns.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::builder::PlacedFragment;
use super::cardinality::Cardinality;
use super::compare::RawSpan;
use super::context::ContextHash;
use super::dissect::{Fields, dissect};
use super::field::{self, FIRST_ATTRIBUTE, Step, VALUE_COLUMNS, ValueKind};
use super::keys::Keys;
use super::layout::{Counts, GroupWriter};
use super::limits::{LINEAR_PARENT_SEARCH_SPANS, MAX_SHAPE_FIELDS};
use super::shapes::ShapesBuilder;
use super::values::{ValuesBuilder, index_mode, write_indexes};
use super::wire::{put_varint, zigzag};

/// A span of the page: where its message lies in the arena, and its context's number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) context: u32,
}

/// What [`Encoder::encode`] made.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) counts: Counts,
}

#[derive(Debug, Clone, Copy)]
struct FieldValue {
    step: Step,
    offset: u32,
    len: u32,
}

/// The columns of the page being encoded; kept between pages for their memory.
#[derive(Default)]
pub(super) struct Encoder {
    keys: Keys,
    shapes: ShapesBuilder,
    fixed: [ValuesBuilder; FIRST_ATTRIBUTE as usize],
    attributes: Vec<ValuesBuilder>,
    /// Fields of the current row.
    row: Vec<FieldValue>,
    shape: Vec<Step>,
    row_shapes: Vec<u32>,
    row_contexts: Vec<u32>,
    span_ids: Vec<[u8; 8]>,
    /// Start and end of each row.
    times: Vec<(u64, u64)>,
    /// Row and id for rows with a parent.
    parents: Vec<(u32, [u8; 8])>,
    parent_rows: HashTable<u32>,
    writer: GroupWriter,
    scratch: Vec<u8>,
    /// Over all pages so far.
    pub(super) cardinality: Cardinality,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// Encodes `rows`, which `fragments` divide among them in order.
    pub(super) fn encode(
        &mut self,
        arena: &[u8],
        rows: &[Row],
        fragments: &[PlacedFragment],
        contexts: &[ContextHash],
    ) -> std::io::Result<Encoded> {
        self.clear();
        for fragment in fragments {
            let first = fragment.first_row as usize;
            let of_fragment = rows.get(first..first + fragment.rows as usize);
            for (row, number) in of_fragment
                .unwrap_or_default()
                .iter()
                .zip(fragment.first_row..)
            {
                self.push(arena, *row, number, &fragment.head.trace_id.0);
            }
        }
        let starts = self.times.iter().map(|&(start, _)| start);
        let counts = Counts {
            spans: u32::try_from(rows.len()).unwrap_or(u32::MAX),
            fragments: u32::try_from(fragments.len()).unwrap_or(u32::MAX),
            min_start: starts.clone().min().unwrap_or(0),
            max_start: starts.max().unwrap_or(0),
        };
        self.write_fragments(fragments);
        self.write_rows(contexts);
        self.write_parents(fragments);
        self.write_times(fragments, counts.min_start);
        self.write_values(arena);
        let bytes = self.writer.finish(counts)?;
        Ok(Encoded { bytes, counts })
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.shapes.clear();
        self.fixed.iter_mut().for_each(ValuesBuilder::clear);
        self.attributes.iter_mut().for_each(ValuesBuilder::clear);
        self.row_shapes.clear();
        self.row_contexts.clear();
        self.span_ids.clear();
        self.times.clear();
        self.parents.clear();
    }

    fn push(&mut self, arena: &[u8], row: Row, number: u32, trace_id: &[u8; 16]) {
        let start = row.offset as usize;
        let span = arena
            .get(start..start + row.len as usize)
            .unwrap_or_default();
        self.row.clear();
        self.shape.clear();
        self.keys.begin_row();
        let mut fields = RowFields {
            arena,
            trace_id,
            number,
            keys: &mut self.keys,
            row: &mut self.row,
            span_id: [0; 8],
            parent: None,
            start: 0,
            end: 0,
        };
        let columnar = dissect(span, &mut fields).is_some();
        if columnar && fields.row.len() <= MAX_SHAPE_FIELDS {
            self.span_ids.push(fields.span_id);
            self.times.push((fields.start, fields.end));
            if let Some(parent) = fields.parent {
                self.parents.push((number, parent));
            }
            self.push_values(arena);
        } else {
            self.push_raw(arena, row, span);
        }
        self.row_shapes.push(self.shapes.number(&self.shape));
        self.row_contexts.push(row.context);
    }

    fn push_values(&mut self, arena: &[u8]) {
        for value in &self.row {
            self.shape.push(value.step);
            let column = match value.step.checked_sub(FIRST_ATTRIBUTE) {
                Some(index) => {
                    let index = usize::from(index);
                    if index >= self.attributes.len() {
                        self.attributes
                            .resize_with(index + 1, ValuesBuilder::default);
                    }
                    self.attributes.get_mut(index)
                }
                None => {
                    value_column(value.step).and_then(|step| self.fixed.get_mut(usize::from(step)))
                }
            };
            if let Some(column) = column {
                column.push(arena, value.offset, value.len);
            }
        }
    }

    fn push_raw(&mut self, arena: &[u8], row: Row, span: &[u8]) {
        let raw = RawSpan::read(span);
        self.span_ids
            .push(raw.span_id.try_into().unwrap_or_default());
        self.times.push((raw.start, raw.end));
        self.shape.push(field::RAW);
        if let Some(column) = self.fixed.get_mut(usize::from(field::RAW)) {
            column.push(arena, row.offset, row.len);
        }
    }

    fn write_fragments(&mut self, fragments: &[PlacedFragment]) {
        self.scratch.clear();
        let (mut shard, mut lsn, mut received_at) = (0u16, 0u64, 0u64);
        for fragment in fragments {
            let head = &fragment.head;
            put_varint(
                &mut self.scratch,
                u64::from(head.shard.0.wrapping_sub(shard)),
            );
            self.scratch.extend_from_slice(&head.trace_id.0);
            put_varint(&mut self.scratch, delta(lsn, head.fragment.0));
            put_varint(&mut self.scratch, delta(received_at, head.received_at.0));
            put_varint(&mut self.scratch, u64::from(fragment.rows));
            (shard, lsn, received_at) = (head.shard.0, head.fragment.0, head.received_at.0);
        }
        self.writer.fixed(field::FRAGMENTS, &self.scratch);
    }

    fn write_rows(&mut self, contexts: &[ContextHash]) {
        self.scratch.clear();
        self.shapes.write(&mut self.scratch);
        self.writer.fixed(field::SHAPES, &self.scratch);
        self.write_index_column(field::SHAPE, self.shapes.len());
        self.write_index_column(field::CONTEXT, contexts.len());
        self.scratch.clear();
        contexts
            .iter()
            .for_each(|hash| self.scratch.extend_from_slice(&hash.0));
        self.writer.fixed(field::CONTEXT_HASHES, &self.scratch);
        self.scratch.clear();
        self.span_ids
            .iter()
            .for_each(|id| self.scratch.extend_from_slice(id));
        self.writer.fixed(field::SPAN_ID, &self.scratch);
    }

    fn write_index_column(&mut self, step: Step, distinct: usize) {
        let indexes = match step {
            field::SHAPE => &self.row_shapes,
            _ => &self.row_contexts,
        };
        let mode = index_mode(distinct);
        self.scratch.clear();
        self.scratch.push(mode);
        write_indexes(mode, indexes, &mut self.scratch);
        self.writer.fixed(step, &self.scratch);
    }

    /// A parent is the distance to its row within the fragment plus one, zigzag, or 0 and 8 bytes.
    fn write_parents(&mut self, fragments: &[PlacedFragment]) {
        let mut explicit = Vec::new();
        self.scratch.clear();
        let mut parents = self.parents.iter().peekable();
        for fragment in fragments {
            let first = fragment.first_row;
            let end = first + fragment.rows;
            let ids = self.span_ids.get(first as usize..end as usize);
            let ids = ids.unwrap_or_default();
            let linear = ids.len() <= LINEAR_PARENT_SEARCH_SPANS;
            if !linear {
                index_ids(&mut self.parent_rows, ids);
            }
            while let Some((row, parent)) = parents.next_if(|(row, _)| *row < end) {
                let found = match linear {
                    true => ids.iter().position(|id| id == parent),
                    false => find_id(&self.parent_rows, ids, parent),
                };
                match found {
                    Some(found) => {
                        // Rows of a page are far fewer than 2^31.
                        let distance = i64::try_from(found).unwrap_or(0) - i64::from(row - first);
                        put_varint(&mut self.scratch, zigzag(distance) + 1);
                    }
                    None => {
                        self.scratch.push(0);
                        explicit.extend_from_slice(parent);
                    }
                }
            }
        }
        self.writer.fixed(field::PARENT, &self.scratch);
        self.writer.fixed(field::PARENT_IDS, &explicit);
    }

    /// Starts as differences to the row before, durations as they are.
    fn write_times(&mut self, fragments: &[PlacedFragment], min_start: u64) {
        self.scratch.clear();
        for fragment in fragments {
            let first = fragment.first_row as usize;
            let times = self.times.get(first..first + fragment.rows as usize);
            let mut before = min_start;
            for &(start, _) in times.unwrap_or_default() {
                put_varint(&mut self.scratch, delta(before, start));
                before = start;
            }
        }
        self.writer.fixed(field::START, &self.scratch);
        self.scratch.clear();
        for &(start, end) in &self.times {
            put_varint(&mut self.scratch, delta(start, end));
        }
        self.writer.fixed(field::END, &self.scratch);
    }

    fn write_values(&mut self, arena: &[u8]) {
        for step in VALUE_COLUMNS {
            let Some(column) = self.fixed.get(usize::from(step)) else {
                continue;
            };
            if !column.is_empty() {
                self.scratch.clear();
                column.write(arena, &mut self.scratch);
                self.writer.fixed(step, &self.scratch);
            }
        }
        let empty = ValuesBuilder::default();
        for (index, (key, kind)) in self.keys.columns(arena).enumerate() {
            // A column whose every row went raw has no values.
            let column = self.attributes.get(index).unwrap_or(&empty);
            self.scratch.clear();
            column.write(arena, &mut self.scratch);
            self.writer.attribute(key, kind, &self.scratch);
            self.cardinality.add(key, column.hashes(arena));
        }
    }
}

/// The column that holds the value of a step; `None` when the value lies elsewhere or there is none.
pub(super) fn value_column(step: Step) -> Option<Step> {
    match step {
        field::STATUS_MESSAGE_CODE => Some(field::STATUS_MESSAGE),
        step if VALUE_COLUMNS.contains(&step) || step >= FIRST_ATTRIBUTE => Some(step),
        _ => None,
    }
}

fn delta(before: u64, value: u64) -> u64 {
    zigzag(value.wrapping_sub(before).cast_signed())
}

fn id_hash(id: &[u8; 8]) -> u64 {
    FixedState::default().hash_one(id)
}

fn index_ids(table: &mut HashTable<u32>, ids: &[[u8; 8]]) {
    table.clear();
    for (id, row) in ids.iter().zip(0u32..) {
        // Equal ids all in the table would make it a list.
        if find_id(table, ids, id).is_some() {
            continue;
        }
        table.insert_unique(id_hash(id), row, |&row| {
            ids.get(row as usize).map_or(0, id_hash)
        });
    }
}

fn find_id(table: &HashTable<u32>, ids: &[[u8; 8]], id: &[u8; 8]) -> Option<usize> {
    let found = table.find(id_hash(id), |&row| ids.get(row as usize) == Some(id));
    found.map(|&row| row as usize)
}

/// Gathers the fields of one row, refusing what the columns cannot hold.
struct RowFields<'e, 'a> {
    arena: &'a [u8],
    trace_id: &'a [u8; 16],
    number: u32,
    keys: &'e mut Keys,
    row: &'e mut Vec<FieldValue>,
    span_id: [u8; 8],
    parent: Option<[u8; 8]>,
    start: u64,
    end: u64,
}

impl RowFields<'_, '_> {
    /// Where in the arena `value`, which is a piece of it, lies.
    fn offset(&self, value: &[u8]) -> usize {
        value
            .as_ptr()
            .addr()
            .wrapping_sub(self.arena.as_ptr().addr())
    }

    #[inline]
    fn push(&mut self, step: Step, value: &[u8]) -> Option<()> {
        self.row.push(FieldValue {
            step,
            offset: u32::try_from(self.offset(value)).ok()?,
            len: u32::try_from(value.len()).ok()?,
        });
        Some(())
    }
}

impl<'a> Fields<'a> for RowFields<'_, 'a> {
    #[inline]
    fn value(&mut self, step: Step, value: &'a [u8]) -> Option<()> {
        match step {
            field::TRACE_ID if value != self.trace_id => return None,
            field::SPAN_ID => self.span_id = value.try_into().ok()?,
            field::PARENT => self.parent = Some(value.try_into().ok()?),
            field::START => self.start = u64::from_le_bytes(value.try_into().ok()?),
            field::END => self.end = u64::from_le_bytes(value.try_into().ok()?),
            _ => {}
        }
        self.push(step, value)
    }

    #[inline]
    fn attribute(&mut self, key: &'a [u8], kind: ValueKind, value: &'a [u8]) -> Option<()> {
        let offset = self.offset(key);
        let step = self.keys.step(self.arena, offset, key, kind, self.number)?;
        self.push(step, value)
    }
}
