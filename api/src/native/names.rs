//! Services, operations, tags and their values.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use spandrel_model::search::{NamesAnswer, NamesKind};

use super::{Native, in_time, json_response, tenant_and_parameters};
use crate::dto::{OperationsResponse, ServicesResponse, TagValuesResponse, TagsResponse};
use crate::error::ApiError;
use crate::limits::DEFAULT_QUERY_TIMEOUT_MS;
use crate::question::NamesQuestion;
use crate::time::now;

pub(super) async fn services(
    State(native): State<Native>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let answer = names(&native, &headers, &uri, NamesKind::Services).await?;
    Ok(json_response(&ServicesResponse {
        services: answer.names.into_iter().map(|name| name.name).collect(),
        receipt: answer.receipt.into(),
    }))
}

pub(super) async fn operations(
    State(native): State<Native>,
    Path(service): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let answer = names(&native, &headers, &uri, NamesKind::Operations { service }).await?;
    Ok(json_response(&OperationsResponse {
        operations: answer.names.into_iter().map(Into::into).collect(),
        receipt: answer.receipt.into(),
    }))
}

pub(super) async fn tags(
    State(native): State<Native>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let answer = names(&native, &headers, &uri, NamesKind::Tags).await?;
    Ok(json_response(&TagsResponse {
        tags: answer.names.into_iter().map(Into::into).collect(),
        receipt: answer.receipt.into(),
    }))
}

pub(super) async fn tag_values(
    State(native): State<Native>,
    Path(key): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let answer = names(&native, &headers, &uri, NamesKind::TagValues { key }).await?;
    Ok(json_response(&TagValuesResponse {
        values: answer.names.into_iter().map(Into::into).collect(),
        receipt: answer.receipt.into(),
    }))
}

async fn names(
    native: &Native,
    headers: &HeaderMap,
    uri: &Uri,
    kind: NamesKind,
) -> Result<NamesAnswer, ApiError> {
    let (tenant, mut parameters) = tenant_and_parameters(native, headers, uri)?;
    let question = NamesQuestion::of_parameters(&mut parameters)?;
    parameters.finish()?;
    let request = question.ask(tenant, kind, now())?;
    in_time(DEFAULT_QUERY_TIMEOUT_MS, native.ports.query.names(request)).await
}
