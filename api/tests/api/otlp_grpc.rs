use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message;
use spandrel_api::client::{Client, ClientOptions};
use spandrel_model::credit::CreditPool;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ports::ExportOutcome;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::support::{Fake, Node, piece};

async fn client(node: &Node) -> TraceServiceClient<Channel> {
    TraceServiceClient::connect(format!("http://{}", node.otlp_grpc))
        .await
        .unwrap()
}

fn request() -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(piece("span")).unwrap()
}

#[tokio::test]
async fn a_real_client_exports_plain_and_compressed() {
    let node = Node::start(Fake::default()).await;
    let plain = client(&node).await;
    let clients = [
        plain.clone(),
        plain.clone().send_compressed(CompressionEncoding::Gzip),
        plain.send_compressed(CompressionEncoding::Zstd),
    ];
    for mut client in clients {
        let mut request = Request::new(request());
        request
            .metadata_mut()
            .insert("x-scope-orgid", "team".parse().unwrap());
        let reply = client.export(request).await.unwrap().into_inner();
        assert_eq!(reply.partial_success, None);
    }
    let exports = node.exported();
    assert_eq!(exports.len(), 3);
    for (tenant, bytes) in exports {
        assert_eq!((tenant.as_str(), bytes), ("team", piece("span")));
    }
    assert_eq!(node.fake.pool.used(), 0);
}

#[tokio::test]
async fn a_large_request_arrives_whole() {
    let node = Node::start(Fake::default()).await;
    let mut large = request();
    let name = "x".repeat(1_000);
    let span = &mut large.resource_spans[0].scope_spans[0].spans;
    span[0].name = name;
    *span = vec![span[0].clone(); 5_000];
    let mut client = client(&node).await;
    client.export(large.clone()).await.unwrap();
    let mut compressed = client.send_compressed(CompressionEncoding::Zstd);
    // 5 MB of one span fold more than 200 times: that is a bomb's shape, and refused as one
    let refused = compressed.export(large.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(node.exported()[0].1, Bytes::from(large.encode_to_vec()));
}

#[tokio::test]
async fn partial_success_and_refusals_reach_the_client() {
    let node = Node::start(Fake::default()).await;
    let mut client = client(&node).await;
    *node.fake.export_reply.lock().unwrap() = Ok(ExportOutcome {
        accepted: 0,
        rejected: 1,
        message: "no trace id".to_owned(),
    });
    let reply = client
        .export(request())
        .await
        .unwrap()
        .into_inner()
        .partial_success
        .unwrap();
    assert_eq!(
        (reply.rejected_spans, &*reply.error_message),
        (1, "no trace id")
    );

    for (class, code) in [
        (ErrorClass::OverLimit, Code::ResourceExhausted),
        (ErrorClass::Unavailable, Code::Unavailable),
    ] {
        let error = PortError {
            retry_after_ms: Some(1_500),
            ..PortError::new(class, "busy", "come back – later")
        };
        *node.fake.export_reply.lock().unwrap() = Err(error);
        let status = client.export(request()).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (code, "come back – later")
        );
        // RetryInfo: retry_delay { seconds: 1, nanos: 500_000_000 }
        let retry_info = b"\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x0a\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01";
        let found = status
            .details()
            .windows(retry_info.len())
            .any(|part| part == retry_info);
        assert!(found, "{:?}", status.details());
    }
}

#[tokio::test]
async fn a_deadline_of_the_client_is_kept_and_credit_comes_back() {
    let node = Node::start(Fake {
        export_hangs: true,
        ..Fake::default()
    })
    .await;
    // tonic's own timer would answer first: the header is sent by hand
    let mut request = Request::new(request());
    request
        .metadata_mut()
        .insert("grpc-timeout", "50m".parse().unwrap());
    let status = client(&node).await.export(request).await.unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
        ),
        "{status}"
    );
    let returned = async {
        while node.fake.pool.used() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), returned)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused() {
    let node = Node::start(Fake {
        pool: CreditPool::new(10),
        ..Fake::default()
    })
    .await;
    let mut client = client(&node).await;
    let status = client.export(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(node.fake.pool.peak(), 0);
    let mut stranger = Request::new(request());
    stranger
        .metadata_mut()
        .insert("x-scope-orgid", "unknown".parse().unwrap());
    assert_eq!(
        client.export(stranger).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let mut large = request();
    large.resource_spans[0].schema_url = "x".repeat(17 << 20);
    let status = client.export(large).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn our_own_client_exports_raw_bytes_and_hears_refusals() {
    let node = Node::start(Fake::default()).await;
    let client = Client::connect(ClientOptions {
        addr: node.otlp_grpc.to_string(),
        tenant: Some("team".to_owned()),
        timeout_ms: 10_000,
    })
    .await
    .unwrap();
    let reply = client.export(piece("raw")).await.unwrap();
    assert_eq!(reply.rejected_spans, 0);
    assert_eq!(node.exported()[0].1, piece("raw"));
    let error = PortError::unavailable("failover", "the shard moves", 1_234);
    *node.fake.export_reply.lock().unwrap() = Err(error);
    let error = client.export(piece("raw")).await.unwrap_err();
    assert_eq!(error.retry_after_ms(), Some(1_234));
    assert_eq!(error.refusal().unwrap().code, "failover");
}

#[tokio::test]
async fn an_open_export_ends_well_while_the_node_shuts_down() {
    // given an export that waits
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let mut node = Node::start(Fake {
        gate: Some(Arc::clone(&gate)),
        ..Fake::default()
    })
    .await;
    let mut client = client(&node).await;
    let export = tokio::spawn(async move { client.export(request()).await });
    let arrived = async {
        while node.fake.pool.used() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), arrived)
        .await
        .unwrap();
    // when the node stops, and then the export is done
    let served = node.stop();
    let refused = async {
        while TraceServiceClient::connect(format!("http://{}", node.otlp_grpc))
            .await
            .is_ok()
        {}
    };
    tokio::time::timeout(Duration::from_secs(10), refused)
        .await
        .unwrap();
    gate.add_permits(1);
    // then it is acknowledged, and serving ends
    export.await.unwrap().unwrap();
    tokio::time::timeout(Duration::from_secs(20), served)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(node.exported().len(), 1);
}
