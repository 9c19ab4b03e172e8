use http::{Request, StatusCode};
use opentelemetry_proto::tonic::trace::v1::TracesData;
use proptest::prelude::*;
use prost::Message;
use serde_json::json;
use spandrel_api::dto::TraceResponse;
use spandrel_model::batch::StatusCode as SpanStatus;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::search::NamesKind;

use crate::support::{BROKEN, Fake, GONE, KEPT, Node, piece, send};

#[tokio::test]
async fn a_trace_is_one_json_document() {
    let node = Node::start(Fake::default()).await;
    let answer = node.get(&format!("/v1/traces/{KEPT}")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.json();
    assert_eq!(body["state"], "kept");
    assert_eq!(body["complete"], true);
    assert_eq!(
        body["decision"]["decidedAt"],
        "2023-11-14T22:13:20.000000000Z"
    );
    assert_eq!(body["decision"]["recoverableUntil"], json!(null));
    let spans = body["trace"]["resourceSpans"].as_array().unwrap();
    assert_eq!(spans.len(), 2);
    assert_eq!(spans[1]["scopeSpans"][0]["spans"][0]["name"], "<second>");
    let typed: TraceResponse = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(typed.trace.resource_spans.len(), 2);
}

#[tokio::test]
async fn a_trace_comes_as_protobuf_when_asked_so() {
    let node = Node::start(Fake {
        complete: false,
        ..Fake::default()
    })
    .await;
    let url = format!("http://{}/v1/traces/{KEPT}", node.http);
    let request = Request::get(url).header("accept", "application/protobuf");
    let answer = send(request, "").await.unwrap();
    assert_eq!(answer.header("spandrel-state"), "kept");
    assert_eq!(answer.header("spandrel-complete"), "false");
    assert_eq!(
        TracesData::decode(answer.body)
            .unwrap()
            .resource_spans
            .len(),
        2
    );
}

#[tokio::test]
async fn a_large_trace_is_streamed() {
    let span = piece(&"x".repeat(10_000));
    let part: Vec<u8> = span.repeat(100);
    let node = Node::start(Fake {
        pieces: vec![part.into(); 20],
        ..Fake::default()
    })
    .await;
    let answer = node.get(&format!("/v1/traces/{KEPT}")).await;
    assert!(answer.body.len() > 20_000_000);
    let spans = answer.json()["trace"]["resourceSpans"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(spans, 2_000);
}

#[tokio::test]
async fn a_trace_that_breaks_off_cannot_be_taken_for_whole() {
    let node = Node::start(Fake::default()).await;
    let broken = Request::get(format!("http://{}/v1/traces/{BROKEN}", node.http));
    assert!(send(broken, "").await.is_err());
    let none = Node::start(Fake {
        pieces: Vec::new(),
        ..Fake::default()
    })
    .await;
    let answer = none.get(&format!("/v1/traces/{BROKEN}")).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let empty = none.get(&format!("/v1/traces/{KEPT}")).await;
    assert_eq!(empty.json()["trace"], json!({"resourceSpans": []}));
}

#[tokio::test]
async fn a_missing_trace_has_a_reason() {
    let node = Node::start(Fake::default()).await;
    let gone = node.get(&format!("/v1/traces/{GONE}")).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    assert_eq!(gone.json()["error"]["reason"], "dropped");
    assert_eq!(gone.json()["error"]["decision"]["policy"], "errors");
    let unknown = node.get("/v1/traces/1234567890abcdef").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let error = &unknown.json()["error"];
    assert_eq!(error["reason"], "unknown");
    assert_eq!(error["retainedSince"], "2020-09-13T12:26:40.000000000Z");
    for bad in ["xyz", "0", &"0".repeat(32)] {
        let answer = node.get(&format!("/v1/traces/{bad}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn promoting_answers_with_the_decision() {
    let node = Node::start(Fake::default()).await;
    let answer = node.post(&format!("/v1/traces/{KEPT}/promote"), "").await;
    assert_eq!(answer.json()["decision"]["verdict"], "keep");
    let answer = node.post(&format!("/v1/traces/{GONE}/promote"), "").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.json()["error"]["tenant"], "default");
}

#[tokio::test]
async fn a_search_is_parsed_and_answered_as_the_contract_says() {
    let node = Node::start(Fake::default()).await;
    let answer = node
        .get(
            "/v1/traces/search?service=a&service=b&operation=GET+%2Fx&status=error&tag=k:v:w&tag=n:200&minDurationMs=1.5\
             &maxDurationMs=2&from=2023-11-14T22:13:20Z&to=1700000001000000000&limit=1000&include=dropped&timeoutMs=60000\
             &tenant=default",
        )
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let asked = node.fake.search.lock().unwrap().clone().unwrap();
    assert_eq!(asked.filter.services, ["a", "b"]);
    assert_eq!(asked.filter.operation.as_deref(), Some("GET /x"));
    assert_eq!(asked.filter.status, Some(SpanStatus::Error));
    assert_eq!(
        (&*asked.filter.tags[0].key, &*asked.filter.tags[0].value),
        ("k", "v:w")
    );
    assert_eq!(asked.filter.min_duration, Some(1_500_000));
    assert_eq!(asked.filter.to.since(asked.filter.from), 1_000_000_000);
    assert_eq!(
        (asked.limit, asked.include_dropped, asked.timeout_ms),
        (1_000, true, 60_000)
    );

    let body = answer.json();
    let trace = &body["traces"][0];
    assert_eq!(trace["traceId"], KEPT);
    assert_eq!(trace["startTime"], "2023-11-14T22:13:20.000000000Z");
    assert_eq!(trace["durationMs"], 12.5);
    assert_eq!(trace["matchedSpans"], json!(["0101010101010101"]));
    assert_eq!(body["receipt"]["inspectedSpans"], u64::MAX.to_string());
    assert_eq!(body["receipt"]["missing"][0]["node"], "7");

    let cursor = body["nextCursor"].as_str().unwrap();
    node.get(&format!("/v1/traces/search?cursor={cursor}"))
        .await;
    let next = node.fake.search.lock().unwrap().clone().unwrap();
    assert_eq!(next.cursor.unwrap().trace_id.to_string(), KEPT);
    assert_eq!(
        (next.filter.from, next.filter.to),
        (asked.filter.from, asked.filter.to)
    );
}

#[tokio::test]
async fn the_defaults_are_the_last_hour_and_twenty() {
    let node = Node::start(Fake::default()).await;
    node.get("/v1/traces/search").await;
    let asked = node.fake.search.lock().unwrap().clone().unwrap();
    assert_eq!(asked.filter.to.since(asked.filter.from), 3_600_000_000_000);
    assert_eq!(
        (asked.limit, asked.timeout_ms, asked.cursor),
        (20, 10_000, None)
    );
}

#[tokio::test]
async fn wrong_parameters_are_refused_by_name() {
    let node = Node::start(Fake::default()).await;
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("status=bad", "status"),
        ("tag=novalue", "tag"),
        ("tag=:v", "tag"),
        ("service=", "service"),
        ("from=yesterday", "from"),
        ("from=2&to=1", "from"),
        ("minDurationMs=-1", "minDurationMs"),
        ("minDurationMs=NaN", "minDurationMs"),
        ("minDurationMs=2&maxDurationMs=1", "minDurationMs"),
        ("cursor=abc", "cursor"),
        ("include=all", "include"),
        ("timeoutMs=60001", "timeoutMs"),
        ("servcie=a", "servcie"),
        ("a=%zz", "query"),
    ] {
        let answer = node.get(&format!("/v1/traces/search?{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert_eq!(answer.json()["error"]["field"], field, "{query}");
    }
    assert!(node.fake.search.lock().unwrap().is_none());
    let other = node.get("/v1/traces/search?tenant=other").await;
    assert_eq!(other.status, StatusCode::FORBIDDEN);
    assert_eq!(
        node.get("/v1/nothing").await.json()["error"]["code"],
        "no_such_route"
    );
    assert_eq!(
        node.post("/v1/services", "").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn a_tenant_with_too_many_queries_is_told_when_to_come_back() {
    let node = Node::start(Fake::default()).await;
    *node.fake.search_reply.lock().unwrap() = Err(PortError {
        retry_after_ms: Some(1_000),
        ..PortError::new(ErrorClass::OverLimit, "queries", "16 queries run already")
    });
    let answer = node.get("/v1/traces/search").await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json()["error"]["retryAfterMs"], 1_000);
}

#[tokio::test]
async fn names_are_listed() {
    let node = Node::start(Fake::default()).await;
    let services = node
        .get("/v1/services?prefix=a&limit=5&from=1&to=2")
        .await
        .json();
    assert_eq!(services["services"], json!(["a name"]));
    assert_eq!(services["receipt"]["complete"], false);
    let operations = node.get("/v1/services/a%2Fb/operations").await.json();
    assert_eq!(
        operations["operations"],
        json!([{"name": "a name", "kind": "server"}])
    );
    let service = NamesKind::Operations {
        service: "a/b".to_owned(),
    };
    assert_eq!(
        node.fake.names.lock().unwrap().clone().unwrap().kind,
        service
    );
    let tags = node.get("/v1/tags").await.json();
    assert_eq!(
        tags["tags"],
        json!([{"key": "a name", "scope": "span", "indexed": true}])
    );
    let values = node.get("/v1/tags/http.route/values").await.json();
    assert_eq!(
        values["values"],
        json!([{"value": "a name", "type": "int"}])
    );
    let wrong = node.get("/v1/tags?limit=10001").await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn administration_is_for_programs_on_this_machine() {
    let node = Node::start(Fake::default()).await;
    assert_eq!(
        node.get("/v1/status").await.json()["creditCapacityBytes"],
        268_435_456
    );
    let applied = node
        .post("/v1/admin/policy", r#"{"yaml":"policies: [a]"}"#)
        .await;
    assert_eq!(
        applied.json(),
        json!({"version": 4, "yaml": "policies: [a]"})
    );
    let bad = node.post("/v1/admin/policy", r#"{"yaml":"bad"}"#).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        node.post("/v1/admin/tenants", r#"{"tenant":"team"}"#)
            .await
            .json(),
        json!({})
    );
    let wrong = node.post("/v1/admin/tenants", r#"{"tenant":"a b"}"#).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        node.get("/v1/admin/tenants").await.json()["tenants"],
        json!(["default"])
    );
    assert_eq!(
        node.post("/v1/admin/flush", "").await.status,
        StatusCode::OK
    );

    let url = format!("http://{}/v1/admin/flush", node.http);
    let form = send(Request::post(&url), "").await.unwrap();
    assert_eq!(form.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for (header, value) in [("origin", "http://evil.example"), ("host", "evil.example")] {
        let request = Request::post(&url)
            .header("content-type", "application/json")
            .header(header, value);
        assert_eq!(
            send(request, "").await.unwrap().status,
            StatusCode::FORBIDDEN,
            "{header}"
        );
    }
}

#[tokio::test]
async fn health_metrics_and_the_first_page() {
    let node = Node::start(Fake::default()).await;
    assert_eq!(node.get("/healthz").await.text(), "ok\n");
    assert_eq!(node.get("/ready").await.status, StatusCode::OK);
    assert_eq!(node.get("/metrics").await.text(), "spandrel_test 1\n");
    let page = node.get("/").await;
    assert!(page.header("content-type").starts_with("text/html"));
    let html = page.text();
    assert!(html.contains(&format!("/v1/traces/{KEPT}")));
    assert!(html.contains(&node.otlp_http.to_string()) && html.contains("errors: keep"));
    assert!(html.contains("&lt;script&gt;") && !html.contains("<script>"));
    assert!(html.contains("test&lt;b&gt;"));

    let starting = Node::start(Fake {
        not_ready: Some("replaying".to_owned()),
        ..Fake::default()
    })
    .await;
    let ready = starting.get("/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().contains("replaying"));
    assert_eq!(starting.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn grafana_can_save_the_source_and_show_a_trace() {
    let node = Node::start(Fake {
        complete: false,
        ..Fake::default()
    })
    .await;
    assert_eq!(node.get("/api/echo").await.text(), "echo");
    assert!(node.get("/api/status/buildinfo").await.json()["version"].is_string());
    let v2 = node
        .get(&format!("/api/v2/traces/{KEPT}?start=1&end=2&q=x"))
        .await
        .json();
    assert_eq!(v2["status"], "PARTIAL");
    assert_eq!(v2["trace"]["resourceSpans"].as_array().unwrap().len(), 2);
    let v1 = node.get(&format!("/api/traces/{KEPT}")).await.json();
    assert_eq!(v1["batches"].as_array().unwrap().len(), 2);
    for version in ["/api/v2/traces", "/api/traces"] {
        let absent = node.get(&format!("{version}/{GONE}")).await;
        assert_eq!(absent.status, StatusCode::NOT_FOUND);
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct TraceById {
        #[prost(message, optional, tag = "1")]
        trace: Option<TracesData>,
        #[prost(int32, tag = "3")]
        status: i32,
    }
    let get = |path: String| {
        Request::get(format!("http://{}{path}", node.http)).header("accept", "application/protobuf")
    };
    let answer = send(get(format!("/api/v2/traces/{KEPT}")), "")
        .await
        .unwrap();
    let by_id = TraceById::decode(answer.body).unwrap();
    assert_eq!(
        (by_id.trace.unwrap().resource_spans.len(), by_id.status),
        (2, 1)
    );
    let answer = send(get(format!("/api/traces/{KEPT}")), "").await.unwrap();
    assert_eq!(
        TracesData::decode(answer.body)
            .unwrap()
            .resource_spans
            .len(),
        2
    );
}

#[test]
fn no_query_string_upsets_the_server() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(Node::start(Fake::default()));
    let pair = "(service|operation|status|tag|minDurationMs|from|to|limit|cursor|include|timeoutMs|tenant|x)=[a-z0-9:%.+Z-]{0,12}";
    let query = prop::collection::vec(pair, 0..6);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(128)
    });
    runner
        .run(&query, |pairs| {
            let path = format!("/v1/traces/search?{}", pairs.join("&"));
            let status = runtime.block_on(node.get(&path)).status.as_u16();
            prop_assert!([200, 400, 403].contains(&status), "{} for {}", status, path);
            Ok(())
        })
        .unwrap();
}
