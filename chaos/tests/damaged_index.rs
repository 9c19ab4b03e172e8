//! A search found a damaged index, dropped it, and answered with an internal error; the next one then worked. Now the
//! same search reads the summaries from the block instead: a damaged index costs time, not answers (P5).

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spandrel_chaos::history::History;
use spandrel_chaos::node_process::NodeProcess;
use spandrel_chaos::observe::{fetch_all, search_all, wait_until_decided};
use spandrel_chaos::oracle::{Stage, judge_searches, judge_traces};
use spandrel_chaos::workload::{SERVICES, Workload, WorkloadOptions};
use spandrel_model::ids::UnixNanos;

const POLICY: &str = "
decision: {idle: 100ms, max_age: 1s}
policies:
  - {name: half, type: probabilistic, sampling_percentage: 50}
";
const START: UnixNanos = UnixNanos(1_700_000_000 * UnixNanos::PER_SECOND);
/// For a debug build on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data_dir.join("index")).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "segment"))
        .collect()
}

#[tokio::test]
async fn a_search_answers_although_its_index_is_damaged() {
    // given: traces in blocks and in the index
    let mut node = NodeProcess::start(&["--memory=368MiB"], Some(POLICY))
        .await
        .unwrap();
    let mut workload = Workload::new(21, WorkloadOptions::mixed(START));
    let exporter = node.exporter().await.unwrap();
    let mut history = History::default();
    for _ in 0..40 {
        let export = workload.next_export();
        // Errors are no matter here: none of them is promised to be kept by this policy.
        history.sent(&export);
        exporter.export(export.bytes.clone()).await.unwrap();
    }
    let client = node.client().await.unwrap();
    let answers = fetch_all(&client, &history).await.unwrap();
    wait_until_decided(&client, &answers, DEADLINE)
        .await
        .unwrap();
    client.flush().await.unwrap();
    node.stop().await.unwrap();

    // when: a byte of every segment turns
    let segments = segments(&node.data_dir());
    assert!(
        !segments.is_empty(),
        "nothing is indexed: the test proves nothing"
    );
    for path in segments {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    node.restart().await.unwrap();

    // then: the first search already finds what is kept
    let client = node.client().await.unwrap();
    let mut searches = Vec::new();
    for service in SERVICES {
        let range = (START, START.plus(3_600 * UnixNanos::PER_SECOND));
        searches.push(search_all(&client, service, range).await.unwrap());
    }
    let answers = fetch_all(&client, &history).await.unwrap();
    assert_eq!(judge_traces(&history, &answers, Stage::Deciding), []);
    assert_eq!(judge_searches(&answers, &searches), []);
    let log = node.log();
    assert!(
        log.contains("index dropped"),
        "the damage is not reported:\n{log}"
    );
}
