//! The spans of a frame as the scanner sees them.

use std::ops::Range;

use spandrel_model::batch::{Context, SpanBatch};
use spandrel_model::ids::{TenantId, TraceId, UnixNanos};
use spandrel_model::interest::Interests;
use spandrel_model::otlp::rescan;

use super::error::{InvalidFrame, JournalError};
use super::frame::{Body, Frame, Row};

/// Spans of a frame that arrived together.
#[derive(Debug)]
pub struct FrameBatch {
    /// The spans, as the scanner sees them.
    pub batch: SpanBatch,
    /// The records that they are of, each with its rows in the batch.
    pub records: Vec<(usize, Range<usize>)>,
}

/// Requests that are looked at for the one that a record belongs to: a frame goes through them in order.
const GROUPS_LOOKED_AT: usize = 4;

impl Frame {
    /// The spans of a record as the scanner sees them.
    ///
    /// # Errors
    /// [`JournalError::NoSuchRecord`] when the record holds no spans, [`JournalError::Invalid`] when the scanner
    /// refuses them (they were accepted once, so that is a defect).
    pub fn batch(&self, record: usize, interests: &Interests) -> Result<SpanBatch, JournalError> {
        self.batch_of(record, interests, &mut |_| true)
    }

    /// The spans of some traces of a record as the scanner sees them; the others are not looked at. `wanted` is asked
    /// about each span's trace, in the order of the spans.
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub fn batch_of(
        &self,
        record: usize,
        interests: &Interests,
        wanted: &mut dyn FnMut(TraceId) -> bool,
    ) -> Result<SpanBatch, JournalError> {
        let Some(Body::Spans {
            tenant,
            received_at,
            ..
        }) = self.bodies.get(record)
        else {
            return Err(JournalError::NoSuchRecord {
                wanted: "spans",
                record,
            });
        };
        let rows = self.rows(record).iter().copied();
        let rows: Vec<Row> = rows.filter(|row| wanted(self.trace_id(row))).collect();
        self.scan_rows(&rows, tenant, *received_at, interests)
    }

    /// The spans of all records, in one batch for those that arrived together: a request's parts for its shards. Each
    /// with its records and their rows in the batch.
    ///
    /// # Errors
    /// [`JournalError::Invalid`] as for [`Self::batch`].
    pub fn batches(&self, interests: &Interests) -> Result<Vec<FrameBatch>, JournalError> {
        let mut groups: Vec<(&TenantId, UnixNanos, Vec<usize>)> = Vec::new();
        for (number, body) in self.bodies.iter().enumerate() {
            let Body::Spans {
                tenant,
                received_at,
                ..
            } = body
            else {
                continue;
            };
            // Those of one request lie together.
            let last = groups.iter_mut().rev().take(GROUPS_LOOKED_AT);
            let mut same = last.filter(|(other, at, _)| *other == tenant && at == received_at);
            match same.next() {
                Some((_, _, records)) => records.push(number),
                None => groups.push((tenant, *received_at, vec![number])),
            }
        }
        let groups = groups.into_iter();
        let scanned = groups.map(|(tenant, received_at, numbers)| {
            let (mut rows, mut records) = (Vec::new(), Vec::with_capacity(numbers.len()));
            for number in numbers {
                let start = rows.len();
                rows.extend_from_slice(self.rows(number));
                records.push((number, start..rows.len()));
            }
            let batch = self.scan_rows(&rows, tenant, received_at, interests)?;
            Ok(FrameBatch { batch, records })
        });
        scanned.collect()
    }

    fn scan_rows(
        &self,
        rows: &[Row],
        tenant: &TenantId,
        received_at: UnixNanos,
        interests: &Interests,
    ) -> Result<SpanBatch, JournalError> {
        let (contexts, numbers) = self.contexts_of(rows);
        let spans = rows.iter().map(|row| {
            let number = numbers.get(row.context as usize).copied();
            (number.unwrap_or_default(), row.span)
        });
        rescan(
            self.raw.clone(),
            tenant.clone(),
            received_at,
            contexts,
            spans,
            interests,
        )
        .map_err(|_| {
            JournalError::Invalid(InvalidFrame {
                reason: "a stored span is no OTLP span",
            })
        })
    }

    /// The contexts that rows use, and for each context of the frame its index among them.
    fn contexts_of(&self, rows: &[Row]) -> (Vec<Context>, Vec<u32>) {
        const UNUSED: u32 = u32::MAX;
        let mut numbers = match rows {
            [] => Vec::new(),
            _ => vec![UNUSED; self.contexts.len()],
        };
        let mut contexts = Vec::new();
        for row in rows {
            let index = row.context as usize;
            let (Some(number), Some(parts)) = (numbers.get_mut(index), self.contexts.get(index))
            else {
                continue;
            };
            if *number == UNUSED {
                // There are no more of them than rows, and a frame has fewer than 2^32 bytes.
                *number = u32::try_from(contexts.len()).unwrap_or(UNUSED);
                let [resource, resource_schema_url, scope, scope_schema_url] = *parts;
                contexts.push(Context {
                    resource,
                    resource_schema_url,
                    scope,
                    scope_schema_url,
                    ..Context::default()
                });
            }
        }
        (contexts, numbers)
    }
}
