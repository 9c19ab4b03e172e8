//! Any value of what a node of the settings' group stores, behind a right checksum: the state of a snapshot in each of its
//! versions, what is beside it, and the log. It is refused, or comes back.
#![no_main]
#![allow(dead_code, unused_imports)] // the group itself uses the rest

#[path = "../../src/codec.rs"]
mod codec;
#[path = "../../src/codec_oracle.rs"]
mod codec_oracle;
#[path = "../../src/limits.rs"]
mod limits;
#[path = "../../src/message.rs"]
mod message;
#[path = "../../src/state/mod.rs"]
mod state;
#[path = "../../src/store/mod.rs"]
mod store;
#[path = "../../src/transport.rs"]
mod transport;
#[path = "../../src/types.rs"]
mod types;

use codec_oracle::{STORED, read_any, sealed};
use libfuzzer_sys::fuzz_target;

// Which kind, the value.
fuzz_target!(|input: &[u8]| {
    if let Some((kind, value)) = input.split_first() {
        let kind = STORED[usize::from(*kind) % STORED.len()];
        read_any(kind, &sealed(kind, value));
    }
});
