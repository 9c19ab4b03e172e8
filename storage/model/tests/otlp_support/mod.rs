//! What the tests of the scanner share.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic
)]

pub mod generate;
pub mod lenient;
pub mod oracle;

use std::sync::Arc;

use proptest::prelude::ProptestConfig;
use spandrel_model::interest::Interests;
use spandrel_model::otlp::{AttributePolicy, ScanRules};

/// 2026-01-01T00:00:00Z in nanoseconds.
pub const RECEIVED_AT: u64 = 1_767_225_600_000_000_000;

/// A number of cases, without files of failures: a failure becomes a test of its own.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Some keys of interest, no attribute policy.
pub fn rules() -> ScanRules {
    let interests = Interests::new(["http.route", "n"], ["service.name"]);
    ScanRules::new(Arc::new(interests), &AttributePolicy::default())
}
