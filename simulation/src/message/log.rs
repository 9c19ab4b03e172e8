//! A shard's records on one disk, as the journal and its checkpoints hold them: which count, and from where on a restart
//! reads them.

use std::collections::BTreeMap;
use std::sync::Arc;

use spandrel_model::batch::SpanBatch;
use spandrel_model::ids::{Lsn, Term, TraceId};
use spandrel_model::verdict::VerdictRecord;

/// What a record holds. Two records with one number must have the same.
#[derive(Debug)]
pub(crate) struct Content {
    /// Of its own for each record that is numbered.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
}

/// The two kinds of records; `again`: the shard has them already, they are for a replica that joins.
#[derive(Debug)]
pub(crate) enum Kind {
    Spans {
        batch: Arc<SpanBatch>,
        /// The rows of the batch that are the record's.
        rows: Vec<u32>,
        /// The numbers of these spans.
        values: Vec<u64>,
        again: bool,
    },
    Verdicts {
        records: Vec<VerdictRecord>,
        again: bool,
    },
}

impl Content {
    pub(crate) fn values(&self) -> &[u64] {
        match &self.kind {
            Kind::Spans { values, .. } => values,
            Kind::Verdicts { .. } => &[],
        }
    }

    pub(crate) fn verdicts(&self) -> &[VerdictRecord] {
        match &self.kind {
            Kind::Spans { .. } => &[],
            Kind::Verdicts { records, .. } => records,
        }
    }
}

/// The records of one shard that are durable on one disk.
///
/// Invariant: `values` and `decided` are those of `valid`.
#[derive(Debug, Default)]
pub(crate) struct ShardLog {
    /// The records that count here, or may.
    valid: BTreeMap<Lsn, Arc<Content>>,
    /// The highest number that was ever committed.
    last: Lsn,
    /// A restart reads what comes behind it.
    pub(crate) mark: Lsn,
    /// Known to count, as the last checkpoint says.
    pub(crate) counted: Lsn,
    /// Kept traces that are in a block here, and up to which record.
    pub(crate) blocks: BTreeMap<TraceId, Lsn>,
    /// Where it last began anew: records up to there may be others than elsewhere.
    pub(crate) start: Lsn,
    /// The term in which the state was let go or begun anew, until the node is in sync in a later one; 0 when it is that
    /// of all records.
    pub(crate) let_go: Term,
    /// How many records hold each span.
    values: BTreeMap<u64, u32>,
    decided: BTreeMap<TraceId, BTreeMap<Lsn, VerdictRecord>>,
}

impl ShardLog {
    pub(crate) fn commit(&mut self, lsn: Lsn, content: &Arc<Content>) {
        self.remove(lsn);
        for value in content.values() {
            *self.values.entry(*value).or_default() += 1;
        }
        for record in content.verdicts() {
            let of_trace = self.decided.entry(record.trace_id).or_default();
            of_trace.insert(lsn, record.clone());
        }
        self.valid.insert(lsn, Arc::clone(content));
        self.last = self.last.max(lsn);
    }

    fn remove(&mut self, lsn: Lsn) -> Option<Arc<Content>> {
        let content = self.valid.remove(&lsn)?;
        for value in content.values() {
            if let Some(count) = self.values.get_mut(value) {
                *count -= 1;
                if *count == 0 {
                    self.values.remove(value);
                }
            }
        }
        for record in content.verdicts() {
            if let Some(of_trace) = self.decided.get_mut(&record.trace_id) {
                of_trace.remove(&lsn);
            }
        }
        Some(content)
    }

    /// Records behind `after`, up to `last`, do not count. Returns those that were here.
    pub(crate) fn void_after(&mut self, after: Lsn, last: Lsn) -> Vec<(Lsn, Arc<Content>)> {
        if last <= after {
            return Vec::new();
        }
        let gone = self.valid.range(after.next()..=last);
        let gone: Vec<Lsn> = gone.map(|(lsn, _)| *lsn).collect();
        let gone = gone.into_iter();
        gone.filter_map(|lsn| Some((lsn, self.remove(lsn)?)))
            .collect()
    }

    pub(crate) fn last(&self) -> Lsn {
        self.last
    }

    pub(crate) fn last_valid(&self) -> Lsn {
        self.valid.keys().next_back().copied().unwrap_or_default()
    }

    pub(crate) fn floor(&self, lsn: Lsn) -> Option<Lsn> {
        let up_to = self.valid.range(..=lsn);
        up_to.map(|(lsn, _)| *lsn).next_back()
    }

    pub(crate) fn get(&self, lsn: Lsn) -> Option<&Arc<Content>> {
        self.valid.get(&lsn)
    }

    /// The records behind `after`, in order.
    pub(crate) fn behind(&self, after: Lsn) -> impl Iterator<Item = (Lsn, &Arc<Content>)> {
        let behind = self.valid.range(after.next()..);
        behind.map(|(lsn, content)| (*lsn, content))
    }

    pub(crate) fn holds(&self, value: u64) -> bool {
        self.values.contains_key(&value)
    }

    /// The newest verdict about a trace: the one that has read most.
    pub(crate) fn verdict(&self, trace_id: TraceId) -> Option<&VerdictRecord> {
        let of_trace = self.decided.get(&trace_id)?;
        of_trace.values().max_by_key(|record| record.input_lsn)
    }

    /// The newest verdict about each trace.
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = &VerdictRecord> {
        let of_traces = self.decided.values();
        of_traces.filter_map(|of_trace| of_trace.values().max_by_key(|record| record.input_lsn))
    }
}
