//! A write of a block's file went to another place: every checksum of a page may be right, and the page is not the one that
//! belongs there.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use spandrel_model::ids::{Bucket, ShardId};

use super::block_test::{DIR, open, spans, tenant, trace, write};
use super::*;
use crate::disk::{Disk, SimulatedDisk};

const BUCKET: Bucket = Bucket(5);
const TRACES: [(&str, std::ops::Range<u64>); 2] = [("a", 0..200), ("b", 200..220)];
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
        false => Answer::Hidden,
    }
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
            for start in numbers.step_by(20) {
                store
                    .commit(&write(BUCKET.0, name, start..start + 20))
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
        let (mut noticed, mut hidden) = (0, 0);
        for (number, &to) in pages.iter().enumerate() {
            for distance in [1, 2, 5, pages.len() / 2] {
                let from = pages[(number + distance) % pages.len()];
                let mut wrong = image.clone();
                wrong.copy_within(from * PAGE..(from + 1) * PAGE, to * PAGE);
                disk.write_atomically(&path, &wrong).unwrap();
                let store = open(&disk, 2);
                let numbers = TRACES
                    .iter()
                    .flat_map(|(name, numbers)| numbers.clone().map(move |number| (*name, number)));
                let answers: Vec<Answer> = numbers
                    .map(|(name, number)| ask(&store, name, number))
                    .collect();
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
                std::mem::forget(store);
            }
        }
        println!(
            "{} pages, {noticed} noticed, {hidden} hide spans",
            pages.len()
        );
        assert!(pages.len() > 20 && noticed > pages.len() && hidden > 0);
    }
}
