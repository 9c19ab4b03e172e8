//! Any bytes as what the other side of a link says before a service is spoken to: the handshake, the header of a call, what
//! became of one. They are refused, or read as they would be written again.
#![no_main]
#![allow(dead_code)] // the links use the rest

#[path = "../../src/link"]
mod link {
    pub(crate) use spandrel_actors::link::{LinkClass, PeerService};

    pub(crate) mod codec_oracle;
    mod envelope;
    mod hello;
}

use libfuzzer_sys::fuzz_target;
use link::codec_oracle::check_any;
use spandrel_actors::limits;

fuzz_target!(|bytes: &[u8]| check_any(bytes));
