//! Who is in the cluster, for callers on the node's own machine.

use axum::extract::{Request, State};
use axum::response::Response;
use spandrel_model::ids::NodeId;

use super::admin::{Local, read_json};
use super::{Native, json_response};
use crate::dto::{ClusterResponse, DoneResponse, JoinTokenResponse, RemoveNodeRequest};
use crate::error::ApiError;

pub(super) async fn cluster(_: Local, State(native): State<Native>) -> Response {
    json_response(&ClusterResponse::from(native.ports.admin.cluster().await))
}

pub(super) async fn leave(_: Local, State(native): State<Native>) -> Result<Response, ApiError> {
    native.ports.admin.leave_node().await?;
    Ok(json_response(&DoneResponse {}))
}

pub(super) async fn remove(
    _: Local,
    State(native): State<Native>,
    request: Request,
) -> Result<Response, ApiError> {
    let body: RemoveNodeRequest = read_json(request).await?;
    let node = body.node.parse().map_err(|_| {
        let message = "the node must be the number that `spandrel node status` shows";
        ApiError::invalid("node", message.to_owned())
    })?;
    let admin = &native.ports.admin;
    admin.remove_node(NodeId(node), body.accept_loss).await?;
    Ok(json_response(&DoneResponse {}))
}

pub(super) async fn repair(_: Local, State(native): State<Native>) -> Result<Response, ApiError> {
    native.ports.admin.repair().await?;
    Ok(json_response(&DoneResponse {}))
}

pub(super) async fn create_join_token(
    _: Local,
    State(native): State<Native>,
) -> Result<Response, ApiError> {
    let token = native.ports.admin.create_join_token().await?;
    Ok(json_response(&JoinTokenResponse::from(token)))
}
