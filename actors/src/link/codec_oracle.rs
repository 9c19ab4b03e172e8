//! What must hold of the links' own messages whatever the other side sends: they are refused, or read as they would be
//! written again. Beside the tests, the fuzz target `link_frame` uses this.

use std::io;

use super::envelope::{Answer, Header};
use super::hello::{Hello, HelloAnswer};
use crate::limits::{MAX_LINK_ADDRESS_BYTES, MAX_LINK_REASON_BYTES};

/// Longest body of a handshake that is read.
const MAX_BODY_BYTES: usize = 1_024;

pub(super) fn read_hello(bytes: &[u8]) -> io::Result<Hello> {
    futures_util::FutureExt::now_or_never(Hello::read(&mut &*bytes)).unwrap()
}

pub(super) fn read_answer(bytes: &[u8]) -> io::Result<HelloAnswer> {
    futures_util::FutureExt::now_or_never(HelloAnswer::read(&mut &*bytes)).unwrap()
}

/// Any bytes as each message, and as the body of a handshake.
pub(crate) fn check_any(bytes: &[u8]) {
    check_hello(bytes);
    check_answer(bytes);
    let body = &bytes[..bytes.len().min(MAX_BODY_BYTES)];
    let length = u16::try_from(body.len()).unwrap().to_le_bytes();
    let framed = [b"SPANLINK\x01\0\x01\0", &length[..], body].concat();
    check_hello(&framed);
    check_answer(&framed);
    check_header(bytes);
    check_envelope(bytes);
}

pub(super) fn check_hello(bytes: &[u8]) {
    if let Ok(hello) = read_hello(bytes) {
        assert!(hello.address.len() <= MAX_LINK_ADDRESS_BYTES);
        assert_eq!(read_hello(&hello.encode()).unwrap(), hello);
    }
}

pub(super) fn check_answer(bytes: &[u8]) {
    let Ok(answer) = read_answer(bytes) else {
        return;
    };
    let again = read_answer(&answer.encode()).unwrap();
    match (&again, &answer) {
        // What is said is shorter than what is listened to.
        (HelloAnswer::Refused { reason: again }, HelloAnswer::Refused { reason }) => {
            assert!(reason.starts_with(again.as_str()));
            assert!(again.len() == reason.len() || again.len() > MAX_LINK_REASON_BYTES - 4);
        }
        _ => assert_eq!(again, answer),
    }
}

pub(super) fn check_header(bytes: &[u8]) {
    if let Some(header) = Header::decode(bytes) {
        assert_eq!(Header::decode(&header.encode()), Some(header));
    }
}

pub(super) fn check_envelope(bytes: &[u8]) {
    if let Some(answer) = Answer::decode(bytes.to_vec()) {
        assert_eq!(Answer::decode(answer.clone().encode()), Some(answer));
    }
}
