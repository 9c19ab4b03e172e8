//! A restored image of a node's directory was taken for the node: its boot counter came out right. What it had
//! acknowledged since was missing in it, and shards that it filled waited for its settings, which never caught up.

use spandrel_model::ids::NodeId;

use super::*;
use crate::limits::MAX_EARLIER_LIVES;

fn founded() -> ClusterState {
    let mut state = ClusterState::default();
    let seed = ClusterSeed {
        cluster_id: 5,
        routing_key: 77,
        shards: 4,
        replication: 3,
        retention_seconds: 604_800,
        policy_yaml: "policies: []".to_owned(),
    };
    state.apply(&Command::SeedCluster(seed)).unwrap();
    state
}

fn registration(boot: u64) -> NodeRegistration {
    NodeRegistration {
        node: NodeId(1),
        addresses: NodeAddresses::default(),
        zone: String::new(),
        disk_id: 8,
        boot,
    }
}

/// The start numbered `boot`, of a directory that has had the earlier lives.
fn starts(boot: u64, life: u64, earlier: &[u64]) -> Command {
    Command::RegisterLife {
        registration: registration(boot),
        life: NodeLife {
            life,
            earlier: earlier.to_vec(),
        },
    }
}

const OLD_IMAGE: Conflict = Conflict::ImageOfNode {
    node: NodeId(1),
    known_life: 12,
};

#[test]
fn an_image_of_the_start_before_is_refused() {
    let mut state = founded();
    assert_eq!(
        state.apply(&starts(1, 11, &[])),
        Ok(Applied::Incarnation(1))
    );
    // a restart, after which the image of the first start is started: it counts to the same boot
    assert_eq!(
        state.apply(&starts(2, 12, &[11])),
        Ok(Applied::Incarnation(2))
    );
    assert_eq!(state.apply(&starts(2, 13, &[11])), Err(OLD_IMAGE));
    // as often as it likes, whatever its counter
    assert_eq!(state.apply(&starts(3, 14, &[11, 13])), Err(OLD_IMAGE));
    assert!(OLD_IMAGE.to_string().contains("000000000000000c"));
    // and the node itself goes on
    assert_eq!(
        state.apply(&starts(3, 15, &[12])),
        Ok(Applied::Incarnation(3))
    );
}

#[test]
fn of_two_that_start_from_one_image_the_first_is_the_node() {
    let mut state = founded();
    state.apply(&starts(1, 11, &[])).unwrap();
    state.apply(&starts(2, 12, &[11])).unwrap();
    assert_eq!(state.apply(&starts(2, 13, &[11])), Err(OLD_IMAGE));
    // nor is a process that runs while its copy has registered
    assert_eq!(state.apply(&starts(1, 11, &[])), wiped(1, 2));
}

fn wiped(boot: u64, known_boot: u64) -> Result<Applied, Conflict> {
    Err(Conflict::WipedNode {
        node: NodeId(1),
        disk_id: 8,
        boot,
        known_disk_id: 8,
        known_boot,
    })
}

#[test]
fn a_registration_whose_answer_was_lost_may_come_again_and_so_may_the_next_start() {
    let mut state = founded();
    state.apply(&starts(1, 11, &[])).unwrap();
    let second = starts(2, 12, &[11]);
    assert_eq!(state.apply(&second), Ok(Applied::Incarnation(2)));
    assert_eq!(state.apply(&second), Ok(Applied::Incarnation(2)));
    // it died before it had the answer
    let third = starts(3, 13, &[11, 12]);
    assert_eq!(state.apply(&third), Ok(Applied::Incarnation(3)));
}

#[test]
fn starts_that_ended_before_they_registered_do_no_harm() {
    let mut state = founded();
    state.apply(&starts(1, 11, &[])).unwrap();
    // the second and the third start died
    let fourth = starts(4, 14, &[11, 12, 13]);
    assert_eq!(state.apply(&fourth), Ok(Applied::Incarnation(2)));
    let many = vec![14; MAX_EARLIER_LIVES + 1];
    let refused = state.apply(&starts(5, 15, &many));
    assert!(matches!(refused, Err(Conflict::OutOfRange { .. })));
}

#[test]
fn a_node_that_is_set_down_while_it_runs_comes_back_in_its_life() {
    let mut state = founded();
    let first = starts(1, 11, &[]);
    state.apply(&first).unwrap();
    state
        .apply(&sets(1, NodeState::Up, NodeState::Down))
        .unwrap();
    assert_eq!(state.apply(&first), Ok(Applied::Incarnation(2)));
}

fn renews(life: u64, earlier: &[u64]) -> Command {
    Command::RenewLife {
        node: NodeId(1),
        life: NodeLife {
            life,
            earlier: earlier.to_vec(),
        },
    }
}

#[test]
fn an_image_that_was_taken_while_the_node_ran_is_refused_once_the_life_is_renewed() {
    let mut state = founded();
    state.apply(&starts(1, 11, &[])).unwrap();
    let epoch = state.epoch;
    // the answer to the first was lost, and it comes twice
    let renewed = renews(12, &[11]);
    assert_eq!(state.apply(&renewed), Ok(Applied::Done));
    assert_eq!(state.apply(&renewed), Ok(Applied::Done));
    assert_eq!(
        (state.nodes[&NodeId(1)].incarnation, state.epoch),
        (1, epoch)
    );
    assert_eq!(state.apply(&starts(2, 13, &[11])), Err(OLD_IMAGE));
    // one that was late, of a life before
    assert_eq!(state.apply(&renews(9, &[11])), Err(OLD_IMAGE));

    // and: the node itself goes on, also where it did not hear that it was renewed
    let next = starts(2, 14, &[11, 12]);
    assert_eq!(state.apply(&next), Ok(Applied::Incarnation(2)));
    // what the start before had proposed does not make an image of this one
    assert!(state.apply(&renews(12, &[11])).is_err());
    assert_eq!(state.apply(&next), Ok(Applied::Incarnation(2)));
    let many = vec![14; MAX_EARLIER_LIVES + 1];
    let refused = state.apply(&renews(15, &many));
    assert!(matches!(refused, Err(Conflict::OutOfRange { .. })));
}

fn sets(expected_incarnation: u64, expected: NodeState, state: NodeState) -> Command {
    Command::SetNodeState {
        node: NodeId(1),
        expected_incarnation,
        expected,
        state,
    }
}

/// A node that died while it left came back as up, and was given shards again.
#[test]
fn a_node_that_goes_down_while_it_leaves_goes_on_leaving() {
    use NodeState::{Down, Draining, Up};
    let mut state = founded();
    let is = |state: &ClusterState| state.nodes[&NodeId(1)].state;
    state.apply(&starts(1, 11, &[])).unwrap();
    state.apply(&sets(1, Up, Draining)).unwrap();
    state.apply(&sets(1, Draining, Down)).unwrap();
    state.check();
    // after a restart
    state.apply(&starts(2, 12, &[11])).unwrap();
    assert_eq!(is(&state), Draining);
    // and when it was only cut off
    state.apply(&sets(2, Draining, Down)).unwrap();
    state.apply(&starts(2, 12, &[11])).unwrap();
    assert_eq!(is(&state), Draining);
    state.check();
    // one that went down otherwise is up again
    state.apply(&sets(3, Draining, Up)).unwrap();
    state.apply(&sets(3, Up, Down)).unwrap();
    state.apply(&starts(3, 13, &[12])).unwrap();
    assert_eq!(is(&state), Up);
    state.check();
}

#[test]
fn a_program_that_tells_no_life_registers_until_its_directory_has_had_one() {
    let mut state = founded();
    let old = |boot| Command::RegisterNode(registration(boot));
    assert_eq!(state.apply(&old(1)), Ok(Applied::Incarnation(1)));
    assert_eq!(state.apply(&old(2)), Ok(Applied::Incarnation(2)));
    // the new program on the same directory
    let upgraded = starts(3, 12, &[]);
    assert_eq!(state.apply(&upgraded), Ok(Applied::Incarnation(3)));
    // an image from before, under either program
    assert_eq!(state.apply(&old(3)), Err(OLD_IMAGE));
    assert_eq!(state.apply(&starts(3, 13, &[])), Err(OLD_IMAGE));
    // a node that is removed is forgotten
    let remove = Command::RemoveNode {
        node: NodeId(1),
        expected_incarnation: 3,
    };
    state.apply(&remove).unwrap();
    assert!(state.lives.is_empty());
    state.check();
}
