//! Any value of a request or an answer between the settings' nodes, behind a right checksum: it is refused, or read as it
//! would be told again.
#![no_main]
#![allow(dead_code, unused_imports)] // the group itself uses the rest

include!("../sources.rs");

use codec::Kind;
use codec_oracle::{read_message, sealed};
use libfuzzer_sys::fuzz_target;

// Whether it is an answer, the value.
fuzz_target!(|input: &[u8]| {
    if let Some((is_answer, value)) = input.split_first() {
        let kind = match is_answer % 2 {
            0 => Kind::Request,
            _ => Kind::Answer,
        };
        read_message(&sealed(kind, value));
    }
});
