//! Which sessions count.

use std::collections::BTreeMap;
use std::sync::Arc;

use spandrel_model::ids::NodeId;
use tokio::time::Instant;

use super::LinkClass;
use super::directory::{Dial, Directory, Elected, LinkIdentity};
use super::hello::{Purpose, Token};
use super::reasons::End;
use super::session::{Session, SessionFacts};

const PEER: NodeId = NodeId(2);

fn directory() -> Directory {
    Directory::new(Some(LinkIdentity {
        cluster_id: 1,
        node: NodeId(1),
    }))
}

fn wanted() -> BTreeMap<NodeId, String> {
    BTreeMap::from([(PEER, "two:1".to_owned())])
}

/// A session of the control class with the peer that has begun.
fn begun(directory: &mut Directory, boot: u64, by_lower: bool, sequence: u64) -> Arc<Session> {
    let mut token = [0; 16];
    token[0] = u8::try_from(boot).unwrap();
    token[1] = u8::from(by_lower);
    token[2] = u8::try_from(sequence).unwrap();
    let facts = SessionFacts {
        purpose: Purpose::Member(LinkClass::Control),
        peer: Some(PEER),
        boot,
        by_lower,
        sequence,
        own_token: Token(token),
        their_token: Token(token),
        gateway: 1,
        version: 1,
    };
    let (session, _left_over) = Session::new(facts);
    assert!(directory.begin(&session));
    session
}

#[test]
fn of_two_sessions_the_same_one_stays_whichever_is_ready_first() {
    // Better first: newer process of the peer, opened by the lower id, later.
    let ranked = [
        (2, false, 1),
        (1, true, 2),
        (1, true, 1),
        (1, false, 9),
        (1, false, 1),
    ];
    for (at, better) in ranked.iter().enumerate() {
        for worse in &ranked[at + 1..] {
            for order in [[better, worse], [worse, better]] {
                let mut directory = directory();
                let sessions = order.map(|(boot, by_lower, sequence)| {
                    begun(&mut directory, *boot, *by_lower, *sequence)
                });
                for session in &sessions {
                    directory.elect(session, Instant::now());
                }
                let kept = directory.route(PEER, LinkClass::Control).unwrap();
                assert_eq!(
                    (kept.facts.boot, kept.facts.by_lower, kept.facts.sequence),
                    *better
                );
            }
        }
    }
}

#[test]
fn a_session_that_has_ended_gives_way_to_any() {
    let mut directory = directory();
    let old = begun(&mut directory, 5, true, 5);
    assert_eq!(directory.elect(&old, Instant::now()), Elected::Now);
    assert_eq!(directory.elect(&old, Instant::now()), Elected::Before);
    old.end();
    assert!(directory.route(PEER, LinkClass::Control).is_err());
    let new = begun(&mut directory, 1, false, 1);
    assert_eq!(directory.elect(&new, Instant::now()), Elected::Now);
    // The end of the old one does not touch the new one.
    directory.lose(&old, End::Closed);
    assert!(directory.route(PEER, LinkClass::Control).is_ok());
    assert_eq!(directory.elect(&old, Instant::now()), Elected::Lost);
}

#[test]
fn a_slot_has_one_dialler_for_as_long_as_its_node_is_wanted() {
    let mut directory = directory();
    assert_eq!(directory.set_peers(wanted(), Instant::now()).len(), 2);
    assert!(directory.set_peers(wanted(), Instant::now()).is_empty());
    let now = Dial::Now {
        address: "two:1".to_owned(),
        yielding: false,
    };
    assert_eq!(directory.next_dial(PEER, LinkClass::Control), now);

    let session = begun(&mut directory, 1, true, 1);
    directory.elect(&session, Instant::now());
    assert_eq!(directory.next_dial(PEER, LinkClass::Control), Dial::Wait);
    assert_eq!(directory.next_dial(PEER, LinkClass::Bulk), now);

    directory.set_peers(BTreeMap::new(), Instant::now());
    assert!(session.has_ended());
    // Wanted again before the diallers have noticed: they go on.
    assert!(directory.set_peers(wanted(), Instant::now()).is_empty());
    directory.set_peers(BTreeMap::new(), Instant::now());
    for class in [LinkClass::Control, LinkClass::Bulk] {
        assert_eq!(directory.next_dial(PEER, class), Dial::End);
    }
    assert_eq!(directory.set_peers(wanted(), Instant::now()).len(), 2);
}

#[test]
fn a_node_is_no_peer_of_itself() {
    let mut directory = Directory::new(None);
    directory.set_peers(wanted(), Instant::now());
    assert_eq!(
        directory.next_dial(PEER, LinkClass::Control),
        Dial::Wait,
        "no identity yet"
    );
    directory.set_identity(LinkIdentity {
        cluster_id: 1,
        node: PEER,
    });
    assert_eq!(directory.next_dial(PEER, LinkClass::Control), Dial::End);
    assert_eq!(directory.next_dial(PEER, LinkClass::Bulk), Dial::End);
    assert!(directory.peers().is_empty());
}
