//! The handshake of two nodes, on the bare stream, before ractor_cluster sees it. Laid out in docs/formats/link.md.

use std::io;

use spandrel_model::ids::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::LinkClass;
use crate::limits::{MAX_LINK_ADDRESS_BYTES, MAX_LINK_REASON_BYTES};

/// Newest version of the links that this build speaks: the second one has copies, pages and inventories
/// ([`PeerService`](super::PeerService)).
/// A change of ractor_cluster's frames is a new version too.
pub const NEWEST_VERSION: u16 = 2;
/// Oldest version that this build speaks: the one before the newest.
pub const OLDEST_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"SPANLINK";
/// Bytes before the body: magic, two versions, the body's length.
const PREFIX_BYTES: usize = 14;
/// Bytes of a hello's body without the address.
const HELLO_BYTES: usize = 67;
/// Bytes of an accepting answer's body.
const ACCEPTED_BYTES: usize = 49;
/// Longest body that is read.
const MAX_BODY_BYTES: usize = 1_024;

const STATUS_ACCEPTED: u8 = 0;
const STATUS_REFUSED: u8 = 1;

/// Names a session at the side that issued it; whoever knows it may speak in that session's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token(pub(crate) [u8; 16]);

impl std::fmt::Debug for Token {
    /// A token is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// One of the two sessions between members.
    Member(LinkClass),
    /// Single calls to an address, by a node that joins or looks for members.
    Passing,
}

impl Purpose {
    fn number(self) -> u8 {
        match self {
            Self::Member(LinkClass::Control) => 1,
            Self::Member(LinkClass::Bulk) => 2,
            Self::Passing => 3,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Member(LinkClass::Control),
            2 => Self::Member(LinkClass::Bulk),
            3 => Self::Passing,
            _ => return None,
        })
    }

    /// The class whose limits hold for it.
    pub(crate) fn class(self) -> LinkClass {
        match self {
            Self::Member(class) => class,
            Self::Passing => LinkClass::Control,
        }
    }
}

/// What the side that dialled says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Oldest and newest version that it speaks.
    pub(crate) versions: (u16, u16),
    pub(crate) purpose: Purpose,
    /// Its cluster; 0 of a node that joins.
    pub(crate) cluster_id: u64,
    /// Itself; `None` of a node that joins.
    pub(crate) node: Option<NodeId>,
    /// Whom it means to reach; `None` when it knows an address only.
    pub(crate) to: Option<NodeId>,
    /// Which start of its data directory it is.
    pub(crate) boot: u64,
    /// Counts the connections that this process has opened.
    pub(crate) sequence: u64,
    /// Names the session in calls to it.
    pub(crate) token: Token,
    /// Its gateway actor.
    pub(crate) gateway: u64,
    /// Where it takes connections itself.
    pub(crate) address: String,
}

/// What the other side answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HelloAnswer {
    /// The session may begin.
    Accepted(Accepted),
    /// It may not; the stream is closed.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// The other side of a session that may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// The version that both speak from here on.
    pub(crate) version: u16,
    pub(crate) cluster_id: u64,
    pub(crate) node: NodeId,
    pub(crate) boot: u64,
    /// Names the session in calls to it.
    pub(crate) token: Token,
    /// Its gateway actor.
    pub(crate) gateway: u64,
}

/// The newest version that both ranges hold.
pub(crate) fn common_version(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let newest = ours.1.min(theirs.1);
    (newest >= ours.0 && newest >= theirs.0).then_some(newest)
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let address = up_to(&self.address, MAX_LINK_ADDRESS_BYTES);
        let mut body = Vec::with_capacity(HELLO_BYTES + address.len());
        body.push(self.purpose.number());
        let id = |node: Option<NodeId>| node.map_or(0, |node| node.0);
        for number in [
            self.cluster_id,
            id(self.node),
            id(self.to),
            self.boot,
            self.sequence,
            self.gateway,
        ] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(&self.token.0);
        body.extend_from_slice(&length(address.len()));
        body.extend_from_slice(address.as_bytes());
        frame(self.versions, &body)
    }

    /// Reads a hello. Of versions that this build does not speak only the versions are read, the rest is empty: the
    /// caller refuses it with a reason.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let (versions, body) = read_frame(stream).await?;
        let mut hello = Self {
            versions,
            purpose: Purpose::Passing,
            cluster_id: 0,
            node: None,
            to: None,
            boot: 0,
            sequence: 0,
            token: Token([0; 16]),
            gateway: 0,
            address: String::new(),
        };
        if common_version((OLDEST_VERSION, NEWEST_VERSION), versions).is_none() {
            return Ok(hello);
        }
        let mut rest = Rest(&body);
        let id = |number: u64| (number != 0).then_some(NodeId(number));
        hello.purpose = Purpose::from_number(rest.byte()?)
            .ok_or_else(|| malformed("a purpose that is not known"))?;
        hello.cluster_id = rest.number()?;
        hello.node = id(rest.number()?);
        hello.to = id(rest.number()?);
        hello.boot = rest.number()?;
        hello.sequence = rest.number()?;
        hello.gateway = rest.number()?;
        hello.token = Token(rest.take()?);
        let address = usize::from(u16::from_le_bytes(rest.take()?));
        if address > MAX_LINK_ADDRESS_BYTES {
            return Err(malformed("an address that is too long"));
        }
        hello.address = rest.text(address)?;
        Ok(hello)
    }
}

impl HelloAnswer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(ACCEPTED_BYTES);
        let version = match self {
            Self::Accepted(accepted) => {
                body.push(STATUS_ACCEPTED);
                for number in [
                    accepted.cluster_id,
                    accepted.node.0,
                    accepted.boot,
                    accepted.gateway,
                ] {
                    body.extend_from_slice(&number.to_le_bytes());
                }
                body.extend_from_slice(&accepted.token.0);
                accepted.version
            }
            Self::Refused { reason } => {
                body.push(STATUS_REFUSED);
                body.extend_from_slice(up_to(reason, MAX_LINK_REASON_BYTES).as_bytes());
                NEWEST_VERSION
            }
        };
        frame((OLDEST_VERSION, version), &body)
    }

    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let ((_, version), body) = read_frame(stream).await?;
        let mut rest = Rest(&body);
        match rest.byte()? {
            STATUS_ACCEPTED => Ok(Self::Accepted(Accepted {
                version,
                cluster_id: rest.number()?,
                node: NodeId(rest.number()?),
                boot: rest.number()?,
                gateway: rest.number()?,
                token: Token(rest.take()?),
            })),
            STATUS_REFUSED => Ok(Self::Refused {
                reason: rest.text(rest.0.len())?,
            }),
            _ => Err(malformed("a status that is not known")),
        }
    }
}

/// Writes one side's words.
pub(crate) async fn say(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn frame(versions: (u16, u16), body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&versions.0.to_le_bytes());
    bytes.extend_from_slice(&versions.1.to_le_bytes());
    bytes.extend_from_slice(&length(body.len()));
    bytes.extend_from_slice(body);
    bytes
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<((u16, u16), Vec<u8>)> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await?;
    let mut rest = Rest(&prefix);
    if rest.take()? != MAGIC {
        return Err(malformed("something that is no link of Spandrel"));
    }
    let versions = (
        u16::from_le_bytes(rest.take()?),
        u16::from_le_bytes(rest.take()?),
    );
    let bytes = usize::from(u16::from_le_bytes(rest.take()?));
    if bytes > MAX_BODY_BYTES {
        return Err(malformed("more bytes than a handshake has"));
    }
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body).await?;
    Ok((versions, body))
}

/// The length of what is bounded far below 64 KiB.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_le_bytes()
}

/// The longest beginning of a text within a number of bytes.
fn up_to(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the other side has sent {what}"),
    )
}

/// What is left to read of a body.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (taken, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| malformed("too few bytes"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> io::Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self, bytes: usize) -> io::Result<String> {
        let taken = self
            .0
            .split_at_checked(bytes)
            .ok_or_else(|| malformed("too few bytes"))?;
        self.0 = taken.1;
        String::from_utf8(taken.0.to_vec()).map_err(|_| malformed("a text that is not UTF-8"))
    }
}
