//! Somebody looks around: products, search, the cart.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::super::attributes::{int, text, truth};
use super::super::calls::{Http, Query};
use super::super::plan::{Failure, Planner, SpanIndex, TracePlan};
use super::super::services::Service;
use super::checkout::authenticate;
use super::{Outcome, around, stuck};

/// A product's page.
pub(super) fn product(outcome: Outcome, rng: &mut ChaCha8Rng) -> TracePlan {
    let path = format!("/api/v1/products/{}", rng.random_range(1_000..9_999));
    let mut planner = Planner::new(rng);
    let (gateway, client, catalog) = ask_catalog(
        &mut planner,
        "/api/v1/products/{id}",
        "/products/{id}",
        path,
    );
    let cached = planner.query(
        catalog,
        Service::Catalog,
        &Query {
            system: "redis",
            database: "catalog",
            collection: "product",
            operation: "GET",
            statement: "GET product:?",
            rows: 0,
        },
    );
    planner.close(cached, 800);
    let select = planner.query(
        catalog,
        Service::Catalog,
        &Query {
            system: "postgresql",
            database: "catalog",
            collection: "products",
            operation: "SELECT",
            statement: "SELECT id, sku, title, description, price, currency, images FROM products WHERE id = $1 AND published",
            rows: 1,
        },
    );
    trouble(&mut planner, select, outcome, 9_000);
    let (call, stock) = planner.grpc(
        catalog,
        Service::Catalog,
        Service::Inventory,
        ("shop.inventory.v1.InventoryService", "GetAvailability"),
    );
    let us = around(planner.rng, 4_000);
    planner.close(stock, us);
    planner.close(call, 250);
    finish(planner, gateway, client, catalog)
}

/// A search.
pub(super) fn search(outcome: Outcome, rng: &mut ChaCha8Rng) -> TracePlan {
    let word = ["shoes", "lamp", "garden+chair", "usb+cable", "coffee"][rng.random_range(0..5)];
    let path = format!("/api/v1/search?q={word}&page=1");
    let mut planner = Planner::new(rng);
    let (gateway, client, catalog) = ask_catalog(&mut planner, "/api/v1/search", "/search", path);
    let found = planner.query(
        catalog,
        Service::Catalog,
        &Query {
            system: "opensearch",
            database: "catalog",
            collection: "products-v12",
            operation: "search",
            statement: "{\"query\":{\"multi_match\":{\"query\":\"?\",\"fields\":[\"title^3\",\"description\",\"brand\"]}},\"size\":24}",
            rows: 24,
        },
    );
    trouble(&mut planner, found, outcome, 42_000);
    let attributes = vec![
        int("app.search.hits", 24),
        text("app.search.model", "ranker-2026-10"),
        truth("app.search.personal", true),
    ];
    let ranked = planner.step(catalog, Service::Catalog, "rankResults", attributes);
    let us = around(planner.rng, 6_000);
    planner.close(ranked, us);
    finish(planner, gateway, client, catalog)
}

/// Something goes into the cart.
pub(super) fn cart(outcome: Outcome, rng: &mut ChaCha8Rng) -> TracePlan {
    let mut planner = Planner::new(rng);
    let http = Http {
        method: "PUT",
        route: "/api/v1/cart/items/{sku}",
        path: format!(
            "/api/v1/cart/items/SKU-{}",
            planner.rng.random_range(10_000..99_999)
        ),
        status: 200,
    };
    let gateway = planner.browser_request(&http);
    planner.work(gateway, 700);
    authenticate(&mut planner, gateway);
    let (client, order) = planner.http(gateway, Service::Gateway, Service::Order, &http);
    let (call, stock) = planner.grpc(
        order,
        Service::Order,
        Service::Inventory,
        ("shop.inventory.v1.InventoryService", "GetAvailability"),
    );
    let us = around(planner.rng, 5_000);
    planner.close(stock, us);
    planner.close(call, 250);
    let stored = planner.query(
        order,
        Service::Order,
        &Query {
            system: "redis",
            database: "carts",
            collection: "cart",
            operation: "HSET",
            statement: "HSET cart:? ? ?",
            rows: 1,
        },
    );
    trouble(&mut planner, stored, outcome, 1_500);
    finish(planner, gateway, client, order)
}

fn ask_catalog(
    planner: &mut Planner,
    outer: &'static str,
    inner: &'static str,
    path: String,
) -> (SpanIndex, SpanIndex, SpanIndex) {
    let inner_path = path.replace("/api/v1", "");
    let gateway = planner.browser_request(&Http {
        method: "GET",
        route: outer,
        path,
        status: 200,
    });
    planner.work(gateway, 700);
    let (client, catalog) = planner.http(
        gateway,
        Service::Gateway,
        Service::Catalog,
        &Http {
            method: "GET",
            route: inner,
            path: inner_path,
            status: 200,
        },
    );
    planner.work(catalog, 1_200);
    (gateway, client, catalog)
}

/// Ends the span that may hang or fail.
fn trouble(planner: &mut Planner, span: SpanIndex, outcome: Outcome, typical_us: u64) {
    let us = match outcome {
        Outcome::Slow => stuck(planner.rng),
        _ => around(planner.rng, typical_us),
    };
    planner.work(span, us);
    if outcome == Outcome::Failed {
        planner.fail(
            span,
            &Failure {
                error_type: "ConnectionResetError",
                message: "connection reset by peer while reading the reply".to_owned(),
                http_status: 502,
                grpc_status: 14,
                stack: STACK,
            },
        );
    }
    planner.close(span, 0);
}

fn finish(
    mut planner: Planner,
    gateway: SpanIndex,
    client: SpanIndex,
    server: SpanIndex,
) -> TracePlan {
    planner.close(server, 1_600);
    planner.close(client, 400);
    planner.close(gateway, 900);
    planner.finish()
}

const STACK: &str = "Error: read ECONNRESET\n    at TCP.onStreamRead (node:internal/stream_base_commons:216:20)\n    at Connection.query (/app/node_modules/pg/lib/client.js:526:17)\n    at async ProductRepository.byId (/app/dist/repository/product.js:48:18)\n    at async handler (/app/dist/routes/products.js:22:21)";
