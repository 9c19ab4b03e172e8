//! The few plain HTTP requests that no client of ours covers: readiness, metrics, Tempo's paths.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::limits::MAX_ANSWER_BYTES;

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header lines in lower case, without the status line.
    pub headers: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text, wrong bytes replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// `GET path` by HTTP/1.0: the body then ends with the connection, in no chunks.
///
/// # Errors
/// When nobody answers, or with something else than HTTP.
pub async fn get(addr: SocketAddr, path: &str, accept: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream
        .take(MAX_ANSWER_BYTES)
        .read_to_end(&mut bytes)
        .await?;
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("the answer has no head")?;
    let body = bytes.split_off(end + 4);
    let head = String::from_utf8(bytes)?.to_ascii_lowercase();
    let (first, headers) = head.split_once("\r\n").context("no status line")?;
    let status = first.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer {
        status,
        headers: headers.to_owned(),
        body,
    })
}

/// The metrics of a node, as `GET /metrics` shows them.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics(Vec<(String, f64)>);

impl Metrics {
    /// Reads a node's metrics.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn read(addr: SocketAddr) -> anyhow::Result<Self> {
        let answer = get(addr, "/metrics", "text/plain").await?;
        anyhow::ensure!(answer.status == 200, "metrics: status {}", answer.status);
        Ok(Self::parse(&answer.text()))
    }

    /// Reads the text format.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(sample).collect())
    }

    /// The sum of the series of this name whose labels contain `label` (empty: all of them); 0 when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let of_name = |series: &str| {
            let labels = series.strip_prefix(name);
            labels.is_some_and(|labels| {
                (labels.is_empty() || labels.starts_with('{')) && labels.contains(label)
            })
        };
        let samples = self.0.iter().filter(|(series, _)| of_name(series));
        // Folded from a positive zero: the sum of no floats is minus zero.
        samples.fold(0.0, |sum, (_, value)| sum + value)
    }

    /// Whether a series of this name exists.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|(series, _)| series == name || series.starts_with(&format!("{name}{{")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_take_the_whole_name_and_a_label() {
        let metrics = Metrics::parse(
            "# TYPE a counter\na{verdict=\"keep\",trigger=\"idle\"} 3\na{verdict=\"drop\"} 4\nab 9\nb 2\n",
        );
        assert_eq!(metrics.sum("a", ""), 7.0);
        assert_eq!(metrics.sum("a", "verdict=\"keep\""), 3.0);
        assert_eq!(metrics.sum("b", ""), 2.0);
        assert_eq!(metrics.sum("c", ""), 0.0);
        assert!(metrics.has("ab") && !metrics.has("c"));
    }
}
