//! The journal through its public face: what was committed is found, read, walked, trimmed, and survives.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod support;

use std::path::Path;
use std::sync::Arc;

use spandrel_model::ids::{Lsn, ShardId, Term, TraceId, UnixNanos};
use spandrel_model::verdict::Verdict;
use spandrel_storage::disk::{Disk, RealDisk};
use spandrel_storage::journal::{
    EncodedFrame, Frame, FrameBuilder, FrameId, Journal, JournalError, JournalOptions,
};
use support::{NOW, Numbers, all, batch, dropped, interests, tenant};

const SECOND: u64 = UnixNanos::PER_SECOND;

fn open(dir: &Path, options: JournalOptions) -> Journal {
    let (journal, corrupt) =
        Journal::open(Arc::new(RealDisk), dir, options, UnixNanos(NOW)).unwrap();
    assert_eq!(corrupt, []);
    journal
}

/// One frame with one record of spans for each shard.
fn frame(numbers: &mut Numbers, records: &[(u16, u64)]) -> EncodedFrame {
    let mut builder = FrameBuilder::new(1).unwrap();
    for (shard, lsn) in records {
        let spans = batch(numbers, "default", 5);
        builder
            .push_spans(ShardId(*shard), Term(1), Lsn(*lsn), &spans, &all(&spans))
            .unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn committed_records_are_located_read_and_walked_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(1);
    let interests = interests();
    let first = batch(&mut numbers, "team-a", 40);
    let second = batch(&mut numbers, "team-b", 20);
    let half: Vec<u32> = (0..20).collect();

    // Given a frame of two shards' spans
    let mut builder = FrameBuilder::new(1).unwrap();
    builder
        .push_spans(ShardId(3), Term(2), Lsn(1), &first, &half)
        .unwrap();
    builder
        .push_spans(ShardId(9), Term(5), Lsn(77), &second, &all(&second))
        .unwrap();
    builder
        .push_spans(ShardId(3), Term(2), Lsn(2), &first, &half)
        .unwrap();
    let encoded = builder.finish().unwrap();
    assert!(builder.is_empty());
    let journal = open(dir.path(), JournalOptions::default());
    let ids = journal
        .commit(std::slice::from_ref(&encoded), UnixNanos(NOW))
        .unwrap();
    assert_eq!(ids, [FrameId(1)]);

    for journal in [journal, open(dir.path(), JournalOptions::default())] {
        // Then its records are found by shard and number, and no others
        assert_eq!(
            journal.locate(ShardId(3), Lsn(2)).unwrap(),
            Some(FrameId(1))
        );
        assert_eq!(
            journal.locate(ShardId(9), Lsn(77)).unwrap(),
            Some(FrameId(1))
        );
        assert_eq!(journal.locate(ShardId(9), Lsn(76)).unwrap(), None);
        assert_eq!(journal.locate(ShardId(4), Lsn(1)).unwrap(), None);
        assert_eq!(journal.last_lsn(ShardId(9)), Lsn(77));
        assert_eq!(journal.last_lsn(ShardId(8)), Lsn(0));
        assert_eq!(journal.covered_since(), UnixNanos(NOW));

        // And the spans are what they were
        let frame = journal.frame(FrameId(1)).unwrap();
        let record = frame.find(ShardId(9), Lsn(77)).unwrap();
        assert_eq!(frame.tenant(record), Some(&tenant("team-b")));
        assert_eq!(frame.received_at(record), Some(second.received_at));
        let mut seen = Vec::new();
        frame.visit_spans(record, &mut |context, trace, span| {
            seen.push((trace, span.to_vec(), context.resource.to_vec()));
        });
        let sent: Vec<_> = second
            .spans
            .iter()
            .map(|span| {
                let resource = second.bytes(second.context(span).resource);
                (
                    span.trace_id,
                    second.bytes(span.span).to_vec(),
                    resource.to_vec(),
                )
            })
            .collect();
        assert_eq!(seen, sent);
        let again = frame.batch(record, &interests).unwrap();
        assert_eq!(again.received_at, second.received_at);
        for (a, b) in again.spans.iter().zip(&second.spans) {
            assert_eq!(
                (a.trace_id, a.span_id, a.hash),
                (b.trace_id, b.span_id, b.hash)
            );
            assert_eq!(
                again.text(again.context(a).service),
                second.text(second.context(b).service)
            );
        }

        // And the walk gives the frame once
        let walked: Vec<_> = journal.walk(None).map(|item| item.unwrap().0).collect();
        assert_eq!(walked, [FrameId(1)]);
        assert!(matches!(
            journal.frame(FrameId(2)),
            Err(JournalError::Gone { .. })
        ));
        drop(journal);
    }
}
