//! A line of JSON for every attempt of a client to export: what a run leaves behind to be looked at later.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The node said that it has the spans.
    Acknowledged,
    /// The node said to try again.
    Refused,
    /// The node was not reached, or said nothing in time.
    Unanswered,
    /// Any other answer: it ends the client.
    Failed,
}

/// One attempt to export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Milliseconds from the start of the run to the attempt.
    pub at_ms: u64,
    /// The place of the node that was asked.
    pub node: usize,
    /// Spans in the request.
    pub spans: usize,
    /// What became of it.
    pub outcome: Outcome,
    /// Milliseconds until then.
    pub latency_ms: u64,
}

impl Attempt {
    /// Milliseconds from the start of the run to the answer.
    #[must_use]
    pub fn ended_ms(&self) -> u64 {
        self.at_ms.saturating_add(self.latency_ms)
    }
}

/// A file of attempts that is being written. It keeps nothing in memory but a buffer.
#[derive(Debug)]
pub struct AttemptLog {
    since: Instant,
    file: BufWriter<File>,
}

impl AttemptLog {
    /// A new file, in which times count from `since`.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path, since: Instant) -> anyhow::Result<Self> {
        let file = File::create(path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            since,
            file: BufWriter::new(file),
        })
    }

    /// Notes an attempt of now that began at `began`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(
        &mut self,
        began: Instant,
        node: usize,
        spans: usize,
        outcome: Outcome,
    ) -> anyhow::Result<()> {
        let attempt = Attempt {
            at_ms: millis(began.saturating_duration_since(self.since)),
            node,
            spans,
            outcome,
            latency_ms: millis(began.elapsed()),
        };
        let mut line = serde_json::to_string(&attempt)?;
        line.push('\n');
        let written = self.file.write_all(line.as_bytes());
        written.context("an attempt cannot be noted")
    }

    /// Writes what is in the buffer.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.file.flush().context("attempts cannot be noted")
    }
}

/// The attempts of a file, in the order in which they ended.
///
/// # Errors
/// When it cannot be read, or a line is no attempt.
pub fn read_attempts(path: &Path) -> anyhow::Result<Vec<Attempt>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let parse = |(number, line): (usize, std::io::Result<String>)| {
        let parsed = serde_json::from_str(&line?);
        parsed.with_context(|| format!("line {} of {}", number + 1, path.display()))
    };
    BufReader::new(file)
        .lines()
        .enumerate()
        .map(parse)
        .collect()
}

/// Whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        let since = Instant::now();
        let mut log = AttemptLog::create(&path, since).unwrap();
        log.note(since, 2, 17, Outcome::Refused).unwrap();
        log.note(since, 0, 17, Outcome::Acknowledged).unwrap();
        log.finish().unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""outcome":"refused""#), "{text}");
        let attempts = read_attempts(&path).unwrap();
        let seen: Vec<_> = attempts
            .iter()
            .map(|it| (it.at_ms, it.node, it.spans, it.outcome))
            .collect();
        assert_eq!(
            seen,
            [
                (0, 2, 17, Outcome::Refused),
                (0, 0, 17, Outcome::Acknowledged)
            ]
        );
    }
}
