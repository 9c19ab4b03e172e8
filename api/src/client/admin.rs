//! Administration by HTTP; the node takes it from its own machine only.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt;

use super::{Client, ClientError};
use crate::dto::{
    ApplyPolicyRequest, CreateTenantRequest, DoneResponse, ErrorBody, PolicyResponse,
    StatusResponse, TenantsResponse,
};
use crate::limits::MAX_CLIENT_ANSWER_BYTES;

impl Client {
    /// The node's state.
    ///
    /// # Errors
    /// As every call.
    pub async fn status(&self) -> Result<StatusResponse, ClientError> {
        self.call::<(), _>(Method::GET, "/v1/status", None).await
    }

    /// The policy in force.
    ///
    /// # Errors
    /// As every call.
    pub async fn policy(&self) -> Result<PolicyResponse, ClientError> {
        self.call::<(), _>(Method::GET, "/v1/admin/policy", None)
            .await
    }

    /// Checks and applies a policy file's text.
    ///
    /// # Errors
    /// [`ClientError::Refused`] naming line and field of a wrong file, and as every call.
    pub async fn apply_policy(&self, yaml: String) -> Result<PolicyResponse, ClientError> {
        let body = ApplyPolicyRequest { yaml };
        self.call(Method::POST, "/v1/admin/policy", Some(&body))
            .await
    }

    /// Makes a tenant known.
    ///
    /// # Errors
    /// As every call.
    pub async fn create_tenant(&self, tenant: &str) -> Result<(), ClientError> {
        let body = CreateTenantRequest {
            tenant: tenant.to_owned(),
        };
        let DoneResponse {} = self
            .call(Method::POST, "/v1/admin/tenants", Some(&body))
            .await?;
        Ok(())
    }

    /// The tenants, sorted.
    ///
    /// # Errors
    /// As every call.
    pub async fn tenants(&self) -> Result<Vec<String>, ClientError> {
        let answer: TenantsResponse = self
            .call::<(), _>(Method::GET, "/v1/admin/tenants", None)
            .await?;
        Ok(answer.tenants)
    }

    /// Writes what is decided and kept to blocks and the index now.
    ///
    /// # Errors
    /// As every call.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let DoneResponse {} = self
            .call::<(), _>(Method::POST, "/v1/admin/flush", None)
            .await?;
        Ok(())
    }

    pub(super) async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &'static str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| self.protocol(&error))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, "application/json")
            .body(tonic::body::Body::new(Full::new(Bytes::from(body))))
            .map_err(|error| self.protocol(&error))?;
        let call = async {
            let response = self
                .channel
                .clone()
                .oneshot(request)
                .await
                .map_err(|error| ClientError::connect(&self.addr, &error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_CLIENT_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|error| self.protocol(&error))?
                .to_bytes();
            Ok((status, body))
        };
        let (status, body) = self.in_time(call).await?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.protocol(&error));
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Err(ClientError::Refused(Box::new(body.error))),
            Err(_) => Err(self.protocol(&format_args!("status {status}"))),
        }
    }
}
