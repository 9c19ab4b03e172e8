//! Rebuilds the messages of spans from their columns, byte for byte.

use std::ops::Range;

use spandrel_model::ids::{SpanId, TraceId};

use super::builder::PlacedFragment;
use super::context::ContextHash;
use super::encoder::value_column;
use super::error::{PageError, corrupt};
use super::field::{self, FIRST_ATTRIBUTE, Step, ValueKind};
use super::reader::PageReader;
use super::values::Values;
use super::wire::{Wire, put_bytes, put_varint, unzigzag, varint_len};

/// A span of a page.
#[derive(Debug, Clone, Copy)]
pub struct RebuiltSpan<'a> {
    /// Its id; zero when it has none.
    pub span_id: SpanId,
    /// Its resource and scope.
    pub context: ContextHash,
    /// Its message, with the bytes that it came with.
    pub span: &'a [u8],
}

/// A values column and how far it is read.
struct Cursor {
    step: Step,
    values: Values,
    next: usize,
    attribute: Option<(Box<[u8]>, ValueKind)>,
}

impl Cursor {
    fn take(&mut self) -> Option<&[u8]> {
        let value = self.values.value(self.next)?;
        self.next += 1;
        Some(value)
    }
}

/// What the spans of one fragment are rebuilt from.
struct Rebuilder {
    trace_id: TraceId,
    /// Index into `cursors` of each step.
    cursor_of: Vec<u16>,
    cursors: Vec<Cursor>,
    parents: Vec<Parent>,
    next_parent: usize,
}

#[derive(Debug, Clone, Copy)]
enum Parent {
    Distance(i64),
    Id([u8; 8]),
}

const NO_CURSOR: u16 = u16::MAX;

impl PageReader<'_> {
    /// Rebuilds the spans of a fragment, which lie in `fragment.rows` rows from `fragment.first_row`, in order.
    ///
    /// # Errors
    /// When the columns needed are corrupt or cannot be read. Spans may have been visited before that is known.
    pub fn visit(
        &mut self,
        fragment: &PlacedFragment,
        visit: &mut dyn FnMut(RebuiltSpan<'_>),
    ) -> Result<(), PageError> {
        let end = fragment
            .first_row
            .checked_add(fragment.rows)
            .filter(|&end| end <= self.span_count())
            .ok_or_else(|| corrupt("rows of a fragment"))?;
        let rows = fragment.first_row as usize..end as usize;
        self.times()?;
        let mut rebuilder = self.rebuilder(fragment.head.trace_id, rows.clone())?;
        let ids = self.column(field::SPAN_ID)?;
        let (ids, _) = ids.as_chunks::<8>();
        let mut out = Vec::with_capacity(1_024);
        for row in rows {
            out.clear();
            let shape = self.steps_of(row)?.to_vec();
            let times = self.times()?;
            let (Some(&start), Some(&end)) = (times.starts.get(row), times.ends.get(row)) else {
                return Err(corrupt("times"));
            };
            rebuilder
                .write(&shape, row, ids, (start, end), &mut out)
                .ok_or_else(|| corrupt("columns of a span"))?;
            let rows = self.rows()?;
            let context = rows
                .row_contexts
                .get(row)
                .and_then(|&number| rows.contexts.get(number as usize))
                .ok_or_else(|| corrupt("context of a span"))?;
            visit(RebuiltSpan {
                span_id: SpanId(ids.get(row).copied().unwrap_or_default()),
                context: *context,
                span: &out,
            });
        }
        Ok(())
    }

    fn steps_of(&mut self, row: usize) -> Result<&[Step], PageError> {
        let rows = self.rows()?;
        let shape = rows.row_shapes.get(row).ok_or_else(|| corrupt("shapes"))?;
        Ok(rows.shapes.steps(*shape))
    }

    /// Positions a cursor at the first value of `rows` in each column that they have values in.
    fn rebuilder(&mut self, trace_id: TraceId, rows: Range<usize>) -> Result<Rebuilder, PageError> {
        let columns = FIRST_ATTRIBUTE as usize + self.head.attributes.len();
        let (mut before, mut within, mut all) = (
            vec![0usize; columns],
            vec![0usize; columns],
            vec![0usize; columns],
        );
        let page = self.rows()?;
        let mut histograms = [(); 3].map(|()| vec![0usize; page.shapes.len()]);
        for (row, &shape) in page.row_shapes.iter().enumerate() {
            let [before, within, all] = &mut histograms;
            let shape = shape as usize;
            count(all, shape, 1);
            count(before, shape, usize::from(row < rows.start));
            count(within, shape, usize::from(rows.contains(&row)));
        }
        for (counts, histogram) in [&mut before, &mut within, &mut all]
            .into_iter()
            .zip(&histograms)
        {
            for (&times, number) in histogram.iter().zip(0u32..) {
                if times > 0 {
                    for &step in page.shapes.steps(number) {
                        count(counts, usize::from(counted_column(step)), times);
                    }
                }
            }
        }
        let mut rebuilder = Rebuilder {
            trace_id,
            cursor_of: vec![NO_CURSOR; columns],
            cursors: Vec::new(),
            parents: Vec::new(),
            next_parent: 0,
        };
        for (step, ((&before, &within), &all)) in before.iter().zip(&within).zip(&all).enumerate() {
            let step = Step::try_from(step).map_err(|_| corrupt("number of columns"))?;
            if within > 0 && value_column(step).is_some() {
                self.add_cursor(&mut rebuilder, step, before, all)?;
            }
        }
        let parent = usize::from(field::PARENT);
        let skipped = before.get(parent).copied().unwrap_or(0);
        let wanted = within.get(parent).copied().unwrap_or(0);
        if wanted > 0 {
            rebuilder.parents = self.parents(skipped, wanted)?;
        }
        Ok(rebuilder)
    }

    fn add_cursor(
        &mut self,
        rebuilder: &mut Rebuilder,
        step: Step,
        next: usize,
        count: usize,
    ) -> Result<(), PageError> {
        let values = self.values(step, count)?;
        let attribute = step
            .checked_sub(FIRST_ATTRIBUTE)
            .and_then(|index| self.head.attributes.get(usize::from(index)))
            .map(|column| (column.key.clone(), column.kind));
        let number = u16::try_from(rebuilder.cursors.len()).unwrap_or(NO_CURSOR);
        if let Some(slot) = rebuilder.cursor_of.get_mut(usize::from(step)) {
            *slot = number;
        }
        rebuilder.cursors.push(Cursor {
            step,
            values,
            next,
            attribute,
        });
        Ok(())
    }

    fn parents(&mut self, skipped: usize, wanted: usize) -> Result<Vec<Parent>, PageError> {
        let (codes, ids) = (self.column(field::PARENT)?, self.column(field::PARENT_IDS)?);
        parse_parents(&codes, &ids, skipped, wanted).ok_or_else(|| corrupt("parents"))
    }
}

fn count(counts: &mut [usize], index: usize, times: usize) {
    if let Some(count) = counts.get_mut(index) {
        *count += times;
    }
}

/// The column whose values a step takes from, also for the columns that are not values columns.
fn counted_column(step: Step) -> Step {
    value_column(step).unwrap_or(step)
}

fn parse_parents(codes: &[u8], ids: &[u8], skipped: usize, wanted: usize) -> Option<Vec<Parent>> {
    let (mut codes, mut ids) = (Wire::new(codes), Wire::new(ids));
    for _ in 0..skipped {
        if codes.minimal_varint()? == 0 {
            ids.take(8)?;
        }
    }
    let mut parents = Vec::with_capacity(wanted.min(codes.rest().len()));
    for _ in 0..wanted {
        parents.push(match codes.minimal_varint()?.checked_sub(1) {
            None => Parent::Id(ids.array()?),
            Some(distance) => Parent::Distance(unzigzag(distance)),
        });
    }
    Some(parents)
}

impl Rebuilder {
    fn cursor(&mut self, step: Step) -> Option<&mut Cursor> {
        let number = *self.cursor_of.get(usize::from(step))?;
        self.cursors.get_mut(usize::from(number))
    }

    fn write(
        &mut self,
        shape: &[Step],
        row: usize,
        ids: &[[u8; 8]],
        (start, end): (u64, u64),
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let mut steps = shape.iter().copied();
        while let Some(step) = steps.next() {
            match step {
                field::RAW => out.extend_from_slice(self.cursor(step)?.take()?),
                field::TRACE_ID => {
                    out.push(0x0a);
                    put_bytes(out, &self.trace_id.0);
                }
                field::SPAN_ID => {
                    out.push(0x12);
                    put_bytes(out, ids.get(row)?);
                }
                field::PARENT => {
                    out.push(0x22);
                    put_bytes(out, &self.parent(row, ids)?);
                }
                field::PARENT_EMPTY => out.extend_from_slice(&[0x22, 0]),
                field::START => {
                    out.push(0x39);
                    out.extend_from_slice(&start.to_le_bytes());
                }
                field::END => {
                    out.push(0x41);
                    out.extend_from_slice(&end.to_le_bytes());
                }
                field::STATUS_EMPTY => out.extend_from_slice(&[0x7a, 0]),
                field::STATUS_MESSAGE | field::STATUS_CODE => self.write_status(step, out)?,
                field::STATUS_MESSAGE_CODE => {
                    // The next step is the code's; both are written here.
                    if steps.next()? != field::STATUS_CODE {
                        return None;
                    }
                    self.write_full_status(out)?;
                }
                _ => self.write_value(step, out)?,
            }
        }
        Some(())
    }

    fn parent(&mut self, row: usize, ids: &[[u8; 8]]) -> Option<[u8; 8]> {
        let parent = *self.parents.get(self.next_parent)?;
        self.next_parent += 1;
        match parent {
            Parent::Id(id) => Some(id),
            Parent::Distance(distance) => {
                let distance = isize::try_from(distance).ok()?;
                ids.get(row.checked_add_signed(distance)?).copied()
            }
        }
    }

    fn write_status(&mut self, step: Step, out: &mut Vec<u8>) -> Option<()> {
        let value = self.cursor(step)?.take()?;
        out.push(0x7a);
        match step {
            field::STATUS_CODE => {
                put_varint(out, 1 + value.len() as u64);
                out.push(0x18);
                out.extend_from_slice(value);
            }
            _ => {
                put_varint(out, bytes_field_len(value) as u64);
                out.push(0x12);
                put_bytes(out, value);
            }
        }
        Some(())
    }

    fn write_full_status(&mut self, out: &mut Vec<u8>) -> Option<()> {
        let code: [u8; 10] = {
            // A varint has at most ten bytes.
            let value = self.cursor(field::STATUS_CODE)?.take()?;
            let mut code = [0; 10];
            code.get_mut(..value.len())?.copy_from_slice(value);
            code
        };
        let code_len = code.iter().position(|byte| *byte < 0x80)? + 1;
        let code = code.get(..code_len)?;
        let message = self.cursor(field::STATUS_MESSAGE)?.take()?;
        out.push(0x7a);
        put_varint(out, (bytes_field_len(message) + 1 + code.len()) as u64);
        out.push(0x12);
        put_bytes(out, message);
        out.push(0x18);
        out.extend_from_slice(code);
        Some(())
    }

    fn write_value(&mut self, step: Step, out: &mut Vec<u8>) -> Option<()> {
        let cursor = self.cursor(step)?;
        debug_assert_eq!(cursor.step, step);
        let value = cursor.values.value(cursor.next)?;
        cursor.next += 1;
        if let Some((key, kind)) = &cursor.attribute {
            write_attribute(key, *kind, value, out);
            return Some(());
        }
        let (tag, form): (&[u8], Form) = match step {
            field::TRACE_STATE => (&[0x1a], Form::Bytes),
            field::NAME => (&[0x2a], Form::Bytes),
            field::KIND => (&[0x30], Form::Bare),
            field::DROPPED_ATTRIBUTES => (&[0x50], Form::Bare),
            field::EVENT => (&[0x5a], Form::Bytes),
            field::DROPPED_EVENTS => (&[0x60], Form::Bare),
            field::LINK => (&[0x6a], Form::Bytes),
            field::DROPPED_LINKS => (&[0x70], Form::Bare),
            field::FLAGS => (&[0x85, 0x01], Form::Bare),
            _ => return None,
        };
        out.extend_from_slice(tag);
        match form {
            Form::Bytes => put_bytes(out, value),
            Form::Bare => out.extend_from_slice(value),
        }
        Some(())
    }
}

/// Whether a field's length stands before its value.
enum Form {
    Bytes,
    Bare,
}

/// Length of a field with a one-byte tag, a length and `value`.
fn bytes_field_len(value: &[u8]) -> usize {
    1 + varint_len(value.len() as u64) + value.len()
}

/// `Span.attributes`: a `KeyValue` with key and value in this order.
fn write_attribute(key: &[u8], kind: ValueKind, value: &[u8], out: &mut Vec<u8>) {
    let any_len = match kind {
        ValueKind::Text => bytes_field_len(value),
        ValueKind::Int | ValueKind::Double | ValueKind::Bool => 1 + value.len(),
        ValueKind::Other => value.len(),
    };
    let pair_len = bytes_field_len(key) + 1 + varint_len(any_len as u64) + any_len;
    out.push(0x4a);
    put_varint(out, pair_len as u64);
    out.push(0x0a);
    put_bytes(out, key);
    out.push(0x12);
    put_varint(out, any_len as u64);
    match kind {
        ValueKind::Text => {
            out.push(0x0a);
            put_bytes(out, value);
            return;
        }
        ValueKind::Int => out.push(0x18),
        ValueKind::Double => out.push(0x21),
        ValueKind::Bool => out.push(0x10),
        ValueKind::Other => {}
    }
    out.extend_from_slice(value);
}
