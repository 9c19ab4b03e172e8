//! What must hold of a compressed body whatever a client sends: it unfolds within its bounds, on credit, or is refused.
//! Beside the tests, the fuzz target `unfold` uses this.

use std::io::Write;

use bytes::Bytes;
use http::StatusCode;
use spandrel_model::credit::CreditPool;

use super::unfold::{Encoding, unfold};
use crate::limits::{
    GROWTH_STEP_BYTES, MAX_DECODED_BYTES, MAX_UNFOLD_RATIO, MAX_ZSTD_WINDOW_LOG, RATIO_FREE_BYTES,
};

/// More than any body may unfold to, twice.
const CREDIT_BYTES: u64 = 256 << 20;

/// A body in gzip.
pub(super) fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap().into()
}

/// A body in zstd: of a stream, whose window is told, and of a single segment, whose size is.
pub(super) fn zstd_bodies(bytes: &[u8]) -> [Bytes; 2] {
    [
        zstd::stream::encode_all(bytes, 3).unwrap().into(),
        zstd::bulk::compress(bytes, 3).unwrap().into(),
    ]
}

/// What was folded unfolds to the same, unless it is more than any body may have.
pub(crate) fn check_folded(bytes: &[u8]) {
    assert!(bytes.len() <= RATIO_FREE_BYTES);
    let [stream, segment] = zstd_bodies(bytes);
    let folded = [
        (Encoding::Identity, Bytes::copy_from_slice(bytes)),
        (Encoding::Gzip, gzip(bytes)),
        (Encoding::Zstd, stream),
        (Encoding::Zstd, segment),
    ];
    for (encoding, input) in folded {
        let output = check_any(encoding, input);
        assert_eq!(output.as_deref(), Some(bytes), "{encoding:?}");
    }
}

/// Any bytes as a body in gzip and as one in zstd.
pub(crate) fn check_bodies(input: &Bytes) {
    check_any(Encoding::Gzip, input.clone());
    check_any(Encoding::Zstd, input.clone());
}

/// Any bytes: what comes of them is within the bounds and paid for; what is refused is the client's fault, and its
/// credit comes back.
pub(super) fn check_any(encoding: Encoding, input: Bytes) -> Option<Bytes> {
    let allowed = (input.len() * MAX_UNFOLD_RATIO).clamp(RATIO_FREE_BYTES, MAX_DECODED_BYTES);
    let pool = CreditPool::new(CREDIT_BYTES);
    let beside = input.len() + (1 << MAX_ZSTD_WINDOW_LOG);
    let mut credit = pool.try_take(input.len() as u64).unwrap();
    let unfolded = unfold(encoding, input, &mut credit);
    if let Ok(output) = &unfolded {
        assert!(output.len() <= allowed, "{} bytes", output.len());
        assert!(credit.bytes() >= output.len() as u64);
        let most = beside + output.len() / 2 * 3 + 2 * GROWTH_STEP_BYTES;
        assert!(pool.peak() <= most as u64, "{} of {most}", pool.peak());
    }
    drop(credit);
    assert_eq!(pool.used(), 0);
    match unfolded {
        Ok(output) => Some(output),
        Err(error) => {
            let known = [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE];
            assert!(known.contains(&error.status), "{error:?}");
            assert!(!error.detail.message.is_empty());
            None
        }
    }
}
