//! Values behind a right checksum, whatever they are: a node of a later version may send them, or one gone mad. What is
//! read of them must come back. Beside the tests, the fuzz targets `raft_message` and `snapshot` use this.

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{CodecError, Kind, seal, unseal};
use crate::message::{Answer, Request};
use crate::state::ClusterState;
use crate::store::Identity;
use crate::types::{Entry, LogId, SnapshotMeta, Vote};

const HEAD_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 8;

/// What a node keeps in its log and its snapshot.
pub(crate) const STORED: [Kind; 8] = [
    Kind::State,
    Kind::State2,
    Kind::State1,
    Kind::SnapshotMeta,
    Kind::Entry,
    Kind::LogId,
    Kind::Vote,
    Kind::Identity,
];

/// Any bytes as a value of a kind.
pub(crate) fn sealed(kind: Kind, value: &[u8]) -> Vec<u8> {
    let nothing = seal(kind, &()).unwrap();
    behind_checksum(&nothing[..HEAD_BYTES], value)
}

/// Sealed bytes with a changed value.
pub(crate) fn resealed(bytes: &[u8], edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let (body, _) = bytes.split_last_chunk::<CHECKSUM_BYTES>().unwrap();
    let (head, value) = body.split_at(HEAD_BYTES);
    let mut value = value.to_vec();
    edit(&mut value);
    behind_checksum(head, &value)
}

fn behind_checksum(head: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = [head, value].concat();
    let checksum = xxh3_64(&bytes).to_le_bytes();
    bytes.extend(checksum);
    bytes
}

/// What a node is told: it is refused, or read as it would be told again.
pub(crate) fn read_message(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        let again = request.encode().unwrap();
        assert!(again.len() <= bytes.len());
        let read = Request::decode(&again).unwrap();
        assert_eq!(read.encode().unwrap(), again);
        assert_eq!(read.body.call(), request.body.call());
    }
    if let Ok(answer) = Answer::decode(bytes) {
        let again = answer.encode().unwrap();
        assert!(again.len() <= bytes.len());
        assert_eq!(Answer::decode(&again).unwrap().encode().unwrap(), again);
    }
}

/// The state of a snapshot, of whichever version: it is refused, or comes back as one of this version.
pub(crate) fn read_state(bytes: &[u8]) {
    if let Ok(state) = ClusterState::unseal(bytes) {
        let again = seal(Kind::State, &state).unwrap();
        assert_eq!(ClusterState::unseal(&again).unwrap(), state);
    }
}

/// Whatever a node reads: it is refused, or comes back.
pub(crate) fn read_any(kind: Kind, bytes: &[u8]) {
    match kind {
        Kind::Identity => comes_back::<Identity>(kind, bytes),
        Kind::Vote => comes_back::<Vote>(kind, bytes),
        Kind::LogId => comes_back::<LogId>(kind, bytes),
        Kind::Entry => comes_back::<Entry>(kind, bytes),
        Kind::SnapshotMeta => comes_back::<SnapshotMeta>(kind, bytes),
        Kind::State1 | Kind::State2 | Kind::State => read_state(bytes),
        Kind::Request | Kind::Answer => read_message(bytes),
    }
}

fn comes_back<T: Serialize + DeserializeOwned>(kind: Kind, bytes: &[u8]) {
    let read: Result<T, CodecError> = unseal(kind, bytes);
    if let Ok(value) = read {
        let again = seal(kind, &value).unwrap();
        assert!(again.len() <= bytes.len());
        let read: T = unseal(kind, &again).unwrap();
        assert_eq!(seal(kind, &read).unwrap(), again);
    }
}
