//! The batch worker: takes a batch of messages, links to their producers, settles with the provider.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::super::attributes::{int, text};
use super::super::calls::{Http, Query, Topic};
use super::super::plan::{Failure, LinkTarget, Planner, TracePlan};
use super::super::services::Service;
use super::{Outcome, around, stuck};

const SETTLEMENT: Topic = Topic {
    name: "orders.placed",
    group: "settlement",
};
/// Most messages of a batch, and so links of a span.
const MAX_BATCH: usize = 6;

pub(super) fn plan(outcome: Outcome, rng: &mut ChaCha8Rng) -> TracePlan {
    let messages = rng.random_range(2..=MAX_BATCH);
    let mut planner = Planner::new(rng);
    let mut consumption = planner.consumption(Service::Settlement, &SETTLEMENT);
    let count = i64::try_from(messages).unwrap_or(i64::MAX);
    consumption
        .attributes
        .push(int("messaging.batch.message_count", count));
    let batch = planner.root(consumption);
    for message in 0..messages {
        planner.link(batch, LinkTarget::Earlier(message));
    }
    planner.work(batch, 1_400);
    let select = planner.query(
        batch,
        Service::Settlement,
        &Query {
            system: "postgresql",
            database: "orders",
            collection: "orders",
            operation: "SELECT",
            statement: "SELECT id, amount, currency, psp_reference FROM orders WHERE id = ANY($1) FOR UPDATE SKIP LOCKED",
            rows: count,
        },
    );
    let us = around(planner.rng, 8_000);
    planner.close(select, us);
    for _ in 0..messages.min(3) {
        let step = planner.step(
            batch,
            Service::Settlement,
            "settleOrder",
            vec![text("app.settlement.currency", "EUR")],
        );
        let us = around(planner.rng, 9_000);
        planner.close(step, us);
    }
    let capture = planner.http_outside(
        batch,
        Service::Settlement,
        "api.psp.example.com",
        &Http {
            method: "POST",
            route: "/v1/captures/batch",
            path: "/v1/captures/batch".to_owned(),
            status: 200,
        },
    );
    let us = match outcome {
        Outcome::Slow => stuck(planner.rng),
        _ => around(planner.rng, 120_000),
    };
    planner.work(capture, us);
    if outcome == Outcome::Failed {
        planner.fail(
            capture,
            &Failure {
                error_type: "requests.exceptions.HTTPError",
                message: "503 Server Error: Service Unavailable for url: https://api.psp.example.com/v1/captures/batch".to_owned(),
                http_status: 503,
                grpc_status: 14,
                stack: STACK,
            },
        );
    }
    planner.close(capture, 0);
    let update = planner.query(
        batch,
        Service::Settlement,
        &Query {
            system: "postgresql",
            database: "orders",
            collection: "settlements",
            operation: "INSERT",
            statement: "INSERT INTO settlements (order_id, captured_at, amount) SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::numeric[])",
            rows: count,
        },
    );
    let us = around(planner.rng, 6_000);
    planner.close(update, us);
    planner.close_later(batch, 900);
    planner.finish()
}

const STACK: &str = "Traceback (most recent call last):\n  File \"/app/settlement/worker.py\", line 88, in run\n    self.capture(batch)\n  File \"/app/settlement/psp.py\", line 41, in capture\n    response.raise_for_status()\n  File \"/usr/lib/python3/site-packages/requests/models.py\", line 1026, in raise_for_status\n    raise HTTPError(http_error_msg, response=self)";
