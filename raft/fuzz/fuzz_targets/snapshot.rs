//! Any value of what a node of the settings' group stores, behind a right checksum: the state of a snapshot in each of its
//! versions, what is beside it, and the log. It is refused, or comes back.
#![no_main]
#![allow(dead_code, unused_imports)] // the group itself uses the rest

include!("../sources.rs");

use codec_oracle::{STORED, read_any, sealed};
use libfuzzer_sys::fuzz_target;

// Which kind, the value.
fuzz_target!(|input: &[u8]| {
    if let Some((kind, value)) = input.split_first() {
        let kind = STORED[usize::from(*kind) % STORED.len()];
        read_any(kind, &sealed(kind, value));
    }
});
