//! A byte of the journal turns while the node is down: the node starts, says so, and serves everything else.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use spandrel_chaos::history::History;
use spandrel_chaos::node_process::NodeProcess;
use spandrel_chaos::observe::fetch_all;
use spandrel_chaos::oracle::{Stage, Violation, judge_traces};
use spandrel_chaos::workload::{Padding, Workload, WorkloadOptions};
use spandrel_model::ids::UnixNanos;

/// Traces stay open: the journal is all that holds them.
const POLICY: &str = "
decision: {idle: 60s, max_age: 300s}
policies:
  - {name: none, type: probabilistic, sampling_percentage: 0}
";
/// Requests of one after the other: each is a frame of its own or shares one with its neighbour.
const REQUESTS: usize = 300;
/// Bytes of text that hardly compresses in each span: most of the file is then frames, not the file's own tables.
const PADDING_BYTES: usize = 1_500;
/// Raw bytes at which the journal closes a frame, doubled: what one flipped byte may cost at most.
const MAX_LOST_BYTES: usize = 2 * 256 * 1024;

/// The slice file that was written last, of those that hold frames: the next one is made ahead and is empty.
fn newest_slice(data_dir: &Path) -> PathBuf {
    let mut slices: Vec<PathBuf> = fs::read_dir(data_dir.join("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("slice-")
        })
        .filter(|path| path.metadata().unwrap().len() > 1 << 20)
        .collect();
    slices.sort();
    slices.pop().expect("a slice with frames")
}

/// Turns one byte in the middle third, in the middle of 4 KiB without a longer run of zeros: bytes of a frame.
fn flip_a_byte(path: &Path) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let (from, to) = (bytes.len() / 3, bytes.len() / 3 * 2);
    let dense = |window: &&[u8]| {
        !window
            .windows(16)
            .any(|run| run.iter().all(|byte| *byte == 0))
    };
    let at = (from..to)
        .step_by(4096)
        .find(|&at| bytes.get(at..at + 4096).as_ref().is_some_and(dense))
        .expect("a page of a frame in the middle third")
        + 2048;
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
    at
}

#[tokio::test]
async fn a_flipped_byte_costs_one_frame_and_is_reported() {
    // given: a journal full of open traces, closed in order
    let mut node = NodeProcess::start(&["--memory=368MiB"], Some(POLICY))
        .await
        .unwrap();
    let mut options = WorkloadOptions::mixed(UnixNanos(1_700_000_000 * UnixNanos::PER_SECOND));
    options.errors = 0.0;
    options.padding = Padding::Random(PADDING_BYTES);
    let mut workload = Workload::new(11, options);
    let exporter = node.exporter().await.unwrap();
    let mut history = History::default();
    for _ in 0..REQUESTS {
        let export = workload.next_export();
        history.sent(&export);
        exporter.export(export.bytes.clone()).await.unwrap();
        history.acknowledged(&export);
    }
    node.stop().await.unwrap();

    // when
    let slice = newest_slice(&node.data_dir());
    let at = flip_a_byte(&slice);
    node.restart().await.unwrap();

    // then: it is reported
    let log = node.log();
    eprintln!("flipped byte {at} of {}\n{log}", slice.display());
    assert!(
        log.contains(" 1 frames and 0 whole slices of the journal are damaged"),
        "the damage is not reported:\n{log}"
    );

    // and: all but the spans of one frame are served, nothing else appears
    let client = node.client().await.unwrap();
    let answers = fetch_all(&client, &history).await.unwrap();
    let violations = judge_traces(&history, &answers, Stage::Deciding);
    let lost: usize = violations
        .iter()
        .map(|violation| match violation {
            Violation::TraceLost { trace } => history.trace(*trace).unwrap().acknowledged.len(),
            Violation::SpanLost { .. } => 1,
            other => panic!("{other}"),
        })
        .sum();
    eprintln!("{lost} of {} spans lost", history.acknowledged_spans());
    assert!(
        lost > 0,
        "the byte was none of a frame: the test proves nothing"
    );
    assert!(
        lost * PADDING_BYTES <= MAX_LOST_BYTES,
        "{lost} spans are lost"
    );
}
