//! The manifest of a bucket's index: which segments stand, and how far they know the block. docs/formats/index.md.

use spandrel_model::ids::Bucket;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: [u8; 8] = *b"SPDRLIDX";
const VERSION: u8 = 1;

/// One segment of a bucket's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentEntry {
    /// Unique on this node while the process lives; names the file.
    pub(super) number: u64,
    /// First summary sequence that may be in it.
    pub(super) first_sequence: u64,
    /// Last one.
    pub(super) last_sequence: u64,
    /// Documents, superseded ones included.
    pub(super) documents: u32,
    /// Length of its blob.
    pub(super) bytes: u64,
    /// xxh3-64 of its blob.
    pub(super) hash: u64,
    /// Least start of its documents.
    pub(super) min_start: u64,
    /// Greatest start of its documents.
    pub(super) max_start: u64,
    /// Attributes that its summaries were built to name, sorted.
    pub(super) keys: Vec<String>,
    /// Documents whose trace has a newer version elsewhere in the bucket, ascending.
    pub(super) stale: Vec<u32>,
}

/// What stands of a bucket's index.
///
/// Invariants: every trace has one document that is not stale; numbers are distinct; `keys` and `stale` are sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) bucket: Bucket,
    /// The block file that the summaries came from.
    pub(super) block_id: u128,
    /// Summary sequence up to which the index knows the block.
    pub(super) checkpoint: u64,
    pub(super) segments: Vec<SegmentEntry>,
}

impl Manifest {
    pub(super) fn new(bucket: Bucket, block_id: u128) -> Self {
        Self {
            bucket,
            block_id,
            checkpoint: 0,
            segments: Vec::new(),
        }
    }

    /// Bytes of its segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&self.bucket.0.to_le_bytes());
        out.extend_from_slice(&self.block_id.to_le_bytes());
        out.extend_from_slice(&self.checkpoint.to_le_bytes());
        put_count(&mut out, self.segments.len());
        for segment in &self.segments {
            for number in [
                segment.number,
                segment.first_sequence,
                segment.last_sequence,
                segment.bytes,
                segment.hash,
                segment.min_start,
                segment.max_start,
            ] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&segment.documents.to_le_bytes());
            put_count(&mut out, segment.keys.len());
            for key in &segment.keys {
                put_count(&mut out, key.len());
                out.extend_from_slice(key.as_bytes());
            }
            put_count(&mut out, segment.stale.len());
            for document in &segment.stale {
                out.extend_from_slice(&document.to_le_bytes());
            }
        }
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        out
    }

    /// Reads a manifest, or says why the bytes are none of this version.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (body, checksum) = bytes.split_last_chunk::<8>().ok_or("too short")?;
        if xxh3_64(body) != u64::from_le_bytes(*checksum) {
            return Err("checksum does not fit");
        }
        let mut reader = Reader { rest: body };
        if reader.take(MAGIC.len()) != Some(&MAGIC) {
            return Err("not a manifest");
        }
        if reader.take(1) != Some(&[VERSION]) {
            return Err("unknown version");
        }
        reader.manifest().ok_or("ends too early")
    }
}

/// Counts and lengths are u32. What they count is bounded far below: documents by tantivy's u32 ids, keys by settings.
fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, back) = self.rest.split_at_checked(length)?;
        self.rest = back;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn manifest(mut self) -> Option<Manifest> {
        let bucket = Bucket(self.u32()?);
        let block_id = u128::from_le_bytes(self.array()?);
        let checkpoint = self.u64()?;
        let segments = self.list(Self::segment)?;
        self.rest.is_empty().then_some(Manifest {
            bucket,
            block_id,
            checkpoint,
            segments,
        })
    }

    /// A count and as many items. Each item takes bytes, so a false count ends with the bytes.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }

    fn segment(&mut self) -> Option<SegmentEntry> {
        Some(SegmentEntry {
            number: self.u64()?,
            first_sequence: self.u64()?,
            last_sequence: self.u64()?,
            bytes: self.u64()?,
            hash: self.u64()?,
            min_start: self.u64()?,
            max_start: self.u64()?,
            documents: self.u32()?,
            keys: self.list(Self::key)?,
            stale: self.list(Self::u32)?,
        })
    }

    fn key(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        Some(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = SegmentEntry> {
        let numbers = proptest::array::uniform7(any::<u64>());
        let keys = proptest::collection::vec(".{0,8}", 0..4);
        let stale = proptest::collection::vec(any::<u32>(), 0..4);
        (numbers, any::<u32>(), keys, stale).prop_map(|(n, documents, keys, stale)| SegmentEntry {
            number: n[0],
            first_sequence: n[1],
            last_sequence: n[2],
            bytes: n[3],
            hash: n[4],
            min_start: n[5],
            max_start: n[6],
            documents,
            keys,
            stale,
        })
    }

    proptest! {
        #[test]
        fn manifests_come_back(
            bucket in any::<u32>(),
            block_id in any::<u128>(),
            checkpoint in any::<u64>(),
            segments in proptest::collection::vec(entries(), 0..4),
        ) {
            let manifest = Manifest { bucket: Bucket(bucket), block_id, checkpoint, segments };
            prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }

        #[test]
        fn any_bytes_are_read_or_refused(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.push(VERSION);
            bytes.extend(tail);
            bytes.extend(xxh3_64(&bytes).to_le_bytes());
            let _ = Manifest::decode(&bytes);
        }
    }

    #[test]
    fn a_changed_bit_is_noticed() {
        let good = Manifest::new(Bucket(7), 9).encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Manifest::decode(&bad).is_err(), "byte {at}");
        }
    }
}
