//! One open segment: its terms, its columns, and the documents that hold given terms.

use std::sync::Arc;

use smallvec::SmallVec;
use spandrel_model::ids::{Lsn, ShardId, TraceId, UnixNanos};
use tantivy::columnar::ColumnValues;
use tantivy::directory::OwnedBytes;
use tantivy::postings::{SegmentPostings, TermInfo};
use tantivy::schema::IndexRecordOption;
use tantivy::{DocId, DocSet, Index, InvertedIndexReader, Segment, SegmentReader, TERMINATED};

use super::blob::BlobDirectory;
use super::error::Fault;
use super::query::{Condition, Plan};
use super::schema::{
    DURATION, FRAGMENT, SHARD, START, TERMS, TRACE_HIGH, TRACE_LOW, trace_of_halves,
};

type Column = Arc<dyn ColumnValues<u64>>;

/// A segment that can be read.
pub(super) struct OpenSegment {
    segment: Segment,
    documents: u32,
    terms: Arc<InvertedIndexReader>,
    start: Column,
    duration: Column,
    trace_high: Column,
    trace_low: Column,
    shard: Column,
    fragment: Column,
}

impl OpenSegment {
    /// Opens a blob whose checksum was verified.
    pub(super) fn open(blob: &OwnedBytes) -> Result<Self, Fault> {
        let directory = BlobDirectory::open(blob)
            .ok_or_else(|| Fault::Damaged("not a segment of this version".to_owned()))?;
        let index = Index::open(directory)?;
        let segment = index
            .searchable_segments()?
            .pop()
            .ok_or_else(|| Fault::Damaged("the file holds no segment".to_owned()))?;
        let reader = SegmentReader::open(&segment)?;
        let columns = reader.fast_fields();
        Ok(Self {
            segment,
            documents: reader.max_doc(),
            terms: reader.inverted_index(reader.schema().get_field(TERMS)?)?,
            start: columns.column_first_or_default(START)?,
            duration: columns.column_first_or_default(DURATION)?,
            trace_high: columns.column_first_or_default(TRACE_HIGH)?,
            trace_low: columns.column_first_or_default(TRACE_LOW)?,
            shard: columns.column_first_or_default(SHARD)?,
            fragment: columns.column_first_or_default(FRAGMENT)?,
        })
    }

    /// The segment as tantivy's merge takes it.
    pub(super) fn merge_source(&self) -> Segment {
        self.segment.clone()
    }

    pub(super) fn documents(&self) -> u32 {
        self.documents
    }

    pub(super) fn terms(&self) -> &InvertedIndexReader {
        &self.terms
    }

    /// Start of a document. Documents are ordered by it, newest first; `document` must be below
    /// [`Self::documents`], as all that a posting list names are.
    pub(super) fn start(&self, document: DocId) -> UnixNanos {
        UnixNanos(self.start.get_val(document))
    }

    pub(super) fn duration(&self, document: DocId) -> u64 {
        self.duration.get_val(document)
    }

    pub(super) fn trace_id(&self, document: DocId) -> TraceId {
        trace_of_halves(
            self.trace_high.get_val(document),
            self.trace_low.get_val(document),
        )
    }

    pub(super) fn shard(&self, document: DocId) -> ShardId {
        // Written from a u16.
        ShardId(u16::try_from(self.shard.get_val(document)).unwrap_or(u16::MAX))
    }

    pub(super) fn fragment(&self, document: DocId) -> Lsn {
        Lsn(self.fragment.get_val(document))
    }

    /// The first document from `low` on that starts at or before `latest`; the number of documents when none does.
    /// Looks near `low` first, so that a pass over sorted starts is cheap.
    pub(super) fn first_at_or_before(&self, latest: UnixNanos, low: DocId) -> DocId {
        let mut low = low.min(self.documents);
        let mut step = 1;
        let mut high = low;
        while high < self.documents && self.start(high) > latest {
            low = high + 1;
            high = high.saturating_add(step).min(self.documents);
            step = step.saturating_mul(2);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if self.start(middle) > latest {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The documents that may match a plan.
    pub(super) fn candidates(&self, plan: &Plan) -> Result<Candidates, Fault> {
        if plan.conditions.is_empty() {
            let all = self.any_of(&Condition::Term(plan.any.clone()))?;
            return Ok(Candidates {
                required: Some(vec![all]),
                truncated: AnyOf::default(),
            });
        }
        let mut required = Vec::with_capacity(plan.conditions.len());
        for condition in &plan.conditions {
            required.push(self.any_of(condition)?);
        }
        // The rarest leads; the others only follow it.
        required.sort_by_key(AnyOf::frequency);
        let impossible = required.first().is_none_or(AnyOf::is_empty);
        Ok(Candidates {
            required: (!impossible).then_some(required),
            truncated: self.any_of(&Condition::Term(plan.truncated.clone()))?,
        })
    }

    /// True when `document` holds `term`.
    pub(super) fn holds(&self, document: DocId, term: Vec<u8>) -> Result<bool, Fault> {
        let mut documents = self.any_of(&Condition::Term(term))?;
        Ok(documents.seek(document) == document)
    }

    fn any_of(&self, condition: &Condition) -> Result<AnyOf, Fault> {
        let mut lists = AnyOf::default();
        let read = |info: &TermInfo| {
            self.terms
                .read_postings_from_terminfo(info, IndexRecordOption::Basic)
        };
        match condition {
            Condition::Term(term) => {
                if let Some(info) = self.terms.terms().get(term)? {
                    lists.0.push(read(&info)?);
                }
            }
            Condition::Prefix(prefix, status) => {
                // At most 18 terms: a kind of six and a status of three follow a prefix.
                let mut stream = self.terms.terms().range().ge(prefix).into_stream()?;
                while let Some((term, info)) = stream.next() {
                    if !term.starts_with(prefix) {
                        break;
                    }
                    if status.is_none_or(|status| term.last() == Some(&(status as u8))) {
                        lists.0.push(read(info)?);
                    }
                }
            }
        }
        Ok(lists)
    }
}

/// Documents of any of some posting lists, ascending.
#[derive(Default)]
struct AnyOf(SmallVec<[SegmentPostings; 3]>);

impl AnyOf {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn frequency(&self) -> u64 {
        self.0.iter().map(|list| u64::from(list.doc_freq())).sum()
    }

    /// The first document from `target` on; targets must not descend.
    fn seek(&mut self, target: DocId) -> DocId {
        let mut least = TERMINATED;
        for list in &mut self.0 {
            let document = list.doc();
            let document = match document < target {
                true => list.seek(target),
                false => document,
            };
            least = least.min(document);
        }
        least
    }
}

/// Documents that hold all of a plan's conditions, and those that are truncated, ascending.
pub(super) struct Candidates {
    required: Option<Vec<AnyOf>>,
    truncated: AnyOf,
}

/// A document that may match.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) document: DocId,
    /// It holds all the conditions.
    pub(super) holds_conditions: bool,
    /// Its summary does not name everything.
    pub(super) truncated: bool,
}

impl Candidates {
    /// The first candidate from `target` on; targets must not descend.
    pub(super) fn seek(&mut self, target: DocId) -> Option<Candidate> {
        let required = match &mut self.required {
            Some(lists) => seek_all(lists, target),
            None => TERMINATED,
        };
        let truncated = self.truncated.seek(target);
        let document = required.min(truncated);
        (document != TERMINATED).then_some(Candidate {
            document,
            holds_conditions: required == document,
            truncated: truncated == document,
        })
    }
}

/// The first document from `target` on that all lists name.
fn seek_all(lists: &mut [AnyOf], mut target: DocId) -> DocId {
    'again: while target != TERMINATED {
        for list in &mut *lists {
            let document = list.seek(target);
            if document != target {
                target = document;
                continue 'again;
            }
        }
        return target;
    }
    TERMINATED
}
