//! The one place where values become bytes: what is stored and what one node tells another.
//!
//! Layout (docs/formats/raft.md): version byte, kind byte, bincode of the value, xxh3-64 of all before it (little
//! endian).
//!
//! bincode is unmaintained (RUSTSEC-2025-0141; no known vulnerability): deny.toml holds the exception. Nothing but
//! this file may name it, so that a change of the encoding is a change of [`VERSION`] here.

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64;

use crate::limits::MAX_SNAPSHOT_BYTES;

/// Version of the layout and of every encoded type.
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 8;

/// What a sealed value is, so that one kind is never read as another. Persisted: numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Identity = 1,
    Vote = 2,
    LogId = 3,
    Entry = 4,
    SnapshotMeta = 5,
    /// The state without join tokens: read, no longer written.
    State1 = 6,
    /// The state without the lives of nodes and those that leave: read, no longer written.
    State2 = 7,
    State = 8,
    Request = 16,
    Answer = 17,
}

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("{bytes} bytes are too few")]
    Short { bytes: usize },
    #[error("checksum is {actual:016x}, the bytes give {expected:016x}")]
    Checksum { expected: u64, actual: u64 },
    #[error("version {actual} is not known, only {VERSION}")]
    Version { actual: u8 },
    #[error("kind is {actual}, not {expected:?}")]
    Kind { expected: Kind, actual: u8 },
    #[error("{reason}")]
    Value { reason: String },
}

/// Encodes a value with its version, kind and checksum.
pub(crate) fn seal<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION, kind as u8];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(value_error)?;
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    Ok(bytes)
}

/// Decodes a value that [`seal`] has encoded. Allocates at most in proportion to the bytes given.
pub(crate) fn unseal<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, CodecError> {
    let short = CodecError::Short { bytes: bytes.len() };
    let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(short);
    };
    let Some((&[version, actual_kind], value)) = body.split_first_chunk::<HEAD_BYTES>() else {
        return Err(short);
    };
    let (expected, actual) = (xxh3_64(body), u64::from_le_bytes(*checksum));
    if expected != actual {
        return Err(CodecError::Checksum { expected, actual });
    }
    if version != VERSION {
        return Err(CodecError::Version { actual: version });
    }
    if actual_kind != kind as u8 {
        return Err(CodecError::Kind {
            expected: kind,
            actual: actual_kind,
        });
    }
    let limited = bincode::config::standard().with_limit::<MAX_SNAPSHOT_BYTES>();
    let (value, used) = bincode::serde::decode_from_slice::<T, _>(value, limited)
        .map(|(decoded, used)| (decoded, used == value.len()))
        .map_err(value_error)?;
    if used {
        return Ok(value);
    }
    Err(CodecError::Value {
        reason: "bytes are left over".to_owned(),
    })
}

fn value_error(error: impl std::fmt::Display) -> CodecError {
    CodecError::Value {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec_oracle::{STORED, read_any, sealed};

    proptest! {
        #[test]
        fn what_is_sealed_comes_back(text in ".*", number: u64) {
            let bytes = seal(Kind::Entry, &(text.clone(), number)).unwrap();
            prop_assert_eq!(unseal::<(String, u64)>(Kind::Entry, &bytes).unwrap(), (text, number));
        }

        #[test]
        fn a_changed_byte_is_noticed(text in ".*", position: prop::sample::Index, flip in 1u8..) {
            let mut bytes = seal(Kind::Entry, &text).unwrap();
            let position = position.index(bytes.len());
            bytes[position] ^= flip;
            prop_assert!(unseal::<String>(Kind::Entry, &bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = unseal::<(String, Vec<u64>)>(Kind::Entry, &bytes);
        }

        #[test]
        fn any_value_behind_a_right_checksum_is_read_or_refused(value: Vec<u8>) {
            for kind in STORED.into_iter().chain([Kind::Request, Kind::Answer]) {
                read_any(kind, &sealed(kind, &value));
            }
        }
    }

    #[test]
    fn the_layout_is_as_documented() {
        let bytes = seal(Kind::LogId, &(7u8, "ab")).unwrap();
        assert_eq!(&bytes[..6], [1, 3, 7, 2, b'a', b'b']);
        assert_eq!(bytes[6..], xxh3_64(&bytes[..6]).to_le_bytes());
    }

    #[test]
    fn one_kind_is_not_read_as_another() {
        let bytes = seal(Kind::Vote, &7u64).unwrap();
        let kind = unseal::<u64>(Kind::LogId, &bytes);
        assert!(
            matches!(kind, Err(CodecError::Kind { actual: 2, .. })),
            "{kind:?}"
        );
        assert!(unseal::<u8>(Kind::Vote, &bytes[..9]).is_err());
    }
}
