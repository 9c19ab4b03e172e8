//! A typed client of one node: queries by gRPC, administration by HTTP, raw export by OTLP/gRPC, all over one
//! HTTP/2 connection that reconnects by itself. One client serves one address: make a second one, for the
//! OTLP/gRPC port, to export.

mod admin;
mod cluster;
mod error;
mod export;
mod options;
mod query;
mod raw_codec;

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::limits::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};

pub use error::ClientError;
pub use export::ExportReply;
pub use options::{ClientOptions, NamesParameters, SearchParameters, address_flag};
pub use query::TraceReply;

/// The metadata key of the tenant.
const TENANT_KEY: &str = "x-scope-orgid";

/// A connection to a node. Cheap to clone; clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    addr: String,
    tenant: Option<tonic::metadata::AsciiMetadataValue>,
    timeout: Duration,
}

impl Client {
    /// Connects. The connection is reused by every call and made again when it breaks.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for an address or a tenant that cannot be sent; [`ClientError::Connect`] when nobody
    /// answers there within the time limit.
    pub async fn connect(options: ClientOptions) -> Result<Self, ClientError> {
        let invalid = |field, value: &str, message: String| ClientError::Invalid {
            field,
            value: value.to_owned(),
            message,
        };
        let addr = if options.addr.contains("://") {
            options.addr.clone()
        } else {
            format!("http://{}", options.addr)
        };
        if addr.starts_with("https://") {
            let message = "clients speak plain http until tls exists".to_owned();
            return Err(invalid("addr", &options.addr, message));
        }
        let tenant = match &options.tenant {
            None => None,
            Some(name) => Some(
                name.parse::<spandrel_model::ids::TenantId>()
                    .map_err(|error| error.to_string())
                    .and_then(|_| name.parse().map_err(|_| "not a header value".to_owned()))
                    .map_err(|message| invalid("tenant", name, message))?,
            ),
        };
        let timeout = Duration::from_millis(options.timeout_ms.max(1));
        let channel = Endpoint::from_shared(addr.clone())
            .map_err(|error| invalid("addr", &options.addr, error.to_string()))?
            .connect_timeout(timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect()
            .await
            .map_err(|error| ClientError::connect(&addr, &error))?;
        Ok(Self {
            channel,
            addr,
            tenant,
            timeout,
        })
    }

    /// The address, as it is used.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    fn timeout_ms(&self) -> u64 {
        u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        if let Some(tenant) = &self.tenant {
            request.metadata_mut().insert(TENANT_KEY, tenant.clone());
        }
        request
    }

    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(self.timeout, call)
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::Timeout {
                    addr: self.addr.clone(),
                    timeout_ms: self.timeout_ms(),
                })
            })
    }

    fn failure(&self, status: &tonic::Status) -> ClientError {
        ClientError::from_status(&self.addr, self.timeout_ms(), status)
    }

    fn protocol(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::Protocol {
            addr: self.addr.clone(),
            message: error.to_string(),
        }
    }
}
