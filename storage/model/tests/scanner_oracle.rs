//! The scanner finds what prost finds, whatever order, repetition and unknown fields the bytes have.

mod otlp_support;

use otlp_support::{generate, oracle};
use proptest::prelude::*;

proptest! {
    #![proptest_config(otlp_support::cases(1_000))]

    #[test]
    fn composed_requests_are_read_as_prost_reads_them(request in generate::request()) {
        oracle::check(&request);
    }

    #[test]
    fn arbitrary_bytes_are_judged_as_prost_judges_them(request in prop::collection::vec(any::<u8>(), 0..64)) {
        oracle::check(&request);
    }

    #[test]
    fn arbitrary_spans_are_judged_as_prost_judges_them(span in prop::collection::vec(any::<u8>(), 0..64)) {
        let scope_spans = generate::bytes_field(2, &span);
        let resource_spans = generate::bytes_field(2, &scope_spans);
        oracle::check(&generate::bytes_field(1, &resource_spans));
    }
}
