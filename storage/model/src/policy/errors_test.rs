//! Everything that a policy file may not say, with the place that the error names.

use super::PolicySet;

/// Checks that a file is refused at that line and column, for that field, in words that contain `message`.
fn check(yaml: &str, (line, column): (u32, u32), field: &str, message: &str) {
    let error = PolicySet::parse(yaml, 1).expect_err(yaml);
    assert_eq!(
        (error.line, error.column, error.field.as_str()),
        (line, column, field),
        "{error}\n{yaml}"
    );
    assert!(
        error.message.contains(message),
        "{} does not say {message}",
        error.message
    );
}

/// The same for the fields of one policy, which stand on line 4 from column 5 on.
fn check_policy(kind: &str, fields: &str, place: (u32, u32), field: &str, message: &str) {
    let yaml = format!("policies:\n  - name: p\n    type: {kind}\n    {fields}\n");
    check(&yaml, place, &format!("policies[0].{field}"), message);
}

#[test]
fn what_is_no_yaml() {
    check("policies: [", (1, 11), "", "not the YAML");
    check("policies:\n  - a: 1\n    a: 2\n", (3, 5), "", "duplicate");
    check(
        "policies: [{name: a, type: probabilistic, sampling_percentage: .nan}]",
        (1, 64),
        "",
        "non-finite",
    );
    check("", (1, 1), "", "must be a map");
    check(&" ".repeat(300_000), (0, 0), "", "300000 bytes");
    let deep = format!("a: {}{}", "[".repeat(40), "]".repeat(40));
    let error = PolicySet::parse(&deep, 1).expect_err("too deep");
    assert!(
        error.line == 1 && error.message.contains("depth"),
        "{error}"
    );
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n\
                g: [*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*f,*f,*f,*f,*f,*f,*f,*f]\n";
    assert!(PolicySet::parse(bomb, 1).is_err());
}

#[test]
fn the_file_as_a_whole() {
    check("decision: {idle: 1s}", (1, 1), "policies", "is required");
    check("policies: []", (1, 11), "policies", "must not be empty");
    check(
        "policies: 5",
        (1, 11),
        "policies",
        "must be a list, got a number",
    );
    check(
        "policies:\n  - {name: a, type: always_sample}\nextra: 1\n",
        (3, 1),
        "extra",
        "unknown field",
    );
    let many: String = (0..129)
        .map(|n| format!("  - {{name: p{n}, type: always_sample}}\n"))
        .collect();
    check(
        &format!("policies:\n{many}"),
        (2, 3),
        "policies",
        "129 policies, the limit is 128",
    );
}

#[test]
fn decision_times() {
    let after = "\npolicies: [{name: a, type: always_sample}]\n";
    let check = |decision: &str, place, field: &str, message: &str| {
        check(
            &format!("decision: {{{decision}}}{after}"),
            place,
            field,
            message,
        );
    };
    check("idle: 10", (1, 18), "decision.idle", "must be a duration");
    check("idle: 10d", (1, 18), "decision.idle", "must be a duration");
    check(
        "idle: 99999999999999999999s",
        (1, 18),
        "decision.idle",
        "must be a duration",
    );
    check(
        "idle: 1ms",
        (1, 18),
        "decision.idle",
        "10 ms to 3600000 ms, got 1 ms",
    );
    check("max_age: 2h", (1, 21), "decision.max_age", "got 7200000 ms");
    check(
        "idle: 2m",
        (1, 18),
        "decision.idle",
        "at most max_age, 60000 ms",
    );
    check(
        "wait: 2m",
        (1, 12),
        "decision.wait",
        "unknown field: decision has idle, max_age",
    );
    let set = PolicySet::parse(&format!("decision: {{max_age: 1m30s500ms}}{after}"), 1).unwrap();
    assert_eq!(
        (set.decision_idle_ms(), set.decision_max_age_ms()),
        (10_000, 90_500)
    );
}

#[test]
fn names_and_types() {
    check(
        "policies:\n  - type: always_sample\n",
        (2, 5),
        "policies[0].name",
        "is required",
    );
    check(
        "policies:\n  - name: a\n",
        (2, 5),
        "policies[0].type",
        "is required",
    );
    check(
        "policies:\n  - {name: a, type: always_sample}\n  - {name: a, type: latency, threshold_ms: 1}\n",
        (3, 12),
        "policies[1].name",
        "earlier policy",
    );
    check(
        "policies:\n  - {name: \"a\\nb\", type: always_sample}",
        (2, 12),
        "policies[0].name",
        "control",
    );
    let long = format!(
        "policies:\n  - {{name: {}, type: always_sample}}",
        "n".repeat(129)
    );
    check(&long, (2, 12), "policies[0].name", "129 bytes");
    check_policy(
        "sometimes",
        "x: 1",
        (3, 11),
        "type",
        "unknown policy type `sometimes`",
    );
    check_policy(
        "ottl_condition",
        "span: []",
        (3, 11),
        "type",
        "not supported",
    );
    check_policy("always_sample", "x: 1", (4, 5), "x", "unknown field");
    for typo in ["treshold_ms", "threshold"] {
        let asked = format!("is required; is it what `{typo}` in line 4 is meant to be?");
        let fields = format!("{typo}: 1");
        check_policy("latency", &fields, (2, 5), "threshold_ms", &asked);
    }
    check_policy(
        "always_sample",
        "always_sample: {}",
        (4, 5),
        "always_sample",
        "without the block",
    );
}

#[test]
fn ranges() {
    let c = check_policy;
    c(
        "latency",
        "threshold_ms: -1",
        (4, 19),
        "threshold_ms",
        "got -1",
    );
    c(
        "latency",
        "threshold_ms: 1.5",
        (4, 19),
        "threshold_ms",
        "must be a whole number",
    );
    c(
        "latency",
        "{threshold_ms: 9, upper_threshold_ms: 9}"
            .trim_matches(['{', '}'])
            .replace(", ", "\n    ")
            .as_str(),
        (5, 25),
        "upper_threshold_ms",
        "more than threshold_ms, 9",
    );
    c(
        "probabilistic",
        "sampling_percentage: 100.5",
        (4, 26),
        "sampling_percentage",
        "0 to 100",
    );
    c(
        "probabilistic",
        "sampling_percentage: -1",
        (4, 26),
        "sampling_percentage",
        "0 to 100",
    );
    c(
        "numeric_attribute",
        "key: k",
        (2, 5),
        "min_value",
        "min_value or max_value",
    );
    c(
        "numeric_attribute",
        "key: k\n    min_value: 5\n    max_value: 4",
        (6, 16),
        "max_value",
        "at least min_value, 5",
    );
    c(
        "span_count",
        "min_spans: 0",
        (2, 5),
        "min_spans",
        "is required",
    );
    c(
        "span_count",
        "min_spans: 5\n    max_spans: 4",
        (5, 16),
        "max_spans",
        "at least min_spans, 5",
    );
    c(
        "span_count",
        "min_spans: 200000",
        (4, 16),
        "min_spans",
        "0 to 100000",
    );
    c(
        "rate_limiting",
        "spans_per_second: 0",
        (4, 23),
        "spans_per_second",
        "got 0",
    );
    c(
        "bytes_limiting",
        "bytes_per_second: 1000000000001",
        (4, 23),
        "bytes_per_second",
        "1 to",
    );
    c(
        "throughput",
        "traces_per_second: 0",
        (4, 24),
        "traces_per_second",
        "1 to",
    );
    c(
        "boolean_attribute",
        "key: k\n    value: perhaps",
        (5, 12),
        "value",
        "true or false, got text",
    );
    c(
        "status_code",
        "status_codes: [FAILED]",
        (4, 20),
        "status_codes[0]",
        "OK, ERROR or UNSET",
    );
    c(
        "status_code",
        "status_codes: []",
        (4, 19),
        "status_codes",
        "must not be empty",
    );
    c(
        "string_attribute",
        "key: ''\n    values: [a]",
        (4, 10),
        "key",
        "must not be empty",
    );
    c(
        "string_attribute",
        "key: k\n    values: [a, '']",
        (5, 17),
        "values[1]",
        "must not be empty",
    );
    c(
        "string_attribute",
        "key: k\n    values: [a, [b]]",
        (5, 17),
        "values[1]",
        "must be text, got a list",
    );
    c(
        "string_attribute",
        "key: k\n    values:",
        (5, 11),
        "values",
        "must be a list, got nothing",
    );
    c(
        "tenant",
        "values: [a/b]",
        (4, 14),
        "values[0]",
        "tenant must be",
    );
}

#[test]
fn regular_expressions() {
    let check = |pattern: &str, message: &str| {
        let fields = format!("key: k\n    values: ['{pattern}']\n    enabled_regex_matching: true");
        check_policy("string_attribute", &fields, (5, 14), "values[0]", message);
    };
    check("a(b", "is not a regular expression: unclosed group");
    check("(a{1000}){1000}", "too large");
    check(&format!("{}{}", "(".repeat(60), ")".repeat(60)), "nest");
    let many: Vec<String> = (0..129).map(|n| format!("r{n}")).collect();
    let yaml = format!(
        "policies:\n- {{name: a, type: string_attribute, key: k, enabled_regex_matching: true, values: [{}]}}",
        many.join(", ")
    );
    let error = PolicySet::parse(&yaml, 1).expect_err("too many");
    assert_eq!(error.field, "policies[0].values[128]");
    assert!(error.message.contains("more than 128 regular"), "{error}");
}

#[test]
fn bounds_of_the_file() {
    let leaves: String = (0..129)
        .map(|n| format!("    - {{type: trace_state, key: k{n}, values: [x]}}\n"))
        .collect();
    let yaml = format!("policies:\n- name: a\n  type: and\n  and_sub_policy:\n{leaves}");
    check(
        &yaml,
        (133, 32),
        "policies[0].and_sub_policy[128].key",
        "more than 128 distinct",
    );
    let limits: String = (0..65)
        .map(|n| format!("- {{name: p{n}, type: throughput, traces_per_second: 1}}\n"))
        .collect();
    check(
        &format!("policies:\n{limits}"),
        (66, 21),
        "policies[64].type",
        "more than 64 rate limits",
    );
    let values = vec!["x"; 1_001].join(", ");
    let yaml = format!("policies:\n- {{name: a, type: service, values: [{values}]}}");
    check(
        &yaml,
        (2, 36),
        "policies[0].values",
        "1001 entries, the limit is 1000",
    );
    let mut nest = "{type: always_sample}".to_owned();
    for _ in 0..8 {
        nest = format!("{{type: not, not_sub_policy: {nest}}}");
    }
    let yaml = format!("policies:\n- {{name: a, type: not, not_sub_policy: {nest}}}");
    let error = PolicySet::parse(&yaml, 1).expect_err("too deep");
    assert!(
        error.line == 2 && error.message.contains("8 deep"),
        "{error}"
    );
}

#[test]
fn where_samplers_and_limits_have_no_meaning() {
    check_policy(
        "not",
        "not_sub_policy: {type: probabilistic, sampling_percentage: 5}",
        (4, 21),
        "not_sub_policy",
        "takes conditions alone",
    );
    check_policy(
        "drop",
        "drop_sub_policy: [{type: and, and_sub_policy: [{type: rate_limiting, spans_per_second: 5}]}]",
        (4, 22),
        "drop_sub_policy",
        "takes conditions alone",
    );
    check_policy(
        "and",
        "and_sub_policy: [{type: drop, drop_sub_policy: [{type: always_sample}]}]",
        (4, 29),
        "and_sub_policy[0].type",
        "at the top only",
    );
}

#[test]
fn composites() {
    let check = |fields: &str, place, field: &str, message: &str| {
        let subs = "max_total_spans_per_second: 100\n    composite_sub_policy: \
                    [{name: a, type: always_sample}, {name: b, type: always_sample}]";
        check_policy(
            "composite",
            &format!("{subs}\n    {fields}"),
            place,
            field,
            message,
        );
    };
    check(
        "policy_order: [a]",
        (6, 19),
        "policy_order",
        "does not list the sub-policy `b`",
    );
    check(
        "policy_order: [a, c]",
        (6, 23),
        "policy_order[1]",
        "no sub-policy `c`",
    );
    check("policy_order: [a, a]", (6, 23), "policy_order[1]", "twice");
    check(
        "rate_allocation: [{policy: a, percent: 101}]",
        (6, 44),
        "rate_allocation[0].percent",
        "1 to 100",
    );
    check(
        "rate_allocation: [{policy: a, percent: 100}]",
        (6, 22),
        "rate_allocation",
        "gives away 100 percent",
    );
    check(
        "rate_allocation: [{policy: a, percent: 60}, {policy: b, percent: 60}]",
        (6, 22),
        "rate_allocation",
        "120 percent",
    );
    check(
        "rate_allocation: [{policy: a, percent: 6}, {policy: a, percent: 6}]",
        (6, 57),
        "rate_allocation[1].policy",
        "a share already",
    );
    check_policy(
        "composite",
        "max_total_spans_per_second: 1\n    composite_sub_policy: [{type: always_sample}]",
        (5, 28),
        "composite_sub_policy[0]",
        "needs a `name`",
    );
    check_policy(
        "composite",
        "max_total_spans_per_second: 1\n    composite_sub_policy: [{name: a, type: always_sample}, {name: a, type: always_sample}]",
        (5, 67),
        "composite_sub_policy[1].name",
        "earlier sub-policy",
    );
}

#[test]
fn priorities() {
    let check = |priorities: &str, place, field: &str, message: &str| {
        let yaml =
            format!("policies: [{{name: a, type: always_sample}}]\npriorities: {{{priorities}}}\n");
        check(&yaml, place, field, message);
    };
    check(
        "services: {a: urgent}",
        (2, 28),
        "priorities.services.a",
        "low, normal or high",
    );
    check(
        "tenants: {a/b: low}",
        (2, 24),
        "priorities.tenants.a/b",
        "tenant must be",
    );
    check("hosts: {}", (2, 14), "priorities.hosts", "unknown field");
}

#[test]
fn an_error_reads_as_a_sentence() {
    let error = PolicySet::parse(
        "policies:\n  - {name: a, type: latency, threshold_ms: x}",
        1,
    )
    .expect_err("text");
    assert_eq!(
        error.to_string(),
        "line 2, column 44: `policies[0].threshold_ms`: must be a whole number, got text"
    );
}
