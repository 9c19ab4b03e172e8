//! A trace in an assembler: everything that search, policies and the pager need of it, without its spans' bytes.

use hashbrown::HashTable;
use smallvec::SmallVec;
use spandrel_model::ids::{Bucket, Lsn, SpanId, TraceId, UnixNanos};
use spandrel_model::limits::MAX_SUMMARY_CLASSES;
use spandrel_model::policy::LeafBits;
use spandrel_model::verdict::VerdictRecord;

/// Rows from which duplicates are found by a table rather than by reading all rows.
const LINEAR_ROWS: usize = 24;
/// Rows by which a small entry grows.
const ROWS_STEP: usize = 2;
/// Classes and attributes by which a small entry grows: most traces have about 18 of both (measured).
const SYMBOLS_STEP: usize = 4;
/// Symbols from which an entry grows by doubling.
const MANY_SYMBOLS: usize = 32;
/// Class position of a row whose class did not fit the entry's bound.
pub(crate) const NO_CLASS: u8 = u8::MAX;
const _: () = assert!(MAX_SUMMARY_CLASSES < NO_CLASS as usize);
/// Bytes of an entry beside its heap parts, with its slot in the table and allocator headers.
const ENTRY_BASE_BYTES: u64 = size_of::<Entry>() as u64 + 56;

/// A span of an entry: its key for duplicates and its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) span_id: [u8; 8],
    hash: [u8; 8],
    /// Position in [`Entry::classes`], or [`NO_CLASS`].
    pub(crate) class: u8,
}

impl Row {
    pub(crate) fn new(span_id: SpanId, hash: u64, class: u8) -> Self {
        Self {
            span_id: span_id.0,
            hash: hash.to_le_bytes(),
            class,
        }
    }

    pub(crate) fn hash(self) -> u64 {
        u64::from_le_bytes(self.hash)
    }

    fn key(self) -> u64 {
        // Span ids are chosen by clients, the hash of the bytes is not known to aim at a table of one entry.
        u64::from_le_bytes(self.span_id) ^ self.hash()
    }
}

/// What became of a row that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Same id, same bytes: it is there already.
    Duplicate,
    /// A new span.
    New,
    /// A new span whose id another one has, with other bytes.
    Conflict,
}

/// Where a trace stands in its assembler.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// Not decided.
    Open,
    /// A filter says that it may have been decided before; the journal is being asked. A drop that was repeated meanwhile:
    /// the journal may know of a newer verdict.
    Unconfirmed(Option<Box<VerdictRecord>>),
    /// The verdict is on its way to the journal.
    Deciding(Box<Deciding>),
    /// Kept, durably; its spans go to a page. `ready` once no more spans are expected soon.
    Kept(Box<Kept>),
    /// Dropped, durably; these spans came later.
    LateDropped(Box<VerdictRecord>),
}

/// A verdict on its way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deciding {
    /// What was decided.
    pub(crate) record: VerdictRecord,
    /// The durable drop that it replaces: until the new verdict is durable that one stands.
    pub(crate) earlier: Option<VerdictRecord>,
}

/// A kept trace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kept {
    /// The durable verdict.
    pub(crate) record: VerdictRecord,
    /// The record that holds it, or a lower bound where it was looked up.
    pub(crate) at: Lsn,
    /// A page may be built of it now.
    pub(crate) ready: bool,
    /// Being written to a page.
    pub(crate) paging: bool,
    /// This node builds its page also where another one leads: the primary's was not the same.
    pub(crate) own: bool,
    /// Earlier spans of the trace are in a block already; the entry holds those that came later.
    pub(crate) stored: bool,
}

/// A trace of a shard.
///
/// Invariants: `references` ascend and are distinct; `rows` are distinct keys; `start <= end` once a row is there;
/// each number in `classes()` and `attributes()` is retained once in the shard's symbols.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) trace_id: TraceId,
    /// Index into the shard's tenants.
    pub(crate) tenant: u32,
    /// Version of the policy set in force when its first span came: it is decided by that one.
    pub(crate) policy_version: u32,
    pub(crate) phase: Phase,
    pub(crate) opened_at: UnixNanos,
    pub(crate) last_at: UnixNanos,
    pub(crate) bucket: Bucket,
    pub(crate) start: UnixNanos,
    pub(crate) end: UnixNanos,
    pub(crate) bits: LeafBits,
    pub(crate) bytes: u64,
    pub(crate) error_count: u32,
    /// Row of the root: the earliest span without a parent, else the earliest span.
    pub(crate) root_row: u32,
    pub(crate) root_start: UnixNanos,
    pub(crate) has_root: bool,
    /// The facts are of some of the trace's spans only (the rest was decided on before).
    pub(crate) partial: bool,
    /// All of its spans came as repetitions, for a replica that has just joined.
    pub(crate) again: bool,
    /// Classes or attributes did not all fit.
    pub(crate) truncated: bool,
    pub(crate) rows: Vec<Row>,
    /// Built when the rows are many.
    row_table: Option<Box<HashTable<u32>>>,
    /// Numbers of its classes, then those of its attributes: one allocation has less unused room than two lists.
    symbols: Vec<u32>,
    /// How many of `symbols` are classes.
    class_count: u8,
    /// Records that hold its spans.
    pub(crate) references: SmallVec<[Lsn; 3]>,
}

impl Entry {
    pub(crate) fn new(
        trace_id: TraceId,
        tenant: u32,
        policy_version: u32,
        phase: Phase,
        now: UnixNanos,
        bucket: Bucket,
    ) -> Self {
        Self {
            trace_id,
            tenant,
            policy_version,
            phase,
            opened_at: now,
            last_at: now,
            bucket,
            start: UnixNanos(u64::MAX),
            end: UnixNanos(0),
            bits: 0,
            bytes: 0,
            error_count: 0,
            root_row: 0,
            root_start: UnixNanos(u64::MAX),
            has_root: false,
            partial: false,
            again: false,
            truncated: false,
            rows: Vec::new(),
            row_table: None,
            symbols: Vec::new(),
            class_count: 0,
            references: SmallVec::new(),
        }
    }

    /// The durable drop under which the entry stands.
    pub(crate) fn dropped_by(&self) -> Option<&VerdictRecord> {
        match &self.phase {
            Phase::LateDropped(record) => Some(record),
            Phase::Deciding(deciding) => deciding.earlier.as_ref(),
            _ => None,
        }
    }

    /// The earliest start that is known: an entry with late spans alone does not hold the earlier ones, the verdict
    /// that read them does.
    pub(crate) fn earliest(&self) -> UnixNanos {
        // Without a span of its own the start lies at the end of time.
        let own = if self.rows.is_empty() {
            self.start
        } else {
            self.start.min(self.end)
        };
        match (&self.phase, self.dropped_by()) {
            (Phase::Kept(kept), _) => own.min(kept.record.start),
            (_, Some(record)) if self.partial => own.min(record.start),
            _ => own,
        }
    }

    /// The start that search orders by: that of the verdict, once there is one. No later span moves it, and all nodes know
    /// the same one, whichever spans they have.
    pub(crate) fn fixed_start(&self) -> UnixNanos {
        match &self.phase {
            Phase::Kept(kept) => kept.record.start,
            _ => self.earliest(),
        }
    }

    /// Adds a row unless it is there already.
    pub(crate) fn offer(&mut self, row: Row) -> Offer {
        let (known, conflict) = match &self.row_table {
            None => self
                .rows
                .iter()
                .fold((false, false), |(known, conflict), other| {
                    let same_id = other.span_id == row.span_id;
                    (
                        known || (same_id && other.hash == row.hash),
                        conflict || same_id,
                    )
                }),
            Some(table) => {
                let rows = &self.rows;
                let known = table.find(row.key(), |&at| {
                    rows[at as usize].span_id == row.span_id && rows[at as usize].hash == row.hash
                });
                // Ids in conflict are only counted while an entry is small: the table is keyed by id and bytes.
                (known.is_some(), false)
            }
        };
        if known {
            return Offer::Duplicate;
        }
        self.push_row(row);
        if conflict {
            Offer::Conflict
        } else {
            Offer::New
        }
    }

    fn push_row(&mut self, row: Row) {
        // A trace is decided at 100,000 spans and its rest comes in further entries.
        #[allow(clippy::cast_possible_truncation)]
        let at = self.rows.len() as u32;
        if self.rows.len() == self.rows.capacity() && self.rows.len() < LINEAR_ROWS {
            // Most traces have about a dozen spans: doubling would waste a tenth of an entry (measured).
            self.rows.reserve_exact(ROWS_STEP);
        }
        self.rows.push(row);
        let rows = &self.rows;
        let rehash = |&other: &u32| rows[other as usize].key();
        match &mut self.row_table {
            Some(table) => {
                table.insert_unique(row.key(), at, rehash);
            }
            None if rows.len() > LINEAR_ROWS => {
                let mut table = HashTable::with_capacity(rows.len() * 2);
                for (number, row) in (0u32..).zip(rows) {
                    table.insert_unique(row.key(), number, rehash);
                }
                self.row_table = Some(Box::new(table));
            }
            None => {}
        }
    }

    /// Numbers of the distinct classes of its spans: at most `MAX_SUMMARY_CLASSES`.
    pub(crate) fn classes(&self) -> &[u32] {
        &self.symbols[..usize::from(self.class_count)]
    }

    /// Numbers of its distinct indexed attributes.
    pub(crate) fn attributes(&self) -> &[u32] {
        &self.symbols[usize::from(self.class_count)..]
    }

    /// Adds a class that it does not have, while it has fewer than `MAX_SUMMARY_CLASSES`; its position.
    pub(crate) fn push_class(&mut self, number: u32) -> u8 {
        let position = self.class_count;
        self.make_room();
        self.symbols.insert(usize::from(position), number);
        self.class_count += 1;
        position
    }

    /// Adds an attribute that it does not have.
    pub(crate) fn push_attribute(&mut self, number: u32) {
        self.make_room();
        self.symbols.push(number);
    }

    fn make_room(&mut self) {
        if self.symbols.len() == self.symbols.capacity() && self.symbols.len() < MANY_SYMBOLS {
            self.symbols.reserve_exact(SYMBOLS_STEP);
        }
    }

    /// Notes that record `lsn` holds spans of the trace.
    pub(crate) fn refer(&mut self, lsn: Lsn) {
        match self.references.last() {
            Some(&last) if last == lsn => {}
            Some(&last) if last > lsn => {
                if let Err(at) = self.references.binary_search(&lsn) {
                    self.references.insert(at, lsn);
                }
            }
            _ => self.references.push(lsn),
        }
    }

    /// Spans, duplicates not counted.
    pub(crate) fn span_count(&self) -> u32 {
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of memory that the entry takes, its symbols not counted.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let rows = self.rows.capacity() * size_of::<Row>();
        let table = self
            .row_table
            .as_ref()
            .map_or(0, |table| table.capacity() * 5 + 32);
        let symbols = self.symbols.capacity() * 4;
        let references = if self.references.spilled() {
            self.references.capacity() * 8
        } else {
            0
        };
        let phase = match &self.phase {
            Phase::Open | Phase::Unconfirmed(None) => 0,
            Phase::Deciding(deciding) => {
                let records = [Some(&deciding.record), deciding.earlier.as_ref()];
                let references = records.into_iter().flatten();
                let references: usize = references.map(|record| record.references.len()).sum();
                size_of::<Deciding>() + references * 8
            }
            Phase::Unconfirmed(Some(record)) | Phase::LateDropped(record) => {
                size_of::<VerdictRecord>() + record.references.len() * 8
            }
            Phase::Kept(kept) => size_of::<Kept>() + kept.record.references.len() * 8,
        };
        ENTRY_BASE_BYTES + (rows + table + symbols + references + phase) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry::new(TraceId([1; 16]), 0, 1, Phase::Open, UnixNanos(5), Bucket(0))
    }

    #[test]
    fn rows_are_distinct_however_many_there_are() {
        let mut entry = entry();
        for round in 0..2 {
            for number in 0..5_000u64 {
                let row = Row::new(SpanId(number.to_be_bytes()), number * 31, 0);
                let expected = if round == 0 {
                    Offer::New
                } else {
                    Offer::Duplicate
                };
                assert_eq!(entry.offer(row), expected, "{round} {number}");
            }
        }
        assert_eq!(entry.span_count(), 5_000);
    }

    #[test]
    fn the_same_id_with_other_bytes_is_kept() {
        let mut entry = entry();
        assert_eq!(entry.offer(Row::new(SpanId([1; 8]), 1, 0)), Offer::New);
        assert_eq!(entry.offer(Row::new(SpanId([1; 8]), 2, 0)), Offer::Conflict);
        assert_eq!(
            entry.offer(Row::new(SpanId([1; 8]), 2, 0)),
            Offer::Duplicate
        );
        assert_eq!(entry.span_count(), 2);
    }

    #[test]
    fn references_ascend_and_are_distinct() {
        let mut entry = entry();
        for lsn in [5, 5, 9, 7, 5, 9] {
            entry.refer(Lsn(lsn));
        }
        assert_eq!(entry.references.as_slice(), [Lsn(5), Lsn(7), Lsn(9)]);
    }
}
