//! A node that waited for a majority of its cluster had bound its ports and answered nobody: `/ready` hung, and so did
//! `node status`, for as long as the others were away.

use std::sync::{Arc, Mutex};

use http::{Request, StatusCode};
use spandrel_api::client::{Client, ClientOptions};
use spandrel_api::serve_until_started;
use tokio::sync::oneshot;

use crate::support::{Answer, Fake, Node, bind, send};

#[tokio::test]
async fn a_node_that_starts_answers_at_once_that_it_is_not_ready_and_why() {
    // given a node that waits
    let listener = bind().await;
    let addr = format!("http://{}", listener.local_addr().unwrap());
    let said = Arc::new(Mutex::new("waits for the leader".to_owned()));
    let (start, started) = oneshot::channel::<u8>();
    let says = Arc::clone(&said);
    let starting = tokio::spawn(async move {
        let reason = Arc::new(move || says.lock().unwrap().clone());
        let node = serve_until_started(&listener, reason, started)
            .await
            .unwrap();
        (listener, node)
    });

    // then it says so, by HTTP
    let ready = get(&addr, "/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.text(), "not ready: waits for the leader\n");
    assert_eq!(get(&addr, "/healthz").await.text(), "ok\n");
    "waits for a majority".clone_into(&mut said.lock().unwrap());
    let status = get(&addr, "/v1/cluster").await;
    assert_eq!(status.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status.header("retry-after"), "1");
    assert_eq!(status.json()["error"]["code"], "starting");

    // and by gRPC
    let options = ClientOptions {
        addr: addr.clone(),
        ..ClientOptions::default()
    };
    let client = Client::connect(options).await.unwrap();
    let refused = client.trace(&"a".repeat(32)).await.unwrap_err();
    let refusal = refused.refusal().unwrap();
    assert_eq!(refusal.message, "waits for a majority");
    assert_eq!(refused.retry_after_ms(), Some(1_000));

    // and when it has started the same port serves
    start.send(7).unwrap();
    let (listener, node) = starting.await.unwrap();
    assert_eq!(node, 7);
    let node = Node::start_on(listener, Fake::default()).await;
    assert_eq!(node.get("/ready").await.status, StatusCode::OK);
}

async fn get(addr: &str, path: &str) -> Answer {
    send(Request::get(format!("{addr}{path}")), "")
        .await
        .unwrap()
}
