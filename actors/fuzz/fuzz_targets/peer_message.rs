//! Any bytes as what another node says: questions and answers of queries, messages about membership, shipments of pages.
//! They are refused, or read as they would be said again.
#![no_main]
#![allow(dead_code, unused_imports)] // the services use the rest

#[path = "../../src/membership"]
mod membership {
    pub(crate) use spandrel_actors::membership::JoinSecret;

    mod message;
    pub(crate) mod message_oracle;
}
#[path = "../../src/pager"]
mod pager {
    mod shipment;
    pub(crate) mod shipment_oracle;
}
#[path = "../../src/query"]
mod query {
    mod found;
    mod message;
    #[path = "message/message_oracle.rs"]
    pub(crate) mod message_oracle;
    mod part;
}
#[path = "../../src/wire.rs"]
mod wire;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use membership::message_oracle;
use pager::shipment_oracle;
use spandrel_actors::{assembler, limits};

// Whose message it is, the message.
fuzz_target!(|input: &[u8]| {
    let Some((service, bytes)) = input.split_first() else {
        return;
    };
    match service % 3 {
        0 => query::message_oracle::check_any(bytes),
        1 => message_oracle::check_any(&Bytes::copy_from_slice(bytes)),
        _ => shipment_oracle::check_any(Bytes::copy_from_slice(bytes)),
    }
});
