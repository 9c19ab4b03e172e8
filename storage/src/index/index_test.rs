//! The index against a naive evaluation of the same summaries, and against damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::{Bucket, Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, NamesKind, SearchFilter, TagCondition};
use spandrel_model::shard_set::ShardSet;
use spandrel_model::summary::{AttributeText, SpanClass, SummaryDecision, TraceSummary};

use super::*;
use crate::disk::RealDisk;

const BUCKET: Bucket = Bucket(5);
const BLOCK: u128 = 77;
const SERVICES: [&str; 3] = ["cart", "ca", "pay\0ment"];
const OPERATIONS: [&str; 3] = ["get", "get/all", "\0"];
const KEYS: [&str; 3] = ["env", "env.x", "user"];
const VALUES: [&str; 3] = ["1", "prod", "prod-2"];
const TENANTS: [&str; 2] = ["acme", "acme2"];

fn status(number: usize) -> StatusCode {
    StatusCode::from_wire(i32::try_from(number % 3).unwrap())
}

fn tenant(number: usize) -> TenantId {
    TENANTS[number % TENANTS.len()].parse().unwrap()
}

/// A summary of trace `trace` (its start follows from its number, as the first verdict fixes it).
fn summary(tenant: TenantId, trace: u8, fragment: u64) -> TraceSummary {
    let start = UnixNanos(1_000 + u64::from(trace / 3));
    TraceSummary {
        tenant,
        shard: ShardId(u16::from(trace.max(1)) % 8),
        trace_id: TraceId([trace.max(1); 16]),
        fragment: Lsn(fragment),
        bucket: BUCKET,
        start,
        earliest: start,
        end: start.plus(10),
        root: None,
        span_count: 1,
        error_count: 0,
        classes: Vec::new(),
        attributes: Vec::new(),
        truncated: false,
        decision: SummaryDecision::default(),
    }
}

fn summaries() -> impl Strategy<Value = TraceSummary> {
    let class = (0..3_usize, 0..3_usize, 0..6_i32, 0..3_usize).prop_map(|(s, o, k, e)| SpanClass {
        service: SERVICES[s].into(),
        operation: OPERATIONS[o].into(),
        kind: SpanKind::from_wire(k),
        status: status(e),
    });
    let attribute = (0..3_usize, 0..3_usize).prop_map(|(key, value)| AttributeText {
        key: KEYS[key].into(),
        value: VALUES[value].into(),
    });
    (
        0..2_usize,
        0..40_u8,
        1..5_u64,
        0..30_u64,
        proptest::collection::btree_set(class, 0..4),
        proptest::collection::btree_set(attribute, 0..3),
        proptest::bool::weighted(0.1),
    )
        .prop_map(
            |(of, trace, fragment, duration, classes, attributes, truncated)| {
                let plain = summary(tenant(of), trace, fragment);
                TraceSummary {
                    end: plain.start.plus(duration),
                    classes: classes.into_iter().collect(),
                    attributes: attributes.into_iter().collect(),
                    truncated,
                    ..plain
                }
            },
        )
}

fn filters() -> impl Strategy<Value = SearchFilter> {
    let tag = (0..3_usize, 0..3_usize).prop_map(|(key, value)| TagCondition {
        key: KEYS[key].to_owned(),
        value: VALUES[value].to_owned(),
    });
    (
        proptest::collection::vec(0..3_usize, 0..3),
        proptest::option::of(0..3_usize),
        proptest::option::of(0..3_usize),
        proptest::collection::vec(tag, 0..3),
        proptest::option::weighted(0.3, 0..20_u64),
        proptest::option::weighted(0.3, 0..30_u64),
        (0..15_u64, 0..15_u64),
    )
        .prop_map(
            |(services, operation, of, tags, min, max, (from, to))| SearchFilter {
                services: services
                    .into_iter()
                    .map(|n| SERVICES[n].to_owned())
                    .collect(),
                operation: operation.map(|n| OPERATIONS[n].to_owned()),
                status: of.map(status),
                tags,
                min_duration: min,
                max_duration: max,
                // half of the time everything
                from: UnixNanos(if from < 8 { 0 } else { 990 + from }),
                to: UnixNanos(if to < 8 { u64::MAX } else { 1_000 + to }),
            },
        )
}

/// Whether a summary matches: surely, perhaps, or not.
#[derive(PartialEq)]
enum Naive {
    Sure,
    Perhaps,
    No,
}

/// The definition of a match, read off the summary's parts without any term.
fn naive(summary: &TraceSummary, filter: &SearchFilter, keys: &[String]) -> Naive {
    let duration = summary.duration_nanos();
    let in_range = filter.from <= summary.start && summary.start < filter.to;
    let lasts = filter.min_duration.is_none_or(|least| duration >= least)
        && filter.max_duration.is_none_or(|most| duration <= most);
    if !in_range || !lasts {
        return Naive::No;
    }
    let of_services = |name: &String| summary.classes.iter().any(|class| *class.service == **name);
    let services = filter.services.iter().all(of_services);
    let needs_span = filter.operation.is_some() || filter.status.is_some();
    let one = filter.span_service();
    let span = !(needs_span || one.is_some())
        || summary.classes.iter().any(|class| {
            one.is_none_or(|service| *class.service == *service)
                && filter
                    .operation
                    .as_ref()
                    .is_none_or(|name| *class.operation == **name)
                && filter.status.is_none_or(|status| class.status == status)
        });
    let has = |tag: &TagCondition| {
        !keys.contains(&tag.key)
            || summary
                .attributes
                .iter()
                .any(|a| *a.key == *tag.key && *a.value == *tag.value)
    };
    let holds = services && span && filter.tags.iter().all(has);
    let tags_are_sure = match filter.tags.as_slice() {
        [] => true,
        [only] => keys.contains(&only.key) && !needs_span && one.is_none() && !summary.truncated,
        _ => false,
    };
    match (holds, summary.truncated) {
        (true, _) if tags_are_sure => Naive::Sure,
        (true, _) | (false, true) => Naive::Perhaps,
        (false, false) => Naive::No,
    }
}

/// What a search must return: the newest version of each trace of the tenant, judged. Of two of one fragment the later
/// one counts.
fn expected(
    batches: &[Vec<TraceSummary>],
    of: &TenantId,
    filter: &SearchFilter,
    keys: &[String],
) -> Vec<(UnixNanos, TraceId, Lsn, bool)> {
    let mut newest: BTreeMap<TraceId, &TraceSummary> = BTreeMap::new();
    for summary in batches
        .iter()
        .flatten()
        .filter(|summary| summary.tenant == *of)
    {
        let known = newest.entry(summary.trace_id).or_insert(summary);
        if known.fragment <= summary.fragment {
            *known = summary;
        }
    }
    let mut hits: Vec<_> = newest
        .values()
        .filter_map(|s| match naive(s, filter, keys) {
            Naive::Sure => Some((s.start, s.trace_id, s.fragment, true)),
            Naive::Perhaps => Some((s.start, s.trace_id, s.fragment, false)),
            Naive::No => None,
        })
        .collect();
    hits.sort_by_key(|hit| (std::cmp::Reverse(hit.0), hit.1));
    hits
}

fn open(dir: &Path) -> IndexStore {
    let options = IndexOptions {
        max_open_segments: 3,
        max_segment_documents: 7,
    };
    IndexStore::open(Arc::new(RealDisk), dir, options).unwrap()
}

fn keys() -> Vec<String> {
    vec!["user".to_owned(), "env".to_owned()]
}

fn fill(store: &IndexStore, batches: &[Vec<TraceSummary>]) {
    for (number, batch) in (1..).zip(batches) {
        store
            .add(BUCKET, BLOCK, number * 100, batch, &keys())
            .unwrap();
    }
}

fn search(
    store: &IndexStore,
    tenant: &TenantId,
    filter: &SearchFilter,
    cursor: Option<Cursor>,
    limit: usize,
) -> Vec<(UnixNanos, TraceId, Lsn, bool)> {
    let query = IndexQuery {
        tenant,
        filter,
        shards: None,
        cursor,
        limit,
    };
    let answer = store.search(BUCKET, BLOCK, &query).unwrap();
    let hits = answer.hits.iter();
    hits.map(|hit| (hit.start, hit.trace_id, hit.fragment, hit.exact))
        .collect()
}

/// Without the later versions.
fn once_each(mut batches: Vec<Vec<TraceSummary>>) -> Vec<Vec<TraceSummary>> {
    let mut traces = std::collections::BTreeSet::new();
    for batch in &mut batches {
        batch.retain(|s| traces.insert((s.tenant.clone(), s.trace_id)));
    }
    batches
}

fn of_tenant(batches: &[Vec<TraceSummary>], tenant: &TenantId) -> Vec<Vec<TraceSummary>> {
    let of = |batch: &Vec<TraceSummary>| {
        let mine = batch.iter().filter(|s| s.tenant == *tenant);
        mine.cloned().collect()
    };
    batches.iter().map(of).collect()
}

fn everything() -> SearchFilter {
    SearchFilter {
        to: UnixNanos(u64::MAX),
        ..SearchFilter::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_search_finds_what_reading_every_summary_finds(
        batches in proptest::collection::vec(proptest::collection::vec(summaries(), 0..12), 1..13),
        filters in proptest::collection::vec(filters(), 8),
        limit in 1..6_usize,
    ) {
        // given: summaries in many small segments, some merged, of two tenants, with late versions
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        fill(&store, &batches);
        let reopened = open(dir.path());
        prop_assert_eq!(reopened.checkpoint(BUCKET, BLOCK), 100 * batches.len() as u64);
        for (number, filter) in filters.iter().enumerate() {
            for tenant in [tenant(number), tenant(number + 1)] {
                let expected = expected(&batches, &tenant, filter, &keys());
                // then: one large page holds just that, in order, before and after reopening
                prop_assert_eq!(&search(&store, &tenant, filter, None, 1_000), &expected);
                prop_assert_eq!(&search(&reopened, &tenant, filter, None, 1_000), &expected);
                // and: of some shards, theirs, however small the page
                let of_shards = |shard: &ShardId| shard.0 % 3 == 1;
                let shards: ShardSet = (0..8).map(ShardId).filter(of_shards).collect();
                let query = IndexQuery {
                    tenant: &tenant,
                    filter,
                    shards: Some(&shards),
                    cursor: None,
                    limit,
                };
                let hits = store.search(BUCKET, BLOCK, &query).unwrap().hits;
                let found: Vec<_> = hits.iter().map(|hit| hit.trace_id).collect();
                let of_shards: Vec<_> = expected
                    .iter()
                    .map(|hit| hit.1)
                    .filter(|id| of_shards(&ShardId(u16::from(id.0[0]) % 8)))
                    .take(limit)
                    .collect();
                prop_assert_eq!(found, of_shards);
                // and: so do small pages, one after the other
                let mut paged = Vec::new();
                let mut cursor = None;
                loop {
                    let page = search(&store, &tenant, filter, cursor, limit);
                    cursor = page.last().map(|hit| Cursor { start: hit.0, trace_id: hit.1 });
                    let last = page.len() < limit;
                    paged.extend(page);
                    if last {
                        break;
                    }
                }
                prop_assert_eq!(&paged, &expected);
            }
        }
    }

    #[test]
    fn no_query_meets_another_tenant(
        batches in proptest::collection::vec(proptest::collection::vec(summaries(), 0..8), 1..4),
        filter in filters(),
        prefix in "[a-p\u{0}]{0,2}",
    ) {
        // given: the summaries of both tenants in one store, and of the second alone in another
        let other = tenant(1);
        let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
        let [store, alone_store, once, alone_once] = [0, 1, 2, 3].map(|number| open(dirs[number].path()));
        fill(&store, &batches);
        fill(&alone_store, &of_tenant(&batches, &other));
        // then: the second tenant sees the same in both
        prop_assert_eq!(
            search(&store, &other, &filter, None, 100),
            search(&alone_store, &other, &filter, None, 100)
        );
        // and: of each trace once, since superseded versions may leave their names, it is told the same names
        let batches = once_each(batches);
        fill(&once, &batches);
        fill(&alone_once, &of_tenant(&batches, &other));
        for kind in kinds() {
            prop_assert_eq!(
                once.names(BUCKET, &other, &kind, &prefix, 3).unwrap(),
                alone_once.names(BUCKET, &other, &kind, &prefix, 3).unwrap()
            );
        }
        // and: a tenant without traces sees nothing
        let stranger: TenantId = "acm".parse().unwrap();
        prop_assert_eq!(search(&store, &stranger, &everything(), None, 100), vec![]);
    }

    #[test]
    fn names_are_those_of_the_summaries(
        batches in proptest::collection::vec(proptest::collection::vec(summaries(), 0..8), 1..12),
        limit in 0..8_usize,
        prefix in prop_oneof![Just(""), Just("c"), Just("ca"), Just("get"), Just("\0"), Just("env"), Just("prod")],
    ) {
        // given: each trace once, since superseded versions may leave their names
        let batches = once_each(batches);
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        fill(&store, &batches);
        let tenant = tenant(0);
        let mine = || batches.iter().flatten().filter(|s| s.tenant == tenant);
        for kind in kinds() {
            let mut all: Vec<(String, Option<SpanKind>)> = match &kind {
                NamesKind::Services => {
                    let classes = mine().flat_map(|s| &s.classes);
                    classes.map(|c| (c.service.to_string(), None)).collect()
                }
                NamesKind::Operations { service } => {
                    let classes = mine().flat_map(|s| &s.classes);
                    let of = classes.filter(|c| *c.service == **service);
                    of.map(|c| (c.operation.to_string(), Some(c.kind))).collect()
                }
                NamesKind::Tags => {
                    let attributes = mine().flat_map(|s| &s.attributes);
                    attributes.map(|a| (a.key.to_string(), None)).collect()
                }
                NamesKind::TagValues { key } => {
                    let attributes = mine().flat_map(|s| &s.attributes);
                    let of = attributes.filter(|a| *a.key == **key);
                    of.map(|a| (a.value.to_string(), None)).collect()
                }
            };
            all.retain(|(name, _)| name.starts_with(prefix));
            all.sort();
            all.dedup();
            all.truncate(limit);
            let names = store.names(BUCKET, &tenant, &kind, prefix, limit).unwrap();
            let names: Vec<_> = names.into_iter().map(|name| (name.name, name.kind)).collect();
            prop_assert_eq!(names, all);
        }
    }
}

fn kinds() -> Vec<NamesKind> {
    vec![
        NamesKind::Services,
        NamesKind::Operations {
            service: "cart".to_owned(),
        },
        NamesKind::Operations {
            service: SERVICES[2].to_owned(),
        },
        NamesKind::Tags,
        NamesKind::TagValues {
            key: "env".to_owned(),
        },
    ]
}
