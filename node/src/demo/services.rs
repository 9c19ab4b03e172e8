//! The services of the shop: their resources as SDKs describe them, and their instrumentation scopes.

use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::attributes::{int, text, texts};

/// Instances (pods) of each service.
pub(super) const INSTANCES: usize = 6;
/// Semantic conventions that the attributes follow.
pub(super) const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.37.0";

/// A service of the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    Gateway,
    Auth,
    Order,
    Inventory,
    Payment,
    Fraud,
    Notification,
    Catalog,
    Settlement,
}

/// Which library made a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Http,
    Rpc,
    Database,
    Messaging,
    Application,
}

/// What differs between the services' resources.
struct Profile {
    name: &'static str,
    version: &'static str,
    language: &'static str,
    sdk_version: &'static str,
    runtime: &'static str,
    runtime_version: &'static str,
}

impl Service {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 9] = [
        Self::Gateway,
        Self::Auth,
        Self::Order,
        Self::Inventory,
        Self::Payment,
        Self::Fraud,
        Self::Notification,
        Self::Catalog,
        Self::Settlement,
    ];

    /// `service.name`.
    pub(super) fn name(self) -> &'static str {
        self.profile().name
    }

    /// `telemetry.sdk.language`.
    pub(super) fn language(self) -> &'static str {
        self.profile().language
    }

    fn profile(self) -> Profile {
        let (name, version, language) = match self {
            Self::Gateway => ("api-gateway", "5.2.1", "go"),
            Self::Auth => ("auth-service", "3.0.4", "go"),
            Self::Order => ("order-service", "2.31.0", "java"),
            Self::Inventory => ("inventory-service", "1.18.7", "java"),
            Self::Payment => ("payment-service", "4.9.2", "java"),
            Self::Fraud => ("fraud-service", "0.22.0", "python"),
            Self::Notification => ("notification-service", "1.6.3", "nodejs"),
            Self::Catalog => ("catalog-service", "7.1.0", "nodejs"),
            Self::Settlement => ("settlement-worker", "1.3.5", "python"),
        };
        let (sdk_version, runtime, runtime_version) = match language {
            "go" => ("1.38.0", "go", "go1.25.3"),
            "java" => ("1.55.0", "OpenJDK Runtime Environment", "21.0.8+9-LTS"),
            "python" => ("1.38.0", "cpython", "3.13.7"),
            _ => ("2.1.0", "nodejs", "22.20.0"),
        };
        Profile {
            name,
            version,
            language,
            sdk_version,
            runtime,
            runtime_version,
        }
    }

    /// The bytes of the `Resource` of instance `instance`.
    pub(super) fn resource(self, instance: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let profile = self.profile();
        let pod = format!(
            "{}-{:08x}-{:05x}",
            profile.name,
            0x6d5f_8c7b_u32.rotate_left(self as u32),
            rng.random_range(0..0x10_0000_u32)
        );
        let zone = ["a", "b", "c"][instance % 3];
        let attributes = vec![
            text("service.name", profile.name),
            text("service.namespace", "shop"),
            text("service.version", profile.version),
            text("service.instance.id", uuid(rng)),
            text("deployment.environment.name", "production"),
            text(
                "host.name",
                format!(
                    "ip-10-0-{}-{}.eu-central-1.compute.internal",
                    instance + 16,
                    20 + self as u32
                ),
            ),
            text("k8s.cluster.name", "shop-eu"),
            text("k8s.namespace.name", "shop"),
            text("k8s.deployment.name", profile.name),
            text("k8s.pod.name", pod),
            text("cloud.region", "eu-central-1"),
            text("cloud.availability_zone", format!("eu-central-1{zone}")),
            text("os.type", "linux"),
            int("process.pid", rng.random_range(1..40)),
            text("process.runtime.name", profile.runtime),
            text("process.runtime.version", profile.runtime_version),
            texts(
                "process.command_args",
                &["/app/server", "--config=/etc/app/config.yaml"],
            ),
            text("telemetry.sdk.name", "opentelemetry"),
            text("telemetry.sdk.language", profile.language),
            text("telemetry.sdk.version", profile.sdk_version),
        ];
        Resource {
            attributes,
            ..Resource::default()
        }
        .encode_to_vec()
    }

    /// The bytes of the `InstrumentationScope` of `scope` in this service.
    pub(super) fn scope(self, scope: Scope) -> Vec<u8> {
        let (name, version) = match (self.language(), scope) {
            (_, Scope::Application) => ("shop.application", "1.0.0"),
            ("go", Scope::Http) => (
                "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp",
                "0.63.0",
            ),
            ("go", Scope::Rpc) => (
                "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc",
                "0.63.0",
            ),
            ("go", _) => ("github.com/redis/go-redis/extra/redisotel", "9.14.0"),
            ("java", Scope::Http) => ("io.opentelemetry.tomcat-10.0", "2.20.1-alpha"),
            ("java", Scope::Rpc) => ("io.opentelemetry.grpc-1.6", "2.20.1-alpha"),
            ("java", Scope::Database) => ("io.opentelemetry.jdbc", "2.20.1-alpha"),
            ("java", Scope::Messaging) => ("io.opentelemetry.kafka-clients-0.11", "2.20.1-alpha"),
            ("python", Scope::Http) => ("opentelemetry.instrumentation.requests", "0.59b0"),
            ("python", Scope::Rpc) => ("opentelemetry.instrumentation.grpc", "0.59b0"),
            ("python", Scope::Database) => ("opentelemetry.instrumentation.psycopg", "0.59b0"),
            ("python", Scope::Messaging) => ("opentelemetry.instrumentation.aiokafka", "0.59b0"),
            (_, Scope::Http) => ("@opentelemetry/instrumentation-http", "0.206.0"),
            (_, Scope::Rpc) => ("@opentelemetry/instrumentation-grpc", "0.206.0"),
            (_, Scope::Database) => ("@opentelemetry/instrumentation-pg", "0.59.0"),
            (_, Scope::Messaging) => ("@opentelemetry/instrumentation-kafkajs", "0.16.0"),
        };
        InstrumentationScope {
            name: name.to_owned(),
            version: version.to_owned(),
            ..InstrumentationScope::default()
        }
        .encode_to_vec()
    }

    /// What every span of the service says about its thread or process.
    pub(super) fn thread(self, rng: &mut ChaCha8Rng) -> Vec<KeyValue> {
        let id: i64 = rng.random_range(20..220);
        match self.language() {
            "java" => vec![
                int("thread.id", id),
                text("thread.name", format!("http-nio-8080-exec-{id}")),
            ],
            "python" => vec![
                int("thread.id", 139_872_144_000 + id),
                text("thread.name", format!("ThreadPoolExecutor-0_{}", id % 16)),
            ],
            _ => vec![int("thread.id", id)],
        }
    }
}

impl Scope {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 5] = [
        Self::Http,
        Self::Rpc,
        Self::Database,
        Self::Messaging,
        Self::Application,
    ];
}

fn uuid(rng: &mut ChaCha8Rng) -> String {
    let hex = format!("{:032x}", rng.random::<u128>());
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}
