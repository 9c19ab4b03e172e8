//! Answers those who join, and those who ask what this node is.

use std::sync::Arc;

use bytes::Bytes;
use spandrel_raft::{Applied, ClusterState, Command, ProposeError, Settings};
use tokio::sync::Semaphore;

use super::message::{Answer, Description, Join, Joined, Protocols, Reason, Refused, Request};
use super::token::lets_in;
use crate::env::Env;
use crate::limits::MAX_PEER_CALLS;
use crate::link::{IncomingCall, PeerHandler};

/// The protocol between nodes that this program speaks: of membership, shards and queries.
const PROTOCOLS: Protocols = Protocols {
    oldest: 1,
    newest: 1,
};

/// This program.
pub(crate) fn describe() -> Description {
    Description {
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        protocols: PROTOCOLS,
    }
}

/// Answers the calls of [`PeerService::Membership`](crate::link::PeerService::Membership).
pub(crate) struct MembershipHandler {
    gate: Gate,
    permits: Arc<Semaphore>,
}

/// Who is let in.
#[derive(Clone)]
struct Gate {
    env: Env,
    settings: Settings,
    token_required: bool,
}

impl MembershipHandler {
    pub(crate) fn new(env: Env, settings: Settings, token_required: bool) -> Self {
        Self {
            gate: Gate {
                env,
                settings,
                token_required,
            },
            permits: Arc::new(Semaphore::new(MAX_PEER_CALLS)),
        }
    }
}

impl PeerHandler for MembershipHandler {
    fn deliver(&self, call: IncomingCall) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let _ = call.reply.send(Err("too many requests at once".to_owned()));
            return;
        };
        let gate = self.gate.clone();
        tokio::spawn(async move {
            let answer = gate.answer(call.request).await;
            let _ = call.reply.send(Ok(answer.encode()));
            drop(permit);
        });
    }
}

fn refused(reason: Reason, message: impl std::fmt::Display) -> Refused {
    Refused {
        reason,
        message: message.to_string(),
    }
}

impl Gate {
    async fn answer(&self, request: Bytes) -> Answer {
        match Request::decode(request) {
            Err(error) => Answer::Refused(refused(Reason::Invalid, error)),
            Ok(Request::Describe) => Answer::Described(describe()),
            Ok(Request::Join(join)) => match self.join(join).await {
                Ok(joined) => Answer::Joined(joined),
                Err(refusal) => {
                    tracing::warn!(
                        link = join_address(&refusal.1),
                        reason = %refusal.0.message,
                        "a node was not let in"
                    );
                    Answer::Refused(refusal.0)
                }
            },
        }
    }

    async fn join(&self, join: Join) -> Result<Joined, (Refused, Join)> {
        let state = self.settings.state();
        let joined = match fits(&join, &state) {
            Err(refusal) => Err(refusal),
            Ok(()) => self.admit(&join, &state).await,
        };
        joined.map_err(|refusal| (refusal, join))
    }

    async fn admit(&self, join: &Join, state: &ClusterState) -> Result<Joined, Refused> {
        // A directory that is in already needs neither a token nor the leader.
        if let Some(joined) = joined(join, state) {
            return Ok(joined);
        }
        let unavailable = |error: ProposeError| refused(Reason::Unavailable, error);
        let newest = self.settings.linearizable().await.map_err(unavailable)?;
        if let Some(joined) = joined(join, &newest) {
            return Ok(joined);
        }
        if let Some(cluster_id) = join.cluster_id {
            let message = format!(
                "its directory was a node of cluster {cluster_id:016x}, which has removed it: join as a new node, with an empty data directory"
            );
            return Err(refused(Reason::Refused, message));
        }
        self.check_token(join, &newest)?;
        let command = Command::AdmitNode {
            disk_id: join.disk_id,
            addresses: join.addresses.clone(),
            zone: join.zone.clone(),
        };
        match self.settings.propose(command).await {
            Ok(response) if matches!(response.applied, Applied::Node(_)) => {}
            Ok(_) => return Err(refused(Reason::Refused, "the cluster gave it no id")),
            Err(ProposeError::Conflict(conflict)) => {
                return Err(refused(Reason::Refused, conflict));
            }
            Err(error) => return Err(unavailable(error)),
        }
        let gone = || refused(Reason::Unavailable, "it was removed at once");
        joined(join, &self.settings.state()).ok_or_else(gone)
    }

    fn check_token(&self, join: &Join, state: &ClusterState) -> Result<(), Refused> {
        if !self.token_required {
            return Ok(());
        }
        let advice = "get one by `spandrel token create --join` at a member, and give it by --join-token or SPANDREL_JOIN_TOKEN";
        let Some(token) = &join.token else {
            let message = format!("a join token is required: {advice}");
            return Err(refused(Reason::Token, message));
        };
        if lets_in(state, token, self.env.now()) {
            return Ok(());
        }
        let message = format!("the join token is not known or has expired: {advice}");
        Err(refused(Reason::Token, message))
    }
}

fn join_address(join: &Join) -> &str {
    &join.addresses.link
}

/// Version, cluster and shards: each refusal names both sides.
fn fits(join: &Join, state: &ClusterState) -> Result<(), Refused> {
    if !state.is_seeded() {
        let message = "this member does not know the cluster's settings yet";
        return Err(refused(Reason::Unavailable, message));
    }
    let ours = describe();
    if !join.program.protocols.have_one_in_common(ours.protocols) {
        let message = format!(
            "the node runs version {} with protocol {}, this member version {} with protocol {}: upgrade the older one",
            join.program.program_version,
            join.program.protocols,
            ours.program_version,
            ours.protocols
        );
        return Err(refused(Reason::Version, message));
    }
    let cluster = state.cluster_id;
    if let Some(theirs) = join.cluster_id.filter(|theirs| *theirs != cluster) {
        let message = format!(
            "the node's directory belongs to cluster {theirs:016x}, this member to cluster {cluster:016x}: use an empty data directory, an address of that cluster or, if this one was recovered from it, `spandrel node recover --into`"
        );
        return Err(refused(Reason::Cluster, message));
    }
    if let Some(theirs) = join
        .expected_shards
        .filter(|shards| *shards != state.shards)
    {
        let message = format!(
            "the node asks for {theirs} shards, the cluster has {}: leave --shards out",
            state.shards
        );
        return Err(refused(Reason::Shards, message));
    }
    Ok(())
}

/// The answer to a directory that is a member's.
fn joined(join: &Join, state: &ClusterState) -> Option<Joined> {
    let mut nodes = state.nodes.iter();
    let (node, _) = nodes.find(|(_, node)| node.disk_id == join.disk_id)?;
    let members = state.nodes.iter();
    let members = members.filter(|(id, member)| *id != node && !member.addresses.link.is_empty());
    Some(Joined {
        cluster_id: state.cluster_id,
        node: *node,
        shards: state.shards,
        members: members
            .map(|(id, member)| (*id, member.addresses.link.clone()))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use spandrel_raft::ClusterSeed;
    use spandrel_raft::state::NodeAddresses;

    use super::*;

    fn founded() -> ClusterState {
        let mut state = ClusterState::default();
        let seed = ClusterSeed {
            cluster_id: 5,
            routing_key: 7,
            shards: 64,
            replication: 3,
            retention_seconds: 604_800,
            policy_yaml: "policies: []".to_owned(),
        };
        state.apply(&Command::SeedCluster(seed)).unwrap();
        state
    }

    fn join() -> Join {
        Join {
            disk_id: 9,
            addresses: NodeAddresses::default(),
            zone: String::new(),
            program: describe(),
            token: None,
            expected_shards: None,
            cluster_id: None,
        }
    }

    fn refusal(join: Join) -> (Reason, String) {
        let refused = fits(&join, &founded()).unwrap_err();
        (refused.reason, refused.message)
    }

    #[test]
    fn what_does_not_fit_names_both_sides() {
        assert_eq!(fits(&join(), &founded()), Ok(()));
        let (reason, message) = refusal(Join {
            cluster_id: Some(6),
            ..join()
        });
        assert_eq!(reason, Reason::Cluster);
        assert!(
            message.contains("0006") && message.contains("0005"),
            "{message}"
        );
        let (reason, message) = refusal(Join {
            expected_shards: Some(128),
            ..join()
        });
        assert_eq!(reason, Reason::Shards);
        assert!(
            message.contains("128") && message.contains("64"),
            "{message}"
        );
        let program = Description {
            program_version: "9.9.9".to_owned(),
            protocols: Protocols {
                oldest: 7,
                newest: 8,
            },
        };
        let (reason, message) = refusal(Join { program, ..join() });
        assert_eq!(reason, Reason::Version);
        assert!(
            message.contains("7 to 8") && message.contains("9.9.9"),
            "{message}"
        );
        let fresh = fits(&join(), &ClusterState::default()).unwrap_err();
        assert_eq!(fresh.reason, Reason::Unavailable);
    }

    #[test]
    fn a_member_gets_its_own_id_again() {
        let mut state = founded();
        for (disk_id, link) in [(8, "a:1"), (9, "b:1"), (10, "")] {
            let addresses = NodeAddresses {
                link: link.to_owned(),
                ..NodeAddresses::default()
            };
            let zone = String::new();
            let admit = Command::AdmitNode {
                disk_id,
                addresses,
                zone,
            };
            state.apply(&admit).unwrap();
        }
        let answer = joined(&join(), &state).unwrap();
        assert_eq!((answer.node.0, answer.shards), (2, 64));
        assert_eq!(answer.members.len(), 1, "{:?}", answer.members);
        assert_eq!(
            joined(
                &Join {
                    disk_id: 77,
                    ..join()
                },
                &state
            ),
            None
        );
    }
}
