//! Ten nodes on one machine start, elect, share the shards out, and serve.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use std::time::Instant;

use bytes::Bytes;
use cluster::Trial;
use spandrel_chaos::cluster_process::Wiring;
use spandrel_chaos::examination::{Examination, examine};
use spandrel_chaos::observe::Receipts;
use spandrel_chaos::oracle::Fetched;
use spandrel_chaos::workload::{Export, SentSpan};
use spandrel_model::ids::SpanId;
use spandrel_model::search::TraceState;

const NODES: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_nodes_start_settle_and_serve() {
    // given: ten nodes that have settled
    let began = Instant::now();
    let mut trial = Trial::start(NODES, Wiring::Direct).await.unwrap();
    eprintln!("settled after {:?}", began.elapsed());
    let view = trial.cluster.view(NODES - 1).await.unwrap();
    let voters = ["leader", "voter"];
    let voters = view
        .nodes
        .iter()
        .filter(|node| voters.contains(&&*node.role));
    assert_eq!(voters.count(), 5, "{view:?}");

    // when: clients export to all of them
    trial.load.run();
    trial.load.wait_for(100).await.unwrap();
    trial.load.stop().await.unwrap();
    trial.say("ten nodes");
    let report = trial.load.report();
    assert!(report.unanswered.is_empty(), "{report:?}");

    // then: everything holds, through the first and the last one
    let asked = trial.examined(&[0, NODES - 1], Receipts::Complete);
    let answers = asked.await.unwrap();
    eprintln!("all asked after {:?}", began.elapsed());

    // and: the examination notices one span that is claimed and was never there
    let mut claimed = trial.load.history();
    let is_kept = |answer: &Fetched| {
        let kept = TraceState::Kept;
        matches!(answer, Fetched::Found { state, .. } if *state == kept)
    };
    let mut kept = answers.iter().filter(|(_, answer)| is_kept(answer));
    let (trace, _) = kept.next().unwrap();
    let export = Export {
        bytes: Bytes::new(),
        spans: vec![SentSpan {
            trace: *trace,
            span: SpanId([0xee; 8]),
            error: false,
        }],
    };
    claimed.sent(&export);
    claimed.acknowledged(&export);
    let noticed = examine(
        &trial.cluster,
        &[0],
        &claimed,
        Examination::new(trial.start, Receipts::Complete),
    )
    .await
    .unwrap_err();
    let noticed = format!("{noticed:#}");
    assert!(
        noticed.contains("acknowledged span eeeeeeeeeeeeeeee"),
        "{noticed}"
    );
}
