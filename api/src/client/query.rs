//! Queries by gRPC.

use bytes::{Bytes, BytesMut};
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message;
use spandrel_model::batch::StatusCode;

use super::{Client, ClientError, NamesParameters, SearchParameters};
use crate::dto::{
    Decision, OperationsResponse, SearchResponse, ServicesResponse, TagValuesResponse,
    TagsResponse, TraceHead,
};
use crate::limits::{MAX_CLIENT_ANSWER_BYTES, MAX_CLIENT_TRACE_BYTES};
use crate::proto::query_service_client::QueryServiceClient;
use crate::proto::{self, get_trace_response, search_traces_response};

/// A trace with its spans.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceReply {
    /// All but the spans.
    pub head: TraceHead,
    /// The bytes of a protobuf `TracesData`.
    pub traces_data: Bytes,
}

impl TraceReply {
    /// The spans as OTLP's types.
    ///
    /// # Errors
    /// [`ClientError::Protocol`] when a text in them is no UTF-8; [`TraceReply::json`] shows such a trace.
    pub fn spans(&self) -> Result<TracesData, ClientError> {
        TracesData::decode(self.traces_data.clone()).map_err(|error| ClientError::Protocol {
            addr: self.head.trace_id.clone(),
            message: error.to_string(),
        })
    }

    /// The JSON document of `GET /v1/traces/{traceId}`.
    #[must_use]
    pub fn json(&self) -> String {
        crate::otlp::json::trace_document(&self.head, &self.traces_data)
    }
}

impl Client {
    /// One trace by id: 32 or 16 hexadecimal digits.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with code `not_found` and a reason when there is none, and as every call.
    pub async fn trace(&self, trace_id: &str) -> Result<TraceReply, ClientError> {
        let request = proto::GetTraceRequest {
            trace_id: trace_id.to_owned(),
            tenant: String::new(),
        };
        let call = async {
            let mut stream = self
                .queries()
                .get_trace(self.request(request))
                .await
                .map_err(|status| self.failure(&status))?
                .into_inner();
            let (mut head, mut data) = (None, BytesMut::new());
            while let Some(message) =
                stream.message().await.map_err(|status| self.failure(&status))?
            {
                match message.part {
                    Some(get_trace_response::Part::Head(part)) => head = Some(part),
                    Some(get_trace_response::Part::TracesData(piece)) => {
                        if data.len() + piece.len() > MAX_CLIENT_TRACE_BYTES {
                            return Err(self.protocol(&"the trace is larger than this client takes"));
                        }
                        data.extend_from_slice(&piece);
                    }
                    None => {}
                }
            }
            let head = head.ok_or_else(|| self.protocol(&"no head of the trace came"))?;
            Ok(TraceReply {
                head: head.into(),
                traces_data: data.freeze(),
            })
        };
        self.in_time(call).await
    }

    /// Traces by conditions.
    ///
    /// # Errors
    /// As every call.
    pub async fn search(&self, search: &SearchParameters) -> Result<SearchResponse, ClientError> {
        let request = proto::SearchTracesRequest {
            services: search.services.clone(),
            operation: search.operation.clone().unwrap_or_default(),
            status: match search.status {
                None => proto::SpanStatus::Unspecified,
                Some(StatusCode::Unset) => proto::SpanStatus::Unset,
                Some(StatusCode::Ok) => proto::SpanStatus::Ok,
                Some(StatusCode::Error) => proto::SpanStatus::Error,
            }
            .into(),
            tags: search.tags.clone(),
            min_duration_ms: search.min_duration_ms,
            max_duration_ms: search.max_duration_ms,
            from_unix_nano: search.from.unwrap_or_default().0,
            to_unix_nano: search.to.unwrap_or_default().0,
            limit: search.limit.unwrap_or(0),
            cursor: search.cursor.clone().unwrap_or_default(),
            include_dropped: search.include_dropped,
            // A little less than the client waits, so that what was found arrives.
            timeout_ms: (self.timeout_ms() * 9 / 10).clamp(1, crate::limits::MAX_QUERY_TIMEOUT_MS),
            tenant: String::new(),
        };
        let call = async {
            let mut stream = self
                .queries()
                .search_traces(self.request(request))
                .await
                .map_err(|status| self.failure(&status))?
                .into_inner();
            let (mut traces, mut end) = (Vec::new(), None);
            while let Some(message) =
                stream.message().await.map_err(|status| self.failure(&status))?
            {
                match message.part {
                    Some(search_traces_response::Part::Trace(trace)) => traces.push(trace.into()),
                    Some(search_traces_response::Part::End(part)) => end = Some(part),
                    None => {}
                }
            }
            let end = end.ok_or_else(|| self.protocol(&"the answer has no receipt"))?;
            Ok(SearchResponse {
                traces,
                next_cursor: Some(end.next_cursor).filter(|cursor| !cursor.is_empty()),
                receipt: end.receipt.unwrap_or_default().into(),
            })
        };
        self.in_time(call).await
    }

    /// Services.
    ///
    /// # Errors
    /// As every call.
    pub async fn services(&self, names: &NamesParameters) -> Result<ServicesResponse, ClientError> {
        let request = proto::ListServicesRequest {
            filter: Some(filter(names)),
        };
        let mut queries = self.queries();
        self.answer(queries.list_services(self.request(request))).await
    }

    /// Operations of a service.
    ///
    /// # Errors
    /// As every call.
    pub async fn operations(
        &self,
        service: &str,
        names: &NamesParameters,
    ) -> Result<OperationsResponse, ClientError> {
        let request = proto::ListOperationsRequest {
            service: service.to_owned(),
            filter: Some(filter(names)),
        };
        let mut queries = self.queries();
        self.answer(queries.list_operations(self.request(request))).await
    }

    /// Attribute keys.
    ///
    /// # Errors
    /// As every call.
    pub async fn tags(&self, names: &NamesParameters) -> Result<TagsResponse, ClientError> {
        let request = proto::ListTagsRequest {
            filter: Some(filter(names)),
        };
        let mut queries = self.queries();
        self.answer(queries.list_tags(self.request(request))).await
    }

    /// Values of an attribute.
    ///
    /// # Errors
    /// As every call.
    pub async fn tag_values(
        &self,
        key: &str,
        names: &NamesParameters,
    ) -> Result<TagValuesResponse, ClientError> {
        let request = proto::ListTagValuesRequest {
            key: key.to_owned(),
            filter: Some(filter(names)),
        };
        let mut queries = self.queries();
        self.answer(queries.list_tag_values(self.request(request))).await
    }

    /// Keeps a trace that is open or was dropped. Returns its decision afterwards.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with code `not_found` when its spans are gone, and as every call.
    pub async fn promote(&self, trace_id: &str) -> Result<Decision, ClientError> {
        let request = proto::PromoteTraceRequest {
            trace_id: trace_id.to_owned(),
            tenant: String::new(),
        };
        let mut queries = self.queries();
        let answer: proto::PromoteTraceResponse =
            self.answer(queries.promote_trace(self.request(request))).await?;
        let decision = answer.decision;
        Ok(decision.ok_or_else(|| self.protocol(&"no decision came"))?.into())
    }

    fn queries(&self) -> QueryServiceClient<tonic::transport::Channel> {
        QueryServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_CLIENT_ANSWER_BYTES)
    }

    async fn answer<P, T: From<P>>(
        &self,
        call: impl Future<Output = Result<tonic::Response<P>, tonic::Status>>,
    ) -> Result<T, ClientError> {
        let call = async { call.await.map_err(|status| self.failure(&status)) };
        Ok(self.in_time(call).await?.into_inner().into())
    }
}

fn filter(names: &NamesParameters) -> proto::NamesFilter {
    proto::NamesFilter {
        from_unix_nano: names.from.unwrap_or_default().0,
        to_unix_nano: names.to.unwrap_or_default().0,
        limit: names.limit.unwrap_or(0),
        prefix: names.prefix.clone(),
        tenant: String::new(),
    }
}
