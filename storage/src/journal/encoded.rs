//! A frame as it lies on disk and goes to followers.

use std::ops::Range;

use bytes::Bytes;
use spandrel_model::ids::{ShardId, TenantId, TraceId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
use zstd::bulk::Compressor;

use super::error::{InvalidFrame, JournalError};
use super::frame::Frame;
use super::record::LsnRange;
use crate::compression::decompress_into;
use crate::limits::{MAX_FRAME_BYTES, MAX_FRAME_RAW_BYTES};

/// Version of the frame format that this code writes.
const VERSION: u8 = 1;
/// Compression: one zstd frame.
const ZSTD: u8 = 1;
/// Bytes before the compressed part.
const HEADER_BYTES: usize = 20;
/// Bytes of the header that its checksum covers.
const CHECKED_HEADER: Range<usize> = 0..12;

/// The trace that a verdict of the frame is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerdictKey {
    pub(crate) shard: ShardId,
    pub(crate) tenant: TenantId,
    pub(crate) trace_id: TraceId,
}

/// A finished frame: the bytes, and what a commit needs to know of their content.
#[derive(Debug, Clone)]
pub struct EncodedFrame {
    bytes: Bytes,
    raw_bytes: usize,
    kinds: u8,
    ranges: Vec<LsnRange>,
    verdicts: Vec<VerdictKey>,
}

impl EncodedFrame {
    pub(crate) fn compress(
        compressor: &mut Compressor<'_>,
        raw: &[u8],
        tail_offset: usize,
        kinds: u8,
        ranges: Vec<LsnRange>,
        verdicts: Vec<VerdictKey>,
    ) -> Result<Self, JournalError> {
        let too_large = |_| JournalError::TooLarge {
            what: "a frame",
            bytes: raw.len(),
            limit_bytes: MAX_FRAME_RAW_BYTES,
        };
        let compressed = compressor
            .compress(raw)
            .map_err(JournalError::io("compress a frame"))?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + compressed.len());
        bytes.extend_from_slice(&[VERSION, kinds, ZSTD, 0]);
        bytes.extend_from_slice(&u32::try_from(raw.len()).map_err(too_large)?.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(tail_offset).map_err(too_large)?.to_le_bytes());
        let checksum = checksum(&bytes, &compressed);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&compressed);
        Ok(Self {
            bytes: Bytes::from(bytes),
            raw_bytes: raw.len(),
            kinds,
            ranges,
            verdicts,
        })
    }

    /// Takes a frame that another node built, after checking all of it.
    ///
    /// # Errors
    /// [`InvalidFrame`] when the bytes are no intact frame.
    pub fn parse(bytes: Bytes) -> Result<Self, InvalidFrame> {
        Self::parse_both(bytes).map(|(encoded, _)| encoded)
    }

    /// The same, and the frame's content.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_both(bytes: Bytes) -> Result<(Self, Frame), InvalidFrame> {
        let frame = Frame::decode(&bytes)?;
        let kinds = bytes.get(1).copied().unwrap_or_default();
        let encoded = Self {
            raw_bytes: frame.raw_bytes(),
            kinds,
            ranges: frame.ranges(),
            verdicts: frame.verdict_keys()?,
            bytes,
        };
        Ok((encoded, frame))
    }

    /// The bytes, for the followers.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes before compression.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }

    /// The records of each shard, by shard.
    #[must_use]
    pub fn ranges(&self) -> &[LsnRange] {
        &self.ranges
    }

    pub(crate) fn kinds(&self) -> u8 {
        self.kinds
    }

    /// The traces that its verdicts are about, in the order of [`Frame::verdict_at`].
    pub(crate) fn verdict_keys(&self) -> &[VerdictKey] {
        &self.verdicts
    }
}

/// The header's checksum seeds that of the compressed bytes: one number covers both.
fn checksum(header: &[u8], compressed: &[u8]) -> u64 {
    xxh3_64_with_seed(compressed, xxh3_64(header))
}

/// The raw bytes of a frame.
pub(crate) struct Opened {
    pub(crate) raw: Vec<u8>,
    /// Where in `raw` the record bodies end and the tables begin.
    pub(crate) tail_offset: usize,
    pub(crate) kinds: u8,
}

/// Checks and decompresses a frame, into `buffer`.
pub(crate) fn open(bytes: &[u8], buffer: Vec<u8>) -> Result<Opened, InvalidFrame> {
    let invalid = |reason| InvalidFrame { reason };
    if bytes.len() > MAX_FRAME_BYTES {
        return Err(invalid("longer than the limit"));
    }
    let (header, compressed) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(invalid("shorter than a header"))?;
    let [version, kinds, compression, _, lengths @ ..] = *header;
    if version != VERSION || compression != ZSTD {
        return Err(invalid("of a version that this program does not know"));
    }
    let [r0, r1, r2, r3, t0, t1, t2, t3, stored @ ..] = lengths;
    let checked = header.get(CHECKED_HEADER).unwrap_or_default();
    if checksum(checked, compressed) != u64::from_le_bytes(stored) {
        return Err(invalid("its checksum does not match"));
    }
    let raw_bytes = u32::from_le_bytes([r0, r1, r2, r3]) as usize;
    if raw_bytes > MAX_FRAME_RAW_BYTES {
        return Err(invalid("its raw length is over the limit"));
    }
    let raw = decompress_into(compressed, raw_bytes, buffer)
        .map_err(|_| invalid("its compressed bytes are damaged"))?;
    if raw.len() != raw_bytes {
        return Err(invalid("its raw length is not what its header says"));
    }
    Ok(Opened {
        raw,
        tail_offset: u32::from_le_bytes([t0, t1, t2, t3]) as usize,
        kinds,
    })
}
