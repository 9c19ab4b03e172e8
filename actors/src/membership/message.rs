//! What nodes tell each other about membership, checked: nothing that is out of bounds comes past here.

use bytes::Bytes;
use prost::Message;
use spandrel_model::ids::NodeId;
use spandrel_raft::limits::{MAX_ADDRESS_BYTES, MAX_NODES, MAX_SHARDS};
use spandrel_raft::state::NodeAddresses;

use crate::limits::{MAX_REASON_BYTES, MAX_TOKEN_BYTES, MAX_VERSION_BYTES};
use crate::membership::JoinSecret;
use crate::wire;

pub(super) use crate::wire::refusal::Reason;
pub(super) use wire::membership_request::Body as WireRequest;

/// The versions of the protocol between nodes that a program speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Protocols {
    pub(crate) oldest: u32,
    pub(crate) newest: u32,
}

impl Protocols {
    pub(crate) fn have_one_in_common(self, other: Self) -> bool {
        self.oldest <= other.newest && other.oldest <= self.newest
    }
}

impl std::fmt::Display for Protocols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.oldest == self.newest {
            return write!(f, "{}", self.newest);
        }
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

/// What a program is, for people and for the versions' sake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) program_version: String,
    pub(crate) protocols: Protocols,
}

/// A node asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) disk_id: u64,
    pub(crate) addresses: NodeAddresses,
    pub(crate) zone: String,
    pub(crate) program: Description,
    pub(crate) token: Option<JoinSecret>,
    pub(crate) expected_shards: Option<u16>,
    /// The cluster that the directory belongs to, if any.
    pub(crate) cluster_id: Option<u64>,
}

/// It is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) cluster_id: u64,
    pub(crate) node: NodeId,
    pub(crate) shards: u16,
    pub(crate) members: Vec<(NodeId, String)>,
}

/// It is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Join(Join),
    Describe,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Joined(Joined),
    Refused(Refused),
    Described(Description),
}

/// Bytes that are no such message, or one that is out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct MessageError {
    pub(crate) field: &'static str,
    pub(crate) reason: String,
}

fn wrong(field: &'static str, reason: impl std::fmt::Display) -> MessageError {
    MessageError {
        field,
        reason: reason.to_string(),
    }
}

/// A text of at most so many bytes.
fn text(field: &'static str, value: String, most_bytes: usize) -> Result<String, MessageError> {
    if value.len() > most_bytes {
        let reason = format!("{} bytes are over the limit of {most_bytes}", value.len());
        return Err(wrong(field, reason));
    }
    Ok(value)
}

fn shard_count(field: &'static str, shards: u32) -> Result<u16, MessageError> {
    let known = u16::try_from(shards).ok();
    let known = known.filter(|shards| *shards <= MAX_SHARDS && shards.is_power_of_two());
    known.ok_or_else(|| wrong(field, format!("{shards} is no number of shards")))
}

impl Description {
    fn decode(version: String, oldest: u32, newest: u32) -> Result<Self, MessageError> {
        if oldest > newest {
            return Err(wrong(
                "protocol",
                format!("from {oldest} to {newest} is none"),
            ));
        }
        Ok(Self {
            program_version: text("program_version", version, MAX_VERSION_BYTES)?,
            protocols: Protocols { oldest, newest },
        })
    }
}

impl Request {
    pub(crate) fn encode(&self) -> Bytes {
        let body = match self {
            Self::Describe => WireRequest::Describe(wire::DescribeRequest {}),
            Self::Join(join) => WireRequest::Join(wire::JoinRequest {
                disk_id: join.disk_id,
                addresses: Some(wire::Addresses {
                    link: join.addresses.link.clone(),
                    http: join.addresses.http.clone(),
                    grpc: join.addresses.grpc.clone(),
                }),
                zone: join.zone.clone(),
                program_version: join.program.program_version.clone(),
                oldest_protocol: join.program.protocols.oldest,
                newest_protocol: join.program.protocols.newest,
                token: join
                    .token
                    .as_ref()
                    .map_or("", JoinSecret::reveal)
                    .to_owned(),
                shards: join.expected_shards.unwrap_or(0).into(),
                cluster_id: join.cluster_id.unwrap_or(0),
            }),
        };
        let request = wire::MembershipRequest { body: Some(body) };
        Bytes::from(request.encode_to_vec())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, MessageError> {
        let request = wire::MembershipRequest::decode(bytes);
        let request = request.map_err(|error| wrong("message", error))?;
        let join = match request.body {
            Some(WireRequest::Join(join)) => join,
            Some(WireRequest::Describe(_)) => return Ok(Self::Describe),
            None => return Err(wrong("message", "it asks for nothing that is known here")),
        };
        let program = Description::decode(
            join.program_version,
            join.oldest_protocol,
            join.newest_protocol,
        )?;
        let addresses = join.addresses.unwrap_or_default();
        let address = |field, value| text(field, value, MAX_ADDRESS_BYTES);
        let token = text("token", join.token, MAX_TOKEN_BYTES)?;
        let expected_shards = match join.shards {
            0 => None,
            shards => Some(shard_count("shards", shards)?),
        };
        Ok(Self::Join(Join {
            disk_id: join.disk_id,
            addresses: NodeAddresses {
                link: address("link address", addresses.link)?,
                http: address("http address", addresses.http)?,
                grpc: address("grpc address", addresses.grpc)?,
            },
            zone: text("zone", join.zone, MAX_ADDRESS_BYTES)?,
            program,
            token: (!token.is_empty()).then(|| JoinSecret::from_text(&token)),
            expected_shards,
            cluster_id: (join.cluster_id != 0).then_some(join.cluster_id),
        }))
    }
}

impl Answer {
    pub(crate) fn encode(self) -> Bytes {
        use wire::membership_answer::Body;
        let body = match self {
            Self::Joined(joined) => Body::Join(wire::JoinAnswer {
                cluster_id: joined.cluster_id,
                node: joined.node.0,
                shards: joined.shards.into(),
                members: joined
                    .members
                    .into_iter()
                    .map(|(node, link_address)| wire::Member {
                        node: node.0,
                        link_address,
                    })
                    .collect(),
            }),
            Self::Refused(refused) => Body::Refused(wire::Refusal {
                reason: refused.reason.into(),
                message: refused.message.chars().take(MAX_REASON_BYTES / 4).collect(),
            }),
            Self::Described(description) => Body::Description(wire::Description {
                program_version: description.program_version,
                oldest_protocol: description.protocols.oldest,
                newest_protocol: description.protocols.newest,
            }),
        };
        let answer = wire::MembershipAnswer { body: Some(body) };
        Bytes::from(answer.encode_to_vec())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, MessageError> {
        use wire::membership_answer::Body;
        let answer = wire::MembershipAnswer::decode(bytes);
        let answer = answer.map_err(|error| wrong("message", error))?;
        match answer.body {
            Some(Body::Join(joined)) => Joined::decode(joined).map(Self::Joined),
            Some(Body::Refused(refused)) => {
                let reason = refused.reason();
                let message = text("refusal", refused.message, MAX_REASON_BYTES)?;
                Ok(Self::Refused(Refused { reason, message }))
            }
            Some(Body::Description(description)) => Description::decode(
                description.program_version,
                description.oldest_protocol,
                description.newest_protocol,
            )
            .map(Self::Described),
            None => Err(wrong("message", "it answers nothing that was asked")),
        }
    }
}

impl Joined {
    fn decode(joined: wire::JoinAnswer) -> Result<Self, MessageError> {
        if joined.cluster_id == 0 || joined.node == 0 {
            return Err(wrong("join answer", "it names no cluster or no node"));
        }
        if joined.members.len() > MAX_NODES {
            let reason = format!("{} are over the limit of {MAX_NODES}", joined.members.len());
            return Err(wrong("members", reason));
        }
        let member = |member: wire::Member| {
            let address = text("member's address", member.link_address, MAX_ADDRESS_BYTES)?;
            Ok((NodeId(member.node), address))
        };
        Ok(Self {
            cluster_id: joined.cluster_id,
            node: NodeId(joined.node),
            shards: shard_count("shards", joined.shards)?,
            members: joined
                .members
                .into_iter()
                .map(member)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message_oracle::check_any;
    use super::*;

    fn join() -> impl Strategy<Value = Join> {
        let texts = (".{0,40}", ".{0,40}", "[a-z]{0,9}", "[0-9.]{0,9}");
        let numbers = (any::<u64>(), 0u32..5, 0u32..5, 0u32..13);
        let rest = (prop::option::of("[a-f0-9-]{1,40}"), any::<Option<u64>>());
        (texts, numbers, rest).prop_map(|((link, http, zone, version), numbers, rest)| {
            let (disk_id, oldest, more, shards) = numbers;
            Join {
                disk_id,
                addresses: NodeAddresses {
                    link,
                    http,
                    grpc: String::new(),
                },
                zone,
                program: Description {
                    program_version: version,
                    protocols: Protocols {
                        oldest,
                        newest: oldest + more,
                    },
                },
                token: rest.0.map(|token| JoinSecret::from_text(&token)),
                expected_shards: Some(1u16 << shards).filter(|_| shards % 2 == 0),
                cluster_id: rest.1.filter(|id| *id != 0),
            }
        })
    }

    proptest! {
        #[test]
        fn requests_come_back(join in join()) {
            let request = Request::Join(join);
            prop_assert_eq!(Request::decode(request.encode()).unwrap(), request);
        }

        #[test]
        fn answers_come_back(cluster_id in 1u64.., node in 1u64.., members in prop::collection::vec((1u64.., "[a-z:]{0,20}"), 0..9)) {
            let members = members.into_iter().map(|(node, address)| (NodeId(node), address));
            let joined = Joined { cluster_id, node: NodeId(node), shards: 64, members: members.collect() };
            let refused = Refused { reason: Reason::Version, message: "older".to_owned() };
            for answer in [Answer::Joined(joined), Answer::Refused(refused)] {
                prop_assert_eq!(Answer::decode(answer.clone().encode()).unwrap(), answer);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            check_any(&Bytes::from(bytes));
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let good = wire::JoinRequest {
            disk_id: 1,
            newest_protocol: 1,
            ..wire::JoinRequest::default()
        };
        let decode = |join: &wire::JoinRequest| {
            let body = Some(WireRequest::Join(join.clone()));
            Request::decode(Bytes::from(
                wire::MembershipRequest { body }.encode_to_vec(),
            ))
        };
        assert!(decode(&good).is_ok());
        let long = "x".repeat(2_000);
        let mut bad = vec![good.clone(); 5];
        bad[0].zone.clone_from(&long);
        bad[1].token.clone_from(&long);
        bad[2].shards = 3;
        bad[3].oldest_protocol = 2;
        bad[4].program_version.clone_from(&long);
        for join in bad {
            assert!(decode(&join).is_err(), "{join:?}");
        }
        assert!(Request::decode(Bytes::new()).is_err());
    }

    #[test]
    fn versions_meet_when_one_is_in_common() {
        let range = |oldest, newest| Protocols { oldest, newest };
        assert!(range(1, 2).have_one_in_common(range(2, 3)));
        assert!(!range(1, 1).have_one_in_common(range(2, 3)));
        assert_eq!(range(1, 2).to_string(), "1 to 2");
    }
}
