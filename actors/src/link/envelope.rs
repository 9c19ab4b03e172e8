//! What goes with each call and each answer, beside the service's bytes. Laid out in docs/formats/link.md.

use std::time::Duration;

use bytes::Bytes;

use super::PeerService;
use super::hello::Token;

/// Bytes of a header.
const HEADER_BYTES: usize = 22;
const KIND_CALL: u8 = 1;
const KIND_PING: u8 = 2;

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A service's answer to the bytes, within a time.
    Service(PeerService, Duration),
    /// A sign of life.
    Ping,
}

/// The header of a message: travels as ractor_cluster's metadata, so that the payload is not copied to prepend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) asked: Asked,
    /// The session, by the token of the side that receives.
    pub(crate) token: Token,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, service, deadline) = match self.asked {
            Asked::Service(service, deadline) => (KIND_CALL, service as u8, deadline),
            Asked::Ping => (KIND_PING, 0, Duration::ZERO),
        };
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&[kind, service]);
        bytes.extend_from_slice(&deadline_ms.to_le_bytes());
        bytes.extend_from_slice(&self.token.0);
        bytes
    }

    /// `None` for bytes that are no header of this version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let ([kind, service], rest) = bytes.split_first_chunk::<2>()?;
        let (deadline_ms, token) = rest.split_first_chunk::<4>()?;
        let deadline = Duration::from_millis(u32::from_le_bytes(*deadline_ms).into());
        let asked = match *kind {
            KIND_CALL => Asked::Service(PeerService::from_number(*service)?, deadline),
            KIND_PING => Asked::Ping,
            _ => return None,
        };
        Some(Self {
            asked,
            token: Token(token.try_into().ok()?),
        })
    }
}

/// What became of a call at the other side. The number on the wire is the last byte of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The service's bytes.
    Done(Bytes),
    /// The call was not taken, for this reason.
    Refused(String),
    /// The service did not answer within the call's deadline.
    Late,
    /// The node is stopping; the call may have been acted on.
    Stopping,
    /// The service's answer is over the limit for a message; the call was acted on.
    TooLarge,
}

impl Answer {
    pub(crate) fn encode(self) -> Vec<u8> {
        let (mut bytes, status) = match self {
            Self::Done(bytes) => (Vec::from(bytes), 0),
            Self::Refused(reason) => (reason.into_bytes(), 1),
            Self::Late => (Vec::new(), 2),
            Self::Stopping => (Vec::new(), 3),
            Self::TooLarge => (Vec::new(), 4),
        };
        bytes.push(status);
        bytes
    }

    /// `None` for bytes that are no answer of this version.
    pub(crate) fn decode(mut bytes: Vec<u8>) -> Option<Self> {
        Some(match bytes.pop()? {
            0 => Self::Done(Bytes::from(bytes)),
            1 => Self::Refused(String::from_utf8_lossy(&bytes).into_owned()),
            2 => Self::Late,
            3 => Self::Stopping,
            4 => Self::TooLarge,
            _ => return None,
        })
    }
}
