//! Importing a Collector's file as people write it.

use super::{PolicySet, import_collector};

const COLLECTOR: &str = r#"
receivers:
  otlp:
    protocols: {grpc: {endpoint: "0.0.0.0:4317"}}
processors:
  batch: {}
  tail_sampling:
    decision_wait: 20s
    decision_wait_after_root_received: 5s
    num_traces: 100
    decision_cache: {sampled_cache_size: 1000}
    policies:
      - name: drop-probes
        type: drop
        drop:
          drop_sub_policy:
            - name: probe
              type: string_attribute
              string_attribute: {key: http.route, values: ['^/(live|ready)$'], enabled_regex_matching: true, cache_max_size: 10}
      - {name: errors, type: status_code, status_code: {status_codes: [ERROR, UNSET]}}
      - {name: slow, type: latency, latency: {threshold_ms: 5000}}
      - name: 5xx
        type: numeric_attribute
        numeric_attribute: {key: http.status_code, min_value: 500, max_value: 599}
      - name: teapots
        type: ottl_condition
        ottl_condition: {error_mode: ignore, span: ['attributes["x"] == "y"']}
      - name: mixed
        type: and
        and:
          and_sub_policy:
            - {name: shop, type: string_attribute, string_attribute: {key: service.name, values: [shop, "true"]}}
            - name: no-debug
              type: not
              not:
                not_sub_policy: {name: debug, type: boolean_attribute, boolean_attribute: {key: debug, value: true}}
            - {name: some, type: probabilistic, probabilistic: {sampling_percentage: 150, hash_salt: "a b"}}
      - name: shares
        type: composite
        composite:
          max_total_spans_per_second: 1000
          policy_order: [second, first]
          composite_sub_policy:
            - {name: first, type: trace_state, trace_state: {key: k, values: [v]}}
            - {name: second, type: span_count, span_count: {min_spans: 2}}
            - {name: third, type: always_sample}
          rate_allocation:
            - {policy: first, percent: 50}
      - {name: secret, type: rate_limiting, rate_limiting: {spans_per_second: "${env:RATE}"}}
      - {name: slow, type: bytes_limiting, bytes_limiting: {bytes_per_second: 100}, latency: {threshold_ms: 1}}
service:
  pipelines:
    traces: {receivers: [otlp], processors: [tail_sampling, batch], exporters: [otlp]}
"#;

#[test]
fn a_realistic_file() {
    // when
    let import = import_collector(COLLECTOR).unwrap();
    // then: what could be taken over is in force
    let set = PolicySet::parse(&import.yaml, 1).unwrap();
    assert_eq!(
        (set.decision_idle_ms(), set.decision_max_age_ms()),
        (5_000, 20_000)
    );
    assert_eq!(
        set.describe(),
        [
            r#"drop-probes: drop when a span's "http.route" matches "^/(live|ready)$""#,
            "errors: keep when a span's status is unset or error",
            "slow: keep when it took longer than 5000 ms",
            r#"5xx: keep when a span's "http.status_code" is 500 to 599"#,
            r#"mixed: keep 100 % of traces by id, when a span's "service.name" is "shop" or "true", and not (a span's "debug" is true)"#,
            "shares: keep the first that applies of: second up to 250 spans a second (when it has at least 2 spans); \
             first up to 500 spans a second (when a span's trace state \"k\" is \"v\"); third up to 250 spans a second \
             (every trace)",
            "slow-2: keep up to 100 bytes a second per node, 200 at once",
        ]
    );
    // and: what could not is told
    let said = |part: &str| import.not_taken_over.iter().any(|note| note.contains(part));
    for part in [
        "`num_traces` (line 10)",
        "`decision_cache` (line 11)",
        "`string_attribute.cache_max_size`",
        "policy `teapots` (line 25): ottl_condition has no counterpart",
        "policy `some`: the salted hash",
        "policy `shares`: `composite.policy_order` lists some",
        "policy `shares`: sub-policies without a rate_allocation share",
        "policy `secret` (line 49): `rate_limiting.spans_per_second` is filled in",
        "policy `slow` (line 50): an earlier one has that name, it became `slow-2`",
        "policy `slow` (line 50): `latency` does not belong",
    ] {
        assert!(said(part), "{part}: {:#?}", import.not_taken_over);
    }
    assert_eq!(
        import.not_taken_over.len(),
        10,
        "{:#?}",
        import.not_taken_over
    );
}

#[test]
fn the_text_is_pleasant() {
    let import = import_collector(
        "policies:\n- {name: a b, type: and, and: {and_sub_policy: [{name: x, type: latency, latency: {threshold_ms: 5}}, \
         {name: y, type: status_code, status_code: {status_codes: [ERROR]}}]}}\n- {name: '1', type: always_sample}\n",
    )
    .unwrap();
    let expected = "\
# Imported from the tail_sampling processor of an OpenTelemetry Collector.
decision:
  max_age: 30s
policies:
  - name: \"a b\"
    type: and
    and_sub_policy:
      - name: x
        type: latency
        threshold_ms: 5
      - name: \"y\"
        type: status_code
        status_codes: [ERROR]
  - name: \"1\"
    type: always_sample
";
    assert_eq!(import.yaml, expected);
    assert!(import.not_taken_over.is_empty());
}

#[test]
fn wherever_the_processor_stands() {
    let block = "{policies: [{name: a, type: always_sample}]}";
    for file in [
        format!("processors: {{tail_sampling/x: {block}}}"),
        format!("tail_sampling: {block}"),
        format!("config: {{processors: {{tail_sampling: {block}}}}}"),
        format!("spec: {{config: {{processors: {{tail_sampling/y: {block}}}}}}}"),
        block.to_owned(),
    ] {
        let import = import_collector(&file).unwrap();
        assert!(import.yaml.contains("name: a"), "{file}");
    }
    let two = format!("processors: {{tail_sampling/x: {block}, tail_sampling/z: {block}}}");
    let import = import_collector(&two).unwrap();
    assert!(import.not_taken_over[0].contains("`tail_sampling/z` (line 1)"));
}

#[test]
fn times_are_bounded_and_told() {
    let import = import_collector(
        "decision_wait: 9h\ndecision_wait_after_root_received: 1.5s\npolicies: [{name: a, type: always_sample}]",
    )
    .unwrap();
    assert!(import.yaml.contains("max_age: 3600s"), "{}", import.yaml);
    assert_eq!(
        import.not_taken_over.len(),
        2,
        "{:?}",
        import.not_taken_over
    );
}

#[test]
fn files_without_anything_to_import() {
    let error = import_collector("receivers: {}").unwrap_err();
    assert_eq!(
        (error.line, error.field.as_str()),
        (1, "processors.tail_sampling")
    );
    let error = import_collector("processors:\n  tail_sampling:\n    policies: []\n").unwrap_err();
    assert_eq!(
        (error.line, error.field.as_str()),
        (3, "processors.tail_sampling.policies")
    );
    let error = import_collector("policies: [{name: a, type: ottl_condition}]").unwrap_err();
    assert!(error.message.contains("policy `a` (line 1)"), "{error}");
    assert!(import_collector("a: [").is_err());
}
