//! P1 of a cluster that has lost the majority that keeps its settings: of three nodes with three copies, one is lost and
//! the others were killed. `spandrel node recover` makes a new cluster of the two; nothing that was acknowledged is
//! missing there, it takes spans, and the lost node cannot come back into it.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cluster::Trial;
use spandrel_chaos::cluster_process::Wiring;
use spandrel_chaos::observe::Receipts;

const NODES: usize = 3;
const LOST: usize = 0;

/// What `node recover` says of a data directory.
fn recover(binary: &Path, data_dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(binary);
    command
        .args(["node", "recover", "--data-dir"])
        .arg(data_dir);
    let output = command.args(arguments).output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// How far the log of a directory goes: term, leader and entry.
fn log_end(said: &str) -> (u64, u64, u64) {
    let line = said.lines().find(|line| line.starts_with("log ")).unwrap();
    let numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    let numbers: Vec<u64> = numbers.collect();
    (numbers[1], numbers[2], numbers[0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survivors_of_a_lost_majority_go_on_with_all_that_was_acknowledged() {
    // given: a cluster under load, with decisions on every node
    let seeds = &["--replication=3", "--shards=16"];
    let mut trial = Trial::seeded(NODES, Wiring::Direct, seeds, &["--memory=368MiB"])
        .await
        .unwrap();
    trial.load.run();
    trial.load.wait_for(30).await.unwrap();
    trial.wait_for_decisions().await.unwrap();
    trial.load.wait_for(30).await.unwrap();
    trial.load.stop().await.unwrap();

    // when: one node is lost for good, and the others were stopped; the two do not elect anybody without their settings
    for place in 0..NODES {
        trial.cluster.node_mut(place).kill().unwrap();
    }
    let binary = trial.cluster.node(LOST).binary().to_owned();
    let dirs: Vec<_> = (0..NODES)
        .map(|place| trial.cluster.node(place).data_dir())
        .collect();
    let ids: Vec<String> = (0..NODES)
        .map(|place| trial.cluster.id(place).to_owned())
        .collect();
    let lost = format!("--lost={}", ids[LOST]);
    let told = |place: usize| recover(&binary, &dirs[place], &[&lost]).unwrap();
    let (mut first, mut second) = (1, 2);
    if log_end(&told(second)) > log_end(&told(first)) {
        (first, second) = (second, first);
    }
    let warned = told(first);
    assert!(warned.contains("Nothing was changed"), "{warned}");
    assert!(
        warned.contains("shards      0 of 16 have no copy"),
        "{warned}"
    );
    let said = recover(&binary, &dirs[first], &[&lost, "--i-accept-loss"]).unwrap();
    let key = said.split("--into ").nth(1).unwrap();
    let key = key.split_whitespace().next().unwrap();
    let unsure = recover(&binary, &dirs[second], &["--into", key]).unwrap_err();
    assert!(unsure.contains("--i-accept-loss"), "{unsure}");
    recover(&binary, &dirs[second], &["--into", key, "--i-accept-loss"]).unwrap();
    for place in [first, second] {
        trial.cluster.node_mut(place).restart().await.unwrap();
        trial.cluster.ensure_same_identity(place).await.unwrap();
    }
    trial
        .cluster
        .wait_until_settled(first, NODES - 1)
        .await
        .unwrap();

    // then: it takes spans, and everything is found through both
    trial.load.run();
    trial.load.wait_for(30).await.unwrap();
    trial.load.stop().await.unwrap();
    trial.say("recovered");
    trial
        .examined(&[first, second], Receipts::Complete)
        .await
        .unwrap();

    // and it stays as it is when the lost node comes back, which has nobody to agree with and never gets ready
    let comes_back = trial.cluster.node_mut(LOST).restart();
    let ready = tokio::time::timeout(Duration::from_secs(5), comes_back).await;
    assert!(!matches!(ready, Ok(Ok(()))), "the lost node serves");
    let view = trial.cluster.view(first).await.unwrap();
    assert_eq!(view.nodes.len(), NODES - 1);
    trial
        .examined(&[first, second], Receipts::Complete)
        .await
        .unwrap();
}
