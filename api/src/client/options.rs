//! What a client asks for.

use spandrel_model::batch::StatusCode;
use spandrel_model::ids::UnixNanos;

/// How to reach a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// `http://host:port`, or `host:port`.
    pub addr: String,
    /// The tenant; `None` sends none, which the server takes for `default`.
    pub tenant: Option<String>,
    /// Milliseconds that connecting, and then each call, may take.
    pub timeout_ms: u64,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            addr: "http://127.0.0.1:3200".to_owned(),
            tenant: None,
            timeout_ms: 10_000,
        }
    }
}

/// Conditions of a search. The default finds the last hour's newest 20 traces.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SearchParameters {
    /// Each of these occurs in the trace.
    pub services: Vec<String>,
    /// The span's name.
    pub operation: Option<String>,
    /// The span's status.
    pub status: Option<StatusCode>,
    /// `key:value` each, split at the first colon.
    pub tags: Vec<String>,
    /// Least duration of the trace in milliseconds, inclusive.
    pub min_duration_ms: Option<f64>,
    /// Greatest duration of the trace in milliseconds, inclusive.
    pub max_duration_ms: Option<f64>,
    /// Earliest start, inclusive; `None` is an hour before `to`.
    pub from: Option<UnixNanos>,
    /// Latest start, exclusive; `None` is now.
    pub to: Option<UnixNanos>,
    /// Most traces, 1 to 1,000; `None` is 20.
    pub limit: Option<u32>,
    /// Continue there.
    pub cursor: Option<String>,
    /// Also traces that were dropped and are still held.
    pub include_dropped: bool,
}

/// Which names to list. The default lists those of the last hour.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamesParameters {
    /// Earliest trace start, inclusive; `None` is an hour before `to`.
    pub from: Option<UnixNanos>,
    /// Latest trace start, exclusive; `None` is now.
    pub to: Option<UnixNanos>,
    /// Most names; `None` is 1,000.
    pub limit: Option<u32>,
    /// Only names that begin so.
    pub prefix: String,
}
