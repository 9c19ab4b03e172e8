//! The record of what was acknowledged: one line of JSON a batch, for programs that check that nothing is lost.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use spandrel_model::ids::UnixNanos;

use super::generator::Batch;

/// The file. Lines of several connections do not mix.
pub(super) struct History {
    file: Mutex<BufWriter<File>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// Unix nanoseconds of the acknowledgement, as text.
    acknowledged_at: String,
    rejected_spans: u64,
    traces: Vec<Part>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    trace_id: String,
    trace_spans: u32,
    spans: Vec<String>,
    error: bool,
    slow: bool,
}

impl History {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Mutex::new(BufWriter::new(File::create(path)?)),
        })
    }

    /// Notes an acknowledged batch and hands the line to the operating system.
    pub(super) fn note(&self, batch: &Batch, at: UnixNanos, rejected_spans: u64) -> io::Result<()> {
        let parts = batch.traces.iter().map(|part| Part {
            trace_id: part.trace_id.to_string(),
            trace_spans: part.trace_spans,
            spans: part.spans.iter().map(ToString::to_string).collect(),
            error: part.error,
            slow: part.slow,
        });
        let line = Line {
            acknowledged_at: at.0.to_string(),
            rejected_spans,
            traces: parts.collect(),
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_writer(&mut *file, &line)?;
        file.write_all(b"\n")?;
        file.flush()
    }
}
