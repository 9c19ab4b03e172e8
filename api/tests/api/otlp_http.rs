use std::io::Write;

use http::StatusCode;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message;
use serde_json::json;
use spandrel_model::credit::CreditPool;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ports::ExportOutcome;

use crate::support::{Fake, Node, piece};

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn every_encoding_arrives_as_the_same_protobuf() {
    let node = Node::start(Fake::default()).await;
    let request = piece("span");
    let decoded = TracesData::decode(request.clone()).unwrap();
    let as_json = serde_json::to_vec(&decoded).unwrap();
    for (format, body) in [(PROTOBUF, request.to_vec()), (JSON, as_json)] {
        for (encoding, body) in [
            ("identity", body.clone()),
            ("gzip", gzip(&body)),
            ("ZSTD", zstd::stream::encode_all(&body[..], 1).unwrap()),
        ] {
            let answer = node
                .export(
                    &[
                        format,
                        ("content-encoding", encoding),
                        ("x-scope-orgid", "team"),
                    ],
                    body,
                )
                .await;
            assert_eq!(
                answer.status,
                StatusCode::OK,
                "{format:?} {encoding} {answer:?}"
            );
            let kind = format.1.split(';').next().unwrap();
            assert_eq!(answer.header("content-type"), kind);
            assert_eq!(
                answer.body,
                if kind == "application/json" {
                    &b"{}"[..]
                } else {
                    &[]
                }
            );
        }
    }
    let exports = node.exported();
    assert_eq!(exports.len(), 6);
    for (tenant, bytes) in exports {
        assert_eq!(tenant.as_str(), "team");
        assert_eq!(TracesData::decode(bytes).unwrap(), decoded);
    }
    assert_eq!(node.fake.pool.used(), 0);
}

#[tokio::test]
async fn rejected_spans_are_a_partial_success() {
    let node = Node::start(Fake::default()).await;
    *node.fake.export_reply.lock().unwrap() = Ok(ExportOutcome {
        accepted: 1,
        rejected: 2,
        message: "2 spans without an id".to_owned(),
    });
    let answer = node.export(&[PROTOBUF], piece("span")).await;
    let partial = ExportTraceServiceResponse::decode(answer.body)
        .unwrap()
        .partial_success
        .unwrap();
    assert_eq!(
        (partial.rejected_spans, &*partial.error_message),
        (2, "2 spans without an id")
    );
    let answer = node.export(&[JSON], "{}").await;
    assert_eq!(
        answer.json(),
        json!({"partialSuccess": {"rejectedSpans": "2", "errorMessage": "2 spans without an id"}})
    );
}

#[tokio::test]
async fn refusals_say_when_to_try_again() {
    let node = Node::start(Fake::default()).await;
    let over = PortError {
        retry_after_ms: Some(2_100),
        ..PortError::new(ErrorClass::OverLimit, "span_rate", "too many spans")
    };
    *node.fake.export_reply.lock().unwrap() = Err(over);
    let answer = node.export(&[PROTOBUF], piece("span")).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.header("retry-after"), "3");
    assert_eq!(answer.header("content-type"), "application/x-protobuf");
    let status = tonic_types_status(&answer.body);
    assert_eq!(status, (8, "too many spans".to_owned()));
    let unavailable = PortError::unavailable("failover", "the shard moves", 500);
    *node.fake.export_reply.lock().unwrap() = Err(unavailable);
    let answer = node.export(&[JSON], "{}").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json()["code"], 14);
    assert_eq!(answer.json()["details"][0]["retryDelay"], "0.500s");
}

/// Code and message of a `google.rpc.Status`.
fn tonic_types_status(bytes: &[u8]) -> (i32, String) {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Status {
        #[prost(int32, tag = "1")]
        code: i32,
        #[prost(string, tag = "2")]
        message: String,
    }
    let status = Status::decode(bytes).unwrap();
    (status.code, status.message)
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_for_good() {
    let node = Node::start(Fake::default()).await;
    let zeros = vec![0; 32 << 20];
    let deep = format!(
        r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"k","value":{}{}}}]}}}}]}}"#,
        r#"{"arrayValue":{"values":["#.repeat(10_000),
        "]}}".repeat(10_000)
    );
    type Headers = &'static [(&'static str, &'static str)];
    let cases: [(Headers, Vec<u8>, u16); 9] = [
        (&[], vec![], 415),
        (&[("content-type", "text/plain")], vec![], 415),
        (&[PROTOBUF, ("content-encoding", "br")], vec![], 415),
        (
            &[PROTOBUF, ("content-encoding", "gzip")],
            b"no gzip".to_vec(),
            400,
        ),
        (&[PROTOBUF, ("content-encoding", "gzip")], gzip(&zeros), 413),
        (&[PROTOBUF], vec![0; (16 << 20) + 1], 413),
        (&[JSON], b"{\"resourceSpans\":7}".to_vec(), 400),
        (&[JSON], deep.into_bytes(), 400),
        (&[PROTOBUF, ("x-scope-orgid", "unknown")], vec![], 403),
    ];
    for (headers, body, status) in cases {
        let length = body.len();
        let answer = match node_export(&node, headers, body).await {
            Some(answer) => answer,
            // A refusal before the body was read may close the connection while the client still sends.
            None if status == 413 && length > 16 << 20 => continue,
            None => panic!("no answer for {headers:?}"),
        };
        assert_eq!(answer.status.as_u16(), status, "{headers:?} {answer:?}");
    }
    assert!(node.exported().is_empty());
    assert_eq!(node.fake.pool.used(), 0);
}

async fn node_export(
    node: &Node,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Option<crate::support::Answer> {
    let mut request = http::Request::post(format!("http://{}/v1/traces", node.otlp_http));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    crate::support::send(request, body).await.ok()
}

#[tokio::test]
async fn without_credit_a_request_is_put_off_before_it_is_read() {
    let node = Node::start(Fake {
        pool: CreditPool::new(10),
        ..Fake::default()
    })
    .await;
    let answer = node.export(&[PROTOBUF], vec![0; 1_000]).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "2");
    assert_eq!(node.fake.pool.peak(), 0);
}
