//! Whose request it is.

use http::{HeaderMap, HeaderName};
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::TenantId;
use spandrel_model::ports::Ingest;

use crate::error::ApiError;

/// The header, and the gRPC metadata, that names the tenant.
pub(crate) const TENANT_HEADER: HeaderName = HeaderName::from_static("x-scope-orgid");

/// The tenant of a request by its headers.
pub(crate) fn of_headers(ingest: &dyn Ingest, headers: &HeaderMap) -> Result<TenantId, ApiError> {
    let mut values = headers.get_all(TENANT_HEADER).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(ApiError::invalid(
            "X-Scope-OrgID",
            "x-scope-orgid is given more than once",
        ));
    }
    let wrong = |_| ApiError::invalid("X-Scope-OrgID", "x-scope-orgid is no text");
    let name = value
        .map(|value| value.to_str())
        .transpose()
        .map_err(wrong)?;
    Ok(ingest.tenant(name)?)
}

/// A `tenant` parameter must equal the tenant of the request.
pub(crate) fn check_parameter(tenant: &TenantId, parameter: Option<&str>) -> Result<(), ApiError> {
    match parameter {
        Some(named) if named != tenant.as_str() => {
            let message = "the parameter `tenant` differs from the tenant of the request";
            let mut error = PortError::new(ErrorClass::Forbidden, "wrong_tenant", message);
            error.field = Some("tenant".to_owned());
            Err(error.with_tenant(tenant).into())
        }
        _ => Ok(()),
    }
}
