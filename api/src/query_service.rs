//! gRPC `spandrel.v1.QueryService`: the HTTP calls in gRPC's form.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream, StreamExt};
use spandrel_model::batch::StatusCode;
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::search::{NamesAnswer, NamesKind};
use tonic::{Request, Response, Status};

use crate::convert::state_to_proto;
use crate::error::ApiError;
use crate::limits::DEFAULT_QUERY_TIMEOUT_MS;
use crate::native::{in_time, lookup, parse_id};
use crate::pieces::{Pieces, Rendering};
use crate::proto::query_service_server::QueryService;
use crate::proto::{self, get_trace_response, search_traces_response};
use crate::question::{NamesQuestion, SearchQuestion, next_cursor};
use crate::serve::Ports;
use crate::tenant;
use crate::time::now;

type Reply<T> = Result<Response<T>, Status>;
type ReplyStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over the ports.
pub(crate) struct Queries {
    pub(crate) ports: Arc<Ports>,
}

impl Queries {
    fn tenant<T>(&self, request: &Request<T>, parameter: &str) -> Result<TenantId, ApiError> {
        // The metadata are the headers.
        let headers = request.metadata().clone().into_headers();
        let tenant = tenant::of_headers(self.ports.ingest.as_ref(), &headers)?;
        let parameter = Some(parameter).filter(|parameter| !parameter.is_empty());
        tenant::check_parameter(&tenant, parameter)?;
        Ok(tenant)
    }

    async fn names<T>(
        &self,
        request: &Request<T>,
        filter: Option<&proto::NamesFilter>,
        kind: NamesKind,
    ) -> Result<NamesAnswer, ApiError> {
        let filter = filter.cloned().unwrap_or_default();
        let tenant = self.tenant(request, &filter.tenant)?;
        let question = NamesQuestion {
            from: given_instant(filter.from_unix_nano),
            to: given_instant(filter.to_unix_nano),
            limit: given(filter.limit.into()),
            prefix: filter.prefix,
        };
        let names = self.ports.query.names(question.ask(tenant, kind, now())?);
        in_time(DEFAULT_QUERY_TIMEOUT_MS, names).await
    }

    async fn open_trace(
        &self,
        request: Request<proto::GetTraceRequest>,
    ) -> Result<ReplyStream<proto::GetTraceResponse>, ApiError> {
        let tenant = self.tenant(&request, &request.get_ref().tenant)?;
        let trace_id = parse_id(&request.get_ref().trace_id)?;
        let answer = lookup(self.ports.query.as_ref(), &tenant, trace_id).await?;
        let head = proto::TraceHead {
            trace_id: trace_id.to_string(),
            state: state_to_proto(answer.state).into(),
            complete: answer.complete,
            missing: answer.missing.into_iter().map(Into::into).collect(),
            decision: answer.decision.map(Into::into),
            span_count: answer.span_count,
        };
        let pieces = Pieces::open(answer.reader, Rendering::raw()).await?;
        let part = |part| proto::GetTraceResponse { part: Some(part) };
        let head = part(get_trace_response::Part::Head(head));
        let pieces = pieces.into_stream().filter_map(move |piece| {
            ready(match piece {
                Ok(piece) if piece.is_empty() => None,
                Ok(piece) => Some(Ok(part(get_trace_response::Part::TracesData(piece)))),
                Err(error) => Some(Err(ApiError::from(error).tonic_status())),
            })
        });
        Ok(Box::pin(stream::once(async { Ok(head) }).chain(pieces)))
    }

    async fn open_search(
        &self,
        request: Request<proto::SearchTracesRequest>,
    ) -> Result<ReplyStream<proto::SearchTracesResponse>, ApiError> {
        let tenant = self.tenant(&request, &request.get_ref().tenant)?;
        let message = request.into_inner();
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        let question = SearchQuestion {
            status: match message.status() {
                proto::SpanStatus::Unspecified => None,
                proto::SpanStatus::Unset => Some(StatusCode::Unset),
                proto::SpanStatus::Ok => Some(StatusCode::Ok),
                proto::SpanStatus::Error => Some(StatusCode::Error),
            },
            services: message.services,
            operation: text(message.operation),
            tags: message.tags,
            min_duration_ms: message.min_duration_ms,
            max_duration_ms: message.max_duration_ms,
            from: given_instant(message.from_unix_nano),
            to: given_instant(message.to_unix_nano),
            limit: given(message.limit.into()),
            cursor: text(message.cursor),
            include_dropped: message.include_dropped,
            timeout_ms: given(message.timeout_ms),
        };
        let search = question.ask(tenant, now())?;
        let filter = search.filter.clone();
        let answer = in_time(search.timeout_ms, self.ports.query.search(search)).await?;
        let end = proto::SearchEnd {
            next_cursor: next_cursor(&filter, &answer).unwrap_or_default(),
            receipt: Some(answer.receipt.into()),
        };
        let traces = answer
            .traces
            .into_iter()
            .map(|trace| search_traces_response::Part::Trace(trace.into()));
        let parts = traces
            .chain([search_traces_response::Part::End(end)])
            .map(|part| Ok(proto::SearchTracesResponse { part: Some(part) }));
        Ok(Box::pin(stream::iter(parts.collect::<Vec<_>>())))
    }
}

/// A field of the value 0 is not given.
fn given(value: u64) -> Option<u64> {
    Some(value).filter(|value| *value != 0)
}

fn given_instant(nanos: u64) -> Option<UnixNanos> {
    given(nanos).map(UnixNanos)
}

fn reply<T>(result: Result<T, ApiError>) -> Reply<T> {
    result
        .map(Response::new)
        .map_err(|error| error.tonic_status())
}

#[tonic::async_trait]
impl QueryService for Queries {
    type GetTraceStream = ReplyStream<proto::GetTraceResponse>;
    type SearchTracesStream = ReplyStream<proto::SearchTracesResponse>;

    async fn get_trace(
        &self,
        request: Request<proto::GetTraceRequest>,
    ) -> Reply<Self::GetTraceStream> {
        reply(self.open_trace(request).await)
    }

    async fn search_traces(
        &self,
        request: Request<proto::SearchTracesRequest>,
    ) -> Reply<Self::SearchTracesStream> {
        reply(self.open_search(request).await)
    }

    async fn list_services(
        &self,
        request: Request<proto::ListServicesRequest>,
    ) -> Reply<proto::ListServicesResponse> {
        let filter = request.get_ref().filter.as_ref();
        let answer = self.names(&request, filter, NamesKind::Services).await;
        reply(answer.map(|answer| proto::ListServicesResponse {
            services: answer.names.into_iter().map(|name| name.name).collect(),
            receipt: Some(answer.receipt.into()),
        }))
    }

    async fn list_operations(
        &self,
        request: Request<proto::ListOperationsRequest>,
    ) -> Reply<proto::ListOperationsResponse> {
        let message = request.get_ref();
        let kind = NamesKind::Operations {
            service: message.service.clone(),
        };
        let answer = self.names(&request, message.filter.as_ref(), kind).await;
        reply(answer.map(|answer| proto::ListOperationsResponse {
            operations: answer.names.into_iter().map(Into::into).collect(),
            receipt: Some(answer.receipt.into()),
        }))
    }

    async fn list_tags(
        &self,
        request: Request<proto::ListTagsRequest>,
    ) -> Reply<proto::ListTagsResponse> {
        let filter = request.get_ref().filter.as_ref();
        let answer = self.names(&request, filter, NamesKind::Tags).await;
        reply(answer.map(|answer| proto::ListTagsResponse {
            tags: answer.names.into_iter().map(Into::into).collect(),
            receipt: Some(answer.receipt.into()),
        }))
    }

    async fn list_tag_values(
        &self,
        request: Request<proto::ListTagValuesRequest>,
    ) -> Reply<proto::ListTagValuesResponse> {
        let message = request.get_ref();
        let kind = NamesKind::TagValues {
            key: message.key.clone(),
        };
        let answer = self.names(&request, message.filter.as_ref(), kind).await;
        reply(answer.map(|answer| proto::ListTagValuesResponse {
            values: answer.names.into_iter().map(Into::into).collect(),
            receipt: Some(answer.receipt.into()),
        }))
    }

    async fn promote_trace(
        &self,
        request: Request<proto::PromoteTraceRequest>,
    ) -> Reply<proto::PromoteTraceResponse> {
        let promoted = async {
            let message = request.get_ref();
            let tenant = self.tenant(&request, &message.tenant)?;
            let trace_id = parse_id(&message.trace_id)?;
            let promoted = self.ports.query.promote(&tenant, trace_id);
            let decision = in_time(DEFAULT_QUERY_TIMEOUT_MS, promoted).await?;
            Ok(proto::PromoteTraceResponse {
                decision: Some(decision.into()),
            })
        };
        reply(promoted.await)
    }
}
