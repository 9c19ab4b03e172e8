//! Somebody buys: the trace of the brief.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::super::attributes::{Varying, double, int, text};
use super::super::calls::{Http, Query, Topic};
use super::super::plan::{Failure, LinkTarget, Planner, SpanIndex, TracePlan};
use super::super::services::Service;
use super::{Outcome, around, stuck};

pub(super) const PLACED: Topic = Topic {
    name: "orders.placed",
    group: "notification",
};

/// Where a checkout goes wrong or hangs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spot {
    Provider,
    Stock,
    Insert,
}

pub(super) fn plan(outcome: Outcome, rng: &mut ChaCha8Rng) -> TracePlan {
    let spot = match rng.random_range(0..10) {
        0..6 => Spot::Provider,
        6..9 => Spot::Stock,
        _ => Spot::Insert,
    };
    let slow = (outcome == Outcome::Slow).then_some(spot);
    let failing = (outcome == Outcome::Failed).then_some(spot);
    let linked = rng.random_bool(0.35);
    let mut planner = Planner::new(rng);
    let gateway = planner.browser_request(&Http {
        method: "POST",
        route: "/api/v1/checkout",
        path: "/api/v1/checkout".to_owned(),
        status: 201,
    });
    planner.work(gateway, 900);
    authenticate(&mut planner, gateway);
    let (client, order) = planner.http(
        gateway,
        Service::Gateway,
        Service::Order,
        &Http {
            method: "POST",
            route: "/orders",
            path: "/orders".to_owned(),
            status: 201,
        },
    );
    describe_order(&mut planner, order);
    planner.work(order, 2_500);
    let went_well = reserve(&mut planner, order, slow, failing)
        && pay(&mut planner, order, slow, failing)
        && store(&mut planner, order, slow, failing);
    let producer = went_well.then(|| {
        let producer = planner.publish(order, Service::Order, &PLACED);
        planner.close(producer, 2_400);
        producer
    });
    planner.close(order, 1_800);
    planner.close(client, 400);
    planner.close(gateway, 1_100);
    if let (Some(producer), false) = (producer, linked) {
        let delay = around(planner.rng, 25_000);
        let message = planner.consumption(Service::Notification, &PLACED);
        let consumer = planner.open_later(producer, delay, message);
        notify(&mut planner, consumer);
    }
    let mut plan = planner.finish();
    if producer.is_some() && linked {
        plan.follow_up = Some(Box::new(follow_up(rng)));
    }
    plan
}

/// The notification as a trace of its own that links to the producer.
fn follow_up(rng: &mut ChaCha8Rng) -> TracePlan {
    let mut planner = Planner::new(rng);
    let message = planner.consumption(Service::Notification, &PLACED);
    let consumer = planner.root(message);
    planner.link(consumer, LinkTarget::Producer);
    notify(&mut planner, consumer);
    planner.finish()
}

fn notify(planner: &mut Planner, consumer: SpanIndex) {
    let template = planner.query(
        consumer,
        Service::Notification,
        &Query {
            system: "redis",
            database: "templates",
            collection: "mail",
            operation: "GET",
            statement: "GET template:order-confirmation:?",
            rows: 1,
        },
    );
    planner.close(template, 900);
    let mail = planner.http_outside(
        consumer,
        Service::Notification,
        "api.mail.example.com",
        &Http {
            method: "POST",
            route: "/v3/mail/send",
            path: "/v3/mail/send".to_owned(),
            status: 202,
        },
    );
    let us = around(planner.rng, 45_000);
    planner.close(mail, us);
    planner.close_later(consumer, 700);
}

pub(super) fn authenticate(planner: &mut Planner, gateway: SpanIndex) {
    let (client, server) = planner.grpc(
        gateway,
        Service::Gateway,
        Service::Auth,
        ("shop.auth.v1.AuthService", "ValidateToken"),
    );
    let session = planner.query(
        server,
        Service::Auth,
        &Query {
            system: "redis",
            database: "sessions",
            collection: "session",
            operation: "HGETALL",
            statement: "HGETALL session:?",
            rows: 1,
        },
    );
    let us = around(planner.rng, 1_200);
    planner.close(session, us);
    planner.close(server, 600);
    planner.close(client, 300);
}

fn describe_order(planner: &mut Planner, order: SpanIndex) {
    let items = planner.rng.random_range(1..9_i64);
    let cents = planner.rng.random_range(900..60_000_u32);
    let attributes = vec![
        text("app.order.id", format!("ord-{}", Varying::Order.digits(12))),
        int("app.order.items", items),
        double("app.order.amount", f64::from(cents) / 100.0),
        text("app.order.currency", "EUR"),
    ];
    planner.event(order, "order.received", attributes);
}

fn reserve(
    planner: &mut Planner,
    order: SpanIndex,
    slow: Option<Spot>,
    failing: Option<Spot>,
) -> bool {
    let (client, server) = planner.grpc(
        order,
        Service::Order,
        Service::Inventory,
        ("shop.inventory.v1.InventoryService", "ReserveItems"),
    );
    planner.work(server, 1_500);
    let update = planner.query(
        server,
        Service::Inventory,
        &Query {
            system: "postgresql",
            database: "inventory",
            collection: "stock",
            operation: "UPDATE",
            statement: "UPDATE stock SET reserved = reserved + $1, updated_at = now() WHERE sku = ANY($2) AND available - reserved >= $1 RETURNING sku, reserved",
            rows: 3,
        },
    );
    let us = match slow {
        Some(Spot::Stock) => stuck(planner.rng),
        _ => around(planner.rng, 38_000),
    };
    planner.work(update, us);
    let failed = failing == Some(Spot::Stock);
    if failed {
        planner.fail(
            update,
            &Failure {
                error_type: "org.postgresql.util.PSQLException",
                message:
                    "ERROR: deadlock detected while locking tuple (412,7) in relation \"stock\""
                        .to_owned(),
                http_status: 500,
                grpc_status: 10,
                stack: POSTGRES_STACK,
            },
        );
    }
    planner.close(update, 0);
    planner.close(server, 1_200);
    planner.close(client, 400);
    !failed
}

fn pay(planner: &mut Planner, order: SpanIndex, slow: Option<Spot>, failing: Option<Spot>) -> bool {
    let (client, payment) = planner.http(
        order,
        Service::Order,
        Service::Payment,
        &Http {
            method: "POST",
            route: "/payments",
            path: "/payments".to_owned(),
            status: 201,
        },
    );
    planner.work(payment, 1_900);
    if planner.rng.random_bool(0.5) {
        score(planner, payment);
    }
    let charge = planner.http_outside(
        payment,
        Service::Payment,
        "api.psp.example.com",
        &Http {
            method: "POST",
            route: "/v1/charges",
            path: "/v1/charges".to_owned(),
            status: 200,
        },
    );
    let us = match slow {
        Some(Spot::Provider) => stuck(planner.rng),
        _ => around(planner.rng, 170_000),
    };
    planner.work(charge, us);
    let failed = failing == Some(Spot::Provider);
    if failed {
        planner.event(
            charge,
            "retry scheduled",
            vec![int("retry.attempt", 2), int("retry.delay_ms", 50)],
        );
        planner.work(charge, 50_000);
        let failure = provider_failure(planner);
        planner.fail(charge, &failure);
    }
    planner.close(charge, 0);
    planner.close(payment, 1_700);
    planner.close(client, 400);
    !failed
}

fn provider_failure(planner: &mut Planner) -> Failure {
    if planner.rng.random_bool(0.5) {
        Failure {
            error_type: "com.example.shop.payment.CardDeclinedException",
            message: "payment authorization failed: card declined (insufficient_funds)".to_owned(),
            http_status: 402,
            grpc_status: 9,
            stack: PAYMENT_STACK,
        }
    } else {
        Failure {
            error_type: "java.net.SocketTimeoutException",
            message: "timeout reached: no answer of api.psp.example.com within 30000 ms".to_owned(),
            http_status: 504,
            grpc_status: 4,
            stack: PAYMENT_STACK,
        }
    }
}

fn score(planner: &mut Planner, payment: SpanIndex) {
    let (client, server) = planner.grpc(
        payment,
        Service::Payment,
        Service::Fraud,
        ("shop.fraud.v1.FraudService", "Score"),
    );
    let us = around(planner.rng, 14_000);
    planner.close(server, us);
    planner.close(client, 300);
}

fn store(
    planner: &mut Planner,
    order: SpanIndex,
    slow: Option<Spot>,
    failing: Option<Spot>,
) -> bool {
    let insert = planner.query(
        order,
        Service::Order,
        &Query {
            system: "postgresql",
            database: "orders",
            collection: "orders",
            operation: "INSERT",
            statement: "INSERT INTO orders (id, customer_id, status, amount, currency, created_at) VALUES ($1, $2, $3, $4, $5, now())",
            rows: 1,
        },
    );
    let us = match slow {
        Some(Spot::Insert) => stuck(planner.rng),
        _ => around(planner.rng, 7_000),
    };
    planner.work(insert, us);
    let failed = failing == Some(Spot::Insert);
    if failed {
        planner.fail(
            insert,
            &Failure {
                error_type: "org.postgresql.util.PSQLException",
                message: "FATAL: remaining connection slots are reserved for superusers".to_owned(),
                http_status: 503,
                grpc_status: 14,
                stack: POSTGRES_STACK,
            },
        );
    }
    planner.close(insert, 0);
    !failed
}

const POSTGRES_STACK: &str = "org.postgresql.util.PSQLException: ERROR\n\tat org.postgresql.core.v3.QueryExecutorImpl.receiveErrorResponse(QueryExecutorImpl.java:2733)\n\tat org.postgresql.core.v3.QueryExecutorImpl.processResults(QueryExecutorImpl.java:2420)\n\tat org.postgresql.jdbc.PgStatement.executeInternal(PgStatement.java:517)\n\tat com.zaxxer.hikari.pool.ProxyPreparedStatement.executeUpdate(ProxyPreparedStatement.java:61)\n\tat com.example.shop.storage.JdbcRepository.save(JdbcRepository.java:118)";

const PAYMENT_STACK: &str = "com.example.shop.payment.ProviderException: charge failed\n\tat com.example.shop.payment.ProviderClient.charge(ProviderClient.java:141)\n\tat com.example.shop.payment.PaymentService.authorize(PaymentService.java:77)\n\tat com.example.shop.payment.PaymentController.create(PaymentController.java:43)\n\tat org.springframework.web.servlet.FrameworkServlet.service(FrameworkServlet.java:885)\n\tat org.apache.catalina.core.StandardWrapperValve.invoke(StandardWrapperValve.java:205)";
