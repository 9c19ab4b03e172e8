//! A second process is started on the directory of a node that runs: it is refused, and the node goes on. It used to
//! open the files, replay the journal and write into them.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use spandrel_chaos::node_process::NodeProcess;

#[tokio::test]
async fn a_directory_has_one_process_and_the_next_life_gets_it() {
    let mut node = NodeProcess::start(&[], None).await.unwrap();

    let complaint = node.second_process().await.unwrap();
    assert!(
        complaint.contains("is in use by another process"),
        "{complaint}"
    );
    assert!(complaint.contains("--data-dir"), "{complaint}");

    // The first one was not disturbed, and its end, however it comes, frees the directory.
    assert!(node.client().await.unwrap().status().await.unwrap().ready);
    node.kill().unwrap();
    node.restart().await.unwrap();
    node.stop().await.unwrap();
    node.restart().await.unwrap();
}
