//! Decompression with bounds: on size, on ratio, on the decoder's own memory, all of it on credit.

use std::io::Read;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use spandrel_model::credit::Credit;

use super::body::no_room;
use crate::error::ApiError;
use crate::limits::{
    GROWTH_STEP_BYTES, MAX_DECODED_BYTES, MAX_UNFOLD_RATIO, MAX_ZSTD_WINDOW_LOG, RATIO_FREE_BYTES,
};

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

/// What is accepted, as `grpc-accept-encoding` and people want to hear it.
pub(super) const ACCEPTED: &str = "identity,gzip,zstd";

impl Encoding {
    /// From a header's value; absent means identity. `None` for others.
    pub(super) fn parse(value: Option<&[u8]>) -> Option<Self> {
        let Some(value) = value else {
            return Some(Self::Identity);
        };
        let value = value.trim_ascii().to_ascii_lowercase();
        match value.as_slice() {
            b"" | b"identity" => Some(Self::Identity),
            b"gzip" => Some(Self::Gzip),
            b"zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Unfolds `input`, for whose bytes `credit` stands already; afterwards it stands for the output.
pub(super) fn unfold(
    encoding: Encoding,
    input: Bytes,
    credit: &mut Credit,
) -> Result<Bytes, ApiError> {
    let output = match encoding {
        Encoding::Identity => return Ok(input),
        Encoding::Gzip => read_all(&mut MultiGzDecoder::new(&input[..]), input.len(), credit)?,
        Encoding::Zstd => {
            let window_log = zstd_window_log(&input)?;
            let window = 1_u64 << window_log;
            if !credit.try_grow(window) {
                return Err(no_room());
            }
            let broken = |error| unreadable(&error);
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(&input[..]).map_err(broken)?;
            decoder.window_log_max(window_log).map_err(broken)?;
            read_all(&mut decoder, input.len(), credit)?
        }
    };
    drop(input);
    credit.shrink_to(output.capacity() as u64);
    Ok(output.into())
}

fn unreadable(error: &std::io::Error) -> ApiError {
    ApiError::invalid("body", format!("the body cannot be decompressed: {error}"))
}

fn read_all(
    reader: &mut dyn Read,
    input_bytes: usize,
    credit: &mut Credit,
) -> Result<Vec<u8>, ApiError> {
    let allowed = input_bytes
        .saturating_mul(MAX_UNFOLD_RATIO)
        .clamp(RATIO_FREE_BYTES, MAX_DECODED_BYTES);
    let (mut output, mut filled) = (Vec::new(), 0);
    loop {
        if filled > allowed {
            return Err(too_much(allowed));
        }
        // Only when it is full: a body of many small parts gives a byte a read.
        if filled == output.len() {
            let step = GROWTH_STEP_BYTES.max(filled / 2);
            if !credit.try_grow(step as u64) {
                return Err(no_room());
            }
            output.reserve_exact(step);
            output.resize(filled + step, 0);
        }
        let end = output.len().min(filled + GROWTH_STEP_BYTES);
        let place = output.get_mut(filled..end).unwrap_or_default();
        let read = reader.read(place).map_err(|error| unreadable(&error))?;
        filled += read;
        if read == 0 {
            output.truncate(filled);
            return Ok(output);
        }
    }
}

fn too_much(allowed: usize) -> ApiError {
    let message = if allowed == MAX_DECODED_BYTES {
        format!("the request unfolds to more than {MAX_DECODED_BYTES} bytes")
    } else {
        format!("the request unfolds to more than {MAX_UNFOLD_RATIO} times its size")
    };
    ApiError::too_large(message, allowed)
}

/// The power of two that holds the window which the first frame asks for (RFC 8878, 3.1.1.1); later frames get no
/// more, because the decoder is told so.
fn zstd_window_log(input: &[u8]) -> Result<u32, ApiError> {
    let byte = |at: usize| input.get(at).copied().unwrap_or(0);
    let descriptor = byte(4);
    let window = if descriptor & 0x20 == 0 {
        let (exponent, mantissa) = (u32::from(byte(5) >> 3), u64::from(byte(5) & 7));
        let base = 1_u64 << (10 + exponent);
        base + base / 8 * mantissa
    } else {
        // A single segment: its window is its content, whose size follows in 1, 2, 4 or 8 bytes.
        let width = [1, 2, 4, 8]
            .get(usize::from(descriptor >> 6))
            .copied()
            .unwrap_or(8);
        let at = 5 + [0, 1, 2, 4]
            .get(usize::from(descriptor & 3))
            .copied()
            .unwrap_or(0);
        let size = (0..width).fold(0_u64, |size, index| {
            size | u64::from(byte(at + index)) << (8 * index)
        });
        // Two bytes count from 256 on, since one byte holds what is below (RFC 8878, 3.1.1.1.4).
        if width == 2 { size + 256 } else { size }
    };
    let log = window
        .max(1_024)
        .checked_next_power_of_two()
        .map_or(64, u64::ilog2);
    if log > MAX_ZSTD_WINDOW_LOG {
        let message =
            format!("the zstd window must not be larger than 2^{MAX_ZSTD_WINDOW_LOG} bytes");
        return Err(ApiError::too_large(message, 1 << MAX_ZSTD_WINDOW_LOG));
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::super::unfold_oracle::{check_any, check_bodies, check_folded, gzip, zstd_bodies};
    use super::*;
    use proptest::prelude::*;
    use spandrel_model::credit::CreditPool;
    use std::io::Write;

    #[test]
    fn bombs_are_refused_and_their_credit_comes_back() {
        let pool = CreditPool::new(256 << 20);
        let zeros = vec![0; 32 << 20];
        let zstd = zstd::bulk::compress(&zeros, 3).unwrap().into();
        for (encoding, bomb) in [(Encoding::Gzip, gzip(&zeros)), (Encoding::Zstd, zstd)] {
            let mut credit = pool.try_take(bomb.len() as u64).unwrap();
            let refused = unfold(encoding, bomb, &mut credit).unwrap_err();
            assert_eq!(
                refused.status,
                http::StatusCode::PAYLOAD_TOO_LARGE,
                "{encoding:?}"
            );
        }
        assert_eq!(pool.used(), 0);
        assert!(pool.peak() < 16 << 20, "a bomb cost {} bytes", pool.peak());
    }

    #[test]
    fn a_large_zstd_window_is_refused_before_it_is_allocated() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&[7; 100]).unwrap();
        let input: Bytes = encoder.finish().unwrap().into();
        let pool = CreditPool::new(1 << 20);
        let mut credit = pool.try_take(1).unwrap();
        let refused = unfold(Encoding::Zstd, input, &mut credit).unwrap_err();
        assert_eq!(refused.status, http::StatusCode::PAYLOAD_TOO_LARGE);
    }

    /// A proptest met it once in many runs: the size of a single segment was read 256 too small when it took two bytes,
    /// so that bodies of 2^n + 1 to 2^n + 256 bytes, which need the next window, were refused for good.
    #[test]
    fn a_single_segment_around_a_power_of_two_unfolds() {
        let pool = CreditPool::new(64 << 20);
        for power in 8..=17 {
            let around = 1_usize << power;
            for size in [
                around - 1,
                around,
                around + 1,
                around + 255,
                around + 256,
                around + 257,
            ] {
                let bytes = vec![7; size];
                let input: Bytes = zstd::bulk::compress(&bytes, 3).unwrap().into();
                let mut credit = pool.try_take(input.len() as u64).unwrap();
                let output = unfold(Encoding::Zstd, input, &mut credit);
                assert_eq!(output.unwrap(), bytes, "{size} bytes");
            }
        }
    }

    #[test]
    fn without_credit_the_request_is_put_off() {
        let pool = CreditPool::new(1_000);
        let input = gzip(&[1; 100_000]);
        let mut credit = pool.try_take(input.len() as u64).unwrap();
        let refused = unfold(Encoding::Gzip, input, &mut credit).unwrap_err();
        assert_eq!(refused.status, http::StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.detail.retry_after_ms.is_some());
    }

    #[test]
    fn a_body_of_many_small_parts_takes_credit_for_what_it_holds() {
        let [_, segment] = zstd_bodies(b"x");
        for (encoding, part) in [(Encoding::Gzip, gzip(b"x")), (Encoding::Zstd, segment)] {
            let output = check_any(encoding, part.repeat(2_000).into());
            assert_eq!(
                output.map(|output| output.len()),
                Some(2_000),
                "{encoding:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_was_folded_unfolds(seed in prop::collection::vec(any::<u8>(), 0..100), times in 0..2_000_usize) {
            let bytes = seed.repeat(times.min(RATIO_FREE_BYTES / 101));
            check_folded(&bytes);
        }

        /// Bytes that are nearly right go deeper than random ones. Whatever comes of them, the credit is for it.
        #[test]
        fn damaged_bodies_unfold_within_their_credit_or_are_refused(
            seed in prop::collection::vec(any::<u8>(), 1..100),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        ) {
            let bytes = seed.repeat(50);
            let [stream, segment] = zstd_bodies(&bytes);
            let folded = [
                (Encoding::Gzip, gzip(&bytes)),
                (Encoding::Zstd, stream),
                (Encoding::Zstd, segment),
            ];
            for (encoding, input) in folded {
                let mut input = input.to_vec();
                for (at, byte) in &damage {
                    *at.get_mut(&mut input) = *byte;
                }
                if let Some(cut) = cut {
                    input.truncate(cut.index(input.len()));
                }
                check_any(encoding, input.into());
            }
        }

        #[test]
        fn garbage_is_refused(bytes: Vec<u8>) {
            check_bodies(&bytes.into());
        }
    }
}
