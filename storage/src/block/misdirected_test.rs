//! A write of a block's file went to another place: every checksum of a page may be right, and the page is not the one that
//! belongs there.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::Path;

use spandrel_model::ids::{Bucket, ShardId, TraceId, UnixNanos};
use spandrel_model::search::SpanCondition;
use spandrel_model::summary::TraceSummary;

use super::block_test::{DIR, open, spans, tenant, trace, write};
use super::*;
use crate::disk::{Disk, SimulatedDisk};
use redb::ReadableTable;

const BUCKET: Bucket = Bucket(5);
const TRACES: [(&str, std::ops::Range<u64>); 2] = [("a", 0..200), ("b", 200..220)];
/// Traces of a commit, and so of a batch of summaries: locators and batches of all fill some pages of redb.
const STEP: usize = 5;
/// Bytes of a page of redb.
const PAGE: usize = 4_096;

/// What a store says of a trace.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Whole,
    Refused,
    /// Spans are missing, and nothing says so.
    Hidden,
}

fn ask(store: &BlockStore, name: &str, number: u64) -> Answer {
    let (tenant, shard) = (tenant(name), ShardId(u16::try_from(number % 8).unwrap()));
    let Ok(locations) = store.fragments(&tenant, shard, trace(number)) else {
        return Answer::Refused;
    };
    let (expected, mut found) = (spans(number), Vec::new());
    for location in locations {
        let visited = store.visit(&location, &mut |_, _, span| found.push(span.to_vec()));
        if visited.is_err() {
            return Answer::Refused;
        }
    }
    let foreign = found.iter().find(|span| !expected.contains(span));
    assert_eq!(
        foreign, None,
        "a span of another trace is served as one of {number}"
    );
    match found.len() == expected.len() {
        true => Answer::Whole,
        false if store.unopenable().is_empty() => Answer::Hidden,
        false => Answer::Refused,
    }
}

/// The traces of a walk over all summaries, as many at a time as an odd number; `None`: it says that some cannot be read.
fn walk(store: &BlockStore) -> Option<BTreeSet<TraceId>> {
    let (mut found, mut done) = (BTreeSet::new(), 0);
    loop {
        let next = store.summaries(BUCKET, done, 33).ok()?;
        let Some((last, _)) = next.last() else {
            return Some(found);
        };
        done = *last;
        found.extend(next.iter().map(|(_, summary)| summary.trace_id));
    }
}

/// The traces of a scan that all spans of a tenant meet; none when the tenant is not known. `None`: it says that some cannot
/// be read.
fn scan(store: &BlockStore, name: &str) -> Option<BTreeSet<TraceId>> {
    let tenant = tenant(name);
    let request = ScanRequest {
        bucket: BUCKET,
        tenant: &tenant,
        condition: &SpanCondition::default(),
        from: UnixNanos(0),
        to: UnixNanos(u64::MAX),
    };
    let mut found = BTreeSet::new();
    let Some(mut scan) = store.scan(&request).ok()? else {
        return Some(found);
    };
    while let Some(page) = scan.next_page().ok()? {
        if page.corrupt {
            return None;
        }
        found.extend(page.found.iter().map(|found| found.trace_id));
    }
    Some(found)
}

/// What a search finds is all that there is, or it is told that something cannot be read: nobody compares summaries.
fn hides_from_searches(store: &BlockStore) -> Option<&'static str> {
    let of = |numbers: &std::ops::Range<u64>| numbers.clone().map(trace).collect::<BTreeSet<_>>();
    let all: BTreeSet<TraceId> = TRACES.iter().flat_map(|(_, numbers)| of(numbers)).collect();
    if walk(store).is_some_and(|found| found != all) {
        return Some("summaries");
    }
    for (name, numbers) in &TRACES {
        if scan(store, name).is_some_and(|found| found != of(numbers)) {
            return Some("pages");
        }
        let tenant = tenant(name);
        for number in numbers.clone() {
            let shard = ShardId(u16::try_from(number % 8).unwrap());
            let located = store.fragments(&tenant, shard, trace(number));
            let is_located = located.is_ok_and(|found| !found.is_empty());
            let is_other = |summary: &TraceSummary| summary.trace_id != trace(number);
            let summary = store.summary_of(&tenant, shard, trace(number));
            if is_located && summary.is_ok_and(|found| found.as_ref().is_none_or(is_other)) {
                return Some("a summary");
            }
        }
    }
    None
}

fn inventory(store: &BlockStore) -> Result<Inventory, BlockError> {
    let (mut inventory, mut after) = (Inventory::default(), PagePlace::default());
    while let Some(next) = store.count_spans(BUCKET, after, &mut inventory)? {
        after = next;
    }
    Ok(inventory)
}

/// Spans are served as they were stored, or refused, and what is missing without a word is missing in the inventory too: a
/// comparison with another copy finds it.
#[test]
fn a_misdirected_page_is_noticed_by_who_reads_it_or_by_a_comparison() {
    for seals in [false, true] {
        let disk = SimulatedDisk::new(1);
        let store = open(&disk, 1);
        for (name, numbers) in TRACES {
            for start in numbers.step_by(STEP) {
                store
                    .commit(&write(BUCKET.0, name, start..start + STEP as u64))
                    .unwrap();
            }
        }
        if seals {
            store.seal(BUCKET).unwrap();
        }
        let whole = inventory(&store).unwrap();
        drop(store);
        let path = Path::new(DIR).join("bucket-5.block");
        let image = disk.read(&path).unwrap();
        let is_used = |page: &usize| image[page * PAGE..][..PAGE].iter().any(|byte| *byte != 0);
        let pages: Vec<usize> = (0..image.len() / PAGE).filter(is_used).collect();
        let (mut noticed, mut hidden, mut written, mut placed) = (0, 0, 0, 0);
        for (number, &to) in pages.iter().enumerate() {
            for distance in [1, 2, 5, pages.len() / 2] {
                let from = pages[(number + distance) % pages.len()];
                let mut wrong = image.clone();
                wrong.copy_within(from * PAGE..(from + 1) * PAGE, to * PAGE);
                disk.write_atomically(&path, &wrong).unwrap();
                let store = open(&disk, 2);
                let numbers = || {
                    let of_tenants = TRACES.iter();
                    of_tenants.flat_map(|(name, numbers)| {
                        numbers.clone().map(move |number| (*name, number))
                    })
                };
                let answers: Vec<Answer> = numbers()
                    .map(|(name, number)| ask(&store, name, number))
                    .collect();
                let hidden_from_searches = hides_from_searches(&store);
                assert_eq!(hidden_from_searches, None, "page {to} is as {from}");
                let counted = inventory(&store);
                let differs = counted.as_ref().map_or(true, |counted| {
                    !counted.damaged.is_empty() || counted.tallies != whole.tallies
                });
                if answers.contains(&Answer::Hidden) {
                    hidden += 1;
                    assert!(
                        differs,
                        "page {to} is as {from}: spans are missing unnoticed"
                    );
                }
                noticed += usize::from(differs);
                placed += 1;
                store
                    .commit(&write(BUCKET.0, "c", 300..305))
                    .unwrap_or_else(|error| panic!("page {to} is as {from}: {error}"));
                let is_sealed = store.seal(BUCKET).is_ok();
                assert!(is_sealed || !store.unopenable().is_empty());
                // Behind the damage, in the same file or in another one: what redb cannot repair when it opens the file
                // again is told.
                for number in 300..305 {
                    let answer = ask(&store, "c", number);
                    assert_ne!(answer, Answer::Hidden, "page {to} is as {from}");
                    written += u64::from(answer == Answer::Whole);
                }
                for ((name, number), before) in numbers().zip(&answers) {
                    let after = ask(&store, name, number);
                    let is_hidden = after == Answer::Hidden && *before != Answer::Hidden;
                    assert!(
                        !is_hidden,
                        "page {to} is as {from}: {number} is hidden by a seal"
                    );
                }
                std::mem::forget(store);
                for path in disk.list(Path::new(DIR)).unwrap() {
                    disk.remove(&path).unwrap();
                }
            }
        }
        println!(
            "{} pages, {noticed} of {placed} noticed, {hidden} hide spans, {written} traces written behind them",
            pages.len()
        );
        assert!(pages.len() > 20 && noticed > pages.len());
        // An older version of a page above the leaves: its rows are in order, and some are not there yet.
        assert!(hidden <= 2, "{hidden}");
        assert!(written > placed * 4, "{written} of {}", placed * 5);
    }
}

/// What a row's loss looks like whatever became of its page: the rows beside it are whole.
fn without_row(take: impl FnOnce(&redb::WriteTransaction)) -> BlockStore {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    for start in [0, 10, 20] {
        store
            .commit(&write(BUCKET.0, "a", start..start + 10))
            .unwrap();
    }
    drop(store);
    let path = Path::new(DIR).join("bucket-5.block");
    let backend = crate::disk::Backend(disk.open(&path).unwrap());
    let database = redb::Builder::new().create_with_backend(backend).unwrap();
    let transaction = database.begin_write().unwrap();
    take(&transaction);
    transaction.commit().unwrap();
    drop(database);
    open(&disk, 2)
}

/// A search would leave their traces out, and say that it is complete.
#[test]
fn a_batch_of_summaries_that_is_not_in_its_place_is_told() {
    for first in [1, 11, 21] {
        let store = without_row(|transaction| {
            let mut batches = transaction.open_table(schema::SUMMARIES).unwrap();
            assert!(batches.remove(first).unwrap().is_some());
        });
        assert_eq!(walk(&store), None, "the batch from {first} on");
        let lost = store.summary_of(
            &tenant("a"),
            ShardId(u16::try_from(first % 8).unwrap()),
            trace(first),
        );
        assert!(matches!(lost, Err(BlockError::Corrupt { .. })));
    }
}

#[test]
fn a_page_that_is_not_listed_is_told() {
    let store = without_row(|transaction| {
        let mut pages = transaction.open_table(schema::PAGES).unwrap();
        let first = pages.first().unwrap().unwrap().0.value();
        assert!(pages.remove(first).unwrap().is_some());
    });
    assert_eq!(scan(&store, "a"), None);
}

/// A bit that is lost in a stored filter would hide traces: nothing else speaks of them.
#[test]
fn a_filter_that_is_not_what_was_written_hides_nothing() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(BUCKET.0, "a", 0..200)).unwrap();
    store.seal(BUCKET).unwrap();
    drop(store);
    let path = Path::new(DIR).join("bucket-5.block");
    let backend = crate::disk::Backend(disk.open(&path).unwrap());
    let database = redb::Builder::new().create_with_backend(backend).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut rows = transaction.open_table(schema::FILTER).unwrap();
        let mut row = rows.get(0).unwrap().unwrap().value().to_vec();
        let filter = row.len() - 8;
        assert!(row[..filter].iter().any(|byte| *byte != 0));
        row[..filter].fill(0);
        rows.insert(0, row.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    // A row at a time, and as a whole.
    for filter_bytes in [0, 1 << 20] {
        let options = BlockOptions {
            boot: 2,
            filter_bytes,
            ..BlockOptions::default()
        };
        let disk = std::sync::Arc::new(disk.clone());
        let store = BlockStore::open(disk, Path::new(DIR), options).unwrap();
        for number in 0..200 {
            assert_eq!(ask(&store, "a", number), Answer::Whole, "trace {number}");
        }
    }
}
