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

/// A comparison of attributes by value failed on them once in some thousands of cases.
#[test]
fn doubles_that_are_no_number_are_read_as_prost_reads_them() {
    let value = generate::bytes_field(2, &generate::fixed64_field(4, f64::NAN.to_bits()));
    let attribute = [generate::bytes_field(1, b"http.route"), value].concat();
    let attribute = |number| generate::bytes_field(number, &attribute);
    let resource = generate::bytes_field(1, &attribute(1));
    let ids = [
        generate::bytes_field(1, &[1; 16]),
        generate::bytes_field(2, &[2; 8]),
    ];
    let span = [ids.concat(), attribute(9)].concat();
    let scope_spans = generate::bytes_field(2, &generate::bytes_field(2, &span));
    let resource_spans = [resource, scope_spans].concat();
    oracle::check(&generate::bytes_field(1, &resource_spans));
}
