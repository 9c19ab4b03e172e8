//! What the generator is asked for.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::library::RESOURCES;

/// Requests do not become smaller than this many spans because a run is short.
const LEAST_BATCH_SPANS: u32 = 16;

/// How spans are put together into export requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// Whole traces, as a collector sends them that groups by trace.
    Trace,
    /// Each process sends its own spans, every five seconds or when a batch is full: a trace arrives in many
    /// requests, out of order.
    Service,
}

/// The stream of requests, without how it is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Everything random follows from it.
    pub seed: u64,
    /// Spans of a full request.
    pub batch_spans: u32,
    /// How spans are grouped.
    pub grouping: Grouping,
    /// Share of the traces that fail, 0 to 1.
    pub errors: f64,
    /// Share of the traces that take more than a second, 0 to 1.
    pub slow: f64,
    /// Nanoseconds between spans of this stream; `None`: as fast as asked for.
    pub nanos_per_span: Option<f64>,
    /// Whether each batch says which traces and spans are in it.
    pub record: bool,
}

/// A run of the generator.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoOptions {
    /// Where OTLP/gRPC is taken.
    pub endpoint: String,
    /// The tenant to send as; `None`: name none.
    pub tenant: Option<String>,
    /// Spans per second over all connections; 0: as fast as they are acknowledged.
    pub rate: f64,
    /// When to stop; `None`: not for that reason.
    pub duration: Option<Duration>,
    /// After how many spans to stop; `None`: not for that reason.
    pub spans: Option<u64>,
    /// Spans of a full request.
    pub batch_spans: u32,
    /// Connections, each with one request at a time.
    pub connections: u32,
    /// Everything random follows from it.
    pub seed: u64,
    /// Share of the traces that fail, 0 to 1.
    pub errors: f64,
    /// Share of the traces that take more than a second, 0 to 1.
    pub slow: f64,
    /// How spans are grouped.
    pub grouping: Grouping,
    /// Where to write what was acknowledged.
    pub history: Option<PathBuf>,
    /// Whether to show progress on standard error.
    pub progress: bool,
}

impl DemoOptions {
    /// The gentle stream of `node start --demo`: 240 spans a second, as SDKs would send them, until stopped.
    #[must_use]
    pub fn beside_a_node(endpoint: impl Into<String>, seed: u64) -> Self {
        Self {
            endpoint: endpoint.into(),
            tenant: None,
            rate: 240.0,
            duration: None,
            spans: None,
            batch_spans: 512,
            connections: 2,
            seed,
            errors: 0.03,
            slow: 0.03,
            grouping: Grouping::Service,
            history: None,
            progress: false,
        }
    }

    /// The stream of each connection.
    pub(super) fn shape(&self) -> Shape {
        let nanos_per_span =
            (self.rate > 0.0).then(|| 1e9 * f64::from(self.connections.max(1)) / self.rate);
        Shape {
            seed: self.seed,
            batch_spans: self.batch_spans_of_a_run(),
            grouping: self.grouping,
            errors: self.errors,
            slow: self.slow,
            nanos_per_span,
            record: self.history.is_some(),
        }
    }

    /// Requests of a short run are small: every process fills its own, and with full ones 2,000 spans became 40,000.
    fn batch_spans_of_a_run(&self) -> u32 {
        let processes = match self.grouping {
            Grouping::Trace => 1,
            Grouping::Service => RESOURCES as u64,
        };
        let share = |spans: u64| spans / u64::from(self.connections.max(1)) / processes;
        let most = self.spans.map_or(u64::MAX, share);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        self.batch_spans.min(most.max(LEAST_BATCH_SPANS)).max(1)
    }
}
