//! The text that continues a search: opaque to clients.
//!
//! base64url without padding of: version byte 1; `from`, `to` of the first page and the start of the last trace, each
//! 8 bytes big-endian of unix nanoseconds; its trace id, 16 bytes. The range is in it because its defaults move with
//! the clock: without it a later page would skip what has left "the last hour" meanwhile.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use spandrel_model::ids::{TraceId, UnixNanos};
use spandrel_model::search::Cursor;

use crate::error::ApiError;

const VERSION: u8 = 1;
const BYTES: usize = 1 + 3 * 8 + 16;

/// A cursor with the range of its search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageCursor {
    pub(crate) from: UnixNanos,
    pub(crate) to: UnixNanos,
    pub(crate) after: Cursor,
}

impl PageCursor {
    /// The text of it.
    pub(crate) fn encode(&self) -> String {
        let mut bytes = vec![VERSION];
        for nanos in [self.from, self.to, self.after.start] {
            bytes.extend_from_slice(&nanos.0.to_be_bytes());
        }
        bytes.extend_from_slice(&self.after.trace_id.0);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads the text of one.
    pub(crate) fn decode(text: &str) -> Result<Self, ApiError> {
        Self::parse(text).ok_or_else(|| {
            let message =
                "the cursor is none of this server's: use `nextCursor` of an answer as it is";
            ApiError::invalid("cursor", message)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        if text.len() > BYTES * 2 {
            return None;
        }
        let bytes: [u8; BYTES] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (version, rest) = bytes.split_first()?;
        let nanos = |index: usize| -> Option<UnixNanos> {
            let field = rest.get(index * 8..index * 8 + 8)?;
            Some(UnixNanos(u64::from_be_bytes(field.try_into().ok()?)))
        };
        (*version == VERSION).then_some(())?;
        Some(Self {
            from: nanos(0)?,
            to: nanos(1)?,
            after: Cursor {
                start: nanos(2)?,
                trace_id: TraceId(rest.get(24..)?.try_into().ok()?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question_oracle::check_value;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cursors_come_back(from: u64, to: u64, start: u64, id: [u8; 16]) {
            let cursor = PageCursor {
                from: UnixNanos(from),
                to: UnixNanos(to),
                after: Cursor { start: UnixNanos(start), trace_id: TraceId(id) },
            };
            prop_assert_eq!(PageCursor::decode(&cursor.encode()), Ok(cursor));
        }

        #[test]
        fn other_texts_are_refused(text in "\\PC{0,80}") {
            check_value(&text);
        }
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = [0; BYTES];
        bytes[0] = 2;
        assert!(PageCursor::decode(&URL_SAFE_NO_PAD.encode(bytes)).is_err());
    }
}
