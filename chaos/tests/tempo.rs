//! What Grafana's Tempo data source asks, from the real process.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, TracesData};
use prost::Message;
use spandrel_chaos::http;
use spandrel_chaos::node_process::NodeProcess;
use spandrel_chaos::workload::{Workload, WorkloadOptions};
use spandrel_model::ids::UnixNanos;

/// `tempopb.TraceByIDResponse`, of which Tempo's `Trace` has the shape of `TracesData`.
#[derive(Clone, PartialEq, Message)]
struct TraceByIdResponse {
    #[prost(message, optional, tag = "1")]
    trace: Option<TracesData>,
    /// 0 is COMPLETE.
    #[prost(int32, tag = "3")]
    status: i32,
}

fn span_ids(parts: &[ResourceSpans]) -> Vec<Vec<u8>> {
    let scopes = parts.iter().flat_map(|part| &part.scope_spans);
    let mut ids: Vec<_> = scopes
        .flat_map(|scope| &scope.spans)
        .map(|span| span.span_id.clone())
        .collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn tempo_paths_answer_with_the_trace() {
    // given: a request whose traces are all in it
    let node = NodeProcess::start(&["--memory=368MiB"], None)
        .await
        .unwrap();
    let mut options = WorkloadOptions::mixed(UnixNanos(1_700_000_000 * UnixNanos::PER_SECOND));
    options.late = 0.0;
    let export = Workload::new(1, options).next_export();
    let exporter = node.exporter().await.unwrap();
    exporter.export(export.bytes.clone()).await.unwrap();
    let trace = export.spans[0].trace;
    let mut expected: Vec<Vec<u8>> = export
        .spans
        .iter()
        .filter(|span| span.trace == trace)
        .map(|span| span.span.0.to_vec())
        .collect();
    expected.sort();
    let addr = node.ports().http;

    // when, then: the data source's health check
    let echo = http::get(addr, "/api/echo", "*/*").await.unwrap();
    assert_eq!((echo.status, echo.text().as_str()), (200, "echo"));

    // when, then: version 2 as protobuf, with the parameters that Grafana adds
    let path = format!("/api/v2/traces/{trace}?start=1&end=2");
    let answer = http::get(addr, &path, "application/protobuf")
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(
        answer
            .headers
            .contains("content-type: application/protobuf")
    );
    let decoded = TraceByIdResponse::decode(answer.body.as_slice()).unwrap();
    assert_eq!(decoded.status, 0);
    assert_eq!(span_ids(&decoded.trace.unwrap().resource_spans), expected);

    // when, then: version 1 as JSON
    let path = format!("/api/traces/{trace}");
    let answer = http::get(addr, &path, "application/json").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let parts: Vec<ResourceSpans> = serde_json::from_value(json["batches"].clone()).unwrap();
    assert_eq!(span_ids(&parts), expected);

    // when, then: a trace that nobody sent
    let path = "/api/traces/0123456789abcdef0123456789abcdef";
    let answer = http::get(addr, path, "application/json").await.unwrap();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (404, "trace not found")
    );
}
