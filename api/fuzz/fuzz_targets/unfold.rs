//! Any bytes as a compressed body: it unfolds within its bounds or is refused. Any bytes as what is compressed: they come
//! back.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../src"]
mod source {
    pub(crate) mod dto;
    pub(crate) mod error;
    pub(crate) mod limits;
    pub(crate) mod otlp {
        mod body;
        mod unfold;
        pub(crate) mod unfold_oracle;
    }
    pub(crate) mod rpc_status;
    pub(crate) mod time;
}

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use limits::RATIO_FREE_BYTES;
use otlp::unfold_oracle::{check_bodies, check_folded};
use source::{dto, error, limits, otlp, rpc_status, time};
use spandrel_model::ports::DecisionView;

/// First bytes from here on say how often the others are repeated and compressed; before, these are the body.
const FOLDED: u8 = 224;

fuzz_target!(|input: &[u8]| {
    let Some((first, bytes)) = input.split_first() else {
        return;
    };
    match first.checked_sub(FOLDED) {
        None => check_bodies(&Bytes::copy_from_slice(bytes)),
        Some(times) => {
            let mut whole = bytes.repeat(times.into());
            whole.truncate(RATIO_FREE_BYTES);
            check_folded(&whole);
        }
    }
});

/// No body is refused with a decision.
impl From<DecisionView> for dto::Decision {
    fn from(_: DecisionView) -> Self {
        unreachable!()
    }
}
