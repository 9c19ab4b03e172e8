//! Requests of peers, byte by byte.

use std::sync::Arc;

use openraft::vote::RaftVote;
use spandrel_model::ids::NodeId;
use spandrel_storage::disk::RealDisk;
use tempfile::TempDir;

use crate::limits::MAX_SNAPSHOT_BYTES;
use crate::message::{Answer, Request, RequestBody, SnapshotChunk};
use crate::types::{SnapshotMeta, Vote};
use crate::{NoPeers, RaftOptions, Settings, Start};

async fn joining(dir: &TempDir) -> Settings {
    let options = RaftOptions {
        disk: Arc::new(RealDisk),
        dir: dir.path().to_owned(),
        node: NodeId(2),
        start: Start::Join { cluster_id: 5 },
    };
    Settings::open(options, Arc::new(NoPeers)).await.unwrap()
}

fn request(cluster_id: u64, from: u64, body: RequestBody) -> Vec<u8> {
    let request = Request {
        cluster_id,
        from,
        body,
    };
    request.encode().unwrap()
}

async fn refusal(settings: &Settings, body: RequestBody) -> Option<String> {
    let answer = settings.answer(NodeId(1), &request(5, 1, body)).await;
    match Answer::decode(&answer.unwrap()).unwrap() {
        Answer::Refused { reason } => Some(reason),
        _ => None,
    }
}

fn piece(total_bytes: u64, offset: u64, bytes: &[u8]) -> RequestBody {
    let leader = openraft::impls::leader_id_adv::LeaderId {
        term: 3,
        node_id: 1,
    };
    RequestBody::Snapshot(SnapshotChunk {
        vote: Vote::from_leader_id(leader, true),
        meta: SnapshotMeta::default(),
        total_bytes,
        offset,
        bytes: bytes.to_vec(),
    })
}

#[tokio::test(start_paused = true)]
async fn another_cluster_and_a_false_sender_are_refused() {
    let dir = TempDir::new().unwrap();
    let settings = joining(&dir).await;
    let right = request(5, 1, RequestBody::ReadIndex);
    assert!(settings.answer(NodeId(1), &right).await.is_ok());
    let stranger = request(6, 1, RequestBody::ReadIndex);
    let error = settings.answer(NodeId(1), &stranger).await.unwrap_err();
    assert!(error.reason.contains("cluster"), "{error}");
    let error = settings.answer(NodeId(3), &right).await.unwrap_err();
    assert!(error.reason.contains("speaks for"), "{error}");
    settings.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn pieces_of_a_snapshot_must_follow_each_other() {
    let dir = TempDir::new().unwrap();
    let settings = joining(&dir).await;
    // without a beginning, too large, longer than announced, after a gap
    assert!(refusal(&settings, piece(9, 3, b"abc")).await.is_some());
    let huge = MAX_SNAPSHOT_BYTES as u64 + 1;
    assert!(refusal(&settings, piece(huge, 0, b"abc")).await.is_some());
    assert!(refusal(&settings, piece(2, 0, b"abc")).await.is_some());
    assert_eq!(refusal(&settings, piece(9, 0, b"abc")).await, None);
    assert!(refusal(&settings, piece(9, 6, b"abc")).await.is_some());
    // the piece that follows is still taken
    assert_eq!(refusal(&settings, piece(9, 3, b"abc")).await, None);
    settings.shutdown().await;
}
