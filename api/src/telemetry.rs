//! What the edge counts about itself.

use std::time::Instant;

use metrics::{counter, gauge, histogram};

/// One request from its head to its answer's head. Ends as `cancelled` when the client went away.
pub(crate) struct Observed {
    api: &'static str,
    started: Instant,
    code: Option<String>,
}

impl Observed {
    /// A request began.
    #[allow(clippy::disallowed_methods)] // for a histogram only, nothing is decided by it
    pub(crate) fn start(api: &'static str) -> Self {
        gauge!("spandrel_api_requests_in_flight", "api" => api).increment(1.0);
        Self {
            api,
            started: Instant::now(),
            code: None,
        }
    }

    /// It was answered with this status.
    pub(crate) fn answered(mut self, code: impl ToString) {
        self.code = Some(code.to_string());
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let api = self.api;
        let code = self.code.take().unwrap_or_else(|| "cancelled".to_owned());
        gauge!("spandrel_api_requests_in_flight", "api" => api).decrement(1.0);
        counter!("spandrel_api_requests_total", "api" => api, "code" => code).increment(1);
        histogram!("spandrel_api_request_seconds", "api" => api)
            .record(self.started.elapsed().as_secs_f64());
    }
}

/// Bytes of request bodies as they came.
pub(crate) fn received(api: &'static str, bytes: usize) {
    counter!("spandrel_api_received_bytes_total", "api" => api).increment(bytes as u64);
}

/// A refused export, by the code of its error.
pub(crate) fn refused(api: &'static str, reason: &str) {
    counter!("spandrel_api_refused_total", "api" => api, "reason" => reason.to_owned())
        .increment(1);
}

/// Connections of a listener.
pub(crate) fn connections(listener: &'static str, change: f64) {
    gauge!("spandrel_api_connections", "listener" => listener).increment(change);
}
