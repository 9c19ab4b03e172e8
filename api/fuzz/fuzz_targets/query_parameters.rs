//! Any text as a query string, as a value in one, as a cursor and as an instant: it asks within the bounds, or the client
//! hears what is wrong.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../src"]
mod source {
    pub(crate) mod cursor;
    pub(crate) mod dto;
    pub(crate) mod error;
    pub(crate) mod limits;
    pub(crate) mod parameters;
    pub(crate) mod question;
    pub(crate) mod question_oracle;
    pub(crate) mod rpc_status;
    pub(crate) mod time;
}

use libfuzzer_sys::fuzz_target;
use question_oracle::{check_query, check_value};
use source::{cursor, dto, error, limits, parameters, question, question_oracle, rpc_status, time};
use spandrel_model::ports::DecisionView;

fuzz_target!(|text: &str| {
    check_query(text);
    check_value(text);
});

/// No question is refused with a decision.
impl From<DecisionView> for dto::Decision {
    fn from(_: DecisionView) -> Self {
        unreachable!()
    }
}
