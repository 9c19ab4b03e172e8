//! Shapes: the order of the fields of a span. Spans of one operation share one, so that the exact order of fields
//! and attributes costs about a byte per span, and the presence of each attribute nothing more.

use hashbrown::HashTable;

use super::field::Step;
use super::limits::MAX_SHAPE_FIELDS;
use super::wire::{Wire, put_varint};

#[derive(Debug, Clone, Copy)]
struct Known {
    start: usize,
    len: usize,
    hash: u64,
}

/// Numbers the shapes of a page that is being encoded.
#[derive(Debug, Default)]
pub(super) struct ShapesBuilder {
    table: HashTable<u32>,
    known: Vec<Known>,
    steps: Vec<Step>,
}

impl ShapesBuilder {
    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.known.clear();
        self.steps.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The number of a shape.
    pub(super) fn number(&mut self, shape: &[Step]) -> u32 {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let hash = shape.iter().fold(shape.len() as u64, |hash, &step| {
            (hash.rotate_left(23) ^ u64::from(step)).wrapping_mul(MULTIPLIER)
        });
        let (known, steps) = (&self.known, &self.steps);
        let found = self.table.find(hash, |&number| {
            known.get(number as usize).is_some_and(|known| {
                known.hash == hash && steps.get(known.start..known.start + known.len) == Some(shape)
            })
        });
        if let Some(&number) = found {
            return number;
        }
        // A page has fewer spans than u32 has numbers, and so fewer shapes.
        let number = u32::try_from(known.len()).unwrap_or(u32::MAX);
        self.table.insert_unique(hash, number, |&number| {
            known.get(number as usize).map_or(0, |known| known.hash)
        });
        self.known.push(Known {
            start: self.steps.len(),
            len: shape.len(),
            hash,
        });
        self.steps.extend_from_slice(shape);
        number
    }

    /// Appends the column of all shapes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_varint(out, self.known.len() as u64);
        for known in &self.known {
            put_varint(out, known.len as u64);
            let steps = self.steps.get(known.start..known.start + known.len);
            for &step in steps.unwrap_or_default() {
                put_varint(out, u64::from(step));
            }
        }
    }
}

/// The shapes of a page that was read.
#[derive(Debug)]
pub(super) struct Shapes {
    steps: Vec<Step>,
    /// Offsets in `steps`, one more than there are shapes.
    bounds: Vec<usize>,
}

impl Shapes {
    /// Reads the column; `None` when it is malformed.
    pub(super) fn read(column: &[u8]) -> Option<Self> {
        let mut wire = Wire::new(column);
        let count = usize::try_from(wire.minimal_varint()?).ok()?;
        if count > column.len() {
            return None;
        }
        let (mut steps, mut bounds) = (Vec::new(), Vec::with_capacity(count + 1));
        bounds.push(0);
        for _ in 0..count {
            let len = usize::try_from(wire.minimal_varint()?).ok()?;
            if len > MAX_SHAPE_FIELDS {
                return None;
            }
            for _ in 0..len {
                steps.push(Step::try_from(wire.minimal_varint()?).ok()?);
            }
            bounds.push(steps.len());
        }
        wire.is_empty().then_some(Self { steps, bounds })
    }

    pub(super) fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The steps of a shape; empty when there is no such shape.
    pub(super) fn steps(&self, number: u32) -> &[Step] {
        let number = number as usize;
        match (self.bounds.get(number), self.bounds.get(number + 1)) {
            (Some(&start), Some(&end)) => self.steps.get(start..end).unwrap_or_default(),
            _ => &[],
        }
    }

    /// For each shape whether `step` occurs in it.
    pub(super) fn containing(&self, step: Step) -> Vec<bool> {
        (0u32..)
            .take(self.len())
            .map(|number| self.steps(number).contains(&step))
            .collect()
    }
}
