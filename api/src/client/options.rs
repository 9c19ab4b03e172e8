//! What a client asks for.

use std::net::SocketAddr;

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

/// The part of a command line that says where a node listens: empty when that is where the commands look anyway.
/// `flag` is `--addr` (native API, 3200) or, for the demonstration traffic, `--endpoint` (OTLP/gRPC, 4317).
#[must_use]
pub fn address_flag(flag: &str, listener: SocketAddr) -> String {
    let port = if flag == "--addr" { 3200 } else { 4317 };
    if listener == SocketAddr::from(([127, 0, 0, 1], port)) {
        String::new()
    } else {
        format!(" {flag} http://{listener}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_say_where_a_node_is_when_it_is_elsewhere() {
        for (flag, listener, expected) in [
            ("--addr", "127.0.0.1:3200", ""),
            ("--addr", "127.0.0.1:3201", " --addr http://127.0.0.1:3201"),
            ("--addr", "10.0.0.1:3200", " --addr http://10.0.0.1:3200"),
            ("--endpoint", "127.0.0.1:4317", ""),
            ("--endpoint", "[::1]:4317", " --endpoint http://[::1]:4317"),
        ] {
            assert_eq!(address_flag(flag, listener.parse().unwrap()), expected);
        }
    }
}
