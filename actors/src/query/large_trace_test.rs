//! A trace of 100,000 spans, read through a node that does not hold it.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use spandrel_model::policy::KEEP_ALL_POLICY;

use super::test_cluster::{Fault, TestCluster, fetch, id, read, tenant};
use crate::Clock;
use crate::limits::{PEER_READER_IDLE_MS, TRACE_PIECE_BYTES};

/// Sends one trace of many small spans.
async fn send_large(cluster: &TestCluster, trace: u8, spans: u32) {
    let now = cluster.nodes[&1].clock.now().0;
    let numbers: Vec<u32> = (1..=spans).collect();
    for part in numbers.chunks(10_000) {
        let span = |number: &u32| Span {
            trace_id: id(trace).0.to_vec(),
            span_id: (u64::from(*number)).to_be_bytes().to_vec(),
            parent_span_id: if *number == 1 {
                vec![]
            } else {
                1u64.to_be_bytes().to_vec()
            },
            name: "step".to_owned(),
            start_time_unix_nano: now,
            end_time_unix_nano: now + u64::from(*number),
            ..Span::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans {
                    spans: part.iter().map(span).collect(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let bytes = Bytes::from(request.encode_to_vec());
        for node in cluster.owners(trace) {
            let ingest = cluster.nodes[&node].node.ingest();
            let credit = ingest.admit(&tenant(), bytes.len() as u64).unwrap();
            let outcome = ingest
                .export(&tenant(), bytes.clone(), credit)
                .await
                .unwrap();
            assert_eq!(outcome.accepted, part.len() as u64, "{}", outcome.message);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_trace_is_streamed_in_bounded_pieces_and_goes_on_with_another_holder() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, [&[1, 2], &[2], &[3], &[3]]).await;
    let trace = cluster.trace_in(0, 1);
    send_large(&cluster, trace, 100_000).await;
    let (spans, longest) = read(fetch(&cluster.query(3), trace).await).await;
    assert_eq!(spans.len(), 100_000);
    assert!(longest < TRACE_PIECE_BYTES + 1_000, "{longest}");
    let most = cluster
        .network
        .calls
        .lock()
        .unwrap()
        .iter()
        .map(|(_, bytes)| *bytes)
        .max();
    // The link itself refuses what is over 1 MiB.
    assert!(most > Some(TRACE_PIECE_BYTES));
    assert_eq!(
        cluster.server(1).open_readers(),
        0,
        "it was read to its end"
    );

    // The primary dies behind its second message: the other copy goes on, no span comes twice.
    cluster.fault(1, Some(Fault::DeadAfter(2)));
    let (spans, _) = read(fetch(&cluster.query(3), trace).await).await;
    assert_eq!(spans.len(), 100_000);
    // Nobody else: what is there comes, then an error, never a short trace.
    cluster.fault(1, Some(Fault::DeadAfter(2)));
    cluster.fault(2, Some(Fault::Dead));
    let mut answer = fetch(&cluster.query(3), trace).await;
    let mut pieces = 0;
    let error = loop {
        match answer.reader.next().await {
            Ok(piece) => pieces += usize::from(piece.is_some()),
            Err(error) => break error,
        }
        assert!(pieces < 10, "it ended as if it were whole");
    };
    assert_eq!((pieces, error.code), (2, "holders_unreachable"));
    cluster.fault(1, None);
    cluster.fault(2, None);

    // Readers that nobody reads on are let go.
    let started = fetch(&cluster.query(3), trace).await;
    assert!(cluster.server(1).open_readers() > 0);
    tokio::time::sleep(Duration::from_millis(PEER_READER_IDLE_MS + 1)).await;
    assert_eq!(cluster.server(1).open_readers(), 0);
    // The coordinator then goes on with the other copy.
    assert_eq!(read(started).await.0.len(), 100_000);
    cluster.stop().await;
}
