//! Any bytes: the scanner judges and reads them as prost does. The oracle is that of `tests/scanner_*`.
#![no_main]

#[path = "../../tests/otlp_support/mod.rs"]
mod otlp_support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|request: &[u8]| otlp_support::oracle::check(request));
