//! OTLP: taking spans by gRPC and by HTTP.

pub(crate) mod json;

/// The gRPC path of an export.
pub(crate) const EXPORT_PATH: &str =
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
