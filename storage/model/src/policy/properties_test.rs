//! Properties over random policies and traces.

use proptest::prelude::*;

use super::test_support::{TestTrace, set};
use super::{Limiters, PolicySet, import_collector};
use crate::ids::{TraceId, UnixNanos};
use crate::verdict::Verdict;

/// A condition, as a YAML flow map. The leaf conditions take bits 0 to 3 in the order of the file.
fn condition() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("{type: status_code, status_codes: [ERROR]}".to_owned()),
        Just("{type: service, values: [a]}".to_owned()),
        Just("{type: string_attribute, key: k, values: [x], invert_match: true}".to_owned()),
        Just("{type: trace_flags}".to_owned()),
        Just("{type: always_sample}".to_owned()),
        Just("{type: tenant, values: [default]}".to_owned()),
        Just("{type: tenant, values: [other]}".to_owned()),
        (0..20u32).prop_map(|ms| format!("{{type: latency, threshold_ms: {ms}}}")),
        (0..20u32, 1..20u32).prop_map(|(ms, more)| format!(
            "{{type: latency, threshold_ms: {ms}, upper_threshold_ms: {}}}",
            ms + more
        )),
        (1..8u32).prop_map(|min| format!("{{type: span_count, min_spans: {min}}}")),
        (1..8u32).prop_map(|max| format!("{{type: span_count, max_spans: {max}}}")),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|part| format!("{{type: not, not_sub_policy: {part}}}")),
            proptest::collection::vec(inner, 1..4)
                .prop_map(|parts| format!("{{type: and, and_sub_policy: [{}]}}", parts.join(", "))),
        ]
    })
}

/// A policy with samplers and limits in it, without its name.
fn policy() -> impl Strategy<Value = String> {
    let sampler = prop_oneof![
        (0..=100u32).prop_map(|p| format!("{{type: probabilistic, sampling_percentage: {p}}}")),
        (0..=100u32).prop_map(|p| format!(
            "{{type: probabilistic, sampling_percentage: {p}, hash_salt: s}}"
        )),
        (1..4u32).prop_map(|n| format!("{{type: throughput, traces_per_second: {n}}}")),
        (1..9u32).prop_map(|n| format!("{{type: rate_limiting, spans_per_second: {n}}}")),
        (1..900u32).prop_map(|n| format!("{{type: bytes_limiting, bytes_per_second: {n}}}")),
    ];
    prop_oneof![
        3 => condition(),
        2 => sampler.clone(),
        2 => (condition(), sampler.clone()).prop_map(|(a, b)| format!("{{type: and, and_sub_policy: [{b}, {a}]}}")),
        1 => condition().prop_map(|a| format!("{{type: drop, drop_sub_policy: [{a}]}}")),
        1 => (condition(), sampler).prop_map(|(a, b)| format!(
            "{{type: composite, max_total_spans_per_second: 9, composite_sub_policy: [{}, {}]}}",
            named("x", &b),
            named("y", &a)
        )),
    ]
}

fn named(name: &str, policy: &str) -> String {
    format!("{{name: {name}, {}", policy.trim_start_matches('{'))
}

fn file() -> impl Strategy<Value = String> {
    proptest::collection::vec(policy(), 1..5).prop_map(|policies| {
        let items = policies.iter().enumerate();
        items
            .map(|(index, policy)| format!("- {}\n", named(&format!("p{index}"), policy)))
            .collect()
    })
}

fn trace() -> impl Strategy<Value = TestTrace> {
    (
        any::<[u8; 16]>(),
        0..16u128,
        (0..30_000_000u64, 0..30_000_000u64),
        1..10u32,
        0..1_000u64,
        any::<bool>(),
    )
        .prop_map(|(id, bits, (before, after), span_count, bytes, error)| {
            let middle = TestTrace::default().start;
            TestTrace {
                trace_id: TraceId(id),
                bits,
                start: middle - before,
                end: middle + after,
                span_count,
                bytes,
                error,
                ..TestTrace::default()
            }
        })
}

/// What further spans can make of a trace.
fn growth() -> impl Strategy<Value = TestTrace> {
    trace()
}

fn grown(trace: &TestTrace, by: &TestTrace) -> TestTrace {
    TestTrace {
        bits: trace.bits | by.bits,
        start: trace.start.min(by.start),
        end: trace.end.max(by.end),
        span_count: trace.span_count + by.span_count,
        bytes: trace.bytes + by.bytes,
        error: trace.error || by.error,
        ..trace.clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_decision_can_be_made_again_from_its_record(
        file in file(),
        traces in proptest::collection::vec((trace(), -500_000_000i64..1_500_000_000), 1..30),
        tightening in 0.0..=1.0f64,
    ) {
        let set = set(&file);
        let mut limiters = Limiters::new(&set);
        limiters.set_tightening(tightening);
        let other = PolicySet::parse(set.yaml(), 8).unwrap();
        let mut now = 10 * UnixNanos::PER_SECOND;
        for (trace, step) in &traces {
            now = now.saturating_add_signed(*step);
            let decision = set.decide(&trace.facts(), &mut limiters, UnixNanos(now));
            let again = set.recompute(&trace.facts(), &decision.limiters);
            prop_assert_eq!(&again, &decision);
            // and: by another compilation of the same text
            prop_assert_eq!(&other.recompute(&trace.facts(), &decision.limiters), &decision);
        }
    }

    #[test]
    fn limiters_are_deterministic(
        file in file(),
        traces in proptest::collection::vec((trace(), 0..1_500_000_000u64), 1..30),
    ) {
        let set = set(&file);
        let run = || {
            let mut limiters = Limiters::new(&set);
            traces.iter().map(|(trace, now)| set.decide(&trace.facts(), &mut limiters, UnixNanos(*now))).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn a_final_keep_stays_whatever_comes(
        file in file(),
        trace in trace(),
        growths in proptest::collection::vec(growth(), 1..20),
        levels in proptest::collection::vec(0..(1u64 << 33), 8),
    ) {
        let set = set(&file);
        let readings: Vec<_> = (0u8..).zip(levels).map(|(limiter, level)| crate::verdict::LimiterReading { limiter, level }).collect();
        if !set.keep_is_final(&trace.facts()) {
            return Ok(());
        }
        let first = set.recompute(&trace.facts(), &readings);
        prop_assert_eq!(first.verdict, Verdict::Keep);
        let mut trace = trace;
        for growth in &growths {
            trace = grown(&trace, growth);
            let later = set.recompute(&trace.facts(), &readings);
            prop_assert_eq!(later.verdict, Verdict::Keep);
            prop_assert_eq!(later.probability, first.probability);
            prop_assert!(set.keep_is_final(&trace.facts()), "once final, always final");
        }
    }

    #[test]
    fn no_text_is_too_strange_to_refuse(text in "(policies|type|name|and|: |\\n|- |\\[|\\]|\\{|\\}|,|latency|5|'|\"|&a|\\*a|<<| ){0,60}") {
        let _ = PolicySet::parse(&text, 1);
        let _ = import_collector(&text);
    }
}
