//! Nodes that should hold the same of a closed hour do, and know it: three nodes with three copies, one of them loses its
//! blocks, and `spandrel node repair` returns when everything is there again and was compared. Whether it comes from the
//! node's journal or from the others is not looked at: `actors/tests/inventory.rs` does that.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use cluster::Trial;
use spandrel_chaos::cluster_process::Wiring;
use spandrel_chaos::http::Metrics;
use spandrel_chaos::node_process::{ClockKind, MachineOptions, program};
use spandrel_chaos::observe::{Receipts, wait_until};
use spandrel_chaos::oracle::judge_keeps;

const NODES: usize = 3;
const VICTIM: usize = 2;
/// The hour of the spans is over then, no page is expected for it, and no record of them is in a journal.
const LATER_MS: i64 = 3 * 3_600 * 1_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The block files of a node.
fn blocks(trial: &Trial, place: usize) -> Vec<PathBuf> {
    let directory = trial.cluster.node(place).data_dir().join("blocks");
    let files = fs::read_dir(directory).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let is_block = |path: &PathBuf| path.extension().is_some_and(|it| it == "block");
    files.filter(is_block).collect()
}

async fn metric(trial: &Trial, place: usize, name: &str) -> f64 {
    let http = trial.cluster.node(place).ports().http;
    Metrics::read(http).await.unwrap().sum(name, "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_one_node_has_lost_comes_back() {
    // given: everything that is kept is in the blocks of a closed hour, on all nodes
    let seeds = &["--replication=3", "--shards=16"];
    let machine = MachineOptions {
        clock: ClockKind::Shifted,
        ..MachineOptions::default()
    };
    let flags = &["--memory=368MiB"];
    let mut trial = Trial::on_machines(NODES, Wiring::Direct, seeds, flags, machine)
        .await
        .unwrap();
    trial.load.run();
    trial.load.wait_for(30).await.unwrap();
    trial.wait_for_decisions().await.unwrap();
    trial.load.wait_for(60).await.unwrap();
    trial.load.stop().await.unwrap();
    let every: Vec<usize> = (0..NODES).collect();
    let before = trial.examined(&every, Receipts::Complete).await.unwrap();
    for &place in &every {
        let client = trial.cluster.client(place).await.unwrap();
        client.flush().await.unwrap();
    }
    for place in 0..NODES {
        let clock = trial.cluster.node(place).clock().unwrap();
        clock.set(LATER_MS).unwrap();
    }

    // when: one node loses its blocks while it is stopped
    trial.cluster.node_mut(VICTIM).stop().await.unwrap();
    let lost = blocks(&trial, VICTIM);
    assert!(!lost.is_empty());
    for path in &lost {
        fs::remove_file(path).unwrap();
    }
    trial.cluster.node_mut(VICTIM).restart().await.unwrap();
    trial.cluster.wait_until_settled(0, NODES).await.unwrap();

    // then: `node repair` brings it back
    let repaired = async || {
        let node = trial.cluster.node(VICTIM);
        let addr = format!("http://{}", node.ports().http);
        let mut repair = Command::new(program(ClockKind::System)?);
        repair.args(["node", "repair", "--addr", &addr]);
        let output = tokio::task::spawn_blocking(move || repair.output());
        let output = output.await??;
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{said}{error}");
        anyhow::ensure!(said.contains("has what the others have"), "{said}");
        // Before the hour is closed everywhere it is not compared.
        let counted = metric(&trial, VICTIM, "spandrel_inventory_spans_total").await;
        Ok(counted > 0.0)
    };
    let is_back = wait_until("the block to come back", PATIENCE, repaired).await;
    is_back.unwrap_or_else(|error| panic!("{error}\n{}", trial.cluster.logs()));
    assert!(!blocks(&trial, VICTIM).is_empty());

    // and: everything is found through every node
    let after = trial.examined(&every, Receipts::Complete).await.unwrap();
    let kept = judge_keeps(&before, &after);
    assert!(kept.is_empty(), "{kept:?}");
}
