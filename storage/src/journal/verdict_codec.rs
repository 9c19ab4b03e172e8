//! Verdicts as columns: of a dropped trace little more than its id remains after compression.
//!
//! Records of one tenant are sorted by trace id. Columns, rather than rows, put the numbers that repeat side by side,
//! where zstd takes them away.

use smallvec::SmallVec;
use spandrel_model::ids::{Bucket, Lsn, TenantId, TraceId, UnixNanos};
use spandrel_model::verdict::{LimiterReading, Trigger, Verdict, VerdictRecord};

use super::wire::{Reader, put_difference, put_varint, put_varint_wide};

/// Fewest bytes of a record: its id and one byte in each of the fourteen other columns.
const MIN_RECORD_BYTES: usize = 30;

/// Appends the records of one tenant, which the caller sorted by trace id.
pub(crate) fn encode(records: &[&VerdictRecord], out: &mut Vec<u8>) {
    for record in records {
        out.extend_from_slice(&record.trace_id.0);
    }
    for record in records {
        out.push(record.verdict as u8 | (record.trigger as u8) << 1);
    }
    out.extend(records.iter().map(|record| record.pressure));
    for record in records {
        put_varint(out, u64::from(record.policy_version));
    }
    for record in records {
        put_varint(out, u64::from(record.policy));
    }
    for record in records {
        put_varint_wide(out, record.votes);
    }
    for record in records {
        put_varint(out, record.probability);
    }
    for record in records {
        put_limiters(record, out);
    }
    let mut previous = 0;
    for record in records {
        put_difference(out, previous, record.decided_at.0);
        previous = record.decided_at.0;
    }
    let mut previous = 0;
    for record in records {
        put_difference(out, previous, u64::from(record.bucket.0));
        previous = u64::from(record.bucket.0);
    }
    let lowest = records.iter().map(|record| record.input_lsn.0).min();
    put_varint(out, lowest.unwrap_or_default());
    for record in records {
        put_varint(out, record.input_lsn.0 - lowest.unwrap_or_default());
    }
    for record in records {
        put_difference(out, record.start.0, record.decided_at.0);
    }
    for record in records {
        put_difference(out, record.start.0, record.end.0);
    }
    for record in records {
        put_varint(out, u64::from(record.span_count));
    }
    for record in records {
        put_references(record, out);
    }
}

fn put_limiters(record: &VerdictRecord, out: &mut Vec<u8>) {
    put_varint(out, record.limiters.len() as u64);
    for reading in &record.limiters {
        out.push(reading.limiter);
        put_varint(out, reading.level);
    }
}

fn put_references(record: &VerdictRecord, out: &mut Vec<u8>) {
    put_varint(out, record.references.len() as u64);
    let mut previous = record.input_lsn.0;
    for reference in &record.references {
        put_difference(out, reference.0, previous);
        previous = reference.0;
    }
}

/// Reads `count` records of `tenant`.
pub(crate) fn decode(
    reader: &mut Reader<'_>,
    tenant: &TenantId,
    count: usize,
) -> Option<Vec<VerdictRecord>> {
    if count.checked_mul(MIN_RECORD_BYTES)? > reader.remaining() {
        return None;
    }
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        records.push(empty(tenant, TraceId(reader.array()?)));
    }
    for record in &mut records {
        let shape = reader.byte()?;
        record.verdict = match shape & 1 {
            0 => Verdict::Drop,
            _ => Verdict::Keep,
        };
        record.trigger = Trigger::from_number(shape >> 1)?;
    }
    for record in &mut records {
        record.pressure = reader.byte()?;
    }
    for record in &mut records {
        record.policy_version = reader.varint_u32()?;
    }
    for record in &mut records {
        record.policy = u16::try_from(reader.varint()?).ok()?;
    }
    for record in &mut records {
        record.votes = reader.varint_wide()?;
    }
    for record in &mut records {
        record.probability = reader.varint()?;
    }
    for record in &mut records {
        record.limiters = read_limiters(reader)?;
    }
    let mut previous = 0;
    for record in &mut records {
        previous = reader.difference(previous)?;
        record.decided_at = UnixNanos(previous);
    }
    let mut previous = 0;
    for record in &mut records {
        previous = reader.difference(previous)?;
        record.bucket = Bucket(u32::try_from(previous).ok()?);
    }
    let lowest = reader.varint()?;
    for record in &mut records {
        record.input_lsn = Lsn(lowest.checked_add(reader.varint()?)?);
    }
    for record in &mut records {
        let age = reader.difference(0)?;
        record.start = UnixNanos(record.decided_at.0.wrapping_sub(age));
    }
    for record in &mut records {
        record.end = UnixNanos(reader.difference(record.start.0)?);
    }
    for record in &mut records {
        record.span_count = reader.varint_u32()?;
    }
    for record in &mut records {
        record.references = read_references(reader, record.input_lsn)?;
    }
    Some(records)
}

fn read_limiters(reader: &mut Reader<'_>) -> Option<SmallVec<[LimiterReading; 2]>> {
    let count = reader.count(2)?;
    (0..count)
        .map(|_| {
            Some(LimiterReading {
                limiter: reader.byte()?,
                level: reader.varint()?,
            })
        })
        .collect()
}

fn read_references(reader: &mut Reader<'_>, input_lsn: Lsn) -> Option<SmallVec<[Lsn; 4]>> {
    let count = reader.count(1)?;
    let mut previous = input_lsn.0;
    (0..count)
        .map(|_| {
            previous = previous.wrapping_sub(reader.difference(0)?);
            Some(Lsn(previous))
        })
        .collect()
}

fn empty(tenant: &TenantId, trace_id: TraceId) -> VerdictRecord {
    VerdictRecord {
        tenant: tenant.clone(),
        trace_id,
        verdict: Verdict::Drop,
        trigger: Trigger::Idle,
        pressure: 0,
        policy_version: 0,
        policy: 0,
        votes: 0,
        probability: 0,
        limiters: SmallVec::new(),
        decided_at: UnixNanos::default(),
        bucket: Bucket::default(),
        input_lsn: Lsn::default(),
        start: UnixNanos::default(),
        end: UnixNanos::default(),
        span_count: 0,
        references: SmallVec::new(),
    }
}
