//! Which policy decides, when a keep is final, and what people are told.

use super::test_support::{TestSpan, TestTrace, decide, kept, mixed_id, observe, set};
use super::{DEFAULT_POLICY, KEEP_ALL_POLICY, PolicySet};
use crate::batch::StatusCode;
use crate::verdict::{CERTAIN, NO_POLICY, PROMOTED_POLICY, Verdict};

const ERRORS: &str = "- {name: errors, type: status_code, status_codes: [ERROR]}\n";
const SLOW: &str = "- {name: slow, type: latency, threshold_ms: 1000}\n";
const TENTH: &str = "- {name: tenth, type: probabilistic, sampling_percentage: 10}\n";
const HALF: &str = "- {name: half, type: probabilistic, sampling_percentage: 50}\n";
const DROP_HEALTH: &str =
    "- {name: health, type: drop, drop_sub_policy: [{type: service, values: [health]}]}\n";

fn error_span() -> TestSpan {
    TestSpan {
        status: StatusCode::Error,
        ..TestSpan::default()
    }
}

fn health_span() -> TestSpan {
    TestSpan {
        service: "health",
        ..TestSpan::default()
    }
}

/// The name of the deciding policy, the verdict and the probability in percent.
fn decided<'s>(set: &'s PolicySet, trace: &TestTrace) -> (&'s str, Verdict, u64) {
    let decision = decide(set, trace);
    let percent = (decision.probability * 100 + CERTAIN / 2) / CERTAIN;
    (set.policy_name(decision.policy), decision.verdict, percent)
}

#[test]
fn drop_beats_keep_wherever_it_stands() {
    for file in [
        format!("{ERRORS}{DROP_HEALTH}"),
        format!("{DROP_HEALTH}{ERRORS}"),
    ] {
        let set = set(&file);
        let trace = TestTrace::of(&set, &[error_span(), health_span()], 0);
        assert_eq!(decided(&set, &trace), ("health", Verdict::Drop, 0));
        let trace = TestTrace::of(&set, &[error_span()], 0);
        assert_eq!(decided(&set, &trace), ("errors", Verdict::Keep, 100));
    }
}

#[test]
fn the_parts_of_a_drop_must_all_hold() {
    let set = set(
        "- {name: d, type: drop, drop_sub_policy: [{type: service, values: [health]}, {type: not, not_sub_policy: \
         {type: status_code, status_codes: [ERROR]}}]}\n- {name: all, type: always_sample}",
    );
    assert!(!kept(&set, &TestTrace::of(&set, &[health_span()], 0)));
    assert!(kept(
        &set,
        &TestTrace::of(&set, &[health_span(), error_span()], 0)
    ));
}

#[test]
fn of_certain_keeps_the_first_in_the_file_decides() {
    let set = set(&format!("{TENTH}{SLOW}{ERRORS}"));
    let mut trace = TestTrace::of(&set, &[error_span()], 5_000);
    assert_eq!(decided(&set, &trace), ("slow", Verdict::Keep, 100));
    trace.end = trace.start;
    assert_eq!(decided(&set, &trace), ("errors", Verdict::Keep, 100));
}

#[test]
fn of_sampled_keeps_the_most_probable_decides() {
    // given: two consistent samplers; a trace in both shares is in fact kept with the greater probability
    let set = set(&format!("{TENTH}{HALF}"));
    for n in 0..100 {
        let trace = TestTrace {
            trace_id: mixed_id(n),
            ..TestTrace::default()
        };
        let expected = if kept(&set, &trace) {
            ("half", Verdict::Keep, 50)
        } else {
            ("", Verdict::Drop, 50)
        };
        assert_eq!(decided(&set, &trace), expected);
    }
}

#[test]
fn samplers_inside_each_other_multiply_only_when_independent() {
    let both = |salt: &str| {
        set(&format!(
            "- {{name: a, type: and, and_sub_policy: [{{type: probabilistic, sampling_percentage: 50}}, \
             {{type: probabilistic, sampling_percentage: 20{salt}}}]}}"
        ))
    };
    let trace = TestTrace::default();
    assert_eq!(decided(&both(""), &trace).2, 20);
    // and: over many traces the recorded probability is the real share
    let salted = both(", hash_salt: x");
    let kept_traces = (0..20_000)
        .map(|n| TestTrace {
            trace_id: mixed_id(n),
            ..TestTrace::default()
        })
        .filter(|trace| kept(&salted, trace));
    let (mut count, mut last) = (0, 0);
    for trace in kept_traces {
        count += 1;
        last = decided(&salted, &trace).2;
    }
    assert_eq!(last, 10);
    assert!((1_850..2_150).contains(&count), "{count}");
}

#[test]
fn nothing_said_means_drop_without_a_policy() {
    let set = set(ERRORS);
    let decision = decide(&set, &TestTrace::default());
    assert_eq!(
        (decision.verdict, decision.policy, decision.probability),
        (Verdict::Drop, NO_POLICY, 0)
    );
    assert_eq!(set.policy_name(NO_POLICY), "");
    assert_eq!(set.policy_name(PROMOTED_POLICY), "promoted");
    assert_eq!(set.policy_name(99), "");
}

#[test]
fn a_certain_keep_does_not_ask_a_limit() {
    let set = set(&format!(
        "- {{name: some, type: throughput, traces_per_second: 1}}\n{ERRORS}"
    ));
    let decision = decide(&set, &TestTrace::of(&set, &[error_span()], 0));
    assert_eq!((decision.policy, decision.probability), (1, CERTAIN));
    assert!(decision.limiters.is_empty());
}

#[test]
fn the_shipped_policies() {
    let default = PolicySet::parse(DEFAULT_POLICY, 1).unwrap();
    assert_eq!(
        (default.decision_idle_ms(), default.decision_max_age_ms()),
        (10_000, 60_000)
    );
    assert_eq!(
        default.describe(),
        [
            "errors: keep when a span's status is error",
            "slow: keep when it took longer than 1000 ms",
            "healthy: keep up to 100 traces a second per node, above that sampled down to it",
        ]
    );
    assert!(default.keys().is_empty());
    assert_eq!(default.yaml(), DEFAULT_POLICY);
    let all = PolicySet::parse(KEEP_ALL_POLICY, 2).unwrap();
    assert_eq!(all.describe(), ["everything: keep every trace"]);
    assert_eq!(all.version(), 2);
}

#[test]
fn descriptions_of_nests_and_keys() {
    let set = set(
        "- name: shop errors\n  type: and\n  and_sub_policy:\n  - {type: rate_limiting, spans_per_second: 10}\n  \
         - {type: string_attribute, key: http.route, values: [/b, /a], invert_match: true}\n  \
         - {type: numeric_attribute, key: code, min_value: 500}\n- {name: d, type: drop, drop_sub_policy: \
         [{type: boolean_attribute, key: code, value: true}]}",
    );
    assert_eq!(set.keys(), ["code", "http.route"]);
    assert_eq!(
        set.describe(),
        [
            "shop errors: keep up to 10 spans a second per node, when not (a span's \"http.route\" is \"/a\" or \
             \"/b\"), and a span's \"code\" is at least 500",
            "d: drop when a span's \"code\" is true",
        ]
    );
}

#[test]
fn keeps_that_are_final() {
    let keep = |file: &str, spans: &[TestSpan], took_ms: u64| {
        let set = set(file);
        let trace = TestTrace::of(&set, spans, took_ms);
        set.keep_is_final(&trace.facts())
    };
    let healthy = [TestSpan::default()];
    assert!(keep(ERRORS, &[error_span()], 0));
    assert!(!keep(ERRORS, &healthy, 0));
    assert!(keep(SLOW, &healthy, 2_000));
    assert!(!keep(
        "- {name: a, type: latency, threshold_ms: 1, upper_threshold_ms: 9}",
        &healthy,
        5
    ));
    assert!(!keep(
        "- {name: a, type: span_count, min_spans: 1, max_spans: 9}",
        &healthy,
        5
    ));
    assert!(keep(
        "- {name: a, type: span_count, min_spans: 1}",
        &healthy,
        5
    ));
    assert!(!keep(
        "- {name: a, type: throughput, traces_per_second: 9}",
        &healthy,
        5
    ));
    assert!(!keep(
        "- {name: a, type: string_attribute, key: k, values: [x], invert_match: true}",
        &healthy,
        5
    ));
    assert!(
        !keep(&format!("{DROP_HEALTH}{ERRORS}"), &[error_span()], 0),
        "a health span may come"
    );
    let other_tenant = "- {name: d, type: drop, drop_sub_policy: [{type: tenant, values: [x]}]}\n";
    assert!(keep(&format!("{other_tenant}{ERRORS}"), &[error_span()], 0));
    let slow_is_kept = "- {name: d, type: drop, drop_sub_policy: [{type: not, not_sub_policy: {type: latency, threshold_ms: 9}}]}\n";
    assert!(keep(
        &format!("{slow_is_kept}{ERRORS}"),
        &[error_span()],
        10
    ));
    assert!(!keep(
        &format!("{slow_is_kept}{ERRORS}"),
        &[error_span()],
        9
    ));
}

#[test]
fn a_sampled_keep_is_final_only_when_nothing_surer_can_come() {
    let trace = TestTrace::default();
    assert!(set(TENTH).keep_is_final(&trace.facts()));
    assert!(
        !set(&format!("{TENTH}{ERRORS}")).keep_is_final(&trace.facts()),
        "an error would make it certain"
    );
    assert!(
        !set(&format!(
            "{TENTH}- {{name: t, type: throughput, traces_per_second: 1}}"
        ))
        .keep_is_final(&trace.facts())
    );
    let short = "- {name: short, type: latency, threshold_ms: 0, upper_threshold_ms: 5}\n";
    let over = TestTrace {
        end: trace.end + 6_000_000,
        ..trace.clone()
    };
    assert!(
        set(&format!("{TENTH}{short}")).keep_is_final(&over.facts()),
        "it is too long already"
    );
    assert!(!set(&format!("{TENTH}{short}")).keep_is_final(&trace.facts()));
}

#[test]
fn priorities_of_services_tenants_and_errors() {
    let yaml = "policies: [{name: a, type: always_sample}]\npriorities:\n  tenants: {batch: low, shop: high}\n  \
                services: {load-test: low, cart: normal, pay: high}\n";
    let set = std::sync::Arc::new(PolicySet::parse(yaml, 1).unwrap());
    let priority = |tenant: &str, services: &[&'static str], error: bool| {
        let spans: Vec<TestSpan> = services
            .iter()
            .map(|service| TestSpan {
                service,
                ..TestSpan::default()
            })
            .collect();
        let trace = TestTrace {
            tenant: tenant.parse().unwrap(),
            bits: observe(&set, &spans),
            error,
            ..TestTrace::default()
        };
        set.priority(&trace.facts())
    };
    assert_eq!(priority("default", &["x"], false), 1);
    assert_eq!(priority("batch", &["x"], false), 0);
    assert_eq!(priority("shop", &["x"], false), 2);
    assert_eq!(
        priority("shop", &["load-test"], false),
        0,
        "its service says more than its tenant"
    );
    assert_eq!(priority("batch", &["load-test", "cart"], false), 1);
    assert_eq!(priority("batch", &["load-test", "cart", "pay"], false), 2);
    assert_eq!(priority("batch", &["load-test"], true), 3);
}

#[test]
fn the_annotated_sample_is_valid() {
    let set = PolicySet::parse(include_str!("../../../../docs/policy.yaml"), 1).unwrap();
    // and: it shows every type (`not` and the limits inside others)
    let sample = include_str!("../../../../docs/policy.yaml");
    for kind in super::compile::TYPES.iter().chain(&["drop"]) {
        assert!(
            sample.contains(&format!("type: {kind}")) || *kind == "always_sample",
            "{kind}"
        );
    }
    assert_eq!(set.describe().len(), 17);
}
