use std::time::Duration;

use spandrel_api::client::{Client, ClientError, ClientOptions, NamesParameters, SearchParameters};
use spandrel_model::batch::StatusCode;
use spandrel_model::error::{ErrorClass, PortError};
use tokio::net::TcpListener;

use crate::support::{BROKEN, Fake, GONE, KEPT, Node};

async fn client(node: &Node) -> Client {
    let options = ClientOptions {
        addr: format!("http://{}", node.http),
        ..ClientOptions::default()
    };
    Client::connect(options).await.unwrap()
}

#[tokio::test]
async fn the_client_speaks_every_query() {
    let node = Node::start(Fake::default()).await;
    let client = client(&node).await;
    let trace = client.trace(KEPT).await.unwrap();
    assert_eq!((&*trace.head.state, trace.head.span_count), ("kept", 2));
    assert_eq!(trace.spans().unwrap().resource_spans.len(), 2);
    // gRPC and HTTP say the same
    let by_http = node.get(&format!("/v1/traces/{KEPT}")).await.json();
    let by_grpc: serde_json::Value = serde_json::from_str(&trace.json()).unwrap();
    assert_eq!(by_grpc, by_http);

    let search = SearchParameters {
        services: vec!["shop".to_owned()],
        status: Some(StatusCode::Ok),
        tags: vec!["k:v".to_owned()],
        limit: Some(7),
        ..SearchParameters::default()
    };
    let answer = client.search(&search).await.unwrap();
    let asked = node.fake.search.lock().unwrap().clone().unwrap();
    assert_eq!(
        (asked.limit, asked.filter.status),
        (7, Some(StatusCode::Ok))
    );
    assert_eq!(
        (answer.traces.len(), answer.receipt.inspected_spans),
        (1, u64::MAX)
    );
    let next = SearchParameters {
        cursor: answer.next_cursor,
        ..SearchParameters::default()
    };
    client.search(&next).await.unwrap();
    let paged = node.fake.search.lock().unwrap().clone().unwrap();
    assert_eq!(
        (paged.filter.from, paged.filter.to),
        (asked.filter.from, asked.filter.to)
    );

    let names = NamesParameters::default();
    assert_eq!(client.services(&names).await.unwrap().services, ["a name"]);
    assert_eq!(
        client.operations("s", &names).await.unwrap().operations[0].kind,
        "server"
    );
    assert!(client.tags(&names).await.unwrap().tags[0].indexed);
    assert_eq!(
        client.tag_values("k", &names).await.unwrap().values[0].r#type,
        "int"
    );
    assert_eq!(client.promote(KEPT).await.unwrap().policy, "errors");
}

#[tokio::test]
async fn the_client_administers_over_the_same_connection() {
    let node = Node::start(Fake::default()).await;
    let client = client(&node).await;
    assert_eq!(client.status().await.unwrap().node, "7");
    assert_eq!(client.policy().await.unwrap().version, 3);
    assert_eq!(
        client.apply_policy("a".to_owned()).await.unwrap().version,
        4
    );
    let bad = client.apply_policy("bad".to_owned()).await.unwrap_err();
    assert_eq!(bad.refusal().unwrap().field.as_deref(), Some("policies"));
    client.create_tenant("team").await.unwrap();
    assert_eq!(client.tenants().await.unwrap(), ["default"]);
    client.flush().await.unwrap();
}

#[tokio::test]
async fn the_servers_errors_arrive_with_code_reason_and_hint() {
    let node = Node::start(Fake::default()).await;
    let client = client(&node).await;
    let gone = client.trace(GONE).await.unwrap_err();
    let detail = gone.refusal().unwrap();
    assert_eq!(
        (&*detail.code, detail.reason.as_deref()),
        ("not_found", Some("dropped"))
    );
    assert_eq!(detail.decision.as_ref().unwrap().policy, "errors");
    let unknown = client.trace("1234567890abcdef").await.unwrap_err();
    assert!(unknown.refusal().unwrap().retained_since.is_some());
    assert!(client.trace(BROKEN).await.is_err());
    *node.fake.search_reply.lock().unwrap() = Err(PortError {
        retry_after_ms: Some(900),
        ..PortError::new(ErrorClass::OverLimit, "queries", "16 queries run already")
    });
    let busy = client
        .search(&SearchParameters::default())
        .await
        .unwrap_err();
    assert_eq!(busy.retry_after_ms(), Some(900));
    assert_eq!(busy.to_string(), "16 queries run already");
}

#[tokio::test]
async fn a_node_that_is_not_there_is_named_with_advice() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let options = ClientOptions {
        addr: free.to_string(),
        ..ClientOptions::default()
    };
    let error = Client::connect(options).await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains(&free.to_string()) && text.contains("spandrel node start"),
        "{text}"
    );
    let bad = ClientOptions {
        tenant: Some("a b".to_owned()),
        ..ClientOptions::default()
    };
    assert!(matches!(
        Client::connect(bad).await,
        Err(ClientError::Invalid {
            field: "tenant",
            ..
        })
    ));
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_or_reported_as_such() {
    let mut node = Node::start(Fake::default()).await;
    let client = client(&node).await;
    client.status().await.unwrap();
    let served = node.stop();
    tokio::time::timeout(Duration::from_secs(20), served)
        .await
        .unwrap()
        .unwrap();
    let error = client.trace(KEPT).await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn health_and_reflection_are_on_both_grpc_ports() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

    let node = Node::start(Fake::default()).await;
    for (address, service) in [
        (node.http, "spandrel.v1.QueryService"),
        (
            node.otlp_grpc,
            "opentelemetry.proto.collector.trace.v1.TraceService",
        ),
    ] {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        let channel = endpoint.unwrap().connect().await.unwrap();
        let mut health = HealthClient::new(channel.clone());
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1);
        let mut reflection = ServerReflectionClient::new(channel);
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let stream = tokio_stream::once(request);
        let mut answers = reflection
            .server_reflection_info(stream)
            .await
            .unwrap()
            .into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        assert!(format!("{answer:?}").contains(service), "{answer:?}");
    }
}

#[tokio::test]
async fn the_cluster_is_shown_and_changed() {
    let node = Node::start(Fake::default()).await;
    let client = client(&node).await;
    let cluster = client.cluster().await.unwrap();
    assert_eq!(cluster.leader.as_deref(), Some("8"));
    assert_eq!(cluster.nodes[1].role, "leader");
    assert_eq!(cluster.nodes[1].silent_ms, Some(40));
    assert_eq!(
        (cluster.lacking[0].shard, cluster.lacking[0].copies),
        (5, 1)
    );
    assert_eq!(
        (cluster.nodes[0].needed_copies, cluster.lacking_copies),
        (6, 9)
    );
    let alone = client.remove_node(8, false).await.unwrap_err();
    assert_eq!(alone.refusal().unwrap().code, "only_copy");
    client.remove_node(8, true).await.unwrap();
    client.repair_node().await.unwrap();
    let unknown = client.remove_node(9, false).await.unwrap_err();
    assert_eq!(unknown.refusal().unwrap().code, "unknown_node");
    let last = client.leave_node().await.unwrap_err();
    assert_eq!(last.refusal().unwrap().code, "last_node");
    let token = client.create_join_token().await.unwrap();
    assert_eq!(token.token, "spandrel-join-1");
}

#[tokio::test]
async fn a_wrong_port_says_where_queries_go() {
    let node = Node::start(Fake::default()).await;
    for port in [node.otlp_grpc, node.otlp_http] {
        let options = ClientOptions {
            addr: port.to_string(),
            ..ClientOptions::default()
        };
        let client = Client::connect(options).await.unwrap();
        let error = client.services(&NamesParameters::default()).await;
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("queries go to the port of the native API"),
            "{text}"
        );
    }
}
