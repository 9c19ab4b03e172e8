//! Rate limits over simulated time.

use super::test_support::{TestTrace, mixed_id, set};
use super::{Limiters, PolicySet};
use crate::ids::UnixNanos;
use crate::verdict::{CERTAIN, Verdict};

const SECOND: u64 = UnixNanos::PER_SECOND;

/// Decides `rate` traces a second, evenly spread, for so many seconds from `from` on; returns how many were kept in
/// each second and the sum of the weights (1 / probability) of the kept ones.
fn run(
    set: &PolicySet,
    limiters: &mut Limiters,
    from: u64,
    seconds: u64,
    rate: u64,
    trace: &TestTrace,
) -> (Vec<u32>, f64) {
    let (mut kept, mut weight) = (Vec::new(), 0.0);
    for second in from..from + seconds {
        let mut count = 0;
        for n in 0..rate {
            let trace = TestTrace {
                trace_id: mixed_id(second * 1_000_003 + n),
                ..trace.clone()
            };
            let now = UnixNanos(second * SECOND + n * SECOND / rate);
            let decision = set.decide(&trace.facts(), limiters, now);
            if decision.verdict == Verdict::Keep {
                count += 1;
                weight += CERTAIN as f64 / decision.probability as f64;
            }
        }
        kept.push(count);
    }
    (kept, weight)
}

fn mean(kept: &[u32]) -> f64 {
    f64::from(kept.iter().sum::<u32>()) / kept.len() as f64
}

const THROUGHPUT: &str = "- {name: a, type: throughput, traces_per_second: 100}";

#[test]
fn throughput_keeps_all_below_its_rate() {
    let set = set(THROUGHPUT);
    let (kept, weight) = run(
        &set,
        &mut Limiters::new(&set),
        0,
        30,
        99,
        &TestTrace::default(),
    );
    assert_eq!(kept, vec![99; 30]);
    assert!((weight - 99.0 * 30.0).abs() < 1e-6);
}

#[test]
fn throughput_samples_down_to_its_rate() {
    let set = set(THROUGHPUT);
    for rate in [200, 1_000, 10_000] {
        let mut limiters = Limiters::new(&set);
        run(&set, &mut limiters, 0, 20, rate, &TestTrace::default());
        let (kept, weight) = run(&set, &mut limiters, 20, 30, rate, &TestTrace::default());
        assert!(
            (90.0..110.0).contains(&mean(&kept)),
            "{rate}: {}",
            mean(&kept)
        );
        // and: the recorded probabilities weigh the kept ones up to the whole
        let whole = (rate * 30) as f64;
        assert!(
            (weight / whole - 1.0).abs() < 0.1,
            "{rate}: {weight} of {whole}"
        );
    }
}

#[test]
fn throughput_bounds_a_burst_out_of_silence_and_settles() {
    let set = set(THROUGHPUT);
    let mut limiters = Limiters::new(&set);
    let (kept, weight) = run(&set, &mut limiters, 0, 12, 10_000, &TestTrace::default());
    // 100 * (1 + ln 100) = 560
    assert!((450..680).contains(&kept[0]), "{kept:?}");
    assert!(kept[1] < 450 && kept[11] < 140, "{kept:?}");
    assert!((weight / 120_000.0 - 1.0).abs() < 0.1, "{weight}");
    // and: when it is over, everything is kept again
    let (kept, _) = run(&set, &mut limiters, 60, 5, 50, &TestTrace::default());
    assert_eq!(kept, vec![50; 5]);
}

#[test]
fn tightening_scales_what_healthy_traces_get() {
    let error = TestTrace {
        error: true,
        ..TestTrace::default()
    };
    for file in [
        THROUGHPUT,
        "- {name: a, type: rate_limiting, spans_per_second: 100}",
    ] {
        let set = set(file);
        let mut limiters = Limiters::new(&set);
        limiters.set_tightening(0.25);
        run(&set, &mut limiters, 0, 20, 1_000, &TestTrace::default());
        let (kept, _) = run(&set, &mut limiters, 20, 30, 1_000, &TestTrace::default());
        assert!(
            (22.0..28.0).contains(&mean(&kept)),
            "{file}: {}",
            mean(&kept)
        );
        // and: traces with an error have the whole limit
        run(&set, &mut limiters, 50, 20, 1_000, &error);
        let (kept, _) = run(&set, &mut limiters, 70, 30, 1_000, &error);
        assert!(
            (90.0..110.0).contains(&mean(&kept)),
            "{file}: {}",
            mean(&kept)
        );
        // and: nothing at all for healthy ones at zero
        limiters.set_tightening(0.0);
        let (kept, _) = run(&set, &mut limiters, 100, 3, 1_000, &TestTrace::default());
        assert_eq!(kept, [0, 0, 0], "{file}");
        limiters.set_tightening(f64::NAN);
        let (kept, _) = run(&set, &mut limiters, 110, 1, 50, &TestTrace::default());
        assert!(kept[0] > 0, "{file}");
    }
}

#[test]
fn rate_limiting_counts_spans() {
    let set = set("- {name: a, type: rate_limiting, spans_per_second: 100}");
    let trace = TestTrace {
        span_count: 7,
        ..TestTrace::default()
    };
    let mut limiters = Limiters::new(&set);
    let (kept, _) = run(&set, &mut limiters, 0, 30, 200, &trace);
    // 100 spans at once, then 100 a second: 14.3 traces
    assert!((14.0..15.0).contains(&mean(&kept[1..])), "{kept:?}");
    // and: a trace larger than the bucket is never kept by it
    let large = TestTrace {
        span_count: 101,
        ..trace
    };
    let (kept, _) = run(&set, &mut limiters, 60, 2, 1, &large);
    assert_eq!(kept, [0, 0]);
}

#[test]
fn bytes_limiting_has_a_burst() {
    let set =
        set("- {name: a, type: bytes_limiting, bytes_per_second: 1000, burst_capacity: 5000}");
    let trace = TestTrace {
        bytes: 500,
        ..TestTrace::default()
    };
    let (kept, _) = run(&set, &mut Limiters::new(&set), 0, 4, 100, &trace);
    assert_eq!(kept[1..], [2, 2, 2]);
    assert!((10..=12).contains(&kept[0]), "{kept:?}");
}

#[test]
fn a_composite_gives_each_sub_policy_its_share() {
    let set = set(
        "- name: c\n  type: composite\n  max_total_spans_per_second: 100\n  policy_order: [slow, rest]\n  \
         composite_sub_policy:\n  - {name: rest, type: always_sample}\n  \
         - {name: slow, type: latency, threshold_ms: 10}\n  rate_allocation: [{policy: slow, percent: 70}]\n",
    );
    let fast = TestTrace::default();
    let slow = TestTrace {
        end: fast.end + 20_000_000,
        ..TestTrace::default()
    };
    let mut limiters = Limiters::new(&set);
    for (trace, expected) in [(&slow, 70.0), (&fast, 30.0)] {
        let (kept, _) = run(&set, &mut limiters, 0, 1, 1_000, trace);
        assert!(kept[0] >= 30, "a full bucket at first: {kept:?}");
        let (kept, _) = run(&set, &mut limiters, 1, 20, 1_000, trace);
        assert!((mean(&kept) - expected).abs() < 2.0, "{kept:?}");
        limiters = Limiters::new(&set);
    }
}

#[test]
fn a_policy_that_loses_takes_nothing() {
    // given: a bucket of one span, and a sampler that is surer of nothing but asked as well
    let set = set(
        "- name: a\n  type: and\n  and_sub_policy:\n  - {type: rate_limiting, spans_per_second: 1}\n  \
         - {type: throughput, traces_per_second: 1}\n",
    );
    let mut limiters = Limiters::new(&set);
    let out = TestTrace {
        trace_id: "00000000000000010000000000000001".parse().unwrap(),
        ..TestTrace::default()
    };
    // when: traces are left out by the throughput after the bucket had said yes
    limiters.set_tightening(0.5);
    let error = TestTrace {
        error: true,
        ..TestTrace::default()
    };
    for _ in 0..3 {
        assert_eq!(
            set.decide(&out.facts(), &mut limiters, UnixNanos(0))
                .verdict,
            Verdict::Drop
        );
    }
    // then: the bucket is still full
    let decision = set.decide(&error.facts(), &mut limiters, UnixNanos(0));
    assert_eq!(decision.limiters[0].level, 1_000);
    assert_eq!(decision.verdict, Verdict::Keep);
}

#[test]
fn a_change_of_policy_keeps_the_levels_of_what_stays() {
    let before = set(
        "- {name: a, type: rate_limiting, spans_per_second: 10}\n- {name: b, type: rate_limiting, spans_per_second: 5}",
    );
    let after = set(
        "- {name: b, type: rate_limiting, spans_per_second: 6}\n- {name: a, type: rate_limiting, spans_per_second: 10}",
    );
    let mut limiters = Limiters::new(&before);
    let trace = TestTrace::default();
    let now = UnixNanos(SECOND);
    for _ in 0..15 {
        assert_eq!(
            before.decide(&trace.facts(), &mut limiters, now).verdict,
            Verdict::Keep
        );
    }
    assert_eq!(
        before.decide(&trace.facts(), &mut limiters, now).verdict,
        Verdict::Drop
    );
    // when: decided by another set, which the limiters follow by themselves
    let decision = after.decide(&trace.facts(), &mut limiters, now);
    // then: `b` has another rate and is full, `a` is as empty as before
    assert_eq!((decision.policy, decision.limiters[0].level), (0, 6_000));
    for _ in 0..5 {
        after.decide(&trace.facts(), &mut limiters, now);
    }
    let decision = after.decide(&trace.facts(), &mut limiters, now);
    assert_eq!(decision.verdict, Verdict::Drop);
    assert_eq!(decision.limiters[1].level, 0);
}
