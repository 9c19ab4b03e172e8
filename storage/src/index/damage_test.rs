//! What becomes of the index when files are damaged, missing or left over, and what the life of a bucket is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::{Bucket, Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, NamesKind, SearchFilter};
use spandrel_model::summary::{SpanClass, SummaryDecision, TraceSummary};

use super::limits::MAX_SMALL_SEGMENTS;
use super::*;
use crate::disk::{Disk, RealDisk};

const BUCKET: Bucket = Bucket(5);
const BLOCK: u128 = 77;

fn summary(trace: u8, fragment: u64, service: &str) -> TraceSummary {
    TraceSummary {
        tenant: TenantId::default(),
        shard: ShardId(3),
        trace_id: TraceId([trace; 16]),
        fragment: Lsn(fragment),
        bucket: BUCKET,
        start: UnixNanos(1_000 + u64::from(trace)),
        earliest: UnixNanos(1_000 + u64::from(trace)),
        end: UnixNanos(2_000),
        root: None,
        span_count: 1,
        error_count: 0,
        classes: vec![SpanClass {
            service: service.into(),
            operation: "get".into(),
            kind: SpanKind::Server,
            status: StatusCode::Unset,
        }],
        attributes: Vec::new(),
        truncated: false,
        decision: SummaryDecision::default(),
    }
}

fn open(dir: &Path) -> IndexStore {
    IndexStore::open(Arc::new(RealDisk), dir, IndexOptions::default()).unwrap()
}

fn find(store: &IndexStore, bucket: Bucket, service: &str) -> Result<Vec<(u8, u64)>, IndexError> {
    let filter = SearchFilter {
        services: vec![service.to_owned()],
        to: UnixNanos(u64::MAX),
        ..SearchFilter::default()
    };
    let query = IndexQuery {
        tenant: &TenantId::default(),
        filter: &filter,
        shards: None,
        cursor: None,
        limit: 100,
    };
    let hits = store.search(bucket, BLOCK, &query)?.hits;
    Ok(hits
        .iter()
        .map(|hit| (hit.trace_id.0[0], hit.fragment.0))
        .collect())
}

/// A store with two segments in one bucket, closed again; its directory.
fn closed_store() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store
        .add(BUCKET, BLOCK, 1, &[summary(1, 1, "cart")], &[])
        .unwrap();
    store
        .add(BUCKET, BLOCK, 2, &[summary(2, 2, "cart")], &[])
        .unwrap();
    dir
}

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files = RealDisk.list(dir).unwrap();
    files.retain(|path| path.extension().is_some_and(|end| end == ending));
    files
}

fn change_byte(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

fn assert_empty_and_rebuildable(dir: &Path, store: &IndexStore) {
    assert_eq!(store.checkpoint(BUCKET, BLOCK), 0);
    assert_eq!(RealDisk.list(dir).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(store.take_dropped().len(), 1);
    assert_eq!(find(store, BUCKET, "cart").unwrap(), []);
    store
        .add(BUCKET, BLOCK, 2, &[summary(1, 1, "cart")], &[])
        .unwrap();
    assert_eq!(find(store, BUCKET, "cart").unwrap(), [(1, 1)]);
    assert_eq!(open(dir).checkpoint(BUCKET, BLOCK), 2);
}

#[test]
fn a_damaged_manifest_drops_the_index_of_its_bucket() {
    for at in [0, 8, 20, 60] {
        let dir = closed_store();
        change_byte(&files(dir.path(), "manifest")[0], at);
        assert_empty_and_rebuildable(dir.path(), &open(dir.path()));
    }
}

#[test]
fn a_cut_or_foreign_manifest_drops_the_index_of_its_bucket() {
    let dir = closed_store();
    fs::write(&files(dir.path(), "manifest")[0], b"").unwrap();
    assert_empty_and_rebuildable(dir.path(), &open(dir.path()));

    let dir = closed_store();
    let moved = dir.path().join("0000000006.manifest");
    fs::rename(&files(dir.path(), "manifest")[0], moved).unwrap();
    assert_empty_and_rebuildable(dir.path(), &open(dir.path()));
}

#[test]
fn a_damaged_segment_drops_the_index_at_its_first_use() {
    let length = fs::metadata(&files(closed_store().path(), "segment")[0])
        .unwrap()
        .len();
    let length = usize::try_from(length).unwrap();
    for at in [0, 9, length / 3, length / 2, length - 1] {
        let dir = closed_store();
        let store = open(dir.path());
        change_byte(&files(dir.path(), "segment")[0], at);
        let error = find(&store, BUCKET, "cart").unwrap_err();
        assert!(
            matches!(error, IndexError::Corrupt { bucket: BUCKET, .. }),
            "{error}"
        );
        assert_empty_and_rebuildable(dir.path(), &store);
    }
}

#[test]
fn a_cut_or_missing_segment_drops_the_index_too() {
    let dir = closed_store();
    let store = open(dir.path());
    fs::write(&files(dir.path(), "segment")[1], b"SPDR").unwrap();
    let names = store.names(BUCKET, &TenantId::default(), &NamesKind::Services, "", 9);
    assert!(
        matches!(names, Err(IndexError::Corrupt { .. })),
        "{names:?}"
    );
    assert_empty_and_rebuildable(dir.path(), &store);

    // found while adding a newer version of a trace of the segment
    let dir = closed_store();
    let store = open(dir.path());
    fs::remove_file(&files(dir.path(), "segment")[0]).unwrap();
    let added = store.add(BUCKET, BLOCK, 3, &[summary(1, 3, "cart")], &[]);
    assert!(
        matches!(added, Err(IndexError::Corrupt { .. })),
        "{added:?}"
    );
    assert_empty_and_rebuildable(dir.path(), &store);
}

#[test]
fn files_that_no_manifest_names_are_removed() {
    // given: what a crash leaves between a segment and its manifest
    let dir = closed_store();
    for name in [
        "0000000005-0000000000000009.segment",
        "0000000005.manifest.tmp",
    ] {
        fs::write(dir.path().join(name), b"left over").unwrap();
    }
    // when
    let store = open(dir.path());
    // then: the index is as it was
    assert_eq!(RealDisk.list(dir.path()).unwrap().len(), 3);
    assert_eq!(find(&store, BUCKET, "cart").unwrap(), [(2, 2), (1, 1)]);
    assert_eq!(store.take_dropped(), vec![]);
}

#[test]
fn an_index_of_another_block_counts_for_nothing() {
    // given
    let dir = closed_store();
    let store = open(dir.path());
    // then: it is not used for the new block
    assert_eq!(store.checkpoint(BUCKET, BLOCK + 1), 0);
    let filter = SearchFilter {
        to: UnixNanos(u64::MAX),
        ..SearchFilter::default()
    };
    let query = IndexQuery {
        tenant: &TenantId::default(),
        filter: &filter,
        shards: None,
        cursor: None,
        limit: 9,
    };
    let answer = store.search(BUCKET, BLOCK + 1, &query).unwrap();
    assert_eq!(answer, IndexAnswer::default());
    // and: the first addition replaces it
    store
        .add(BUCKET, BLOCK + 1, 1, &[summary(9, 1, "cart")], &[])
        .unwrap();
    let answer = store.search(BUCKET, BLOCK + 1, &query).unwrap();
    assert_eq!((answer.up_to_sequence, answer.hits.len()), (1, 1));
    assert_eq!(store.checkpoint(BUCKET, BLOCK), 0);
    assert_eq!(files(dir.path(), "segment").len(), 1);
}

#[test]
fn an_addition_that_is_known_already_changes_nothing() {
    let dir = closed_store();
    let store = open(dir.path());
    store
        .add(BUCKET, BLOCK, 2, &[summary(3, 3, "cart")], &[])
        .unwrap();
    assert_eq!(find(&store, BUCKET, "cart").unwrap(), [(2, 2), (1, 1)]);
}

#[test]
fn only_the_newest_version_of_a_trace_is_found() {
    // given: a late fragment that does not match what the older one matched
    let dir = closed_store();
    let store = open(dir.path());
    store
        .add(BUCKET, BLOCK, 3, &[summary(1, 7, "pay")], &[])
        .unwrap();
    // then, also after reopening: the old version is hidden
    for store in [store, open(dir.path())] {
        assert_eq!(find(&store, BUCKET, "cart").unwrap(), [(2, 2)]);
        assert_eq!(find(&store, BUCKET, "pay").unwrap(), [(1, 7)]);
    }
    // and: an older version that comes later is not taken
    let store = open(dir.path());
    store
        .add(BUCKET, BLOCK, 4, &[summary(1, 5, "cart")], &[])
        .unwrap();
    assert_eq!(find(&store, BUCKET, "cart").unwrap(), [(2, 2)]);
}

#[test]
fn small_segments_are_merged_and_old_versions_leave() {
    // given: the same trace over and over, beside new ones
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for number in 1..=40_u8 {
        let batch = [
            summary(200, u64::from(number), "cart"),
            summary(number, 1, "pay"),
        ];
        store
            .add(BUCKET, BLOCK, u64::from(number), &batch, &[])
            .unwrap();
        assert!(files(dir.path(), "segment").len() <= MAX_SMALL_SEGMENTS + 1);
    }
    // then
    assert_eq!(find(&store, BUCKET, "cart").unwrap(), [(200, 40)]);
    assert_eq!(find(&store, BUCKET, "pay").unwrap().len(), 40);
    assert_eq!(open(dir.path()).checkpoint(BUCKET, BLOCK), 40);
}

#[test]
fn equal_summaries_make_equal_files() {
    let fill = || {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        for number in 1..=12_u8 {
            let batch = [summary(number, 2, "cart"), summary(100 + number, 1, "pay")];
            store
                .add(BUCKET, BLOCK, u64::from(number), &batch, &[])
                .unwrap();
        }
        let paths = RealDisk.list(dir.path()).unwrap();
        let read = |path: PathBuf| {
            (
                path.file_name().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        };
        paths.into_iter().map(read).collect::<Vec<_>>()
    };
    assert!(fill() == fill(), "two runs wrote different bytes");
}

#[test]
fn buckets_expire_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for bucket in [3, 4, 5] {
        store
            .add(Bucket(bucket), BLOCK, 1, &[summary(1, 1, "cart")], &[])
            .unwrap();
    }
    let bytes = store.bytes();
    assert_eq!(store.expire(Bucket(5)).unwrap(), [Bucket(3), Bucket(4)]);
    assert_eq!(store.bytes(), bytes / 3);
    assert_eq!(files(dir.path(), "segment").len(), 1);
    assert_eq!(find(&store, Bucket(4), "cart").unwrap(), []);
    assert_eq!(find(&store, Bucket(5), "cart").unwrap(), [(1, 1)]);
    assert_eq!(open(dir.path()).buckets(), [(Bucket(5), BLOCK, 1)]);
}

#[test]
fn many_equal_starts_are_paged_by_trace_id() {
    // given: more traces of one start than are held beside a page
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let all: Vec<TraceSummary> = (1..=3_000_u128)
        .map(|number| TraceSummary {
            trace_id: TraceId((number * 7_919 % 3_001).to_be_bytes()),
            start: UnixNanos(5),
            earliest: UnixNanos(5),
            ..summary(1, 1, "cart")
        })
        .collect();
    for (number, part) in (1..).zip(all.chunks(1_000)) {
        store.add(BUCKET, BLOCK, number, part, &[]).unwrap();
    }
    // when: read in pages
    let filter = SearchFilter {
        to: UnixNanos(6),
        ..SearchFilter::default()
    };
    let mut cursor = None;
    let mut seen = Vec::new();
    loop {
        let query = IndexQuery {
            tenant: &TenantId::default(),
            filter: &filter,
            shards: None,
            cursor,
            limit: 70,
        };
        let hits = store.search(BUCKET, BLOCK, &query).unwrap().hits;
        let Some(last) = hits.last() else { break };
        cursor = Some(Cursor {
            start: last.start,
            trace_id: last.trace_id,
        });
        seen.extend(hits.iter().map(|hit| u128::from_be_bytes(hit.trace_id.0)));
    }
    // then: each once, in order
    assert_eq!(seen, (1..=3_000).collect::<Vec<_>>());
}

#[test]
fn an_unbounded_limit_is_refused() {
    let dir = closed_store();
    let store = open(dir.path());
    let filter = SearchFilter::default();
    let query = IndexQuery {
        tenant: &TenantId::default(),
        filter: &filter,
        shards: None,
        cursor: None,
        limit: MAX_HITS + 1,
    };
    let refused = store.search(BUCKET, BLOCK, &query);
    assert!(matches!(refused, Err(IndexError::LimitTooLarge { .. })));
}

#[test]
fn a_name_that_is_too_long_for_a_term_makes_a_candidate() {
    // given: a service name beyond the longest term
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let long = "x".repeat(70_000);
    store
        .add(BUCKET, BLOCK, 1, &[summary(1, 1, &long)], &[])
        .unwrap();
    // then: it is found, to be verified
    assert_eq!(find(&store, BUCKET, &long).unwrap(), [(1, 1)]);
}
