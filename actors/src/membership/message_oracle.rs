//! What must hold of messages about membership whatever a peer, or who would be one, sends: they are refused with the
//! field that is wrong, or read as they would be sent again. Beside the tests, the fuzz target `peer_message` uses this.

use bytes::Bytes;
use spandrel_raft::limits::{MAX_ADDRESS_BYTES, MAX_NODES, MAX_SHARDS};

use super::message::{Answer, Join, MessageError, Request};
use crate::limits::{MAX_REASON_BYTES, MAX_TOKEN_BYTES, MAX_VERSION_BYTES};

/// Any bytes as a request and as an answer.
pub(crate) fn check_any(bytes: &Bytes) {
    if let Some(request) = accepted(Request::decode(bytes.clone())) {
        let again = Request::decode(request.encode());
        let told = match request {
            Request::Join(join) => {
                check_join(&join);
                Request::Join(as_told(join))
            }
            Request::Describe => Request::Describe,
        };
        assert_eq!(again, Ok(told));
    }
    if let Some(answer) = accepted(Answer::decode(bytes.clone())) {
        check_answer(&answer);
        let again = Answer::decode(answer.clone().encode()).unwrap();
        match (&again, &answer) {
            // What is said is shorter than what is listened to.
            (Answer::Refused(again), Answer::Refused(refused)) => {
                assert_eq!(again.reason, refused.reason);
                assert!(refused.message.starts_with(&again.message));
            }
            _ => assert_eq!(again, answer),
        }
    }
}

/// A token of blanks is read as one that nobody has, and told as none.
fn as_told(mut join: Join) -> Join {
    join.token = join.token.filter(|token| !token.reveal().is_empty());
    join
}

fn accepted<T>(result: Result<T, MessageError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(!error.field.is_empty() && !error.reason.is_empty());
            None
        }
    }
}

fn check_join(join: &Join) {
    let addresses = &join.addresses;
    for text in [
        &addresses.link,
        &addresses.http,
        &addresses.grpc,
        &join.zone,
    ] {
        assert!(text.len() <= MAX_ADDRESS_BYTES);
    }
    let token = join.token.as_ref().map_or("", |token| token.reveal());
    assert!(token.len() <= MAX_TOKEN_BYTES);
    assert!(join.program.program_version.len() <= MAX_VERSION_BYTES);
    assert!(join.program.protocols.oldest <= join.program.protocols.newest);
    join.expected_shards.into_iter().for_each(check_shards);
}

fn check_answer(answer: &Answer) {
    match answer {
        Answer::Joined(joined) => {
            assert!(joined.cluster_id != 0 && joined.node.0 != 0);
            check_shards(joined.shards);
            assert!(joined.members.len() <= MAX_NODES);
            let mut addresses = joined.members.iter().map(|(_, address)| address);
            assert!(addresses.all(|address| address.len() <= MAX_ADDRESS_BYTES));
        }
        Answer::Refused(refused) => assert!(refused.message.len() <= MAX_REASON_BYTES),
        Answer::Described(program) => {
            assert!(program.program_version.len() <= MAX_VERSION_BYTES);
            assert!(program.protocols.oldest <= program.protocols.newest);
        }
    }
}

fn check_shards(shards: u16) {
    assert!((1..=MAX_SHARDS).contains(&shards) && shards.is_power_of_two());
}
