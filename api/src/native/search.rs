//! `GET /v1/traces/search`.

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;

use super::{Native, in_time, json_response, tenant_and_parameters};
use crate::dto::SearchResponse;
use crate::error::ApiError;
use crate::question::{SearchQuestion, next_cursor};
use crate::time::now;

pub(super) async fn search(
    State(native): State<Native>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (tenant, mut parameters) = tenant_and_parameters(&native, &headers, &uri)?;
    let question = SearchQuestion::of_parameters(&mut parameters)?;
    parameters.finish()?;
    let request = question.ask(tenant, now())?;
    let filter = request.filter.clone();
    let answer = in_time(request.timeout_ms, native.ports.query.search(request)).await?;
    Ok(json_response(&SearchResponse {
        next_cursor: next_cursor(&filter, &answer),
        traces: answer.traces.into_iter().map(Into::into).collect(),
        receipt: answer.receipt.into(),
    }))
}
