//! What a run came to.

use std::fmt;

use serde::Serialize;

/// The figures of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DemoReport {
    /// Traces made.
    pub traces: u64,
    /// Spans in requests that were sent, each once.
    pub sent_spans: u64,
    /// Spans that were acknowledged, rejected ones not counted.
    pub acknowledged_spans: u64,
    /// Spans that were bad in themselves, by the server's word.
    pub rejected_spans: u64,
    /// Spans given up after the last attempt.
    pub abandoned_spans: u64,
    /// Requests that were acknowledged.
    pub requests: u64,
    /// Attempts that were refused or got no answer.
    pub refused_attempts: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Acknowledged spans per second.
    pub spans_per_second: f64,
    /// Acknowledged bytes per second.
    pub bytes_per_second: f64,
    /// Mean bytes of a span, its share of the resources included.
    pub bytes_per_span: f64,
    /// Mean spans of a trace.
    pub spans_per_trace: f64,
    /// Latency of acknowledged requests in milliseconds; with a rate, from the moment they were due.
    pub latency_ms: LatencyReport,
    /// Processor time of this process per span in microseconds, sending included. Of no meaning inside a node.
    pub cpu_micros_per_span: f64,
    /// The last refusal's words; empty when there was none.
    pub last_refusal: String,
    /// Traces to look at.
    pub examples: Vec<ExampleReport>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencyReport {
    /// Half are faster.
    pub p50: f64,
    /// 90 of 100 are faster.
    pub p90: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

/// A trace to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExampleReport {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// Why it is worth it.
    pub kind: String,
}

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "spans       {} sent, {} acknowledged, {} rejected, {} given up",
            self.sent_spans, self.acknowledged_spans, self.rejected_spans, self.abandoned_spans
        )?;
        writeln!(
            f,
            "traces      {} ({:.2} spans a trace, {:.0} bytes a span)",
            self.traces, self.spans_per_trace, self.bytes_per_span
        )?;
        writeln!(
            f,
            "throughput  {:.0} spans/s, {:.1} MB/s over {:.1} s",
            self.spans_per_second,
            self.bytes_per_second / 1e6,
            self.seconds
        )?;
        let latency = &self.latency_ms;
        writeln!(
            f,
            "latency     p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms of {} requests",
            latency.p50, latency.p90, latency.p99, latency.max, self.requests
        )?;
        writeln!(
            f,
            "refused     {} attempts, {} retries",
            self.refused_attempts, self.retries
        )?;
        if !self.last_refusal.is_empty() {
            writeln!(
                f,
                "            the last: {}",
                crate::waterfall::escape(&self.last_refusal)
            )?;
        }
        writeln!(
            f,
            "generator   {:.2} µs of processor time a span",
            self.cpu_micros_per_span
        )?;
        if self.acknowledged_spans > 0 {
            for example in &self.examples {
                writeln!(
                    f,
                    "try         spandrel query trace {}   ({})",
                    example.trace_id, example.kind
                )?;
            }
        }
        Ok(())
    }
}
