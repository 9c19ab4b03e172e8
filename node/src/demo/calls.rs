//! The kinds of calls that the shop's services make, with the attributes of OpenTelemetry's semantic conventions.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rand::RngExt;

use super::attributes::{Varying, int, text, texts, truth};
use super::plan::{Call, Planner, SpanIndex};
use super::services::{Scope, Service};

const BROWSER: &str = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36";

/// An HTTP request.
#[derive(Clone)]
pub(super) struct Http {
    pub(super) method: &'static str,
    /// With placeholders.
    pub(super) route: &'static str,
    /// As it was asked for.
    pub(super) path: String,
    pub(super) status: i64,
}

/// A statement on a database.
pub(super) struct Query {
    pub(super) system: &'static str,
    pub(super) database: &'static str,
    pub(super) collection: &'static str,
    pub(super) operation: &'static str,
    pub(super) statement: &'static str,
    pub(super) rows: i64,
}

/// A Kafka topic and who reads it.
pub(super) struct Topic {
    pub(super) name: &'static str,
    pub(super) group: &'static str,
}

impl Planner<'_> {
    /// The gateway receives a request from a browser.
    pub(super) fn browser_request(&mut self, http: &Http) -> SpanIndex {
        let client = format!("203.0.113.{}", self.rng.random_range(1..255));
        let mut attributes = server_attributes(http, "shop.example.com", 443, "https", &client);
        attributes.extend([
            text("user_agent.original", BROWSER),
            text("enduser.id", format!("user-{}", Varying::User.digits(6))),
            text("session.id", Varying::Session.uuid()),
            text("http.request.header.x-request-id", Varying::Order.uuid()),
            int(
                "http.response.body.size",
                self.rng.random_range(300..16_000),
            ),
            text("tls.protocol.version", "1.3"),
        ]);
        self.root(call(
            Service::Gateway,
            Scope::Http,
            SpanKind::Server,
            format!("{} {}", http.method, http.route),
            attributes,
        ))
    }

    /// `from` asks `to` by HTTP: a client span and the server span in it, which are returned.
    pub(super) fn http(
        &mut self,
        parent: SpanIndex,
        from: Service,
        to: Service,
        http: &Http,
    ) -> (SpanIndex, SpanIndex) {
        let host = format!("{}.shop.svc.cluster.local", to.name());
        let client = self.open(
            parent,
            call(
                from,
                Scope::Http,
                SpanKind::Client,
                http.method.to_owned(),
                client_attributes(http, &host, 8080, "http"),
            ),
        );
        let address = format!(
            "10.0.{}.{}",
            self.rng.random_range(16..22),
            self.rng.random_range(2..250)
        );
        let mut attributes = server_attributes(http, &host, 8080, "http", &address);
        attributes.extend([
            text("user_agent.original", "okhttp/5.1.0"),
            text("http.request.header.x-request-id", Varying::Order.uuid()),
            int("http.request.body.size", self.rng.random_range(120..4_000)),
            int("http.response.body.size", self.rng.random_range(80..9_000)),
        ]);
        let server = self.open(
            client,
            call(
                to,
                Scope::Http,
                SpanKind::Server,
                format!("{} {}", http.method, http.route),
                attributes,
            ),
        );
        (client, server)
    }

    /// `from` asks somebody outside by HTTP.
    pub(super) fn http_outside(
        &mut self,
        parent: SpanIndex,
        from: Service,
        host: &str,
        http: &Http,
    ) -> SpanIndex {
        let mut attributes = client_attributes(http, host, 443, "https");
        attributes.extend([
            text("url.template", http.route),
            text("http.request.header.idempotency-key", Varying::Span.uuid()),
            int("http.response.body.size", self.rng.random_range(200..2_000)),
        ]);
        self.open(
            parent,
            call(
                from,
                Scope::Http,
                SpanKind::Client,
                format!("{} {}", http.method, http.route),
                attributes,
            ),
        )
    }

    /// `from` calls a method of `to` by gRPC: a client span and the server span in it, which are returned.
    pub(super) fn grpc(
        &mut self,
        parent: SpanIndex,
        from: Service,
        to: Service,
        (service, method): (&'static str, &'static str),
    ) -> (SpanIndex, SpanIndex) {
        let host = format!("{}.shop.svc.cluster.local", to.name());
        let common = |peer: String, port: i64| {
            vec![
                text("rpc.system", "grpc"),
                text("rpc.service", service),
                text("rpc.method", method),
                int("rpc.grpc.status_code", 0),
                text("server.address", host.clone()),
                int("server.port", 9090),
                text("network.transport", "tcp"),
                text("network.type", "ipv4"),
                text("network.peer.address", peer),
                int("network.peer.port", port),
                text(
                    "rpc.grpc.request.metadata.x-request-id",
                    Varying::Order.uuid(),
                ),
                text("rpc.grpc.request.metadata.x-tenant", "shop-eu"),
            ]
        };
        let pod = self.rng.random_range(2..250);
        let port = self.rng.random_range(32_768..60_999);
        let name = format!("{service}/{method}");
        let mut attributes = common(format!("10.0.17.{pod}"), 9090);
        attributes.push(text("rpc.grpc.request.metadata.authority", host.clone()));
        let client = self.open(
            parent,
            call(from, Scope::Rpc, SpanKind::Client, name.clone(), attributes),
        );
        let mut attributes = common(format!("10.0.19.{pod}"), port);
        attributes.extend([
            text("client.address", format!("10.0.19.{pod}")),
            text("enduser.id", format!("user-{}", Varying::User.digits(6))),
        ]);
        let server = self.open(
            client,
            call(to, Scope::Rpc, SpanKind::Server, name, attributes),
        );
        (client, server)
    }

    /// `service` runs a statement.
    pub(super) fn query(
        &mut self,
        parent: SpanIndex,
        service: Service,
        query: &Query,
    ) -> SpanIndex {
        let port = match query.system {
            "postgresql" => 5432,
            "redis" => 6379,
            _ => 9200,
        };
        let host = format!("{}-{}.db.shop.internal", query.system, query.database);
        let attributes = vec![
            text("db.system.name", query.system),
            text("db.namespace", query.database),
            text("db.collection.name", query.collection),
            text("db.operation.name", query.operation),
            text("db.query.text", query.statement),
            text(
                "db.query.summary",
                format!("{} {}", query.operation, query.collection),
            ),
            text(
                "db.client.connection.pool.name",
                format!("{}-primary", query.database),
            ),
            int("db.response.returned_rows", query.rows),
            text("server.address", host),
            int("server.port", port),
            text(
                "network.peer.address",
                format!("10.0.40.{}", self.rng.random_range(2..9)),
            ),
            int("network.peer.port", port),
            text("network.transport", "tcp"),
            text("app.query.tag", format!("q-{}", Varying::Span.digits(8))),
        ];
        let name = format!(
            "{} {}.{}",
            query.operation, query.database, query.collection
        );
        self.open(
            parent,
            call(service, Scope::Database, SpanKind::Client, name, attributes),
        )
    }

    /// `service` publishes a message.
    pub(super) fn publish(
        &mut self,
        parent: SpanIndex,
        service: Service,
        topic: &Topic,
    ) -> SpanIndex {
        let mut attributes = self.message(topic, "send");
        attributes.push(text(
            "messaging.client.id",
            format!("{}-producer-1", service.name()),
        ));
        let name = format!("send {}", topic.name);
        let span = self.open(
            parent,
            call(
                service,
                Scope::Messaging,
                SpanKind::Producer,
                name,
                attributes,
            ),
        );
        self.produces(span);
        span
    }

    /// What `service` says when it processes a message.
    pub(super) fn consumption(&mut self, service: Service, topic: &Topic) -> Call {
        let mut attributes = self.message(topic, "process");
        attributes.extend([
            text("messaging.consumer.group.name", topic.group),
            text(
                "messaging.client.id",
                format!("{}-consumer-3", service.name()),
            ),
            int(
                "messaging.kafka.offset",
                self.rng.random_range(8_000_000..90_000_000),
            ),
        ]);
        let name = format!("process {}", topic.name);
        call(
            service,
            Scope::Messaging,
            SpanKind::Consumer,
            name,
            attributes,
        )
    }

    /// A step inside a service.
    pub(super) fn step(
        &mut self,
        parent: SpanIndex,
        service: Service,
        name: &str,
        mut attributes: Vec<KeyValue>,
    ) -> SpanIndex {
        attributes.extend([
            text("code.function.name", format!("com.example.shop.{}", name)),
            text(
                "code.file.path",
                format!(
                    "src/main/{}/{}.{}",
                    service.language(),
                    service.name(),
                    service.language()
                ),
            ),
            int("code.line.number", self.rng.random_range(20..900)),
            text("app.feature.flags", "new-pricing,fast-path,eu-tax-2026"),
            text("app.correlation.id", Varying::Order.uuid()),
            text("enduser.id", format!("user-{}", Varying::User.digits(6))),
            truth("app.cache.enabled", true),
            text("app.region", "eu-central-1"),
            int("app.attempt", 1),
        ]);
        self.open(
            parent,
            call(
                service,
                Scope::Application,
                SpanKind::Internal,
                name.to_owned(),
                attributes,
            ),
        )
    }

    fn message(&mut self, topic: &Topic, operation: &'static str) -> Vec<KeyValue> {
        vec![
            text("messaging.system", "kafka"),
            text("messaging.destination.name", topic.name),
            text("messaging.operation.name", operation),
            text("messaging.operation.type", operation),
            text(
                "messaging.destination.partition.id",
                self.rng.random_range(0..24).to_string(),
            ),
            text(
                "messaging.kafka.message.key",
                format!("ord-{}", Varying::Order.digits(12)),
            ),
            text("messaging.message.id", Varying::Span.uuid()),
            int(
                "messaging.message.body.size",
                self.rng.random_range(400..6_000),
            ),
            text("server.address", "kafka-bootstrap.shop.svc.cluster.local"),
            int("server.port", 9092),
            text("network.transport", "tcp"),
            text("app.order.id", format!("ord-{}", Varying::Order.digits(12))),
        ]
    }
}

fn call(
    service: Service,
    scope: Scope,
    kind: SpanKind,
    name: String,
    attributes: Vec<KeyValue>,
) -> Call {
    Call {
        service,
        scope,
        kind,
        name,
        attributes,
    }
}

fn client_attributes(http: &Http, host: &str, port: i64, scheme: &str) -> Vec<KeyValue> {
    vec![
        text("http.request.method", http.method),
        text("url.full", format!("{scheme}://{host}:{port}{}", http.path)),
        int("http.response.status_code", http.status),
        text("server.address", host),
        int("server.port", port),
        text("network.protocol.name", "http"),
        text("network.protocol.version", "1.1"),
        text("network.transport", "tcp"),
        text("network.peer.address", "10.0.18.7"),
        int("network.peer.port", port),
        int("http.request.resend_count", 0),
        text("http.request.header.x-request-id", Varying::Order.uuid()),
        texts("http.request.header.accept", &["application/json"]),
    ]
}

fn server_attributes(
    http: &Http,
    host: &str,
    port: i64,
    scheme: &str,
    client: &str,
) -> Vec<KeyValue> {
    vec![
        text("http.request.method", http.method),
        text("http.route", http.route),
        text("url.path", http.path.clone()),
        text("url.scheme", scheme),
        int("http.response.status_code", http.status),
        text("server.address", host),
        int("server.port", port),
        text("client.address", client),
        text("network.protocol.version", "1.1"),
        text("network.peer.address", client),
    ]
}
