//! The bytes of docs/formats/link.md: every value comes back, known bytes stay, and foreign bytes are refused.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use spandrel_model::ids::NodeId;

use super::codec_oracle::{
    check_answer, check_any, check_envelope, check_header, check_hello, read_answer, read_hello,
};
use super::envelope::{Answer, Asked, Header};
use super::hello::{Accepted, Hello, HelloAnswer, Purpose, Token, common_version};
use super::{LinkClass, PeerService};
use crate::limits::MAX_LINK_REASON_BYTES;

fn example() -> Hello {
    Hello {
        versions: (1, 1),
        purpose: Purpose::Member(LinkClass::Bulk),
        cluster_id: 0xC1,
        node: Some(NodeId(2)),
        to: Some(NodeId(1)),
        boot: 3,
        sequence: 4,
        token: Token([5; 16]),
        gateway: 6,
        address: "a:1".to_owned(),
    }
}

#[test]
fn a_hello_of_version_1_stays_as_it_is() {
    let mut expected = b"SPANLINK\x01\0\x01\0\x46\0\x02".to_vec();
    for number in [0xC1_u64, 2, 1, 3, 4, 6] {
        expected.extend_from_slice(&number.to_le_bytes());
    }
    expected.extend_from_slice(&[5; 16]);
    expected.extend_from_slice(b"\x03\0a:1");
    assert_eq!(example().encode(), expected);
}

#[test]
fn a_hello_cut_short_or_of_another_protocol_is_refused() {
    let bytes = example().encode();
    for end in 0..bytes.len() {
        assert!(read_hello(&bytes[..end]).is_err());
    }
    assert!(read_hello(b"GET / HTTP/1.1\r\nHost: node-1\r\n\r\n").is_err());
    // A body that is shorter than its fields.
    let mut short = bytes.clone();
    short[12] = 10;
    assert!(read_hello(&short).is_err());
}

#[test]
fn of_a_version_that_is_not_spoken_only_the_versions_are_read() {
    let bytes = b"SPANLINK\x07\0\x09\0\x03\0???".to_vec();
    assert_eq!(read_hello(&bytes).unwrap().versions, (7, 9));
}

#[test]
fn both_speak_the_newest_version_that_both_know() {
    assert_eq!(common_version((1, 2), (2, 3)), Some(2));
    assert_eq!(common_version((3, 4), (2, 3)), Some(3));
    assert_eq!(common_version((1, 2), (3, 4)), None);
    assert_eq!(common_version((3, 4), (1, 2)), None);
}

#[test]
fn a_long_reason_is_cut() {
    let reason = "\u{e9}".repeat(MAX_LINK_REASON_BYTES);
    let bytes = HelloAnswer::Refused { reason }.encode();
    let HelloAnswer::Refused { reason } = read_answer(&bytes).unwrap() else {
        panic!("it was a refusal")
    };
    assert_eq!(reason.len(), MAX_LINK_REASON_BYTES);
}

#[test]
fn a_header_of_version_1_stays_as_it_is() {
    let header = Header {
        asked: Asked::Service(PeerService::Query, Duration::from_millis(0x0102)),
        token: Token([9; 16]),
    };
    let mut expected = vec![1, 3, 2, 1, 0, 0];
    expected.extend_from_slice(&[9; 16]);
    assert_eq!(header.encode(), expected);
    assert_eq!(Header::decode(&expected[..21]), None);
    assert_eq!(
        Header::decode(&[&[1, 99], &expected[2..]].concat()),
        None,
        "a service of a later version"
    );
}

fn purpose() -> impl Strategy<Value = Purpose> {
    prop_oneof![
        Just(Purpose::Member(LinkClass::Control)),
        Just(Purpose::Member(LinkClass::Bulk)),
        Just(Purpose::Passing),
    ]
}

prop_compose! {
    fn hello()(
        purpose in purpose(),
        numbers in any::<[u64; 6]>(),
        token in any::<[u8; 16]>(),
        address in "[a-z.]{0,200}:[0-9]{1,5}",
    ) -> Hello {
        let [cluster_id, node, to, boot, sequence, gateway] = numbers;
        let id = |number: u64| (!number.is_multiple_of(3)).then_some(NodeId(number));
        let (node, to, token) = (id(node), id(to), Token(token));
        Hello { versions: (1, 1), purpose, cluster_id, node, to, boot, sequence, token, gateway, address }
    }
}

proptest! {
    #[test]
    fn every_hello_comes_back(hello in hello()) {
        prop_assert_eq!(read_hello(&hello.encode()).unwrap(), hello);
    }

    #[test]
    fn every_answer_to_a_hello_comes_back(numbers in any::<[u64; 4]>(), token in any::<[u8; 16]>(), reason in ".{0,100}") {
        let [cluster_id, node, boot, gateway] = numbers;
        let accepted = Accepted { version: 1, cluster_id, node: NodeId(node), boot, gateway, token: Token(token) };
        for answer in [HelloAnswer::Accepted(accepted), HelloAnswer::Refused { reason }] {
            prop_assert_eq!(read_answer(&answer.encode()).unwrap(), answer);
        }
    }

    #[test]
    fn every_header_comes_back(service in 1_u8..=5, deadline_ms in any::<u32>(), token in any::<[u8; 16]>(), ping in any::<bool>()) {
        let service = PeerService::from_number(service).unwrap();
        let deadline = Duration::from_millis(deadline_ms.into());
        let asked = if ping { Asked::Ping } else { Asked::Service(service, deadline) };
        let header = Header { asked, token: Token(token) };
        prop_assert_eq!(Header::decode(&header.encode()), Some(header));
    }

    #[test]
    fn every_answer_comes_back(bytes in any::<Vec<u8>>(), reason in ".{0,100}") {
        let done = Answer::Done(Bytes::from(bytes));
        for answer in [done, Answer::Refused(reason), Answer::Late, Answer::Stopping, Answer::TooLarge] {
            prop_assert_eq!(Answer::decode(answer.clone().encode()), Some(answer));
        }
    }

    /// Bytes that are nearly right go deeper than random ones. What is read of them is written and read again alike.
    #[test]
    fn damaged_bytes_are_read_or_refused(
        hello in hello(),
        reason in ".{0,100}",
        status in any::<u8>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let damaged = |mut bytes: Vec<u8>| {
            for (at, byte) in &damage {
                *at.get_mut(&mut bytes) = *byte;
            }
            bytes
        };
        check_hello(&damaged(hello.encode()));
        let accepted = Accepted {
            version: 1,
            cluster_id: hello.cluster_id,
            node: NodeId(hello.boot),
            boot: hello.boot,
            gateway: hello.gateway,
            token: hello.token,
        };
        for answer in [HelloAnswer::Accepted(accepted), HelloAnswer::Refused { reason: reason.clone() }] {
            check_answer(&damaged(answer.encode()));
        }
        let service = PeerService::from_number(1 + status % 5).unwrap();
        let asked = Asked::Service(service, Duration::from_millis(hello.boot & 0xFFFF));
        let header = Header { asked, token: hello.token };
        check_header(&damaged(header.encode()));
        check_envelope(&damaged(Answer::Refused(reason).encode()));
    }

    #[test]
    fn no_bytes_are_a_panic(bytes in any::<Vec<u8>>()) {
        check_any(&bytes);
    }
}
