//! Any content of a frame behind a right checksum: it is refused, or read to its end, by whoever receives it and whoever
//! reads it alike.
#![no_main]

#[path = "../../tests/support/sealed_frame.rs"]
#[allow(dead_code)] // tests use the rest
mod sealed_frame;

use libfuzzer_sys::fuzz_target;

// The kinds, the four bytes of the beginning of the tables, the content.
fuzz_target!(|input: &[u8]| {
    if let Some(([kinds, tail @ ..], raw)) = input.split_first_chunk::<5>() {
        sealed_frame::read_all(&sealed_frame::seal(*kinds, u32::from_le_bytes(*tail), raw));
    }
});
