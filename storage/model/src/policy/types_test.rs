//! Each policy type: what it keeps and what it does not.

use super::test_support::{Attr, TestSpan, TestTrace, decide, kept, mixed_id, observe, set};
use crate::batch::StatusCode;
use crate::ids::UnixNanos;
use crate::verdict::CERTAIN;

fn span(attributes: Vec<(&'static str, Attr)>) -> TestSpan {
    TestSpan {
        attributes,
        ..TestSpan::default()
    }
}

/// Checks which of the single-span traces a policy keeps.
fn check(policy: &str, cases: &[(TestSpan, bool)]) {
    let set = set(policy);
    for (span, expected) in cases {
        let trace = TestTrace::of(&set, &[TestSpan::default(), span.clone()], 0);
        assert_eq!(kept(&set, &trace), *expected, "{policy} {span:?}");
    }
}

#[test]
fn always_sample() {
    check(
        "- {name: a, type: always_sample}",
        &[(TestSpan::default(), true)],
    );
}

#[test]
fn status_code() {
    let with = |status| TestSpan {
        status,
        ..TestSpan::default()
    };
    check(
        "- {name: a, type: status_code, status_codes: [ERROR, ok]}",
        &[
            (with(StatusCode::Error), true),
            (with(StatusCode::Ok), true),
            (with(StatusCode::Unset), false),
        ],
    );
}

#[test]
fn latency_is_longer_than_and_at_most() {
    let set = set("- {name: a, type: latency, threshold_ms: 10, upper_threshold_ms: 20}");
    for (nanos, expected) in [
        (10_000_000, false),
        (10_000_001, true),
        (20_000_000, true),
        (20_000_001, false),
    ] {
        let mut trace = TestTrace::default();
        trace.end = trace.start + nanos;
        assert_eq!(kept(&set, &trace), expected, "{nanos}");
    }
}

#[test]
fn string_attribute_equals() {
    let policy = "- {name: a, type: string_attribute, key: k, values: [one, 200]}";
    check(
        policy,
        &[
            (span(vec![("k", Attr::Text("one"))]), true),
            (span(vec![("k", Attr::Text("200"))]), true),
            (span(vec![("k", Attr::Text("oneone"))]), false),
            (span(vec![("k", Attr::Int(200))]), false),
            (span(vec![("other", Attr::Text("one"))]), false),
            (
                TestSpan {
                    resource: vec![("k", Attr::Text("one"))],
                    ..TestSpan::default()
                },
                true,
            ),
        ],
    );
}

#[test]
fn string_attribute_matches_anywhere_and_inverts() {
    let policy = "- {name: a, type: string_attribute, key: k, values: ['^/v[12]/', admin], enabled_regex_matching: true";
    let span = |text| span(vec![("k", Attr::Text(text))]);
    check(
        &format!("{policy}}}"),
        &[
            (span("/v1/x"), true),
            (span("/x/v1/"), false),
            (span("the-admins"), true),
        ],
    );
    check(
        &format!("{policy}, invert_match: true}}"),
        &[
            (span("/v1/x"), false),
            (span("/x/v1/"), true),
            (TestSpan::default(), true),
        ],
    );
}

#[test]
fn service_name_works_as_an_attribute_key() {
    let policy = "- {name: a, type: string_attribute, key: service.name, values: ['^shop$', '.*x$'], enabled_regex_matching: true}";
    assert!(set(policy).keys().is_empty());
    let of = |service| TestSpan {
        service,
        ..TestSpan::default()
    };
    check(
        policy,
        &[
            (of("shop"), true),
            (of("shopping"), false),
            (of("box"), true),
            (of(""), false),
        ],
    );
}

#[test]
fn service_names_the_unknown_one_too() {
    let of = |service| TestSpan {
        service,
        ..TestSpan::default()
    };
    let policy = set("- {name: a, type: service, values: [shop, pay]}");
    assert_ne!(observe(&policy, &[of("x"), of("pay")]), 0);
    assert_eq!(observe(&policy, &[of("x"), of("")]), 0);
    let unknown = set("- {name: a, type: service, values: [unknown_service]}");
    assert_ne!(observe(&unknown, &[of("")]), 0);
}

#[test]
fn numeric_attribute() {
    let n = |value| span(vec![("n", value)]);
    check(
        "- {name: a, type: numeric_attribute, key: n, min_value: -5, max_value: 10}",
        &[
            (n(Attr::Int(-5)), true),
            (n(Attr::Int(10)), true),
            (n(Attr::Int(11)), false),
            (n(Attr::Double(9.5)), true),
            (n(Attr::Double(10.5)), false),
            (n(Attr::Double(f64::NAN)), false),
            (n(Attr::Text("7")), false),
        ],
    );
    check(
        "- {name: a, type: numeric_attribute, key: n, min_value: 500, invert_match: true}",
        &[(n(Attr::Int(500)), false), (n(Attr::Int(499)), true)],
    );
    check(
        "- {name: a, type: numeric_attribute, key: n, max_value: 5}",
        &[(n(Attr::Int(i64::MIN)), true), (n(Attr::Int(6)), false)],
    );
}

#[test]
fn boolean_attribute() {
    let b = |value| span(vec![("b", Attr::Bool(value))]);
    check(
        "- {name: a, type: boolean_attribute, key: b, value: false}",
        &[
            (b(false), true),
            (b(true), false),
            (TestSpan::default(), false),
        ],
    );
    check(
        "- {name: a, type: boolean_attribute, key: b, value: true, invert_match: true}",
        &[
            (b(false), true),
            (b(true), false),
            (TestSpan::default(), true),
        ],
    );
}

#[test]
fn span_count() {
    let set = set("- {name: a, type: span_count, min_spans: 2, max_spans: 3}");
    for (span_count, expected) in [(1, false), (2, true), (3, true), (4, false)] {
        let trace = TestTrace {
            span_count,
            ..TestTrace::default()
        };
        assert_eq!(kept(&set, &trace), expected, "{span_count}");
    }
}

#[test]
fn trace_state_and_flags() {
    let with = |trace_state| TestSpan {
        trace_state,
        ..TestSpan::default()
    };
    check(
        "- {name: a, type: trace_state, key: vendor, values: [x, y]}",
        &[
            (with("vendor=x"), true),
            (with("a=b, vendor=y,c=d"), true),
            (with("vendor=xy"), false),
            (with("vendor"), false),
            (with("myvendor=x"), false),
        ],
    );
    let flags = |flags| TestSpan {
        flags,
        ..TestSpan::default()
    };
    check(
        "- {name: a, type: trace_flags}",
        &[(flags(1), true), (flags(0x101), true), (flags(2), false)],
    );
}

#[test]
fn tenant() {
    let set = set("- {name: a, type: tenant, values: [shop]}");
    let trace = |tenant: &str| TestTrace {
        tenant: tenant.parse().unwrap(),
        ..TestTrace::default()
    };
    assert!(kept(&set, &trace("shop")));
    assert!(!kept(&set, &trace("default")));
}

#[test]
fn probabilistic_keeps_its_share_and_records_it() {
    for salt in ["", ", hash_salt: pepper"] {
        let set = set(&format!(
            "- {{name: a, type: probabilistic, sampling_percentage: 12.5{salt}}}"
        ));
        let mut count = 0;
        for n in 0..10_000 {
            let trace = TestTrace {
                trace_id: mixed_id(n),
                ..TestTrace::default()
            };
            let decision = decide(&set, &trace);
            assert_eq!(
                decision.probability,
                CERTAIN / 8,
                "of those left out as well"
            );
            count += u32::from(kept(&set, &trace));
        }
        assert!((1_150..1_350).contains(&count), "{count}");
    }
}

#[test]
fn and_or_not() {
    let error = TestSpan {
        status: StatusCode::Error,
        ..TestSpan::default()
    };
    check(
        "- name: a\n  type: and\n  and_sub_policy:\n  - {type: status_code, status_codes: [ERROR]}\n  \
         - type: not\n    not_sub_policy: {type: string_attribute, key: k, values: [health]}\n",
        &[
            (error.clone(), true),
            (TestSpan::default(), false),
            (
                TestSpan {
                    attributes: vec![("k", Attr::Text("health"))],
                    ..error
                },
                false,
            ),
        ],
    );
}

#[test]
fn conditions_of_and_may_hold_on_different_spans() {
    let set = set(
        "- {name: a, type: and, and_sub_policy: [{type: service, values: [x]}, {type: status_code, status_codes: [ERROR]}]}",
    );
    let spans = [
        TestSpan {
            service: "x",
            ..TestSpan::default()
        },
        TestSpan {
            status: StatusCode::Error,
            ..TestSpan::default()
        },
    ];
    assert!(kept(&set, &TestTrace::of(&set, &spans, 0)));
}

#[test]
fn equal_conditions_share_a_bit() {
    let set = set(
        "- {name: a, type: status_code, status_codes: [ERROR]}\n- {name: b, type: and, and_sub_policy: \
         [{type: status_code, status_codes: [error]}, {type: latency, threshold_ms: 5}]}",
    );
    let error = TestSpan {
        status: StatusCode::Error,
        ..TestSpan::default()
    };
    assert_eq!(observe(&set, &[error]), 1);
}

#[test]
fn a_batch_of_other_interests_satisfies_nothing() {
    // given: a policy bound before its key was an interest
    let set = set("- {name: a, type: string_attribute, key: k, values: [x]}");
    let interests = crate::interest::Interests::new(["unrelated"], []);
    let bound = set.bind(&interests);
    let batch = super::test_support::batch_of(&span(vec![("k", Attr::Text("x"))]), &interests);
    // then
    assert_eq!(bound.observe(&batch, &batch.spans[0]), 0);
    assert_eq!(bound.set().version(), 7);
    assert_eq!(batch.received_at, UnixNanos(0));
}
