//! Raw export by OTLP/gRPC: the request's bytes go out as they are.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;

use super::raw_codec::RawCodec;
use super::{Client, ClientError};
use crate::otlp::EXPORT_PATH;

/// What became of an export that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportReply {
    /// Spans that were not taken because they are bad in themselves.
    pub rejected_spans: u64,
    /// Why, for people; empty when there is nothing to say.
    pub message: String,
}

impl Client {
    /// Sends the bytes of one `ExportTraceServiceRequest`. The client's address must be an OTLP/gRPC port.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with [`ClientError::retry_after_ms`] when the node pushes back, and as every call.
    pub async fn export(&self, request: Bytes) -> Result<ExportReply, ClientError> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let path = PathAndQuery::from_static(EXPORT_PATH);
        let call = async {
            grpc.ready()
                .await
                .map_err(|error| ClientError::connect(&self.addr, &error))?;
            grpc.unary(self.request(request), path, RawCodec)
                .await
                .map_err(|status| self.failure(&status))
        };
        let reply = self.in_time(call).await?.into_inner();
        let reply = ExportTraceServiceResponse::decode(reply)
            .map_err(|error| self.protocol(&error))?
            .partial_success
            .unwrap_or_default();
        Ok(ExportReply {
            rejected_spans: u64::try_from(reply.rejected_spans).unwrap_or(0),
            message: reply.error_message,
        })
    }
}
